"""`sis students`: one student's record with the origin of every value.
The SQL behind it, and the masking of protected addresses, is in `records`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sis_pipeline.cli.enrollments import COLUMNS, KnownAt, a_day, a_moment, check_known
from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import AsJson, RefusalError, as_text, emit, said, table

if TYPE_CHECKING:
    from datetime import date, datetime

    from rich.console import Console
    from sqlalchemy import Connection

app = typer.Typer(help="Published students.", no_args_is_help=True)


@app.callback()
def students() -> None:
    """Published students."""


@app.command()
def show(
    *,
    student_id: Annotated[str | None, typer.Argument(help="The student's permanent id (UUID).")] = None,
    ssid: Annotated[str | None, typer.Option(help="Find by state student id.")] = None,
    local_id: Annotated[str | None, typer.Option(help="Find by local student number.")] = None,
    sis: Annotated[str | None, typer.Option(metavar="KEY/ID", help="Find by a record's id in one SIS.")] = None,
    district: Annotated[str | None, typer.Option(help="Only in this district.")] = None,
    reveal: Annotated[bool, typer.Option("--reveal", help="Show a protected address too.")] = False,
    as_of: Annotated[
        str | None, typer.Option("--as-of", metavar="DATE", help="Only where the student was enrolled on this day.")
    ] = None,
    known_at: KnownAt = None,
    as_json: AsJson = False,
) -> None:
    """Show a student: record, where every value comes from and whose it would be else, former names, links, conflicts,
    enrollments, changes.

    An id that several districts know shows the record of each. A protected address is masked unless asked for. With
    --as-of, only the enrollments of that day, as they were known at --known-at.
    """
    from sis_pipeline.cli import records

    given = [value for value in (student_id, ssid, local_id, sis) if value]
    if len(given) != 1:
        raise RefusalError("Name the student by exactly one of ID, --ssid, --local-id or --sis KEY/ID.")
    if student_id is not None and not records.is_uuid(student_id):
        raise RefusalError("The student id is not a UUID.", "Find by --ssid, --local-id or --sis KEY/ID instead.")
    if known_at is not None and as_of is None:
        raise RefusalError("--known-at goes with --as-of: which day was asked about?")
    day, known = a_day(as_of) if as_of else None, a_moment(known_at) if known_at else None
    with Installation().engine.connect() as connection:
        found = records.find_students(
            connection, student_id=student_id, ssid=ssid, local_id=local_id, sis=_record(sis), district=district
        )
        if found and day:
            _show_enrolled(connection, found, day, known or records.now(connection), as_json=as_json)
            return
        files = [records.student_file(connection, student, reveal=reveal) for student in found]
    if not files:
        raise RefusalError(
            "No published student has that id.", "`sis changes list` shows ids; has the district been merged yet?"
        )
    emit(as_json, {"students": files}, lambda console: _print_files(console, files))


def _show_enrolled(
    connection: Connection, found: list[dict[str, Any]], day: date, moment: datetime, *, as_json: bool
) -> None:
    from sis_pipeline.cli import records

    shown = []
    for student in found:
        about = {"student_id": student["student_id"], "district": student["district"], "as_of": day, "known_at": moment}
        check_known(connection, student["district"], day, moment)
        rows, _ = records.enrolled(connection, student["district"], day, moment, student_id=student["student_id"])
        shown.append({**about, "enrollments": rows})

    def render(console: Console) -> None:
        for one in shown:
            title = f"Student {one['student_id']} of district {one['district']}"
            when = f"on {day} as known at {moment:%Y-%m-%d %H:%M:%S} UTC"
            if not one["enrollments"]:
                console.print(f"{title} was not enrolled {when}.", markup=False)
                continue
            cells = [[_cell(row[name]) for name in COLUMNS] for row in one["enrollments"]]
            console.print(table(f"{title}, enrolled {when}", COLUMNS, cells))

    emit(as_json, {"students": shown}, render)


def _record(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    integration, slash, sis_id = text.partition("/")
    if not (integration and slash and sis_id):
        raise RefusalError("--sis takes KEY/ID: an integration's key, a slash, the record's id in that SIS.")
    return integration, sis_id


def _print_files(console: Console, files: list[dict[str, Any]]) -> None:
    from sis_pipeline.cli.records import only_what_differs

    for file in files:
        shown = {**file, "changes": [only_what_differs(change) for change in file["changes"]]}
        _print_record(console, file)
        for title, key, columns in SECTIONS:
            if shown[key]:
                rows = [[_cell(row.get(column)) for column in columns] for row in shown[key]]
                console.print(table(title, columns, rows))


SECTIONS = (
    ("Former names", "former_names", ("first_name", "last_name", "until")),
    (
        "Records in the systems",
        "links",
        ("integration", "sis_id", "rule", "confidence", "active", "first_seen", "last_seen"),
    ),
    ("School years", "years", ("school_year", "grade_level", "school", "homeroom", "enrollment_status", "fte")),
    (
        "Enrollments",
        "enrollments",
        (
            "school_year",
            "school",
            "entry_date",
            "entry_code",
            "exit_date",
            "exit_code",
            "enrollment_type",
            "status",
            "integration",
        ),
    ),
    (
        "Conflicts",
        "conflicts",
        ("school_year", "attribute", "chosen", "chosen_from", "rule", "status", "changed_at", "candidates"),
    ),
    ("Decisions", "decisions", ("attribute", "integration", "sis_id", "decided_at", "decided_by", "reason")),
    ("Local edits", "edits", ("attribute", "edited_at", "edited_by", "settled_at")),
    (
        "Changes",
        "changes",
        ("detected_at", "kind", "effective_date", "school", "before", "after", "evidence", "integration"),
    ),
    ("In other districts", "elsewhere", ("district", "student_id", "decision", "evidence")),
    (
        "Between districts",
        "transfers",
        ("kind", "district", "school", "exit_date", "other_district", "other_school", "entry_date"),
    ),
)


def _print_record(console: Console, file: dict[str, Any]) -> None:
    from sis_pipeline.roster.attributes import EDITED

    record = file["record"]
    origins = {column: row for row in file["provenance"] for column in EDITED[row["attribute"]]}
    console.print(f"Student {record['student_id']} of district {record['district']}", style="bold", markup=False)
    if record["near_match"]:
        console.print("A possible same person waits for review.")
    attributes = [
        name
        for name, value in record.items()
        if value is not None and name not in {"student_id", "district", "near_match"}
    ]
    rows = [[name, _cell(record[name]), *_provenance(origins.get(name))] for name in attributes]
    empty = [it for it in file["provenance"] if all(record[name] is None for name in EDITED[it["attribute"]])]
    rows += [[it["attribute"], said(None), *_provenance(it)] for it in empty]
    console.print(table("Record", ("attribute", "value", "from", "since", "rule", "else from"), rows))
    if file["address_masked"]:
        console.print("The address is protected; --reveal shows it.")


def _provenance(row: dict[str, Any] | None) -> list[str]:
    """Whose value it is, since when, by which rule, and whose it would be else; the school year has none of it."""
    if row is None:
        return [""] * 4
    since = row["modified_at"] or row["read_at"]
    other = f"{row['runner_up_integration']}/{row['runner_up_sis_id']}" if row["runner_up_sis_id"] else ""
    return [f"{row['integration']}/{row['sis_id']}", f"{since:%Y-%m-%d}" if since else "", row["rule"], other]


def _cell(value: object) -> str:
    if isinstance(value, list):  # a conflict's candidates
        return "; ".join(f"{item['integration']}/{item['sis_id']}: {said(item['value'])}" for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # a graduation year takes no thousands separator
    return as_text(value)
