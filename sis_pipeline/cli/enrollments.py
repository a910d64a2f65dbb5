"""`sis enrollments`: who was enrolled on a day, as it was known at a moment; also what `sis students show --as-of` shows.
How the ledger is read is the database's function `sis.enrolled_as_of`; the query on it is in `records`."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Annotated

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.listings import Limit
from sis_pipeline.cli.output import AsJson, RefusalError, counted, emit, table

if TYPE_CHECKING:
    from rich.console import Console
    from sqlalchemy import Connection

app = typer.Typer(help="School enrollments as of any day.", no_args_is_help=True)

KNOWN_AT_HELP = "As it was known then: DATE (the end of that day) or a time, in UTC. Now where not given."
KnownAt = Annotated[str | None, typer.Option("--known-at", metavar="DATE|TIME", help=KNOWN_AT_HELP)]
COLUMNS = ("school", "entry_date", "entry_code", "exit_date", "exit_code")


@app.callback()
def enrollments() -> None:
    """School enrollments as of any day."""


@app.command("list")
def list_enrollments(
    *,
    district: Annotated[str, typer.Option(help="The district.")],
    as_of: Annotated[str, typer.Option("--as-of", metavar="DATE", help="Who was enrolled on this day.")],
    known_at: KnownAt = None,
    school: Annotated[str | None, typer.Option(help="Only this school: its id, number or name.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List who was enrolled where on a day, as the pipeline knew it at a moment.

    The ledger of changes answers, so what is published later never changes what was known before. The day of an exit
    is not a day of the enrollment. Names are those of now.
    """
    from sis_pipeline.cli import records

    day, given = a_day(as_of), a_moment(known_at) if known_at else None
    with Installation().engine.connect() as connection:
        moment = given or records.now(connection)
        check_known(connection, district, day, moment)
        rows, total = records.enrolled(connection, district, day, moment, school=school, limit=limit)

    def render(console: Console) -> None:
        shown = f", {len(rows):,} shown (--limit)" if len(rows) < total else ""
        title = f"{counted(total, 'enrollment')} on {day} as known at {moment:%Y-%m-%d %H:%M:%S} UTC{shown}"
        cells = [
            (f"{row['first_name'] or ''} {row['last_name'] or ''}".strip(), *(row[name] for name in COLUMNS), row["student_id"])
            for row in rows
        ]  # fmt: skip
        console.print(table(title, ("student", *COLUMNS, "student id"), cells))

    about = {"district": district, "as_of": day, "known_at": moment}
    emit(as_json, {**about, "enrollments": rows, "total": total}, render)


def a_day(text: str) -> date:
    """The day of --as-of. Raises RefusalError for anything else."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise RefusalError(f"--as-of: {text!r} is not a day.", "Write it as 2026-10-01.") from None


def a_moment(text: str) -> datetime:
    """The moment of --known-at: the end of a plain day, UTC where no offset says otherwise. Raises RefusalError for
    anything else."""
    try:
        if len(text) == len("2026-10-01"):
            return datetime.combine(date.fromisoformat(text), time.max, tzinfo=UTC)
        moment = datetime.fromisoformat(text)
    except ValueError:
        advice = "Write it as 2026-10-15 (the end of that day) or 2026-10-15T12:00:00, in UTC."
        raise RefusalError(f"--known-at: {text!r} is neither a day nor a time.", advice) from None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def check_known(connection: Connection, district: str, day: date, moment: datetime) -> None:
    """Nothing known is not nobody enrolled. Raises RefusalError where the day's school year was not published by then."""
    from sis_pipeline.cli import records
    from sis_pipeline.roster.school_year import SchoolYear

    first, year = records.first_known(connection, district, day), SchoolYear.on(day)
    if first is None:
        raise RefusalError(
            f"Nothing is published of district {district!r} for {year}.", "`sis operations list` shows what is."
        )
    if first > moment:
        raise RefusalError(
            f"Nothing was known of district {district!r} for {year} by {moment:%Y-%m-%d %H:%M:%S} UTC.",
            f"It was first published at {first:%Y-%m-%d %H:%M:%S} UTC.",
        )
