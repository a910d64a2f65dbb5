"""A merge and publication without Dagster in a child process, struck by SIGKILL as one of its steps begins or during it.
Which steps are struck, and what must hold afterwards, is the row's business."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import psutil
import psycopg
from sqlalchemy.exc import DBAPIError

from sis_pipeline.defs.merging import merge_districts, publish_districts
from sis_pipeline.defs.resources import Roster
from sis_pipeline_tests.truth.chain import unheard

Victim = Literal["process", "postmaster", "server"]
"""Who is killed: the process that merges, PostgreSQL's first process, or that and all of its children."""
ASKS: tuple[tuple[type, str], ...] = (
    (psycopg.Cursor, "execute"),
    (psycopg.Cursor, "executemany"),
    (psycopg.Cursor, "copy"),
    (psycopg.Connection, "commit"),
)
"""Where PostgreSQL is asked for something; a COPY is one step, however many rows it has."""


@dataclass(frozen=True, slots=True)
class Strike:
    """`step`: counted from 0; `seconds`: how long after its beginning. `postgres`: the data folder of a killed server."""

    step: int
    victim: Victim = "process"
    seconds: float = 0.0
    postgres: Path | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What an attempt that outlived its strike says. `steps`: each with its phase, merge or publish. `struck`: whether
    the strike came. `troubles`: the codes of what failed, or the name of the error that ended a phase."""

    steps: Sequence[tuple[str, str]]
    struck: bool
    troubles: Sequence[str]


def merge_and_publish(school_year: str, strike: Strike | None = None) -> Done:
    """Merge and publish every district of a school year, as the two assets do one after the other.

    Of a strike at this process nobody returns: where it is late, it is waited for.
    """
    roster = Roster()
    steps = Steps(strike)
    with roster.engine.connect():
        steps.watch(roster.settings.data_url)
    troubles: list[str] = []
    for phase, work in (("merge", merge_districts), ("publish", publish_districts)):
        steps.phase = phase
        try:
            troubles += [one.trouble.code for one in work(roster, school_year, "run", unheard) if one.trouble]
        except DBAPIError as error:  # the server is gone before there is a district to be in trouble
            troubles.append(type(error).__name__)
    steps.wait_for_late_strike()
    return Done(steps.taken, steps.struck, troubles)


class Steps:
    """Everything that leaves this process, in order: what PostgreSQL is asked for, and the files of the data folder as
    they are begun and as they get their names. Between two steps nobody outside can tell one moment from another."""

    def __init__(self, strike: Strike | None) -> None:
        self._strike = strike
        self.phase = "start"
        self.taken: list[tuple[str, str]] = []
        self.struck = False
        self._late: threading.Thread | None = None

    def watch(self, data_url: str) -> None:
        """From now on and for as long as the process lives."""
        for owner, name in ASKS:
            setattr(owner, name, self._noted(name, getattr(owner, name)))

        def heard(event: str, arguments: tuple[Any, ...]) -> None:
            if event not in {"open", "os.rename"}:
                return
            path, mode = str(arguments[0]), arguments[1]
            begun = event == "open" and mode is None and bool(arguments[2] & os.O_CREAT)
            if path.startswith(data_url) and (begun or event == "os.rename"):
                self._take("name a file" if event == "os.rename" else "begin a file")

        sys.addaudithook(heard)

    def _noted(self, name: str, asks: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(asks)
        def noted(*arguments: Any, **named: Any) -> Any:
            self._take(name)
            return asks(*arguments, **named)

        return noted

    def _take(self, step: str) -> None:
        number = len(self.taken)
        self.taken.append((self.phase, step))
        if self._strike is None or number != self._strike.step:
            return
        self.struck = True
        if self._strike.seconds:
            self._late = threading.Thread(target=self._kill_late)
            self._late.start()
        else:
            kill(self._strike)

    def _kill_late(self) -> None:
        assert self._strike is not None
        time.sleep(self._strike.seconds)
        kill(self._strike)

    def wait_for_late_strike(self) -> None:
        if self._late:
            self._late.join()


def kill(strike: Strike) -> None:
    """SIGKILL whom it is meant for, and for a server wait until its first process is no more than a zombie."""
    if strike.victim == "process":
        os.kill(os.getpid(), signal.SIGKILL)
    assert strike.postgres is not None
    first = psutil.Process(int((strike.postgres / "postmaster.pid").read_text().split("\n", 1)[0]))
    others = first.children(recursive=True) if strike.victim == "server" else []
    for process in (first, *others):
        process.kill()
    while first.is_running() and first.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.001)
