"""How far the state that deltas had given was from what a full reading then found, in counts.
What is compared, and what follows from it, is the caller's business; no value of a row leaves this module."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import polars as pl


@dataclass(frozen=True, slots=True)
class Drift:
    """One entity. `rows`: of the full reading. `added`, `changed`, `removed`: rows that the deltas' state lacked, held with
    other values, or held although they are gone without a tombstone.

    Of those added and changed, `missed` are said by the source to be no newer than the last delta, which should have
    brought them; `undated` have no modified time, so that nobody can tell.
    """

    rows: int
    added: int = 0
    changed: int = 0
    removed: int = 0
    missed: int = 0
    undated: int = 0


def drift(
    had: pl.DataFrame, found: pl.DataFrame, *, watermark: datetime, set_aside: Collection[str] = frozenset()
) -> Drift:
    """Compare the good rows of an entity as the deltas `had` them with those a full reading `found`, by sis_id.

    Both have the entity's columns. `watermark`: when the last delta began, by the source's clock. `set_aside`: sis_ids
    the full reading delivered but quarantined; they are not gone. A modified time alone is no change, nor is a
    tombstone that the source has stopped sending.
    """
    values = [name for name in found.columns if name not in {"sis_id", "modified_at"}]
    both = found.join(had, on="sis_id", how="inner", suffix="_had")
    differs = pl.any_horizontal(pl.col(name).ne_missing(pl.col(f"{name}_had")) for name in values)
    changed = both.filter(differs).select("modified_at")
    added = found.join(had, on="sis_id", how="anti").select("modified_at")
    gone = had.filter(pl.col("record_status") == "active").join(found, on="sis_id", how="anti")
    new = pl.concat([added, changed])["modified_at"]
    return Drift(
        rows=found.height,
        added=added.height,
        changed=changed.height,
        removed=gone.filter(~pl.col("sis_id").is_in(list(set_aside))).height,
        missed=int((new <= watermark).sum()),
        undated=new.null_count(),
    )
