"""The vault: secrets go in and come out of their own row only, unaltered, and are nowhere in between."""

from __future__ import annotations

import base64

import pytest
from sqlalchemy import Engine, text

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.connect.keys import Keys
from sis_pipeline.connect.vault import Vault
from sis_pipeline_tests.connect.workers import KEY


@pytest.fixture
def vault(database: Engine) -> Vault:
    return Vault.open(database, Keys([KEY]))


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


def test_a_new_client_secret_ends_what_came_of_the_old_one(database: Engine, vault: Vault) -> None:
    vault.put("a", "client_secret", "old")
    vault.put("a", "access", "token of the old secret", expires_in=3600)
    vault.put("a", "refresh", "granted by a person")
    change(database, "update sis.oauth_tokens set status = 'needs_reauth', failures = 2 where kind <> 'client_secret'")
    vault.put("a", "client_secret", "new")
    assert vault.get("a", "access") is None
    assert vault.get("a", "refresh") == "granted by a person"
    assert one(database, "select string_agg(distinct status, ',') from sis.oauth_tokens") == "active"
    assert one(database, "select max(failures) from sis.oauth_tokens") == 0


def test_what_is_to_be_given_back_survives_a_new_client_secret(database: Engine, vault: Vault) -> None:
    vault.put("a", "access", "to be revoked", expires_in=3600)
    change(database, "update sis.oauth_tokens set status = 'revocation_pending'")
    vault.put("a", "client_secret", "new")
    assert vault.get("a", "access") == "to be revoked"


def test_swaps_and_flips_anywhere_are_refused(database: Engine, vault: Vault) -> None:
    """40 rows: every ciphertext is put into its neighbour's row, and half of them get a bit flipped on the way."""
    for number in range(40):
        vault.put(f"integration-{number:02}", "access", f"token {number}", expires_in=60)
    with database.begin() as connection:
        rows = connection.execute(text("select integration, ciphertext from sis.oauth_tokens order by 1")).all()
        for number, row in enumerate(rows):
            moved = bytearray(base64.urlsafe_b64decode(bytes(rows[number - 1].ciphertext)))
            moved[number] ^= number % 2 << 3
            statement = text("update sis.oauth_tokens set ciphertext = :c where integration = :i")
            connection.execute(statement, {"c": base64.urlsafe_b64encode(moved), "i": row.integration})
    said = []
    for number in range(40):
        with pytest.raises(ConfigError) as caught:
            vault.get(f"integration-{number:02}", "access")
        said.append(caught.value.message)
    assert sum("belongs to another row" in message for message in said) == 20
    assert sum("altered in the database" in message for message in said) == 20
