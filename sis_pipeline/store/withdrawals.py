"""Bulk withdrawals: who was enrolled at a school is no longer, on a person's word, kept with who and why for every merge.
How long such a word holds against what the systems say is decided in roster.withdrawals."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import polars as pl
from sqlalchemy import Connection, Engine, func, literal, select, text, update

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db import audit
from sis_pipeline.db.tables import SCHEMA, roster_tables, withdrawals, withdrawn_enrollments
from sis_pipeline.roster.enrollments import OPEN
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.withdrawals import WITHDRAWALS
from sis_pipeline.store import guarding
from sis_pipeline.store.integrations import check_district
from sis_pipeline.store.locks import lock_district

enrollments = roster_tables["enrollments"].c


@dataclass(frozen=True, slots=True)
class Plan:
    """What a withdrawal would end: `enrollments` by status, by grade level, and the students. `elsewhere`: those of them
    who are also enrolled at another school, and stay so."""

    district: str
    school_id: str
    school: str | None
    school_year: str
    effective: date
    statuses: Mapping[str, int]
    grades: Mapping[str, int]
    students: Sequence[str]
    elsewhere: int

    @property
    def enrollments(self) -> int:
        return sum(self.statuses.values())


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """A person's act. `enrollments`: how many it named; `taken_back_at`: null while it stands."""

    withdrawal_id: str
    district: str
    school_id: str
    school_year: str
    effective_date: date
    exit_code: str | None
    withdrawn_by: str
    reason: str
    withdrawn_at: datetime
    taken_back_by: str | None
    taken_back_at: datetime | None
    school: str | None
    enrollments: int


