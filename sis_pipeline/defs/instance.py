"""This installation's Dagster instance: its home, its configuration, and its storage, made whole before it is used.
What is run in it is told in `runs`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import DisconnectionError

import sis_pipeline
from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db.engine import DAGSTER_SCHEMA, dagster_storage_url, open_database
from sis_pipeline.settings import Settings

CONFIGURATION = "dagster.yaml"
STORAGE_URL = "SIS_DAGSTER_PG_URL"
STORAGE_LOCK = 7_240_315_002
"""Advisory lock number: one process makes the storage, the others wait and find nothing left to do."""
WHOLE = f"made whole with dagster {dg.__version__}"
"""The schema's comment once all its tables are there and up to date."""

LONGEST_STATEMENT_MS = 15 * 60 * 1000
KEPT_SECONDS = 3600
CONNECTIONS_BESIDE = 20
"""What a storage may open beside the one it keeps, for those who use it at the same time."""


def dagster_environment(settings: Settings) -> dict[str, str]:
    """The environment in which Dagster's own processes find this installation; prepares its home.

    A DAGSTER_HOME or SIS_DAGSTER_PG_URL that is set already is left as it is: then somebody else runs Dagster, and
    what `sis` does is recorded there. Starts the embedded database where none is configured.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or settings.dagster_home)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    _configure(home, ours=_is_own(home, settings))
    return {
        "DAGSTER_HOME": str(home),
        "SIS_HOME": str(settings.root),
        STORAGE_URL: os.environ.get(STORAGE_URL) or dagster_storage_url(settings),
        "DAGSTER_REDACT_USER_CODE_ERRORS": "1",
    }


@contextmanager
def dagster_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The instance of this installation, for as long as the context lasts. Sets this process's environment accordingly.

    The storage is made whole where home and storage are both ours: a home of somebody else's may name any storage.
    """
    environment = dagster_environment(settings)
    home = Path(environment["DAGSTER_HOME"])
    ours = _is_own(home, settings) and environment[STORAGE_URL] == dagster_storage_url(settings)
    os.environ.update(environment)
    if ours:
        make_storage_whole(settings, home)
    with (
        dg.DagsterInstance.from_config(str(home)) as instance,
        _connections_kept(instance) if ours else nullcontext(),
    ):
        yield instance


@contextmanager
def _connections_kept(instance: dg.DagsterInstance) -> Iterator[None]:
    """Let each storage keep a connection. Dagster opens one for all that it notes, which takes half the processor time
    of a small run; only its webserver keeps them."""
    instance.optimize_for_webserver(
        statement_timeout=LONGEST_STATEMENT_MS, pool_recycle=KEPT_SECONDS, max_overflow=CONNECTIONS_BESIDE
    )
    runs: Any = instance.run_storage
    events: Any = instance.event_log_storage
    schedules: Any = instance.schedule_storage
    engines: list[Engine] = []
    try:
        for connect in (runs.connect, events.index_connection, schedules.connect):
            with connect() as connection:
                engines.append(connection.engine)
                event.listen(connection.engine, "checkout", partial(_still_there, connection.dialect))
        yield
    finally:
        for engine in engines:
            engine.dispose()


def _still_there(dialect: Any, connection: Any, *_: object) -> None:
    """A kept connection is no good once the server was started anew: the pool is told to take another."""
    try:
        dialect.do_ping(connection)
    except dialect.dbapi.Error as error:
        raise DisconnectionError from error


def has_own_history(settings: Settings) -> bool:
    """Whether Dagster's storage is this installation's own, and there: none is made only to find that it is empty, and
    another one holds the runs of others."""
    home = Path(os.environ.get("DAGSTER_HOME") or settings.dagster_home)
    own_url = dagster_storage_url(settings)
    if not _is_own(home, settings) or os.environ.get(STORAGE_URL, own_url) != own_url:
        return False
    engine = open_database(settings)
    try:
        with engine.connect() as connection:
            return connection.scalar(text("select to_regclass(:t)"), {"t": f"{DAGSTER_SCHEMA}.runs"}) is not None
    finally:
        engine.dispose()


def _is_own(home: Path, settings: Settings) -> bool:
    return home.resolve() == settings.dagster_home.resolve()


def make_storage_whole(settings: Settings, home: Path) -> None:
    """Have all tables of Dagster's storage there and up to date, also after a new Dagster was installed.

    Dagster makes them one by one, each committed by itself, and takes the first for all: killed in between, it refuses
    every later start. Where they never were whole and no run is recorded they are made anew; else they are brought up to
    date. A storage whose schema belongs to another role is left to that role.
    """
    engine = open_database(settings)
    try:
        with engine.connect() as connection:
            if _is_whole(connection) or not _is_ours(connection):
                return
        # Its own looks must not stand in the way of dropping what it looked at: no transaction stays open.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("select pg_advisory_lock(:lock)"), {"lock": STORAGE_LOCK})
            if not _is_whole(connection):
                _make_whole(engine, home, fresh=_said(connection) is None and not _has_runs(connection))
    finally:
        engine.dispose()


def _make_whole(engine: Engine, home: Path, *, fresh: bool) -> None:
    if fresh:
        with engine.begin() as connection:
            connection.execute(text(f"drop schema if exists {DAGSTER_SCHEMA} cascade"))
            connection.execute(text(f"create schema {DAGSTER_SCHEMA}"))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        if not fresh:
            instance.upgrade()
    with engine.begin() as connection:
        connection.execute(text(f"comment on schema {DAGSTER_SCHEMA} is '{WHOLE}'"))


def _is_whole(connection: Connection) -> bool:
    return _said(connection) == WHOLE


def _said(connection: Connection) -> str | None:
    comment = text("select obj_description(to_regnamespace(:schema), 'pg_namespace')")
    said: str | None = connection.scalar(comment, {"schema": DAGSTER_SCHEMA})
    return said


def _is_ours(connection: Connection) -> bool:
    owned = text("select pg_has_role(nspowner, 'usage') from pg_namespace where nspname = :s")
    return bool(connection.scalar(owned, {"s": DAGSTER_SCHEMA}))


def _has_runs(connection: Connection) -> bool:
    if connection.scalar(text("select to_regclass(:t)"), {"t": f"{DAGSTER_SCHEMA}.runs"}) is None:
        return False
    return bool(connection.scalar(text(f"select exists (select from {DAGSTER_SCHEMA}.runs)")))


def _configure(home: Path, *, ours: bool) -> None:
    """Put our dagster.yaml into our Dagster home, the newest version of it; another's home must have one."""
    wanted, there = _shipped(), home / CONFIGURATION
    if wanted.exists() and (ours or not there.exists()):
        words = wanted.read_text(encoding="utf-8")
        if not there.exists() or there.read_text(encoding="utf-8") != words:
            part = there.with_suffix(f".{os.getpid()}")
            part.write_text(words, encoding="utf-8")
            part.replace(there)
    if not there.exists():
        raise ConfigError(
            f"There is no {CONFIGURATION} in {home}.",
            code="config.dagster_home",
            advice="Copy the one from the repository of sis_pipeline there.",
        )


def _shipped() -> Path:
    """Our dagster.yaml: beside the package in a checkout, where setup.py puts it in an installed wheel."""
    checkout = Path(sis_pipeline.__file__).parent.parent / CONFIGURATION
    return checkout if checkout.exists() else Path(sys.prefix) / "share" / "sis_pipeline" / CONFIGURATION
