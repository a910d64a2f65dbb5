"""Which answer is which error, and how long Retry-After really asks us to wait."""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
from functools import cache
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

import sis_pipeline
from sis_pipeline.connect import errors, log
from sis_pipeline.connect.codes import CATALOGUE
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
from sis_pipeline.store.status import next_status

CALL = Call("lincoln", "GET", "/ws/v1/school/{id}/student")


def test_every_class_has_a_policy() -> None:
    """Severity, retried, counts for the breaker, what the integration becomes at the first such failure."""
    table = {
        kind.value: (policy.severity.value, policy.retry, policy.breaker, next_status("healthy", 1, kind))
        for kind, policy in POLICIES.items()
    }
    assert table == {
        "transient": ("low", True, True, "degraded"),
        "rate_limited": ("low", True, False, "degraded"),
        "auth_expired": ("low", True, False, "degraded"),
        "auth_revoked": ("high", False, False, "needs_reauth"),
        "config": ("high", False, False, "failing"),
        "contract": ("high", False, False, "failing"),
        "data": ("medium", False, False, "failing"),
        "internal": ("critical", False, False, "failing"),
    }
    assert {kind.error_class for kind in SisError.__subclasses__()} == set(ErrorClass)


# --- codes -----------------------------------------------------------------------------------------------------------

A_CODE = re.compile(rf"({'|'.join(kind.value for kind in ErrorClass)})\.[a-z_]+")
CLASSES = {kind.__name__: kind.error_class for kind in SisError.__subclasses__()}


@cache
def nodes() -> list[tuple[str, ast.AST]]:
    """Every node of the package's syntax, with its file; the catalogue itself left out."""
    root = Path(sis_pipeline.__file__).parent
    return [
        (str(path.relative_to(root)), node)
        for path in root.rglob("*.py")
        if path.name != "codes.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant | ast.Call)
    ]


def test_every_code_that_is_raised_is_in_the_catalogue_and_the_other_way_round() -> None:
    raised = {
        node.value
        for _, node in nodes()
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and A_CODE.fullmatch(node.value)
    }
    assert raised - set(CATALOGUE) == set(), "raised, but not in the catalogue"
    assert set(CATALOGUE) - raised == set(), "in the catalogue, but never raised"


def test_every_raise_has_a_code_of_its_own_class() -> None:
    wrong = []
    for where, call in nodes():
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in CLASSES):
            continue
        given = [word.value for word in call.keywords if word.arg == "code"]
        literal = given[0].value if given and isinstance(given[0], ast.Constant) else None
        if not given or (literal is not None and not str(literal).startswith(f"{CLASSES[call.func.id]}.")):
            wrong.append(f"{where}:{call.lineno} {call.func.id} {literal or 'without a code'}")
    assert wrong == []


def test_the_catalogue_says_what_happened_in_a_sentence() -> None:
    for code, entry in CATALOGUE.items():
        assert A_CODE.fullmatch(code)
        for sentence in (entry.meaning, entry.advice or "Fine."):
            assert sentence[0].isupper() or sentence.startswith(("`", "manifest.csv"))
            assert sentence.endswith(".")


def test_an_error_carries_its_code_and_the_closest_advice() -> None:
    assert (ConfigError("x").code, ConfigError("x").advice) == ("config", POLICIES[ErrorClass.CONFIG].advice)
    known = ConfigError("x", code="config.redirect")
    assert (known.code, known.advice) == ("config.redirect", CATALOGUE["config.redirect"].advice)
    assert ConfigError("x", code="config.redirect", advice="Do this.").advice == "Do this."
    assert "code" not in known.context
    assert RateLimitedError("x", code="rate_limited.throttled", retry_after=2).code == "rate_limited.throttled"


def test_a_plugins_own_code_is_put_below_its_class() -> None:
    assert errors.ContractError("x", code="acme.odd").code == "contract.acme.odd"
    assert errors.ContractError("x", code="contract.acme").code == "contract.acme"


@pytest.mark.parametrize(
    ("status", "headers", "body", "expected", "code"),
    [
        (408, {}, b"", TransientError, "transient.server_error"),
        (500, {}, b"", TransientError, "transient.server_error"),
        (502, {}, b"<html>", TransientError, "transient.server_error"),
        (503, {}, b"", TransientError, "transient.server_error"),
        (503, {"retry-after": "7"}, b"", RateLimitedError, "rate_limited.throttled"),
        (429, {}, b"", RateLimitedError, "rate_limited.throttled"),
        (403, {}, b'{"message":"Too Many Requests, wait 300 ms"}', RateLimitedError, "rate_limited.throttled"),
        (400, {}, b"rate limit exceeded", RateLimitedError, "rate_limited.throttled"),
        (401, {}, b"too many requests", AuthExpiredError, "auth_expired.refused"),
        (403, {}, b"", ConfigError, "config.access_denied"),
        (404, {}, b"", ConfigError, "config.not_found"),
        (400, {}, b"", ConfigError, "config.refused"),
        (422, {}, b"", ConfigError, "config.refused"),
        (501, {}, b"", ConfigError, "config.refused"),
        (302, {"location": "https://message.example.com/?server=x"}, b"", TransientError, "transient.maintenance"),
        (301, {"location": "https://new.example.org/"}, b"", ConfigError, "config.redirect"),
    ],
)
def test_answers_become_errors(
    status: int, headers: dict[str, str], body: bytes, expected: type[SisError], code: str
) -> None:
    error = classify(CALL, status, headers, body)
    assert (type(error), error.code) == (expected, code)
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
        ("Fri, 31 Dec 9999 23:59:59 -1200", None),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
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


# --- where it happened -----------------------------------------------------------------------------------------------


def test_an_error_says_which_page_of_what_it_was_once() -> None:
    error = errors.ContractError("The students page is not JSON.", code="contract.not_json", entity_kind="x")
    error.at("students", 7)
    error.at("schools", 1)
    assert error.message == "The students page is not JSON. It was page 7 of students."
    assert error.context == {"entity_kind": "x", "entity": "students", "page": 7}


def _read_slowly() -> None:
    with log.about(integration="lincoln", run="r1"):
        with log.about(entity="students", page=3):
            structlog.get_logger("sis_pipeline.test").warning("page.slow", milliseconds=900)
        raise TransientError("no answer", code="transient.unreachable", run="inner", attempt=2)


def test_what_is_being_done_is_on_every_log_line_and_in_every_error() -> None:
    stream = io.StringIO()
    log.configure("json", stream=stream)
    try:
        with pytest.raises(TransientError) as raised:
            _read_slowly()
        structlog.get_logger("sis_pipeline.test").warning("done")
    finally:
        log.configure()
    within, after = map(json.loads, stream.getvalue().splitlines())
    assert {name: within[name] for name in ("integration", "run", "entity", "page")} == {
        "integration": "lincoln",
        "run": "r1",
        "entity": "students",
        "page": 3,
    }
    assert "integration" not in after
    assert raised.value.context == {"integration": "lincoln", "run": "inner", "attempt": 2}
