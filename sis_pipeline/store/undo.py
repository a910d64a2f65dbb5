"""Undoing a publication: the roster of a district's school year as it was before, published as an operation of its own.
Which operations there are is told by `operations`; how a roster is written belongs to `publish`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
from sqlalchemy import Connection, Engine, select, update

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.crashpoints import crash_point
from sis_pipeline.db import audit
from sis_pipeline.db.tables import near_matches, student_aliases, sync_operations
from sis_pipeline.roster.attributes import EDITED
from sis_pipeline.roster.changes import compensations
from sis_pipeline.roster.contract import PUBLICATION, MergedRoster
from sis_pipeline.roster.frames import is_of
from sis_pipeline.roster.model import CONFLICTS, ENROLLMENT_CHANGES, MERGED
from sis_pipeline.store import bulk, erased, former_names, holds, survivorship
from sis_pipeline.store.known import writes_mark
from sis_pipeline.store.locks import begin_writing
from sis_pipeline.store.merged import (
    BEFORE,
    MergeStore,
    Operation,
    lasting,
    published_epochs,
    read_operation,
    scope_of,
)
from sis_pipeline.store.operations import History, Place, operation_id_of
from sis_pipeline.store.parting import holders
from sis_pipeline.store.publish import (
    Published,
    SupersededError,
    Written,
    mark_published,
    with_holds,
    write,
)

SHARED = tuple(name for name, way in PUBLICATION.items() if way == "upsert")
"""Tables whose rows belong to no school year."""


@dataclass(frozen=True, slots=True)
class Step:
    """Back from an operation that was `undone` to the roster that the operation `before` it had left. `last`: the newest
    that was published, which is the undone one or, where later ones were undone before, the last undo."""

    undone: Operation
    before: Operation
    last: Operation


@dataclass(frozen=True, slots=True)
class Undone:
    """What an undo did, or would do. `withheld`: integrations whose newest snapshot is not merged again as it is.
    `operation_id`: of the undo itself, None where it was not done."""

    step: Step
    published: Published
    withheld: tuple[str, ...]
    operation_id: str | None = None


class Undoing:
    """Undoes what was published last. What has to be known for it is kept with the operations in the data folder."""

    def __init__(self, engine: Engine, merges: MergeStore) -> None:
        self._engine = engine
        self._merges = merges

    def plan(self, operation_id: str) -> Undone:
        """What `undo` would do; nothing is changed. Raises ConfigError as it does."""
        with self._engine.connect() as connection, connection.begin() as never_committed:
            step = self._step(connection, operation_id)
            begin_writing(connection, step.undone.district)
            tried = replace(step.before, operation_id=str(uuid.uuid4()), undoes=step.undone.operation_id)
            edited, writes = survivorship.all_edited(connection, tried.district), writes_mark(connection)
            merged = self._roster_before(connection, tried, step)
            written = write(connection, tried, merged, edited=edited, writes=writes, whole=True)
            never_committed.rollback()
        held, accounts = merged.stats.held, written.accounts
        published = Published(tried.operation_id, written.applied, written.changes, held, accounts)
        return Undone(step, published, tuple(sorted(self._withheld(step))))

    def undo(self, operation_id: str, actor: str, reason: str) -> Undone:
        """Put the roster back to what it was before an operation, in one transaction.

        The ledger gets one event for each that the operation had written, the holds are as they were, and what it had
        changed in its snapshots is not merged again until those change. An undo is undone in the same way. Raises
        ConfigError without a reason, and for an operation that is not the last one that stands.
        """
        if not (reason.strip() and actor.strip()):
            raise ConfigError(
                "An undo needs who undoes and why.", code="config.undo_reason", advice="Give both, and run it again."
            )
        with self._engine.connect() as connection:
            step = self._step(connection, operation_id)
            epochs = published_epochs(connection, step.undone.district)
        withheld = self._withheld(step)
        operation = self._merges.open(
            step.undone.district,
            step.undone.school_year,
            before=epochs,
            mark="",
            inputs=step.before.inputs,
            undoes=step.undone.operation_id,
            withheld=withheld,
        )
        try:
            with self._engine.begin() as connection:
                begin_writing(connection, operation.district)
                published = self._publish(connection, operation, step, actor=actor, reason=reason)
                crash_point("undo.before_commit")
        except BaseException:
            self._merges.fail(operation)
            raise
        return Undone(step, published, tuple(sorted(withheld)), operation.operation_id)

    def _step(self, connection: Connection, operation_id: str) -> Step:
        """Raises ConfigError where the operation can't be undone."""
        found = read_operation(connection, operation_id_of(operation_id))
        before, last = _around(connection, found)
        if found.frames_expired_at is None and BEFORE not in (found.summary or {}):
            raise _refused(
                found,
                "it was published by an earlier version, which did not keep what was there before",
                "The next sync publishes what the systems say by then.",
            )
        self._refuse_erased(connection, found, before)
        return Step(found, before, last)

    def _refuse_erased(self, connection: Connection, found: Operation, before: Operation) -> None:
        """Raises ConfigError where going back to `before` could bring a student back who was erased since."""
        for one in erased.unfinished(connection, found.district):
            raise _refused(
                found,
                f"the erasure of student {one.student_id} is not finished",
                f"Wait for it or, where it was broken off, finish it: `sis erase {one.student_id} --reason …`.",
            )
        advice = "What was there before a student was erased, or is older than SIS_UNDO_DAYS, can't be brought back; correct it in the SIS, and sync."
        gone = next((one for one in (found, before) if not self._merges.kept(one)), None)
        if gone is not None:
            why = f"the merge of operation {gone.operation_id}, which that needs, was deleted"
            raise _refused(found, why, advice)
        if erased.mark(connection, found.district) != self._merges.manifest(before).get("known_erasures"):
            why = f"a student was erased since operation {before.operation_id}, which it would go back to"
            raise _refused(found, why, advice)

    def _withheld(self, step: Step) -> dict[str, Sequence[str]]:
        """What was withheld before, and what the undone operation had taken in; an undo took in nothing."""
        if step.undone.undoes:
            return dict(step.before.withheld)
        taken_in = {key: [mark] for key, mark in self._merges.changed_inputs(step.undone, step.before).items()}
        parts = (step.before.withheld, step.last.withheld, taken_in)
        keys = {key for part in parts for key in part}
        return {key: sorted({mark for part in parts for mark in part.get(key, ())}) for key in sorted(keys)}

    def _publish(self, connection: Connection, operation: Operation, step: Step, actor: str, reason: str) -> Published:
        if published_epochs(connection, operation.district) != dict(operation.published_before):
            raise SupersededError(
                f"Another merge of {operation.district} was published meanwhile.",
                advice="Nothing was changed. Look at `sis operations list`, and undo that one first.",
                operation_id=operation.operation_id,
            )
        self._refuse_erased(connection, step.undone, step.before)
        edited, writes = survivorship.all_edited(connection, operation.district), writes_mark(connection)
        merged = self._roster_before(connection, operation, step)
        undone, terms = self._merges.manifest(step.undone), self._merges.terms(step.undone)
        let_through = _let_through(self._merges, step.undone)
        again = _let_through(self._merges, step.before) if step.undone.undoes else []
        rests_on = {"terms": terms, "decided": undone["decided"], "edited": undone.get("edited")}
        known = erased.mark(connection, operation.district)
        self._merges.keep(operation, merged, released=again, waiting=(), **rests_on, known_erasures=known)
        if not step.undone.undoes:
            survivorship.unsettle(connection, undone["settled"])
        written: Written = write(connection, operation, merged, edited=edited, writes=writes, whole=True)
        if not step.undone.undoes:
            former_names.take_back(connection, operation.district, step.undone.operation_id, operation.operation_id)
        because = f"operation {step.undone.operation_id} was undone"
        moved = holds.restore(
            connection,
            operation,
            merged.held,
            let_through=let_through,
            again_let_through=again,
            changed=self._merges.read_before(step.undone).get(holds.BEFORE),
            because=because,
        )
        written = with_holds(written, moved)
        published = mark_published(connection, self._merges, operation, merged, written)
        if terms:  # else it rests on nothing that is known, and the next merge is due
            _rest_on(connection, operation, self._merges.resting_on(operation, terms))
        about = {"undoes": step.undone.operation_id, "reason": reason, "withheld": sorted(operation.withheld)}
        details = {"school_year": operation.school_year, **about, **published.counts}
        entry = audit.Entry("roster.undo", operation.operation_id, operation.district, details)
        audit.append_all(connection, [entry, *written.who, *moved.entries], actor=actor)
        return published

    def _roster_before(self, connection: Connection, operation: Operation, step: Step) -> MergedRoster:
        """Everything the tables had: those of the year as they were published then, those that all years share with the
        rows that the undone operation had changed put back."""
        district = operation.district
        merged = self._merges.read_merged(step.before)
        changed = self._merges.read_before(step.undone)
        if "students" in changed and survivorship.all_edited(connection, district):
            changed["students"] = self._but_edited(connection, step.undone, changed["students"])
        whole = {
            name: _put_back(bulk.read(connection, MERGED[name], {"district": district}), changed.get(name), name)
            for name in SHARED
        }
        own = {"district": district, "operation_id": step.undone.operation_id}
        events = bulk.read(connection, ENROLLMENT_CHANGES, own)
        back = compensations(events, step.undone.operation_id, operation.operation_id)
        frames = {**merged.frames, **whole, ENROLLMENT_CHANGES.name: back}
        outdated = [name for name in MERGED if not is_of(frames[name], MERGED[name])]
        if outdated:
            raise _refused(
                step.undone,
                f"{', '.join(outdated)} had other columns when operation {step.before.operation_id} was published",
                "An undo does not reach back over an upgrade that changed the tables.",
            )
        frames[CONFLICTS.name] = _not_given_up(connection, operation, frames[CONFLICTS.name])
        return replace(
            merged,
            frames=frames,
            near_matches=_undecided(connection, district, merged.near_matches),
            retired=_joined_again(connection, district, changed.get("students"), whole["student_links"]),
            retired_staff={},
        )

    def _but_edited(self, connection: Connection, undone: Operation, changed: pl.DataFrame) -> pl.DataFrame:
        """The students that an operation changed, as they were, but for what was edited in them since."""
        left = self._merges.read_frame(undone, "students")
        ids = changed["student_id"].to_list()
        now = bulk.read_named(connection, MERGED["students"], "student_id", ids, scope={"district": undone.district})
        return with_edits(changed, left, now)


