"""`python -m sis_pipeline_tests.truth`: live ten days with every kind of system, print the table, write docs/truth.md.
What must be equal is in the tests; here they are only run and written down."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from sis_pipeline.roster.model import CHANGE_KINDS
from sis_pipeline_tests.faults.__main__ import ONE_BY_ONE, machine
from sis_pipeline_tests.truth.test_ten_days import PROPERTY, RUNS, Run

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent.parent / "docs" / "truth.md"
COLUMNS = ("Run", "Read", "Students", *CHANGE_KINDS, "Equal", "Seconds")


class Collector:
    """A pytest plugin that keeps what the runs wrote down, and which of them passed."""

    def __init__(self) -> None:
        self.facts: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told = next((value for name, value in report.user_properties if name == PROPERTY), None)
        if isinstance(told, dict):
            known = self.facts.setdefault(told["name"], {"equal": True})
            known |= told | {"equal": known["equal"] and not report.failed}

    @property
    def rows(self) -> list[tuple[str, ...]]:
        return [_cells(run, self.facts.get(run.name, {})) for run in RUNS]

    @property
    def all_equal(self) -> bool:
        return all(self.facts.get(run.name, {}).get("equal") for run in RUNS)


def _cells(run: Run, facts: Mapping[str, Any]) -> tuple[str, ...]:
    if "seconds" not in facts:
        return (run.name, run.about, *[""] * (1 + len(CHANGE_KINDS)), "NO" if facts else "DID NOT RUN", "")
    kinds = (f"{facts['kinds'].get(kind, 0):,}" for kind in CHANGE_KINDS)
    equal = "yes" if facts["equal"] else "NO"
    return (run.name, run.about, f"{facts['students']:,}", *kinds, equal, f"{facts['seconds']:,.0f}")


def main(arguments: Sequence[str]) -> int:
    """Run the ten days; more arguments go to pytest (`-k alone`), and then the page is left as it is."""
    collector = Collector()
    began = time.monotonic()
    pytest.main(
        [str(FOLDER), "-p", "no:cacheprovider", "-n", "3", *ONE_BY_ONE, "-m", "truth", *arguments], plugins=[collector]
    )
    seconds = time.monotonic() - began
    _print(collector.rows, seconds)
    if not arguments:
        PAGE.write_text(page(collector.rows, seconds))
    return 0 if collector.all_equal else 1


def _print(rows: Sequence[Sequence[str]], seconds: float) -> None:
    table = Table(title=f"Ten days, {seconds / 60:.1f} minutes")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in {"Run", "Read", "Equal"} else "right")
    for row in rows:
        table.add_row(*row, style=None if "yes" in row else "bold red")
    Console(width=None if sys.stdout.isatty() else 240).print(table)


def page(rows: Sequence[Sequence[str]], seconds: float) -> str:
    """docs/truth.md."""
    lines = [
        "# Ten days against the truth",
        "",
        "Written by `make truth`; do not edit. A sandbox lives ten days and knows what happened in them: who came, left,",
        "moved, was corrected. Its systems are read over HTTP or as files, merged and published every day, and every day",
        "the ledger must have gained exactly these events, each once, of the right kind, at the right place and on the",
        "right day; the students, their records, values, conflicts, enrollments and seats must be the true ones, nothing",
        "may be held, and the same day once more must write nothing. The first two days of all systems are lived in `make test`.",
        "",
        "- A day that is **lost** is told by the next reading, with the source's own dates; what only shows by an absence",
        "  has the day on which it showed.",
        "- A reading that is **partial** ends nothing: what it lacks is told by the next one that is proven whole. Who",
        "  moved on is at both schools until then, which is an `enroll`, and then a `transfer`.",
        "- A day that comes again **out of order**, as from a system restored from a backup, is told as what it says: who",
        "  had come never came, who had left is there again; and when the later day is back, that is told, too. The order",
        "  in which school years are loaded changes nothing.",
        "",
        f"{machine(seconds)}",
        "",
        "| " + " | ".join(f"`{name}`" if name in CHANGE_KINDS else name for name in COLUMNS) + " |",
        "|---|---|" + "--:|" * (1 + len(CHANGE_KINDS)) + "---|--:|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
