"""What `sync`, `backfill` and `demo` share: which integration is read for which year, fanning out, merging afterwards,
and the report of it all. The reading itself happens in `worker`, in child processes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from sis_pipeline.cli.fanout import Event, FanOut, Job, OnEvent, Outcome
from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import ExitCode, RefusalError
from sis_pipeline.cli.progress import progress

if TYPE_CHECKING:
    from rich.console import Console

    from sis_pipeline.store.integrations import Integration

PREPARE = "prepare"
MERGER = "merge"
"""The child that merges; it starts with the syncs, so that its imports cost no time of their own."""


@dataclass(frozen=True)
class Target:
    """One reading: an integration and a school year's key."""

    integration: Integration
    school_year: str


@dataclass
class Report:
    """What syncs and merges gave, as `--json` prints it."""

    integrations: list[dict[str, Any]] = field(default_factory=list)
    merges: list[dict[str, Any]] = field(default_factory=list)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    """What the merges rest on: per school year and integration the last good snapshot and its age."""
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return any(entry["error"] for entry in (*self.integrations, *self.merges))

    @property
    def held(self) -> int:
        """Holds that wait for a person."""
        return sum(int(entry.get("open_holds") or 0) for entry in self.merges)

    @property
    def exit_code(self) -> ExitCode:
        if self.failed:
            return ExitCode.FAILED
        return ExitCode.PERSON if self.held else ExitCode.OK

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": not self.failed,
            "integrations": self.integrations,
            "merges": self.merges,
            "inputs": self.inputs,
            "seconds": round(self.seconds, 1),
        }

    def print(self, console: Console) -> None:
        from sis_pipeline.cli.output import table

        columns = (
            "integration",
            "year",
            "verdict",
            "students",
            "section\nenrollments",
            "quarantined",
            "calls",
            "s",
        )
        rows = [
            (
                entry["integration"],
                entry["school_year"],
                entry["verdict"] or "failed",
                entry["rows"].get("students"),
                entry["rows"].get("section_enrollments"),
                sum(entry["quarantined"].values()),
                entry["api_calls"],
                entry["seconds"],
            )
            for entry in self.integrations
        ]
        console.print(table("Syncs", columns, rows, right=columns[3:]))
        if self.merges:
            titles = ("district", "year", "students", "matched", "conflicts", "changes", "applied", "held")
            facts = [[entry.get(name) for name in ("district", "school_year", *titles[2:6])] for entry in self.merges]
            cells = [[*row, written(entry), entry.get("held")] for row, entry in zip(facts, self.merges, strict=True)]
            console.print(table("Merges", titles, cells, right=("students", "matched", "conflicts", "applied", "held")))
        for entry in self.merges:
            if entry.get("left_out"):
                left_out = f"{entry['district']}: what {', '.join(entry['left_out'])} says was undone; it is left out until it changes."
                console.print(left_out, markup=False)
        self.print_errors(console)
        aged = [entry for entry in self.inputs if not entry["fresh"] or entry["status"] != "healthy"]
        if aged:
            names = ("integration", "school_year", "verdict", "age_hours", "status", "reason")
            titled = ("integration", "year", "verdict", "age in hours", "status", "why")
            lines = [[entry[name] for name in names] for entry in aged]
            console.print(table("Last good snapshots that others are merged with", titled, lines, right=titled[3:4]))
        if self.held:
            console.print("Removals are held: `sis holds list` shows them.")

    def print_errors(self, console: Console) -> None:
        for entry in (*self.integrations, *self.merges):
            if entry["error"]:
                who = entry.get("integration") or entry["district"] or "merge"
                sentence = f"{who}: {entry['error']['message']} {entry['error']['advice']}"
                console.print(sentence, markup=False, style="red")


def written(merge: Mapping[str, Any]) -> int:
    """Rows that a merge wrote or deleted, over all tables."""
    return sum(
        count for table in (merge.get("applied") or {}).values() for what, count in table.items() if what != "unchanged"
    )


