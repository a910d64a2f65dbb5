"""Whom a merge merges anew: those of whom something was said, asked or due; and in every case what a whole merge decides."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import polars as pl
import pytest

from sis_pipeline.roster.contract import Completeness, IntegrationInput, Memory, MergedRoster
from sis_pipeline.roster.merge import EDITS
from sis_pipeline.roster.policies import Policies
from sis_pipeline.roster.thresholds import Thresholds
from sis_pipeline_tests.roster.rosters import DAY_1, DAY_2, Roster, merge, merged_both_ways, publish

DELTA = {"a": IntegrationInput(0, "delta"), "b": IntegrationInput(1)}


def roster(**of_first: Any) -> Roster:
    """Four students of two systems, one of whom both have, and what is said otherwise of the first."""
    found = Roster().school("1").school("2").school("1", "b").section("m", school="1")
    found.add("academic_sessions", sis_id="y", start_date="2025-08-18", end_date="2026-06-10")
    for number, name in enumerate(("Moss", "Hill", "Reyes"), start=1):
        values = of_first if number == 1 else {}
        found.student(f"s{number}", **{"last_name": name, "ssid": str(number), **values})
    found.student("b1", integration="b", last_name="Moss", ssid="1").student("b4", integration="b", last_name="Wu")
    for number in (1, 2):
        found.add("section_enrollments", sis_id=f"x{number}", section_sis_id="m", person_sis_id=f"s{number}")
    return found


def again(first: Roster, second: Roster, *, on: date = DAY_2, **rest: Any) -> MergedRoster:
    """The second delivery, merged on top of the first one both ways."""
    before = merge(first)
    return merged_both_ways(second.inputs(publish({}, before), as_of=on, memory=before.memory, **rest))


def anew(*given: Any, **rest: Any) -> int | None:
    return again(*given, **rest).stats.students_merged


def test_a_first_load_merges_everybody_and_the_same_again_nobody() -> None:
    assert merge(roster()).stats.students_merged == 4
    assert anew(roster(), roster()) == 0


@pytest.mark.parametrize(
    ("second", "touched"),
    [
        (roster(email="ada@example.org"), 1),
        (roster(stay={"entry_date": "2025-08-19"}), 1),
        (roster().student("s5", last_name="Vu"), 1),
        (roster().add("section_enrollments", sis_id="x3", section_sis_id="m", person_sis_id="s3"), 1),
        (roster().without("s2"), 0),
        (roster(record_status="to_be_deleted"), 1),
        (roster().student("b5", integration="b", last_name="Hil"), 2),
    ],
    ids=[
        "a value",
        "an enrollment",
        "a new student",
        "a seat",
        "one who is gone",
        "a tombstone",
        "perhaps one with another",
    ],
)
def test_only_those_are_merged_of_whom_something_else_is_said(second: Roster, touched: int) -> None:
    assert anew(roster(), second) == touched


def test_a_delta_that_does_not_name_somebody_touches_nobody() -> None:
    assert anew(roster(), roster().without("s2", "s3"), integrations=DELTA) == 0
    assert anew(roster(), roster(email="ada@example.org").without("s2", "s3"), integrations=DELTA) == 1


def test_who_is_gone_from_a_complete_reading_is_no_longer_merged_but_has_left() -> None:
    merged = again(roster(), roster().without("s2"))
    [left] = merged.changes.filter(pl.col("kind") == "withdraw").to_dicts()
    assert left["effective_date"] == DAY_2


def test_the_day_of_an_exit_touches_who_leaves() -> None:
    leaving = roster(stay={"exit_date": "2025-10-04", "exit_code": "W1"})
    assert anew(leaving, leaving, on=date(2025, 10, 3)) == 0
    assert anew(leaving, leaving, on=date(2025, 10, 4)) == 1


def test_a_section_at_another_school_touches_those_who_sit_in_it() -> None:
    moved = roster()
    [section] = moved.rows["sections"]
    section["school_sis_id"] = "school-2"
    assert anew(roster(), moved) == 2


def test_a_section_whose_terms_are_this_years_by_now_touches_those_who_sit_in_it() -> None:
    def of(year: str) -> Roster:
        found = Roster().school("1").student("s1").student("s2", last_name="Hill")
        term = {"kind": "semester", "start_date": "2025-08-18", "end_date": "2026-01-10"}
        found.add("academic_sessions", sis_id="t", school_year=year, **term)
        found.section("m", "s1", session_sis_ids='["t"]')
        return found

    merged = again(of("2024-2025"), of("2025-2026"))
    assert (merged.stats.students_merged, merged.frames["section_enrollments"].height) == (1, 1)


def test_an_edited_student_is_merged_each_day_and_once_more_when_the_edit_is_gone() -> None:
    first = merge(roster())
    tables = publish({}, first)
    student = tables["students"].filter(pl.col("last_name") == "Hill")
    edits = student.with_columns(
        edit=pl.lit(1, pl.Int64), attribute=pl.lit("email"), edited_by=pl.lit("clerk"), email=pl.lit("hill@example.org"),
        edited_at=pl.lit("2025-10-01T00:00:00+00:00").str.to_datetime("%Y-%m-%dT%H:%M:%S%z", time_unit="us"),
    ).select(list(EDITS))  # fmt: skip
    merged = merged_both_ways(roster().inputs(tables, as_of=DAY_2, memory=first.memory, edits=edits))
    assert merged.stats.students_merged == 1
    gone = merged_both_ways(roster().inputs(publish(tables, merged), as_of=DAY_2, memory=merged.memory))
    assert gone.stats.students_merged == 1
    assert gone.frames["students"].filter(pl.col("last_name") == "Hill")["email"].to_list() == [None]


@pytest.mark.parametrize(
    "rest",
    [
        {"policies": Policies("newest_wins")},
        {"integrations": {"a": IntegrationInput(1), "b": IntegrationInput(0)}},
        {"integrations": {"a": IntegrationInput(0)}},
        {"on": date(2025, 9, 30)},
    ],
    ids=["another policy", "other priorities", "a system takes no part", "a day before"],
)
def test_everybody_is_merged_where_what_matters_to_all_is_not_as_it_was(rest: dict[str, Any]) -> None:
    second = roster()
    if "integrations" in rest and len(rest["integrations"]) == 1:
        second.rows = {
            name: [row for row in rows if row.get("integration") != "b"] for name, rows in second.rows.items()
        }
    assert anew(roster(), second, **rest) == 4


def test_everybody_is_merged_where_the_school_year_ends_on_another_day() -> None:
    longer = roster()
    longer.rows["academic_sessions"][0]["end_date"] = "2026-06-12"
    assert anew(roster(), longer) == 4


def test_without_a_memory_everybody_is_merged() -> None:
    assert merged_both_ways(roster().inputs(publish({}, merge(roster())), as_of=DAY_1)).stats.students_merged == 4


COMPLETE = {"a": IntegrationInput(0), "b": IntegrationInput(1)}


def told(change: Callable[[Roster], object] = lambda _: None) -> Roster:
    """Four students of one system, two of them in a section with a teacher who has the number of one of them."""
    found = Roster().school("1").school("2").add("staff", sis_id="s1", last_name="Teach").section("m", "s1", "s2")
    found.section("n", school="2").add("section_enrollments", sis_id="t", section_sis_id="m", person_sis_id="s1", role="teacher")  # fmt: skip
    for number, name in enumerate(("Moss", "Hill", "Reyes", "Wu"), start=1):
        found.student(f"s{number}", last_name=name, birth_date=f"201{number}-03-04", home_street="1 Elm", home_city="Waco")  # fmt: skip
    change(found)
    return found


def lacking(*columns: str) -> Roster:
    return told(lambda it: it.rows["students"][0].update(dict.fromkeys(columns)))


def without_record(it: Roster) -> None:
    it.rows["students"] = it.rows["students"][1:]


def without_record_and_stay(it: Roster) -> None:
    without_record(it)
    it.rows["enrollments"] = it.rows["enrollments"][1:]


def deleted(it: Roster) -> None:
    for row in it.rows["students"][:3]:
        row["record_status"] = "to_be_deleted"


def stay_given_away(it: Roster) -> None:
    it.rows["enrollments"][0].update(student_sis_id="s2", school_sis_id="school-2")


def seat_given_away(it: Roster) -> None:
    it.rows["section_enrollments"][0].update(person_sis_id="s3", section_sis_id="n")


FEW_EXITS = Thresholds(exit_floor=1, district_floor=99, school_floor=99, seat_floor=99, week_floor=99)
NONE_GONE = Thresholds(district_floor=0, school_floor=0, seat_floor=0, week_floor=0)
STRICT = Thresholds()
Told = tuple[Roster, Completeness, Thresholds]
SEQUENCES: dict[str, list[Told]] = {
    "a teacher has a student's number": [(told(), "complete", STRICT)] * 2,
    "a partial reading lacks a birth date, then a complete one": [
        (told(), "complete", STRICT), (lacking("birth_date"), "partial", STRICT), (lacking("birth_date"), "complete", STRICT),
    ],
    "a partial reading lacks a street, then a delta": [
        (told(), "complete", STRICT), (lacking("home_street"), "partial", STRICT), (lacking("home_street"), "delta", STRICT),
    ],
    "an enrollment without its student, then none": [
        (told(), "complete", STRICT), (told(without_record), "complete", STRICT), (told().without("s1"), "complete", STRICT),
    ],
    "a seat without its student, then none": [
        (told(), "complete", STRICT), (told(without_record_and_stay), "complete", STRICT),
        (told().without("s1"), "complete", STRICT),
    ],
    "tombstones that are held, then nothing": [
        (told(), "complete", FEW_EXITS), (told(deleted), "complete", FEW_EXITS),
        (told().without("s1", "s2", "s3"), "complete", FEW_EXITS),
    ],
    "an enrollment is another student's, twice": [
        (told(), "complete", STRICT), *[(told(stay_given_away), "partial", NONE_GONE)] * 2,
    ],
    "a seat is another student's, twice": [(told(), "complete", STRICT), *[(told(seat_given_away), "delta", NONE_GONE)] * 2],
}  # fmt: skip


@pytest.mark.parametrize("days", SEQUENCES.values(), ids=SEQUENCES)
def test_who_is_not_at_rest_is_merged_anew_until_it_is_settled(days: list[Told]) -> None:
    """Each of these once left a student out whom a whole merge changes."""
    tables: dict[str, pl.DataFrame] = {}
    memory: Memory | None = None
    for later, (delivery, verdict, thresholds) in enumerate(days):
        parts = {"a": IntegrationInput(0, verdict)}
        inputs = delivery.inputs(
            tables, as_of=DAY_1 + timedelta(days=later), integrations=parts, thresholds=thresholds, memory=memory
        )
        merged = merged_both_ways(inputs)
        tables, memory = publish(tables, merged), merged.memory


def test_of_two_records_a_partial_reading_may_leave_out_the_one_that_knew_the_entry() -> None:
    first = Roster().school("1").school("1", "b")
    first.student("a1", ssid="1", stay={"entry_date": "2025-08-25", "entry_date_source": "class_begin"})
    first.student("b1", integration="b", ssid="1", stay={"entry_date": "2025-08-18"})
    parts = COMPLETE | {"b": IntegrationInput(1, "partial")}
    assert anew(first, first.without("b1", integration="b"), integrations=parts) == 1


def test_what_is_over_and_was_told_twice_is_of_the_record_that_still_tells_it() -> None:
    """A delta left one of two equal seats that had ended unsaid; the complete reading after it says the same of the student,
    and by it that the one is gone."""
    days: list[tuple[Completeness, str]] = [("complete", "x1"), ("delta", "x2"), ("complete", "x2")]
    tables: dict[str, pl.DataFrame] = {}
    memory: Memory | None = None
    for later, (verdict, seat) in enumerate(days):
        found = Roster().school("1").section("m").student("s1")
        found.add(
            "section_enrollments", sis_id=seat, section_sis_id="m", person_sis_id="s1",
            begin_date="2025-08-18", end_date="2025-09-01",
        )  # fmt: skip
        parts = {"a": IntegrationInput(0, verdict)}
        inputs = found.inputs(tables, as_of=DAY_1 + timedelta(days=later), integrations=parts, memory=memory)
        merged = merged_both_ways(inputs)
        tables, memory = publish(tables, merged), merged.memory
    assert tables["section_enrollments"]["sis_id"].to_list() == ["x2"]


def test_a_student_whose_row_somebody_deleted_is_published_again() -> None:
    first = merge(roster())
    tables = publish({}, first)
    tables["students"] = tables["students"].filter(pl.col("last_name") != "Hill")
    merged = merged_both_ways(roster().inputs(tables, as_of=DAY_2, memory=first.memory))
    assert merged.stats.students_merged == 1


def test_a_link_that_another_school_year_ended_or_doubted_is_as_this_year_says() -> None:
    """Of both years that speak in spring, the one merged last has the say, be its students touched or not."""
    first = merge(roster())
    tables = publish({}, first)
    tables["student_links"] = tables["student_links"].with_columns(active=pl.lit(value=False), confidence=pl.lit(0.5))
    merged = merged_both_ways(roster().inputs(tables, as_of=DAY_2, memory=first.memory))
    assert merged.stats.students_merged == 0
    assert merged.frames["student_links"].select("active", "confidence").unique().rows() == [(True, 1.0)]
