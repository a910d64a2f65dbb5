"""Servers on loopback that misbehave on the wire: scripted bytes, and a small SIS with tokens that counts what it sees."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

Script = Callable[[socket.socket], None]


class RawServer:
    """Answers every request with what a script writes on the socket, then hangs up. `requests` are the raw heads."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                part = connection.recv(65536)
                if not part:
                    return
                head += part
            self.requests.append(head)
            self.script(connection)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept, which would keep it listening
        self._listener.close()


@contextmanager
def raw_server(script: Script) -> Iterator[RawServer]:
    server = RawServer(script)
    try:
        yield server
    finally:
        server.close()


def writes(*parts: bytes) -> Script:
    def script(connection: socket.socket) -> None:
        for part in parts:
            connection.sendall(part)

    return script


def http_answer(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    """An answer after which the server hangs up, and says so: a client that kept the connection would race its end."""
    fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


@dataclass
class Sis:
    """A SIS with a token endpoint, HTTP/1.1 with kept connections. Its fields are its rules and its memory."""

    lifetime: float = 3600.0
    calls_per_token: int | None = None
    """After so many good answers a token is turned down, although it has not expired."""
    down_for: float = 0.0
    """So many seconds from its first call on, /open fails with 503."""
    delay: float = 0.0
    """Seconds a token call takes: long enough for others to try the same."""
    tokens: list[str] = field(default_factory=list)
    issued: list[float] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    refusals: int = 0
    answered: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def token(self) -> dict[str, object]:
        time.sleep(self.delay)
        with self.lock:
            self.issued.append(time.monotonic())
            self.tokens.append(f"token-number-{len(self.tokens) + 1}")
            self.answered = 0
            return {"access_token": self.tokens[-1], "token_type": "Bearer", "expires_in": self.lifetime}

    def data(self, bearer: str) -> bool:
        with self.lock:
            self.arrivals.append(time.monotonic())
            spent = self.calls_per_token is not None and self.answered >= self.calls_per_token
            good = bool(self.tokens) and bearer == self.tokens[-1] and not spent
            good = good and time.monotonic() < self.issued[-1] + self.lifetime
            self.answered += good
            self.refusals += not good
            return good


@contextmanager
def serve(sis: Sis) -> Iterator[Sis]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            good = form.get("grant_type") == ["client_credentials"] and "Authorization" in self.headers
            self._send(200 if good else 401, sis.token() if good else {"error": "invalid_client"})

        def do_GET(self) -> None:
            if urlsplit(self.path).path == "/open":
                with sis.lock:
                    sis.arrivals.append(time.monotonic())
                    down = sis.arrivals[-1] < sis.arrivals[0] + sis.down_for
                self._send(503 if down else 200, {"rows": []})
                return
            bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
            good = sis.data(bearer)
            self._send(200 if good else 401, {"rows": []} if good else {"message": "expired"})

        def _send(self, status: int, body: dict[str, object]) -> None:
            payload = json.dumps(body).encode()
            head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
            self.wfile.write(head.encode() + payload)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    sis.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield sis
    finally:
        server.shutdown()
        server.server_close()
