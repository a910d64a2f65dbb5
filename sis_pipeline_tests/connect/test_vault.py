"""The vault: keys, sealing, binding to the row, and one token call per expiry for all processes."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import Engine, text
from sqlalchemy.engine import URL

from sis_pipeline.connect.errors import ConfigError, SisError, TransientError
from sis_pipeline.connect.vault import Keys, Token, Vault, create_key_file
from sis_pipeline.settings import Settings
from sis_pipeline_tests.connect.servers import Sis, serve
from sis_pipeline_tests.connect.workers import KEY, SECRET, in_processes, send_many

OLD, NEW = (Fernet.generate_key().decode() for _ in range(2))
HOLDER = "lincoln"


@pytest.fixture
def vault(database: Engine) -> Vault:
    return Vault.open(database, Keys([KEY]))


def never() -> Token:
    raise AssertionError("a token was fetched")


def fetches(*values: str, lifetime: float = 3600.0):
    """A fetch that gives the values one after the other, and counts in `calls`."""

    def fetch() -> Token:
        fetch.calls += 1  # type: ignore[attr-defined]
        return Token(values[fetch.calls - 1], lifetime)  # type: ignore[attr-defined]

    fetch.calls = 0  # type: ignore[attr-defined]
    return fetch


def one(database: Engine, query: str) -> object:
    with database.connect() as connection:
        return connection.scalar(text(query))


def change(database: Engine, statement: str) -> None:
    with database.begin() as connection:
        assert connection.execute(text(statement)).rowcount > 0


def test_what_goes_in_comes_out_and_is_nowhere_in_between(database: Engine, vault: Vault) -> None:
    vault.put("a", "client_secret", "sécret-1")
    vault.put("b", "client_secret", "secret-2")
    vault.put("a", "client_secret", "sécret-3")
    assert vault.get("a", "client_secret") == "sécret-3"
    assert vault.get("b", "client_secret") == "secret-2"
    assert vault.get("b", "refresh") is None
    stored = str(one(database, "select string_agg(t::text, '') from sis.oauth_tokens t"))
    assert "secret" not in stored.replace("client_secret", "")
    assert one(database, "select version from sis.oauth_tokens where integration = 'a'") == 2
    assert one(database, "select count(*) from sis.oauth_tokens where expires_at is not null") == 0
    assert vault.delete("a") == 1
    assert vault.get("a", "client_secret") is None
    assert vault.get("b", "client_secret") == "secret-2"


def test_a_ciphertext_moved_to_another_row_is_refused(database: Engine, vault: Vault) -> None:
    for holder in ("a", "b"):
        vault.put(holder, "client_secret", f"hidden value of {holder}")
    vault.put("a", "refresh", "refresh token")
    change(
        database,
        "update sis.oauth_tokens set ciphertext = (select ciphertext from sis.oauth_tokens where integration = 'a' "
        "and kind = 'client_secret') where integration = 'b' or kind = 'refresh'",
    )
    for holder, kind in (("b", "client_secret"), ("a", "refresh")):
        with pytest.raises(ConfigError, match="belongs to another row") as caught:
            vault.get(holder, kind)  # type: ignore[arg-type]
        assert "hidden value" not in str(caught.value)
    assert vault.get("a", "client_secret") == "hidden value of a"


def test_an_older_ciphertext_of_the_same_row_is_refused(database: Engine, vault: Vault) -> None:
    vault.put("a", "client_secret", "old")
    change(database, "create table sis.kept as select ciphertext from sis.oauth_tokens")
    vault.put("a", "client_secret", "new")
    change(database, "update sis.oauth_tokens set ciphertext = (select ciphertext from sis.kept)")
    with pytest.raises(ConfigError, match="belongs to another row"):
        vault.get("a", "client_secret")


def test_every_flipped_byte_is_noticed(database: Engine, vault: Vault) -> None:
    vault.put("a", "client_secret", "secret")
    sealed = base64.urlsafe_b64decode(bytes(one(database, "select ciphertext from sis.oauth_tokens")))  # type: ignore[arg-type]
    for position in range(len(sealed)):
        broken = bytearray(sealed)
        broken[position] ^= 1 << position % 8
        with database.begin() as connection:
            connection.execute(
                text("update sis.oauth_tokens set ciphertext = :c"), {"c": base64.urlsafe_b64encode(broken)}
            )
        with pytest.raises(ConfigError, match="altered in the database"):
            vault.get("a", "client_secret")


def test_newer_keys_seal_and_older_ones_still_open(database: Engine) -> None:
    Vault.open(database, Keys([OLD])).put("a", "client_secret", "sealed with the old key")
    both = Vault.open(database, Keys([NEW, OLD]))
    both.put("b", "client_secret", "sealed with the new key")
    assert both.get("a", "client_secret") == "sealed with the old key"
    assert one(database, "select count(distinct key_id) from sis.oauth_tokens") == 2
    assert one(database, "select count(*) from sis.encryption_keys") == 2
    with pytest.raises(ConfigError, match="not among the keys given"):
        Vault.open(database, Keys([NEW]))


def test_a_wrong_key_is_refused_at_the_start_and_at_the_row(database: Engine, vault: Vault) -> None:
    vault.put("a", "client_secret", "secret")
    with pytest.raises(ConfigError, match="not among the keys given") as caught:
        Vault.open(database, Keys([NEW]))
    assert "SIS_ENCRYPTION_KEYS" in str(caught.value)
    assert NEW not in str(caught.value)
    with pytest.raises(ConfigError, match="not among the keys"):
        Vault(database, Keys([NEW])).get("a", "client_secret")
    assert one(database, "select count(*) from sis.encryption_keys") == 1


def test_a_canary_that_does_not_open_stops_the_start(database: Engine, vault: Vault) -> None:
    change(database, "update sis.encryption_keys set canary = 'gAAAA'")
    with pytest.raises(ConfigError, match="does not open what was sealed with it"):
        Vault.open(database, Keys([KEY]))


def test_keys_come_from_the_environment_then_from_the_file(tmp_path: Path) -> None:
    nothing = Settings(home=tmp_path)
    with pytest.raises(ConfigError, match="sis keys create"):
        Keys.from_settings(nothing)
    create_key_file(nothing.key_file)
    from_file = Keys.from_settings(nothing)
    assert from_file.newest not in Keys([NEW])
    chosen = Keys.from_settings(Settings(home=tmp_path, encryption_keys=f"{NEW}, {OLD}"))  # type: ignore[arg-type]
    assert chosen.newest == Keys([NEW]).newest
    assert Keys([OLD]).newest in chosen


def test_a_key_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "home" / "encryption.key"
    create_key_file(path)
    key = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="left as it was"):
        create_key_file(path)
    assert path.read_text() == key
    assert [entry.name for entry in path.parent.iterdir()] == ["encryption.key"]
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Keys.from_settings(Settings(home=path.parent))


@pytest.mark.parametrize("keys", [[], ["not a key"], ["x" * 44], [NEW, ""], ["ключ"]])
def test_malformed_keys_are_named_as_such_and_not_shown(keys: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Keys(keys)
    assert all(key not in str(caught.value) for key in keys if key)


def test_a_good_token_is_not_fetched_again(vault: Vault) -> None:
    fetch = fetches("t1")
    assert [vault.access_token(HOLDER, fetch) for _ in range(3)] == ["t1"] * 3
    assert fetch.calls == 1


@pytest.mark.parametrize(
    ("lifetime", "passed", "again"),
    [(3600, 2990, False), (3600, 3010, True), (100, 75, False), (100, 85, True), (100, 200, True), (0.3, 0, False)],
)
def test_the_window_is_ten_minutes_or_a_fifth(
    vault: Vault, database: Engine, lifetime: float, passed: int, again: bool
) -> None:
    fetch = fetches("t1", "t2", lifetime=lifetime)
    vault.access_token(HOLDER, fetch)
    change(database, f"update sis.oauth_tokens set expires_at = expires_at - interval '{passed} seconds'")
    assert vault.access_token(HOLDER, fetch) == ("t2" if again else "t1")


def test_a_refused_token_is_replaced_once(vault: Vault) -> None:
    fetch = fetches("t1", "t2")
    assert vault.access_token(HOLDER, fetch) == "t1"
    assert vault.access_token(HOLDER, fetch, refused="t1") == "t2"
    assert vault.access_token(HOLDER, never, refused="t1") == "t2", "a sibling has fetched it meanwhile"


def test_a_failed_fetch_leaves_the_stored_token_as_it_was(vault: Vault, database: Engine) -> None:
    def fails() -> Token:
        raise TransientError("no")

    with pytest.raises(SisError):
        vault.access_token(HOLDER, fails)
    assert one(database, "select count(*) from sis.oauth_tokens") == 0
    vault.access_token(HOLDER, fetches("t1"))
    before = one(database, "select ciphertext from sis.oauth_tokens")
    with pytest.raises(SisError):
        vault.access_token(HOLDER, fails, refused="t1")
    assert one(database, "select ciphertext from sis.oauth_tokens") == before
    assert vault.access_token(HOLDER, never) == "t1"


def test_a_lock_held_too_long_is_a_passing_failure(
    vault: Vault, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sis_pipeline.connect.vault.LOCK_WAIT", "50ms")
    vault.access_token(HOLDER, fetches("t1"))
    with database.begin() as other:
        other.execute(text("select * from sis.oauth_tokens for update"))
        with pytest.raises(TransientError, match="Another process"):
            vault.access_token(HOLDER, never, refused="t1")
    assert vault.access_token(HOLDER, fetches("t2"), refused="t1") == "t2"


def test_processes_fetch_one_token_per_expiry(database_url: URL, vault: Vault) -> None:
    """8 processes through 4 lifetimes: no token is asked for before the one before is in its last fifth."""
    vault.put(HOLDER, "client_secret", SECRET)
    with serve(Sis(lifetime=0.8, delay=0.05)) as sis:
        work = {"database": database_url.render_as_string(hide_password=False), "url": sis.url, "path": "/data"}
        results = in_processes(8, send_many, lambda _: {**work, "calls": 1, "seconds": 2.4, "per_minute": 30_000})
    assert sum(result["token_calls"] for result in results) == len(sis.issued)
    assert len(sis.issued) >= 3
    took = sis.issued[-1] - sis.issued[0]
    assert (len(sis.issued) - 1) * 0.8 * 0.8 <= took + 0.3, "one token more would be 0.64 s too many"


def test_processes_whose_token_is_turned_down_fetch_one_together(database_url: URL, vault: Vault) -> None:
    vault.put(HOLDER, "client_secret", SECRET)
    with serve(Sis(calls_per_token=100, delay=0.02)) as sis:
        work = {"database": database_url.render_as_string(hide_password=False), "url": sis.url, "path": "/data"}
        results = in_processes(8, send_many, lambda _: {**work, "calls": 50})
    assert sum(result["sent"] for result in results) == 400
    assert len(sis.issued) == 4, "400 answers at 100 a token"
    assert sis.refusals >= 3
