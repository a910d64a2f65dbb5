"""Several pieces of work at once, each in a thread with a door of its own; what others see is done by one thread.
What the work is, and in which order its results are kept, is the caller's business."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from queue import Empty, Full, Queue, SimpleQueue
from typing import Generic, Protocol, TypeVar

from sis_pipeline.connect.contract import Answer, Request
from sis_pipeline.providers.base import Send

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)

PATIENCE = 5.0
"""Seconds for which calls under way are waited for once another has failed. A call can't be broken off; its thread ends
with it, and nobody takes its answer any more."""
GLANCE = 0.1
"""Seconds between two looks at whether it is all over."""


HandOver = Callable[[Callable[[], object]], None]
"""Leaves an action to the caller's thread, which does them in the order given."""


class Work(Protocol[R_co]):
    """One piece of work, with the door it may use."""

    def __call__(self, send: Send, hand_over: HandOver) -> R_co: ...


@dataclass(frozen=True, slots=True)
class _Ended:
    error: BaseException | None


class _StoppedError(Exception):
    """Something else failed: this work is not wanted any more."""


def together(doors: Sequence[Send], works: Sequence[Work[T]]) -> list[T]:
    """The results of all works, in their order. Each door serves one work at a time.

    Raises the first error, of a work or of an action handed over, as soon as the calls under way have ended, and no
    later than after PATIENCE; no further call is made then.
    """
    crew = _Crew[T](doors, works)
    crew.run()
    return [crew.results[number] for number in range(len(works))]


class _Crew(Generic[T]):
    def __init__(self, doors: Sequence[Send], works: Sequence[Work[T]]) -> None:
        self.results: dict[int, T] = {}
        self._stop = threading.Event()
        self._waiting: SimpleQueue[tuple[int, Work[T]]] = SimpleQueue()
        for numbered in enumerate(works):
            self._waiting.put(numbered)
        # Bounded, so that pages don't pile up in memory where keeping them is slower than reading them.
        self._inbox: Queue[Callable[[], object] | _Ended] = Queue(maxsize=len(doors))
        self._threads = [
            threading.Thread(target=copy_context().run, args=(self._serve, door), name=f"reading-{place}", daemon=True)
            for place, door in enumerate(doors[: len(works)], start=1)
        ]

    def run(self) -> None:
        for thread in self._threads:
            thread.start()
        try:
            running = len(self._threads)
            while running:
                item = self._inbox.get()
                if not isinstance(item, _Ended):
                    item()
                elif item.error is not None:
                    raise item.error
                else:
                    running -= 1
        finally:
            self._stop.set()
            self._dismiss()

    def _dismiss(self) -> None:
        until = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _serve(self, door: Send) -> None:
        def send(request: Request) -> Answer:
            self._go_on()
            return door(request)

        with suppress(_StoppedError):
            self._hand_over(_Ended(self._work_with(send)))

    def _work_with(self, send: Send) -> BaseException | None:
        """Do what is waiting, piece by piece; the error that ended it."""
        while True:
            self._go_on()
            try:
                number, work = self._waiting.get_nowait()
            except Empty:
                return None
            try:
                self.results[number] = work(send, self._hand_over)
            except _StoppedError:
                raise
            except BaseException as failed:  # noqa: BLE001 raised where the results are waited for
                return failed

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise _StoppedError

    def _hand_over(self, item: Callable[[], object] | _Ended) -> None:
        while True:
            self._go_on()
            with suppress(Full):
                self._inbox.put(item, timeout=GLANCE)
                return
