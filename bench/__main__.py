"""Takes a roster of two days through the whole pipeline at each size, asks `sis health`, and prints each stage beside floors
that were measured in the same run: quote the ratios, not the seconds."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from bench import generate, health, stages
from bench.apart import alone, emptied_home


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left")
    return table


def _print_days(measured: stages.Measured) -> None:
    table = _table(f"{measured.students:,} student rows, three systems: seconds (peak MiB)", "stage", *measured.days)
    for stage in [stages.RAW, *stages.WATCHED, stages.REST]:
        laps = [day.stages.get(stage) for day in measured.days.values()]
        table.add_row(stage, *(_shown(lap) for lap in laps))
    first = measured.days["first load"]
    table.add_section()
    facts: dict[str, Callable[[stages.Day], str]] = {
        "until all systems are judged": lambda day: f"{day.reading:.2f}",
        "raw pages to published tables": lambda day: f"{day.seconds:.2f} ({day.peak:,.0f})",
        "share of the first load": lambda day: f"{day.seconds / first.seconds:.1%}",
        "processor, without PostgreSQL": lambda day: f"{day.cpu:.2f}",
        "share of the first load's": lambda day: f"{day.cpu / first.cpu:.1%}",
        "ratio to the sum of the floors": lambda day: f"{day.seconds / measured.floor:.2f} x",
        "rows written to the roster's tables": lambda day: f"{day.written:,}",
        "events in the ledger": lambda day: f"{day.changes:,}",
        "WAL, MB": lambda day: f"{day.wal / 1e6:,.2f}",
    }
    for name, fact in facts.items():
        table.add_row(name, *map(fact, measured.days.values()))
    table.add_section()
    for name, lap in measured.floors.items():
        table.add_row(f"floor: {name}", f"{lap.seconds:.2f}")
    table.add_row("sum of the floors", f"{measured.floor:.2f}")
    Console().print(table)


def _shown(lap: stages.Lap | None) -> str:
    if lap is None:
        return ""
    return f"{lap.seconds:.2f} ({lap.peak:,.0f})" if lap.peak else f"{lap.seconds:.2f}"


def _print_linearity(found: Sequence[stages.Measured]) -> None:
    table = _table("seconds for 100,000 rows, by size", "size", *found[0].days, "sum of the floors")
    for one in found:
        each = [*(day.seconds for day in one.days.values()), one.floor]
        table.add_row(f"{one.students:,}", *(f"{seconds * 100_000 / one.students:.2f}" for seconds in each))
    Console().print(table)


def _print_health(answers: Sequence[health.Answered]) -> None:
    table = _table(
        f"sis health, {health.INTEGRATIONS} integrations (median of {health.ROUNDS})",
        "calls in 24 hours", "seconds", "floor: python and its imports", "ratio to its floor",
    )  # fmt: skip
    for one in answers:
        table.add_row(f"{one.calls:,}", f"{one.seconds:.2f}", f"{one.floor:.2f}", f"{one.seconds / one.floor:.1f} x")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--students", type=int, nargs="*", default=[10_000, 100_000], help="student rows over all systems"
    )
    parser.add_argument(
        "--calls", type=int, nargs="*", default=[500_000, 2_000_000], help="calls of a day that `sis health` looks at"
    )
    asked = parser.parse_args()
    found = []
    for students in asked.students:
        with emptied_home() as home:
            alone(generate.write, students, stages.YEAR, home / "pages")
            found.append(alone(stages.run, students, str(home), home / "pages"))
            _print_days(found[-1])
    if len(found) > 1:
        _print_linearity(found)
    answers = []
    for calls in asked.calls:
        with emptied_home() as home:
            answers.append(health.run(calls, str(home)))
    if answers:
        _print_health(answers)


if __name__ == "__main__":
    main()
