"""How this installation reaches PostgreSQL: the roster's engine and the URL of Dagster's own storage.
Both may point at the embedded server, which is started when first needed; what is stored is not decided here."""

from __future__ import annotations

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from sis_pipeline.settings import Settings

STATEMENT_TIMEOUT = "15min"
IDLE_IN_TRANSACTION_TIMEOUT = "5min"
DAGSTER_SCHEMA = "dagster"
SCHEMA_LOCK = 7_240_315_003
"""Advisory lock number: one process makes Dagster's schema, the others wait and find it there."""


class DatabaseUnavailable(Exception):  # noqa: N818 - said as it is
    """PostgreSQL can't be reached or the URL is no PostgreSQL URL; the message is for a person and holds no password."""


def database_url(settings: Settings) -> URL:
    """The database as a URL with the psycopg 3 driver; starts the embedded server where no other is configured."""
    if settings.database_url is None:
        from sis_pipeline.db import embedded

        return make_url(embedded.start(settings.root / "postgres")).set(drivername="postgresql+psycopg")
    try:
        url = make_url(settings.database_url.get_secret_value())
    except ArgumentError:
        raise DatabaseUnavailable(
            "SIS_DATABASE_URL is not a database URL. Write it as postgresql://user:password@host:5432/dbname."
        ) from None
    if not url.drivername.startswith("postgres"):
        raise DatabaseUnavailable(
            f"SIS_DATABASE_URL names {url.drivername!r}; only PostgreSQL is supported (postgresql://…)."
        )
    return url.set(drivername="postgresql+psycopg")


def open_database(settings: Settings) -> Engine:
    """The roster's engine. Every connection runs in UTC, on schema `sis`, with statement and idle timeouts."""
    return engine_for(database_url(settings))


def engine_for(url: URL) -> Engine:
    options = (
        f"-c TimeZone=UTC -c search_path=sis -c statement_timeout={STATEMENT_TIMEOUT} "
        f"-c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_TIMEOUT}"
    )
    return create_engine(
        url,
        connect_args={"options": options, "connect_timeout": 10, "application_name": "sis_pipeline"},
        pool_pre_ping=True,
        hide_parameters=True,
    )


def check_reachable(engine: Engine) -> str:
    """The server's version. Raises DatabaseUnavailable, without the password, where there is none."""
    try:
        with engine.connect() as connection:
            return str(connection.scalar(text("show server_version")))
    except OperationalError:
        where = engine.url.set(password=None).render_as_string()
        raise DatabaseUnavailable(
            f"PostgreSQL does not answer at {where}. Start it, or correct SIS_DATABASE_URL."
        ) from None


def dagster_storage_url(settings: Settings) -> str:
    """The URL of Dagster's own storage: the same database, a schema of its own (both use `alembic_version`).

    The scheme is spelled out because a bare `postgresql://` means psycopg 3 under SQLAlchemy 2.1, with which
    dagster-postgres fails at its first event.
    """
    url = database_url(settings)
    _have_dagster_schema(url)
    return (
        url.set(drivername="postgresql+psycopg2")
        .update_query_dict({"options": f"-c search_path={DAGSTER_SCHEMA} -c TimeZone=UTC"})
        .render_as_string(hide_password=False)
    )


def _have_dagster_schema(url: URL) -> None:
    engine = engine_for(url)
    try:
        with engine.begin() as connection:
            # `create … if not exists` asks for the right to create even where there is nothing to do.
            if connection.scalar(text("select to_regnamespace(:schema)"), {"schema": DAGSTER_SCHEMA}) is None:
                # … and does not bear two processes that do it at once.
                connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": SCHEMA_LOCK})
                connection.execute(text(f"create schema if not exists {DAGSTER_SCHEMA}"))
    finally:
        engine.dispose()
