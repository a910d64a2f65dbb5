"""The shared rate limit: spacing as the server sees it, from several processes in several time zones."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import URL

from sis_pipeline.connect.errors import retry_after
from sis_pipeline.connect.limits import SPARE, RateLimit, limit_key, listed, reset
from sis_pipeline_tests.connect.servers import Sis, serve
from sis_pipeline_tests.connect.workers import in_processes, send_many


def grants(database: Engine, key: str) -> int:
    with database.connect() as connection:
        return connection.scalar(text("select granted from sis.rate_limits where limit_key = :k"), {"k": key}) or 0


def test_the_first_slot_is_free_and_the_second_is_a_gap_away(database: Engine) -> None:
    limit = RateLimit(database)
    first, second = limit.reserve("a", 60), limit.reserve("a", 60)
    assert (first.granted, first.wait) == (True, 0)
    assert not second.granted
    assert 0.5 < second.wait < 1.01
    assert limit.reserve("b", 60).granted, "another source has its own"
    assert grants(database, "a") == 1


def test_time_that_was_not_used_is_not_saved_up(database: Engine) -> None:
    limit = RateLimit(database)
    limit.reserve("a", 600)
    time.sleep(0.3)
    assert limit.reserve("a", 600).granted
    assert not limit.reserve("a", 600).granted


def test_a_push_back_holds_everybody_and_never_shortens(database: Engine) -> None:
    limit, other = RateLimit(database), RateLimit(database)
    limit.push_back("a", 30)
    limit.push_back("a", 5)
    limit.push_back("a", -100)
    slot = other.reserve("a", 6000)
    assert not slot.granted
    assert 29 < slot.wait < 30.1
    limit.push_back("a", 1e9)
    assert 890 < other.reserve("a", 6000).wait < 900.1
    assert grants(database, "a") == 0


def test_a_clock_that_is_set_back_holds_nobody(database: Engine) -> None:
    """What the source asked for holds on all the same, and an even pace does from the next slot on."""
    limit = RateLimit(database)
    with database.connect() as connection:
        ahead = connection.scalar(text("select sis.clock() + interval '10 minutes'"))
    for pushed in (None, ahead):
        limit.reserve("k", 60)
        with database.begin() as connection:
            change = text("update sis.rate_limits set next_free = :ahead, pushed_until = :pushed")
            connection.execute(change, {"ahead": ahead, "pushed": pushed})
        slot = limit.reserve("k", 60)
        assert slot.granted == (pushed is None)
        assert slot.wait == pytest.approx(0 if pushed is None else 600, abs=5)
        if pushed is None:
            assert limit.reserve("k", 60).wait == pytest.approx(60 / 60 * SPARE, abs=0.2)


def test_a_person_sees_and_resets_it(database: Engine) -> None:
    limit = RateLimit(database)
    limit.reserve("a", 60)
    limit.reserve("b", 90)
    limit.push_back("a", 300)
    limit.push_back("a", 20)
    with database.begin() as connection:
        one, other = listed(connection)
        assert (one.key, one.per_minute, one.granted) == ("a", 60, 1)
        assert 299 < one.pushed <= 300
        assert one.next_free == pytest.approx(one.pushed, abs=0.1)
        assert (other.key, other.per_minute, other.pushed) == ("b", 90, 0)
        assert listed(connection, "b")[0].key == "b"
        assert reset(connection, "a")
        assert not reset(connection, "c")
    with database.begin() as connection:
        assert (listed(connection, "a")[0].pushed, listed(connection, "a")[0].next_free) == (0, 0)
        assert not reset(connection, "a"), "nobody waits any more"
    assert limit.reserve("a", 60).granted


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ("3", 3, 3), ("0", 0, 0), ("1.5", 1.5, 1.5), ("-5", 0, 0), ("soon", 0, 0), ("1e9", 0, 0), ("", 0, 0),
        ("1000000000", 900, 900), ("9" * 400, 900, 900), ("Fri, 31 Dec 1999 23:59:59 GMT", 0, 0),
        ("Mon, 23 Nov 2026 10:00:30 GMT", 30, 30), ("Mon, 23 Nov 2099 10:00:30 GMT", 900, 900), ("٣", 0, 0),
    ],
)  # fmt: skip
def test_whatever_is_asked_moves_the_row_by_a_sane_time(
    database: Engine, asked: str, least: float, most: float
) -> None:
    """No wait, for forms that say none (the caller's own backoff applies); never longer than a quarter of an hour."""
    seconds = retry_after({"retry-after": asked, "date": "Mon, 23 Nov 2026 10:00:00 GMT"}) or 0.0
    RateLimit(database).push_back("a", seconds)
    with database.connect() as connection:
        pushed = listed(connection)[0].pushed
    assert max(least - 1, 0) <= pushed <= most


def test_what_shares_a_limit() -> None:
    assert limit_key("powerschool", "https://A.example.org/ws", "c", None) == "powerschool https://a.example.org:443 c"
    assert limit_key("powerschool", "https://a.example.org", None, None) == "powerschool https://a.example.org:443 -"
    assert limit_key("powerschool", "https://a.example.org", "c", "county") == "group county"


def test_a_slot_waited_for_moves_with_a_push_back(database: Engine) -> None:
    limit = RateLimit(database)
    limit.reserve("a", 600)
    waits = limit.waits("a", 600)
    assert next(waits) < 0.11
    RateLimit(database).push_back("a", 5)
    time.sleep(0.1)
    assert next(waits) > 4


@pytest.fixture
def slots(database: Engine) -> Iterator[Callable[[], list[float]]]:
    """When each granted slot ended, in seconds on the database clock, as a trigger wrote it down."""
    with database.begin() as connection:
        connection.exec_driver_sql("""
            create table sis.slots (number serial, ends timestamptz);
            create function sis.note_slot() returns trigger language plpgsql as
                'begin insert into sis.slots (ends) values (new.next_free); return null; end';
            create trigger note_slot after insert or update of granted on sis.rate_limits
                for each row when (new.granted > 0) execute function sis.note_slot();
        """)

    def read() -> list[float]:
        with database.connect() as connection:
            query = "select extract(epoch from ends)::float8 from sis.slots order by number"
            return list(connection.scalars(text(query)))

    yield read
    with database.begin() as connection:
        connection.exec_driver_sql("drop function sis.note_slot cascade; drop table sis.slots")


@dataclass(frozen=True)
class Seen:
    """A run of several processes: their results, and the arrivals at the server in seconds."""

    results: list[dict[str, float]]
    arrivals: list[float]


def run(database_url: URL, *, processes: int, calls: int, per_minute: float) -> Seen:
    zones = ["UTC", "America/New_York", "Asia/Kathmandu"]
    with serve(Sis()) as sis:
        work = {
            "database": database_url.render_as_string(hide_password=False),
            "url": sis.url,
            "path": "/open",
            "calls": calls,
            "per_minute": per_minute,
        }
        results = in_processes(processes, send_many, lambda number: {**work, "zone": zones[number % 3]})
    return Seen(results, sorted(sis.arrivals))


def test_processes_in_several_time_zones_share_evenly_spaced_slots(
    database_url: URL, slots: Callable[[], list[float]]
) -> None:
    """1,200 a minute, twenty times the usual. The slots are exact; arrivals may bunch by what the machine delays them."""
    seen = run(database_url, processes=6, calls=8, per_minute=1200)
    assert sum(result["calls"] for result in seen.results) == len(seen.arrivals) == len(slots()) == 48
    assert min(later - earlier for earlier, later in itertools.pairwise(slots())) > 0.05 * SPARE - 1e-5
    assert all(later - earlier > 0.9 for earlier, later in zip(seen.arrivals, seen.arrivals[20:], strict=False))
    assert all(result["waited"] > 0 for result in seen.results)


def test_hardly_any_of_the_limit_is_left_unused(database: Engine, slots: Callable[[], list[float]]) -> None:
    """61 calls at 60 a minute, by a caller that always wakes 2 ms late.

    The caller moves the database clock instead of sleeping, so that a busy machine does not decide the outcome.
    """
    engine = create_engine(database.url, pool_size=1, max_overflow=0, connect_args={"options": "-c search_path=sis"})
    limit, slept, starts = RateLimit(engine), 0.0, []
    for _ in range(61):
        for wait in limit.waits("a", 60):
            slept += wait + 0.002
            with engine.begin() as connection:
                connection.execute(text("select set_config('sis.clock_offset', :o, false)"), {"o": f"{slept} seconds"})
        with engine.connect() as connection:
            starts.append(float(connection.scalar(text("select extract(epoch from sis.clock())"))))
    engine.dispose()
    assert 60.0 <= starts[-1] - starts[0] <= 60.0 / 0.98
    # a call that the machine delays comes nearer to the next one; their slots do not
    assert min(later - earlier for earlier, later in itertools.pairwise(slots())) > 0.98
