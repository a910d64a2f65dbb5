"""The operations of a district, to read: what was published when, by whom, from what, and what it changed.
Making one is `merged`'s and `publish`'s work, taking one back `undo`'s."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, select

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db.tables import audit_log, roster_tables, sync_operations
from sis_pipeline.store.merged import read_operation
from sis_pipeline.store.told import way_in_words

Counts = Mapping[str, int]
TOLD = ("roster.publish", "roster.undo")
"""Entries of the audit log that say who published an operation."""
HOLDS = ("hold.opened", "hold.closed", "hold.applied")


@dataclass(frozen=True, slots=True)
class Told:
    """An operation as a person is told of it. `applied`: table -> inserted, updated, deleted, unchanged. `changes`:
    ledger events by kind. `accounts`: what became of accounts. `way`: how much was merged anew, in words. `inputs`: integration -> snapshot, verdict, age.
    `withheld`: integrations whose newest snapshot was undone and is left out. `actor`, `reason`: who published it, and why it was undone where it is an undo.
    `details_expired_at`: since when `applied` and `inputs` are no longer kept."""

    operation_id: str
    district: str
    school_year: str
    epoch: int
    status: str
    started_at: datetime
    published_at: datetime | None
    run_id: str | None
    actor: str | None
    reason: str | None
    undoes: str | None
    undone_by: str | None
    superseded_by: str | None
    why_superseded: str | None
    applied: Mapping[str, Counts]
    changes: Counts
    held: int
    accounts: Counts
    way: str | None
    inputs: Mapping[str, Mapping[str, Any]]
    withheld: Sequence[str]
    details_expired_at: datetime | None


@dataclass(frozen=True, slots=True)
class LedgerCount:
    """Ledger events of one kind at one school."""

    kind: str
    school_id: str | None
    school: str | None
    events: int


@dataclass(frozen=True, slots=True)
class Detail:
    """An operation in depth. `holds`: what became of holds by it -> their ids. `conflicts`: how many it opened and
    changed, those that went stale or opened again among them."""

    operation: Told
    ledger: Sequence[LedgerCount]
    holds: Mapping[str, Sequence[str]]
    conflicts: Counts


@dataclass(frozen=True, slots=True)
class Place:
    """An operation's place among those of its district. `order`: running number of the publication."""

    operation_id: str
    school_year: str
    epoch: int
    base_epoch: int
    undoes: str | None
    order: int


@dataclass(frozen=True)
class History:
    """What was published of a district, by school year and epoch."""

    published: Mapping[str, Mapping[int, Place]]

    @classmethod
    def of(cls, connection: Connection, district: str) -> History:
        table = sync_operations.c
        query = (
            select(table.operation_id, table.school_year, table.epoch, table.base_epoch, table.undoes)
            .where(table.district == district, table.status == "published")
            .order_by(table.finished_at, table.started_at)
        )
        by_year: dict[str, dict[int, Place]] = {}
        for number, row in enumerate(connection.execute(query)):
            by_year.setdefault(row.school_year, {})[row.epoch] = Place(*row, order=number)
        return cls(by_year)

    @property
    def years(self) -> set[str]:
        return set(self.published)

    def at(self, school_year: str, epoch: int) -> Place:
        return self.published[school_year][epoch]

    def newest(self, school_year: str) -> Place:
        return self.at(school_year, max(self.published[school_year]))

    def standing(self, school_year: str) -> list[Place]:
        """The operations whose effect lasts, the last first: those that were undone are left out, and so are undos."""
        found = []
        epoch = self.newest(school_year).epoch
        while epoch:
            operation = self.at(school_year, epoch)
            if operation.undoes:
                epoch = self._base_of(school_year, operation.undoes)
            else:
                found.append(operation)
                epoch = operation.base_epoch
        return found

    def undone_by(self, operation: Place) -> Place | None:
        """The operation that undid one, None where that one stands, be it because the undo was undone in turn."""
        found = [one for one in self.published[operation.school_year].values() if one.undoes == operation.operation_id]
        last = max(found, key=lambda one: one.epoch, default=None)
        return last if last is not None and self.undone_by(last) is None else None

    def _base_of(self, school_year: str, operation_id: str) -> int:
        [undone] = [one for one in self.published[school_year].values() if one.operation_id == operation_id]
        return undone.base_epoch


