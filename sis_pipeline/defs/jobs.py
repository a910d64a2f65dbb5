"""The jobs: one sync per provider, one merge. Dagster refuses a job over several providers, whose partitions differ;
the `sis` command fans out over them instead."""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

MERGE_JOB = "merge_rosters"
SYNC_HOURS = 12
"""A large district at a slow vendor: 40,000 calls at 60 a minute."""
MERGE_HOURS = 2


def sync_job_name(provider: str) -> str:
    return f"sync_{provider}"


def sync_job(provider: str, assets: Iterable[dg.AssetsDefinition]) -> UnresolvedAssetJobDefinition:
    return dg.define_asset_job(
        sync_job_name(provider),
        selection=dg.AssetSelection.assets(*assets),
        description=f"Read one integration of {provider} for one school year, validate it, and judge what it proves.",
        executor_def=dg.in_process_executor,
        run_tags={"dagster/max_runtime": str(SYNC_HOURS * 3600)},
        tags={"sis/provider": provider},
    )


def merge_job(assets: Iterable[dg.AssetsDefinition]) -> UnresolvedAssetJobDefinition:
    return dg.define_asset_job(
        MERGE_JOB,
        selection=dg.AssetSelection.assets(*assets),
        description="Merge every district of one school year from its latest good snapshots, and publish the result.",
        executor_def=dg.in_process_executor,
        run_tags={"dagster/max_runtime": str(MERGE_HOURS * 3600)},
    )
