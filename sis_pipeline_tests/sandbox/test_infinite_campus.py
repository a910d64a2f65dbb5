"""Infinite Campus over a real socket: its addresses, one year, links nobody should follow, people who vanish."""

from __future__ import annotations

import base64
import json

import pytest
import requests

from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.sandbox.clients import Client, client


@pytest.fixture
def campus(sandbox: SandboxServer) -> Client:
    return client(sandbox.system("ic"))


def test_the_token_url_needs_the_application(campus: Client) -> None:
    handle = campus.handle
    assert handle.token_url.endswith("/campus/oauth2/token?appName=fernhollow")
    pair = (handle.client_id, handle.client_secret)
    bare = handle.token_url.partition("?")[0]
    refused = requests.post(bare, data={"grant_type": "client_credentials"}, auth=pair, timeout=10)
    assert refused.status_code == 400
    assert "No Campus Application selected" in refused.text


def test_credentials_work_in_header_and_body_and_the_token_looks_like_a_jwt(campus: Client) -> None:
    body = {
        "grant_type": "client_credentials",
        "client_id": campus.handle.client_id,
        "client_secret": campus.handle.client_secret,
    }
    answer = requests.post(campus.handle.token_url, data=body, timeout=10)
    assert answer.status_code == campus.token().status_code == 200
    header, payload, _signature = answer.json()["access_token"].split(".")
    assert json.loads(base64.urlsafe_b64decode(header + "=="))["typ"] == "JWT"
    assert "exp" in json.loads(base64.urlsafe_b64decode(payload + "=="))
    assert isinstance(answer.json()["expires_in"], int)


def test_only_the_active_year_is_there(campus: Client, world: World) -> None:
    sessions = campus.get("/academicSessions", limit=50_000).json()["academicSessions"]
    assert {session["schoolYear"] for session in sessions} == {str(world.year + 1)}
    classes = campus.get("/classes", limit=50_000).json()["classes"]
    assert len(classes) == world.truth(1).rows["ic"]["sections"].good


def test_next_links_are_malformed_and_the_last_points_at_itself(campus: Client) -> None:
    first = campus.get("/enrollments", limit=100)
    assert "?&limit=100&offset=100" in first.headers["Link"]
    total = int(first.headers["X-Total-Count"])
    last = total // 100 * 100
    assert f"offset={last}>" in campus.get("/enrollments", limit=100, offset=last).headers["Link"]


def test_ids_are_guids_for_people_and_numbers_for_classes(campus: Client) -> None:
    users = campus.get("/users", limit=50_000).json()["users"]
    assert all(len(user["sourcedId"]) == 36 for user in users)
    assert all(row["sourcedId"].isdigit() for row in campus.get("/classes", limit=500).json()["classes"])
    seats = campus.get("/enrollments", limit=50_000).json()["enrollments"]
    assert {row["sourcedId"][0] for row in seats} == {"s", "t"}
    assert {row["primary"] for row in seats} == {None, "true"}
    assert {user["phone"] for user in users} >= {""}, "what is missing is empty"
    keys = {key for row in campus.get("/demographics", limit=500).json()["demographics"] for key in row}
    assert {"birthDate", "birthdate"} <= keys


def test_the_departed_vanish(campus: Client, sandbox: SandboxServer) -> None:
    before = {row["sourcedId"] for row in campus.get("/students", limit=50_000).json()["users"]}
    sandbox.set_day(2)
    now = {row["sourcedId"] for row in campus.get("/students", limit=50_000).json()["users"]}
    left = {
        sis_id
        for change in sandbox.truth().changes
        if change.kind in {"withdraw", "transfer"}
        for system, sis_id in sandbox.truth(1).people.get(change.person, ())
        if system == "ic" and sis_id not in now
    }
    assert before - now == left
    assert left


def test_demographics_may_not_be_licensed() -> None:
    world = World(systems=[System("ic", "infinite_campus", 20, {"demographics": False})])
    with SandboxServer(world, enforce_limits=False) as sandbox:
        caller = client(sandbox.system("ic"))
        assert caller.get("/demographics").status_code == 403
        assert caller.get("/users").status_code == 200
