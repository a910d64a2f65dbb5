"""A token endpoint that answers anything but a token: what is stored stays as it is, and works once the server is well."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import Engine

from sis_pipeline.connect.contract import Request
from sis_pipeline.connect.errors import SisError
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline_tests.connect.servers import RawServer, http_answer, raw_server, writes
from sis_pipeline_tests.connect.workers import tokens_of
from sis_pipeline_tests.faults.consents import ORGS, OWN, Connected, calm, connector, systems
from sis_pipeline_tests.faults.rows import Count, Recorder, Row

ROW = Row(
    8,
    "the token endpoint answers 401, 429 or 5xx without an error code, 200 with {}, HTML, a list or half a token, breaks "
    "off, redirects to another host, leaves the refresh token out, or gives a nonsensical lifetime",
    "what is stored stays byte-identical unless the answer is a token; the other host gets no request; the next call works",
    40,
    "answers",
)

TOKEN = "/token"
GOOD = {"access_token": "a-new-one", "token_type": "Bearer", "expires_in": 3600}


@dataclass(frozen=True)
class Wrong:
    """A fault of the token endpoint, as the sandbox is asked for it."""

    name: str
    kind: str = "status"
    settings: dict[str, Any] = field(default_factory=dict)


def said(status: int, body: object, *, name: str = "", content_type: str = "application/json") -> Wrong:
    text = body if isinstance(body, str) else json.dumps(body)
    answer = {"status": status, "body": text, "content_type": content_type}
    return Wrong(name or f"{status} {content_type} {text[:90]}", "status", answer)


def but(**changed: object) -> dict[str, object]:
    return {**GOOD, **changed}


BAD = (
    *(said(status, {"message": "no"}) for status in (400, 401, 403, 404, 429, 500, 502, 503, 504)),
    *(said(status, "<html>no</html>", content_type="text/html") for status in (401, 429, 503)),
    said(400, {"error": 17}), said(400, {"error": ["invalid_grant"]}), said(400, ""), said(204, ""),
    said(200, {}), said(200, []), said(200, "null"), said(200, ""), said(200, '"token"'), said(200, '{"access_token": "a'),
    said(200, "[" * 5_000, name="200 deeply nested"), said(200, {"error": "temporarily_unavailable", **GOOD}),
    *(said(200, but(access_token=value)) for value in ("", None, 17, ["a"], "two words", "a\r\nX: y", "\u00fcml\u00e4ut")),
    *(said(200, but(token_type=value)) for value in ("mac", "DPoP", 17)),
    *(said(200, but(refresh_token=value), name=f"200 refresh token {value!r}") for value in (17, ["r"], {"r": 1}, "r\n")),
    Wrong("HTML", "html"), Wrong("reset", "reset"), Wrong("lost answer", "lost_answer"), Wrong("half", "half_body"),
    Wrong("truncated", "truncate"), Wrong("chunked and cut", "chunked_cut"), Wrong("no body", "empty_body"),
    Wrong("a bomb", "gzip_bomb", {"megabytes": 200}), Wrong("no access token", "missing_key", {"key": "access_token"}),
    *(Wrong(f"redirect {status}", "redirect", {"status": status}) for status in (301, 302, 303, 307, 308)),
)  # fmt: skip
"""None of them is a token (RFC 6749 5.1), whatever its status says."""

LIFETIMES: tuple[object, ...] = ("soon", "", -5, 0, None, [], {}, True, 1e12, "3600s", "1e3", 10**400)
FINE = (
    Wrong("no new refresh token", "missing_key", {"key": "refresh_token"}),
    Wrong("no lifetime", "missing_key", {"key": "expires_in"}),
    Wrong("no token type", "missing_key", {"key": "token_type"}),
    *(
        Wrong(f"expires_in {str(value)[:20]!r}", "set_key", {"key": "expires_in", "value": value})
        for value in LIFETIMES
    ),
    Wrong("empty refresh token", "set_key", {"key": "refresh_token", "value": ""}),
    Wrong("null refresh token", "set_key", {"key": "refresh_token", "value": None}),
    Wrong("BEARER", "set_key", {"key": "token_type", "value": "BEARER"}),
)
"""Answers with a token in them, told badly."""


@pytest.fixture(scope="module")
def server() -> Iterator[SandboxServer]:
    with systems() as running:
        yield running


@pytest.fixture
def elsewhere() -> Iterator[RawServer]:
    with raw_server(writes(http_answer(json.dumps(GOOD).encode()))) as other:
        yield other


@pytest.mark.parametrize("system", ["grace", OWN])
def test_answers_that_are_no_token(  # noqa: PLR0917  fixtures
    database: Engine, server: SandboxServer, elsewhere: RawServer, row: Recorder, count: Count, system: str
) -> None:
    it = connector(server, database)(system)
    for wrong in BAD[:: count(full=1, part=7)]:
        calm(database)
        before, calls = _stored(it), it.counted("token_calls")
        settings = wrong.settings | ({"location": f"{elsewhere.url}/token"} if wrong.kind == "redirect" else {})
        fault = server.faults.add(wrong.kind, system=system, path=TOKEN, times=None, **settings)
        with it.source() as source:
            held = tokens_of(source).bearer().value
            with pytest.raises(SisError) as refused:
                tokens_of(source).bearer(refused=held)
        server.faults.clear()
        assert fault.fired >= 1, wrong.name
        assert it.counted("token_calls") - calls <= 2, wrong.name
        assert _stored(it) == before, wrong.name
        assert "a-new-one" not in str(refused.value)
        calm(database)
        with it.source() as source:  # the stored one was not only kept: it still is good for the next call
            tokens_of(source).refresh_now()
            source.send(Request(ORGS))
        assert it.row("access", "status, failures") == ("active", 0), wrong.name
        row.happened()
        row.ran()
    assert elsewhere.requests == []


@pytest.mark.parametrize("system", ["none", "strict"])
def test_answers_that_are_a_token_told_badly(
    database: Engine, server: SandboxServer, row: Recorder, count: Count, system: str
) -> None:
    it = connector(server, database)(system)
    for fine in FINE[:: count(full=1, part=6)]:
        lost = system == "strict" and fine.settings.get("key") == "refresh_token"
        if lost:
            continue  # there the old one is over: the next call finds that out, which is row 10's matter
        refresh = it.row("refresh")
        fault = server.faults.add(fine.kind, system=system, path=TOKEN, **fine.settings)
        with it.source() as source:
            version = source.refresh_token()
            source.send(Request(ORGS))
            assert (source.token_version, source.token_calls) == (version, 1), fine.name
        assert fault.fired == 1, fine.name
        if system == "none":
            assert it.row("refresh") == refresh, "where none comes, the old one stays (RFC 6749 6)"
        row.happened()
        row.ran()
    assert it.counted("invalid_grant") == 0


def test_there_are_enough_of_them() -> None:
    assert len({wrong.name for wrong in (*BAD, *FINE)}) == len(BAD) + len(FINE) >= ROW.asked


def _stored(it: Connected) -> list[tuple[Any, ...] | None]:
    return [it.row(kind, "ciphertext, key_id, version, expires_at") for kind in ("access", "refresh")]
