"""The two halves of a sync: reading a system into a snapshot, and judging what was read. No Dagster in here.
How a system is read is its provider's business, what a row may hold roster.validate's, where things are kept the store's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sis_pipeline.connect.errors import ConfigError, ErrorClass, InternalError, SisError
from sis_pipeline.defs.checks import EntityFinding, ReferenceFinding, entity_finding, reference_finding
from sis_pipeline.defs.failures import trouble
from sis_pipeline.defs.progress import tell
from sis_pipeline.defs.resources import Connection, ProviderResource, Roster
from sis_pipeline.providers import registry
from sis_pipeline.providers.base import Page, Plan, Provider, Resource
from sis_pipeline.providers.reading import Reading, read, verdict
from sis_pipeline.roster.model import ENTITIES
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.validate import Referenced, UnknownColumns, Validated, quarantine_dangling, validate
from sis_pipeline.store.integrations import Integration, Status
from sis_pipeline.store.locks import AlreadyRunningError, integration_lock
from sis_pipeline.store.snapshots import Snapshot, SnapshotWriter

Say = Callable[[str], Any]

STATUS_OF: dict[ErrorClass, Status] = {
    ErrorClass.AUTH_REVOKED: "needs_reauth",
    ErrorClass.TRANSIENT: "degraded",
    ErrorClass.RATE_LIMITED: "degraded",
    ErrorClass.AUTH_EXPIRED: "degraded",
}
"""How a connection does after an error of a class; after any other it is failing."""


@dataclass(frozen=True)
class RawLoad:
    """What a reading gave. `planned_seconds`: the planned calls at the integration's rate limit, 0 for files."""

    snapshot: Snapshot
    plan: Plan
    readings: tuple[Reading, ...]
    calls: int
    token_calls: int
    throttled: int
    waited_seconds: float
    planned_seconds: float

    @property
    def reasons(self) -> list[str]:
        """Per resource that is not proven complete: why."""
        return [f"{reading.resource}: {reading.reason}" for reading in self.readings if not reading.complete]


@dataclass(frozen=True)
class RosterLoad:
    """What a snapshot is worth: its findings by entity, and the verdict they lead to."""

    snapshot: Snapshot
    entities: Mapping[str, EntityFinding]
    references: ReferenceFinding

    @property
    def failed(self) -> list[str]:
        """What keeps the snapshot from being merged, in words."""
        return [
            *(f"{one.entity}: {one.problem}" for one in self.entities.values() if one.problem),
            *self.references.problems,
        ]


def load_raw(resource: ProviderResource, key: str, year: SchoolYear, run_id: str, say: Say) -> RawLoad:
    """Read an integration's school year into a new snapshot, as the only process that does.

    Raises what the provider and its door raise, after the snapshot is closed as abandoned; and AlreadyRunningError.
    """
    roster = resource.roster
    integration = resource.find(key)
    with integration_lock(roster.engine, key, year.key, run_id=run_id):
        writer = roster.snapshots.begin(key, integration.provider, year.key, run_id)
        try:
            with resource.connect(integration, writer.snapshot.snapshot_id) as connection:
                loaded = _read(roster, connection, writer, year, say)
        except BaseException as error:
            # Also when interrupted: a reading that did not end must not look like one that goes on.
            writer.abandon(trouble(error).message)
            _note(roster, key, error)
            raise
    _note(roster, key, None)
    return loaded


def _read(roster: Roster, connection: Connection, writer: SnapshotWriter, year: SchoolYear, say: Say) -> RawLoad:
    provider, key = connection.provider, connection.integration.key
    began = time.monotonic()
    plan = provider.plan(connection.source, year, roster.snapshots.last_rows(key, year.key))
    plan = plan.after(roster.snapshots.last_pages(key, year.key))
    planned_seconds = plan.calls * 60 / provider.rate if connection.http else 0.0
    _tell_plan(plan, provider, planned_seconds, connection, say)

    progress = _Progress(connection, plan, say)
    readings = read(plan, connection.source.send, provider.decode, _sink(writer), progress)
    http = connection.http
    completeness = "delta" if plan.delta else verdict(readings)
    snapshot = writer.finish(readings, completeness, http.calls if http else 0, time.monotonic() - began)
    return RawLoad(
        snapshot=snapshot,
        plan=plan,
        readings=tuple(readings),
        calls=http.calls if http else 0,
        token_calls=http.token_calls if http else 0,
        throttled=http.throttled if http else 0,
        waited_seconds=http.waited_seconds if http else 0.0,
        planned_seconds=planned_seconds,
    )


def _tell_plan(plan: Plan, provider: Provider, seconds: float, connection: Connection, say: Say) -> None:
    rows = sum(resource.expected_rows or 0 for resource in plan.resources)
    limit = f" at {provider.rate} requests a minute" if connection.http else ""
    few = "at least " if plan.basis == "first_read" and connection.http else ""
    say(
        f"{connection.integration.key}: {len(plan.resources)} resources, about {rows:,} rows in {few}{plan.calls:,} calls "
        f"(known from: {plan.basis.replace('_', ' ')}); about {seconds:,.0f} s{limit}."
    )
    for note in plan.notes:
        say(f"Note: {note}")
    tell("plan", calls=plan.calls, seconds=seconds, rows=rows, basis=plan.basis, notes=list(plan.notes))


