"""Applying a merge to PostgreSQL: one transaction per district, all of it or nothing, and never over a newer one.
What is applied was decided by the merge; how frames become rows is in `bulk`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import polars as pl
from sqlalchemy import Connection, Engine, func, select, text, update

from sis_pipeline.connect.errors import InternalError, TransientError
from sis_pipeline.crashpoints import crash_point
from sis_pipeline.db import audit
from sis_pipeline.db.tables import SCHEMA, roster_tables, sync_operations
from sis_pipeline.roster.contract import PUBLICATION, MergedRoster
from sis_pipeline.roster.model import MERGED
from sis_pipeline.store import accounts, bulk, decisions, erased, former_names, holds, identity, statewide, survivorship
from sis_pipeline.store.bulk import Applied
from sis_pipeline.store.known import WRITES, writes_mark
from sis_pipeline.store.locks import begin_writing
from sis_pipeline.store.merged import BEFORE, MergeStore, Operation, published_epochs, read_operation, scope_of
from sis_pipeline.store.news import News

EDITED = "somebody edited students since"


class SupersededError(TransientError):
    """The merge started from a state that is no longer the published one: gather and merge again."""

    default_code = "transient.superseded"


class EditedMeanwhileError(SupersededError):
    """Somebody edited `students` while it was written; what was written may have overwritten it and has to be rolled back."""


@dataclass(frozen=True, slots=True)
class Published:
    """What a publication did. `applied`: by table. `changes`: new ledger rows by kind. `held`: removals that wait.
    `accounts`: what became of accounts, where the district has any, as Decision.counts."""

    operation_id: str
    applied: Mapping[str, Applied]
    changes: Mapping[str, int]
    held: int
    accounts: Mapping[str, int] = field(default_factory=dict)

    @property
    def written(self) -> int:
        return sum(one.written for one in self.applied.values())

    @property
    def counts(self) -> dict[str, object]:
        """What the audit log says of it."""
        counts = {"changes": self.changes, "held": self.held, "written": self.written}
        return counts | ({"accounts": dict(self.accounts)} if self.accounts else {})

    @property
    def unchanged(self) -> bool:
        return self.written == 0


def publish(engine: Engine, store: MergeStore, operation: Operation, *, actor: str | None = None) -> Published:
    """Apply a merged operation to the tables of its district; readers see the state before it or after it.

    Rows, ledger, holds, audit entries and the operation's own mark are one transaction. Publishing an operation that is
    published already does nothing. Raises SupersededError when the district published something else since the merge
    read it, a hold was decided otherwise than it goes by, or somebody decided who is who, edited `students` or erased a
    student.
    """
    merged = store.read_merged(operation)
    manifest = store.manifest(operation)
    released = frozenset(manifest["released"])
    with engine.begin() as connection:
        begin_writing(connection, operation.district)
        found = read_operation(connection, operation.operation_id, lock=True)
        if found.status == "published":
            return _already(found)
        edited = survivorship.all_edited(connection, operation.district)
        outdated = _erased_since(connection, found, manifest) or _outdated(connection, found, manifest)
        if not outdated:
            try:
                with connection.begin_nested():
                    published = _publish(
                        connection, store, found, merged, released=released, edited=edited, actor=actor
                    )
            except EditedMeanwhileError:
                outdated = EDITED
        if outdated:
            _mark(connection, found, "superseded", {**(found.summary or {}), "superseded": outdated})
            details = {"school_year": found.school_year, "epoch": found.epoch, "reason": outdated}
            audit.append(
                connection,
                "roster.superseded",
                found.operation_id,
                district=found.district,
                actor=actor,
                details=details,
            )
        else:
            crash_point("publish.before_commit")
    if not outdated:
        crash_point("publish.after_commit")
        return published
    raise SupersededError(
        f"The merge of {operation.district} for {operation.school_year} is out of date: {outdated}.",
        advice="Nothing was changed. Merge the district again; the next merge starts from what is published now.",
        operation_id=operation.operation_id,
    )


def _outdated(connection: Connection, operation: Operation, manifest: Mapping[str, Any]) -> str | None:
    """Why an operation may not be published, None where it may."""
    released = frozenset(manifest["released"])
    if operation.status not in {"merged", "superseded"}:
        raise InternalError(
            f"Operation {operation.operation_id} is {operation.status}; only a merged one is published.",
            code="internal.state",
        )
    now = published_epochs(connection, operation.district)
    if now != dict(operation.published_before):
        later = sorted(year for year, epoch in now.items() if operation.published_before.get(year) != epoch)
        return f"another merge was published since, for {', '.join(later)}"
    now_released = holds.released(connection, operation.district, operation.school_year)
    if released - now_released:
        return "a hold that it lets through is no longer released"
    if now_released - released:
        return "a hold was released that it does not let through"
    if holds.waiting(connection, operation.district, operation.school_year) - frozenset(manifest["waiting"]):
        return "a hold was discarded that it does not keep"
    if decisions.mark(connection, operation.district) != manifest["decided"]:
        return "somebody decided since who is who"
    edited = survivorship.edited(connection, operation.district, operation.school_year)
    return EDITED if edited != manifest.get("edited") else None


def _erased_since(connection: Connection, operation: Operation, manifest: Mapping[str, Any]) -> str | None:
    known = manifest.get("known_erasures")  # a manifest of an earlier version knows of none
    return None if erased.mark(connection, operation.district) == known else "a student was erased since"


@dataclass(frozen=True, slots=True)
class Written:
    """What was written to the tables of a district. `before`: by table, the rows that every school year shares, and
    holds, as they were, where the operation can be undone. `who`: what was done to students, for the audit log.
    `accounts`: what became of accounts. `writes`: of the writes beside the pipeline, those that it made good."""

    applied: Mapping[str, Applied]
    changes: Mapping[str, int]
    before: Mapping[str, pl.DataFrame]
    who: Sequence[audit.Entry]
    accounts: Mapping[str, int]
    writes: str


def _publish(
    connection: Connection,
    store: MergeStore,
    operation: Operation,
    merged: MergedRoster,
    *,
    released: frozenset[str],
    edited: str | None,
    actor: str | None,
) -> Published:
    writes = writes_mark(connection)
    news = store.news(connection, operation, writes)
    written = write(connection, operation, merged, edited=edited, writes=writes, news=news)
    moved = holds.record(connection, operation, merged.held, released)
    written = with_holds(written, moved)
    published = mark_published(connection, store, operation, merged, written)
    details = {"school_year": operation.school_year, "epoch": operation.epoch, **published.counts}
    entry = audit.Entry("roster.publish", operation.operation_id, operation.district, details)
    audit.append_all(connection, [entry, *written.who, *moved.entries], actor=actor)
    return published


def write(
    connection: Connection,
    operation: Operation,
    merged: MergedRoster,
    *,
    edited: str | None,
    writes: str,
    news: Mapping[str, News] | None = None,
    whole: bool = False,
) -> Written:
    """Bring the tables of a district to what an operation says. `whole`: its frames of tables that all school years
    share have every row of the district, and rows that they lack go. `edited`: survivorship.all_edited from before what
    is written was compared with `students`. `writes`: writes_mark from before any table was; `news`: MergeStore.news,
    without which the tables are read. Raises EditedMeanwhileError where that is no longer so."""
    started = connection.scalar(text(f"select {SCHEMA}.clock()"))
    survivorship.begin_publishing(connection)
    former_names.begin_operation(connection, operation.operation_id)
    who = identity.record(connection, operation, merged)
    before: dict[str, pl.DataFrame] = {}
    applied = {}
    for name in (one for one in MERGED if one in merged.frames):
        applied[name] = _apply(connection, operation, merged, name, before, news=news, whole=whole)
        if name == "students":
            _refuse_edits(connection, operation, edited)
            links = merged.frames["student_links"]
            former_names.forget_parted(connection, operation.district, operation.operation_id, links)
    survivorship.settle(connection, merged.settled)
    changes = _new_changes(connection, operation, started)
    made = accounts.follow(connection, operation.district)
    statewide.follow(connection, operation.district)
    return Written(applied, changes, before, who, made, writes)


def with_holds(written: Written, moved: holds.Moved) -> Written:
    """What was written, with the holds as they were before."""
    changed = {} if moved.before.is_empty() else {holds.BEFORE: moved.before}
    return replace(written, before={**written.before, **changed})


def _refuse_edits(connection: Connection, operation: Operation, edited: str | None) -> None:
    """Whoever edited a row before it was written has committed by now, and whoever edits it from now on waits."""
    if survivorship.all_edited(connection, operation.district) != edited:
        raise EditedMeanwhileError(
            f"Somebody edited students of {operation.district} while they were written.",
            advice="Nothing was changed. Run it again.",
            operation_id=operation.operation_id,
        )


def mark_published(
    connection: Connection, store: MergeStore, operation: Operation, merged: MergedRoster, written: Written
) -> Published:
    """Say of an operation that it is published, and what it did."""
    held = sum(hold.removals for hold in merged.held)
    summary = {
        **asdict(merged.stats),
        "applied": {name: asdict(one) for name, one in written.applied.items()},
        "changes": written.changes,
        "held": held,
        "accounts": dict(written.accounts),
        WRITES: written.writes,
    }
    if operation.base_epoch:
        summary[BEFORE] = store.write_before(operation, written.before)
    _mark(connection, operation, "published", summary)
    _supersede_earlier(connection, operation)
    return Published(operation.operation_id, written.applied, written.changes, held, written.accounts)


def _apply(
    connection: Connection,
    operation: Operation,
    merged: MergedRoster,
    name: str,
    before: dict[str, pl.DataFrame],
    *,
    news: Mapping[str, News] | None,
    whole: bool,
) -> Applied:
    table, way = MERGED[name], PUBLICATION[name]
    scope = scope_of(table, operation.district, operation.school_year)
    frame, there = (news[name].fresh, news[name].replaced) if news else (merged.frames[name], None)
    if way == "append":
        return bulk.append(connection, table, frame, scope=scope)
    kept: list[pl.DataFrame] = []
    keep = kept.append if operation.base_epoch and way == "upsert" else None
    absent = whole or way == "year"
    applied = bulk.apply(connection, table, frame, scope=scope, delete_absent=absent, keep=keep, there=there)
    if news:
        applied += Applied(unchanged=news[name].rows - frame.height)
    retired = {"students": ("student_id", merged.retired), "staff": ("staff_id", merged.retired_staff)}
    if name in retired:
        column, gone = retired[name]
        if keep and gone:
            keep(bulk.read_named(connection, table, column, sorted(gone), scope=scope))
        applied += Applied(deleted=bulk.delete(connection, table, column, sorted(gone), scope=scope))
    if applied.written and kept:
        before[name] = pl.concat(kept)
    return applied


def _new_changes(connection: Connection, operation: Operation, started: Any) -> dict[str, int]:
    ledger = roster_tables["enrollment_changes"].c
    query = (
        select(ledger.kind, func.count().label("events"))
        .where(
            ledger.district == operation.district,
            ledger.detected_at >= started,
            ledger.operation_id == operation.operation_id,
        )
        .group_by(ledger.kind)
        .order_by(ledger.kind)
    )
    return {row.kind: row.events for row in connection.execute(query)}


def _supersede_earlier(connection: Connection, operation: Operation) -> None:
    """Earlier merges that were not published never can be now: those of killed processes would stay open for ever."""
    same = (sync_operations.c.district == operation.district) & (sync_operations.c.school_year == operation.school_year)
    earlier = same & (sync_operations.c.epoch < operation.epoch) & sync_operations.c.status.in_(("merging", "merged"))
    connection.execute(update(sync_operations).where(earlier).values(status="superseded"))


def _mark(connection: Connection, operation: Operation, status: str, summary: Mapping[str, Any]) -> None:
    connection.execute(
        update(sync_operations)
        .where(sync_operations.c.operation_id == operation.operation_id)
        .values(status=status, summary=dict(summary), finished_at=text(f"{SCHEMA}.clock()"))
    )


def _already(operation: Operation) -> Published:
    """What was applied then, as the operation's summary says."""
    summary = operation.summary or {}
    applied = {name: Applied(**counts) for name, counts in summary["applied"].items()}
    return Published(operation.operation_id, applied, summary["changes"], summary["held"], summary.get("accounts", {}))