class Withdrawals:
    """The bulk withdrawals of this installation."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def plan(self, district: str, school: str, effective: date) -> Plan:
        """What `withdraw` would end; nothing is kept. Raises ConfigError as it does."""
        with self._engine.connect() as connection:
            return _plan(connection, district, school, effective)

    def withdraw(
        self, district: str, school: str, effective: date, *, actor: str, reason: str, code: str | None = None
    ) -> tuple[Withdrawal, Plan]:
        """Keep that all who are enrolled at a school end on a day; the next merge does it.

        Raises ConfigError without a reason, for an unknown school, a day that is still to come or in no published school
        year, and where nobody is enrolled.
        """
        _give_reason(actor, reason)
        with self._engine.begin() as connection:
            lock_district(connection, check_district(district))
            plan = _plan(connection, district, school, effective)
            if not plan.enrollments:
                raise ConfigError(
                    f"Nobody is enrolled at {plan.school} in {plan.school_year}.",
                    code="config.withdrawal",
                    advice="`sis enrollments list` shows who is enrolled where.",
                )
            withdrawal_id = str(uuid.uuid4())
            act = {"school_id": plan.school_id, "school_year": plan.school_year, "effective_date": effective}
            connection.execute(
                withdrawals.insert().values(
                    district=district,
                    withdrawal_id=withdrawal_id,
                    **act,
                    exit_code=code,
                    withdrawn_by=actor,
                    reason=reason,
                )
            )
            named = select(
                literal(district),
                literal(withdrawal_id, withdrawals.c.withdrawal_id.type),
                enrollments.student_id,
                enrollments.entry_date,
            )
            connection.execute(
                withdrawn_enrollments.insert().from_select(
                    ["district", "withdrawal_id", "student_id", "entry_date"],
                    named.where(_open(district, plan.school_id, plan.school_year)),
                )
            )
            details = {
                "school_id": plan.school_id,
                "effective": effective.isoformat(),
                "enrollments": plan.enrollments,
                "reason": reason,
            }
            audit.append(
                connection, "enrollments.withdraw", withdrawal_id, district=district, actor=actor, details=details
            )
            return _get(connection, withdrawal_id), plan

    def take_back(self, withdrawal_id: str, *, actor: str, reason: str) -> Withdrawal:
        """From the next merge on the systems are believed again about those enrollments. Raises ConfigError without a
        reason, for an unknown withdrawal and for one that was taken back."""
        _give_reason(actor, reason)
        with self._engine.begin() as connection:
            found = _get(connection, withdrawal_id)
            lock_district(connection, found.district)
            same = (withdrawals.c.withdrawal_id == found.withdrawal_id) & withdrawals.c.taken_back_at.is_(None)
            values = {"taken_back_by": actor, "taken_back_at": text(f"{SCHEMA}.clock()")}
            if not connection.execute(update(withdrawals).where(same).values(**values)).rowcount:
                raise ConfigError(f"Withdrawal {withdrawal_id} was taken back already.", code="config.withdrawal")
            details = {"enrollments": found.enrollments, "reason": reason}
            audit.append(
                connection,
                "enrollments.reinstate",
                found.withdrawal_id,
                district=found.district,
                actor=actor,
                details=details,
            )
            return _get(connection, withdrawal_id)

    def list(self, district: str) -> list[Withdrawal]:
        """The newest first."""
        with self._engine.connect() as connection:
            query = _told().where(withdrawals.c.district == check_district(district))
            return [Withdrawal(*row) for row in connection.execute(query.order_by(withdrawals.c.withdrawn_at.desc()))]


def standing(connection: Connection, district: str, school_year: str) -> pl.DataFrame:
    """The enrollments of a school year that people withdrew, as withdrawals.WITHDRAWALS."""
    own = withdrawals.c.withdrawal_id == withdrawn_enrollments.c.withdrawal_id
    columns = {**withdrawals.c, **withdrawn_enrollments.c}
    query = (
        select(*(columns[name] for name in WITHDRAWALS))
        .join_from(withdrawn_enrollments, withdrawals, own)
        .where(_stand(district, school_year))
    )
    return pl.DataFrame([tuple(row) for row in connection.execute(query)], schema=WITHDRAWALS, orient="row")


def rules(connection: Connection, district: str, school_year: str) -> list[object]:
    """What a merge of a school year depends on here: the withdrawals that stand, where there are any."""
    query = select(withdrawals.c.withdrawal_id).where(_stand(district, school_year))
    found = connection.scalars(query.order_by(withdrawals.c.withdrawal_id)).all()
    return [f"withdrawn {', '.join(found)}"] if found else []


def _stand(district: str, school_year: str) -> Any:
    same = (withdrawals.c.district == district) & (withdrawals.c.school_year == school_year)
    return same & withdrawals.c.taken_back_at.is_(None)


def _plan(connection: Connection, district: str, school: str, effective: date) -> Plan:
    school_id, name = guarding.find_school(connection, check_district(district), school)
    if effective > guarding.today_of(connection):
        raise ConfigError(
            f"{effective} is still to come.",
            code="config.withdrawal",
            advice="Withdraw on that day or later; `sis school close` declares a closure beforehand.",
        )
    year = SchoolYear.on(effective).key
    here = _open(district, school_id, year)
    grouped = select(enrollments.status, enrollments.grade_level, func.count().label("stays")).where(here)
    statuses: dict[str, int] = {}
    grades: dict[str, int] = {}
    for row in connection.execute(grouped.group_by(enrollments.status, enrollments.grade_level).order_by("status", "grade_level")):  # fmt: skip
        statuses[row.status] = statuses.get(row.status, 0) + row.stays
        grades[row.grade_level or ""] = grades.get(row.grade_level or "", 0) + row.stays
    students = connection.scalars(select(enrollments.student_id).where(here).distinct().order_by("student_id")).all()
    there = select(func.count(enrollments.student_id.distinct())).where(
        enrollments.district == district,
        enrollments.school_year == year,
        enrollments.school_id != school_id,
        enrollments.status.in_(OPEN),
        enrollments.student_id.in_(select(enrollments.student_id).where(here).correlate(None)),
    )
    elsewhere = connection.scalar(there) or 0
    return Plan(district, school_id, name, year, effective, statuses, grades, students, elsewhere)


def _open(district: str, school_id: str, school_year: str) -> Any:
    return (
        (enrollments.district == district)
        & (enrollments.school_year == school_year)
        & (enrollments.school_id == school_id)
        & enrollments.status.in_(OPEN)
    )


def _told() -> Any:
    schools, rows = roster_tables["schools"], withdrawn_enrollments
    number = select(func.count()).select_from(rows).where(rows.c.withdrawal_id == withdrawals.c.withdrawal_id)
    own = [withdrawals.c[name] for name in Withdrawal.__dataclass_fields__ if name in withdrawals.c]
    at = (schools.c.district == withdrawals.c.district) & (schools.c.school_id == withdrawals.c.school_id)
    return select(*own, schools.c.name, number.scalar_subquery()).outerjoin_from(withdrawals, schools, at)


def _get(connection: Connection, withdrawal_id: str) -> Withdrawal:
    row = connection.execute(_told().where(withdrawals.c.withdrawal_id == withdrawal_id)).one_or_none()
    if row is None:
        raise ConfigError(
            f"There is no withdrawal {withdrawal_id}.",
            code="config.withdrawal",
            advice="`sis enrollments withdrawals --district DISTRICT` shows those there are.",
        )
    return Withdrawal(*row)


def _give_reason(actor: str, reason: str) -> None:
    if not (reason.strip() and actor.strip()):
        raise ConfigError(
            "A withdrawal needs who withdraws and why.",
            code="config.withdrawal_reason",
            advice="Give both, and run it again.",
        )
