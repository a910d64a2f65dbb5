"""`sis holds`: removals that wait for a person, and the person's decision.
What is held is decided by roster.guard, what a decision does by store.holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.listings import District, one_of
from sis_pipeline.cli.output import AsJson, counted, emit, table

if TYPE_CHECKING:
    from rich.console import Console

    from sis_pipeline.store.holds import Holds, StoredHold

app = typer.Typer(help="Removals that wait for a person.", no_args_is_help=True)

HoldId = Annotated[str, typer.Argument(metavar="HOLD", help="The hold's id, from `sis holds list`.")]
Reason = Annotated[str, typer.Option(help="Why; it goes into the audit log.")]
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
def release(hold: HoldId, *, reason: Reason, as_json: AsJson = False) -> None:
    """Let exactly these removals through; the next merge applies them."""
    from sis_pipeline.db.audit import current_actor

    _decided(_holds().release(hold, current_actor(), reason), "The next merge applies its removals.", as_json)


@app.command()
def discard(hold: HoldId, *, reason: Reason, as_json: AsJson = False) -> None:
    """Keep what is published, and don't ask again about exactly these removals."""
    from sis_pipeline.db.audit import current_actor

    _decided(_holds().discard(hold, current_actor(), reason), "What is published stays.", as_json)


def _holds() -> Holds:
    from sis_pipeline.store.holds import Holds

    return Holds(Installation().engine)


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
