"""The keys: where they come from, the proof at every start, changing them while tokens are in use, retiring one."""

from __future__ import annotations

import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import Engine, text
from sqlalchemy.engine import URL

from sis_pipeline.connect import keys as encryption
from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.connect.keys import (
    Keys,
    RowResult,
    add_key,
    create_key_file,
    drop_key,
    retire,
    rotate_keys,
    rows_per_key,
)
from sis_pipeline.connect.vault import Vault
from sis_pipeline.settings import Settings
from sis_pipeline_tests.connect.test_vault import change, one
from sis_pipeline_tests.connect.workers import KEY, in_processes, killed_at, rotate

OLD, NEW, NEWER = (Fernet.generate_key().decode() for _ in range(3))
OLD_ID, NEW_ID = Keys([OLD]).newest, Keys([NEW]).newest


@pytest.fixture
def full(database: Engine) -> Engine:
    """130 secrets of 65 integrations, sealed with the old key."""
    vault = Vault.open(database, Keys([OLD]))
    with database.begin() as connection:
        for number in range(65):
            vault.write(connection, f"i-{number:02}", "client_secret", f"secret {number}")
            vault.write(connection, f"i-{number:02}", "access", f"token {number}", expires_in=3600)
    return database


def every_row_opens(engine: Engine, keys: Keys) -> None:
    vault = Vault.open(engine, keys)
    for number in range(65):
        assert vault.get(f"i-{number:02}", "client_secret") == f"secret {number}"
        assert vault.get(f"i-{number:02}", "access") is not None


def per_key(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return rows_per_key(connection)


def audited(engine: Engine, since: int) -> list[tuple[str, dict[str, object]]]:
    query = "select action, details from sis.audit_log where entry > :since and action ~ '_key$' order by entry"
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query), {"since": since})]


@pytest.fixture
def mark(database: Engine) -> int:
    """The last entry of the audit log before the test."""
    return int(str(one(database, "select coalesce(max(entry), 0) from sis.audit_log")))


# Where keys come from


def test_keys_come_from_the_environment_then_from_the_file(tmp_path: Path) -> None:
    nothing = Settings(home=tmp_path)
    with pytest.raises(ConfigError, match="sis keys create"):
        Keys.from_settings(nothing)
    create_key_file(nothing.key_file)
    from_file = Keys.from_settings(nothing)
    assert from_file.newest not in Keys([NEW])
    chosen = Keys.from_settings(Settings(home=tmp_path, encryption_keys=f"{NEW}, {OLD}"))  # type: ignore[arg-type]
    assert chosen.newest == Keys([NEW]).newest
    assert OLD_ID in chosen


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
    for use in (lambda: Keys.from_settings(Settings(home=path.parent)), lambda: add_key(path)):
        with pytest.raises(ConfigError, match="chmod 600"):
            use()


def test_a_key_is_added_in_front_and_taken_out_again(tmp_path: Path) -> None:
    path = tmp_path / "encryption.key"
    with pytest.raises(ConfigError, match="sis keys create"):
        add_key(path)
    with pytest.raises(ConfigError, match="sis keys create"):
        add_key(tmp_path / "nowhere" / "encryption.key")
    assert not path.exists(), "a key is never made where there was none"
    create_key_file(path)
    first = Keys.from_settings(Settings(home=tmp_path)).newest
    second = add_key(path)
    keys = Keys.from_settings(Settings(home=tmp_path))
    assert (keys.newest, first in keys) == (second, True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    drop_key(path, first)
    assert len(path.read_text().split()) == 1
    for key_id, why in ((first, "is not in"), (second, "is the only key")):
        with pytest.raises(ConfigError, match=why):
            drop_key(path, key_id)
    assert Keys.from_settings(Settings(home=tmp_path)).newest == second
    assert [entry.name for entry in tmp_path.iterdir()] == ["encryption.key"]


def test_keys_added_at_once_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "encryption.key"
    create_key_file(path)
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda _: add_key(path), range(8)))
    keys = Keys.from_settings(Settings(home=tmp_path))
    assert len(set(added)) == 8
    assert all(key_id in keys for key_id in added)
    assert len(path.read_text().split()) == 9


