"""Encryption keys that change while tokens do, by processes that are killed; keys that are wrong, missing or in use."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import Engine, text

from sis_pipeline.connect.contract import Request
from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.connect.keys import Keys, retire, rotate_keys, rows_per_key
from sis_pipeline.connect.vault import Vault
from sis_pipeline_tests.connect.workers import killed_at, rotate
from sis_pipeline_tests.faults.consents import ORGS, Connected, connector, systems
from sis_pipeline_tests.faults.rows import Count, Recorder, Row

ROW = Row(
    26,
    "a key rotation is killed after a random row, before or after a batch, while tokens are refreshed with the old and "
    "the new key; a start with a wrong, missing or altered key; retiring a key that seals rows",
    "every row opens at all times; no token is lost; the start is refused with the key's id and what to do; the key is "
    "not retired",
    100,
    "kills and refusals",
)

SECRETS = 120
BATCHES = 3
PER_ROW = tuple(f"rotate.after_row:{number}" for number in range(1, SECRETS + 1))
PER_BATCH = tuple(f"rotate.{when}_commit:{number}" for when in ("before", "after") for number in range(1, BATCHES))


def new_key() -> str:
    return Fernet.generate_key().decode()


def fill(vault: Vault) -> None:
    with vault.engine.begin() as connection:
        for number in range(SECRETS):
            vault.write(connection, f"i-{number:03}", "client_secret", f"secret {number}")


@contextmanager
def meanwhile(*works: Callable[[], None]) -> Iterator[None]:
    """Do each of them over and over, in a thread of its own; what one raises is raised at the end."""
    stop = threading.Event()

    def forever(work: Callable[[], None]) -> None:
        while not stop.is_set():
            work()

    with ThreadPoolExecutor(len(works)) as pool:
        running = [pool.submit(forever, work) for work in works]
        try:
            yield
        finally:
            stop.set()
    for one in running:
        one.result()


def test_killed_rotations(database: Engine, row: Recorder, count: Count, chance: random.Random) -> None:
    keys = [new_key()]
    with systems() as server:
        it = connector(server, database, (keys[0],))("strict")
        fill(Vault.open(database, Keys(keys)))
        it.forget()
        refreshes = 0
        for number in range(count(full=60, part=2)):
            old, keys = keys[0], [new_key(), keys[0]]
            Vault.open(database, Keys(keys))
            point = chance.choice(PER_BATCH if number % 3 == 0 else PER_ROW)
            refreshes += killed(it, database, keys, point)
            assert rotate_keys(database, Keys(keys)).left == 0
            retire(database, Keys(keys), Keys([old]).newest)
            row.happened()
            row.ran()
        keys = keys[:1]
        assert it.counted("token_calls") == refreshes > 0
        assert [it.counted(name) for name in ("invalid_grant", "families_revoked")] == [0, 0]
        every_secret_opens(Vault.open(database, Keys(keys)))
        row.note(f"{refreshes:,} refreshes, each with a new refresh token, while keys were changed and killed")


def killed(it: Connected, database: Engine, keys: list[str], point: str) -> int:
    """A rotation dies at the point while tokens are replaced, in turn by who has the new key first and by who was
    started with the new key behind the old one; how many tokens were."""
    refreshes = 0
    ways = keys, keys[::-1]

    def refresh() -> None:
        nonlocal refreshes
        with it.source(keys=tuple(ways[refreshes % 2])) as source:
            source.refresh_token()
            source.send(Request(ORGS))
        refreshes += 1

    def open_all() -> None:
        every_secret_opens(reader)

    reader = Vault.open(database, Keys(keys))
    url = database.url.render_as_string(hide_password=False)
    with meanwhile(refresh, open_all):
        assert killed_at(point, rotate, database=url, keys=keys) == -9
    every_secret_opens(reader)
    return refreshes


def every_secret_opens(vault: Vault) -> None:
    with vault.engine.connect() as connection:
        rows = connection.execute(text("select * from sis.oauth_tokens")).all()
    opened = {row.integration: vault.unseal(row) for row in rows if row.kind == "client_secret"}
    assert all(opened[f"i-{number:03}"] == f"secret {number}" for number in range(SECRETS))
    assert all(vault.unseal(row) for row in rows)


def test_starts_and_retirements_that_are_refused(database: Engine, row: Recorder, count: Count) -> None:
    """Nothing is changed by any of them: what sealed the rows before opens them afterwards."""
    old, new = new_key(), new_key()
    right = Keys([new, old])
    fill(Vault.open(database, Keys([old])))
    Vault.open(database, right).put("late", "client_secret", "sealed with the new key")
    before = sealed(database)
    for number in range(count(full=40, part=len(REFUSALS))):
        refusal = REFUSALS[number % len(REFUSALS)]
        with pytest.raises(ConfigError) as refused:
            refusal(database, old, new)
        assert old not in str(refused.value)
        assert new not in str(refused.value)
        assert refused.value.advice
        assert sealed(database) == before
        row.happened()
        row.ran()
    every_secret_opens(Vault.open(database, right))


def none_given(_database: Engine, _old: str, _new: str) -> None:
    Keys([])


def one_that_is_none(database: Engine, old: str, new: str) -> None:
    Vault.open(database, Keys([new, old[:-2]]))


def another_one(database: Engine, _old: str, _new: str) -> None:
    Vault.open(database, Keys([new_key()]))


def without_the_old_one(database: Engine, _old: str, new: str) -> None:
    Vault.open(database, Keys([new]))


def without_the_new_one(database: Engine, old: str, _new: str) -> None:
    Vault.open(database, Keys([old]))


def a_rotation_without_the_old_one(database: Engine, _old: str, new: str) -> None:
    rotate_keys(database, Keys([new_key(), new]))


def the_old_one_retired(database: Engine, old: str, new: str) -> None:
    retire(database, Keys([new, old]), Keys([old]).newest)


def the_newest_retired(database: Engine, old: str, new: str) -> None:
    retire(database, Keys([new, old]), Keys([new]).newest)


REFUSALS: tuple[Callable[[Engine, str, str], None], ...] = (
    none_given, one_that_is_none, another_one, without_the_old_one, without_the_new_one, a_rotation_without_the_old_one,
    the_old_one_retired, the_newest_retired,
)  # fmt: skip


def sealed(engine: Engine) -> list[tuple[object, ...]]:
    query = "select integration, kind, version, key_id, ciphertext from sis.oauth_tokens order by 1, 2"
    with engine.connect() as connection:
        rows = [tuple(row) for row in connection.execute(text(query))]
        return [*rows, *sorted(rows_per_key(connection).items())]
