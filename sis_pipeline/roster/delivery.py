"""The inputs of a merge, asked in its words: usable records, tombstones, what was published, who took part.
What follows from them is decided by the steps of `district`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import polars as pl

from sis_pipeline.roster.changes import About
from sis_pipeline.roster.contract import DistrictInputs, is_latest_year
from sis_pipeline.roster.frames import empty, fit, polars_schema, rows_where
from sis_pipeline.roster.model import ENTITIES, MERGED
from sis_pipeline.roster.presence import RECORD, Presence
from sis_pipeline.roster.school_year import SchoolYear


class Delivery:
    """The inputs, and what every step asks of them."""

    def __init__(self, inputs: DistrictInputs) -> None:
        self.inputs = inputs
        self.year = SchoolYear.parse(inputs.school_year)
        self.priorities = {key: part.priority for key, part in inputs.integrations.items()}
        self.taken_on = {key: part.taken_on or inputs.as_of for key, part in inputs.integrations.items()}
        self.complete = [key for key, part in inputs.integrations.items() if part.completeness == "complete"]
        known = set(self.existing("student_sources")["integration"]) | set(self.existing("enrollments")["integration"])
        self.about = About(
            inputs.district,
            inputs.school_year,
            inputs.as_of,
            inputs.operation_id,
            first_loads=frozenset(inputs.integrations) - known,
        )

    @property
    def is_owner(self) -> bool:
        """Whether what has no year of its own belongs to this one."""
        return is_latest_year(self.inputs)

    def all(self, entity: str) -> pl.DataFrame:
        frame = self.inputs.records.get(entity)
        return _nothing_delivered(entity) if frame is None else frame

    def records(self, entity: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """The usable records; `columns`: only these, as all are much to carry along where there are many records."""
        found = self.all(entity)
        wanted = found if columns is None else found[list(columns)]
        return rows_where(wanted, found["record_status"] == "active")

    def of_year(self, entity: str) -> pl.DataFrame:
        """The records of this school year; a row's own year decides where it belongs."""
        found = self.records(entity)
        return rows_where(found, found["school_year"] == self.inputs.school_year)

    def sections_of_year(self) -> pl.DataFrame:
        """The sections but those of which every session that they name is known to be another school year's."""
        sections, sessions = self.records("sections"), self.records("academic_sessions")
        others = rows_where(sessions, sessions["school_year"] != self.inputs.school_year)
        if others.is_empty():
            return sections
        decoded = pl.col("session_sis_ids").str.json_decode(pl.List(pl.String))
        named = sections.select(*RECORD, session=decoded).explode("session").drop_nulls("session")
        ours = named.join(others, left_on=["integration", "session"], right_on=RECORD, how="anti")
        foreign = named.join(ours, on=RECORD, how="anti")
        return sections.join(foreign, on=RECORD, how="anti", maintain_order="left")

    def tombstones(self, entity: str) -> pl.DataFrame:
        found = self.all(entity)
        return rows_where(found, found["record_status"] == "to_be_deleted")

    def existing(self, table: str) -> pl.DataFrame:
        """The rows published before; of columns beside the model's only `first_seen` is of use."""
        frame = self.inputs.existing.get(table)
        if frame is None:
            return empty(MERGED[table])
        fitted = fit(frame, MERGED[table])
        return fitted.with_columns(frame["first_seen"]) if "first_seen" in frame.columns else fitted

    def presence(
        self,
        entity: str,
        *,
        usable: pl.DataFrame | None = None,
        nowhere: pl.DataFrame | None = None,
        tombstones: Sequence[pl.DataFrame] = (),
        spared: pl.DataFrame | None = None,
    ) -> Presence:
        """What was delivered of an entity. `usable`: the records that could be placed; `nowhere`, or the rest, is there but
        unusable. `spared`: as in Presence."""
        if usable is None:
            usable = self.records(entity, RECORD)
            nowhere = usable.clear()
        elif nowhere is None:
            nowhere = self.records(entity, RECORD).join(usable, on=RECORD, how="anti")
        rejected = self.inputs.quarantined.get(entity)
        unusable = [nowhere[RECORD]] + ([] if rejected is None else [rejected[RECORD]])
        deleted = pl.concat([part[RECORD] for part in (self.tombstones(entity), *tombstones)])
        spared = usable[RECORD].clear() if spared is None else spared
        return Presence(usable[RECORD], deleted, pl.concat(unusable), spared, self.taken_on, self.complete)


@cache
def _nothing_delivered(entity: str) -> pl.DataFrame:
    schema = {**polars_schema(ENTITIES[entity]), "integration": pl.String(), "snapshot_id": pl.String()}
    return pl.DataFrame(schema=schema)
