"""A home of its own per test, on a real database, and the `sis` command to run in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy.engine import URL
from typer.testing import CliRunner


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Sis = Callable[..., Said]


@pytest.fixture
def bare_home(tmp_path: Path) -> Iterator[Path]:
    """A home with nothing in it, and nothing of the machine's own settings; the environment is put back afterwards."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("SIS_", "DAGSTER_"))]:
        del os.environ[name]
    os.environ["SIS_HOME"] = str(tmp_path / "home")
    yield tmp_path / "home"
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def home(bare_home: Path, database_url: URL, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a migrated database and an encryption key."""
    monkeypatch.setenv("SIS_DATABASE_URL", database_url.render_as_string(hide_password=False))
    monkeypatch.setenv("SIS_ENCRYPTION_KEYS", Fernet.generate_key().decode())
    return bare_home


@pytest.fixture
def sis() -> Sis:
    """Run `sis` in this process: exit code, stdout, stderr."""
    from sis_pipeline.cli.main import app

    def run(*arguments: object) -> Said:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return Said(done.exit_code, done.stdout, done.stderr)

    return run
