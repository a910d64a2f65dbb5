"""`sis operations` and `sis undo`: what was published, and putting the roster back to what it was before.
What an operation is told as is store.operations', what undoing one means store.undo's."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.listings import District, Limit, Year, valid_year
from sis_pipeline.cli.output import AsJson, RefusalError, console, counted, emit, table

if TYPE_CHECKING:
    from rich.console import Console

    from sis_pipeline.store.operations import Detail, Told
    from sis_pipeline.store.undo import Undoing, Undone

app = typer.Typer(help="What was published, when, by whom, and what it changed.", no_args_is_help=True)

OperationId = Annotated[str, typer.Argument(metavar="OPERATION", help="Its id, from `sis operations list`.")]


@app.command("list")
def list_(
    *,
    district: District = None,
    school_year: Year = None,
    unpublished: Annotated[
        bool, typer.Option("--all", help="Also merges that were not published: failed, overtaken or under way.")
    ] = False,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List publications, the newest first: when, by whom, and what each changed."""
    from sis_pipeline.store.operations import Operations

    told, total = Operations(Installation().engine).list(
        district, valid_year(school_year), unpublished=unpublished, limit=limit
    )

    def render(shown: Console) -> None:
        columns = ("operation", "district", "year", "published", "by", "status", "rows", "ledger", "held")
        rows = [
            (it.operation_id, it.district, it.school_year, it.published_at, it.actor, _status(it), _rows(it.applied), it.changes, it.held)
            for it in told
        ]  # fmt: skip
        title = counted(total, "operation") + (f", {len(told):,} shown (--limit)" if len(told) < total else "")
        shown.print(table(title, columns, rows, right=("held",)))
        if told:
            shown.print("More: sis operations show OPERATION. Put back: sis undo OPERATION --reason … --dry-run")

    emit(as_json, {"operations": [asdict(it) for it in told], "total": total}, render)


@app.command()
def show(operation: OperationId, *, as_json: AsJson = False) -> None:
    """Show an operation: rows per table, ledger events per kind and school, holds, conflicts, and what it was made from."""
    from sis_pipeline.store.operations import Operations

    detail = Operations(Installation().engine).show(operation)
    emit(as_json, _document(detail), lambda shown: _render(shown, detail))


