"""A merge and its publication struck at every step, by SIGKILL of its process or kill -9 of PostgreSQL: whoever looks
sees the roster of before or of after, and run once more everything is as if nothing had been."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url

from sis_pipeline.db import embedded
from sis_pipeline.defs.loading import load_roster
from sis_pipeline.defs.resources import Roster
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.defs.children import KILLED, run
from sis_pipeline_tests.faults.publications import Done, Strike, merge_and_publish
from sis_pipeline_tests.faults.rows import Count, Recorder, Row
from sis_pipeline_tests.faults.syncs import left, prove_roster_tidy
from sis_pipeline_tests.truth.chain import YEAR, Town, fresh_database, installation, read, unheard

DAYS = {"first load": (1,), "later day": (1, 12)}
"""What has been read; the last of them waits to be merged. Between day 1 and 12 so many leave that some are held."""
PROCESSES = {"first load": 100, "later day": 300}
SERVERS = 50
IN_A_ROW = 10
"""Kills of one installation before it may end."""
LATE = 0.02
"""Seconds after the beginning of a step up to which it is struck."""
ROW = Row(
    30,
    "a merge with its publication killed by SIGKILL as each of its steps begins (each question to PostgreSQL, each file and "
    f"its name) and at random moments in them, up to {IN_A_ROW} times in a row; PostgreSQL killed by kill -9 under it, its "
    "first process or all of them",
    "after each kill all tables are those of before or those of after, nothing between; run once more to its end they are "
    "those of an undisturbed run, every event of the ledger and every entry of the audit log is there once, the log is "
    "whole, and nothing is left",
    200 + SERVERS,
    "kills",
)
SYSTEMS = (System("ps", "powerschool", 40, {"max_page_size": 60}), System("ic", "infinite_campus", 40))


def log_of(roster: Roster) -> Counter[tuple[str, str, str]]:
    """What was done, as the audit log tells it: its entries without what is drawn by chance."""
    with roster.engine.connect() as connection:
        rows = connection.execute(text("select action, district, details from sis.audit_log"))
        return Counter((row.action, row.district, _told(row.details)) for row in rows)


def _told(details: dict[str, object]) -> str:
    """An epoch counts the attempts, and an operation's id is another one each time."""
    return json.dumps(
        {name: told for name, told in details.items() if name not in {"epoch", "operation_id"}}, sort_keys=True
    )


class Eve:
    """An installation on the eve of a publication: read and judged, not merged. Every attempt is made on a copy of it."""

    def __init__(self, server: SandboxServer, home: Path, postgres: URL, template: str, name: str) -> None:
        self._server, self._home, self._postgres, self._template = server, home, postgres, template
        self._days = DAYS[name]
        self._key = Fernet.generate_key().decode()
        self.name, self.day = name, self._days[-1]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """While this lasts it can be copied."""
        with fresh_database(self._postgres, self._template) as self._url:
            with installation(self._url, self._home / "eve", key=self._key) as roster:
                self._bring_about(roster)
                self.before = left(roster.engine)
            with self.copy() as roster:
                self.done = finished()
                self.after, self.log = left(roster.engine), log_of(roster)
                prove_roster_tidy(roster)
            assert self.before.tables != self.after.tables
            yield

    def _bring_about(self, roster: Roster) -> None:
        town = Town(self._server, roster, self._url, self._home / "eve" / "files")
        town.connect(**{system.name: {"page_size": 60} for system in SYSTEMS})
        for day in self._days:
            town.set_day(day)
            for system in SYSTEMS:
                read(roster, system.name, YEAR, f"day {day}")
                load_roster(roster, system.name, YEAR, f"day {day}", unheard)
            if day != self.day:
                finished()

    @contextmanager
    def copy(self) -> Iterator[Roster]:
        assert self._url.database is not None
        with tempfile.TemporaryDirectory(dir=self._home) as folder:
            home = shutil.copytree(self._home / "eve", Path(folder) / "home")
            with (
                fresh_database(self._postgres, self._url.database) as url,
                installation(url, home, key=self._key) as roster,
            ):
                Town(self._server, roster, url, home / "files").set_day(self.day)
                yield roster

    def is_over(self, roster: Roster) -> bool:
        """Whether the publication has happened, seen at one point in time; whatever is between fails."""
        _let_orphans_end(roster)
        found = left(roster.engine.execution_options(isolation_level="REPEATABLE READ")).tables
        assert found in (self.before.tables, self.after.tables), "half of a publication"
        return bool(found == self.after.tables)

    def prove_as_if_nothing_had_been(self, roster: Roster) -> None:
        """Once it was run again."""
        finished()
        found = left(roster.engine)
        for name, rows in self.after.tables.items():
            assert found.tables[name] == rows, name
        assert found == self.after
        assert set(found.events.values()) <= {1}, "every event once"
        log = log_of(roster)
        assert (log - self.log, self.log - log) == (Counter(), Counter()), "every entry once"
        prove_roster_tidy(roster)
        prove_every_folder_is_an_attempts(roster)


def _let_orphans_end(roster: Roster) -> None:
    """PostgreSQL ends what a killed process had asked for, be it a commit, before it finds out."""
    others = text(
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    )
    with roster.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while connection.scalar(others):
            time.sleep(0.005)


def finished() -> Done:
    """Merge and publish undisturbed."""
    ended = run(merge_and_publish, YEAR.key)
    assert ended.value is not None, ended.error
    assert not ended.value.troubles
    return ended.value


