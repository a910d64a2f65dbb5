"""`sis transfers`: who went from one district of this installation to another, and whether that is looked for.
What is one child and what is a transfer is decided in roster.statewide; keeping it is store.statewide's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.listings import Limit, one_of
from sis_pipeline.cli.output import AsJson, as_text, counted, emit, table

if TYPE_CHECKING:
    from rich.console import Console

    from sis_pipeline.store.statewide import Matching

app = typer.Typer(help="Who went from one district to another.", no_args_is_help=True)

Reason = Annotated[str, typer.Option(help="Why; it goes into the audit log.")]
COLUMNS = ("kind", "student", "from", "exit", "to", "entry", "student id", "student id there")


@app.callback()
def transfers() -> None:
    """Who went from one district to another."""


@app.command("list")
def list_transfers(
    *,
    district: Annotated[str | None, typer.Option(help="Only from or to this district.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only transfer, pending_transfer or concurrent ones.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List who went from one district to another, the newest first.

    transfer: left one and entered the other within 14 days. pending_transfer: left in the last 14 days, and is
    nowhere since. concurrent: the primary enrollment of this school year runs in both, which one of them should look into.
    """
    from sis_pipeline.cli import records
    from sis_pipeline.roster.statewide import CONCURRENT, TRANSFER
    from sis_pipeline.store.statewide import Statewide

    one_of("--kind", kind, (TRANSFER, records.PENDING, CONCURRENT))
    engine = Installation().engine
    matching = Statewide(engine).matching()
    with engine.connect() as connection:
        rows, total = records.list_transfers(connection, district=district, kind=kind, limit=limit)

    def render(console: Console) -> None:
        if not matching.enabled:
            console.print("Districts are not compared; `sis transfers on --reason …` begins it.", markup=False)
            return
        title = counted(total, "row") + (f", {len(rows):,} shown (--limit)" if len(rows) < total else "")
        console.print(table(title, COLUMNS, map(_cells, rows)))

    emit(as_json, {"enabled": matching.enabled, "transfers": rows, "total": total}, render)


@app.command()
def on(*, reason: Reason, as_json: AsJson = False) -> None:
    """Compare the students of all districts of this installation by their state ids, now and with every publication.

    Nothing is merged by it: a child in two districts has a record in each, and each district's ledger stays its own. Who
    may see one district in the database sees with it that a child is in another one too.
    """
    _set(reason, as_json, enabled=True)


@app.command()
def off(*, reason: Reason, as_json: AsJson = False) -> None:
    """Compare no districts any more, and forget what was found."""
    _set(reason, as_json, enabled=False)


def _set(reason: str, as_json: bool, *, enabled: bool) -> None:
    from sis_pipeline.db.audit import current_actor
    from sis_pipeline.store.statewide import Statewide

    done, found = Statewide(Installation().engine).set(enabled=enabled, actor=current_actor(), reason=reason)
    emit(as_json, {"matching": done, "found": found}, lambda console: console.print(_words(done, found), markup=False))


def _words(done: Matching, found: dict[str, int]) -> str:
    if not done.enabled:
        return "Districts are not compared."
    return f"Districts are compared: {as_text(found) or 'no student is in two'}."


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    name = " ".join(part for part in (row["first_name"], row["last_name"]) if part)
    places = [
        ", ".join(part for part in (row[f"{side}district"], row[f"{side}school"]) if part) for side in ("", "other_")
    ]
    return (
        row["kind"], name, places[0], row["exit_date"], places[1], row["entry_date"], row["student_id"],
        row["other_student_id"],
    )  # fmt: skip
