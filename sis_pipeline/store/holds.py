"""Holds: removals that wait for a person, and what the person decided.
Which removals are held is the roster guard's decision; letting them through is the next merge's work."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Literal, cast

from sqlalchemy import ColumnElement, Connection, Engine, Row, Text, func, or_, select, text, update
from sqlalchemy import cast as cast_sql
from sqlalchemy.dialects.postgresql import insert

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db import audit
from sis_pipeline.db.tables import SCHEMA, holds
from sis_pipeline.roster import guard
from sis_pipeline.store.guarding import PIPELINE, WAITING, find_school
from sis_pipeline.store.merged import Operation

Status = Literal["open", "released", "discarded", "applied"]
NOW = text(f"{SCHEMA}.clock()")
REST = "the rest of a hold that was released in part"


@dataclass(frozen=True, slots=True)
class HeldRow:
    """One removal that is held, by ids."""

    school_id: str | None
    change: str
    key: Sequence[str]


@dataclass(frozen=True, slots=True)
class StoredHold:
    """A hold and what became of it. `removals`: counts, limits and parts. `rows`: the keys of what is held, by part."""

    hold_id: str
    district: str
    school_year: str
    fingerprint: str
    reason: str
    removals: Mapping[str, Any]
    rows: Sequence[Sequence[str]]
    status: Status
    decided_by: str | None
    decided_reason: str | None
    operation_id: str
    opened_at: datetime
    decided_at: datetime | None

    @property
    def parts(self) -> Sequence[guard.Part]:
        """What it holds by school and kind; none for a hold of an earlier version."""
        return [guard.Part(**part) for part in self.removals.get("parts", ())]

    def held(self) -> Iterator[HeldRow]:
        """Every removal it holds; none for a hold of an earlier version, which does not say where they are."""
        keys = iter(self.rows)
        for part in self.parts:
            for key in islice(keys, part.removals):
                yield HeldRow(part.school_id, part.change, key)


class Holds:
    """The holds of this installation."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def list(self, district: str | None = None, status: Status | None = None) -> list[StoredHold]:
        """Newest first."""
        query = select(holds).order_by(holds.c.opened_at.desc(), holds.c.hold_id)
        if district is not None:
            query = query.where(holds.c.district == district)
        if status is not None:
            query = query.where(holds.c.status == status)
        with self._engine.connect() as connection:
            return [_stored(row) for row in connection.execute(query)]

    def get(self, hold_id: str) -> StoredHold:
        """Raises ConfigError where there is none."""
        with self._engine.connect() as connection:
            return _get(connection, hold_id)

    def release(
        self, hold_id: str, actor: str, reason: str, *, school: str | None = None, change: str | None = None
    ) -> StoredHold:
        """Let exactly these removals through; the next merge applies them. Raises ConfigError as `discard`.

        With `school` (id, number or name), `change` (a kind of the ledger) or both only what is of them: that becomes a
        released hold of its own, which is returned; the rest waits under the old id until it is decided, whatever its
        number. Raises ConfigError where the hold has nothing of them.
        """
        if school is None and change is None:
            return self._decide(hold_id, "released", actor, reason)
        _give_reason(actor, reason)
        with self._engine.begin() as connection:
            found = _undecided(connection, hold_id)
            school_id = None if school is None else find_school(connection, found.district, school)[0]
            chosen = [_is_of(row, school_id, change) for row in found.held()]
            if not any(chosen):
                raise _nothing_of(found, school, change)
            if found.status == "released":
                raise ConfigError(
                    f"Hold {hold_id} is released as a whole already.",
                    code="config.hold_decided",
                    advice="Discard it first to take that back; then release a part.",
                )
            if all(chosen):
                return _decided(connection, found, "released", actor, reason)
            return _split(connection, found, chosen, actor, reason)

    def discard(self, hold_id: str, actor: str, reason: str) -> StoredHold:
        """Keep what is published, whatever the limits say, of everybody it holds for as long as they are missing.

        Raises ConfigError without a reason, for an unknown hold and for one that was applied or closed already.
        """
        return self._decide(hold_id, "discarded", actor, reason)

    def _decide(self, hold_id: str, status: Status, actor: str, reason: str) -> StoredHold:
        _give_reason(actor, reason)
        with self._engine.begin() as connection:
            return _decided(connection, _undecided(connection, hold_id), status, actor, reason)


