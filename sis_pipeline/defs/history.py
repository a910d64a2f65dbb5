"""Dagster's own history: old runs and their events are deleted, in Dagster's words and through its instance.
How long ticks are kept says dagster.yaml; what steps print is kept nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
from sqlalchemy import Engine

from sis_pipeline.db import audit
from sis_pipeline.defs.instance import dagster_instance, has_own_history
from sis_pipeline.settings import Settings

OVER = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
AT_ONCE = 500


def forget(settings: Settings, engine: Engine, *, dry_run: bool = False) -> dict[str, int]:
    """Delete the runs that ended more than `runs_days` ago, with their events; how many, or with `dry_run` would be.

    Nothing is deleted of a Dagster that somebody else runs. What last materialised a partition of an asset stays, so that Dagster goes on knowing what is there and since when.
    """
    if not has_own_history(settings):
        return {"runs": 0}
    before = datetime.now(UTC) - timedelta(days=settings.runs_days)
    filters = dg.RunsFilter(statuses=list(OVER), updated_before=before)
    forgotten, cursor = 0, None
    with dagster_instance(settings) as instance:
        needed = _newest_of_every_partition(instance)
        while records := instance.get_run_records(filters, limit=AT_ONCE, cursor=cursor, ascending=True):
            runs = [record.dagster_run.run_id for record in records]
            old = [run_id for run_id in runs if run_id not in needed]
            forgotten += len(old)
            if old and not dry_run:
                _delete(instance, engine, old)
            left = [run_id for run_id in runs if dry_run or run_id in needed]
            cursor = left[-1] if left else cursor  # a run that is gone is no place to go on from
    return {"runs": forgotten}


def _delete(instance: dg.DagsterInstance, engine: Engine, run_ids: Sequence[str]) -> None:
    for run_id in run_ids:
        instance.delete_run(run_id)
    with engine.begin() as connection:
        audit.append(connection, "retention.delete", "runs", details={"runs": len(run_ids)})


def _newest_of_every_partition(instance: dg.DagsterInstance) -> set[str]:
    """The runs that last materialised an asset, or a partition of one."""
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION
    found = set()
    for key in instance.all_asset_keys():
        newest = [*instance.get_latest_storage_id_by_partition(key, kind).values()]
        for start in range(0, len(newest), AT_ONCE):
            ids = newest[start : start + AT_ONCE]
            made = instance.fetch_materializations(dg.AssetRecordsFilter(key, storage_ids=ids), limit=len(ids))
            found |= {record.run_id for record in made.records}
        last = instance.get_latest_materialization_event(key)
        found |= {last.run_id} if last else set()
    return found
