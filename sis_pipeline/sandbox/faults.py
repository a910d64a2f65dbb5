"""Faults on demand: what a test asks the sandbox to do wrong, for which requests, and how often it really happened.
Faults of the answer are applied here; an expired token and the pages of a collection go through the dialect."""

from __future__ import annotations

import gzip
import json
import re
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import Any, TypeVar

from werkzeug.wrappers import Response

Row = TypeVar("Row")

INSTEAD = frozenset({"status", "html", "redirect", "reset", "token_answer"})
"""Faults that answer instead of the system."""
PAGING = frozenset({"empty_page", "repeated_page", "shifted_page", "duplicate_ids", "wrong_count"})
"""Faults of what a collection delivers."""
AFTER = frozenset(
    {
        "truncate",
        "chunked_cut",
        "half_body",
        "drip",
        "gzip_bomb",
        "content_type",
        "missing_key",
        "set_key",
        "empty_body",
    }
    | {"slow", "lost_answer"}
)
"""Faults of how an answer is delivered."""
KINDS = INSTEAD | PAGING | AFTER | {"expired_token"}

_HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body><form>Please sign in</form></body></html>"


@dataclass
class Fault:
    """One asked-for fault.

    `path` is searched as a regular expression in the path and query of each request to `system` (any, if None).
    The fault happens to the `nth` request that fits, and to the following ones until it happened `times` times
    (None: for ever). Paging faults count only requests that read a page. `with_` holds the kind's own settings:

    status: status, headers, body, content_type · html: body · redirect: status (302), location ·
    token_answer: answer (`empty`, `html`, `no_error`, `no_token`) · shifted_page: change (`insert`, `delete`) ·
    wrong_count: by · drip: seconds (between bytes), bytes (before the rest follows at once) · gzip_bomb: megabytes ·
    content_type: content_type · missing_key: key (the first list or object, if left out) · set_key: key, value ·
    slow: seconds before the answer · lost_answer: what was asked for is done, but the connection breaks instead of the
    answer
    """

    kind: str
    system: str | None = None
    path: str = ""
    nth: int = 1
    times: int | None = 1
    with_: Mapping[str, Any] = field(default_factory=dict)
    seen: int = 0
    fired: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is no fault of the sandbox; choose from {', '.join(sorted(KINDS))}")
        re.compile(self.path)

    def fits(self, system: str, path: str) -> bool:
        return self.system in {None, system} and re.search(self.path, path) is not None


class Faults:
    """The faults asked for, across all systems of a sandbox."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._faults: list[Fault] = []

    def add(
        self, kind: str, *, system: str | None = None, path: str = "", nth: int = 1, times: int | None = 1, **with_: Any
    ) -> Fault:
        """Ask for a fault; the returned object's `fired` counts how often it happened. Raises ValueError for an unknown
        kind or a broken expression."""
        fault = Fault(kind, system, path, nth, times, with_)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def listed(self) -> list[dict[str, Any]]:
        with self._lock:
            return [asdict(fault) for fault in self._faults]

    def due(self, system: str, path: str, kinds: frozenset[str]) -> list[Fault]:
        """The faults of some kinds that this request is to suffer, counting it as seen."""
        with self._lock:
            return [
                fault for fault in self._faults if fault.kind in kinds and fault.fits(system, path) and _turn(fault)
            ]

    def moved(self, system: str, path: str) -> int:
        """By how many rows faults that have happened changed a collection, for its later counts."""
        with self._lock:
            return sum(
                -1 if fault.with_.get("change") == "delete" else 1
                for fault in self._faults
                if fault.kind == "shifted_page" and fault.fired and fault.fits(system, path)
            )


def _turn(fault: Fault) -> bool:
    fault.seen += 1
    return fault.seen >= fault.nth and (fault.times is None or fault.fired < fault.times)


# --- instead of an answer ----------------------------------------------------------------------------------------


def answer_instead(fault: Fault) -> Response | None:
    """The answer that a fault gives in the system's place; None for those that are none (a reset)."""
    settings = fault.with_
    if fault.kind == "status":
        return Response(
            settings.get("body", ""), settings.get("status", 503), settings.get("headers", {}),
            content_type=settings.get("content_type", "application/json"),
        )  # fmt: skip
    if fault.kind == "html":
        return Response(settings.get("body", _HTML), 200, content_type="text/html; charset=utf-8")
    if fault.kind == "redirect":
        location = settings.get("location", "https://message.example/?server=down")
        return Response("", settings.get("status", 302), {"Location": location}, content_type="text/html")
    if fault.kind == "token_answer":
        return _token_answer(settings.get("answer", "empty"))
    return None


