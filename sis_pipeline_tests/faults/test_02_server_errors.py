"""Bursts of 5xx answers: short ones are ridden out, long ones open the breaker, and the rest of the run fails at once."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import Engine

from sis_pipeline.connect.breaker import FAILURES, OPEN_FIRST, SourceLeftAloneError
from sis_pipeline.connect.contract import Request
from sis_pipeline.connect.errors import TransientError
from sis_pipeline.connect.source import HttpSource
from sis_pipeline_tests.connect.servers import http_answer, raw_server
from sis_pipeline_tests.connect.workers import a_source
from sis_pipeline_tests.faults.clock import Clock
from sis_pipeline_tests.faults.rows import Count, Recorder, Row

ROW = Row(
    2,
    "bursts of 1 to 20 answers 500, 502, 503 and 504",
    "recovered after up to 4; then the breaker opens, the rest of the run fails at once and sends nothing, one probe a "
    "period finds the end of the burst",
    400,
    "bursts",
)

STATUSES = (500, 502, 503, 504)
GOOD = http_answer(b'{"rows": []}')


class Burst:
    """Answers with an error so many times, then well."""

    def __init__(self, status: int, length: int) -> None:
        self.bad, self.length, self.answers = http_answer(b"{}", f"{status} X"), length, 0

    def __call__(self, connection: socket.socket) -> None:
        self.answers += 1
        connection.sendall(self.bad if self.answers <= self.length else GOOD)

    @property
    def suffered(self) -> int:
        return min(self.answers, self.length)


def test_bursts(database: Engine, count: Count, row: Recorder) -> None:
    times, clock, opened = count(full=5, part=1), Clock(database), []
    lengths = range(1, 21) if times > 1 else (1, 4, 5, 6, 20)
    with ExitStack() as stack:
        for _ in range(times):
            for status, length in itertools.product(STATUSES, lengths):
                burst = Burst(status, length)
                server = stack.enter_context(raw_server(burst))
                source = stack.enter_context(a_source(database, server.url, authorised=False))
                if length < FAILURES:
                    source.send(Request("/rows"))
                    assert burst.answers == length + 1
                else:
                    fails_and_stays_shut(source, burst)
                    opened.append((source, burst))
                row.happened(burst.suffered)
                row.ran()
        probe_all(clock, opened, row)


def fails_and_stays_shut(source: HttpSource, burst: Burst) -> None:
    with pytest.raises(TransientError):
        source.send(Request("/rows"))
    assert burst.answers == FAILURES
    began = time.monotonic()
    for _ in range(5):
        with pytest.raises(SourceLeftAloneError):
            source.send(Request("/rows"))
    assert burst.answers == FAILURES, "nothing was sent while it is open"
    assert time.monotonic() - began < 2


def probe_all(clock: Clock, opened: list[tuple[HttpSource, Burst]], row: Recorder) -> None:
    """Period after period, each twice as long: exactly one call goes out until one is answered."""
    period = OPEN_FIRST
    for _ in range(20):
        waiting = [(source, burst) for source, burst in opened if burst.answers <= burst.length]
        if not waiting:
            break
        clock.leap(period + 1)
        period = min(2 * period, 900)
        for source, burst in waiting:
            before = burst.answers
            for error in outcomes(source):
                assert error is None or isinstance(error, TransientError)
            sent = burst.answers - before
            assert sent == (1 if before < burst.length else 2), "one probe, and calls only behind one that went well"
            row.happened(min(sent, max(0, burst.length - before)))
    assert all(burst.answers > burst.length for _, burst in opened), "every system came back"


def outcomes(source: HttpSource) -> Iterator[Exception | None]:
    for _ in range(2):
        try:
            source.send(Request("/rows"))
        except TransientError as error:
            yield error
        else:
            yield None