class Operations:
    """The operations of this installation, to read."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def list(
        self,
        district: str | None = None,
        school_year: str | None = None,
        *,
        unpublished: bool = False,
        limit: int = 20,
    ) -> tuple[list[Told], int]:
        """The newest first, and how many there are. `unpublished`: also merges that were not published."""
        query = select(sync_operations)
        if district is not None:
            query = query.where(sync_operations.c.district == district)
        if school_year is not None:
            query = query.where(sync_operations.c.school_year == school_year)
        if not unpublished:
            query = query.where(sync_operations.c.status == "published")
        newest = func.coalesce(sync_operations.c.finished_at, sync_operations.c.started_at).desc()
        with self._engine.connect() as connection:
            total = connection.scalar(select(func.count()).select_from(query.subquery())) or 0
            rows = connection.execute(query.order_by(newest, sync_operations.c.operation_id).limit(limit)).all()
            return _told(connection, rows), total

    def show(self, operation_id: str) -> Detail:
        """Raises ConfigError where there is none."""
        with self._engine.connect() as connection:
            found = read_operation(connection, operation_id_of(operation_id))
            query = select(sync_operations).where(sync_operations.c.operation_id == found.operation_id)
            [told] = _told(connection, connection.execute(query).all())
            applied = told.applied.get("conflicts", {})
            words = {"opened": "inserted", "changed": "updated", "taken back": "deleted"}
            conflicts = {word: applied.get(count, 0) for word, count in words.items()}
            return Detail(told, _ledger(connection, told), _holds(connection, told), conflicts)


def operation_id_of(given: str) -> str:
    """Raises ConfigError for what is no operation's id."""
    try:
        return str(uuid.UUID(given))
    except ValueError:
        raise ConfigError(f"{given[:80]!r} is no operation id.", code="config.no_operation") from None


def _told(connection: Connection, rows: Sequence[Row[Any]]) -> list[Told]:
    histories = {district: History.of(connection, district) for district in {row.district for row in rows}}
    publishers = _publishers(connection, rows)
    return [_one(row, histories[row.district], publishers.get(row.operation_id)) for row in rows]


def _one(row: Row[Any], history: History, publisher: Any) -> Told:
    summary, published = row.summary or {}, history.published.get(row.school_year, {})
    undone_by = history.undone_by(published[row.epoch]) if row.epoch in published else None
    later = min((epoch for epoch in published if epoch > row.epoch), default=None)
    superseded = row.status == "superseded" and later is not None
    return Told(
        operation_id=row.operation_id,
        district=row.district,
        school_year=row.school_year,
        epoch=row.epoch,
        status="undone" if undone_by else row.status,
        started_at=row.started_at,
        published_at=row.finished_at if row.status == "published" else None,
        run_id=row.run_id,
        actor=publisher.actor if publisher else None,
        reason=publisher.details.get("reason") if publisher else None,
        undoes=row.undoes,
        undone_by=undone_by.operation_id if undone_by else None,
        superseded_by=published[later].operation_id if superseded and later is not None else None,
        why_superseded=summary.get("superseded"),
        applied=summary.get("applied", {}),
        changes=summary.get("changes", {}) if row.status == "published" else {},
        held=summary.get("held", 0),
        accounts=summary.get("accounts", {}),
        way=None if row.undoes else way_in_words(summary),
        inputs=row.inputs,
        withheld=sorted(row.withheld),
        details_expired_at=row.details_expired_at,
    )


def _publishers(connection: Connection, rows: Sequence[Row[Any]]) -> dict[str, Any]:
    table = audit_log.c
    query = select(table.subject, table.actor, table.details).where(
        table.district.in_({row.district for row in rows}),
        table.action.in_(TOLD),
        table.subject.in_([row.operation_id for row in rows]),
    )
    return {row.subject: row for row in connection.execute(query).all()}


def _ledger(connection: Connection, operation: Told) -> list[LedgerCount]:
    ledger, schools = roster_tables["enrollment_changes"].c, roster_tables["schools"].c
    named = roster_tables["enrollment_changes"].outerjoin(
        roster_tables["schools"], (schools.school_id == ledger.school_id) & (schools.district == ledger.district)
    )
    query = (
        select(ledger.kind, ledger.school_id, schools.name, func.count().label("events"))
        .select_from(named)
        .where(
            ledger.district == operation.district,
            ledger.detected_at >= operation.started_at,
            ledger.operation_id == operation.operation_id,
        )
        .group_by(ledger.kind, ledger.school_id, schools.name)
        .order_by(ledger.kind, schools.name, ledger.school_id)
    )
    return [LedgerCount(row.kind, row.school_id, row.name, row.events) for row in connection.execute(query)]


def _holds(connection: Connection, operation: Told) -> dict[str, list[str]]:
    """What the audit log says: a hold that moved on since is no longer its operation's."""
    table = audit_log.c
    query = (
        select(table.action, table.subject)
        .where(
            table.district == operation.district,
            table.action.in_(HOLDS),
            table.details["operation_id"].as_string() == operation.operation_id,
        )
        .order_by(table.entry)
    )
    found: dict[str, list[str]] = {action.partition(".")[2]: [] for action in HOLDS}
    for row in connection.execute(query):
        found[row.action.partition(".")[2]].append(row.subject)
    return found
