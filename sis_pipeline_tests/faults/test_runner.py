"""The table itself: a row whose fault never happened, or whose test failed, is not one that held."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sis_pipeline_tests.faults.__main__ import ROWS, Collector, page, verdict
from sis_pipeline_tests.faults.rows import PROPERTY, Recorder, Row

TOLD = Row(99, "a fault", "it holds | or not", 10, "cases", scaled="fewer, because of time")


def reported(outcome: str = "passed", *, cases: int = 4, faults: int = 3) -> pytest.TestReport:
    recorder = Recorder(TOLD, cases, faults, ["3 of 4"])
    properties: Any = [(PROPERTY, dict(recorder.as_property()))]
    return pytest.TestReport("test_x", ("", 0, ""), {}, outcome, None, "call", duration=1.0, user_properties=properties)  # type: ignore[arg-type]


def told(*reports: pytest.TestReport) -> Collector:
    collector = Collector()
    for report in reports:
        collector.pytest_runtest_logreport(report)
    return collector


def test_the_page_in_docs_has_every_row() -> None:
    here = Path(__file__).parent
    written = (here.parents[1] / "docs" / "faults.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \|", written, re.MULTILINE)
    assert sorted(map(int, rows)) == sorted(ROWS) == sorted(int(one.name[5:7]) for one in here.glob("test_[0-9]*.py"))
    assert f"{len(ROWS)} of {len(ROWS)} rows held" in written


def test_counts_of_a_row_are_added_up() -> None:
    collector = told(reported(), reported(faults=5))
    (row,) = collector.table
    assert (row.cases, row.faults, row.seconds, row.result) == (8, 8, 2.0, "held")
    assert verdict(collector, (0, 5)) == 0
    written = page(collector.table, 60)
    assert "| 99 | a fault | it holds \\| or not | 10 cases | 8 | 8 | held | 2 |" in written
    assert "- Row 99: fewer, because of time." in written
    assert written.count("3 of 4") == 1


def test_a_row_without_a_fault_or_with_a_failure_does_not_hold() -> None:
    assert told(reported(faults=0)).table[0].result == "NOT SHOWN"
    assert verdict(told(reported(faults=0)), (0,)) == 1
    assert told(reported("failed"), reported()).table[0].result == "FAILED"
    assert verdict(told(reported(), reported("failed")), (1,)) == 1


def test_a_row_with_fewer_cases_than_asked_for_does_not_hold_unless_it_says_why() -> None:
    collector = told(reported(cases=9))
    assert collector.table[0].result == "held"
    collector.table[0].scaled = ""
    assert collector.table[0].result == "TOO FEW"
    assert verdict(collector, (0,)) == 1
    collector.table[0].cases = 10
    assert verdict(collector, (0,)) == 0
    assert verdict(collector, (0,), wanted=frozenset({98, 99})) == 1, "a row that did not run at all"


def test_nothing_at_all_does_not_hold_either() -> None:
    assert verdict(Collector(), (5, 5)) == 1
    assert verdict(told(reported()), (2,)) == 1, "pytest was interrupted"


TWO_TESTS = """
from sis_pipeline_tests.faults.rows import Row
ROW = Row(99, "a fault", "it holds", 10, "cases")

def test_nothing_happens(row):
    row.ran()

def test_something_happens(row):
    row.ran()
    row.happened()
"""


def test_a_test_whose_fault_never_happened_fails(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from sis_pipeline_tests.faults.conftest import *\n")
    (tmp_path / "test_it.py").write_text(TWO_TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 1 passed" in done.stdout
    assert "no fault happened" in done.stdout
