"""What a district's year consists of beside students: schools, sessions, courses, sections and staff, under permanent ids.
Courses, sections and sessions stay one system's own; only schools and staff are recognised across systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from sis_pipeline.roster.frames import fit
from sis_pipeline.roster.ids import derived_ids
from sis_pipeline.roster.model import (
    MERGED_ACADEMIC_SESSIONS,
    MERGED_COURSES,
    MERGED_SCHOOLS,
    MERGED_SECTIONS,
    MERGED_STAFF,
)
from sis_pipeline.roster.presence import CARRIED, RECORD, Presence


def by_priority(records: pl.DataFrame, priorities: Mapping[str, int]) -> pl.DataFrame:
    """Records of the integration with the lowest priority number first; within one, the newest first."""
    lowest = max(priorities.values(), default=0) + 1
    rank = pl.col("integration").replace_strict(dict(priorities) or {"": 0}, default=lowest, return_dtype=pl.Int64)
    return (
        records.with_columns(_rank=rank)
        .sort("_rank", "integration", "modified_at", "sis_id", descending=[False, False, True, False], nulls_last=True)
        .drop("_rank")
    )


def first_known(records: pl.DataFrame, person: str) -> pl.DataFrame:
    """One row per `person`: of every column the first value that is not null, in the order of the records."""
    others = [name for name in records.columns if name != person]
    return records.group_by(person, maintain_order=True).agg(pl.col(name).drop_nulls().first() for name in others)


def refer(records: pl.DataFrame, column: str, ids: pl.DataFrame, as_column: str) -> pl.DataFrame:
    """Adds the permanent id that a `…_sis_id` column leads to. `ids`: integration, sis_id, `as_column`."""
    there = ids.select("integration", pl.col("sis_id").alias(column), as_column)
    return records.join(there, on=["integration", column], how="left", maintain_order="left")


def published_schools(
    records: pl.DataFrame, ids: pl.DataFrame, district: str, priorities: Mapping[str, int]
) -> pl.DataFrame:
    """One row per school, from the system with the lowest priority number, its gaps filled by the others."""
    named = by_priority(records, priorities).join(ids, on=RECORD, how="inner", maintain_order="left")
    origin = named.unique("school_id", keep="first", maintain_order=True).select("school_id", *RECORD)
    merged = first_known(named.drop(RECORD), "school_id").join(origin, on="school_id", maintain_order="left")
    return fit(merged.with_columns(district=pl.lit(district)), MERGED_SCHOOLS).sort("school_id")


def own_ids(records: pl.DataFrame, what: str, district: str, school_year: str) -> pl.DataFrame:
    """Ids of records that stay one system's own: integration, sis_id, `id`. Ids may be reused every year by a SIS."""
    keys = records.select(RECORD).unique(maintain_order=True)
    ids = derived_ids(keys.iter_rows(), what, district, school_year)
    return keys.with_columns(pl.Series("id", ids, dtype=pl.String))


def published_sessions(records: pl.DataFrame, schools: pl.DataFrame, district: str, school_year: str) -> pl.DataFrame:
    ids = own_ids(records, "session", district, school_year).rename({"id": "session_id"})
    named = refer(records, "school_sis_id", schools, "school_id").join(ids, on=RECORD, maintain_order="left")
    return fit(named.with_columns(district=pl.lit(district)), MERGED_ACADEMIC_SESSIONS)


def published_courses(records: pl.DataFrame, schools: pl.DataFrame, district: str, school_year: str) -> pl.DataFrame:
    ids = own_ids(records, "course", district, school_year).rename({"id": "course_id"})
    named = refer(records, "school_sis_id", schools, "school_id").join(ids, on=RECORD, maintain_order="left")
    return fit(named.with_columns(district=pl.lit(district), school_year=pl.lit(school_year)), MERGED_COURSES)


