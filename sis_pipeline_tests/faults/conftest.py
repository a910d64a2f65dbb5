"""The recorder of a fault row, the counts, and seeded randomness; a test whose fault never happened fails."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Iterator

import pytest

from sis_pipeline_tests.faults.rows import FULL, PROPERTY, Count, Recorder


def pytest_configure(config: pytest.Config) -> None:
    about = "alone(minutes=1): measures time, so the runner lets only others of its kind run beside it"
    config.addinivalue_line("markers", about)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that run alone, the longest last: two workers begin with two tests each, and one may be free of a second."""
    items.sort(key=lambda item: max((mark.kwargs.get("minutes", 1) for mark in item.iter_markers("alone")), default=0))


@pytest.fixture
def row(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Recorder:
    """Writes down for the module's ROW what the test did. No fault that happened, no proof: the test fails."""
    recorder = Recorder(request.module.ROW)
    record_property(PROPERTY, recorder)
    return recorder


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    result = yield
    recorder = pyfuncitem.funcargs.get("row")
    if isinstance(recorder, Recorder):
        assert recorder.faults, "no fault happened, so nothing was shown"
        assert recorder.cases, "no case was counted"
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[pytest.TestReport]:
    """A report holds plain values only: it may have to leave a worker process."""
    report = yield
    report.user_properties = [
        (name, dict(value.as_property()) if isinstance(value, Recorder) else value)
        for name, value in report.user_properties
    ]
    return report


@pytest.fixture(scope="session")
def count() -> Count:
    """`count(full=10_000, part=300)`: how many cases this run is to make, whatever a test does to its environment."""
    all_of_them = FULL in os.environ

    def chosen(*, full: int, part: int) -> int:
        return full if all_of_them else part

    return chosen


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """A generator seeded by the test's own name: the same cases every time, others for every test."""
    return random.Random(zlib.crc32(request.node.nodeid.encode()))
