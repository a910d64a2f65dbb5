"""Who leaves where one student turns out to be two: what a merge brought in leaves together, and gets its own id back.
Deciding it, and what stood before, is in `identity`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import polars as pl
from sqlalchemy import Connection, select

from sis_pipeline.db.tables import roster_tables, student_aliases
from sis_pipeline.roster.presence import RECORD

Record = tuple[str, str]
Entity = Literal["student", "staff"]

links = roster_tables["student_links"]


@dataclass(frozen=True, slots=True)
class Parting:
    """`leaving`: the records that become another student, whose id is `own` again, or a new one where that is None.
    `staying`: those that stay with the student."""

    student_id: str
    own: str | None
    leaving: list[Record]
    staying: list[Record]
    entity: Entity = "student"


@dataclass(frozen=True, slots=True)
class Absorbed:
    """A student that was merged into another one, with those of its records that the other one has now."""

    alias_id: str
    records: list[Record]
    merged_at: datetime


def holders(links: pl.DataFrame, records: Iterable[Sequence[str]]) -> dict[Record, str]:
    """Who holds each of these records, as some links say."""
    named = pl.DataFrame([tuple(one) for one in records], schema=dict.fromkeys(RECORD, pl.String), orient="row")
    found = links.join(named.unique(), on=RECORD).select(*RECORD, "student_id")
    return {(integration, sis_id): who for integration, sis_id, who in found.iter_rows()}


def parting(
    connection: Connection, district: str, student_id: str, record: Record, other: Record | None = None
) -> Parting:
    """How to tell a record (and another one, where it is known who it is told apart from) from the rest of its student.

    The smallest student of before that has one of the two leaves; where only the student's own record is named, the
    rest leaves it, and else the record alone.
    """
    seen = _first_seen(connection, district, student_id)
    found = [one for one in absorbed(connection, district, student_id, seen) if len(one.records) < len(seen)]
    own, leaving = _leaving(found, seen, record, other)
    return Parting(student_id, own, leaving, sorted(set(seen) - set(leaving)))


def _leaving(
    found: list[Absorbed], seen: Mapping[Record, datetime], record: Record, other: Record | None
) -> tuple[str | None, list[Record]]:
    for one, its_other in ((record, other), (other, record)):
        mine = [it for it in found if one in it.records and its_other not in it.records]
        if mine:
            smallest = min(mine, key=lambda it: len(it.records))
            return smallest.alias_id, smallest.records
    if found and _founders(found, seen) == [record]:
        largest = max(found, key=lambda it: len(it.records))
        return largest.alias_id, sorted(set(seen) - {record})
    return None, [record]


def _founders(found: list[Absorbed], seen: Mapping[Record, datetime]) -> list[Record]:
    """The records that a student had before anybody was merged into it."""
    brought = {record for one in found for record in one.records}
    first = min(one.merged_at for one in found)
    return [record for record, when in seen.items() if record not in brought and when < first]


def absorbed(connection: Connection, district: str, student_id: str, records: Collection[Record]) -> list[Absorbed]:
    """The students that were merged into one and have some of its records; the first merged first."""
    table = student_aliases.c
    query = (
        select(table.alias_id, table.records, table.merged_at)
        .where(table.district == district, table.student_id == student_id, table.restored_at.is_(None))
        .order_by(table.merged_at, table.alias_id)
    )
    found = [
        Absorbed(row.alias_id, sorted(set(map(tuple, row.records)) & set(records)), row.merged_at)
        for row in connection.execute(query)
    ]
    return [one for one in found if one.records]


def _first_seen(connection: Connection, district: str, student_id: str) -> dict[Record, datetime]:
    query = select(links.c.integration, links.c.sis_id, links.c.first_seen).where(
        links.c.district == district, links.c.student_id == student_id
    )
    return {(row.integration, row.sis_id): row.first_seen for row in connection.execute(query)}
