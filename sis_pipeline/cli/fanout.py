"""Child processes for syncs and merges: starting them, handing them jobs, hearing of their progress, ending them.
Processes, never threads, because Dagster's in-process execution deadlocks in threads; the work itself is in `worker`."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self, cast

Event = Mapping[str, Any]
OnEvent = Callable[[str, Event], None]

WORKER = "sis_pipeline.cli.worker"
PATIENCE = 15.0
"""Seconds that interrupted children get to close their runs before they are killed."""


@dataclass(frozen=True)
class Job:
    """One piece of work for a child: `kind` names a function of `worker`, `arguments` are its JSON arguments."""

    child: str
    kind: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a job: the worker's result, or None and the error in words: {class, message, advice}."""

    job: Job
    result: Mapping[str, Any] | None
    error: Mapping[str, Any] | None


class Child:
    """One worker process. Its stdout carries events as JSON lines; everything else it prints goes to its log."""

    def __init__(self, name: str, log: Path, events: queue.SimpleQueue[tuple[Child, Event]], module: str) -> None:
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as stderr:
            # A session of its own: Ctrl-C reaches the parent only, which then ends its children in order.
            self.process = subprocess.Popen(  # noqa: S603 our own interpreter and module
                [sys.executable, "-m", module, name],  # the name is for whoever lists processes
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
                env={**os.environ, "DAGSTER_REDACT_USER_CODE_ERRORS": "1"},
            )
        self._jobs, told = cast("IO[str]", self.process.stdin), cast("IO[str]", self.process.stdout)
        threading.Thread(target=self._listen, args=(told, events), daemon=True).start()

    def submit(self, job: Job) -> None:
        with contextlib.suppress(BrokenPipeError):  # it died already: its end is on the way as an event
            self._jobs.write(json.dumps({"kind": job.kind, "arguments": dict(job.arguments)}) + "\n")
            self._jobs.flush()

    def close(self) -> None:
        """No more jobs: the process ends by itself. One that still works interrupts its work, as if by Ctrl-C."""
        with contextlib.suppress(BrokenPipeError):
            self._jobs.close()

    def ended_within(self, seconds: float) -> bool:
        try:
            self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return False
        return True

    def _listen(self, told: IO[str], events: queue.SimpleQueue[tuple[Child, Event]]) -> None:
        for line in told:
            events.put((self, json.loads(line)))
        events.put((self, {"event": "ended", "code": self.process.wait()}))


class FanOut:
    """Runs jobs in children, at most `parallel` at a time; jobs of one child run in order, in that one process.

    A child that dies is the failure of its job only. Leaving the block ends every child.
    """

    def __init__(self, logs: Path, on_event: OnEvent, parallel: int = 4, *, module: str = WORKER) -> None:
        self._logs, self._on_event, self._parallel, self._module = logs, on_event, parallel, module
        self._events: queue.SimpleQueue[tuple[Child, Event]] = queue.SimpleQueue()
        self._children: dict[str, Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        children = list(self._children.values())
        for child in children:
            child.close()
        deadline = time.monotonic() + PATIENCE
        for child in children:
            if not child.ended_within(deadline - time.monotonic()):
                child.process.kill()
                child.process.wait()

    def warm(self, name: str) -> Child:
        """The child of that name, started if need be: it imports what it needs while others work."""
        if name not in self._children:
            self._children[name] = Child(name, self._logs / f"{name}.log", self._events, self._module)
        return self._children[name]

    def release(self, name: str) -> None:
        """No more jobs for this child."""
        if name in self._children:
            self._children[name].close()

    def run(self, jobs: Iterable[Job], *, keep: bool = False) -> list[Outcome]:
        """Run the jobs; outcomes in the order of their end. `keep` leaves the children up for jobs to come."""
        waiting: dict[str, deque[Job]] = {}
        for job in jobs:
            waiting.setdefault(job.child, deque()).append(job)
        order, outcomes = deque(waiting), list[Outcome]()
        busy: dict[str, Job] = {}
        while order or busy:
            while order and len(busy) < self._parallel:
                name = order.popleft()
                busy[name] = self._next(waiting[name])
            child, event = self._events.get()
            outcome = self._outcome(child, event, busy)
            if outcome is None:
                continue
            outcomes.append(outcome)
            del busy[child.name]
            if waiting[child.name]:
                busy[child.name] = self._next(waiting[child.name])
            elif not keep:
                self.release(child.name)
        return outcomes

    def _next(self, jobs: deque[Job]) -> Job:
        job = jobs.popleft()
        self._on_event(job.child, {"event": "started", "kind": job.kind, **job.arguments})
        self.warm(job.child).submit(job)
        return job

    def _outcome(self, child: Child, event: Event, busy: Mapping[str, Job]) -> Outcome | None:
        """The outcome that an event means for the child's job, or None where it goes on."""
        if event["event"] == "ended" and self._children.get(child.name) is child:
            del self._children[child.name]
        job = busy.get(child.name)
        if job is None:
            return None
        if event["event"] == "ended":
            outcome = Outcome(job, None, _death(child, event["code"]))
        elif event["event"] == "done":
            outcome = Outcome(job, event.get("result"), event.get("error"))
        else:
            self._on_event(child.name, event)
            return None
        self._on_event(
            child.name, {"event": "finished", "kind": job.kind, "error": outcome.error, "result": outcome.result}
        )
        return outcome


def _death(child: Child, code: int) -> dict[str, Any]:
    how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
    return {
        "class": "internal",
        "code": "internal.process_died",
        "died": True,
        "message": f"The process of {child.name} {how} before it was done; what it had finished is kept.",
        "advice": f"Run it again. If memory ran out, lower --parallel. Its log: {child.log}",
    }
