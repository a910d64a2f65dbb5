"""What the tests run in processes of their own: real ones, each with its own engine, vault and source."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import create_engine

from sis_pipeline.connect import breaker
from sis_pipeline.connect.breaker import SourceLeftAloneError
from sis_pipeline.connect.contract import OAuth, Request
from sis_pipeline.connect.errors import SisError, TransientError
from sis_pipeline.connect.keys import Keys, rotate_keys
from sis_pipeline.connect.retry import Backoff
from sis_pipeline.connect.source import HttpSource, open_source
from sis_pipeline.connect.tokens import Tokens
from sis_pipeline.connect.vault import Vault
from sis_pipeline.crashpoints import VARIABLE
from sis_pipeline_tests.forking import FORKS, ready_pool

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


def a_source(
    engine: Any, url: str, *, authorised: bool = True, key: str = "lincoln", keys: tuple[str, ...] = (KEY,), **more: Any
) -> HttpSource:
    """A source of the integration `lincoln`, fast unless told otherwise."""
    settings = {"requests_per_minute": 600_000, "backoff": Backoff(base=0.002, cap=0.01)} | more
    oauth = settings.pop("oauth", OAuth(f"{url}/token", "client-1") if authorised else None)
    options = settings.pop("options", None) or Options(url)
    return open_source(
        key,
        provider="oneroster",
        settings=options,
        oauth=oauth,
        vault=Vault.open(engine, Keys(list(keys))),
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


def knock(*, database: str, url: str, until: float) -> dict[str, Any]:
    """Send until `until` or ten good answers, never waiting for a breaker; what happened, in numbers."""
    breaker.LOOK_AGAIN = 0.02
    engine = create_engine(database, connect_args={"options": "-c search_path=sis"})
    seen = Counter[str]()
    options = Options(url, total_timeout=100)
    with a_source(engine, url, authorised=False, options=options, backoff=Backoff(attempts=1, cap=0)) as source:
        while time.time() < until and seen["good"] < 10:
            try:
                source.send(Request("/open"))
                seen["good"] += 1
            except SourceLeftAloneError:
                seen["left alone"] += 1
                time.sleep(0.02)
            except TransientError:
                seen["failed"] += 1
    engine.dispose()
    return seen


def tokens_of(source: HttpSource) -> Tokens:
    """The tokens behind a source: what is shared by all processes, without the requests that need them."""
    assert source._tokens is not None
    return source._tokens


def wear_out(*, jobs: list[dict[str, Any]]) -> list[list[int]]:
    """Wear out one integration after the other."""
    return [_wear_out(**job) for job in jobs]


def _wear_out(*, database: str, key: str, url: str, oauth: OAuth, upto: int) -> list[int]:
    """Have every token replaced as soon as it is seen, until version `upto`; the versions that were seen."""
    engine = create_engine(database, connect_args={"options": "-c search_path=sis"})
    seen = []
    with a_source(engine, url, key=key, oauth=oauth) as source:
        tokens = tokens_of(source)
        bearer = tokens.bearer()
        while bearer.version < upto:
            seen.append(bearer.version)
            bearer = tokens.bearer(refused=bearer.value)
    engine.dispose()
    return seen


def refresh_once(*, database: str, key: str, url: str, oauth: OAuth) -> str:
    """Ask for a token in place of the stored one: its version, or the class of the error."""
    engine = create_engine(database, connect_args={"options": "-c search_path=sis"})
    try:
        with a_source(engine, url, key=key, oauth=oauth) as source:
            held = tokens_of(source)._vault.get(key, "access")
            return str(tokens_of(source).bearer(refused=held).version)
    except SisError as error:
        return error.error_class.value
    finally:
        engine.dispose()


def rotate(*, database: str, keys: list[str]) -> int:
    """Seal everything with the first of the keys; how many rows that were."""
    engine = create_engine(database, connect_args={"options": "-c search_path=sis"})
    try:
        return rotate_keys(engine, Keys(keys)).resealed
    finally:
        engine.dispose()


def _dying(point: str, work: Callable[..., Any], arguments: dict[str, Any]) -> None:
    os.environ[VARIABLE] = point
    work(**arguments)


def killed_at(point: str, work: Callable[..., Any], **arguments: Any) -> int | None:
    """Run `work` in a process that is killed at a crash point; its exit code, -9 where it came to that."""
    process = FORKS.Process(target=_dying, args=(point, work, arguments))
    process.start()
    process.join(60)
    return process.exitcode


def in_processes(count: int, work: Callable[..., Any], arguments: Callable[[int], dict[str, Any]]) -> list[Any]:
    """Run `work` in `count` processes at once; their results, or the first one's error."""
    with ready_pool(count) as pool:
        pending = [pool.apply_async(work, kwds=arguments(number)) for number in range(count)]
        return [one.get(timeout=60) for one in pending]
