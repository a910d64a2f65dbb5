"""`sis health`: what is wrong right now and what to do about it, and a person's two ways to try again at once.
What is wrong is worked out by store.health; whether this machine is fit to work at all is `sis doctor`'s business."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import AsJson, ExitCode, RefusalError, counted, emit, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from sis_pipeline.store.health import Health, IntegrationHealth

app = typer.Typer(invoke_without_command=True)

Key = Annotated[str | None, typer.Argument(metavar="KEY", help="The integration's key.")]
All = Annotated[bool, typer.Option("--all", help="Those of every integration.")]


@app.callback()
def health(context: typer.Context, *, as_json: AsJson = False) -> None:
    """What is wrong right now, and what to do: integrations, data, tokens, breakers, limits, holds, erasures.

    Exit code 5 where something waits for a person; what is expected to pass by itself leaves it at 0.
    """
    if context.invoked_subcommand is not None:
        return
    found = _look(Installation())
    emit(as_json, _document(found), lambda console: _print(console, found))
    if found.needs_a_person:
        raise typer.Exit(ExitCode.PERSON)


@app.command("reset-breaker")
def reset_breaker(key: Key = None, *, everything: All = False, as_json: AsJson = False) -> None:
    """Call a system again at once that is left alone because it failed too often. Recorded in the audit log."""
    from sis_pipeline.store.health import reset_breakers

    done = reset_breakers(Installation().engine, _chosen(key, everything=everything))
    words = f"Closed: {', '.join(done)}." if done else "Nothing was left alone."
    emit(as_json, {"reset": done}, lambda console: console.print(words, markup=False))


@app.command("reset-limit")
def reset_limit(key: Key = None, *, everything: All = False, as_json: AsJson = False) -> None:
    """Call a system again at once that asked to wait; it may ask again. Recorded in the audit log."""
    from sis_pipeline.store.health import reset_limits

    done = reset_limits(Installation().engine, _chosen(key, everything=everything))
    words = f"Nobody waits any longer for: {', '.join(done)}." if done else "Nobody was waiting."
    emit(as_json, {"reset": done}, lambda console: console.print(words, markup=False))


def _chosen(key: str | None, *, everything: bool) -> str | None:
    if (key is None) != everything:
        raise RefusalError("Name one integration, or give --all.", "`sis health` shows what is left alone or waits.")
    return key


def _look(here: Installation) -> Health:
    """Nothing is migrated here: loading what migrates takes as long as all the rest."""
    from zoneinfo import ZoneInfo

    from sis_pipeline.db.engine import open_database
    from sis_pipeline.roster.school_year import SchoolYear
    from sis_pipeline.store.health import database_now, examine

    engine = open_database(here.settings)
    with engine.connect() as connection:
        today = database_now(connection).astimezone(ZoneInfo(here.settings.time_zone)).date()
        return examine(connection, SchoolYear.on(today).key)


def _document(found: Health) -> dict[str, Any]:
    document = asdict(found)
    for one in document["integrations"]:
        age = one.pop("data_age")
        one["data_age_hours"] = None if age is None else round(age.total_seconds() / 3600, 2)
    return {"ok": not found.needs_a_person, **document}


def _print(console: Console, found: Health) -> None:
    from rich.text import Text

    rows = [
        (Text("needs you" if it.person else "passing", "red" if it.person else "yellow"), it.subject, it.message, it.advice)
        for it in found.problems
    ]  # fmt: skip
    if rows:
        console.print(table(counted(len(rows), "problem"), ("", "where", "what is wrong", "what to do"), rows))
    else:
        console.print("Nothing is wrong.")
    columns = (
        "integration",
        "status",
        "data",
        "age",
        "last good sync",
        "reading",
        "calls 24 h",
        "failed",
        "p50 ms",
        "p95 ms",
    )
    right = ("age", "calls 24 h", "failed", "p50 ms", "p95 ms")
    title = f"{counted(len(found.integrations), 'integration')}, school year {found.school_year}"
    console.print(table(title, columns, [_row(it) for it in found.integrations], right=right))


def _row(it: IntegrationHealth) -> Sequence[object]:
    from sis_pipeline.store.health import NEWEST

    share = None if it.error_share is None else f"{it.error_share:.1%}"
    going = ", ".join(f"{reading.school_year}: {reading.pages} pages" for reading in it.readings if reading.going)
    calls = f"{it.calls:,}+" if it.calls >= NEWEST else it.calls
    return (it.key, it.status, it.verdict or "none yet", _age(it.data_age), it.last_success_at, going, calls, share, it.p50_ms, it.p95_ms)  # fmt: skip


def _age(age: timedelta | None) -> str:
    """`40 min`, `7 h`, `3 days`."""
    if age is None:
        return ""
    hours = age.total_seconds() / 3600
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} days"
