"""An installation of its own per test, on a real database with Dagster's storage beside it, and systems to connect."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from cryptography.fernet import Fernet
from sqlalchemy import Engine, text
from sqlalchemy.engine import URL

from sis_pipeline.defs.instance import dagster_instance
from sis_pipeline.defs.resources import Roster
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.sandbox.server import Handle
from sis_pipeline.settings import Settings
from sis_pipeline.store.integrations import Integration
from sis_pipeline_tests.conftest import installed

YEAR = SchoolYear.on(datetime.now(UTC).date())
THIS_YEAR, LAST_YEAR = YEAR.key, SchoolYear(YEAR.start - 1).key


@dataclass(frozen=True)
class Installation:
    settings: Settings
    roster: Roster
    engine: Engine

    def connect(self, handle: Handle, key: str, district: str = "fernhollow", **settings: Any) -> Integration:
        """Register a system of the sandbox as an integration, with its secret."""
        given = {**handle.settings, "requests_per_minute": 6_000, **settings}
        added = self.roster.integrations.add(Integration(key, handle.provider, district, settings=given))
        self.roster.vault.put(key, "client_secret", handle.client_secret)
        return added

    def scalar(self, query: str, **values: object) -> Any:
        with self.engine.connect() as connection:
            return connection.scalar(text(query), values)

    def rows(self, query: str, **values: object) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query), values)]


@pytest.fixture(scope="session")
def template(_storage_template: str) -> str:
    """A migrated database with Dagster's storage in it."""
    return _storage_template


@pytest.fixture
def own_environment(tmp_path: Path) -> Iterator[Path]:
    """Nothing of this machine's settings, a home of its own; the environment is put back afterwards."""
    with installed(tmp_path / "home") as home:
        yield home


@pytest.fixture
def installation(own_environment: Path, database_url: URL, database: Engine) -> Iterator[Installation]:
    os.environ["SIS_DATABASE_URL"] = database_url.render_as_string(hide_password=False)
    os.environ["SIS_ENCRYPTION_KEYS"] = Fernet.generate_key().decode()
    roster = Roster()
    yield Installation(Settings(), roster, database)
    roster.close()


@pytest.fixture
def instance(installation: Installation) -> Iterator[dg.DagsterInstance]:
    """The installation's own Dagster instance, on PostgreSQL, as `sis` opens it."""
    with dagster_instance(installation.settings) as opened:
        yield opened


@pytest.fixture
def checks_of() -> Callable[[dg.DagsterInstance, str], dict[str, bool]]:
    """Asset check results of a run: name -> passed."""

    def found(instance: dg.DagsterInstance, run_id: str) -> dict[str, bool]:
        records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION).records
        checks = [record.event_log_entry.dagster_event.asset_check_evaluation_data for record in records]
        return {check.check_name: check.passed for check in checks}

    return found
