"""The merge equals the reference, row for row: on nasty small rosters and on the benchmark's, a few days of each.
`python -m sis_pipeline_tests.reference` compares many more, and larger ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import polars as pl
import pytest
from hypothesis import given

from sis_pipeline.roster.contract import Memory
from sis_pipeline.roster.district import merge_district
from sis_pipeline.roster.guard import Hold
from sis_pipeline.roster.names import no_former_names
from sis_pipeline_tests.reference import benchmark
from sis_pipeline_tests.reference.comparing import differences
from sis_pipeline_tests.reference.rosters import DAYS, Day, inputs, many_days, three_days
from sis_pipeline_tests.roster.rosters import Roster, former_names, laws, merged_both_ways, publish


@laws(7)
@given(three_days())
def test_three_days_of_a_nasty_roster_are_merged_as_the_rules_say(days: tuple[dict[str, Any], ...]) -> None:
    tables: dict[str, pl.DataFrame] = {}
    memory: Memory | None = None
    called = no_former_names()
    for day, as_of in zip(days, DAYS, strict=True):
        given_now = inputs(day, tables, as_of, memory=memory, former_names=called)
        merged = merge_district(given_now)
        assert differences(given_now, merged) == []
        before, tables, memory = tables, publish(tables, merged), merged.memory
        called = former_names(before, tables, called)


@laws(3)
@given(many_days())
def test_the_students_that_nothing_touches_are_as_a_whole_merge_has_them(days: list[Day]) -> None:
    tables: dict[str, pl.DataFrame] = {}
    memory: Memory | None = None
    held: Sequence[Hold] = ()
    called = no_former_names()
    for day in days:
        merged = merged_both_ways(day.inputs(tables, held, memory=memory, former_names=called))
        before, tables, memory, held = tables, publish(tables, merged), merged.memory, merged.held
        called = former_names(before, tables, called)


def test_two_days_of_the_benchmarks_roster_are_merged_as_the_rules_say() -> None:
    tables: dict[str, pl.DataFrame] = {}
    for day in (0, 1):
        given_now = benchmark.inputs(300, day, tables)
        merged = merge_district(given_now)
        assert differences(given_now, merged) == []
        assert merged.stats.matched
        assert merged.stats.changes
        tables = publish(tables, merged, benchmark.YEAR.key)


@pytest.mark.parametrize(("losing", "cleared"), [(2, 2), (3, 0)], ids=["few", "half"])
def test_a_column_that_many_lost_is_no_longer_supplied(losing: int, cleared: int) -> None:
    tables: dict[str, pl.DataFrame] = {}
    for number in (0, losing):
        roster = Roster().school("1")
        for name in range(6):
            roster.student(f"s{name}", last_name=f"Name{name}", email=None if name < number else f"{name}@x.org")
        given_now = roster.inputs(tables)
        merged = merge_district(given_now)
        assert differences(given_now, merged) == []
        tables = publish(tables, merged)
    assert tables["student_sources"]["cleared"].count() == cleared


SPOILT = [
    ("students", {"first_name": pl.lit("Bea")}),
    ("student_links", {"rule": pl.lit("ssid")}),
    ("conflicts", {"chosen": pl.lit("07")}),
    ("enrollments", {"status": pl.lit("withdrawn")}),
    ("section_enrollments", {"end_date": pl.lit("2025-10-01").str.to_date()}),
    ("enrollment_changes", {"kind": pl.lit("withdraw")}),
]


@pytest.mark.parametrize(("table", "wrong"), SPOILT, ids=[table for table, _ in SPOILT])
def test_a_wrong_value_and_a_missing_row_are_differences(table: str, wrong: dict[str, pl.Expr]) -> None:
    roster = Roster().school("1").school("1", "b").student("s1", ssid="7", grade_level="05").section("m", "s1")
    given_now = roster.student("b1", integration="b", ssid="7", grade_level="06").inputs()
    merged = merge_district(given_now)
    assert differences(given_now, merged) == []
    frame = merged.frames[table]
    for spoilt in (frame.with_columns(**wrong), frame.head(frame.height - 1)):
        found = differences(given_now, replace(merged, frames={**merged.frames, table: spoilt}))
        assert found
        assert all(line.startswith(f"{table}: ") for line in found)


def test_a_removal_that_waits_for_one_of_them_alone_is_a_difference() -> None:
    roster = Roster().school("1").student("s1").student("s2", last_name="Hill").section("m", "s1", "s2")
    tables = publish({}, merge_district(roster.inputs()))
    given_now = roster.without("s1", "s2").inputs(tables, as_of=DAYS[1])
    merged = merge_district(given_now)
    assert differences(given_now, merged) == []
    assert {hold.entity for hold in merged.held} == {"enrollments", "section_enrollments"}
    for one in merged.held:
        found = differences(given_now, replace(merged, held=tuple(hold for hold in merged.held if hold != one)))
        assert len(found) == one.removals == 2
        assert all(line.startswith("held: the reference alone has") for line in found)


RETURNS = {
    "the entry was moved behind the exit": ("2025-08-31", "no_show", "2025-12-01"),
    "the exit was taken back": ("2025-09-30", "withdrawn", "2025-09-01"),
}


@pytest.mark.parametrize(("exit_date", "status", "entry"), RETURNS.values(), ids=RETURNS)
def test_a_return_has_the_same_day_in_both(exit_date: str, status: str, entry: str) -> None:
    """A drawn roster had one that the reference dated by the day on which it showed."""
    ended = {"entry_date": "2025-09-01", "exit_date": exit_date, "status": status}
    first = Roster().school("1").student("s1", stay=ended).inputs()
    again = Roster().school("1").student("s1", stay={"entry_date": entry})
    given_now = again.inputs(publish({}, merge_district(first)), as_of=DAYS[1])
    merged = merge_district(given_now)
    assert merged.changes["kind"].to_list() == ["re_enter"]
    assert differences(given_now, merged) == []
