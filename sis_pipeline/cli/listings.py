"""`sis conflicts` and `sis changes`: what the systems disagree on, and what happened.
The SQL behind them, and the masking of protected addresses, is in `records`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import AsJson, RefusalError, counted, emit, said, table

if TYPE_CHECKING:
    from rich.console import Console

    from sis_pipeline.store.conflicts import Conflicts

conflicts_app = typer.Typer(help="Attributes on which the systems, or an edit, disagree.", no_args_is_help=True)
changes_app = typer.Typer(help="The ledger: who enrolled, left, transferred or changed.", no_args_is_help=True)

District = Annotated[str | None, typer.Option(help="Only this district.")]
Year = Annotated[str | None, typer.Option("--school-year", metavar="YEAR", help="Only this school year, as 2025-2026.")]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="At most this many rows.")]


@conflicts_app.callback()
def conflicts() -> None:
    """Attributes on which the systems disagree."""


@changes_app.callback()
def changes() -> None:
    """The ledger: who enrolled, left, transferred or changed."""


@conflicts_app.command("list")
def list_conflicts(
    *,
    district: District = None,
    school_year: Year = None,
    attribute: Annotated[str | None, typer.Option(help="Only this attribute.")] = None,
    status: Annotated[
        str | None, typer.Option(help="Only open, auto or resolved ones; or those that are stale.")
    ] = None,
    limit: Limit = 50,
    reveal: Annotated[bool, typer.Option("--reveal", help="Show protected addresses too.")] = False,
    as_json: AsJson = False,
) -> None:
    """List conflicts: the values, who holds them, what was chosen and by which rule.

    Where nothing conflicts any more the conflict is stale: shown as it last stood, only if asked for, and for
    SIS_STALE_CONFLICTS_DAYS. It opens again when the systems disagree again.
    """
    from sis_pipeline.cli import records
    from sis_pipeline.roster import model
    from sis_pipeline.roster.attributes import ATTRIBUTES

    one_of("--status", status, model.CONFLICT_STATUSES)
    with Installation().engine.connect() as connection:
        rows, total = records.list_conflicts(
            connection,
            district=district,
            school_year=valid_year(school_year),
            attribute=one_of("--attribute", attribute, [one.name for one in ATTRIBUTES if one.compared]),
            status=status,
            limit=limit,
            reveal=reveal,
        )

    def render(console: Console) -> None:
        columns = ("student", "attribute", "chosen", "from", "rule", "status", "the others", "student id")
        cells = [
            (
                _name(row),
                row["attribute"],
                said(row["chosen"]),
                row["chosen_from"],
                row["rule"],
                _status(row),
                _others(row),
                row["student_id"],
            )
            for row in rows
        ]
        console.print(table(_title("conflict", len(rows), total), columns, cells))
        if rows and status != model.STALE:
            told = "Decide one: sis conflicts decide STUDENT ATTRIBUTE --from INTEGRATION --reason …"
            console.print(told, markup=False)

    emit(as_json, {"conflicts": rows, "total": total}, render)


StudentId = Annotated[
    str, typer.Argument(metavar="STUDENT", help="The student's id, as `sis conflicts list` shows it.")
]
Attribute = Annotated[str, typer.Argument(metavar="ATTRIBUTE", help="The attribute, as phone or home_address.")]
Reason = Annotated[str, typer.Option(help="Why; it goes into the audit log.")]


@conflicts_app.command()
def decide(
    student: StudentId,
    attribute: Attribute,
    *,
    source: Annotated[
        str, typer.Option("--from", metavar="SOURCE", help="Whose value: an integration, KEY/ID, or `local edit`.")
    ],
    reason: Reason,
    as_json: AsJson = False,
) -> None:
    """Choose whose value of a student's attribute is published, whatever the policy; the next merge does it.

    The decision holds until one of the values changes. A protection (address_confidential, directory_opt_out) can't be
    decided away.
    """
    from sis_pipeline.db.audit import current_actor

    decided = _conflicts(student).decide(student, attribute, source, actor=current_actor(), reason=reason)
    words = f"{attribute} of student {student} is from {decided.integration}/{decided.sis_id} from the next merge on, until one of the values changes."
    emit(as_json, {"decision": decided}, lambda console: console.print(words, markup=False))


@conflicts_app.command()
def reopen(student: StudentId, attribute: Attribute, *, reason: Reason, as_json: AsJson = False) -> None:
    """Take a decision back; from the next merge on the policy chooses again."""
    from sis_pipeline.db.audit import current_actor

    done = _conflicts(student).reopen(student, attribute, actor=current_actor(), reason=reason)
    words = f"The policy chooses {attribute} of student {student} again, from the next merge on."
    emit(as_json, {"decision": done}, lambda console: console.print(words, markup=False))


def _conflicts(student_id: str) -> Conflicts:
    from sis_pipeline.cli.records import is_uuid
    from sis_pipeline.store.conflicts import Conflicts

    if not is_uuid(student_id):
        raise RefusalError("The student id is not a UUID.", "`sis conflicts list` shows ids.")
    return Conflicts(Installation().engine)


@changes_app.command("list")
def list_changes(
    *,
    district: District = None,
    school_year: Year = None,
    kind: Annotated[list[str] | None, typer.Option(help="Only this kind of change; may be repeated.")] = None,
    since: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="Only what was detected since (UTC)."),
    ] = None,
    school: Annotated[str | None, typer.Option(help="Only this school: its id, number or name.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List changes, the newest first."""
    from sis_pipeline.cli import records
    from sis_pipeline.roster import model

    for given in kind or []:
        one_of("--kind", given, model.CHANGE_KINDS)
    with Installation().engine.connect() as connection:
        rows, total = records.list_changes(
            connection,
            district=district,
            school_year=valid_year(school_year),
            kinds=kind or [],
            since=since.replace(tzinfo=UTC) if since else None,
            school=school,
            limit=limit,
        )

    def render(console: Console) -> None:
        columns = ("detected", "kind", "effective", "student", "school", "before", "after", "evidence", "student id")
        cells = [
            (row["detected_at"], row["kind"], row["effective_date"], _name(row), row["school"], row["before"], row["after"], row["evidence"], row["student_id"])
            for row in map(records.only_what_differs, rows)
        ]  # fmt: skip
        console.print(table(_title("change", len(rows), total), columns, cells))

    emit(as_json, {"changes": rows, "total": total}, render)


