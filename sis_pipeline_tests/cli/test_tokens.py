"""`sis tokens` over real sockets and a real database: health, bulk refresh and revocation that go on, keys that change."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import Engine, text

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import ExitCode
from sis_pipeline.connect.contract import Token
from sis_pipeline.connect.errors import AuthRevokedError, ConfigError, SisError, TransientError
from sis_pipeline.connect.keys import create_key_file
from sis_pipeline.connect.vault import Vault
from sis_pipeline.defs.token_work import Effort, door
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline.store.integrations import Integration
from sis_pipeline_tests.cli.conftest import Sis
from sis_pipeline_tests.connect.workers import tokens_of

SIS = [sys.executable, "-c", "from sis_pipeline.cli.main import main; main()"]
PERSON = {"grant": "authorization_code", "refresh_mode": "strict", "client_auth": "basic"}
KEYS = tuple(f"d{number:02d}" for number in range(1, 13))
TOKEN, REVOKE = "/oauth/token", "/oauth/revoke"


@pytest.fixture(scope="module")
def world() -> World:
    systems = [System(key, "oneroster_1.2", 5, PERSON) for key in KEYS]
    return World(seed=11, systems=(*systems, System("machine", "oneroster_1.2", 5)))


@pytest.fixture
def sandbox(world: World) -> Iterator[SandboxServer]:
    with SandboxServer(world, enforce_limits=False) as running:
        yield running


Connect = Callable[..., Installation]


@pytest.fixture
def connect(home: Path, sandbox: SandboxServer) -> Connect:
    """Register systems of the sandbox, and have access granted to each."""

    def run(*keys: str, **settings: Any) -> Installation:
        here = Installation()
        for key in keys:
            handle = sandbox.system(key)
            given = {**handle.settings, "requests_per_minute": 6_000, **settings}
            district = "lincoln" if key < "d07" else "fernhollow"
            integration = here.integrations.add(Integration(key, handle.provider, district, settings=given))
            here.vault.put(key, "client_secret", handle.client_secret)
            with door(integration, vault=here.vault, engine=here.engine, effort=Effort()) as source:
                if handle.api.authorization is None:
                    source.refresh_token()
                else:
                    answer = handle.authorization.grant()
                    token = Token(answer["access_token"], answer["expires_in"], answer["refresh_token"])
                    tokens_of(source).accept(token)
        age(here.engine)
        return here

    return run


def age(engine: Engine, hours: int = 2) -> None:
    """What time alone would do."""
    with engine.begin() as connection:
        connection.execute(text(f"update sis.oauth_tokens set last_refreshed_at = last_refreshed_at - interval '{hours} h'"))  # fmt: skip


def rows(engine: Engine, query: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def versions(engine: Engine) -> dict[str, int]:
    return dict(rows(engine, "select integration, version from sis.oauth_tokens where kind = 'access'"))


def results(said: Any) -> dict[str, str]:
    return {one["integration"]: one["result"] for one in said.json["results"]}


def refreshes(sandbox: SandboxServer, key: str) -> int:
    return int(sandbox.system(key).stats()["oauth"]["grants"].get("refresh_token", 0))


# --- health ----------------------------------------------------------------------------------------------------------


def test_status_tells_the_problems_first_and_opens_nothing(
    sis: Sis, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = connect("d01", "d08", "machine")
    assert sis("tokens", "status").code == 0
    with here.engine.begin() as connection:
        connection.execute(text("update sis.oauth_tokens set status = 'needs_reauth', failures = 1, last_error = 'It was refused.' where integration = 'd08' and kind <> 'client_secret'"))  # fmt: skip
        connection.execute(text("update sis.oauth_tokens set failures = 3, last_error = 'It was down.' where integration = 'machine' and kind = 'access'"))  # fmt: skip
    monkeypatch.setenv("SIS_ENCRYPTION_KEYS", "no key at all")
    said = sis("tokens", "status", "--json")
    assert (said.code, said.json["ok"]) == (ExitCode.PERSON, False)
    told = [(one["integration"], one["kind"], one["status"]) for one in said.json["tokens"]]
    assert told[:3] == [
        ("d08", "access", "needs_reauth"),
        ("d08", "refresh", "needs_reauth"),
        ("machine", "access", "active"),
    ]
    assert len(told) == 8
    assert sum(said.json["keys"].values()) == 8
    words = sis("tokens", "status").out
    assert "2 waiting for a person" in words
    assert "sis oauth authorize d08" in words
    assert sis("tokens", "status", "--district", "lincoln").code == 0
    assert sis("tokens", "status", "machine").code == 0
    assert sis("tokens", "status", "d08").code == ExitCode.PERSON


# --- refreshing ------------------------------------------------------------------------------------------------------


def test_refreshing_many_goes_on_with_those_that_failed(
    sis: Sis, connect: Connect, sandbox: SandboxServer, database: Engine
) -> None:
    connect(*KEYS)
    down = [sandbox.faults.add("status", system=key, path=TOKEN, times=None, status=503) for key in ("d03", "d07")]
    sandbox.system("d05").revoke_grant()
    said = sis("tokens", "refresh", "--all", "--json")
    assert said.code == ExitCode.FAILED, said.err
    assert (said.json["refreshed"], said.json["failed"]) == (9, 3)
    assert {key for key, result in results(said).items() if result == "failed"} == {"d03", "d05", "d07"}
    errors = {one["integration"]: one["error"] for one in said.json["results"] if one["error"]}
    assert {key: error["code"] for key, error in errors.items()} == {
        "d03": "transient.server_error", "d05": "auth_revoked.grant", "d07": "transient.server_error",
    }  # fmt: skip
    assert "sis oauth authorize d05" in errors["d05"]["advice"]
    assert all(2 <= fault.fired <= 3 for fault in down), "asked again, and not for ever"
    before = versions(database)
    assert {key for key, version in before.items() if version == 2} == set(KEYS) - {"d03", "d05", "d07"}

    sandbox.faults.clear()
    again = sis("tokens", "refresh", "--all", "--json")
    assert (again.code, results(again)) == (0, {"d03": "refreshed", "d07": "refreshed"}), "those that are left"
    assert again.json["left_out"]["d05"] == "waiting for a person"
    assert again.json["left_out"]["d01"] == "refreshed within 60 min"
    assert [refreshes(sandbox, key) for key in KEYS if key != "d05"] == [1] * 11
    assert sis("tokens", "refresh", "--all", "--json").json["results"] == []
    anew = sis("tokens", "refresh", "--district", "lincoln", "--older-than", "0s", "--json")
    assert results(anew) == dict.fromkeys(("d01", "d02", "d03", "d04", "d06"), "refreshed")
    told = sis("tokens", "refresh", "d05", "d01")
    assert told.code == ExitCode.FAILED
    assert "1 integration refreshed, 1 failed" in told.out
    assert "The same command goes on with the 1 that failed." in told.out


def test_a_refresh_that_is_killed_goes_on(sis: Sis, connect: Connect, sandbox: SandboxServer, database: Engine) -> None:
    connect(*KEYS)
    done = subprocess.run(
        [*SIS, "tokens", "refresh", "--all", "--parallel", "1"],
        env={**os.environ, "SIS_CRASH_AT": "refresh.after_commit:5"}, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert sorted(versions(database).values()) == [1] * 7 + [2] * 5
    said = sis("tokens", "refresh", "--all", "--json")
    assert (said.code, said.json["refreshed"]) == (0, 7)
    assert [refreshes(sandbox, key) for key in KEYS] == [1] * 12


def test_a_client_that_is_enabled_again_needs_nothing_more(sis: Sis, connect: Connect, sandbox: SandboxServer) -> None:
    """What a refresh shows of the credentials is kept: they are refused, they work again."""
    registry = connect("machine").integrations
    refused = {"status": 401, "body": '{"error": "invalid_client"}', "content_type": "application/json"}
    sandbox.faults.add("status", system="machine", path=TOKEN, times=None, **refused)
    assert sis("tokens", "refresh", "machine").code == ExitCode.FAILED
    assert registry.get("machine").status == "needs_reauth"
    sandbox.faults.clear()
    left_out = sis("tokens", "refresh", "--all", "--json").json["left_out"]
    assert left_out == {"machine": "waiting for a person"}
    assert sis("tokens", "refresh", "machine").code == 0
    assert registry.get("machine").status == "healthy"
    assert "needs_reauth" not in sis("health", "--json").out


@pytest.mark.parametrize(("error", "status"), [(TransientError, "degraded"), (ConfigError, "failing")])
def test_a_new_token_heals_nothing_but_the_credentials(
    sis: Sis, connect: Connect, error: type[SisError], status: str
) -> None:
    registry = connect("machine").integrations
    registry.note_sync("machine", error("What lies behind the token endpoint is in trouble."))
    assert sis("tokens", "refresh", "machine").code == 0
    assert registry.get("machine").status == status


def test_in_bulk_an_integration_that_waits_for_a_person_is_left_out_though_its_token_is_good(
    sis: Sis, connect: Connect, database: Engine
) -> None:
    connect("machine").integrations.note_sync("machine", AuthRevokedError("The system refuses every token."))
    said = sis("tokens", "refresh", "--all", "--json")
    assert (said.code, said.json["left_out"]) == (0, {"machine": "waiting for a person"})
    assert versions(database) == {"machine": 1}


def test_in_bulk_only_the_tokens_that_are_used_count(
    sis: Sis, connect: Connect, sandbox: SandboxServer, database: Engine
) -> None:
    """Access was granted anew, and the server does not confirm that the tokens of before are revoked."""
    here = connect("d01")
    sandbox.faults.add("status", system="d01", path=REVOKE, times=None, status=204)
    with door(here.integrations.get("d01"), vault=here.vault, engine=here.engine, effort=Effort()) as source:
        answer = sandbox.system("d01").authorization.grant()
        tokens_of(source).accept(Token(answer["access_token"], answer["expires_in"], answer["refresh_token"]))
        with pytest.raises(SisError):
            source.finish_revocations()
    stuck = rows(database, "select kind, failures from sis.oauth_tokens where status = 'revocation_pending' order by 1")
    assert stuck == [("access 1", 1), ("refresh 1", 1)]
    young = sis("tokens", "refresh", "--all", "--json")
    assert young.json["left_out"] == {"d01": "refreshed within 60 min"}
    age(here.engine)
    said = sis("tokens", "refresh", "--all", "--json")
    assert (said.code, results(said)) == (0, {"d01": "refreshed"})


def test_a_credential_needs_nobody(sis: Sis, connect: Connect, database: Engine) -> None:
    connect("machine")
    said = sis("tokens", "refresh", "--provider", "oneroster", "--json")
    assert (said.code, results(said)) == (0, {"machine": "refreshed"})
    (token,) = said.json["results"][0]["tokens"]
    assert (token["kind"], token["status"]) == ("access", "active")
    assert 3500 < token["expires_in_seconds"] <= 3600
    refused = sis("tokens", "revoke", "machine", "--yes", "--json")
    assert refused.json["results"][0]["error"]["code"] == "config.revocation"
    assert versions(database) == {"machine": 2}, "left as it was"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Say whose tokens"), (("--all", "d01"), "--all is every integration"),
        (("d01", "--provider", "oneroster"), "not both"), (("--district", "nowhere"), "no integration of district nowhere"),
        (("--older-than", "soon"), "give a number and s, m, h or d"), (("--all", "--parallel", "99"), "less than or equal to 8"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["refresh", "revoke"])
def test_wrong_usage_is_told_in_words(
    sis: Sis, home: Path, command: str, arguments: tuple[str, ...], words: str
) -> None:
    said = sis("tokens", command, *arguments)
    assert said.code == ExitCode.USAGE, said.out
    assert words in " ".join(said.err.split())


def test_what_is_missing_is_told_in_words(sis: Sis, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sis("tokens", "refresh", "nobody").code == ExitCode.CONFIG
    assert "There is no integration." in sis("tokens", "refresh", "--all").out
    connect("d01")
    monkeypatch.setenv("SIS_ENCRYPTION_KEYS", Fernet.generate_key().decode())
    said = sis("tokens", "refresh", "--all", "--json")
    assert (said.code, said.json["error"]["code"]) == (ExitCode.CONFIG, "config.key_unknown")


# --- revoking --------------------------------------------------------------------------------------------------------


def test_revoking_many_goes_on_with_those_not_confirmed(
    sis: Sis, connect: Connect, sandbox: SandboxServer, database: Engine
) -> None:
    connect(*KEYS[:6], "machine")
    asked = sis("tokens", "revoke", "--district", "lincoln")
    assert (asked.code, "Add --yes" in asked.err) == (ExitCode.USAGE, True)
    assert "grant access again (`sis oauth authorize KEY`) to 6 of them" in asked.err
    down = sandbox.faults.add("status", system="d02", path=REVOKE, times=None, status=503)
    said = sis("tokens", "revoke", "--district", "lincoln", "--yes", "--json")
    assert (said.code, said.json["revoked"], said.json["failed"]) == (ExitCode.FAILED, 5, 1)
    assert down.fired == 1
    failed = said.json["results"][-1]
    assert {one["kind"]: one["status"] for one in failed["tokens"]} == dict.fromkeys(("access", "refresh"), "revocation_pending")  # fmt: skip
    assert failed["error"]["code"] == "transient.server_error"
    assert {sandbox.system(key).stats()["oauth"]["live_families"] for key in KEYS[:6] if key != "d02"} == {0}
    sandbox.faults.clear()
    again = sis("tokens", "revoke", "--district", "lincoln", "--yes", "--json")
    assert (again.code, results(again)) == (0, {"d02": "revoked"})
    assert sandbox.system("d02").stats()["oauth"]["live_families"] == 0
    assert set(rows(database, "select status from sis.oauth_tokens where kind = 'refresh'")) == {("revoked",)}
    status = sis("tokens", "status")
    assert status.code == ExitCode.PERSON
    assert "sis oauth authorize d02" in status.out
    nothing = sis("tokens", "revoke", "--district", "lincoln")
    assert (nothing.code, "6 integrations without a token to give back" in nothing.out) == (0, True)
    assert sis("tokens", "refresh", "--all", "--json").json["left_out"]["d02"] == "given back"


def test_a_broken_revocation_endpoint_does_not_stop_token_calls(
    sis: Sis, connect: Connect, sandbox: SandboxServer, database: Engine
) -> None:
    connect("d01")
    sandbox.faults.add("status", system="d01", path=REVOKE, times=None, status=503)
    for _ in range(6):
        assert sis("tokens", "revoke", "d01", "--yes").code == ExitCode.FAILED
    broken = rows(database, "select state, breaker_key from sis.circuit_breakers")
    assert broken == [("open", f"oneroster {sandbox.url}/d01/oauth/revoke")]
    with database.begin() as connection:
        connection.execute(text("update sis.oauth_tokens set status = 'active'"))
    assert sis("tokens", "refresh", "d01").code == 0, "the token endpoint has a breaker of its own"
    assert sis("health", "reset-breaker", "d01", "--json").json["reset"] == [broken[0][1]]


def test_removing_an_integration_gives_its_tokens_back_first(
    sis: Sis, connect: Connect, sandbox: SandboxServer, database: Engine
) -> None:
    connect("d01", "d02", "machine")
    assert sis("integration", "remove", "d01", "--yes").code == ExitCode.CONFIG, "it is not paused"
    assert sandbox.system("d01").stats()["oauth"]["revocations"] == 0, "nothing was done that can't be undone"
    for key in ("d01", "d02", "machine"):
        sis("integration", "pause", key)
    down = sandbox.faults.add("status", path=REVOKE, times=2, status=503)
    kept = sis("integration", "remove", "d01", "--yes", "--json")
    assert (kept.code, kept.json["error"]["code"]) == (ExitCode.FAILED, "transient.server_error")
    assert "--force" in kept.err
    assert rows(database, "select key from sis.integrations order by key") == [("d01",), ("d02",), ("machine",)]
    forced = sis("integration", "remove", "d02", "--yes", "--force", "--json")
    assert (forced.code, forced.json["tokens"], down.fired) == (0, "not_confirmed", 2)
    removed = sis("integration", "remove", "d01", "--yes", "--json")
    assert (removed.code, removed.json["tokens"]) == (0, "revoked")
    assert sandbox.system("d01").stats()["oauth"]["live_families"] == 0
    machine = sis("integration", "remove", "machine", "--yes")
    assert "takes no tokens back" in machine.out
    assert rows(database, "select count(*) from sis.oauth_tokens") == [(0,)]


# --- tidying ---------------------------------------------------------------------------------------------------------


def test_cleaning_up(sis: Sis, connect: Connect, database: Engine) -> None:
    connect("machine")
    with database.begin() as connection:
        connection.execute(text("update sis.oauth_tokens set expires_at = sis.clock() - interval '2 h' where kind = 'access'"))  # fmt: skip
        connection.execute(text("insert into sis.oauth_tokens select 'gone', kind, ciphertext, key_id, version from sis.oauth_tokens"))  # fmt: skip
        connection.execute(text("update sis.oauth_tokens set updated_at = updated_at - interval '2 h'"))
    for arguments in (("--dry-run",), ()):
        said = sis("tokens", "cleanup", "--json", *arguments)
        assert (said.json["emptied"], said.json["deleted"]) == (1, {"gone": 2})
    assert sis("tokens", "cleanup", "--json").json["deleted"] == {}
    assert len(rows(database, "select * from sis.oauth_tokens")) == 2


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def key_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home's key is in a file."""
    monkeypatch.delenv("SIS_ENCRYPTION_KEYS")
    create_key_file(Installation().settings.key_file)
    return Installation().settings.key_file


