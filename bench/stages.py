"""One roster through decode, validate, merge and publish, each stage and each floor timed in one process.
What the figures are compared with, and how they are printed, is in `__main__`."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from sqlalchemy import Engine, text
from sqlalchemy.dialects import postgresql

from bench.generate import Pages, systems
from sis_pipeline.db import migrate
from sis_pipeline.db.engine import open_database
from sis_pipeline.db.tables import SQL_TYPES
from sis_pipeline.providers import registry
from sis_pipeline.roster.district import merge_district
from sis_pipeline.roster.model import MERGED
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.validate import quarantine_dangling, validate
from sis_pipeline.settings import Settings
from sis_pipeline.store import bulk
from sis_pipeline.store.integrations import Integration, Integrations
from sis_pipeline.store.merged import MergeStore
from sis_pipeline.store.publish import publish
from sis_pipeline.store.snapshots import SnapshotStore

YEAR = SchoolYear(2026)
DISTRICT = "bench"
SETTINGS = {"base_url": "https://sis.example/ims", "token_url": "https://sis.example/token", "client_id": "bench"}
Result = TypeVar("Result")


class Laps:
    """Seconds and peak memory (MiB, of this process so far) per stage."""

    def __init__(self) -> None:
        self.stages: dict[str, tuple[float, float]] = {}

    def time(self, stage: str, work: Callable[[], Result]) -> Result:
        began = time.perf_counter()
        result = work()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.stages[stage] = (time.perf_counter() - began, peak)
        return result


def run(students: int, home: str) -> dict[str, tuple[float, float]]:
    """One size, in a process of its own so that the peaks are its own."""
    settings = Settings(home=Path(home))
    engine = open_database(settings)
    migrate.upgrade(engine)
    pages = systems(students, YEAR)
    laps = Laps()
    _floors_of_pages(pages, laps)
    standard = laps.time("decode", lambda: _standardise(pages))
    good = laps.time("validate", lambda: _validate(standard))
    store = SnapshotStore(engine, settings.data_url)
    laps.time("snapshots", lambda: _keep(engine, store, pages, good, standard))
    merges = MergeStore(engine, store)
    gathered = laps.time("gather", lambda: merges.gather(DISTRICT, YEAR.key))
    merged = laps.time("merge", lambda: merge_district(gathered.inputs))
    operation = laps.time("write merged", lambda: merges.write_merged(gathered, merged))
    laps.time("publish", lambda: publish(engine, merges, operation))
    _floors_of_frames(engine, merged.frames, Path(home), laps)
    again = merges.gather(DISTRICT, YEAR.key)
    unchanged = laps.time("merge again", lambda: merge_district(again.inputs))
    done = laps.time("publish again", lambda: publish(engine, merges, merges.write_merged(again, unchanged)))
    if done.written or unchanged.changes.height:
        raise SystemExit(f"A second merge wrote {done.written} rows and found {unchanged.changes.height} changes.")
    engine.dispose()
    return laps.stages


def _standardise(pages: Mapping[str, Pages]) -> dict[str, dict[str, Any]]:
    provider = registry.make("oneroster", SETTINGS)
    return {name: provider.standardise(one) for name, one in pages.items()}


def _validate(standard: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: dict(
            quarantine_dangling({entity: validate(entity, frame).frame for entity, frame in frames.items()}).frames
        )
        for name, frames in standard.items()
    }


def _keep(engine: Engine, store: SnapshotStore, pages: Any, good: Any, standard: Any) -> None:
    registered = Integrations(engine)
    for name in pages:
        registered.add(Integration(key=name, provider="oneroster", district=DISTRICT, settings=SETTINGS))
        writer = store.begin(name, "oneroster", YEAR.key)
        for resource_name, bodies in pages[name].by_resource.items():
            for number, body in enumerate(bodies, 1):
                writer.add_page(resource_name, {}, number, body, 0)
        snapshot = writer.finish([], "complete", 0, 0.0)
        rejected = {entity: validate(entity, frame.head(0)).rejected for entity, frame in standard[name].items()}
        store.write_roster(snapshot, good[name], rejected, standard[name])
        store.set_verdict(snapshot.snapshot_id, "complete")


def _floors_of_pages(pages: Mapping[str, Pages], laps: Laps) -> None:
    bodies = [body for one in pages.values() for group in one.by_resource.values() for body in group]
    laps.time("floor: json", lambda: [json.loads(body) for body in bodies])


def _floors_of_frames(engine: Engine, frames: Mapping[str, pl.DataFrame], home: Path, laps: Laps) -> None:
    folder = home / "floor"
    folder.mkdir()
    laps.time(
        "floor: parquet", lambda: [frame.write_parquet(folder / f"{name}.parquet") for name, frame in frames.items()]
    )
    laps.time("floor: copy", lambda: _bare_copy(engine, frames))


def _bare_copy(engine: Engine, frames: Mapping[str, pl.DataFrame]) -> None:
    """Binary COPY of the same rows into bare temporary tables: no keys, no comparison."""
    with engine.begin() as connection:
        for name, frame in frames.items():
            kinds = {column.name: column.kind for column in MERGED[name]}
            columns = ", ".join(
                f'"{column}" {SQL_TYPES[kind].compile(postgresql.dialect())}' for column, kind in kinds.items()
            )
            connection.execute(text(f"create temporary table bare_{name} ({columns}) on commit drop"))
            bulk.copy_in(connection, f"bare_{name}", kinds, frame)
