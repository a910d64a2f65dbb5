"""The vendors' limits: what is refused, how, and what is counted."""

from __future__ import annotations

import time

import pytest

from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.throttle import TOLERANCE_SECONDS, EvenPace, Meter, SlidingWindow, worst_window
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.sandbox.clients import client


def test_an_even_pace_at_the_limit_is_never_refused_however_it_jitters() -> None:
    limit, clock = EvenPace(1.0), 0.0
    for step in range(300):
        jitter = (TOLERANCE_SECONDS - 0.001) * (step % 2)
        clock = step * 1.0 - jitter + 10
        assert limit.admit(clock) == 0, step


def test_a_faster_pace_is_refused_soon_and_told_for_how_long() -> None:
    limit = EvenPace(1.0)
    refusals = [limit.admit(100 + step * 0.9) for step in range(60)]
    assert refusals[0] == 0
    assert sum(wait > 0 for wait in refusals) >= 5
    assert all(wait <= 1.5 for wait in refusals)


def test_even_pace_admits_no_more_than_the_limit_in_the_long_run() -> None:
    limit = EvenPace(1.0)
    admitted = sum(limit.admit(step * 0.1) == 0 for step in range(6000))
    assert 600 <= admitted <= 602


def test_a_window_takes_a_burst_up_to_the_limit_and_then_refuses() -> None:
    limit = SlidingWindow(100)
    assert [limit.admit(5.0) == 0 for _ in range(101)] == [True] * 100 + [False]
    assert limit.admit(30.0) > 0
    assert limit.admit(65.0) == 0
    evenly = SlidingWindow(100)
    assert all(evenly.admit(step * 0.6) == 0 for step in range(500))


def test_the_worst_window_is_found() -> None:
    assert worst_window([]) == 0
    assert worst_window([0.0, 30.0, 59.9, 60.0, 61.0]) == 4
    assert worst_window([float(second) for second in range(200)]) == 60


def test_a_meter_counts_by_template_and_status() -> None:
    clock = iter([0.0, 0.1, 5.0])
    meter = Meter(EvenPace(1.0), 60, clock=lambda: next(clock))
    assert meter.arrive("/a/{id}") == 0
    meter.answer(200)
    assert meter.arrive("/a/{id}") > 0
    meter.answer(429)
    meter.arrive("/b")
    meter.token_call(issued=True)
    meter.token_call(issued=False)
    stats = meter.stats()
    assert stats["calls"] == {"/a/{id}": 2, "/b": 1}
    assert (stats["refused"], stats["token_calls"], stats["tokens_issued"]) == (1, 2, 1)
    assert stats["statuses"] == {"200": 1, "429": 1}
    assert (stats["first_call"], stats["last_call"], stats["seconds"]) == (0.0, 5.0, 5.0)


@pytest.fixture(scope="module")
def strict_world() -> World:
    systems = [
        System("ps", "powerschool", 20, {"requests_per_minute": 20}),
        System("polite", "powerschool", 20, {"requests_per_minute": 20, "retry_after": True, "refusal_status": 503}),
        System("or", "oneroster_1.2", 20, {"requests_per_minute": 5}),
        System("later", "oneroster_1.1", 20, {"requests_per_minute": 5, "retry_after": True}),
        System("free", "oneroster_1.1", 20, {"requests_per_minute": 5, "enforce": False}),
    ]
    return World(systems=systems)


def test_powerschool_names_the_wait_and_sends_no_retry_after(strict_world: World) -> None:
    with SandboxServer(strict_world) as sandbox:
        ps, polite = client(sandbox.system("ps")), client(sandbox.system("polite"))
        first, second = ps.get("/ws/v1/metadata"), ps.get("/ws/v1/metadata")
        assert (first.status_code, second.status_code) == (200, 429)
        assert "milliseconds" in second.json()["message"]
        assert "Retry-After" not in second.headers
        answers = [polite.get("/ws/v1/metadata") for _ in range(2)]
        assert (answers[1].status_code, answers[1].headers["Retry-After"]) == (503, "3")
        stats = sandbox.system("ps").stats()
        assert stats["refused"] == 1
        assert stats["calls"] == {"/ws/v1/metadata": 2}
        assert stats["worst_window"] == 2


def test_oneroster_is_busy(strict_world: World) -> None:
    with SandboxServer(strict_world) as sandbox:
        answers = {
            name: [client(sandbox.system(name)).get("/orgs") for _ in range(6)][-1] for name in ("or", "later", "free")
        }
        assert {name: answer.status_code for name, answer in answers.items()} == {"or": 429, "later": 429, "free": 200}
        assert "server_busy" in answers["or"].text
        assert "Retry-After" not in answers["or"].headers
        assert 55 <= int(answers["later"].headers["Retry-After"]) <= 60
        assert sandbox.system("or").stats()["tokens_issued"] == 6, "tokens are not limited"


def test_the_scale_raises_every_limit(strict_world: World) -> None:
    with SandboxServer(strict_world, rate_scale=20) as sandbox:
        caller = client(sandbox.system("or"))
        assert {caller.get("/orgs").status_code for _ in range(30)} == {200}
        assert sandbox.system("or").stats()["requests_per_minute"] == 100
    with SandboxServer(strict_world, enforce_limits=False) as sandbox:
        caller = client(sandbox.system("ps"))
        assert {caller.get("/ws/v1/time").status_code for _ in range(5)} == {200}


def test_a_large_district_starts_and_serves_pages_quickly() -> None:
    begun = time.monotonic()
    world = World(systems=[System("ps", "powerschool", 3_000)])
    with SandboxServer(world, enforce_limits=False) as sandbox:
        caller = client(sandbox.system("ps"))
        caller.get("/ws/v1/district/student", expansions="demographics")
        ready = time.monotonic()
        for page in range(2, 22):
            rows = caller.get("/ws/v1/district/student", page=page, expansions="demographics,addresses").json()
            assert len(rows["students"]["student"]) == 100
        assert time.monotonic() - ready < 6, "20 pages"
    assert ready - begun < 20
