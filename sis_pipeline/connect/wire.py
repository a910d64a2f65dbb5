"""Below the door: connections that go only to checked addresses, send only in turn, and read only until a deadline.
These are the few places where requests and urllib3 have to be told more than they let themselves be asked."""

from __future__ import annotations

import http.client
import io
import socket
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: to connect, to all addresses of a host together and TLS included; between two bytes; and for one whole
    answer once its request is sent. Looking the host's name up comes before, and takes what the system's resolver takes:
    no call to it can be given a deadline."""

    connect: float = 10.0
    read: float = 120.0
    total: float = 300.0


class Exchange:
    """One request under way: what its connection must ask and respect."""

    def __init__(
        self, turn: Callable[[], Iterator[float]], addresses: Callable[[str, int], list[str]], timeouts: Timeouts
    ) -> None:
        self.turn = turn
        self.addresses = addresses
        self.timeouts = timeouts
        self._began = time.monotonic()
        self._sent = False

    def begin(self) -> None:
        """The request goes out now: neither connecting nor waiting for our turn counts."""
        self._began = time.monotonic()
        self._sent = True

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def expired(self) -> bool:
        return self._sent and self.seconds >= self.timeouts.total

    def patience(self) -> float:
        """Seconds the next read may take. Raises TimeoutError where the answer as a whole is overdue."""
        left = self.timeouts.total - self.seconds
        if left <= 0:
            raise TimeoutError
        return min(left, self.timeouts.read)


EXCHANGE: ContextVar[Exchange] = ContextVar("exchange")


class _PatientReader(io.RawIOBase):
    """A socket's stream whose every read is bounded by the whole answer's deadline: a byte a second is no way out."""

    def __init__(self, stream: io.RawIOBase, sock: socket.socket, exchange: Exchange) -> None:
        self._stream = stream
        self._sock = sock
        self._exchange = exchange

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._exchange.patience())
        return cast("int | None", self._stream.readinto(buffer))

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        stream = self.fp.detach()
        self.fp = io.BufferedReader(_PatientReader(stream, sock, EXCHANGE.get()))


class _Careful(HTTPConnection):
    """A connection that goes only to checked addresses, and sends only when it is our turn."""

    response_class = _Response
    _answered = False

    def _new_conn(self) -> socket.socket:
        exchange = EXCHANGE.get()
        host, patience = self._dns_host, self.timeout
        addresses = exchange.addresses(self.host, self.port)
        until = time.monotonic() + exchange.timeouts.connect
        try:
            for place, address in enumerate(addresses):
                others = len(addresses) - place - 1
                self._dns_host, self.timeout = address, _left(until) / (1 + others)
                try:
                    connected = super()._new_conn()
                except HTTPError:
                    if not others:
                        raise
                else:
                    connected.settimeout(_left(until))  # for TLS
                    return connected
        finally:
            self._dns_host, self.timeout = host, patience
        raise socket.gaierror

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(self.timeout)
        self._answered = False

    def request(self, *args: Any, **kwargs: Any) -> None:
        exchange = EXCHANGE.get()
        self._stand()
        for wait in exchange.turn():
            time.sleep(wait)
            self._stand()
        exchange.begin()
        super().request(*args, **kwargs)

    def getresponse(self) -> Any:
        self._answered = True
        return super().getresponse()

    def _stand(self) -> None:
        """Connect, or connect anew where the server hung up while we waited."""
        if self.sock is None or (not self.is_connected and self._hung_up()):
            self.close()
            self.connect()

    def _hung_up(self) -> bool:
        """Whether something to read means the end. Not on a new connection: TLS 1.3 sends tickets unasked."""
        if self._answered:
            return True
        self.sock.settimeout(0)
        try:
            return not socket.socket.recv(self.sock, 1, socket.MSG_PEEK)  # below TLS, which can't peek
        except OSError:
            return True
        finally:
            self.sock.settimeout(self.timeout)


def _left(until: float) -> float:
    """Seconds; never 0, which a socket takes for "do not wait at all"."""
    return max(until - time.monotonic(), 0.001)


class _CarefulTls(_Careful, HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Careful


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _CarefulTls


class Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
