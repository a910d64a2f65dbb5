"""PowerSchool's tables for one day: rows of text as its database holds them, by its own keys and year arithmetic.
Two keys everywhere: `dcid`, which `/ws/v1` uses, and the table's `id`, which the tables join by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import date, timedelta
from functools import cached_property
from typing import Any

from sis_pipeline.sandbox.filling import IMPOSSIBLE_BIRTH_DATE, NO_LAST_NAME
from sis_pipeline.sandbox.school_calendar import terms
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.things import School, Stint
from sis_pipeline.sandbox.views import SeatRow, StudentRow, View

TextRow = dict[str, str]
GRADUATED_SCHOOL = 999_999
GRADUATED_SCHOOL_DCID = 5
IMPOSSIBLE_DATE = "2014-02-30"
STATUS_CODES = {
    "pre_registered": -1, "active": 0, "withdrawn": 2, "transferred": 2, "no_show": 2, "graduated": 3,
}  # fmt: skip
TERM_NUMBERS = {"Y": 0, "S1": 1, "S2": 2}
RACE_LETTERS = {
    "white": "W", "black_or_african_american": "B", "asian": "A", "american_indian_or_alaska_native": "I",
    "native_hawaiian_or_other_pacific_islander": "P",
}  # fmt: skip
FULL_TIME = 970


def year_id(year: int) -> int:
    return year - 1990


def term_id(year: int, code: str) -> int:
    return year_id(year) * 100 + TERM_NUMBERS[code]


class Tables:
    """The tables of one view. A column without a value is missing from its row."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.system: System = view.system
        self._schools = {school.number: school for school in view.schools}
        self._rows: dict[str, list[TextRow]] = {}

    def rows(self, table: str) -> list[TextRow]:
        """All rows of a table, by its keys."""
        if table not in self._rows:
            make: dict[str, Callable[[], Iterable[TextRow]]] = {
                "students": lambda: map(self.students_row, self.view.students),
                "reenrollments": self._reenrollments,
                "cc": lambda: map(self.cc_row, self.view.seats),
                "sections": self._sections,
                "terms": self._terms,
                "courses": self._courses,
                "schools": self._school_rows,
                "schoolstaff": lambda: self.school_staff,
                "users": self._users,
            }
            self._rows[table] = list(make[table]())
        return self._rows[table]

    def columns(self, table: str) -> frozenset[str]:
        rows = self.rows(table)
        return frozenset().union(*(row.keys() for row in rows)) | _COLUMNS.get(table, frozenset())

    # --- keys --------------------------------------------------------------------------------------------------------

    def dcid(self, kind: str, order: int) -> int:
        return int(self.system.sis_id(kind, order))

    @cached_property
    def school_by_dcid(self) -> dict[int, School]:
        return {self.dcid("school", school.order): school for school in self.view.schools}

    @cached_property
    def student_by_dcid(self) -> dict[int, StudentRow]:
        return {int(row.sis_id): row for row in self.view.students}

    @cached_property
    def section_by_dcid(self) -> dict[int, TextRow]:
        return {int(row["dcid"]): row for row in self.rows("sections")}

    def school_dcid(self, number: str) -> str:
        return str(self.dcid("school", self._schools[number].order))

    # --- students and their enrollments ------------------------------------------------------------------------------

    def current(self, student: StudentRow) -> Stint | None:
        """The enrollment kept in the students table; the graduated have none, they are parked in a pseudo school."""
        return None if student.latest.status == "graduated" else student.latest

    def students_school(self, student: StudentRow) -> TextRow:
        """Number and dcid of the student's present school."""
        stint = self.current(student)
        if stint is None:
            return {"number": str(GRADUATED_SCHOOL), "dcid": str(GRADUATED_SCHOOL_DCID)}
        return {"number": stint.school, "dcid": self.school_dcid(stint.school)}

    def students_row(self, student: StudentRow) -> TextRow:
        values, bad = student.values, student.record.bad
        family = self.view.world.population.families[student.person.family]
        return _without_empty({
            "dcid": student.sis_id, "id": student.record.order, "student_number": values["local_id"],
            "state_studentnumber": values["ssid"], "first_name": values["first_name"], "middle_name": values["middle_name"],
            "last_name": None if bad == NO_LAST_NAME else values["last_name"], "gender": values["sex"][0].upper(),
            "dob": IMPOSSIBLE_DATE if bad == IMPOSSIBLE_BIRTH_DATE else values["birth_date"],
            "home_phone": values["phone"], "street": values["home_street"], "city": values["home_city"],
            "state": values["home_state"], "zip": values["home_postal_code"], "mailing_street": values["mailing_street"],
            "mailing_city": values["mailing_city"], "mailing_state": values["mailing_state"],
            "mailing_zip": values["mailing_postal_code"], "sched_yearofgraduation": values["graduation_year"],
            "districtentrydate": values["district_entry_date"], "student_web_id": values["username"],
            "email": values["email"], "guardianemail": family.guardian_email,
            "fedethnicity": int(values["hispanic_or_latino"]), "home_room": self.homeroom(student),
            "whenmodified": student.record.modified.date(), "transaction_date": student.record.modified.date(),
            **self._current_columns(student),
        })  # fmt: skip

    def _current_columns(self, student: StudentRow) -> dict[str, Any]:
        stint = self.current(student)
        if stint is None:
            over = student.latest.exit
            return {
                "schoolid": GRADUATED_SCHOOL, "grade_level": 99, "enroll_status": 3, "entrydate": over, "exitdate": over,
            }  # fmt: skip
        grade = student.record.differs.get("grade_level", stint.grade)
        return {
            **self._stint_columns(stint), "grade_level": grade, "enroll_status": STATUS_CODES[stint.status],
        }  # fmt: skip

    def _stint_columns(self, stint: Stint) -> dict[str, Any]:
        """Exit dates are exclusive; while enrolled, the exit is the day after the school year."""
        return {
            "schoolid": stint.school, "entrydate": stint.entry, "exitdate": stint.exit or terms(stint.year)[0].end,
            "entrycode": stint.entry_code, "exitcode": stint.exit_code, "grade_level": stint.grade, "fteid": FULL_TIME,
        }  # fmt: skip

    def homeroom(self, student: StudentRow) -> str | None:
        for seat in student.person.seats:
            section = self.view.world.population.sections.get((seat.system, seat.section))
            here = section is not None and section.system == self.system.name and section.year == self.view.world.year
            if section is not None and here and section.homeroom and seat.dropped is None:
                return section.room
        return None

    def _earlier(self, student: StudentRow) -> list[Stint]:
        kept = self.current(student)
        return [stint for stint in student.stints if stint is not kept]

    def _reenrollments(self) -> Iterable[TextRow]:
        for student in self.view.students:
            for stint in self._earlier(student):
                yield _without_empty({
                    "dcid": stint.order + 60_000, "id": stint.order, "studentid": student.record.order,
                    **self._stint_columns(stint), "enrollmentcode": 0,
                })  # fmt: skip

    # --- sections, terms, courses ------------------------------------------------------------------------------------

    @cached_property
    def _school_staff_id(self) -> dict[tuple[str, str], int]:
        """(teacher key, school number) -> SCHOOLSTAFF.ID: one per school for the same person."""
        pairs = [(row.teacher.key, school.number) for row in self.view.staff for school in row.schools]
        return {pair: position for position, pair in enumerate(pairs, start=1)}

    @cached_property
    def school_staff(self) -> list[TextRow]:
        by_key = {row.teacher.key: row for row in self.view.staff}
        return [
            _without_empty({
                "dcid": order + 800, "id": order, "users_dcid": by_key[key].sis_id, "schoolid": number,
                "schools_dcid": self.school_dcid(number), "status": 1,
                "staffstatus": 2 if by_key[key].teacher.principal else 1,
            })
            for (key, number), order in self._school_staff_id.items()
        ]  # fmt: skip

    def _users(self) -> Iterable[TextRow]:
        for row in self.view.staff:
            teacher = row.teacher
            yield _without_empty({
                "dcid": row.sis_id, "teachernumber": teacher.local_id, "first_name": teacher.first_name,
                "last_name": teacher.last_name, "email_addr": teacher.email, "sif_stateprid": teacher.state_id,
                "homeschoolid": row.schools[0].number,
            })  # fmt: skip

    def _sections(self) -> Iterable[TextRow]:
        for section in self.view.sections:
            teacher = self._school_staff_id[section.teacher, section.school]
            yield _without_empty({
                "dcid": self.dcid("section", section.order), "id": section.order, "course_number": section.course.code,
                "section_number": section.code.rpartition("-")[2], "termid": term_id(section.year, section.term),
                "schoolid": section.school, "schools_dcid": self.school_dcid(section.school), "teacher": teacher,
                "room": section.room, "expression": f"{section.period}(A-B)", "external_expression": f"P{section.period}(A-B)",
                "maxenrollment": 30,
            })  # fmt: skip

    def _terms(self) -> Iterable[TextRow]:
        """One row per school, year and term; the last day is a school day."""
        spans = [(year, span) for year in self.view.years for span in terms(year)]
        for school in self.view.schools:
            for position, (year, span) in enumerate(spans):
                order = (school.order - 1) * len(spans) + position + 1
                yield _without_empty({
                    "dcid": order + 50, "id": term_id(year, span.code), "schoolid": school.number,
                    "schools_dcid": self.school_dcid(school.number), "yearid": year_id(year), "firstday": span.begin,
                    "lastday": span.end - timedelta(days=1), "abbreviation": span.code, "name": span.title,
                    "portion": 1 if span.code == "Y" else 2,
                })  # fmt: skip

    def _courses(self) -> Iterable[TextRow]:
        for course in self.view.courses:
            yield _without_empty({
                "dcid": self.dcid("course", course.order), "id": course.order, "course_number": course.code,
                "course_name": course.title[:40], "credittype": course.subject, "sched_coursesubjectareacode": course.subject_code,
            })  # fmt: skip

    def _school_rows(self) -> Iterable[TextRow]:
        for school in self.view.schools:
            yield _without_empty({
                "dcid": self.school_dcid(school.number), "id": school.order, "school_number": school.number,
                "name": school.name, "low_grade": school.low, "high_grade": school.high, "schooladdress": school.street,
                "schoolcity": school.city, "schoolstate": "NJ", "schoolzip": school.postal_code, "schoolphone": school.phone,
            })  # fmt: skip
        yield {
            "dcid": str(GRADUATED_SCHOOL_DCID),
            "id": "9",
            "school_number": str(GRADUATED_SCHOOL),
            "name": "Graduated Students",
        }

    def cc_row(self, row: SeatRow) -> TextRow:
        """A class enrollment. Dropped ones have negative section and term ids; what ended no later than it began was a
        no-show."""
        section = self.view.world.population.sections.get((self.system.name, row.seat.section))
        code = section.term if section else "Y"
        sign = "-" if row.dropped else ""
        left: date = row.begin if row.never else row.end
        teacher = self._school_staff_id[section.teacher, section.school] if section else 0
        return {
            "dcid": row.sis_id, "id": str(row.seat.order), "studentid": str(row.student.record.order),
            "sectionid": f"{sign}{row.seat.section}", "dateenrolled": row.begin.isoformat(), "dateleft": left.isoformat(),
            "course_number": section.course.code if section else "GONE01", "termid": f"{sign}{term_id(row.seat.year, code)}",
            "schoolid": row.school, "teacherid": str(teacher), "whenmodified": row.modified.date().isoformat(),
            "transaction_date": row.modified.date().isoformat(),
        }  # fmt: skip

    # --- the same, by school -----------------------------------------------------------------------------------------

    def staff_at(self, dcid: int) -> list[TextRow]:
        return [row for row in self.school_staff if int(row["schools_dcid"]) == dcid]

    def sections_at(self, dcid: int) -> list[TextRow]:
        return [row for row in self.rows("sections") if int(row["schools_dcid"]) == dcid]

    def terms_at(self, dcid: int) -> list[TextRow]:
        """By portion, then first day."""
        rows = [row for row in self.rows("terms") if int(row["schools_dcid"]) == dcid]
        return sorted(rows, key=lambda row: (int(row["portion"]), row["firstday"]))

    def courses_at(self, dcid: int) -> list[TextRow]:
        """A course is the district's, but listed at every school that offers it."""
        offered = {row["course_number"] for row in self.sections_at(dcid)}
        return [row for row in self.rows("courses") if row["course_number"] in offered]

    @cached_property
    def _seats_by_section(self) -> dict[int, list[SeatRow]]:
        found: dict[int, list[SeatRow]] = defaultdict(list)
        for row in self.view.seats:
            found[self.dcid("section", row.seat.section)].append(row)
        return found

    def seats_in(self, section_dcid: int) -> list[SeatRow]:
        return self._seats_by_section.get(section_dcid, [])

    # --- PowerQueries ------------------------------------------------------------------------------------------------

    def query(self, name: str, yearid: int) -> list[TextRow]:
        """Rows of one of our PowerQueries for a school year."""
        key = f"{name}/{yearid}"
        if key not in self._rows:
            found = self._section_enrollments() if name == "section_enrollments" else self._school_enrollments()
            self._rows[key] = [row for year, row in found if year == yearid]
        return self._rows[key]

    def _section_enrollments(self) -> Iterable[tuple[int, TextRow]]:
        for row in self.view.seats:
            keys = {
                "students_dcid": row.student.sis_id, "sections_dcid": str(self.dcid("section", row.seat.section)),
                "schools_dcid": self.school_dcid(row.school),
            }  # fmt: skip
            yield year_id(row.seat.year), {**self.cc_row(row), **keys}

    def _school_enrollments(self) -> Iterable[tuple[int, TextRow]]:
        for student in self.view.students:
            for row in self._enrollment_rows(student):
                yield int(row["yearid"]), row

    def _enrollment_rows(self, student: StudentRow) -> Sequence[TextRow]:
        """Present and earlier school enrollments alike; the pseudo school of the graduated is none."""
        kept = self.current(student)
        return [
            _without_empty({
                "dcid": stint.order + 60_000 if stint is not kept else None, "students_dcid": student.sis_id,
                "studentid": student.record.order, **self._stint_columns(stint),
                "schools_dcid": self.school_dcid(stint.school), "yearid": year_id(stint.year), "enrollmentcode": 0,
                "enroll_status": STATUS_CODES[stint.status] if stint is kept else None,
                "source": "students" if stint is kept else "reenrollments",
            })
            for stint in student.stints
        ]  # fmt: skip


_COLUMNS = {
    "students": frozenset(
        {"middle_name", "state_studentnumber", "email", "home_phone", "exitcode", "entrycode", "fteid"}
    ),
    "reenrollments": frozenset(
        {
            "dcid",
            "id",
            "studentid",
            "schoolid",
            "entrydate",
            "exitdate",
            "entrycode",
            "exitcode",
            "grade_level",
            "fteid",
        }
    ),
}
"""Columns that exist even where no row has a value."""


def _without_empty(row: dict[str, Any]) -> TextRow:
    """Every value as text; what is unknown is left out."""
    return {
        name: value.isoformat() if isinstance(value, date) else str(value)
        for name, value in row.items()
        if value is not None and value != ""
    }