def _sink(writer: SnapshotWriter) -> Callable[[Resource, Page], None]:
    def keep(resource: Resource, page: Page) -> None:
        writer.add_page(resource.name, resource.about, page.number, page.body, len(page.records))

    return keep


class _Progress:
    """Says every page, with the rows of all resources so far, and how many calls it takes by what is known now."""

    def __init__(self, connection: Connection, plan: Plan, say: Say) -> None:
        self._connection, self._plan, self._say = connection, plan, say
        self._rows: dict[str, int] = {}

    def __call__(self, resource: str, page: int, rows: int, expected: int | None) -> None:
        self._rows[resource] = rows
        calls = self._connection.http.calls if self._connection.http else 0
        ahead = sum(one.calls for one in self._plan.resources if one.name not in self._rows)
        of = f" of about {expected:,}" if expected else ""
        self._say(f"{resource}: page {page}, {rows:,}{of} rows")
        rows_so_far = sum(self._rows.values())
        planned = max(self._plan.calls, calls + ahead)
        tell("page", resource=resource, page=page, calls=calls, planned=planned, rows=rows_so_far)


def _note(roster: Roster, key: str, error: BaseException | None) -> None:
    """Keep how the connection did. An integration that was removed meanwhile has no status any more."""
    if error is not None and (not isinstance(error, SisError) or isinstance(error, AlreadyRunningError)):
        return
    with suppress(ConfigError):
        if error is None:
            roster.integrations.set_status(key, "healthy")
        else:
            roster.integrations.set_status(key, STATUS_OF.get(error.error_class, "failing"), error.message)


def load_roster(roster: Roster, key: str, year: SchoolYear, run_id: str, say: Say) -> RosterLoad:
    """Standardise, validate and keep the newest reading of an integration's school year, and set its verdict.

    One bad row is set aside with its reasons; a snapshot that fails a check is rejected as a whole. Raises ConfigError
    where nothing was read yet, and what the provider raises for a body that breaks its contract.
    """
    integration = roster.integrations.get(key)
    provider = registry.make(integration.provider, dict(integration.settings))
    snapshot = roster.snapshots.latest_read(key, year.key, run_id=run_id)
    if snapshot is None:
        raise ConfigError(f"{key} was never read for {year}.", advice=f"Materialise {provider.name}/raw_roster first.")
    standard = _standard(provider, roster, snapshot)
    say(f"{key}: " + ", ".join(f"{len(frame):,} {name}" for name, frame in standard.items()) + " to validate.")

    validated = {name: _validated(provider, name, frame, snapshot) for name, frame in standard.items()}
    good = {name: one.frame for name, one in validated.items()}
    # What a delta refers to may have come with an earlier snapshot, so nothing can be said to be missing.
    delta = snapshot.completeness == "delta"
    referenced = Referenced(good, {}, ()) if delta else quarantine_dangling(good)
    rejected = {name: _rejected(one, referenced, standard[name], name) for name, one in validated.items()}
    snapshot = roster.snapshots.write_roster(snapshot, referenced.frames, rejected, standard)

    promised = frozenset[str]() if delta else provider.capabilities.entities
    entities = {
        name: entity_finding(name, promised, validated.get(name), referenced.frames.get(name)) for name in ENTITIES
    }
    references = reference_finding(validated, referenced)
    failed = any(one.problem for one in entities.values()) or bool(references.problems)
    proven = snapshot.completeness or "partial"
    snapshot = roster.snapshots.set_verdict(snapshot.snapshot_id, "rejected" if failed else proven)
    return RosterLoad(snapshot, entities, references)


def _standard(provider: Provider, roster: Roster, snapshot: Snapshot) -> dict[str, pd.DataFrame]:
    frames = provider.standardise(roster.snapshots.open_raw(snapshot.snapshot_id))
    unknown = sorted(set(frames) - set(ENTITIES))
    if unknown:
        raise InternalError(
            f"The provider {provider.name} delivers {', '.join(unknown)}, which the roster model does not know.",
            advice="Correct the plugin; `sis_pipeline.roster.model.ENTITIES` lists what it may deliver.",
        )
    return {name: frames[name] for name in ENTITIES if name in frames}


def _validated(provider: Provider, entity: str, frame: pd.DataFrame, snapshot: Snapshot) -> Validated:
    try:
        return validate(entity, frame, today=snapshot.started_at.date())
    except UnknownColumns as error:
        raise InternalError(f"{provider.name}: {error}", advice="Correct the plugin's mapping.") from None


def _rejected(validated: Validated, referenced: Referenced, standard: pd.DataFrame, entity: str) -> pd.DataFrame:
    """All rejected lines of an entity, `row` always counted in its standard frame."""
    removed = referenced.removed.get(entity)
    if removed is None:
        return validated.rejected
    bad = set(validated.rejected["row"])
    places = {sis_id: row for row, sis_id in enumerate(standard["sis_id"]) if row not in bad}
    rows = validated.frame["sis_id"].iloc[removed["row"].to_numpy()].map(places).to_numpy()
    return pd.concat([validated.rejected, removed.assign(row=rows)], ignore_index=True)


def check_integration(resource: ProviderResource, integration: Integration) -> str:
    """One cheap call that proves settings and credentials; a sentence for the person."""
    with resource.connect(integration) as connection:
        return connection.provider.check(connection.source)