def _give_reason(actor: str, reason: str) -> None:
    if not (reason.strip() and actor.strip()):
        raise ConfigError(
            "A decision about a hold needs who decides and why.",
            code="config.hold_reason",
            advice="Give both, and run it again.",
        )


def _undecided(connection: Connection, hold_id: str) -> StoredHold:
    """The hold, locked. Raises ConfigError where nothing can be decided about it any more."""
    found = _get(connection, hold_id, lock=True)
    if found.status == "applied" or found.decided_by == PIPELINE:
        raise ConfigError(
            f"Hold {hold_id} is {found.status} already ({found.decided_reason}).",
            code="config.hold_decided",
            advice="`sis holds list` shows the open ones.",
        )
    return found


def _decided(connection: Connection, found: StoredHold, status: str, actor: str, reason: str) -> StoredHold:
    pinned = {"pinned": True} if status == "discarded" else {}
    connection.execute(
        update(holds)
        .where(holds.c.hold_id == found.hold_id)
        .values(
            status=status,
            decided_by=actor,
            decided_reason=reason,
            decided_at=NOW,
            removals={**found.removals, **pinned},
        )
    )
    audit.append(
        connection,
        f"hold.{status}",
        found.hold_id,
        district=found.district,
        actor=actor,
        details={"reason": reason, "removals": dict(found.removals)},
    )
    return _get(connection, found.hold_id)


def _is_of(row: HeldRow, school_id: str | None, change: str | None) -> bool:
    return school_id in {None, row.school_id} and change in {None, row.change}


def _nothing_of(found: StoredHold, school: str | None, change: str | None) -> ConfigError:
    asked = " and ".join(
        f"{what} {value[:80]!r}" for what, value in (("school", school), ("kind", change)) if value is not None
    )
    return ConfigError(
        f"Hold {found.hold_id} holds nothing of {asked}.",
        code="config.hold_part",
        advice=f"`sis holds show {found.hold_id}` says what it holds."
        if found.parts
        else "It does not say where its removals are; release or discard it as a whole.",
    )


def _split(connection: Connection, found: StoredHold, chosen: Sequence[bool], actor: str, reason: str) -> StoredHold:
    """Release the chosen removals as a hold of their own; the rest stays under the old one, pinned."""
    rows = list(found.held())
    part = [row for row, goes in zip(rows, chosen, strict=True) if goes]
    rest = [row for row, goes in zip(rows, chosen, strict=True) if not goes]
    _rest_remains(connection, found, rest)
    part_id = str(uuid.uuid4())
    removals = _counted(found, part) | {"part_of": found.hold_id}
    connection.execute(
        holds.insert().values(
            hold_id=part_id,
            district=found.district,
            school_year=found.school_year,
            fingerprint=guard.fingerprint(f"part of {found.hold_id}", removals["kind"], None, _keys(part)),
            reason=found.reason,
            removals=removals,
            rows=[list(row.key) for row in part],
            operation_id=found.operation_id,
            opened_at=found.opened_at,
            status="released",
            decided_by=actor,
            decided_reason=reason,
            decided_at=NOW,
        )
    )
    details = {"reason": reason, "removals": removals, "left": len(rest)}
    audit.append(connection, "hold.released", part_id, district=found.district, actor=actor, details=details)
    return _get(connection, part_id)


def _rest_remains(connection: Connection, found: StoredHold, rest: Sequence[HeldRow]) -> None:
    no_limit = {"scope": "district", "school_id": None, "limit": 0, "until": None, "pinned": True}
    removals = _counted(found, rest) | no_limit
    named = guard.fingerprint(removals["entity"], removals["kind"], None, _keys(rest))
    same = (holds.c.district == found.district) & (holds.c.school_year == found.school_year)
    _shrink(connection, same, found.hold_id, named, removals=removals, rows=_keys(rest), reason=REST)


