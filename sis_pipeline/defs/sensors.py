"""The two sensors: integrations become partitions, and new good snapshots become merges.
Both look at what is (the store) instead of at events, so that nothing can be missed; the thinking is in pure functions."""

# No `from __future__ import annotations` here: Dagster reads the resources' annotations and wants the classes themselves.

import json
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from sis_pipeline.connect.errors import SisError
from sis_pipeline.db.engine import DatabaseUnavailable
from sis_pipeline.defs.failures import trouble
from sis_pipeline.defs.jobs import MERGE_JOB
from sis_pipeline.defs.partitions import INTEGRATION_TAG, PARTITION_TAG, SCHOOL_YEAR_TAG, integrations_name
from sis_pipeline.defs.resources import Roster
from sis_pipeline.store.files import digest
from sis_pipeline.store.merged import published_epochs

RECONCILE_SECONDS = 30
MERGE_SECONDS = 15
UNDER_WAY = [dg.DagsterRunStatus.QUEUED, *IN_PROGRESS_RUN_STATUSES]
PAUSES = (120, 600)
"""Seconds between a merge run that died and the next attempt at the same; after the last it takes new data or a night."""
FINGERPRINT_TAG, ATTEMPT_TAG = "sis/fingerprint", "sis/attempt"
UNREADABLE = (SisError, SQLAlchemyError, DatabaseUnavailable, OSError)
"""What reading the store may fail with; then nothing is concluded from it."""


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What makes the partitions of one provider those of the registry. `waiting`: gone, but still being synced."""

    add: tuple[str, ...]
    delete: tuple[str, ...]
    waiting: tuple[str, ...]


def plan(desired: Iterable[str], existing: Iterable[str], in_flight: Collection[str]) -> Reconciliation:
    """Add what is missing at once; delete what is gone once no queued or started run of it is left.

    Deleting the partition of a run under way makes that run fail after its work is done.
    """
    desired, existing = set(desired), set(existing)
    gone = existing - desired
    return Reconciliation(
        add=tuple(sorted(desired - existing)),
        delete=tuple(sorted(gone - set(in_flight))),
        waiting=tuple(sorted(gone & set(in_flight))),
    )


def reconcile_sensor(providers: Collection[str]) -> dg.SensorDefinition:
    """Carries the registry of integrations over to Dagster's partitions."""

    @dg.sensor(
        name="reconcile_integrations",
        description="Makes the partitions of every provider those of the registered integrations.",
        minimum_interval_seconds=RECONCILE_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def reconcile_integrations(context: dg.SensorEvaluationContext, roster: Roster) -> dg.SensorResult | dg.SkipReason:
        try:
            registered = roster.integrations.list()
        except UNREADABLE as error:
            return dg.SkipReason(f"The registry of integrations can't be read; nothing is changed. {why(error)}")
        busy = _busy_integrations(context.instance)
        requests: list[Any] = []
        said: list[str] = []
        for provider in sorted(providers):
            partitions = dg.DynamicPartitionsDefinition(name=integrations_name(provider))
            existing = context.instance.get_dynamic_partitions(integrations_name(provider))
            desired = {one.key for one in registered if one.provider == provider}
            found = plan(desired, existing, existing if busy is None else busy)
            if found.add:
                requests.append(partitions.build_add_request(list(found.add)))
            if found.delete:
                requests.append(partitions.build_delete_request(list(found.delete)))
            said += [f"{name} is removed, but still being synced" for name in found.waiting]
        if not requests:
            return dg.SkipReason("; ".join(said) or "The partitions are those of the registered integrations.")
        return dg.SensorResult(dynamic_partitions_requests=requests)

    return reconcile_integrations


def _busy_integrations(instance: dg.DagsterInstance) -> set[str] | None:
    """Integrations with queued or started runs; None while a backfill, which queues runs as it goes, is under way."""
    if instance.get_backfills(status=BulkActionStatus.REQUESTED, limit=1):
        return None
    runs = instance.get_runs(dg.RunsFilter(statuses=UNDER_WAY))
    return {run.tags[INTEGRATION_TAG] for run in runs if INTEGRATION_TAG in run.tags}


@dataclass(frozen=True, slots=True)
class StaleYear:
    """A school year whose published roster is not that of its newest good snapshots.

    `fingerprint`: of what its stale districts would be merged from, and of what they have published.
    """

    school_year: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class MergePlan:
    """`merge`: years to merge now. `waiting`: years that wait. `since`: year -> when it was first found stale."""

    merge: tuple[StaleYear, ...]
    waiting: tuple[str, ...]
    since: Mapping[str, float]


def plan_merges(
    stale: Iterable[StaleYear],
    *,
    syncing: Collection[str],
    merging: Collection[str],
    since: Mapping[str, float],
    now: float,
    longest_wait: float,
) -> MergePlan:
    """Which stale years to merge now.

    A year waits for its syncs that are queued or running, so that a night of many makes one merge, but no longer than
    `longest_wait` seconds since it was first found stale; and for a merge of it that is under way. `now` and `since`
    are in seconds.
    """
    stale = sorted(stale, key=lambda one: one.school_year)
    first = {one.school_year: since.get(one.school_year, now) for one in stale}
    waits = {
        year for year, began in first.items() if year in merging or (year in syncing and now - began < longest_wait)
    }
    return MergePlan(
        merge=tuple(one for one in stale if one.school_year not in waits),
        waiting=tuple(sorted(waits)),
        since=first,
    )


@dataclass(frozen=True, slots=True)
class Attempt:
    """The latest merge run of one fingerprint: its number from 1, whether it failed, when it ended (seconds)."""

    number: int
    failed: bool
    ended: float


def next_attempt(last: Attempt | None, now: float) -> int | None:
    """The number under which a stale year is asked for now; None while a failed attempt's pause lasts, after the last
    attempt, and after one that did not fail: what that left stale, the same again would leave, too."""
    if last is None:
        return 1
    if not last.failed or last.number > len(PAUSES) or now - last.ended < PAUSES[last.number - 1]:
        return None
    return last.number + 1


def merge_sensor() -> dg.SensorDefinition:
    """Requests a merge of every school year whose published roster is out of date."""

    @dg.sensor(
        name="merge_when_changed",
        job_name=MERGE_JOB,
        description="Merges a school year when its newest good snapshots are not those of its published roster.",
        minimum_interval_seconds=MERGE_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def merge_when_changed(context: dg.SensorEvaluationContext, roster: Roster) -> dg.SensorResult:
        try:
            stale = stale_years(roster)
        except UNREADABLE as error:
            return dg.SensorResult(skip_reason=f"The store can't be read. {why(error)}", cursor=context.cursor)
        syncing, merging = _years_under_way(context.instance)
        now = time.time()
        found = plan_merges(
            stale,
            syncing=syncing,
            merging=merging,
            since=json.loads(context.cursor or "{}"),
            now=now,
            longest_wait=roster.settings.merge_wait_minutes * 60,
        )
        attempts = {one: next_attempt(_last_attempt(context.instance, one), now) for one in found.merge}
        requests = [_request(one, attempt) for one, attempt in attempts.items() if attempt is not None]
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else _nothing_to_ask(found),
            cursor=json.dumps(dict(found.since)),
        )

    return merge_when_changed


def _request(stale: StaleYear, attempt: int) -> dg.RunRequest:
    """Dagster runs one run key only once, so that every attempt has its own."""
    key = f"{stale.school_year}:{stale.fingerprint}"
    return dg.RunRequest(
        run_key=key if attempt == 1 else f"{key}:{attempt}",
        partition_key=stale.school_year,
        tags={FINGERPRINT_TAG: stale.fingerprint, ATTEMPT_TAG: str(attempt)},
    )


def _last_attempt(instance: dg.DagsterInstance, stale: StaleYear) -> Attempt | None:
    same = dg.RunsFilter(
        job_name=MERGE_JOB, tags={PARTITION_TAG: stale.school_year, FINGERPRINT_TAG: stale.fingerprint}
    )
    for record in instance.get_run_records(same, limit=1):  # the newest first
        run = record.dagster_run
        ended = record.end_time or record.update_timestamp.timestamp()
        return Attempt(int(run.tags.get(ATTEMPT_TAG, "1")), run.status is dg.DagsterRunStatus.FAILURE, ended)
    return None


def _nothing_to_ask(found: MergePlan) -> str:
    tried = ", ".join(one.school_year for one in found.merge)
    if tried:
        return f"{tried} was tried as it is; a run that died is repeated after a pause, {len(PAUSES)} times at most."
    return f"{', '.join(found.waiting)} waits for its runs." if found.waiting else "Every roster is up to date."


def stale_years(roster: Roster) -> list[StaleYear]:
    """The school years that have something to merge, from the store alone."""
    found = []
    for year in roster.snapshots.good_years():
        districts = roster.merges.stale_districts(year)
        if districts:
            with roster.engine.connect() as connection:
                found.append(StaleYear(year, _fingerprint(roster, connection, year, districts)))
    return found


def _fingerprint(roster: Roster, connection: Connection, year: str, districts: Iterable[str]) -> str:
    """What would be merged on top of what. The second half matters: a state may come back after another was merged,
    and Dagster runs one run key only once."""
    parts = [
        [one, roster.merges.fingerprint(one, year), sorted(published_epochs(connection, one).items())]
        for one in districts
    ]
    return digest(json.dumps(parts).encode())[:32]


def _years_under_way(instance: dg.DagsterInstance) -> tuple[set[str], set[str]]:
    """School years with queued or started (syncs, merges)."""
    syncing: set[str] = set()
    merging: set[str] = set()
    for run in instance.get_runs(dg.RunsFilter(statuses=UNDER_WAY)):
        if SCHOOL_YEAR_TAG in run.tags:
            syncing.add(run.tags[SCHOOL_YEAR_TAG])
        elif run.job_name == MERGE_JOB and PARTITION_TAG in run.tags:
            merging.add(run.tags[PARTITION_TAG])
    return syncing, merging


def why(error: BaseException) -> str:
    """An error of UNREADABLE, in words."""
    return str(error) if isinstance(error, DatabaseUnavailable) else trouble(error).message