class Syncing:
    """Rounds of syncs and merges in children, with progress; leaving the block ends the children.

    The child that merges also prepares: it makes Dagster's home and storage, alone, before others use them, and closes
    the runs that killed processes left open.
    """

    def __init__(self, here: Installation, parallel: int, notes: list[str] | None = None) -> None:
        """`notes` collects what the plans of the readings say, as `integration: note`."""
        self._here, self._parallel, self._notes = here, parallel, notes
        self._prepared = False
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        shown = progress()
        self._stack.enter_context(shown)
        logs = self._here.settings.root / "logs"
        self._fan = self._stack.enter_context(FanOut(logs, self._noting(shown), self._parallel))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    def _noting(self, shown: OnEvent) -> OnEvent:
        def tell(name: str, event: Event) -> None:
            if event.get("kind") != PREPARE:
                shown(name, event)
            if self._notes is not None:
                self._notes += [
                    line for note in event.get("notes", ()) if (line := f"{name}: {note}") not in self._notes
                ]

        return tell

    def run(self, targets: Sequence[Target], *, merge: bool = True, keep: bool = False, full: bool = False) -> Report:
        """Sync every target, then merge the school years of those that succeeded. `keep` leaves the children up; `full`
        reads and merges everything, even where settings ask for changes only and where nothing changed."""
        report, began = Report(), time.monotonic()
        about = {target.integration.key: target.integration for target in targets}
        for name in [MERGER, *list(about)[: self._parallel]]:
            self._fan.warm(name)
        if not self._prepared:
            self._prepare()
        jobs = [
            Job(
                it.integration.key,
                "sync",
                {"integration": it.integration.key, "school_year": it.school_year, "full": full},
            )
            for it in targets
        ]
        report.integrations = [_sync_entry(outcome, about) for outcome in self._fan.run(jobs, keep=keep)]
        order = {(target.integration.key, target.school_year): place for place, target in enumerate(targets)}
        report.integrations.sort(key=lambda entry: order[entry["integration"], entry["school_year"]])
        if merge:
            report.merges = self._merge(
                sorted({entry["school_year"] for entry in report.integrations if not entry["error"]}), full=full
            )
        report.inputs = inputs_of_merges(self._here, sorted({target.school_year for target in targets}))
        if any(entry["error"] and entry["error"].get("died") for entry in (*report.integrations, *report.merges)):
            self._prepare()
        report.seconds = time.monotonic() - began
        return report

    def _prepare(self) -> None:
        (outcome,) = self._fan.run([Job(MERGER, PREPARE, {})], keep=True)
        if outcome.error:
            error = outcome.error
            raise RefusalError(error["message"], error["advice"], ExitCode.CONFIG, error["code"])
        self._prepared = True

    def _merge(self, years: Sequence[str], *, full: bool) -> list[dict[str, Any]]:
        jobs = [Job(MERGER, "merge", {"school_year": year, "full": full}) for year in years]
        outcomes = self._fan.run(jobs, keep=True)
        return [entry for outcome in outcomes for entry in _merge_entries(outcome, self._here)]


def _sync_entry(outcome: Outcome, about: Mapping[str, Integration]) -> dict[str, Any]:
    arguments, result = outcome.job.arguments, outcome.result or {}
    integration = about[arguments["integration"]]
    return {
        "integration": integration.key,
        "provider": integration.provider,
        "district": integration.district,
        "school_year": arguments["school_year"],
        "verdict": result.get("verdict"),
        "rows": dict(result.get("rows") or {}),
        "quarantined": dict(result.get("quarantined") or {}),
        "unknown_codes": dict(result.get("unknown_codes") or {}),
        "api_calls": result.get("api_calls"),
        "seconds": result.get("seconds"),
        "run_id": result.get("run_id"),
        "error": outcome.error or result.get("error"),
    }


