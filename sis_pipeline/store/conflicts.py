"""Which of several values people chose for a student's attribute: kept with who and why, and handed to every merge.
When a choice holds, and what is chosen without one, is decided in roster.merge."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.dialects.postgresql import distinct_on

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db import audit
from sis_pipeline.db.tables import conflict_decisions, roster_tables
from sis_pipeline.roster.attributes import ANY_TRUE
from sis_pipeline.roster.merge import KEPT, Decided
from sis_pipeline.roster.model import STALE

conflicts = roster_tables["conflicts"]


@dataclass(frozen=True, slots=True)
class Decision:
    """Whose value a person chose; nobody's where they took a decision back."""

    decision: int
    district: str
    student_id: str
    attribute: str
    integration: str | None
    sis_id: str | None
    decided_by: str
    reason: str
    decided_at: datetime


COLUMNS = [conflict_decisions.c[name] for name in Decision.__dataclass_fields__]


class Conflicts:
    """The conflicts of this installation, and what people decide about them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def decide(self, student_id: str, attribute: str, source: str, *, actor: str, reason: str) -> Decision:
        """Publish the value of `source`, an integration or INTEGRATION/SIS_ID, until what the systems say changes.

        The next merge does it. Raises ConfigError without a reason, where nothing conflicts, for a protection, and for a
        source that is not one of the conflict's, or more than one.
        """
        _check_words(actor, reason)
        with self._engine.begin() as connection:
            conflict = _newest_conflict(connection, student_id, attribute)
            integration, sis_id = _source(conflict, source)
            return _keep(connection, conflict, (integration, sis_id), actor, reason)

    def reopen(self, student_id: str, attribute: str, *, actor: str, reason: str) -> Decision:
        """Take a decision back: the next merge goes by the policy. Raises ConfigError as `decide`."""
        _check_words(actor, reason)
        with self._engine.begin() as connection:
            conflict = _newest_conflict(connection, student_id, attribute)
            if conflict.status != "resolved":
                raise ConfigError(
                    f"The conflict about {attribute} of student {student_id} is {conflict.status}: there is no decision to take back.",
                    code="config.conflict",
                )
            return _keep(connection, conflict, (None, None), actor, reason)

    def decisions(self, district: str, student_id: str) -> list[Decision]:
        """Every decision about a student, the newest first."""
        table = conflict_decisions.c
        query = select(*COLUMNS).where(table.district == district, table.student_id == student_id)
        with self._engine.connect() as connection:
            return [Decision(*row) for row in connection.execute(query.order_by(table.decision.desc()))]


def decided(connection: Connection, district: str) -> tuple[Decided, ...]:
    """The newest decision about every attribute, where it was not taken back."""
    table = conflict_decisions.c
    newest = (
        select(conflict_decisions)
        .where(table.district == district)
        .ext(distinct_on(table.student_id, table.attribute))
        .order_by(table.student_id, table.attribute, table.decision.desc())
        .subquery()
    )
    query = select(newest).where(newest.c.integration.is_not(None)).order_by(newest.c.decision)
    return tuple(
        Decided(row.student_id, row.attribute, row.integration, row.sis_id, frozenset(map(tuple, row.seen)))
        for row in connection.execute(query)
    )


def rules(connection: Connection, district: str, school_year: str) -> list[object]:
    """What a merge of a school year depends on here: the decisions about students of that year, if there are any.

    Their number is part of it: one may be committed after another that has a higher number.
    """
    years = roster_tables["student_years"].c
    last, number = connection.execute(
        select(func.max(conflict_decisions.c.decision), func.count())
        .join_from(
            conflict_decisions,
            roster_tables["student_years"],
            (years.district == conflict_decisions.c.district) & (years.student_id == conflict_decisions.c.student_id),
        )
        .where(conflict_decisions.c.district == district, years.school_year == school_year)
    ).one()
    return [f"decision {last} of {number}"] if last else []


def _newest_conflict(connection: Connection, student_id: str, attribute: str) -> Any:
    query = select(conflicts).where(
        conflicts.c.student_id == student_id, conflicts.c.attribute == attribute, conflicts.c.status != STALE
    )
    found = connection.execute(
        query.order_by(conflicts.c.school_year.desc(), conflicts.c.district).limit(1)
    ).one_or_none()
    if found is None:
        raise ConfigError(f"Nothing conflicts about {attribute} of student {student_id}.", code="config.conflict")
    if attribute in ANY_TRUE:
        raise ConfigError(
            f"{attribute} holds as long as any system, or an edit, says so; nobody can decide against it.",
            code="config.conflict",
            advice="Correct it in the system that says so.",
        )
    return found


def _source(conflict: Any, source: str) -> tuple[str, str]:
    sources = [(it["integration"], it["sis_id"]) for it in conflict.candidates]
    named = [it for it in sources if source in {it[0], "/".join(it)}]
    if len(named) != 1:
        raise ConfigError(
            f"{len(named)} of the values of {conflict.attribute} are of {source[:80]!r}.",
            code="config.conflict",
            advice=f"Choose one of {', '.join('/'.join(it) for it in sources)}.",
        )
    return named[0]


def _keep(
    connection: Connection, conflict: Any, source: tuple[str | None, str | None], actor: str, reason: str
) -> Decision:
    integration, sis_id = source
    row = connection.execute(
        conflict_decisions.insert()
        .values(
            district=conflict.district,
            student_id=conflict.student_id,
            attribute=conflict.attribute,
            integration=integration,
            sis_id=sis_id,
            seen=[
                [it["integration"], it["sis_id"], it["value"]]
                for it in conflict.candidates
                if it["integration"] != KEPT
            ],
            decided_by=actor,
            reason=reason,
        )
        .returning(*COLUMNS)
    ).one()
    audit.append(
        connection,
        "conflict.decide" if integration else "conflict.reopen",
        conflict.student_id,
        district=conflict.district,
        actor=actor,
        details={"attribute": conflict.attribute, "integration": integration, "reason": reason},
    )
    return Decision(*row)


def _check_words(actor: str, reason: str) -> None:
    if not (reason.strip() and actor.strip()):
        raise ConfigError(
            "A decision about a conflict needs who decides and why.",
            code="config.conflict_reason",
            advice="Give both, and run it again.",
        )
