"""Skyward's three APIs over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.sandbox.clients import Client, client


@pytest.fixture
def sms(sandbox: SandboxServer) -> Client:
    return client(sandbox.system("sms"))


@pytest.fixture
def qmlativ(sandbox: SandboxServer) -> Client:
    return client(sandbox.system("qm"))


def everything(sms: Client, path: str, limit: int = 1000) -> list[dict]:
    """All rows behind the cursors: the link says `cursor`, the request must say `paging.cursor`."""
    found, cursor = [], ""
    while True:
        answer = sms.get(path, **{"paging.limit": limit, "paging.cursor": cursor})
        assert isinstance(answer.json(), list), "a bare array"
        found += answer.json()
        if "next" not in answer.links:
            return found
        cursor = answer.links["next"]["url"].rpartition("cursor=")[2]
        assert "paging.cursor" not in answer.links["next"]["url"]


def objects(qmlativ: Client, name: str, *fields: str, size: int = 500, entity: int = 1, **params: Any) -> list[dict]:
    found, path = [], f"/Generic/{entity}/{name}/1/{size}"
    while path:
        answer = qmlativ.get(path, searchFields=list(fields), **params).json()
        found += answer["Objects"]
        path = answer["Paging"]["Next"]
    return found


# --- OneRoster -----------------------------------------------------------------------------------------------------


def test_oneroster_lacks_the_rostering_segment(sandbox: SandboxServer) -> None:
    handle = sandbox.system("sky")
    assert handle.base_url.endswith("/ims/oneroster/v1p2")
    assert handle.settings["api_flavor"] == "oneroster"
    assert client(handle).get("/orgs").status_code == 200


def test_dropped_sections_keep_their_enrollment_with_an_end(sandbox: SandboxServer, world: World) -> None:
    sandbox.set_day(2)
    rows = client(sandbox.system("sky")).get("/enrollments", limit=10_000).json()["enrollments"]
    ended = [row for row in rows if row["endDate"] == world.date(2).isoformat()]
    drops = {
        (change.person, change.section) for change in sandbox.truth().changes
        if change.kind == "section_drop" and change.stated and change.section[0] == "sky"
    }  # fmt: skip
    assert len(ended) == len(drops) > 0


# --- SMS 2.0 -------------------------------------------------------------------------------------------------------


def test_sms_gives_tokens_for_both_grants(sms: Client) -> None:
    handle = sms.handle
    form = {"grant_type": "password", "username": handle.client_id, "password": handle.client_secret}
    answer = requests.post(handle.token_url, data=form, timeout=10)
    assert answer.status_code == 200
    assert isinstance(answer.json()["expires_in"], int)
    wrong = requests.post(handle.token_url, data={**form, "password": "guess"}, timeout=10)
    assert wrong.status_code == 400


def test_sms_pages_by_cursor(sms: Client, sandbox: SandboxServer) -> None:
    students = everything(sms, "/v1/students", limit=25)
    assert len({row["NameId"] for row in students}) == len(students)
    truth = sandbox.truth().rows["sms"]["students"]
    assert len(students) == truth.good + truth.bad
    assert sms.get("/v1/students", **{"paging.cursor": "%%%"}).status_code == 400


def test_sms_has_a_graduation_year_and_no_grade(sms: Client, world: World) -> None:
    rows = {str(row["NameId"]): row for row in everything(sms, "/v1/students")}
    for student in world.view("sms", 1).students:
        row = rows[student.sis_id]
        assert 12 - (row["GradYr"] - (world.year + 1)) == student.values["grade_level"]
        assert row["DateOfBirth"].endswith("T00:00:00")
        assert not any("grade" in key.casefold() for key in row)
    assert {type(row["NameId"]) for row in rows.values()} == {int}
    assert sum(row["LastName"] is None for row in rows.values()) == 1


def test_sms_writes_no_date_as_dotnet_does(sms: Client, sandbox: SandboxServer, world: World) -> None:
    sandbox.set_day(2)
    rows = everything(sms, "/v1/enrollments")
    dates = {row["EnrStatus"]: row["EndDate"] for row in rows}
    assert dates == {"A": "0001-01-01T00:00:00", "D": f"{world.date(2).isoformat()}T00:00:00"}
    truth = sandbox.truth().rows["sms"]["section_enrollments"]
    assert len(rows) == truth.good + truth.bad


def test_sms_narrow_lists_agree_with_the_flat_ones(sms: Client) -> None:
    school = everything(sms, "/v1/schools")[0]["SchoolId"]
    here = everything(sms, f"/v1/schools/{school}/students")
    assert here
    assert all(row["DefaultSchoolId"] == school for row in here)
    student = here[0]["NameId"]
    assert sms.get(f"/v1/students/{student}").json() == here[0]
    seats = everything(sms, f"/v1/students/{student}/enrollments")
    assert seats == [row for row in everything(sms, "/v1/enrollments") if row["NameId"] == student]
    guardians = everything(sms, f"/v1/guardians?studentNameId={student}")
    assert [child["StudentNameId"] for child in guardians[0]["Students"]].count(student) == 1
    sections = {row["SectionId"]: row for row in everything(sms, "/v1/sections")}
    staff = {row["NameId"] for row in everything(sms, "/v1/staff")}
    courses = {row["CourseId"] for row in everything(sms, "/v1/courses")}
    known = [row for row in seats if row["SectionId"] in sections]
    assert known
    assert {sections[row["SectionId"]]["StaffNameId"] for row in known} <= staff
    assert {row["CourseId"] for row in known} <= courses


@pytest.fixture
def narrow() -> Iterator[Client]:
    options = {"flat_collections": False, "census": True, "grants": ("client_credentials",)}
    with SandboxServer(World(systems=[System("sms", "skyward_sms", 20, options)]), enforce_limits=False) as sandbox:
        yield client(sandbox.system("sms"))


def test_sms_may_lack_what_nobody_confirmed(narrow: Client) -> None:
    for name in ("staff", "courses", "sections", "enrollments"):
        assert narrow.get(f"/v1/{name}").status_code == 404
    assert narrow.get("/v1/guardians").status_code == 400
    assert everything(narrow, "/v1/schools")[-1]["SchoolName"] == "Census"
    form = {"grant_type": "password", "username": narrow.handle.client_id, "password": narrow.handle.client_secret}
    assert requests.post(narrow.handle.token_url, data=form, timeout=10).status_code == 400


# --- Qmlativ -------------------------------------------------------------------------------------------------------


def test_qmlativ_gives_only_the_named_fields_and_the_next_page(qmlativ: Client, world: World) -> None:
    students = objects(qmlativ, "Student/Student", "StudentID", "LastName", size=30)
    assert len({row["StudentID"] for row in students}) == len(students) == len(world.view("qm", 1).students)
    assert students[0].keys() == {"StudentID", "LastName"}
    first = qmlativ.get("/Generic/1/Student/Student/1/30", **{"searchFields[0]": "StudentID"}).json()
    assert first["Paging"]["Next"] == "/Generic/1/Student/Student/2/30"
    assert qmlativ.get("/Generic/1/Lunch/Menu/1/30").status_code == 404


def test_qmlativ_knows_its_years(qmlativ: Client, sandbox: SandboxServer, world: World) -> None:
    system = qmlativ.get("/Custom/GetSystemMetadata").json()["System"]
    current = system["Districts"][0]["SchoolYearCurrent"]
    assert current["NumericYear"] == world.year + 1
    for year_id, key in ((current["SchoolYearID"], world.school_year), (current["SchoolYearID"] - 1, world.prior_year)):
        truth = sandbox.truth(school_year=key).rows["qm"]
        seats = objects(qmlativ, "Scheduling/StudentSection", "StudentSectionID", SchoolYearID=year_id)
        assert len(seats) == truth["section_enrollments"].good + truth["section_enrollments"].bad
        stays = objects(qmlativ, "Enrollment/EntryWithdrawal", "StudentID", "SchoolYearID", SchoolYearID=year_id)
        assert len(stays) == truth["enrollments"].good + truth["enrollments"].bad
        assert {row["SchoolYearID"] for row in stays} == {year_id}


def test_qmlativ_writes_exits_with_code_and_date(qmlativ: Client, sandbox: SandboxServer, world: World) -> None:
    sandbox.set_day(2)
    today = f"{world.date(2).isoformat()}T00:00:00"
    fields = ("StudentID", "StartDate", "EndDate", "WithdrawalCodeID")
    left = [row for row in objects(qmlativ, "Enrollment/EntryWithdrawal", *fields) if row["EndDate"] == today]
    assert left
    codes = {row["WithdrawalCodeID"]: row["Code"] for row in objects(
        qmlativ, "Enrollment/WithdrawalCode", "WithdrawalCodeID", "Code"
    )}  # fmt: skip
    assert {codes[row["WithdrawalCodeID"]] for row in left} == {"T1"}


def test_qmlativ_narrows_by_entity_and_by_condition(qmlativ: Client) -> None:
    entities = objects(qmlativ, "District/Entity", "EntityID", "IsDistrictWide")
    school = next(row["EntityID"] for row in entities if not row["IsDistrictWide"])
    here = objects(qmlativ, "Scheduling/Section", "EntityID", entity=school)
    assert {row["EntityID"] for row in here} == {school}
    condition = {"FieldName": "EntityID", "ConditionType": "Equal", "Value": str(school)}
    body = {
        "SearchCondition": {
            "SearchConditionGroup": {
                "ConditionGroupType": "And",
                "Conditions": [{"StringSearchCondition": condition}],
            }
        },
        "SearchSort": [{"FieldName": "SectionID", "Descending": True}],
    }
    answer = qmlativ.post("/Generic/1/Scheduling/Section/1/500", body, searchFields=["SectionID", "EntityID"]).json()
    assert len(answer["Objects"]) == len(here)
    ids = [str(row["SectionID"]) for row in answer["Objects"]]
    assert ids == sorted(ids, reverse=True)
    wrong = {"SearchCondition": {"LongSearchCondition": {**condition, "ConditionType": "Roughly"}}}
    assert qmlativ.post("/Generic/1/Scheduling/Section/1/500", wrong).status_code == 400


def test_qmlativ_answers_403_to_an_expired_token(sandbox: SandboxServer) -> None:
    caller = client(sandbox.system("qm"))
    sandbox.system("qm").expire_tokens()
    answer = caller.get("/Custom/GetSystemMetadata")
    assert (answer.status_code, answer.json()) == (403, {"Message": "Token has expired"})


def test_qmlativ_references_resolve(qmlativ: Client) -> None:
    meets = {row["MeetID"] for row in objects(qmlativ, "Scheduling/Meet", "MeetID")}
    links = objects(qmlativ, "Scheduling/StaffMeet", "MeetID", "StaffID")
    staff = {row["StaffID"]: row["NameID"] for row in objects(qmlativ, "Staff/Staff", "StaffID", "NameID")}
    people = {row["NameID"] for row in objects(qmlativ, "Demographics/Name", "NameID")}
    assert {row["MeetID"] for row in links} <= meets
    assert {row["StaffID"] for row in links} <= staff.keys()
    assert set(staff.values()) <= people
    addresses = {row["AddressID"] for row in objects(qmlativ, "Demographics/Address", "AddressID")}
    assert {row["AddressID"] for row in objects(qmlativ, "Demographics/NameAddress", "AddressID")} <= addresses
