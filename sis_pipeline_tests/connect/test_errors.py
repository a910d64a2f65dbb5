"""Which answer is which error, and how long Retry-After really asks us to wait."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.connect.errors import (
    POLICIES,
    RETRY_AFTER_CAP,
    AuthExpiredError,
    Call,
    ConfigError,
    ErrorClass,
    RateLimitedError,
    SisError,
    TransientError,
    classify,
    retry_after,
)

CALL = Call("lincoln", "GET", "/ws/v1/school/{id}/student")


def test_every_class_has_a_policy() -> None:
    table = {name.value: (policy.severity.value, policy.retry, policy.breaker) for name, policy in POLICIES.items()}
    assert table == {
        "transient": ("low", True, True),
        "rate_limited": ("low", True, False),
        "auth_expired": ("low", True, False),
        "auth_revoked": ("high", False, False),
        "config": ("high", False, False),
        "contract": ("high", False, False),
        "data": ("medium", False, False),
        "internal": ("critical", False, False),
    }
    assert {kind.error_class for kind in SisError.__subclasses__()} == set(ErrorClass)


@pytest.mark.parametrize(
    ("status", "headers", "body", "expected"),
    [
        (408, {}, b"", TransientError),
        (500, {}, b"", TransientError),
        (502, {}, b"<html>", TransientError),
        (503, {}, b"", TransientError),
        (503, {"retry-after": "7"}, b"", RateLimitedError),
        (429, {}, b"", RateLimitedError),
        (403, {}, b'{"message":"Too Many Requests, wait 300 ms"}', RateLimitedError),
        (400, {}, b"rate limit exceeded", RateLimitedError),
        (401, {}, b"too many requests", AuthExpiredError),
        (403, {}, b"", ConfigError),
        (404, {}, b"", ConfigError),
        (400, {}, b"", ConfigError),
        (422, {}, b"", ConfigError),
        (302, {"location": "https://message.example.com/?server=x"}, b"", TransientError),
        (301, {"location": "https://new.example.org/"}, b"", ConfigError),
    ],
)
def test_answers_become_errors(status: int, headers: dict[str, str], body: bytes, expected: type[SisError]) -> None:
    error = classify(CALL, status, headers, body)
    assert type(error) is expected
    assert error.context["status"] == status
    assert "GET /ws/v1/school/{id}/student of integration 'lincoln'" in str(error)
    assert str(status) in error.message


def test_a_message_says_what_came_and_nothing_of_it() -> None:
    error = classify(CALL, 500, {"content-type": "text/html; charset=utf-8"}, b"<p>Zuzanna Kwiatkowska</p>" * 100)
    assert "text/html, 2,600 bytes" in error.message
    assert "Kwiatkowska" not in str(error)
    for strange in ("Kwiatkowska, Zuzanna", "text/Kwiatkowska", ""):
        assert "wiatkowska" not in str(classify(CALL, 500, {"content-type": strange}, b""))


def test_a_redirect_names_the_host_only() -> None:
    error = classify(CALL, 302, {"location": "https://message.example.com/?student=Kwiatkowska"})
    assert "host message.example.com" in error.message
    assert "Kwiatkowska" not in str(error)
    assert "another page" in classify(CALL, 302, {"location": "https://[broken"}).message


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("900", 900.0),
        ("1000000000", RETRY_AFTER_CAP),
        ("9" * 400, RETRY_AFTER_CAP),
        ("-5", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("", None),
        ("٣", None),
        ("Sun, 22 Nov 2026 10:01:30 GMT", 90.0),
        ("Sun, 22 Nov 2026 09:00:00 GMT", 0.0),
        ("Sun, 22 Nov 2036 09:00:00 GMT", RETRY_AFTER_CAP),
        ("Sun, 99 Nov 2026 09:00:00 GMT", None),
    ],
)
def test_retry_after_in_all_its_forms(value: str, seconds: float | None) -> None:
    answered_at = "Sun, 22 Nov 2026 10:00:00 GMT"
    assert retry_after({"retry-after": value, "date": answered_at}) == seconds


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_header_makes_us_wait_too_long_or_break(value: str, date: str) -> None:
    seconds = retry_after({"retry-after": value, "date": date})
    assert seconds is None or 0 <= seconds <= RETRY_AFTER_CAP


def test_errors_survive_the_way_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(RateLimitedError("slow down", retry_after=3.0, status=429)))
    assert (error.retry_after, error.context, error.message) == (3.0, {"status": 429}, "slow down")
