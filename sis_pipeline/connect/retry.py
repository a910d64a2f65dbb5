"""How long to wait before trying again, and how often: full jitter, few attempts, a budget, the source's own wish first.
Which error may be retried is the policy of its class, in errors; who waits and counts is the source's business."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import stamina
import structlog
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from sis_pipeline.connect.errors import ErrorClass, RateLimitedError, SisError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Backoff:
    """`attempts` in all; before attempt n+1 a random wait of up to `base` * 2^(n-1) seconds, at most `cap`.

    `waits_for_turn`: whether the turn of a token call is waited for however far off it is, as that of a data call is.
    """

    attempts: int = 5
    base: float = 1.0
    cap: float = 60.0
    waits_for_turn: bool = True

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


@dataclass(slots=True)
class Patience:
    """How long one request waits for a system that is left alone: `longest` seconds at a time, `left` in all."""

    longest: float
    left: float

    @classmethod
    def of(cls, backoff: Backoff) -> Self:
        """Twice the longest backoff: with the usual 60 s, the first two openings of a breaker are sat out."""
        return cls(backoff.cap, 2 * backoff.cap)

    def take(self, seconds: float) -> bool:
        """Whether to wait; takes that from what is left."""
        if seconds > min(self.longest, self.left):
            return False
        self.left -= seconds
        return True


BUDGET_SHARE = 0.1
BUDGET_FLOOR = 10


@dataclass(slots=True)
class RetryBudget:
    """The calls that one run may repeat because they failed: 10 % of those it makes, and 10 in any case.

    Without it, five attempts at everything would multiply the load on a system just when it fails. Repeats after a
    throttle or a refused token are free: the one is paced by the shared rate limit, the other is made once per call.
    """

    calls: int = 0
    retries: int = 0

    def take(self, error: SisError) -> bool:
        """Whether the call that failed with `error` may be repeated; takes that from the budget."""
        if error.error_class in {ErrorClass.RATE_LIMITED, ErrorClass.AUTH_EXPIRED}:
            return True
        if self.retries >= max(BUDGET_FLOOR, BUDGET_SHARE * self.calls):
            error.message += f" It was not tried again: this run has repeated {self.retries} of its {self.calls} calls."
            return False
        self.retries += 1
        return True


def attempts(
    backoff: Backoff, budget: RetryBudget, on_failure: Callable[[SisError, float], float]
) -> Iterator[stamina.Attempt]:
    """The attempts at one call, each a context manager; errors whose policy is not to retry come through at once.

    `on_failure` is told every retryable error and the seconds to wait, and returns the seconds to sleep here (a
    throttle waits in the shared rate limit instead). The last attempt's error comes through as it is, and one that
    the budget does not cover says so.
    """
    failed = 0
    budget.calls += 1

    def decide(error: Exception) -> bool | float:
        nonlocal failed
        failed += 1
        if not isinstance(error, SisError) or not error.policy.retry:
            return False
        wait = backoff.seconds(error, failed)
        sleep = on_failure(error, wait)
        if failed >= backoff.attempts or not budget.take(error):
            return False
        _tell(error, failed, wait)
        return sleep

    return iter(stamina.retry_context(on=decide, attempts=backoff.attempts, timeout=None))


def _tell(error: SisError, attempt: int, seconds: float) -> None:
    """One line for each repeat. A token that expired is nothing special."""
    whose = {name: error.context[name] for name in ("integration", "template") if name in error.context}
    tell = log.debug if error.error_class is ErrorClass.AUTH_EXPIRED else log.warning
    tell(
        "trying again",
        **whose,
        attempt=attempt,
        error_class=error.error_class.value,
        code=error.code,
        seconds=round(seconds, 2),
    )


def _tell_of_others(details: RetryDetails) -> None:
    """What else stamina repeats, as storing a token while the database is away. A database error's text holds values."""
    if not isinstance(details.caused_by, SisError):
        kind = type(details.caused_by).__name__
        log.warning("trying again", attempt=details.retry_num, error=kind, seconds=round(details.wait_for, 2))


# Instead of stamina's own lines: a warning for everything, with the error's text.
set_on_retry_hooks([_tell_of_others])
