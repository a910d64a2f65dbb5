"""Tokens that end while a run reads, told well or badly how long they live, on a clock that is set while they do."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.engine import URL

from sis_pipeline.connect.contract import Answer, Request
from sis_pipeline.defs.instance import dagster_instance
from sis_pipeline.defs.resources import Roster
from sis_pipeline.defs.runs import run_sync
from sis_pipeline.providers.decoding import json_body, member, records
from sis_pipeline.providers.pagers import OffsetPager
from sis_pipeline.sandbox.server import Handle, SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.faults.consents import SYSTEMS, Connected, calm, connector, grant, scalar, systems
from sis_pipeline_tests.faults.rows import Count, Recorder, Row
from sis_pipeline_tests.truth import chain

ROW = Row(
    6,
    "the token ends at page n of a run while the database's clock is set 10 minutes forward or back, with expires_in 0, "
    "negative, text, nonsense, absent, 600, 1e12; every second request finds its token ended, or every 0.6 s",
    "one refresh per expiry at most, and every run completes with what an undisturbed one reads",
    300,
    "runs",
)

PAGES, PAGE_SIZE = 10, 2
LIFETIMES: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("set_key", {"key": "expires_in", "value": value}) for value in (0, -3600, "600", "soon", None, 600, 599.5, 1e12, "1e12")),
    ("missing_key", {"key": "expires_in"}),
)  # fmt: skip
CLOCKS = ("0 minutes", "10 minutes", "-10 minutes")


@pytest.fixture(scope="module")
def server() -> Iterator[SandboxServer]:
    with systems(students=PAGES * PAGE_SIZE) as running:
        yield running


def set_clock(engine: Engine, offset: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"alter database {engine.url.database} set sis.clock_offset = '{offset}'"))
    engine.dispose()  # a database's settings are taken when a connection begins


def _decode(body: bytes) -> list[dict[str, object]]:
    return records(member(json_body(body, "the page"), ("users",), "the page"), "the page")


def whole(source: Any, before_page: Any = lambda _page: None) -> list[str]:
    """The ids that a listing of PAGES pages or more gives, in order."""
    sent = 0

    def send(request: Request) -> Answer:
        nonlocal sent
        sent += 1
        before_page(sent)
        answer: Answer = source.send(request)
        return answer

    pages = OffsetPager(PAGE_SIZE).pages(send, Request("students"), _decode)
    return [str(one["sourcedId"]) for page in pages for one in page.records]


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_token_that_ends_in_the_middle(
    database: Engine, server: SandboxServer, row: Recorder, count: Count, clock: str
) -> None:
    connect = connector(server, database)
    truth = {}
    for name in SYSTEMS:
        with connect(name).source() as source:
            truth[name] = whole(source)
            assert len(truth[name]) >= PAGES * PAGE_SIZE
    cases = list(product(LIFETIMES, range(1, PAGES + 1)))
    for number, ((kind, settings), page) in enumerate(cases[:: len(cases) // count(full=100, part=2)]):
        name = SYSTEMS[number % len(SYSTEMS)]
        it = connect(name)
        told = server.faults.add(kind, system=name, path="/token", times=None, **settings)
        with it.source() as source:
            source.refresh_token()
            it.forget()
            assert whole(source, _ending(it, page, clock)) == truth[name]
        assert it.counted("token_calls") == 1, "one expiry"
        assert it.counted("refused") <= 1
        assert it.counted("invalid_grant") == 0
        assert told.fired == 2
        row.happened(it.counted("token_calls"))
        row.ran()
        server.faults.clear()
        set_clock(database, "0 minutes")
        calm(database)


def _ending(it: Connected, page: int, clock: str) -> Any:
    def before(number: int) -> None:
        if number == page:
            it.handle.expire_tokens()
            set_clock(it.engine, clock)
            moved = scalar(it.engine, "select extract(epoch from sis.clock() - clock_timestamp())")
            assert float(moved) == pytest.approx(60 * int(clock.partition(" ")[0]), abs=1)

    return before


EXPIRIES = 50
LIVES = 0.6
OFTEN = {"grant": "authorization_code", "refresh_mode": "strict"}


def connected(roster: Roster, server: SandboxServer, name: str, **settings: Any) -> Handle:
    chain.connect(roster, server, name, **{"page_size": 15, "requests_per_minute": 6_000, **settings})
    grant(roster, server.system(name), name)
    return server.system(name)


def test_a_sync_that_outlives_50_expiries(database_url: URL, tmp_path: Path, row: Recorder) -> None:
    """Every second request finds that its token has ended, and every new token replaces the refresh token as well."""
    world = World(systems=[System("or", "oneroster_1.1", 12, OFTEN)], school_year=chain.YEAR.key)
    with (
        SandboxServer(world, enforce_limits=False) as server,
        chain.installation(database_url, tmp_path) as roster,
    ):
        handle = connected(roster, server, "or")
        undisturbed = chain.read(roster, "or", chain.YEAR, "calm")
        before = handle.stats()
        ended = [server.faults.add("expired_token", system="or", nth=2 * n) for n in range(1, 3 * EXPIRIES)]
        worn = chain.read(roster, "or", chain.YEAR, "worn")
        after = handle.stats()
        _prove_worn(handle, before, after, sum(fault.fired for fault in ended))
        assert worn.snapshot.completeness == undisturbed.snapshot.completeness == "complete"
        assert worn.snapshot.content_hash == undisturbed.snapshot.content_hash
        expiries = sum(fault.fired for fault in ended)
        row.note(f"one load of {worn.calls:,} calls outlived {expiries} expiries, each at a request")
        row.happened(expiries)
        row.ran()


def _prove_worn(handle: Handle, before: dict[str, Any], after: dict[str, Any], expiries: int) -> None:
    refused = after["statuses"]["401"] - before["statuses"].get("401", 0)
    assert refused == expiries >= EXPIRIES
    assert after["token_calls"] - before["token_calls"] <= expiries + 1
    oauth = after["oauth"]
    assert (oauth["invalid_grant"], oauth["families_revoked"], oauth["live_families"]) == (0, 0, 1)


@pytest.mark.faults
def test_a_dagster_run_that_outlives_50_tokens(database_url: URL, tmp_path: Path, row: Recorder) -> None:
    """Tokens live 0.6 s, and the limit makes the run last longer than 50 of them."""
    world = World(systems=[System("or", "oneroster_1.1", 40, OFTEN)], school_year=chain.YEAR.key)
    with (
        SandboxServer(world, enforce_limits=False) as server,
        chain.installation(database_url, tmp_path) as roster,
        dagster_instance(roster.settings) as instance,
    ):
        handle = connected(roster, server, "or", page_size=5)
        assert run_sync("or", chain.YEAR.key, instance=instance).verdict == "complete"
        undisturbed = _latest(roster)
        chain.connect(roster, server, "or", replace=True, page_size=5, requests_per_minute=450)
        before = handle.stats()
        handle.api.tokens.lifetime = LIVES
        done = run_sync("or", chain.YEAR.key, instance=instance)
        after = handle.stats()
        assert (done.error, done.verdict) == (None, "complete")
        assert _latest(roster)[0] != undisturbed[0]
        assert _latest(roster)[1] == undisturbed[1]
        expiries = after["statuses"]["401"] - before["statuses"].get("401", 0)
        _prove_worn(handle, before, after, expiries)
    row.note(f"a Dagster run of {done.api_calls:,} calls outlived {expiries} tokens that lived {LIVES} s each")
    row.happened(expiries)
    row.ran()


def _latest(roster: Roster) -> tuple[str, str]:
    query = "select snapshot_id::text || ' ' || content_hash from sis.snapshots order by finished_at desc limit 1"
    snapshot, content = str(scalar(roster.engine, query)).split()
    return snapshot, content
