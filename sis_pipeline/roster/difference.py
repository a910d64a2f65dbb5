"""How the published rows of a table and those of a merge differ: added, changed in which columns, removed.
What the rows mean is not known here; what a publication would do on the whole is worked out in `plan`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from sis_pipeline.roster.contract import PUBLICATION, MergedRoster
from sis_pipeline.roster.frames import empty, fit
from sis_pipeline.roster.model import MERGED, Column, Table

JSON_KINDS = {"json", "list"}


@dataclass(frozen=True)
class Difference:
    """Rows with the table's columns. `changed` as they would be, with `columns`, the names of those that differ; `was`
    are the same rows as they are published. `removed` in the order of their key, the others in the merge's."""

    added: pl.DataFrame
    changed: pl.DataFrame
    was: pl.DataFrame
    removed: pl.DataFrame


def differences(published: Mapping[str, pl.DataFrame], merged: MergedRoster) -> Iterator[tuple[Table, Difference]]:
    """Table by table, what publishing a merge over these rows would write, as `PUBLICATION` says.

    `published`: as `DistrictInputs.existing`, and of the ledger the rows that are there already.
    """
    retired = {"students": ("student_id", merged.retired), "staff": ("staff_id", merged.retired_staff)}
    for name, table in MERGED.items():
        before, after = fit(published[name], table) if name in published else empty(table), merged.frames[name]
        gone = before.clear()
        if PUBLICATION[name] == "year":
            gone = before.join(after, on=table.key, how="anti")
        elif name in retired:
            column, ids = retired[name]
            gone = before.filter(pl.col(column).is_in(sorted(ids)))
        yield table, _difference(table, before, after, gone, updates=PUBLICATION[name] != "append")


def _difference(
    table: Table, before: pl.DataFrame, after: pl.DataFrame, gone: pl.DataFrame, *, updates: bool
) -> Difference:
    old = before.select(table.key).with_row_index("was")
    pairs = (
        after.select(table.key).with_row_index("now").join(old, on=table.key, how="left", maintain_order="left")
    ).select("now", "was")
    added = after[pairs.filter(pl.col("was").is_null())["now"]]
    both = pairs.drop_nulls("was") if updates else pairs.clear()
    rest = [column for column in table if not column.key]
    # column by column: a million rows side by side would be held twice
    differs = pl.DataFrame(
        {it.name: _differs(it, before[it.name].gather(both["was"]), after[it.name].gather(both["now"])) for it in rest}
    )
    any_differs = differs.select(pl.any_horizontal(pl.all())).to_series()
    written = both.filter(any_differs)
    named = [pl.when(name).then(pl.lit(name)) for name in differs.columns]
    columns = differs.filter(any_differs).select(columns=pl.concat_list(named).list.drop_nulls())
    return Difference(
        added=added,
        changed=after[written["now"]].with_columns(columns.to_series()),
        was=before[written["was"]],
        removed=gone.sort(table.key),
    )


def _differs(column: Column, old: pl.Series, new: pl.Series) -> pl.Series:
    differs = old.ne_missing(new)
    if column.kind in JSON_KINDS:
        # the database writes JSON in its own way, so texts differ that say the same
        rows = differs.arg_true()
        said = zip(old.gather(rows), new.gather(rows), strict=True)
        differs = differs.scatter(rows, [_parsed(one) != _parsed(other) for one, other in said])
    return differs


def _parsed(text: str | None) -> tuple[Any, ...]:
    return () if text is None else (json.loads(text),)
