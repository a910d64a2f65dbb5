"""One roster of two days through the product's own reading, judging, merging and publishing, each stage timed where it is
called, in processes as `sis sync` has them. What the figures are compared with, and how they are printed, is in `__main__`."""

from __future__ import annotations

import functools
import importlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import polars as pl
from sqlalchemy import Engine, text
from sqlalchemy.dialects import postgresql

from bench import generate
from bench.apart import SPAWN
from sis_pipeline.cli.fanout import WORKER
from sis_pipeline.db.tables import SQL_TYPES
from sis_pipeline.defs import loading, merging
from sis_pipeline.defs.loading import load_roster
from sis_pipeline.defs.resources import Roster
from sis_pipeline.roster.model import ENTITIES, MERGED
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.thresholds import MAXIMUM
from sis_pipeline.store import bulk
from sis_pipeline.store.guarding import Guarding
from sis_pipeline.store.integrations import Integration
from sis_pipeline.store.merged import MergeStore
from sis_pipeline.store.snapshots import SnapshotStore

YEAR = SchoolYear(2026)
DISTRICT = "bench"
SETTINGS = {"base_url": "https://sis.example/ims", "token_url": "https://sis.example/token", "client_id": "bench"}
WATCHED: dict[str, list[tuple[Any, str]]] = {
    "decode": [(loading, "_standard")],
    "validate": [(loading, name) for name in ("_validated", "quarantine_dangling", "entity_finding", "reference_finding")],
    "write snapshots": [(SnapshotStore, "write_roster")],
    "take over": [(SnapshotStore, "take_over")],
    "gather": [(MergeStore, "gather")],
    "merge": [(merging, "merge_district")],
    "write merged": [(MergeStore, "write_merged")],
    "publish": [(merging, "publish")],
}  # fmt: skip
"""By stage, the functions that it is made of: nothing in them is done for the benchmark's sake."""
RAW, REST = "keep pages", "everything else"
Result = TypeVar("Result")
Stages = dict[str, "Lap"]


@dataclass
class Lap:
    """Seconds, and the most memory (MiB) that a process held meanwhile."""

    seconds: float = 0.0
    peak: float = 0.0


@dataclass
class Work:
    """What one process did. `cpu`: seconds of the processor; `base`: MiB that it held before."""

    stages: Stages
    seconds: float
    cpu: float
    base: float

    @property
    def peak(self) -> float:
        return max(lap.peak for lap in self.stages.values())


@dataclass
class Day:
    """One day, from raw pages to published tables. `reading`: seconds until the last system was judged; `cpu`: without
    PostgreSQL's, which a busy machine does not draw out; `wal`: bytes; `written`: rows of the roster's tables."""

    readers: list[Work]
    merger: Work
    reading: float
    seconds: float
    wal: int
    written: int
    changes: int
    held: int

    @property
    def stages(self) -> Stages:
        """Seconds of all processes together, and the largest one's memory."""
        found: Stages = {}
        for work in (*self.readers, self.merger):
            for stage, lap in work.stages.items():
                before = found.get(stage, Lap())
                found[stage] = Lap(before.seconds + lap.seconds, max(before.peak, lap.peak))
        return found

    @property
    def cpu(self) -> float:
        return sum(work.cpu for work in (*self.readers, self.merger))

    @property
    def peak(self) -> float:
        """The most that the processes held at once: the one that merges waits while the others read."""
        return max(sum(work.peak for work in self.readers) + self.merger.base, self.merger.peak)


@dataclass
class Measured:
    """The days by name, and the floors."""

    students: int
    days: dict[str, Day]
    floors: Stages

    @property
    def floor(self) -> float:
        return sum(lap.seconds for lap in self.floors.values())


def run(students: int, home: str, pages: Path) -> Measured:
    """One size. Raises SystemExit for a result that is wrong."""
    os.environ["SIS_HOME"] = home
    roster = Roster()
    for system in generate.SYSTEMS:
        roster.integrations.add(Integration(system, "oneroster", DISTRICT, settings=SETTINGS))
    # the day's transfers are more absences than the guard lets go of a large district unasked
    Guarding(roster.engine).set(DISTRICT, {"district_cap": MAXIMUM}, actor="bench", reason="nobody is there to release")
    first = _day(roster, pages, 0)
    floors = _floors(roster, pages, Path(home))
    changed, same = _day(roster, pages, 1), _day(roster, pages, 1)
    roster.close()
    if same.written or same.changes:
        raise SystemExit(f"A day with nothing changed wrote {same.written} rows and found {same.changes} changes.")
    if first.held or changed.held or not changed.changes:
        raise SystemExit(f"{first.held + changed.held} removals were held, {changed.changes} changes found.")
    return Measured(students, {"first load": first, "3.7 % changed": changed, "nothing changed": same}, floors)


def _day(roster: Roster, pages: Path, day: int) -> Day:
    """As a night of `sis sync`: a process for each system, and one that merges, all new. The clock starts once they are ready
    to work."""
    with ExitStack() as stack:
        readers = [stack.enter_context(ProcessPoolExecutor(1, SPAWN)) for _ in generate.SYSTEMS]
        merger = stack.enter_context(ProcessPoolExecutor(1, SPAWN))
        for ready in [process.submit(_ready) for process in (*readers, merger)]:
            ready.result()
        _vacuum(roster.engine)
        position, began = _position(roster.engine), time.perf_counter()
        tasks = [
            process.submit(_read, pages, day, system) for process, system in zip(readers, generate.SYSTEMS, strict=True)
        ]
        works = [task.result() for task in tasks]
        for process in readers:
            process.shutdown(wait=False)
        reading = time.perf_counter() - began
        work, published = merger.submit(_merge, day).result()
        seconds = time.perf_counter() - began
        wal = _position(roster.engine) - position
    return Day(works, work, reading, seconds, wal, *published)


