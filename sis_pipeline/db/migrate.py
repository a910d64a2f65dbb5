"""Bringing the schema `sis` up to date, safely when several processes start at once. The steps are in migrations/versions."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text

from sis_pipeline.db import audit
from sis_pipeline.db.tables import SCHEMA

UPGRADE_LOCK = 7_240_315_001
"""Advisory lock number: one process upgrades, the others wait and find nothing left to do."""


def upgrade(engine: Engine) -> bool:
    """Upgrade to the newest revision; True where something was done. One transaction: all of it or nothing."""
    if current_revision(engine) == newest_revision():
        return False
    with engine.begin() as connection:
        connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": UPGRADE_LOCK})
        connection.execute(text(f"create schema if not exists {SCHEMA}"))
        before = _revision(connection)
        command.upgrade(_config(connection), "head")
        after = _revision(connection)
        if before is not None and before != after:
            audit.append(connection, "database.upgrade", str(after), details={"from": before})
        return before != after


def current_revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return _revision(connection)


def newest_revision() -> str | None:
    return ScriptDirectory.from_config(_config(None)).get_current_head()


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version", schema=SCHEMA):
        return None
    revision: str | None = connection.scalar(text(f"select version_num from {SCHEMA}.alembic_version"))
    return revision


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config