def _token_answer(answer: str) -> Response:
    if answer == "html":
        return Response(_HTML, 200, content_type="text/html; charset=utf-8")
    status, body = {
        "empty": (200, {}),
        "no_token": (200, {"token_type": "Bearer", "expires_in": 3600}),
        "no_error": (401, {"message": "Unauthorized"}),
    }[answer]
    return Response(json.dumps(body), status, content_type="application/json")


# --- pages -------------------------------------------------------------------------------------------------------


def page_with(fault: Fault, rows: Sequence[Row], offset: int, limit: int) -> Sequence[Row] | None:
    """The page as the fault makes it, or None where it changes nothing (the first page has none before it)."""
    if fault.kind == "empty_page":
        return []
    if offset <= 0:
        return None
    if fault.kind == "repeated_page":
        start = max(0, offset - limit)
        return rows[start : start + limit]
    if fault.kind == "shifted_page":
        start = offset + (1 if fault.with_.get("change") == "delete" else -1)
        return rows[start : start + limit]
    if fault.kind == "duplicate_ids":
        return [*rows[offset : offset + limit], rows[0]]
    return None


# --- delivery ----------------------------------------------------------------------------------------------------


def rewritten(fault: Fault, response: Response) -> Response | None:
    """The answer as a fault of its content makes it, still delivered whole; None for faults of the delivery."""
    if fault.kind == "content_type":
        response.content_type = fault.with_.get("content_type", "text/json")
    elif fault.kind == "missing_key":
        response.set_data(_without_key(response.get_data(), fault.with_.get("key")))
    elif fault.kind == "set_key":
        content = json.loads(response.get_data())
        response.set_data(json.dumps({**content, fault.with_["key"]: fault.with_.get("value")}))
    elif fault.kind == "slow":
        time.sleep(fault.with_.get("seconds", 1.0))
    elif fault.kind == "empty_body":
        response.set_data(b"")
    elif fault.kind == "gzip_bomb":
        response.set_data(_bomb(fault.with_.get("megabytes", 200)))
        response.headers["Content-Encoding"] = "gzip"
    else:
        return None
    return response


def _without_key(body: bytes, key: str | None) -> bytes:
    content = json.loads(body)
    if not isinstance(content, dict):
        return b"{}"
    chosen = key or next((name for name, value in content.items() if isinstance(value, list | dict)), None)
    return json.dumps({name: value for name, value in content.items() if name != chosen}).encode()


def _bomb(megabytes: int) -> bytes:
    """Blanks: legal JSON white space, a thousandth of its size when packed."""
    packer = gzip.compress(b" " * 1_000_000)
    return packer * megabytes


def deliver_badly(fault: Fault, response: Response, connection: socket.socket) -> None:
    """Write the answer to the raw connection the way the fault wants it, and leave the connection broken."""
    body = response.get_data()
    headers = [(name, value) for name, value in response.headers if name.lower() != "content-length"]
    half = body[: max(1, len(body) // 2)]
    lines = [f"HTTP/1.1 {response.status}", *(f"{name}: {value}" for name, value in headers), "Connection: close"]
    if fault.kind == "truncate":
        lines.append(f"Content-Length: {len(body)}")
        _send(connection, lines, half)
    elif fault.kind == "chunked_cut":
        lines.append("Transfer-Encoding: chunked")
        _send(connection, lines, f"{len(half):x}\r\n".encode() + half + b"\r\n")
    elif fault.kind == "half_body":
        _send(connection, lines, half)
    elif fault.kind == "drip":
        lines.append(f"Content-Length: {len(body)}")
        _send(connection, lines, b"")
        _drip(connection, body, fault.with_.get("seconds", 1.0), fault.with_.get("bytes"))
    elif fault.kind == "lost_answer":
        reset(connection)


def _send(connection: socket.socket, lines: list[str], body: bytes) -> None:
    connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)


def _drip(connection: socket.socket, body: bytes, seconds: float, count: int | None) -> None:
    slow = len(body) if count is None else min(count, len(body))
    for position in range(slow):
        connection.sendall(body[position : position + 1])
        time.sleep(seconds)
    connection.sendall(body[slow:])


def reset(connection: socket.socket) -> None:
    """Close with RST: lingering for no time drops what was sent and tells the peer rudely."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.close(connection.detach())
