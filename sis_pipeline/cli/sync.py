"""`sis sync` and `sis backfill`: reading systems and merging what they gave, one child process per integration.
Only what was asked for is worked out here; `syncing` does it and reports, `dry_run` plans instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sis_pipeline.cli.dry_run import FIRST_ROWS, dry_run
from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import AsJson, ExitCode, RefusalError, complain, emit
from sis_pipeline.cli.syncing import Report, Syncing, Target, choose, known_year, prove_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sis_pipeline.store.integrations import Integration

Chosen = Annotated[
    list[str] | None,
    typer.Option(
        "--integration",
        metavar="KEY",
        help="Only this integration; may be repeated. All that are not paused otherwise.",
    ),
]
Parallel = Annotated[int, typer.Option(min=1, max=64, help="How many integrations are read at the same time.")]
NoMerge = Annotated[bool, typer.Option("--no-merge", help="Read only; the merge sensor or a later sync merges.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Publish nothing: show what the next publication would change. Plans from the newest good snapshots; "
        "nothing is read and nothing is written.",
    ),
]
Read = Annotated[
    bool,
    typer.Option(
        "--read",
        help="With --dry-run: read the systems first. What is read is kept, and the next merge publishes it, "
        "within seconds where `sis up` runs: stop that first to look before anything is published.",
    ),
]
Rows = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=10_000,
        help=f"With --dry-run: how many rows to show of each kind of change, by school and table; {FIRST_ROWS} otherwise.",
        show_default=False,
    ),
]


def sync(
    *,
    integration: Chosen = None,
    school_year: Annotated[
        str | None, typer.Option(metavar="YEAR", help="As 2025-2026; the current school year otherwise.")
    ] = None,
    parallel: Parallel = 4,
    no_merge: NoMerge = False,
    dry: DryRun = False,
    read: Read = False,
    rows: Rows = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Read everything, even where an integration's settings say `reads: delta`, and merge everything, even "
            "what did not change; the result of a merge is the same.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read the systems, validate, merge, publish: the real Dagster assets, recorded in the instance.

    A system that fails leaves the others alone; the merge goes on with its last good snapshot. A dry run ends with 0
    whether or not something would change, and whatever would be held.
    """
    _check_dry_run(dry=dry, read=read, rows=rows, no_merge=no_merge, full=full)
    here = Installation()
    year = known_year(here, school_year)
    if dry:
        reading = [Target(chosen, year) for chosen in choose(here, integration or [])] if read else []
        _plan(here, [year], integration or [], reading, parallel, rows=rows, full=full, as_json=as_json)
        return
    targets = [Target(chosen, year) for chosen in choose(here, integration or [])]
    _run(here, targets, parallel, merge=not no_merge, full=full, as_json=as_json)


def backfill(
    *,
    school_year: Annotated[
        list[str], typer.Option(metavar="YEAR", help="A school year, as 2023-2024; may be repeated.")
    ],
    integration: Chosen = None,
    parallel: Parallel = 4,
    no_merge: NoMerge = False,
    dry: DryRun = False,
    read: Read = False,
    rows: Rows = None,
    as_json: AsJson = False,
) -> None:
    """Read earlier school years, the oldest first, and merge each.

    Systems that show their active year only are left out, and named. A dry run plans each year by itself, on top of
    what is published now.
    """
    _check_dry_run(dry=dry, read=read, rows=rows, no_merge=no_merge)
    here = Installation()
    years = sorted({known_year(here, year) for year in school_year})
    if dry:
        reading = _of_years(here, choose(here, integration or []), years) if read else []
        _plan(here, years, integration or [], reading, parallel, rows=rows, full=False, as_json=as_json)
        return
    targets = _of_years(here, choose(here, integration or []), years)
    _run(here, targets, parallel, merge=not no_merge, as_json=as_json)


def _of_years(here: Installation, chosen: Sequence[Integration], years: Sequence[str]) -> list[Target]:
    current = known_year(here, None)
    past = {it.key for it in chosen if _has_past(it.provider, it.settings)}
    for left_out in (it.key for it in chosen if it.key not in past):
        complain(f"{left_out} shows its active school year only; earlier years of it are left out")
    return [Target(it, year) for it in chosen for year in years if it.key in past or year == current]


def _check_dry_run(*, dry: bool, read: bool, rows: int | None, no_merge: bool, full: bool = False) -> None:
    """Raises RefusalError for options that contradict each other or would do nothing."""
    if not dry and (read or rows is not None):
        raise RefusalError("--read and --rows are options of a dry run.", "Give --dry-run too, or leave them out.")
    if dry and no_merge:
        raise RefusalError("--dry-run never publishes, and without a merge there is no plan.", "Leave out --no-merge.")
    if dry and full and not read:
        raise RefusalError(
            "A dry run reads nothing by itself, and plans the same with --full as without.",
            "Give --read too, or leave it out.",
        )


def _plan(
    here: Installation,
    years: Sequence[str],
    integrations: Sequence[str],
    reading: list[Target],
    parallel: int,
    *,
    rows: int | None,
    full: bool,
    as_json: bool,
) -> None:
    report = _read(here, reading, parallel, merge=False, full=full) if reading else None
    found = dry_run(here, years, integrations, FIRST_ROWS if rows is None else rows, report)
    found.emit(as_json)
    if found.exit_code is not ExitCode.OK:
        raise typer.Exit(found.exit_code)


def _run(
    here: Installation, targets: list[Target], parallel: int, *, merge: bool, as_json: bool, full: bool = False
) -> None:
    report = _read(here, targets, parallel, merge=merge, full=full)
    emit(as_json, report.as_json(), report.print)
    if report.exit_code is not ExitCode.OK:
        raise typer.Exit(report.exit_code)


def _read(here: Installation, targets: list[Target], parallel: int, *, merge: bool, full: bool) -> Report:
    prove_keys(here)
    _note(here, targets)
    with Syncing(here, parallel) as syncing:
        return syncing.run(targets, merge=merge, full=full)


def _note(here: Installation, targets: list[Target]) -> None:
    """Who asked for these readings: what comes of each is noted when it ends."""
    from sis_pipeline.db import audit

    with here.engine.begin() as connection:
        audit.append_all(
            connection,
            (
                audit.Entry(
                    "sync.request", it.integration.key, it.integration.district, {"school_year": it.school_year}
                )
                for it in targets
            ),
        )


def _has_past(provider: str, settings: object) -> bool:
    from sis_pipeline.providers.registry import make

    return make(provider, dict(settings)).capabilities.historical_years  # type: ignore[call-overload]
