"""Erasures as everybody else has to heed them: their mark, which a merge keeps, and those that were never finished.
Erasing itself is in `erasure`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from sis_pipeline.db.tables import erasures


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An erasure that was begun, and is under way or was broken off."""

    district: str
    student_id: str
    begun_at: datetime


def mark(connection: Connection, district: str) -> str | None:
    """Hash of the erasures of a district; None where there is none.

    It changes when one begins, goes on or ends: what was read from the data folder before an erasure's end may still have
    the student.
    """
    table = erasures.c
    query = select(table.erasure_id, table.begun_at, table.finished_at).where(table.district == district)
    found = [[str(value) for value in row] for row in connection.execute(query.order_by(table.erasure_id))]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest() if found else None


def unfinished(connection: Connection, district: str | None = None) -> Sequence[Unfinished]:
    """Of a district or all, the oldest first."""
    table = erasures.c
    query = select(table.district, table.student_id, table.begun_at).where(table.finished_at.is_(None))
    if district is not None:
        query = query.where(table.district == district)
    return [Unfinished(*row) for row in connection.execute(query.order_by(table.begun_at, table.erasure_id))]
