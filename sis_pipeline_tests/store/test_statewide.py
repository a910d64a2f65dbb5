"""What is found across districts follows what each publishes, in any order, and only where a person turned it on."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import date, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db import audit
from sis_pipeline.db.tables import roster_tables
from sis_pipeline.roster.district import merge_district
from sis_pipeline.roster.enrollments import TRANSFER_DAYS
from sis_pipeline.store import statewide as module
from sis_pipeline.store.erasure import Erasing
from sis_pipeline.store.publish import publish
from sis_pipeline.store.statewide import Matching, Statewide
from sis_pipeline.store.undo import Undoing
from sis_pipeline_tests.store.conftest import YEAR, add_integration, good_snapshot, sis_student

BY = {"actor": "ada", "reason": "the state asks for it"}
LEFT, CAME = date(2025, 10, 1), date(2025, 10, 3)
TODAY = date(2025, 10, 6)


def stay(**values: Any) -> dict[str, Any]:
    return {
        "sis_id": "e7", "student_sis_id": "7", "school_sis_id": "1", "school_year": YEAR, "entry_date": date(2025, 8, 18),
        "entry_date_source": "sis", "enrollment_type": "primary", "status": "active", "record_status": "active", **values,
    }  # fmt: skip


GONE = stay(exit_date=LEFT, status="withdrawn")
THERE = stay(entry_date=CAME)
BESIDE: dict[str, Any] = {"school_sis_id": "2"}
NEVER_CAME: dict[str, Any] = {"entry_date": CAME, "exit_date": CAME, "status": "no_show"}


@pytest.fixture(autouse=True)
def today(database) -> Iterator[None]:
    """The database's day is TODAY."""
    name = database.url.database
    with database.begin() as connection:
        ahead = connection.scalar(text("select cast(:day as timestamptz) - clock_timestamp()"), {"day": TODAY})
        connection.execute(text(f"alter database {name} set sis.clock_offset = '{ahead.total_seconds()} seconds'"))
    database.dispose()
    yield
    with database.begin() as connection:
        connection.execute(text(f"alter database {name} reset sis.clock_offset"))
    database.dispose()


@pytest.fixture
def statewide(database) -> Statewide:
    return Statewide(database)


@pytest.fixture
def day(database, snapshots, merges) -> Callable[..., Any]:
    """Read and publish Ada in one district: lincoln, where she was, or dover, where she comes to."""
    add_integration(database, "dover-ps", "dover")

    def sync(district: str, *stays: dict[str, Any], **ada: Any) -> Any:
        child = sis_student("7", **{"ssid": "77", "birth_date": date(2012, 3, 4), **ada})
        good_snapshot(snapshots, f"{district}-ps", students=[child], enrollments=list(stays))
        gathered = merges.gather(district, YEAR, as_of=TODAY)
        return publish(database, merges, merges.write_merged(gathered, merge_district(gathered.inputs)))

    return sync


def rows(database, query: str) -> list[tuple]:
    with database.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def found(database) -> list[tuple]:
    columns = "kind, district, exit_date, other_district, entry_date"
    return rows(database, f"select {columns} from sis.statewide_transfers order by kind, district")


def linked(database) -> list[tuple]:
    return rows(database, "select district, other_district, decision, evidence from sis.statewide_links")


def pending(database) -> list[tuple]:
    return rows(database, "select district, exit_date from sis.pending_transfers")


WENT_OVER = ("transfer", "lincoln", LEFT, "dover", CAME)


def test_nothing_is_compared_until_a_person_says_so(database, day, statewide):
    day("lincoln", GONE)
    day("dover", THERE)
    assert (linked(database), found(database), pending(database)) == ([], [], [])
    assert statewide.matching() == Matching()
    done, counts = statewide.set(enabled=True, **BY)
    assert (done.version, done.enabled, done.set_by) == (1, True, "ada")
    assert counts == {"match": 1, "transfer": 1}
    assert linked(database) == [("dover", "lincoln", "match", "ssid, first_name, last_name, birth_date")]
    assert found(database) == [WENT_OVER]
    assert statewide.set(enabled=True, **BY)[0].version == 1, "nothing differs, nothing is kept"
    assert statewide.set(enabled=False, **BY)[1] == {}
    assert (linked(database), found(database)) == ([], [])
    with database.connect() as connection:
        entries = [
            (it["action"], it["actor"], it["details"]["reason"]) for it in audit.read(connection, district="*", limit=9)
        ]
    assert sorted(entries) == [("statewide.off", "ada", BY["reason"]), ("statewide.on", "ada", BY["reason"])]


