"""Where all tests take their child processes from: one fork server per pytest process, with everything imported once.
What a child does is its module's business; a child that must start from nothing is spawned, by whoever needs that."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import Pool

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        f"sis_pipeline_tests.{name}"
        for name in ("faults.knocking", "faults.publications", "faults.racers", "faults.syncs")
    ]
)
"""The server is started once and preloads what was named last before: named here, so that no module's own children
import Dagster anew because another module's were first (four seconds each on a busy machine)."""

START = 120.0
"""Seconds that processes may take to start."""


@contextmanager
def ready_pool(processes: int) -> Iterator[Pool]:
    """A pool whose processes are all up: what is timed in it is not their start."""
    line = FORKS.Barrier(processes + 1)
    with FORKS.Pool(processes, line.wait, (START,)) as pool:
        line.wait(START)
        yield pool
