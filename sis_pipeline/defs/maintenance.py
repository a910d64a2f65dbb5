"""The nightly chores, as a Dagster job with one step each and as a plain call for `sis maintenance`; one that fails
leaves the others alone. What a chore does in detail belongs to whoever owns the tables it tidies."""

# No `from __future__ import annotations` here: Dagster reads the resources' annotations and wants the classes themselves.

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import dagster as dg
from sqlalchemy import select

from sis_pipeline.connect.errors import DataError
from sis_pipeline.connect.source import purge_api_calls
from sis_pipeline.connect.upkeep import cleanup
from sis_pipeline.db.tables import oauth_tokens
from sis_pipeline.defs import history
from sis_pipeline.defs.failures import Trouble, failure, trouble
from sis_pipeline.defs.resources import Roster
from sis_pipeline.settings import Settings
from sis_pipeline.store import audit_heads
from sis_pipeline.store.accounts import Accounts
from sis_pipeline.store.locks import AlreadyRunningError, integration_lock
from sis_pipeline.store.retention import Retention
from sis_pipeline.store.snapshots import SnapshotWriter

MAINTENANCE_JOB = "maintenance"
MAINTENANCE_HOURS = 2

Facts = Mapping[str, int]
"""What a chore did, in counts."""


class Work(Protocol):
    def __call__(self, roster: Roster, *, dry_run: bool) -> Facts: ...


@dataclass(frozen=True, slots=True)
class Chore:
    """`do`: the work, or with `dry_run` only a look at what it would be."""

    name: str
    about: str
    do: Work


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a chore: what it did, or why it failed."""

    chore: str
    facts: Facts = field(default_factory=dict)
    trouble: Trouble | None = None

    def as_json(self) -> dict[str, Any]:
        return {"chore": self.chore, **self.facts, "error": self.trouble and self.trouble.as_json()}


def keep_audit_heads(roster: Roster, *, dry_run: bool) -> Facts:
    """Raises DataError, naming the first broken entry of each chain, after the heads of the others are kept."""
    exported = audit_heads.export(roster.engine, roster.snapshots.files, dry_run=dry_run)
    if exported.broken:
        found = "; ".join(f"{chain.district}: {chain.broken.message}" for chain in exported.broken if chain.broken)
        raise DataError(
            f"The audit log was changed. {found}",
            code="data.audit_changed",
            advice="Keep the database as it is, run `sis audit verify`, and compare with a backup.",
        )
    return {
        "chains": len(exported.chains),
        "links": sum(chain.links for chain in exported.chains),
        "entries": sum(chain.rows for chain in exported.chains),
        "new_heads": exported.heads,
    }


def give_up_readings(roster: Roster, *, dry_run: bool) -> Facts:
    """Close readings that were interrupted and are too old to be gone on with: their pages are nobody's."""
    given_up = 0
    for old in roster.snapshots.unfinished(timedelta(hours=roster.settings.resume_hours)):
        with suppress(AlreadyRunningError), integration_lock(roster.engine, old.integration, old.school_year):
            if roster.snapshots.get(old.snapshot_id).finished_at is None:
                if not dry_run:
                    SnapshotWriter(roster.snapshots, old).abandon("it was too old to go on with")
                given_up += 1
    return {"given_up": given_up}


def drop_parts(roster: Roster, *, dry_run: bool) -> Facts:
    return {"deleted": roster.snapshots.files.drop_parts(timedelta(days=1), dry_run=dry_run)}


def purge_calls(roster: Roster, *, dry_run: bool) -> Facts:
    return {"deleted": purge_api_calls(roster.engine, roster.settings.api_calls_days, dry_run=dry_run)}


def clean_tokens(roster: Roster, *, dry_run: bool) -> Facts:
    """Asks for no key where there is nothing to open: an installation that only reads files has none."""
    with roster.engine.connect() as connection:
        if connection.scalar(select(oauth_tokens.c.integration).limit(1)) is None:
            return {"emptied": 0, "deleted": 0}
    cleaned = cleanup(roster.vault, dry_run=dry_run)
    return {"emptied": cleaned.emptied, "deleted": sum(cleaned.deleted.values())}


def follow_accounts(roster: Roster, *, dry_run: bool) -> Facts:
    """A grace period that is over needs no news from a system."""
    return Accounts(roster.engine).follow_days(dry_run=dry_run)


def forget_runs(roster: Roster, *, dry_run: bool) -> Facts:
    return history.forget(roster.settings, roster.engine, dry_run=dry_run)


