"""The `sis` command: its tree of subcommands and global options. Each subcommand lives in a module of its own."""

from __future__ import annotations

import gc
from typing import Annotated

import typer

from sis_pipeline.cli import (
    accounts,
    audit,
    database,
    demo,
    disclosing,
    doctor,
    enrollments,
    erasing,
    exports,
    guard,
    health,
    holds,
    integrations,
    keys,
    links,
    listings,
    maintenance,
    oauth,
    operations,
    policy,
    providers,
    sandbox,
    schools,
    students,
    sync,
    tokens,
    transfers,
    up,
)
from sis_pipeline.cli.boundary import SisGroup
from sis_pipeline.cli.output import EXIT_CODES, AsJson, Mode, emit

EPILOG = "Exit codes: " + "; ".join(f"{code.value} {meaning}" for code, meaning in EXIT_CODES.items()) + "."

app = typer.Typer(
    name="sis",
    cls=SisGroup,
    help="Self-hosted school roster pipeline: pull, validate, merge and explain student rosters.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback when something fails.")] = False,
) -> None:
    context.ensure_object(Mode).debug = debug


@app.command()
def version(*, as_json: AsJson = False) -> None:
    """Print the version."""
    from sis_pipeline import __version__

    emit(as_json, {"version": __version__}, lambda console: console.print(f"sis_pipeline {__version__}"))


app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)
app.command("up")(up.up)
app.command("providers")(providers.providers)
app.command("sync")(sync.sync)
app.command("backfill")(sync.backfill)
app.command("maintenance")(maintenance.maintenance)
app.command("undo")(operations.undo)
app.command("erase")(erasing.erase)
app.command("disclosure")(disclosing.disclosure)
app.add_typer(health.app, name="health")
app.add_typer(keys.app, name="keys")
app.add_typer(integrations.app, name="integration")
app.add_typer(oauth.app, name="oauth")
app.add_typer(tokens.app, name="tokens")
app.add_typer(students.app, name="students")
app.add_typer(enrollments.app, name="enrollments")
app.add_typer(listings.conflicts_app, name="conflicts")
app.add_typer(listings.changes_app, name="changes")
app.add_typer(transfers.app, name="transfers")
app.add_typer(accounts.app, name="accounts")
app.add_typer(holds.app, name="holds")
app.add_typer(operations.app, name="operations")
app.add_typer(exports.app, name="export")
app.add_typer(links.app, name="links")
app.add_typer(guard.app, name="guard")
app.add_typer(policy.app, name="policy")
app.add_typer(schools.app, name="school")
app.add_typer(audit.app, name="audit")
app.add_typer(database.app, name="db")
app.add_typer(sandbox.app, name="sandbox")


def main() -> None:
    # Loading modules makes 300,000 objects that stay; looking through them again and again takes a tenth of a command.
    gc.set_threshold(100_000)
    app()
