"""`sis school`: declaring that a school closes or opens, so that its removals are expected and not held.
What follows from a declaration is decided in roster.guard, keeping it is store.guarding's."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import AsJson, emit

if TYPE_CHECKING:
    from sis_pipeline.store.guarding import Declaration, Declared

app = typer.Typer(help="Schools that close or open.", no_args_is_help=True)

Key = Annotated[str, typer.Argument(metavar="KEY", help="The school: its id, number or name.")]
District = Annotated[str, typer.Option(help="The district.")]
Effective = Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="From which day on.")]
Reason = Annotated[str, typer.Option(help="Why; it goes into the audit log.")]


@app.command()
def close(key: Key, *, district: District, effective: Effective, reason: Reason, as_json: AsJson = False) -> None:
    """Declare that a school closes: from then on its removals are not held.

    Declared again, the new date takes the place of the old one.
    """
    declared = _declare("close", key, district, effective, reason)
    _said(declared, "Its removals are not held from then on.", as_json)


@app.command("open")
def open_(key: Key, *, district: District, effective: Effective, reason: Reason, as_json: AsJson = False) -> None:
    """Declare that a school opens, or is open after all.

    For 30 days whoever is enrolled there may be missing elsewhere without being held. A school that was not published
    yet is named by its number.
    """
    from sis_pipeline.roster.guard import OPENING_DAYS

    declared = _declare("open", key, district, effective, reason)
    words = f"For {OPENING_DAYS} days whoever is enrolled there may be missing elsewhere."
    if declared.name is None:
        words += f" No such school is published yet: {key} is taken for the number of a new one."
    _said(declared, words, as_json)


def _declare(kind: Declared, key: str, district: str, effective: datetime, reason: str) -> Declaration:
    from sis_pipeline.db.audit import current_actor
    from sis_pipeline.store.guarding import Guarding

    guarding = Guarding(Installation().engine)
    return guarding.declare(kind, key, district, effective=effective.date(), actor=current_actor(), reason=reason)


def _said(declared: Declaration, consequence: str, as_json: bool) -> None:
    done = "closes" if declared.kind == "close" else "opens"
    words = f"{declared.name or declared.school_id} {done} on {declared.effective}. {consequence}"
    emit(as_json, {"declaration": declared}, lambda console: console.print(words, markup=False))
