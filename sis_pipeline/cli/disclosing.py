"""`sis disclosure`: where a student's data went, as far as it was recorded here.
What is recorded, and what can't be, is decided by store.disclosure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import AsJson, RefusalError, emit, table

if TYPE_CHECKING:
    from rich.console import Console

    from sis_pipeline.store.disclosure import Record

COLUMNS = ("at", "recipient", "reason", "form", "school_year", "destination", "actor", "had the student")


def disclosure(
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="The student's permanent id (UUID).")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show what of a student was published and handed on: since when, to whom, why, and which kinds of fields.

    The published tables with their rows, and every export that had the student (34 CFR 99.32). No values are shown, and
    nothing is changed. Who reads the tables by SQL or through an application is not recorded here. An id that was merged
    away leads to the student it is now, with what was handed on under either.
    """
    from sis_pipeline.cli.records import is_uuid
    from sis_pipeline.store.disclosure import Disclosures

    if not is_uuid(student):
        raise RefusalError("The student id is not a UUID.", "`sis students show --ssid …` shows it.")
    found = Disclosures(Installation().engine).of(student.lower())
    emit(as_json, {"disclosure": found}, lambda shown: _said(shown, found))


def _said(shown: Console, found: Record) -> None:
    since = f", published since {found.published_since:%Y-%m-%d %H:%M} UTC" if found.published_since else ""
    shown.print(f"Student {found.student_id} of district {found.district}{since}.", style="bold", markup=False)
    rows = [(one.table, one.school_year, one.rows, one.last_changed) for one in found.published]
    shown.print(
        table("In the published tables", ("table", "school_year", "rows", "last changed"), rows, right=("rows",))
    )
    if not found.disclosures:
        shown.print("No export is known that had the student.", markup=False)
    else:
        _handed_on(shown, found)
    for sentence in found.unrecorded:
        shown.print(sentence, markup=False)


def _handed_on(shown: Console, found: Record) -> None:
    known = {True: "yes", None: "not known: it was not recorded then"}
    cells = [
        (one.at, one.recipient or "not said", one.reason or "not said", one.form, one.school_year, one.destination,
         one.actor, known[one.included])
        for one in found.disclosures
    ]  # fmt: skip
    shown.print(table("Exports", COLUMNS, cells))
    kinds: dict[tuple[str, str], set[str]] = {}
    for one in found.disclosures:
        for file, columns in one.fields.items():
            kinds.setdefault((one.form, file), set()).update(columns)
    if kinds:
        listed = [(form, file, sorted(columns)) for (form, file), columns in sorted(kinds.items())]
        shown.print(table("Kinds of fields that they held", ("form", "file", "columns"), listed))
