"""`sis maintenance`: the nightly chores at once, as the daily schedule does them.
What they are and do is in `defs.maintenance`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sis_pipeline.cli.output import AsJson, ExitCode, complain, emit, table

if TYPE_CHECKING:
    from rich.console import Console


def maintenance(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what each would do, in counts.")] = False,
    as_json: AsJson = False,
) -> None:
    """Do the nightly chores now: close dead readings, delete half-written files, clean tokens, suspend and make
    accounts that are due, delete what is older than it is kept (docs/retention.md), verify the audit log and keep its heads.

    One that fails leaves the others alone; exit code 1 then. The schedule `nightly_maintenance` does the same.
    """
    from sis_pipeline.cli.installation import Installation
    from sis_pipeline.defs.maintenance import run_all
    from sis_pipeline.defs.resources import Roster

    Installation().engine  # noqa: B018 says what is wrong with the database before anything is begun
    roster = Roster()
    try:
        done = run_all(roster, dry_run=dry_run)
    finally:
        roster.close()

    def render(console: Console) -> None:
        result = "only looked at" if dry_run else "done"
        rows = [(one.chore, one.trouble.message if one.trouble else result, one.facts) for one in done]
        console.print(table("Maintenance", ("chore", "result", "would do" if dry_run else "what"), rows))

    emit(as_json, {"dry_run": dry_run, "chores": [one.as_json() for one in done]}, render)
    failed = [one for one in done if one.trouble]
    for one in failed:
        if one.trouble:
            complain(f"{one.chore}: {one.trouble.message}", one.trouble.advice)
    if failed:
        raise typer.Exit(ExitCode.FAILED)