def _merge_entries(outcome: Outcome, here: Installation) -> list[dict[str, Any]]:
    """One entry per district; a merge that failed as a whole is one entry without a district."""
    year, result = outcome.job.arguments["school_year"], outcome.result or {}
    error, districts = outcome.error or result.get("error"), result.get("districts", ())
    entries = [{"school_year": year, "run_id": result["run_id"], **_merge_entry(entry, here)} for entry in districts]
    if error and not any(entry["error"] for entry in entries):
        entries.append({"district": None, "school_year": year, "run_id": result.get("run_id"), "error": error})
    return entries


def _merge_entry(summary: Mapping[str, Any], here: Installation) -> dict[str, Any]:
    """A district's summary, with what was written by table."""
    kept = {name: value for name, value in summary.items() if name != "integrations"}
    return {**kept, "applied": _applied(here, summary["operation_id"]) if summary["published"] else {}}


def inputs_of_merges(here: Installation, years: Sequence[str]) -> list[dict[str, Any]]:
    """What merges of the school years rest on: per integration the last good snapshot and its age."""
    from sis_pipeline.roster.school_year import SchoolYear
    from sis_pipeline.store.freshness import inputs_of
    from sis_pipeline.store.snapshots import SnapshotStore

    settings, snapshots = here.settings, SnapshotStore(here.engine, here.settings.data_url)
    current = SchoolYear.parse(known_year(here, None))
    return [
        {"school_year": year, **one.as_json()}
        for year in years
        for one in inputs_of(
            here.integrations, snapshots, SchoolYear.parse(year), current=current, fresh_hours=settings.fresh_hours
        )
    ]


def _applied(here: Installation, operation_id: str) -> dict[str, dict[str, int]]:
    from sqlalchemy import select

    from sis_pipeline.db.tables import sync_operations

    told = select(sync_operations.c.summary).where(sync_operations.c.operation_id == operation_id)
    with here.engine.connect() as connection:
        return dict((connection.scalar(told) or {}).get("applied", {}))


def choose(here: Installation, keys: Sequence[str]) -> list[Integration]:
    """The named integrations, or all that are not paused. Raises RefusalError where that is none."""
    if keys:
        chosen = [here.integrations.get(key) for key in dict.fromkeys(keys)]
        paused = [integration.key for integration in chosen if integration.paused]
        if paused:
            raise RefusalError(
                f"{', '.join(paused)} is paused.",
                f"Run `sis integration resume {paused[0]}` first.",
                ExitCode.CONFIG,
                "config",
            )
        return chosen
    found = here.integrations.list(include_paused=False)
    if not found:
        raise RefusalError(
            "There is no integration to sync.",
            "Add one with `sis integration add`, or try `sis demo`.",
            ExitCode.CONFIG,
            "config",
        )
    return found


def prove_keys(here: Installation) -> None:
    """Fail now, once and in words, rather than in every child: stored secrets need their key."""
    from sqlalchemy import select

    from sis_pipeline.db.tables import oauth_tokens

    with here.engine.connect() as connection:
        stored = connection.scalar(select(oauth_tokens.c.integration).limit(1))
    if stored is not None:
        here.vault  # noqa: B018 opening it proves the keys


def known_year(here: Installation, key: str | None) -> str:
    """The school year's key, the current one where None. Raises RefusalError for one that can't be loaded."""
    from datetime import datetime
    from zoneinfo import ZoneInfo

    from sis_pipeline.cli.listings import valid_year
    from sis_pipeline.roster.school_year import SchoolYear, school_years

    today = datetime.now(ZoneInfo(here.settings.time_zone)).date()
    if key is None:
        return SchoolYear.on(today).key
    known = [year.key for year in school_years(here.settings.first_school_year, today)]
    if valid_year(key) not in known:
        raise RefusalError(
            f"School year {key} can't be loaded: {known[0]} to {known[-1]} can.",
            "SIS_FIRST_SCHOOL_YEAR sets the first.",
        )
    return key