def _shrink(
    connection: Connection,
    same: ColumnElement[bool],
    hold_id: str,
    named: str,
    *,
    rows: Sequence[guard.Key],
    **values: Any,
) -> None:
    """A hold keeps its id and holds fewer removals, by which it is named from now on."""
    # a hold that had exactly these removals before is history now, and leaves its name to this one
    connection.execute(
        update(holds)
        .where(same, holds.c.fingerprint == named, holds.c.hold_id != hold_id)
        .values(fingerprint=holds.c.fingerprint + ":" + cast_sql(holds.c.hold_id, Text))
    )
    connection.execute(
        update(holds)
        .where(holds.c.hold_id == hold_id)
        .values(fingerprint=named, rows=[list(row) for row in rows], **values)
    )


def _counted(found: StoredHold, rows: Sequence[HeldRow]) -> dict[str, Any]:
    """What a hold says about its removals, for some of them."""
    parts = Counter((row.school_id, row.change) for row in rows)  # in the order of the rows
    said = [asdict(guard.Part(*where, count)) for where, count in parts.items()]
    return {**found.removals, "removals": len(rows), "parts": said}


def _keys(rows: Sequence[HeldRow]) -> list[guard.Key]:
    return [tuple(row.key) for row in rows]


def without_students(connection: Connection, district: str, student_ids: frozenset[str]) -> int:
    """Take students out of every hold, whatever became of it; how many holds had them. One that holds nobody else is over."""
    query = select(holds).where(holds.c.district == district).with_for_update()
    found = [_stored(row) for row in connection.execute(query)]
    named = [one for one in found if any(student_ids & set(key) for key in one.rows)]
    for one in named:
        rest = [row for row in one.held() if not student_ids & set(row.key)]
        rows = [list(key) for key in one.rows if not student_ids & set(key)]
        removals = _counted(one, rest) if one.parts else {**one.removals, "removals": len(rows)}
        values: dict[str, Any] = {"removals": removals, "rows": rows}
        if not rows and one.status in {"open", "released"}:
            over = "nobody is left in it"
            values |= {"status": "discarded", "decided_by": PIPELINE, "decided_reason": over, "decided_at": NOW}
        connection.execute(update(holds).where(holds.c.hold_id == one.hold_id).values(**values))
    return len(named)


def released(connection: Connection, district: str, school_year: str) -> frozenset[str]:
    """Fingerprints of the released holds, locked until the transaction ends so that none is taken back meanwhile."""
    query = select(holds.c.fingerprint).where(
        holds.c.district == district, holds.c.school_year == school_year, holds.c.status == "released"
    )
    return frozenset(connection.scalars(query.with_for_update()))


def waiting(connection: Connection, district: str, school_year: str) -> frozenset[str]:
    """Fingerprints of the holds that wait whatever their number, locked as `released`; open ones with them, so that none
    is discarded meanwhile."""
    query = select(holds.c.fingerprint, WAITING.label("waits")).where(
        holds.c.district == district, holds.c.school_year == school_year, or_(holds.c.status == "open", WAITING)
    )
    return frozenset(row.fingerprint for row in connection.execute(query.with_for_update()) if row.waits)


def record(
    connection: Connection, operation: Operation, held: Sequence[guard.Hold], let_through: frozenset[str]
) -> list[audit.Entry]:
    """Bring the holds of a district and school year to what its merge says, in the publication's transaction.

    Holds that were let through are applied, new ones opened, and open ones whose removals are no longer pending
    closed. What a person keeps waiting loses those that complete readings no longer miss, and keeps its id and the
    decision until they miss nobody of it. A hold that was closed, applied or kept until then is reopened when it comes up
    again. What it changed is returned for the audit log.
    """
    same = (holds.c.district == operation.district) & (holds.c.school_year == operation.school_year)
    applied = connection.scalars(
        update(holds)
        .where(same, holds.c.fingerprint.in_(let_through), holds.c.status == "released")
        .values(status="applied")
        .returning(holds.c.hold_id)
    ).all()
    judged = [hold for hold in held if hold.kept is None]
    current = [hold.kept or hold.fingerprint for hold in held]
    proven = _is_proven(operation)
    if not proven:
        current += connection.scalars(select(holds.c.fingerprint).where(same, WAITING))
    _unpin(connection, same, current)
    _renew(connection, same, judged)
    closed = connection.scalars(
        update(holds)
        .where(same, holds.c.status == "open", holds.c.fingerprint.not_in(current))
        .values(
            status="discarded",
            decided_by=PIPELINE,
            decided_reason="these removals are no longer pending",
            decided_at=NOW,
        )
        .returning(holds.c.hold_id)
    ).all()
    for hold in held if proven else ():
        if hold.kept is not None:
            _keep(connection, same, hold)
    raised = [(connection.scalar(_raise(operation, hold)), {"removals": hold.removals}) for hold in judged]
    by: dict[str, object] = {"operation_id": operation.operation_id}
    return [
        *(audit.Entry("hold.applied", hold_id, operation.district, by) for hold_id in applied),
        *(audit.Entry("hold.closed", hold_id, operation.district, by) for hold_id in closed),
        *(audit.Entry("hold.opened", hold_id, operation.district, by | size) for hold_id, size in raised if hold_id),
    ]


