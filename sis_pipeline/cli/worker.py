"""The child process of `sis sync`, `backfill` and `demo`: takes jobs as JSON from one pipe, runs the Dagster assets, and
tells its progress as JSON into another. Never started by hand; see `fanout` for the parent."""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from setproctitle import setproctitle

Report = Callable[[Mapping[str, Any]], None]


class Worker:
    """Runs jobs one after the other. Their end means that the parent is gone or has no more of them."""

    def __init__(self, jobs: Connection, events: Connection) -> None:
        self._source, self._events = jobs, events
        self._jobs: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._busy, self._closed = threading.Event(), threading.Event()

    def run(self) -> None:
        threading.Thread(target=self._listen, daemon=True).start()
        while (job := self._jobs.get()) is not None:
            self._busy.set()
            if self._closed.is_set():
                break
            answer = self._perform(job)
            self._busy.clear()
            self.report({"event": "done", **answer})

    def report(self, event: Mapping[str, Any]) -> None:
        self._events.send_bytes(json.dumps(event, default=str).encode())

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._jobs.put(json.loads(self._source.recv_bytes()))
        self._jobs.put(None)
        self._closed.set()
        if self._busy.is_set():
            os.kill(os.getpid(), signal.SIGINT)  # the parent died or was interrupted: end the run in order

    def _perform(self, job: Mapping[str, Any]) -> dict[str, Any]:
        from sis_pipeline.cli.boundary import explain

        try:
            return {"result": JOBS[job["kind"]](self.report, **job["arguments"])}
        except Exception as error:  # noqa: BLE001 whatever fails is the outcome of this job, told to the parent
            trouble = explain(error)
            print(f"{job['kind']}: {trouble.message}", file=sys.stderr)
            return {"error": trouble.facts}


def prepare(report: Report) -> None:  # noqa: ARG001 every job is given it
    from sis_pipeline.cli.installation import Installation
    from sis_pipeline.defs.instance import dagster_instance
    from sis_pipeline.defs.runs import fail_orphaned_runs

    with dagster_instance(Installation().settings) as instance:
        fail_orphaned_runs(instance)


def sync(report: Report, integration: str, school_year: str, *, full: bool = False) -> dict[str, Any]:
    from sis_pipeline.defs.runs import run_sync

    return run_sync(integration, school_year, on_event=report, full=full).as_json()


def merge(report: Report, school_year: str) -> dict[str, Any]:  # noqa: ARG001 every job is given it
    from sis_pipeline.defs.runs import run_merge

    return run_merge(school_year).as_json()


JOBS: dict[str, Callable[..., Any]] = {"prepare": prepare, "sync": sync, "merge": merge}


def serve(
    name: str, log: Path, module: str, *, environment: Mapping[str, str], jobs: Connection, events: Connection
) -> None:
    """Do the jobs that come in, in a process that was just forked, until the parent closes `jobs`.

    `module` is imported first, so that a child that waits is ready. What anything prints goes to `log`.
    """
    os.setsid()  # Ctrl-C reaches the parent only, which then ends its children in order
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    setproctitle(f"sis worker {name}")  # before the environment changes: the title is written where it was
    os.environ.clear()
    os.environ.update(environment)
    with log.open("a") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    try:
        importlib.import_module(module)
        Worker(jobs, events).run()
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)
