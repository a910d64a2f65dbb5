"""One database for the whole area: its tables are few, and emptying them is much quicker than copying a database."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import URL

from sis_pipeline.db.engine import engine_for

TABLES = "sis.oauth_tokens, sis.encryption_keys, sis.rate_limits, sis.api_calls, sis.circuit_breakers"


@pytest.fixture(scope="session")
def _connect_engine(postgres: URL, _template: str) -> Iterator[Engine]:
    name = f"connect_{uuid.uuid4().hex[:12]}"
    admin = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"create database {name} template {_template}"))
    engine = engine_for(postgres.set(database=name))
    yield engine
    engine.dispose()
    with admin.connect() as connection:
        connection.execute(text(f"drop database {name} with (force)"))
    admin.dispose()


@pytest.fixture
def database(_connect_engine: Engine) -> Engine:
    """An engine on the area's database, its tables empty."""
    with _connect_engine.begin() as connection:
        connection.execute(text(f"truncate {TABLES} restart identity"))
    return _connect_engine


@pytest.fixture
def database_url(database: Engine) -> URL:
    return database.url
