"""How long to wait before trying again, and how often to try: full jitter, few attempts, the source's own wish first.
Which error may be retried is the policy of its class, in errors; who waits and counts is the source's business."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import stamina

from sis_pipeline.connect.errors import ErrorClass, RateLimitedError, SisError


@dataclass(frozen=True, slots=True)
class Backoff:
    """`attempts` in all; before attempt n+1 a random wait of up to `base` * 2^(n-1) seconds, at most `cap`."""

    attempts: int = 5
    base: float = 1.0
    cap: float = 60.0

    def seconds(self, error: SisError, attempt: int) -> float:
        """Seconds to wait after the failed `attempt` (1 for the first).

        Full jitter, so that processes that failed together do not return together. A refused token is replaced at
        once; a throttle waits at least `base` and at least what the source asked for.
        """
        if error.error_class is ErrorClass.AUTH_EXPIRED:
            return 0.0
        longest = min(self.cap, self.base * 2 ** (attempt - 1))
        if not isinstance(error, RateLimitedError):
            return random.uniform(0, longest)  # noqa: S311  spreads load, guards nothing
        asked = error.retry_after or 0.0
        return max(asked, random.uniform(self.base, longest))  # noqa: S311


def attempts(backoff: Backoff, on_failure: Callable[[SisError, float], float]) -> Iterator[stamina.Attempt]:
    """The attempts at one call, each a context manager; errors whose class is not retried come through at once.

    `on_failure` is told every retryable error and the seconds to wait, and returns the seconds to sleep here (a
    throttle waits in the shared rate limit instead). The last attempt's error comes through as it is.
    """
    failed = 0

    def decide(error: Exception) -> bool | float:
        nonlocal failed
        failed += 1
        if not isinstance(error, SisError) or not error.policy.retry:
            return False
        seconds = on_failure(error, backoff.seconds(error, failed))
        return seconds if failed < backoff.attempts else False

    return iter(stamina.retry_context(on=decide, attempts=backoff.attempts, timeout=None))
