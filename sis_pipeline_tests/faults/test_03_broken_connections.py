"""Connections that hang, drip, reset or end early: every attempt ends in time, and nothing of a broken page is used."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from sqlalchemy import Engine

from sis_pipeline.connect.contract import Request
from sis_pipeline.connect.errors import TransientError
from sis_pipeline.connect.retry import Backoff
from sis_pipeline.connect.source import CallRecord
from sis_pipeline.sandbox.faults import reset
from sis_pipeline_tests.connect.servers import Script, http_answer, raw_server, writes
from sis_pipeline_tests.connect.workers import Options, a_source
from sis_pipeline_tests.faults.rows import Count, Recorder, Row

ROW = Row(
    3,
    "no connection, no answer, a slow drip, a reset in the middle of a page, an end before its end",
    "each attempt ends within the total deadline + 1 s, the call is repeated, no part of a broken page is used",
    1_000,
    "calls",
)

THREADS = 8
RUN = 8
PAGE = json.dumps({"rows": [{"id": number, "name": "x" * 200} for number in range(100)]}).encode()
WHOLE = http_answer(PAGE)
CUT = len(WHOLE) // 2
OPTIONS = {"connect_timeout": 0.1, "read_timeout": 0.1, "total_timeout": 0.2}
"""For servers that never answer."""
AMPLE = {"connect_timeout": 10.0, "read_timeout": 10.0, "total_timeout": 10.0}
"""For faults that end by themselves: a busy machine must not run into a deadline on a whole page."""
AT_ONCE = 3.0
"""Seconds within which such a fault is noticed, and a whole page answered: long before the deadline."""
TIGHT = {"connect_timeout": 10.0, "read_timeout": 1.0, "total_timeout": 2.0}
"""For faults that only a deadline ends; the whole pages in between are answered well within."""
DEADLINES = {"no answer": TIGHT, "slow drip": TIGHT}


def silence(connection: socket.socket) -> None:
    wait_for_the_client(connection)


def drip(connection: socket.socket) -> None:
    """A byte every 20 ms: no single read ever times out."""
    with suppress(OSError):
        for at in range(200):
            connection.sendall(WHOLE[at : at + 1])
            time.sleep(0.02)


def reset_in_the_middle(connection: socket.socket) -> None:
    connection.sendall(WHOLE[:CUT])
    reset(connection)


def half_without_a_length(connection: socket.socket) -> None:
    """Nothing but the page's own closing says that it is not whole."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + PAGE[: len(PAGE) // 2])


def wait_for_the_client(connection: socket.socket) -> None:
    connection.settimeout(5)
    with suppress(OSError):
        connection.recv(1)


KINDS: dict[str, Script] = {
    "no answer": silence,
    "slow drip": drip,
    "reset in the middle": reset_in_the_middle,
    "early close": writes(WHOLE[:CUT]),
    "chunked and cut": writes(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        + f"{len(PAGE):x}\r\n".encode()
        + PAGE[:999]
    ),
    "half without a length": half_without_a_length,
    "head cut off": writes(WHOLE[:20]),
    "closed at once": writes(b""),
}


class Moody:
    """Breaks every other connection, beginning with the first, and counts."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.broken = 0
        self._calls = 0
        self._lock = threading.Lock()

    def __call__(self, connection: socket.socket) -> None:
        with self._lock:
            self._calls += 1
            bad = self._calls % 2 == 1
            self.broken += bad
        (self.script if bad else writes(WHOLE))(connection)


@pytest.mark.parametrize("kind", KINDS)
def test_the_call_is_repeated_in_time(database: Engine, kind: str, count: Count, row: Recorder) -> None:
    moods: list[Moody] = []

    def script() -> Moody:
        moods.append(Moody(KINDS[kind]))
        return moods[-1]

    deadlines = DEADLINES.get(kind, AMPLE)
    calls, records = many(database, count(full=200, part=24), script, deadlines)
    broken = sum(mood.broken for mood in moods)
    failed = [record for record in records if record.error_class is not None]
    assert {record.error_class for record in failed} == {"transient"}
    assert len(failed) == broken, "every fault was seen as one, and no page as a fault"
    assert broken == calls, "each call met one"
    row.happened(broken)
    longest = max(record.milliseconds for record in records) / 1000
    assert longest <= (AT_ONCE if deadlines is AMPLE else deadlines["total_timeout"] + 1.0)
    assert {record.attempt for record in records if record.error_class is None} == {2}
    row.ran(calls)


def many(
    database: Engine, calls: int, script: Callable[[], Script], deadlines: Mapping[str, float]
) -> tuple[int, list[CallRecord]]:
    """So many calls, several at once; every answer is the whole page. Each run makes a few of them at a server of its own,
    less than would use up its budget of repeats or open the breaker, which have rows of their own."""
    records: list[CallRecord] = []
    runs = max(1, calls // RUN)

    def work(_number: int) -> None:
        with raw_server(script()) as server:
            _run(database, server.url, records, deadlines)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(runs)))
    return runs * RUN, records


def _run(database: Engine, url: str, records: list[CallRecord], deadlines: Mapping[str, float]) -> None:
    options = Options(url, **deadlines)
    with a_source(
        database, url, authorised=False, options=options, on_call=records.append, backoff=Backoff(base=0.001)
    ) as source:
        for _ in range(RUN):
            assert source.send(Request("/rows")).body == PAGE


@pytest.fixture
def crowded() -> Iterator[tuple[str, Callable[[], None]]]:
    """An address where no connection comes about, because the queue of the listening socket is full; and the way to
    let one in."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    waiting: list[socket.socket] = []
    for _ in range(2):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(listener.getsockname())
        waiting.append(one)

    def let_in() -> None:
        listener.listen(64)
        threading.Thread(target=_serve, args=(listener,), daemon=True).start()

    yield f"http://127.0.0.1:{listener.getsockname()[1]}", let_in
    for one in waiting:
        one.close()
    listener.close()


def _serve(listener: socket.socket) -> None:
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    with connection, suppress(OSError):
        if connection.recv(65536):
            connection.sendall(WHOLE)


def test_no_connection_comes_about(
    database: Engine, crowded: tuple[str, Callable[[], None]], count: Count, row: Recorder
) -> None:
    """Each call is given up in time; after all of them the system lets somebody in again, and the page is whole. Every
    run is of a tenant of its own, so that no breaker opens."""
    url, let_in = crowded
    records: list[CallRecord] = []
    calls = count(full=200, part=16)

    def work(number: int) -> None:
        options = Options(f"{url}/tenant-{number}", **OPTIONS)
        with a_source(
            database,
            url,
            authorised=False,
            options=options,
            on_call=records.append,
            backoff=Backoff(attempts=2, base=0),
        ) as source:
            for _ in range(2):
                with pytest.raises(TransientError, match=r"no connection within|did not arrive within"):
                    source.send(Request("/rows"))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(calls // 4)))
    assert {record.error_class for record in records} == {"transient"}
    assert max(record.milliseconds for record in records) / 1000 <= OPTIONS["total_timeout"] + 1.0
    row.happened(len(records))
    row.ran(len(records))
    let_in()
    with a_source(database, url, authorised=False, options=Options(url)) as source:
        assert source.send(Request("/rows")).body == PAGE
