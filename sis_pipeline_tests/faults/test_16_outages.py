"""A system that is down, seen by eight processes at once: one breaker for all, one probe at a time, and a quick return.
The counts are those of a server on loopback; the breaker's states are written down by a trigger on its row."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.pool import Pool
from typing import Any

import pytest
from sqlalchemy import Engine, text

from sis_pipeline.connect import breaker
from sis_pipeline_tests.connect.servers import http_answer, raw_server
from sis_pipeline_tests.faults.knocking import knock
from sis_pipeline_tests.faults.rows import Count, Recorder, Row
from sis_pipeline_tests.forking import ready_pool

SECONDS = 60.0
PROCESSES = 8
SPEED = 20
LONGEST_TO_OPEN = 5.0
ROW = Row(
    16,
    f"an outage of {SECONDS:.0f} s (503, or connections hung up) with {PROCESSES} processes calling",
    "the breaker opens within 5 s of the fifth failure, exactly one call is made per half-open, all work again within "
    "one period of the end; refusals and broken data never open it",
    20,
    "outages",
    scaled=f"every outage but two runs on a database clock that is {SPEED} times as fast, so for "
    f"{SECONDS / SPEED:.0f} s; the one of each kind that runs in full is part of the full run only",
)
GOOD = http_answer(b'{"rows": []}')
DOWN = {"503": http_answer(b"{}", "503 Service Unavailable"), "hung up": b""}


@dataclass
class Outage:
    """A server that is down for so many seconds from its first call on; `arrivals` are on this machine's clock."""

    kind: str
    seconds: float
    arrivals: list[float] = field(default_factory=list)

    def __call__(self, connection: socket.socket) -> None:
        now = time.time()
        self.arrivals.append(now)
        connection.sendall(DOWN[self.kind] if now < self.ends else GOOD)

    @property
    def failed(self) -> int:
        """Calls that met it."""
        return sum(at < self.ends for at in self.arrivals)

    @property
    def ends(self) -> float:
        return self.arrivals[0] + self.seconds


@dataclass(frozen=True)
class State:
    """A state that the breaker took, and when, on this machine's clock."""

    name: str
    at: float


def note_states(database: Engine, speed: float) -> None:
    """Have every state of every breaker written down from now on; `speed`: of the database's clock."""
    with database.begin() as connection:
        connection.exec_driver_sql(f"""
            create table sis.states (number serial, key text, state text, at timestamptz default clock_timestamp());
            create function sis.note_state() returns trigger language plpgsql as
                'begin insert into sis.states (key, state) values (new.breaker_key, new.state); return null; end';
            create trigger note_state after update of state on sis.circuit_breakers
                for each row when (old.state is distinct from new.state) execute function sis.note_state();
            create or replace function sis.clock() returns timestamptz language sql volatile parallel safe as
                $$ select to_timestamp(extract(epoch from clock_timestamp()) * {speed}) $$
        """)


def states(database: Engine, url: str) -> list[State]:
    query = text("select state, extract(epoch from at)::float8 from sis.states where key like :key order by number")
    with database.connect() as connection:
        return [State(*found) for found in connection.execute(query, {"key": f"% {url}%"})]


@pytest.fixture
def callers() -> Iterator[Pool]:
    with ready_pool(PROCESSES) as pool:
        yield pool


def address(database: Engine) -> str:
    return database.url.render_as_string(hide_password=False)


def all_call(callers: Pool, **work: Any) -> list[Counter[str]]:
    """Every process calls until the system is back; what each of them met."""
    pending = [callers.apply_async(knock, kwds=work) for _ in range(PROCESSES)]
    return [one.get(timeout=180) for one in pending]


