"""`sis accounts`: the accounts that follow from the roster, and the rules of a district that make them.
What can be set is declared in roster.account_rules, keeping it is store.accounts'; the SQL of listings is in `records`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.listings import Limit, one_of
from sis_pipeline.cli.output import AsJson, RefusalError, counted, emit, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from sis_pipeline.roster.account_rules import Value
    from sis_pipeline.store.accounts import Accounts, RulesVersion

app = typer.Typer(help="Accounts of students and staff.", no_args_is_help=True)
rules_app = typer.Typer(help="How a district makes accounts.", no_args_is_help=True)
app.add_typer(rules_app, name="rules")

District = Annotated[str, typer.Argument(help="The district.")]
Reveal = Annotated[bool, typer.Option("--reveal", help="Show user names and email addresses instead of a mask.")]
Values = Annotated[
    list[str],
    typer.Argument(
        metavar="SETTING=VALUE...",
        help="As 'student.username={first_initial}{last_name}{grad_year2}'; SETTING=default takes one back.",
    ),
]
LEAVING = "leaving"
COLUMNS = ("kind", "username", "email", "status", "missing_since", "role", "schools", "note", "person_id")


@app.callback()
def accounts() -> None:
    """Accounts of students and staff."""


@rules_app.callback()
def rules() -> None:
    """How a district makes accounts."""


@app.command("list")
def list_accounts(
    *,
    district: Annotated[str, typer.Option(help="The district.")],
    kind: Annotated[str | None, typer.Option(help="Only student or staff accounts.")] = None,
    status: Annotated[
        str | None, typer.Option(help="Only active, suspended, or leaving (active, in their grace period) ones.")
    ] = None,
    school: Annotated[str | None, typer.Option(help="Only of this school: its id, number or name.")] = None,
    limit: Limit = 50,
    reveal: Reveal = False,
    as_json: AsJson = False,
) -> None:
    """List the accounts of a district. User names and addresses are masked unless asked for."""
    from sis_pipeline.cli import records
    from sis_pipeline.roster import model

    one_of("--kind", kind, model.ACCOUNT_KINDS)
    one_of("--status", status, (*model.ACCOUNT_STATUSES, LEAVING))
    with Installation().engine.connect() as connection:
        rows, total = records.list_accounts(
            connection, district, kind=kind, status=status, school=school, limit=limit, reveal=reveal
        )

    def render(console: Console) -> None:
        title = counted(total, "account") + (f", {len(rows):,} shown (--limit)" if len(rows) < total else "")
        console.print(table(title, COLUMNS, [[row[name] for name in COLUMNS] for row in rows]))

    emit(as_json, {"district": district, "accounts": rows, "total": total}, render)


@app.command()
def show(
    person: Annotated[
        str, typer.Argument(metavar="ID", help="The id of a student, a staff member or an account (UUID).")
    ],
    *,
    reveal: Reveal = False,
    as_json: AsJson = False,
) -> None:
    """Show one account: the records it stands for, its schools, and the sections it may see and as what."""
    from sis_pipeline.cli import records

    if not records.is_uuid(person):
        raise RefusalError("The id is not a UUID.", "`sis accounts list` shows ids.")
    with Installation().engine.connect() as connection:
        found = records.account_file(connection, person, reveal=reveal)
    if found is None:
        raise RefusalError(
            "Nobody of that id has an account.",
            "`sis accounts list` shows those there are; no account is made while a near match waits (`sis links review`).",
        )

    def render(console: Console) -> None:
        rows = [(name, value) for name, value in found["account"].items() if value is not None]
        console.print(table("Account", ("what", "value"), rows))
        for name, columns in (
            ("records", ("integration", "sis_id", "active")),
            ("sections", ("school_year", "title", "school", "role", "begin_date", "end_date", "section_id")),
        ):
            cells = [[row[column] for column in columns] for row in found[name]]
            console.print(table(name.capitalize(), columns, cells))

    emit(as_json, found, render)


@rules_app.command("show")
def show_rules(
    district: District,
    *,
    history: Annotated[bool, typer.Option("--history", help="Show who set what, and when.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the account rules of a district, and what can be set. A kind without a username rule has no accounts."""
    store = _accounts()
    found, versions = store.rules(district), store.history(district) if history else []
    document: dict[str, Any] = {"rules": _plain(found)}
    if history:
        document["history"] = versions

    def render(console: Console) -> None:
        console.print(_rules(found))
        if history:
            told = [(it.version, it.set_at, it.set_by, it.reason, _flat(it.values)) for it in versions]
            console.print(table("History", ("version", "at", "by", "because", "set"), told))

    emit(as_json, document, render)


