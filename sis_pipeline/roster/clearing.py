"""What a student's record once supplied and does not any more: emptied, and cleared where a complete reading proves it.
What a cleared value means for the one that is published is decided in `merge`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

import polars as pl

from sis_pipeline.roster.attributes import ATTRIBUTES
from sis_pipeline.roster.presence import RECORD

EMPTIED: Final = "emptied"
CLEARED: Final = "cleared"
FEW, SHARE = 2, 0.1
"""More than so many, and more than this share of those who had a value, do not lose it in one reading of their own accord."""

_CLEARABLE = [one for one in ATTRIBUTES if one.is_clearable]
CLEARABLE_COLUMNS = [column for one in _CLEARABLE for column in one.columns]
_WHO = ("first_name", "last_name", "birth_date")
_BITS = {one.name: 1 << place for place, one in enumerate(_CLEARABLE)}
"""Attribute -> its bit in a number that stands for a set of attributes: a column of sets costs no more than one of numbers."""


@dataclass(frozen=True)
class Clearings:
    """`records`: those delivered, with `emptied` and `cleared`. `unsupplied`: integration -> attribute -> how many lost it,
    where so many did that it was the source that stopped supplying it."""

    records: pl.DataFrame
    unsupplied: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def find_clearings(delivered: pl.DataFrame, before: pl.DataFrame, complete: Collection[str]) -> Clearings:
    """What the records delivered no longer supply. `before`: the rows of `student_sources`; `complete`: the integrations
    whose snapshot is complete.

    A value that goes in a complete snapshot is cleared, and stays so until the record has one again, whatever is read
    meanwhile. One that goes in any other is emptied: a delta may have asked for less, and the next complete snapshot
    says which it was. So it is with an attribute that too many lost at once, which their system stopped supplying.
    """
    if before.is_empty():
        return Clearings(delivered.with_columns(pl.lit(None, pl.String).alias(name) for name in (EMPTIED, CLEARED)))
    found = _gone(delivered, before)
    unsupplied = _unsupplied(found.filter(pl.col("integration").is_in(list(complete))))
    proving = {key: sum(bit for name, bit in _BITS.items() if name not in unsupplied.get(key, ())) for key in complete}
    proves = pl.col("integration").replace_strict(proving or {"": 0}, default=0, return_dtype=pl.Int64)
    sets = found.select("gone", cleared=pl.col("proven") | (pl.col("lost") & proves))
    sets = sets.with_columns(emptied=pl.col("gone") - pl.col("cleared"))
    return Clearings(delivered.with_columns(_listed(sets[name]) for name in (EMPTIED, CLEARED)), unsupplied)


def _gone(delivered: pl.DataFrame, before: pl.DataFrame) -> pl.DataFrame:
    """Of each record its integration and, as sets: `said`; what it had before and not now, `gone`; of that what was `proven`
    before, and what is newly `lost` or was not proven yet."""
    known = before.select(*RECORD, *_WHO, was=_supplied() | _set(EMPTIED) | _set(CLEARED), proven=_set(CLEARED))
    named = delivered.select(*RECORD, *_WHO, said=_supplied())
    beside = named.join(known, on=RECORD, how="left", suffix="_before", maintain_order="left")
    # another child who was given the id took nothing away
    first, last, birth = (pl.col(name) != pl.col(f"{name}_before") for name in _WHO)
    is_same = ~(birth & (first | last)).fill_null(value=False)
    beside = beside.with_columns(pl.when(is_same).then(name).alias(name) for name in ("was", "proven"))
    gone = (pl.col("was") - (pl.col("was") & pl.col("said"))).fill_null(0)
    found = beside.select("integration", "said", "proven", gone=gone)
    found = found.with_columns(proven=(pl.col("proven") & pl.col("gone")).fill_null(0))
    return found.with_columns(lost=pl.col("gone") - pl.col("proven"))


def is_cleared(attribute: str) -> pl.Expr:
    """Whether a record's `cleared` names an attribute."""
    return _names(CLEARED, attribute)


def _names(column: str, attribute: str) -> pl.Expr:
    return pl.col(column).str.contains(json.dumps(attribute), literal=True).fill_null(value=False)


def _set(column: str) -> pl.Expr:
    return pl.sum_horizontal(_names(column, name).cast(pl.Int64) * bit for name, bit in _BITS.items())


def _supplied() -> pl.Expr:
    return pl.sum_horizontal(
        pl.any_horizontal(pl.col(name).is_not_null() for name in one.lead).cast(pl.Int64) * _BITS[one.name]
        for one in _CLEARABLE
    )


def _unsupplied(found: pl.DataFrame) -> dict[str, dict[str, int]]:
    """What too many records lost at once, by integration."""
    if not found["lost"].sum():
        return {}
    counts = found.group_by("integration").agg(
        ((pl.col(column) & bit) != 0).sum().alias(f"{column} {name}")
        for column in ("lost", "said")
        for name, bit in _BITS.items()
    )
    stopped = {
        row["integration"]: {
            name: lost
            for name in _BITS
            if (lost := row[f"lost {name}"]) > max(FEW, SHARE * (lost + row[f"said {name}"]))
        }
        for row in counts.sort("integration").iter_rows(named=True)
    }
    return {integration: names for integration, names in stopped.items() if names}


def _listed(sets: pl.Series) -> pl.Series:
    """The sets as JSON lists, spelled as PostgreSQL does; null where there is nothing in one."""
    lists = {one: sorted(name for name, bit in _BITS.items() if one & bit) for one in sets.unique()}
    spelled = {one: json.dumps(names) if names else None for one, names in lists.items()}
    return sets.replace_strict({0: None, **spelled}, return_dtype=pl.String)
