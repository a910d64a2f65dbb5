"""OneRoster 1.1 and 1.2 over a real socket, with the ways in which vendors bend them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.sandbox.clients import Client, client, scopes


@contextmanager
def bent(dialect: str = "oneroster_1.2", **options: Any) -> Iterator[Client]:
    """A client of a OneRoster server with some options."""
    world = World(systems=[System("x", dialect, 40, options)])
    with SandboxServer(world, enforce_limits=False) as sandbox:
        yield client(sandbox.system("x"))


@pytest.fixture(params=["or11", "or12"])
def either(request: pytest.FixtureRequest, sandbox: SandboxServer) -> Client:
    return client(sandbox.system(request.param))


def rows(caller: Client, collection: str, **params: Any) -> list[dict]:
    found: list[dict] = []
    while True:
        content = caller.get(f"/{collection}", limit=1000, offset=len(found), **params).json()
        page = next(iter(content.values()))
        found += page
        if not page:
            return found


def test_collections_hold_what_the_truth_says(either: Client, sandbox: SandboxServer, world: World) -> None:
    name, truth = either.handle.name, sandbox.truth().rows[either.handle.name]
    people = {user["sourcedId"]: user for user in rows(either, "users")}
    terms = {row["sourcedId"] for row in rows(either, "academicSessions") if row["schoolYear"] == str(world.year + 1)}
    listed = {row["sourcedId"]: row["terms"][0]["sourcedId"] for row in rows(either, "classes")}
    classes = {sourced_id for sourced_id, term in listed.items() if term in terms}
    assert len(classes) == truth["sections"].good
    seats = [row for row in rows(either, "enrollments") if row["role"] == "student"]
    dangling = [row for row in seats if row["class"]["sourcedId"] not in listed]
    assert len(dangling) == 1
    current = [row for row in seats if row["class"]["sourcedId"] in classes]
    assert len(current) + 1 == truth["section_enrollments"].good + truth["section_enrollments"].bad
    students = {row["user"]["sourcedId"] for row in current}
    assert len(students) == truth["students"].good + truth["students"].bad
    assert students <= people.keys()
    good = {sis_id for group in sandbox.truth().people.values() for system, sis_id in group if system == name}
    assert good < students


def test_roles_and_orgs_differ_by_version(sandbox: SandboxServer) -> None:
    old, new = (client(sandbox.system(name)).get("/students", limit=1).json()["users"][0] for name in ("or11", "or12"))
    assert old["role"] == "student"
    assert old["orgs"][0]["type"] == "org"
    assert "roles" not in old
    assert "password" in old, "what must be dropped at the boundary"
    assert new["roles"][0]["roleType"] == "primary"
    assert new["roles"][0]["beginDate"]
    assert "role" not in new
    assert {"type": "stateID", "identifier": new["userMasterIdentifier"]} in new["userIds"]


def test_sessions_have_a_parent_and_the_ending_year(either: Client, world: World) -> None:
    sessions = {row["sourcedId"]: row for row in rows(either, "academicSessions")}
    years = [row for row in sessions.values() if row["type"] == "schoolYear"]
    assert {row["schoolYear"] for row in years} == {str(world.year), str(world.year + 1)}
    for year in years:
        assert all(
            sessions[child["sourcedId"]]["parent"]["sourcedId"] == year["sourcedId"] for child in year["children"]
        )
    assert {row["type"] for row in rows(either, "terms")} == {"semester"}
    assert rows(either, "gradingPeriods") == []


def test_a_large_limit_is_clamped_without_a_word_total_or_link(sandbox: SandboxServer) -> None:
    answer = client(sandbox.system("or11")).get("/enrollments", limit=5000)
    assert len(answer.json()["enrollments"]) == 50
    assert "X-Total-Count" not in answer.headers
    assert "Link" not in answer.headers


def test_totals_and_links_lead_through_the_pages(sandbox: SandboxServer) -> None:
    caller = client(sandbox.system("or12"))
    answer = caller.get("/classes", limit=100)
    total, seen = int(answer.headers["X-Total-Count"]), list(answer.json()["classes"])
    while "next" in answer.links:
        answer = caller.session.get(answer.links["next"]["url"], timeout=10)
        seen += answer.json()["classes"]
    assert len({row["sourcedId"] for row in seen}) == len(seen) == total
    assert len(caller.get("/classes").json()["classes"]) == 100, "the default limit"


@pytest.mark.parametrize(
    ("links", "begins"), [("relative", "</x/ims/"), ("bare", "http://127.0.0.1"), ("malformed", "<http://127.0.0.1")]
)
def test_links_can_be_odd(links: str, begins: str) -> None:
    with bent(links=links) as caller:
        link = caller.get("/classes", limit=5).headers["Link"]
    assert link.startswith(begins)
    assert ("?&" in link) == (links == "malformed")


def test_scopes_guard_demographics(sandbox: SandboxServer) -> None:
    handle = sandbox.system("or12")
    caller = Client(handle, {"scope": scopes("1.2", "roster-core")})
    assert caller.get("/users").status_code == 200
    refused = caller.get("/demographics")
    assert refused.status_code == 403
    minor = refused.json()["imsx_CodeMinor"]["imsx_codeMinorField"][0]["imsx_codeMinorFieldValue"]
    assert minor == "forbidden"
    assert caller.token(scope="everything").json()["error"] == "invalid_scope"
    assert caller.token(grant_type="password").json()["error"] == "unsupported_grant_type"
    only = Client(handle, {"scope": scopes("1.2", "roster-demographics")})
    assert only.get("/demographics").status_code == 200
    assert only.get("/users").status_code == 403


def test_a_scope_can_be_refused_at_the_token_endpoint() -> None:
    world = World(systems=[System("x", "oneroster_1.2", 20, {"refuse_scopes": ("roster-demographics",)})])
    with SandboxServer(world, enforce_limits=False) as sandbox:
        caller = Client(sandbox.system("x"))
        asked = scopes("1.2", "roster-core", "roster-demographics")
        assert caller.token(scope=asked).json()["error"] == "invalid_scope"
        assert caller.token(scope=scopes("1.2", "roster-core")).status_code == 200
        assert caller.token().json()["scope"] == scopes("1.2", "roster-core"), "nothing asked, the least given"


def test_errors_are_worded_as_the_version_does(sandbox: SandboxServer) -> None:
    old, new = Client(sandbox.system("or11")), Client(sandbox.system("or12"))
    assert old.get("/users").status_code == new.get("/users").status_code == 401
    assert old.get("/users").json()["imsx_codeMinor"] == "unauthorisedrequest"
    assert new.get("/users").json()["imsx_codeMajor"] == "failure"
    for caller in (old, new):
        caller.authorise(scope=scopes(caller.handle.settings["version"], "roster-core"))
        assert caller.get("/users", limit="many").status_code == 400
        assert caller.get("/users", limit=0).status_code == 400
        assert caller.get("/lineItems").status_code == 404


def test_filters_narrow_by_status_and_stamp(sandbox: SandboxServer, world: World) -> None:
    sandbox.set_day(2)
    caller = client(sandbox.system("or11"))
    gone = rows(caller, "users", filter="status='tobedeleted'")
    truth = sandbox.truth().rows["or11"]
    assert len(gone) == truth["students"].tombstones > 0
    since = f"{world.date(2).isoformat()}T00:00:00.000Z"
    fresh = rows(caller, "users", filter=f"dateLastModified>='{since}' AND status='active'")
    assert fresh
    assert all(row["dateLastModified"] >= since and row["status"] == "active" for row in fresh)
    assert caller.get("/users", filter="status~active").status_code == 400
    assert caller.get("/users", filter="dateLastModified>'soon'").status_code == 400


def test_tombstones_stay_in_the_lists(sandbox: SandboxServer) -> None:
    sandbox.set_day(2)
    caller = client(sandbox.system("or11"))
    dead = [row for row in rows(caller, "enrollments") if row["status"] == "tobedeleted"]
    truth = sandbox.truth().rows["or11"]["section_enrollments"]
    prior = sandbox.truth(school_year=sandbox.world.prior_year).rows["or11"]["section_enrollments"]
    assert len(dead) == truth.tombstones + prior.tombstones > 0


def test_sort_and_fields(sandbox: SandboxServer) -> None:
    caller = client(sandbox.system("or12"))
    ids = [row["sourcedId"] for row in rows(caller, "users", sort="sourcedId", orderBy="desc", fields="sourcedId")]
    assert ids == sorted(ids, reverse=True)
    assert caller.get("/users", fields="sourcedId,givenName", limit=1).json()["users"][0].keys() == {
        "sourcedId",
        "givenName",
    }


def test_values_can_be_real_relative_inclusive_or_extended() -> None:
    with bent(booleans="real", hrefs="relative", end_dates="inclusive", ext_values=True, grades="text") as caller:
        user = caller.get("/students", limit=1).json()["users"][0]
        assert user["enabledUser"] is True
        assert isinstance(user["grades"], str)
        assert user["roles"][0]["org"]["href"].startswith("/ims/oneroster/")
        assert "ext:lab" in {row["classType"] for row in rows(caller, "classes")}
        year = caller.get("/academicSessions", limit=1).json()["academicSessions"][0]
        assert year["endDate"].endswith("-06-18")


def test_values_are_text_absolute_and_exclusive_by_default(sandbox: SandboxServer) -> None:
    caller = client(sandbox.system("or12"))
    user = caller.get("/students", limit=1).json()["users"][0]
    assert user["enabledUser"] == "true"
    assert user["roles"][0]["org"]["href"].startswith(caller.handle.base_url)
    year = caller.get("/academicSessions", limit=1).json()["academicSessions"][0]
    assert year["endDate"].endswith("-06-19")


def test_filters_can_be_ignored_or_refused() -> None:
    asked = {"filter": "status='tobedeleted'"}
    with bent(filters="ignored") as caller:
        assert caller.get("/orgs", **asked).json()["orgs"]
    with bent(filters="refused") as caller:
        assert caller.get("/orgs", **asked).status_code == 400


def test_who_left_last_year_has_ended_roles_and_no_school(sandbox: SandboxServer, world: World) -> None:
    old = [row for row in rows(client(sandbox.system("or11")), "students") if row["enabledUser"] == "false"]
    assert old
    assert {org["sourcedId"] for row in old for org in row["orgs"]} == {"district-000001"}
    new = [row for row in rows(client(sandbox.system("or12")), "students") if row["enabledUser"] == "false"]
    assert all(row["roles"][-1]["endDate"] == f"{world.year}-06-19" for row in new)
    assert new


def test_guardians_stand_among_the_users(sandbox: SandboxServer) -> None:
    caller = client(sandbox.system("or11"))
    users = {row["sourcedId"]: row for row in rows(caller, "users")}
    guardians = [row for row in users.values() if row["role"] == "guardian"]
    assert guardians
    for guardian in guardians:
        for child in guardian["agents"]:
            assert guardian["sourcedId"] in {agent["sourcedId"] for agent in users[child["sourcedId"]]["agents"]}
