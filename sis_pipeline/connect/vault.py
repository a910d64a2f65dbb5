"""Secrets and tokens in PostgreSQL: sealed, bound to their row, and refreshed once for all processes.
How a token is fetched is told by the caller; nothing here talks to a SIS, and nothing ever falls back to plain text."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import Connection, Engine, Row, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import OperationalError

from sis_pipeline.connect.errors import ConfigError, TransientError
from sis_pipeline.connect.log import mask
from sis_pipeline.db.tables import encryption_keys, oauth_tokens
from sis_pipeline.settings import Settings

Kind = Literal["client_secret", "access", "refresh"]

CANARY = b"sis_pipeline canary"
LOCK_WAIT = "90s"
"""How long a process waits for another one's token call; that call is itself bounded to less."""

RESET_ADVICE = "Set the credentials again with `sis integration add KEY --replace`."
KEY_ADVICE = "Put the key back into SIS_ENCRYPTION_KEYS (newest first, comma separated) or the key file."


@dataclass(frozen=True, slots=True)
class Token:
    """A fetched access token and the seconds it lives, counted from `asked_at` on this process's monotonic clock."""

    value: str = field(repr=False)
    lifetime: float
    asked_at: float = field(default_factory=time.monotonic)


class Keys:
    """The encryption keys, newest first: the first seals, all of them open."""

    def __init__(self, keys: list[str]) -> None:
        """Raises ConfigError for an empty list and for a key that is none."""
        if not keys:
            raise ConfigError("There is no encryption key.", advice="Run `sis keys create` once, and back the key up.")
        try:
            self._by_id = {_key_id(key): Fernet(key) for key in keys}
        except (ValueError, TypeError):
            raise ConfigError(
                "An encryption key is malformed: it must be 32 bytes in URL-safe base64.", advice=KEY_ADVICE
            ) from None
        for key in keys:
            mask(key)
        self._all = MultiFernet(list(self._by_id.values()))

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._by_id

    @property
    def newest(self) -> str:
        """The id of the key that seals."""
        return next(iter(self._by_id))

    def seal(self, plain: bytes) -> bytes:
        return self._all.encrypt(plain)

    def open(self, sealed: bytes) -> bytes:
        """Raises cryptography's InvalidToken."""
        return self._all.decrypt(sealed)

    @classmethod
    def from_settings(cls, settings: Settings) -> Keys:
        """From SIS_ENCRYPTION_KEYS, else the key file. Raises ConfigError where there is neither; none is ever made here."""
        if settings.encryption_keys is not None:
            return cls(_split(settings.encryption_keys.get_secret_value()))
        return cls(_split(_read_key_file(settings.key_file)))


