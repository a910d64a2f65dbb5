"""Puts the parts together into Dagster definitions, from the registered providers. Opens nothing and asks nobody: no
database, no network, no secret."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import dagster as dg
import structlog
from pydantic import ValidationError

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.defs import assets, holding, jobs, maintenance, schedules, sensors, tokens
from sis_pipeline.defs.partitions import school_year_partitions
from sis_pipeline.defs.resources import ROSTER, Roster, provider_resource
from sis_pipeline.providers.registry import Registry, in_words, load_providers
from sis_pipeline.settings import Settings

log = structlog.get_logger(__name__)


def build_defs(
    *,
    registry: Registry | None = None,
    settings: Settings | None = None,
    resources: Mapping[str, Any] | None = None,
) -> dg.Definitions:
    """The definitions of this installation. `resources` replaces resources by key.

    A provider that can't be loaded is logged and left out; `sis providers` says why. It never breaks the others. Raises ConfigError
    where the environment is wrong.
    """
    registry = registry or load_providers()
    settings = settings or _environment()
    for failure in registry.failures:
        log.error("provider.left_out", provider=failure.name, entry_point=failure.entry_point, reason=failure.reason)
    with warnings.catch_warnings():
        # Multi to single dimension mappings and partitioned checks: no stable form of either exists.
        warnings.simplefilter("ignore", dg.BetaWarning)
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return _assemble(registry, settings, resources or {})


def _environment() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigError(
            f"Settings in the environment (SIS_*) are wrong: {in_words(error)}.",
            code="config.environment",
            advice="See docs/configuration.md.",
        ) from None


def _assemble(registry: Registry, settings: Settings, replaced: Mapping[str, Any]) -> dg.Definitions:
    years = school_year_partitions(settings)
    by_provider = {name: assets.provider_assets(one, years) for name, one in sorted(registry.providers.items())}
    merge = assets.merge_assets(list(by_provider), years)
    roster = replaced.get(ROSTER) or Roster()
    connected = {name: provider_resource(one)(roster=roster) for name, one in registry.providers.items()}
    return dg.Definitions(
        assets=[*(asset for found in by_provider.values() for asset in found), *merge],
        jobs=[
            *(jobs.sync_job(name, found) for name, found in by_provider.items()),
            jobs.merge_job(merge),
            holding.release_job(),
            maintenance.maintenance_job(),
        ],
        schedules=[
            *(schedules.nightly_sync(name, settings) for name in by_provider),
            schedules.nightly_merge(settings),
            maintenance.nightly_maintenance(settings),
        ],
        sensors=[sensors.reconcile_sensor(list(by_provider)), sensors.merge_sensor(), tokens.warm_sensor()],
        resources={ROSTER: roster, **connected, **replaced},
        # Also for runs that are started from an asset's page; a process per step is three times slower here.
        executor=dg.in_process_executor,
    )
