"""What a merge left otherwise than it had read it, table by table: a publication need write nothing else.
The frames are kept, and handed on where they may be relied upon, by `merged`; rows are written by `bulk`."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from sis_pipeline.roster.contract import PUBLICATION, DistrictInputs, MergedRoster
from sis_pipeline.roster.frames import fit
from sis_pipeline.roster.model import MERGED
from sis_pipeline.store import bulk


@dataclass(frozen=True, slots=True)
class News:
    """Of a table, the rows that a merge left otherwise than it had read them: as they are now (`fresh`), and as they were
    (`replaced`). `rows`: how many it decided in all."""

    fresh: pl.DataFrame
    replaced: pl.DataFrame
    rows: int


def news_of(inputs: DistrictInputs, merged: MergedRoster) -> dict[str, News]:
    """By table, what a merge left otherwise than it had read it."""
    found = {}
    for name, way in PUBLICATION.items():
        table, frame = MERGED[name], merged.frames[name]
        if way == "append":
            found[name] = News(frame, frame.clear(), frame.height)
            continue
        sides = [frame, fit(inputs.existing[name], table)]
        if name != "student_links":  # worked out for everybody, and another school year's merge may have changed them
            sides = [_of_touched(one, merged.touched) for one in sides]
        found[name] = News(*bulk.differences(*sides), frame.height)
    return found


def _of_touched(rows: pl.DataFrame, touched: pl.Series | None) -> pl.DataFrame:
    """The rows of students that were merged anew, and of whatever is no student's."""
    if touched is None:
        return rows
    if "student_id" in rows.columns:
        return rows.filter(pl.col("student_id").is_in(touched.implode()))
    if "person_id" in rows.columns:
        return rows.filter((pl.col("role") != "student") | pl.col("person_id").is_in(touched.implode()))
    return rows