def create_key_file(path: Path) -> None:
    """Make a key and write it to `path`, readable by its owner only. Raises ConfigError where the file exists already."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=".key-")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(Fernet.generate_key() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(unfinished, path)  # all of it at once, and never over an existing key
    except FileExistsError:
        raise ConfigError(
            f"There is a key at {path} already; it was left as it was.", advice="Keep it: it opens the stored secrets."
        ) from None
    finally:
        Path(unfinished).unlink()


def _key_id(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def _split(keys: str) -> list[str]:
    return [key for key in keys.replace(",", " ").split() if key]


def _read_key_file(path: Path) -> str:
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"The key file {path} can be read by others.", advice=f"Run `chmod 600 {path}`.")
        return path.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        raise ConfigError(
            f"There is no encryption key: SIS_ENCRYPTION_KEYS is not set and {path} does not exist.",
            advice="Run `sis keys create` once, and back the key up; or set SIS_ENCRYPTION_KEYS.",
        ) from None


class Vault:
    """The secrets of all integrations. Use `Vault.open`, which proves the keys before anything is sealed with them."""

    def __init__(self, engine: Engine, keys: Keys) -> None:
        self._engine = engine
        self._keys = keys

    @classmethod
    def open(cls, engine: Engine, keys: Keys) -> Vault:
        """Check every key against its canary and the stored secrets against the keys; the newest key gets a canary.

        Raises ConfigError where a stored secret could not be opened with these keys.
        """
        with engine.begin() as connection:
            _check_canaries(connection, keys)
            sealed_with = connection.scalars(select(oauth_tokens.c.key_id).distinct()).all()
            missing = sorted(set(sealed_with) - {key_id for key_id in sealed_with if key_id in keys})
            if missing:
                raise ConfigError(
                    f"Stored secrets are sealed with key {', '.join(missing)}, which is not among the keys given.",
                    advice=KEY_ADVICE,
                )
            new = insert(encryption_keys).values(key_id=keys.newest, canary=keys.seal(CANARY))
            connection.execute(new.on_conflict_do_nothing())
        return cls(engine, keys)

    def put(self, integration: str, kind: Kind, secret: str, expires_in: float | None = None) -> None:
        """Store a secret, replacing the one before; `expires_in` seconds from now, or never."""
        with self._engine.begin() as connection:
            row = self._locked(connection, integration, kind)
            self._write(connection, row, secret, expires_in)

    def get(self, integration: str, kind: Kind) -> str | None:
        """The secret, expired or not; None where none is stored. Raises ConfigError for one that can't be opened."""
        with self._engine.connect() as connection:
            row = connection.execute(_row(integration, kind)).one_or_none()
        return None if row is None else self._unsealed(row)

    def delete(self, integration: str) -> int:
        """Forget everything of an integration; how many secrets there were."""
        with self._engine.begin() as connection:
            return connection.execute(delete(oauth_tokens).where(oauth_tokens.c.integration == integration)).rowcount

    def access_token(self, integration: str, fetch: Callable[[], Token], *, refused: str | None = None) -> str:
        """A token that is good for a while, fetched at most once per expiry by all processes together.

        Good is one that has more than min(10 minutes, 20 % of its lifetime) left and is not `refused`, the one the
        source just turned down. Otherwise the row is locked, read again, and `fetch` is called with the lock held, so
        it must be brief; what it raises comes through and leaves the stored token as it was. The new token is
        committed before it is returned. Raises TransientError where another process holds the lock too long.
        """
        with self._engine.connect() as connection:
            row = connection.execute(_row(integration, "access")).one_or_none()
        known = self._usable(row, refused)
        if known is not None:
            return known
        try:
            return self._fetched_once(integration, fetch, refused)
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != "55P03":  # lock_not_available
                raise
        raise TransientError(
            f"Another process has been fetching a token for integration {integration!r} for over {LOCK_WAIT}.",
            integration=integration,
        )

    def _fetched_once(self, integration: str, fetch: Callable[[], Token], refused: str | None) -> str:
        with self._engine.begin() as connection:
            connection.execute(text(f"set local lock_timeout = '{LOCK_WAIT}'"))
            row = self._locked(connection, integration, "access")
            sibling = self._usable(row, refused)
            if sibling is not None:
                return sibling
            token = fetch()
            mask(token.value)
            left = token.lifetime - (time.monotonic() - token.asked_at)
            self._write(connection, row, token.value, left, lifetime=token.lifetime)
        return token.value

    def _usable(self, row: Row[Any] | None, refused: str | None) -> str | None:
        if row is None or not row.fresh:
            return None
        token = self._unsealed(row)
        return None if token == refused else token

    def _locked(self, connection: Connection, integration: str, kind: Kind) -> Row[Any]:
        """The row, locked; an already expired placeholder is made where there is none, so that there is one to lock."""
        placeholder = {
            "integration": integration,
            "kind": kind,
            "version": 0,
            "ciphertext": self._sealed(integration, kind, 0, ""),
            "key_id": self._keys.newest,
            "expires_at": text("'epoch'"),
        }
        connection.execute(insert(oauth_tokens).values(placeholder).on_conflict_do_nothing())
        return connection.execute(_row(integration, kind).with_for_update()).one()

    def _write(
        self,
        connection: Connection,
        row: Row[Any],
        secret: str,
        expires_in: float | None,
        lifetime: float | None = None,
    ) -> None:
        version = row.version + 1
        lives = lifetime if lifetime is not None else expires_in
        connection.execute(
            update(oauth_tokens)
            .where(oauth_tokens.c.integration == row.integration, oauth_tokens.c.kind == row.kind)
            .values(
                version=version,
                ciphertext=self._sealed(row.integration, row.kind, version, secret),
                key_id=self._keys.newest,
                expires_at=None
                if expires_in is None
                else func.sis.clock() + func.make_interval(0, 0, 0, 0, 0, 0, expires_in),
                lifetime_seconds=None if lives is None else max(round(lives), 0),
                status="active",
                updated_at=func.sis.clock(),
            )
        )

    def _sealed(self, integration: str, kind: str, version: int, secret: str) -> bytes:
        bound = {"integration": integration, "kind": kind, "version": version, "secret": secret}
        return self._keys.seal(json.dumps(bound).encode())

    def _unsealed(self, row: Row[Any]) -> str:
        """The secret of a row, checked to be that row's own: Fernet itself would open it in any row."""
        about = f"The stored {row.kind} of integration {row.integration!r}"
        if row.key_id not in self._keys:
            raise ConfigError(
                f"{about} is sealed with key {row.key_id}, which is not among the keys.", advice=KEY_ADVICE
            )
        try:
            bound: Mapping[str, Any] = json.loads(self._keys.open(row.ciphertext))
        except InvalidToken:
            raise ConfigError(
                f"{about} cannot be opened: it was altered in the database.", advice=RESET_ADVICE
            ) from None
        if (bound["integration"], bound["kind"], bound["version"]) != (row.integration, row.kind, row.version):
            raise ConfigError(f"{about} belongs to another row; it was not used.", advice=RESET_ADVICE)
        secret = str(bound["secret"])
        mask(secret)
        return secret


def _row(integration: str, kind: Kind) -> Any:
    """Select one row; `fresh`: not within the refresh window min(10 minutes, 20 % of the lifetime) of its end."""
    window = func.least(
        text("interval '10 minutes'"), func.make_interval(0, 0, 0, 0, 0, 0, oauth_tokens.c.lifetime_seconds * 0.2)
    )
    fresh = func.coalesce(oauth_tokens.c.expires_at - window > func.sis.clock(), text("expires_at is null"))
    return select(oauth_tokens, fresh.label("fresh")).where(
        oauth_tokens.c.integration == integration, oauth_tokens.c.kind == kind
    )


def _check_canaries(connection: Connection, keys: Keys) -> None:
    for row in connection.execute(select(encryption_keys)):
        if row.key_id not in keys:
            continue
        try:
            readable = keys.open(row.canary) == CANARY
        except InvalidToken:
            readable = False
        if not readable:
            raise ConfigError(
                f"Key {row.key_id} does not open what was sealed with it: the database or the key was altered.",
                advice="Restore the database and the keys from the same backup. " + KEY_ADVICE,
            )
