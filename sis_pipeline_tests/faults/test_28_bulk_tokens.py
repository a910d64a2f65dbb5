"""A thousand tokens refreshed and given back at once by `sis tokens`, one in twenty failing, one process killed.

They are the grants of a thousand integrations at one authorization server and one client id, as a vendor that serves
many districts has it, and share one rate limit.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import Engine, text
from sqlalchemy.engine import URL
from werkzeug.wrappers import Request, Response

from sis_pipeline.connect.breaker import OPEN_LONGEST
from sis_pipeline.connect.keys import Keys
from sis_pipeline.connect.vault import Vault
from sis_pipeline.sandbox.server import Handle, SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline.store.integrations import Integration, Integrations
from sis_pipeline_tests.faults.clock import Clock
from sis_pipeline_tests.faults.rows import Count, Recorder, Row

ROW = Row(
    28,
    "1,000 tokens refreshed and given back in bulk; 5 % fail with 503, the process is killed on its way",
    "a result for every token, the same command goes on with those left, never above the rate limit, no token lost",
    5,
    "bulk operations",
)

SIS = [sys.executable, "-c", "from sis_pipeline.cli.main import main; main()", "tokens"]
PER_MINUTE = 2_400
CLIENT = {"grant": "authorization_code", "refresh_mode": "grace", "client_auth": "none"}
GRACE = "a token call that a kill cuts off is repeated with the refresh token that it replaced: the server allows that for 60 s"


class Watched(SandboxServer):
    """Remembers when each request came."""

    arrivals: list[float]

    def _answer(self, request: Request) -> Response:
        self.arrivals.append(time.monotonic())
        return super()._answer(request)


@dataclass
class Bulk:
    """So many integrations with a grant each, and the command that works on all of them."""

    sandbox: Watched
    handle: Handle
    keys: list[str]
    engine: Engine
    vault: Vault

    def run(self, *arguments: str, crash_at: str | None = None) -> tuple[int, Any]:
        """Exit code and the JSON that was printed, None where nothing was."""
        environment = dict(os.environ) | ({"SIS_CRASH_AT": crash_at} if crash_at else {})
        done = subprocess.run(
            [*SIS, *arguments, "--all", "--json"],
            env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr[-2000:]
        return done.returncode, json.loads(done.stdout) if done.stdout else None

    def break_down(self, path: str, keys: list[str]) -> Any:
        tenants = "|".join(keys)
        return self.sandbox.faults.add(
            "status", path=rf"{path}\?tenant=({tenants})$", times=None, status=503
        )  # fmt: skip

    def count(self, condition: str) -> int:
        with self.engine.connect() as connection:
            return int(connection.scalar(text(f"select count(*) from sis.oauth_tokens where {condition}")) or 0)


@pytest.fixture
def bulk(
    database: Engine, database_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: Count
) -> Iterator[Bulk]:
    for name in [name for name in os.environ if name.startswith(("SIS_", "DAGSTER_")) and name != "SIS_FAULTS_FULL"]:
        monkeypatch.delenv(name)
    key = Fernet.generate_key().decode()
    monkeypatch.setenv("SIS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SIS_DATABASE_URL", database_url.render_as_string(hide_password=False))
    monkeypatch.setenv("SIS_ENCRYPTION_KEYS", key)
    Watched.arrivals = []
    with Watched(
        World(seed=28, systems=(System("state", "oneroster_1.2", 5, CLIENT),)), enforce_limits=False
    ) as running:
        handle, vault = running.system("state"), Vault.open(database, Keys([key]))
        keys = [f"district-{number:04d}" for number in range(count(full=1_000, part=40))]
        _granted(handle, keys, database, vault)
        yield Bulk(running, handle, keys, database, vault)


def _granted(handle: Handle, keys: list[str], engine: Engine, vault: Vault) -> None:
    """Register them, each with a grant of its own, given two hours ago."""
    registry = Integrations(engine)
    for key in keys:
        settings = {**handle.settings, "requests_per_minute": PER_MINUTE}
        settings |= {name: f"{settings[name]}?tenant={key}" for name in ("token_url", "revoke_url")}
        registry.add(Integration(key, handle.provider, key, settings=settings))
    with engine.begin() as connection:
        ago = {"last_refreshed_at": text("sis.clock() - interval '2 hours'")}
        for key in keys:
            answer = handle.authorization.grant()
            vault.write(connection, key, "access", answer["access_token"], expires_in=3600, **ago)
            vault.write(connection, key, "refresh", answer["refresh_token"], **ago)


@pytest.mark.faults
def test_bulk_operations(bulk: Bulk, chance: random.Random, row: Recorder) -> None:
    few = max(len(bulk.keys) // 20, 3)
    _refreshed(bulk, sorted(chance.sample(bulk.keys[few * 2 :], few)), row)
    _revoked(bulk, sorted(chance.sample(bulk.keys, few)), row)
    arrivals = sorted(bulk.sandbox.arrivals)
    assert busiest(arrivals, 60.0) <= PER_MINUTE
    assert arrivals[-1] - arrivals[0] >= (len(arrivals) - 1) * 60 / PER_MINUTE - 0.05, "nor above it on the whole"
    row.note(
        f"28: {len(bulk.keys):,} integrations, {len(arrivals):,} calls at a limit of {PER_MINUTE:,} a minute; {GRACE}"
    )


def _refreshed(bulk: Bulk, failing: list[str], row: Recorder) -> None:
    total = len(bulk.keys)
    code, _ = bulk.run("refresh", crash_at=f"refresh.after_commit:{total // 3}")
    assert code == -signal.SIGKILL
    done = bulk.count("kind = 'access' and version = 2")
    assert total // 3 <= done < total
    down = bulk.break_down("/oauth/token", failing)
    code, told = bulk.run("refresh")
    results = Counter(one["result"] for one in told["results"])
    asked = {one["integration"] for one in told["results"]}
    codes = {one["integration"]: one["error"]["code"] for one in told["results"] if one["error"]}
    left = set(codes)
    assert (code, results["failed"], results["refreshed"]) == (1, len(left), total - done - len(left))
    assert {key for key, what in codes.items() if what != "transient.left_alone"} <= set(failing) & asked <= left
    assert set(codes.values()) <= {"transient.server_error", "transient.left_alone"}
    assert len(told["left_out"]) == done, "those before the kill were not refreshed again"
    assert down.fired > 0
    row.happened(1 + down.fired)
    bulk.sandbox.faults.clear()
    Clock(bulk.engine).leap(OPEN_LONGEST)  # five failures in a row, as the last ones may be, have it left alone
    code, told = bulk.run("refresh")
    assert code == 0
    assert {one["integration"] for one in told["results"]} == left
    row.ran(3)
    assert bulk.count("kind = 'access' and version = 2 and status = 'active' and failures = 0") == total, "each once"
    assert bulk.handle.authorization.stats()["live_families"] == total
    lost = [key for key in bulk.keys if bulk.handle.api.tokens.check(bulk.vault.get(key, "access")) is None]
    assert lost == [], "the server knows every token that is stored"


def _revoked(bulk: Bulk, failing: list[str], row: Recorder) -> None:
    total = len(bulk.keys)
    down = bulk.break_down("/oauth/revoke", failing)
    code, told = bulk.run("revoke", "--yes")
    assert (code, told["revoked"], told["failed"]) == (1, total - len(failing), len(failing))
    by_result = {one["integration"]: {token["status"] for token in one["tokens"]} for one in told["results"]}
    assert by_result == {key: {"revocation_pending" if key in failing else "revoked"} for key in bulk.keys}
    assert down.fired == len(failing)
    assert bulk.handle.authorization.stats()["live_families"] == len(failing)
    row.happened(down.fired)
    bulk.sandbox.faults.clear()
    code, told = bulk.run("revoke", "--yes")
    assert (code, {one["integration"] for one in told["results"]}) == (0, set(failing))
    assert bulk.count("status <> 'revoked'") == 0
    assert bulk.handle.authorization.stats()["live_families"] == 0
    row.ran(2)


def busiest(arrivals: list[float], seconds: float) -> int:
    """The most arrivals in any window of so many seconds."""
    return max(bisect_right(arrivals, begin + seconds) - index for index, begin in enumerate(arrivals))
