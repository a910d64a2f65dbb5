"""What a person withdrew stays withdrawn while the systems say the same, and gives way to what is new."""

from __future__ import annotations

from datetime import date

import polars as pl
import pytest

from sis_pipeline.roster.contract import IntegrationInput, MergedRoster
from sis_pipeline.roster.withdrawals import WITHDRAWALS
from sis_pipeline_tests.roster.rosters import DAY_2, Roster, events, loaded, merge, publish, rows
from sis_pipeline_tests.roster.test_district import Tables, changed, district, student_of

ENDS = date(2025, 9, 30)
ID = "11111111-0000-4000-8000-000000000000"
BY_WITHDRAWAL = f"withdrawal:{ID}"


def withdrawn(tables: Tables, school: str = "1", effective: date = ENDS, code: str | None = "W9") -> pl.DataFrame:
    """A person's withdrawal of all who are enrolled at a school."""
    [school_id] = tables["schools"].filter(pl.col("school_number") == school)["school_id"]
    here = tables["enrollments"].filter((pl.col("school_id") == school_id) & (pl.col("status") == "active"))
    said = here.select(
        withdrawal_id=pl.lit(ID), student_id="student_id", school_id="school_id", entry_date="entry_date"
    )
    return said.with_columns(effective_date=pl.lit(effective), exit_code=pl.lit(code, pl.String)).select(
        list(WITHDRAWALS)
    )


def after(
    roster: Roster, tables: Tables, withdrawals: pl.DataFrame, day: date = DAY_2, **rest
) -> tuple[MergedRoster, Tables]:
    merged = merge(roster, tables, as_of=day, withdrawals=withdrawals, **rest)
    return merged, publish(tables, merged)


def stays(tables: Tables, *columns: str) -> list:
    ended = tables["enrollments"].filter(pl.col("status") != "active")
    return rows(ended, *columns)


def test_a_whole_school_is_withdrawn_once_with_the_persons_evidence_and_not_held() -> None:
    before = loaded(district())
    act = withdrawn(before)
    merged, tables = after(district(), before, act)
    assert (events(merged), merged.held) == ([("withdraw", BY_WITHDRAWAL)] * 20, ())
    assert set(merged.changes["effective_date"]) == {ENDS}
    assert stays(tables, "status", "exit_date", "exit_code") == [("withdrawn", ENDS, "W9")] * 20
    assert tables["student_years"].filter(pl.col("enrollment_status") == "withdrawn").height == 20
    again, same = after(district(), tables, act, date(2025, 10, 3))
    assert events(again) == [], "the systems go on saying what they said"
    assert all(same[name].equals(tables[name]) for name in tables)


@pytest.mark.parametrize("completeness", ["complete", "partial", "delta"])
def test_it_holds_whatever_kind_of_reading_comes(completeness) -> None:
    before = loaded(district())
    act = withdrawn(before)
    _, tables = after(district(), before, act)
    merged, same = after(
        district(), tables, act, date(2025, 10, 3), integrations={"a": IntegrationInput(completeness=completeness)}
    )
    assert (events(merged), same["enrollments"].equals(tables["enrollments"])) == ([], True)


def test_taken_back_the_systems_are_believed_again() -> None:
    before = loaded(district())
    _, tables = after(district(), before, withdrawn(before))
    merged, back = after(district(), tables, withdrawn(before).clear(), date(2025, 10, 3))
    assert events(merged) == [("re_enter", "field_change")] * 20
    assert back["enrollments"].equals(before["enrollments"])


def test_a_new_entry_is_a_new_enrollment() -> None:
    before = loaded(district())
    act = withdrawn(before)
    _, tables = after(district(), before, act)
    came_back = district().stay("s1", "1", sis_id="e-again", entry_date="2025-10-02")
    merged, tables = after(came_back, tables, act, date(2025, 10, 3))
    assert events(merged) == [("re_enter", "new_record")]
    who = student_of(tables, "s1")
    mine = tables["enrollments"].filter(pl.col("student_id") == who)
    assert rows(mine, "entry_date", "status") == [(date(2025, 10, 2), "active"), (date(2025, 8, 18), "withdrawn")]
    moved = changed(came_back, "enrollments", "e-s3-1", entry_date="2025-09-30")
    assert events(after(moved, tables, act, date(2025, 10, 4))[0]) == [("re_enter", "field_change")]


