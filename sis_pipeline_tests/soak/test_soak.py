"""A whole reading at the vendor's limit: as fast as the limit allows, never faster, and the number of calls known before."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from sis_pipeline.connect.limits import RateLimit
from sis_pipeline.defs.loading import RawLoad
from sis_pipeline.sandbox.server import Handle, SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.throttle import worst_window
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.truth.chain import YEAR, connect, fresh_database, installation, read

ALLOWED = 0.05
"""How much longer than calls x interval a reading may take."""


@dataclass(frozen=True)
class Pause:
    """One wait for a turn: when it began, what the limit asked for, and how long it became. Seconds."""

    began: float
    asked: float
    took: float


@dataclass(frozen=True)
class Soaked:
    """One reading, as the server and the client saw it. `interval`: seconds between calls at the limit."""

    load: RawLoad
    handle: Handle
    interval: float
    planning_calls: int
    arrivals: list[float]
    pauses: list[Pause]

    @property
    def seconds(self) -> float:
        """From the first call to the last, on the server's watch."""
        return self.arrivals[-1] - self.arrivals[0]

    @property
    def floor(self) -> float:
        return self.interval * len(self.arrivals)

    @property
    def lost(self) -> float:
        """Seconds lost to the limit: beyond one interval per call, or our own work where that takes longer than an
        interval, and not because the machine woke us later than asked."""
        late = sum(max(0.0, pause.took - pause.asked) for pause in self._inside())
        return self.seconds - late - sum(max(self.interval, busy) for busy in self._busy())

    def _inside(self) -> list[Pause]:
        return [pause for pause in self.pauses if self.arrivals[0] <= pause.began < self.arrivals[-1]]

    def _busy(self) -> Iterator[float]:
        """From each call to the next, the seconds that were no wait for a turn: work of the client and of the server."""
        pauses = iter([*self._inside(), Pause(float("inf"), 0, 0)])
        pause = next(pauses)
        for before, now in zip(self.arrivals, self.arrivals[1:], strict=False):
            waited = 0.0
            while pause.began < now:
                waited += pause.took
                pause = next(pauses)
            yield now - before - waited

    def say(self) -> None:
        sys.stdout.write(
            f"\n{len(self.arrivals):,} calls in {self.seconds:,.1f} s, "
            f"{self.seconds / self.floor - 1:+.1%} over calls x {self.interval:.2f} s; lost to the limit "
            f"{self.lost:,.2f} s; fullest minute {worst_window(self.arrivals)} of {60 / self.interval:.0f}; "
            f"{self.handle.stats()['refused']} refused; {self.planning_calls} calls to plan, "
            f"{self.load.plan.calls:,} planned; said before: {self.load.planned_seconds:,.0f} s.\n"
        )


Soak = Callable[[int, int], Soaked]


@pytest.fixture
def soak(postgres: URL, _template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Soak:
    """Reads a PowerSchool of so many students, pages of 100, with the limit raised so many times on both sides.

    It was read once before, without a limit: how many pages each list takes is known from then.
    """
    pauses: list[Pause] = []
    waits = RateLimit.waits

    def timed(self: RateLimit, key: str, per_minute: float) -> Iterator[float]:
        for wait in waits(self, key, per_minute):
            began = time.monotonic()
            yield wait
            pauses.append(Pause(began, wait, time.monotonic() - began))

    monkeypatch.setattr(RateLimit, "waits", timed)

    def run(students: int, raised: int) -> Soaked:
        system = System("ps", "powerschool", students, {"max_page_size": 100})
        world = World(systems=[system], school_year=YEAR.key)
        with (
            fresh_database(postgres, _template) as url,
            installation(url, tmp_path) as roster,
            SandboxServer(world, rate_scale=raised) as server,
        ):
            handle = server.system("ps")
            limit, handle.meter.limit = handle.meter.limit, None
            connect(roster, server, "ps", requests_per_minute=6_000)
            read(roster, "ps", YEAR, "first")

            handle.meter.limit = limit
            handle.meter.reset()
            pauses.clear()
            connect(roster, server, "ps", replace=True, **({"requests_per_minute": 60 * raised} if raised > 1 else {}))
            before: list[int] = []
            load = read(roster, "ps", YEAR, "second", lambda _line: before.append(handle.stats()["total_calls"]))
            return Soaked(load, handle, 1 / raised, before[0], list(handle.meter._arrivals), pauses)

    return run


def prove(found: Soaked) -> None:
    found.say()
    stats = found.handle.stats()
    assert stats["refused"] == found.load.throttled == 0
    assert set(stats["statuses"]) == {"200"}
    assert found.load.snapshot.completeness == "complete", found.load.reasons
    assert stats["total_calls"] - found.planning_calls == found.load.plan.calls
    assert found.load.calls == stats["total_calls"] + stats["token_calls"]
    assert worst_window(found.arrivals) <= 60 / found.interval


@pytest.mark.soak
def test_ten_thousand_students_at_the_true_limit(soak: Soak) -> None:
    """60 calls a minute, about 22 minutes. The server's watch from the first call to the last is at most 5 % over
    calls x 1 s: 50 ms a call, which a busy machine keeps, too."""
    found = soak(10_000, 1)
    prove(found)
    assert found.seconds <= found.floor * (1 + ALLOWED)


def test_fewer_students_at_twenty_times_the_limit(soak: Soak) -> None:
    """The same in less than 25 seconds: fewer students, and a limit raised on both sides.

    5 % of an interval are 2.5 ms here, less than a busy machine takes to wake a process. So what is bounded is the time
    lost to the limit: what remains of the server's watch when each call is allowed one interval, or our own work where
    that takes longer, and the machine's late waking is taken off. A limit that asks for too long a wait, or notices too
    late that a slot is free, still shows in full.
    """
    found = soak(2_500, 20)
    prove(found)
    assert found.lost <= found.floor * ALLOWED