def undo(
    operation: OperationId,
    *,
    reason: Annotated[str, typer.Option(help="Why; it goes into the audit log.")],
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what it would change.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a district's roster of a school year back to what it was before a publication.

    It shows what it would change and asks first. The undo is a publication of its own: the tables are as they were, each
    event that the operation wrote into the ledger gets one that takes it back, and what it held or let through waits
    again. Only the last publication that stands can be undone, then the one before it. An undo is undone like any other.

    The snapshots that the operation brought in are left out of every merge until their integration delivers something
    else. Decisions of persons, about holds and about who is who, stand: take those back by themselves.
    """
    from sis_pipeline.db.audit import current_actor

    if dry_run and yes:
        raise RefusalError("--dry-run changes nothing; --yes does.", "Leave one of them out.")
    undoing = _undoing()
    if dry_run or not yes:
        plan = undoing.plan(operation)
        if dry_run:
            emit(as_json, _undone(plan), lambda shown: _said(shown, plan))
            return
        if not as_json:
            _said(console(), plan)
        _confirm()
    done = undoing.undo(operation, current_actor(), reason)
    emit(as_json, _undone(done), lambda shown: _said(shown, done))


def _undoing() -> Undoing:
    from sis_pipeline.store.merged import MergeStore
    from sis_pipeline.store.snapshots import SnapshotStore
    from sis_pipeline.store.undo import Undoing

    here = Installation()
    return Undoing(here.engine, MergeStore(here.engine, SnapshotStore(here.engine, here.settings.data_url)))


def _confirm() -> None:
    if not sys.stdin.isatty():
        raise RefusalError("Nothing was undone: that needs a confirmation.", "Add --yes, or --dry-run to only look.")
    typer.confirm("Undo it?", abort=True, err=True)


def _said(shown: Console, undone: Undone) -> None:
    step, published = undone.step, undone.published
    of = f"operation {step.undone.operation_id} of {step.undone.district}, {step.undone.school_year}"
    done = undone.operation_id is not None
    shown.print(
        f"Operation {undone.operation_id} undid {of}." if done else f"This would undo {of}:",
        style="bold",
        markup=False,
    )
    shown.print(_tables({name: asdict(one) for name, one in published.applied.items()}))
    shown.print(_counts("Ledger events", "kind", published.changes))
    if published.accounts:
        shown.print(_counts("Accounts", "what", published.accounts, "accounts"))
    held = f"{counted(published.held, 'removal')} {'wait' if done else 'would wait'} for a person."
    shown.print(held, markup=False)
    if undone.withheld:
        verb = "is" if done else "would be"
        named = ", ".join(undone.withheld)
        shown.print(f"What {named} says {verb} left out until it says something else.", markup=False)


def _undone(undone: Undone) -> dict[str, Any]:
    return {
        "undone": undone.operation_id is not None,
        "operation_id": undone.operation_id,
        "undoes": undone.step.undone.operation_id,
        "back_to": undone.step.before.operation_id,
        "district": undone.step.undone.district,
        "school_year": undone.step.undone.school_year,
        "applied": {name: asdict(one) for name, one in undone.published.applied.items()},
        "changes": undone.published.changes,
        "accounts": undone.published.accounts,
        "held": undone.published.held,
        "withheld": undone.withheld,
    }


def _document(detail: Detail) -> dict[str, Any]:
    shown = asdict(detail)
    return {"operation": shown.pop("operation"), **shown}


def _render(shown: Console, detail: Detail) -> None:
    it = detail.operation
    shown.print(
        f"Operation {it.operation_id} of {it.district}, {it.school_year}: {_status(it)}", style="bold", markup=False
    )
    facts = [
        ("started", it.started_at), ("published", it.published_at), ("by", it.actor), ("because", it.reason),
        ("Dagster run", it.run_id), ("epoch", it.epoch), ("superseded by", it.superseded_by), ("because", it.why_superseded),
        ("held back removals", it.held), ("merged", it.way), ("accounts", it.accounts or None), ("left out, as undone", list(it.withheld) or None),
        *((f"holds {what}", list(ids)) for what, ids in detail.holds.items() if ids),
        *((f"conflicts {what}", count) for what, count in detail.conflicts.items() if count),
    ]  # fmt: skip
    shown.print(table(None, ("fact", ""), [fact for fact in facts if fact[1] is not None]))
    if it.details_expired_at:
        since = f"{it.details_expired_at:%Y-%m-%d}"
        shown.print(
            f"Which rows it wrote, and what it was merged from, is no longer kept, since {since}.", markup=False
        )
    shown.print(_tables(it.applied))
    events = [(one.kind, one.school, one.events, one.school_id) for one in detail.ledger]
    shown.print(table("Ledger events", ("kind", "school", "events", "school id"), events, right=("events",)))
    inputs = [
        (key, read["snapshot_id"], read["verdict"], read.get("started_at")) for key, read in sorted(it.inputs.items())
    ]
    shown.print(table("Merged from", ("integration", "snapshot", "verdict", "begun"), inputs))


def _tables(applied: Mapping[str, Mapping[str, int]]) -> Any:
    columns = ("inserted", "updated", "deleted", "unchanged")
    rows = [(name, *(counts[column] for column in columns)) for name, counts in applied.items() if any(counts.values())]
    return table("Rows", ("table", *columns), rows, right=columns)


def _counts(title: str, what: str, counts: Mapping[str, int], noun: str = "events") -> Any:
    return table(title, (what, noun), list(counts.items()), right=(noun,))


def _rows(applied: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Rows written, per table that was."""
    written = {name: sum(counts.values()) - counts["unchanged"] for name, counts in applied.items()}
    return {name: rows for name, rows in written.items() if rows}


def _status(told: Told) -> str:
    """The status, and the other operation that it is about."""
    about = f", undoes {told.undoes}" if told.undoes else ""
    return f"{told.status}{f' by {told.undone_by}' if told.undone_by else ''}{about}"
