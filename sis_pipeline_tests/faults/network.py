"""Watches every connection this process tries to make, and stops those that a test did not allow before they leave.
What may be connected to, and what follows, is the test's business."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Address = tuple[str, int]


@dataclass
class Watch:
    """`allowed`: where connections may go. `tried`: all others, none of which was made. `lookups`: names asked for."""

    allowed: set[Address] = field(default_factory=set)
    tried: list[Address] = field(default_factory=list)
    made: list[Address] = field(default_factory=list)
    lookups: list[str] = field(default_factory=list)


_watching: list[Watch] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook can't be taken out again, so it does nothing while nobody watches."""
    if event != "socket.connect" or not _watching or not isinstance(arguments[1], tuple):
        return
    watch, address = _watching[-1], (str(arguments[1][0]), int(arguments[1][1]))
    if address in watch.allowed:
        watch.made.append(address)
        return
    watch.tried.append(address)
    raise ConnectionRefusedError(111, "stopped by the test")


sys.addaudithook(_hook)


@contextmanager
def watched(*allowed: str, names: dict[str, Callable[[], Sequence[str]]] | None = None) -> Iterator[Watch]:
    """Watch while the context lasts. `allowed` are URLs on loopback; `names` answer for the DNS, others do not exist.

    Numbers in any spelling are resolved by the C library, as they would be.
    """
    watch, real = Watch({_address(url) for url in allowed}), socket.getaddrinfo
    known = names or {}

    def lookup(host: str, port: int, *more: Any, **settings: Any) -> Any:
        watch.lookups.append(host)
        if host.rstrip(".") in known:
            return [
                entry
                for ip in known[host.rstrip(".")]()
                for entry in real(ip, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
            ]
        return real(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)

    _watching.append(watch)
    socket.getaddrinfo = lookup  # type: ignore[assignment]
    try:
        yield watch
    finally:
        socket.getaddrinfo = real
        _watching.pop()


def _address(url: str) -> Address:
    host, _, port = url.partition("://")[2].partition("/")[0].rpartition(":")
    return host, int(port)
