"""Retention: what the pipeline keeps of its own work is given up when it is old and nothing needs it any more.
What is published, the ledger and the audit log are never touched; Dagster's own history is the business of defs.history.

A row is marked first and its files deleted afterwards: what was marked is read by nobody, and whatever a kill leaves in
the data folder is found there by the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Column, Connection, Engine, String, Table, cast, delete, not_, or_, select, text

from sis_pipeline.crashpoints import crash_point
from sis_pipeline.db import audit
from sis_pipeline.db.tables import SCHEMA, holds, quarantine, snapshots, sync_operations
from sis_pipeline.settings import Settings
from sis_pipeline.store.files import DataFolder
from sis_pipeline.store.guarding import WAITING
from sis_pipeline.store.locks import is_syncing
from sis_pipeline.store.merged import MergeStore, read_operation
from sis_pipeline.store.snapshots import SnapshotStore

Counts = dict[str, int]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of the data folder, `folder`/owner/school year/name, and the columns that say what should be in it."""

    folder: str
    table: Table
    owner: Column[str]
    name: Column[Any]
    expired: Column[Any]


def _of_snapshots(folder: str) -> Layer:
    columns = snapshots.c
    return Layer(folder, snapshots, columns.integration, columns.snapshot_id, columns[f"{folder}_expired_at"])


RAW, ROSTER, QUARANTINE = (_of_snapshots(folder) for folder in ("raw", "roster", "quarantine"))
MERGED = Layer(
    "merged", sync_operations, sync_operations.c.district, sync_operations.c.epoch, sync_operations.c.frames_expired_at
)

KEPT = f"""
kept as (
  select operation_id from {SCHEMA}.sync_operations
  where status in ('merging', 'merged') or coalesce(finished_at, started_at) > {SCHEMA}.clock() - make_interval(days => :undo_days)
  union
  select base.operation_id from {SCHEMA}.sync_operations base
  join {SCHEMA}.sync_operations o
    on (o.district, o.school_year, o.base_epoch) = (base.district, base.school_year, base.epoch)
  where coalesce(o.finished_at, o.started_at) > {SCHEMA}.clock() - make_interval(days => :undo_days)
  union
  (select distinct on (district, school_year) operation_id from {SCHEMA}.sync_operations
   where status = 'published' order by district, school_year, epoch desc)
  union
  select operation_id from {SCHEMA}.holds where status in ('open', 'released')
)"""
"""Operations that are under way, can be undone, are gone back to by an undo now or later, or raised a hold that waits."""

NEEDED = f"""
needed as (
  (select distinct on (integration, school_year) snapshot_id, base_snapshot_id from {SCHEMA}.snapshots
   where verdict = 'complete' order by integration, school_year, started_at desc, snapshot_id)
  union
  (select distinct on (integration, school_year) snapshot_id, base_snapshot_id from {SCHEMA}.snapshots
   where verdict in ('complete', 'partial', 'delta') order by integration, school_year, started_at desc, snapshot_id)
  union
  (select distinct on (integration, school_year) snapshot_id, base_snapshot_id from {SCHEMA}.snapshots
   where completeness is not null order by integration, school_year, started_at desc, snapshot_id)
  union
  (select distinct on (integration, school_year) snapshot_id, base_snapshot_id from {SCHEMA}.snapshots
   where watermark is not null and verdict in ('complete', 'delta')
   order by integration, school_year, started_at desc, snapshot_id)
)"""
"""Of every integration and school year the newest complete snapshot, the newest good one, the newest that was read, and
the newest that changes can be laid over."""

CHAINED = f"""
chained as (
  select snapshot_id, base_snapshot_id from needed
  union
  select base.snapshot_id, base.base_snapshot_id from {SCHEMA}.snapshots base
  join chained later on base.snapshot_id = later.base_snapshot_id
)"""
"""Those, with everything that they are laid over."""

