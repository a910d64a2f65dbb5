"""What of a student left this installation, and to whom: noted when it leaves, and told for one student (34 CFR 99.32).
What an export holds is decided by whoever makes it; reading the published tables leaves no trace here.

Who was in a disclosure is kept as stretches: a student is in every disclosure of a series from number `since` on, until
number `until`. Exporting the same roster to the same place every night adds one row a night, whoever many students it has.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl
from sqlalchemy import ColumnElement, Connection, Engine, Table, func, or_, select, text

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db.tables import (
    SCHEMA,
    accounts,
    audit_log,
    disclosed_students,
    disclosures,
    roster_tables,
    student_aliases,
)
from sis_pipeline.store import bulk
from sis_pipeline.store.erasure import PERSON
from sis_pipeline.store.locks import lock_key

UNRECORDED = (
    "Who reads the published tables, by SQL or through an application on top of them, is not recorded here.",
    "What a recipient did with what it received, and copies and backups, can't be known here.",
)
"""What a record of disclosures made here can't say."""

IN_SERIES = f"""
update {SCHEMA}.disclosed_students old set until = :number
where series = :series and until is null
  and not exists (select from disclosing now where now.student_id = old.student_id);
"""
NEW_IN_SERIES = f"""
insert into {SCHEMA}.disclosed_students (district, series, student_id, since)
select :district, :series, now.student_id, :number from disclosing now
where not exists (select from {SCHEMA}.disclosed_students old
                  where old.series = :series and old.until is null and old.student_id = now.student_id)
"""


@dataclass(frozen=True, slots=True)
class Disclosing:
    """Something that is about to leave. `fields`: by file or table, the columns that hold anything."""

    district: str
    school_year: str
    epoch: int
    form: str
    destination: str
    recipient: str | None
    reason: str | None
    actor: str
    fields: Mapping[str, Sequence[str]]
    rows: Mapping[str, int]

    @property
    def series(self) -> str:
        """Those that hold nearly the same students each time."""
        named = "/".join((self.district, self.school_year, self.form, self.destination))
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"disclosures/{named}"))


@dataclass(frozen=True, slots=True)
class Disclosed:
    """A disclosure that had the student, or, with `included` None, may have had: it was made before that was recorded."""

    at: datetime
    form: str
    school_year: str
    epoch: int | None
    destination: str
    recipient: str | None
    reason: str | None
    actor: str
    fields: Mapping[str, Sequence[str]]
    included: bool | None


@dataclass(frozen=True, slots=True)
class InTable:
    """Rows of a student in a published table, by school year where it has any."""

    table: str
    school_year: str | None
    rows: int
    last_changed: datetime | None


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of where a student's data went. `published_since`: when it was first in the tables, as far as told."""

    student_id: str
    district: str
    published_since: datetime | None
    published: Sequence[InTable]
    disclosures: Sequence[Disclosed]
    unrecorded: Sequence[str] = UNRECORDED


def record(connection: Connection, it: Disclosing, student_ids: pl.Series) -> int:
    """Note a disclosure and who is in it, in the transaction of its audit entry; the disclosure's number."""
    lock = text("select pg_advisory_xact_lock(:key)")
    connection.execute(lock, {"key": lock_key("disclosures", it.district)})
    names = ("district", "school_year", "epoch", "form", "destination", "recipient", "reason", "actor", "series")
    values = {name: getattr(it, name) for name in names} | {
        "fields": {name: list(columns) for name, columns in it.fields.items()},
        "rows": dict(it.rows),
        "students": student_ids.n_unique(),
    }
    number = connection.scalar(disclosures.insert().values(values).returning(disclosures.c.disclosure))
    connection.execute(text("create temp table disclosing (student_id uuid) on commit drop"))
    bulk.copy_in(connection, "disclosing", {"student_id": "uuid"}, student_ids.unique().to_frame("student_id"))
    connection.execute(text("analyze disclosing"))
    about = {"district": it.district, "series": it.series, "number": number}
    connection.execute(text(IN_SERIES), {name: about[name] for name in ("series", "number")})
    connection.execute(text(NEW_IN_SERIES), about)
    return int(number or 0)


