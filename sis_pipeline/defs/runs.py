"""Running the real jobs in this process, recorded in the instance, for the `sis` command.
Fanning out over integrations, and what is shown to a person, is the command's business."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import dagster as dg
import psutil

from sis_pipeline.connect.errors import POLICIES, ConfigError, ErrorClass
from sis_pipeline.defs import identity, loading
from sis_pipeline.defs.assembly import build_defs
from sis_pipeline.defs.assets import PUBLISHED, raw_key, roster_asset_key
from sis_pipeline.defs.deltas import FULL_TAG
from sis_pipeline.defs.failures import LAUNCHED_BY, Trouble
from sis_pipeline.defs.instance import dagster_instance
from sis_pipeline.defs.jobs import MERGE_JOB, sync_job_name
from sis_pipeline.defs.partitions import check_school_year, integrations_name, roster_key, school_year_partitions
from sis_pipeline.defs.progress import Listener, told_to
from sis_pipeline.defs.resources import ProviderResource, Roster, provider_resource
from sis_pipeline.defs.sensors import UNDER_WAY
from sis_pipeline.providers.registry import load_providers
from sis_pipeline.settings import Settings
from sis_pipeline.store.integrations import Integration

HOST, PID, PROCESS_STARTED = "sis/host", "sis/pid", "sis/process_started"
CLOCK_TOLERANCE = 2.0
"""Seconds by which a process start time may differ between readings: it is counted from a boot time that is rounded."""


@dataclass(frozen=True)
class SyncResult:
    """What a sync gave. `rows`, `quarantined`: by entity. `unknown_codes`: values by column and code that the provider's
    tables do not know. `error`: None for success."""

    integration: str
    school_year: str
    run_id: str
    success: bool
    verdict: str | None = None
    completeness: str | None = None
    snapshot_id: str | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    quarantined: Mapping[str, int] = field(default_factory=dict)
    unknown_codes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    api_calls: int = 0
    token_calls: int = 0
    planned_calls: int = 0
    seconds: float = 0.0
    waited_seconds: float = 0.0
    error: Trouble | None = None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "error": self.error.as_json() if self.error else None}


@dataclass(frozen=True)
class MergeResult:
    """What a merge gave. `districts`: one entry per district, see merging.DistrictPublication.summary."""

    school_year: str
    run_id: str
    success: bool
    districts: Sequence[Mapping[str, Any]] = ()
    error: Trouble | None = None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "error": self.error.as_json() if self.error else None}


def run_sync(
    integration: str,
    school_year: str,
    *,
    instance: dg.DagsterInstance | None = None,
    launched_by: str = "sis",
    on_event: Listener | None = None,
    full: bool = False,
) -> SyncResult:
    """Read and validate one integration's school year, here and now; `full`: everything, even where its settings ask for
    changes only.

    Raises ConfigError for an unknown integration or year; what goes wrong in the run is the result's `error`.
    Settings are those of the environment. `on_event` is told of the plan and of every page, see progress.Listener.
    """
    year = _known_year(school_year)
    provider = _registered_provider(integration)
    with _opened(instance) as opened:
        opened.add_dynamic_partitions(integrations_name(provider), [integration])
        with told_to(on_event):
            key, more = roster_key(integration, year), {FULL_TAG: "true"} if full else {}
            done = _execute(opened, sync_job_name(provider), key, launched_by, more)
    raw, roster = _materialised(done, raw_key(provider)), _materialised(done, roster_asset_key(provider))
    return SyncResult(
        integration=integration,
        school_year=year,
        run_id=done.run_id,
        success=done.success,
        verdict=roster.get("verdict"),
        completeness=raw.get("completeness"),
        snapshot_id=raw.get("snapshot_id"),
        rows=roster.get("rows_per_entity", {}),
        quarantined=roster.get("quarantined_per_entity", {}),
        unknown_codes=roster.get("unknown_codes_per_column", {}),
        **{
            name: raw.get(name, 0)
            for name in ("api_calls", "token_calls", "planned_calls", "seconds", "waited_seconds")
        },
        error=_error(done),
    )


def run_merge(
    school_year: str,
    *,
    instance: dg.DagsterInstance | None = None,
    launched_by: str = "sis",
    full: bool = False,
) -> MergeResult:
    """Merge and publish one school year, here and now; `full`: all of it, even what did not change. Raises ConfigError for
    an unknown year."""
    year = _known_year(school_year)
    with _opened(instance) as opened:
        done = _execute(opened, MERGE_JOB, year, launched_by, {FULL_TAG: "true"} if full else {})
    published = _materialised(done, dg.AssetKey(PUBLISHED))
    return MergeResult(year, done.run_id, done.success, _districts(published), _error(done))


def check_integration(settings: Settings, key: str) -> str:
    """Prove with a few cheap calls an integration's settings and credentials; what was found, in a sentence."""
    with _resource_of(settings, key) as (resource, integration):
        return loading.check_integration(resource, integration)


def districts_behind(settings: Settings, key: str) -> frozenset[str]:
    """The districts whose data an integration's credentials reach now, as ids; empty where its system can't tell."""
    with _resource_of(settings, key) as (resource, integration):
        return identity.districts_behind(resource, integration)


@contextmanager
def _resource_of(settings: Settings, key: str) -> Iterator[tuple[ProviderResource, Integration]]:
    roster = Roster()
    roster.__dict__["settings"] = settings
    try:
        integration = roster.integrations.get(key)
        yield _resource(integration.provider)(roster=roster), integration
    finally:
        roster.close()


