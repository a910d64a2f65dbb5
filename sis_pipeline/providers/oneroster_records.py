"""OneRoster's records, read over REST or from CSV files: what one of them says, and what of it is kept as columns where there
are many. One place for what the standard's objects mean; what a school year has of them is in `oneroster_frames`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property, partial
from itertools import accumulate
from typing import Any, Self

import pyarrow as pa
from pydantic import BaseModel, Field

from sis_pipeline.providers import mapping
from sis_pipeline.providers.base import RawSnapshot, Record
from sis_pipeline.providers.columns import TEXTS, Columns, Make, Reader
from sis_pipeline.providers.mapping import TEXT, ColumnMap, date_text, text
from sis_pipeline.providers.rostering import MEMBERSHIP_COLUMNS
from sis_pipeline.roster.school_year import SchoolYear

STUDENT_ROLE = "student"
PEOPLE = ("users", "students", "teachers")
"""The collections that hold users; /students and /teachers also say what their users are."""
LINKS = "links"
"""No collection of a server: what follows of who is whose guardian."""
_LISTED_AS = {"students": STUDENT_ROLE, "teachers": "teacher"}
NOWHERE: list[str | None] = [None]
MEMBERSHIPS = pa.large_list(
    pa.struct(
        [(name, {"is_primary": pa.bool_(), "position": pa.int64()}.get(name, TEXT)) for name in MEMBERSHIP_COLUMNS]
    )
)
_PAIR = re.compile(r"\{([^:{}]*):([^{}]*)\}")


class RosterSettings(BaseModel):
    """What OneRoster records need beside themselves, however they are delivered."""

    state: str | None = Field(None, description="the state that issues the ssid, as TX", min_length=2)
    district: str | None = Field(None, description="the district that issues local ids", min_length=1)
    ssid_types: tuple[str, ...] = Field(
        ("stateID", "SSID", "stateStudentID", "stateUID", "SASID"),
        description="types in userIds that hold the state id; case, spaces, _ and - do not matter",
    )


# --- the pieces of a record --------------------------------------------------------------------------------------


def reference(value: object) -> str | None:
    """The id a reference holds: `{href, sourcedId, type}`, with href missing or relative, or the bare id."""
    return text(value.get("sourcedId") if isinstance(value, dict) else value)


def references(value: object) -> list[str]:
    """The ids of a list of references; one reference stands for a list of one."""
    several = value if isinstance(value, list) else [value]
    return [found for found in map(reference, several) if found]


def ending_year(value: object) -> SchoolYear | None:
    """`schoolYear` is the year it ends in, a text or a number; None where it is neither."""
    said = text(value) or ""
    return SchoolYear.ending(said) if re.fullmatch(r"\d{4}", said) else None


def session_years(sessions: Iterable[Record]) -> dict[SchoolYear, date | None]:
    """The school years that sessions speak of, each with its first day where one is known. Tombstones don't count."""
    years: dict[SchoolYear, date | None] = {}
    for session in sessions:
        if is_tombstone(session):
            continue
        begin = _date(session.get("startDate"))
        year = ending_year(session.get("schoolYear")) or (SchoolYear.on(begin) if begin else None)
        if year is not None:
            known = years.get(year)
            years[year] = min(filter(None, (known, begin)), default=None)
    return years


def _date(value: object) -> date | None:
    try:
        return date.fromisoformat(date_text(value) or "")
    except ValueError:
        return None


def is_tombstone(record: Record) -> bool:
    """`tobedeleted`, and the `inactive` of old, which meant the same."""
    return str(record.get("status") or "").lower() in {"tobedeleted", "inactive"}


def identifiers(value: object) -> Iterator[tuple[str, str]]:
    """(type, identifier) of `userIds`: a list of objects in REST, `{type:id},{type:id}` in CSV."""
    if isinstance(value, str):
        yield from ((kind.strip(), number.strip()) for kind, number in _PAIR.findall(value))
        return
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, dict) and (number := text(entry.get("identifier"))):
            yield text(entry.get("type")) or "", number


def state_id(user: Record, types: frozenset[str]) -> str | None:
    """The first of `userIds` whose type is one of the state's (compared by `plain`)."""
    return next((number for kind, number in identifiers(user.get("userIds")) if plain(kind) in types and number), None)


def plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def user_id(user: Record) -> str:
    return text(user.get("sourcedId")) or ""


def _roles(user: Record, collection: str) -> Iterator[tuple[Any, ...]]:
    several = user.get("roles")
    entries = [entry for entry in (several if isinstance(several, list) else [several]) if isinstance(entry, dict)]
    for position, entry in enumerate(entries):
        yield from _role(user, entry, position)
    if not entries:
        role = text(user.get("role")) or _LISTED_AS.get(collection)
        for position, org in enumerate(references(user.get("orgs", user.get("orgSourcedIds"))) or [None]):
            yield (user_id(user), org, role, False, None, None, position)
    elif collection in _LISTED_AS:
        yield (user_id(user), None, _LISTED_AS[collection], False, None, None, len(entries))


