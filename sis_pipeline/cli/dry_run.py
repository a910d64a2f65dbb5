"""`sis sync --dry-run`: the plans of the next publication, told district by district.
What a plan says is worked out by `defs.planning`; reading before it is `syncing`'s."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import ExitCode, RefusalError, complain, counted, emit, table
from sis_pipeline.cli.syncing import Report, inputs_of_merges

if TYPE_CHECKING:
    from rich.console import Console

    from sis_pipeline.defs.planning import DistrictPlan
    from sis_pipeline.roster.plan import Plan, PlannedHold, PlannedRow, TablePlan

FIRST_ROWS = 5
OF_RECORDS = {"student_links", "student_sources", "staff_links"}
"""Tables whose first rows are left to `--json`: they repeat, record by record, what the others tell."""
WHO = ("who", "local id", "which", "id")
NO_SCHOOL = "(of the district)"


def dry_run(
    here: Installation, years: Sequence[str], integrations: Sequence[str], rows: int, read: Report | None
) -> DryRun:
    """Plan the school years, for the districts of the named integrations or for all. `read`: the readings before it.

    Raises RefusalError where nothing was read and there is no snapshot to plan from.
    """
    from sis_pipeline.defs.planning import plan_districts
    from sis_pipeline.defs.resources import Roster

    districts = {district for key in integrations for district in here.integrations.get(key).districts}
    roster = Roster()
    try:
        plans = [one for year in years for one in plan_districts(roster, year, rows=rows, districts=districts or None)]
    finally:
        roster.close()
    if not plans and read is None:
        raise RefusalError(
            f"Nothing to plan from: there is no good snapshot for {', '.join(years)}.",
            "`sis sync --dry-run --read` reads the systems first.",
            ExitCode.CONFIG,
            "config.no_snapshot",
        )
    for year in sorted(set(years) - {one.school_year for one in plans}):
        complain(f"there is no good snapshot for {year}; nothing is planned for it")
    return DryRun(plans, inputs_of_merges(here, years), rows, read)


class DryRun:
    """The plans as they are told. `rows`: how many first rows of each kind people see."""

    def __init__(
        self, plans: Sequence[DistrictPlan], inputs: Sequence[Mapping[str, Any]], rows: int, read: Report | None
    ) -> None:
        self._plans, self._rows, self._read = plans, rows, read
        planned = {(one.district, one.school_year) for one in plans}
        self._inputs = [
            it for it in inputs if any((district, it["school_year"]) in planned for district in it["districts"])
        ]

    @property
    def exit_code(self) -> ExitCode:
        """A plan is no failure, whatever it says, and needs nobody yet."""
        failed = any(one.trouble for one in self._plans) or (self._read is not None and self._read.failed)
        return ExitCode.FAILED if failed else ExitCode.OK

    def emit(self, as_json: bool) -> None:
        emit(as_json, self.as_json(), self.print)

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.exit_code is ExitCode.OK,
            "plans": [_plain(one) for one in self._plans],
            "inputs": self._inputs,
            "integrations": self._read.integrations if self._read else [],
        }

    def print(self, console: Console) -> None:
        if self._read:
            self._read.print(console)
        columns = ("integration", "year", "verdict", "age in hours", "status", "why")
        names = ("integration", "school_year", "verdict", "age_hours", "status", "reason")
        cells = [[it[name] for name in names] for it in self._inputs]
        console.print(table("Planned from these snapshots", columns, cells, right=("age in hours",)))
        for one in self._plans:
            _print(console, one, self._rows)
        if self._read:
            words = "Nothing was published. What was read is kept: the next merge publishes it, which is due in seconds where `sis up` runs."
        else:
            words = "Nothing was read, and nothing was written."
        console.print(words, markup=False)


def _plain(one: DistrictPlan) -> dict[str, Any]:
    about = {"district": one.district, "school_year": one.school_year, "due": one.due, "open_holds": len(one.waiting)}
    if one.plan is None:
        return {**about, "error": one.trouble.as_json() if one.trouble else None}
    plan = one.plan
    schools = plan.schools
    return {
        **about,
        "error": None,
        "total": asdict(plan.total),
        "tables": [{**asdict(part), "school": schools.get(part.school_id or "")} for part in plan.tables],
        "changes": plan.changes,
        "events": [
            {"school_id": school, "school": schools.get(school or ""), "kind": kind, "events": events}
            for (school, kind), events in plan.events.items()
        ],
        "held": plan.held,
        "holds": [_plain_hold(planned) for planned in plan.holds],
        "holds_closing": plan.closing,
        "holds_applying": plan.applying,
        "conflicts": {"opening": plan.opening_conflicts, "resolving": plan.resolving_conflicts},
        "near_matches": [asdict(it) for it in plan.near_matches],
        "near_matches_withdrawing": plan.withdrawing,
        "accounts": {**plan.accounts, "first": [asdict(row) for row in plan.first_accounts]},
        "identities": {
            "joined": plan.joined,
            "joined_staff": plan.joined_staff,
            "restored": plan.restored,
            "matched": plan.matched,
            "moved": plan.moved,
        },
    }


def _plain_hold(planned: PlannedHold) -> dict[str, Any]:
    """The hold without the keys of all that it holds: their number tells enough."""
    left_out = {"keys", "fingerprint", "kept"}
    said = {name: value for name, value in asdict(planned.hold).items() if name not in left_out}
    return {"hold_id": planned.hold_id, **said, "first": [asdict(row) for row in planned.first]}


def _print(console: Console, one: DistrictPlan, rows: int) -> None:
    console.print(f"\n{one.district}, {one.school_year}: {_headline(one)}", style="bold", markup=False)
    if one.trouble:
        console.print(f"{one.trouble.message} {one.trouble.advice}", markup=False, style="red")
    if one.plan is not None and not one.plan.nothing:
        _print_changes(console, one.plan)
        _print_holds(console, one.plan)
        _print_identities(console, one.plan, rows)
        _print_accounts(console, one.plan)
        _print_first_rows(console, one.plan)
    if one.waiting:
        console.print(f"Waiting now: {counted(len(one.waiting), 'hold')}, see `sis holds list`.", markup=False)


def _headline(one: DistrictPlan) -> str:
    if one.plan is None:
        return "could not be planned"
    if not one.due:
        return "nothing would change; the newest snapshots and decisions are published"
    if one.plan.nothing:
        return "nothing would change"
    total = one.plan.total
    words = f"{total.added:,} rows would be added, {total.changed:,} changed, {total.removed:,} removed"
    return f"{words}; {one.plan.held:,} removals would be held" if one.plan.held else words


def _school(plan: Plan, school_id: str | None) -> str:
    return NO_SCHOOL if school_id is None else plan.schools.get(school_id, school_id)


def _by_school(plan: Plan, parts: Iterable[TablePlan]) -> list[TablePlan]:
    return sorted(parts, key=lambda part: (part.school_id is None, _school(plan, part.school_id), part.school_id or ""))


def _print_changes(console: Console, plan: Plan) -> None:
    cells: list[list[object]] = [
        [_school(plan, it.school_id), it.table, it.counts.added, it.counts.changed, it.counts.removed, it.columns]
        for it in _by_school(plan, plan.tables)
    ]
    columns = ("school", "table", "add", "change", "remove", "columns that change")
    console.print(table("Rows, by school", columns, cells, right=columns[2:5]))
    if plan.events:
        found = [[_school(plan, school), kind, events] for (school, kind), events in plan.events.items()]
        order = sorted(found, key=lambda it: [str(cell) for cell in it[:2]])
        console.print(table("New events of the ledger", ("school", "kind", "events"), order, right=("events",)))
    attributes = sorted({*plan.opening_conflicts, *plan.resolving_conflicts})
    if attributes:
        told = [(it, plan.opening_conflicts.get(it, 0), plan.resolving_conflicts.get(it, 0)) for it in attributes]
        titles = ("attribute", "would open", "would be resolved")
        console.print(table("Conflicts", titles, told, right=titles[1:]))


def _print_holds(console: Console, plan: Plan) -> None:
    if plan.holds:
        cells = [
            (it.hold_id or "(new)", it.hold.entity, it.hold.removals, it.hold.limit, it.hold.reason, _parts(plan, it))
            for it in plan.holds
        ]
        columns = ("hold", "of", "removals", "limit", "why", "by school and kind")
        console.print(table("Removals that would wait for a person", columns, cells, right=columns[2:4]))
        rows = [(it.hold.entity, *_who(row)) for it in plan.holds for row in it.first]
        if rows:
            console.print(table("The first of them (--rows)", ("of", *WHO), rows))
    for ids, what in (
        (plan.applying, "would be applied as released"),
        (plan.closing, "would be closed: nothing of them is pending"),
    ):
        if ids:
            console.print(f"{counted(len(ids), 'hold')} {what}: {', '.join(ids)}.", markup=False)


def _parts(plan: Plan, planned: PlannedHold) -> str:
    parts = planned.hold.parts
    return "; ".join(f"{_school(plan, it.school_id)}: {it.removals:,} {it.change}" for it in parts)


def _print_identities(console: Console, plan: Plan, rows: int) -> None:
    if plan.near_matches:
        cells = [
            (it.sides[0], it.sides[1], f"{it.score:.0%}", it.rule, it.evidence)
            for it in islice(plan.near_matches, rows)
        ]
        title = _first("new near match", "new near matches", len(plan.near_matches), len(cells))
        console.print(table(title, ("one", "other", "alike", "rule", "what agrees"), cells, right=("alike",)))
    if plan.withdrawing:
        console.print(f"{len(plan.withdrawing):,} near matches would be withdrawn.")
    for joined, one, several in (
        (plan.joined, "student would be joined with another", "students would be joined with others"),
        (plan.joined_staff, "staff member would be joined with another", "staff members would be joined with others"),
    ):
        if joined:
            told = list(islice(joined.items(), rows))
            console.print(table(_first(one, several, len(joined), len(told)), ("id", "would become"), told))
    if plan.restored:
        console.print(f"Students that would be students of their own again: {', '.join(plan.restored)}.", markup=False)
    if plan.matched:
        console.print(f"{counted(plan.matched, 'new record')} would be linked to students who are published.")
    if plan.moved:
        console.print(f"{counted(plan.moved, 'record')} would be another student's.")


def _print_accounts(console: Console, plan: Plan) -> None:
    if plan.accounts:
        counts = list(plan.accounts.items())
        console.print(table("What would become of the accounts", ("what", "accounts"), counts, right=("accounts",)))
    if plan.first_accounts:
        console.print(table("Accounts: the first (--rows)", WHO, [_who(row) for row in plan.first_accounts]))


def _first(one: str, several: str, total: int, shown: int) -> str:
    return f"{total:,} {one if total == 1 else several}" + (f", {shown:,} shown (--rows)" if shown < total else "")


def _print_first_rows(console: Console, plan: Plan) -> None:
    by_school: dict[str | None, list[TablePlan]] = {}
    for part in _by_school(plan, plan.tables):
        by_school.setdefault(part.school_id, []).append(part)
    columns = ("table", "what", *WHO, "columns that change")
    for school_id, parts in by_school.items():
        cells = [
            (part.table, row.what, *_who(row), list(row.columns))
            for part in parts
            if part.table not in OF_RECORDS
            for row in part.first
        ]
        if cells:
            console.print(table(f"{_school(plan, school_id)}: the first rows (--rows)", columns, cells))


def _who(row: PlannedRow) -> tuple[object, ...]:
    """What names a row, as WHO; of its ids the one to look up: the student's or staff member's, else its own."""
    from sis_pipeline.roster.plan import PERSONS

    looked_up = next((row.ids[name] for name in (*PERSONS, *row.ids) if name in row.ids), None)
    return row.name, row.local_id, list(row.says.values()), looked_up
