"""Time that passes by decree: waits for a turn move the database's clock instead of being slept through.
The product's own clock is `sis.clock()`; nothing else here is replaced."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from sqlalchemy import Engine, text

from sis_pipeline.connect import wire


class Clock:
    """The database's clock, ahead of the real one by `ahead` seconds. Connections opened before a leap must be dropped."""

    def __init__(self, *engines: Engine) -> None:
        self.engines = engines
        self.ahead = 0.0

    def leap(self, seconds: float) -> None:
        self.ahead += seconds
        with self.engines[0].begin() as connection:
            name = connection.engine.url.database
            connection.execute(text(f"alter database {name} set sis.clock_offset = '{self.ahead} seconds'"))
        for engine in self.engines:
            engine.dispose()

    def now(self) -> float:
        return time.monotonic() + self.ahead


@contextmanager
def leaping(clock: Clock, before: Callable[[float], None] = lambda _: None) -> Iterator[Clock]:
    """Waits for a turn leap while the context lasts; `before` is told the seconds of each first."""

    def sleep(seconds: float) -> None:
        before(seconds)
        if seconds > 0.02:
            clock.leap(seconds)
        else:
            time.sleep(seconds)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(wire, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
        yield clock
