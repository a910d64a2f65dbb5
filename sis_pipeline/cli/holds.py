"""`sis holds`: removals that wait for a person, and the person's decision.
What is held is decided by roster.guard, what a decision does by store.holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.listings import District, Limit, one_of
from sis_pipeline.cli.output import AsJson, counted, emit, table

if TYPE_CHECKING:
    from rich.console import Console

    from sis_pipeline.store.holds import Holds, StoredHold

app = typer.Typer(help="Removals that wait for a person.", no_args_is_help=True)

HoldId = Annotated[str, typer.Argument(metavar="HOLD", help="The hold's id, from `sis holds list`.")]
Reason = Annotated[str, typer.Option(help="Why; it goes into the audit log.")]
School = Annotated[str | None, typer.Option(help="Only what is held of this school: its id, number or name.")]
Kind = Annotated[str | None, typer.Option(help="Only what is held of this kind, as `sis holds show` names it.")]
STATUSES = ("open", "released", "discarded", "applied")


@app.command("list")
def list_(
    *,
    district: District = None,
    status: Annotated[str, typer.Option(help="open, released, discarded, applied, or all.")] = "open",
    as_json: AsJson = False,
) -> None:
    """List holds: what is held, why, and since when."""
    one_of("--status", status, (*STATUSES, "all"))
    found = _holds().list(district, None if status == "all" else status)  # type: ignore[arg-type]
    schools = {it.district: _school_names(it.district) for it in found}

    def render(console: Console) -> None:
        decided = ("decided by", "because") if any(it.decided_by for it in found) else ()
        columns = ("hold", "district", "year", "status", "removals", "of", "schools", "reason", "since", *decided)
        rows = [
            (it.hold_id, it.district, it.school_year, it.status, len(it.rows), it.removals.get("entity"),
             _where(it, schools[it.district]), it.reason, it.opened_at, it.decided_by, it.decided_reason)[: len(columns)]
            for it in found
        ]  # fmt: skip
        console.print(table(counted(len(found), "hold"), columns, rows, right=("removals",)))
        if found:
            console.print("Who is held: sis holds show HOLD", markup=False)

    emit(as_json, {"holds": [_plain(it) for it in found]}, render)


@app.command()
def show(hold: HoldId, *, limit: Limit = 20, as_json: AsJson = False) -> None:
    """Show what a hold holds: how many removals per school and kind, and whom the first of them are of."""
    found = _holds().get(hold)
    names = _school_names(found.district)
    parts = [{**asdict(part), "school": names.get(part.school_id or "")} for part in found.parts]
    first = list(islice(found.held(), limit))
    people = _students(found.district, [part for row in first for part in row.key])
    rows = [
        {
            "school": names.get(row.school_id or "", row.school_id),
            "kind": row.change,
            "student": next((people[part] for part in row.key if part in people), None),
            "ids": row.key,
        }
        for row in first
    ]

    def render(console: Console) -> None:
        said = found.removals
        console.print(
            f"Hold {found.hold_id} of {found.district}, {found.school_year}: {found.status}", style="bold", markup=False
        )
        console.print(f"{counted(len(found.rows), 'removal')} of {said.get('entity')}: {found.reason}.", markup=False)
        if said.get("limit"):
            console.print(f"The limit is {said['limit']:,} of {said['active_before']:,}.", markup=False)
        columns = ("school", "kind", "removals", "school id")
        cells = [(part["school"], part["change"], part["removals"], part["school_id"]) for part in parts]
        console.print(table("By school and kind", columns, cells, right=("removals",)))
        title = "Removals" if len(rows) == len(found.rows) else f"The first {len(rows):,} removals (--limit)"
        shown = ("school", "kind", "student", "ids")
        console.print(table(title, shown, [tuple(row[name] for name in shown) for row in rows]))
        console.print(
            f"Let it through: sis holds release {found.hold_id} [--school S] [--kind K] --reason …", markup=False
        )
        console.print(f"Keep what is published: sis holds discard {found.hold_id} --reason …", markup=False)

    emit(as_json, {"hold": _plain(found), "parts": parts, "rows": rows}, render)


@app.command()
def release(hold: HoldId, *, school: School = None, kind: Kind = None, reason: Reason, as_json: AsJson = False) -> None:
    """Let removals through, all or those of one school or kind; the next merge applies them.

    Exactly these removals are let through. What is left of the hold waits under its id until it is decided too.
    """
    from sis_pipeline.db.audit import current_actor

    decided = _holds().release(hold, current_actor(), reason, school=school, change=kind)
    words = "The next merge applies its removals."
    if decided.hold_id != hold:
        words = f"The next merge applies its removals; the rest of hold {hold} still waits."
    _decided(decided, words, as_json)


@app.command()
def discard(hold: HoldId, *, reason: Reason, as_json: AsJson = False) -> None:
    """Keep what is published of everybody it holds, whatever the limits say, for as long as they are missing.

    Whoever is back and goes missing again is judged anew. A release takes it back.
    """
    from sis_pipeline.db.audit import current_actor

    _decided(_holds().discard(hold, current_actor(), reason), "What is published stays.", as_json)


def _holds() -> Holds:
    from sis_pipeline.store.holds import Holds

    return Holds(Installation().engine)


def _school_names(district: str) -> dict[str, str]:
    from sqlalchemy import select

    from sis_pipeline.db.tables import roster_tables

    schools = roster_tables["schools"].c
    with Installation().engine.connect() as connection:
        found = connection.execute(select(schools.school_id, schools.name).where(schools.district == district))
        return {row.school_id: row.name for row in found}


def _where(hold: StoredHold, names: dict[str, str]) -> str:
    """The schools of a hold, each with how many removals; the largest number first."""
    counts: Counter[str] = Counter()
    for part in hold.parts:
        counts[names.get(part.school_id or "", part.school_id or "")] += part.removals
    return ", ".join(f"{school} {count:,}".strip() for school, count in counts.most_common())


def _students(district: str, ids: list[str]) -> dict[str, str]:
    """Name and local id of the students among some ids."""
    from sqlalchemy import select

    from sis_pipeline.cli.records import is_uuid
    from sis_pipeline.db.tables import roster_tables

    who = roster_tables["students"].c
    named = select(who.student_id, who.first_name, who.last_name, who.local_id).where(
        who.district == district, who.student_id.in_([one for one in ids if is_uuid(one)])
    )
    with Installation().engine.connect() as connection:
        return {
            str(row.student_id): " ".join(filter(None, (row.first_name, row.last_name)))
            + (f" ({row.local_id})" if row.local_id else "")
            for row in connection.execute(named)
        }


def _decided(hold: StoredHold, consequence: str, as_json: bool) -> None:
    words = f"Hold {hold.hold_id} is {hold.status}. {consequence}"
    emit(as_json, {"hold": _plain(hold)}, lambda console: console.print(words, markup=False))


def _plain(hold: StoredHold) -> dict[str, Any]:
    """The hold without the ids of what it holds: their number tells enough."""
    shown = asdict(hold)
    return {
        **{name: value for name, value in shown.items() if name not in {"rows", "fingerprint"}},
        "held": len(hold.rows),
    }
