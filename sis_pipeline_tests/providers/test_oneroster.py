"""OneRoster REST: what each quirk of real servers becomes, which rows a school year has, and what follows from them."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest
from pydantic import ValidationError

from sis_pipeline.connect.contract import Answer, Request
from sis_pipeline.connect.errors import Call, ConfigError, ContractError, classify
from sis_pipeline.providers.oneroster import OneRoster, OneRosterSettings, active_year
from sis_pipeline.providers.reading import verdict
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.validate import check_references, validate
from sis_pipeline_tests.providers.sources import YEAR, Script, pull, recorded, rows

BASE = {
    "base_url": "https://sis.example/ims/oneroster/rostering/v1p2",
    "token_url": "https://sis.example/token",
    "client_id": "abc",
    "state": "TX",
    "district": "fernhollow",
}
ACTIVE = {"active_year": "2025-2026"}
Json = dict[str, Any]


def provider(**settings: Any) -> OneRoster:
    return OneRoster(OneRosterSettings(**BASE | settings))


def ref(sourced_id: str, kind: str = "org") -> Json:
    return {"href": f"/{kind}s/{sourced_id}", "sourcedId": sourced_id, "type": kind}


def head(sourced_id: str, **rest: Any) -> Json:
    return {"sourcedId": sourced_id, "status": "active", "dateLastModified": "2025-09-04T13:22:07.000Z", **rest}


def org(sourced_id: str, kind: str = "school", **rest: Any) -> Json:
    return head(sourced_id, name=f"Org {sourced_id}", type=kind, identifier=f"0{sourced_id}", **rest)


def session(sourced_id: str, kind: str, begin: str, end: str, year: Any, *, parent: str | None = None) -> Json:
    above = {"parent": ref(parent, "academicSession")} if parent else {}
    return head(sourced_id, title=sourced_id, type=kind, startDate=begin, endDate=end, schoolYear=year, **above)


SESSIONS = [
    session("y26", "schoolYear", "2025-08-18", "2026-06-06", "2026"),
    session("s1", "semester", "2025-08-18", "2026-01-10", "2026", parent="y26"),
    session("s2", "semester", "2026-01-10", "2026-06-06", "2026", parent="y26"),
    session("y25", "schoolYear", "2024-08-19", "2025-06-07", "2025"),
    session("old", "term", "2024-08-19", "2025-06-07", "2025", parent="y25"),
]


def klass(sourced_id: str, *terms: str, school: str = "310", **rest: Any) -> Json:
    about = {"title": f"Class {sourced_id}", "classCode": sourced_id.upper(), "classType": "scheduled"}
    links = {"course": ref("crs", "course"), "school": ref(school)}
    return head(sourced_id, **{**about, **links, "terms": [ref(term, "academicSession") for term in terms], **rest})


def student(sourced_id: str, *schools: str, **rest: Any) -> Json:
    about = {"givenName": "Maribel", "familyName": "Okafor", "identifier": "00204417", "grades": ["08"]}
    roles = [
        {"roleType": "primary" if not place else "secondary", "role": "student", "org": ref(school)}
        for place, school in enumerate(schools)
    ]
    return head(sourced_id, **{**about, "roles": roles, **rest})


def staff(sourced_id: str, *schools: str, role: str = "teacher", **rest: Any) -> Json:
    about = {"givenName": "Ada", "familyName": "Quist", "identifier": "T7"}
    return head(
        sourced_id, **about, roles=[{"roleType": "primary", "role": role, "org": ref(s)} for s in schools], **rest
    )


def seat(sourced_id: str, user: str, klass: str, school: str = "310", role: str = "student", **rest: Any) -> Json:
    about = {"user": ref(user, "user"), "class": ref(klass, "class"), "school": ref(school), "role": role}
    return head(sourced_id, **{**about, "beginDate": "2025-08-20", "endDate": "2026-01-10", **rest})


def roster(**collections: list[Json]) -> dict[str, Any]:
    """Pages of a small school; any collection can be replaced."""
    full = {
        "orgs": [org("1", "district"), org("310", parent=ref("1")), org("320", parent=ref("1"))],
        "academicSessions": SESSIONS,
        "courses": [head("crs", title="Algebra", courseCode="MA1", grades=["08", "09"])],
        "classes": [klass("alg", "s1"), klass("bio", "s1", "s2"), klass("art", "s2", school="320")],
        "users": [student("u1", "310"), staff("t1", "310")],
        "enrollments": [seat("e1", "u1", "alg"), seat("e2", "t1", "alg", role="teacher", primary="true")],
        "demographics": [],
    } | collections
    return {name: {name: records} for name, records in full.items()}


def frames(
    *, about: dict[str, str] | None = None, year: SchoolYear = YEAR, settings: Json | None = None, **lists: Any
) -> Any:
    return provider(**settings or {}).standardise(recorded(roster(**lists), year, ACTIVE if about is None else about))


class TestSettings:
    def test_the_token_url_is_mandatory(self) -> None:
        with pytest.raises(ValidationError, match="token_url"):
            OneRosterSettings(**{name: value for name, value in BASE.items() if name != "token_url"})

    @pytest.mark.parametrize(("version", "part"), [("1.1", "v1p1"), ("1.2", "v1p2")])
    def test_three_readonly_scopes_then_without_demographics_then_none(self, version: str, part: str) -> None:
        oauth = provider(version=version).authentication()
        prefix = f"https://purl.imsglobal.org/spec/or/{part}/scope/"
        core = f"{prefix}roster-core.readonly {prefix}roster.readonly"
        assert oauth.scope == f"{core} {prefix}roster-demographics.readonly"
        assert oauth.scope_fallbacks == (core, None)

    def test_a_scope_that_is_set_is_asked_for_as_it_is(self) -> None:
        assert provider(scope="http://x/roster").authentication().scope == "http://x/roster"
        assert provider(scope="").authentication().scope is None
        assert provider(scope="").authentication().scope_fallbacks == ()


class TestDecode:
    @pytest.mark.parametrize(
        ("collection", "key"), [("orgs", "schools"), ("users", "students"), ("academicSessions", "terms")]
    )
    def test_other_envelope_keys_in_use(self, collection: str, key: str) -> None:
        assert provider().decode(collection, json.dumps({key: [{"sourcedId": "1"}]}).encode()) == [{"sourcedId": "1"}]

    @pytest.mark.parametrize(
        "body", [b'{"imsx_codeMajor":"failure"}', b"<html>", b"", b'{"users":[{"sourcedId":"1"}', b"[]"]
    )
    def test_anything_without_the_envelope_is_a_broken_contract(self, body: bytes) -> None:
        with pytest.raises(ContractError):
            provider().decode("users", body)

    def test_an_empty_page_is_a_page(self) -> None:
        assert provider().decode("users", b'{"users":[]}') == []


class TestRecords:
    def test_a_student(self) -> None:
        user = student(
            "u1", "310", userMasterIdentifier="0078", userIds=[{"type": "state_id", "identifier": "7781203345"}],
            preferredFirstName="Mari", pronouns="she", email="m@fernhollow.example", sms="555", phone=None, middleName="",
        )  # fmt: skip
        demographics = head("u1", birthdate="2012-02-29", sex="female", asian="false", white=True)
        found = frames(users=[user], demographics=[demographics])["students"].iloc[0]
        assert found[
            ["ssid", "ssid_issuer", "local_id", "local_id_issuer", "preferred_first_name", "birth_date", "sex", "asian",
             "white", "grade_level", "grade_level_source", "mobile_phone", "school_sis_id", "enrollment_status"]
        ].tolist() == [
            "7781203345", "TX", "00204417", "fernhollow", "Mari", "2012-02-29", "female", "false",
            "true", "08", "08", "555", "310", "active",
        ]  # fmt: skip
        assert found[["middle_name", "phone"]].isna().all()

    def test_the_master_identifier_is_the_state_id_where_no_user_id_is(self) -> None:
        user = student("u1", "310", userMasterIdentifier="0078", userIds=[{"type": "LDAP", "identifier": "mo"}])
        assert frames(users=[user])["students"].loc[0, "ssid"] == "0078"

    def test_no_issuer_without_an_id(self) -> None:
        found = frames(users=[student("u1", "310", identifier=None)])["students"].iloc[0]
        assert found[["ssid", "ssid_issuer", "local_id", "local_id_issuer"]].isna().all()

    @pytest.mark.parametrize("grades", [["8"], "08", ["08", "09"]])
    def test_grades_as_a_list_or_a_text(self, grades: Any) -> None:
        assert frames(users=[student("u1", "310", grades=grades)])["students"].loc[0, "grade_level"] == "08"

    def test_values_an_extension_adds_become_other(self) -> None:
        found = frames(
            orgs=[org("310"), org("900", "ext:annex")],
            classes=[klass("alg", "s1", classType="ext:lab")],
            users=[student("u1", "310"), staff("t1", "310", role="ext:volunteer")],
            enrollments=[seat("e1", "u1", "alg"), seat("e2", "t1", "alg", role="ext:observer")],
            demographics=[head("u1", sex="ext:undisclosed")],
        )
        assert rows(found["schools"], "kind") == [("school",), ("other",)]
        assert rows(found["sections"], "kind") == [("other",)]
        assert rows(found["staff"], "role") == [("other",)]
        assert rows(found["section_enrollments"], "role") == [("student",), ("other",)]
        assert rows(found["students"], "sex") == [("other",)]

    def test_inactive_is_a_tombstone(self) -> None:
        found = frames(enrollments=[seat("e1", "u1", "alg", status="inactive")])
        assert rows(found["section_enrollments"], "record_status") == [("to_be_deleted",)]

    @pytest.mark.parametrize("flag", [True, "true"])
    def test_booleans_as_text_or_real(self, flag: Any) -> None:
        teaching = seat("e2", "t1", "alg", role="teacher", primary=flag)
        found = frames(enrollments=[teaching])
        assert rows(found["section_enrollments"], "is_primary") == [("true",)]
        assert rows(found["sections"], "sis_id", "teacher_sis_id") == [("alg", "t1"), ("bio", None), ("art", None)]

    def test_references_need_no_href(self) -> None:
        bare = {"sourcedId": "alg", "type": "class"}
        assert rows(
            frames(enrollments=[seat("e1", "u1", "alg") | {"class": bare}])["section_enrollments"], "section_sis_id"
        ) == [("alg",)]

    def test_the_password_goes_nowhere(self) -> None:
        found = frames(users=[student("u1", "310", password="hunter2"), staff("t1", "310", password="hunter2")])
        assert not any("hunter2" in frame.to_json() for frame in found.values())

    def test_a_person_who_learns_and_teaches_is_both(self) -> None:
        both = student("u1", "310")
        both["roles"].append({"roleType": "secondary", "role": "teacher", "org": ref("320")})
        found = frames(users=[both])
        assert rows(found["students"], "sis_id", "school_sis_id") == [("u1", "310")]
        assert rows(found["staff"], "sis_id", "role", "school_sis_id") == [("u1", "teacher", "320")]

    def test_people_without_roles_are_what_the_sections_say(self) -> None:
        found = frames(users=[student("u1", roles=[]), staff("t1"), student("nobody", roles=None)])
        assert rows(found["students"], "sis_id", "school_sis_id") == [("u1", "310")]
        assert rows(found["staff"], "sis_id", "role", "school_sis_id", "school_sis_ids") == [
            ("t1", "teacher", "310", '["310"]')
        ]

    def test_version_1_1_has_one_role_and_orgs(self) -> None:
        users = [
            head("u1", role="student", orgs=[ref("310")], givenName="M", familyName="O"),
            head("t1", role="administrator", orgs=[ref("310"), ref("320")], givenName="A", familyName="Q",
                 userIds=[{"type": "stateID", "identifier": "TX-9"}]),
        ]  # fmt: skip
        found = frames(users=users, settings={"version": "1.1"})
        assert rows(found["students"], "sis_id", "school_sis_id") == [("u1", "310")]
        assert rows(found["staff"], "role", "school_sis_id", "school_sis_ids", "state_staff_id") == [
            ("site_administrator", "310", '["310", "320"]', "TX-9")
        ]

    def test_guardians_among_the_users_become_contacts_of_delivered_students(self) -> None:
        guardian = staff(
            "g1", "310", role="parent", email="p@x.example", agents=[ref("u1", "user"), ref("gone", "user")]
        )
        other = staff("g2", "310", role="guardian")
        child = student("u1", "310", agents=[ref("g2", "user"), ref("g1", "user"), ref("nobody", "user")])
        found = frames(users=[child, guardian, other])
        assert rows(found["contacts"], "sis_id", "student_sis_id", "relationship", "priority", "email") == [
            ("u1:g2", "u1", "guardian", "1", None),
            ("u1:g1", "u1", "parent", "2", "p@x.example"),
        ]
        assert rows(found["staff"], "sis_id") == []

    def test_from_students_and_teachers_the_list_says_the_role(self) -> None:
        pages = roster()
        pages["students"] = {"users": [student("u1", roles=None, orgs=[ref("310")])]}
        pages["teachers"] = {"users": [staff("t1", "310"), staff("u1", "320")]}
        del pages["users"]
        found = provider(people="students_and_teachers").standardise(recorded(pages, YEAR, ACTIVE))
        assert rows(found["students"], "sis_id") == [("u1",)]
        assert sorted(rows(found["staff"], "sis_id")) == [("t1",), ("u1",)]
        assert "contacts" not in found

    def test_a_record_read_twice_counts_once_the_newest_stays(self) -> None:
        moved = student("u1", "310", familyName="Newer", dateLastModified="2025-10-01T00:00:00Z")
        found = frames(users=[moved, student("u1", "310")])
        assert rows(found["students"], "last_name") == [("Newer",)]

    def test_a_district_may_keep_a_value_elsewhere(self) -> None:
        user = student("u1", "310", metadata={"homeroom.code": "x", "gradYear": 2030})
        found = frames(users=[user], settings={"custom_fields": {"graduation_year": "metadata.gradYear"}})
        assert rows(found["students"], "graduation_year") == [("2030",)]

    def test_inclusive_end_dates_become_exclusive(self) -> None:
        found = frames(settings={"exit_dates": "inclusive"})
        assert rows(found["section_enrollments"], "end_date") == [("2026-01-11",), ("2026-01-11",)]
        assert rows(found["academic_sessions"], "end_date")[0] == ("2026-06-07",)


class TestSchoolYear:
    def test_only_the_year_s_sessions_sections_and_seats(self) -> None:
        found = frames(
            classes=[klass("alg", "s1"), klass("then", "old")],
            enrollments=[
                seat("e1", "u1", "alg"),
                seat("e0", "u1", "then", beginDate="2024-08-20", endDate="2025-06-07"),
            ],
        )
        assert rows(found["academic_sessions"], "sis_id", "kind", "school_year") == [
            ("y26", "school_year", "2025-2026"), ("s1", "semester", "2025-2026"), ("s2", "semester", "2025-2026"),
        ]  # fmt: skip
        assert rows(found["sections"], "sis_id") == [("alg",)]
        assert rows(found["section_enrollments"], "sis_id") == [("e1",)]

    def test_an_earlier_year_has_whoever_sat_in_its_sections(self) -> None:
        found = frames(
            year=SchoolYear.parse("2024-2025"),
            classes=[klass("alg", "s1"), klass("then", "old")],
            users=[student("u1", "310"), student("u2", "310"), staff("t1", "310")],
            enrollments=[
                seat("e0", "u2", "then", beginDate="2024-08-20", endDate="2025-06-07"),
                seat("e1", "u1", "alg"),
            ],
        )
        assert rows(found["students"], "sis_id") == [("u2",)]
        assert rows(found["enrollments"], "sis_id", "entry_date", "exit_date") == [
            ("u2:310:2024-2025", "2024-08-20", None)
        ]
        assert rows(found["staff"], "sis_id") == []

    @pytest.mark.parametrize("written", ["2026", 2026, " 2026 "])
    def test_the_school_year_is_the_ending_year(self, written: Any) -> None:
        found = frames(academicSessions=[session("y26", "schoolYear", "2025-08-18", "2026-06-06", written)])
        assert rows(found["academic_sessions"], "school_year") == [("2025-2026",)]

    def test_a_session_without_a_year_has_that_of_its_parent_or_of_its_dates(self) -> None:
        sessions = [
            {
                **session("y26", "schoolYear", "2025-08-18", "2026-06-06", "2026"),
                "children": [ref("late", "academicSession")],
            },
            session("late", "term", "2026-07-02", "2026-07-20", None),
            session("alone", "term", "2025-09-01", "2025-12-01", ""),
        ]
        found = frames(academicSessions=sessions)
        assert rows(found["academic_sessions"], "sis_id", "parent_sis_id") == [
            ("y26", None),
            ("late", "y26"),
            ("alone", None),
        ]

    def test_several_terms_keep_a_class_that_reaches_into_the_year(self) -> None:
        found = frames(classes=[klass("both", "old", "s1")])
        assert rows(found["sections"], "session_sis_ids") == [('["old", "s1"]',)]

    def test_references_that_lead_nowhere_stay_for_quarantine(self) -> None:
        found = frames(
            enrollments=[
                seat("e1", "u1", "alg"), seat("no-class", "u1", "gone"), seat("no-user", "gone", "alg"),
                seat("old", "u1", "gone", beginDate="2023-08-20"),
            ]
        )  # fmt: skip
        assert rows(found["section_enrollments"], "sis_id") == [("e1",), ("no-class",), ("no-user",)]
        typed = {name: validate(name, frame).frame for name, frame in found.items()}
        dangling = {(lost.column, lost.rows) for lost in check_references(typed)}
        assert dangling == {("section_sis_id", ("no-class",)), ("person_sis_id", ("no-user",))}

    def test_courses_of_other_years_stay_out(self) -> None:
        courses = [
            head("crs", title="Algebra", schoolYear=ref("y25", "academicSession")),
            head("gone", title="Latin", schoolYear=ref("y25", "academicSession")),
            head("any", title="Chess"),
        ]
        assert rows(frames(courses=courses)["courses"], "sis_id") == [("crs",), ("any",)]

    def test_the_active_year_is_the_latest_that_has_begun_by_the_source_s_calendar(self) -> None:
        exposed = {SchoolYear(2025): date(2025, 8, 18), SchoolYear(2026): date(2026, 8, 17)}
        assert active_year(exposed, date(2026, 7, 20)) == SchoolYear(2025)
        assert active_year(exposed, date(2026, 8, 17)) == SchoolYear(2026)
        assert active_year(exposed, date(2025, 7, 1)) == SchoolYear(2025)


class TestEnrollments:
    def test_entry_is_the_earliest_class_at_the_school(self) -> None:
        found = frames(enrollments=[seat("e1", "u1", "alg", beginDate="2025-09-15"), seat("e2", "u1", "bio")])
        assert rows(
            found["enrollments"], "sis_id", "entry_date", "entry_date_source", "enrollment_type", "grade_level"
        ) == [("u1:310:2025-2026", "2025-08-20", "class_begin", "primary", "08")]

    def test_without_class_dates_entry_is_the_session_s_start(self) -> None:
        found = frames(enrollments=[seat("e1", "u1", "art", "320", beginDate=None, endDate=None)])
        assert rows(found["enrollments"], "school_sis_id", "entry_date", "entry_date_source") == [
            ("310", "2025-08-18", "session_start"),
            ("320", "2026-01-10", "session_start"),
        ]

    def test_a_role_s_begin_in_the_year_is_the_sis_s_own_entry_date(self) -> None:
        user = student("u1", "310")
        user["roles"][0] |= {"beginDate": "2025-10-02", "endDate": "2026-02-01"}
        found = frames(users=[user])
        assert rows(found["enrollments"], "entry_date", "entry_date_source", "exit_date", "status") == [
            ("2025-10-02", "sis", "2026-02-01", "withdrawn")
        ]

    def test_a_role_that_ends_with_the_year_is_no_withdrawal(self) -> None:
        user = student("u1", "310")
        user["roles"][0]["endDate"] = "2026-06-06"
        assert rows(frames(users=[user])["enrollments"], "status") == [("active",)]

    def test_a_role_of_another_year_says_nothing(self) -> None:
        user = student("u1", "320")
        user["roles"][0] |= {"beginDate": "2024-08-20", "endDate": "2025-06-07"}
        assert rows(frames(users=[user], enrollments=[])["students"], "sis_id") == []

    def test_classes_that_end_with_their_session_end_no_enrollment(self) -> None:
        users = [student("u1", "320")]
        found = frames(users=users, enrollments=[seat("e1", "u1", "alg")])
        assert rows(found["enrollments"], "school_sis_id", "exit_date", "status", "enrollment_type") == [
            ("310", None, "active", "secondary"),
            ("320", None, "active", "primary"),
        ]

    def test_who_left_all_classes_of_a_school_early_and_belongs_elsewhere_has_left_it(self) -> None:
        seats = [
            seat("e1", "u1", "alg", endDate="2025-10-06"),
            seat("e2", "u1", "bio", endDate="2025-10-07"),
            seat("e3", "u1", "art", "320", beginDate="2025-10-07", endDate="2026-06-06"),
        ]
        found = frames(users=[student("u1", "320")], enrollments=seats)
        assert rows(found["enrollments"], "school_sis_id", "entry_date", "exit_date", "status", "enrollment_type") == [
            ("310", "2025-08-20", "2025-10-07", "withdrawn", "secondary"),
            ("320", "2025-10-07", None, "active", "primary"),
        ]
        assert rows(found["students"], "school_sis_id") == [("320",)]

    def test_a_tombstone_ends_every_enrollment_on_its_day(self) -> None:
        gone = student("u1", "310", status="tobedeleted", dateLastModified="2025-11-03T08:00:00Z")
        found = frames(users=[gone], enrollments=[seat("e1", "u1", "alg", status="tobedeleted")])
        assert rows(found["students"], "record_status") == [("to_be_deleted",)]
        assert rows(found["enrollments"], "exit_date", "status", "record_status") == [
            ("2025-11-03", "withdrawn", "to_be_deleted")
        ]

    def test_a_tombstone_without_a_seat_in_the_year_is_an_old_one(self) -> None:
        assert (
            rows(frames(users=[student("u1", "310", status="tobedeleted")], enrollments=[])["students"], "sis_id") == []
        )

    def test_removed_seats_end_the_enrollment_at_a_school_one_no_longer_belongs_to(self) -> None:
        removed = seat("e1", "u1", "alg", status="tobedeleted", dateLastModified="2025-10-09T08:00:00Z")
        found = frames(users=[student("u1", "320")], enrollments=[removed])
        assert rows(found["enrollments"], "school_sis_id", "exit_date", "record_status") == [
            ("310", "2025-10-09", "to_be_deleted"),
            ("320", None, "active"),
        ]

    def test_primary_is_the_flagged_school_else_the_one_with_most_sections(self) -> None:
        two = student("u1", "310", "320")
        two["roles"][0]["roleType"], two["roles"][1]["roleType"] = "secondary", "primary"
        assert rows(frames(users=[two])["enrollments"], "school_sis_id", "enrollment_type") == [
            ("310", "secondary"), ("320", "primary"),
        ]  # fmt: skip
        unflagged = student("u1", role="student", roles=[], orgs=[ref("320"), ref("310")])
        assert rows(frames(users=[unflagged])["enrollments"], "school_sis_id", "enrollment_type") == [
            ("310", "primary"), ("320", "secondary"),
        ]  # fmt: skip

    def test_one_primary_role_per_org_leaves_the_primary_org_to_decide(self) -> None:
        both = student("u1", "310", "320", primaryOrg=ref("320"))
        both["roles"][1]["roleType"] = "primary"
        assert rows(frames(users=[both])["students"], "school_sis_id") == [("320",)]

    def test_membership_of_the_district_is_no_enrollment(self) -> None:
        assert rows(frames(users=[student("u1", "1")], enrollments=[])["enrollments"], "sis_id") == []


def served(pages: dict[str, Any], cap: int = 2, *, totals: bool = True) -> Script:
    """A server that clamps `limit` to `cap` without saying so."""

    def collection(name: str) -> Any:
        def page(request: Request) -> Answer:
            offset, limit = int(request.params.get("offset", 0)), min(int(request.params["limit"]), cap)  # type: ignore[arg-type]
            records = pages[name][name]
            body = json.dumps({name: records[offset : offset + limit]}).encode()
            return Answer(200, {"x-total-count": str(len(records))} if totals else {}, body)

        return page

    return Script({f"/{name}": collection(name) for name in pages})


class TestPlan:
    @pytest.mark.parametrize("totals", [True, False])
    def test_reads_everything_of_a_server_that_clamps_silently(self, *, totals: bool) -> None:
        pages = roster(users=[student(f"u{n}", "310") for n in range(5)])
        result = pull(provider(), served(pages, totals=totals))
        assert verdict(result.readings) == "complete"
        assert len(result.good("students")) == 5
        assert [reading.rows for reading in result.readings if reading.resource == "users"] == [5]

    def test_the_number_of_calls_is_known_before(self) -> None:
        pages = roster(users=[student(f"u{n}", "310") for n in range(5)])
        server = served(pages, cap=3)
        result = pull(provider(page_size=3), server, last_rows={name: len(page[name]) for name, page in pages.items()})
        planned = 2  # five sessions in pages of three, read while planning
        assert len(server.sent) == result.calls_planned + planned == 9

    def test_asks_for_large_pages_and_a_stable_order_if_wanted(self) -> None:
        server = served(roster())
        pull(provider(sort=True), server)
        assert {request.params["limit"] for request in server.sent} == {"5000"}
        assert {(request.params["sort"], request.params["orderBy"]) for request in server.sent} == {
            ("sourcedId", "asc")
        }

    @pytest.mark.parametrize("status", [401, 403, 404])
    def test_demographics_may_be_withheld(self, status: int) -> None:
        server = served(roster())
        server.answers = {**server.answers, "/demographics": classify(Call("test", "GET", "/demographics"), status, {})}  # type: ignore[assignment]
        result = pull(provider(), server)
        assert verdict(result.readings) == "complete"
        assert next(r for r in result.readings if r.resource == "demographics").skipped == status
        assert len(result.good("students")) == 1

    def test_a_year_the_system_does_not_show_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="shows 2024-2025, 2025-2026"):
            provider().plan(served(roster()), SchoolYear.parse("2019-2020"), {})

    def test_a_count_that_is_not_reached_is_not_complete(self) -> None:
        pages = roster()
        server = served(pages)
        short = {"users": pages["users"]["users"][:1]}
        answer = lambda request: Answer(  # noqa: E731
            200,
            {"x-total-count": "9"},
            json.dumps(short if request.params["offset"] == "0" else {"users": []}).encode(),
        )
        server.answers = {**server.answers, "/users": answer}
        assert verdict(pull(provider(), server).readings) == "partial"

    def test_check_is_one_call(self) -> None:
        server = served(roster())
        assert "the key works" in provider().check(server)
        assert [request.path for request in server.sent] == ["/orgs"]