def restore(
    connection: Connection,
    operation: Operation,
    held: Sequence[guard.Hold],
    *,
    let_through: Collection[str] = (),
    again_let_through: Collection[str] = (),
    because: str,
) -> list[audit.Entry]:
    """Bring the holds back to what they were before an operation that is undone, in the undo's transaction.

    What was `held` waits again, and with it what the undone operation had let through, until a person decides, whatever
    its number; what it raised is closed. What an
    undo brings back that it had reopened is `again_let_through`. Decisions of persons that led to nothing yet stand.
    Returned for the audit log.
    """
    same = (holds.c.district == operation.district) & (holds.c.school_year == operation.school_year)
    by: dict[str, object] = {"operation_id": operation.operation_id}

    def move(condition: ColumnElement[bool], **values: Any) -> Sequence[str]:
        moved = update(holds).where(same, condition).values(**values)
        return connection.scalars(moved.returning(holds.c.hold_id)).all()

    kept = [hold.kept for hold in held if hold.kept is not None]
    current = [*kept, *let_through, *(hold.fingerprint for hold in held)]
    pinned = func.jsonb_set(holds.c.removals, text("'{pinned}'"), text("'true'::jsonb"))
    is_open, nobody = holds.c.status == "open", {"decided_by": None, "decided_reason": None, "decided_at": None}
    ended = {"decided_by": PIPELINE, "decided_reason": because, "decided_at": NOW}
    again = is_open & holds.c.fingerprint.in_(again_let_through)
    applied = move(again, status="applied", **ended)
    passed = (holds.c.status == "applied") & holds.c.fingerprint.in_(let_through)
    # pinned, or the next merge would let pass again what is below the limits
    waits = {"status": "open", "removals": pinned, "operation_id": operation.operation_id, "opened_at": NOW}
    opened = [*move(passed, **waits, **nobody)]
    by_a_person = (holds.c.status == "discarded") & (holds.c.decided_by != PIPELINE)
    move(by_a_person & holds.c.fingerprint.in_(kept), removals=pinned)
    closed = move(is_open & WAITING.is_not(True) & holds.c.fingerprint.not_in(current), status="discarded", **ended)
    apart = _waiting_keys(connection, same)
    whole = [hold for hold in held if hold.kept is None and not apart.get(hold.entity, set()).issuperset(hold.keys)]
    raised = [connection.scalar(_raise(operation, hold)) for hold in whole]
    opened += [hold_id for hold_id in raised if hold_id]
    return [
        audit.Entry(f"hold.{what}", hold_id, operation.district, by)
        for what, ids in (("applied", applied), ("closed", closed), ("opened", opened))
        for hold_id in ids
    ]


def _waiting_keys(connection: Connection, same: ColumnElement[bool]) -> dict[str, set[guard.Key]]:
    """By entity what waits in holds of its own, as the parts do of one that was released in part."""
    found: dict[str, set[guard.Key]] = {}
    entity = holds.c.removals["entity"].as_string()
    for row in connection.execute(select(entity.label("entity"), holds.c.rows).where(same, WAITING)):
        found.setdefault(row.entity, set()).update(tuple(key) for key in row.rows)
    return found


