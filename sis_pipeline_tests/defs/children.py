"""Work done in a child process, so that a test may kill it: forked from a server that has everything imported.
What the work is (a module's function and plain arguments), and what must hold after its death, is the test's business."""

from __future__ import annotations

import os
import resource
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from sis_pipeline import crashpoints
from sis_pipeline.connect.errors import SisError
from sis_pipeline.defs.loading import load_raw
from sis_pipeline.defs.resources import Roster, provider_resource
from sis_pipeline.providers.registry import load_providers
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline_tests.forking import FORKS

T = TypeVar("T")

KILLED = -9
PATIENCE = 60.0
"""Seconds a child may take before the test gives up on it."""


@dataclass(frozen=True)
class Ended(Generic[T]):
    """How a child ended. `value`: what its work returned. `error`: what it raised, as a SisError tells it."""

    exit_code: int
    value: T | None
    error: str | None

    @property
    def killed(self) -> bool:
        return self.exit_code == KILLED


class Child(Generic[T]):
    """A process that does one piece of work under this process's environment as it is now."""

    def __init__(self, work: Callable[..., T], *arguments: Any, **environment: str) -> None:
        self._answers, theirs = FORKS.Pipe(duplex=False)
        given = {**os.environ, **environment}
        self._process = FORKS.Process(target=_do, args=(theirs, given, work, arguments))
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def ended(self) -> Ended[T]:
        """Wait for its end. A child that outlasts PATIENCE is killed, and the test fails."""
        value, error = None, None
        try:
            if not self._answers.poll(PATIENCE):
                self._process.kill()
                raise AssertionError(f"the child did not end within {PATIENCE:.0f} s")
            value, error = self._answers.recv()
        except EOFError:
            pass  # it died without a word
        self._process.join(PATIENCE)
        assert self._process.exitcode is not None
        return Ended(self._process.exitcode, value, error)


def run(work: Callable[..., T], *arguments: Any, crash_at: str | None = None) -> Ended[T]:
    """Do it in a child and wait for its end. `crash_at`: `name` or `name:n`, see crashpoints."""
    return Child(work, *arguments, **({crashpoints.VARIABLE: crash_at} if crash_at else {})).ended()


def _do(
    answers: Connection, environment: Mapping[str, str], work: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    try:
        answers.send((work(*arguments), None))
    except SisError as error:
        answers.send((None, str(error)))
    except BaseException:
        answers.send((None, traceback.format_exc()))
        raise


@dataclass(frozen=True)
class Loaded:
    """What a load gave, as far as it can be sent between processes."""

    snapshot_id: str
    completeness: str | None
    content_hash: str | None
    resumed: int
    calls: int
    kept: Mapping[str, int]
    restarted: Mapping[str, str]
    said: Sequence[str] = field(repr=False)


def load(key: str, school_year: str, run_id: str = "run", largest_file: int | None = None) -> Loaded:
    """Read an integration's school year into a snapshot, as the asset `raw_roster` does.

    `largest_file`: bytes; a file that grows beyond them can't be written, as on a full disk.
    """
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    roster = Roster()
    try:
        provider = load_providers().providers[roster.integrations.get(key).provider]
        said: list[str] = []
        done = load_raw(
            provider_resource(provider)(roster=roster), key, SchoolYear.parse(school_year), run_id, said.append
        )
    finally:
        roster.close()
    return Loaded(
        done.snapshot.snapshot_id,
        done.snapshot.completeness,
        done.snapshot.content_hash,
        done.snapshot.resumed,
        done.calls,
        {reading.resource: reading.kept for reading in done.readings},
        {reading.resource: reading.restarted for reading in done.readings if reading.restarted},
        said,
    )
