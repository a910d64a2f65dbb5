"""Child processes for syncs and merges: starting them, handing them jobs, hearing of their progress, ending them.
Processes, never threads, because Dagster's in-process execution deadlocks in threads; the work itself is in `worker`."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Self

from sis_pipeline.cli import worker

Event = Mapping[str, Any]
OnEvent = Callable[[str, Event], None]

FORKS = multiprocessing.get_context("forkserver")
READY = (
    "__main__", "dagster", "dagster_postgres", "pandera.pandas", "requests", "authlib.oauth2.rfc6749", "alembic.command",
    "phonenumbers", "email_validator",
)  # fmt: skip
"""What is imported once, in the process that children are forked from: two of the three seconds of processor time that a
child takes to start. Nothing of Polars, which has threads from its import on and may not be forked (its user guide,
"Multiprocessing")."""
ASKING = threading.Lock()
"""Starting a process asks how all others are, and of two threads that ask at once one is told 255."""
WORKER = "sis_pipeline.defs.runs"
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
    """One worker process. It tells events as JSON; whatever it prints goes to its log."""

    def __init__(self, name: str, log: Path, events: queue.SimpleQueue[tuple[Child, Event]], module: str) -> None:
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
        jobs, self._jobs = FORKS.Pipe(duplex=False)
        told, tells = FORKS.Pipe(duplex=False)
        environment = {**os.environ, "DAGSTER_REDACT_USER_CODE_ERRORS": "1"}
        self.process = FORKS.Process(
            target=worker.serve,
            name=name,
            args=(name, log, module),
            kwargs={"environment": environment, "jobs": jobs, "events": tells},
            daemon=True,
        )
        with ASKING:
            self.process.start()
        jobs.close()
        tells.close()
        self._ended = threading.Event()
        threading.Thread(target=self._listen, args=(told, events), daemon=True).start()

    def submit(self, job: Job) -> None:
        with contextlib.suppress(OSError):  # it died already: its end is on the way as an event
            self._jobs.send_bytes(json.dumps({"kind": job.kind, "arguments": dict(job.arguments)}).encode())

    def close(self) -> None:
        """No more jobs: the process ends by itself. One that still works interrupts its work, as if by Ctrl-C."""
        self._jobs.close()

    def ended_within(self, seconds: float) -> bool:
        return self._ended.wait(max(0.0, seconds))

    def kill(self) -> None:
        self.process.kill()
        self._ended.wait()

    def _listen(self, told: Connection, events: queue.SimpleQueue[tuple[Child, Event]]) -> None:
        with contextlib.suppress(EOFError, OSError):  # the end of what it has to tell, also where it was killed
            while True:
                events.put((self, json.loads(told.recv_bytes())))
        wait([self.process.sentinel])
        with ASKING:
            code = self.process.exitcode
        self._ended.set()
        events.put((self, {"event": "ended", "code": code}))


class FanOut:
    """Runs jobs in children, at most `parallel` at a time; jobs of one child run in order, in that one process.

    A child that dies is the failure of its job only. Leaving the block ends every child.
    """

    def __init__(self, logs: Path, on_event: OnEvent, parallel: int = 4, *, module: str = WORKER) -> None:
        self._logs, self._on_event, self._parallel, self._module = logs, on_event, parallel, module
        _start_server()
        self._events: queue.SimpleQueue[tuple[Child, Event]] = queue.SimpleQueue()
        self._children: dict[str, Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        children = list(self._children.values())
        for child in children:
            child.close()
        deadline = time.monotonic() + PATIENCE
        try:
            for child in children:
                if not child.ended_within(deadline - time.monotonic()):
                    child.kill()
        except KeyboardInterrupt:  # a second Ctrl-C: who is left would keep this process waiting as it ends
            for child in children:
                child.process.kill()
            raise

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


def _start_server() -> None:
    """Start what children are forked from, deaf to Ctrl-C: by itself it is so only once it has imported READY."""
    FORKS.set_forkserver_preload(list(READY))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _death(child: Child, code: int) -> dict[str, Any]:
    how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
    return {
        "class": "internal",
        "code": "internal.process_died",
        "died": True,
        "message": f"The process of {child.name} {how} before it was done; what it had finished is kept.",
        "advice": f"Run it again. If memory ran out, lower --parallel. Its log: {child.log}",
    }
