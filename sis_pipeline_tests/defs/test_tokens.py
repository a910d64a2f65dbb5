"""Ticks of the sensor that keeps tokens warm: real servers and database, only the time is moved."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import text

from sis_pipeline.connect.contract import Token
from sis_pipeline.connect.errors import AuthRevokedError
from sis_pipeline.defs import token_work
from sis_pipeline.defs import tokens as module
from sis_pipeline.defs.assembly import build_defs
from sis_pipeline.defs.resources import Roster
from sis_pipeline.defs.token_work import Effort, door, on_each
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline.store.integrations import Integration
from sis_pipeline_tests.connect.servers import raw_server
from sis_pipeline_tests.connect.workers import tokens_of
from sis_pipeline_tests.defs.conftest import Installation

PERSON = {"grant": "authorization_code", "refresh_mode": "strict", "client_auth": "basic"}
KEYS = ("d1", "d2", "d3", "d4")
TOKEN, REVOKE = "/oauth/token", "/oauth/revoke"


@pytest.fixture(scope="module")
def world() -> World:
    people = (System(key, "oneroster_1.2", 5, PERSON) for key in KEYS)
    return World(seed=12, systems=(*people, System("machine", "oneroster_1.2", 5)))


@pytest.fixture
def sandbox(world: World) -> Iterator[SandboxServer]:
    with SandboxServer(world, enforce_limits=False) as running:
        yield running


@pytest.fixture
def connect(installation: Installation, sandbox: SandboxServer) -> Callable[..., None]:
    """Systems of the sandbox, access granted, their tokens just fetched."""

    def run(*keys: str, **settings: Any) -> None:
        roster = installation.roster
        for key in keys:
            handle = sandbox.system(key)
            integration = installation.connect(handle, key, **settings)
            with door(integration, vault=roster.vault, engine=roster.engine, effort=Effort()) as source:
                if handle.api.authorization is None:
                    source.refresh_token()
                else:
                    answer = handle.authorization.grant()
                    tokens_of(source).accept(Token(answer["access_token"], 3600, answer["refresh_token"]))

    return run


@pytest.fixture
def tick(installation: Installation, instance: dg.DagsterInstance) -> Callable[[], str]:
    """One tick of the sensor as the definitions have it; what it says."""
    sensor = build_defs().get_repository_def().get_sensor_def("keep_tokens_warm")
    cursor: str | None = None

    def run() -> str:
        nonlocal cursor
        with dg.build_sensor_context(instance=instance, cursor=cursor, resources={"roster": Roster()}) as context:
            data = sensor.evaluate_tick(context)
        cursor = data.cursor
        assert data.run_requests == []
        return str(data.skip_message)

    return run


def change(installation: Installation, statement: str) -> None:
    with installation.engine.begin() as connection:
        connection.execute(text(statement))


def nearly_over(installation: Installation, *keys: str) -> None:
    """700 s left of an hour: out of the refresh window of 600 s, which the sensor is to be ahead of."""
    named = ", ".join(f"'{key}'" for key in keys)
    ends = "expires_at = sis.clock() + interval '700 seconds'"
    change(installation, f"update sis.oauth_tokens set {ends} where kind = 'access' and integration in ({named})")


def versions(installation: Installation) -> dict[str, int]:
    return dict(installation.rows("select integration, version from sis.oauth_tokens where kind = 'access'"))  # type: ignore[arg-type]


def calls(installation: Installation) -> int:
    return int(installation.scalar("select count(*) from sis.api_calls"))


def test_nothing_is_due_on_an_empty_installation_without_a_key(installation, tick, monkeypatch):
    monkeypatch.delenv("SIS_ENCRYPTION_KEYS")
    assert tick() == "Every token is warm."


def test_tokens_are_replaced_before_they_are_needed(installation, connect, tick):
    connect("d1", "d2", "machine")
    assert tick() == "Every token is warm."
    nearly_over(installation, "d1", "machine")
    assert tick() == "2 refreshed"
    assert versions(installation) == {"d1": 2, "d2": 1, "machine": 2}
    assert tick() == "Every token is warm."
    with door(
        installation.roster.integrations.get("d1"),
        vault=installation.roster.vault,
        engine=installation.engine,
        effort=Effort(),
    ) as source:
        assert tokens_of(source).bearer().version == 2
        assert source.token_calls == 0, "who needs a token finds it"


def test_a_refresh_token_that_nobody_uses_is_used(installation, connect, tick, sandbox):
    connect("d1")
    change(installation, "update sis.oauth_tokens set last_refreshed_at = sis.clock() - interval '8 days'")
    assert tick() == "1 refreshed"
    assert tick() == "Every token is warm."
    assert sandbox.system("d1").stats()["oauth"]["live_families"] == 1


def test_a_refresh_token_is_used_before_its_known_end(installation, connect, tick, sandbox):
    """Access tokens that are too short to be kept warm, and a night is too long for the refresh token."""
    connect("d1")
    change(installation, "update sis.oauth_tokens set last_refreshed_at = sis.clock() - interval '8 days'")
    sandbox.faults.add("set_key", path=TOKEN, times=None, key="refresh_token_expires_in", value=43_200)
    assert tick() == "1 refreshed"
    change(installation, "update sis.oauth_tokens set lifetime_seconds = 300 where kind = 'access'")
    for hours, said in ((9, "Every token is warm."), (1, "1 refreshed"), (0, "Every token is warm.")):
        moved = ("expires_at", "last_refreshed_at", "updated_at")
        earlier = ", ".join(f"{column} = {column} - interval '{hours} hours'" for column in moved)
        change(installation, f"update sis.oauth_tokens set {earlier} where kind <> 'client_secret'")
        assert tick() == said
    assert sandbox.system("d1").stats()["oauth"]["live_families"] == 1


def test_one_that_fails_stops_no_other_and_is_asked_again_after_a_pause(installation, connect, tick, sandbox, capsys):
    connect(*KEYS)
    nearly_over(installation, *KEYS)
    down = sandbox.faults.add("status", system="d1", path=TOKEN, times=None, status=503)
    sandbox.system("d2").revoke_grant()
    said = tick()
    assert said.startswith("2 refreshed, 2 failed (")
    assert "d1: transient.server_error" in said
    assert "d2: auth_revoked.grant" in said
    logs = capsys.readouterr().err
    assert (logs.count("token.not_refreshed"), logs.count("token.needs_reauth")) == (1, 1)
    assert versions(installation) == {"d1": 1, "d2": 1, "d3": 2, "d4": 2}
    integrations = installation.roster.integrations
    assert [integrations.get(key).status for key in ("d1", "d2")] == ["healthy", "needs_reauth"]
    before = calls(installation)
    assert tick() == "Every token is warm.", "one rests, one waits for a person"
    assert calls(installation) == before
    sandbox.faults.clear()
    change(installation, "update sis.oauth_tokens set updated_at = updated_at - interval '121 seconds'")
    assert tick() == "1 refreshed"
    assert down.fired == 1
    secrets = {sandbox.system(key).client_secret for key in KEYS}
    assert not any(secret in logs for secret in secrets)


def test_a_tick_does_not_wait_for_a_turn_that_is_far_off(installation, connect, tick, monkeypatch):
    connect("d1")
    nearly_over(installation, "d1")
    roster = installation.roster
    integration = roster.integrations.get("d1")
    with door(integration, vault=roster.vault, engine=roster.engine, effort=Effort()) as source:
        source._rate.push_back(source._rate_key, 900)

    def sleep(seconds: float) -> None:
        raise AssertionError(f"slept {seconds} s")

    monkeypatch.setattr(time, "sleep", sleep)
    assert tick() == "0 refreshed, 1 failed (d1: rate_limited.turn_too_far)"


def test_who_is_paused_or_waits_for_a_person_is_left_alone(installation, connect, tick):
    connect("d1", "d2", "d3")
    nearly_over(installation, "d1", "d2", "d3")
    installation.roster.integrations.pause("d1")
    installation.roster.integrations.note_sync("d2", AuthRevokedError("It was refused.", code="auth_revoked.grant"))
    change(installation, "update sis.oauth_tokens set status = 'needs_reauth' where integration = 'd3'")
    change(installation, "update sis.oauth_tokens set last_refreshed_at = sis.clock() - interval '8 days'")
    before = calls(installation)
    assert tick() == "Every token is warm."
    assert calls(installation) == before


def test_revocations_are_tried_again_with_a_pause(installation, connect, tick, sandbox):
    connect("d1")
    down = sandbox.faults.add("status", path=REVOKE, times=2, status=503)
    change(installation, "update sis.oauth_tokens set status = 'revocation_pending' where kind <> 'client_secret'")
    installation.roster.integrations.pause("d1")  # what a person asked for is done all the same
    assert tick() == "0 given back, 1 failed (d1: transient.server_error)"
    assert tick() == "Every token is warm."
    for said in ("0 given back, 1 failed (d1: transient.server_error)", "1 given back"):
        change(installation, "update sis.oauth_tokens set updated_at = updated_at - interval '1 hour'")
        assert tick() == said
    assert down.fired == 2
    assert sandbox.system("d1").stats()["oauth"]["live_families"] == 0


def test_a_tick_is_bounded_in_number(installation, connect, tick, monkeypatch):
    connect(*KEYS)
    nearly_over(installation, *KEYS)
    monkeypatch.setattr(module, "MOST_PER_TICK", 3)
    assert tick() == "3 refreshed, 1 left for the next tick"
    assert tick() == "1 refreshed"


def test_those_that_fail_at_every_tick_do_not_stand_before_the_others(installation, connect, tick, monkeypatch):
    """Wrong settings, a token endpoint that is left alone: nothing is noted, so they do not rest."""
    connect(*KEYS)
    nearly_over(installation, *KEYS)
    change(installation, """update sis.integrations set settings = '{"base_url": 7}' where key in ('d1', 'd2')""")
    monkeypatch.setattr(module, "MOST_PER_TICK", 2)
    assert tick().startswith("0 refreshed, 2 failed (d1: config")
    assert tick() == "2 refreshed, 2 left for the next tick"
    assert versions(installation) == {"d1": 1, "d2": 1, "d3": 2, "d4": 2}
    assert tick().startswith("0 refreshed, 2 failed (d1: config"), "in turn again"


@pytest.mark.parametrize(
    ("last", "order"),
    [(None, "abcd"), ("b", "cdab"), ("bb", "cdab"), ("d", "abcd"), ("z", "abcd")],
)
def test_each_tick_begins_behind_the_last_one(last, order):
    assert module.behind(["b", "d", "a", "c"], last) == list(order)


@pytest.mark.parametrize("cursor", ["", "no json", "[]", "7", '{"refreshed": 7}'])
def test_a_cursor_that_a_person_wrote_does_no_harm(installation, instance, cursor):
    sensor = build_defs().get_repository_def().get_sensor_def("keep_tokens_warm")
    with dg.build_sensor_context(instance=instance, cursor=cursor, resources={"roster": Roster()}) as context:
        assert sensor.evaluate_tick(context).skip_message == "Every token is warm."


def test_a_tick_is_bounded_in_time(installation, connect, tick, monkeypatch):
    """Nobody answers, one after the other, half a second each: after 0.75 s none is begun any more."""
    held = threading.Event()
    with raw_server(lambda _connection: held.wait(10)) as silent:
        connect(*KEYS, connect_timeout=0.5, read_timeout=0.5, total_timeout=0.5)
        nearly_over(installation, *KEYS)
        change(
            installation,
            f"""update sis.integrations set settings = settings || '{{"token_url": "{silent.url}/token"}}'""",
        )
        monkeypatch.setattr(module, "EFFORT", replace(module.EFFORT, parallel=1, seconds=0.75))
        said = re.fullmatch(r"0 refreshed, (\d) failed \(d1: transient.*\), (\d) left for the next tick", tick())
        held.set()
    assert said is not None
    failed, left = int(said[1]), int(said[2])
    assert failed + left == len(KEYS)
    assert 1 <= len(silent.requests) <= failed, "no answer came, and the rest was not asked"


def test_an_integration_with_wrong_settings_stops_no_other(installation, connect, tick):
    connect("d1", "d2")
    nearly_over(installation, "d1", "d2")
    change(installation, """update sis.integrations set settings = '{"base_url": 7}' where key = 'd1'""")
    said = tick()
    assert said.startswith("1 refreshed, 1 failed (d1: config")
    assert versions(installation) == {"d1": 1, "d2": 2}


def test_a_missing_key_is_told_in_words(installation, connect, tick, monkeypatch):
    connect("d1")
    nearly_over(installation, "d1")
    monkeypatch.delenv("SIS_ENCRYPTION_KEYS")
    assert tick().startswith("Tokens can't be looked after. There is no encryption key")


def test_leaving_early_begins_no_more(installation, connect, monkeypatch):
    connect("d1", "d2", "d3")
    roster, begun, left = installation.roster, [], threading.Event()
    chosen: list[Integration] = roster.integrations.list()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            left.set()
            super().shutdown(wait=wait)

    def work(source) -> None:
        begun.append(source.integration)
        if len(begun) > 1:
            assert left.wait(30)

    monkeypatch.setattr(token_work, "ThreadPoolExecutor", Pool)
    effort = Effort(parallel=1)
    outcomes = on_each(chosen, work, vault=roster.vault, engine=roster.engine, effort=effort)
    next(outcomes)
    outcomes.close()
    assert len(begun) <= 2
