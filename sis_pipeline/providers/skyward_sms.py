"""Skyward SMS 2.0: bare arrays under `/v1`, cursors in Link headers, a graduation year for a grade, no school years.
Settings and the choice of flavor are in `skyward`; what follows from memberships is in `rostering`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, ClassVar, Literal

import pandas as pd

from sis_pipeline.connect.errors import ConfigError, ContractError
from sis_pipeline.providers import mapping, rostering
from sis_pipeline.providers.base import (
    Capabilities,
    Decode,
    End,
    OAuth,
    Page,
    Pager,
    Plan,
    Provider,
    RawSnapshot,
    Record,
    Request,
    Resource,
    Send,
    Source,
)
from sis_pipeline.providers.decoding import json_body, records
from sis_pipeline.providers.mapping import code_table, date_text, day_after, text
from sis_pipeline.providers.pagers import CursorPager, HeldPages
from sis_pipeline.providers.skyward_settings import SkywardSettings
from sis_pipeline.roster.model import ENTITIES as MODEL
from sis_pipeline.roster.school_year import SchoolYear

PAGE_SIZE = 10_000
"""The larger of the two page sizes that clients of this API use."""
NOT_OFFERED = frozenset({400, 403, 404})
UNCONFIRMED = ("staff", "courses", "sections", "enrollments", "guardians")
"""Collections that not every server has as one list: read where offered."""
IDENTITIES = {
    "schools": "SchoolId",
    "students": "NameId",
    "staff": "NameId",
    "courses": "CourseId",
    "sections": "SectionId",
    "enrollments": "EnrollmentId",
    "guardians": "GuardianNameId",
}


class SkywardSms(Provider):
    """The native API of SMS 2.0. It knows the present only: no school years, no statuses, no terms."""

    name: ClassVar[str] = "skyward"
    title: ClassVar[str] = "Skyward SMS 2.0"
    requests_per_minute: ClassVar[int] = 80

    settings: SkywardSettings

    @property
    def capabilities(self) -> Capabilities:
        entities = frozenset(MODEL) - {"departments"}
        return Capabilities(entities=entities, historical_years=False, delta=False, tombstones=False, counts=False)

    def authentication(self) -> OAuth:
        return self.settings.oauth()

    def plan(self, source: Source, school_year: SchoolYear, last_rows: Mapping[str, int]) -> Plan:
        current = SchoolYear.on(datetime.now(UTC).date())
        if school_year != current:
            raise ConfigError(
                f"Planning the school year {school_year}: {self.title} shows only what holds now, that is {current}.",
                code="config.school_year",
                advice="Choose the current school year; earlier ones need Skyward's OneRoster or Qmlativ API.",
            )
        pager = CursorPager(self.settings.page_size or PAGE_SIZE)

        def whole(name: str) -> Resource:
            optional = NOT_OFFERED if name in UNCONFIRMED else frozenset()
            expected = last_rows.get(name)
            return Resource(name, _request(name), pager, (IDENTITIES[name],), expected_rows=expected, optional=optional)

        per_student = set(self.settings.per_student)
        resources = [whole(name) for name in IDENTITIES if name not in {"students"} | per_student]
        if not per_student:
            return Plan((*resources, whole("students")), _basis(last_rows), _NOTES)
        held = tuple(pager.pages(source.send, _request("students"), lambda body: self.decode("students", body)))
        ids = list(dict.fromkeys(str(record.get("NameId")) for page in held for record in page.records))
        each = [
            Resource(name, _request(name), EachStudent(tuple(map(_PER_STUDENT[name], ids)), pager), _UNIDENTIFIED)
            for name in sorted(per_student)
        ]
        students = Resource(
            "students", _request("students"), HeldPages(held), ("NameId",), expected_rows=last_rows.get("students")
        )
        note = f"One call per student for {' and '.join(sorted(per_student))}: {len(ids) * len(each)} calls."
        return Plan((*resources, students, *each), _basis(last_rows), (note, *_NOTES))

    def decode(self, resource: str, body: bytes) -> Sequence[Record]:
        """A bare array; one object stands for an array of one if it has the collection's id."""
        what = f"The {resource} page"
        document = json_body(body, what)
        key = IDENTITIES[resource]
        if isinstance(document, list) or (isinstance(document, dict) and key in document):
            return records(document, what)
        raise ContractError(f"{what} is not a list of records with {key}.", code="contract.shape")

    def standardise(self, raw: RawSnapshot) -> dict[str, pd.DataFrame]:
        held = {
            name: [row for _, body in raw.bodies(name) for row in self.decode(name, body)] for name in raw.resources
        }
        return _Roster(held, raw.school_year, self.settings, inclusive=self.exit_dates == "inclusive").frames()

    def check(self, source: Source) -> str:
        request = _request("schools")
        answer = source.send(replace(request, params={"paging.limit": "1", "paging.cursor": ""}))
        self.decode("schools", answer.body)
        return f"{self.title}: the key works and the schools can be read."