def _old(kind: Callable[..., Facts]) -> Work:
    """What gives up one kind of what is old."""

    def work(roster: Roster, *, dry_run: bool) -> Facts:
        return kind(Retention(roster.engine, roster.snapshots, roster.settings), dry_run=dry_run)

    return work


CHORES = (
    Chore("readings", "Close interrupted readings that are too old to be gone on with.", give_up_readings),
    Chore("files", "Delete files that killed processes left half written.", drop_parts),
    Chore("tokens", "Empty tokens that are over, and delete those of integrations that are gone.", clean_tokens),
    Chore("accounts", "Suspend accounts whose grace period is over, and make those that are due.", follow_accounts),
    Chore("api_calls", "Delete the record of calls that are older than SIS_API_CALLS_DAYS.", purge_calls),
    Chore(
        "merges",
        "Delete the frames of merges that can't be undone after SIS_UNDO_DAYS.",
        _old(Retention.merges),
    ),
    Chore(
        "snapshots",
        "Delete raw pages, standard frames and rejected rows that are older than SIS_RAW_DAYS, SIS_FRAMES_DAYS and "
        "SIS_QUARANTINE_DAYS and that nothing needs.",
        _old(Retention.snapshots),
    ),
    Chore(
        "operations",
        "Delete the details of operations that are older than SIS_OPERATIONS_DAYS.",
        _old(Retention.operations),
    ),
    Chore(
        "holds",
        "Delete holds that were over more than SIS_HOLDS_DAYS ago.",
        _old(Retention.holds),
    ),
    Chore(
        "decisions",
        "Delete decisions about conflicts that were replaced and are older than SIS_DECISIONS_DAYS.",
        _old(Retention.decisions),
    ),
    Chore(
        "conflicts",
        "Delete conflicts that went stale more than SIS_STALE_CONFLICTS_DAYS ago.",
        _old(Retention.conflicts),
    ),
    Chore(
        "unknown_files",
        "Delete folders of the data folder that nothing refers to, after SIS_UNKNOWN_FILES_DAYS.",
        _old(Retention.unknown_files),
    ),
    Chore("runs", "Delete Dagster's runs that ended more than SIS_RUNS_DAYS ago, with their events.", forget_runs),
    Chore(
        "audit_log",
        "Verify what was added to the audit log, and keep its heads outside the database.",
        keep_audit_heads,
    ),
)
"""`sis maintenance` ends with the audit log, so that its heads cover what the others did; the job's steps have no order."""


def do(chore: Chore, roster: Roster, *, dry_run: bool = False) -> Done:
    try:
        return Done(chore.name, chore.do(roster, dry_run=dry_run))
    except Exception as error:  # noqa: BLE001 one chore that fails must not keep the others from being done
        return Done(chore.name, trouble=trouble(error))


def run_all(roster: Roster, *, dry_run: bool = False) -> list[Done]:
    """Every chore, one after the other; with `dry_run` each only looks."""
    return [do(chore, roster, dry_run=dry_run) for chore in CHORES]


def maintenance_job() -> dg.JobDefinition:
    """One step per chore: a step that fails fails the run after the others are done, and is seen in it by name."""
    steps = [_step(chore) for chore in CHORES]

    @dg.job(
        name=MAINTENANCE_JOB,
        description="The nightly chores: " + " ".join(chore.about for chore in CHORES),
        executor_def=dg.in_process_executor,
        run_tags={"dagster/max_runtime": str(MAINTENANCE_HOURS * 3600)},
    )
    def maintenance() -> None:
        for step in steps:
            step()

    return maintenance


def _step(chore: Chore) -> dg.OpDefinition:
    @dg.op(name=chore.name, description=chore.about, out=dg.Out(dg.Nothing))
    def step(context: dg.OpExecutionContext, roster: Roster) -> Iterator[dg.Output]:
        done = do(chore, roster)
        if done.trouble:
            context.log.error(f"{done.trouble.message} {done.trouble.advice}")
            raise failure(done.trouble)
        yield dg.Output(None, metadata=dict(done.facts))

    return step


def nightly_maintenance(settings: Settings) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        name=f"nightly_{MAINTENANCE_JOB}",
        job_name=MAINTENANCE_JOB,
        cron_schedule=settings.maintenance_cron,
        execution_timezone=settings.time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Does the nightly chores; `sis maintenance` does them at once.",
    )
