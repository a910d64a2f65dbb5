"""What the tests run in processes of their own: real ones, each with its own engine, vault and source."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import create_engine

from sis_pipeline.connect.contract import OAuth, Request
from sis_pipeline.connect.retry import Backoff
from sis_pipeline.connect.source import HttpSource, open_source
from sis_pipeline.connect.vault import Keys, Vault

KEY = "RUxFVkVOLUVMRVZFTi1FTEVWRU4tRUxFVkVOLTEyMzQ="
SECRET = "s3cret-of-the-client"


@dataclass(frozen=True)
class Options:
    """Integration settings as the source reads them, with timeouts for tests."""

    base_url: str
    extra_headers: dict[str, str] = field(default_factory=dict)
    rate_group: str | None = None
    private_addresses: bool = False
    connect_timeout: float = 2.0
    read_timeout: float = 2.0
    total_timeout: float = 5.0


def a_source(engine: Any, url: str, *, authorised: bool = True, **more: Any) -> HttpSource:
    """A source of the integration `lincoln`, fast unless told otherwise."""
    settings = {"requests_per_minute": 600_000, "backoff": Backoff(base=0.002, cap=0.01)} | more
    oauth = settings.pop("oauth", OAuth(f"{url}/token", "client-1") if authorised else None)
    options = settings.pop("options", None) or Options(url)
    return open_source(
        "lincoln",
        provider="oneroster",
        settings=options,
        oauth=oauth,
        vault=Vault.open(engine, Keys([KEY])),
        engine=engine,
        **settings,
    )


def send_many(
    *,
    database: str,
    url: str,
    path: str,
    calls: int,
    zone: str = "UTC",
    per_minute: float = 600_000,
    seconds: float = 0,
) -> dict[str, Any]:
    """Send `calls` requests, or go on for `seconds`; what happened, in numbers."""
    engine = create_engine(database, connect_args={"options": f"-c TimeZone={zone} -c search_path=sis"})
    sent = 0
    until = time.monotonic() + seconds
    with a_source(engine, url, authorised=path != "/open", requests_per_minute=per_minute) as source:
        while sent < calls or time.monotonic() < until:
            source.send(Request(path))
            sent += 1
    engine.dispose()
    return {"sent": sent, "token_calls": source.token_calls, "waited": source.waited_seconds, "calls": source.calls}


def in_processes(count: int, work: Callable[..., Any], arguments: Callable[[int], dict[str, Any]]) -> list[Any]:
    """Run `work` in `count` processes at once; their results, or the first one's error."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with context.Pool(count) as pool:
        pending = [pool.apply_async(work, kwds=arguments(number)) for number in range(count)]
        return [one.get(timeout=60) for one in pending]
