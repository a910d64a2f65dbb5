"""A home of its own per test, on a real database, and the `sis` command to run in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy.engine import URL
from typer import testing
from typer.main import get_command

from sis_pipeline_tests.conftest import installed


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Sis = Callable[..., Said]


@pytest.fixture(scope="session")
def template(_storage_template: str) -> str:
    """A migrated database with Dagster's storage in it."""
    return _storage_template


@pytest.fixture
def bare_home(tmp_path: Path) -> Iterator[Path]:
    """A home with nothing in it, and nothing of the machine's own settings; the environment is put back afterwards."""
    with installed(tmp_path / "home") as home:
        yield home


@pytest.fixture
def home(bare_home: Path, database_url: URL, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a migrated database and an encryption key."""
    monkeypatch.setenv("SIS_DATABASE_URL", database_url.render_as_string(hide_password=False))
    monkeypatch.setenv("SIS_ENCRYPTION_KEYS", Fernet.generate_key().decode())
    return bare_home


@pytest.fixture
def sis(monkeypatch: pytest.MonkeyPatch) -> Sis:
    """Run `sis` in this process: exit code, stdout, stderr."""
    from sis_pipeline.cli.main import app

    monkeypatch.setattr(testing, "_get_command", as_command)

    def run(*arguments: object) -> Said:
        done = testing.CliRunner().invoke(app, [str(argument) for argument in arguments])
        return Said(done.exit_code, done.stdout, done.stderr)

    return run


as_command = cache(get_command)
"""The tree of commands, once for all tests of a process: the runner makes it anew for each call, in 60 ms."""
