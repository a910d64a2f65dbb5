"""One reading and one judging per integration and school year, one publication per district: PostgreSQL advisory locks
that end with their process. What is done under a lock is decided by whoever takes it."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
from psycopg import errors as pg
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, OperationalError

from sis_pipeline.connect.errors import TransientError

log = structlog.get_logger(__name__)

HOLDERS = """
select coalesce(nullif(a.application_name, ''), 'a process') || ', since ' || to_char(a.xact_start, 'YYYY-MM-DD HH24:MI:SS "UTC"')
from pg_locks l join pg_stat_activity a using (pid)
where l.locktype = 'advisory' and l.granted and l.objsubid = 1
  and l.database = (select oid from pg_database where datname = current_database())
  and (l.classid::bigint << 32 | l.objid::bigint) = :key
"""
TIMEOUTS = {"statement_timeout": "30min", "idle_in_transaction_session_timeout": "5min", "lock_timeout": "10min"}
"""Of a transaction that writes a district's roster."""
SETTINGS = """
select set_config('application_name', :name, true), set_config('idle_in_transaction_session_timeout', '0', true),
       set_config('statement_timeout', '0', true), set_config('tcp_keepalives_idle', '60', true),
       set_config('client_connection_check_interval', '5s', true)
"""
"""An open transaction may idle for hours here, and PostgreSQL should notice soon when its client's machine is gone."""

READ, JUDGE = "sync", "judge"
"""The halves of a sync, each with its own lock: while what was read is judged, another run may read."""
DOES = {READ: "synced", JUDGE: "judged, or a student of it erased,"}
PATIENCE = 600
"""Seconds that a judging waits for another one, or for an erasure."""


class AlreadyRunningError(TransientError):
    """Another process syncs the same integration and school year."""

    default_code = "transient.already_running"


def lock_key(*names: str) -> int:
    """The advisory lock number of a name: 64 bits of its hash."""
    return int.from_bytes(hashlib.sha256("\x1f".join(names).encode()).digest()[:8], "big", signed=True)


@contextmanager
def integration_lock(
    engine: Engine, integration: str, school_year: str, *, run_id: str | None = None, wait_seconds: float = 0
) -> Iterator[None]:
    """Hold the only reading of an integration and school year, over all processes and machines on this database.

    The lock belongs to a transaction of a connection of its own, so that it also holds behind a transaction pooler,
    and ends when this process does, however it ends. Raises AlreadyRunningError, naming the holder, when the lock is not
    free within `wait_seconds`.
    """
    with _all_held(engine, [(READ, integration, school_year)], _who(run_id), wait_seconds):
        yield


@contextmanager
def judging_lock(
    engine: Engine,
    integration: str,
    school_year: str,
    *,
    run_id: str,
    say: Callable[[str], Any],
    wait_seconds: float = PATIENCE,
) -> Iterator[None]:
    """Hold the only judging of what was read of an integration and school year: nobody of it is erased meanwhile. Ends and
    raises as `integration_lock`; where it has to be waited for, `say` is told."""
    key = lock_key(JUDGE, integration, school_year)
    if holder := _held_by(engine, key):
        say(f"{integration}: waiting for {holder}, which judges or erases what was read of {school_year}.")
    with _all_held(engine, [(JUDGE, integration, school_year)], _who(run_id), wait_seconds):
        yield


@contextmanager
def all_integrations_locked(engine: Engine, readings: Iterable[tuple[str, str]]) -> Iterator[None]:
    """Hold both halves of the syncs of several integrations and school years, by one connection. Raises as
    `integration_lock`."""
    halves = [(half, *reading) for reading in sorted(readings) for half in (READ, JUDGE)]
    with _all_held(engine, halves, _who(None), 0):
        yield


@contextmanager
def _all_held(engine: Engine, halves: Sequence[tuple[str, str, str]], who: str, wait_seconds: float) -> Iterator[None]:
    with engine.connect() as connection:
        connection.execute(text(SETTINGS), {"name": who})
        for half, integration, school_year in halves:
            key = lock_key(half, integration, school_year)
            if not _acquire(connection, key, wait_seconds):
                raise AlreadyRunningError(
                    f"{integration} is being {DOES[half]} for {school_year} already, by {_holder(engine, key)}.",
                    advice="Wait for that to end, or end it, and run this again; what was read before is kept.",
                    integration=integration,
                    school_year=school_year,
                )
        try:
            yield
        finally:
            _release(connection, halves)


def is_syncing(connection: Connection, integration: str, school_year: str) -> bool:
    """Whether some process reads an integration's school year right now."""
    return connection.scalar(text(HOLDERS), {"key": lock_key(READ, integration, school_year)}) is not None


def lock_district(connection: Connection, district: str) -> None:
    """Wait for, and hold until the transaction ends, the only publication of a district."""
    connection.execute(text("select set_config('client_connection_check_interval', '5s', true)"))
    connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": lock_key("publish", district)})


def begin_writing(connection: Connection, district: str) -> None:
    """The limits of a publication's transaction, and the district for itself."""
    for name, value in TIMEOUTS.items():
        connection.execute(text("select set_config(:name, :value, true)"), {"name": name, "value": value})
    lock_district(connection, district)


def _who(run_id: str | None) -> str:
    """The process for a person, in the 63 bytes that PostgreSQL keeps."""
    run = f" run {run_id[:8]}" if run_id else ""
    return f"sis pid {os.getpid()}{run} on {socket.gethostname()}"[:63]


def _acquire(connection: Connection, key: int, wait_seconds: float) -> bool:
    if connection.scalar(text("select pg_try_advisory_xact_lock(:key)"), {"key": key}):
        return True
    if wait_seconds <= 0:
        return False
    connection.execute(
        text("select set_config('lock_timeout', :ms, true)"), {"ms": f"{max(1, int(wait_seconds * 1000))}ms"}
    )
    try:
        connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": key})
    except DBAPIError as error:
        if isinstance(error.orig, pg.LockNotAvailable):
            return False
        raise
    return True


def _holder(engine: Engine, key: int) -> str:
    return _held_by(engine, key) or "a process that has just ended"


def _held_by(engine: Engine, key: int) -> str | None:
    with engine.connect() as connection:
        holder: str | None = connection.scalar(text(HOLDERS), {"key": key})
    return holder


def _release(connection: Connection, halves: Sequence[tuple[str, str, str]]) -> None:
    """End the transaction. A connection lost in between is only reported, and hides no error of the block: what was read
    meanwhile stands by itself, as long as no other process has taken it over (see snapshots.SnapshotWriter)."""
    try:
        connection.execute(text("select 1"))
        connection.rollback()
    except OperationalError:
        for _, integration, school_year in halves:
            log.warning("integration_lock.lost_before_the_end", integration=integration, school_year=school_year)
        connection.invalidate()
