"""Who is who as a merge takes it: the decisions that stand, their mark in its fingerprint, and ids merged away.
How people make them, and what becomes of the queue, is in `identity`."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
from sqlalchemy import Connection, case, func, select

from sis_pipeline.db.tables import identity_decisions, near_matches, roster_tables, student_aliases
from sis_pipeline.roster.decisions import DECISIONS, DISTINCT, GIVEN, KEPT
from sis_pipeline.roster.identity import RECYCLED
from sis_pipeline.store.files import digest

SIDES = ("", "other_")


def standing(connection: Connection, district: str, entity: str) -> pl.DataFrame:
    """The decisions of a district about its students, or its staff, that stand, as `decisions.DECISIONS`; ids of merged
    students are those they are now."""
    columns = [
        column
        for side in SIDES
        for column in (
            identity_decisions.c[f"{side}integration"],
            identity_decisions.c[f"{side}sis_id"],
            _student_now(f"{side}student_id", f"{side}integration").label(f"{side}person_id"),
        )
    ]
    recycled = near_matches.c.rule == RECYCLED
    verdict = case(
        (recycled & (identity_decisions.c.verdict != DISTINCT), KEPT),
        (recycled & (identity_decisions.c.verdict == DISTINCT), GIVEN),
        else_=identity_decisions.c.verdict,
    )
    answered = identity_decisions.outerjoin(
        near_matches, near_matches.c.near_match_id == identity_decisions.c.near_match_id
    )
    query = (
        select(*columns, verdict)
        .select_from(answered)
        .where(
            identity_decisions.c.district == district,
            identity_decisions.c.entity == entity,
            identity_decisions.c.superseded_by.is_(None),
        )
    )
    rows = [tuple(row) for row in connection.execute(query)]
    return pl.DataFrame(rows, schema=DECISIONS, orient="row").unique().sort(pl.all())


def _student_now(column: str, integration: str) -> Any:
    """The id beside a record is the one it goes back to; only where there is no record it is whom the decision means."""
    own = identity_decisions.c[column]
    alias = (
        select(student_aliases.c.student_id)
        .where(
            student_aliases.c.alias_id == own,
            student_aliases.c.restored_at.is_(None),
            identity_decisions.c[integration].is_(None),
        )
        .scalar_subquery()
    )
    return func.coalesce(alias, own)


def mark(connection: Connection, district: str) -> str:
    """Hash of the decisions that stand."""
    ids = select(identity_decisions.c.decision_id).where(
        identity_decisions.c.district == district, identity_decisions.c.superseded_by.is_(None)
    )
    return digest(json.dumps(sorted(connection.scalars(ids))).encode())


def aliases(connection: Connection, district: str) -> dict[str, str]:
    """Ids of a district's students that were merged away -> the student they are now."""
    query = select(student_aliases.c.alias_id, student_aliases.c.student_id).where(
        student_aliases.c.district == district, student_aliases.c.restored_at.is_(None)
    )
    return {row.alias_id: row.student_id for row in connection.execute(query)}


def naming_aliases(connection: Connection, school_year: str) -> set[str]:
    """The districts whose roster of a school year names a student that was merged away: by another year's merge."""
    years = roster_tables["student_years"].c
    query = (
        select(years.district)
        .distinct()
        .where(
            years.district == student_aliases.c.district,
            years.student_id == student_aliases.c.alias_id,
            years.school_year == school_year,
            student_aliases.c.restored_at.is_(None),
        )
    )
    return set(connection.scalars(query))