def _ready() -> None:
    """What a process of `sis sync` has done before it is given work: imports, and a connection to the database."""
    importlib.import_module(WORKER)
    with _roster().engine.connect() as connection:
        connection.execute(text("select 1"))


@functools.cache
def _roster() -> Roster:
    """This process's."""
    return Roster()


def _read(pages: Path, day: int, system: str) -> Work:
    """Keep and judge the pages of a system."""
    roster = _roster()
    with _watched() as work:
        with _lap(work.stages, RAW):
            _keep_pages(roster, pages, day, system)
        load_roster(roster, system, YEAR, f"{day}", _unheard)
    return work


def _merge(day: int) -> tuple[Work, tuple[int, int, int]]:
    """Merge and publish the district: rows written, changes found, removals held."""
    roster = _roster()
    with _watched() as work:
        merging.merge_districts(roster, YEAR.key, f"{day}", _unheard)
        [district] = merging.publish_districts(roster, YEAR.key, f"{day}", _unheard)
    if district.trouble:
        raise SystemExit(f"Not published: {district.trouble.message}")
    done = district.published
    return work, (done.written, sum(done.changes.values()), done.held) if done else (0, 0, 0)


def _keep_pages(roster: Roster, pages: Path, day: int, system: str) -> None:
    """What a reading keeps of the pages that came, without the network."""
    writer = roster.snapshots.begin(system, "oneroster", YEAR.key)
    for resource, number, body in generate.pages(pages, day, system):
        writer.add_page(resource, {"active_year": YEAR.key}, number, body, generate.PAGE)
    writer.finish([], "complete", 0, 0.0)


def _unheard(_line: str) -> None:
    """Progress is for people."""


@contextmanager
def _watched() -> Iterator[Work]:
    """What this process does meanwhile, by stage; what belongs to none is REST."""
    _forget_peak()
    work, began, used = Work({}, 0.0, 0.0, _peak()), time.perf_counter(), time.process_time()
    with ExitStack() as patched:
        for stage, functions in WATCHED.items():
            for owner, name in functions:
                patched.enter_context(mock.patch.object(owner, name, _timed(work.stages, stage, getattr(owner, name))))
        yield work
    work.seconds, work.cpu = time.perf_counter() - began, time.process_time() - used
    rest = work.seconds - sum(lap.seconds for lap in work.stages.values())
    work.stages[REST] = Lap(rest, _peak())


def _timed(stages: Stages, stage: str, work: Callable[..., Result]) -> Callable[..., Result]:
    @functools.wraps(work)
    def timed(*given: Any, **named: Any) -> Result:
        with _lap(stages, stage):
            return work(*given, **named)

    return timed


@contextmanager
def _lap(stages: Stages, stage: str) -> Iterator[None]:
    _forget_peak()
    began = time.perf_counter()
    yield
    lap = stages.setdefault(stage, Lap())
    lap.seconds += time.perf_counter() - began
    lap.peak = max(lap.peak, _peak())


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _vacuum(engine: Engine) -> None:
    """As autovacuum does between two nights."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("vacuum analyze"))
        connection.execute(text("checkpoint"))


def _position(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn")) or 0)


def _floors(roster: Roster, pages: Path, home: Path) -> Stages:
    """The least that any pipeline does with the same rows: parse the pages, write and read the frames, copy the rows."""
    floors: Stages = {}
    with _lap(floors, "parse json"):
        for system in generate.SYSTEMS:
            for _, _, body in generate.pages(pages, 0, system):
                json.loads(body)
    operation = roster.merges.newest(DISTRICT, YEAR.key, "published")
    assert operation is not None
    files = roster.snapshots.files
    folders = [snapshot.folder("roster") for snapshot in roster.snapshots.latest_good(YEAR.key)]
    names = [f"{folder}/{entity}.parquet" for folder in folders for entity in ENTITIES if files.exists(f"{folder}/{entity}.parquet")]  # fmt: skip
    with _lap(floors, "read parquet"):
        frames = {name: files.read_frame(name) for name in names}
    merged = {name: files.read_frame(f"{operation.path}/{name}.parquet") for name in MERGED}
    with _lap(floors, "write parquet"):
        for number, frame in enumerate([*frames.values(), *merged.values()]):
            frame.write_parquet(home / f"floor-{number}.parquet")
    del frames
    with _lap(floors, "binary copy"):
        _bare_copy(roster.engine, merged)
    return floors


def _bare_copy(engine: Engine, frames: dict[str, pl.DataFrame]) -> None:
    """Binary COPY of the same rows into bare temporary tables: no keys, no comparison."""
    with engine.begin() as connection:
        for name, frame in frames.items():
            kinds = {column.name: column.kind for column in MERGED[name]}
            columns = ", ".join(
                f'"{column}" {SQL_TYPES[kind].compile(postgresql.dialect())}' for column, kind in kinds.items()
            )
            connection.execute(text(f"create temporary table bare_{name} ({columns}) on commit drop"))
            bulk.copy_in(connection, f"bare_{name}", kinds, frame)
