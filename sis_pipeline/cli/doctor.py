"""`sis doctor`: is this installation fit to work? Looks only: what is missing is named, with the command that makes it."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import AsJson, ExitCode, counted, emit, table

if TYPE_CHECKING:
    from rich.console import Console

Status = Literal["ok", "warning", "failed"]
COLOURS: dict[Status, str] = {"ok": "green", "warning": "yellow", "failed": "red"}
PACKAGES = ("dagster", "pandas", "pandera", "polars", "sqlalchemy", "psycopg")
MOST_SKEW = 2.0
"""Seconds the database clock may differ from ours before tokens and limits suffer."""
SCARCE, WANTED = 500_000_000, 5_000_000_000
"""Free bytes below which a sync is likely to fail, and below which somebody should look."""


@dataclass(frozen=True)
class Finding:
    """What one check found. `code` is what a failure of this check makes of the exit code."""

    check: str
    status: Status
    message: str
    advice: str = ""
    code: ExitCode = ExitCode.FAILED


def doctor(*, as_json: AsJson = False) -> None:
    """Check this installation: versions, database, keys, providers, folders, integrations, runs, clock, disk."""
    findings = examine(Installation())

    def render(console: Console) -> None:
        from rich.text import Text

        rows = [
            (Text(it.status, COLOURS[it.status]), it.check, it.message + (f" {it.advice}" if it.advice else ""))
            for it in findings
        ]
        console.print(table(None, ("", "check", "found"), rows))

    failed = [it for it in findings if it.status == "failed"]
    emit(as_json, {"ok": not failed, "checks": findings}, render)
    if failed:
        raise typer.Exit(max(it.code for it in failed))


def examine(here: Installation) -> list[Finding]:
    """Every finding. A check that breaks is a finding too; without a database those that need it are left out."""
    findings: list[Finding] = []
    for name, check in (("python", _versions), ("folders", _folders), ("disk", _disk), ("providers", _providers)):
        findings += _careful(name, check, here)
    ready = not _not_begun(here)
    database = _careful("database", _database, here) if ready else [_not_begun_finding()]
    findings += database
    if ready and all(it.status == "ok" for it in database):
        for name, check in (("clock", _clock), ("keys", _keys), ("integrations", _integrations), ("runs", _runs)):
            findings += _careful(name, check, here)
    return findings


def _careful(name: str, check: Callable[[Installation], Iterator[Finding]], here: Installation) -> list[Finding]:
    from sis_pipeline.cli.boundary import explain

    try:
        return list(check(here))
    except Exception as error:  # noqa: BLE001 a check that breaks is itself what the doctor reports
        trouble = explain(error)
        return [Finding(name, "failed", trouble.message, trouble.advice, trouble.code)]


def _versions(_: Installation) -> Iterator[Finding]:
    from importlib.metadata import version

    from sis_pipeline import __version__

    ours = ".".join(str(part) for part in sys.version_info[:3])
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    supported = sys.version_info[:2] >= (3, 11)
    yield Finding(
        "python",
        "ok" if supported else "failed",
        f"sis_pipeline {__version__} on Python {ours}; {versions}.",
        "" if supported else "Use Python 3.11 or newer.",
    )
    core, webserver, postgres = (version(name) for name in ("dagster", "dagster-webserver", "dagster-postgres"))
    if core != webserver or core.split(".")[2:] != postgres.split(".")[2:]:
        yield Finding(
            "python",
            "warning",
            f"Dagster's packages are of different releases: dagster {core}, webserver {webserver}, postgres {postgres}.",
            "Install them together, as requirements.lock has them.",
        )


def _folders(here: Installation) -> Iterator[Finding]:
    settings = here.settings
    home = settings.root
    if not home.exists():
        yield Finding("folders", "warning", f"{home} does not exist yet.", "The first sync makes it.")
        return
    if not os.access(home, os.W_OK | os.X_OK):
        yield Finding(
            "folders", "failed", f"{home} can't be written.", "Give it to the user that runs sis.", ExitCode.CONFIG
        )
    yield _private_folder("data", settings.data_url)
    config = settings.dagster_home / "dagster.yaml"
    if config.exists():
        yield Finding("dagster", "ok", f"Dagster's home is {settings.dagster_home}.")
    else:
        yield Finding("dagster", "warning", f"{config} does not exist yet.", "The first sync or `sis up` makes it.")


def _private_folder(name: str, url: str) -> Finding:
    if "://" in url and not url.startswith("file://"):
        return Finding(name, "ok", f"Snapshots go to {url.split('://', 1)[0]}://…; access is proven by the first sync.")
    folder = Path(url.removeprefix("file://"))
    if not folder.exists():
        return Finding(name, "warning", f"{folder} does not exist yet.", "The first sync makes it.")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(
            name, "failed", f"{folder} can't be written.", "Give it to the user that runs sis.", ExitCode.CONFIG
        )
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        return Finding(
            name,
            "warning",
            f"Others can look into {folder}, which holds student records.",
            f"Run `chmod 700 {folder}`.",
        )
    return Finding(name, "ok", f"Snapshots go to {folder}, private and writable.")


def _disk(here: Installation) -> Iterator[Finding]:
    folder = next(path for path in (here.settings.root, *here.settings.root.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    words = f"{free / 1e9:,.1f} GB free at {folder}."
    status: Status = "failed" if free < SCARCE else "warning" if free < WANTED else "ok"
    yield Finding("disk", status, words, "" if status == "ok" else "Make room: snapshots are never overwritten.")


def _providers(_: Installation) -> Iterator[Finding]:
    from sis_pipeline.providers.registry import load_providers

    registry = load_providers()
    yield Finding("providers", "ok", f"{len(registry.providers)} found: {', '.join(sorted(registry.providers))}.")
    for failure in registry.failures:
        yield Finding(
            "providers",
            "failed",
            f"{failure.name} was not loaded: {failure.reason}",
            f"Repair or remove {failure.entry_point}.",
        )


def _not_begun(here: Installation) -> bool:
    """Whether the embedded database is meant and was never made; the doctor does not make it."""
    return here.settings.database_url is None and not (here.settings.root / "postgres" / "PG_VERSION").exists()


def _not_begun_finding() -> Finding:
    return Finding(
        "database",
        "warning",
        "The embedded database does not exist yet.",
        "`sis db upgrade` makes it; so does the first sync.",
    )


def _database(here: Installation) -> Iterator[Finding]:
    from sis_pipeline.db import migrate
    from sis_pipeline.db.engine import check_reachable

    server = check_reachable(here.unmigrated)
    where = "the embedded server" if here.settings.database_url is None else str(here.unmigrated.url.host)
    yield Finding("database", "ok", f"PostgreSQL {server} answers ({where}).")
    found, newest = migrate.current_revision(here.unmigrated), migrate.newest_revision()
    if found == newest:
        yield Finding("schema", "ok", f"The schema is current (revision {found}).")
    else:
        words = (
            "There is no schema yet."
            if found is None
            else f"The schema is at revision {found}, the newest is {newest}."
        )
        yield Finding("schema", "warning", words, "`sis db upgrade` brings it up to date; so does the next sync.")


def _clock(here: Installation) -> Iterator[Finding]:
    from sqlalchemy import text

    samples = []
    with here.unmigrated.connect() as connection:
        for _ in range(3):
            before = time.time()
            theirs = float(connection.scalar(text("select extract(epoch from sis.clock())")) or 0)
            after = time.time()
            samples.append((after - before, theirs - (before + after) / 2))
    _, skew = min(samples)  # the quickest answer says it best
    if abs(skew) > MOST_SKEW:
        advice = "Set both by NTP: token expiry and rate limits are counted on the database's clock."
        yield Finding("clock", "warning", f"The database's clock differs from this machine's by {skew:+.1f} s.", advice)
    else:
        yield Finding("clock", "ok", "The database's clock agrees with this machine's.")


def _keys(here: Installation) -> Iterator[Finding]:
    here.vault  # noqa: B018 opening it proves the keys
    yield Finding("keys", "ok", "The encryption keys open what is stored.")


def _integrations(here: Installation) -> Iterator[Finding]:
    found = here.integrations.list()
    statuses = Counter(integration.status for integration in found)
    words = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    yield Finding("integrations", "ok", counted(len(found), "integration") + (f": {words}." if words else "."))
    for integration in found:
        if integration.status not in {"healthy", "paused"}:
            reason = integration.status_reason or "no reason was noted"
            yield Finding(
                "integrations",
                "warning",
                f"{integration.key} is {integration.status}: {reason}",
                f"`sis integration test {integration.key}`.",
            )


def _runs(here: Installation) -> Iterator[Finding]:
    from sis_pipeline.defs.runs import orphaned_runs

    if not (here.settings.dagster_home / "dagster.yaml").exists() and "DAGSTER_HOME" not in os.environ:
        return  # nothing was ever run here
    left = orphaned_runs(here.settings)
    if left:
        yield Finding(
            "runs",
            "warning",
            f"{counted(len(left), 'run')} left open by processes that are gone.",
            "The next sync closes them.",
        )
    else:
        yield Finding("runs", "ok", "No run was left open by a process that is gone.")
