"""Canary secrets and canary student values through every fault: none in an error, a log line or a table."""

from __future__ import annotations

import io
import json
import logging
import traceback
from collections.abc import Callable, Iterator

import pytest
import structlog
from sqlalchemy import Engine, text

from sis_pipeline.connect import log
from sis_pipeline.connect.contract import OAuth, Request
from sis_pipeline.connect.errors import SisError
from sis_pipeline.connect.vault import Keys, Vault
from sis_pipeline_tests.connect.servers import RawServer, http_answer, raw_server, writes
from sis_pipeline_tests.connect.workers import KEY, Options, a_source

CLIENT_SECRET = "canary-client-secret-7f3a"
ACCESS_TOKEN = "canary.access.token.91bd"
STUDENT = "Canarina Vogelsang-Öztürk"
SSID = "9990001112223"
EVERY_CANARY = ("canary", "Canarina", "Vogelsang", SSID, "parameter-of-canary", KEY[:12])
RECORD = json.dumps({"student": STUDENT, "ssid": SSID, "echo": CLIENT_SECRET, "error": STUDENT}).encode()

REQUEST = Request(f"/students/{SSID}", {"q": "parameter-of-canary"}, template="/students/{id}")

ANSWERS: dict[str, bytes] = {
    "good": http_answer(RECORD),
    "html": http_answer(b"<html>" + RECORD, Content_Type="text/html"),
    "empty": http_answer(b""),
    "text": http_answer(RECORD, Content_Type=f"text/{SSID};name={SSID}"),
    "header": http_answer(RECORD, "418 " + SSID, X_Student=SSID),
    "redirect": http_answer(RECORD, "302 Found", Location=f"https://sis.example.org/login?student={SSID}"),
    "moved": http_answer(RECORD, "301 Moved", Location=f"https://user:{ACCESS_TOKEN}@sis.example.org/{SSID}"),
    **{str(code): http_answer(RECORD, f"{code} X") for code in (400, 401, 403, 404, 409, 422, 500, 503)},
    "throttle": http_answer(b"too many requests " + RECORD, "403 X"),
    "429": http_answer(RECORD, "429 X", Retry_After=SSID[:1]),
    "truncated": http_answer(RECORD)[:-5],
    "unframed": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + RECORD[:-5],
    "no http": RECORD,
    "bad header": b"HTTP/1.1 200 OK\r\n" + STUDENT.encode() + b"\r\n\r\n" + RECORD,
    "bad length": http_answer(RECORD, Content_Length=SSID + "x"),
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + RECORD,
    "bad gzip": http_answer(RECORD, Content_Encoding="gzip"),
    "silence": b"",
}


HARMLESS = {"good", "bad header", "bad length"}
"""The last two have no usable length, but a whole JSON document came."""


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    """Everything that is logged, at DEBUG, by anyone."""
    root = logging.getLogger()
    handlers, levels = list(root.handlers), (root.level, logging.getLogger("sis_pipeline").level)
    stream = io.StringIO()
    log.configure("json", level=logging.DEBUG, stream=stream)
    root.setLevel(logging.DEBUG)
    yield stream
    root.handlers = handlers
    root.setLevel(levels[0])
    logging.getLogger("sis_pipeline").setLevel(levels[1])
    structlog.reset_defaults()


def told(error: BaseException) -> str:
    """All that an error says of itself, and of what it was raised from."""
    parts = [str(error), repr(error), *traceback.format_exception(error, chain=True)]
    if isinstance(error, SisError):
        parts += [repr(error.context), repr(error.args), error.advice]
    return "".join(parts)


def failure(action: Callable[[], object]) -> BaseException | None:
    try:
        action()
    except Exception as error:  # noqa: BLE001  whatever it is, it must say nothing
        return error
    return None


def clean(written: str) -> None:
    assert [canary for canary in EVERY_CANARY if canary in written] == []


def tables(database: Engine) -> str:
    with database.connect() as connection:
        return "".join(
            str(connection.scalar(text(f"select string_agg(t::text, '|') from sis.{name} t")))
            for name in ("oauth_tokens", "api_calls", "rate_limits", "encryption_keys")
        )


@pytest.mark.parametrize("name", ANSWERS)
def test_nothing_of_a_data_answer_gets_out(database: Engine, logs: io.StringIO, name: str) -> None:
    vault = Vault.open(database, Keys([KEY]))
    vault.put("lincoln", "client_secret", CLIENT_SECRET)
    token = http_answer(json.dumps({"access_token": ACCESS_TOKEN}).encode())
    with raw_server(writes(token)) as issuer, raw_server(writes(ANSWERS[name])) as server:
        error = _send(database, server, issuer.url)
    assert issuer.requests
    assert server.requests, "the fault was reached"
    assert (error is None) == (name in HARMLESS)
    assert error is None or isinstance(error, SisError)
    _check(error, logs, database, server)


@pytest.mark.parametrize("name", ANSWERS)
def test_nothing_of_a_token_answer_gets_out(database: Engine, logs: io.StringIO, name: str) -> None:
    Vault.open(database, Keys([KEY])).put("lincoln", "client_secret", CLIENT_SECRET)
    with raw_server(writes(http_answer(b"{}"))) as server, raw_server(writes(ANSWERS[name])) as issuer:
        error = _send(database, server, issuer.url)
    assert issuer.requests, "the fault was reached"
    assert isinstance(error, SisError)
    assert server.requests == []
    _check(error, logs, database, issuer)


def _send(database: Engine, server: RawServer, issuer: str) -> BaseException | None:
    options = Options(server.url, read_timeout=0.2, total_timeout=0.4)
    with a_source(database, server.url, options=options, oauth=OAuth(f"{issuer}/token", "client-1")) as source:
        source._rate.push_back = lambda *_: None  # type: ignore[method-assign]  what a pause says is not the point
        return failure(lambda: source.send(REQUEST))


def _check(error: BaseException | None, logs: io.StringIO, database: Engine, server: RawServer) -> None:
    if error is not None:
        clean(told(error))
        logging.getLogger("elsewhere").error("failed", exc_info=error)
    logging.getLogger("elsewhere").debug("careless: %s %s", CLIENT_SECRET, {"Authorization": f"Bearer {ACCESS_TOKEN}"})
    clean(logs.getvalue())
    assert log.MASK in logs.getvalue(), "the careless line was written, masked"
    clean(tables(database))
    targets = [head.split(b"\r\n")[0] for head in server.requests]
    assert not any(CLIENT_SECRET.encode() in target or ACCESS_TOKEN.encode() in target for target in targets)
