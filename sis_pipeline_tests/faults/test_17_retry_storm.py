"""A provider that is down for five hundred districts at once: few calls, evenly spread."""

from __future__ import annotations

import itertools
import multiprocessing
import socket
import time
from collections import Counter

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import URL

from sis_pipeline.connect.breaker import FAILURES
from sis_pipeline.connect.contract import Request
from sis_pipeline.connect.errors import TransientError
from sis_pipeline.connect.retry import Backoff
from sis_pipeline_tests.connect.servers import http_answer, raw_server
from sis_pipeline_tests.connect.workers import Options, a_source
from sis_pipeline_tests.faults.rows import Count, Recorder, Row

ROW = Row(
    17,
    "500 districts of one provider that is down",
    "at most 1.1 times the calls of a good day, no second has more than twice the mean",
    500,
    "districts",
)

PROCESSES = 4
A_GOOD_DAY = 20
"""Calls per district on a day on which all goes well: what the sandbox's smallest districts take."""
PER_MINUTE = 6_000


class Down:
    """Answers 503 to everything, and writes down when."""

    def __init__(self) -> None:
        self.arrivals: list[float] = []

    def __call__(self, connection: socket.socket) -> None:
        self.arrivals.append(time.monotonic())
        connection.sendall(http_answer(b"{}", "503 X"))


def sync_all(database: str, addresses: list[str]) -> Counter[str]:
    """Start one run per district, as a schedule does at night; each fails when its first list can't be read."""
    engine = create_engine(database, connect_args={"options": "-c search_path=sis"})
    seen: Counter[str] = Counter()
    for address in addresses:
        options = Options(address, rate_group="the vendor", read_timeout=20, total_timeout=30)
        with a_source(
            engine,
            address,
            authorised=False,
            options=options,
            requests_per_minute=PER_MINUTE,
            backoff=Backoff(base=0.05, cap=0.4),
        ) as source:
            try:
                for number in range(A_GOOD_DAY):
                    source.send(Request(f"/list-{number}"))
            except TransientError as error:
                seen[type(error).__name__] += 1
    engine.dispose()
    return seen


@pytest.mark.alone
@pytest.mark.parametrize("shared", [True, False], ids=["one address for all", "a path per district"])
def test_few_calls_evenly_spread(database_url: URL, shared: bool, count: Count, row: Recorder) -> None:
    districts, down = count(full=500, part=40), Down()
    url = database_url.render_as_string(hide_password=False)
    with raw_server(down) as server:
        paths = ["" if shared else f"/district-{number}" for number in range(districts)]
        shares = [[server.url + path for path in paths[part::PROCESSES]] for part in range(PROCESSES)]
        with multiprocessing.get_context("forkserver").Pool(PROCESSES) as pool:
            pending = [pool.apply_async(sync_all, (url, share)) for share in shares]
            seen = sum((one.get(timeout=300) for one in pending), Counter())
    assert seen.total() == districts, "every district's run failed, and said so"
    calls = len(down.arrivals)
    assert calls <= 1.1 * A_GOOD_DAY * districts
    assert calls <= (FAILURES + PROCESSES if shared else FAILURES * districts)
    if not shared:
        spread(down.arrivals)
    row.note(f"{'one address' if shared else 'a path each'}: {calls} calls for {districts} districts that are down")
    row.happened(calls)
    row.ran(districts)


def spread(arrivals: list[float]) -> None:
    """No second has more than twice the mean of the whole seconds."""
    seconds = Counter(int(at - arrivals[0]) for at in sorted(arrivals))
    whole = [seconds[second] for second in range(int(arrivals[-1] - arrivals[0]))]
    assert whole
    assert max(whole) <= 2 * sum(whole) / len(whole)
    gaps = [late - early for early, late in itertools.pairwise(sorted(arrivals))]
    assert sum(gaps) >= (len(arrivals) - 1) * 60 / PER_MINUTE