@dataclass(frozen=True, slots=True)
class OrphanedRun:
    """A run that a process of this machine left open when it ended."""

    run_id: str
    job_name: str
    pid: int


def orphaned_runs(settings: Settings) -> list[OrphanedRun]:
    with dagster_instance(settings) as instance:
        return [_orphan(run) for run in _orphans(instance)]


def fail_orphaned_runs(instance: dg.DagsterInstance) -> list[OrphanedRun]:
    """Fail the runs of `sis` processes of this machine that are gone: a killed one stays started for ever otherwise."""
    orphans = _orphans(instance)
    for run in orphans:
        instance.report_run_failed(run, f"The process that ran it (pid {run.tags[PID]}) is gone.")
    return [_orphan(run) for run in orphans]


def _orphans(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    # Killed before its first event, a run is not even started, and nobody is there to start it.
    open_ones = [dg.DagsterRunStatus.NOT_STARTED, *UNDER_WAY]
    mine = dg.RunsFilter(statuses=open_ones, tags={HOST: socket.gethostname()})
    return [run for run in instance.get_runs(mine) if PID in run.tags and not _is_running(run.tags)]


def _orphan(run: dg.DagsterRun) -> OrphanedRun:
    return OrphanedRun(run.run_id, run.job_name, int(run.tags[PID]))


def _is_running(tags: Mapping[str, str]) -> bool:
    """Whether the very process is there: the same pid may have gone to another since."""
    try:
        process = psutil.Process(int(tags[PID]))
        same = abs(process.create_time() - float(tags[PROCESS_STARTED])) < CLOCK_TOLERANCE
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _opened(instance: dg.DagsterInstance | None) -> Iterator[dg.DagsterInstance]:
    """The given instance, left open, or this installation's own."""
    if instance is not None:
        yield instance
        return
    with dagster_instance(Settings()) as own:
        yield own


@cache
def _definitions() -> dg.Definitions:
    return build_defs()


def _known_year(school_year: str) -> str:
    """The key of a school year that has a partition."""
    key = check_school_year(school_year).key
    known = school_year_partitions(Settings()).get_partition_keys()
    if key not in known:
        raise ConfigError(
            f"School year {key} can't be loaded: {known[0]} to {known[-1]} can.",
            code="config.school_year",
            advice="SIS_FIRST_SCHOOL_YEAR sets the first.",
        )
    return key


def _registered_provider(integration: str) -> str:
    roster = Roster()
    try:
        return roster.integrations.get(integration).provider
    finally:
        roster.close()


def _execute(
    instance: dg.DagsterInstance,
    job: str,
    partition: str | dg.MultiPartitionKey,
    launched_by: str,
    more: Mapping[str, str] | None = None,
) -> dg.ExecuteInProcessResult:
    """`more`: tags beside those that say who runs it."""
    process = psutil.Process()
    tags = {
        LAUNCHED_BY: launched_by,
        HOST: socket.gethostname(),
        PID: str(process.pid),
        PROCESS_STARTED: f"{process.create_time():.2f}",
        **(more or {}),
    }
    found = _definitions().resolve_job_def(job)
    return found.execute_in_process(instance=instance, partition_key=partition, tags=tags, raise_on_error=False)


def _materialised(done: dg.ExecuteInProcessResult, asset: dg.AssetKey) -> dict[str, Any]:
    """The metadata of what a run materialised of an asset; empty where it did not."""
    for event in done.all_events:
        if event.is_step_materialization and event.asset_key == asset:
            shown = event.step_materialization_data.materialization.metadata
            return {name: getattr(value, "data", getattr(value, "value", None)) for name, value in shown.items()}
    return {}


def _districts(published: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"district": name, **summary} for name, summary in published.get("districts", {}).items()]


def _error(done: dg.ExecuteInProcessResult) -> Trouble | None:
    """Why a run failed, from its events: a failed step in its own words, else the blocking checks that failed."""
    if done.success:
        return None
    for event in done.all_events:
        if event.is_step_failure and event.step_failure_data.user_failure_data is not None:
            shown = event.step_failure_data.user_failure_data.metadata
            said = {name: str(value.value) for name, value in shown.items()}
            fields = Trouble.__dataclass_fields__.keys()
            return Trouble(**{name: said[name] for name in fields}) if fields <= said.keys() else _internal()
    failed = [check.description or check.check_name for check in done.get_asset_check_evaluations() if _blocks(check)]
    if not failed:
        return _internal()
    advice = POLICIES[ErrorClass.DATA].advice
    return Trouble("data.rejected", f"The snapshot is rejected and will not be merged. {'; '.join(failed)}.", advice)


def _blocks(check: dg.AssetCheckEvaluation) -> bool:
    return not check.passed and bool(check.blocking)


def _internal() -> Trouble:
    policy = POLICIES[ErrorClass.INTERNAL]
    return Trouble("internal.unexpected", "The run failed for a reason it could not tell.", policy.advice)


def _resource(provider: str) -> type[ProviderResource]:
    found = load_providers().providers.get(provider)
    if found is None:
        raise ConfigError(
            f"The provider {provider} is not installed.",
            code="config.no_provider",
            advice="`sis providers` lists what is.",
        )
    return provider_resource(found)
