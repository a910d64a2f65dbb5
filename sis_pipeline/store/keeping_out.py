"""Keeping erased students out: what a system delivers of them is set aside before anything of it is kept, until a person
lifts that. Which records those are is known by marks alone, which nobody can make or recognise without the vault.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import pandas as pd
from sqlalchemy import Connection, Engine, delete, select
from sqlalchemy.dialects.postgresql import insert

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.connect.vault import INSTALLATION, Kind, Vault
from sis_pipeline.db import audit
from sis_pipeline.db.tables import erased_records, erasures
from sis_pipeline.roster.model import ENTITIES

KEY: Kind = "erasure_key"
"""Kind of the vault's row that holds the key of the marks; one for the installation, so that an integration which is
removed and added again is still known by them."""


@dataclass(frozen=True, slots=True)
class Remaining:
    """What a system delivered without erased students. `taken_out`: rows by entity."""

    frames: Mapping[str, pd.DataFrame]
    taken_out: Mapping[str, int]


def remember(connection: Connection, vault: Vault, erasure_id: str, records: Iterable[tuple[str, str]]) -> None:
    """Keep records out from now on, in the transaction that erases their rows."""
    key = vault.made_once(connection, INSTALLATION, KEY, secrets.token_hex(32))
    rows = [
        {"integration": integration, "mark": _mark(key, integration, sis_id), "erasure_id": erasure_id}
        for integration, sis_id in records
    ]
    if rows:
        connection.execute(insert(erased_records).on_conflict_do_nothing(), rows)


def marks(engine: Engine, integration: str) -> frozenset[str]:
    """Those of the records that an integration may deliver and that are kept out."""
    with engine.connect() as connection:
        query = select(erased_records.c.mark).where(erased_records.c.integration == integration)
        return frozenset(connection.scalars(query))


def without_erased(
    vault: Callable[[], Vault], integration: str, kept_out: Collection[str], frames: Mapping[str, pd.DataFrame]
) -> Remaining:
    """The standard frames, not validated yet, without the rows of erased students.

    `kept_out`: `marks` of the integration. `vault` is asked for only where somebody was erased. Raises ConfigError where the marks can't be read any more:
    otherwise who was erased would be published again.
    """
    if not kept_out:
        return Remaining(frames, {})
    key = vault().get(INSTALLATION, KEY)
    if key is None:
        raise ConfigError(
            f"Which students of {integration} were erased can't be told any more: the key of their marks is gone.",
            code="config.erasure_key",
            advice="Restore the database from a backup, or `sis erase STUDENT --lift` for each of them.",
        )
    left = {}
    for entity, frame in frames.items():
        erased = _of_erased(entity, frame, lambda sis_id: _mark(key, integration, sis_id) in kept_out)
        left[entity] = frame.loc[~erased].reset_index(drop=True) if erased.any() else frame
    counts = {entity: len(frame) - len(left[entity]) for entity, frame in frames.items()}
    return Remaining(left, {entity: count for entity, count in counts.items() if count})


def lift(engine: Engine, student_id: str, actor: str, reason: str) -> int:
    """Keep an erased student out no longer; how many records that are. Raises ConfigError where nobody is kept out."""
    if not (reason.strip() and actor.strip()):
        raise ConfigError(
            "Lifting needs who lifts and why.", code="config.erasure_reason", advice="Give both, and run it again."
        )
    with engine.begin() as connection:
        of_student = select(erasures.c.erasure_id).where(erasures.c.student_id == student_id)
        lifted = connection.execute(delete(erased_records).where(erased_records.c.erasure_id.in_(of_student))).rowcount
        if not lifted:
            raise ConfigError(
                f"No record of a student {student_id} is kept out.",
                code="config.no_student",
                advice="`sis audit show --action student.erase` shows who was erased, by id.",
            )
        district = connection.scalar(select(erasures.c.district).where(erasures.c.student_id == student_id).limit(1))
        details = {"reason": reason, "records": lifted}
        audit.append(connection, "student.lift", student_id, district=str(district), actor=actor, details=details)
    return lifted


def _of_erased(entity: str, frame: pd.DataFrame, is_erased: Callable[[str], bool]) -> pd.Series[bool]:
    """Which rows are a student's who was erased: the record itself, and what refers to it."""
    columns = {column.name for column in ENTITIES[entity] if "students" in (column.refers or "")}
    columns |= {"sis_id"} if entity == "students" else set()
    erased = pd.Series(data=False, index=frame.index)
    for name in sorted(columns & set(frame.columns)):
        ids = frame[name].map(lambda value: value.strip() if isinstance(value, str) else None)
        known = {sis_id for sis_id in ids.dropna().unique() if is_erased(sis_id)}
        erased |= ids.isin(known)
    if "role" in frame.columns and entity != "students":
        erased &= frame["role"] == "student"  # who teaches may have a student's number
    return erased


def _mark(key: str, integration: str, sis_id: str) -> str:
    return hmac.digest(key.encode(), f"{integration}/{sis_id}".encode(errors="surrogatepass"), "sha256").hex()