_NOTES = (
    "SMS 2.0 has no terms: sessions are the spans in which its sections run.",
    "What a server has no list of (staff, courses, sections, enrollments, guardians) is skipped.",
    "`per_student` reads enrollments and guardians student by student, where there is no list of all.",
)
_UNIDENTIFIED = ("",)
"""No field has this name: siblings share a guardian, who on two lists is no sign that a list moved."""
_PER_STUDENT: dict[str, Callable[[str], Request]] = {
    "enrollments": lambda key: Request(f"/v1/students/{key}/enrollments", template="/v1/students/{NameId}/enrollments"),
    "guardians": lambda key: Request("/v1/guardians", {"studentNameId": key}, template="/v1/guardians?studentNameId"),
}


def _request(name: str) -> Request:
    return Request(f"/v1/{name}", template=f"/v1/{name}")


def _basis(last_rows: Mapping[str, int]) -> Any:
    return "last_snapshot" if last_rows else "first_read"


@dataclass(frozen=True)
class EachStudent(Pager):
    """One list per student, read one after the other as the pages of one resource: the way of last resort."""

    requests: tuple[Request, ...]
    within: Pager

    @property
    def resumes(self) -> Literal["never", "same_token", "any_token"]:
        return self.within.resumes

    def pages(self, send: Send, request: Request, decode: Decode) -> Iterator[Page]:  # noqa: ARG002 one request each
        number, end = 0, End.LAST_LINK
        last: Page | None = None
        for one in self.requests:
            for page in self.within.pages(send, one, decode):
                if last is not None:
                    yield last
                number += 1
                end = End.UNPROVEN if page.end is End.UNPROVEN else end
                # Two students with the same list (none, most often) repeat no page.
                last = replace(page, number=number, end=None, repeated=False)
        yield replace(last, end=end) if last is not None else Page(1, b"[]", [], end=end)

    def calls_for(self, rows: int) -> int:  # noqa: ARG002
        return len(self.requests)


