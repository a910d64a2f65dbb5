"""A district's thresholds and its schools' closures, kept with who and why, and what the next merge makes of them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db import audit
from sis_pipeline.db.tables import guard_settings, roster_tables, sync_operations
from sis_pipeline.roster.guard import Hold, Part, fingerprint
from sis_pipeline.roster.identity import numbered_school
from sis_pipeline.roster.thresholds import Thresholds
from sis_pipeline.store import guarding
from sis_pipeline.store.guarding import Guarding
from sis_pipeline.store.holds import Holds
from sis_pipeline.store.publish import publish
from sis_pipeline_tests.store.conftest import YEAR, add_integration, change, good_snapshot, merged_roster, uid

BY = {"actor": "ada", "reason": "agreed with the registrar"}
NORTH, SOUTH = uid("north"), uid("south")
TODAY = datetime.now(UTC).date()


@pytest.fixture
def guard(database) -> Guarding:
    """Of a district with two published schools."""
    with database.begin() as connection:
        for number, (school, name) in enumerate([(NORTH, "North"), (SOUTH, "South")]):
            connection.execute(
                roster_tables["schools"].insert().values(
                    district="lincoln", school_id=school, name=name, school_number=f"10{number}", kind="school",
                    integration="lincoln-ps", sis_id=name,
                )
            )  # fmt: skip
    return Guarding(database)


def merged(merges, **rows):
    return merges.write_merged(merges.gather("lincoln", YEAR), merged_roster(**rows))


def rulings(database, today=TODAY):
    with database.connect() as connection:
        return guarding.rulings(connection, "lincoln", YEAR, today)


def test_settings_are_versions_with_who_and_why(database, guard):
    assert guard.settings("lincoln").version == 0
    guard.set("lincoln", {"district_cap": 400, "freeze": False}, **BY)
    guard.set("lincoln", {"school_share": 0.3}, school="north", **BY)
    found = guard.settings("lincoln")
    assert (found.version, found.set_by, found.reason) == (2, "ada", BY["reason"])
    assert found.thresholds == Thresholds.of({"district_cap": 400, "freeze": False}, {NORTH: {"school_share": 0.3}})
    assert [one.version for one in guard.history("lincoln")] == [2, 1]
    assert guard.settings("washington").thresholds == Thresholds()
    with database.connect() as connection:
        [last, *_] = audit.read(connection, action="guard.set")
    assert (last["actor"], last["details"]) == (
        "ada", {"version": 2, "reason": BY["reason"], "school_id": NORTH, "set": {"school_share": 0.3}},
    )  # fmt: skip


def test_what_is_set_already_makes_no_version(guard):
    guard.set("lincoln", {"district_cap": 400}, **BY)
    assert guard.set("lincoln", {"district_cap": 400}, **BY).version == 1
    assert guard.reset("lincoln", ["exit_floor"], **BY).version == 1


def test_a_reset_takes_back_what_is_named_or_all(guard):
    guard.set("lincoln", {"district_cap": 400, "exit_floor": 5}, **BY)
    guard.set("lincoln", {"school_share": 0.3}, school=SOUTH, **BY)
    assert dict(guard.reset("lincoln", ["district_cap"], **BY).values) == {"exit_floor": 5}
    assert guard.reset("lincoln", school="South", **BY).schools == {}
    assert guard.reset("lincoln", **BY).thresholds == Thresholds()


@pytest.mark.parametrize(
    ("values", "school", "why"),
    [
        ({"district_floor": 300}, None, "one of them never counts"),
        ({"district_cap": 300}, "North", "can't be set for a single school"),
        ({"school_floor": 3}, "West", "no published school 'West'"),
        ({"school_share": 1.0}, "", "name is empty"),
    ],
)
def test_a_wrong_setting_is_refused_and_nothing_kept(guard, values, school, why):
    with pytest.raises(ConfigError, match=why):
        guard.set("lincoln", values, school=school, **BY)
    assert guard.history("lincoln") == []


def test_an_empty_name_is_no_school_and_not_the_whole_district(guard):
    guard.set("lincoln", {"district_cap": 400}, **BY)
    for names in ((), ("school_share",)):
        with pytest.raises(ConfigError, match="name is empty"):
            guard.reset("lincoln", names, school="", **BY)
    for kind in ("close", "open"):
        with pytest.raises(ConfigError, match="name is empty"):
            guard.declare(kind, " ", "lincoln", effective=TODAY, **BY)
    assert guard.settings("lincoln").values == {"district_cap": 400}
    assert guard.declarations("lincoln") == []


def test_a_change_needs_a_reason(guard):
    with pytest.raises(ConfigError, match="needs who makes it and why"):
        guard.set("lincoln", {"district_cap": 400}, actor="ada", reason=" ")
    with pytest.raises(ConfigError, match="needs who makes it and why"):
        guard.declare("close", "North", "lincoln", effective=TODAY, actor="ada", reason="")


def broken_by_hand(database) -> None:
    with database.begin() as connection:
        values = {"settings": {"district": {"district_cap": -1}, "schools": {}}, "set_by": "x", "reason": "x"}
        connection.execute(guard_settings.insert().values(district="lincoln", version=1, **values))


def test_settings_that_were_broken_by_hand_stop_the_merge_in_words(database, merges):
    broken_by_hand(database)
    with pytest.raises(ConfigError, match=r"settings of lincoln would be wrong: district_cap goes from 0"):
        merges.gather("lincoln", YEAR)


def test_broken_settings_of_one_district_stop_no_other(database, merges, snapshots):
    add_integration(database, "franklin-ps", "franklin")
    good_snapshot(snapshots, "franklin-ps")
    broken_by_hand(database)
    assert merges.stale_districts(YEAR) == ["franklin", "lincoln"]
    assert merges.gather("franklin", YEAR).inputs.thresholds == Thresholds()


def test_a_change_of_the_guard_is_merged_once_and_goes_into_the_merge(database, merges, guard):
    publish(database, merges, merged(merges))
    assert merges.stale_districts(YEAR) == []
    for act in (
        lambda: guard.set("lincoln", {"district_cap": 400}, **BY),
        lambda: guard.declare("close", "North", "lincoln", effective=TODAY, **BY),
        lambda: guard.reset("lincoln", **BY),
    ):
        act()
        assert merges.stale_districts(YEAR) == ["lincoln"]
        publish(database, merges, merged(merges))
        assert merges.stale_districts(YEAR) == []
    guard.set("lincoln", {"exit_floor": 4}, **BY)
    inputs = merges.gather("lincoln", YEAR).inputs
    assert (inputs.thresholds, inputs.rulings.closed) == (Thresholds(exit_floor=4), {NORTH})


def test_a_declaration_counts_from_its_day_on_and_the_last_word_prevails(database, guard):
    guard.declare("close", "101", "lincoln", effective=TODAY + timedelta(days=1), **BY)
    assert rulings(database).closed == frozenset()
    assert rulings(database, TODAY + timedelta(days=1)).closed == {SOUTH}
    guard.declare("open", SOUTH, "lincoln", effective=TODAY, **BY)
    assert rulings(database, TODAY + timedelta(days=1)).closed == frozenset()
    assert rulings(database).opened == {SOUTH}
    assert rulings(database, TODAY + timedelta(days=30)).opened == frozenset()
    assert [(one.kind, one.name) for one in guard.declarations("lincoln")] == [("open", "South"), ("close", "South")]


def test_a_corrected_date_takes_the_place_of_the_wrong_one(database, guard):
    """A closure that was declared for November and is put off until June."""
    november, june, august = (TODAY + timedelta(days=days) for days in (10, 200, 260))
    guard.declare("close", "South", "lincoln", effective=november, **BY)
    guard.declare("close", "South", "lincoln", effective=june, **BY)
    assert rulings(database, november).closed == frozenset()
    assert rulings(database, june).closed == {SOUTH}
    guard.declare("open", "South", "lincoln", effective=august, **BY)
    assert rulings(database, june).closed == {SOUTH}, "it is open after all, but only later"
    assert (rulings(database, august).closed, rulings(database, august).opened) == (frozenset(), {SOUTH})
    guard.declare("open", "South", "lincoln", effective=november, **BY)
    assert rulings(database, june).closed == frozenset(), "it never closes"
    assert rulings(database, august).opened == frozenset(), "it has been open for long"
    guard.declare("close", "South", "lincoln", effective=june, **BY)
    assert rulings(database, november).opened == {SOUTH}
    assert rulings(database, june).closed == {SOUTH}, "the last word"


def test_a_school_that_is_still_to_come_is_named_by_its_number(database, guard):
    declared = guard.declare("open", "777", "lincoln", effective=TODAY, **BY)
    assert (declared.school_id, declared.name) == (numbered_school("lincoln", "777"), None)
    with pytest.raises(ConfigError, match="no published school '777'"):
        guard.declare("close", "777", "lincoln", effective=TODAY, **BY)


def withdrawn(
    database, number: int, school: str, *, days_ago: int = 0, kind: str = "withdraw", **values: object
) -> None:
    at = datetime.now(UTC) - timedelta(days=days_ago)
    row = change(number, kind, uid("op"), **{"school_id": school, "evidence": "absence", **values})
    operation = {"operation_id": uid("op"), "status": "published", "finished_at": at}
    about = {"district": "lincoln", "school_year": YEAR, "epoch": 99, "base_epoch": 0, "fingerprint": "f", "inputs": {}}
    with database.begin() as connection:
        connection.execute(insert(sync_operations).values(**about, **operation).on_conflict_do_nothing())
        connection.execute(roster_tables["enrollment_changes"].insert().values(detected_at=at, **row))


def test_the_ledger_says_how_many_were_missing_within_seven_days(database, guard):
    withdrawn(database, 1, NORTH)
    withdrawn(database, 2, NORTH, days_ago=6)
    withdrawn(database, 3, SOUTH, days_ago=6)
    withdrawn(database, 4, NORTH, days_ago=8)
    withdrawn(database, 5, NORTH, evidence="explicit_exit")
    withdrawn(database, 6, NORTH, kind="transfer")
    withdrawn(database, 7, NORTH, district="washington")
    assert rulings(database).removed_lately == 3
    guard.declare("close", "South", "lincoln", effective=TODAY, **BY)
    assert rulings(database).removed_lately == 2


def test_what_a_person_let_through_counts_for_no_week(database, merges, guard):
    key = (uid("student", 1), NORTH, "2025-08-18")
    publish(database, merges, merged(merges, held=[held(key)]))
    [waiting] = Holds(database).list()
    Holds(database).release(waiting.hold_id, "ada", "they moved")
    publish(database, merges, merged(merges))
    withdrawn(database, 1, NORTH)
    withdrawn(database, 2, NORTH)
    assert rulings(database).removed_lately == 1


def held(*keys: tuple[str, ...], until: str | None = None) -> Hold:
    """Withdrawals, two of North at most."""
    ordered = tuple(sorted(keys, key=lambda key: key[1]))
    schools = sorted({key[1] for key in keys})
    parts = tuple(Part(school, "withdraw", sum(key[1] == school for key in keys)) for school in schools)
    return Hold(
        fingerprint("enrollments", "absence", None, ordered), "absence", "enrollments", "district", None, len(keys),
        100, 2, "more absences than the district's limit", ordered, parts, until,
    )  # fmt: skip


def test_a_freeze_that_is_over_asks_for_a_merge(database, merges, guard):
    key = (uid("student", 1), NORTH, "2025-08-18")
    publish(database, merges, merged(merges, held=[held(key, until=(TODAY + timedelta(days=30)).isoformat())]))
    assert merges.stale_districts(YEAR) == []
    with database.begin() as connection:
        connection.execute(text("set local sis.clock_offset = '31 days'"))
        assert guarding.rules(connection, "lincoln", YEAR) == [[Holds(database).list()[0].hold_id]]


def test_the_calendar_of_the_other_years_is_read(database, merges):
    with database.begin() as connection:
        for number, (year, kind) in enumerate(
            [("2024-2025", "school_year"), (YEAR, "school_year"), ("2024-2025", "term")]
        ):
            connection.execute(
                roster_tables["academic_sessions"].insert().values(
                    district="lincoln", session_id=uid("session", number), title="Y", kind=kind, school_year=year,
                    start_date=date(2024, 8, 1), end_date=date(2025, 6, 1), integration="lincoln-ps", sis_id=str(number),
                )
            )  # fmt: skip
    calendar = merges.gather("lincoln", YEAR).inputs.calendar
    assert calendar.rows() == [(None, "2024-2025", date(2024, 8, 1), date(2025, 6, 1))]