class Disclosures:
    """The record of disclosures of this installation, to read."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def of(self, student_id: str) -> Record:
        """Raises ConfigError for an id that no student has, nor anything that was disclosed."""
        with self._engine.connect() as connection:
            own, ids = _ids(connection, student_id)
            district = _district(connection, ids)
            if district is None:
                raise ConfigError(
                    f"There is no student {student_id}.",
                    code="config.no_student",
                    advice="`sis students show --ssid …` shows ids; of who was erased nothing is kept here.",
                )
            found = [one for source in SOURCES for one in source(connection, district, ids)]
            newest_first = sorted(found, key=lambda one: one.at, reverse=True)
            since = _published_since(connection, district, ids)
            return Record(own, district, since, _published(connection, district, ids), newest_first)


def _ids(connection: Connection, student_id: str) -> tuple[str, list[str]]:
    """The student's id now, and all it has or had."""
    alias = student_aliases.c
    standing = alias.restored_at.is_(None)
    own = connection.scalar(select(alias.student_id).where(alias.alias_id == student_id, standing)) or student_id
    others = connection.scalars(select(alias.alias_id).where(alias.student_id == own, standing))
    return own, [own, *others]


def _district(connection: Connection, ids: Sequence[str]) -> str | None:
    for table in (roster_tables["students"], disclosed_students):
        found: str | None = connection.scalar(select(table.c.district).where(table.c.student_id.in_(ids)).limit(1))
        if found is not None:
            return found
    return None


# --- where something of a student goes out ------------------------------------------------------------------------------


def _recorded(connection: Connection, district: str, ids: Sequence[str]) -> list[Disclosed]:
    who, what = disclosed_students.c, disclosures.c
    mine = (
        select(who.student_id)
        .where(
            who.district == district,
            who.student_id.in_(ids),
            who.series == what.series,
            who.since <= what.disclosure,
            or_(who.until.is_(None), who.until > what.disclosure),
        )
        .exists()
    )
    query = select(disclosures).where(what.district == district, mine)
    return [
        Disclosed(
            at=row.disclosed_at,
            form=row.form,
            school_year=row.school_year,
            epoch=row.epoch,
            destination=row.destination,
            recipient=row.recipient,
            reason=row.reason,
            actor=row.actor,
            fields=row.fields,
            included=True,
        )
        for row in connection.execute(query)
    ]


def _unrecorded_exports(connection: Connection, district: str, ids: Sequence[str]) -> list[Disclosed]:  # noqa: ARG001
    """Exports by earlier versions, which did not note who was in them: they may have had anybody of the district."""
    log = audit_log.c
    query = select(log.at, log.actor, log.details).where(
        log.district == district, log.action == "export.oneroster", ~log.details.has_key("disclosure")
    )
    return [
        Disclosed(
            at=row.at,
            form=row.details["format"],
            school_year=row.details["school_year"],
            epoch=row.details.get("epoch"),
            destination=row.details["to"],
            recipient=None,
            reason=row.details.get("reason"),
            actor=row.actor,
            fields={},
            included=None,
        )
        for row in connection.execute(query)
    ]


SOURCES: tuple[Callable[[Connection, str, Sequence[str]], list[Disclosed]], ...] = (_recorded, _unrecorded_exports)
"""Everything that knows of disclosures: whatever hands on a student's data otherwise than by `record` (accounts made in
another system) is added here."""


# --- what is published here ---------------------------------------------------------------------------------------------


def _published(connection: Connection, district: str, ids: Sequence[str]) -> list[InTable]:
    return [one for table in (*roster_tables.values(), accounts) for one in _in_table(connection, table, district, ids)]


def _in_table(connection: Connection, table: Table, district: str, ids: Sequence[str]) -> list[InTable]:
    person = _is_of(table, ids)
    if person is None:
        return []
    year = table.c.get("school_year")
    stamp = next((table.c[name] for name in ("changed_at", "detected_at", "last_seen") if name in table.c), None)
    columns = [
        func.count().label("rows"),
        *([] if year is None else [year.label("school_year")]),
        *([] if stamp is None else [func.max(stamp).label("changed")]),
    ]
    query = select(*columns).where(table.c.district == district, person)
    query = query if year is None else query.group_by(year).order_by(year)
    return [
        InTable(table.name, getattr(row, "school_year", None), row.rows, getattr(row, "changed", None))
        for row in connection.execute(query)
        if row.rows
    ]


def _is_of(table: Table, ids: Sequence[str]) -> ColumnElement[bool] | None:
    named = [table.c[name].in_(ids) for name in PERSON if name in table.c]
    return or_(*named) if named else None


def _published_since(connection: Connection, district: str, ids: Sequence[str]) -> Any:
    """When the first of the student's records was linked, or the ledger first told of the student."""
    columns = (roster_tables["student_links"].c.first_seen, roster_tables["enrollment_changes"].c.detected_at)
    found = [
        connection.scalar(
            select(func.min(column)).where(column.table.c.district == district, column.table.c.student_id.in_(ids))
        )
        for column in columns
    ]
    return min((one for one in found if one is not None), default=None)
