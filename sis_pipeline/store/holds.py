"""Holds: removals that wait for a person, and what the person decided.
Which removals are held is the roster guard's decision; letting them through is the next merge's work."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

from sqlalchemy import Connection, Engine, Row, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db import audit
from sis_pipeline.db.tables import SCHEMA, holds
from sis_pipeline.roster import guard
from sis_pipeline.store.merged import Operation

Status = Literal["open", "released", "discarded", "applied"]
PIPELINE = "sis_pipeline"
"""Who closes a hold whose removals are no longer pending."""
NOW = text(f"{SCHEMA}.clock()")


@dataclass(frozen=True, slots=True)
class StoredHold:
    """A hold and what became of it. `removals`: counts and limits. `rows`: the keys of what is held."""

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

    def release(self, hold_id: str, actor: str, reason: str) -> StoredHold:
        """Let exactly these removals through; the next merge applies them. Raises ConfigError as `discard`."""
        return self._decide(hold_id, "released", actor, reason)

    def discard(self, hold_id: str, actor: str, reason: str) -> StoredHold:
        """Keep what is published, and don't ask again about exactly these removals.

        Raises ConfigError without a reason, for an unknown hold and for one that was applied or closed already.
        """
        return self._decide(hold_id, "discarded", actor, reason)

    def _decide(self, hold_id: str, status: Status, actor: str, reason: str) -> StoredHold:
        if not (reason.strip() and actor.strip()):
            raise ConfigError(
                "A decision about a hold needs who decides and why.",
                code="config.hold_reason",
                advice="Give both, and run it again.",
            )
        with self._engine.begin() as connection:
            found = _get(connection, hold_id, lock=True)
            if found.status == "applied" or found.decided_by == PIPELINE:
                raise ConfigError(
                    f"Hold {hold_id} is {found.status} already ({found.decided_reason}).",
                    code="config.hold_decided",
                    advice="`sis holds list` shows the open ones.",
                )
            connection.execute(
                update(holds)
                .where(holds.c.hold_id == hold_id)
                .values(status=status, decided_by=actor, decided_reason=reason, decided_at=NOW)
            )
            audit.append(
                connection,
                f"hold.{status}",
                hold_id,
                district=found.district,
                actor=actor,
                details={"reason": reason, "removals": dict(found.removals)},
            )
            return _get(connection, hold_id)


def released(connection: Connection, district: str, school_year: str) -> frozenset[str]:
    """Fingerprints of the released holds, locked until the transaction ends so that none is taken back meanwhile."""
    query = select(holds.c.fingerprint).where(
        holds.c.district == district, holds.c.school_year == school_year, holds.c.status == "released"
    )
    return frozenset(connection.scalars(query.with_for_update()))


def record(
    connection: Connection, operation: Operation, held: Sequence[guard.Hold], let_through: frozenset[str]
) -> list[audit.Entry]:
    """Bring the holds of a district and school year to what its merge says, in the publication's transaction.

    Holds that were let through are applied, new ones opened, and open ones whose removals are no longer pending
    closed. A person's decision about the same removals stays; a closed or applied hold that comes up again is
    reopened. What it changed is returned for the audit log.
    """
    same = (holds.c.district == operation.district) & (holds.c.school_year == operation.school_year)
    applied = connection.scalars(
        update(holds)
        .where(same, holds.c.fingerprint.in_(let_through), holds.c.status == "released")
        .values(status="applied")
        .returning(holds.c.hold_id)
    ).all()
    current = [hold.fingerprint for hold in held]
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
    raised = [(connection.scalar(_raise(operation, hold)), {"removals": hold.removals}) for hold in held]
    by: dict[str, object] = {"operation_id": operation.operation_id}
    return [
        *(audit.Entry("hold.applied", hold_id, operation.district, by) for hold_id in applied),
        *(audit.Entry("hold.closed", hold_id, operation.district, by) for hold_id in closed),
        *(audit.Entry("hold.opened", hold_id, operation.district, by | size) for hold_id, size in raised if hold_id),
    ]


def _raise(operation: Operation, hold: guard.Hold) -> Any:
    """A statement that gives the hold's id where it is open only since now, nothing where it was before."""
    statement = insert(holds).values(
        hold_id=str(uuid.uuid4()),
        district=operation.district,
        school_year=operation.school_year,
        fingerprint=hold.fingerprint,
        reason=hold.reason,
        removals={
            "kind": hold.kind,
            "entity": hold.entity,
            "scope": hold.scope,
            "school_id": hold.school_id,
            "removals": hold.removals,
            "active_before": hold.active_before,
            "limit": hold.limit,
        },
        rows=[list(key) for key in hold.keys],
        operation_id=operation.operation_id,
    )
    again = or_(holds.c.status == "applied", holds.c.decided_by == PIPELINE)
    return statement.on_conflict_do_update(
        index_elements=["district", "school_year", "fingerprint"],
        set_={
            "status": "open",
            "operation_id": statement.excluded.operation_id,
            "opened_at": NOW,
            "decided_by": None,
            "decided_reason": None,
            "decided_at": None,
        },
        where=again,
    ).returning(holds.c.hold_id)


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
