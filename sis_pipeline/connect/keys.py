"""The encryption keys: where they come from, the proof that they are the right ones, changing them, and retiring one.
What is sealed with them, and when, is the vault's business; no key is ever made here except by `create` and `add`."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import Connection, Engine, Select, delete, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.connect.log import mask
from sis_pipeline.crashpoints import crash_point
from sis_pipeline.db import audit
from sis_pipeline.db.tables import encryption_keys, oauth_tokens
from sis_pipeline.settings import Settings

CANARY = b"sis_pipeline canary"
BATCH = 50
"""Rows sealed anew in one transaction: a refresh never waits longer than some milliseconds for one."""
PATIENCE = 30.0
"""Seconds to come back for rows that others have locked, once nothing else is left."""

MAKE_ADVICE = "Run `sis keys create` once, and back the key up."
KEY_ADVICE = "Put the key back into SIS_ENCRYPTION_KEYS (newest first, comma separated) or the key file."


class Sealed(NamedTuple):
    """What was sealed, and with which key: one answer, so that no row is ever labelled with another key's id."""

    key_id: str
    ciphertext: bytes


class Ring:
    """The encryption keys of one moment, newest first: the first seals, all of them open. Never changes."""

    def __init__(self, keys: list[str]) -> None:
        """Raises ConfigError for an empty list and for a key that is none."""
        if not keys:
            raise ConfigError("There is no encryption key.", code="config.key_missing", advice=MAKE_ADVICE)
        try:
            by_id = {_key_id(key): Fernet(key) for key in keys}
        except (ValueError, TypeError):
            raise ConfigError(
                "An encryption key is malformed: it must be 32 bytes in URL-safe base64.",
                code="config.key_malformed",
                advice=KEY_ADVICE,
            ) from None
        for key in keys:
            mask(key, lasting=True)
        self.ids = tuple(by_id)
        self._all = MultiFernet(list(by_id.values()))

    @property
    def newest(self) -> str:
        """The id of the key that seals."""
        return self.ids[0]

    def seal(self, plain: bytes) -> Sealed:
        return Sealed(self.newest, self._all.encrypt(plain))

    def open(self, sealed: bytes) -> bytes:
        """Raises cryptography's InvalidToken."""
        return self._all.decrypt(sealed)

    def reseal(self, sealed: bytes) -> Sealed:
        """The same content sealed with the newest key, its time kept. Raises InvalidToken."""
        return Sealed(self.newest, self._all.rotate(sealed))


class Keys:
    """The encryption keys as they are now: a ring that is exchanged as a whole, for any number of threads.

    `reread` gives them anew where they may change while the process runs: a sync that began before a rotation of the
    key file goes on. Who seals takes a ring by `hold`, and seals with that one.
    """

    def __init__(self, keys: list[str], reread: Callable[[], list[str]] | None = None) -> None:
        """Raises ConfigError for an empty list and for a key that is none."""
        self._reread = reread
        self.ring = Ring(keys)

    def __contains__(self, key_id: str) -> bool:
        if key_id not in self.ring.ids:
            self.refresh()
        return key_id in self.ring.ids

    def refresh(self) -> None:
        """Read the keys anew, where that can bring others. Raises as `from_settings`."""
        if self._reread is not None:
            self.ring = Ring(self._reread())

    @property
    def ids(self) -> tuple[str, ...]:
        """Newest first."""
        return self.ring.ids

    @property
    def newest(self) -> str:
        """The id of the key that seals."""
        return self.ring.newest

    def open(self, sealed: bytes) -> bytes:
        """Raises cryptography's InvalidToken."""
        return self.ring.open(sealed)

    @classmethod
    def from_settings(cls, settings: Settings) -> Keys:
        """From SIS_ENCRYPTION_KEYS, else the key file. Raises ConfigError where there is neither; none is ever made here."""
        if settings.encryption_keys is not None:
            return cls(_split(settings.encryption_keys.get_secret_value()))
        return cls(_read_key_file(settings.key_file), lambda: _read_key_file(settings.key_file))


