"""Reading the published roster for people: students with the origin of every value, conflicts and changes.
Read-only SQL on the declared tables; protected addresses are masked here, before anything is printed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Text,
    and_,
    case,
    cast,
    column,
    func,
    literal,
    null,
    or_,
    select,
    union_all,
)
from sqlalchemy import table as named_table
from sqlalchemy.dialects.postgresql import aggregate_order_by

from sis_pipeline.db.tables import (
    SCHEMA,
    accounts,
    conflict_decisions,
    roster_tables,
    statewide_links,
    statewide_transfers,
    student_edits,
    student_names,
    sync_operations,
)
from sis_pipeline.roster import model
from sis_pipeline.roster.changes import OTHER_STAY
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.store import former_names

MASK = "(protected)"
ADDRESSES = ("home_", "mailing_")
ADDRESS = tuple(column.name for column in model.STUDENTS if column.name.startswith(ADDRESSES))

students = roster_tables["students"]
schools = roster_tables["schools"]
conflicts = roster_tables["conflicts"]
changes = roster_tables["enrollment_changes"]

ENROLLED = tuple(
    column(name, roster_tables["enrollments"].c[name].type)
    for name in ("student_id", "school_id", "school_year", "entry_date", "entry_code", "exit_date", "exit_code")
)
"""What the SQL function `enrolled_as_of` gives."""


def _view(name: str, *columns: str) -> Any:
    ids = accounts.c.account_id.type
    return named_table(
        name, *(column(one, ids if one.endswith("_id") and one != "sis_id" else None) for one in columns), schema=SCHEMA
    )


ACCOUNT_RECORDS = _view("account_records", "district", "account_id", "integration", "sis_id", "active")
ACCOUNT_SECTIONS = _view(
    "account_sections",
    "district",
    "account_id",
    "school_year",
    "section_id",
    "school_id",
    "role",
    "begin_date",
    "end_date",
)

PROVENANCE = tuple(
    column(name, students.c.changed_at.type if name.endswith("_at") else Text())
    for name in (
        "attribute", "integration", "sis_id", "modified_at", "read_at", "rule",
        "runner_up_integration", "runner_up_sis_id", "runner_up_modified_at",
    )
)  # fmt: skip
"""What the SQL function `provenance` gives."""
PENDING_TRANSFERS = named_table(
    "pending_transfers",
    *(column(name, roster_tables["enrollments"].c[name].type) for name in ("district", "student_id", "school_id", "school_year", "exit_date", "exit_code")),
    schema=SCHEMA,
)  # fmt: skip
PENDING = "pending_transfer"
"""The kind of a transfer of which only the leaving is known."""

Row = dict[str, Any]


def find_students(
    connection: Connection,
    *,
    student_id: str | None = None,
    ssid: str | None = None,
    local_id: str | None = None,
    sis: tuple[str, str] | None = None,
    district: str | None = None,
) -> list[Row]:
    """The published students that an id names: several where districts share a state id or a local number.

    `sis` is (integration, sis_id). Rows have every column of the published students table.
    """
    query = select(students).order_by(students.c.district, students.c.student_id)
    if student_id is not None:
        query = query.where(students.c.student_id == student_id)
    if ssid is not None:
        query = query.where(students.c.ssid == ssid)
    if local_id is not None:
        query = query.where(students.c.local_id == local_id)
    if sis is not None:
        links = roster_tables["student_links"]
        named = and_(links.c.integration == sis[0], links.c.sis_id == sis[1])
        same = and_(links.c.district == students.c.district, links.c.student_id == students.c.student_id)
        query = query.where(select(links.c.student_id).where(named, same).exists())
    if district is not None:
        query = query.where(students.c.district == district)
    return _rows(connection, query)


def student_file(connection: Connection, student: Row, *, reveal: bool = False) -> Row:
    """Everything published about one student: record, provenance, former names, links, sources, years, enrollments,
    conflicts, changes."""
    protected = bool(student["address_confidential"]) and not reveal

    def of(name: str, *order: str) -> list[Row]:
        table = roster_tables[name]
        mine = and_(table.c.district == student["district"], table.c.student_id == student["student_id"])
        return _rows(connection, _with_school(table).where(mine).order_by(*(table.c[column] for column in order)))

    origins = student["origins"] or {}
    record = {name: value for name, value in student.items() if name != "origins"}
    return {
        "record": mask_address(record) if protected else record,
        "origins": origins,
        "provenance": _rows(connection, _provenance_of(student)),
        "links": of("student_links", "integration", "sis_id"),
        "sources": [
            mask_address(row) if protected else row for row in of("student_sources", "integration", "school_year")
        ],
        "years": of("student_years", "school_year"),
        "enrollments": of("enrollments", "school_year", "entry_date"),
        "conflicts": [_mask_conflict(row, protected) for row in of("conflicts", "school_year", "attribute")],
        "edits": _rows(connection, _edits_of(student)),
        "former_names": _rows(connection, _former_names_of(student)),
        "decisions": _rows(connection, _decisions_of(student)),
        "changes": [_mask_change(row, protected) for row in of("enrollment_changes", "detected_at", "change_id")],
        "elsewhere": _rows(connection, _elsewhere(student)),
        "transfers": _rows(
            connection, _transfers().where(_either_side(statewide_transfers, student)).order_by("entry_date")
        ),
        "address_masked": protected,
    }


def _provenance_of(student: Row) -> Select[Any]:
    """Of every published attribute: whose value it is, since when, by which rule, and whose it would be without that."""
    called = func.sis.provenance(student["district"], cast(student["student_id"], students.c.student_id.type))
    return select(called.table_valued(*PROVENANCE))


def _edits_of(student: Row) -> Select[Any]:
    """Which attributes people edited, when and who; the values stand in the record and its conflicts."""
    table = student_edits.c
    return (
        select(table.attribute, table.edited_at, table.edited_by, table.settled_at)
        .where(table.district == student["district"], table.student_id == student["student_id"])
        .order_by(table.edit)
    )


def _former_names_of(student: Row) -> Select[Any]:
    """What the student was called before, the latest last, and until when that was published."""
    table = student_names.c
    return (
        select(table.first_name, table.last_name, table.until)
        .where(table.district == student["district"], former_names.is_of(student["student_id"]))
        .order_by(table.until, table.entry)
    )


def _decisions_of(student: Row) -> Select[Any]:
    table = conflict_decisions.c
    columns = (table.attribute, table.integration, table.sis_id, table.decided_at, table.decided_by, table.reason)
    mine = and_(table.district == student["district"], table.student_id == student["student_id"])
    return select(*columns).where(mine).order_by(table.decision)


def _either_side(table: Any, student: Row) -> ColumnElement[bool]:
    own = (student["district"], student["student_id"])
    sides = [(table.c[f"{side}district"], table.c[f"{side}student_id"]) for side in ("", "other_")]
    return or_(*(and_(district == own[0], student_id == own[1]) for district, student_id in sides))


def _elsewhere(student: Row) -> Select[Any]:
    """The student's records in other districts, by state id."""
    table = statewide_links.c
    other = {
        name: case((table.district == student["district"], table[f"other_{name}"]), else_=table[name])
        for name in ("district", "student_id")
    }
    columns = [*(column.label(name) for name, column in other.items()), table.decision, table.evidence, table.found_at]
    return select(*columns).where(_either_side(statewide_links, student)).order_by("district", "student_id")


