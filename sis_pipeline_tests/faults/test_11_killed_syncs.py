"""A whole sync killed by SIGKILL, at random times and at every named point, then run once more: as if nothing had been."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from sqlalchemy.engine import URL

from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.defs.children import KILLED
from sis_pipeline_tests.faults.rows import Count, Recorder, Row
from sis_pipeline_tests.faults.syncs import DONE, Left, Sync, left, prove_tidy, sync
from sis_pipeline_tests.truth.chain import YEAR, Town, fresh_database, installation

POINTS = (
    "read.page_received:5", "read.page_written:5", "read.page_committed:5", "read.before_finish", "read.manifest_written",
    "read.finished", "merge.frames_written", "publish.before_commit", "publish.after_commit",
)  # fmt: skip
RANDOM = 40
ROW = Row(
    11,
    f"a whole sync (read, validate, merge, publish) killed by SIGKILL: {RANDOM} times in a row at random, and in a row "
    f"at each of {len(POINTS)} named points",
    "run once more to its end: tables, ledger, conflicts, holds, quarantine and snapshots are those of an undisturbed "
    "sync, every event is there once; no kept page, half-written file or open run is left, and the audit log is whole",
    200,
    "kills",
    scaled=f"{RANDOM + len(POINTS)} of them, because each costs a process with a Dagster run of seconds",
)
SYSTEMS = (System("ps", "powerschool", 40, {"max_page_size": 60}), System("ic", "infinite_campus", 40))
FIRST, LATER = 1, 12
"""Days that are synced: between them so many leave that some removals are held."""


class Place:
    """A server of two systems, and one installation after the other that syncs them."""

    def __init__(self, postgres: URL, template: str, home: Path, server: SandboxServer, days: Sequence[int]) -> None:
        self._postgres, self._template, self._home, self._server = postgres, template, home, server
        self._days = days
        self.keys = [system.name for system in server.world.systems]

    @contextmanager
    def town(self, name: str) -> Iterator[Town]:
        """An installation of its own that has synced all days but the last, whose data now wait."""
        with (
            fresh_database(self._postgres, self._template) as url,
            installation(url, self._home / name) as roster,
        ):
            town = Town(self._server, roster, url, self._home / name / "files")
            town.connect(**{key: {"page_size": 60} for key in self.keys})
            for day in self._days[:-1]:
                town.set_day(day)
                undisturbed(self)
            town.set_day(self._days[-1])
            yield town


@pytest.fixture
def place(postgres: URL, _template: str, tmp_path: Path, count: Count) -> Iterator[Place]:
    number = count(full=2, part=1)
    world = World(systems=SYSTEMS[:number], school_year=YEAR.key, shared=0.3)
    days = (FIRST, LATER)[-number:]
    with SandboxServer(world, enforce_limits=False) as server:
        yield Place(postgres, _template, tmp_path, server, days)


def undisturbed(place: Place) -> Sync:
    done = sync(place.keys, YEAR.key)
    assert (done.exit_code, done.last_phase, done.troubles) == (0, DONE, [])
    return done


def expected(place: Place) -> tuple[Left, Sync]:
    """What an undisturbed sync leaves, and how long it took for what."""
    with place.town("undisturbed") as town:
        done = undisturbed(place)
        prove_tidy(town.roster, killed=0)
        return left(town.roster.engine), done


def prove_as_if_nothing_had_been(place: Place, town: Town, wanted: Left, *, killed: int) -> None:
    undisturbed(place)
    found = left(town.roster.engine)
    for name, rows in wanted.tables.items():
        assert found.tables[name] == rows, name
    assert found == wanted
    assert set(found.events.values()) == {1}, "every event once"
    prove_tidy(town.roster, killed=killed)


def moments(plain: Sync, number: int, chance: Random) -> list[float]:
    """Random times, one in each equal part of a sync up to a third of its merge. Those that come late in a sync come
    last: what is published once needs no merge any more, and a merge that its kill comes too late for costs a whole sync
    (10 of 25 were spent so). The rest of a merge is met at named points."""
    merging = plain.phases["merge"]
    seconds = merging + (plain.seconds - merging) / 3
    return [seconds * (part + chance.random()) / number for part in range(number)]


@pytest.mark.faults
def test_killed_at_random_again_and_again(place: Place, row: Recorder, count: Count, chance: Random) -> None:
    wanted, plain = expected(place)
    assert wanted.tables["enrollment_changes"]
    kills = count(full=RANDOM, part=4)
    died_in: Counter[str] = Counter()
    with place.town("killed") as town:
        for moment in moments(plain, kills, chance):
            died = sync(place.keys, YEAR.key, kill_at=plain.place_of(moment))
            assert (died.exit_code, died.troubles) == (KILLED, [])
            died_in[died.last_phase] += 1
            row.happened()
            row.ran()
        prove_as_if_nothing_had_been(place, town, wanted, killed=kills)
    assert died_in.keys() >= {"merge", *(f"sync {key}" for key in place.keys)}
    assert died_in[DONE] <= kills // 2, "they met work under way"
    where = ", ".join(f"{phase} {deaths}" for phase, deaths in died_in.items())
    row.note(f"an undisturbed sync took {plain.seconds:.1f} s; the random kills by what was under way: {where}")


@pytest.mark.faults
def test_killed_at_every_named_point(place: Place, row: Recorder) -> None:
    wanted, _ = expected(place)
    assert wanted.tables["holds"], "the day brings what a hold waits for"
    assert wanted.tables["conflicts"]
    with place.town("killed") as town:
        for point in POINTS:
            died = sync(place.keys, YEAR.key, crash_at=point)
            assert (died.exit_code, died.troubles) == (KILLED, []), point
            row.happened()
            row.ran()
        prove_as_if_nothing_had_been(place, town, wanted, killed=len(POINTS))