def _role(user: Record, entry: Record, position: int) -> Iterator[tuple[Any, ...]]:
    person = reference(entry.get("userSourcedId")) or user_id(user)
    primary = str(entry.get("roleType") or "").lower() == "primary"
    begin, end = (date_text(entry.get(name)) for name in ("beginDate", "endDate"))
    for org in references(entry.get("org", entry.get("orgSourcedId"))) or NOWHERE:
        yield (person, org, text(entry.get("role")), primary, begin, end, position)


# --- what is kept of the large collections ------------------------------------------------------------------------


def wanted(renames: mapping.Mapping, settings: RosterSettings) -> dict[str, Columns]:
    """By collection, what is kept of its records; of the other collections, which are small, the records are."""
    students, staff, contacts = (renames.entities[name].columns for name in ("students", "staff", "contacts"))
    aside = [column for column in students if _is_in("demographics", column)]
    linked = [column for column in contacts if _is_in("contact", column)]
    of_users = {
        "students": [column for column in students if column not in aside],
        "staff": staff,
        "contacts": [column for column in contacts if column not in linked],
    }
    types = frozenset(plain(kind) for kind in settings.ssid_types)
    about_users = {**_ABOUT_USERS, "state_id": (TEXT, lambda users: [state_id(user, types) for user in users])}
    return {
        **{
            people: Columns(of_users, {**about_users, "memberships": (MEMBERSHIPS, partial(_memberships, people))})
            for people in PEOPLE
        },
        LINKS: Columns({"contacts": linked}, {}),
        "roles": Columns({}, {"memberships": (MEMBERSHIPS, _memberships_of_roles)}),
        "demographics": Columns({"students": aside}, {"key": _KEY}, within="demographics"),
        "classes": Columns({"sections": renames.entities["sections"].columns}, {"key": _KEY, "terms": (TEXTS, _terms)}),
        "enrollments": Columns({"section_enrollments": renames.entities["section_enrollments"].columns}, {}),
    }


def _is_in(part: str, column: ColumnMap) -> bool:
    """Whether a column comes from an object that is put into the record. Raises ValueError where it does in part: it could
    not be made of either record alone."""
    inside = {path[0] == part for path in column.paths}
    if len(inside) > 1:
        raise ValueError(f"{column.column} comes partly from {part}; paths of one column must not be mixed")
    return inside == {True}


_KEY: Make = (TEXT, lambda records: [user_id(record) for record in records])
_ABOUT_USERS: dict[str, Make] = {
    "key": _KEY,
    "changed": (TEXT, lambda users: [text(user.get("dateLastModified")) or "" for user in users]),
    "removed": (pa.bool_(), lambda users: [is_tombstone(user) for user in users]),
    "primary_org": (TEXT, lambda users: [primary_org(user) for user in users]),
    "agents": (
        TEXTS,
        lambda users: [references(user.get("agents")) or references(user.get("agentSourcedIds")) for user in users],
    ),
}


def primary_org(user: Record) -> str | None:
    return reference(user.get("primaryOrg")) or reference(user.get("primaryOrgSourcedId"))


def _terms(classes: Sequence[Record]) -> list[list[str]]:
    return [references(one.get("terms")) or references(one.get("termSourcedIds")) for one in classes]


def _memberships(collection: str, users: Sequence[Record]) -> pa.Array:
    return _listed([list(_roles(user, collection)) for user in users])


def _memberships_of_roles(roles: Sequence[Record]) -> pa.Array:
    return _listed([[] if is_tombstone(role) else list(_role(role, role, 0)) for role in roles])


def _listed(rows: Sequence[Sequence[tuple[Any, ...]]]) -> pa.Array:
    """A list of memberships for each record."""
    kind = MEMBERSHIPS.value_type
    every = [row for several in rows for row in several]
    columns = list(zip(*every, strict=True)) or [()] * len(kind)
    values = pa.StructArray.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, kind, strict=True)], fields=list(kind)
    )
    ends = [0, *accumulate(map(len, rows))]
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), values)


# --- what was read ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Delivered:
    """What was read of one source for one school year, by collection: columns of the large ones, records of the others;
    and the facts kept with their pages. `again` reads the records of any of them once more."""

    school_year: SchoolYear
    columns: Mapping[str, pa.Table]
    records: Mapping[str, list[Record]]
    about: Mapping[str, str]
    again: Callable[[str], Iterator[Record]]

    @classmethod
    def of(cls, raw: RawSnapshot, reader: Reader, wanted: Mapping[str, Columns]) -> Self:
        """Read everything once. A collection that did not come has no rows."""
        columns = {name: one.schema.empty_table() for name, one in wanted.items()}
        records: dict[str, list[Record]] = {}
        facts: dict[str, str] = {}
        for resource in raw.resources:
            if resource in wanted:
                columns[resource], about = wanted[resource].gather(raw, resource, reader)
                facts.update(about)
                continue
            records[resource] = []
            for page_about, page in reader.records(raw, resource):
                facts.update(page_about)
                records[resource].extend(page)
        return cls(raw.school_year, columns, records, facts, partial(_again, raw, reader))

    def __getitem__(self, collection: str) -> list[Record]:
        return self.records.get(collection, [])

    @cached_property
    def active(self) -> bool:
        """Whether the undated memberships speak of this year."""
        return self.about.get("active_year") == self.school_year.key


def _again(raw: RawSnapshot, reader: Reader, collection: str) -> Iterator[Record]:
    for _, page in reader.records(raw, collection):
        yield from page