def suffer(database: Engine, callers: Pool, outage: Outage, *, look_again: float, poll: float) -> list[State]:
    """Live through an outage, and prove what must hold. `look_again`, `poll`: seconds."""
    with raw_server(outage) as server:
        url = database.url.render_as_string(hide_password=False)
        met = all_call(callers, database=url, url=server.url, until=time.time() + 150, look_again=look_again, poll=poll)
        passed = states(database, server.url)
    assert (passed[0].name, passed[-1].name) == ("open", "closed")
    assert [state.name for state in passed].count("closed") == 1, "it closed when the system was back, and not before"
    assert passed[0].at - outage.arrivals[breaker.FAILURES - 1] <= LONGEST_TO_OPEN
    _prove_one_call_per_probe(passed, outage, grace=look_again + 0.5)
    assert all(one["good"] > 0 and one["left alone"] > 0 for one in met), (
        f"everybody was held off, and works again: {met}"
    )
    return passed


def _prove_one_call_per_probe(passed: Sequence[State], outage: Outage, *, grace: float) -> None:
    """While it is open nothing arrives, but for one call of each process that had looked just before; while half open,
    one call does."""
    for state, following in pairwise(passed):
        arrived = [at for at in outage.arrivals if state.at < at < following.at]
        if state.name == "half_open":
            assert len(arrived) == 1, "one probe"
        elif state is passed[0]:
            assert len(arrived) < PROCESSES
            assert all(at < state.at + grace for at in arrived), "only those who had looked before"
        else:
            assert arrived == [], "nobody calls while it is open"


def prove_quick_return(passed: Sequence[State], outage: Outage, speed: float) -> None:
    """60 s end within the second opening, which is 48 to 60 s long."""
    assert probes(passed) == 2, "one that failed, one that closed it"
    assert passed[-1].at - outage.ends <= breaker.next_open_seconds(breaker.OPEN_FIRST) / speed, (
        "back within one period"
    )


def probes(passed: Sequence[State]) -> int:
    return [state.name for state in passed].count("half_open")


def test_outages_on_a_faster_clock(database: Engine, callers: Pool, row: Recorder, count: Count) -> None:
    note_states(database, SPEED)
    for number in range(count(full=ROW.asked - len(DOWN), part=1)):
        outage = Outage(list(DOWN)[number % len(DOWN)], SECONDS / SPEED)
        passed = suffer(database, callers, outage, look_again=0.02, poll=0.02)
        prove_quick_return(passed, outage, SPEED)
        row.happened(outage.failed)
        row.ran()


@pytest.mark.faults
@pytest.mark.parametrize("kind", DOWN)
def test_an_outage_in_full(database: Engine, callers: Pool, row: Recorder, kind: str) -> None:
    note_states(database, 1)
    outage = Outage(kind, SECONDS)
    passed = suffer(database, callers, outage, look_again=breaker.LOOK_AGAIN, poll=0.25)
    prove_quick_return(passed, outage, 1)
    row.happened(outage.failed)
    row.ran()
    row.note(
        f"{kind}, in full: open {passed[0].at - outage.arrivals[breaker.FAILURES - 1]:.2f} s after the fifth failure, "
        f"{outage.failed} calls in the minute, {probes(passed)} probes, back {passed[-1].at - outage.ends:.1f} s after "
        "its end"
    )


REFUSED = {
    "401": http_answer(b"{}", "401 Unauthorized"),
    "403": http_answer(b"{}", "403 Forbidden"),
    "404": http_answer(b"{}", "404 Not Found"),
    "a page of HTML": http_answer(b"<html>Sign in</html>", Content_Type="text/html"),
}


def test_refusals_and_broken_data_never_open_it(database: Engine, callers: Pool) -> None:
    calls = 5
    for name, answer in REFUSED.items():
        with raw_server(lambda connection, answer=answer: connection.sendall(answer)) as server:  # type: ignore[misc]
            met = all_call(callers, database=address(database), url=server.url, until=time.time() + 60, calls=calls)
            arrived = len(server.requests)
        assert [dict(one) for one in met] == [{"refused": calls}] * PROCESSES, name
        assert arrived == calls * PROCESSES, f"{name}: nobody was held off"
        with database.connect() as connection:
            assert breaker.listed(connection) == []
