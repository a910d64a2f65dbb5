"""Time that passes by decree: what would be slept through moves the database's clock instead.
The product's own clock is `sis.clock()`; nothing else here is replaced."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, text


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
    """Whatever this thread sleeps through leaps while the context lasts; `before` is told the seconds of each leap first.

    All of it, not only the waits for a turn: a token call whose turn is too far off waits in the door's own retries.
    """
    mine, really = threading.get_ident(), time.sleep

    def sleep(seconds: float) -> None:
        if threading.get_ident() != mine or seconds <= 0.02:
            really(seconds)
            return
        before(seconds)
        clock.leap(seconds)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(time, "sleep", sleep)
        yield clock
