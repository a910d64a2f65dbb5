"""The shared breaker: what opens it, who may probe, when it closes; the database clock is moved, nobody waits."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine import URL

from sis_pipeline.connect import breaker as module
from sis_pipeline.connect.breaker import (
    Breaker,
    SourceLeftAloneError,
    breaker_key,
    listed,
    next_open_seconds,
    reset,
    trips,
)
from sis_pipeline.connect.errors import (
    AuthExpiredError,
    ConfigError,
    ContractError,
    DataError,
    ErrorClass,
    RateLimitedError,
    SisError,
    TransientError,
)
from sis_pipeline_tests.connect.servers import Sis, serve
from sis_pipeline_tests.connect.workers import in_processes, knock
from sis_pipeline_tests.forking import FORKS

KEY = "oneroster https://sis.example.org:443/lincoln"
FAILED = TransientError("GET /users of integration 'lincoln' answered 503.")


class Clock:
    """An engine of one connection, whose database clock is moved by hand."""

    def __init__(self, url: URL) -> None:
        self.engine = create_engine(url, pool_size=1, max_overflow=0, connect_args={"options": "-c search_path=sis"})
        self.seconds = 0.0

    def forward(self, seconds: float) -> None:
        self.seconds += seconds
        with self.engine.begin() as connection:
            query = text("select set_config('sis.clock_offset', :offset, false)")
            connection.execute(query, {"offset": f"{self.seconds} seconds"})


@pytest.fixture
def clock(database: Engine) -> Iterator[Clock]:
    clock = Clock(database.url)
    yield clock
    clock.engine.dispose()


@pytest.fixture(autouse=True)
def _no_stale_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN", 0.0)


def a_breaker(clock: Clock, lease: float = 60) -> Breaker:
    return Breaker(clock.engine, KEY, lease=lease)


def call(breaker: Breaker, failure: SisError | None = None) -> None:
    breaker.settle(breaker.enter(), failure, answered=failure is None)


def opened(clock: Clock) -> Breaker:
    breaker = a_breaker(clock)
    for _ in range(5):
        call(breaker, FAILED)
    return breaker


def refusal(breaker: Breaker) -> SourceLeftAloneError:
    with pytest.raises(SourceLeftAloneError) as caught:
        breaker.enter()
    return caught.value


def row(clock: Clock) -> Any:
    with clock.engine.connect() as connection:
        return connection.execute(text("select * from sis.circuit_breakers")).one()


def test_five_failures_in_a_row_open_it(clock: Clock) -> None:
    breaker = a_breaker(clock)
    for _ in range(4):
        call(breaker, FAILED)
    breaker.check()
    call(breaker, FAILED)
    error = refusal(breaker)
    assert 24 <= error.retry_after <= 30
    assert "left alone for another" in error.message
    assert "because: GET /users of integration 'lincoln' answered 503." in error.message
    assert error.error_class is ErrorClass.TRANSIENT
    assert not error.policy.retry, "the door has waited for as long as it would"
    assert not error.policy.breaker
    with pytest.raises(SourceLeftAloneError):
        Breaker(clock.engine, KEY, lease=1).check()
    Breaker(clock.engine, f"{KEY}-other", lease=1).check()


def test_a_clock_that_is_set_back_holds_nobody(clock: Clock) -> None:
    clock.forward(3600)
    breaker = opened(clock)
    assert refusal(breaker).retry_after <= 30
    clock.forward(-3600)
    with clock.engine.connect() as connection:
        (state,) = listed(connection)
    assert (state.state, state.retry_after, state.open_since) == ("open", 0, 0)
    assert breaker.enter().probe
    clock.forward(-7200)
    assert a_breaker(clock).enter().probe, "a probe's lease that ends in hours is none"


def test_processes_count_together(clock: Clock) -> None:
    for _ in range(5):
        call(a_breaker(clock), FAILED)
    assert row(clock).state == "open"


def test_a_success_between_starts_the_count_anew(clock: Clock) -> None:
    breaker = a_breaker(clock)
    for failure in [FAILED] * 4 + [None] + [FAILED] * 4:
        call(breaker, failure)
    assert (row(clock).state, row(clock).failures) == ("closed", 4)


def test_half_of_twenty_in_a_minute_open_it(clock: Clock) -> None:
    breaker = a_breaker(clock)
    for _ in range(9):
        call(breaker, FAILED)
        call(breaker)
    call(breaker, FAILED)  # the nineteenth call
    assert row(clock).state == "closed"
    call(breaker, FAILED)
    assert row(clock).state == "open"


def test_failures_that_are_spread_out_do_not(clock: Clock) -> None:
    breaker = a_breaker(clock)
    for _ in range(30):
        call(breaker, FAILED)
        call(breaker)
        clock.forward(7)
    assert row(clock).state == "closed"


@pytest.mark.parametrize("kind", [AuthExpiredError, ConfigError, ContractError, DataError, RateLimitedError])
def test_other_classes_never_count(clock: Clock, kind: type[SisError]) -> None:
    breaker = a_breaker(clock)
    for _ in range(30):
        breaker.settle(breaker.enter(), kind("x"), answered=True)
    breaker.check()
    with clock.engine.connect() as connection:
        assert connection.scalar(text("select count(*) from sis.circuit_breakers")) == 0


@given(st.integers(0, 30), st.integers(0, 200), st.integers(0, 200))
def test_what_opens_it(failures: int, calls: int, failed: int) -> None:
    expected = failures >= 5 or (calls >= 20 and failed * 2 >= calls)
    assert trips(failures, calls, failed) == expected


def test_a_closed_breaker_writes_nothing_and_hardly_looks(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN", 60.0)
    statements: list[str] = []
    breaker = Breaker(database, KEY, lease=1)

    def note(_c: object, _k: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(database, "before_cursor_execute", note)
    try:
        for _ in range(100):
            call(breaker)
        assert len(statements) == 1
        assert statements[0].strip().startswith("select")
        call(breaker, FAILED)
        breaker._closed_until = 0.0
        statements.clear()
        for _ in range(3):
            call(breaker)
        assert len(statements) == 1 + 3, "while failures are remembered each success is told"
    finally:
        event.remove(database, "before_cursor_execute", note)


def test_one_probe_and_a_success_closes_it(clock: Clock) -> None:
    opened(clock)
    clock.forward(31)
    first, second = a_breaker(clock), a_breaker(clock)
    probe = first.enter()
    assert probe.probe
    error = refusal(second)
    assert "another process tries" in error.message
    assert error.retry_after <= 1
    assert row(clock).state == "half_open"
    first.confirm(probe, waited=False)
    first.settle(probe, None, answered=True)
    assert (row(clock).state, row(clock).failures, row(clock).opened_at) == ("closed", 0, None)
    assert not second.enter().probe


def test_a_failed_probe_doubles_the_time_up_to_a_quarter_of_an_hour(clock: Clock) -> None:
    opened(clock)
    nominal, waits = [], []
    since = row(clock).opened_at
    for _ in range(7):
        waits.append(refusal(a_breaker(clock)).retry_after)
        nominal.append(row(clock).open_seconds)
        clock.forward(nominal[-1])
        call(a_breaker(clock), FAILED)
    assert nominal == [30, 60, 120, 240, 480, 900, 900]
    assert all(0.8 * full - 1 <= wait <= full for full, wait in zip(nominal, waits, strict=True))
    assert len({wait / full for full, wait in zip(nominal, waits, strict=True)}) > 1, "jittered"
    assert row(clock).opened_at == since, "the outage began once"
    clock.forward(901)
    call(a_breaker(clock))
    opened(clock)
    assert row(clock).open_seconds == 30, "after a recovery it starts anew"


@given(st.floats(1, 900))
def test_the_time_grows_and_has_an_end(seconds: float) -> None:
    assert seconds <= next_open_seconds(seconds) <= 900


@pytest.mark.parametrize("error", [ConfigError("x"), RateLimitedError("x"), AuthExpiredError("x")])
def test_any_answer_to_a_probe_is_a_sign_of_life(clock: Clock, error: SisError) -> None:
    opened(clock)
    clock.forward(31)
    breaker = a_breaker(clock)
    breaker.settle(breaker.enter(), error, answered=True)
    assert row(clock).state == "closed"


def test_a_probe_that_was_not_sent_is_free_for_the_next(clock: Clock) -> None:
    opened(clock)
    clock.forward(31)
    breaker = a_breaker(clock)
    breaker.settle(breaker.enter(), None, answered=False)
    assert row(clock).state == "open"
    assert a_breaker(clock).enter().probe


def test_late_results_of_an_earlier_state_change_nothing(clock: Clock) -> None:
    slow = a_breaker(clock)
    late_failure, late_success = slow.enter(), slow.enter()
    opened(clock)
    slow.settle(late_success, None, answered=True)
    assert row(clock).state == "open"
    clock.forward(31)
    call(a_breaker(clock))
    slow.settle(late_failure, FAILED, answered=True)
    assert (row(clock).state, row(clock).failures) == ("closed", 0)


def test_a_call_that_waited_for_its_turn_is_not_sent_to_a_system_that_failed_meanwhile(clock: Clock) -> None:
    waiting = a_breaker(clock)
    permit = waiting.enter()
    opened(clock)
    with pytest.raises(SourceLeftAloneError):
        waiting.confirm(permit, waited=True)


def test_a_lease_that_ended_passes_the_probe_on_and_the_old_holder_does_not_send(clock: Clock) -> None:
    opened(clock)
    clock.forward(31)
    old, new = a_breaker(clock), a_breaker(clock)
    stale = old.enter()
    clock.forward(61)
    assert new.enter().probe
    with pytest.raises(SourceLeftAloneError):
        old.confirm(stale, waited=True)
    old.settle(stale, None, answered=True)
    assert row(clock).state == "half_open", "only the new holder decides"


def _claim_and_wait(url: str, ready: Any) -> None:
    probe = Breaker(create_engine(url), KEY, lease=3600).enter()
    ready.send(probe.probe)
    signal.pause()


def test_the_probe_of_a_killed_process_is_free_at_once(clock: Clock, database: Engine) -> None:
    opened(clock)
    with clock.engine.begin() as connection:
        connection.execute(text("update sis.circuit_breakers set open_until = sis.clock()"))
    ours, theirs = FORKS.Pipe()
    url = database.url.render_as_string(hide_password=False)
    process = FORKS.Process(target=_claim_and_wait, args=(url, theirs))
    process.start()
    assert ours.poll(30)
    assert ours.recv() is True
    refusal(a_breaker(clock))
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(10)
    assert process.exitcode == -signal.SIGKILL
    assert a_breaker(clock).enter().probe


def test_a_person_sees_and_resets_it(clock: Clock) -> None:
    opened(clock)
    clock.forward(5)
    with clock.engine.begin() as connection:
        (state,) = listed(connection)
        assert (state.key, state.state, state.failures, state.last_error) == (KEY, "open", 5, FAILED.message)
        assert 5 <= (state.open_since or 0) < 10
        assert 19 <= state.retry_after <= 25
        assert reset(connection, KEY)
        assert not reset(connection, KEY)
        assert listed(connection) == []
    a_breaker(clock).check()


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://SIS.example.org/lincoln/", "skyward https://sis.example.org:443/lincoln"),
        ("https://sis.example.org:8443", "skyward https://sis.example.org:8443"),
        ("https://sis.example.org/campus/oauth2/token?appName=x", "skyward https://sis.example.org:443/campus/oauth2/token"),
    ],
)  # fmt: skip
def test_what_fails_together(url: str, key: str) -> None:
    assert breaker_key("skyward", url) == key


@pytest.fixture
def states(database: Engine) -> Iterator[Callable[[], list[str]]]:
    """Every state the row took, in order, as a trigger wrote it down; with a database clock 20 times as fast."""
    with database.begin() as connection:
        connection.exec_driver_sql("""
            create table sis.states (number serial, state text, at timestamptz default clock_timestamp());
            create function sis.note_state() returns trigger language plpgsql as
                'begin insert into sis.states (state) values (new.state); return null; end';
            create trigger note_state after update of state on sis.circuit_breakers
                for each row when (old.state is distinct from new.state) execute function sis.note_state();
        """)
        before = connection.exec_driver_sql("select pg_get_functiondef('sis.clock'::regproc)").scalar_one()
        connection.exec_driver_sql("""
            create or replace function sis.clock() returns timestamptz language sql volatile parallel safe as
            $$ select to_timestamp(extract(epoch from clock_timestamp()) * 20) $$
        """)

    def read() -> list[str]:
        with database.connect() as connection:
            return list(connection.scalars(text("select state from sis.states order by number")))

    yield read
    with database.begin() as connection:
        connection.exec_driver_sql(before)
        connection.exec_driver_sql("drop function sis.note_state cascade; drop table sis.states")


def test_eight_processes_in_an_outage_send_one_probe_per_half_open(
    database_url: URL, states: Callable[[], list[str]]
) -> None:
    """An outage of 60 s in 3 s: it opens, one of eight probes each time, and all work again within one period."""
    outage = 3.0
    with serve(Sis(down_for=outage)) as sis:
        url = database_url.render_as_string(hide_password=False)
        work = {"database": url, "url": sis.url, "until": time.time() + 45}
        results = in_processes(8, knock, lambda _: work)
    passed = states()
    assert passed[0] == "open"
    assert passed[-1] == "closed"
    assert all(later != earlier for earlier, later in itertools.pairwise(passed))
    probes = passed.count("half_open")
    failures = [arrival for arrival in sis.arrivals if arrival < sis.arrivals[0] + outage]
    assert probes >= 2, "the outage outlasted the first opening"
    # those under way when it opened (at most one for each process) are not probes
    assert 5 + probes - 1 <= len(failures) <= 5 + 7 + probes - 1
    assert passed.count("closed") == 1
    # 60 s of outage end within the second or third opening, at most 120 s long: 6 s at this speed
    assert all(result["good"] > 0 for result in results), "everybody works again"
    recovered = min(arrival for arrival in sis.arrivals if arrival >= sis.arrivals[0] + outage)
    assert recovered - sis.arrivals[0] - outage < 120 / 20
