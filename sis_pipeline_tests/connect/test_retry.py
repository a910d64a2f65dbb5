"""How often and how long: laws of the waits, and attempts that end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.connect.errors import AuthExpiredError, ConfigError, RateLimitedError, SisError, TransientError
from sis_pipeline.connect.retry import Backoff, attempts

FAST = Backoff(base=0.0001, cap=0.001)


@given(st.integers(1, 200), st.floats(0.001, 10), st.floats(0, 100))
def test_full_jitter_stays_between_nothing_and_the_cap(attempt: int, base: float, cap: float) -> None:
    wait = Backoff(base=base, cap=cap).seconds(TransientError("x"), attempt)
    assert 0 <= wait <= min(cap, base * 2 ** (attempt - 1))


def test_waits_are_spread_over_the_whole_range() -> None:
    waits = [Backoff(base=1, cap=60).seconds(TransientError("x"), 5) for _ in range(500)]
    assert min(waits) < 2
    assert max(waits) > 14


@given(st.integers(1, 20), st.floats(0, 900))
def test_a_throttle_waits_at_least_what_was_asked_and_at_least_the_base(attempt: int, asked: float) -> None:
    wait = Backoff(base=1, cap=60).seconds(RateLimitedError("x", retry_after=asked), attempt)
    assert wait >= asked
    assert 1 <= wait <= 900


def test_a_refused_token_is_replaced_at_once() -> None:
    assert Backoff().seconds(AuthExpiredError("x"), 1) == 0


def _run(errors: list[Exception], backoff: Backoff = FAST) -> tuple[int, list[float]]:
    tries, waits = 0, []

    def told(_error: SisError, seconds: float) -> float:
        waits.append(seconds)
        return seconds

    for attempt in attempts(backoff, told):
        with attempt:
            tries += 1
            assert attempt.num == tries
            if tries <= len(errors):
                raise errors[tries - 1]
    return tries, waits


def test_it_goes_on_until_it_works() -> None:
    tries, waits = _run([TransientError("x")] * 4)
    assert tries == 5
    assert len(waits) == 4


def test_the_fifth_failure_is_the_last() -> None:
    with pytest.raises(TransientError, match="number 5"):
        _run([TransientError(f"number {n}") for n in range(1, 9)])


@pytest.mark.parametrize("error", [ConfigError("x"), ZeroDivisionError()])
def test_what_is_not_worth_it_comes_through_at_once(error: Exception) -> None:
    with pytest.raises(type(error)):
        _run([error, TransientError("never raised")])
