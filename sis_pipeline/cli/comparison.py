"""Two students or staff members, or the records of one, attribute by attribute: read-only SQL, with values masked unless asked for.
Who asks, and what is decided, is `links`'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl
from sqlalchemy import Connection, select

from sis_pipeline.cli.output import as_text, table
from sis_pipeline.db.tables import roster_tables, student_aliases
from sis_pipeline.roster.normalise import value_key

if TYPE_CHECKING:
    from rich.console import Console

    from sis_pipeline.store.identity import NearMatch, Side

COMPARED = (
    "ssid", "ssid_issuer", "local_id", "local_id_issuer", "first_name", "middle_name", "last_name",
    "preferred_first_name", "preferred_last_name", "birth_date", "sex", "email", "phone", "mobile_phone",
)  # fmt: skip
"""What tells two children apart; addresses, which may be protected, are left to `sis students show`."""
COMPARED_STAFF = (
    "state_staff_id", "local_id", "first_name", "middle_name", "last_name", "preferred_first_name", "email", "phone",
    "role",
)  # fmt: skip
"""What tells two of the staff apart."""
MASK = "•••"

students, sources = roster_tables["students"], roster_tables["student_sources"]
links = roster_tables["student_links"]
staff, staff_links = roster_tables["staff"], roster_tables["staff_links"]


def of_pair(
    connection: Connection, near: NearMatch, *, values: bool, set_aside: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """attribute, one, other, verdict: `same`, `differs`, or `only one` where one side does not know it. `set_aside`: what the
    first side's record says of which nothing is published."""
    one, other = (_attributes(connection, near.district, side) for side in near.sides)
    one = one if set_aside is None else set_aside
    rows = []
    for name in COMPARED if near.entity == "student" else COMPARED_STAFF:
        pair = (one.get(name), other.get(name))
        if any(value is not None for value in pair):
            shown = pair if values else tuple(None if value is None else MASK for value in pair)
            rows.append({"attribute": name, "one": shown[0], "other": shown[1], "verdict": _verdict(name, pair)})
    return rows


def student(connection: Connection, student_id: str, *, values: bool) -> dict[str, Any] | None:
    """A student's records with the values that tell children apart, and the ids that were merged into it.

    An id that was merged away gives the student it is now. None where nobody has the id.
    """
    alias = select(student_aliases.c.student_id).where(
        student_aliases.c.alias_id == student_id, student_aliases.c.restored_at.is_(None)
    )
    now = connection.scalar(alias) or student_id
    held = connection.execute(
        select(links).where(links.c.student_id == now).order_by(links.c.integration, links.c.sis_id)
    ).mappings()
    records = [
        {
            **{name: row[name] for name in ("integration", "sis_id", "rule", "confidence", "active", "first_seen")},
            "values": _masked(_record(connection, row["district"], row["integration"], row["sis_id"]), values),
        }
        for row in held
    ]
    if not records:
        return None
    merged = select(student_aliases).where(student_aliases.c.student_id == now).order_by(student_aliases.c.merged_at)
    aliases = [
        {name: row[name] for name in ("alias_id", "records", "merged_at", "restored_at")}
        for row in connection.execute(merged).mappings()
    ]
    return {"student_id": now, "asked_for": student_id, "records": records, "aliases": aliases}


def staff_member(connection: Connection, staff_id: str, *, values: bool) -> dict[str, Any] | None:
    """What is published of a staff member, and the records. None where nobody has the id."""
    person = connection.execute(select(staff).where(staff.c.staff_id == staff_id)).mappings().first()
    if person is None:
        return None
    columns = [staff_links.c[name] for name in ("integration", "sis_id", "rule", "active", "first_seen")]
    mine = (staff_links.c.district == person["district"]) & (staff_links.c.staff_id == staff_id)
    held = connection.execute(select(*columns).where(mine).order_by("integration", "sis_id")).mappings()
    shown = _masked({name: person[name] for name in COMPARED_STAFF}, values)
    return {"staff_id": staff_id, "values": shown, "records": [dict(row) for row in held]}


def print_staff_member(console: Console, found: dict[str, Any]) -> None:
    console.print(f"Staff member {found['staff_id']}", style="bold", markup=False)
    known = [(name, as_text(value)) for name, value in found["values"].items() if value is not None]
    console.print(table("Published", ("attribute", "value"), known))
    columns = ("integration", "sis_id", "rule", "active", "first_seen")
    console.print(table("Records", columns, [[as_text(it[name]) for name in columns] for it in found["records"]]))


def print_student(console: Console, found: dict[str, Any]) -> None:
    """The records side by side, then what was merged into the student."""
    if found["asked_for"] != found["student_id"]:
        console.print(f"Student {found['asked_for']} was merged into this one.", markup=False)
    console.print(f"Student {found['student_id']}", style="bold", markup=False)
    records = found["records"]
    columns = ("attribute", *(f"{it['integration']}/{it['sis_id']}" for it in records))
    told = [[name, *(it[name] for it in records)] for name in ("rule", "active", "first_seen")]
    known = [name for name in COMPARED if any(it["values"].get(name) is not None for it in records)]
    compared = [[name, *(it["values"].get(name) for it in records)] for name in known]
    console.print(table("Records", columns, [[as_text(cell) for cell in row] for row in (*told, *compared)]))
    if found["aliases"]:
        cells = [
            (it["alias_id"], ["/".join(record) for record in it["records"]], it["merged_at"], it["restored_at"])
            for it in found["aliases"]
        ]
        console.print(table("Merged into it", ("student id", "records", "merged", "split again"), cells))


def _attributes(connection: Connection, district: str, side: Side) -> dict[str, Any]:
    """What the side's record says, else what is published of the student; staff records are not kept one by one."""
    if side.entity == "staff":
        published = select(staff).where(staff.c.district == district, staff.c.staff_id == side.student_id)
        return _first(connection, published, COMPARED_STAFF)
    if side.record is not None:
        return _record(connection, district, *side.record)
    published = select(students).where(students.c.district == district, students.c.student_id == side.student_id)
    return _first(connection, published)


def _record(connection: Connection, district: str, integration: str, sis_id: str) -> dict[str, Any]:
    """The values of a record in its latest school year."""
    named = (
        sources.c.district == district,
        sources.c.integration == integration,
        sources.c.sis_id == sis_id,
    )
    return _first(connection, select(sources).where(*named).order_by(sources.c.school_year.desc()).limit(1))


def _first(connection: Connection, query: Any, columns: Sequence[str] = COMPARED) -> dict[str, Any]:
    row = connection.execute(query).mappings().first()
    return {name: row[name] for name in columns} if row else {}


def _masked(attributes: dict[str, Any], values: bool) -> dict[str, Any]:
    return {name: value if values or value is None else MASK for name, value in attributes.items()}


def _verdict(name: str, pair: Sequence[Any]) -> str:
    if any(value is None for value in pair):
        return "only one"
    keys = pl.DataFrame({name: [str(value) for value in pair]}).select(value_key(name))
    return "same" if keys[name].n_unique() == 1 else "differs"
