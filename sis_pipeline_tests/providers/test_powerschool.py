"""PowerSchool to the letter of its API: loose types, year arithmetic, ways of reading; and whole syncs over real sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import pytest
from cryptography.fernet import Fernet

from sis_pipeline.connect.errors import AuthRevokedError, ConfigError, ContractError, SisError
from sis_pipeline.connect.source import open_source
from sis_pipeline.connect.vault import Keys, Vault
from sis_pipeline.providers.base import Provider, Source
from sis_pipeline.providers.conformance import ProviderConformance
from sis_pipeline.providers.powerschool import QUERIED_FIELDS, QUERY_COLUMNS, TABLE_COLUMNS, PowerSchool, year_id
from sis_pipeline.providers.reading import MemorySnapshot, read, verdict
from sis_pipeline.providers.registry import make
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.validate import quarantine_dangling
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.views import as_published
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.providers.sources import OverHttp, Pulled, Script, pull, rows

PLUGIN = Path(__file__).parents[2] / "docs" / "powerschool_plugin"
YEAR = SchoolYear.parse("2025-2026")
WORLD_YEAR = "2026-2027"


def provider(**settings: Any) -> PowerSchool:
    made = make("powerschool", {"base_url": "https://fernhollow.powerschool.com", "client_id": "plugin", **settings})
    assert isinstance(made, PowerSchool)
    return made


# --- settings and authentication -----------------------------------------------------------------------------------


def test_the_token_endpoint_is_the_vendors_and_the_client_authenticates_by_basic():
    oauth = provider(base_url="https://fernhollow.powerschool.com/").authentication()
    assert oauth.token_url == "https://fernhollow.powerschool.com/oauth/access_token"
    assert (oauth.grant, oauth.client_auth, oauth.scope) == ("client_credentials", "basic", None)


@pytest.mark.parametrize(("key", "expected"), [("2025-2026", 35), ("1990-1991", 0), ("2019-2020", 29)])
def test_powerschool_counts_years_from_1990(key, expected):
    assert year_id(SchoolYear.parse(key)) == expected


def test_queries_are_named_safely():
    with pytest.raises(ConfigError, match="section_enrollments_query"):
        provider(section_enrollments_query="../../oauth/access_token")


# --- decoding ------------------------------------------------------------------------------------------------------

MARIBEL: dict[str, Any] = {
    "id": 8841, "local_id": 204417, "state_province_id": 7781203345, "student_username": "mokafor41",
    "name": {"first_name": "Maribel", "last_name": "Okafor"},
    "demographics": {"gender": "F", "birth_date": "2012-02-29", "projected_graduation_year": 2030},
    "addresses": {"physical": {"street": "118 Larkspur Ln", "city": "Fernhollow", "state_province": "AZ", "postal_code": 5250}},
    "phones": "",
    "school_enrollment": {
        "enroll_status": "A", "enroll_status_description": "Active", "enroll_status_code": 0, "grade_level": 8,
        "entry_date": "2025-08-11", "exit_date": "2026-05-29", "school_number": 310, "school_id": 27, "entry_code": "E1",
        "full_time_equivalency": {"fteid": 970, "name": "Full time"},
    },
    "ethnicity_race": {
        "federal_ethnicity": "NO", "races": {"district_race_code": "B", "federal_race_code_category": "B"},
    },
}  # fmt: skip


def decoded(resource: str, page: Any) -> list[dict[str, Any]]:
    return list(provider().decode(resource, json.dumps(page).encode()))


def test_one_element_is_an_object_and_several_are_a_list():
    assert decoded("students", {"students": {"@expansions": "", "student": MARIBEL}}) == [MARIBEL]
    assert decoded("schools", {"schools": {"school": [{"id": 1}, {"id": 2}]}}) == [{"id": 1}, {"id": 2}]
    assert decoded("staff-27", {"staffs": {"staff": {"id": 3}}}) == [{"id": 3}]


@pytest.mark.parametrize("wrapper", [{}, {"@expansions": "x", "@extensions": ""}, "", None])
def test_no_element_is_a_wrapper_without_the_key(wrapper):
    assert decoded("students", {"students": wrapper}) == []


@pytest.mark.parametrize("resource", ["section_enrollments", "school_enrollments", "student_ids"])
def test_tables_and_queries_without_rows_have_no_record_key(resource):
    assert decoded(resource, {"name": "cc", "@extensions": ""}) == []


def test_rows_are_flat_or_inside_their_table():
    flat = {"name": "cc", "record": [{"DCID": "90211", "sectionid": "-1773"}], "@extensions": ""}
    nested = {
        "name": "cc",
        "record": {"id": 1, "name": "cc", "tables": {"cc": {"dcid": "90211", "sectionid": "-1773"}}},
    }
    assert (
        decoded("section_enrollments", flat)
        == decoded("section_enrollments", nested)
        == [{"dcid": "90211", "sectionid": "-1773"}]
    )


@pytest.mark.parametrize(
    "block",
    [
        {
            "name": "U_Students_Extension",
            "recordFound": True,
            "_field": {"name": "school_email", "type": "String", "value": "m@x.example"},
        },
        [
            {"name": "s_stu_x", "recordFound": False},
            {
                "name": "u_students_extension",
                "_field": [{"name": "school_email", "value": "m@x.example"}, {"name": "b", "value": 2}],
            },
        ],
    ],
)
def test_extension_fields_are_found_in_one_table_or_several(block):
    (student,) = decoded(
        "students", {"students": {"student": {**MARIBEL, "_extension_data": {"_table_extension": block}}}}
    )
    assert student["extension"]["u_students_extension"]["school_email"] == "m@x.example"


@pytest.mark.parametrize(
    ("resource", "body"),
    [
        ("students", b'{"schools": {"school": []}}'),
        ("students", b'{"students": [1, 2]}'),
        ("students", b'{"students": {"student": "none"}}'),
        ("section_enrollments", b'{"message": "Validation Failed", "errors": []}'),
        ("students", b"<html><head><title>PowerSchool page unavailable</title></head></html>"),
        ("students", b'{"students": {"student": [{"id": 1}, {"i'),
        ("students", b'{"students": {"student": {"id": NaN}}}'),
        ("metadata", b"{}"),
        ("students", b""),
        ("students", b"[" * 100_000),
    ],
)
def test_what_the_api_does_not_allow_is_a_broken_contract_without_a_value(resource, body):
    with pytest.raises(ContractError) as broken:
        provider().decode(resource, body)
    assert "none" not in broken.value.message


# --- standard frames from literal pages ------------------------------------------------------------------------------


def snapshot(year: SchoolYear = YEAR, **pages: Any) -> MemorySnapshot:
    """Pages by resource, `__` for the dash of per-school resources; schools 27 and 999999 are there unless given."""
    raw = MemorySnapshot(year)
    schools = [
        {"id": 27, "name": "Larkspur Middle", "school_number": 310},
        {"id": 5, "name": "Graduated Students", "school_number": 999999},
    ]
    for name, page in {
        "metadata": {"metadata": {"plugin_id": 7, "state": "AZ"}},
        "schools": {"schools": {"school": schools}},
        **pages,
    }.items():
        kind, _, owner = name.partition("__")
        raw.add(f"{kind}-{owner}" if owner else kind, json.dumps(page).encode(), **({"school": owner} if owner else {}))
    return raw


def enrolled(**more: Any) -> dict[str, Any]:
    """Maribel with another current enrollment."""
    return {**MARIBEL, "school_enrollment": {**MARIBEL["school_enrollment"], **more}}


def students(*records: Mapping[str, Any]) -> dict[str, Any]:
    return {"students": {"student": list(records)}}


def earlier(**more: str) -> dict[str, Any]:
    row = {"dcid": "1", "students_dcid": "8841", "schools_dcid": "27", "grade_level": "7", "entrydate": "2025-08-11",
           "entrycode": "E1", "exitdate": "2025-10-03", "exitcode": "W1"}  # fmt: skip
    return {"name": "reenrollments", "record": {**row, **more}, "@extensions": ""}


def test_a_student_as_powerschool_writes_one():
    frames = provider().standardise(snapshot(students=students(MARIBEL)))
    assert rows(
        frames["students"], "sis_id", "ssid", "ssid_issuer", "local_id", "local_id_issuer", "first_name", "birth_date", "sex",
        "home_postal_code", "phone", "grade_level", "school_sis_id", "enrollment_status", "graduation_year", "fte",
    ) == [
        ("8841", "7781203345", "AZ", "204417", None, "Maribel", "2012-02-29", "female", "05250", None, "08", "27", "active", "2030", "1"),
    ]  # fmt: skip
    assert rows(frames["students"], "hispanic_or_latino", "black_or_african_american", "white") == [
        ("false", "true", "false")
    ]
    assert rows(
        frames["enrollments"],
        "sis_id",
        "student_sis_id",
        "school_sis_id",
        "school_year",
        "entry_date",
        "exit_date",
        "entry_code",
        "status",
    ) == [("8841-27-2025-08-11", "8841", "27", "2025-2026", "2025-08-11", "2026-05-29", "E1", "active")]


def test_no_races_say_nothing_and_zero_is_no_graduation_year():
    record = {**MARIBEL, "ethnicity_race": "", "demographics": {"gender": "M", "projected_graduation_year": 0}}
    frame = provider().standardise(snapshot(students=students(record)))["students"]
    assert rows(frame, "white", "hispanic_or_latino", "graduation_year", "sex", "birth_date") == [
        (None, None, None, "male", None)
    ]


def test_digits_and_issuers_come_from_the_settings():
    settings = {
        "local_id_digits": 8,
        "ssid_digits": 12,
        "postal_code_digits": 6,
        "state": "TX",
        "district": "fernhollow",
    }
    frame = provider(**settings).standardise(snapshot(students=students(MARIBEL)))["students"]
    assert rows(frame, "local_id", "ssid", "home_postal_code", "ssid_issuer", "local_id_issuer") == [
        ("00204417", "007781203345", "005250", "TX", "fernhollow")
    ]


def test_an_issuer_stands_beside_a_number_only():
    unknown = {name: value for name, value in MARIBEL.items() if name not in {"state_province_id", "local_id"}}
    frame = provider(district="fernhollow").standardise(snapshot(students=students(unknown)))["students"]
    assert rows(frame, "ssid", "ssid_issuer", "local_id_issuer") == [(None, None, None)]


def test_a_custom_field_is_read_from_an_extension():
    extended = {
        **MARIBEL,
        "_extension_data": {"_table_extension": {"name": "u_x", "_field": {"name": "mail", "value": "m@x.example"}}},
    }
    frame = provider(custom_fields={"email": "extension.u_x.mail"}).standardise(snapshot(students=students(extended)))[
        "students"
    ]
    assert frame["email"].tolist() == ["m@x.example"]


@pytest.mark.parametrize(
    ("code", "letter", "status"),
    [(-1, "P", "pre_registered"), (1, "I", "withdrawn"), (2, "T", "transferred"), (3, "G", "graduated"), (4, "H", "withdrawn"), (17, "I", "withdrawn")],
)  # fmt: skip
def test_statuses_by_code_or_letter(code, letter, status):
    by_code = enrolled(enroll_status_code=code)
    by_letter = enrolled(enroll_status=letter)
    del by_letter["school_enrollment"]["enroll_status_code"]
    for record in (by_code, by_letter):
        frames = provider().standardise(snapshot(students=students(record)))
        assert frames["students"]["enrollment_status"].tolist() == [status]


def test_only_students_of_the_year_belong_to_it():
    gone, later = (
        enrolled(entry_date="2023-08-11", exit_date="2024-05-29"),
        enrolled(entry_date="2026-08-11", exit_date="2027-05-29"),
    )
    ending = enrolled(entry_date="2024-08-11", exit_date="2025-07-01")
    raw = snapshot(students=students(MARIBEL, {**gone, "id": 1}, {**later, "id": 2}, {**ending, "id": 3}))
    assert provider().standardise(raw)["students"]["sis_id"].tolist() == ["8841"]


def test_what_holds_for_a_past_year_comes_from_that_year():
    moved_on = enrolled(entry_date="2026-08-11", exit_date="2027-05-29", grade_level=9, school_id=31)
    raw = snapshot(students=students(moved_on), school_enrollments=earlier(exitdate="2026-05-29", grade_level="8"))
    frames = provider().standardise(raw)
    assert rows(frames["students"], "sis_id", "grade_level", "school_sis_id", "enrollment_status") == [
        ("8841", "08", "27", "withdrawn")
    ]
    assert rows(frames["enrollments"], "entry_date", "exit_date", "exit_code", "grade_level") == [
        ("2025-08-11", "2026-05-29", "W1", "08")
    ]


def test_a_move_within_the_year_shows_both_schools():
    now = enrolled(entry_date="2025-10-03", school_id=31)
    frames = provider().standardise(snapshot(students=students(now), school_enrollments=earlier()))
    assert rows(frames["enrollments"], "sis_id", "status") == [
        ("8841-27-2025-08-11", "withdrawn"),
        ("8841-31-2025-10-03", "active"),
    ]
    assert frames["students"]["school_sis_id"].tolist() == ["31"]


def test_an_enrollment_keeps_its_id_when_it_becomes_an_earlier_one():
    current = provider().standardise(snapshot(students=students(MARIBEL)))["enrollments"]
    left = enrolled(entry_date="2026-08-11", exit_date="2027-05-29")
    raw = snapshot(students=students(left), school_enrollments=earlier(exitdate="2026-05-29"))
    assert provider().standardise(raw)["enrollments"]["sis_id"].tolist() == current["sis_id"].tolist()


def test_two_rows_of_one_entry_date_are_told_apart():
    frames = provider().standardise(
        snapshot(students=students(MARIBEL), school_enrollments=earlier(exitdate="2025-08-01"))
    )
    assert rows(frames["enrollments"], "sis_id", "exit_date", "status") == [
        ("8841-27-2025-08-11-1", "2025-08-01", "no_show"),
        ("8841-27-2025-08-11", "2026-05-29", "active"),
    ]


def test_leaving_on_the_day_of_entry_is_a_no_show():
    frames = provider().standardise(snapshot(students=students(enrolled(exit_date="2025-08-11", enroll_status_code=2))))
    assert frames["enrollments"]["status"].tolist() == ["no_show"]
    assert frames["students"]["enrollment_status"].tolist() == ["no_show"]


def test_graduates_are_parked_in_a_school_that_is_none():
    parked = enrolled(
        entry_date="2026-05-29",
        exit_date="2026-05-29",
        school_id=5,
        school_number=999999,
        grade_level=99,
        enroll_status_code=3,
    )
    raw = snapshot(students=students(parked), school_enrollments=earlier(exitdate="2026-05-29", grade_level="12"))
    frames = provider().standardise(raw)
    assert frames["schools"]["sis_id"].tolist() == ["27"]
    assert rows(frames["enrollments"], "school_sis_id", "status", "grade_level") == [("27", "graduated", "12")]
    assert rows(frames["students"], "enrollment_status", "grade_level") == [("graduated", "12")]


def test_inclusive_exit_dates_are_a_setting():
    raw = snapshot(students=students(MARIBEL), section_enrollments={"name": "cc", "record": {
        "dcid": "1", "students_dcid": "8841", "sections_dcid": "9", "dateenrolled": "2025-08-11", "dateleft": "2025-08-11"}})  # fmt: skip
    frames = provider(exit_dates="inclusive").standardise(raw)
    assert frames["enrollments"]["exit_date"].tolist() == ["2026-05-30"]
    assert frames["section_enrollments"]["end_date"].tolist() == ["2025-08-12"]


def test_an_active_student_without_an_entry_date_is_kept_for_quarantine():
    frames = provider().standardise(snapshot(students=students(enrolled(entry_date=""), {**MARIBEL, "id": 1})))
    assert frames["students"]["sis_id"].tolist() == ["8841", "1"]


def term(**more: Any) -> dict[str, Any]:
    return {"id": 61, "local_id": 3500, "school_id": 27, "start_year": 2025, "portion": 1, "start_date": "2025-08-11",
            "end_date": "2026-05-28", "abbreviation": "25-26", "name": "2025-2026", **more}  # fmt: skip


def test_terms_of_the_year_end_a_day_after_their_last_day_and_know_their_year():
    terms = {
        "terms": {
            "term": [
                term(),
                term(id=62, portion=2, name="S1", end_date="2025-12-19"),
                term(id=63, portion=6),
                term(id=51, start_year=2024),
            ]
        }
    }
    frame = provider().standardise(snapshot(students=students(MARIBEL), terms__27=terms))["academic_sessions"]
    assert rows(frame, "sis_id", "kind", "end_date", "school_year", "school_sis_id", "parent_sis_id") == [
        ("61", "school_year", "2026-05-29", "2025-2026", "27", None),
        ("62", "semester", "2025-12-20", "2025-2026", "27", "61"),
        ("63", "term", "2026-05-29", "2025-2026", "27", "61"),
    ]


def staff(number: int, users: int, school: int, *places: tuple[int, int, int]) -> dict[str, Any]:
    block = [{"school_id": at, "type": kind, "status": active} for at, kind, active in places]
    return {"id": number, "local_id": 77, "name": {"first_name": "Ada", "last_name": "Quill"}, "users_dcid": users,
            "emails": "", "school_affiliations": {"school_affiliation": block[0] if len(block) == 1 else block}}  # fmt: skip


def test_a_person_at_two_schools_is_one_and_sections_name_the_person():
    section = {
        "id": 9,
        "school_id": 27,
        "course_id": 3,
        "staff_id": 802,
        "term_id": 61,
        "section_number": 2,
        "expression": "1(A-B)",
    }
    raw = snapshot(
        students=students(MARIBEL),
        terms__27={"terms": {"term": term()}},
        staff__27={"staffs": {"staff": staff(802, 150, 27, (27, 1, 1), (31, 2, 1), (44, 1, 0))}},
        staff__31={"staffs": {"staff": [staff(803, 150, 31, (27, 1, 1), (31, 2, 1)), staff(804, 151, 31, (31, 2, 1))]}},
        courses__27={"courses": {"course": {"id": 3, "course_number": "MA8", "course_name": "Math 8"}}},
        courses__31={"courses": {"course": {"id": 3, "course_number": "MA8", "course_name": "Math 8"}}},
        sections__27={
            "sections": {
                "section": [section, {**section, "id": 10, "term_id": 51}, {**section, "id": 11, "staff_id": 999}]
            }
        },
    )
    frames = provider().standardise(raw)
    assert rows(frames["staff"], "sis_id", "role", "school_sis_id", "school_sis_ids") == [
        ("150", "teacher", "27", '["27", "31"]'),
        ("151", "staff", "31", '["31"]'),
    ]
    assert rows(frames["courses"], "sis_id", "title", "course_code") == [("3", "Math 8", "MA8")]
    assert rows(frames["sections"], "sis_id", "teacher_sis_id", "session_sis_ids", "periods", "section_code") == [
        ("9", "150", '["61"]', '["1(A-B)"]', "2"),
        ("11", None, '["61"]', '["1(A-B)"]', "2"),
    ]
    teaching = frames["section_enrollments"]
    assert rows(teaching, "sis_id", "role", "person_sis_id", "is_primary", "school_sis_id") == [
        ("teacher-9-150", "teacher", "150", "true", "27")
    ]


def test_dropped_classes_keep_their_dates_and_no_shows_never_sat_there():
    query = {"name": "cc", "record": [
        {"dcid": "1", "students_dcid": "8841", "sections_dcid": "9", "sectionid": "-1773", "termid": "-3500", "dateenrolled": "2025-08-11", "dateleft": "2025-10-03"},
        {"dcid": "2", "students_dcid": "8841", "sections_dcid": "9", "sectionid": "1773", "termid": "3500", "dateenrolled": "2025-08-11", "dateleft": "2025-08-11"},
        {"dcid": "3", "students_dcid": "8841", "sections_dcid": "9", "sectionid": "1773", "termid": "3500", "dateenrolled": "2025-08-11", "dateleft": "2026-05-29"},
    ]}  # fmt: skip
    frame = provider().standardise(snapshot(students=students(MARIBEL), section_enrollments=query))[
        "section_enrollments"
    ]
    assert rows(frame, "sis_id", "begin_date", "end_date") == [
        ("1", "2025-08-11", "2025-10-03"),
        ("3", "2025-08-11", "2026-05-29"),
    ]


def test_table_rows_are_joined_by_the_ids_of_the_tables():
    """STUDENTS.ID 5120 is DCID 8841; SECTIONS.ID 1773 is DCID 9, and there is another section with DCID 1773."""
    raw = snapshot(
        students=students(MARIBEL),
        section_enrollments={"name": "cc", "record": [{"tables": {"cc": {
            "dcid": "1", "studentid": "5120", "sectionid": "-1773", "termid": "-3500", "dateenrolled": "2025-08-11", "dateleft": "2025-10-03"}}}]},
        school_enrollments={"name": "r", "record": {"tables": {"reenrollments": {
            "dcid": "4", "studentid": "5120", "schoolid": "310", "entrydate": "2025-07-20", "exitdate": "2025-08-01", "grade_level": "0"}}}},
        student_ids={"name": "students", "record": [{"dcid": "8841", "id": "5120"}, {"dcid": "5120", "id": "8841"}]},
        section_ids={"name": "sections", "record": [{"dcid": "9", "id": "1773"}, {"dcid": "1773", "id": "9"}]},
    )  # fmt: skip
    frames = provider().standardise(raw)
    assert rows(frames["section_enrollments"], "person_sis_id", "section_sis_id") == [("8841", "9")]
    assert rows(frames["enrollments"].head(1), "student_sis_id", "school_sis_id", "grade_level") == [
        ("8841", "27", "KG")
    ]


def test_a_missing_expansion_is_named_as_drift():
    without = {name: value for name, value in MARIBEL.items() if name != "school_enrollment"} | {
        "school_enrollment": {"enroll_status_code": 0}
    }
    with pytest.raises(ContractError, match=r"school_enrollment\.school_id"):
        provider().standardise(snapshot(students=students(without)))


# --- planning ------------------------------------------------------------------------------------------------------

METADATA = {"metadata": {f"{kind}_max_page_size": 1000 for kind in (
    "student", "section", "section_enrollment", "course", "school", "staff", "term", "schema_table_query")}}  # fmt: skip
QUERY = "/ws/schema/query/org.sis_pipeline.roster"
SERVER: dict[str, Any] = {
    "/ws/v1/metadata": METADATA,
    "/ws/v1/district/school": {"schools": {"school": [
        {"id": 27, "name": "L", "school_number": 310}, {"id": 5, "name": "G", "school_number": 999999}]}},
    "/ws/v1/district/student/count": {"resource": {"count": 2_500}},
    f"{QUERY}.section_enrollments/count": {"count": 17_300},
    f"{QUERY}.school_enrollments/count": {"count": 0},
}  # fmt: skip


def test_the_plan_counts_its_calls_and_says_what_the_plugin_allows():
    source = Script(SERVER)
    plan = provider().plan(source, YEAR, {})
    assert len(source.sent) == 5
    by_name = {resource.name: resource for resource in plan.resources}
    assert list(by_name) == [
        "metadata", "schools", "terms-27", "staff-27", "courses-27", "sections-27", "students", "school_enrollments", "section_enrollments",
    ]  # fmt: skip
    assert (plan.basis, plan.calls) == ("source_counts", 4 + (3 + 2) + 1 + (18 + 2))
    assert plan.notes[0] == "The plugin allows pages of 1000 students and of 1000 query rows."
    assert by_name["section_enrollments"].request.json == {"yearid": "35"}
    assert by_name["sections-27"].request.params["q"] == "term.start_year==2025"
    assert by_name["terms-27"].request.params["q"] == "start_year==2025"
    assert by_name["sections-27"].request.template == "/ws/v1/school/{id}/section"
    assert "school_enrollment" in by_name["students"].request.params["expansions"]
    assert all(request.headers["Accept"] == "application/json" for request in source.sent)


def test_the_next_plan_rests_on_the_last_snapshot():
    last = {"students": 2_400, "sections-27": 1_100, "terms-27": 3, "staff-27": 40, "courses-27": 200}
    source = Script(SERVER)
    plan = provider().plan(source, YEAR, last)
    assert [request.path for request in source.sent].count("/ws/v1/district/student/count") == 0
    assert plan.basis == "last_snapshot"
    assert plan.calls == (1 + 1 + 1) + (2 + 2) + (3 + 2) + 1 + (18 + 2)


def test_the_page_size_never_exceeds_what_the_plugin_allows():
    def sizes(**settings: Any) -> tuple[int, str]:
        plan = provider(**settings).plan(Script(SERVER), YEAR, {})
        resource = next(resource for resource in plan.resources if resource.name == "students")
        return resource.pager.size, plan.notes[0]  # type: ignore[attr-defined]

    assert sizes()[0] == 1_000
    assert sizes(page_size=50_000)[0] == 1_000
    assert sizes(page_size=200) == (
        200,
        "The plugin allows pages of 1000 students and of 1000 query rows. The setting page_size asks for 200 at most.",
    )


def test_without_a_stated_maximum_a_short_page_proves_nothing():
    plan = provider().plan(Script({**SERVER, "/ws/v1/metadata": {"metadata": {"plugin_id": 1}}}), YEAR, {})
    pager = next(resource for resource in plan.resources if resource.name == "students").pager
    assert (pager.size, pager.proven) == (100, False)  # type: ignore[attr-defined]


def test_extensions_are_asked_for_where_custom_fields_need_them():
    custom = {"email": "extension.u_x.mail", "pronouns": "extension.u_a.words", "homeroom": "schedule_setup.home_room"}
    plan = provider(custom_fields=custom).plan(Script(SERVER), YEAR, {})
    request = next(resource for resource in plan.resources if resource.name == "students").request
    assert request.params["extensions"] == "u_a,u_x"


def test_the_district_office_is_read_only_where_asked_for():
    plan = provider(district_office_staff=True).plan(Script(SERVER), YEAR, {})
    assert "staff-0" in {resource.name for resource in plan.resources}


def test_an_earlier_year_needs_the_history():
    refused = {path: answer for path, answer in SERVER.items() if "school_enrollments" not in path}
    with pytest.raises(ConfigError, match="2025-2026"):
        provider().plan(Script(refused), YEAR, {})


def test_dead_credentials_do_not_pass_for_a_plugin_without_the_query():
    dead = AuthRevokedError("The client id and secret are not accepted.", status=403, oauth_error=None)
    with pytest.raises(AuthRevokedError):
        provider().plan(Script({**SERVER, f"{QUERY}.section_enrollments/count": dead}), YEAR, {})


def test_a_way_that_is_set_is_not_replaced_by_another():
    refused = {path: answer for path, answer in SERVER.items() if "section_enrollments" not in path}
    for via in ("powerquery", "table"):
        with pytest.raises(ConfigError, match=f"section_enrollments_via is {via}"):
            provider(section_enrollments_via=via).plan(Script(refused), YEAR, {})


def test_a_failing_server_is_no_missing_query():
    failing = {**SERVER, f"{QUERY}.section_enrollments/count": ConfigError("The server failed.", status=500)}
    with pytest.raises(SisError, match="The server failed"):
        provider().plan(Script(failing), YEAR, {})


def test_one_call_proves_the_connection():
    source = Script({"/ws/v1/metadata": {"metadata": {**METADATA["metadata"], "powerschool_version": "24.7.0.1"}}})
    said = provider().check(source)
    assert said == "PowerSchool 24.7.0.1 answers; the plugin allows pages of 1000 students and of 1000 query rows."
    assert len(source.sent) == 1


# --- the plugin the district installs ------------------------------------------------------------------------------


def test_the_plugin_asks_for_exactly_what_the_provider_reads():
    namespace = {"p": "http://plugin.powerschool.pearson.com"}
    fields = ElementTree.parse(PLUGIN / "plugin.xml").getroot().findall("p:access_request/p:field", namespace)
    asked = [(field.get("table"), field.get("field")) for field in fields]
    needed = {
        (table, column)
        for part in (TABLE_COLUMNS, QUERIED_FIELDS)
        for table, columns in part.items()
        for column in columns
    }
    assert set(asked) == needed
    assert len(asked) == len(set(asked))
    assert {field.get("access") for field in fields} == {"ViewOnly"}


def test_the_queries_of_the_plugin_give_the_columns_the_provider_reads():
    queries = ElementTree.parse(PLUGIN / "queries_root" / "sis_pipeline.named_queries.xml").getroot().findall("query")
    settings = provider().settings
    names = {
        settings.section_enrollments_query: "section_enrollments",
        settings.school_enrollments_query: "school_enrollments",
    }
    assert {names[str(query.get("name"))] for query in queries} == set(QUERY_COLUMNS)
    allowed = {
        f"{table}.{column}"
        for part in (TABLE_COLUMNS, QUERIED_FIELDS)
        for table, columns in part.items()
        for column in columns
    }
    for query in queries:
        columns = query.findall("columns/column")
        assert tuple(column.text for column in columns) == QUERY_COLUMNS[names[str(query.get("name"))]]
        assert {str(column.get("column")).lower() for column in columns} <= allowed
        assert [argument.get("name") for argument in query.findall("args/arg")] == ["yearid"]
        selected = str(query.findtext("sql")).split("FROM")[0].split("SELECT")[1].replace("\n", " ").split(",")
        assert [name.strip() for name in selected] == [str(column.get("column")).lower() for column in columns]


# --- whole syncs over real sockets ---------------------------------------------------------------------------------

WAYS: dict[str, dict[str, Any]] = {
    "queries": {"max_page_size": 100},
    "tables": {"max_page_size": 500, "no_access": ["section_enrollments", "school_enrollments"]},
    "sections": {"max_page_size": 60, "no_access": ["section_enrollments", "cc"]},
}


@pytest.fixture(scope="module")
def towns() -> Iterator[dict[str, SandboxServer]]:
    """The same district three times, with a plugin that allows less each time."""
    servers = {
        way: SandboxServer(World(seed=5, systems=(System("ps", "powerschool", 90, options),), school_year=WORLD_YEAR), enforce_limits=False)
        for way, options in WAYS.items()
    }  # fmt: skip
    for server in servers.values():
        server.__enter__()
    yield servers
    for server in servers.values():
        server.__exit__(None, None, None)


def at(server: SandboxServer, **settings: Any) -> tuple[PowerSchool, OverHttp]:
    server.faults.clear()
    handle = server.system("ps")
    there = provider(**{**handle.settings, "district": "fernhollow", **settings})
    return there, OverHttp(handle.base_url, there.authentication(), handle.client_secret)


def counted(found: Pulled) -> dict[str, int]:
    """Good rows per entity, after references that lead nowhere are taken out."""
    frames = quarantine_dangling({name: checked.frame for name, checked in found.validated.items()}).frames
    seats = frames["section_enrollments"]
    return {name: len(frame) for name, frame in frames.items()} | {
        "section_enrollments": int((seats["role"] == "student").sum())
    }


@pytest.mark.parametrize(("day", "year"), [(1, WORLD_YEAR), (2, WORLD_YEAR), (3, WORLD_YEAR), (1, "2025-2026")])
@pytest.mark.parametrize("way", WAYS)
def test_rows_equal_the_truth_in_every_way_of_reading(towns, way, day, year):
    server = towns[way]
    server.set_day(day)
    found = pull(*at(server), SchoolYear.parse(year))
    assert verdict(found.readings) == "complete", [reading for reading in found.readings if not reading.complete]
    expected = {entity: count.good for entity, count in server.truth(day, year).rows["ps"].items()}
    assert counted(found) == expected


def test_every_value_arrives(towns):
    server = towns["queries"]
    server.set_day(1)
    found = pull(*at(server), SchoolYear.parse(WORLD_YEAR)).good("students").astype(object).set_index("sis_id")
    found = found.where(found.notna(), None)
    system = server.world.system("ps")
    expected = {student.sis_id: student.values for student in server.world.view("ps", 1).students}
    wrong = [
        (attribute, sis_id)
        for attribute in sorted(system.carries)
        for sis_id, value in found[attribute].items()
        if _plain(value) != _plain(as_published(expected[sis_id], attribute))
    ]
    assert wrong == []
    assert len(found) > 80
    assert set(found["ssid_issuer"].dropna()) == {"NJ"}


def _plain(value: Any) -> Any:
    return None if value is None or value == "" else str(value).partition(" 00:00:00")[0]


def test_custom_fields_are_read_over_http(towns):
    server = towns["queries"]
    custom = {
        "preferred_first_name": "extension.studentcorefields.pref_first_name",
        "email": "extension.u_students_extension.school_email",
    }
    found = pull(*at(server, custom_fields=custom), SchoolYear.parse(WORLD_YEAR)).good("students")
    expected = {row.sis_id: row.values["preferred_first_name"] for row in server.world.view("ps", 1).students}
    assert found["preferred_first_name"].notna().any()
    assert all(expected[sis_id] == name for sis_id, name in rows(found, "sis_id", "preferred_first_name"))
    assert found["email"].notna().any()


@pytest.mark.parametrize("way", WAYS)
def test_the_calls_of_a_second_sync_are_known_before(towns, way):
    server = towns[way]
    server.set_day(1)
    year = SchoolYear.parse(WORLD_YEAR)
    first = pull(*at(server), year)
    there, source = at(server)
    plan = there.plan(source, year, {reading.resource: reading.rows for reading in first.readings})
    planning = source.calls
    assert verdict(read(plan, source.send, there.decode, MemorySnapshot(year))) == "complete"
    assert source.calls - planning == plan.calls


@pytest.mark.parametrize(
    ("kind", "path", "settings"),
    [
        ("empty_page", "student.*page=1(&|$)", {}),
        ("empty_page", "query/.*section_enrollments.*page=3(&|$)", {}),
        ("repeated_page", "query/.*section_enrollments.*page=2(&|$)", {}),
        ("shifted_page", "query/.*section_enrollments.*page=2(&|$)", {"change": "delete"}),
        ("duplicate_ids", "query/.*section_enrollments.*page=2(&|$)", {}),
    ],
)
def test_a_page_that_goes_wrong_once_is_found_out_and_repaired(towns, kind, path, settings):
    server = towns["queries"]
    server.set_day(1)
    there, source = at(server)
    expected = {entity: count.good for entity, count in server.truth(1, WORLD_YEAR).rows["ps"].items()}
    last = {"students": 92}
    server.faults.add(kind, system="ps", path=path, with_=settings)
    found = pull(there, source, SchoolYear.parse(WORLD_YEAR), last)
    assert server.faults.listed()[0]["fired"] == 1
    if kind != "shifted_page":
        assert verdict(found.readings) == "complete"
        assert counted(found) == expected
    else:
        assert any(reading.attempts > 1 for reading in found.readings)


def test_a_page_that_repeats_for_ever_is_never_complete(towns):
    server = towns["queries"]
    there, source = at(server)
    server.faults.add("repeated_page", system="ps", path="query/.*section_enrollments.*page=2(&|$)", times=None)
    found = pull(there, source, SchoolYear.parse(WORLD_YEAR))
    assert verdict(found.readings) == "partial"
    (reading,) = [reading for reading in found.readings if not reading.complete]
    assert (reading.resource, reading.attempts) == ("section_enrollments", 3)


@pytest.mark.parametrize("way", WAYS)
def test_a_sync_through_the_products_own_door(towns, way, database):
    """Token, rate limit, error classes and call records included; refused queries lead to the next way."""
    server = towns[way]
    server.set_day(1)
    server.faults.clear()
    handle = server.system("ps")
    there = provider(**handle.settings)
    vault = Vault.open(database, Keys([Fernet.generate_key().decode()]))
    vault.put("fernhollow-ps", "client_secret", handle.client_secret)
    source = open_source(
        "fernhollow-ps", provider="powerschool", settings=there.settings, oauth=there.authentication(),
        requests_per_minute=600_000, vault=vault, engine=database,
    )  # fmt: skip
    with source:
        found = pull(there, source, SchoolYear.parse(WORLD_YEAR))
        assert there.check(source).startswith("PowerSchool 24.7.0.1 answers")
    assert verdict(found.readings) == "complete"
    assert counted(found) == {entity: count.good for entity, count in server.truth(1, WORLD_YEAR).rows["ps"].items()}
    assert source.token_calls == 1


class TestConformance(ProviderConformance):
    """Our own provider under the test that plugin authors run."""

    minimum_rows: ClassVar[Mapping[str, int]] = {
        "schools": 2, "academic_sessions": 3, "students": 80, "staff": 5, "courses": 5, "sections": 10, "enrollments": 80,
        "section_enrollments": 300,
    }  # fmt: skip

    @pytest.fixture
    def school_year(self) -> SchoolYear:
        return SchoolYear.parse(WORLD_YEAR)

    @pytest.fixture
    def _there(self, towns: dict[str, SandboxServer]) -> tuple[PowerSchool, OverHttp]:
        towns["queries"].set_day(1)
        return at(towns["queries"])

    @pytest.fixture
    def provider(self, _there: tuple[PowerSchool, OverHttp]) -> Provider:
        return _there[0]

    @pytest.fixture
    def source(self, _there: tuple[PowerSchool, OverHttp]) -> Source:
        return _there[1]