def _transfers() -> Select[Any]:
    """Both halves of what was found across districts, with the names of the schools."""
    table, entered = statewide_transfers, schools.alias("entered")
    left = and_(schools.c.district == table.c.district, schools.c.school_id == table.c.school_id)
    came = and_(entered.c.district == table.c.other_district, entered.c.school_id == table.c.other_school_id)
    names = (schools.c.name.label("school"), entered.c.name.label("other_school"))
    return select(table, *names).join_from(table, schools, left, isouter=True).join(entered, came, isouter=True)


def list_transfers(
    connection: Connection, *, district: str | None, kind: str | None, limit: int
) -> tuple[list[Row], int]:
    """Transfers across districts, those that wait for their other half, and students who are in two districts at once,
    the newest first, with the name that the student has where it left; and how many without the limit."""
    pending = _pending()
    columns = [*(one.name for one in statewide_transfers.c), "school", "other_school"]
    found = _transfers().subquery()
    parts = [select(*(part.c[name] for name in columns)) for part in (found, pending)]
    every = union_all(*parts).subquery()
    who = and_(students.c.district == every.c.district, students.c.student_id == every.c.student_id)
    query = select(every, students.c.first_name, students.c.last_name).join_from(every, students, who, isouter=True)
    query = _filtered(query, every, kind=kind)
    if district is not None:
        query = query.where(or_(every.c.district == district, every.c.other_district == district))
    newest = func.coalesce(every.c.entry_date, every.c.exit_date).desc()
    by = (newest, every.c.district, every.c.student_id, every.c.other_district, every.c.other_student_id)
    return _rows(connection, query.order_by(*by).limit(limit)), _count(connection, query)


