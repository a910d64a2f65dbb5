"""The benchmark's roster as two days of deliveries, read and judged by the product, without a database.
What the roster is like is said in `bench/generate.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import polars as pl

from bench.generate import SYSTEMS, System
from sis_pipeline.providers.oneroster import OneRoster
from sis_pipeline.roster.contract import DistrictInputs, IntegrationInput
from sis_pipeline.roster.frames import to_polars
from sis_pipeline.roster.model import ENTITIES
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.thresholds import MAXIMUM, Thresholds
from sis_pipeline.roster.validate import quarantine_dangling, validate
from sis_pipeline_tests.roster.rosters import OPERATION, SNAPSHOT

YEAR = SchoolYear(2026)
SETTINGS = {"base_url": "https://sis.example/ims", "token_url": "https://sis.example/token", "client_id": "bench"}
DAYS = (date(2026, 9, 1), date(2026, 9, 2))


@dataclass(frozen=True)
class _Pages:
    """A system's answers of a day, one page each."""

    system: System
    school_year: SchoolYear = YEAR

    @property
    def resources(self) -> Sequence[str]:
        return list(self.system.collections())

    def bodies(self, resource: str) -> Iterator[tuple[Mapping[str, str], bytes]]:
        rows = list(self.system.collections()[resource])
        yield {"active_year": YEAR.key}, json.dumps({resource: rows}).encode()


def inputs(students: int, day: int, existing: Mapping[str, pl.DataFrame]) -> DistrictInputs:
    """A day's merge; `students` are student rows over all systems."""
    delivered = [_delivered(System(index, students // len(SYSTEMS), YEAR, day)) for index in range(len(SYSTEMS))]
    return DistrictInputs(
        district="bench",
        school_year=YEAR.key,
        as_of=DAYS[day],
        operation_id=OPERATION[:-1] + str(day),
        integrations={
            name: IntegrationInput(rank, taken_on=DAYS[day] - timedelta(days=1)) for rank, name in enumerate(SYSTEMS)
        },
        records={entity: pl.concat([frames[entity] for frames in delivered]) for entity in delivered[0]},
        existing=existing,
        thresholds=Thresholds(district_cap=MAXIMUM),
    )


def _delivered(system: System) -> dict[str, pl.DataFrame]:
    provider = OneRoster(OneRoster.Settings.model_validate(SETTINGS))
    standard = provider.standardise(_Pages(system))
    good = quarantine_dangling({name: validate(name, frame).frame for name, frame in standard.items()}).frames
    said = {"integration": pl.lit(SYSTEMS[system.index]), "snapshot_id": pl.lit(SNAPSHOT)}
    return {name: to_polars(frame, ENTITIES[name]).with_columns(**said) for name, frame in good.items()}
