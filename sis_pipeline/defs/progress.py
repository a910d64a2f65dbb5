"""Telling whoever started a run in this process how far it is; runs started by Dagster's daemon have no listener.
What a run did is in its events and in the store, not here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Listener = Callable[[Mapping[str, Any]], None]
"""Takes `{"event": "plan", calls, seconds, rows, basis}` once and `{"event": "page", resource, page, calls, planned, rows}` per page."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def told_to(listener: Listener | None) -> Iterator[None]:
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(event: str, **facts: object) -> None:
    listener = _listener.get()
    if listener is not None:
        listener({"event": event, **facts})
