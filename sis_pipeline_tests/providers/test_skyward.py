"""Skyward's three flavors: what settings follow from the flavor, and what each native API's quirks become."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from sis_pipeline.connect.errors import ConfigError, ContractError
from sis_pipeline.providers.oneroster import OneRoster
from sis_pipeline.providers.reading import verdict
from sis_pipeline.providers.skyward import Skyward, SkywardSettings
from sis_pipeline.providers.skyward_qmlativ import METADATA, objects, resource_name
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline_tests.providers.sources import YEAR, Script, pull, recorded, rows

BASE = {
    "base_url": "https://skyward.example/APIfernhollowSTU",
    "client_id": "key",
    "state": "TX",
    "district": "fernhollow",
}
NOW = SchoolYear.on(datetime.now(UTC).date())
Json = dict[str, Any]


def provider(flavor: str, **settings: Any) -> Skyward:
    return Skyward(SkywardSettings(**BASE | {"api_flavor": flavor} | settings))


class TestFlavors:
    def test_oneroster_is_the_default_and_needs_its_token_url(self) -> None:
        with pytest.raises(ValidationError, match="token_url"):
            SkywardSettings(**BASE)
        chosen = Skyward(SkywardSettings(**BASE, token_url="https://skyward.example/token"))
        assert isinstance(chosen.flavor, OneRoster)
        assert chosen.rate == 80

    @pytest.mark.parametrize(
        ("flavor", "settings", "expected"),
        [
            ("sms", {}, ("/token", "client_credentials", "post", frozenset({401}))),
            ("sms", {"grant": "password"}, ("/token", "password", "basic", frozenset({401}))),
            ("qmlativ", {}, ("/oauth/token", "client_credentials", "post", frozenset({401, 403}))),
            (
                "qmlativ",
                {"client_auth": "basic"},
                ("/oauth/token", "client_credentials", "basic", frozenset({401, 403})),
            ),
        ],
    )
    def test_the_native_apis_token_follows_from_the_base(self, flavor: str, settings: Json, expected: Any) -> None:
        oauth = provider(flavor, **settings).authentication()
        assert oauth is not None
        assert (
            oauth.token_url.removeprefix(BASE["base_url"]),
            oauth.grant,
            oauth.client_auth,
            oauth.refused_token_statuses,
        ) == (expected)
        assert oauth.scope is None

    def test_a_token_url_that_is_set_stays(self) -> None:
        oauth = provider("sms", token_url="https://other.example/token").authentication()
        assert oauth is not None
        assert oauth.token_url == "https://other.example/token"


def learner(name_id: int, **rest: Any) -> Json:
    about = {
        "NameId": name_id, "FirstName": "Maribel", "MiddleName": None, "LastName": "Okafor", "DisplayId": "00204417",
        "StateId": "7781203345", "GradYr": NOW.end + 4, "Gender": "F", "DateOfBirth": "2012-02-29T00:00:00",
        "HispanicLatinoEthnicity": False, "FederalRace": "BW", "SchoolEmail": "", "Email": "m@fernhollow.example",
        "DefaultSchoolId": "310", "SchoolIds": ["310"], "StreetAddress": "118 Larkspur Ln", "City": "Fernhollow",
        "State": "TX", "ZipCode": "07500", "PhoneNumber": "111", "PhoneNumberType": "Cellular", "PhoneNumber2": "222",
        "PhoneNumber2Type": "Home",
    }  # fmt: skip
    return about | rest


def day(month: int, number: int) -> str:
    return f"{NOW.start if month > 6 else NOW.end}-{month:02d}-{number:02d}T00:00:00"


SCHOOLS = [
    {"SchoolId": "310", "SchoolName": "Upper", "GradeLow": "09", "GradeHigh": "12"},
    {"SchoolId": "999", "SchoolName": "Census"},
]
SECTIONS = [
    {
        "SectionId": 1,
        "CourseId": 5,
        "SchoolId": "310",
        "StaffNameId": 50,
        "StartDate": day(9, 1),
        "EndDate": day(1, 25),
    },
    {
        "SectionId": 2,
        "CourseId": 5,
        "SchoolId": "310",
        "StaffNameId": 50,
        "StartDate": day(9, 1),
        "EndDate": day(6, 19),
    },
]


def sms(settings: Json | None = None, **pages: Any) -> dict[str, Any]:
    held = {"schools": SCHOOLS, "students": [learner(7)], "sections": SECTIONS, "enrollments": []} | pages
    chosen = provider("sms", **{"excluded_schools": ["999"]} | (settings or {}))
    return chosen.standardise(recorded(held, NOW))


class TestSms:
    def test_a_student(self) -> None:
        found = sms()["students"].iloc[0]
        assert found[
            ["sis_id", "ssid", "ssid_issuer", "local_id", "birth_date", "sex", "email", "phone", "mobile_phone", "home_postal_code",
             "hispanic_or_latino", "black_or_african_american", "white", "asian", "graduation_year", "grade_level",
             "school_sis_id"]
        ].tolist() == [
            "7", "7781203345", "TX", "00204417", "2012-02-29", "female", "m@fernhollow.example", "222", "111", "07500",
            "false", "true", "true", "false", str(NOW.end + 4), "08", "310",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("ahead", "grade"), [(0, "12"), (12, "KG"), (13, "PK"), (14, "PR"), (15, None), (-1, None), (3, "09")]
    )
    def test_the_grade_is_counted_from_the_graduation_year(self, ahead: int, grade: str | None) -> None:
        assert rows(sms(students=[learner(7, GradYr=NOW.end + ahead)])["students"], "grade_level") == [(grade,)]

    def test_the_net_minimum_is_no_date(self) -> None:
        seat = {
            "EnrollmentId": 1,
            "SectionId": 1,
            "SchoolId": "310",
            "NameId": 7,
            "StartDate": day(9, 3),
            "EndDate": "0001-01-01T00:00:00",
        }
        found = sms(enrollments=[seat], students=[learner(7, DateOfBirth="0001-01-01T00:00:00")])
        assert rows(found["section_enrollments"], "begin_date", "end_date") == [(day(9, 3)[:10], None)]
        assert rows(found["students"], "birth_date") == [(None,)]
        assert rows(found["enrollments"], "entry_date", "entry_date_source", "exit_date") == [
            (day(9, 3)[:10], "class_begin", None)
        ]

    def test_a_student_listed_once_per_school_is_one(self) -> None:
        listed = [learner(7, SchoolIds=["310"]), learner(7, SchoolIds=["320"])]
        found = sms(students=listed, schools=[*SCHOOLS, {"SchoolId": "320", "SchoolName": "Lower"}])
        assert rows(found["students"], "sis_id") == [("7",)]
        assert rows(found["enrollments"], "school_sis_id", "enrollment_type") == [
            ("310", "primary"),
            ("320", "secondary"),
        ]

    def test_entities_that_are_no_schools_are_left_out_with_their_people(self) -> None:
        found = sms(students=[learner(7), learner(8, SchoolIds=["999"], DefaultSchoolId="999")])
        assert rows(found["schools"], "sis_id") == [("310",)]
        assert rows(found["students"], "sis_id") == [("7",)]

    def test_sessions_are_the_spans_of_sections(self) -> None:
        found = sms()
        assert rows(found["academic_sessions"], "start_date", "end_date", "kind", "school_year") == [
            (day(9, 1)[:10], day(1, 25)[:10], "term", NOW.key),
            (day(9, 1)[:10], day(6, 19)[:10], "school_year", NOW.key),
        ]
        ids = [sis_id for (sis_id,) in rows(found["academic_sessions"], "sis_id")]
        assert [json.loads(listed) for (listed,) in rows(found["sections"], "session_sis_ids")] == [[ids[0]], [ids[1]]]

    def test_sections_of_an_earlier_year_stay_out(self) -> None:
        past = {**SECTIONS[0], "SectionId": 9, "StartDate": "2019-09-01T00:00:00", "EndDate": "2020-01-25T00:00:00"}
        assert rows(sms(sections=[*SECTIONS, past])["sections"], "sis_id") == [("1",), ("2",)]

    def test_a_guardian_is_a_contact_of_each_child_delivered(self) -> None:
        guardian = {
            "GuardianNameId": 70, "FirstName": "Gil", "LastName": "Okafor", "FamilyOrderNumber": 1, "PhoneNumber": "333",
            "PhoneNumberType": "Home",
            "Students": [{"StudentNameId": 7, "RelationshipDesc": "Father"}, {"StudentNameId": 99}],
        }  # fmt: skip
        assert rows(sms(guardians=[guardian])["contacts"], "sis_id", "relationship", "phone", "priority") == [
            ("7:70", "Father", "333", "1")
        ]

    @pytest.mark.parametrize("body", [b'{"Message":"denied"}', b"<html>", b'[{"NameId":1}', b'"x"', b"[1]"])
    def test_what_is_no_list_of_records(self, body: bytes) -> None:
        with pytest.raises(ContractError):
            provider("sms").decode("students", body)

    def test_one_record_for_a_list(self) -> None:
        assert provider("sms").decode("students", b'{"NameId":1}') == [{"NameId": 1}]

    def test_only_the_present_year(self) -> None:
        assert not provider("sms").capabilities.historical_years
        with pytest.raises(ConfigError, match="shows only what holds now"):
            provider("sms").plan(Script({}), SchoolYear(NOW.start - 1), {})


def metadata(*districts: Json) -> Json:
    return {"System": {"EntityID": 1, "Districts": list(districts)}}


def district(code: str, entity: int = 3) -> Json:
    current = {"SchoolYearID": 12, "NumericYear": 2026, "Description": "2025-2026"}
    return {"DistrictID": 1, "EntityID": entity, "Code": code, "SchoolYearCurrent": current}


def page(*records: Json) -> Json:
    return {"Objects": list(records), "Paging": {"Next": None}}


QMLATIV: dict[str, list[Json]] = {
    "Enrollment/School": [{"SchoolID": 310, "Code": "0310", "Name": "Upper", "GradeLevelIDLow": 1}],
    "Enrollment/EntitySchool": [{"EntityID": 3, "SchoolID": 310}],
    "Enrollment/GradeLevel": [{"GradeLevelID": 1, "Code": "9", "FederalGradeLevelCode": "09"}],
    "Enrollment/EntryCode": [{"EntryCodeID": 1, "Code": "E1"}],
    "Enrollment/WithdrawalCode": [{"WithdrawalCodeID": 2, "Code": "G1"}],
    "Scheduling/Course": [{"CourseID": 5, "CourseCode": "MA1", "Description": "Algebra", "EntityID": 3}],
    "Scheduling/Section": [{"SectionID": 1, "Code": "MA1-01", "CourseID": 5, "EntityID": 3}],
    "Scheduling/Meet": [{"MeetID": 1, "SectionID": 1, "StartDate": "2025-09-01T00:00:00", "EndDate": "2026-06-19T00:00:00"}],
    "Scheduling/StaffMeet": [
        {"StaffMeetID": 1, "MeetID": 1, "SectionID": 1, "StaffID": 60, "IsPrimary": False},
        {"StaffMeetID": 2, "MeetID": 1, "SectionID": 1, "StaffID": 50, "IsPrimary": True},
        {"StaffMeetID": 3, "MeetID": 2, "SectionID": 1, "StaffID": 50, "IsPrimary": True},
    ],
    "Student/Student": [
        {"StudentID": 7, "NameID": 107, "StudentNumber": "00204417", "FirstName": "Mari", "LastName": "Okafor", "Grade": "8",
         "GradYear": 2030, "CalculatedStudentStateID": "7781203345"},
        {"StudentID": 8, "NameID": 108, "FirstName": "Gone", "LastName": "Before"},
    ],
    "Staff/Staff": [
        {"StaffID": 50, "NameID": 150, "StaffNumber": "T7", "IsActiveForDistrict": True},
        {"StaffID": 60, "NameID": 160, "IsActiveForDistrict": True},
        {"StaffID": 70, "NameID": 170, "IsActiveForDistrict": False},
    ],
    "Staff/StaffEntityYear": [{"StaffEntityYearID": 1, "StaffID": 50, "EntityID": 3, "IsTeacher": True, "IsActive": True}],
    "Demographics/Name": [
        {"NameID": 107, "FirstName": "Mari", "FirstNameLegal": "Maribel", "LastName": "Okafor", "LastNameLegal": "Okafor",
         "BirthDate": "2012-02-29T00:00:00", "GenderCode": "F", "Ethnicity": "Not Hispanic or Latino", "Race": "Asian, White"},
        {"NameID": 150, "FirstName": "Ada", "LastName": "Quist"}, {"NameID": 160, "FirstName": "Ivo", "LastName": "Lund"},
    ],
    "Demographics/NameEmail": [
        {"NameID": 107, "EmailAddress": "second@x.example", "Rank": 2}, {"NameID": 107, "EmailAddress": "first@x.example", "Rank": 1},
    ],
    "Demographics/NamePhone": [],
    "Demographics/NameAddress": [{"NameID": 107, "AddressID": 1, "IsMailing": False, "IsPhysical": True}],
    "Demographics/Address": [{"AddressID": 1, "StreetNumberAndName": "118 Larkspur Ln", "ZipCode": "07500"}],
    "Security/User": [{"NameID": 107, "Username": "mokafor"}],
    "Enrollment/EntryWithdrawal": [
        {"EntryWithdrawalID": 900, "StudentID": 7, "EntityID": 3, "SchoolID": 310, "StartDate": "2025-09-01T00:00:00",
         "EndDate": None, "EntryCodeID": 1, "WithdrawalCodeID": None, "IsDefaultEntity": True},
    ],
    "Enrollment/StudentEntityYear": [{"StudentID": 7, "EntityID": 3, "Grade": "09", "IsActive": True, "IsDefaultEntity": True}],
    "Scheduling/StudentSection": [
        {"StudentSectionID": 77, "StudentID": 7, "SectionID": 1, "StartDate": "2025-09-01T00:00:00", "EndDate": None},
    ],
}  # fmt: skip


def qmlativ(settings: Json | None = None, **changed: list[Json]) -> dict[str, Any]:
    held = {
        resource_name(name): page(*records)
        for name, records in (QMLATIV | {k.replace("__", "/"): v for k, v in changed.items()}).items()
    }
    return provider("qmlativ", **settings or {}).standardise(recorded(held, YEAR))


def stay(**rest: Any) -> Json:
    return QMLATIV["Enrollment/EntryWithdrawal"][0] | rest


class TestQmlativ:
    def test_a_student_is_joined_from_eight_objects(self) -> None:
        found = qmlativ()["students"]
        assert rows(found, "sis_id", "ssid", "local_id", "first_name", "preferred_first_name", "birth_date", "sex") == [
            ("7", "7781203345", "00204417", "Maribel", "Mari", "2012-02-29", "female")
        ]
        assert rows(
            found, "email", "home_street", "home_postal_code", "username", "asian", "white", "hispanic_or_latino"
        ) == [("first@x.example", "118 Larkspur Ln", "07500", "mokafor", "true", "true", "false")]
        assert rows(found, "grade_level", "school_sis_id", "enrollment_status") == [("09", "310", "active")]

    def test_sections_have_school_session_and_lead_teacher(self) -> None:
        found = qmlativ()
        assert rows(found["sections"], "sis_id", "school_sis_id", "teacher_sis_id", "session_sis_ids") == [
            ("1", "310", "50", '["310:2025-09-01:2026-06-19"]')
        ]
        assert rows(found["academic_sessions"], "sis_id", "kind", "school_sis_id") == [
            ("310:2025-09-01:2026-06-19", "school_year", "310")
        ]
        assert rows(found["section_enrollments"], "role", "person_sis_id", "is_primary") == [
            ("student", "7", None), ("teacher", "50", "true"), ("teacher", "60", "false"),
        ]  # fmt: skip
        assert rows(found["schools"], "sis_id", "school_number", "low_grade") == [("310", "0310", "09")]

    def test_staff_are_those_of_the_year(self) -> None:
        assert rows(qmlativ()["staff"], "sis_id", "last_name", "role", "school_sis_id") == [
            ("50", "Quist", "teacher", "310"), ("60", "Lund", "teacher", None),
        ]  # fmt: skip
        without = qmlativ(Staff__StaffEntityYear=[], Scheduling__StaffMeet=[])
        assert rows(without["staff"], "sis_id", "role") == [("50", "staff"), ("60", "staff")]

    @pytest.mark.parametrize(
        ("change", "settings", "expected"),
        [
            ({}, {}, ("active", None, None)),
            ({"EndDate": "2025-10-06T00:00:00", "WithdrawalCodeID": 2}, {}, ("withdrawn", "2025-10-06", "G1")),
            ({"EndDate": "2025-10-06T00:00:00", "WithdrawalCodeID": 2}, {"withdrawal_statuses": {"G1": "graduated"}},
             ("graduated", "2025-10-06", "G1")),
            ({"EndDate": "2025-09-01T00:00:00"}, {}, ("no_show", "2025-09-01", None)),
            ({"EndDate": "2025-10-06T00:00:00"}, {"exit_dates": "inclusive"}, ("withdrawn", "2025-10-07", None)),
            ({"EndDate": "0001-01-01T00:00:00"}, {}, ("active", None, None)),
        ],
    )  # fmt: skip
    def test_enrollments_have_dates_codes_and_a_status(self, change: Json, settings: Json, expected: Any) -> None:
        found = qmlativ(settings, Enrollment__EntryWithdrawal=[stay(**change)])["enrollments"]
        assert rows(found, "status", "exit_date", "exit_code") == [expected]
        assert rows(found, "entry_code", "entry_date_source", "enrollment_type", "school_year") == [
            ("E1", "sis", "primary", "2025-2026")
        ]

    def test_a_year_row_that_waits_is_a_pre_registration(self) -> None:
        waiting = QMLATIV["Enrollment/StudentEntityYear"][0] | {"IsActive": False}
        assert rows(qmlativ(Enrollment__StudentEntityYear=[waiting])["enrollments"], "status") == [("pre_registered",)]


class TestQmlativPlan:
    def script(self, *districts: Json, **answers: Any) -> Script:
        served = {f"/Generic/3/{name}/1/10000": page(*records) for name, records in QMLATIV.items()}
        return Script({METADATA: metadata(*districts or (district("FERN"),)), **served, **answers})

    def test_asks_for_the_named_fields_of_the_current_year(self) -> None:
        script = self.script()
        found = pull(provider("qmlativ"), script, YEAR)
        assert verdict(found.readings) == "complete"
        assert len(script.sent) == found.calls_planned + 1 == len(objects()) + 1
        asked = next(request for request in script.sent if "StudentSection/" in request.path)
        assert asked.params["SchoolYearID"] == "12"
        assert "EndDate" in asked.params["searchFields"]
        assert asked.template == "/Generic/{EntityID}/Scheduling/StudentSection"

    def test_an_earlier_year_is_looked_up_among_those_there_are(self) -> None:
        years = [{"SchoolYearID": 11, "NumericYear": 2025, "Description": "2024-2025"}]
        script = self.script(**{"/Generic/3/District/SchoolYear/1/10000": page(*years)})
        plan = provider("qmlativ").plan(script, SchoolYear.parse("2024-2025"), {})
        assert {resource.request.params.get("SchoolYearID") for resource in plan.resources} == {None, "11"}
        with pytest.raises(ConfigError, match="holds the school years 2024-2025"):
            provider("qmlativ").plan(script, SchoolYear.parse("2019-2020"), {})

    def test_of_several_districts_one_must_be_named(self) -> None:
        script = self.script(district("A"), district("B", 9))
        with pytest.raises(ConfigError, match="holds the districts A, B"):
            provider("qmlativ").plan(script, YEAR, {})
        plan = provider("qmlativ", district_code="B").plan(script, YEAR, {})
        assert plan.resources[0].request.path.startswith("/Generic/9/")

    def test_objects_an_integration_may_not_read_are_skipped(self) -> None:
        script = self.script()
        del script.answers["/Generic/3/Security/User/1/10000"]  # type: ignore[attr-defined]
        found = pull(provider("qmlativ"), script, YEAR)
        assert verdict(found.readings) == "complete"
        assert rows(found.frames["students"], "username") == [(None,)]

    def test_pages_follow_the_next_path(self) -> None:
        stem = "/Generic/3/Enrollment/School"
        schools = [{"SchoolID": number, "Code": str(number), "Name": f"School {number}"} for number in (1, 2)]
        answers = {f"/Generic/3/{name}/1/1": page(*records[:1]) for name, records in QMLATIV.items()}
        answers |= {
            f"{stem}/1/1": {"Objects": schools[:1], "Paging": {"Next": f"{stem}/2/1"}},
            f"{stem}/2/1": {"Objects": schools[1:], "Paging": {"Next": f"{stem}/2/1"}},
        }
        chosen = provider("qmlativ", page_size=1)
        plan = chosen.plan(Script({METADATA: metadata(district("FERN")), **answers}), YEAR, {})
        resource = plan.resources[0]
        script = Script(answers)
        pages = list(
            resource.pager.pages(script.send, resource.request, lambda body: chosen.decode(resource.name, body))
        )
        assert [record["SchoolID"] for one in pages for record in one.records] == [1, 2]

    def test_without_objects_the_contract_is_broken(self) -> None:
        with pytest.raises(ContractError, match="Objects"):
            provider("qmlativ").decode("Student-Student", b'{"Message":"Token has expired"}')

    def test_check_names_the_current_year(self) -> None:
        assert provider("qmlativ").check(self.script()).endswith("the current school year there is 2025-2026.")
