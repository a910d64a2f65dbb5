"""`sis enrollments`: who was enrolled on a day, as it was known at a moment, and withdrawing all of a school.
The ledger is read by the database's function `sis.enrolled_as_of`, with a query in `records`; withdrawals are kept by
store.withdrawals."""

from __future__ import annotations

import sys
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.listings import Limit
from sis_pipeline.cli.output import AsJson, RefusalError, console, counted, emit, table

if TYPE_CHECKING:
    from rich.console import Console
    from sqlalchemy import Connection

    from sis_pipeline.store.withdrawals import Plan, Withdrawal, Withdrawals

app = typer.Typer(help="School enrollments as of any day, and withdrawing all of a school.", no_args_is_help=True)

District = Annotated[str, typer.Option(help="The district.")]
Reason = Annotated[str, typer.Option(help="Why, without students' values; it goes into the audit log.")]

KNOWN_AT_HELP = "As it was known then: DATE (the end of that day) or a time, in UTC. Now where not given."
KnownAt = Annotated[str | None, typer.Option("--known-at", metavar="DATE|TIME", help=KNOWN_AT_HELP)]
COLUMNS = ("school", "entry_date", "entry_code", "exit_date", "exit_code")


@app.callback()
def enrollments() -> None:
    """School enrollments as of any day, and withdrawing all of a school."""


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


@app.command()
def withdraw(
    *,
    district: District,
    school: Annotated[str, typer.Option(help="The school: its id, number or name.")],
    effective: Annotated[str, typer.Option(metavar="DATE", help="The first day on which nobody is enrolled any more.")],
    reason: Reason,
    code: Annotated[str | None, typer.Option(help="The exit code that the enrollments get.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say who would be withdrawn.")] = False,
    as_json: AsJson = False,
) -> None:
    """Withdraw everybody who is enrolled at a school, from a day on. The next merge does it.

    It counts whom first and asks. The enrollments, and the students' classes there, end on that day, whatever the systems
    go on saying about them: a later sync does not bring them back. A new entry on that day or later is a new enrollment,
    and an end that a system says itself is believed. `sis enrollments reinstate` takes it back.
    """
    from sis_pipeline.db.audit import current_actor

    if dry_run and yes:
        raise RefusalError("--dry-run changes nothing; --yes does.", "Leave one of them out.")
    day, store = a_day(effective, "--effective"), _withdrawals()
    if dry_run or not yes:
        plan = store.plan(district, school, day)
        if dry_run:
            emit(as_json, {"withdrawn": False, "plan": plan}, lambda shown: _said(shown, plan))
            return
        if not as_json:
            _said(console(), plan)
        _confirm()
    done, plan = store.withdraw(district, school, day, actor=current_actor(), reason=reason, code=code)
    emit(as_json, {"withdrawn": True, "plan": plan, "withdrawal": done}, lambda shown: _said(shown, plan, done))


@app.command()
def withdrawals(*, district: District, as_json: AsJson = False) -> None:
    """List the bulk withdrawals of a district, the newest first."""
    found = _withdrawals().list(district)
    columns = ("school", "effective", "enrollments", "code", "by", "at", "because", "taken back", "withdrawal")

    def render(shown: Console) -> None:
        cells = [
            (it.school, it.effective_date, it.enrollments, it.exit_code, it.withdrawn_by, it.withdrawn_at, it.reason,
             it.taken_back_at, it.withdrawal_id)
            for it in found
        ]  # fmt: skip
        shown.print(table(counted(len(found), "withdrawal"), columns, cells, right=("enrollments",)))

    emit(as_json, {"district": district, "withdrawals": found}, render)


@app.command()
def reinstate(
    withdrawal: Annotated[
        str, typer.Argument(metavar="WITHDRAWAL", help="Its id, as `sis enrollments withdrawals` shows it.")
    ],
    *,
    reason: Reason,
    as_json: AsJson = False,
) -> None:
    """Take a bulk withdrawal back: from the next merge on the systems are believed again about those enrollments."""
    from sis_pipeline.cli.records import is_uuid
    from sis_pipeline.db.audit import current_actor

    if not is_uuid(withdrawal):
        raise RefusalError("The withdrawal's id is not a UUID.", "`sis enrollments withdrawals` shows ids.")
    done = _withdrawals().take_back(withdrawal.lower(), actor=current_actor(), reason=reason)
    words = f"Withdrawal {done.withdrawal_id} is taken back: the next merge believes the systems again about {counted(done.enrollments, 'enrollment')}."
    emit(as_json, {"withdrawal": done}, lambda shown: shown.print(words, markup=False))


def _withdrawals() -> Withdrawals:
    from sis_pipeline.store.withdrawals import Withdrawals

    return Withdrawals(Installation().engine)


def _confirm() -> None:
    if not sys.stdin.isatty():
        raise RefusalError("Nobody was withdrawn: that needs a confirmation.", "Add --yes, or --dry-run to only look.")
    typer.confirm("Withdraw them?", abort=True, err=True)


def _said(shown: Console, plan: Plan, done: Withdrawal | None = None) -> None:
    end = "end with the next merge" if done else "would end"
    words = f"{counted(plan.enrollments, 'enrollment')} at {plan.school} in {plan.school_year} {end}, effective {plan.effective}."
    shown.print(words, style="bold", markup=False)
    for title, counts in (("status", plan.statuses), ("grade level", plan.grades)):
        rows: list[tuple[Any, ...]] = list(counts.items())
        shown.print(table(f"By {title}", (title, "enrollments"), rows, right=("enrollments",)))
    if plan.elsewhere:
        stay = f"{counted(plan.elsewhere, 'student')} of them are enrolled at another school too, and stay so."
        shown.print(stay, markup=False)
    if done:
        shown.print(f"Withdrawal {done.withdrawal_id}; `sis enrollments reinstate` takes it back.", markup=False)


def a_day(text: str, option: str = "--as-of") -> date:
    """The day of an option. Raises RefusalError for anything else."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise RefusalError(f"{option}: {text!r} is not a day.", "Write it as 2026-10-01.") from None


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