def with_edits(before: pl.DataFrame, left: pl.DataFrame, now: pl.DataFrame) -> pl.DataFrame:
    """Students as they were before an operation, with the attributes that are no longer as the operation left them."""
    key, names = MERGED["students"].key, [name for block in EDITED.values() for name in block]
    both = left.select(*key, *names).join(now.select(*key, *names), on=key, suffix="_now")
    columns = []
    for block in EDITED.values():
        edited = pl.any_horizontal(pl.col(f"{name}_left").ne_missing(pl.col(f"{name}_now")) for name in block)
        columns += [pl.when(edited).then(f"{name}_now").otherwise(name).alias(name) for name in block]
    beside = before.join(both, on=key, how="left", suffix="_left", maintain_order="left")
    return beside.with_columns(columns).select(before.columns)


def _around(connection: Connection, found: Operation) -> tuple[Operation, Operation]:
    """The operation before the one to undo, and the newest. Raises ConfigError where that one does not stand, or others stand on it."""
    if found.status != "published":
        raise _refused(
            found, f"it is {found.status} and changed nothing", "`sis operations list` shows those that did."
        )
    history = History.of(connection, found.district)
    place, stack = history.at(found.school_year, found.epoch), history.standing(found.school_year)
    last = history.newest(found.school_year)
    if found.operation_id not in {last.operation_id, stack[0].operation_id}:
        _refuse_not_last(history, found, place, stack)
    if not found.base_epoch:
        raise _refused(
            found,
            f"it is the first of {found.district} for {found.school_year}: there is nothing before it to go back to",
            "Correct what it was made from (an integration's settings or priority, or the SIS), and sync again.",
        )
    for year in history.years - {found.school_year}:
        for other in history.standing(year):
            if other.order > place.order and _wrote_shared(read_operation(connection, other.operation_id)):
                raise _refused(
                    found,
                    f"operation {other.operation_id} of {year} was published since and builds on the same students",
                    f"Undo that one first: `sis undo {other.operation_id}`.",
                )
    before = history.at(found.school_year, found.base_epoch)
    return read_operation(connection, before.operation_id), read_operation(connection, last.operation_id)


