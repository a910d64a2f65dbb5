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
from pathlib import Path

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


class Keys:
    """The encryption keys, newest first: the first seals, all of them open.

    `reread` gives them anew where they may change while the process runs: a sync that began before a rotation of the
    key file goes on.
    """

    def __init__(self, keys: list[str], reread: Callable[[], list[str]] | None = None) -> None:
        """Raises ConfigError for an empty list and for a key that is none."""
        self._reread = reread
        self._take(keys)

    def _take(self, keys: list[str]) -> None:
        if not keys:
            raise ConfigError("There is no encryption key.", code="config.key_missing", advice=MAKE_ADVICE)
        try:
            self._by_id = {_key_id(key): Fernet(key) for key in keys}
        except (ValueError, TypeError):
            raise ConfigError(
                "An encryption key is malformed: it must be 32 bytes in URL-safe base64.",
                code="config.key_malformed",
                advice=KEY_ADVICE,
            ) from None
        for key in keys:
            mask(key)
        self._all = MultiFernet(list(self._by_id.values()))

    def __contains__(self, key_id: str) -> bool:
        if key_id not in self._by_id:
            self.refresh()
        return key_id in self._by_id

    def refresh(self) -> None:
        """Read the keys anew, where that can bring others. Raises as `from_settings`."""
        if self._reread is not None:
            self._take(self._reread())

    @property
    def ids(self) -> tuple[str, ...]:
        """Newest first."""
        return tuple(self._by_id)

    @property
    def newest(self) -> str:
        """The id of the key that seals."""
        return next(iter(self._by_id))

    def seal(self, plain: bytes) -> bytes:
        return self._all.encrypt(plain)

    def open(self, sealed: bytes) -> bytes:
        """Raises cryptography's InvalidToken."""
        return self._all.decrypt(sealed)

    def reseal(self, sealed: bytes) -> bytes:
        """The same content sealed with the newest key, its time kept. Raises InvalidToken."""
        return self._all.rotate(sealed)

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
    new = insert(encryption_keys).values(key_id=keys.newest, canary=keys.seal(CANARY))
    if connection.execute(new.on_conflict_do_nothing()).rowcount:
        audit.append(connection, "key.first_use", keys.newest)


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


def hold(connection: Connection, keys: Keys) -> None:
    """Keep the newest key from being retired until this transaction, which seals with it, has ended.

    Raises ConfigError where it was retired already and there is no newer one: a process may run longer than its keys.
    """
    if not _held(connection, keys.newest):
        keys.refresh()
        if not _held(connection, keys.newest):
            raise ConfigError(f"Key {keys.newest} was retired; nothing was sealed with it.", code="config.key_retired")


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
    all others were done. One audit entry tells of the whole; a run that was killed leaves it to the run that follows.
    Raises ConfigError as `prove`.
    """
    with engine.begin() as connection:
        prove(connection, keys)
        before = rows_per_key(connection)
    failed: list[RowResult] = []
    resealed = 0
    if not dry_run:
        for result in _rotated(engine, keys, patience):
            resealed += result.error is None
            failed += [result] if result.error else []
            if progress is not None:
                progress(result)
    with engine.begin() as connection:
        left = sum(rows for key_id, rows in rows_per_key(connection).items() if key_id != keys.newest)
        if resealed or failed:
            counts = {"before": before, "resealed": resealed, "failed": len(failed), "left": left}
            audit.append(connection, "token.rotate_key", keys.newest, actor=actor, details=counts)
    return Rotation(keys.newest, before, resealed, tuple(failed), left)


def _rotated(engine: Engine, keys: Keys, patience: float) -> Iterator[RowResult]:
    """Every row of an older key, each once its batch is committed."""
    failed: set[tuple[str, str]] = set()
    until = time.monotonic() + patience
    while True:
        with engine.begin() as connection:
            batch = _reseal_batch(connection, keys, failed)
            crash_point("rotate.before_commit")
        crash_point("rotate.after_commit")
        yield from batch
        failed |= {(result.integration, result.kind) for result in batch if result.error}
        if batch:
            until = time.monotonic() + patience
            continue
        with engine.connect() as connection:
            locked = connection.execute(_older(keys, failed).limit(1)).one_or_none()
        if locked is None or time.monotonic() > until:
            return
        time.sleep(0.05)


def _reseal_batch(connection: Connection, keys: Keys, skip: set[tuple[str, str]]) -> list[RowResult]:
    hold(connection, keys)
    rows = connection.execute(_older(keys, skip).limit(BATCH).with_for_update(skip_locked=True)).all()
    results = []
    for row in rows:
        try:
            resealed = keys.reseal(row.ciphertext)
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
            .values(ciphertext=resealed, key_id=keys.newest)
        )
        crash_point("rotate.after_row")
        if done.rowcount:
            results.append(RowResult(row.integration, row.kind))
    return results


def _older(keys: Keys, skip: set[tuple[str, str]]) -> Select[str, str, int, bytes]:
    table = oauth_tokens.c
    query = select(table.integration, table.kind, table.version, table.ciphertext).where(table.key_id != keys.newest)
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
