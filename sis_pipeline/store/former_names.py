"""What students were called before, as the trigger on `students` notes it: read for a merge, and kept true by publications.
What a name of before is good for is decided in `roster.identity`."""

from __future__ import annotations

from typing import Any

import polars as pl
from sqlalchemy import ColumnElement, Connection, delete, func, or_, select, text, tuple_

from sis_pipeline.db.tables import roster_tables, student_aliases, student_names
from sis_pipeline.roster.decisions import SPLIT
from sis_pipeline.roster.names import FORMER_NAMES
from sis_pipeline.roster.presence import RECORD

OPERATION = "sis.operation"
"""The operation that a transaction publishes, for the notes of the names that it changes."""


def known_former_names(connection: Connection, district: str) -> pl.DataFrame:
    """As DistrictInputs.former_names: of a student who was merged away, too, by the id of the one it is now."""
    names, alias = student_names.c, student_aliases.c
    is_alias = (alias.alias_id == names.student_id) & alias.restored_at.is_(None)
    query = (
        select(func.coalesce(alias.student_id, names.student_id), names.first_name, names.last_name)
        .distinct()
        .join_from(student_names, student_aliases, is_alias, isouter=True)
        .where(names.district == district)
    )
    rows = [tuple(row) for row in connection.execute(query)]
    return pl.DataFrame(rows, schema=FORMER_NAMES, orient="row").sort(pl.all())


def is_of(student_id: str) -> ColumnElement[bool]:
    """The names of a student, and of those who were merged into it."""
    alias = student_aliases.c
    merged = select(alias.alias_id).where(alias.student_id == student_id, alias.restored_at.is_(None))
    return or_(student_names.c.student_id == student_id, student_names.c.student_id.in_(merged))


def begin_operation(connection: Connection, operation_id: str) -> None:
    """Say which operation the changes of names in this transaction are."""
    connection.execute(text("select set_config(:name, :id, true)"), {"name": OPERATION, "id": operation_id})


def forget_parted(connection: Connection, district: str, operation_id: str, student_links: pl.DataFrame) -> None:
    """Whose record an operation gives to another student was not called by that one's name. Before the links are written:
    they still say who had it."""
    split = student_links.filter(pl.col("rule") == SPLIT)
    goes_to = {
        (integration, sis_id): student for integration, sis_id, student in split.select(*RECORD, "student_id").rows()
    }
    if not goes_to:
        return
    links: Any = roster_tables["student_links"].c
    had = select(links.integration, links.sis_id, links.student_id).where(
        links.district == district, tuple_(links.integration, links.sis_id).in_(list(goes_to))
    )
    parted = [
        row.student_id for row in connection.execute(had) if goes_to[row.integration, row.sis_id] != row.student_id
    ]
    noted = (student_names.c.operation_id == operation_id) & student_names.c.student_id.in_(parted)
    connection.execute(delete(student_names).where(student_names.c.district == district, noted))


def take_back(connection: Connection, district: str, *operation_ids: str) -> None:
    """Nobody was ever called otherwise by these operations."""
    noted = student_names.c.operation_id.in_(operation_ids)
    connection.execute(delete(student_names).where(student_names.c.district == district, noted))
