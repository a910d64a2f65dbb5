"""`sis sync` and `sis backfill`: reading systems and merging what they gave, one child process per integration.
Only what was asked for is worked out here; `syncing` does it and reports."""

from __future__ import annotations

from typing import Annotated

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import AsJson, ExitCode, complain, emit
from sis_pipeline.cli.syncing import Syncing, Target, choose, known_year, prove_keys

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


def sync(
    *,
    integration: Chosen = None,
    school_year: Annotated[
        str | None, typer.Option(metavar="YEAR", help="As 2025-2026; the current school year otherwise.")
    ] = None,
    parallel: Parallel = 4,
    no_merge: NoMerge = False,
    full: Annotated[
        bool, typer.Option("--full", help="Read everything, even where an integration's settings say `reads: delta`.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read the systems, validate, merge, publish: the real Dagster assets, recorded in the instance.

    A system that fails leaves the others alone; the merge goes on with its last good snapshot.
    """
    here = Installation()
    year = known_year(here, school_year)
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
    as_json: AsJson = False,
) -> None:
    """Read earlier school years, the oldest first, and merge each.

    Systems that show their active year only are left out, and named.
    """
    here = Installation()
    years = sorted({known_year(here, year) for year in school_year})
    current = known_year(here, None)
    chosen = choose(here, integration or [])
    past = {it.key for it in chosen if _has_past(it.provider, it.settings)}
    for left_out in (it.key for it in chosen if it.key not in past):
        complain(f"{left_out} shows its active school year only; earlier years of it are left out")
    targets = [Target(it, year) for it in chosen for year in years if it.key in past or year == current]
    _run(here, targets, parallel, merge=not no_merge, as_json=as_json)


def _run(
    here: Installation, targets: list[Target], parallel: int, *, merge: bool, as_json: bool, full: bool = False
) -> None:
    prove_keys(here)
    _note(here, targets)
    with Syncing(here, parallel) as syncing:
        report = syncing.run(targets, merge=merge, full=full)
    emit(as_json, report.as_json(), report.print)
    if report.exit_code is not ExitCode.OK:
        raise typer.Exit(report.exit_code)


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
