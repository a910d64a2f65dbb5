"""Every fault happens over the wire exactly when it was asked for, and is counted."""

from __future__ import annotations

import time

import pytest
import requests

from sis_pipeline.sandbox.faults import KINDS, Fault
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline_tests.sandbox.clients import Client, client


@pytest.fixture
def roster(sandbox: SandboxServer) -> Client:
    return client(sandbox.system("or12"))


def ids(answer: requests.Response) -> list[str]:
    return [row["sourcedId"] for row in answer.json()["users"]]


def test_a_status_comes_instead_of_the_nth_fitting_answer(sandbox: SandboxServer, roster: Client) -> None:
    fault = sandbox.faults.add(
        "status", system="or12", path="/users", nth=2, times=2, status=503, headers={"Retry-After": "7"}, body="busy"
    )
    statuses = [roster.get("/users", limit=1).status_code for _ in range(4)]
    assert statuses == [200, 503, 503, 200]
    assert (fault.seen, fault.fired) == (4, 2)
    assert roster.get("/orgs").status_code == 200, "other paths are left alone"


def test_a_fault_of_one_system_leaves_the_others_alone(sandbox: SandboxServer, roster: Client) -> None:
    fault = sandbox.faults.add("status", system="sky", times=None)
    assert roster.get("/orgs").status_code == 200
    assert client_refused(sandbox)
    assert fault.fired == 1


def client_refused(sandbox: SandboxServer) -> bool:
    return Client(sandbox.system("sky")).token().status_code == 503


def test_a_page_of_html_comes_with_200(sandbox: SandboxServer, roster: Client) -> None:
    fault = sandbox.faults.add("html", system="or12", path="/users")
    answer = roster.get("/users")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert fault.fired == 1


@pytest.mark.parametrize("status", [302, 307])
def test_redirects(sandbox: SandboxServer, roster: Client, status: int) -> None:
    fault = sandbox.faults.add("redirect", path="/users", status=status, location="https://elsewhere.example/")
    answer = roster.get("/users")
    assert (answer.status_code, answer.headers["Location"]) == (status, "https://elsewhere.example/")
    assert fault.fired == 1


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        ("empty", 200, {}),
        ("no_token", 200, {"token_type": "Bearer", "expires_in": 3600}),
        ("no_error", 401, {"message": "Unauthorized"}),
    ],
)
def test_nonsense_at_the_token_endpoint(
    sandbox: SandboxServer, roster: Client, answer: str, status: int, body: dict
) -> None:
    fault = sandbox.faults.add("token_answer", system="or12", path="/oauth/token", answer=answer)
    got = roster.token()
    assert (got.status_code, got.json()) == (status, body)
    assert fault.fired == 1
    assert roster.token().status_code == 200


def test_html_and_redirects_at_the_token_endpoint(sandbox: SandboxServer, roster: Client) -> None:
    html = sandbox.faults.add("token_answer", path="/oauth/token", answer="html")
    assert roster.token().headers["Content-Type"].startswith("text/html")
    away = sandbox.faults.add("redirect", path="/oauth/token", status=307, location=f"{sandbox.url}/elsewhere")
    assert roster.token().status_code == 404, "a careless client follows"
    assert (html.fired, away.fired) == (1, 1)


@pytest.mark.parametrize("kind", ["truncate", "chunked_cut"])
def test_a_cut_answer_is_an_error_to_the_client(sandbox: SandboxServer, roster: Client, kind: str) -> None:
    fault = sandbox.faults.add(kind, system="or12", path="/users")
    with pytest.raises((requests.exceptions.ChunkedEncodingError, requests.exceptions.ConnectionError)):
        roster.get("/users", limit=50)
    assert fault.fired == 1
    assert roster.get("/users", limit=50).status_code == 200


