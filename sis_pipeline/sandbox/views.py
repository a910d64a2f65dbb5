"""What one system holds of the world on one day, rows in the order of its ids.
Still in the world's own words; a dialect turns them into the vendor's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any
from zlib import crc32

from sis_pipeline.sandbox.population import MISSING_SECTION
from sis_pipeline.sandbox.school_calendar import stamp
from sis_pipeline.sandbox.things import Course, Person, Record, School, Seat, Section, Stint, Teacher, ceds_grade

if TYPE_CHECKING:
    from sis_pipeline.sandbox.systems import System
    from sis_pipeline.sandbox.world import World


@dataclass(frozen=True, slots=True)
class StudentRow:
    """A student as a system shows it. `values` are student columns of the roster model (grade as an int), with this
    system's own values where it disagrees and None where it knows nothing."""

    person: Person
    record: Record
    sis_id: str
    values: dict[str, Any]
    stints: tuple[Stint, ...]
    tombstone: bool

    @property
    def latest(self) -> Stint:
        """The enrollment the system shows as the student's own: the latest begun, a no-show only for want of another."""
        return self.stints[-1]

    @property
    def bad(self) -> bool:
        return self.record.bad is not None

    def stint_in(self, year: int) -> Stint | None:
        """The latest enrollment of a school year, if there is one."""
        return next((stint for stint in reversed(self.stints) if stint.year == year), None)


@dataclass(frozen=True, slots=True)
class SeatRow:
    """A section enrollment as a system shows it. `end` is exclusive; `dropped` says that it ended early, `never` that
    it ended no later than it began (shown by PowerSchool only)."""

    seat: Seat
    student: StudentRow
    school: str
    sis_id: str
    begin: date
    end: date
    modified: datetime
    tombstone: bool = False
    dropped: bool = False
    never: bool = False

    @property
    def dangling(self) -> bool:
        return self.seat.section == MISSING_SECTION

    @property
    def bad(self) -> bool:
        return self.dangling or self.student.bad


@dataclass(frozen=True, slots=True)
class StaffRow:
    teacher: Teacher
    sis_id: str
    schools: tuple[School, ...]


class View:
    """One system on one day. Everything is worked out once, when first asked for."""

    def __init__(self, world: World, system: System, day: int) -> None:
        self.world = world
        self.system = system
        self.day = day
        self.date = world.date(day)

    @cached_property
    def years(self) -> tuple[int, ...]:
        """The school years shown, by the calendar year they start in."""
        return (self.world.year - 1, self.world.year) if self.system.speech.prior_year else (self.world.year,)

    @cached_property
    def schools(self) -> list[School]:
        return self.world.population.schools_of(self.system.name)

    @cached_property
    def courses(self) -> list[Course]:
        return self.world.population.courses[self.system.name]

    @cached_property
    def sections(self) -> list[Section]:
        """Sections of all years shown."""
        found = self.world.population.sections.values()
        return [section for section in found if section.system == self.system.name and section.year in self.years]

    @cached_property
    def staff(self) -> list[StaffRow]:
        rows = [
            StaffRow(
                teacher,
                self.system.sis_id("staff", teacher.records[self.system.name]),
                tuple(school for school in self.schools if school.number in teacher.schools),
            )
            for teacher in self.world.population.teachers.values()
            if self.system.name in teacher.records
        ]
        return sorted(rows, key=lambda row: row.teacher.records[self.system.name])

    @cached_property
    def students(self) -> list[StudentRow]:
        rows = [row for person in self.world.people(self.day).values() for row in self._rows_of(person)]
        return sorted(rows, key=lambda row: row.record.order)

    def forgets(self, person: Person) -> bool:
        """Whether this system never moves the modified times of what belongs to a student, whatever changes."""
        share = self.system.options.get("forgets_modified", 0.0)
        return bool(crc32(f"{self.system.name}/{person.key}".encode()) % 100 < share * 100)

    def _stamped(self, person: Person, moment: datetime) -> datetime:
        return stamp(date(self.world.year, 7, 1)) if self.forgets(person) else moment

    @cached_property
    def families_modified(self) -> dict[int, datetime]:
        """Per family when something of it last changed here: a child that came or went changes its guardian."""
        found: dict[int, datetime] = {}
        for person in self.world.people(self.day).values():
            for record in person.records:
                if record.system == self.system.name:
                    moment = self._stamped(person, record.modified)
                    found[person.family] = max(moment, found.get(person.family, moment))
        return found

    def _rows_of(self, person: Person) -> Iterable[StudentRow]:
        for held in person.records:
            gone = held.gone is not None and self.system.leaving != "explicit"
            if held.system != self.system.name or (gone and self.system.leaving == "vanish"):
                continue
            record = replace(held, modified=self._stamped(person, held.modified))
            stints = tuple(
                stint._replace(modified=self._stamped(person, stint.modified))
                for stint in person.stints
                if stint.system == self.system.name
            )
            yield StudentRow(
                person,
                record,
                self.system.sis_id("student", record.order),
                _values(person, record, stints[-1]),
                stints,
                gone,
            )

    @cached_property
    def seats(self) -> list[SeatRow]:
        """Section enrollments of all years shown."""
        rows = [row for student in self.students for row in self._seats_of(student)]
        return sorted(rows, key=lambda row: row.seat.order)

    def _seats_of(self, student: StudentRow) -> Iterable[SeatRow]:
        for seat in student.person.seats:
            if seat.system != self.system.name or seat.year not in self.years:
                continue
            early = seat.dropped is not None
            if early and self.system.dropping == "vanish":
                continue
            dated = early and self.system.dropping == "dated"
            never = dated and seat.dropped <= seat.begin  # type: ignore[operator]
            if never and self.system.dialect != "powerschool":
                continue
            yield SeatRow(
                seat, student, self._school_of(seat, student), self.system.sis_id("seat", seat.order), seat.begin,
                seat.dropped if seat.dropped is not None and dated and not never else seat.end,
                max(self._stamped(student.person, seat.modified), student.record.modified)
                if student.tombstone else self._stamped(student.person, seat.modified),
                tombstone=student.tombstone or (early and self.system.dropping == "tombstone"), dropped=early, never=never,
            )  # fmt: skip

    def _school_of(self, seat: Seat, student: StudentRow) -> str:
        section = self.world.population.sections.get((seat.system, seat.section))
        return section.school if section else student.latest.school

    def stints(self, year: int) -> list[tuple[Stint, StudentRow]]:
        """The school enrollments of a year, for dialects that have them."""
        return [(stint, student) for student in self.students for stint in student.stints if stint.year == year]


def _values(person: Person, record: Record, latest: Stint) -> dict[str, Any]:
    values = {**person.facts, "grade_level": latest.grade, **record.differs}
    return {name: None if name in record.hides else value for name, value in values.items()}


def as_published(values: dict[str, Any], name: str) -> Any:
    """A value as the roster model writes it: CEDS grades, everything else as it is."""
    value = values.get(name)
    return ceds_grade(value) if name == "grade_level" and value is not None else value
