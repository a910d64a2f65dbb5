"""Processes that die at the named points of a refresh, ten times over: what is known then, what is lost, and what of the
tokens can be read on the disk."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from sis_pipeline.connect import tokens
from sis_pipeline.connect.contract import Request
from sis_pipeline.connect.errors import AuthRevokedError
from sis_pipeline.connect.upkeep import token_health
from sis_pipeline.db.process import is_gone
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline_tests.connect.workers import killed_at
from sis_pipeline_tests.faults.consents import MODES, ORGS, Connected, audited, connector, scalar, systems
from sis_pipeline_tests.faults.racers import read_at_home
from sis_pipeline_tests.faults.rows import Count, Recorder, Row

ROW = Row(
    10,
    "SIGKILL at each named point of a refresh, in each mode of the server, the token ended by the clock or by a refusal",
    "the row says that the outcome is unknown, the next process finds it out with one call, only a server that guards "
    "its refresh tokens needs a new grant, never two living families, no token legible on the disk",
    120,
    "kills",
)

POINTS = tuple(re.findall(r'crash_point\("(refresh\.\w+)"\)', Path(tokens.__file__).read_text()))
UNKNOWN = ("refresh.after_response", "refresh.before_commit")
"""The server has answered, and what it said died with the process."""


def test_every_point_is_known() -> None:
    assert set(POINTS) == {"refresh.before_call", *UNKNOWN, "refresh.after_commit"}


@pytest.fixture(scope="module")
def server() -> Iterator[SandboxServer]:
    with systems() as running:
        yield running


@pytest.mark.parametrize("mode", MODES)
def test_killed_refreshes(  # noqa: PLR0917  fixtures
    database: Engine,
    server: SandboxServer,
    tmp_path: Path,
    row: Recorder,
    count: Count,
    chance: random.Random,
    mode: str,
) -> None:
    began = time.time()
    issued = remembered(server, mode)
    it = connector(server, database)(mode)
    rounds = list(product(range(10), POINTS))
    chance.shuffle(rounds)
    chosen = rounds[: count(full=len(rounds), part=2)]
    for number, point in chosen:
        killed(it, point, tmp_path, by_clock=number % 2 == 1)
        row.happened()
        row.ran()
    called = any(point != "refresh.before_call" or number % 2 == 0 for number, point in chosen)
    assert ((tmp_path / "output.log").stat().st_size > 0) == called, "calls are told at this level"
    prove_illegible(database, tmp_path, set(issued), since=began)


def killed(it: Connected, point: str, home: Path, *, by_clock: bool) -> None:
    """One refresh dies at the point, and another process goes on."""
    if by_clock:
        it.end_by_clock()
    else:
        it.handle.expire_tokens()
    it.forget()
    old = it.row("access", "version")
    assert killed_at(point, read_at_home, home=str(home), **it.work()) == -9
    reached, committed = point != "refresh.before_call", point == "refresh.after_commit"
    assert (it.counted("token_calls"), it.counted("refused")) == (reached, not by_clock)
    assert it.living == 1
    prove_known(it, committed=committed)
    lost = it.handle.authorization.mode == "strict" and point in UNKNOWN
    with it.source() as source:
        if lost:
            with pytest.raises(AuthRevokedError, match="invalid_grant"):
                source.send(Request(ORGS))
        else:
            source.send(Request(ORGS))
            assert it.row("access", "version") == (old[0] + 1,)  # type: ignore[index]
    assert it.counted("token_calls") == reached + (not committed)
    assert it.living == (not lost)
    alerts = audited(it.engine, it.key, "token.needs_reauth")
    if lost:
        assert it.row("refresh", "status") == it.row("access", "status") == ("needs_reauth",)
        it.grant()
        assert it.living == 1
        with it.source() as source:
            source.send(Request(ORGS))
        assert audited(it.engine, it.key, "token.needs_reauth") == alerts


def prove_known(it: Connected, *, committed: bool) -> None:
    """What everybody can see of it, without a secret."""
    found = it.row("access", "status, lease_holder")
    assert found is not None
    assert found[0] == ("active" if committed else "refreshing")
    assert found[1] is None if committed else is_gone(found[1])
    with it.engine.connect() as connection:
        assert {one.kind for one in token_health(connection) if one.integration == it.key} >= {"access", "refresh"}


def remembered(server: SandboxServer, mode: str) -> list[str]:
    """Every token and refresh token that the server gives out from now on."""
    given: list[str] = []
    authorization = server.system(mode).authorization
    issue: Callable[..., dict[str, str]] = authorization._issue

    def noted(*arguments: object) -> dict[str, str]:
        answer = issue(*arguments)
        given.extend(answer[name] for name in ("access_token", "refresh_token") if name in answer)
        return answer

    authorization._issue = noted  # type: ignore[method-assign, assignment]
    return given


def prove_illegible(engine: Engine, home: Path, issued: set[str], *, since: float) -> None:
    """No token in what the processes wrote, nor in the data folder of PostgreSQL: tables, indexes, log of changes."""
    assert len(issued) >= 4
    planted = "planted-" + "x" * 8 + "-in-plain-sight-1234567890"
    with engine.begin() as connection:
        connection.execute(text("create table sis.planted as select cast(:value as text) as value"), {"value": planted})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("checkpoint"))
    data = Path(str(scalar(engine, "show data_directory")))
    names, size = legible({*issued, planted}, [home, data], since)
    assert names == {planted}, "what is written in plain text is found, and no token is"
    assert size > 1_000_000


def legible(wanted: set[str], folders: list[Path], since: float) -> tuple[set[str], int]:
    """Which of some words stand in files that were changed since then, and how many bytes these files have."""
    sizes = sorted({len(word) for word in wanted})
    words, found, size = {word.encode() for word in wanted}, set(), 0
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        if path.stat().st_mtime < since - 1:
            continue
        content = path.read_bytes()
        size += len(content)
        for run in re.findall(rb"[A-Za-z0-9_-]{%d,}" % sizes[0], content):
            found |= {run[at : at + length] for length in sizes for at in range(len(run) - length + 1)} & words
    return {word.decode() for word in found}, size