def sealed(engine: Engine) -> dict[str, int]:
    return dict(rows(engine, "select key_id, count(*) from sis.oauth_tokens group by 1"))


def secrets(*keys: str) -> set[str | None]:
    return {Installation().vault.get(key, "client_secret") for key in keys}


def test_the_key_file_is_rotated_though_killed_at_every_point(
    sis: Sis, key_file: Path, connect: Connect, sandbox: SandboxServer, database: Engine
) -> None:
    connect(*KEYS[:4])
    (old,), before = sealed(database), key_file.read_text().split()
    running = Installation().vault  # of a sync that began before
    plan = sis("tokens", "rotate-keys", "--dry-run", "--json").json
    assert (plan["adds_key"], plan["to_reseal"]) == (True, 12)
    assert key_file.read_text().split() == before
    asked = sis("tokens", "rotate-keys")
    assert (asked.code, "Add --yes" in asked.err) == (ExitCode.USAGE, True)
    for point in ("rotate.after_row:5", "rotate.before_commit", "rotate.after_commit"):
        killed = subprocess.run(
            [*SIS, "tokens", "rotate-keys", "--retire", "--yes"],
            env={**os.environ, "SIS_CRASH_AT": point}, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert killed.returncode == -signal.SIGKILL, point
        assert len(key_file.read_text().split()) == 2, "one key was added, once"
        assert secrets(*KEYS[:4]) == {sandbox.system(key).client_secret for key in KEYS[:4]}
    assert old not in sealed(database), "all were sealed anew before the last kill"
    early = sis("tokens", "retire-key", Installation().vault._keys.newest)
    assert (early.code, "newest key" in early.err) == (ExitCode.CONFIG, True)
    done = sis("tokens", "rotate-keys", "--retire", "--json")
    assert (done.code, done.json["retired"], done.json["retirable"]) == (0, [old], [])
    (new,) = key_file.read_text().split()
    assert new not in before
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert secrets(*KEYS[:4]) == {sandbox.system(key).client_secret for key in KEYS[:4]}
    _goes_on(running)
    assert old not in sealed(database)


def _goes_on(running: Vault) -> None:
    """It reads what the new key seals, and seals with it what it writes."""
    assert running.get("d01", "client_secret") is not None
    running.put("d01", "client_secret", "changed")
    assert secrets("d01") == {"changed"}


def test_a_vault_that_only_writes_takes_up_the_new_key(sis: Sis, key_file: Path, connect: Connect) -> None:
    connect("d01")
    running = Installation().vault
    assert sis("tokens", "rotate-keys", "--retire", "--yes").code == 0
    running.put("d01", "client_secret", "changed")
    assert secrets("d01") == {"changed"}


def test_a_key_retired_but_still_in_the_file_is_dropped(
    sis: Sis, key_file: Path, connect: Connect, database: Engine
) -> None:
    connect("d01")
    (old,) = sealed(database)
    rotated = sis("tokens", "rotate-keys", "--yes")
    assert f"sis tokens retire-key {old}" in rotated.out
    with database.begin() as connection:  # killed between the two
        connection.execute(text(f"delete from sis.encryption_keys where key_id = '{old}'"))
    said = sis("tokens", "retire-key", old)
    assert (said.code, len(key_file.read_text().split())) == (0, 1)
    assert "Backups of the database from before still need it" in said.out
    assert sis("tokens", "retire-key", "0123456789ab").code == ExitCode.CONFIG


def test_keys_of_the_environment_are_rotated_to_the_first(
    sis: Sis, connect: Connect, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect("d01", "d02")
    (old,), key = sealed(database), os.environ["SIS_ENCRYPTION_KEYS"]
    only = sis("tokens", "rotate-keys")
    assert "put a new one first in SIS_ENCRYPTION_KEYS" in only.out
    new = Fernet.generate_key().decode()
    monkeypatch.setenv("SIS_ENCRYPTION_KEYS", f"{new},{key}")
    early = sis("tokens", "retire-key", old)
    assert (early.code, "still seals 6" in early.err) == (ExitCode.CONFIG, True)
    said = sis("tokens", "rotate-keys", "--json")
    assert (said.code, said.json["resealed"], said.json["retirable"], said.json["added"]) == (0, 6, [old], False)
    assert "may be taken out of SIS_ENCRYPTION_KEYS now" in sis("tokens", "retire-key", old).out
    monkeypatch.setenv("SIS_ENCRYPTION_KEYS", new)
    assert sis("tokens", "refresh", "--all", "--json").json["refreshed"] == 2


def test_what_cannot_be_opened_is_reported_and_stays(
    sis: Sis, connect: Connect, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect("d01")
    key = os.environ["SIS_ENCRYPTION_KEYS"]
    with database.begin() as connection:
        connection.execute(text("update sis.oauth_tokens set ciphertext = '\\x00' where kind = 'access'"))
    monkeypatch.setenv("SIS_ENCRYPTION_KEYS", f"{Fernet.generate_key().decode()},{key}")
    said = sis("tokens", "rotate-keys", "--retire", "--json")
    assert (said.code, said.json["retired"], said.json["left"]) == (ExitCode.FAILED, [], 1)
    assert [(one["integration"], one["kind"]) for one in said.json["failed"]] == [("d01", "access")]
