"""`sis erase`: everything of one student, everywhere this installation keeps it.
What there is and how it goes is decided by store.erasure."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import AsJson, RefusalError, console, emit, table

if TYPE_CHECKING:
    from rich.console import Console

    from sis_pipeline.store.erasure import Found


def erase(
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="The student's permanent id (UUID).")],
    *,
    reason: Annotated[str, typer.Option(help="Why, without the student's values; it goes into the audit log.")],
    force: Annotated[
        bool,
        typer.Option("--force", help="Also where a system still delivers the student, whose record is then set aside."),
    ] = False,
    lift: Annotated[
        bool, typer.Option("--lift", help="Erase nothing; let an erased student's records in again.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what is where.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase a student for good: the rows of every table, and what the data folder has. It can't be undone.

    It counts what is where and asks first. An id that was merged away leads to the student it is now. Broken off, it is
    finished by running it again. The audit log keeps that it was done, by whom and why, and the id we had given.

    What a system delivers of the student afterwards is set aside, counted and without values, until a person lets it in
    again by --lift. Still, delete the record there first: its raw pages would hold the student. Where a system still
    delivers it, nothing is done unless --force is given.

    Raw pages of every integration that knew the student are deleted, and with the frames of the district's merges goes the
    undo of what was published so far. Exports, backups and copies elsewhere are not reached. Run it while no sync is under
    way.
    """
    from sis_pipeline.cli.records import is_uuid
    from sis_pipeline.db.audit import current_actor
    from sis_pipeline.store.erasure import Erasing
    from sis_pipeline.store.files import DataFolder

    if lift and (dry_run or force):
        raise RefusalError("--lift erases nothing.", "Leave out --dry-run and --force.")
    if dry_run and yes:
        raise RefusalError("--dry-run changes nothing; --yes does.", "Leave one of them out.")
    if not is_uuid(student):
        raise RefusalError("The student id is not a UUID.", "`sis students show --ssid …` shows it.")
    here = Installation()
    if lift:
        _lift(here, student.lower(), reason, as_json=as_json)
        return
    erasing = Erasing(here.engine, DataFolder(here.settings.data_url), lambda: here.vault)
    if dry_run or not yes:
        plan = erasing.plan(student.lower())
        if dry_run:
            emit(as_json, {"erased": False, "student": plan}, lambda shown: _said(shown, plan))
            return
        if not as_json:
            _said(console(), plan)
        _confirm()
    done = erasing.erase(student.lower(), current_actor(), reason, force=force)
    emit(as_json, {"erased": True, "student": done}, lambda shown: _said(shown, done))


def _lift(here: Installation, student: str, reason: str, *, as_json: bool) -> None:
    from sis_pipeline.cli.output import counted
    from sis_pipeline.db.audit import current_actor
    from sis_pipeline.store.keeping_out import lift

    records = lift(here.engine, student, current_actor(), reason)
    words = f"{counted(records, 'record')} of student {student} may come in again, with the next sync."
    emit(as_json, {"lifted": records, "student_id": student}, lambda shown: shown.print(words, markup=False))


def _confirm() -> None:
    if not sys.stdin.isatty():
        raise RefusalError("Nothing was erased: that needs a confirmation.", "Add --yes, or --dry-run to only look.")
    typer.confirm("Erase it for good?", abort=True, err=True)


def _said(shown: Console, found: Found) -> None:
    done = found.erasure_id is not None
    about = f"Student {found.student_id} of {found.district}"
    shown.print(f"{about} {'was erased' if done else 'would be erased'}.", style="bold", markup=False)
    if found.merged_from:
        shown.print(f"{found.merged_from} was merged into that student.", markup=False)
    shown.print(table("Rows in the database", ("table", "rows"), sorted(found.tables.items()), right=("rows",)))
    shown.print(table("Rows in snapshots", ("entity", "rows"), sorted(found.rows.items()), right=("rows",)))
    title = "Files deleted (raw, merged) or written anew"
    shown.print(table(title, ("layer", "files"), sorted(found.files.items()), right=("files",)))
    if found.delivered_by:
        named = ", ".join(found.delivered_by)
        shown.print(
            f"Still delivered by {named}: what comes is set aside, but raw pages hold the student.", markup=False
        )
