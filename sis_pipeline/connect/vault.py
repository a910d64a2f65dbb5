"""Secrets and tokens in PostgreSQL: sealed, and bound to their row, so that one that was moved or altered is refused.
When a token is fetched, renewed or given back is told in tokens; nothing here ever falls back to plain text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from cryptography.fernet import InvalidToken
from sqlalchemy import ColumnElement, Connection, Double, Engine, Row, delete, func, literal, select, text, update
from sqlalchemy.dialects.postgresql import insert

from sis_pipeline.connect import keys as encryption
from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.connect.keys import KEY_ADVICE, Keys, Ring
from sis_pipeline.connect.log import mask
from sis_pipeline.db import audit
from sis_pipeline.db.tables import oauth_tokens

Kind = Literal["client_secret", "access", "refresh", "erasure_key"]
INSTALLATION = "*"
"""What stands for the integration in a secret of the whole installation."""

TOKENS: tuple[Kind, ...] = ("access", "refresh")
NOTHING = text("'epoch'::timestamptz")
"""`expires_at` of a row that holds nothing: none was stored yet, or it was emptied."""


class Vault:
    """The secrets of all integrations. Use `Vault.open`, which proves the keys before anything is sealed with them."""

    def __init__(self, engine: Engine, keys: Keys) -> None:
        self.engine = engine
        self._keys = keys

    @classmethod
    def open(cls, engine: Engine, keys: Keys) -> Vault:
        """Raises ConfigError where a stored secret could not be opened with these keys; see `keys.prove`."""
        with engine.begin() as connection:
            encryption.prove(connection, keys)
        return cls(engine, keys)

    def put(self, integration: str, kind: Kind, secret: str, expires_in: float | None = None) -> None:
        """Store a secret, replacing the one before; `expires_in` seconds from now, or never.

        A client secret ends the use of the access token that was got with the one before it, and makes credentials
        that were refused worth another try.
        """
        with self.engine.begin() as connection:
            self.write(connection, integration, kind, secret, expires_in=expires_in)
            if kind == "client_secret":
                self._begin_anew(connection, integration)
                district = audit.district_of(connection, integration)
                audit.append(connection, "token.set_secret", integration, district=district)

    def get(self, integration: str, kind: Kind) -> str | None:
        """The secret, expired or not; None where none is stored. Raises ConfigError for one that can't be opened."""
        query = select(oauth_tokens, (oauth_tokens.c.expires_at == NOTHING).label("empty"))
        with self.engine.connect() as connection:
            row = connection.execute(query.where(*_is(integration, kind))).one_or_none()
        return None if row is None or row.empty else self.unseal(row)

    def delete(self, integration: str) -> int:
        """Forget everything of an integration; how many secrets there were."""
        with self.engine.begin() as connection:
            return connection.execute(delete(oauth_tokens).where(oauth_tokens.c.integration == integration)).rowcount

    def write(
        self,
        connection: Connection,
        integration: str,
        kind: str,
        secret: str,
        *,
        expires_in: float | None = None,
        **columns: object,
    ) -> int:
        """Store a secret and further columns in a transaction of the caller's; the row's new version.

        The row is active and nobody's from then on, unless `columns` say otherwise. Raises ConfigError where the key
        that seals was retired meanwhile.
        """
        held = self._ensured(connection, integration, kind)
        locked = select(oauth_tokens.c.version).where(*_is(integration, kind)).with_for_update()
        version: int = connection.execute(locked).scalar_one() + 1
        values = {
            **_sealed(held, integration, kind, version, secret),
            "expires_at": None if expires_in is None else func.sis.clock() + seconds(expires_in),
            "lifetime_seconds": None if expires_in is None else max(round(expires_in), 0),
            "status": "active",
            "lease_holder": None,
            "lease_until": None,
            "failures": 0,
            "last_error": None,
            "updated_at": func.sis.clock(),
        }
        connection.execute(update(oauth_tokens).where(*_is(integration, kind)).values(values | columns))
        return version

    def made_once(self, connection: Connection, integration: str, kind: Kind, secret: str) -> str:
        """The stored secret, `secret` where there was none; whoever comes at the same time waits and gets the same."""
        self._ensured(connection, integration, kind)
        query = select(oauth_tokens, (oauth_tokens.c.expires_at == NOTHING).label("empty"))
        row = connection.execute(query.where(*_is(integration, kind)).with_for_update()).one()
        if not row.empty:
            return self.unseal(row)
        self.write(connection, integration, kind, secret)
        return secret

    def empty(self, connection: Connection, integration: str, kind: str, **columns: object) -> None:
        """Overwrite a secret with nothing, and have the row there even where there was none."""
        self.write(connection, integration, kind, "", expires_in=None, **({"expires_at": NOTHING} | columns))

    def ensure(self, connection: Connection, integration: str, kind: str) -> None:
        """Have a row there that holds nothing, where there is none: so that there is one to lock."""
        self._ensured(connection, integration, kind)

    def _ensured(self, connection: Connection, integration: str, kind: str) -> Ring:
        """The keys to seal with in this transaction."""
        held = encryption.hold(connection, self._keys)
        blank = _sealed(held, integration, kind, 0, "") | {"integration": integration, "kind": kind}
        connection.execute(insert(oauth_tokens).values(expires_at=NOTHING, **blank).on_conflict_do_nothing())
        return held

    def _begin_anew(self, connection: Connection, integration: str) -> None:
        """A token call that is under way keeps its claim: it may have used the refresh token up already, and whoever
        used it next would look like a thief."""
        table = oauth_tokens.c
        query = select(oauth_tokens).where(table.integration == integration, table.kind.in_(TOKENS))
        for row in connection.execute(query.order_by(table.kind).with_for_update()).all():
            if row.status == "revocation_pending":
                continue  # it still has to be given back
            if row.kind == "access" and row.status == "refreshing":
                claim = {"status": row.status, "lease_holder": row.lease_holder, "lease_until": row.lease_until}
                self.empty(connection, integration, row.kind, **claim)
            elif row.kind == "access":
                self.empty(connection, integration, row.kind)
            elif row.status == "needs_reauth":
                again = {"status": "active", "failures": 0, "last_error": None}
                connection.execute(update(oauth_tokens).where(*_is(integration, row.kind)).values(again))

    def unseal(self, row: Row[Any]) -> str:
        """The secret of a row of oauth_tokens, checked to be that row's own: Fernet itself would open it in any row.

        Raises ConfigError for one that was altered or moved here, and for one whose key is missing.
        """
        about = f"The stored {row.kind} of integration {row.integration!r}"
        if row.key_id not in self._keys:
            raise ConfigError(
                f"{about} is sealed with key {row.key_id}, which is not among the keys.",
                code="config.key_unknown",
                advice=KEY_ADVICE,
            )
        try:
            bound: Mapping[str, Any] = json.loads(self._keys.open(row.ciphertext))
        except InvalidToken:
            raise ConfigError(
                f"{about} cannot be opened: it was altered in the database.",
                code="config.secret_altered",
                advice=advice_for(row.integration, person=row.kind == "refresh"),
            ) from None
        if (bound["integration"], bound["kind"], bound["version"]) != (row.integration, row.kind, row.version):
            raise ConfigError(
                f"{about} belongs to another row; it was not used.",
                code="config.secret_altered",
                advice=advice_for(row.integration, person=row.kind == "refresh"),
            )
        secret = str(bound["secret"])
        mask(secret)
        return secret


def _sealed(held: Ring, integration: str, kind: str, version: int, secret: str) -> dict[str, object]:
    """The columns that hold a secret, and bind it to its row."""
    bound = {"integration": integration, "kind": kind, "version": version, "secret": secret}
    sealed = held.seal(json.dumps(bound).encode())
    return {"version": version, "ciphertext": sealed.ciphertext, "key_id": sealed.key_id}


def advice_for(integration: str, *, person: bool) -> str:
    """How credentials are made good. `person`: whether somebody granted access, rather than set a secret."""
    if person:
        return f"Have a person grant access with `sis oauth authorize {integration}`."
    return f"Set the credentials again with `sis integration add {integration} --replace`."


def seconds(number: float) -> Any:
    """An SQL interval."""
    return func.make_interval(0, 0, 0, 0, 0, 0, literal(number, Double))


def _is(integration: str, kind: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return oauth_tokens.c.integration == integration, oauth_tokens.c.kind == kind
