"""Receives the one redirect of an authorization on loopback, at one path, and shows the person a plain page.
What the answer means, and whether it can be trusted, is judged by connect.authorize; only its state is looked at here."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl

from sis_pipeline.cli.output import ExitCode, RefusalError

LOOPBACK = "127.0.0.1"
PATH = "/callback"
SLOWEST = 10.0
"""Seconds a browser has to send its request once connected: some connect in advance and never send one."""

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>sis</title></head>
<body><p>{}</p></body></html>
"""
TAKEN = "sis has the answer. You can close this page and go back to the terminal."
STRANGE = "This is not the answer that sis is waiting for. Use the address that sis has shown."


def redirect_uri(port: int) -> str:
    """What has to be registered with the authorization server (RFC 8252 7.3)."""
    return f"http://{LOOPBACK}:{port}{PATH}"


class Redirect:
    """A listener for one answer: `with Redirect(port) as redirect: … redirect.wait(is_answer, seconds)`.

    Raises RefusalError where the port is taken; 0 takes a free one.
    """

    def __init__(self, port: int) -> None:
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._is_answer: Callable[[Mapping[str, str]], bool] | None = None
        self._lock = threading.Lock()
        try:
            self._server = _Server((LOOPBACK, port), _handler(self._take))
        except OSError:
            raise RefusalError(
                f"{LOOPBACK}:{port} can't be listened on; something else may.",
                "Choose another with --port, and register its redirect address with the server, too; or use --paste.",
            ) from None
        self._thread: threading.Thread | None = None

    @property
    def uri(self) -> str:
        return redirect_uri(self._server.server_address[1])

    def listen(self, is_answer: Callable[[Mapping[str, str]], bool]) -> None:
        """Begin to listen: the first request whose parameters `is_answer` accepts is taken, all others are refused, as
        any page that is open on this machine can send some."""
        self._is_answer = is_answer
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> str:
        """The query of the answer. Raises RefusalError where none came in time."""
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            raise RefusalError(
                f"Nobody came back from the authorization page within {seconds / 60:g} minutes.",
                "Run the command again. If the browser is on another machine, use --paste.",
                ExitCode.FAILED,
                "auth_revoked",
            ) from None

    def _take(self, query: str) -> bool:
        """Whether a request was the answer; there is one."""
        with self._lock:
            if self._is_answer is None or not self._is_answer(dict(parse_qsl(query, keep_blank_values=True))):
                return False
            self._is_answer = None
            self._answers.put(query)
            return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._server.shutdown()  # would wait for ever where nothing was served
        self._server.server_close()


class _Server(ThreadingMixIn, TCPServer):
    """http.server's own would look the name of the address up, which takes half a minute where DNS is broken."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 16


def _handler(take: Callable[[str], bool]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = SLOWEST
        server_version = "sis"
        sys_version = ""

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if path != PATH:
                self._say(404, "Not found")
            elif take(query):
                self._say(200, TAKEN)
            else:
                self._say(400, STRANGE)

        def _say(self, status: int, words: str) -> None:
            page = PAGE.format(words).encode()
            self.send_response(status)
            for name, value in {
                "Content-Type": "text/html; charset=utf-8",
                "Content-Length": str(len(page)),
                "Cache-Control": "no-store",
                "Content-Security-Policy": "default-src 'none'",
                "Referrer-Policy": "no-referrer",
                "Connection": "close",
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_args: Any) -> None:
            """Say nothing: the request line holds the code."""

    return Handler
