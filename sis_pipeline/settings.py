"""What the environment may say (`SIS_*`), read in one place. Per-integration settings are rows, not environment; see store.integrations."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from pydantic import Field, SecretStr, field_validator, model_validator
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
    first_school_year: int = Field(2019, ge=1990, le=2100)
    """The calendar year in which the earliest school year starts that can be loaded."""
    log_format: Literal["console", "json"] = "console"
    """How logs are written: console or json."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is logged; debug also says every call to a system."""
    schedule_cron: str = Field("0 2 * * *", validate_default=False)
    """When every active integration is synced for the current school year (cron, in `time_zone`)."""
    merge_cron: str = Field("0 6 * * *", validate_default=False)
    """When everything is merged again as a safety net, whatever the merge sensor did (cron, in `time_zone`)."""
    maintenance_cron: str = Field("30 4 * * *", validate_default=False)
    """When the nightly chores are done: see `sis maintenance` (cron, in `time_zone`)."""
    time_zone: str = "UTC"
    """The time zone of the schedules and of the day on which a school year begins, as America/Chicago."""
    api_calls_days: int = Field(30, ge=1, le=3650)
    """For how many days every call to a system is kept in `api_calls`."""
    raw_days: int = Field(30, ge=1, le=3650)
    """For how many days the pages of a reading are kept as the system sent them; see docs/retention.md for this and the
    following."""
    frames_days: int = Field(90, ge=1, le=3650)
    """For how many days the standard frames of a snapshot are kept."""
    quarantine_days: int = Field(90, ge=1, le=3650)
    """For how many days rejected rows are kept, with their reasons."""
    undo_days: int = Field(30, ge=7, le=3650)
    """For how many days what was published can be undone: so long the frames of merges are kept."""
    operations_days: int = Field(730, ge=7, le=3650)
    """For how many days operations are kept in detail, and merges that were never published at all; at least `undo_days`."""
    holds_days: int = Field(365, ge=7, le=3650)
    """For how many days holds are kept after they were applied or closed; at least `undo_days`."""
    decisions_days: int = Field(365, ge=1, le=3650)
    """For how many days decisions about conflicts are kept that a later one replaced; the newest stays."""
    stale_conflicts_days: int = Field(90, ge=1, le=3650)
    """For how many days conflicts are kept, with the values of then, after nothing conflicted any more."""
    runs_days: int = Field(90, ge=1, le=3650)
    """For how many days Dagster's finished runs and their events are kept; the newest of every partition stays."""
    unknown_files_days: int = Field(30, ge=1, le=3650)
    """How old a snapshot's or merge's folder must be to be deleted where the database does not know it."""
    merge_wait_minutes: float = 30
    """How long a merge waits, at most, for other syncs of its school year that are queued or running."""
    fresh_hours: float = Field(36, gt=0)
    """How old the last good snapshot of an integration may be before the merged roster warns of it."""
    resume_hours: float = Field(6, ge=0, le=168)
    """How long after its start an interrupted reading may still be gone on with; 0 always starts anew."""

    @field_validator("schedule_cron", "merge_cron", "maintenance_cron")
    @classmethod
    def _cron_is_one_dagster_takes(cls, cron: str) -> str:
        """Dagster itself is asked, hence imported only where a schedule is set."""
        import dagster as dg

        try:
            dg.ScheduleDefinition(name="probe", job_name="probe", cron_schedule=cron)
        except dg.DagsterInvalidDefinitionError:
            raise ValueError("this is not a cron schedule of five fields, as 0 2 * * *") from None
        return cron

    @field_validator("time_zone")
    @classmethod
    def _time_zone_is_known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            raise ValueError("this is not a time zone of the IANA database, as America/Chicago") from None
        return name

    @model_validator(mode="after")
    def _what_an_undo_needs_is_kept_as_long(self) -> Settings:
        for name in ("operations_days", "holds_days"):
            if getattr(self, name) < self.undo_days:
                raise ValueError(f"{name} is less than undo_days; what can be undone must be kept as long")
        return self

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