@pytest.mark.parametrize("keys", [[], ["not a key"], ["x" * 44], [NEW, ""], ["ключ"]])
def test_malformed_keys_are_named_as_such_and_not_shown(keys: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Keys(keys)
    assert all(key not in str(caught.value) for key in keys if key)


# The proof at every start


def test_newer_keys_seal_and_older_ones_still_open(database: Engine) -> None:
    Vault.open(database, Keys([OLD])).put("a", "client_secret", "sealed with the old key")
    both = Vault.open(database, Keys([NEW, OLD]))
    both.put("b", "client_secret", "sealed with the new key")
    assert both.get("a", "client_secret") == "sealed with the old key"
    assert per_key(database) == {OLD_ID: 1, NEW_ID: 1}
    with pytest.raises(ConfigError, match="not among the keys given: it seals 1 of the stored secrets"):
        Vault.open(database, Keys([NEW]))


def test_a_wrong_key_is_refused_at_the_start_and_at_the_row(database: Engine) -> None:
    Vault.open(database, Keys([OLD])).put("a", "client_secret", "secret")
    with pytest.raises(ConfigError, match="not among the keys given") as caught:
        Vault.open(database, Keys([NEW]))
    assert "SIS_ENCRYPTION_KEYS" in str(caught.value)
    assert NEW not in str(caught.value)
    with pytest.raises(ConfigError, match="not among the keys"):
        Vault(database, Keys([NEW])).get("a", "client_secret")
    assert per_key(database) == {OLD_ID: 1}


def test_a_key_that_seals_nothing_must_be_there_until_it_is_retired(database: Engine) -> None:
    Vault.open(database, Keys([OLD]))
    with pytest.raises(ConfigError, match="not retired"):
        Vault.open(database, Keys([NEW]))
    Vault.open(database, Keys([NEW, OLD]))
    retire(database, Keys([NEW, OLD]), OLD_ID)
    Vault.open(database, Keys([NEW]))
    assert per_key(database) == {NEW_ID: 0}


def test_a_canary_that_does_not_open_stops_the_start(database: Engine) -> None:
    Vault.open(database, Keys([KEY]))
    change(database, "update sis.encryption_keys set canary = 'gAAAA'")
    with pytest.raises(ConfigError, match="does not open what was sealed with it"):
        Vault.open(database, Keys([KEY]))


# Keys that change while others use them


def opened_by_its_own_key(database: Engine, *keys: str) -> dict[str, str]:
    """Integration -> id of the key that its row says, each opened with that key alone."""
    own = {Keys([key]).newest: Fernet(key) for key in keys}
    with database.connect() as connection:
        rows = connection.execute(text("select integration, key_id, ciphertext from sis.oauth_tokens")).all()
    assert all(own[row.key_id].decrypt(bytes(row.ciphertext)) for row in rows)
    return {row.integration: row.key_id for row in rows}


def test_a_row_says_which_key_sealed_it_though_the_keys_are_read_anew_meanwhile(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread: once that one has half read them, and once between holding the key and sealing."""
    Vault.open(database, Keys([NEW, OLD]))
    Vault.open(database, Keys([OLD, NEW]))
    given = [NEW, OLD]
    keys = Keys([OLD, NEW], lambda: given)
    vault = Vault.open(database, keys)
    noticed = encryption.mask

    def mask_while_another_writes(secret: str, **how: bool) -> None:
        noticed(secret, **how)
        vault.put(f"while {secret == NEW}", "client_secret", "secret")

    with monkeypatch.context() as patch:
        patch.setattr(encryption, "mask", mask_while_another_writes)
        keys.refresh()
    assert opened_by_its_own_key(database, OLD, NEW) == {"while True": OLD_ID, "while False": OLD_ID}

    given[:] = [OLD, NEW]
    held = encryption.hold

    def hold_and_be_overtaken(*arguments: Any) -> Any:
        try:
            return held(*arguments)
        finally:
            keys.refresh()

    monkeypatch.setattr(encryption, "hold", hold_and_be_overtaken)
    vault.put("overtaken", "client_secret", "secret")
    assert opened_by_its_own_key(database, OLD, NEW)["overtaken"] == NEW_ID


# Changing keys


def test_a_rotation_seals_everything_anew_and_says_so(full: Engine, mark: int) -> None:
    keys, told = Keys([NEW, OLD]), list[RowResult]()
    before = one(full, "select string_agg(version::text || updated_at::text, '' order by integration, kind) from sis.oauth_tokens")  # fmt: skip
    planned = rotate_keys(full, keys, dry_run=True)
    assert (planned.before, planned.resealed, planned.left) == ({OLD_ID: 130, NEW_ID: 0}, 0, 130)
    done = rotate_keys(full, keys, progress=told.append, actor="ann")
    assert (done.newest, done.resealed, done.failed, done.left) == (NEW_ID, 130, (), 0)
    assert len({(row.integration, row.kind) for row in told}) == 130
    assert per_key(full) == {OLD_ID: 0, NEW_ID: 130}
    assert before == one(full, "select string_agg(version::text || updated_at::text, '' order by integration, kind) from sis.oauth_tokens")  # fmt: skip
    every_row_opens(full, keys)
    assert rotate_keys(full, keys).resealed == 0
    before_it = {"before": {OLD_ID: 130, NEW_ID: 0}}
    counts = {"resealed": 130, "failed": 0, "left": 0}
    told_of = [("token.rotate_key", before_it | {"done": False}), ("token.rotate_key", before_it | counts | {"done": True})]  # fmt: skip
    assert audited(full, mark) == told_of, "and none for what had nothing to do"


def test_a_row_that_cannot_be_opened_is_left_and_reported(full: Engine) -> None:
    change(full, "update sis.oauth_tokens set ciphertext = 'gAAAA' where integration = 'i-07' and kind = 'access'")
    done = rotate_keys(full, Keys([NEW, OLD]), patience=0)
    assert [(row.integration, row.kind) for row in done.failed] == [("i-07", "access")]
    assert (done.resealed, done.left) == (129, 1)
    with pytest.raises(ConfigError, match="still seals 1 of the stored secrets"):
        retire(full, Keys([NEW, OLD]), OLD_ID)


def test_a_locked_row_is_come_back_for(full: Engine) -> None:
    lock = text("select * from sis.oauth_tokens where integration = 'i-00' for update")
    with full.begin() as other:
        other.execute(lock)
        done = rotate_keys(full, Keys([NEW, OLD]), patience=0)
        assert (done.resealed, done.left) == (128, 2)
    started = threading.Event()

    def hold_for_a_moment() -> None:
        with full.begin() as other:
            other.execute(lock)
            started.set()
            other.execute(text("select pg_sleep(0.3)"))

    holder = threading.Thread(target=hold_for_a_moment)
    holder.start()
    started.wait()
    assert rotate_keys(full, Keys([NEW, OLD])).left == 0
    holder.join()


@pytest.mark.parametrize(
    ("point", "sealed"),
    [
        ("rotate.after_row:30", 0), ("rotate.before_commit", 0), ("rotate.after_commit", 50),
        ("rotate.after_row:77", 50), ("rotate.after_commit:3", 130),
    ],
)  # fmt: skip
def test_a_rotation_that_is_killed_leaves_every_row_readable_and_goes_on(
    full: Engine, database_url: URL, mark: int, point: str, sealed: int
) -> None:
    url = database_url.render_as_string(hide_password=False)
    assert killed_at(point, rotate, database=url, keys=[NEW, OLD]) == -9
    assert per_key(full) == {OLD_ID: 130 - sealed, NEW_ID: sealed}
    rotations = [details for action, details in audited(full, mark) if action == "token.rotate_key"]
    told = {"before": {OLD_ID: 130, NEW_ID: 0}, "done": False}
    assert rotations == ([told] if sealed else []), "who changed rows is told with the first of them"
    every_row_opens(full, Keys([NEW, OLD]))
    assert rotate_keys(full, Keys([NEW, OLD])).resealed == 130 - sealed
    every_row_opens(full, Keys([NEW, OLD]))


def test_tokens_are_replaced_while_keys_are(full: Engine, database_url: URL) -> None:
    """Three processes rotate to and fro while new tokens are written with either key: none is lost, none unreadable."""
    vaults = [Vault.open(full, Keys(keys)) for keys in ([OLD], [NEW, OLD])]
    url, stop, written = database_url.render_as_string(hide_password=False), threading.Event(), [0]

    def write() -> None:
        while not stop.is_set():
            number = written[0] % 65
            vaults[written[0] % 2].put(f"i-{number:02}", "access", f"token {number}", expires_in=3600)
            written[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    ways = [[NEW, OLD], [OLD, NEW], [NEW, OLD]]
    resealed = in_processes(3, rotate, lambda number: {"database": url, "keys": ways[number]})
    stop.set()
    writer.join()
    assert sum(resealed) >= 130
    assert written[0] > 0
    every_row_opens(full, Keys([NEW, OLD]))
    assert rotate_keys(full, Keys([NEW, OLD])).left == 0


# Retiring a key


def test_only_a_key_that_seals_nothing_can_be_retired(full: Engine, mark: int) -> None:
    keys = Keys([NEW, OLD])
    Vault.open(full, keys)
    with pytest.raises(ConfigError, match="still seals 130 of the stored secrets") as caught:
        retire(full, keys, OLD_ID)
    assert "sis tokens rotate-keys" in str(caught.value)
    for key_id, why in ((NEW_ID, "is the newest key"), ("0" * 12, "There is no key")):
        with pytest.raises(ConfigError, match=why):
            retire(full, keys, key_id)
    assert audited(full, mark) == []
    rotate_keys(full, keys)
    retire(full, keys, OLD_ID, actor="ann")
    every_row_opens(full, Keys([NEW]))
    assert [action for action, _ in audited(full, mark)] == ["token.rotate_key", "token.rotate_key", "token.retire_key"]


def test_a_process_that_still_has_a_retired_key_seals_nothing_with_it(full: Engine) -> None:
    late = Vault.open(full, Keys([OLD]))
    rotate_keys(full, Keys([NEW, OLD]))
    retire(full, Keys([NEW, OLD]), OLD_ID)
    for use in (lambda: late.put("i-00", "access", "x"), lambda: late.put("new", "client_secret", "x")):
        with pytest.raises(ConfigError, match="was retired") as caught:
            use()
        assert "Start it anew" in str(caught.value)
    every_row_opens(full, Keys([NEW]))