MERGED_FROM = f"""
  select (used.value ->> 'snapshot_id')::uuid from {SCHEMA}.sync_operations
  cross join lateral jsonb_each(inputs) used where operation_id in (select operation_id from kept)"""

OLD_SNAPSHOTS = f"""
with recursive {NEEDED}, {CHAINED}, {KEPT}, wanted as (select snapshot_id from chained {{merged_from}})
select snapshot_id, integration, school_year from {SCHEMA}.snapshots
where {{expired}} is null and finished_at < {SCHEMA}.clock() - make_interval(days => :days)
  and snapshot_id not in (select snapshot_id from wanted)
"""
OLD_MERGES = f"""
with {KEPT} update {SCHEMA}.sync_operations set frames_expired_at = {SCHEMA}.clock()
where frames_expired_at is null and status not in ('merging', 'merged') and operation_id not in (select operation_id from kept)
"""
NEVER_PUBLISHED = f"""
with {KEPT} delete from {SCHEMA}.sync_operations o
where status in ('superseded', 'failed') and coalesce(finished_at, started_at) < {SCHEMA}.clock() - make_interval(days => :days)
  and operation_id not in (select operation_id from kept)
  and epoch < (select max(epoch) from {SCHEMA}.sync_operations later
               where (later.district, later.school_year, later.status) = (o.district, o.school_year, 'published'))
"""
"""Never the last epoch: the next merge would get its number, and its folder, again."""
OLD_DETAILS = f"""
with {KEPT} update {SCHEMA}.sync_operations
set details_expired_at = {SCHEMA}.clock(), inputs = '{{}}',
    summary = jsonb_strip_nulls(jsonb_build_object('changes', summary -> 'changes', 'held', summary -> 'held', 'accounts', summary -> 'accounts'))
where details_expired_at is null and status = 'published' and operation_id not in (select operation_id from kept)
  and finished_at < {SCHEMA}.clock() - make_interval(days => :days)
"""
REPLACED_DECISIONS = f"""
delete from {SCHEMA}.conflict_decisions old
where decided_at < {SCHEMA}.clock() - make_interval(days => :days) and exists (
  select from {SCHEMA}.conflict_decisions newer
  where (newer.district, newer.student_id, newer.attribute) = (old.district, old.student_id, old.attribute)
    and newer.decision > old.decision)
"""
STALE_CONFLICTS = f"""
delete from {SCHEMA}.conflicts
where status = 'stale' and changed_at < {SCHEMA}.clock() - make_interval(days => :days)
"""