def prove_every_folder_is_an_attempts(roster: Roster) -> None:
    """What was merged and not published is given up by retention, which knows it by its operation."""
    merged = Path(roster.settings.data_url) / "merged"
    with roster.engine.connect() as connection:
        paths = set(connection.scalars(text("select path from sis.sync_operations")))
        assert connection.scalar(text("select count(*) from pg_class where relpersistence = 't'")) == 0
    assert {str(folder.relative_to(merged.parent)) for folder in merged.glob("*/*/*")} <= paths


def strikes(steps: int, wanted: int, chance: Random, **about: Any) -> list[Strike]:
    """As each step begins, or evenly as some do where fewer are wanted; what is wanted beyond that, in the midst of some."""
    number = min(wanted, steps)
    at_once = [Strike(turn * (steps - 1) // max(1, number - 1), **about) for turn in range(number)]
    late = [Strike(chance.randrange(steps), seconds=chance.uniform(0.0, LATE), **about) for _ in range(wanted - number)]
    return sorted([*at_once, *late], key=lambda strike: strike.step)


def struck_in_a_row(eve: Eve, strikes: Sequence[Strike], strike: Callable[[Roster, Strike], object]) -> None:
    """Series of strikes, each at a copy of its own and through the whole run: what ends a series, because it comes after
    the commit, comes last in it. After every strike the tables are looked at, after every series the run is finished."""
    number = -(-len(strikes) // IN_A_ROW)
    waiting = deque(strikes[turn::number] for turn in range(number))
    while waiting:
        series = waiting.popleft()
        with eve.copy() as roster:
            for turn, one in enumerate(series, start=1):
                strike(roster, one)
                if eve.is_over(roster):
                    waiting.extend([series[turn:]] if turn < len(series) else [])
                    break
            eve.prove_as_if_nothing_had_been(roster)


@pytest.fixture(scope="module")
def server() -> Iterator[SandboxServer]:
    with SandboxServer(World(systems=SYSTEMS, school_year=YEAR.key, shared=0.3), enforce_limits=False) as server:
        yield server


@pytest.fixture
def eve(
    request: pytest.FixtureRequest, server: SandboxServer, tmp_path: Path, postgres: URL, _template: str
) -> Iterator[Eve]:
    """On the server that all tests share."""
    with (eve := Eve(server, tmp_path, postgres, _template, request.param)).kept():
        yield eve


@pytest.mark.parametrize("eve", ["first load", pytest.param("later day", marks=pytest.mark.faults)], indirect=True)
def test_killed_at_every_step(eve: Eve, row: Recorder, count: Count, chance: Random) -> None:
    def killed(_roster: Roster, strike: Strike) -> None:
        died = run(merge_and_publish, YEAR.key, strike)
        assert died.exit_code == KILLED, (strike, died)
        row.happened()
        row.ran()

    wanted = count(full=PROCESSES[eve.name], part=3)
    struck_in_a_row(eve, strikes(len(eve.done.steps), wanted, chance), killed)
    phases = Counter(phase for phase, _ in eve.done.steps)
    row.note(f"{eve.name}: {' and '.join(f'{steps} steps of the {phase}' for phase, steps in phases.items())}")


@pytest.fixture
def own_postgres() -> Iterator[tuple[Path, URL]]:
    """A server to be killed, with all that keeps what was committed; its folder is short, as a socket's path has to be."""
    parent = Path(tempfile.mkdtemp(prefix="sis-pg-"))
    parent.chmod(0o755)
    folder = parent / "data"
    try:
        yield folder, make_url(embedded.start(folder)).set(drivername="postgresql+psycopg")
    finally:
        embedded.stop(folder)
        shutil.rmtree(parent, ignore_errors=True)


@pytest.fixture
def its_eve(own_postgres: tuple[Path, URL], server: SandboxServer, tmp_path: Path) -> Iterator[Eve]:
    """On the server that is to be killed."""
    with (eve := Eve(server, tmp_path, own_postgres[1], "template1", "later day")).kept():
        with eve.copy() as roster, roster.engine.connect() as connection:
            assert connection.scalar(text("show fsync")) == "on"
        yield eve


@pytest.mark.faults
def test_postgres_killed_under_it(
    own_postgres: tuple[Path, URL], its_eve: Eve, row: Recorder, count: Count, chance: Random
) -> None:
    folder, _ = own_postgres
    troubles: Counter[str] = Counter()

    def killed(roster: Roster, strike: Strike) -> None:
        lived = run(merge_and_publish, YEAR.key, strike)
        assert lived.value is not None, lived.error
        assert lived.value.struck
        embedded.start(folder)
        assert lived.value.troubles or its_eve.is_over(roster), "what it says it published is published"
        troubles.update(lived.value.troubles)
        row.happened()
        row.ran()

    half, steps = count(full=SERVERS, part=4) // 2, len(its_eve.done.steps)
    first = strikes(steps, half, chance, victim="postmaster", postgres=folder)
    whole = [replace(strike, victim="server", seconds=chance.uniform(0.0, LATE)) for strike in first]
    struck_in_a_row(its_eve, sorted([*first, *whole], key=lambda strike: strike.step), killed)
    assert troubles
    row.note(
        f"with PostgreSQL gone it said {', '.join(f'{code} {times} times' for code, times in troubles.most_common())}"
    )