def _pending() -> Any:
    """The pending ones in the columns of the others: nothing is known of the second half."""
    known = {"kind": literal(PENDING), "school": schools.c.name}
    own = PENDING_TRANSFERS.c
    columns = [
        known.get(name, own[name] if name in own else cast(null(), column_type)).label(name)
        for name, column_type in (
            *((one.name, one.type) for one in statewide_transfers.c),
            *((name, schools.c.name.type) for name in ("school", "other_school")),
        )
    ]
    at = and_(schools.c.district == own.district, schools.c.school_id == own.school_id)
    return select(*columns).join_from(PENDING_TRANSFERS, schools, at, isouter=True).subquery()


def enrolled(
    connection: Connection,
    district: str,
    as_of: date,
    known_at: datetime,
    *,
    school: str | None = None,
    student_id: str | None = None,
    limit: int | None = None,
) -> tuple[list[Row], int]:
    """Who was enrolled where on a day as the ledger knew it at a moment, with the names that they have now, and how
    many without the limit. `school` is a school's id, number or name."""
    found = (
        func.sis.enrolled_as_of(district, as_of, known_at, cast(student_id, students.c.student_id.type))
        .table_valued(*ENROLLED)
        .alias("found")
    )
    who = and_(students.c.district == district, students.c.student_id == found.c.student_id)
    where = and_(schools.c.district == district, schools.c.school_id == found.c.school_id)
    names = (students.c.first_name, students.c.last_name, schools.c.name.label("school"))
    query = select(found, *names).join_from(found, students, who, isouter=True).join(schools, where, isouter=True)
    if school is not None:
        query = query.where(_is_school(school))
    by = (schools.c.name, students.c.last_name, students.c.first_name, found.c.student_id, found.c.entry_date)
    return _rows(connection, query.order_by(*by).limit(limit)), _count(connection, query)


def now(connection: Connection) -> datetime:
    """By the database's clock, which dates what is published."""
    moment: datetime = connection.execute(select(func.sis.clock())).scalar_one()
    return moment


def first_known(connection: Connection, district: str, as_of: date) -> datetime | None:
    """When the school year of a day was first published for a district."""
    table = sync_operations.c
    mine = and_(table.district == district, table.school_year == SchoolYear.on(as_of).key, table.status == "published")
    first: datetime | None = connection.execute(select(func.min(table.finished_at)).where(mine)).scalar_one()
    return first


def list_accounts(
    connection: Connection,
    district: str,
    *,
    kind: str | None,
    status: str | None,
    school: str | None,
    limit: int,
    reveal: bool = False,
) -> tuple[list[Row], int]:
    """The accounts of a district with the names of their schools, and how many without the limit. `leaving` is the status
    of the active ones whose person the roster has no place for. `school` is a school's id, number or name."""
    names = (
        select(func.string_agg(schools.c.name, aggregate_order_by(literal(", "), schools.c.name)).label("schools"))
        .where(
            schools.c.district == accounts.c.district, accounts.c.school_ids.op("?")(cast(schools.c.school_id, Text))
        )
        .scalar_subquery()
    )
    query = _filtered(select(accounts, names.label("schools")), accounts, district=district, kind=kind)
    if status == "leaving":
        query = query.where(accounts.c.status == "active", accounts.c.missing_since.is_not(None))
    elif status is not None:
        query = query.where(accounts.c.status == status)
    if school is not None:
        at = and_(schools.c.district == district, _is_school(school))
        query = query.where(accounts.c.school_ids.op("?|")(select(func.array_agg(cast(schools.c.school_id, Text))).where(at).scalar_subquery()))  # fmt: skip
    ordered = query.order_by(accounts.c.kind, accounts.c.username).limit(limit)
    return [mask_account(row, reveal=reveal) for row in _rows(connection, ordered)], _count(connection, query)