def _refuse_not_last(history: History, found: Operation, place: Place, stack: Sequence[Place]) -> None:
    if found.operation_id in {one.operation_id for one in stack}:
        raise _refused(
            found,
            f"operation {stack[0].operation_id} was published since",
            f"Undo the later one first: `sis undo {stack[0].operation_id}`.",
        )
    undone_by = history.undone_by(place)
    if undone_by:
        raise _refused(
            found,
            f"operation {undone_by.operation_id} undid it already",
            f"To have it back, undo that: `sis undo {undone_by.operation_id}`.",
        )
    raise _refused(
        found,
        f"it is an undo, and operation {history.newest(found.school_year).operation_id} was published since",
        "Sync again to have what the systems say now.",
    )


def _refused(found: Operation, why: str, advice: str) -> ConfigError:
    return ConfigError(
        f"Operation {found.operation_id} can't be undone: {why}.", code="config.not_undoable", advice=advice
    )


def _wrote_shared(operation: Operation) -> bool:
    applied = (operation.summary or {}).get("applied", {})
    return any(bulk.Applied(**applied[name]).written for name in SHARED if name in applied)


def _put_back(now: pl.DataFrame, changed: pl.DataFrame | None, name: str) -> pl.DataFrame:
    if changed is None:
        return now
    rest = now.join(changed, on=MERGED[name].key, how="anti", maintain_order="left")
    return pl.concat([rest, changed.filter("existed").select(now.columns)])


