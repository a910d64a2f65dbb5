"""A disk that is full, a folder that can't be written: a clear failure, the old data served, and the next run goes on."""

from __future__ import annotations

import random
import resource
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import URL

from sis_pipeline.connect.errors import SisError
from sis_pipeline.defs.loading import load_roster
from sis_pipeline.defs.merging import merge_districts, publish_districts
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.faults.rows import Count, Recorder, Row
from sis_pipeline_tests.truth.chain import YEAR, Town, read, town, unheard

ROW = Row(
    18,
    "a full disk (limit on file size) and a folder that can't be written, while reading, judging and merging",
    "a clear failure, what was published stays, nothing half-written is left, the next run goes on",
    20,
    "failures",
)


@contextmanager
def full_disk(bytes_left: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: the system refuses the write, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def no_folder(folder: Path) -> Iterator[None]:
    """Where the folder has to be is a file: nothing can be written below it, whoever asks."""
    away = folder.with_name(f"{folder.name}.away")
    folder.rename(away)
    folder.write_text("in the way")
    try:
        yield
    finally:
        folder.unlink()
        away.rename(folder)


def reads(place: Town, run: str) -> str:
    try:
        read(place.roster, "ps", YEAR, run)
    except SisError as error:
        return error.code
    return ""


def judges(place: Town, run: str) -> str:
    try:
        load_roster(place.roster, "ps", YEAR, run, unheard)
    except SisError as error:
        return error.code
    return ""


def merges(place: Town, run: str) -> str:
    (merged,) = merge_districts(place.roster, YEAR.key, run, unheard)
    return "" if merged.trouble is None else merged.trouble.code


STEPS: dict[str, Callable[[Town, str], str]] = {"reading": reads, "judging": judges, "merging": merges}


def published(place: Town) -> list[tuple[object, ...]]:
    with place.roster.engine.connect() as connection:
        query = "select student_id, last_name, first_name, birth_date from sis.students order by student_id"
        return [tuple(one) for one in connection.execute(text(query))]


def test_the_old_data_stay_and_the_next_run_goes_on(
    postgres: URL,
    _template: str,  # noqa: PT019  its value is used
    tmp_path: Path,
    count: Count,
    chance: random.Random,
    row: Recorder,
) -> None:
    world = World(seed=5, systems=(System("ps", "powerschool", 25),), school_year=YEAR.key)
    with town(world, postgres, _template, tmp_path) as place:
        place.connect()
        place.live(1, YEAR)
        before = published(place)
        place.set_day(2)
        failures = dict.fromkeys(STEPS, 0)
        for step, fails in STEPS.items():
            run = uuid.uuid4().hex
            for attempt in range(count(full=7, part=2)):
                with broken(place, tmp_path, step, attempt, chance):
                    code = fails(place, run)
                assert code == "transient.storage", f"{step}: {code or 'it went through'}"
                failures[step] += 1
                assert published(place) == before
                row.happened()
                row.ran()
            assert fails(place, run) == "", f"{step} goes on once there is room"
        for done in publish_districts(place.roster, YEAR.key, run, unheard):
            assert done.trouble is None
        assert published(place) != before
        assert not list(tmp_path.rglob("*.part"))


@contextmanager
def broken(place: Town, home: Path, step: str, attempt: int, chance: random.Random) -> Iterator[None]:
    folder = {"reading": "raw", "judging": "roster", "merging": "merged"}[step]
    if attempt % 2:
        with no_folder(next(home.rglob(folder))):
            yield
    else:
        with full_disk(chance.choice([0, 1, 100, 300])):
            yield
