"""PowerSchool's API over a real socket: tokens, page sizes, type oddities, tables and PowerQueries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.sandbox.clients import Client, client

ALL = "demographics,addresses,alerts,phones,school_enrollment,ethnicity_race,contact_info,initial_enrollment,schedule_setup"
SECTIONS = "/ws/schema/query/org.sis_pipeline.roster.section_enrollments"
SCHOOLS = "/ws/schema/query/org.sis_pipeline.roster.school_enrollments"


@pytest.fixture(scope="module")
def ps(sandbox: SandboxServer) -> Client:
    return client(sandbox.system("ps"))


def students(ps: Client, expansions: str = ALL, **params: str) -> list[dict]:
    found: list[dict] = []
    for page in range(1, 20):
        got = ps.get("/ws/v1/district/student", expansions=expansions, page=page, **params).json()["students"]
        rows = got.get("student", [])
        found += rows if isinstance(rows, list) else [rows]
        if not rows:
            return found
    raise AssertionError("the pages do not end")


def test_the_same_token_is_handed_back_and_its_lifetime_is_text(ps: Client) -> None:
    one, two = ps.token().json(), ps.token().json()
    assert one["access_token"] == two["access_token"]
    assert one["token_type"] == "Bearer"
    assert isinstance(one["expires_in"], str)
    assert 2_591_000 < int(one["expires_in"]) <= 2_592_000


def test_credentials_belong_into_the_header(ps: Client) -> None:
    body = {
        "grant_type": "client_credentials",
        "client_id": ps.handle.client_id,
        "client_secret": ps.handle.client_secret,
    }
    refused = requests.post(ps.handle.token_url, data=body, timeout=10)
    assert (refused.status_code, refused.json()) == (401, {"error": "invalid_client"})


def test_an_expired_token_is_refused_as_the_vendor_does(sandbox: SandboxServer) -> None:
    caller = client(sandbox.system("ps"))
    sandbox.system("ps").expire_tokens()
    answer = caller.get("/ws/v1/metadata")
    assert answer.status_code == 401
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
    assert caller.get("/ws/v1/time").status_code == 200, "the clock needs no token"
    caller.authorise()
    assert caller.get("/ws/v1/metadata").status_code == 200


@pytest.fixture(autouse=True)
def signed_in(ps: Client) -> None:
    ps.authorise()


def test_page_sizes_above_the_plugins_maximum_are_refused(ps: Client) -> None:
    sizes = ps.get("/ws/v1/metadata").json()["metadata"]
    assert sizes["student_max_page_size"] == sizes["schema_table_query_max_page_size"] == 100
    assert ps.get("/ws/v1/district/student", pagesize=101).status_code == 400
    assert len(ps.get("/ws/v1/district/student").json()["students"]["student"]) == 100


def test_every_student_is_listed_whatever_the_status(ps: Client, sandbox: SandboxServer) -> None:
    listed = students(ps, "school_enrollment")
    count = ps.get("/ws/v1/district/student/count").json()
    assert count == {"resource": {"count": len(listed)}}
    assert len({row["id"] for row in listed}) == len(listed)
    letters = {row["school_enrollment"]["enroll_status"] for row in listed}
    assert {"A", "T", "G"} <= letters
    graduated = [row["school_enrollment"] for row in listed if row["school_enrollment"]["enroll_status"] == "G"]
    assert {(row["school_number"], row["grade_level"]) for row in graduated} == {(999_999, 99)}
    held = {str(row["id"]) for row in listed}
    assert {sis_id for group in sandbox.truth().people.values() for name, sis_id in group if name == "ps"} <= held


def test_without_expansions_there_is_little_to_see(ps: Client) -> None:
    for row in students(ps, ""):
        assert row.keys() <= {"id", "local_id", "state_province_id", "student_username", "name"}


def test_one_element_is_an_object_and_none_is_no_key(ps: Client) -> None:
    one = ps.get("/ws/v1/district/student", pagesize=1).json()["students"]
    assert isinstance(one["student"], dict)
    none = ps.get("/ws/v1/district/student", page=99).json()["students"]
    assert "student" not in none
    assert "@expansions" in none


def test_number_looking_text_becomes_a_number_and_loses_its_zeros(ps: Client) -> None:
    rows = students(ps)
    assert all(isinstance(row["local_id"], int) for row in rows)
    assert {type(row["addresses"]["physical"]["postal_code"]) for row in rows} == {int}
    assert all(row["addresses"]["physical"]["postal_code"] < 10_000 for row in rows), "New Jersey begins with 0"
    numbers = [row["phones"]["main"]["number"] for row in rows if row["phones"]]
    assert {type(number) for number in numbers} == {int, str}
    assert "" in [row["phones"] for row in rows], "an empty block is an empty text"
    assert {row["alerts"] for row in rows} == {""}
    assert "" in [row["contact_info"] for row in rows]
    assert any("middle_name" not in row["name"] for row in rows), "missing values are left out"
    assert {type(row["ethnicity_race"]["races"]) for row in rows} == {dict, list}


def test_bad_rows_are_delivered_as_they_are(ps: Client) -> None:
    rows = students(ps)
    assert sum("last_name" not in row["name"] for row in rows) == 1
    assert sum(row["demographics"]["birth_date"] == "2014-02-30" for row in rows) == 1


def test_the_pseudo_school_is_listed_but_not_counted(ps: Client, world: World) -> None:
    schools = ps.get("/ws/v1/district/school").json()["schools"]["school"]
    assert schools[-1]["school_number"] == 999_999
    assert ps.get("/ws/v1/district/school/count").json()["resource"]["count"] == len(schools) - 1
    ids = {school["id"] for school in schools}
    assert ids.isdisjoint({school["school_number"] for school in schools}), "a school's id is not its number"


def test_a_schools_students_are_the_active_ones_unless_the_search_says_otherwise(ps: Client) -> None:
    everybody = students(ps, "school_enrollment")
    school = next(row["school_enrollment"] for row in everybody if row["school_enrollment"]["enroll_status"] == "T")
    here = [row for row in everybody if row["school_enrollment"]["school_id"] == school["school_id"]]
    active = [row for row in here if row["school_enrollment"]["enroll_status"] == "A"]
    path = f"/ws/v1/school/{school['school_id']}/student/count"
    assert ps.get(path).json()["resource"]["count"] == len(active) < len(here)
    wanted = {"q": "school_enrollment.enroll_status==(A,T,G,P)"}
    assert ps.get(path, **wanted).json()["resource"]["count"] == len(here)
    assert ps.get(path, q="lunch==1").status_code == 400


def test_staff_have_one_id_per_school_and_one_users_dcid(ps: Client) -> None:
    schools = ps.get("/ws/v1/district/school").json()["schools"]["school"][:-1]
    ids: dict[int, set[int]] = {}
    places: dict[int, object] = {}
    for school in schools:
        path = f"/ws/v1/school/{school['id']}/staff"
        for person in ps.get(path, expansions="emails,school_affiliations").json()["staffs"]["staff"]:
            ids.setdefault(person["users_dcid"], set()).add(person["id"])
            places[person["users_dcid"]] = person["school_affiliations"]["school_affiliation"]
    assert {len(held) for held in ids.values()} == {1, 2}
    assert all(isinstance(places[person], list if len(held) == 2 else dict) for person, held in ids.items())
    assert not ps.get("/ws/v1/school/0/staff").json()["staffs"].get("staff")


def test_years_are_counted_from_1990_and_the_same_course_is_listed_at_every_school(ps: Client, world: World) -> None:
    schools = ps.get("/ws/v1/district/school").json()["schools"]["school"][:-1]
    offered: list[int] = []
    for school in schools:
        terms = ps.get(f"/ws/v1/school/{school['id']}/term").json()["terms"]["term"]
        assert {term["local_id"] // 100 for term in terms} == {world.year - 1990, world.year - 1991}
        assert [term["portion"] for term in terms] == sorted(term["portion"] for term in terms)
        courses = ps.get(f"/ws/v1/school/{school['id']}/course").json()["courses"]["course"]
        offered += [course["id"] for course in courses]
        sections = ps.get(f"/ws/v1/school/{school['id']}/section", expansions="term").json()["sections"]["section"]
        assert {section["term"]["id"] for section in sections} <= {term["id"] for term in terms}
    assert len(offered) > len(set(offered))


def test_tables_need_a_projection_and_answer_in_text(ps: Client) -> None:
    assert ps.get("/ws/schema/table/students").status_code == 400
    answer = ps.get("/ws/schema/table/students", projection="dcid,id,zip,enroll_status", q="enroll_status==0").json()
    assert answer["@extensions"] == ""
    rows = [record["tables"]["students"] for record in answer["record"]]
    assert all(isinstance(value, str) for row in rows for value in row.values())
    assert {row["enroll_status"] for row in rows} == {"0"}
    assert all(row["zip"].startswith("0") for row in rows), "text keeps its zeros"
    assert all(row["dcid"] != row["id"] for row in rows)
    none = ps.get("/ws/schema/table/students", projection="dcid", q="enroll_status==77").json()
    assert "record" not in none
    assert ps.get("/ws/schema/table/students/count", q="enroll_status==77").json() == {"count": 0}
    assert ps.get("/ws/schema/table/students", projection="dcid,ssn").status_code == 403
    assert ps.get("/ws/schema/table/lunches", projection="*").status_code == 404


def test_power_queries_give_flat_rows_of_one_year_in_pages_or_all_at_once(ps: Client, world: World) -> None:
    yearid = str(world.year - 1990)
    everything = ps.post(SECTIONS, {"yearid": yearid}, pagesize=0).json()["record"]
    assert ps.post(f"{SECTIONS}/count", {"yearid": yearid}).json() == {"count": len(everything)}
    second = ps.post(SECTIONS, {"yearid": yearid}, pagesize=100, page=2).json()["record"]
    assert second == everything[100:200]
    assert all(isinstance(value, str) for row in everything for value in row.values())
    assert {abs(int(row["termid"])) // 100 for row in everything} == {int(yearid)}
    assert "record" not in ps.post(SECTIONS, {"yearid": "1"}, pagesize=0).json()
    assert ps.post(SECTIONS, {}, pagesize=0).status_code == 400
    assert ps.post("/ws/schema/query/com.other.query", {"yearid": yearid}).status_code == 404


def test_dropped_classes_have_negative_ids_and_exclusive_dates(
    ps: Client, sandbox: SandboxServer, world: World
) -> None:
    sandbox.set_day(2)
    rows = ps.post(SECTIONS, {"yearid": str(world.year - 1990)}, pagesize=0).json()["record"]
    dropped = [row for row in rows if row["sectionid"].startswith("-")]
    assert dropped
    assert all(row["termid"].startswith("-") and not row["sections_dcid"].startswith("-") for row in dropped)
    today = world.date(2).isoformat()
    assert any(row["dateleft"] == today for row in dropped), "the day of leaving is the first day not enrolled"
    never = [row for row in dropped if row["dateleft"] <= row["dateenrolled"]]
    assert never, "a class given up before it began"
    truth = sandbox.truth().rows["ps"]["section_enrollments"]
    assert len(rows) - len(never) == truth.good + truth.bad


def test_school_enrollments_hold_earlier_stays_and_a_transfer_has_two(
    ps: Client, sandbox: SandboxServer, world: World
) -> None:
    sandbox.set_day(2)
    rows = ps.post(SCHOOLS, {"yearid": str(world.year - 1990)}, pagesize=0).json()["record"]
    truth = sandbox.truth()
    assert len(rows) == truth.rows["ps"]["enrollments"].good + truth.rows["ps"]["enrollments"].bad
    moved = next(
        change for change in truth.changes if change.kind == "transfer"
        and {world.population.schools[number].system for number in (change.school, change.from_school)} == {"ps"}
    )  # fmt: skip
    sis_id = dict(truth.people[moved.person])["ps"]
    stays = sorted((row for row in rows if row["students_dcid"] == sis_id), key=lambda row: row["entrydate"])
    assert [row["schoolid"] for row in stays] == [moved.from_school, moved.school]
    assert stays[0]["exitdate"] == stays[1]["entrydate"] == world.date(2).isoformat()
    assert stays[1]["exitdate"] == f"{world.year + 1}-06-19", "while enrolled, the exit is the day after the year"
    assert any(row["exitdate"] < row["entrydate"] for row in rows), "the bad row"


def test_the_slow_way_gives_the_same_section_enrollments(ps: Client, world: World) -> None:
    rows = ps.post(SECTIONS, {"yearid": str(world.year - 1990)}, pagesize=0).json()["record"]
    section = rows[0]["sections_dcid"]
    listed = ps.get(f"/ws/v1/section/{section}/section_enrollment").json()["section_enrollments"]["section_enrollment"]
    assert {str(row["id"]) for row in listed} == {row["dcid"] for row in rows if row["sections_dcid"] == section}


def test_without_accept_the_answer_is_xml(ps: Client) -> None:
    headers = {"Accept": "*/*", "Authorization": ps.session.headers["Authorization"]}
    answer = requests.get(ps.handle.base_url + "/ws/v1/district/school", headers=headers, timeout=10)
    assert answer.headers["Content-Type"].startswith("application/xml")
    assert answer.text.count("<school>") == len(ps.get("/ws/v1/district/school").json()["schools"]["school"])


@pytest.fixture
def bare() -> Iterator[Client]:
    """A plugin with little access and a page size that is clamped."""
    options = {
        "no_access": ("cc", "section_enrollments"), "no_fields": ("students.dob",), "over_page_size": "clamp",
        "max_page_size": {"student": 30}, "client_auth": "basic", "xml": False,
    }  # fmt: skip
    world = World(systems=[System("ps", "powerschool", 40, options)])
    with SandboxServer(world, enforce_limits=False) as sandbox:
        yield client(sandbox.system("ps"))


def test_a_plugin_may_lack_access(bare: Client) -> None:
    assert bare.get("/ws/schema/table/cc", projection="dcid").status_code == 403
    assert bare.post(SECTIONS, {"yearid": "36"}).status_code == 403
    refused = bare.get("/ws/schema/table/students", projection="dcid,dob")
    assert refused.status_code == 403
    assert refused.json()["errors"] == [
        {"resource": "students", "field": "students.dob", "code": "No access to the field"}
    ]
    assert bare.post(SCHOOLS, {"yearid": "36"}).status_code == 200


def test_a_page_size_can_be_clamped(bare: Client) -> None:
    assert len(bare.get("/ws/v1/district/student", pagesize=1000).json()["students"]["student"]) == 30