@pytest.mark.parametrize("order", [("lincoln", "dover"), ("dover", "lincoln")])
def test_the_districts_may_be_published_in_any_order(database, day, statewide, order):
    statewide.set(enabled=True, **BY)
    stays = {"lincoln": GONE, "dover": THERE}
    ledgers = [day(district, stays[district]).changes for district in order]
    assert found(database) == [WENT_OVER]
    assert not any("transfer" in changes for changes in ledgers), "each ledger tells its own half"
    [(when,)] = rows(database, "select found_at from sis.statewide_transfers")
    assert day("lincoln", GONE).unchanged
    assert rows(database, "select found_at from sis.statewide_transfers") == [(when,)]


def test_it_follows_corrections_and_undo(database, merges, day, statewide):
    statewide.set(enabled=True, **BY)
    day("lincoln", stay())
    day("dover", THERE)
    assert found(database) == [("concurrent", "lincoln", None, "dover", CAME)]
    left = day("lincoln", GONE)
    assert found(database) == [WENT_OVER]
    undoing = Undoing(database, merges)
    undoing.plan(left.operation_id)
    assert found(database) == [WENT_OVER], "looked at, not done"
    undoing.undo(left.operation_id, **BY)
    assert found(database) == [("concurrent", "lincoln", None, "dover", CAME)]
    day("dover", THERE, first_name="Robin")
    assert [row[2] for row in linked(database)] == ["near_match"], "another child under the number"
    assert found(database) == []


def test_a_third_district_sees_what_a_correction_in_the_first_one_means_for_it(database, day, statewide):
    """Ada left lincoln and erie before she came to dover: the nearest counts, and then the other one."""
    add_integration(database, "erie-ps", "erie")
    statewide.set(enabled=True, **BY)
    day("erie", stay(exit_date=LEFT - timedelta(2), status="withdrawn"))
    day("dover", THERE)
    from_erie = ("transfer", "erie", LEFT - timedelta(2), "dover", CAME)
    assert found(database) == [from_erie]
    day("lincoln", GONE)
    assert found(database) == [WENT_OVER]
    assert len(linked(database)) == 3
    day("lincoln", GONE, ssid="78")
    assert found(database) == [from_erie], "it was another child's number"
    assert len(linked(database)) == 1
    day("lincoln", GONE)
    by_days = (found(database), sorted(linked(database)))
    statewide.set(enabled=False, **BY)
    statewide.set(enabled=True, **BY)
    assert (found(database), sorted(linked(database))) == by_days == ([WENT_OVER], by_days[1])


def test_an_erased_student_is_forgotten_on_both_sides(database, snapshots, vault, day, statewide):
    statewide.set(enabled=True, **BY)
    day("lincoln", GONE)
    day("dover", THERE)
    [(student,)] = rows(database, "select student_id::text from sis.students where district = 'lincoln'")
    Erasing(database, snapshots.files, lambda: vault).erase(student, **BY, force=True)
    assert (linked(database), found(database)) == ([], [])


def meanwhile(monkeypatch, do: Callable[[], Any]) -> None:
    """Once, between reading the students of all districts and writing what was found of them."""
    compare = module.same_children

    def slow(people: Any) -> Any:
        monkeypatch.setattr(module, "same_children", compare)
        links = compare(people)
        do()
        return links

    monkeypatch.setattr(module, "same_children", slow)


@pytest.fixture
def erased_meanwhile(database, snapshots, vault, monkeypatch) -> Iterator[list[Future[Any]]]:
    """The erasure of whoever is published when districts are compared next, begun while they are, and waited for only
    where it does not wait itself."""
    erasing, erasures = Erasing(database, snapshots.files, lambda: vault), list[Future[Any]]()
    waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted"

    def begin() -> None:
        [(student,)] = rows(database, "select student_id::text from sis.students where district = 'lincoln'")
        erasures.append(pool.submit(erasing.erase, student, **BY, force=True))
        while not erasures[0].done() and rows(database, waits) == [(0,)]:
            time.sleep(0.01)  # PostgreSQL tells nobody that somebody waits

    meanwhile(monkeypatch, begin)
    with ThreadPoolExecutor(1) as pool:
        yield erasures


@pytest.mark.parametrize("compared_by", ["publication", "person"])
def test_an_erasure_waits_for_who_compares_and_leaves_no_link(database, day, statewide, compared_by, request):
    day("lincoln", GONE)
    steps = [lambda: day("dover", THERE), lambda: statewide.set(enabled=True, **BY)]
    before, last = steps if compared_by == "person" else reversed(steps)
    before()
    erasures = request.getfixturevalue("erased_meanwhile")
    last()
    erasures[0].result(20)
    assert (linked(database), found(database)) == ([], [])


def test_while_a_person_has_all_compared_others_write_to_the_log_of_all_districts(database, statewide, monkeypatch):
    def note() -> None:
        with database.begin() as connection:
            connection.execute(text("set local lock_timeout = '1s'"))
            audit.append(connection, "test.noted", "districts", district=audit.EVERYWHERE, actor="bea", details={})

    meanwhile(monkeypatch, note)
    statewide.set(enabled=True, **BY)
    query = "select action from sis.audit_log where district = '*' order by entry"
    assert rows(database, query) == [("test.noted",), ("statewide.on",)]


