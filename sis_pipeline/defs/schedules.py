"""The nightly schedules: every active integration for the school year that is current at tick time, and a merge of
what is out of date as a safety net. They run by default: adding an integration is all that a nightly sync takes, and
pausing it is the way to stop it."""

# No `from __future__ import annotations` here: Dagster reads the resources' annotations and wants the classes themselves.

from collections.abc import Iterator

import dagster as dg

from sis_pipeline.defs.jobs import MERGE_JOB, sync_job_name
from sis_pipeline.defs.partitions import integrations_name, roster_key, today
from sis_pipeline.defs.resources import Roster
from sis_pipeline.settings import Settings

NOT_SYNCED = frozenset({"paused", "needs_reauth"})
"""Asking again with credentials that were refused could lock the account."""


def nightly_sync(provider: str, settings: Settings) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"nightly_{sync_job_name(provider)}",
        job_name=sync_job_name(provider),
        cron_schedule=settings.schedule_cron,
        execution_timezone=settings.time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Syncs every active {provider} integration for the current school year.",
    )
    def nightly(context: dg.ScheduleEvaluationContext, roster: Roster) -> Iterator[dg.RunRequest | dg.SkipReason]:
        active = [one.key for one in roster.integrations.list(provider) if one.status not in NOT_SYNCED]
        if not active:
            yield dg.SkipReason(f"No {provider} integration is active.")
            return
        # An integration added since the last tick of the reconcile sensor has no partition yet.
        context.instance.add_dynamic_partitions(integrations_name(provider), active)
        year, day = today(settings, context.scheduled_execution_time).key, context.scheduled_execution_time.date()
        for key in active:
            yield dg.RunRequest(run_key=f"{key}:{day}", partition_key=roster_key(key, year))

    return nightly


def nightly_merge(settings: Settings) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"nightly_{MERGE_JOB}",
        job_name=MERGE_JOB,
        cron_schedule=settings.merge_cron,
        execution_timezone=settings.time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Merges, once a day, what is still out of date: a merge that failed is tried again here.",
    )
    def nightly(context: dg.ScheduleEvaluationContext, roster: Roster) -> Iterator[dg.RunRequest | dg.SkipReason]:
        day = context.scheduled_execution_time.date()
        stale = [year for year in roster.snapshots.good_years() if roster.merges.stale_districts(year)]
        if not stale:
            yield dg.SkipReason("Every roster is up to date.")
        for year in stale:
            yield dg.RunRequest(run_key=f"{year}:{day}", partition_key=year)

    return nightly