def _is_proven(operation: Operation) -> bool:
    """Whether who is not missing is back: a reading that is not complete did not look for everybody."""
    return all(read["verdict"] == "complete" for read in operation.inputs.values())


def _unpin(connection: Connection, same: ColumnElement[bool], current: Sequence[str]) -> None:
    """What a person keeps, and is no longer missing, is judged as anybody else should it be missing again."""
    connection.execute(
        update(holds)
        .where(
            same,
            holds.c.status == "discarded",
            holds.c.removals["pinned"].as_boolean(),
            holds.c.fingerprint.not_in(current),
        )
        .values(removals=func.jsonb_set(holds.c.removals, text("'{pinned}'"), text("'false'::jsonb")))
    )


def _keep(connection: Connection, same: ColumnElement[bool], hold: guard.Hold) -> None:
    """Leave in a hold that waits whatever its number those that are still missing."""
    size = func.jsonb_array_length(holds.c.rows)
    query = select(holds.c.hold_id, holds.c.removals, size.label("size"))
    stored = connection.execute(query.where(same, WAITING, holds.c.fingerprint == hold.kept)).one()
    if hold.removals < stored.size:
        now = {"removals": hold.removals, "parts": [asdict(part) for part in hold.parts]}
        removals = {**stored.removals, **now}
        _shrink(connection, same, stored.hold_id, hold.fingerprint, rows=hold.keys, removals=removals)


def _raise(operation: Operation, hold: guard.Hold) -> Any:
    """A statement that gives the hold's id where it is open only since now, nothing where it was before."""
    statement = insert(holds).values(
        hold_id=str(uuid.uuid4()),
        district=operation.district,
        school_year=operation.school_year,
        fingerprint=hold.fingerprint,
        reason=hold.reason,
        removals=_said(hold),
        rows=[list(key) for key in hold.keys],
        operation_id=operation.operation_id,
    )
    ended = (holds.c.status == "discarded") & WAITING.is_not(True)
    again = or_(holds.c.status == "applied", ended)
    return statement.on_conflict_do_update(
        index_elements=["district", "school_year", "fingerprint"],
        set_={
            "status": "open",
            "reason": statement.excluded.reason,
            "removals": statement.excluded.removals,
            "rows": statement.excluded.rows,
            "operation_id": statement.excluded.operation_id,
            "opened_at": NOW,
            "decided_by": None,
            "decided_reason": None,
            "decided_at": None,
        },
        where=again,
    ).returning(holds.c.hold_id)


def _said(hold: guard.Hold) -> dict[str, Any]:
    """What is kept of a hold that the guard found, beside its name, its reason and its keys."""
    said = {
        name: value for name, value in asdict(hold).items() if name not in {"fingerprint", "reason", "keys", "kept"}
    }
    return {**said, "pinned": False}


def _renew(connection: Connection, same: ColumnElement[bool], held: Sequence[guard.Hold]) -> None:
    """Open holds that are held for another reason than before (a freeze that is over) say so."""
    for hold in held:
        connection.execute(
            update(holds)
            .where(
                same, holds.c.status == "open", holds.c.fingerprint == hold.fingerprint, holds.c.reason != hold.reason
            )
            .where(~holds.c.removals["pinned"].as_boolean())
            .values(reason=hold.reason, removals=_said(hold))
        )


def _get(connection: Connection, hold_id: str, *, lock: bool = False) -> StoredHold:
    query = select(holds).where(holds.c.hold_id == _uuid(hold_id))
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise ConfigError(
            f"There is no hold {hold_id}.", code="config.no_hold", advice="`sis holds list` shows those there are."
        )
    return _stored(row)


def _uuid(hold_id: str) -> str:
    try:
        return str(uuid.UUID(hold_id))
    except ValueError:
        raise ConfigError(
            f"{hold_id[:80]!r} is no hold id.", code="config.no_hold", advice="`sis holds list` shows those there are."
        ) from None


def _stored(row: Row[Any]) -> StoredHold:
    return StoredHold(**cast("dict[str, Any]", dict(row._mapping)))  # noqa: SLF001
