"""The child process of `sis sync`, `backfill` and `demo`: reads jobs as JSON lines from stdin, runs the Dagster assets,
and tells its progress as JSON lines on what was stdout. Never started by hand; see `fanout` for the parent."""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, TextIO

Report = Callable[[Mapping[str, Any]], None]


class Worker:
    """Runs jobs one after the other. The end of stdin means that the parent is gone or has no more jobs."""

    def __init__(self, jobs: TextIO, events: TextIO) -> None:
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
        self._events.write(json.dumps(event, default=str) + "\n")
        self._events.flush()

    def _listen(self) -> None:
        for line in self._source:
            self._jobs.put(json.loads(line))
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


def main(preload: str | None = None) -> None:
    """Do the jobs that come in; `preload` is imported first, so that a child that waits is ready."""
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    # Whatever prints to stdout (Dagster, plugins) goes to the log; only events go to the parent.
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        if preload:
            importlib.import_module(preload)
        Worker(sys.stdin, events).run()
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)


if __name__ == "__main__":
    main("sis_pipeline.defs.runs")
