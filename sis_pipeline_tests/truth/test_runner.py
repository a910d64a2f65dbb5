"""The page of the ten days: a run that was not equal, or did not run, is said, and fails the whole."""

from __future__ import annotations

from typing import Any

import pytest

from sis_pipeline_tests.truth.__main__ import Collector, page
from sis_pipeline_tests.truth.test_ten_days import PROPERTY, RUNS


def reported(name: str, outcome: str = "passed", **facts: Any) -> pytest.TestReport:
    told: Any = [(PROPERTY, {"name": name, **facts})]
    return pytest.TestReport("test_x", ("", 0, ""), {}, outcome, None, "call", duration=1.0, user_properties=told)  # type: ignore[arg-type]


def test_only_runs_that_passed_are_equal() -> None:
    collector = Collector()
    first, second, *others = [run.name for run in RUNS]
    assert others
    for name in (first, *others):
        collector.pytest_runtest_logreport(reported(name, students=100, kinds={"enroll": 1_200}, seconds=61.4))
    assert not collector.all_equal
    collector.pytest_runtest_logreport(reported(second, "failed"))
    assert not collector.all_equal
    shown = page(collector.rows, 600)
    assert f"| {first} | {RUNS[0].about} | 100 | 1,200 | 0 |" in shown
    assert shown.count("| yes | 61 |") == len(RUNS) - 1
    assert shown.count("| NO |") == 1
    assert page(Collector().rows, 1).count("| DID NOT RUN |") == len(RUNS)


def test_all_of_them_make_it_equal() -> None:
    collector = Collector()
    for run in RUNS:
        collector.pytest_runtest_logreport(reported(run.name, students=1, kinds={}, seconds=1.0))
    assert collector.all_equal
