"""`sis demo`: two days of an invented district, from five systems at their vendors' true rate limits, to a merged
roster; and whether what came out equals what the sandbox knows to be true. Everything real but the people."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import typer

from sis_pipeline.cli import sandbox
from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import AsJson, ExitCode, RefusalError, console, emit, table
from sis_pipeline.cli.syncing import Report, Syncing, Target
from sis_pipeline.cli.up import make_key_once

if TYPE_CHECKING:
    from rich.console import Console

    from sis_pipeline.sandbox.server import SandboxServer
    from sis_pipeline.sandbox.truth import Truth
    from sis_pipeline.sandbox.world import World
    from sis_pipeline.store.integrations import Integration

LAST_DAY = 2
DISTRICT = "fernhollow"
SETTLED = timedelta(days=14)
"""How long a school year runs before the demo takes it for the present one."""
DAY_SEEN = "demo.day"
"""The audit entry that remembers how far this database has come."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Seen:
    """How far the demo has come in a database: the last day that was merged, and the calendar of its world."""

    day: int
    first_day: date
    school_year: str
    at: datetime


@dataclass
class Overview:
    """What the demo shows at its end; every row of `systems`, `merged` and `changes` says whether it is true.

    `comparable`: outside the school year absences are dated too late to be true, so nothing is claimed then.
    """

    day: int
    comparable: bool = True
    days_synced: list[int] = field(default_factory=list)
    limits: list[dict[str, Any]] = field(default_factory=list)
    systems: list[dict[str, Any]] = field(default_factory=list)
    merged: list[dict[str, Any]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def equal(self) -> bool:
        return all(row["equal"] for row in (*self.systems, *self.merged, *self.changes))

    @property
    def ok(self) -> bool:
        return (self.equal or not self.comparable) and all(run["ok"] for run in self.runs)


def demo(*, port: sandbox.Port = sandbox.PORT, as_json: AsJson = False) -> None:
    """Pull, merge and explain an invented district's roster from five systems over two days (about two minutes).

    Run again, it syncs the last day once more, finds no change, and shows the same overview.
    """
    here = Installation()
    speak = console(stderr=True)

    def say(line: str) -> None:
        speak.print(line, markup=False)

    say("Opening the database" + (" (embedded PostgreSQL)." if here.settings.database_url is None else "."))
    make_key_once(here, say)
    here.vault  # noqa: B018 opening it proves the key
    world = demo_world(remembered(here, DISTRICT), datetime.now(UTC).date())
    overview = run_demo(here, world, port=port, say=say)
    document = {"ok": overview.ok, "equal": overview.equal, **vars(overview)}
    emit(as_json, document, lambda out: print_overview(out, overview))
    if not overview.ok:
        raise typer.Exit(ExitCode.FAILED)


def demo_world(seen: Seen | None, today: date) -> World:
    """The demo's district. Its second day is today, because absences are dated by the day on which they are seen.

    In summer, when nobody attends, it is the end of the school year before. A database that has seen the demo keeps
    the calendar of its first time.
    """
    from sis_pipeline.roster.school_year import SchoolYear
    from sis_pipeline.sandbox.school_calendar import term

    if seen is not None:
        return _world(seen.first_day, seen.school_year)
    year = SchoolYear.on(today)
    session = term(year.start, "Y")
    if today < session.begin + SETTLED:
        year = SchoolYear(year.start - 1)
        session = term(year.start, "Y")
    return _world(min(today, session.end - timedelta(days=2)) - timedelta(days=1), year.key)


def _world(first_day: date, school_year: str) -> World:
    from sis_pipeline.sandbox.world import World

    return World(
        seed=sandbox.SEED, students=sandbox.STUDENTS, district=DISTRICT, school_year=school_year, first_day=first_day
    )


def as_left(here: Installation) -> tuple[World, int, int]:
    """The demo's world, its last day, and the port at which its integrations expect it. Raises RefusalError if never run."""
    seen = remembered(here, DISTRICT)
    if seen is None:
        raise RefusalError("The demo was not run in this database yet.", "Run `sis demo` first.")
    urls = [
        str(it.settings["base_url"]) for it in here.integrations.list(district=DISTRICT) if "base_url" in it.settings
    ]
    ports = {urlsplit(url).port for url in urls} - {None}
    return _world(seen.first_day, seen.school_year), seen.day, ports.pop() or sandbox.PORT if ports else sandbox.PORT


def run_demo(here: Installation, world: World, *, port: int, say: Say, rate_scale: float = 1.0) -> Overview:
    """Serve the world, add its systems, sync the days that this database has not seen (or the last one again)."""
    began = time.monotonic()
    seen = remembered(here, world.district)
    days = list(range(seen.day + 1 if seen else 1, LAST_DAY + 1)) or [LAST_DAY]
    overview = Overview(day=LAST_DAY, days_synced=days)
    with serve(here, world, port, rate_scale, days[0]) as server:
        say(f"The sandbox serves {len(world.systems)} systems of district {world.district} at {server.url}.")
        targets = add_systems(here, server, rate_scale)
        with Syncing(here, parallel=len(targets), notes=overview.notes) as syncing:
            for day in days:
                server.set_day(day)
                say(f"Day {day} ({world.date(day):%B %d}): reading {len(targets)} systems.")
                report = syncing.run(targets, keep=True)
                overview.runs.append({"day": day, **report.as_json()})
                if report.failed:
                    break
                remember_day(here, world, day)
        fill_overview(here, overview, server, targets)
    overview.seconds = round(time.monotonic() - began, 1)
    return overview


def serve(here: Installation, world: World, port: int, rate_scale: float, day: int) -> SandboxServer:
    """The sandbox on its usual port, or on a free one where that is taken."""
    folder = sandbox.csv_folder(here)
    try:
        return sandbox.listen(world, port, folder, rate_scale=rate_scale, day=day)
    except RefusalError:
        return sandbox.listen(world, 0, folder, rate_scale=rate_scale, day=day)


def add_systems(here: Installation, server: SandboxServer, rate_scale: float) -> list[Target]:
    """Add the systems as integrations, in order of priority, or bring them up to date."""
    from sis_pipeline.cli.integrations import save, validated

    world, targets = server.world, []
    known = {integration.key: integration for integration in here.integrations.list()}
    for place, system in enumerate(sandbox.describe(server, sandbox.csv_folder(here), rate_scale)):
        _not_somebody_elses(known.get(system["name"]), world.district)
        settings, _ = validated(system["provider"], system["settings"])
        save(
            here,
            key=system["name"],
            provider=system["provider"],
            district=world.district,
            settings=settings,
            organisations={},
            priority=10 * (place + 1),
            secret=system["client_secret"],
            replace=system["name"] in known,
        )
        targets.append(Target(here.integrations.get(system["name"]), world.school_year))
    return targets


def _not_somebody_elses(found: Integration | None, district: str) -> None:
    if found is not None and found.district != district:
        raise RefusalError(
            f"Integration {found.key} exists already and is district {found.district}'s; the demo leaves it alone.",
            "Run the demo in a home of its own: SIS_HOME=demo-home sis demo.",
            ExitCode.CONFIG,
            "config",
        )


def remembered(here: Installation, district: str) -> Seen | None:
    """How far this database has come with the demo; None where it has not begun."""
    from sqlalchemy import select

    from sis_pipeline.db.tables import audit_log

    entries = select(audit_log.c.details, audit_log.c.at).where(
        audit_log.c.action == DAY_SEEN, audit_log.c.district == district
    )
    with here.engine.connect() as connection:
        found = [
            Seen(details["day"], date.fromisoformat(details["first_day"]), details["school_year"], at)
            for details, at in connection.execute(entries)
        ]
    # Of the same day's entries the first: what came later came by the calendar.
    return max(found, key=lambda seen: (seen.day, -seen.at.timestamp()), default=None)


def remember_day(here: Installation, world: World, day: int) -> None:
    from sis_pipeline.db import audit

    details = {"day": day, "first_day": world.first_day.isoformat(), "school_year": world.school_year}
    with here.engine.begin() as connection:
        audit.append(connection, DAY_SEEN, f"day {day}", district=world.district, details=details)


def fill_overview(here: Installation, overview: Overview, server: SandboxServer, targets: Sequence[Target]) -> None:
    """Count what is in the database, and hold it against what the sandbox knows to be true."""
    from sis_pipeline.cli import records

    world = server.world
    truths = [world.truth(day) for day in range(1, overview.day + 1)]
    overview.limits = [limit_row(handle.name, handle.stats()) for handle in server.systems]
    for target in targets:
        overview.systems += system_checks(here, target, truths[-1])
    until = _true_until(remembered(here, world.district), datetime.now(UTC))
    with here.engine.connect() as connection:
        counted = records.count_roster(connection, world.district, world.school_year)
        ledger = records.count_changes(connection, until, district=world.district, school_year=world.school_year)
    overview.merged = merged_checks(counted, truths[-1], overview.systems)
    overview.changes = change_checks(ledger, truths)
    overview.comparable = world.date(overview.day) >= _day_of(until) - timedelta(days=1)
    if not overview.comparable:
        overview.notes.append(OFF_SEASON)


def _true_until(seen: Seen | None, now: datetime) -> datetime:
    """Until when the ledger is the sandbox's doing: on a later date the calendar itself brings changes (a student who
    was pre-registered begins), which the last day's truth does not know."""
    return now if seen is None or seen.at.date() == now.date() else seen.at


def _day_of(moment: datetime) -> date:
    return moment.astimezone(UTC).date()


OFF_SEASON = (
    "It is outside the school year: absences are dated today, weeks after the demo's days, so they can't be paired with "
    "entries elsewhere, and removals may be held. Differences from the truth are expected."
)


def limit_row(system: str, stats: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "system": system,
        "limit": stats["requests_per_minute"],
        "calls": stats["total_calls"],
        "token_calls": stats["token_calls"],
        "worst_minute": stats["worst_window"],
        "refused": stats["refused"],
    }


ENTITIES = ("students", "enrollments", "section_enrollments", "sections", "staff")
"""What is compared row by row; schools are not, because systems list the organisations above them as well."""


def system_checks(here: Installation, target: Target, truth: Truth) -> list[dict[str, Any]]:
    """Good and quarantined rows of the latest snapshot, per entity, against the truth."""
    from sis_pipeline.cli.integrations import describe

    snapshot = next(
        (it for it in describe(here, target.integration)["snapshots"] if it["school_year"] == target.school_year), None
    )
    rows, bad = ((snapshot or {}).get(name) or {} for name in ("rows", "quarantined"))
    expected = truth.rows[target.integration.key]
    found = []
    for entity in ENTITIES:
        true = expected[entity]
        teachers = expected["sections"].good if entity == "section_enrollments" else 0  # one of record per section
        counts = {"rows": rows.get(entity, 0), "quarantined": bad.get(entity, 0)}
        wanted = {"true_rows": true.good + true.tombstones + teachers, "true_quarantined": true.bad}
        equal = tuple(counts.values()) == tuple(wanted.values())
        found.append({"system": target.integration.key, "entity": entity, **counts, **wanted, "equal": equal})
    return found


def merged_checks(
    counted: Mapping[str, int], truth: Truth, systems: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    found = {**counted, "quarantined": sum(row["quarantined"] for row in systems)}
    true = {
        "students": len(truth.known_people),
        "matched": truth.matched,
        "conflicts": len(truth.disagreements),
        "quarantined": sum(row["true_quarantined"] for row in systems),
    }
    return [{"what": what, "found": found[what], "true": n, "equal": found[what] == n} for what, n in true.items()]


def change_checks(ledger: Mapping[str, int], truths: Sequence[Truth]) -> list[dict[str, Any]]:
    """Per kind: what the ledger holds, what each day truly brought, and whether that is the same."""
    days = [truth.changes_by_kind() for truth in truths]
    total: Counter[str] = sum((Counter(day) for day in days), Counter())
    return [
        {
            "kind": kind,
            "found": ledger.get(kind, 0),
            **{f"day_{number}": day.get(kind, 0) for number, day in enumerate(days, start=1)},
            "equal": ledger.get(kind, 0) == total[kind],
        }
        for kind in sorted({*ledger, *total})
    ]


def print_overview(out: Console, overview: Overview) -> None:
    for note in overview.notes:
        out.print(note, markup=False)
    _print_limits(out, overview)
    _print_systems(out, overview)
    _print_merged(out, overview)
    _print_changes(out, overview)
    for run in overview.runs:
        _print_run(out, run)
    words = "Everything equals" if overview.equal else "Not everything equals"
    out.print(f"{words} the sandbox's truth. {overview.seconds:.0f} s.", style="bold")
    for line in NEXT:
        out.print(line, markup=False)


def _print_limits(out: Console, overview: Overview) -> None:
    keys = ("system", "limit", "calls", "token_calls", "worst_minute", "refused")
    titles = ("system", "limit/min", "calls", "token calls", "worst sliding minute", "429s")
    cells = [[row[key] for key in keys] for row in overview.limits]
    out.print(table("Calls against each limit, as the sandbox counted them", titles, cells, right=titles[1:]))


def _print_merged(out: Console, overview: Overview) -> None:
    titles = ("merged", "found", "true", "")
    words = {"matched": "matched across systems", "quarantined": "quarantined rows"}
    cells = [(words.get(row["what"], row["what"]), row["found"], row["true"], _verdict(row)) for row in overview.merged]
    out.print(table("Merged", titles, cells, right=titles[1:3]))


def _print_changes(out: Console, overview: Overview) -> None:
    days = range(1, overview.day + 1)
    titles = ("kind", "in the ledger", *(f"true, day {day}" for day in days), "")
    cells = [
        (row["kind"], row["found"], *(row[f"day_{day}"] for day in days), _verdict(row)) for row in overview.changes
    ]
    out.print(table("Changes by kind", titles, cells, right=titles[1:-1]))


NEXT = (
    "Where to look next:",
    "  sis up                     the web interface: graph, runs, checks, plots",
    "  sis changes list           the ledger; --kind transfer, --since 2026-11-01, --school NAME",
    "  sis conflicts list         where the systems disagree, and what was chosen",
    "  sis students show ID       one student, with the origin of every value",
    "  sis db psql                the tables of schema sis",
    "  sis sandbox serve --demo   the same systems once more, for syncs from the web interface or by sis sync",
)


def _print_systems(out: Console, overview: Overview) -> None:
    """One line per system: the students, and the quarantined rows of all entities."""
    titles = ("system", "students", "true", "quarantined", "true", "rows of all entities", "true", "")
    cells = []
    for system in dict.fromkeys(row["system"] for row in overview.systems):
        rows = [row for row in overview.systems if row["system"] == system]
        students = next(row for row in rows if row["entity"] == "students")
        sums = [sum(row[key] for row in rows) for key in ("quarantined", "true_quarantined", "rows", "true_rows")]
        equal = {"equal": all(row["equal"] for row in rows)}
        cells.append((system, students["rows"], students["true_rows"], *sums, _verdict(equal)))
    out.print(table("Per system (latest snapshot)", titles, cells, right=titles[1:-1]))


def _print_run(out: Console, run: Mapping[str, Any]) -> None:
    report = Report(run["integrations"], run["merges"], run["seconds"])
    changes = sum(sum((merge.get("changes") or {}).values()) for merge in report.merges)
    calls = sum(entry["api_calls"] or 0 for entry in report.integrations)
    out.print(f"Day {run['day']}: {calls} calls, {changes:,} changes found, {run['seconds']:.0f} s.")
    report.print_errors(out)


def _verdict(row: Mapping[str, Any]) -> Any:
    from rich.text import Text

    return Text("equal", "green") if row["equal"] else Text("differs", "red")
