"""A provider that is down for five hundred districts at once, or answers only now and then: few calls, evenly spread."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import URL

from sis_pipeline.connect.breaker import FAILURES
from sis_pipeline.connect.contract import Request
from sis_pipeline.connect.errors import TransientError
from sis_pipeline.connect.retry import BUDGET_FLOOR, BUDGET_SHARE, Backoff
from sis_pipeline_tests.connect.servers import http_answer, raw_server
from sis_pipeline_tests.connect.workers import Options, a_source
from sis_pipeline_tests.faults.rows import Count, Recorder, Row
from sis_pipeline_tests.forking import ready_pool

ROW = Row(
    17,
    "500 districts of one provider that is down; districts of one that fails too rarely for a breaker to open",
    "at most 1.1 times the calls of a good day; down: no second has more than twice the mean; failing: at most 10 repeats "
    "or 10 % of a run's calls",
    500,
    "districts",
)

PROCESSES = 4
A_GOOD_DAY = 20
"""Calls per district on a day on which all goes well: what the sandbox's smallest districts take."""
PER_MINUTE = 6_000
A_LONG_DAY = 120
"""Calls per district where every third request fails: enough that 10 % of them are more than the 10 in any case."""


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
        with ready_pool(PROCESSES) as pool:
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


class Failing(ThreadingHTTPServer):
    """Answers 503 to every `nth` request of a district, and writes down who asked for what."""

    def __init__(self, nth: int) -> None:
        super().__init__(("127.0.0.1", 0), NowAndThen)
        self.nth = nth
        self.asked: dict[str, list[str]] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class NowAndThen(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Failing

    def do_GET(self) -> None:
        _, district, wanted = self.path.split("/")
        asked = self.server.asked.setdefault(district, [])  # one request at a time comes from each
        asked.append(wanted)
        self.send_response(503 if len(asked) % self.server.nth == 0 else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Nothing: the test counts."""


def read_all(engine: Engine, address: str) -> tuple[str, bool]:
    """One district's run: the code of the error that ended it, and whether that says that it was not tried again."""
    options = Options(address, read_timeout=20, total_timeout=30)
    with a_source(engine, address, authorised=False, options=options, backoff=Backoff(base=0.002, cap=0.01)) as source:
        try:
            for number in range(A_LONG_DAY):
                source.send(Request(f"/list-{number}"))
        except TransientError as error:
            return error.code, "It was not tried again" in error.message
    return "", False


@pytest.mark.parametrize(("nth", "ends"), [(3, True), (11, False)], ids=["a third", "less than a tenth"])
def test_a_system_that_fails_below_its_breaker_is_not_asked_much_more_for_it(
    database: Engine, nth: int, ends: bool, count: Count, row: Recorder
) -> None:
    """Never five failures in a row, never half of twenty: no breaker opens, and only its budget holds a run back."""
    districts = count(full=100, part=4)
    with Failing(nth) as failing, ThreadPoolExecutor(4) as pool:
        addresses = [f"{failing.url}/district-{number}" for number in range(districts)]
        ended = list(pool.map(partial(read_all, database), addresses))
    assert Counter(ended) == {("transient.server_error", True) if ends else ("", False): districts}
    assert len(failing.asked) == districts
    for asked in failing.asked.values():
        calls = len(set(asked))
        assert calls == A_LONG_DAY or ends
        assert 0 < len(asked) - calls <= max(BUDGET_FLOOR, BUDGET_SHARE * calls)
    requests = sum(map(len, failing.asked.values()))
    assert requests <= 1.1 * A_LONG_DAY * districts
    row.note(f"one in {nth} fails: {requests} calls for {districts} districts, {A_LONG_DAY} each on a good day")
    row.happened(requests // nth)
    row.ran(districts)


def spread(arrivals: list[float]) -> None:
    """No second has more than twice the mean of the whole seconds."""
    seconds = Counter(int(at - arrivals[0]) for at in sorted(arrivals))
    whole = [seconds[second] for second in range(int(arrivals[-1] - arrivals[0]))]
    assert whole
    assert max(whole) <= 2 * sum(whole) / len(whole)
    gaps = [late - early for early, late in itertools.pairwise(sorted(arrivals))]
    assert sum(gaps) >= (len(arrivals) - 1) * 60 / PER_MINUTE