@rules_app.command("check")
def check_rules(
    district: District,
    values: Values,
    *,
    limit: Annotated[int, typer.Option(min=0, max=100_000, help="At most this many of the new accounts.")] = 20,
    reveal: Reveal = False,
    as_json: AsJson = False,
) -> None:
    """Say what rules would do to the accounts now, and change nothing: how many would be made, changed or suspended.

    A user name that somebody has is kept, whatever the template; other rules only name new accounts.
    """
    from sis_pipeline.cli.records import mask_account

    store = _accounts()
    then, decision = store.plan(district, _parsed(values))
    columns = ("kind", "username", "email", "role", "person_id")
    shown = decision.made.sort("kind", "username").head(limit).select(columns)
    rows = [mask_account(row, reveal=reveal) for row in shown.iter_rows(named=True)]
    document = {
        "district": district,
        "proposed": then.values,
        "accounts": decision.counts | {"numbered": decision.numbered},
        "new": rows,
    }

    def render(console: Console) -> None:
        console.print(_counts("What would become of the accounts", decision.counts))
        if decision.numbered:
            console.print(f"{counted(decision.numbered, 'new user name')} would get a number, being taken.")
        if rows:
            console.print(table("New accounts", columns, [[row[name] for name in columns] for row in rows]))

    emit(as_json, document, render)


@rules_app.command("set")
def set_rules(
    district: District,
    values: Values,
    *,
    reason: Annotated[str, typer.Option(help="Why; it goes into the audit log.")],
    as_json: AsJson = False,
) -> None:
    """Set account rules of a district; its accounts are made and changed at once. `check` says beforehand what happens."""
    from sis_pipeline.db.audit import current_actor

    done = _accounts().set(district, _parsed(values), actor=current_actor(), reason=reason)

    def render(console: Console) -> None:
        console.print(_rules(done.rules))
        console.print(_counts("What became of the accounts", done.counts))

    emit(as_json, {"rules": _plain(done.rules), "accounts": done.counts}, render)


def _accounts() -> Accounts:
    from sis_pipeline.store.accounts import Accounts

    return Accounts(Installation().engine)


def _parsed(values: list[str]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for given in values:
        name, equals, value = given.partition("=")
        if not equals:
            raise RefusalError(f"{given!r} is no SETTING=VALUE.", "Write it as student.grace_days=30.")
        if name in found:
            raise RefusalError(f"{name!r} is given twice.", "Name each setting once.")
        found[name] = value
    return found


def _rules(found: RulesVersion) -> Any:
    from sis_pipeline.roster.account_rules import SETTINGS

    rows = [
        (name, str(found.values.get(name, "" if it.default is None else it.default)), "set" if name in found.values else "", it.metadata["about"])
        for name, it in SETTINGS.items()
    ]  # fmt: skip
    version = f"version {found.version}" if found.version else "none set, so it has no accounts"
    return table(f"Account rules of {found.district}, {version}", ("setting", "value", "", "what it is"), rows)


def _counts(title: str, counts: Mapping[str, int]) -> Any:
    return table(title, ("what", "accounts"), list(counts.items()), right=("accounts",))


def _plain(found: RulesVersion) -> dict[str, Any]:
    return {"district": found.district, "version": found.version, "set": found.values, "kinds": found.rules.kinds}


def _flat(values: Mapping[str, Value]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "nothing"