def _not_given_up(connection: Connection, operation: Operation, before: pl.DataFrame) -> pl.DataFrame:
    """Conflicts as they were, without the stale ones that the table has no more: those were given up by age, and would be
    kept as long again."""
    now = bulk.read(connection, CONFLICTS, scope_of(CONFLICTS, operation.district, operation.school_year))
    standing = lasting(CONFLICTS.name, before)
    stale = before.join(standing, on=CONFLICTS.key, how="anti", maintain_order="left")
    return pl.concat([standing, stale.join(now, on=CONFLICTS.key, how="semi", maintain_order="left")])


def _joined_again(
    connection: Connection, district: str, changed: pl.DataFrame | None, links: pl.DataFrame
) -> dict[str, str]:
    """Students whom the undone operation had brought back from an alias -> whom their records were linked to."""
    if changed is None:
        return {}
    new = changed.filter(~pl.col("existed"))["student_id"].to_list()
    query = select(student_aliases.c.alias_id, student_aliases.c.records).where(
        student_aliases.c.district == district, student_aliases.c.restored_at.is_not(None)
    )
    aliases = {row.alias_id: row.records for row in connection.execute(query)}
    joined = [one for one in new if one in aliases]
    held_by = holders(links, [record for one in joined for record in aliases[one]])
    found = {one: {held_by.get(tuple(record)) for record in aliases[one]} - {None, one} for one in joined}
    return {one: min(who for who in students if who) for one, students in found.items() if students}


def _undecided(connection: Connection, district: str, near: pl.DataFrame) -> pl.DataFrame:
    """The near matches that nobody decided about meanwhile: a decision stands, whatever is undone."""
    table = near_matches.c
    query = select(table.student_id, table.other_student_id).where(
        table.district == district, table.status == "decided"
    )
    decided = {frozenset(row) for row in connection.execute(query)}
    if near.is_empty() or not decided:
        return near
    pairs = near.select("student_id", "other_student_id").iter_rows()
    return near.filter(pl.Series([frozenset(pair) not in decided for pair in pairs], dtype=pl.Boolean))


def _let_through(merges: MergeStore, operation: Operation) -> list[str]:
    """Fingerprints of the holds whose removals an operation applied."""
    found: Mapping[str, Any] = merges.manifest(operation)
    return list(found["released"])


def _rest_on(connection: Connection, operation: Operation, fingerprint: str) -> None:
    same = sync_operations.c.operation_id == operation.operation_id
    connection.execute(update(sync_operations).where(same).values(fingerprint=fingerprint))