def account_file(connection: Connection, person: str, *, reveal: bool = False) -> Row | None:
    """One account, by its own id or its person's: `account`, the SIS `records` it stands for, and its `sections`."""
    named = or_(accounts.c.account_id == person, accounts.c.person_id == person)
    found = _rows(connection, select(accounts).where(named))
    if not found:
        return None
    [account] = found
    own = {"district": account["district"], "account_id": account["account_id"]}
    sections = roster_tables["sections"]
    seen = select(ACCOUNT_SECTIONS, sections.c.title, schools.c.name.label("school")).join_from(
        ACCOUNT_SECTIONS,
        sections,
        and_(
            sections.c.district == ACCOUNT_SECTIONS.c.district, sections.c.section_id == ACCOUNT_SECTIONS.c.section_id
        ),
    )
    at = and_(schools.c.district == ACCOUNT_SECTIONS.c.district, schools.c.school_id == ACCOUNT_SECTIONS.c.school_id)
    seen = _filtered(seen.join(schools, at, isouter=True), ACCOUNT_SECTIONS, **own)
    by = (ACCOUNT_SECTIONS.c.school_year.desc(), sections.c.title, ACCOUNT_SECTIONS.c.section_id)
    kept = _filtered(select(ACCOUNT_RECORDS), ACCOUNT_RECORDS, **own).order_by("integration", "sis_id")
    return {
        "account": mask_account(account, reveal=reveal),
        "records": _rows(connection, kept),
        "sections": _rows(connection, seen.order_by(*by)),
    }


def mask_account(row: Row, *, reveal: bool) -> Row:
    hidden = () if reveal else ("username", "email")
    return {name: MASK if name in hidden and value is not None else value for name, value in row.items()}


def list_conflicts(
    connection: Connection,
    *,
    district: str | None,
    school_year: str | None,
    attribute: str | None,
    status: str | None,
    limit: int,
    reveal: bool = False,
) -> tuple[list[Row], int]:
    """The conflicts of a status, or all that stand, with the student's name, and how many there are without the limit."""
    who = and_(students.c.district == conflicts.c.district, students.c.student_id == conflicts.c.student_id)
    query = select(conflicts, students.c.first_name, students.c.last_name, students.c.address_confidential).join_from(
        conflicts, students, who
    )
    query = _filtered(query, conflicts, district=district, school_year=school_year, attribute=attribute)
    query = query.where(conflicts.c.status.in_(model.STANDING_CONFLICTS if status is None else (status,)))
    ordered = query.order_by(conflicts.c.district, students.c.last_name, conflicts.c.student_id, conflicts.c.attribute)
    rows = _rows(connection, ordered.limit(limit))
    masked = [_mask_conflict(row, bool(row.pop("address_confidential")) and not reveal) for row in rows]
    return masked, _count(connection, query)


def list_changes(
    connection: Connection,
    *,
    district: str | None,
    school_year: str | None,
    kinds: Sequence[str],
    since: datetime | None,
    school: str | None,
    limit: int,
) -> tuple[list[Row], int]:
    """The newest ledger events first, with names of student and school, and how many there are without the limit.

    `school` is a school's id, number or name; `since` compares with the time of detection.
    """
    who = and_(students.c.district == changes.c.district, students.c.student_id == changes.c.student_id)
    where = and_(schools.c.district == changes.c.district, schools.c.school_id == changes.c.school_id)
    query = (
        select(
            changes,
            students.c.first_name,
            students.c.last_name,
            students.c.address_confidential,
            schools.c.name.label("school"),
        )
        .join_from(changes, students, who, isouter=True)
        .join(schools, where, isouter=True)
    )
    query = _filtered(query, changes, district=district, school_year=school_year)
    if kinds:
        query = query.where(changes.c.kind.in_(kinds))
    if since is not None:
        query = query.where(changes.c.detected_at >= since)
    if school is not None:
        query = query.where(_is_school(school))
    newest = query.order_by(changes.c.detected_at.desc(), changes.c.effective_date.desc(), changes.c.change_id)
    rows = _rows(connection, newest.limit(limit))
    return [_mask_change(row, bool(row.pop("address_confidential"))) for row in rows], _count(connection, query)