class Retention:
    """Gives up what is old. Every method says what it deleted or, with `dry_run`, would delete, in counts."""

    def __init__(self, engine: Engine, store: SnapshotStore, settings: Settings) -> None:
        self._engine = engine
        self._files: DataFolder = store.files
        self._merges = MergeStore(engine, store)
        self._settings = settings

    def snapshots(self, *, dry_run: bool = False) -> Counts:
        """Raw pages, standard frames and rejected rows, each after its own time.

        What an integration read last and everything that is laid over it stays; so do frames that a merge was made of which
        can be undone, or gone back to. An integration that is being read is left for the next time.
        """
        days = self._settings
        kept = ((RAW, days.raw_days), (ROSTER, days.frames_days), (QUARANTINE, days.quarantine_days))

        def mark(connection: Connection) -> Counts:
            old = {layer.folder: self._mark_snapshots(connection, layer, after) for layer, after in kept}
            reasons = text(f"delete from {quarantine} where snapshot_id = any(cast(:ids as uuid[]))")
            deleted = connection.execute(reasons, {"ids": old[QUARANTINE.folder]}).rowcount
            return {**{name: len(ids) for name, ids in old.items()}, "reasons": deleted}

        return self._give_up("snapshots", mark, [layer for layer, _ in kept], dry_run=dry_run)

    def merges(self, *, dry_run: bool = False) -> Counts:
        """The frames of merges whose publication can't be undone any more."""

        def mark(connection: Connection) -> Counts:
            return {"operations": self._run(connection, OLD_MERGES)}

        return self._give_up("merges", mark, [MERGED], dry_run=dry_run)

    def operations(self, *, dry_run: bool = False) -> Counts:
        """The details of operations: their inputs, and what they did to which table. Merges that were never published go
        whole; an operation that was published stays, because the ledger, the undo of others and as-of refer to it."""
        days = self._settings.operations_days

        def mark(connection: Connection) -> Counts:
            return {
                "never_published": self._run(connection, NEVER_PUBLISHED, days=days),
                "details": self._run(connection, OLD_DETAILS, days=days),
            }

        return self._give_up("operations", mark, dry_run=dry_run)

    def holds(self, *, dry_run: bool = False) -> Counts:
        """Holds that were applied or are over, but for those that an undo would bring back."""

        def mark(connection: Connection) -> Counts:
            over = or_(holds.c.status == "applied", (holds.c.status == "discarded") & not_(WAITING.is_(True)))
            age = text(f"coalesce(holds.decided_at, holds.opened_at) < {SCHEMA}.clock() - make_interval(days => :days)")
            query = select(holds.c.hold_id, holds.c.district, holds.c.fingerprint).where(over, age)
            old = connection.execute(query, {"days": self._settings.holds_days}).all()
            named = self._named_by_kept(connection, {row.district for row in old})
            ids = [row.hold_id for row in old if (row.district, row.fingerprint) not in named]
            return {"deleted": connection.execute(delete(holds).where(holds.c.hold_id.in_(ids))).rowcount}

        return self._give_up("holds", mark, dry_run=dry_run)

    def decisions(self, *, dry_run: bool = False) -> Counts:
        """Decisions about conflicts that a later one replaced: the values that were seen then go with them."""
        days = self._settings.decisions_days

        def mark(connection: Connection) -> Counts:
            return {"deleted": self._run(connection, REPLACED_DECISIONS, days=days)}

        return self._give_up("decisions", mark, dry_run=dry_run)

    def conflicts(self, *, dry_run: bool = False) -> Counts:
        """Conflicts that are none any more, with the values that the systems had then."""
        days = self._settings.stale_conflicts_days

        def mark(connection: Connection) -> Counts:
            return {"deleted": self._run(connection, STALE_CONFLICTS, days=days)}

        return self._give_up("conflicts", mark, dry_run=dry_run)

    def unknown_files(self, *, dry_run: bool = False) -> Counts:
        """Folders that no row refers to, once they are old enough.

        Where the database knows nothing at all of an owner and school year it may be another database than the folder's:
        nothing is deleted there.
        """
        after = timedelta(days=self._settings.unknown_files_days)
        found = [path for path in self._unknown() if (self._files.age(path) or timedelta(0)) > after]
        if found and not dry_run:
            for path in found:
                self._files.delete_folder(path)
                crash_point("retention.folder_gone")
            with self._engine.begin() as connection:
                _told(connection, "unknown_files", {"folders": len(found)})
        return {"folders": len(found)}

    def _give_up(
        self, kind: str, mark: Callable[[Connection], Counts], layers: Collection[Layer] = (), *, dry_run: bool
    ) -> Counts:
        """Mark or delete rows in one transaction with its audit entry; then delete the folders of what is marked."""
        with self._writing(dry_run=dry_run) as connection:
            counts = mark(connection)
            if dry_run:
                folders = [path for layer in layers for path in self._expired(layer, connection)]
                return {**counts, **({"folders": len(folders)} if layers else {})}
            _told(connection, kind, counts)
        crash_point("retention.marked")
        deleted = 0
        for path in (path for layer in layers for path in self._expired(layer)):
            self._files.delete_folder(path)
            deleted += 1
            crash_point("retention.folder_gone")
        return {**counts, **({"folders": deleted} if layers else {})}

    @contextmanager
    def _writing(self, *, dry_run: bool) -> Iterator[Connection]:
        with self._engine.connect() as connection, connection.begin() as transaction:
            connection.execute(text("select set_config('statement_timeout', '30min', true)"))
            yield connection
            if dry_run:
                transaction.rollback()

    def _run(self, connection: Connection, statement: str, **values: object) -> int:
        named = {"undo_days": self._settings.undo_days, **values}
        used = {name: value for name, value in named.items() if f":{name}" in statement}
        return connection.execute(text(statement), used).rowcount

    def _mark_snapshots(self, connection: Connection, layer: Layer, days: int) -> list[str]:
        merged_from = "" if layer is RAW else f"union {MERGED_FROM}"  # a merge reads no pages
        query = text(OLD_SNAPSHOTS.format(merged_from=merged_from, expired=layer.expired.name))
        old = connection.execute(query, {"days": days, "undo_days": self._settings.undo_days}).all()
        readings = {(row.integration, row.school_year) for row in old}
        busy = {reading for reading in readings if is_syncing(connection, *reading)}
        ids = [str(row.snapshot_id) for row in old if (row.integration, row.school_year) not in busy]
        now, named = f"{SCHEMA}.clock()", "snapshot_id = any(cast(:ids as uuid[]))"
        connection.execute(text(f"update {snapshots} set {layer.expired.name} = {now} where {named}"), {"ids": ids})
        return ids

    def _named_by_kept(self, connection: Connection, districts: Collection[str]) -> set[tuple[str, str]]:
        """District and fingerprint of the holds that an operation which is kept held, let through or kept waiting."""
        query = text(f"with {KEPT} select operation_id::text from {SCHEMA}.sync_operations join kept using (operation_id) "
                     "where district = any(:districts) and status = 'published'")  # fmt: skip
        values = {"undo_days": self._settings.undo_days, "districts": sorted(districts)}
        named = set()
        for operation_id in connection.scalars(query, values).all() if districts else ():
            operation = read_operation(connection, operation_id)
            if self._merges.kept(operation):
                manifest = self._merges.manifest(operation)
                held = [one[name] for one in manifest["held"] for name in ("fingerprint", "kept") if one.get(name)]
                named |= {(operation.district, it) for it in [*manifest["released"], *manifest["waiting"], *held]}
        return named

    def _expired(self, layer: Layer, within: Connection | None = None) -> Iterator[str]:
        """Folders whose row is marked; `within`: as a transaction that is under way sees it."""
        for owner, year, names in self._listed(layer):
            query = _rows_of(layer, owner, year).where(layer.expired.is_not(None), cast(layer.name, String).in_(names))
            yield from (f"{layer.folder}/{owner}/{year}/{name}" for name in sorted(self._names(query, within)))

    def _unknown(self) -> Iterator[str]:
        for layer in (RAW, ROSTER, QUARANTINE, MERGED):
            for owner, year, names in self._listed(layer):
                known = self._names(_rows_of(layer, owner, year))
                yield from (f"{layer.folder}/{owner}/{year}/{name}" for name in names if known and name not in known)

    def _listed(self, layer: Layer) -> Iterator[tuple[str, str, list[str]]]:
        for owner in self._files.names(layer.folder):
            for year in self._files.names(f"{layer.folder}/{owner}"):
                yield owner, year, self._files.names(f"{layer.folder}/{owner}/{year}")

    def _names(self, query: Any, within: Connection | None = None) -> set[str]:
        if within is not None:
            return set(within.scalars(query))
        with self._engine.connect() as connection:
            return set(connection.scalars(query))


def _rows_of(layer: Layer, owner: str, school_year: str) -> Any:
    return select(cast(layer.name, String)).where(layer.owner == owner, layer.table.c.school_year == school_year)


def _told(connection: Connection, kind: str, counts: Counts) -> None:
    """An entry where anything was deleted; nights on which nothing was are not worth one."""
    if any(counts.values()):
        audit.append(connection, "retention.delete", kind, details=dict(counts))
