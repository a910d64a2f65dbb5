"""Fixtures every area uses: one embedded PostgreSQL for the whole session, and a migrated database per test."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import URL, make_url

from sis_pipeline.db import embedded, migrate
from sis_pipeline.db.engine import engine_for
from sis_pipeline.settings import Settings

hypothesis_settings.register_profile(
    "suite", derandomize=True, deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("suite")

LONGEST = (
    "test_truth.py", "test_services.py", "test_demo.py", "test_sync.py", "test_soak.py", "test_up.py",
    "test_registrars_day.py", "test_deltas.py", "test_degradation.py",
)  # fmt: skip
"""Modules whose tests take from twenty seconds to more than a minute."""
IN_MEMORY = Path("/dev/shm")
ROOM = 4 * 1024**3
"""Bytes: three test processes, each with a server of its own."""


def pytest_configure() -> None:
    """Put back what a shell ignores in what it runs in the background: Dagster lets SIGTERM do what SIGINT does, and
    then a pool's processes can't be ended (a whole run hung on it)."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "TMPDIR" not in os.environ and _roomy():
        os.environ["TMPDIR"], tempfile.tempdir = str(IN_MEMORY), None


def _roomy() -> bool:
    """Whether there is memory that takes files: a database is made there in 16 ms, on a busy disk in 350, and each of the
    thousands of files that are synced to the disk takes one more."""
    return os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free > ROOM


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: one that began last kept one of two cores idle for a minute. Those of a module stay together,
    because what they share is made once per process."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def postgres() -> Iterator[URL]:
    """The server's URL. Its folder is short because a unix socket's path may not exceed 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="sis-pg-"))
    folder.chmod(0o755)
    url = make_url(embedded.start(folder / "data")).set(drivername="postgresql+psycopg")
    _spare_the_disk(url)
    yield url
    embedded.stop(folder / "data")
    shutil.rmtree(folder, ignore_errors=True)


def _spare_the_disk(url: URL) -> None:
    """What tests write has to survive kills of processes, not of the machine: a database is made in half the time."""
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        for setting in ("fsync", "full_page_writes"):
            connection.execute(text(f"alter system set {setting} = off"))
        connection.execute(text("select pg_reload_conf()"))
    admin.dispose()


@pytest.fixture(scope="session")
def _template(postgres: URL) -> str:
    """A migrated database that the tests' databases are copied from."""
    admin = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("create database sis_template"))
    engine = engine_for(postgres.set(database="sis_template"))
    migrate.upgrade(engine)
    engine.dispose()
    return "sis_template"


@pytest.fixture(scope="session")
def _storage_template(postgres: URL, _template: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One with Dagster's own storage in it, too, whole: made in each test it costs half a second of processor time."""
    from sis_pipeline.defs.instance import dagster_instance  # most tests need no Dagster

    admin = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"create database sis_storage_template template {_template}"))
    url = postgres.set(database="sis_storage_template")
    with installed(tmp_path_factory.mktemp("storage")):
        os.environ["SIS_DATABASE_URL"] = url.render_as_string(hide_password=False)
        with dagster_instance(Settings()):
            pass
    return "sis_storage_template"


@contextmanager
def installed(home: Path) -> Iterator[Path]:
    """A home in which nothing of the machine's own settings counts; the environment is put back afterwards."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("SIS_", "DAGSTER_"))]:
        del os.environ[name]
    os.environ["SIS_HOME"] = str(home)
    try:
        yield home
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def template(_template: str) -> str:
    """What a test's database is a copy of; areas whose tests start Dagster override it."""
    return _template


@pytest.fixture
def database_url(postgres: URL, template: str) -> Iterator[URL]:
    """A migrated, empty database of the test's own."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    admin = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"create database {name} template {template} strategy file_copy"))
    yield postgres.set(database=name)
    with admin.connect() as connection:
        connection.execute(text(f"drop database {name} with (force)"))
    admin.dispose()


@pytest.fixture
def database(database_url: URL) -> Iterator[Engine]:
    """An engine on a migrated, empty database of the test's own."""
    engine = engine_for(database_url)
    yield engine
    engine.dispose()