def valid_year(text: str | None) -> str | None:
    """The school year's key. Raises RefusalError for anything else."""
    from sis_pipeline.roster.school_year import SchoolYear

    if text is None:
        return None
    try:
        return SchoolYear.parse(text).key
    except ValueError as error:
        raise RefusalError(f"--school-year: {error}.") from None


def one_of(option: str, value: str | None, allowed: Any) -> str | None:
    if value is not None and value not in allowed:
        raise RefusalError(f"{option}: {value!r} is not known.", f"Choose one of {', '.join(allowed)}.")
    return value


def _title(what: str, shown: int, total: int) -> str:
    return counted(total, what) + (f", {shown:,} shown (--limit)" if shown < total else "")


def _name(row: dict[str, Any]) -> str:
    return " ".join(part for part in (row["first_name"], row["last_name"]) if part)


def _status(row: dict[str, Any]) -> str:
    from sis_pipeline.roster.model import STALE

    since = f" since {row['changed_at']:%Y-%m-%d}" if row["status"] == STALE else ""
    return f"{row['status']}{since}"


def _others(row: dict[str, Any]) -> str:
    rest = [item for item in row["candidates"] if f"{item['integration']}/{item['sis_id']}" != row["chosen_from"]]
    return "; ".join(f"{item['integration']}: {said(item['value'])}" for item in rest)
