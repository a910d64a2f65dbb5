"""Ciphertexts that somebody with access to the database moved or altered: refused, and never a request made with one."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import pytest
from sqlalchemy import Engine, text

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.connect.keys import Keys
from sis_pipeline.connect.vault import Vault
from sis_pipeline_tests.connect.workers import KEY
from sis_pipeline_tests.faults.rows import Count, Recorder, Row

ROW = Row(
    27,
    "a ciphertext is copied into another row (of another integration, another kind, an older version), or has a bit "
    "flipped, in its text or in its bytes",
    "refused with the integration's name and without the secret; the rows that were left alone still open",
    1_000,
    "rows",
)

HOLDERS, KINDS = 20, ("client_secret", "access", "refresh")
Place = tuple[str, str]


@dataclass(frozen=True)
class Sealed:
    """All ciphertexts, and those of the versions before."""

    now: dict[Place, bytes]
    before: dict[Place, bytes]


@pytest.fixture
def vault(database: Engine) -> Vault:
    return Vault.open(database, Keys([KEY]))


def hidden(place: Place, version: int) -> str:
    return f"hidden-{place[0]}-{place[1]}-{version}-{'x' * (len(place[0] + place[1]) % 16)}"


def ciphertexts(engine: Engine) -> dict[Place, bytes]:
    with engine.connect() as connection:
        rows = connection.execute(text("select integration, kind, ciphertext from sis.oauth_tokens")).all()
    return {(row.integration, row.kind): bytes(row.ciphertext) for row in rows}


def filled(vault: Vault) -> Sealed:
    states = []
    for version in (1, 2):
        with vault.engine.begin() as connection:
            for number in range(HOLDERS):
                for kind in KINDS:
                    place = (f"i-{number}", kind)
                    vault.write(connection, *place, hidden(place, version))
        states.append(ciphertexts(vault.engine))
    return Sealed(states[1], states[0])


def of_another_integration(sealed: Sealed, place: Place, chance: random.Random) -> bytes:
    return sealed.now[chance.choice([other for other in sealed.now if other[1] == place[1] and other != place])]


def of_another_kind(sealed: Sealed, place: Place, chance: random.Random) -> bytes:
    return sealed.now[place[0], chance.choice([kind for kind in KINDS if kind != place[1]])]


def of_an_older_version(sealed: Sealed, place: Place, _chance: random.Random) -> bytes:
    return sealed.before[place]


def with_a_flipped_bit(sealed: Sealed, place: Place, chance: random.Random) -> bytes:
    raw = bytearray(base64.urlsafe_b64decode(sealed.now[place]))
    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    return base64.urlsafe_b64encode(raw)


def with_a_flipped_bit_of_its_text(sealed: Sealed, place: Place, chance: random.Random) -> bytes:
    """A few bits before the padding carry nothing: they are left out, as nothing is altered by them."""
    whole = base64.urlsafe_b64decode(sealed.now[place])
    while True:
        written = bytearray(sealed.now[place])
        written[chance.randrange(len(written))] ^= 1 << chance.randrange(8)
        with suppress(ValueError):
            if base64.urlsafe_b64decode(written) == whole:
                continue
        return bytes(written)


def cut_short(sealed: Sealed, place: Place, chance: random.Random) -> bytes:
    return sealed.now[place][: chance.randrange(len(sealed.now[place]))]


Attack = Callable[[Sealed, Place, random.Random], bytes]
ATTACKS: tuple[Attack, ...] = (
    of_another_integration, of_another_kind, of_an_older_version, with_a_flipped_bit, with_a_flipped_bit_of_its_text,
    cut_short,
)  # fmt: skip
MOVED = ATTACKS[:3]
PUT = text("update sis.oauth_tokens set ciphertext = :ciphertext where integration = :integration and kind = :kind")


def test_moved_and_altered(database: Engine, vault: Vault, row: Recorder, count: Count, chance: random.Random) -> None:
    sealed = filled(vault)
    places = list(sealed.now)
    with database.connect() as connection:  # everything is rolled back: the next case begins with what was there
        for number in range(count(full=1_000, part=120)):
            attack, place = ATTACKS[number % len(ATTACKS)], chance.choice(places)
            forged = attack(sealed, place, chance)
            assert forged != sealed.now[place]
            put = {"ciphertext": forged, "integration": place[0], "kind": place[1]}
            assert connection.execute(PUT, put).rowcount == 1
            stored = connection.execute(
                text("select * from sis.oauth_tokens where integration = :integration and kind = :kind"), put
            ).one()
            with pytest.raises(ConfigError) as refused:
                vault.unseal(stored)
            said = f"{refused.value} {refused.value.__cause__} {refused.value.advice}"
            assert place[0] in said
            assert "hidden-" not in said
            assert refused.value.code == "config.secret_altered"
            assert ("belongs to another row" in said) == (attack in MOVED)
            connection.rollback()
            row.happened()
            row.ran()
    assert {place: vault.get(*place) for place in places} == {place: hidden(place, 2) for place in places}  # type: ignore[arg-type]