def count_changes(connection: Connection, until: datetime, **filters: Any) -> dict[str, int]:
    """Ledger events by kind that were detected until a moment; filters are equal columns of the ledger."""
    query = _filtered(select(changes.c.kind, func.count().label("count")).group_by(changes.c.kind), changes, **filters)
    return {
        row[0]: row[1]
        for row in connection.execute(query.where(changes.c.detected_at <= until).order_by(changes.c.kind))
    }


def count_roster(connection: Connection, district: str, school_year: str) -> dict[str, int]:
    """Published students of a school year, those with records in two or more systems, and conflicts."""
    years, sources = roster_tables["student_years"], roster_tables["student_sources"]

    def of_year(table: Any) -> ColumnElement[bool]:
        return and_(table.c.district == district, table.c.school_year == school_year)

    several = (
        select(sources.c.student_id)
        .where(of_year(sources))
        .group_by(sources.c.student_id)
        .having(func.count(sources.c.integration.distinct()) > 1)
    )
    return {
        "students": _count(connection, select(years.c.student_id).where(of_year(years))),
        "matched": _count(connection, several),
        "conflicts": _count(
            connection,
            select(conflicts.c.attribute).where(of_year(conflicts), conflicts.c.status.in_(model.STANDING_CONFLICTS)),
        ),
    }


def mask_address(row: Row) -> Row:
    return {name: MASK if name in ADDRESS and value is not None else value for name, value in row.items()}


def _mask_conflict(row: Row, protected: bool) -> Row:
    if not protected or not row["attribute"].startswith(ADDRESSES):
        return row
    hidden = [{**it, "value": it["value"] and MASK} for it in row["candidates"]]
    return {**row, "candidates": hidden, "chosen": MASK if row["chosen"] is not None else None}


def _mask_change(row: Row, protected: bool) -> Row:
    if not protected:
        return row
    return {
        name: mask_address(value) if name in {"before", "after"} and isinstance(value, dict) else value
        for name, value in row.items()
    }


def only_what_differs(change: Row) -> Row:
    """The change with those values before and after that tell the two apart, without the id of the school it names and
    the second stay of a transfer."""
    before, after = change["before"] or {}, change["after"] or {}
    same = {name for name in before.keys() & after.keys() if before[name] == after[name]}
    named = change["school_id"] if change["school"] else None

    def shown(side: Row) -> Row:
        return {
            name: value
            for name, value in side.items()
            if name not in same and name != OTHER_STAY and (name, value) != ("school_id", named)
        }

    return {**change, "before": shown(before), "after": shown(after)}


def _with_school(table: Any) -> Select[Any]:
    if "school_id" not in table.c:
        return select(table)
    same = and_(schools.c.district == table.c.district, schools.c.school_id == table.c.school_id)
    return select(table, schools.c.name.label("school")).join_from(table, schools, same, isouter=True)


def _is_school(text: str) -> ColumnElement[bool]:
    """A school by its id, its number, or its name without regard to case."""
    named = [schools.c.name.ilike(text.replace("%", r"\%").replace("_", r"\_")), schools.c.school_number == text]
    return or_(*named, schools.c.school_id == text) if is_uuid(text) else or_(*named)


def is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _filtered(query: Select[Any], table: Any, **equal: object) -> Select[Any]:
    return query.where(*(table.c[name] == value for name, value in equal.items() if value is not None))


def _count(connection: Connection, query: Select[Any]) -> int:
    return int(connection.scalar(select(func.count()).select_from(query.order_by(None).subquery())) or 0)


def _rows(connection: Connection, query: Select[Any]) -> list[Row]:
    return [dict(row) for row in connection.execute(query).mappings()]