def _key_id(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def _split(keys: str) -> list[str]:
    return [key for key in keys.replace(",", " ").split() if key]


# The key file: one key per line, the newest first, mode 0600


def create_key_file(path: Path) -> None:
    """Make a key and write it to `path`, readable by its owner only. Raises ConfigError where the file exists already."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _unfinished(path, [Fernet.generate_key().decode()]) as unfinished:
        try:
            os.link(unfinished, path)  # all of it at once, and never over an existing key
        except FileExistsError:
            raise ConfigError(
                f"There is a key at {path} already; it was left as it was.",
                code="config.key_exists",
                advice="Keep it: it opens the stored secrets.",
            ) from None


def add_key(path: Path) -> str:
    """Make a key and put it first in the key file, which keeps the others; the new key's id.

    The file is replaced as a whole, and by one process at a time, so no key is ever lost. Raises ConfigError where
    there is no key file, or others can read it.
    """
    with _alone(path):
        new = Fernet.generate_key().decode()
        _rewrite(path, [new, *_read_key_file(path)])
    return _key_id(new)


def drop_key(path: Path, key_id: str) -> None:
    """Take a retired key out of the key file. Raises ConfigError for a key that is not in it, and for the only one."""
    with _alone(path):
        keys = _read_key_file(path)
        left = [key for key in keys if _key_id(key) != key_id]
        if len(left) == len(keys) or not left:
            what = "is the only key" if keys and not left else "is not"
            advice = "`sis tokens status` shows which key seals what."
            raise ConfigError(
                f"Key {key_id} {what} in {path}; the file was left as it was.", code="config.no_key", advice=advice
            )
        _rewrite(path, left)


def _read_key_file(path: Path) -> list[str]:
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(
                f"The key file {path} can be read by others.",
                code="config.key_file",
                advice=f"Run `chmod 600 {path}`.",
            )
        return _split(path.read_text(encoding="ascii", errors="replace"))
    except FileNotFoundError:
        raise ConfigError(
            f"There is no encryption key: SIS_ENCRYPTION_KEYS is not set and {path} does not exist.",
            code="config.key_missing",
            advice=f"{MAKE_ADVICE[:-1]}; or set SIS_ENCRYPTION_KEYS.",
        ) from None


@contextmanager
def _unfinished(path: Path, keys: list[str]) -> Iterator[str]:
    """A file beside `path` with the keys, on disk; gone afterwards."""
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=".key-")  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.writelines(f"{key}\n" for key in keys)
            file.flush()
            os.fsync(file.fileno())
        yield unfinished
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _rewrite(path: Path, keys: list[str]) -> None:
    with _unfinished(path, keys) as unfinished:
        Path(unfinished).replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # rows are about to be sealed with a key that exists nowhere else
        finally:
            os.close(folder)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process changes the key file meanwhile; the lock ends with the process, whatever ends it."""
    if not path.parent.is_dir():
        _read_key_file(path)  # says that there is none
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


# The proof at every start


def prove(connection: Connection, keys: Keys) -> None:
    """Check the keys against the canaries and the stored secrets; the newest key gets a canary.

    A canary stays until its key is retired: until then the key must be there. Raises ConfigError where one is missing
    or does not open what was sealed with it.
    """
    for row in connection.execute(select(encryption_keys)):
        _check_canary(keys, row.key_id, row.canary)
    for key_id, rows in rows_per_key(connection).items():
        if key_id not in keys:
            raise ConfigError(
                f"Key {key_id} is not among the keys given: it seals {rows} of the stored secrets and is not retired.",
                code="config.key_unknown",
                advice=KEY_ADVICE,
            )
    canary = keys.ring.seal(CANARY)
    new = insert(encryption_keys).values(key_id=canary.key_id, canary=canary.ciphertext)
    if connection.execute(new.on_conflict_do_nothing()).rowcount:
        audit.append(connection, "key.first_use", canary.key_id)


def _check_canary(keys: Keys, key_id: str, canary: bytes) -> None:
    if key_id not in keys:
        return  # refused by `prove`, which knows how much hangs on it
    try:
        readable = keys.open(canary) == CANARY
    except InvalidToken:
        readable = False
    if not readable:
        raise ConfigError(
            f"Key {key_id} does not open what was sealed with it: the database or the key was altered.",
            code="config.secret_altered",
            advice=f"Restore the database and the keys from the same backup. {KEY_ADVICE}",
        )


def rows_per_key(connection: Connection) -> dict[str, int]:
    """How many stored secrets each known key seals: key id -> rows, keys that seal nothing included."""
    known = dict.fromkeys(
        connection.scalars(select(encryption_keys.c.key_id).order_by(encryption_keys.c.created_at)), 0
    )
    counts = select(oauth_tokens.c.key_id, func.count().label("rows")).group_by(oauth_tokens.c.key_id)
    return known | {row.key_id: row.rows for row in connection.execute(counts)}


def hold(connection: Connection, keys: Keys) -> Ring:
    """Keep the newest key from being retired until this transaction has ended; the keys to seal with in it.

    Raises ConfigError where it was retired already and there is no newer one: a process may run longer than its keys.
    """
    ring = keys.ring
    if not _held(connection, ring.newest):
        keys.refresh()
        ring = keys.ring
        if not _held(connection, ring.newest):
            raise ConfigError(f"Key {ring.newest} was retired; nothing was sealed with it.", code="config.key_retired")
    return ring


def _held(connection: Connection, key_id: str) -> bool:
    row = select(encryption_keys.c.key_id).where(encryption_keys.c.key_id == key_id)
    return connection.scalar(row.with_for_update(key_share=True, read=True)) is not None


# Changing keys


@dataclass(frozen=True, slots=True)
class RowResult:
    """One row of a rotation. `error`: why it was left as it was, None where it is sealed with the newest key now."""

    integration: str
    kind: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a rotation did. `before`: key id -> rows it sealed at the start. `left`: rows of older keys at the end."""

    newest: str
    before: Mapping[str, int]
    resealed: int
    failed: tuple[RowResult, ...]
    left: int


def rotate_keys(
    engine: Engine,
    keys: Keys,
    *,
    dry_run: bool = False,
    actor: str | None = None,
    progress: Callable[[RowResult], None] | None = None,
    patience: float = PATIENCE,
) -> Rotation:
    """Seal every row anew that is not sealed with the newest key. May be killed at any time, and is simply run again.

    A row is replaced under its lock, only if it still is what was read, and keeps its version and so its binding; at
    every moment each row opens with a key that must still be there. Refreshes go on meanwhile: rows that are locked
    are come back for, for up to `patience` seconds. A row that can't be opened is left as it is and reported, after
    all others were done. One audit entry is committed with the first rows, so that no kill hides who changed them, and
    one tells how it ended. Raises ConfigError as `prove`.
    """
    with engine.begin() as connection:
        prove(connection, keys)
        before = rows_per_key(connection)

    def tell(connection: Connection, **counts: object) -> None:
        audit.append(connection, "token.rotate_key", keys.newest, actor=actor, details={"before": before} | counts)

    failed: list[RowResult] = []
    resealed = 0
    if not dry_run:
        for result in _rotated(engine, keys, patience, partial(tell, done=False)):
            resealed += result.error is None
            failed += [result] if result.error else []
            if progress is not None:
                progress(result)
    with engine.begin() as connection:
        left = sum(rows for key_id, rows in rows_per_key(connection).items() if key_id != keys.newest)
        if resealed or failed:
            tell(connection, done=True, resealed=resealed, failed=len(failed), left=left)
    return Rotation(keys.newest, before, resealed, tuple(failed), left)


def _rotated(engine: Engine, keys: Keys, patience: float, begin: Callable[[Connection], None]) -> Iterator[RowResult]:
    """Every row of an older key, each once its batch is committed. `begin` is called in the first one's transaction."""
    failed: set[tuple[str, str]] = set()
    begun = False
    until = time.monotonic() + patience
    while True:
        with engine.begin() as connection:
            batch = _reseal_batch(connection, keys, failed)
            if batch and not begun:
                begin(connection)
                begun = True
            crash_point("rotate.before_commit")
        crash_point("rotate.after_commit")
        yield from batch
        failed |= {(result.integration, result.kind) for result in batch if result.error}
        if batch:
            until = time.monotonic() + patience
            continue
        with engine.connect() as connection:
            locked = connection.execute(_older(keys.newest, failed).limit(1)).one_or_none()
        if locked is None or time.monotonic() > until:
            return
        time.sleep(0.05)


def _reseal_batch(connection: Connection, keys: Keys, skip: set[tuple[str, str]]) -> list[RowResult]:
    ring = hold(connection, keys)
    rows = connection.execute(_older(ring.newest, skip).limit(BATCH).with_for_update(skip_locked=True)).all()
    results = []
    for row in rows:
        try:
            resealed = ring.reseal(row.ciphertext)
        except InvalidToken:
            results.append(RowResult(row.integration, row.kind, "it cannot be opened: it was altered in the database"))
            continue
        done = connection.execute(
            update(oauth_tokens)
            .where(
                oauth_tokens.c.integration == row.integration,
                oauth_tokens.c.kind == row.kind,
                oauth_tokens.c.version == row.version,
                oauth_tokens.c.ciphertext == row.ciphertext,
            )
            .values(ciphertext=resealed.ciphertext, key_id=resealed.key_id)
        )
        crash_point("rotate.after_row")
        if done.rowcount:
            results.append(RowResult(row.integration, row.kind))
    return results


def _older(newest: str, skip: set[tuple[str, str]]) -> Select[str, str, int, bytes]:
    table = oauth_tokens.c
    query = select(table.integration, table.kind, table.version, table.ciphertext).where(table.key_id != newest)
    if skip:
        query = query.where(tuple_(table.integration, table.kind).not_in(skip))
    return query.order_by(table.integration, table.kind)


def retire(engine: Engine, keys: Keys, key_id: str, *, actor: str | None = None) -> None:
    """Forget a key that seals nothing any more; from then on it may leave SIS_ENCRYPTION_KEYS or the key file.

    Raises ConfigError, with counts, for a key with rows left, for the newest one and for one that is not known.
    """
    with engine.begin() as connection:
        if key_id == keys.newest:
            raise ConfigError(
                f"Key {key_id} is the newest key, which seals.",
                code="config.key_in_use",
                advice="Add a newer key first.",
            )
        canary = select(encryption_keys.c.key_id).where(encryption_keys.c.key_id == key_id).with_for_update()
        if connection.scalar(canary) is None:  # the lock waits for who seals with it right now
            known = ", ".join(rows_per_key(connection)) or "none"
            raise ConfigError(
                f"There is no key {key_id}.", code="config.no_key", advice=f"The keys in use are: {known}."
            )
        rows = rows_per_key(connection)[key_id]
        if rows:
            raise ConfigError(
                f"Key {key_id} still seals {rows} of the stored secrets; it was not retired.",
                code="config.key_in_use",
                advice="Run `sis tokens rotate-keys` first.",
            )
        connection.execute(delete(encryption_keys).where(encryption_keys.c.key_id == key_id))
        audit.append(connection, "token.retire_key", key_id, actor=actor)
