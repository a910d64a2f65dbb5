"""Grants that are dead: found out with two calls at most, told once, and nobody else's trouble."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import Engine
from sqlalchemy.engine import URL
from structlog.testing import capture_logs

from sis_pipeline.connect.contract import Request
from sis_pipeline.connect.errors import AuthRevokedError
from sis_pipeline.connect.upkeep import token_health
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.connect.workers import in_processes, refresh_once, tokens_of
from sis_pipeline_tests.faults.consents import (
    MODES,
    ORGS,
    OWN,
    SYSTEMS,
    Connected,
    audited,
    calm,
    connector,
    grant,
    systems,
)
from sis_pipeline_tests.faults.rows import Count, Recorder, Row
from sis_pipeline_tests.truth import chain

ROW = Row(
    9,
    "a refresh token is revoked, a consent withdrawn, a client's secret changed: found by one process or eight at once",
    "two token calls at most, needs_reauth, one audit entry and one error logged, however often it is tried; all others "
    "go on; a new grant makes it good",
    50,
    "dead grants",
)


@pytest.fixture(scope="module")
def server() -> Iterator[SandboxServer]:
    with systems() as running:
        yield running


@pytest.fixture(scope="module")
def well() -> Iterator[SandboxServer]:
    """The others' systems: a consent that is withdrawn ends all tokens of its system."""
    with systems() as running:
        yield running


def withdrawn(it: Connected) -> None:
    """Somebody takes the consent back in the system."""
    assert it.handle.revoke_grant() >= 1


def revoked(it: Connected) -> None:
    """The refresh token is revoked (RFC 7009), by somebody else than us."""
    with it.source() as source:
        token = tokens_of(source)._vault.get(it.key, "refresh")
    url = it.handle.authorization.revoke_url
    assert requests.post(url, {"token": token}, auth=(it.handle.client_id, it.handle.client_secret), timeout=9).ok


def changed(it: Connected) -> None:
    """The client has a new secret, and every token of the old one has ended."""
    it.handle.api.client_secret = f"{it.handle.client_secret} that nobody told us"
    it.handle.expire_tokens()


def healed(it: Connected) -> None:
    """A person does what the advice says."""
    it.handle.api.client_secret = it.handle.client_secret
    with it.source() as source:
        if it.oauth.grant == "authorization_code":
            it.grant()
        else:
            tokens_of(source)._vault.put(it.key, "client_secret", it.handle.client_secret)
        source.send(Request(ORGS))


DEATHS: tuple[tuple[str, Callable[[Connected], None]], ...] = (
    *((mode, death) for mode in MODES for death in (withdrawn, revoked)),
    (OWN, changed),
)


def test_dead_grants(database: Engine, server: SandboxServer, well: SandboxServer, row: Recorder, count: Count) -> None:
    connect = connector(server, database)
    others = [connector(well, database)(system) for system in SYSTEMS]
    for number in range(count(full=50, part=len(DEATHS))):
        system, death = DEATHS[number % len(DEATHS)]
        it = connect(system)
        death(it)
        it.forget()
        with capture_logs() as logs:
            for _ in range(3):
                with it.source() as source, pytest.raises(AuthRevokedError) as told:
                    source.send(Request(ORGS))
                assert it.key in told.value.advice
        for other in others:
            other.forget()
            other.handle.expire_tokens()
            with other.source() as source:
                assert source.send(Request(ORGS)).status == 200
            assert other.counted("token_calls") == 1
        prove_dead(it, database)
        assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["token.needs_reauth"]
        healed(it)
        row.happened(it.counted("token_calls") > 0)
        row.ran()


@pytest.mark.faults
def test_eight_processes_find_out_at_once(database: Engine, server: SandboxServer, row: Recorder) -> None:
    connect = connector(server, database)
    for mode in MODES:
        it = connect(mode)
        work = it.work()
        withdrawn(it)
        it.forget()
        assert in_processes(8, refresh_once, partial(_same, work)) == ["auth_revoked"] * 8
        prove_dead(it, database)
        healed(it)
        calm(database)
        row.happened()
        row.ran()


def _same(work: dict[str, Any], _number: int) -> dict[str, Any]:
    return work


def prove_dead(it: Connected, database: Engine) -> None:
    assert 1 <= it.counted("token_calls") <= 2
    assert audited(database, it.key, "token.needs_reauth") == 1
    with database.connect() as connection:
        health = {one.kind: one for one in token_health(connection) if one.integration == it.key}
    assert health["access"].status == "needs_reauth"
    if it.oauth.grant == "authorization_code":
        assert health["refresh"].status == "needs_reauth"


@pytest.mark.faults
def test_a_dead_grant_among_syncs(database_url: URL, tmp_path: Path, row: Recorder) -> None:
    """Three districts' systems are read one after the other; the one in the middle has withdrawn its consent."""
    options = {"grant": "authorization_code", "refresh_mode": "strict"}
    names = ("first", "dead", "last")
    world = World(systems=[System(name, "oneroster_1.1", 16, options) for name in names], school_year=chain.YEAR.key)
    with (
        SandboxServer(world, enforce_limits=False) as server,
        chain.installation(database_url, tmp_path) as roster,
    ):
        for name in names:
            chain.connect(roster, server, name, requests_per_minute=6_000)
            grant(roster, server.system(name), name)
        server.system("dead").revoke_grant()
        before = server.system("dead").stats()["token_calls"]
        results: list[str | None] = []
        for name in names:
            try:
                results.append(chain.read(roster, name, chain.YEAR, "run").snapshot.completeness)
            except AuthRevokedError:
                results.append(roster.integrations.get(name).status)
        assert results == ["complete", "needs_reauth", "complete"]
        assert 1 <= server.system("dead").stats()["token_calls"] - before <= 2
        assert audited(roster.engine, "dead", "token.needs_reauth") == 1
    row.happened()
    row.ran()
