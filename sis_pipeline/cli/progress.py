"""Showing how far syncs and merges are: bars on a terminal, plain lines elsewhere; always on stderr.
What the events mean is said in `worker`; nothing here changes the course of the work."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

QUIET_SECONDS = 10.0
"""How often a plain line tells of a reading that goes on."""


@dataclass
class Reading:
    """How far one child is. `seconds` is the planned time at the integration's rate limit."""

    label: str
    calls: int = 0
    planned_calls: int | None = None
    seconds: float | None = None
    seconds_per_call: float = 0.0
    at_least: str = ""
    """A first reading knows only how many calls it takes at least."""
    rows: int = 0
    expected_rows: int | None = None
    began: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)

    def absorb(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "plan":
            self.planned_calls, self.seconds = event.get("calls"), event.get("seconds")
            self.expected_rows = event.get("rows")
            self.at_least = "at least " if event.get("basis") == "first_read" and self.seconds else ""
            self.seconds_per_call = (self.seconds or 0) / max(1, self.planned_calls or 0)
        elif event["event"] == "page":
            self.calls, self.rows = event.get("calls", self.calls), event.get("rows", self.rows)
            self.planned_calls = event.get("planned", self.planned_calls)

    def end(self, now: datetime) -> str:
        """The expected time of day at which reading ends, empty where nothing is known yet."""
        if not self.planned_calls or self.seconds is None:
            return ""
        left = max(0, self.planned_calls - self.calls) * self.seconds_per_call
        return (now + timedelta(seconds=left)).strftime("%H:%M:%S")

    @property
    def counted(self) -> str:
        rows = f"{self.rows:,}" + (f" of about {self.expected_rows:,}" if self.expected_rows else "") + " rows"
        calls = f"{self.calls:,}" + (f"/{self.planned_calls:,}" if self.planned_calls else "") + " calls"
        return f"{rows}, {calls}"


class PlainProgress:
    """Lines for logs: one when a job starts, is planned and ends, and now and then in between."""

    def __init__(self) -> None:
        self._readings: dict[str, Reading] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, name: str, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "started":
            self._readings[name] = Reading(_label(name, event))
            self._say(f"{self._readings[name].label}: started")
            return
        reading = self._readings.setdefault(name, Reading(name))
        reading.absorb(event)
        if kind == "plan":
            self._plan(reading, event)
        elif kind == "finished":
            self._say(f"{reading.label}: {_ending(event)} after {time.monotonic() - reading.began:.1f} s")
        elif time.monotonic() - reading.told > QUIET_SECONDS:
            reading.told = time.monotonic()
            self._say(f"{reading.label}: {reading.counted}, expected end {_now(reading)}")

    def _plan(self, reading: Reading, event: Mapping[str, Any]) -> None:
        rows = f" for about {reading.expected_rows:,} rows" if reading.expected_rows else ""
        calls = f"{reading.at_least}{reading.planned_calls} calls planned{rows}"
        self._say(f"{reading.label}: {calls}, about {reading.seconds or 0:.0f} s")
        for note in event.get("notes", ()):
            self._say(f"{reading.label}: {note}")

    def _say(self, line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


class BarProgress:
    """One bar per child on a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        from sis_pipeline.cli.output import console

        self._progress: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console(stderr=True),
        )
        self._tasks: dict[str, tuple[TaskID, Reading]] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, name: str, event: Mapping[str, Any]) -> None:
        if event["event"] == "started":
            reading = Reading(_label(name, event))
            task = self._progress.add_task(reading.label, total=None, state="starting")
            self._tasks[name] = (task, reading)
        if name not in self._tasks:
            return
        task, reading = self._tasks[name]
        reading.absorb(event)
        if event["event"] == "finished":
            total = max(reading.calls, 1)
            self._progress.update(task, total=total, completed=total, state=_ending(event))
            self._progress.stop_task(task)
        elif event["event"] in {"plan", "page"}:
            end = _now(reading)
            state = reading.counted + (f", end {end}" if end else "")
            self._progress.update(task, total=reading.planned_calls, completed=reading.calls, state=state)
            for note in event.get("notes", ()):
                self._progress.console.print(f"{reading.label}: {note}", markup=False)


class Counting:
    """Work of which only the number of its parts is known: one bar on a terminal, else a line now and then."""

    def __init__(self, label: str, total: int) -> None:
        self._label, self._total, self._done = label, total, 0
        self._told = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            from rich.progress import Progress

            from sis_pipeline.cli.output import console

            self._bar = Progress(console=console(stderr=True))
            self._task = self._bar.add_task(label, total=total)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, *_: object) -> None:
        """One more part is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.advance(self._task)
        elif time.monotonic() - self._told > QUIET_SECONDS:
            self._told = time.monotonic()
            sys.stderr.write(f"{self._label}: {self._done:,} of {self._total:,}\n")
            sys.stderr.flush()


def progress() -> PlainProgress | BarProgress:
    """Bars where stderr is a terminal, else lines."""
    return BarProgress() if sys.stderr.isatty() else PlainProgress()


def _label(name: str, event: Mapping[str, Any]) -> str:
    return f"{name} {event['school_year']}" if event.get("school_year") else name


def _now(reading: Reading) -> str:
    return reading.end(datetime.now().astimezone())


def _ending(event: Mapping[str, Any]) -> str:
    error = event.get("error")
    if error:
        return f"failed: {error['message']}"
    return str((event.get("result") or {}).get("verdict") or "done")
