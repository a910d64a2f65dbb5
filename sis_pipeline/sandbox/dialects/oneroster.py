"""OneRoster REST 1.1 and 1.2 as vendors serve it: clamped limits, missing totals and links, tombstones, odd enumerations.
Infinite Campus and Skyward build on it in their own modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlencode, urlsplit

from werkzeug.routing import Rule
from werkzeug.wrappers import Response

from sis_pipeline.sandbox.dialects.api import Api, BadParameter, Call, Json, json_answer
from sis_pipeline.sandbox.filling import IMPOSSIBLE_BIRTH_DATE, NO_LAST_NAME
from sis_pipeline.sandbox.school_calendar import stamp, term, terms
from sis_pipeline.sandbox.things import Course, School, Section, Stint, ceds_grade
from sis_pipeline.sandbox.views import SeatRow, StaffRow, StudentRow, View

IMPOSSIBLE_DATE = "2014-02-30"
COLLECTIONS = {
    "orgs": "orgs", "schools": "orgs", "academicSessions": "academicSessions", "terms": "academicSessions",
    "gradingPeriods": "academicSessions", "courses": "courses", "classes": "classes", "users": "users",
    "students": "users", "teachers": "users", "enrollments": "enrollments", "demographics": "demographics",
}  # fmt: skip
"""Collection path -> key of its envelope."""
RACE_FIELDS = {
    "american_indian_or_alaska_native": "americanIndianOrAlaskaNative",
    "asian": "asian",
    "black_or_african_american": "blackOrAfricanAmerican",
    "native_hawaiian_or_other_pacific_islander": "nativeHawaiianOrOtherPacificIslander",
    "white": "white",
    "hispanic_or_latino": "hispanicOrLatinoEthnicity",
}


class Entry(NamedTuple):
    """One object of a collection; `make` writes it out, which is left until its page is asked for."""

    sourced_id: str
    status: str
    modified: datetime
    make: Callable[[], Json]


class Words:
    """Writes a view's rows as OneRoster objects of one version; `href` turns (collection, id) into a link or None,
    `option` looks up how the vendor bends the standard (name, default)."""

    def __init__(
        self,
        view: View,
        version: str,
        href: Callable[[str, str], str | None],
        option: Callable[..., Any],
    ) -> None:
        self.option = option
        self.view = view
        self.system = view.system
        self.version = version
        self._href = href
        self._numbers = {school.number: school.order for school in view.schools}
        self._first = stamp(date(view.world.year, 7, 1))

    def entries(self, collection: str) -> list[Entry]:
        made: dict[str, Callable[[], Iterable[Entry]]] = {
            "orgs": self._orgs,
            "schools": self._schools,
            "academicSessions": self._sessions,
            "terms": lambda: (entry for entry in self._sessions() if entry.make()["type"] != "schoolYear"),
            "gradingPeriods": lambda: (),
            "courses": lambda: map(self._course, self.view.courses),
            "classes": lambda: map(self._class, self.view.sections),
            "users": lambda: [*self._students(), *self._teachers(), *self._guardians()],
            "students": self._students,
            "teachers": self._teachers,
            "enrollments": lambda: [*map(self._seat, self.view.seats), *map(self._teaching, self.view.sections)],
            "demographics": lambda: map(self._demographics, self.view.students),
        }
        return list(made[collection]())

    # --- pieces ------------------------------------------------------------------------------------------------------

    def _ref(self, kind: str, collection: str, sourced_id: str) -> Json:
        href = self._href(collection, sourced_id)
        return {**({"href": href} if href else {}), "sourcedId": sourced_id, "type": kind}

    def _org_ref(self, number: str) -> Json:
        return self._ref("org", "orgs", self.system.sis_id("school", self._numbers[number]))

    @property
    def district_id(self) -> str:
        return self.system.sis_id("district", 1)

    def session_id(self, year: int, code: str) -> str:
        return self.system.sis_id("session", (year - 2000) * 3 + ["Y", "S1", "S2"].index(code))

    def _flag(self, *, value: bool) -> str | bool:
        return value if self.option("booleans", "text") == "real" else str(value).lower()

    def end(self, day: date) -> str:
        """An end date: excluded by the standard, included at some vendors."""
        included = self.option("end_dates", "exclusive") == "inclusive"
        return (day - timedelta(days=1) if included else day).isoformat()

    def _head(self, entry_id: str, status: str, modified: datetime) -> Json:
        return {"sourcedId": entry_id, "status": status, "dateLastModified": instant(modified)}

    def _entry(
        self, sourced_id: str, modified: datetime, rest: Callable[[], Json], *, tombstone: bool = False
    ) -> Entry:
        status = "tobedeleted" if tombstone else "active"
        return Entry(sourced_id, status, modified, lambda: {**self._head(sourced_id, status, modified), **rest()})

    # --- orgs and sessions -------------------------------------------------------------------------------------------

    def _orgs(self) -> Iterable[Entry]:
        schools = list(self._schools())
        children = [self._org_ref(school.number) for school in self.view.schools]
        about = {
            "name": "Fernhollow District", "type": "district", "identifier": str(self.view.world.district_number),
            "parent": None, "children": children,
        }  # fmt: skip
        return [self._entry(self.district_id, self._first, lambda: about), *schools]

    def _schools(self) -> Iterable[Entry]:
        for school in self.view.schools:
            yield self._entry(
                self.system.sis_id("school", school.order), self._first, partial(self._school, school)
            )  # fmt: skip

    def _school(self, school: School) -> Json:
        return {
            "name": school.name, "type": "school", "identifier": school.number,
            "parent": self._ref("org", "orgs", self.district_id), "children": [],
        }  # fmt: skip

    def _sessions(self) -> Iterable[Entry]:
        for year in self.view.years:
            whole, *semesters = terms(year)
            for span in (whole, *semesters):
                about = {
                    "title": f"School Year {year}-{year + 1}" if span is whole else f"{span.title} {year}-{year + 1}",
                    "startDate": span.begin.isoformat(), "endDate": self.end(span.end),
                    "type": "schoolYear" if span is whole else "semester", "schoolYear": str(year + 1),
                    "parent": None if span is whole else self._session_ref(year, "Y"),
                    "children": [self._session_ref(year, other.code) for other in semesters] if span is whole else [],
                }  # fmt: skip
                yield self._entry(self.session_id(year, span.code), self._first, partial(dict, about))

    def _session_ref(self, year: int, code: str) -> Json:
        return self._ref("academicSession", "academicSessions", self.session_id(year, code))

    # --- courses and classes -----------------------------------------------------------------------------------------

    def _course(self, course: Course) -> Entry:
        return self._entry(self.system.sis_id("course", course.order), self._first, lambda: {
            "title": course.title, "courseCode": course.code, "grades": [ceds_grade(grade) for grade in course.grades],
            "subjects": [course.subject] if course.subject else [],
            "subjectCodes": [course.subject_code] if course.subject_code else [],
            "org": self._ref("org", "orgs", self.district_id),
        })  # fmt: skip

    def _class(self, section: Section) -> Entry:
        kind = "homeroom" if section.homeroom else "scheduled"
        if self.option("ext_values", default=False) and section.course.code.startswith("CS"):
            kind = "ext:lab"
        course = section.course
        return self._entry(self.system.sis_id("section", section.order), self._first, lambda: {
            "title": f"{course.title} - {section.code}", "classCode": section.code, "classType": kind,
            "location": section.room, "grades": [ceds_grade(grade) for grade in course.grades],
            "subjects": [course.subject] if course.subject else [],
            "subjectCodes": [course.subject_code] if course.subject_code else [],
            "course": self._ref("course", "courses", self.system.sis_id("course", course.order)),
            "school": self._org_ref(section.school),
            "terms": [self._session_ref(section.year, section.term)], "periods": [section.period],
        })  # fmt: skip

    # --- people ------------------------------------------------------------------------------------------------------

    def _students(self) -> Iterable[Entry]:
        for student in self.view.students:
            yield self._entry(
                student.sis_id, student.record.modified, partial(self._student, student), tombstone=student.tombstone
            )

    def _student(self, student: StudentRow) -> Json:
        values = student.values
        grade = ceds_grade(values["grade_level"])
        enrolled = [stint for stint in student.stints if stint.year == self.view.world.year and stint.exit is None]
        user: Json = {
            "enabledUser": self._flag(value=bool(enrolled)), "username": values["username"],
            "userIds": [{"type": "stateID", "identifier": values["ssid"]}] if values["ssid"] else [],
            "givenName": values["first_name"], "familyName": _family_name(student), "middleName": values["middle_name"],
            "identifier": values["local_id"], "email": values["email"], "sms": values["mobile_phone"],
            "phone": values["phone"], "grades": grade if self.option("grades", "list") == "text" else [grade],
            "agents": self._agents(student),
        }  # fmt: skip
        if self.version == "1.1":
            user |= {
                "role": "student",
                "orgs": [self._org_ref(stint.school) for stint in enrolled] or [self._district_ref()],
            }
        else:
            user |= {
                "userMasterIdentifier": values["ssid"], "preferredFirstName": values["preferred_first_name"],
                "pronouns": values["pronouns"], "roles": self._student_roles(student),
            }  # fmt: skip
            if enrolled:
                user["primaryOrg"] = self._org_ref(enrolled[-1].school)
        if self.option("passwords", self.version == "1.1"):
            user["password"] = f"Sandbox-Passw0rd-{student.record.order}"
        return self._tidied(user)

    def _district_ref(self) -> Json:
        return self._ref("org", "orgs", self.district_id)

    def _student_roles(self, student: StudentRow) -> list[Json]:
        """The enrollment that runs, and ended ones where this vendor keeps them."""
        dated = self.option("role_dates", default=True)
        past_shown = dated and self.system.dropping == "dated"
        shown = [stint for stint in student.stints if stint.exit is None or stint is student.latest or past_shown]
        return [self._student_role(stint, dated=dated, last=stint is shown[-1]) for stint in shown]

    def _student_role(self, stint: Stint, *, dated: bool, last: bool) -> Json:
        role: Json = {
            "roleType": "primary" if last else "secondary", "role": "student", "org": self._org_ref(stint.school),
        }  # fmt: skip
        if dated:
            role["beginDate"] = stint.entry.isoformat()
            if stint.exit is not None:
                role["endDate"] = self.end(stint.exit)
        return role

    def _agents(self, student: StudentRow) -> list[Json]:
        if not self._has_guardians(student):
            return []
        return [self._ref("user", "users", self.system.sis_id("guardian", student.person.family + 1))]

    def _has_guardians(self, student: StudentRow) -> bool:
        return self.option("guardians", self.system.speech.contacts) and not student.tombstone

    def _guardians(self) -> Iterable[Entry]:
        children: dict[int, list[StudentRow]] = {}
        for student in self.view.students:
            if self._has_guardians(student):
                children.setdefault(student.person.family, []).append(student)
        for family in sorted(children):
            yield self._entry(
                self.system.sis_id("guardian", family + 1), self.view.families_modified[family],
                partial(self._guardian, family, children[family]),
            )  # fmt: skip

    def _guardian(self, family: int, children: Sequence[StudentRow]) -> Json:
        home = self.view.world.population.families[family]
        user: Json = {
            "enabledUser": self._flag(value=True), "username": home.guardian_email, "userIds": [], "givenName": home.guardian_first,
            "familyName": home.last_name, "middleName": None, "identifier": None, "email": home.guardian_email, "sms": None,
            "phone": home.phone or None, "grades": [],
            "agents": [self._ref("user", "users", child.sis_id) for child in children],
        }  # fmt: skip
        schools = sorted({child.latest.school for child in children})
        return self._tidied({**user, **self._membership("guardian", schools)})

    def _teachers(self) -> Iterable[Entry]:
        for row in self.view.staff:
            yield self._entry(row.sis_id, self._first, partial(self._teacher, row))

    def _teacher(self, row: StaffRow) -> Json:
        teacher = row.teacher
        role = ("principal" if self.version == "1.2" else "administrator") if teacher.principal else "teacher"
        user: Json = {
            "enabledUser": self._flag(value=True), "username": teacher.email.partition("@")[0],
            "userIds": [{"type": "stateID", "identifier": teacher.state_id}], "givenName": teacher.first_name,
            "familyName": teacher.last_name, "middleName": None, "identifier": teacher.local_id, "email": teacher.email,
            "sms": None, "phone": None, "grades": [], "agents": [],
        }  # fmt: skip
        return self._tidied({**user, **self._membership(role, [school.number for school in row.schools])})

    def _membership(self, role: str, schools: Sequence[str]) -> Json:
        orgs = [self._org_ref(number) for number in schools]
        if self.version == "1.1":
            return {"role": role, "orgs": orgs}
        return {"roles": [{"roleType": "primary", "role": role, "org": org} for org in orgs]}

    def _tidied(self, user: Json) -> Json:
        """How this vendor writes what it does not know: `null`, an empty text, or not at all."""
        how = self.option("missing", "null" if self.version == "1.1" else "omit")
        if how == "omit":
            return {name: value for name, value in user.items() if value is not None}
        return {name: "" if value is None and how == "empty" else value for name, value in user.items()}

    def _demographics(self, student: StudentRow) -> Entry:
        values = student.values
        birth = IMPOSSIBLE_DATE if student.record.bad == IMPOSSIBLE_BIRTH_DATE else values["birth_date"].isoformat()
        odd = self.option("odd_birth_date_key", default=False) and student.record.order % 2 == 0
        return self._entry(student.sis_id, student.record.modified, lambda: {
            "birthdate" if odd else "birthDate": birth, "sex": values["sex"],
            **{name: self._flag(value=values[column]) for column, name in RACE_FIELDS.items()},
        }, tombstone=student.tombstone)  # fmt: skip

    # --- enrollments -------------------------------------------------------------------------------------------------

    def _seat(self, row: SeatRow) -> Entry:
        return self._entry(row.sis_id, row.modified, lambda: {
            "user": self._ref("user", "users", row.student.sis_id),
            "class": self._ref("class", "classes", self.system.sis_id("section", row.seat.section)),
            "school": self._org_ref(row.school), "role": "student",
            "primary": self._flag(value=False) if self.option("student_primary", "false") == "false" else None,
            "beginDate": row.begin.isoformat(), "endDate": self.end(row.end),
        }, tombstone=row.tombstone)  # fmt: skip

    def _teaching(self, section: Section) -> Entry:
        span = term(section.year, section.term)
        teacher = self.view.world.population.teachers[section.teacher].records[self.system.name]
        return self._entry(self.system.sis_id("teaching", section.order), self._first, lambda: {
            "user": self._ref("user", "users", self.system.sis_id("staff", teacher)),
            "class": self._ref("class", "classes", self.system.sis_id("section", section.order)),
            "school": self._org_ref(section.school), "role": "teacher", "primary": self._flag(value=True),
            "beginDate": span.begin.isoformat(), "endDate": self.end(span.end),
        })  # fmt: skip


def _family_name(student: StudentRow) -> str:
    return "" if student.record.bad == NO_LAST_NAME else student.values["last_name"]


def instant(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class OneRosterApi(Api):
    """A OneRoster REST server.

    Options: `default_limit` (100), `page_cap` (none; larger limits are clamped silently), `totals` (X-Total-Count,
    default true), `links` (`full`, `none`, `relative`, `bare`, `malformed`), `booleans` (`text`, `real`), `hrefs`
    (`absolute`, `relative`, `none`), `ext_values`, `end_dates` (`exclusive`, `inclusive`), `missing` (`null`, `omit`,
    `empty`), `filters` (`honoured`, `ignored`, `refused`), `scopes` (enforced, default true), `refuse_scopes` (token
    requests naming one of these get `invalid_scope`), `demographics`, `guardians`, `passwords`, `grades` (`list`,
    `text`), `role_dates`, `retry_after` (send it with a 429).
    """

    token_route = "/oauth/token"  # noqa: S105 - a path
    prefix: ClassVar[dict[str, str]] = {"1.1": "/ims/oneroster/v1p1", "1.2": "/ims/oneroster/rostering/v1p2"}
    scopes_enforced = True

    def __init__(self, *args: Any) -> None:
        self.version = "1.1" if args[0].dialect == "oneroster_1.1" else "1.2"
        super().__init__(*args)
        self._entries: dict[tuple[int, str], list[Entry]] = {}

    @property
    def path_prefix(self) -> str:
        return self.prefix[self.version]

    @property
    def base_url(self) -> str:
        return self.root + self.path_prefix

    def settings(self) -> Json:
        return {**super().settings(), "version": self.version}

    def routes(self) -> list[Rule]:
        return [
            Rule(f"{self.path_prefix}/{name}", endpoint="collection", methods=["GET"], defaults={"name": name})
            for name in COLLECTIONS
        ]

    # --- collections -------------------------------------------------------------------------------------------------

    def collection(self, call: Call, name: str) -> Response:
        if not self._may_read(call, name):
            return self.failure(403, "forbidden", "The token's scope does not allow this")
        entries = self._filtered(call, self._all(call.view, name))
        limit = call.integer("limit", self.option("default_limit", 100))
        offset = call.integer("offset", 0)
        if limit < 1 or offset < 0:
            raise BadParameter("limit" if limit < 1 else "offset")
        limit = min(limit, self.option("page_cap", limit))
        entries = self._sorted(call, entries)
        page = call.page(entries, offset, limit)
        total = call.total(len(entries))
        fields = [field for text in call.request.args.getlist("fields") for field in text.split(",")]
        content = [_only(entry.make(), fields) for entry in page]
        return json_answer({COLLECTIONS[name]: content}, headers=self._paging(call, offset, limit, total))

    def _all(self, view: View, name: str) -> list[Entry]:
        key = (view.day, name)
        if key not in self._entries:
            self._entries[key] = Words(view, self.version, self._href, self.option).entries(name)
        return self._entries[key]

    def _href(self, collection: str, sourced_id: str) -> str | None:
        how = self.option("hrefs", "absolute")
        if how == "none":
            return None
        path = f"{self.path_prefix}/{collection}/{sourced_id}"
        return path if how == "relative" else self.root + path

    def _filtered(self, call: Call, entries: list[Entry]) -> list[Entry]:
        wanted, how = call.request.args.get("filter"), self.option("filters", "honoured")
        if not wanted or how == "ignored":
            return entries
        if how == "refused":
            raise BadParameter("filter")
        keep = _filter(wanted)
        return [entry for entry in entries if keep(entry)]

    def _sorted(self, call: Call, entries: list[Entry]) -> list[Entry]:
        field = call.request.args.get("sort")
        if not field:
            return entries
        descending = call.request.args.get("orderBy", "asc") == "desc"
        return sorted(entries, key=lambda entry: _field(entry, field), reverse=descending)

    # --- paging headers ----------------------------------------------------------------------------------------------

    def _paging(self, call: Call, offset: int, limit: int, total: int) -> dict[str, str]:
        headers = {"X-Total-Count": str(total)} if self.option("totals", default=True) else {}
        link = self._link(call, offset, limit, total)
        return {**headers, "Link": link} if link else headers

    def _link(self, call: Call, offset: int, limit: int, total: int) -> str | None:
        how = self.option("links", "full")
        if how == "none" or offset + limit >= total:
            return None
        following = self._page_url(call, offset + limit, limit, relative=how == "relative")
        if how == "bare":
            return f'{following}; rel="next"'
        if how == "malformed":
            following = following.replace("?", "?&", 1)
        last = self._page_url(call, (total - 1) // limit * limit, limit, relative=how == "relative")
        return f'<{following}>; rel="next", <{last}>; rel="last"'

    def _page_url(self, call: Call, offset: int, limit: int, *, relative: bool) -> str:
        rest = {name: value for name, value in call.request.args.items() if name not in {"limit", "offset"}}
        query = urlencode({"limit": limit, "offset": offset, **rest})
        path = call.request.path
        origin = self.root.removesuffix(urlsplit(self.root).path)
        return f"{path}?{query}" if relative else f"{origin}{path}?{query}"

    # --- tokens and scopes -------------------------------------------------------------------------------------------

    def _scope(self, name: str) -> str:
        return f"https://purl.imsglobal.org/spec/or/v1p{self.version[-1]}/scope/{name}.readonly"

    def _may_read(self, call: Call, name: str) -> bool:
        if name == "demographics" and not self.option("demographics", default=True):
            return False
        if not self.option("scopes", self.scopes_enforced) or call.token is None:
            return True
        needed = {"roster-demographics"} if name == "demographics" else {"roster-core", "roster"}
        return any(self._scope(scope) in call.token.scopes for scope in needed)

    def token(self, call: Call) -> Response:
        form = call.request.form
        if form.get("grant_type") != "client_credentials":
            return json_answer({"error": "unsupported_grant_type"}, 400)
        if not self.authenticated(call.request):
            return json_answer({"error": "invalid_client", "error_description": "Unknown client"}, 401)
        granted = self.granted(frozenset(form.get("scope", "").split()))
        if granted is None:
            return json_answer({"error": "invalid_scope", "error_description": "Unknown or unauthorised scope"}, 400)
        return self._token_answer(granted)

    def granted(self, asked: frozenset[str]) -> frozenset[str] | None:
        known = {self._scope(name) for name in ("roster-core", "roster", "roster-demographics")}
        known -= {self._scope(name) for name in self.option("refuse_scopes", ())}
        if asked - known and self.option("scopes", self.scopes_enforced):
            return None
        return asked or frozenset({self._scope("roster-core")})

    def _token_answer(self, granted: frozenset[str]) -> Response:
        token = self.tokens.issue(granted)
        return json_answer({
            "access_token": token.value, "token_type": "bearer", "expires_in": self.tokens.seconds_left(token),
            "scope": " ".join(sorted(granted)),
        })  # fmt: skip

    # --- failures ----------------------------------------------------------------------------------------------------

    def failure(self, status: int, minor: str, description: str, headers: dict[str, str] | None = None) -> Response:
        if self.version == "1.1":
            body: Json = {
                "imsx_codeMajor": "failure", "imsx_severity": "error", "imsx_description": description,
                "imsx_codeMinor": minor,
            }  # fmt: skip
        else:
            body = {
                "imsx_codeMajor": "failure", "imsx_severity": "error", "imsx_description": description,
                "imsx_CodeMinor": {"imsx_codeMinorField": [
                    {"imsx_codeMinorFieldName": "TargetEndSystem", "imsx_codeMinorFieldValue": minor}
                ]},
            }  # fmt: skip
        return json_answer(body, status, headers)

    def unauthorized(self) -> Response:
        return self.failure(401, "unauthorisedrequest", "The access token is missing, unknown or has expired")

    def too_many(self, wait: float) -> Response:
        headers = {"Retry-After": str(int(wait) + 1)} if self.option("retry_after", default=False) else None
        return self.failure(429, "server_busy", "Too many requests", headers)

    def not_found(self) -> Response:
        return self.failure(404, "unknownobject", "There is no such object")

    def bad_parameter(self, name: str) -> Response:
        minor = "invalid_filter_field" if name == "filter" else "invalid_selection_field"
        return self.failure(400, minor, f"The parameter {name} is not valid")


# --- the filter grammar ------------------------------------------------------------------------------------------

_CLAUSE = re.compile(r"^\s*([\w.]+)\s*(!=|>=|<=|=|>|<|~)\s*'([^']*)'\s*$")
_OPERATORS: dict[str, Callable[[str, str], bool]] = {
    "=": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
    "~": lambda left, right: right.casefold() in left.casefold(),
}


def _filter(text: str) -> Callable[[Entry], bool]:
    """`field op 'value'`, at most two clauses joined by AND or OR. Raises BadParameter."""
    parts = re.split(r" (AND|OR) ", text)
    clauses = [_CLAUSE.match(part) for part in parts[::2]]
    if len(clauses) > 2 or not all(clauses):
        raise BadParameter("filter")
    tests = [_test(*clause.groups()) for clause in clauses if clause]
    joined = any if parts[1:2] == ["OR"] else all
    return lambda entry: joined(test(entry) for test in tests)


def _test(field: str, operator: str, value: str) -> Callable[[Entry], bool]:
    compare = _OPERATORS[operator]
    if field == "dateLastModified":
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise BadParameter("filter") from None
        value = instant(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    return lambda entry: compare(_field(entry, field), value)


def _field(entry: Entry, field: str) -> str:
    known = {"sourcedId": entry.sourced_id, "status": entry.status, "dateLastModified": instant(entry.modified)}
    if field in known:
        return known[field]
    value: Any = entry.make()
    for step in field.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return "" if value is None else str(value)


def _only(content: Json, fields: list[str]) -> Json:
    return {name: value for name, value in content.items() if name in fields} if fields else content
