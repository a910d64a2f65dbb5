"""How often and how long: laws of the waits, and attempts that end."""

from __future__ import annotations

import logging

import pytest
import stamina
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from sis_pipeline.connect.breaker import SourceLeftAloneError
from sis_pipeline.connect.errors import AuthExpiredError, ConfigError, RateLimitedError, SisError, TransientError
from sis_pipeline.connect.retry import Backoff, Patience, RetryBudget, attempts

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


def _run(
    errors: list[Exception], backoff: Backoff = FAST, budget: RetryBudget | None = None
) -> tuple[int, list[float]]:
    tries, waits = 0, []

    def told(_error: SisError, seconds: float) -> float:
        waits.append(seconds)
        return seconds

    for attempt in attempts(backoff, budget or RetryBudget(), told):
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


def test_a_repeat_is_one_line_that_says_what_and_why(caplog: pytest.LogCaptureFixture) -> None:
    where = {"integration": "lincoln", "template": "/users", "status": 503}
    failed = TransientError("Rosalind", code="transient.server_error", **where)
    throttled = RateLimitedError("Rosalind", retry_after=7.0, **where)
    with capture_logs() as lines, caplog.at_level(logging.DEBUG):
        _run([failed, AuthExpiredError("Rosalind", **where), throttled])
    same = {"event": "trying again", "integration": "lincoln", "template": "/users"}
    assert [{**line, "seconds": 0} for line in lines] == [
        same | {"log_level": level, "attempt": attempt, "error_class": kind, "code": code, "seconds": 0}
        for attempt, (level, kind, code) in enumerate(
            [
                ("warning", "transient", "transient.server_error"),
                ("debug", "auth_expired", "auth_expired"),
                ("warning", "rate_limited", "rate_limited"),
            ],
            1,
        )
    ]
    assert lines[2]["seconds"] >= 7.0, "what was asked for, wherever it is waited"
    assert caplog.records == []


@pytest.mark.parametrize("error", [TransientError("x"), ConfigError("x")])
def test_what_is_not_repeated_is_not_said_to_be(error: SisError) -> None:
    with capture_logs() as lines, pytest.raises(type(error)):
        _run([error] * 2, backoff=Backoff(attempts=1))
    assert lines == []


def test_other_repeats_are_told_without_the_text_of_the_error() -> None:
    with capture_logs() as lines:
        for attempt in stamina.retry_context(on=ValueError, attempts=2, wait_initial=0, wait_jitter=0):
            with attempt:
                if attempt.num == 1:
                    raise ValueError("Rosalind")
    assert lines == [
        {"event": "trying again", "log_level": "warning", "attempt": 1, "error": "ValueError", "seconds": 0.0}
    ]


@pytest.mark.parametrize("error", [ConfigError("x"), ZeroDivisionError()])
def test_what_is_not_worth_it_comes_through_at_once(error: Exception) -> None:
    with pytest.raises(type(error)):
        _run([error, TransientError("never raised")])


def test_a_run_repeats_ten_calls_and_a_tenth_of_those_it_made() -> None:
    budget = RetryBudget()
    repeated = 0
    for _ in range(200):
        tries, _ = _run([TransientError("x")], budget=budget) if budget.retries < 10 else (1, [])
        repeated += tries - 1
    assert repeated == 10
    with pytest.raises(TransientError, match="It was not tried again: this run has repeated 10 of its 11 calls"):
        _run([TransientError("x")], budget=budget)
    for _ in range(189):
        _run([], budget=budget)
    for _ in range(10):
        assert _run([TransientError("x")], budget=budget)[0] == 2, "210 calls allow 21"


@given(st.lists(st.booleans(), max_size=400))
def test_however_much_fails_the_load_grows_by_a_tenth(failing: list[bool]) -> None:
    budget = RetryBudget()
    made = 0
    for fails in failing:
        budget.calls += 1
        made += 1
        while fails and budget.take(TransientError("x")):
            made += 1
    assert made <= max(len(failing) + 11, 1.1 * len(failing) + 1)


@pytest.mark.parametrize("kind", [RateLimitedError, AuthExpiredError])
def test_throttles_and_refused_tokens_are_not_in_the_budget(kind: type[SisError]) -> None:
    budget = RetryBudget()
    for _ in range(50):
        assert _run([kind("x")], budget=budget)[0] == 2
    assert budget.retries == 0


def test_what_was_waited_for_already_is_not_tried_again() -> None:
    with pytest.raises(SourceLeftAloneError):
        _run([SourceLeftAloneError("x", breaker="a", retry_after=30.0)])


def test_patience_ends() -> None:
    patience = Patience.of(Backoff(cap=60))
    assert patience.take(30)
    assert not patience.take(61)
    assert patience.take(58)
    assert patience.take(30)
    assert not patience.take(30)
