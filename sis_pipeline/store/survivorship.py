"""Whose values a district publishes: its survivorship policies, versioned, and what people edited in `students`.
What follows from them for a student is decided in roster.merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import polars as pl
from sqlalchemy import ColumnElement, Connection, Engine, Text, func, select, text, update
from sqlalchemy.dialects.postgresql import distinct_on

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db import audit
from sis_pipeline.db.tables import SCHEMA, roster_tables, student_edits, survivorship_policies
from sis_pipeline.roster.merge import EDITS
from sis_pipeline.roster.policies import DEFAULT, Policies, check
from sis_pipeline.store.integrations import check_district
from sis_pipeline.store.locks import lock_district

PUBLISHING = "sis.publishing"
"""While this is `on` for a transaction, what it writes to `students` is the pipeline's and no edit."""

EDITS_MARK = func.max(student_edits.c.edit).cast(Text) + " of " + func.count().cast(Text)


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """One version of a district's policies; version 0 is that of a district that never had any."""

    district: str
    version: int = 0
    values: Mapping[str, str] = field(default_factory=dict)
    set_by: str | None = None
    reason: str | None = None
    set_at: datetime | None = None

    @property
    def policies(self) -> Policies:
        """Raises ConfigError where what is set is wrong."""
        try:
            return Policies.of(self.values)
        except ValueError as error:
            raise ConfigError(
                f"The policies of {self.district} are wrong: {error}.",
                code="config.policy",
                advice=f"`sis policy set {self.district} ATTRIBUTE=default --reason …` takes a wrong one back.",
            ) from None


class Survivorship:
    """The survivorship policies of every district of this installation."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def policies(self, district: str) -> PolicyVersion:
        with self._engine.connect() as connection:
            return _newest(connection, check_district(district))

    def history(self, district: str) -> list[PolicyVersion]:
        """Every version, the newest first."""
        table = survivorship_policies.c
        query = select(survivorship_policies).where(table.district == check_district(district))
        with self._engine.connect() as connection:
            return [PolicyVersion(*row) for row in connection.execute(query.order_by(table.version.desc()))]

    def proposed(self, district: str, values: Mapping[str, str]) -> PolicyVersion:
        """The policies as they would be with `values`; nothing is kept. Raises ConfigError as `set`."""
        with self._engine.connect() as connection:
            old = _newest(connection, check_district(district))
        return PolicyVersion(district, old.version + 1, _changed(old.values, values))

    def set(self, district: str, values: Mapping[str, str], *, actor: str, reason: str) -> PolicyVersion:
        """Set the policies of attributes; the rest stays. Where nothing differs, nothing is kept.

        `values`: attribute, or `default`, -> policy; an attribute's policy `default` takes its own back. Raises
        ConfigError for what can't be set, and without a reason.
        """
        if not (reason.strip() and actor.strip()):
            raise ConfigError(
                "A change of the policies needs who makes it and why.",
                code="config.policy_reason",
                advice="Give both, and run it again.",
            )
        with self._engine.begin() as connection:
            lock_district(connection, check_district(district))
            old = _newest(connection, district)
            changed = _changed(old.values, values)
            if changed == old.values:
                return old
            connection.execute(
                survivorship_policies.insert().values(
                    district=district, version=old.version + 1, policies=changed, set_by=actor, reason=reason
                )
            )
            details = {"version": old.version + 1, "reason": reason, "set": dict(values)}
            audit.append(connection, "policy.set", district, district=district, actor=actor, details=details)
            return _newest(connection, district)


def policies(connection: Connection, district: str) -> Policies:
    """Raises ConfigError where what is set is wrong."""
    return _newest(connection, district).policies


def rules(connection: Connection, district: str, school_year: str) -> list[object]:
    """What a merge depends on beside what guarding.rules says, where it is not as by default.

    The policies are taken as they are written: wrong ones are their district's trouble when it is merged, and no other's.
    """
    values, mark = _newest(connection, district).values, edited(connection, district, school_year)
    return [*([sorted(values.items())] if values else []), *([f"edits {mark}"] if mark else [])]


def edited(connection: Connection, district: str, school_year: str) -> str | None:
    """The mark of the edits of students whose attributes a merge of that school year may own.

    Which edit is the newest does not tell them: one may be committed after another that has a higher number.
    """
    students = roster_tables["students"].c
    query = (
        select(EDITS_MARK)
        .join_from(
            student_edits,
            roster_tables["students"],
            (students.district == student_edits.c.district) & (students.student_id == student_edits.c.student_id),
        )
        .where(student_edits.c.district == district, students.latest_school_year <= school_year)
    )
    found: str | None = connection.scalar(query)
    return found


def all_edited(connection: Connection, district: str) -> str | None:
    """The mark of every edit of a district, whoever owns the student's attributes, and whether the student is there."""
    found: str | None = connection.scalar(select(EDITS_MARK).where(student_edits.c.district == district))
    return found


def edits(connection: Connection, district: str) -> pl.DataFrame:
    """The newest edit of every attribute, where the systems do not say the same by now, as merge.EDITS."""
    table = student_edits.c
    newest = (
        select(student_edits)
        .where(table.district == district)
        .ext(distinct_on(table.student_id, table.attribute))
        .order_by(table.student_id, table.attribute, table.edit.desc())
        .subquery()
    )
    query = select(newest).where(newest.c.settled_at.is_(None)).order_by(newest.c.edit)
    rows = [{**row.value, **row._mapping} for row in connection.execute(query)]  # noqa: SLF001
    return pl.DataFrame(
        {name: [_typed(row.get(name), dtype) for row in rows] for name, dtype in EDITS.items()}, schema=EDITS
    )


def begin_publishing(connection: Connection) -> None:
    """Say that what this transaction writes to `students` is the pipeline's: everybody else's is noted as an edit."""
    connection.execute(text("select set_config(:name, 'on', true)"), {"name": PUBLISHING})


def settle(connection: Connection, numbers: Sequence[int]) -> None:
    """Say of edits that the systems agree with them: from now on the systems are believed again."""
    _settled(connection, numbers, student_edits.c.settled_at.is_(None), text(f"{SCHEMA}.clock()"))


def unsettle(connection: Connection, numbers: Sequence[int]) -> None:
    """Take that back: what the systems said was undone."""
    _settled(connection, numbers, student_edits.c.settled_at.is_not(None), None)


def _settled(connection: Connection, numbers: Sequence[int], condition: ColumnElement[bool], when: Any) -> None:
    if numbers:
        same = student_edits.c.edit.in_(numbers) & condition
        connection.execute(update(student_edits).where(same).values(settled_at=when))


def _typed(value: Any, dtype: pl.DataType) -> Any:
    return date.fromisoformat(value) if dtype == pl.Date() and isinstance(value, str) else value


def _changed(old: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    try:
        given = {name: policy if policy == DEFAULT != name else check(name, policy) for name, policy in values.items()}
        for name in given:
            if name not in old:
                check(name, "sis_wins")
    except ValueError as error:
        raise ConfigError(
            f"The policies can't be set: {error}.",
            code="config.policy",
            advice="`sis policy show DISTRICT` lists the attributes and their policies.",
        ) from None
    merged = {**old, **given}
    return {name: policy for name, policy in sorted(merged.items()) if policy != DEFAULT}


def _newest(connection: Connection, district: str) -> PolicyVersion:
    table = survivorship_policies.c
    query = select(survivorship_policies).where(table.district == district).order_by(table.version.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return PolicyVersion(*row) if row else PolicyVersion(district)