class _Roster:
    """One snapshot on its way to standard frames."""

    def __init__(
        self, held: dict[str, list[Record]], school_year: SchoolYear, settings: SkywardSettings, *, inclusive: bool
    ) -> None:
        self.held = held
        self.school_year = school_year
        self.settings = settings
        self.inclusive = inclusive
        self.mapping = mapping.Mapping.load("skyward_sms.yaml", {"students": settings.custom_fields})
        self.excluded = frozenset(settings.excluded_schools)

    def frames(self) -> dict[str, pd.DataFrame]:
        sections = self.frame("sections", self.sections)
        frames = {
            "schools": self.frame("schools", self._schools()),
            "academic_sessions": self.sessions,
            "courses": self.frame("courses", self.rows("courses")),
            "sections": sections,
            "students": self.students_placed(),
            "staff": self.frame("staff", map(self._member, self.rows("staff"))),
            "enrollments": self.enrollments,
            "section_enrollments": self.section_enrollments,
            "contacts": self.frame("contacts", self._contacts()),
        }
        finished = {name: frame.reset_index(drop=True) for name, frame in frames.items()}
        self.mapping.annotate(finished)
        return finished

    def frame(self, entity: str, rows: Iterable[Record]) -> pd.DataFrame:
        return self.mapping.frame(entity, list(rows))

    def rows(self, name: str) -> list[Record]:
        """The records of a collection, each once: lists per school name a student of two schools twice."""
        key = IDENTITIES[name]
        found: dict[str, Record] = {}
        for record in self.held.get(name, []):
            known = found.setdefault(text(record.get(key)) or "", record)
            if known is not record and "SchoolIds" in record:
                known["SchoolIds"] = list(dict.fromkeys([*_schools(known), *_schools(record)]))
        return list(found.values())

    def _schools(self) -> Iterator[Record]:
        return (record for record in self.rows("schools") if text(record.get("SchoolId")) not in self.excluded)

    def _in_year(self, begin: str | None, end: str | None) -> bool:
        """Whether a span, as far as it is dated, reaches into the school year."""
        first, after = self.school_year.first_day.isoformat(), self.school_year.day_after.isoformat()
        return (begin or "") < after and (end or "9999") > first

    def _span(self, record: Record) -> tuple[str | None, str | None]:
        begin, end = date_text(record.get("StartDate")), date_text(record.get("EndDate"))
        return begin, day_after(pd.Series([end], dtype="str"))[0] if self.inclusive and end else end

    @cached_property
    def spans(self) -> dict[str, tuple[str, str]]:
        """Section -> first day and first day after, for sections that have both."""
        spans = {text(record.get("SectionId")) or "": self._span(record) for record in self.rows("sections")}
        return {key: (begin, end) for key, (begin, end) in spans.items() if begin and end}

    @cached_property
    def sections(self) -> list[Record]:
        kept = []
        for record in self.rows("sections"):
            span = self.spans.get(text(record.get("SectionId")) or "")
            if text(record.get("SchoolId")) not in self.excluded and self._in_year(*(span or (None, None))):
                kept.append({**record, "session": [session_id(*span)] if span else None})
        return kept

    @cached_property
    def sessions(self) -> pd.DataFrame:
        """One session per distinct span of the sections: the widest is the school year if it holds all others."""
        ids = {text(record.get("SectionId")) or "" for record in self.sections}
        spans = sorted({span for key, span in self.spans.items() if key in ids})
        return session_frame([(None, begin, end) for begin, end in spans], self.school_year)

    @cached_property
    def section_enrollments(self) -> pd.DataFrame:
        rows = [record for record in self.rows("enrollments") if text(record.get("SchoolId")) not in self.excluded]
        frame = self.frame("section_enrollments", [record for record in rows if self._in_year(*self._span(record))])
        return frame.assign(end_date=day_after(frame["end_date"])) if self.inclusive else frame

    @cached_property
    def memberships(self) -> pd.DataFrame:
        rows = [
            (
                text(record.get("NameId")),
                school,
                "student",
                school == text(record.get("DefaultSchoolId")),
                None,
                None,
                place,
            )
            for record in self.rows("students")
            for place, school in enumerate(_schools(record))
            if school not in self.excluded
        ]
        frame = pd.DataFrame(rows, columns=list(rostering.MEMBERSHIP_COLUMNS))
        texts = [name for name in frame.columns if name not in {"is_primary", "position"}]
        return frame.astype({**dict.fromkeys(texts, "str"), "is_primary": "bool", "position": "int64"})

    @cached_property
    def students(self) -> pd.DataFrame:
        """Students of a school that counts, or with a section of one."""
        here = set(self.memberships["person_sis_id"]) | set(self.section_enrollments["person_sis_id"])
        rows = [record for record in self.rows("students") if text(record.get("NameId")) in here]
        students = self.frame("students", map(self._student, rows))
        return students.assign(
            ssid_issuer=rostering.beside(students["ssid"], self.settings.state),
            local_id_issuer=rostering.beside(students["local_id"], self.settings.district),
        )

    def _student(self, record: Record) -> Record:
        grade = _grade(text(record.get("GradYr")), self.school_year)
        return {**record, "phones": _phones(record), "races": _races(text(record.get("FederalRace"))), "grade": grade}

    def _member(self, record: Record) -> Record:
        teaches = text(record.get("IsTeacher"))
        role = {"true": "teacher", "false": "staff"}.get(teaches or "", "other")
        schools = [school for school in _schools(record) if school not in self.excluded]
        return {**record, "SchoolIds": schools, "phones": _phones(record), "role": role}

    @cached_property
    def enrollments(self) -> pd.DataFrame:
        from sis_pipeline.providers.attendance import school_enrollments

        attendance = self.section_enrollments.rename(columns={"person_sis_id": "student_sis_id"})
        attendance = attendance.assign(
            modified_at=pd.Series(None, index=attendance.index, dtype="str"),
            session_start=attendance["section_sis_id"]
            .map({key: begin for key, (begin, _) in self.spans.items()})
            .astype("str"),
            session_end=attendance["section_sis_id"]
            .map({key: end for key, (_, end) in self.spans.items()})
            .astype("str"),
        )
        begins, ends = self.sessions["start_date"], self.sessions["end_date"]
        return school_enrollments(
            self.students.assign(modified_at=pd.Series(None, index=self.students.index, dtype="str")),
            self.memberships,
            attendance,
            session_start=begins.min() if len(begins) else self.school_year.first_day.isoformat(),
            year_end=ends.max() if len(ends) else self.school_year.day_after.isoformat(),
            school_year=self.school_year,
        )

    def students_placed(self) -> pd.DataFrame:
        return rostering.placed_students(self.students, self.enrollments)

    def _contacts(self) -> Iterator[Record]:
        students = set(self.students["sis_id"])
        for record in self.rows("guardians"):
            for child in records(record.get("Students"), "The students of a guardian"):
                student, guardian = text(child.get("StudentNameId")), text(record.get("GuardianNameId"))
                if student in students:
                    contact = {
                        "id": guardian and f"{student}:{guardian}",
                        "student": student,
                        "relationship": child.get("RelationshipDesc"),
                    }
                    yield {**record, "phones": _phones(record), "contact": contact}


