"""OneRoster's records, read over REST or from CSV files, as standard frames. One place for what the standard's objects
mean; how they were read is the providers' business, what a school year implies is in `rostering`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, Field

from sis_pipeline.providers import rostering
from sis_pipeline.providers.base import RawSnapshot, Record
from sis_pipeline.providers.decoding import behind
from sis_pipeline.providers.mapping import Mapping, code_table, date_text, day_after, text
from sis_pipeline.providers.rostering import iso_dates
from sis_pipeline.roster.model import ENTITIES as MODEL
from sis_pipeline.roster.school_year import SchoolYear

ENTITIES = frozenset(MODEL) - {"departments"}
UNKNOWN_ROLE = "other"
STUDENT_ROLE = "student"
CONTACT_ROLES = frozenset({"guardian", "parent", "relative"})
PEOPLE = ("users", "students", "teachers")
"""The collections that hold users; /students and /teachers also say what their users are."""
_LISTED_AS = {"students": STUDENT_ROLE, "teachers": "teacher"}
NOWHERE: list[str | None] = [None]
_PAIR = re.compile(r"\{([^:{}]*):([^{}]*)\}")


class RosterSettings(BaseModel):
    """What OneRoster records need beside themselves, however they are delivered."""

    state: str | None = Field(None, description="the state that issues the ssid, as TX", min_length=2)
    district: str | None = Field(None, description="the district that issues local ids", min_length=1)
    ssid_types: tuple[str, ...] = Field(
        ("stateID", "SSID", "stateStudentID", "stateUID", "SASID"),
        description="types in userIds that hold the state id; case, spaces, _ and - do not matter",
    )


@dataclass(frozen=True)
class Delivered:
    """What was read of one source for one school year: records by collection, and the facts kept with their pages."""

    school_year: SchoolYear
    records: dict[str, list[Record]]
    about: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, raw: RawSnapshot, decode: Callable[[str, bytes], Sequence[Record]]) -> Delivered:
        delivered = cls(raw.school_year, {})
        for resource in raw.resources:
            rows = delivered.records.setdefault(resource, [])
            for about, body in raw.bodies(resource):
                delivered.about.update(about)
                rows.extend(behind(rows, decode(resource, body)))
        return delivered

    def __getitem__(self, collection: str) -> list[Record]:
        return self.records.get(collection, [])

    @cached_property
    def active(self) -> bool:
        """Whether the undated memberships speak of this year."""
        return self.about.get("active_year") == self.school_year.key


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


def newest_users(delivered: Delivered) -> dict[str, Record]:
    """Users by id, the one modified last where lists overlap or pages drifted. A user without an id stays, under ``."""
    users: dict[str, Record] = {}
    for collection in PEOPLE:
        for user in delivered[collection]:
            known = users.get(key := user_id(user))
            if known is None or str(user.get("dateLastModified") or "") > str(known.get("dateLastModified") or ""):
                users[key] = user
    return users


def memberships(delivered: Delivered, exit_dates: Literal["exclusive", "inclusive"]) -> pd.DataFrame:
    """MEMBERSHIP_COLUMNS from `roles[]` (1.2), `role` and `orgs[]` (1.1), roles.csv, and the list a user was in.

    A user may have one primary role per org; where there is a `primaryOrg`, it decides.
    """
    rows = [row for collection in PEOPLE for user in delivered[collection] for row in _roles(user, collection)]
    rows += [row for role in delivered["roles"] if not is_tombstone(role) for row in _role(role, role, 0)]
    frame = pd.DataFrame(rows, columns=list(rostering.MEMBERSHIP_COLUMNS)).drop_duplicates()
    texts = [name for name in frame.columns if name not in {"is_primary", "position"}]
    frame = frame.astype({**dict.fromkeys(texts, "str"), "is_primary": "bool", "position": "int64"})
    primary_org = frame["person_sis_id"].map(_primary_orgs(delivered)).astype("str")
    frame["is_primary"] = frame["is_primary"].where(primary_org.isna(), frame["school_sis_id"] == primary_org)
    if exit_dates == "inclusive":
        frame["end_date"] = day_after(frame["end_date"])
    return frame


def _primary_orgs(delivered: Delivered) -> dict[str, str]:
    named = (
        (user_id(user), reference(user.get("primaryOrg")) or reference(user.get("primaryOrgSourcedId")))
        for collection in PEOPLE
        for user in delivered[collection]
    )
    return {user: org for user, org in named if org}


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


# --- the frames ---------------------------------------------------------------------------------------------------


def standard_frames(
    delivered: Delivered,
    settings: RosterSettings,
    exit_dates: Literal["exclusive", "inclusive"],
    custom_fields: dict[str, str],
) -> dict[str, pd.DataFrame]:
    """Every entity of ENTITIES, scoped to the school year: its sessions, the sections that run in them, who sits in or
    teaches those, and, in the active year, who belongs to a school."""
    return _Roster(delivered, settings, exit_dates, custom_fields).frames()


class _Roster:
    """One snapshot on its way to standard frames; every step is worked out once, when first asked for."""

    def __init__(
        self,
        delivered: Delivered,
        settings: RosterSettings,
        exit_dates: Literal["exclusive", "inclusive"],
        custom_fields: dict[str, str],
    ) -> None:
        self.delivered = delivered
        self.settings = settings
        self.exit_dates: Literal["exclusive", "inclusive"] = exit_dates
        self.mapping = Mapping.load("oneroster.yaml", {"students": custom_fields})
        self.year = rostering.Year(delivered.school_year, delivered.active)

    def frames(self) -> dict[str, pd.DataFrame]:
        leads = rostering.lead_teachers(self.section_enrollments)
        frames = {
            "schools": self.schools,
            "academic_sessions": self.sessions,
            "courses": self.courses,
            "sections": self.sections.assign(teacher_sis_id=self.sections["sis_id"].map(leads).astype("str")),
            "students": self.students_placed(),
            "staff": self.staff(),
            "enrollments": self.enrollments,
            "section_enrollments": self.section_enrollments,
            "contacts": self.contacts(),
        }
        finished = {name: frame.reset_index(drop=True) for name, frame in frames.items()}
        self.mapping.annotate(finished)
        return finished

    def frame(self, entity: str, records: Iterable[Record]) -> pd.DataFrame:
        """One entity by the mapping. A row without a status is active, as in bulk CSV files."""
        frame = self.mapping.frame(entity, list(records))
        if self.exit_dates == "inclusive" and "end_date" in frame:
            frame["end_date"] = day_after(frame["end_date"])
        return frame.assign(record_status=frame["record_status"].fillna("active"))

    # --- the school year ---

    @cached_property
    def schools(self) -> pd.DataFrame:
        return self.frame("schools", self.delivered["orgs"])

    @cached_property
    def all_sessions(self) -> pd.DataFrame:
        """All sessions, with the parent taken from the other side's `children` where the session names none."""
        records = self.delivered["academicSessions"]
        sessions = self.frame("academic_sessions", records)
        parents = {
            child: text(record.get("sourcedId")) for record in records for child in references(record.get("children"))
        }
        sessions["parent_sis_id"] = sessions["parent_sis_id"].fillna(sessions["sis_id"].map(parents).astype("str"))
        years = [ending_year(record.get("schoolYear")) for record in records]
        return sessions.assign(school_year=pd.Series([year.key if year else None for year in years], dtype="str"))

    @cached_property
    def sessions(self) -> pd.DataFrame:
        return rostering.sessions_of(self.all_sessions, self.delivered.school_year)

    @cached_property
    def all_sections(self) -> pd.DataFrame:
        sections = self.frame("sections", self.delivered["classes"])
        return sections.assign(kind=sections["kind"].fillna("other"))

    @cached_property
    def terms(self) -> pd.DataFrame:
        """section_sis_id, session_sis_id: in which sessions every section runs."""
        pairs = [
            (text(record.get("sourcedId")), term)
            for record in self.delivered["classes"]
            for term in references(record.get("terms")) or references(record.get("termSourcedIds"))
        ]
        return rostering.text_frame(("section_sis_id", "session_sis_id"), pairs)

    @cached_property
    def sections(self) -> pd.DataFrame:
        return rostering.sections_of(
            self.all_sections,
            self.terms,
            self.all_sessions["sis_id"],
            self.sessions["sis_id"],
            only_year=len(session_years(self.delivered["academicSessions"])) <= 1,
        )

    @cached_property
    def courses(self) -> pd.DataFrame:
        """The courses but those of another school year that no section of this one is of."""
        records = self.delivered["courses"]
        courses = self.frame("courses", records)
        session = [
            reference(record.get("schoolYear")) or reference(record.get("schoolYearSourcedId")) for record in records
        ]
        other = set(self.all_sessions["sis_id"]) - set(self.sessions["sis_id"])
        elsewhere = pd.Series(session, dtype="str").isin(other)
        return courses[~elsewhere | courses["sis_id"].isin(set(self.sections["course_sis_id"]))]

    @cached_property
    def section_enrollments(self) -> pd.DataFrame:
        rows = self.frame("section_enrollments", self.delivered["enrollments"])
        return rostering.section_enrollments_of(rows, self.all_sections["sis_id"], self.sections, self.year)

    @cached_property
    def all_memberships(self) -> pd.DataFrame:
        return memberships(self.delivered, self.exit_dates)

    @cached_property
    def memberships(self) -> pd.DataFrame:
        return rostering.memberships_of(self.all_memberships, self.year)

    # --- the people ---

    @cached_property
    def users(self) -> dict[str, Record]:
        return newest_users(self.delivered)

    @cached_property
    def seats(self) -> pd.DataFrame:
        return self.section_enrollments[self.section_enrollments["role"] == STUDENT_ROLE]

    @cached_property
    def student_memberships(self) -> pd.DataFrame:
        """Who attends where: at schools, and at organisations that nobody described."""
        above = set(self.schools.loc[self.schools["kind"] != "school", "sis_id"])
        rows = self.memberships[self.memberships["role"] == STUDENT_ROLE].dropna(subset=["school_sis_id"])
        return rows[~rows["school_sis_id"].isin(above)]

    @cached_property
    def staff_memberships(self) -> pd.DataFrame:
        rows = self.memberships.dropna(subset=["role"])
        return rows[~rows["role"].isin(CONTACT_ROLES | {STUDENT_ROLE})]

    def people(self, members: pd.DataFrame, attending: Iterable[str]) -> list[Record]:
        """The users of one side of the school: those who sit in or teach a section of the year, removed or not, and the
        members who are not removed. A delta speaks of everybody it names."""
        attends, belongs = set(attending), set(members["person_sis_id"])
        delta = self.delivered.about.get("delta") == "true"
        return [
            user
            for key, user in self.users.items()
            if key in attends or (key in belongs and (delta or not is_tombstone(user)))
        ]

    @cached_property
    def students(self) -> pd.DataFrame:
        demographics = {user_id(record): record for record in self.delivered["demographics"]}
        users = self.people(self.student_memberships, self.seats["person_sis_id"])
        students = self.frame("students", [{**user, "demographics": demographics.get(user_id(user))} for user in users])
        ssid = self.state_ids(users).fillna(students["ssid"])
        return students.assign(
            ssid=ssid,
            ssid_issuer=rostering.beside(ssid, self.settings.state),
            local_id_issuer=rostering.beside(students["local_id"], self.settings.district),
        )

    def state_ids(self, users: Sequence[Record]) -> pd.Series:
        types = frozenset(plain(kind) for kind in self.settings.ssid_types)
        return pd.Series([state_id(user, types) for user in users], dtype="str")

    @cached_property
    def enrollments(self) -> pd.DataFrame:
        """School enrollments, which OneRoster does not have: see rostering.school_enrollments."""
        attendance = self.seats.rename(columns={"person_sis_id": "student_sis_id"})
        attendance = attendance.merge(self._spans(), how="left", on="section_sis_id")
        years = self.sessions[self.sessions["kind"] == "school_year"]
        starts = iso_dates((self.sessions if years.empty else years)["start_date"]).dropna()
        ends = iso_dates(self.sessions["end_date"]).dropna()
        school_year = self.delivered.school_year
        return rostering.school_enrollments(
            self.students,
            self.student_memberships,
            attendance,
            session_start=starts.min() if len(starts) else school_year.first_day.isoformat(),
            year_end=ends.max() if len(ends) else school_year.day_after.isoformat(),
            school_year=school_year,
        )

    def _spans(self) -> pd.DataFrame:
        """section_sis_id, session_start, session_end: from when until when the sessions of a section run."""
        dated = self.sessions.set_index("sis_id").assign(
            session_start=lambda rows: iso_dates(rows["start_date"]),
            session_end=lambda rows: iso_dates(rows["end_date"]),
        )
        rows = self.terms.join(dated[["session_start", "session_end"]], on="session_sis_id", how="inner")
        spans = rows.groupby("section_sis_id", as_index=False).agg({"session_start": "min", "session_end": "max"})
        return spans.astype("str")

    def students_placed(self) -> pd.DataFrame:
        """The students with the school and status of their primary enrollment, and their homeroom."""
        homerooms = self.sections[self.sections["kind"] == "homeroom"].drop_duplicates("sis_id", keep="last")
        titles = homerooms.set_index("sis_id")["title"]
        seats = self.seats[self.seats["record_status"] == "active"]
        seats = seats[seats["section_sis_id"].isin(set(titles.index))].drop_duplicates("person_sis_id")
        homeroom_of = seats.set_index("person_sis_id")["section_sis_id"].map(titles)
        students = rostering.placed_students(self.students, self.enrollments)
        return students.assign(homeroom=students["sis_id"].map(homeroom_of).astype("str"))

    def staff(self) -> pd.DataFrame:
        # A role that the table does not know makes nobody a member of the staff: it may be a new word for student.
        teaching = self.section_enrollments[~self.section_enrollments["role"].isin({STUDENT_ROLE, UNKNOWN_ROLE})]
        users = self.people(self.staff_memberships, teaching["person_sis_id"])
        staff = self.frame("staff", users).assign(state_staff_id=self.state_ids(users))
        return rostering.placed_staff(staff, self.staff_memberships, teaching, code_table("staff_roles"))

    def contacts(self) -> pd.DataFrame:
        """The guardians of the students delivered, by `agents` on either side."""
        students = set(self.students["sis_id"])
        rows = self.all_memberships
        relations = rows[rows["role"].isin(CONTACT_ROLES)].drop_duplicates("person_sis_id")
        relation = dict(zip(relations["person_sis_id"], relations["role"], strict=True))
        found: dict[tuple[str, str], int] = {}
        for key, user in self.users.items():
            agents = references(user.get("agents")) or references(user.get("agentSourcedIds"))
            for position, agent in enumerate(agents, start=1):
                if key in students and agent in relation and agent in self.users:
                    found[key, agent] = position
                elif key in relation and agent in students:
                    found.setdefault((agent, key), 1)
        return self.frame("contacts", [self._contact(*pair, relation, place) for pair, place in found.items()])

    def _contact(self, student: str, guardian: str, relation: dict[str, str], priority: int) -> Record:
        contact = {
            "id": f"{student}:{guardian}",
            "student": student,
            "relationship": relation[guardian],
            "priority": str(priority),
        }
        return {**self.users[guardian], "contact": contact}
