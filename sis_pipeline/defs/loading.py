"""The two halves of a sync: reading a system into a snapshot, and judging what was read. No Dagster in here.
How a system is read is its provider's business, what a row may hold roster.validate's, where things are kept the store's."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pandas as pd
import structlog
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from sis_pipeline.connect.errors import (
    ConfigError,
    DataError,
    ErrorClass,
    InternalError,
    SisError,
    TransientError,
    source_status,
)
from sis_pipeline.connect.log import about
from sis_pipeline.connect.source import Report
from sis_pipeline.defs import unchanged
from sis_pipeline.defs.checks import (
    EntityFinding,
    ReferenceFinding,
    entity_finding,
    reference_finding,
    unknown_codes,
)
from sis_pipeline.defs.deltas import Way, against, choose, drift_in_words, measure, unfit
from sis_pipeline.defs.failures import foreseen, trouble
from sis_pipeline.defs.identity import recognised
from sis_pipeline.defs.progress import tell
from sis_pipeline.defs.resources import Connection, ProviderResource, Roster, Traffic
from sis_pipeline.providers import registry
from sis_pipeline.providers.base import Page, Plan, Provider, RawSnapshot, Resource
from sis_pipeline.providers.columns import Memory, Remembered
from sis_pipeline.providers.decoding import without_collecting
from sis_pipeline.providers.deltas import REFUSED, DeltaRefusedError, ServerClock, Unheeded
from sis_pipeline.providers.layers import Layered
from sis_pipeline.providers.reading import Reading, read, verdict
from sis_pipeline.roster.model import ENTITIES
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.validate import Referenced, UnknownColumns, Validated, quarantine_dangling, validate
from sis_pipeline.store.decoded import Decoded, discard, hand_on
from sis_pipeline.store.files import digest
from sis_pipeline.store.integrations import Integration, in_words
from sis_pipeline.store.keeping_out import Remaining, marks, without_erased
from sis_pipeline.store.locks import AlreadyRunningError, integration_lock, judging_lock
from sis_pipeline.store.snapshots import Snapshot, SnapshotWriter

log = structlog.get_logger(__name__)

Say = Callable[[str], Any]

PASSING = frozenset({ErrorClass.TRANSIENT, ErrorClass.RATE_LIMITED, ErrorClass.AUTH_EXPIRED})
"""After these a reading is left for the next sync to go on with; after any other nothing of it can be relied on. A token
that is refused at the last attempt is one that a new token may follow; one that nothing follows is `auth_revoked`."""


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
    door: Report | None

    @property
    def reasons(self) -> list[str]:
        """Per resource that is not proven complete: why."""
        return [f"{reading.resource}: {reading.reason}" for reading in self.readings if not reading.complete]


@dataclass(frozen=True)
class RosterLoad:
    """What a snapshot is worth: its findings by entity, and the verdict they lead to.

    `unknown_codes`: see checks.unknown_codes. `placeholders`: by entity, rows that the vendor keeps for nobody, which the
    provider left out. What deltas had missed is with the snapshot.
    """

    snapshot: Snapshot
    entities: Mapping[str, EntityFinding]
    references: ReferenceFinding
    unknown_codes: Mapping[str, Mapping[str, int]]
    placeholders: Mapping[str, int]

    @property
    def failed(self) -> list[str]:
        """What keeps the snapshot from being merged, in words."""
        return [
            *(f"{one.entity}: {one.problem}" for one in self.entities.values() if one.problem),
            *self.references.problems,
        ]


def load_raw(
    resource: ProviderResource,
    key: str,
    year: SchoolYear,
    run_id: str,
    say: Say,
    *,
    retry: int = 0,
    full: bool = False,
) -> RawLoad:
    """Read an integration's school year into a snapshot, as the only process that does: a new one, or that of a reading
    which was interrupted.

    Where the settings say so only what changed is read, unless `full` or deltas.choose want everything. A source that
    refuses the question for changes is read whole, at once.

    `retry`: how often this run has tried before. Raises what the provider and its door raise, after the snapshot is
    left to be gone on with, or closed as abandoned where that makes no sense; and AlreadyRunningError.
    """
    roster = resource.roster
    integration = resource.find(key)
    facts = {"integration": key, "school_year": year.key, "run": run_id}
    with about(**facts), integration_lock(roster.engine, key, year.key, run_id=run_id):
        try:
            try:
                return _load(resource, integration, year, run_id, say, full=full)
            except DeltaRefusedError as refused:
                say(f"{key}: {refused.message} Everything is read instead. {refused.advice}")
                return _load(resource, integration, year, run_id, say, full=True)
        except BaseException as error:
            _note(roster, key, error, retry=retry)
            raise


def _load(
    resource: ProviderResource, integration: Integration, year: SchoolYear, run_id: str, say: Say, *, full: bool
) -> RawLoad:
    roster = resource.roster
    writer = _writer(roster, integration, year, run_id, say, full=full)
    try:
        with resource.connect(integration, writer.snapshot.snapshot_id) as connection:
            way = _way(roster, connection.provider, writer, full=full)
            return _read(roster, connection, writer, year, say, way=way)
    except BaseException as error:
        _stop(writer, error)
        raise


def _writer(
    roster: Roster, integration: Integration, year: SchoolYear, run_id: str, say: Say, *, full: bool
) -> SnapshotWriter:
    """Where the reading goes on that was interrupted, or a new one begins."""
    settings_hash = digest(json.dumps(dict(integration.settings), sort_keys=True).encode())
    found = roster.snapshots.go_on(
        integration.key,
        integration.provider,
        year.key,
        run_id,
        settings_hash=settings_hash,
        within=timedelta(hours=roster.settings.resume_hours),
    )
    if found is not None and full and found.snapshot.base_snapshot_id is not None:
        found.abandon("it read changes, and then everything was asked for")
        found = None
    if found is None:
        return roster.snapshots.begin(
            integration.key, integration.provider, year.key, run_id, settings_hash=settings_hash
        )
    began = f"{found.snapshot.started_at:%Y-%m-%d %H:%M} UTC"
    say(f"{integration.key}: going on with the reading of {began}, which had kept {found.pages_before:,} pages.")
    return found


def _way(roster: Roster, provider: Provider, writer: SnapshotWriter, *, full: bool) -> Way:
    """How to read; a reading that goes on, goes on as it was begun."""
    store, snapshot = roster.snapshots, writer.snapshot
    if writer.pages_before:
        base = snapshot.base_snapshot_id
        return Way(tuple(store.chain(store.get(base)))) if base else Way()
    head = store.head(snapshot.integration, snapshot.school_year)
    return choose(provider, store.chain(head), snapshot.settings_hash or "", full=full)


def _stop(writer: SnapshotWriter, error: BaseException) -> None:
    """What a failed reading leaves: its pages, for the next sync to go on behind them, or a snapshot that is closed.

    An interruption, a full disk and a lost database say nothing against what was read. What another process has taken
    over is left to it.
    """
    if writer.closed:
        return
    reason = trouble(error).message
    passing = error.error_class in PASSING if isinstance(error, SisError) else not isinstance(error, Exception)
    try:
        if not passing and not isinstance(error, OSError | OperationalError | InterfaceError):
            writer.abandon(reason)
            return
        pages = writer.interrupt(reason)
    except AlreadyRunningError:
        log.warning("reading.taken_over", integration=writer.snapshot.integration)
        return
    except SQLAlchemyError:
        # Without the database nothing can be noted; the unfinished row says enough to the next sync.
        log.warning("reading.not_noted", integration=writer.snapshot.integration)
        return
    if pages and isinstance(error, SisError):
        error.message += f" The {pages:,} pages read until then are kept; the next sync goes on from there."


def _read(
    roster: Roster, connection: Connection, writer: SnapshotWriter, year: SchoolYear, say: Say, *, way: Way
) -> RawLoad:
    provider, key = connection.provider, connection.integration.key
    began = time.monotonic()
    clock = ServerClock()
    plan = _planned(roster, connection, clock, year, way)
    began_at = writer.snapshot.watermark or clock.first or writer.snapshot.started_at
    lone = plan.delta and plan.since is None
    writer.build_on(way.head if plan.since else None, since=plan.since, watermark=None if lone else began_at)
    planned_seconds = plan.calls * 60 / provider.rate if connection.traffic else 0.0
    _tell_plan(plan, provider, planned_seconds, connection, say)

    progress = _Progress(connection, plan, say)
    unheeded = Unheeded(plan.since) if plan.since else None
    try:
        readings = read(
            plan,
            connection.source.send,
            provider.decode,
            _sink(writer, unheeded),
            progress,
            kept=writer.before,
            say=say,
            others=[door.send for door in connection.others],
        )
    except SisError as error:
        if plan.since and source_status(error) in REFUSED:
            raise DeltaRefusedError(
                f"{key} refuses to be asked for changes (HTTP {error.context['status']}).",
                advice="Set `reads` to full to save the vain question.",
            ) from None
        raise
    if plan.since:
        readings = against(way, readings)
    if unheeded and (note := unheeded.in_words()):
        say(f"Note: {note}")
        plan = replace(plan, notes=(*plan.notes, note))
    traffic = connection.traffic or Traffic(0, 0, 0, 0.0)
    completeness = "delta" if plan.delta else verdict(readings)
    # After changes that did not all come, the next one asks for the same again, and more.
    builds = not plan.since or verdict(readings) == "complete"
    snapshot = writer.finish(readings, completeness, traffic.calls, time.monotonic() - began, builds=builds)
    return RawLoad(
        snapshot=snapshot,
        plan=plan,
        readings=tuple(readings),
        calls=traffic.calls,
        token_calls=traffic.token_calls,
        throttled=traffic.throttled,
        waited_seconds=traffic.waited_seconds,
        planned_seconds=planned_seconds,
        door=connection.report(),
    )


def _planned(roster: Roster, connection: Connection, clock: ServerClock, year: SchoolYear, way: Way) -> Plan:
    """What to read: what changed, where that is the way and can be laid over what was read before, or everything."""
    provider, key = connection.provider, connection.integration.key
    rows, pages = roster.snapshots.last_rows(key, year.key), roster.snapshots.last_pages(key, year.key)
    rows = {name: count for name, count in rows.items() if name not in provider.settings.gone}
    planning, why = clock.listening(recognised(roster, connection)), way.why
    if way.chain and way.head.watermark is not None:
        plan = provider.plan_delta(planning, year, way.head.watermark, rows)
        why = unfit(plan, way, clock.first) if plan.since else ""
        if not why:
            return plan.after(pages)
    plan = provider.plan(planning, year, rows).after(pages)
    return replace(plan, notes=(*plan.notes, f"Everything is read, because {why}.")) if why else plan


def _tell_plan(plan: Plan, provider: Provider, seconds: float, connection: Connection, say: Say) -> None:
    rows = sum(resource.expected_rows or 0 for resource in plan.resources)
    limit = f" at {provider.rate} requests a minute" if connection.traffic else ""
    few = "at least " if plan.basis == "first_read" and connection.traffic else ""
    say(
        f"{connection.integration.key}: {len(plan.resources)} resources, about {rows:,} rows in {few}{plan.calls:,} calls "
        f"(known from: {plan.basis.replace('_', ' ')}); about {seconds:,.0f} s{limit}."
    )
    for note in plan.notes:
        say(f"Note: {note}")
    tell("plan", calls=plan.calls, seconds=seconds, rows=rows, basis=plan.basis, notes=list(plan.notes))


def _sink(writer: SnapshotWriter, unheeded: Unheeded | None) -> Callable[[Resource, Page], None]:
    def keep(resource: Resource, page: Page) -> None:
        if unheeded is not None:
            unheeded.look(resource, page)
        writer.add_page(
            resource.name,
            resource.about,
            page.number,
            page.body,
            len(page.records),
            origin=page.origin,
            total=page.total,
            kept=page.kept,
        )

    return keep


class _Progress:
    """Says every page, with the rows of all resources so far, and how many calls it takes by what is known now."""

    def __init__(self, connection: Connection, plan: Plan, say: Say) -> None:
        self._connection, self._plan, self._say = connection, plan, say
        self._rows: dict[str, int] = {}

    def __call__(self, resource: str, page: int, rows: int, expected: int | None) -> None:
        self._rows[resource] = rows
        traffic = self._connection.traffic
        calls = traffic.calls if traffic else 0
        ahead = sum(one.calls for one in self._plan.resources if one.name not in self._rows)
        of = f" of about {expected:,}" if expected else ""
        self._say(f"{resource}: page {page}, {rows:,}{of} rows")
        rows_so_far = sum(self._rows.values())
        planned = max(self._plan.calls, calls + ahead)
        tell("page", resource=resource, page=page, calls=calls, planned=planned, rows=rows_so_far)


def _note(roster: Roster, key: str, error: BaseException | None, *, retry: int = 0) -> None:
    """Keep how the connection did: what failed, or that a sync came to its end.

    An interruption says nothing about it, nor does another process that syncs it already. An integration that was
    removed meanwhile has no status any more; and what failed because the database is gone can't be kept there.
    """
    if isinstance(error, AlreadyRunningError) or not isinstance(error, Exception | None):
        return
    if error is not None:
        error = foreseen(error) or InternalError(trouble(error).message, code="internal.unexpected")
    with suppress(ConfigError, SQLAlchemyError):
        roster.integrations.note_sync(key, error, counts=retry == 0)


def load_roster(roster: Roster, key: str, year: SchoolYear, run_id: str, say: Say, *, full: bool = False) -> RosterLoad:
    """Standardise, validate and keep the newest reading of an integration's school year, and set its verdict.

    Pages and records that came before are not decoded again, unless `full`. One bad row is set aside with its reasons; a
    snapshot that fails a check is rejected as a whole. With that a sync has come to its end, which the integration's
    status shows. Raises ConfigError where nothing was read yet, what the provider raises for a body that breaks its
    contract, and AlreadyRunningError where another judging, or an erasure, is waited for in vain.
    """
    facts = {"integration": key, "school_year": year.key, "run": run_id}
    try:
        with about(**facts), judging_lock(roster.engine, key, year.key, run_id=run_id, say=say):
            loaded = _judged(roster, key, year, run_id, say, full=full)
    except BaseException as error:
        _note(roster, key, error)
        raise
    failed = "; ".join(loaded.failed)
    _note(roster, key, DataError(f"The snapshot is rejected. {failed}.", code="data.rejected") if failed else None)
    return loaded


def _judged(roster: Roster, key: str, year: SchoolYear, run_id: str, say: Say, *, full: bool) -> RosterLoad:
    integration = roster.integrations.get(key)
    provider = registry.make(integration.provider, dict(integration.settings))
    snapshot = roster.snapshots.latest_read(key, year.key, run_id=run_id)
    if snapshot is None:
        raise ConfigError(
            f"{key} was never read for {year}.",
            code="config.no_snapshot",
            advice=f"Materialise {provider.name}/raw_roster first.",
        )
    kept_out = marks(roster.engine, key)
    judged_by = unchanged.judged_by(provider, kept_out)
    last = roster.snapshots.last_good(snapshot)
    before = None if full else unchanged.taken_over(roster.snapshots, judged_by, snapshot)
    decoded: Decoded | None = None
    if before is not None:
        snapshot, found = before
        hand_on(roster.snapshots.files, snapshot, last)
        say(f"{key}: the pages are those of the last good snapshot; what was made of them is taken over.")
    else:
        decoded = Decoded(roster.snapshots.files, snapshot, judged_by, last, full=full)
        standard = _standard(provider, roster, snapshot, decoded)
        remaining = without_erased(lambda: roster.vault, key, kept_out, standard)
        snapshot, found = _examined(provider, roster, snapshot, remaining, say)
    _keep_nobody_erased(roster, snapshot, kept_out)
    unchanged.keep(roster.snapshots, judged_by, snapshot, found)
    failed = any(one.problem for one in found.entities.values()) or bool(found.references.problems)
    proven = snapshot.completeness or "partial"
    snapshot = roster.snapshots.set_verdict(snapshot.snapshot_id, "rejected" if failed else proven)
    if decoded:
        decoded.settle(good=snapshot.good)
    if snapshot.verdict == "complete" and (missed := measure(roster.snapshots, snapshot)):
        snapshot = roster.snapshots.keep_drift(snapshot.snapshot_id, missed)
        say(f"{key}: {drift_in_words(missed)}")
    return RosterLoad(snapshot, found.entities, found.references, found.unknown_codes, found.placeholders)


def _keep_nobody_erased(roster: Roster, snapshot: Snapshot, kept_out: frozenset[str]) -> None:
    """The lock that keeps erasures out ends with its connection, as where PostgreSQL starts anew: then one may have come, and
    what was made of the pages goes. The next sync judges them again."""
    key = snapshot.integration
    if marks(roster.engine, key) == kept_out:
        return
    roster.snapshots.discard_roster(snapshot)
    discard(roster.snapshots.files, snapshot)
    raise TransientError(
        f"A student of {key} was erased while what was read was judged.",
        code="transient.superseded",
        advice="Run the sync again; what was made of the pages was deleted.",
        integration=key,
    )


def _examined(
    provider: Provider, roster: Roster, snapshot: Snapshot, remaining: Remaining, say: Say
) -> tuple[Snapshot, unchanged.Findings]:
    """Validate what the pages of a snapshot were decoded to, and keep it."""
    key = snapshot.integration
    standard = remaining.frames
    if remaining.taken_out:
        say(f"{key}: set aside, as of students who were erased: {_counts(remaining.taken_out)}.")
    say(f"{key}: {_counts({name: len(frame) for name, frame in standard.items()})} to validate.")

    validated = {name: _validated(provider, name, frame, snapshot) for name, frame in standard.items()}
    good = {name: one.frame for name, one in validated.items()}
    # What a delta refers to may have come with an earlier snapshot, so nothing can be said to be missing, unless it is
    # laid over that snapshot.
    delta = snapshot.completeness == "delta" and snapshot.base_snapshot_id is None
    referenced = Referenced(good, {}, ()) if delta else quarantine_dangling(good)
    rejected = {name: _rejected(one, referenced, standard[name], name) for name, one in validated.items()}
    snapshot = roster.snapshots.write_roster(snapshot, referenced.frames, rejected, standard, remaining.taken_out)

    promised = frozenset[str]() if delta else provider.capabilities.entities
    entities = {
        name: entity_finding(name, promised, validated.get(name), referenced.frames.get(name)) for name in ENTITIES
    }
    references = reference_finding(validated, referenced)
    placeholders = {name: count for name, frame in standard.items() if (count := frame.attrs.get("placeholders", 0))}
    if placeholders:
        say(f"{key}: left out as the vendor's placeholders: {_counts(placeholders)}.")
    return snapshot, unchanged.Findings(entities, references, unknown_codes(standard), placeholders)


def _counts(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {entity}" for entity, count in rows.items())


def _standard(provider: Provider, roster: Roster, snapshot: Snapshot, memory: Memory) -> dict[str, pd.DataFrame]:
    try:
        with without_collecting():
            frames = provider.standardise(Remembered(_raw(provider, roster, snapshot), memory))
    except DataError:
        roster.snapshots.build_no_more(roster.snapshots.chain(snapshot)[0].snapshot_id)
        raise
    unknown = sorted(set(frames) - set(ENTITIES))
    if unknown:
        raise InternalError(
            f"The provider {provider.name} delivers {', '.join(unknown)}, which the roster model does not know.",
            code="internal.plugin",
            advice="Correct the plugin; `sis_pipeline.roster.model.ENTITIES` lists what it may deliver.",
        )
    return {name: frames[name] for name in ENTITIES if name in frames}


def _raw(provider: Provider, roster: Roster, snapshot: Snapshot) -> RawSnapshot:
    """The pages of a full reading, or those of a delta laid over what was read before.

    Raises DataError for a file of it that is gone or was changed: the next sync then reads everything.
    """
    store = roster.snapshots
    if snapshot.base_snapshot_id is None:
        return store.open_raw(snapshot.snapshot_id)
    return Layered(provider, [store.open_raw(one.snapshot_id) for one in store.chain(snapshot)])


def _validated(provider: Provider, entity: str, frame: pd.DataFrame, snapshot: Snapshot) -> Validated:
    try:
        return validate(entity, frame, today=snapshot.started_at.date())
    except UnknownColumns as error:
        raise InternalError(
            f"{provider.name}: {error}", code="internal.plugin", advice="Correct the plugin's mapping."
        ) from None


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
    """Prove with a few cheap calls that settings and credentials are right and reach the right district.

    Returns a sentence for the person; the integration's status shows what it proves.
    """
    integrations = resource.roster.integrations
    try:
        with resource.connect(integration) as connection:
            sentence = connection.provider.check(recognised(resource.roster, connection))
    except SisError as error:
        integrations.note_test(integration.key, error)
        raise
    districts = integrations.note_test(integration.key, None).source_identity
    whose = f" The data are those of district {in_words(districts)}." if districts else ""
    return f"{sentence}{whose}"