def session_frame(spans: Sequence[tuple[str | None, str, str]], school_year: SchoolYear) -> pd.DataFrame:
    """academic_sessions made of the spans (school, first day, first day after) in which sections run, where the source
    has no sessions. The span that holds all others of its school is the school year."""

    def kind(span: tuple[str | None, str, str]) -> str:
        others = [other for other in spans if other[0] == span[0]]
        holds_all = all(span[1] <= other[1] and other[2] <= span[2] for other in others)
        return "school_year" if holds_all else "term"

    rows = [
        (session_id(begin, end, school), f"{begin} to {end}", kind((school, begin, end)), begin, end, school_year.key, school,
         "active")
        for school, begin, end in spans
    ]  # fmt: skip
    columns = ("sis_id", "title", "kind", "start_date", "end_date", "school_year", "school_sis_id", "record_status")
    return rostering.text_frame(columns, rows)


def session_id(begin: str, end: str, school: str | None = None) -> str:
    return ":".join(filter(None, (school, begin, end)))


def _schools(record: Record) -> list[str]:
    several = record.get("SchoolIds")
    listed = several if isinstance(several, list) else [several]
    named = [text(value) for value in [*listed, record.get("DefaultSchoolId")]]
    return list(dict.fromkeys(value for value in named if value))


def _grade(graduation: str | None, school_year: SchoolYear) -> str | None:
    """The grade that a graduation year means: 12 in the year that ends with it. Null outside prekindergarten to 12."""
    if graduation is None or not graduation.isdecimal():
        return None
    grade = 12 - (int(graduation) - school_year.end)
    names = {-2: "PR", -1: "PK", 0: "KG"} | {number: f"{number:02d}" for number in range(1, 13)}
    return names.get(grade)


def _phones(record: Record) -> dict[str, str]:
    """Numbers by lower-case type: home, cellular, work, other. The first of a type counts."""
    found: dict[str, str] = {}
    for suffix in ("", "2", "3"):
        number = text(record.get(f"PhoneNumber{suffix}"))
        if number:
            kind = (text(record.get(f"PhoneNumber{suffix}Type")) or "other").lower()
            found.setdefault(kind if kind in {"home", "cellular", "work"} else "other", number)
    return found


def _races(letters: str | None) -> dict[str, bool]:
    """FederalRace is letters, several may hold; none says nothing."""
    table = code_table("powerschool_races")
    named = {meaning for meaning, known in map(table, letters or "") if known}
    return {column: column in named for column in RACES} if named else {}


RACES = (
    "american_indian_or_alaska_native",
    "asian",
    "black_or_african_american",
    "native_hawaiian_or_other_pacific_islander",
    "white",
)
