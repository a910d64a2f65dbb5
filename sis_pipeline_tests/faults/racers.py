"""What the token rows run in processes of their own.
What must hold is the rows' business."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine

from sis_pipeline.connect import log
from sis_pipeline.connect.contract import Request
from sis_pipeline_tests.connect.workers import Options, a_source
from sis_pipeline_tests.forking import FORKS

PATIENT: dict[str, Any] = {"connect_timeout": 30.0, "read_timeout": 30.0, "total_timeout": 60.0}
"""Seconds: 32 processes on two cores answer late, and that is not the fault in question."""
TOGETHER = 120.0
"""Seconds that the slowest process may take to the starting line."""

Lap = tuple[float, float, int]
"""When a process started (on the clock all share), when it had its answer, and the version of the token it had."""

_line: Barrier | None = None


def _take_place(line: Barrier) -> None:
    global _line  # noqa: PLW0603  a barrier can only be inherited
    _line = line


def race(*, jobs: Sequence[dict[str, Any]], laps: int) -> list[list[Lap]]:
    """For every job: read with a token that everybody holds, `laps` times after it has ended; all start at once."""
    assert _line is not None
    try:
        return [_laps(_line, laps=laps, **job) for job in jobs]
    except BaseException:
        _line.abort()  # nobody waits for who does not come
        raise


def _laps(line: Barrier, *, database: str, key: str, url: str, oauth: Any, laps: int) -> list[Lap]:
    engine = create_engine(database, connect_args={"options": "-c search_path=sis"})
    ran = []
    with a_source(engine, url, key=key, oauth=oauth, options=Options(url, **PATIENT)) as source:
        source.send(Request("orgs"))
        for _ in range(laps):
            line.wait(TOGETHER)  # all have read
            line.wait(TOGETHER)  # the token has ended
            started = time.monotonic()
            source.send(Request("orgs"))
            ran.append((started, time.monotonic(), source.token_version or 0))
        line.wait(TOGETHER)
    engine.dispose()
    return ran


def racing(
    count: int, jobs: Sequence[dict[str, Any]], laps: int, end: Callable[[int, int], None]
) -> list[list[list[Lap]]]:
    """Run `race` in `count` processes; `end(job, lap)` ends the token while all stand still. By process, job, lap."""
    line = FORKS.Barrier(count + 1)
    with FORKS.Pool(count, _take_place, (line,)) as pool:
        running = [pool.apply_async(race, kwds={"jobs": jobs, "laps": laps}) for _ in range(count)]
        try:
            for job in range(len(jobs)):
                for lap in range(laps):
                    line.wait(TOGETHER)
                    end(job, lap)
                    line.wait(TOGETHER)
                line.wait(TOGETHER)
        except BaseException:
            line.abort()
            for one in running:
                one.get(TOGETHER)  # whoever broke it says why
            raise
        return [one.get(TOGETHER) for one in running]


def read_at_home(*, home: str, database: str, key: str, url: str, oauth: Any) -> None:
    """Read once, with everything this process could write going below `home`, and all that it can tell told."""
    os.environ |= {"SIS_HOME": home, "TMPDIR": home, "HOME": home}
    tempfile.tempdir = None
    os.chdir(home)
    said = os.open(Path(home) / "output.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    log.configure("json", level=logging.DEBUG)
    logging.getLogger().setLevel(logging.DEBUG)
    engine = create_engine(database, connect_args={"options": "-c search_path=sis"})
    with a_source(engine, url, key=key, oauth=oauth) as source:
        source.send(Request("orgs"))
