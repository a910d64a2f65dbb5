"""What it means that a record published before is, or is not, among the records delivered now.
Only a complete snapshot proves an absence; what follows from one is decided in `enrollments` and `guard`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date

import polars as pl

RECORD = ["integration", "sis_id"]

DELIVERED = "delivered"
CARRIED = "carried"
TOMBSTONE = "tombstone"
ABSENT = "absence"


@dataclass(frozen=True)
class Presence:
    """The records of one entity that were delivered: `delivered` (usable), `tombstones`, and `unusable` (rejected, or
    leading nowhere: they are there, so they are not absent). `spared`: those published before of which nothing is said,
    whatever came under their ids. All: integration, sis_id.

    `taken_on`: integration -> the day of its snapshot; `complete`: those whose snapshot is complete."""

    delivered: pl.DataFrame
    tombstones: pl.DataFrame
    unusable: pl.DataFrame
    spared: pl.DataFrame
    taken_on: Mapping[str, date]
    complete: Collection[str]

    def fates(self, existing: pl.DataFrame) -> pl.DataFrame:
        """The rows published before (integration, sis_id, …) with their `fate`.

        `delivered`; `tombstone`: the source says it is deleted; `absence`: not in a complete snapshot; `carried`: the
        source did not say (partial or delta snapshot, unusable row, integration that takes no part).
        """
        if existing.is_empty():
            return existing.with_columns(fate=pl.lit(None, pl.String))
        asked = existing.select(RECORD)
        # few may be asked about out of many; the first that names a record has the say
        fate_of = (
            (self.spared, CARRIED),
            (self.tombstones, TOMBSTONE),
            (self.delivered, DELIVERED),
            (self.unusable, CARRIED),
        )
        said = [
            records.select(RECORD).join(asked, on=RECORD, how="semi").with_columns(fate=pl.lit(fate))
            for records, fate in fate_of
            if records.height
        ]
        is_complete = pl.col("integration").is_in(list(self.complete))
        unsaid = pl.when(is_complete).then(pl.lit(ABSENT)).otherwise(pl.lit(CARRIED))
        if not said:
            return existing.with_columns(fate=unsaid)
        fates = pl.concat(said).unique(RECORD, keep="first", maintain_order=True)
        fated = existing.join(fates, on=RECORD, how="left", maintain_order="left")
        return fated.with_columns(pl.col("fate").fill_null(unsaid))

    def days(self) -> pl.DataFrame:
        """integration, taken_on."""
        schema = {"integration": pl.String, "taken_on": pl.Date}
        return pl.DataFrame(
            {"integration": list(self.taken_on), "taken_on": list(self.taken_on.values())}, schema=schema
        )
