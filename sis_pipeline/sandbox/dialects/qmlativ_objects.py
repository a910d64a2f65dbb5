"""Qmlativ's objects for one day, as rows with the vendor's field names.
Fetching them by page and field is `skyward_qmlativ`'s business."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import date, datetime, timedelta
from typing import Any

from sis_pipeline.sandbox.dialects.api import Json
from sis_pipeline.sandbox.filling import IMPOSSIBLE_BIRTH_DATE, NO_LAST_NAME
from sis_pipeline.sandbox.population import (
    ENTRY_NEW,
    ENTRY_RETURNING,
    EXIT_GRADUATED,
    EXIT_TRANSFER,
    EXIT_YEAR_END,
)
from sis_pipeline.sandbox.school_calendar import term, terms
from sis_pipeline.sandbox.things import Section, Stint, ceds_grade
from sis_pipeline.sandbox.views import StudentRow, View

DISTRICT_ENTITY = 1
NO_SHOW = "NS"
ENTRY_CODES = (ENTRY_NEW, ENTRY_RETURNING)
WITHDRAWAL_CODES = (EXIT_TRANSFER, EXIT_YEAR_END, EXIT_GRADUATED, NO_SHOW)
GRADES = tuple(range(-1, 13))
LENGTHS = ("Y", "S1", "S2")
STUDENT_NAME, STAFF_NAME = 100_000, 800_000
"""NameIDs count all people; StudentID and StaffID are keys of their own."""
RACES = {
    "white": "White", "black_or_african_american": "Black or African American", "asian": "Asian",
    "american_indian_or_alaska_native": "American Indian or Alaska Native",
    "native_hawaiian_or_other_pacific_islander": "Native Hawaiian or Other Pacific Islander",
}  # fmt: skip


def school_year_id(year: int) -> int:
    return year - 2014


class Objects:
    """All objects of a view. `inclusive` makes end dates the last day instead of the day after."""

    def __init__(self, view: View, *, inclusive: bool) -> None:
        self.view = view
        self._inclusive = inclusive
        self._made: dict[tuple[str, int], list[Json]] = {}
        self._schools = {school.number: school for school in view.schools}

    def rows(self, name: str, school_year: int) -> list[Json] | None:
        """The rows of `Module/Object` for a school year (by its id), all rows where the object knows no year; None for
        an object that does not exist."""
        make = self._makers().get(name)
        if make is None:
            return None
        if (name, school_year) not in self._made:
            self._made[name, school_year] = [_written(row) for row in make(school_year + 2014)]
        return self._made[name, school_year]

    def _makers(self) -> dict[str, Callable[[int], Iterable[Json]]]:
        return {
            "District/Entity": lambda _year: self._entities(),
            "District/SchoolYear": lambda _year: self._school_years(),
            "Enrollment/School": self._school_rows,
            "Enrollment/EntitySchool": lambda _year: self._entity_schools(),
            "Enrollment/EntryCode": lambda _year: _codes("EntryCode", ENTRY_CODES),
            "Enrollment/WithdrawalCode": lambda _year: _codes("WithdrawalCode", WITHDRAWAL_CODES),
            "Enrollment/GradeLevel": lambda _year: self._grade_levels(),
            "Enrollment/EntryWithdrawal": self._entries,
            "Enrollment/StudentEntityYear": self._student_years,
            "Student/Student": lambda _year: map(self._student, self.view.students),
            "Demographics/Name": lambda _year: self._names(),
            "Demographics/NameEmail": lambda _year: self._emails(),
            "Demographics/NamePhone": lambda _year: self._phones(),
            "Demographics/NameAddress": lambda _year: self._name_addresses(),
            "Demographics/Address": lambda _year: self._addresses(),
            "Scheduling/Course": self._courses,
            "Scheduling/Section": self._sections,
            "Scheduling/SectionLength": lambda _year: _codes("SectionLength", LENGTHS),
            "Scheduling/SectionLengthSubset": self._length_subsets,
            "Scheduling/Meet": self._meets,
            "Scheduling/StaffMeet": self._staff_meets,
            "Scheduling/StudentSection": self._student_sections,
            "Staff/Staff": lambda _year: self._staff(),
            "Staff/StaffEntityYear": self._staff_years,
            "Security/User": lambda _year: self._users(),
        }

    # --- keys --------------------------------------------------------------------------------------------------------

    def _id(self, kind: str, order: int) -> int:
        return int(self.view.system.sis_id(kind, order))

    def _school_id(self, number: str) -> int:
        return self._id("school", self._schools[number].order)

    def _entity_id(self, number: str) -> int:
        """Every school is an entity of its own; entity 1 is the district."""
        return self._schools[number].order + DISTRICT_ENTITY

    def _end(self, day: date | None) -> date | None:
        return day - timedelta(days=1) if day is not None and self._inclusive else day

    # --- district and schools ----------------------------------------------------------------------------------------

    def _entities(self) -> Iterable[Json]:
        current = school_year_id(self.view.world.year)
        yield {"EntityID": DISTRICT_ENTITY, "Code": "000", "Name": "Fernhollow District", "SchoolYearIDCurrent": current,
               "IsDistrictWide": True}  # fmt: skip
        for school in self.view.schools:
            yield {"EntityID": self._entity_id(school.number), "Code": school.number, "Name": school.name,
                   "SchoolYearIDCurrent": current, "IsDistrictWide": False}  # fmt: skip

    def _school_years(self) -> Iterable[Json]:
        for year in self.view.years:
            begin, end = terms(year)[0].begin, terms(year)[0].end
            yield {"SchoolYearID": school_year_id(year), "NumericYear": year + 1, "Description": f"{year}-{year + 1}",
                   "StartDate": begin, "EndDate": self._end(end),
                   "IsCurrentYearForProvidedEntity": year == self.view.world.year}  # fmt: skip

    def _school_rows(self, year: int) -> Iterable[Json]:
        for school in self.view.schools:
            yield {"SchoolID": self._school_id(school.number), "Code": school.number, "Name": school.name,
                   "StateAssignedID": f"34{school.number:0>5}", "GradeLevelIDLow": _grade_id(school.low),
                   "GradeLevelIDHigh": _grade_id(school.high), "PhoneNumber": school.phone, "BuildingID": school.order,
                   "SchoolYearID": school_year_id(year), "Type": "School"}  # fmt: skip

    def _entity_schools(self) -> Iterable[Json]:
        for school in self.view.schools:
            yield {"EntitySchoolID": school.order, "EntityID": self._entity_id(school.number),
                   "SchoolID": self._school_id(school.number)}  # fmt: skip

    def _grade_levels(self) -> Iterable[Json]:
        for grade in GRADES:
            yield {"GradeLevelID": _grade_id(grade), "Code": ceds_grade(grade), "Description": f"Grade {ceds_grade(grade)}",
                   "FederalGradeLevelCode": ceds_grade(grade), "NumericValue": grade}  # fmt: skip

    # --- students ----------------------------------------------------------------------------------------------------

    def _name_id(self, student: StudentRow) -> int:
        return STUDENT_NAME + student.record.order

    def _student(self, student: StudentRow) -> Json:
        values, stint = student.values, student.latest
        return {
            "StudentID": int(student.sis_id), "NameID": self._name_id(student), "StudentNumber": values["local_id"],
            "FirstName": values["first_name"], "MiddleName": values["middle_name"], "LastName": _last_name(student),
            "Grade": ceds_grade(values["grade_level"]), "GradeNumeric": values["grade_level"],
            "GradYear": values["graduation_year"], "IsCurrentActive": stint.status == "active",
            "IsGraduated": stint.status == "graduated", "CalculatedStudentStateID": values["ssid"],
            "ModifiedTime": student.record.modified,
        }  # fmt: skip

    def _names(self) -> Iterable[Json]:
        for student in self.view.students:
            values = student.values
            bad_birth = student.record.bad == IMPOSSIBLE_BIRTH_DATE
            yield {
                "NameID": self._name_id(student), "FirstName": values["first_name"], "MiddleName": values["middle_name"],
                "LastName": _last_name(student), "FirstNameLegal": values["first_name"],
                "MiddleNameLegal": values["middle_name"], "LastNameLegal": _last_name(student),
                "BirthDate": "2014-02-30T00:00:00" if bad_birth else values["birth_date"],
                "Gender": values["sex"].capitalize(), "GenderCode": values["sex"][0].upper(),
                "Ethnicity": "Hispanic or Latino" if values["hispanic_or_latino"] else "Not Hispanic or Latino",
                "Race": ", ".join(label for race, label in RACES.items() if values[race]),
                "ModifiedTime": student.record.modified,
            }  # fmt: skip
        for row in self.view.staff:
            teacher = row.teacher
            yield {
                "NameID": STAFF_NAME + teacher.records[self.view.system.name], "FirstName": teacher.first_name,
                "MiddleName": None, "LastName": teacher.last_name, "FirstNameLegal": teacher.first_name,
                "MiddleNameLegal": None, "LastNameLegal": teacher.last_name, "BirthDate": None, "Gender": None,
                "GenderCode": None, "Ethnicity": None, "Race": None,
            }  # fmt: skip

    def _emails(self) -> Iterable[Json]:
        for student in self.view.students:
            if student.values["email"]:
                yield {"NameEmailID": student.record.order, "NameID": self._name_id(student),
                       "EmailAddress": student.values["email"], "Rank": 1,
                       "ModifiedTime": student.record.modified}  # fmt: skip
        for row in self.view.staff:
            order = row.teacher.records[self.view.system.name]
            yield {
                "NameEmailID": STAFF_NAME + order,
                "NameID": STAFF_NAME + order,
                "EmailAddress": row.teacher.email,
                "Rank": 1,
            }

    def _phones(self) -> Iterable[Json]:
        for student in self.view.students:
            if student.values["phone"]:
                yield {"NamePhoneID": student.record.order, "NameID": self._name_id(student),
                       "PhoneNumber": student.values["phone"], "Rank": 1,
                       "ModifiedTime": student.record.modified}  # fmt: skip

    def _name_addresses(self) -> Iterable[Json]:
        for student in self.view.students:
            for offset, mailing in ((0, False), (1, True)):
                yield {"NameAddressID": student.record.order * 2 + offset, "NameID": self._name_id(student),
                       "AddressID": student.record.order * 2 + offset, "IsMailing": mailing, "IsPhysical": not mailing,
                       "ModifiedTime": student.record.modified}  # fmt: skip

    def _addresses(self) -> Iterable[Json]:
        for student in self.view.students:
            for offset, what in ((0, "home"), (1, "mailing")):
                values = student.values
                yield {"AddressID": student.record.order * 2 + offset, "StreetNumberAndName": values[f"{what}_street"],
                       "City": values[f"{what}_city"], "State": values[f"{what}_state"],
                       "ZipCode": values[f"{what}_postal_code"],
                       "ModifiedTime": student.record.modified}  # fmt: skip

    def _users(self) -> Iterable[Json]:
        for student in self.view.students:
            yield {"UserID": student.record.order, "NameID": self._name_id(student),
                   "Username": student.values["username"], "IsActive": student.latest.status == "active",
                   "ModifiedTime": student.record.modified}  # fmt: skip
        for row in self.view.staff:
            order = row.teacher.records[self.view.system.name]
            yield {"UserID": STAFF_NAME + order, "NameID": STAFF_NAME + order,
                   "Username": row.teacher.email.partition("@")[0], "IsActive": True}  # fmt: skip

    # --- enrollments -------------------------------------------------------------------------------------------------

    def _entries(self, year: int) -> Iterable[Json]:
        for stint, student in self.view.stints(year):
            yield {
                "EntryWithdrawalID": self._id("stint", stint.order), "StudentID": int(student.sis_id),
                "EntityID": self._entity_id(stint.school), "SchoolID": self._school_id(stint.school),
                "SchoolYearID": school_year_id(year), "StartDate": stint.entry, "EndDate": self._end(stint.exit),
                "EntryCodeID": _code_id(ENTRY_CODES, stint.entry_code),
                "WithdrawalCodeID": _code_id(WITHDRAWAL_CODES, stint.exit_code), "WithdrawalDate": stint.exit,
                "IsDefaultEntity": stint is student.stint_in(year), "StudentTypeID": 1,
                "ModifiedTime": max(stint.modified, student.record.modified),
            }  # fmt: skip

    def _student_years(self, year: int) -> Iterable[Json]:
        for student in self.view.students:
            last = student.stint_in(year)
            for stint in student.stints:
                if last is not None and stint.year == year and _shown(stint, last, student.stints):
                    current = stint is student.latest
                    grade = student.values["grade_level"] if current else stint.grade
                    yield {
                        "StudentEntityYearID": self._id("stint", stint.order), "StudentID": int(student.sis_id),
                        "EntityID": self._entity_id(stint.school), "SchoolYearID": school_year_id(year),
                        "Grade": ceds_grade(grade), "HomeroomID": None, "IsActive": stint.status == "active",
                        "IsDefaultEntity": stint is last, "WithdrawalDate": stint.exit,
                        "ModifiedTime": max(stint.modified, student.record.modified),
                    }  # fmt: skip

    # --- scheduling --------------------------------------------------------------------------------------------------

    def _sections_in(self, year: int) -> list[Section]:
        return [section for section in self.view.sections if section.year == year]

    def _courses(self, year: int) -> Iterable[Json]:
        for course in self.view.courses:
            yield {"CourseID": self._id("course", course.order), "CourseCode": course.code, "Description": course.title,
                   "EntityID": DISTRICT_ENTITY, "SchoolYearID": school_year_id(year), "SubjectID": None,
                   "DepartmentID": None, "IsActive": True}  # fmt: skip

    def _sections(self, year: int) -> Iterable[Json]:
        for section in self._sections_in(year):
            yield {"SectionID": self._id("section", section.order), "Code": section.code,
                   "CourseID": self._id("course", section.course.order), "EntityID": self._entity_id(section.school),
                   "SchoolYearID": school_year_id(year), "IsActive": True,
                   "SectionLengthID": LENGTHS.index(section.term) + 1,
                   "EffectiveTeacherStaffID": self._teacher(section)}  # fmt: skip

    def _teacher(self, section: Section) -> int:
        return self._id("staff", self.view.world.population.teachers[section.teacher].records[self.view.system.name])

    def _length_subsets(self, year: int) -> Iterable[Json]:
        for position, code in enumerate(LENGTHS, start=1):
            span = term(year, code)
            yield {"SectionLengthSubsetID": school_year_id(year) * 10 + position, "SectionLengthID": position, "Code": code,
                   "SchoolYearID": school_year_id(year), "StartDate": span.begin, "EndDate": self._end(span.end)}  # fmt: skip

    def _meets(self, year: int) -> Iterable[Json]:
        for section in self._sections_in(year):
            span = term(section.year, section.term)
            yield {"MeetID": self._id("meet", section.order), "SectionID": self._id("section", section.order),
                   "StartDate": span.begin, "EndDate": self._end(span.end), "RoomID": section.room,
                   "EntityID": self._entity_id(section.school)}  # fmt: skip

    def _staff_meets(self, year: int) -> Iterable[Json]:
        for section in self._sections_in(year):
            yield {"StaffMeetID": self._id("meet", section.order), "MeetID": self._id("meet", section.order),
                   "SectionID": self._id("section", section.order), "StaffID": self._teacher(section),
                   "IsPrimary": True}  # fmt: skip

    def _student_sections(self, year: int) -> Iterable[Json]:
        for row in self.view.seats:
            if row.seat.year == year:
                ended = row.dropped or year < self.view.world.year
                yield {"StudentSectionID": int(row.sis_id), "StudentID": int(row.student.sis_id),
                       "SectionID": self._id("section", row.seat.section), "StartDate": row.begin,
                       "EndDate": self._end(row.end) if ended else None, "Status": "Dropped" if row.dropped else "Active",
                       "StatusCode": "D" if row.dropped else "A", "EnrollmentStatusCode": "D" if row.dropped else "A",
                       "IsActiveAsOfDate": not ended, "ModifiedTime": row.modified}  # fmt: skip

    # --- staff -------------------------------------------------------------------------------------------------------

    def _staff(self) -> Iterable[Json]:
        for row in self.view.staff:
            yield {"StaffID": int(row.sis_id), "NameID": STAFF_NAME + row.teacher.records[self.view.system.name],
                   "StaffNumber": row.teacher.local_id, "IsActiveForDistrict": True}  # fmt: skip

    def _staff_years(self, year: int) -> Iterable[Json]:
        for row in self.view.staff:
            for school in row.schools:
                yield {"StaffEntityYearID": int(row.sis_id) * 1000 + school.order, "StaffID": int(row.sis_id),
                       "EntityID": self._entity_id(school.number), "SchoolYearID": school_year_id(year),
                       "IsTeacher": not row.teacher.principal, "IsActive": True,
                       "TeacherNumber": row.teacher.local_id}  # fmt: skip


def _shown(stint: Stint, last: Stint, stints: tuple[Stint, ...]) -> bool:
    """One row per student, entity and year: of several enrollments at one school the last."""
    later = [other for other in stints if other.school == stint.school and other.year == stint.year]
    return stint is last or stint is later[-1]


def _last_name(student: StudentRow) -> str | None:
    return None if student.record.bad == NO_LAST_NAME else student.values["last_name"]


def _grade_id(grade: int) -> int:
    return GRADES.index(grade) + 1


def _code_id(codes: tuple[str, ...], code: str | None) -> int | None:
    return codes.index(code) + 1 if code in codes else None


def _codes(name: str, codes: tuple[str, ...]) -> Iterable[Json]:
    for position, code in enumerate(codes, start=1):
        yield {f"{name}ID": position, "Code": code, "Description": f"{name} {code}"}


def _written(row: dict[str, Any]) -> Json:
    """Dates as .NET writes them: midnight, no zone."""
    return {
        name: value.strftime("%Y-%m-%dT%H:%M:%S")
        if isinstance(value, datetime)
        else f"{value.isoformat()}T00:00:00" if isinstance(value, date) else value
        for name, value in row.items()
    }  # fmt: skip
