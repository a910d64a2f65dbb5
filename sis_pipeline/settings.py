"""What the environment may say (`SIS_*`), read in one place. Per-integration settings are rows, not environment; see store.integrations."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of one process. Build with `Settings()`; a test passes values by name."""

    model_config = SettingsConfigDict(
        env_prefix="SIS_", extra="ignore", hide_input_in_errors=True, frozen=True, use_attribute_docstrings=True
    )

    home: Path = Path(".sis")
    """Everything the embedded default keeps: database, Dagster's home, snapshots, key file."""
    database_url: SecretStr | None = None
    """A real PostgreSQL server, as postgresql://user:password@host/dbname; the embedded server where unset."""
    data_dir: str | None = None
    """Where snapshots and merged frames go: a folder or any fsspec URL; `data` under home where unset."""
    encryption_keys: SecretStr | None = None
    """Fernet keys for tokens, newest first, comma separated; the key file under home where unset."""
    first_school_year: int = 2019
    """The calendar year in which the earliest school year starts that can be loaded."""
    log_format: str = "console"
    """How logs are written: console or json."""
    schedule_cron: str = "0 2 * * *"
    """When every active integration is synced for the current school year (cron, in `time_zone`)."""
    merge_cron: str = "0 6 * * *"
    """When everything is merged again as a safety net, whatever the merge sensor did (cron, in `time_zone`)."""
    time_zone: str = "UTC"
    """The time zone of the schedules and of the day on which a school year begins, as America/Chicago."""
    merge_wait_minutes: float = 30
    """How long a merge waits, at most, for other syncs of its school year that are queued or running."""

    @cached_property
    def root(self) -> Path:
        return self.home.expanduser().resolve()

    @property
    def dagster_home(self) -> Path:
        return self.root / "dagster"

    @property
    def key_file(self) -> Path:
        return self.root / "encryption.key"

    @property
    def data_url(self) -> str:
        return self.data_dir or str(self.root / "data")
