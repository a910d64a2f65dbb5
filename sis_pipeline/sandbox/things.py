"""What a world is made of: schools, courses, sections, people, and where they were when.
Immutable values without behaviour beyond looking at themselves; `population` makes them, `days` changes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, NamedTuple

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class School:
    """A school, kept in one system. `number` is the district's, `order` counts within the system."""

    system: str
    order: int
    number: str
    name: str
    low: int
    high: int
    street: str
    city: str
    postal_code: str
    phone: str
    principal: str
    """The key of a Teacher."""


class Term(NamedTuple):
    """A year (`Y`) or a semester (`S1`, `S2`); `end` is exclusive."""

    code: str
    title: str
    begin: date
    end: date


@dataclass(frozen=True, slots=True)
class Course:
    system: str
    order: int
    code: str
    title: str
    subject: str
    subject_code: str
    grades: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """`year` is the calendar year its school year starts in; `teacher` the key of a Teacher."""

    system: str
    order: int
    year: int
    school: str
    course: Course
    term: str
    code: str
    room: str
    period: str
    teacher: str

    @property
    def homeroom(self) -> bool:
        return self.course.code.startswith("HR")


@dataclass(frozen=True, slots=True)
class Teacher:
    """A member of staff; `records` gives the order within each system that holds the person."""

    key: str
    first_name: str
    last_name: str
    email: str
    local_id: str
    state_id: str
    principal: bool
    records: Mapping[str, int]
    schools: tuple[str, ...]


class Seat(NamedTuple):
    """One student in one section. `end` is exclusive and scheduled; `dropped` is the first day gone, if early."""

    order: int
    system: str
    section: int
    year: int
    begin: date
    end: date
    dropped: date | None
    modified: datetime


class Stint(NamedTuple):
    """One school enrollment; `exit` is exclusive and None while enrolled."""

    order: int
    system: str
    school: str
    year: int
    grade: int
    entry: date
    exit: date | None
    entry_code: str
    exit_code: str | None
    status: str
    primary: bool
    modified: datetime


@dataclass(frozen=True, slots=True)
class Record:
    """What one system holds of one student: where it disagrees, what it does not know, and since when it is gone."""

    system: str
    order: int
    modified: datetime
    differs: Facts = field(default_factory=dict)
    hides: frozenset[str] = frozenset()
    gone: date | None = None
    """The day the student left this system for good; how that shows depends on the system."""
    bad: str | None = None
    """Why a pipeline must quarantine the record, if it must."""


@dataclass(frozen=True, slots=True)
class Person:
    """A student. `facts` are student columns of the roster model; grades are ints (0 = KG, -1 = PK)."""

    key: int
    facts: Facts
    family: int
    records: tuple[Record, ...]
    stints: tuple[Stint, ...]
    seats: tuple[Seat, ...]
    proof: str = "ssid"
    """What proves that two records are this one person: ssid, email or phone (with name and birth date)."""

    def record(self, system: str) -> Record:
        return next(record for record in self.records if record.system == system)

    @property
    def home(self) -> str:
        return self.records[0].system

    @property
    def shared(self) -> bool:
        return len(self.records) > 1

    @property
    def bad(self) -> bool:
        return any(record.bad for record in self.records)


@dataclass(frozen=True, slots=True)
class Family:
    last_name: str
    street: str
    city: str
    postal_code: str
    phone: str
    guardian_first: str
    guardian_email: str


@dataclass(frozen=True, slots=True)
class Change:
    """One event that the ledger must show. `stated` says whether the system that reports it gives the date;
    `section` is (system, order)."""

    person: int
    kind: str
    effective: date
    stated: bool
    school: str | None = None
    from_school: str | None = None
    section: tuple[str, int] | None = None


def ceds_grade(grade: int) -> str:
    """The CEDS code of a grade level: -1 is PK, 0 is KG."""
    return {-1: "PK", 0: "KG"}.get(grade, f"{grade:02d}")
