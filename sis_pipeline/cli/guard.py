"""`sis guard`: a district's own thresholds, above which removals wait for a person.
What can be set is declared in roster.thresholds, keeping it is store.guarding's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import AsJson, RefusalError, emit, table

if TYPE_CHECKING:
    from rich.console import Console

    from sis_pipeline.roster.thresholds import Value
    from sis_pipeline.store.guarding import Guarding, Settings

app = typer.Typer(help="Thresholds above which removals wait for a person.", no_args_is_help=True)

District = Annotated[str, typer.Option(help="The district.")]
School = Annotated[str | None, typer.Option(help="Only for this school: its id, number or name.")]
Reason = Annotated[str, typer.Option(help="Why; it goes into the audit log.")]


@app.command()
def show(
    *,
    district: District,
    history: Annotated[bool, typer.Option("--history", help="Show who set what, and when.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show every threshold of a district, what is set for single schools, and the schools declared closed or new."""
    guard = _guard()
    settings, declared = guard.settings(district), guard.declarations(district)
    versions = guard.history(district) if history else []
    document = {"guard": _plain(settings), "declarations": declared}
    if history:
        document["history"] = [
            _plain(one) | {"set_by": one.set_by, "reason": one.reason, "set_at": one.set_at} for one in versions
        ]

    def render(console: Console) -> None:
        console.print(_thresholds(settings))
        own = [(school, name, value) for school, values in settings.schools.items() for name, value in values.items()]
        if own:
            console.print(
                table("Of single schools", ("school id", "threshold", "value"), [(s, n, str(v)) for s, n, v in own])
            )
        if declared:
            columns = ("school", "declared", "effective", "by", "because", "school id")
            cells = [(it.name, it.kind, it.effective, it.declared_by, it.reason, it.school_id) for it in declared]
            console.print(table("Schools declared, the newest first", columns, cells))
        if history:
            told = [(it.version, it.set_at, it.set_by, it.reason, _flat(it)) for it in versions]
            console.print(table("History", ("version", "at", "by", "because", "set"), told))

    emit(as_json, document, render)


@app.command("set")
def set_(
    values: Annotated[
        list[str], typer.Argument(metavar="NAME=VALUE...", help="As district_cap=400 or school_share=15%.")
    ],
    *,
    district: District,
    school: School = None,
    reason: Reason,
    as_json: AsJson = False,
) -> None:
    """Set thresholds of a district, or of one of its schools; the next merge goes by them."""
    from sis_pipeline.db.audit import current_actor

    given = _parsed(values, of_school=school is not None)
    _said(_guard().set(district, given, school=school, actor=current_actor(), reason=reason), as_json)


@app.command()
def reset(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="Only these; all where none is named.")
    ] = None,
    *,
    district: District,
    school: School = None,
    reason: Reason,
    as_json: AsJson = False,
) -> None:
    """Take thresholds back to the defaults: of a district with its schools, or of one school."""
    from sis_pipeline.db.audit import current_actor

    _said(_guard().reset(district, names or (), school=school, actor=current_actor(), reason=reason), as_json)


def _guard() -> Guarding:
    from sis_pipeline.store.guarding import Guarding

    return Guarding(Installation().engine)


def _parsed(values: list[str], *, of_school: bool) -> dict[str, Value]:
    from sis_pipeline.roster.thresholds import parse

    found = {}
    for given in values:
        name, equals, text = given.partition("=")
        if not equals:
            raise RefusalError(f"{given!r} is no NAME=VALUE.", "Write it as district_cap=400.")
        try:
            found[name] = parse(name, text, of_school=of_school)
        except ValueError as error:
            raise RefusalError(f"{error}.", "`sis guard show` lists the thresholds.") from None
    return found


def _said(settings: Settings, as_json: bool) -> None:
    emit(as_json, {"guard": _plain(settings)}, lambda console: console.print(_thresholds(settings)))


def _thresholds(settings: Settings) -> Any:
    from sis_pipeline.roster.thresholds import DEFAULTS, SETTINGS

    rows = [
        (
            name,
            str(settings.values.get(name, default)),
            str(default) if name in settings.values else "",
            SETTINGS[name].metadata["about"],
        )
        for name, default in DEFAULTS.items()
    ]
    title = f"Guard of {settings.district}, " + (
        f"version {settings.version}" if settings.version else "all by default"
    )
    return table(title, ("threshold", "value", "by default", "what it is"), rows, right=("value", "by default"))


def _plain(settings: Settings) -> dict[str, Any]:
    """Every threshold as it holds, and apart what is set."""
    from sis_pipeline.roster.thresholds import DEFAULTS

    return {
        "district": settings.district,
        "version": settings.version,
        "thresholds": DEFAULTS | dict(settings.values),
        "set": settings.values,
        "schools": settings.schools,
    }


def _flat(settings: Settings) -> str:
    own = [f"{name}={value}" for name, value in settings.values.items()]
    schools = [
        f"{school}: {name}={value}" for school, found in settings.schools.items() for name, value in found.items()
    ]
    return ", ".join([*own, *schools]) or "all by default"
