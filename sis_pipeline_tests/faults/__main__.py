"""`python -m sis_pipeline_tests.faults`: provoke every fault in full counts, print the table, write docs/faults.md.
What a row must show is in the row's own module; here it is only run, added up and written down."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from sis_pipeline_tests.faults.rows import FULL, PROPERTY

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent.parent / "docs" / "faults.md"
LIBRARIES = ("dagster", "sqlalchemy", "psycopg", "requests", "urllib3", "pandas", "polars", "cryptography")
ROWS = frozenset({*range(1, 12), *range(15, 19), *range(20, 25), *range(26, 31)})
"""Of the test plan that the page is about; the others belong to publishing, to several users, and to soaks."""
ONE_BY_ONE = ("--dist", "load", "--maxschedchunk", "1")
"""Whoever is free takes the next test: they take from a second to five minutes, and many of them only wait."""
COLUMNS = ("#", "Fault", "What must hold", "Asked for", "Run", "Faults that happened", "Result", "Seconds")


@dataclass
class Shown:
    """One row of the table, added up over its tests. `seconds` are of the tests alone, which may run side by side."""

    number: int
    fault: str
    holds: str
    asked: int
    unit: str
    scaled: str
    cases: int = 0
    faults: int = 0
    failed: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def result(self) -> str:
        if self.failed:
            return "FAILED"
        if not self.faults:
            return "NOT SHOWN"
        return "held" if self.cases >= self.asked or self.scaled else "TOO FEW"

    def cells(self) -> tuple[str, ...]:
        asked = f"{self.asked:,} {self.unit}"
        return (
            str(self.number), self.fault, self.holds, asked, f"{self.cases:,}", f"{self.faults:,}", self.result,
            f"{self.seconds:,.0f}",
        )  # fmt: skip


class Collector:
    """A pytest plugin that adds up what the tests wrote down, and counts what failed without belonging to a row."""

    def __init__(self) -> None:
        self.rows: dict[int, Shown] = {}
        self.elsewhere: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        told = next((value for name, value in report.user_properties if name == PROPERTY), None)
        if told is None:
            if report.failed:
                self.elsewhere.append(report.nodeid)
            return
        shown = self._shown(told)
        shown.failed += report.failed
        if report.when == "call":
            shown.cases += told["cases"]
            shown.faults += told["faults"]
            shown.seconds += report.duration
            shown.notes += [note for note in told["notes"] if note not in shown.notes]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.elsewhere.append(report.nodeid)

    def _shown(self, told: dict[str, Any]) -> Shown:
        known = {name: told[name] for name in ("number", "fault", "holds", "asked", "unit", "scaled")}
        return self.rows.setdefault(told["number"], Shown(**known))

    @property
    def table(self) -> list[Shown]:
        return [self.rows[number] for number in sorted(self.rows)]


def main(arguments: Sequence[str]) -> int:
    """Run the folder; more arguments go to pytest (`-k ssrf`), and then the page is left as it is."""
    os.environ[FULL] = "1"
    collector = Collector()
    began = time.monotonic()
    side_by_side = _run(collector, ["-n", "3", *ONE_BY_ONE, "-m", "not alone and not soak", *arguments])
    alone = _run(collector, ["-n", "2", *ONE_BY_ONE, "-m", "alone", *arguments])
    seconds = time.monotonic() - began
    _print(collector.table, seconds)
    if not arguments:
        PAGE.write_text(page(collector.table, seconds))
    return verdict(collector, (side_by_side, alone), wanted=frozenset() if arguments else ROWS)


def _run(collector: Collector, arguments: list[str]) -> int:
    return int(pytest.main([str(FOLDER), "-p", "no:cacheprovider", *arguments], plugins=[collector]))


def verdict(collector: Collector, exits: Iterable[int], wanted: frozenset[int] = frozenset()) -> int:
    """0 only if every row held, none of those wanted is missing, and pytest ended as it should; a selection may leave
    one of the two runs empty."""
    fine = {int(pytest.ExitCode.OK), int(pytest.ExitCode.NO_TESTS_COLLECTED)}
    if collector.elsewhere:
        sys.stderr.write(f"Failed outside of every row: {', '.join(collector.elsewhere)}\n")
    if missing := sorted(wanted - set(collector.rows)):
        sys.stderr.write(f"Rows that did not run: {', '.join(map(str, missing))}\n")
    held = bool(collector.rows) and not missing and all(row.result == "held" for row in collector.table)
    return 0 if held and not collector.elsewhere and fine.issuperset(exits) else 1


def _print(rows: Iterable[Shown], seconds: float) -> None:
    table = Table(title=f"Faults, {seconds / 60:.1f} minutes")
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in {"#", "Run", "Faults that happened", "Seconds"} else "left")
    for row in rows:
        table.add_row(*row.cells(), style=None if row.result == "held" else "bold red")
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def page(rows: Sequence[Shown], seconds: float) -> str:
    """docs/faults.md. Machine facts that matter to the counts and times, and nothing that names the machine."""
    held = sum(row.result == "held" for row in rows)
    lines = [
        "# Faults",
        "",
        "Written by `make faults`; do not edit. Each row provokes a fault on purpose, against the sandbox, sockets on",
        "loopback and a real PostgreSQL, and asserts both that it happened and that the product held. A row whose fault",
        "never happened fails. The same tests run in smaller counts in `make test`; what they mean for you is in",
        "[guarantees](guarantees.md).",
        "",
        f"{held} of {len(rows)} rows held. {machine(seconds)}",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row.cells()) + " |" for row in rows),
    ]
    remarks = [f"- Row {row.number}: {words}." for row in rows for words in (row.scaled, *row.notes) if words]
    if remarks:
        lines += ["", "## Remarks", "", *remarks]
    return "\n".join([*lines, ""])


def machine(seconds: float) -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {seconds / 60:.0f} minutes on {os.cpu_count()} cores, {platform.system()} "
        f"{platform.machine()}, Python {platform.python_version()}, PostgreSQL 18 (embedded), {libraries}."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