def test_a_corrected_entry_date_brings_nobody_back() -> None:
    before = loaded(district())
    act = withdrawn(before)
    _, tables = after(district(), before, act)
    merged, tables = after(changed(district(), "enrollments", "e-s1-1", entry_date="2025-08-20"), tables, act)
    assert events(merged) == [("amend", "field_change")]
    mine = tables["enrollments"].filter(pl.col("student_id") == student_of(tables, "s1"))
    assert rows(mine, "entry_date", "exit_date", "status") == [(date(2025, 8, 20), ENDS, "withdrawn")]


@pytest.mark.parametrize("day", ["2025-09-15", "2025-09-30"])
def test_an_end_that_a_system_says_itself_is_believed(day) -> None:
    before = loaded(district())
    act = withdrawn(before)
    _, tables = after(district(), before, act)
    said = changed(district(), "enrollments", "e-s1-1", exit_date=day, exit_code="G1", status="graduated")
    merged, tables = after(said, tables, act, date(2025, 10, 3))
    assert events(merged) == [("amend", "field_change")]
    mine = tables["enrollments"].filter(pl.col("student_id") == student_of(tables, "s1"))
    assert rows(mine, "exit_date", "exit_code", "status") == [(date.fromisoformat(day), "G1", "graduated")]


def test_a_planned_end_of_the_year_does_not_bring_anybody_back() -> None:
    planned = Roster().school("1").school("2")
    for number in range(4):
        planned.student(f"s{number}", last_name=f"N{number}", ssid=f"{number}", stay={"exit_date": "2026-06-06"})
    before = loaded(planned)
    _, tables = after(planned, before, withdrawn(before))
    assert stays(tables, "exit_date", "status") == [(ENDS, "withdrawn")] * 4


def test_who_vanishes_with_the_withdrawal_is_not_held_and_ends_on_its_day() -> None:
    before = loaded(district())
    merged, tables = after(district().without(*(f"s{n}" for n in range(1, 40, 2))), before, withdrawn(before))
    assert (events(merged), merged.held) == ([("withdraw", BY_WITHDRAWAL)] * 20, ())
    assert stays(tables, "exit_date") == [ENDS] * 20


def test_other_absences_are_held_as_ever() -> None:
    before = loaded(district())
    merged, _ = after(district().without(*(f"s{n}" for n in range(0, 40, 4))), before, withdrawn(before))
    assert [hold.removals for hold in merged.held] == [10]


def test_who_goes_on_to_another_school_is_transferred() -> None:
    before = loaded(district())
    moved = district().stay("s1", "2", sis_id="e-s1-2", entry_date="2025-10-01")
    merged, tables = after(moved, before, withdrawn(before))
    assert ("transfer", BY_WITHDRAWAL) in events(merged)
    assert merged.changes.filter(pl.col("kind") == "withdraw").height == 19
    assert rows(tables["enrollments"].filter(pl.col("student_id") == student_of(tables, "s1")), "status") == [
        "active", "transferred",
    ]  # fmt: skip


def test_who_had_not_begun_is_a_no_show() -> None:
    before = loaded(district())
    late = district().student(
        "s99", last_name="Late", ssid="999", stay={"entry_date": "2025-10-20", "status": "active"}
    )
    before = loaded(late)
    act = withdrawn(before).with_columns(student_id=pl.lit(student_of(before, "s99"))).head(1)
    act = act.with_columns(entry_date=pl.lit(date(2025, 10, 20)))
    merged, tables = after(late, before, act)
    assert events(merged) == [("no_show", BY_WITHDRAWAL)]
    assert stays(tables, "status", "exit_date") == [("no_show", date(2025, 10, 20))]


def test_classes_at_the_school_end_too_and_those_elsewhere_go_on() -> None:
    sis = district().section("c1", "s1", "s3", school="1").section("c2", "s1", school="2")
    before = loaded(sis)
    act = withdrawn(before)
    merged, tables = after(sis, before, act)
    drops = merged.changes.filter(pl.col("kind") == "section_drop")
    assert rows(drops, "effective_date", "evidence") == [(ENDS, BY_WITHDRAWAL)] * 2
    assert rows(tables["section_enrollments"], "end_date") == [None, ENDS, ENDS]
    again, same = after(sis, tables, act, date(2025, 10, 3))
    assert (events(again), same["section_enrollments"].equals(tables["section_enrollments"])) == ([], True)
