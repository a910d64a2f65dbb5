"""`sis export`: the published roster for others, as files.
What is written is decided by roster.oneroster_export, where and how by store.oneroster_export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.listings import one_of
from sis_pipeline.cli.output import AsJson, RefusalError, emit, table

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(help="The published roster for others, as files.", no_args_is_help=True)


@app.callback()
def export() -> None:
    """The published roster for others, as files."""


@app.command()
def oneroster(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the set goes: a folder that is new, empty, or holds a former export of the district, which is replaced.")],
    *,
    district: Annotated[str, typer.Option(help="Whose roster.")],
    school_year: Annotated[
        str | None, typer.Option("--school-year", metavar="YEAR", help="Which school year, as 2025-2026; the current one where unset.")
    ] = None,
    version: Annotated[str, typer.Option(help="The OneRoster version, 1.1 or 1.2.")] = "1.2",
    zipped: Annotated[bool, typer.Option("--zip", help="Write one file, oneroster.zip, into the folder.")] = False,
    preferred_names: Annotated[
        bool, typer.Option("--preferred-names", help="Give preferred names and pronouns too; only 1.2 has columns for them.")
    ] = False,
    recipient: Annotated[str | None, typer.Option(help="Who receives it; it goes into the record of disclosures.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why it is given; it goes into that record and the audit log.")] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Write a district's published roster as a OneRoster CSV set (bulk).

    The same published state gives the same bytes, whoever runs it and when. 1.1 has no dates for school enrollments, so
    it holds only the students who are enrolled; 1.2 also those who left this year. docs/exports.md says what is left out.

    Who is in it, and who receives it why, is recorded: `sis disclosure STUDENT` tells it.
    """
    from sis_pipeline.cli.syncing import known_year
    from sis_pipeline.roster.oneroster_export import VERSIONS
    from sis_pipeline.store.oneroster_export import export_oneroster

    one_of("--version", version, VERSIONS)
    if preferred_names and version == "1.1":
        raise RefusalError(
            "OneRoster 1.1 has no columns for preferred names.", "Leave out --preferred-names, or use 1.2."
        )
    here = Installation()
    done = export_oneroster(
        here.engine,
        folder,
        district,
        known_year(here, school_year),
        version=version,  # type: ignore[arg-type]
        zipped=zipped,
        preferred_names=preferred_names,
        reason=reason,
        recipient=recipient,
    )

    def render(console: Console) -> None:
        title = f"OneRoster {done.version} of {done.district}, {done.school_year}, is in {done.path}"
        console.print(table(title, ("file", "rows"), done.rows.items(), right=("rows",)))
        missing = {name: number for name, number in done.left_out.items() if number}
        if missing:
            console.print(
                table("Left out; docs/exports.md says why", ("what", "rows"), missing.items(), right=("rows",))
            )

    emit(as_json, {"export": done}, render)
