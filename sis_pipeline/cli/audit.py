"""`sis audit`: who did what, and the proof that nobody changed the record of it.
The log and its chains are `db.audit`'s, the heads kept outside the database `store.audit_heads`'."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.listings import Limit
from sis_pipeline.cli.output import AsJson, ExitCode, RefusalError, counted, emit, table

if TYPE_CHECKING:
    from rich.console import Console

    from sis_pipeline.db.audit import Chain

app = typer.Typer(help="The audit log: who did what, and that nobody changed it.", no_args_is_help=True)

District = Annotated[
    str | None, typer.Option(help="Only this district; * is what concerns the whole installation.")
]  # fmt: skip


@app.command()
def show(
    *,
    district: District = None,
    subject: Annotated[str | None, typer.Option(metavar="KEY", help="Only what was done to this: an integration, an operation, a hold.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action, or all of a family, as token.")] = None,
    since: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="Only what was done since (UTC)."),
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Show what was done, the newest first."""
    from sis_pipeline.db import audit

    with Installation().engine.connect() as connection:
        entries = audit.read(
            connection,
            district=district,
            subject=subject,
            action=action,
            since=since.replace(tzinfo=UTC) if since else None,
            limit=limit,
        )

    def render(console: Console) -> None:
        columns = ("entry", "at", "district", "actor", "action", "subject", "details")
        rows = [[entry[column] for column in columns] for entry in entries]
        more = f", the newest {limit:,} (--limit)" if len(entries) == limit else ""
        title = ("1 entry" if len(entries) == 1 else f"{len(entries):,} entries") + more
        console.print(table(title, columns, rows, right=("entry",)))

    emit(as_json, {"entries": entries}, render)


@app.command()
def verify(*, district: District = None, as_json: AsJson = False) -> None:
    """Prove that no entry was altered, deleted or slipped in; exit code 1, naming the first that was.

    Each district's entries are a hash chain. Its end is compared with the heads that `sis maintenance` keeps outside
    the database: without them a log that was cut short, or written anew as a whole, looks whole.
    """
    with _walked(district) as (chains, known):
        checked = list(chains)
    if district is not None and not (checked[0].links or checked[0].rows or checked[0].broken):
        raise RefusalError(f"The audit log has nothing of {district!r}.", "`sis audit show` names the districts.")
    broken = [chain for chain in checked if chain.broken]

    def render(console: Console) -> None:
        columns = ("district", "links", "entries", "known heads", "first broken")
        rows = [
            (it.district, it.links, it.rows, it.heads, it.broken.message if it.broken else "-")
            for it in (broken or checked)
        ]
        right = ("links", "entries", "known heads")
        console.print(table(_title(checked, broken, known), columns, rows, right=right))

    emit(as_json, {"whole": not broken, "known_heads": known, "chains": [asdict(chain) for chain in checked]}, render)
    if broken:
        raise typer.Exit(ExitCode.FAILED)


@contextmanager
def _walked(district: str | None) -> Iterator[tuple[Iterator[Chain], int]]:
    """The chains as they are walked, and how many heads were kept outside the database; those are read first, so that
    none is of a link that the walk can't see."""
    from sis_pipeline.db import audit
    from sis_pipeline.store import audit_heads
    from sis_pipeline.store.files import DataFolder

    here = Installation()
    heads = [it for it in audit_heads.known(DataFolder(here.settings.data_url)) if district in (None, it.district)]
    with audit.standing_still(here.engine) as connection:
        yield audit.verify(connection, district, heads), len(heads)


def _title(chains: list[Chain], broken: list[Chain], known: int) -> str:
    if broken:
        return f"BROKEN: {counted(len(broken), 'chain')} of {len(chains):,}"
    against = (
        f"checked against {counted(known, 'known head')}" if known else "no heads are kept yet: run sis maintenance"
    )
    return f"{counted(len(chains), 'chain')}, all whole; {against}"
