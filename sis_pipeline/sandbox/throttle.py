"""The vendors' rate limits, enforced and measured per system.
What a refused request is answered with is the dialect's business; token requests are counted, never limited."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

TOLERANCE_SECONDS = 0.5
"""How far a client's requests may drift together on their way (scheduling, connection set-up) before it counts as
too fast. A client that paces evenly at exactly the limit is never refused; one that is persistently faster is."""
WINDOW_SECONDS = 60.0


class Limit(Protocol):
    def admit(self, now: float) -> float:
        """0 to let a request through, else the seconds until one would be."""
        ...


@dataclass
class EvenPace:
    """A minimum interval between two requests, as PowerSchool sets it per plugin, kept on average."""

    interval: float
    due: float = 0.0

    def admit(self, now: float) -> float:
        if now < self.due - TOLERANCE_SECONDS:
            return self.due - now
        self.due = max(self.due, now) + self.interval
        return 0.0


@dataclass
class SlidingWindow:
    """So many requests in any sliding minute."""

    limit: float
    admitted: deque[float] = field(default_factory=deque)

    def admit(self, now: float) -> float:
        window = WINDOW_SECONDS - TOLERANCE_SECONDS
        while self.admitted and self.admitted[0] <= now - window:
            self.admitted.popleft()
        if len(self.admitted) >= self.limit:
            return self.admitted[0] + window - now
        self.admitted.append(now)
        return 0.0


class Meter:
    """Counts what reaches one system, and asks its limit."""

    def __init__(
        self, limit: Limit | None, requests_per_minute: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit = limit
        self.requests_per_minute = requests_per_minute
        self._clock = clock
        self._lock = Lock()
        self.reset()

    def reset(self) -> None:
        self._calls: Counter[str] = Counter()
        self._statuses: Counter[int] = Counter()
        self._arrivals: list[float] = []
        self._refused = 0
        self._tokens = 0
        self._token_calls = 0

    def arrive(self, template: str) -> float:
        """Note a data request; the seconds it should have waited, 0 if it may pass."""
        with self._lock:
            now = self._clock()
            self._calls[template] += 1
            self._arrivals.append(now)
            wait = self.limit.admit(now) if self.limit else 0.0
            self._refused += wait > 0
            return wait

    def answer(self, status: int) -> None:
        with self._lock:
            self._statuses[status] += 1

    def token_call(self, *, issued: bool) -> None:
        with self._lock:
            self._token_calls += 1
            self._tokens += issued

    def stats(self) -> dict[str, Any]:
        """Calls by path template, refusals, tokens, and the fullest sliding window of 60 s."""
        with self._lock:
            arrivals = self._arrivals
            return {
                "calls": dict(self._calls),
                "total_calls": len(arrivals),
                "statuses": {str(status): n for status, n in sorted(self._statuses.items())},
                "refused": self._refused,
                "token_calls": self._token_calls,
                "tokens_issued": self._tokens,
                "requests_per_minute": self.requests_per_minute,
                "worst_window": worst_window(arrivals),
                "seconds": arrivals[-1] - arrivals[0] if arrivals else 0.0,
                "first_call": arrivals[0] if arrivals else None,
                "last_call": arrivals[-1] if arrivals else None,
            }


def worst_window(arrivals: list[float], seconds: float = WINDOW_SECONDS) -> int:
    """The most requests that arrived within any half-open window of that many seconds."""
    return max((index - bisect_left(arrivals, at - seconds + 1e-9) + 1 for index, at in enumerate(arrivals)), default=0)