def test_who_left_and_came_nowhere_yet_is_pending_for_as_many_days_as_a_transfer_may_take(database, day, statewide):
    statewide.set(enabled=True, **BY)
    day("lincoln", GONE)
    assert pending(database) == [("lincoln", LEFT)]
    long_ago = TODAY - timedelta(TRANSFER_DAYS)
    day("lincoln", stay(exit_date=long_ago, status="withdrawn"))
    assert pending(database) == [("lincoln", long_ago)]
    day("lincoln", stay(exit_date=long_ago - timedelta(1), status="withdrawn"))
    assert pending(database) == []
    day("lincoln", GONE)
    day("dover", THERE)
    assert pending(database) == []


NOWHERE = [("lincoln", LEFT)]
WHEREABOUTS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], list[tuple[str, date]]]] = {
    "left two schools": ([GONE, GONE | BESIDE], [THERE], []),
    "there weeks before": ([GONE], [stay(entry_date=LEFT - timedelta(20))], []),
    "there before both": ([GONE], [stay(entry_date=date(2025, 8, 1))], []),
    "expected there": ([GONE], [stay(entry_date=TODAY + timedelta(20), status="pre_registered")], []),
    "left there too": ([GONE], [stay(entry_date=CAME, exit_date=TODAY, status="withdrawn")], [("dover", TODAY)]),
    "left there before": ([GONE], [stay(exit_date=LEFT - timedelta(1), status="withdrawn")], NOWHERE),
    "finished a year there": ([GONE], [stay(school_year="2024-2025", entry_date=date(2024, 8, 18))], NOWHERE),
    "never came there": ([GONE], [stay(**NEVER_CAME)], NOWHERE),
    "never came to the next school": ([GONE, stay(**BESIDE, **NEVER_CAME)], [], NOWHERE),
    "at the next school": ([GONE, stay(**BESIDE, entry_date=CAME)], [], []),
}


@pytest.mark.parametrize(("lincoln", "dover", "expected"), WHEREABOUTS.values(), ids=WHEREABOUTS)
def test_pending_is_who_is_nowhere_since(database, statewide, lincoln, dover, expected):
    """Also where no enrollment of there is half of a transfer."""
    with database.begin() as connection:
        for district, stays in (("lincoln", lincoln), ("dover", dover)):
            _write(connection, district, stays)
    statewide.set(enabled=True, **BY)
    assert pending(database) == expected


def test_another_child_with_the_number_is_not_this_one(database, statewide):
    with database.begin() as connection:
        _write(connection, "lincoln", [GONE])
        _write(connection, "dover", [THERE], first_name="Robin")
    statewide.set(enabled=True, **BY)
    assert [row[2] for row in linked(database)] == ["near_match"]
    assert pending(database) == NOWHERE


def _write(connection, district: str, stays: list[dict[str, Any]], **ada: Any) -> None:
    """Ada's rows in a district, as published."""
    who = {"district": district, "student_id": uuid.uuid5(uuid.NAMESPACE_OID, district)}
    ada = {"ssid": "77", "first_name": "Ada", "last_name": "Null", "birth_date": date(2012, 3, 4), **ada}
    known = {"latest_school_year": YEAR, "near_match": False, "origins": {}}
    connection.execute(roster_tables["students"].insert().values(**who, **ada, **known))
    for number, one in enumerate(stays):
        values = {name: value for name, value in one.items() if name in roster_tables["enrollments"].c}
        school = uuid.uuid5(uuid.NAMESPACE_OID, f"{district} {one['school_sis_id']}")
        values |= {**who, "school_id": school, "integration": f"{district}-ps", "sis_id": f"e{number}"}
        connection.execute(roster_tables["enrollments"].insert().values(values))


def test_two_districts_that_publish_at_once_see_each_other(database, day, statewide, merges, snapshots):
    statewide.set(enabled=True, **BY)
    ready = []
    for district, one in (("lincoln", GONE), ("dover", THERE)):
        child = sis_student("7", ssid="77", birth_date=date(2012, 3, 4))
        good_snapshot(snapshots, f"{district}-ps", students=[child], enrollments=[one])
        gathered = merges.gather(district, YEAR, as_of=TODAY)
        ready.append(merges.write_merged(gathered, merge_district(gathered.inputs)))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda operation: publish(database, merges, operation), ready))
    assert found(database) == [WENT_OVER]


def test_a_reason_is_needed(database, statewide):
    with pytest.raises(ConfigError, match="who says so and why"):
        statewide.set(enabled=True, actor="ada", reason=" ")
    assert not statewide.matching().enabled