def published_sections(
    records: pl.DataFrame,
    references: Mapping[str, pl.DataFrame],
    sessions: pl.DataFrame,
    teaching: pl.DataFrame,
    existing: pl.DataFrame,
    *,
    district: str,
    school_year: str,
) -> pl.DataFrame:
    """The sections rows. `references`: `schools`, `courses` and `staff` by permanent id; `sessions`: the records that
    give a section its dates; `teaching`: section enrollment records, of which a primary teacher fills in for a
    section without a lead teacher; `existing`: the sections published before, see `_section_ids`."""
    lead = (
        teaching.filter(pl.col("role") == "teacher")
        .sort("is_primary", "begin_date", "sis_id", descending=[True, False, False], nulls_last=True)
        .unique(["integration", "section_sis_id"], keep="first", maintain_order=True)
        .select("integration", pl.col("section_sis_id").alias("sis_id"), lead="person_sis_id")
    )
    dates = (
        records.select(*RECORD, session=pl.col("session_sis_ids").str.json_decode(pl.List(pl.String)))
        .explode("session")
        .join(sessions.select("integration", "start_date", "end_date", session="sis_id"), on=["integration", "session"])
        .group_by(RECORD)
        .agg(pl.col("start_date").min(), pl.col("end_date").max())
    )
    ids = _section_ids(records.select(RECORD).join(dates, on=RECORD, how="left"), existing, district, school_year)
    named = (
        records.join(ids, on=RECORD, maintain_order="left")
        .join(lead, on=RECORD, how="left", maintain_order="left")
        .with_columns(teacher_sis_id=pl.coalesce("teacher_sis_id", "lead"))
        .join(dates, on=RECORD, how="left", maintain_order="left")
    )
    named = refer(named, "school_sis_id", references["schools"], "school_id")
    named = refer(named, "course_sis_id", references["courses"], "course_id")
    named = refer(named, "teacher_sis_id", references["staff"], "teacher_id")
    named = named.with_columns(district=pl.lit(district), school_year=pl.lit(school_year))
    return fit(named, MERGED_SECTIONS).drop_nulls("school_id")


def _section_ids(records: pl.DataFrame, existing: pl.DataFrame, district: str, school_year: str) -> pl.DataFrame:
    """integration, sis_id, section_id. `records`: these with `start_date` and `end_date` where known. A SIS may give a
    section's id to another one in the next term: what begins when all that had the id are over is another section."""
    runs = existing.select(*RECORD, "section_id", was_start="start_date", was_end="end_date")
    both = records.unique(RECORD, maintain_order=True).join(runs, on=RECORD, how="left", maintain_order="left")
    over = (pl.col("was_end") <= pl.col("start_date")).fill_null(value=False)
    latest = both.with_columns(over=over).sort("over", "was_start", "section_id", descending=[False, True, False])
    chosen = latest.unique(RECORD, keep="first", maintain_order=True)
    same, again = chosen.filter(~pl.col("over")), chosen.filter("over")
    first = own_ids(same, "section", district, school_year)
    same = same.join(first, on=RECORD, maintain_order="left").with_columns(pl.coalesce("section_id", "id"))
    keys = again.select(*RECORD, pl.col("start_date").cast(pl.String))
    ids = derived_ids(keys.iter_rows(), "section", district, school_year)
    again = again.with_columns(section_id=pl.Series(ids, dtype=pl.String))
    return pl.concat([frame.select(*RECORD, "section_id") for frame in (same, again)])


def published_staff(
    records: pl.DataFrame, schools: pl.DataFrame, district: str, priorities: Mapping[str, int], near: Sequence[str]
) -> pl.DataFrame:
    """One row per staff member. `records`: the staff records with `staff_id`; survivorship as in `first_known`. `near`: who
    may be somebody else."""
    named = refer(by_priority(records, priorities), "school_sis_id", schools, "school_id")
    known = first_known(named, "staff_id").with_columns(
        district=pl.lit(district), near_match=pl.col("staff_id").is_in(pl.Series(near, dtype=pl.String).implode())
    )
    return fit(known, MERGED_STAFF).sort("staff_id")


def with_kept(
    current: pl.DataFrame, existing: pl.DataFrame, presence: Presence, key: str, in_use: Sequence[pl.Series]
) -> pl.DataFrame:
    """The rows of now, and those published before that were carried over or that something kept still refers to."""
    rest = existing.join(current.select(key), on=key, how="anti", maintain_order="left")
    if rest.is_empty():
        return current.sort(key)
    used = (
        pl.concat([series.rename(key).cast(pl.String) for series in in_use])
        if in_use
        else pl.Series(key, [], pl.String)
    )
    rest = presence.fates(rest)
    kept = rest.filter((pl.col("fate") == CARRIED) | pl.col(key).is_in(used.implode()))
    return pl.concat([current, kept.select(current.columns)]).sort(key)


def newest_runs(sections: pl.DataFrame) -> pl.DataFrame:
    """Of sections that had one id of a SIS one after the other, the last."""
    ordered = sections.sort("start_date", descending=True, nulls_last=True, maintain_order=True)
    return ordered.unique(RECORD, keep="first", maintain_order=True)