def test_half_a_body_without_a_length_looks_whole(sandbox: SandboxServer, roster: Client) -> None:
    whole = roster.get("/users", limit=50)
    fault = sandbox.faults.add("half_body", system="or12", path="/users")
    half = roster.get("/users", limit=50)
    assert half.status_code == 200
    assert "Content-Length" not in half.headers
    assert half.content == whole.content[: len(whole.content) // 2]
    assert fault.fired == 1


def test_a_reset_breaks_the_connection(sandbox: SandboxServer, roster: Client) -> None:
    fault = sandbox.faults.add("reset", system="or12", path="/users")
    with pytest.raises(requests.exceptions.ConnectionError) as broken:
        roster.get("/users")
    assert "reset" in str(broken.value).casefold()
    assert fault.fired == 1
    assert roster.get("/users").status_code == 200


def test_a_drip_is_slow_and_arrives_whole(sandbox: SandboxServer, roster: Client) -> None:
    fault = sandbox.faults.add("drip", system="or12", path="/orgs", seconds=0.02, bytes=15)
    begun = time.monotonic()
    dripped = roster.get("/orgs")
    assert time.monotonic() - begun >= 0.3
    assert dripped.json() == roster.get("/orgs").json()
    assert fault.fired == 1


def test_a_bomb_is_small_on_the_wire(sandbox: SandboxServer, roster: Client) -> None:
    fault = sandbox.faults.add("gzip_bomb", system="or12", path="/orgs", megabytes=5)
    answer = roster.get("/orgs")
    assert int(answer.headers["Content-Length"]) < 20_000
    assert len(answer.content) == 5_000_000
    assert fault.fired == 1


def test_contents_can_be_wrong(sandbox: SandboxServer, roster: Client) -> None:
    faults = [
        sandbox.faults.add("content_type", path="/orgs", content_type="text/json"),
        sandbox.faults.add("missing_key", path="/courses"),
        sandbox.faults.add("empty_body", path="/classes"),
    ]
    assert roster.get("/orgs").headers["Content-Type"].startswith("text/json")
    assert roster.get("/courses").json() == {}
    assert roster.get("/classes").content == b""
    assert [fault.fired for fault in faults] == [1, 1, 1]


def test_a_value_can_be_another_and_an_answer_late(sandbox: SandboxServer, roster: Client) -> None:
    changed = sandbox.faults.add("set_key", system="or12", path="/oauth/token", key="expires_in", value="-1")
    assert roster.token().json()["expires_in"] == "-1"
    late = sandbox.faults.add("slow", system="or12", path="/oauth/token", seconds=0.2)
    begun = time.monotonic()
    assert roster.token().status_code == 200
    assert time.monotonic() - begun >= 0.2
    assert (changed.fired, late.fired) == (1, 1)


def test_an_answer_can_be_lost_after_the_work_is_done(sandbox: SandboxServer, roster: Client) -> None:
    before = roster.handle.stats()["tokens_issued"]
    fault = sandbox.faults.add("lost_answer", system="or12", path="/oauth/token")
    with pytest.raises(requests.exceptions.ConnectionError):
        roster.token()
    assert fault.fired == 1
    assert roster.handle.stats()["tokens_issued"] == before + 1


def test_a_token_expires_in_the_middle(sandbox: SandboxServer, roster: Client) -> None:
    fault = sandbox.faults.add("expired_token", system="or12", path="/users", nth=2)
    assert [roster.get("/users", limit=5, offset=start).status_code for start in (0, 5, 10)] == [200, 401, 401]
    assert fault.fired == 1
    roster.authorise(scope=roster.handle.api._scope("roster-core"))
    assert roster.get("/users", limit=5, offset=5).status_code == 200


def test_a_page_can_be_empty_or_come_twice(sandbox: SandboxServer, roster: Client) -> None:
    first = ids(roster.get("/users", limit=20))
    empty = sandbox.faults.add("empty_page", path="/users", nth=2)
    roster.get("/users", limit=20)
    assert ids(roster.get("/users", limit=20, offset=20)) == []
    twice = sandbox.faults.add("repeated_page", path="/users")
    assert ids(roster.get("/users", limit=20, offset=20)) == first
    assert (empty.fired, twice.fired) == (1, 1)


@pytest.mark.parametrize(("change", "shift", "total"), [("insert", -1, 1), ("delete", 1, -1)])
def test_rows_shift_between_pages(sandbox: SandboxServer, roster: Client, change: str, shift: int, total: int) -> None:
    whole = roster.get("/users", limit=1000)
    fault = sandbox.faults.add("shifted_page", path="/users", times=None, change=change)
    first = roster.get("/users", limit=20)
    second = roster.get("/users", limit=20, offset=20)
    assert ids(first) == ids(whole)[:20]
    assert ids(second) == ids(whole)[20 + shift : 40 + shift]
    assert int(second.headers["X-Total-Count"]) == int(whole.headers["X-Total-Count"]) + total
    assert fault.fired == 1, "the first page has nothing before it to shift"


def test_an_id_can_come_on_two_pages(sandbox: SandboxServer, roster: Client) -> None:
    fault = sandbox.faults.add("duplicate_ids", path="/users", nth=2)
    one = ids(roster.get("/users", limit=20))
    two = ids(roster.get("/users", limit=20, offset=20))
    assert set(one) & set(two) == {one[0]}
    assert fault.fired == 1


def test_counts_can_be_wrong(sandbox: SandboxServer) -> None:
    ps = client(sandbox.system("ps"))
    right = ps.get("/ws/v1/district/student/count").json()["resource"]["count"]
    fault = sandbox.faults.add("wrong_count", path="/count", by=-3)
    assert ps.get("/ws/v1/district/student/count").json()["resource"]["count"] == right - 3
    assert fault.fired == 1


def test_a_shift_shows_in_the_source_s_later_counts(sandbox: SandboxServer) -> None:
    ps = client(sandbox.system("ps"))
    before = ps.get("/ws/v1/district/student/count").json()["resource"]["count"]
    sandbox.faults.add("shifted_page", path="/district/student", change="insert")
    assert ps.get("/ws/v1/district/student/count").json()["resource"]["count"] == before
    ps.get("/ws/v1/district/student", page=2)
    assert ps.get("/ws/v1/district/student/count").json()["resource"]["count"] == before + 1


def test_every_kind_of_fault_is_tested_here() -> None:
    tested = {
        "status", "html", "redirect", "token_answer", "truncate", "chunked_cut", "half_body", "reset", "drip",
        "gzip_bomb", "content_type", "missing_key", "empty_body", "expired_token", "empty_page", "repeated_page",
        "shifted_page", "duplicate_ids", "wrong_count", "set_key", "slow", "lost_answer",
    }  # fmt: skip
    assert tested == KINDS


def test_a_fault_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no fault of the sandbox"):
        Fault("earthquake")
