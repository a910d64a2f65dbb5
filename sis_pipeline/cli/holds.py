"""`sis holds`: removals that wait for a person, and the person's decision.
What is held is decided by roster.guard, what a decision does by store.holds."""

from __future__ import annotations

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

    def render(console: Console) -> None:
        columns = ("hold", "district", "year", "status", "reason", "removals", "since", "decided by", "because")
        rows = [
            (it.hold_id, it.district, it.school_year, it.status, it.reason, len(it.rows), it.opened_at, it.decided_by, it.decided_reason)
            for it in found
        ]  # fmt: skip
        console.print(table(counted(len(found), "hold"), columns, rows, right=("removals",)))

    emit(as_json, {"holds": [_plain(it) for it in found]}, render)


@app.command()
def show(hold: HoldId, *, limit: Limit = 20, as_json: AsJson = False) -> None:
    """Show what a hold holds: how many removals per school and kind, and the first of them by their ids."""
    found = _holds().get(hold)
    names = _school_names(found.district)
    parts = [{**asdict(part), "school": names.get(part.school_id or "")} for part in found.parts]
    rows = [
        {"school": names.get(row.school_id or "", row.school_id), "kind": row.change, "ids": row.key}
        for row in islice(found.held(), limit)
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
        console.print(table(title, ("school", "kind", "ids"), [tuple(row.values()) for row in rows]))
        console.print(
            f"Let it through: sis holds release {found.hold_id} [--school S] [--kind K] --reason …", markup=False
        )

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
