"""Skyward SMS 2.0: bare arrays, cursors in Link headers, .NET's empty date, a graduation year where others have a grade.
Staff, courses, sections and enrollments as flat collections are no more than likely; an option takes them away."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Sequence
from datetime import date, timedelta
from typing import Any
from urllib.parse import urlencode

from werkzeug.routing import Rule
from werkzeug.wrappers import Response

from sis_pipeline.sandbox.dialects.api import Api, BadParameter, Call, Json, json_answer
from sis_pipeline.sandbox.dialects.powerschool_tables import RACE_LETTERS
from sis_pipeline.sandbox.filling import IMPOSSIBLE_BIRTH_DATE, NO_LAST_NAME
from sis_pipeline.sandbox.school_calendar import term
from sis_pipeline.sandbox.things import Course, School, Section, ceds_grade
from sis_pipeline.sandbox.views import SeatRow, StaffRow, StudentRow, View

NO_DATE = "0001-01-01T00:00:00"
CENSUS = {"SchoolId": "999", "SchoolName": "Census", "GradeLow": None, "GradeHigh": None}


class SmsApi(Api):
    """An SMS 2.0 API server.

    Options: `flat_collections` (`/v1/staff`, `/v1/courses`, `/v1/sections`, `/v1/enrollments`, `/v1/guardians` without a
    student; default true), `grants` (tuple of `client_credentials`, `password`; default both), `default_limit` (1,000),
    `page_cap` (10,000), `census` (list an entity that is no school), `retry_after`, `end_dates`.
    """

    token_route = "/APIfernhollowSTU/token"  # noqa: S105 - a path
    default_client_auth = "post"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._written: dict[tuple[int, str], list[Json]] = {}

    @property
    def base_url(self) -> str:
        return f"{self.root}/APIfernhollowSTU"

    def settings(self) -> Json:
        return {**super().settings(), "api_flavor": "sms"}

    def routes(self) -> list[Rule]:
        names = ["schools", "students"]
        if self.option("flat_collections", default=True):
            names += ["staff", "courses", "sections", "enrollments"]
        prefix = "/APIfernhollowSTU/v1"
        lists = [
            Rule(f"{prefix}/{name}", endpoint="collection", methods=["GET"], defaults={"name": name}) for name in names
        ]
        return [
            *lists,
            Rule(f"{prefix}/schools/<id>", endpoint="school", methods=["GET"]),
            Rule(f"{prefix}/students/<id>", endpoint="student", methods=["GET"]),
            Rule(f"{prefix}/schools/<id>/students", endpoint="school_students", methods=["GET"]),
            Rule(f"{prefix}/students/<id>/enrollments", endpoint="student_enrollments", methods=["GET"]),
            Rule(f"{prefix}/names/<id>", endpoint="student", methods=["GET"]),
            Rule(f"{prefix}/guardians", endpoint="guardians", methods=["GET"]),
        ]

    # --- tokens ------------------------------------------------------------------------------------------------------

    def token(self, call: Call) -> Response:
        form = call.request.form
        grant = form.get("grant_type")
        if grant not in self.option("grants", ("client_credentials", "password")):
            return json_answer({"error": "unsupported_grant_type"}, 400)
        by_password = form.get("username") == self.client_id and form.get("password") == self.client_secret
        proven = by_password if grant == "password" else self.authenticated(call.request)
        if not proven:
            return json_answer({"error": "invalid_grant" if grant == "password" else "invalid_client"}, 400)
        token = self.tokens.issue()
        return json_answer(
            {"access_token": token.value, "token_type": "bearer", "expires_in": self.tokens.seconds_left(token)}
        )

    # --- collections -------------------------------------------------------------------------------------------------

    def collection(self, call: Call, name: str) -> Response:
        return self._array(call, self._all(call.view, name))

    def school(self, call: Call, id: str) -> Response:  # noqa: A002 - the vendor's name in the path
        return self._one(self._all(call.view, "schools"), "SchoolId", id)

    def student(self, call: Call, id: str) -> Response:  # noqa: A002 - the vendor's name in the path
        return self._one(self._all(call.view, "students"), "NameId", id)

    def school_students(self, call: Call, id: str) -> Response:  # noqa: A002 - the vendor's name in the path
        return self._array(call, [row for row in self._all(call.view, "students") if id in row["SchoolIds"]])

    def student_enrollments(self, call: Call, id: str) -> Response:  # noqa: A002 - the vendor's name in the path
        return self._array(call, [row for row in self._all(call.view, "enrollments") if str(row["NameId"]) == id])

    def guardians(self, call: Call) -> Response:
        wanted = call.request.args.get("studentNameId")
        rows = self._all(call.view, "guardians")
        if wanted is None:
            return (
                self._array(call, rows)
                if self.option("flat_collections", default=True)
                else self.bad_parameter("studentNameId")
            )
        children = [row for row in rows if any(str(child["StudentNameId"]) == wanted for child in row["Students"])]
        return self._array(call, children)

    def _one(self, rows: Sequence[Json], key: str, value: str) -> Response:
        found = next((row for row in rows if str(row[key]) == value), None)
        return json_answer(found) if found else self.not_found()

    def _all(self, view: View, name: str) -> list[Json]:
        key = (view.day, name)
        if key not in self._written:
            words = Words(view, end=self._end)
            made: dict[str, Callable[[], Iterable[Json]]] = {
                "schools": lambda: [
                    *map(words.school, view.schools),
                    *([CENSUS] if self.option("census", default=False) else []),
                ],
                "students": lambda: map(words.student, view.students),
                "staff": lambda: map(words.staff, view.staff),
                "courses": lambda: map(words.course, view.courses),
                "sections": lambda: map(words.section, view.sections),
                "enrollments": lambda: map(words.enrollment, view.seats),
                "guardians": words.guardians,
            }
            self._written[key] = list(made[name]())
        return self._written[key]

    def _end(self, day: date) -> date:
        return day - timedelta(days=1) if self.option("end_dates", "exclusive") == "inclusive" else day

    def _array(self, call: Call, rows: Sequence[Json]) -> Response:
        limit = call.integer("paging.limit", self.option("default_limit", 1_000))
        if limit < 1:
            raise BadParameter("paging.limit")
        limit = min(limit, self.option("page_cap", 10_000))
        offset = _position(call.request.args.get("paging.cursor", ""))
        page = call.page(rows, offset, limit)
        headers = {}
        if offset + limit < call.total(len(rows)):
            query = urlencode({"limit": limit, "cursor": _cursor(offset + limit)})
            origin = self.root.rpartition("/")[0]
            headers["Link"] = f'<{origin}/{self.system.name}{self._path(call)}?{query}>; rel="next"'
        return json_answer(list(page), headers=headers)

    @staticmethod
    def _path(call: Call) -> str:
        return call.path.partition("?")[0]

    # --- failures ----------------------------------------------------------------------------------------------------

    def unauthorized(self) -> Response:
        return json_answer({"Message": "Authorization has been denied for this request."}, 401)

    def too_many(self, wait: float) -> Response:
        headers = {"Retry-After": str(int(wait) + 1)} if self.option("retry_after", default=False) else None
        return json_answer({"Message": "Too many requests."}, 429, headers)

    def not_found(self) -> Response:
        return json_answer({"Message": "No HTTP resource was found that matches the request."}, 404)

    def bad_parameter(self, name: str) -> Response:
        return json_answer({"Message": f"The request is invalid: {name}."}, 400)


def _cursor(offset: int) -> str:
    return base64.urlsafe_b64encode(str(offset).encode()).decode().rstrip("=")


def _position(cursor: str) -> int:
    """Raises BadParameter for a cursor that we did not give."""
    if not cursor:
        return 0
    try:
        return int(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error):
        raise BadParameter("paging.cursor") from None


class Words:
    """Writes a view as SMS 2.0 objects."""

    def __init__(self, view: View, *, end: Callable[[date], date]) -> None:
        self.view = view
        self._end = end

    def _number(self, kind: str, order: int) -> int:
        return int(self.view.system.sis_id(kind, order))

    def school(self, school: School) -> Json:
        return {
            "SchoolId": school.number, "SchoolName": school.name, "GradeLow": ceds_grade(school.low),
            "GradeHigh": ceds_grade(school.high), "StreetAddress": school.street, "City": school.city, "State": "NJ",
            "ZipCode": school.postal_code,
        }  # fmt: skip

    def student(self, student: StudentRow) -> Json:
        values, bad = student.values, student.record.bad
        birth = "2014-02-30" if bad == IMPOSSIBLE_BIRTH_DATE else values["birth_date"].isoformat()
        phones = _phones(("Home", values["phone"]), ("Cellular", values["mobile_phone"]))
        return {
            "NameId": int(student.sis_id), "FirstName": values["first_name"], "MiddleName": values["middle_name"],
            "LastName": None if bad == NO_LAST_NAME else values["last_name"], "DisplayId": values["local_id"],
            "StateId": values["ssid"], "GradYr": self.view.world.year + 13 - values["grade_level"],
            "Gender": values["sex"][0].upper(), "DateOfBirth": f"{birth}T00:00:00",
            "HispanicLatinoEthnicity": values["hispanic_or_latino"],
            "FederalRace": "".join(letter for race, letter in RACE_LETTERS.items() if values[race]),
            "SchoolEmail": values["email"], "Email": None, "DefaultSchoolId": student.latest.school,
            "SchoolIds": [student.latest.school], "FoodServiceKeyPadNumber": 40_000 + student.record.order,
            "StreetAddress": values["home_street"], "City": values["home_city"], "State": values["home_state"],
            "ZipCode": values["home_postal_code"], **phones,
        }  # fmt: skip

    def staff(self, row: StaffRow) -> Json:
        teacher = row.teacher
        return {
            "NameId": int(row.sis_id), "FirstName": teacher.first_name, "MiddleName": None, "LastName": teacher.last_name,
            "DisplayId": teacher.local_id, "StateId": teacher.state_id, "SchoolEmail": teacher.email,
            "IsTeacher": not teacher.principal, "DefaultSchoolId": row.schools[0].number,
            "SchoolIds": [school.number for school in row.schools],
        }  # fmt: skip

    def course(self, course: Course) -> Json:
        return {
            "CourseId": self._number("course", course.order), "CourseCode": course.code, "CourseName": course.title,
            "Subject": course.subject or None,
        }  # fmt: skip

    def section(self, section: Section) -> Json:
        span = term(section.year, section.term)
        teacher = self.view.world.population.teachers[section.teacher].records[self.view.system.name]
        return {
            "SectionId": self._number("section", section.order), "CourseId": self._number("course", section.course.order),
            "SectionCode": section.code, "SchoolId": section.school, "StaffNameId": self._number("staff", teacher),
            "Room": section.room, "Period": section.period, "StartDate": _moment(span.begin),
            "EndDate": _moment(self._end(span.end)),
        }  # fmt: skip

    def enrollment(self, row: SeatRow) -> Json:
        section = self.view.world.population.sections.get((self.view.system.name, row.seat.section))
        return {
            "EnrollmentId": int(row.sis_id), "CourseId": self._number("course", section.course.order) if section else None,
            "SectionId": self._number("section", row.seat.section), "SchoolId": row.school,
            "NameId": int(row.student.sis_id), "EnrType": "S", "EnrStatus": "D" if row.dropped else "A",
            "StartDate": _moment(row.begin), "EndDate": _moment(self._end(row.end)) if row.dropped else NO_DATE,
        }  # fmt: skip

    def guardians(self) -> Iterable[Json]:
        children: dict[int, list[StudentRow]] = {}
        for student in self.view.students:
            children.setdefault(student.person.family, []).append(student)
        for family in sorted(children):
            home = self.view.world.population.families[family]
            yield {
                "GuardianNameId": self._number("guardian", family + 1), "FirstName": home.guardian_first,
                "LastName": home.last_name, "Email": home.guardian_email, **_phones(("Home", home.phone or None)),
                "FamilyOrderNumber": 1,
                "Students": [
                    {"StudentNameId": int(child.sis_id), "RelationshipDesc": "Parent"} for child in children[family]
                ],
            }  # fmt: skip


def _phones(*numbers: tuple[str, str | None]) -> Json:
    """PhoneNumber and PhoneNumberType, PhoneNumber2 and PhoneNumber2Type, PhoneNumber3 and PhoneNumber3Type."""
    known = [pair for pair in numbers if pair[1]]
    written: Json = {}
    for position in range(3):
        name = f"PhoneNumber{position + 1 if position else ''}"
        kind, number = known[position] if position < len(known) else (None, None)
        written |= {name: number, f"{name}Type": kind}
    return written


def _moment(day: date) -> str:
    """A date as .NET writes it: midnight, no zone."""
    return f"{day.isoformat()}T00:00:00"
