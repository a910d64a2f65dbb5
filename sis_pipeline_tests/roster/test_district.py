"""A district's merge from records to tables and ledger: what a day brings, what absence may do, and the laws of the whole."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.roster.contract import DistrictInputs, IntegrationInput, MergedRoster
from sis_pipeline.roster.decisions import DECISIONS
from sis_pipeline.roster.district import merge_district
from sis_pipeline.roster.guard import Ruling, Rulings
from sis_pipeline.roster.identity import numbered_school
from sis_pipeline.roster.thresholds import Thresholds
from sis_pipeline_tests.roster.rosters import (
    DAY_1,
    DAY_2,
    OPERATION,
    Roster,
    events,
    laws,
    loaded,
    merge,
    merged_both_ways,
    publish,
    rows,
)

Tables = dict[str, pl.DataFrame]

EXIT = {"exit_date": "2025-10-01", "exit_code": "W1", "status": "withdrawn"}


def district(students: int = 40) -> Roster:
    """Two schools in one system, enough students for a few absences to be believable."""
    roster = Roster().school("1").school("2")
    for number in range(students):
        roster.student(
            f"s{number}",
            school="1" if number % 2 else "2",
            last_name=f"Name{number}",
            ssid=f"{number:03}",
            grade_level="05",
        )
    return roster


def second_day(before: Roster, after: Roster, **rest: Any) -> MergedRoster:
    return merge(after, loaded(before), as_of=DAY_2, **rest)


def changed(roster: Roster, entity: str, sis_id: str, /, **columns: Any) -> Roster:
    """The roster with some columns of one record changed."""
    result = Roster(roster.year)
    result.rows = {
        name: [{**row, **columns} if (name, row["sis_id"]) == (entity, sis_id) else row for row in found]
        for name, found in roster.rows.items()
    }
    return result


def event(merged: MergedRoster) -> dict[str, Any]:
    found = merged.changes.row(0, named=True)
    return {**found, "before": json.loads(found["before"] or "null"), "after": json.loads(found["after"] or "null")}


def student_of(tables: Mapping[str, pl.DataFrame], sis_id: str, integration: str = "a") -> str:
    links = tables["student_links"].filter(pl.col("sis_id") == sis_id, pl.col("integration") == integration)
    return str(links["student_id"].item())


def test_a_first_load_enrolls_everybody_once() -> None:
    merged = merge(district(), as_of=DAY_1)
    assert events(merged) == [("enroll", "first_load")] * 40
    assert (merged.stats.students, merged.stats.enrollments, merged.held) == (40, 40, ())


def test_a_day_without_changes_has_no_events_and_the_same_tables() -> None:
    roster = (
        district()
        .section("m", "s1", "s3")
        .student("b1", integration="b", school=None, last_name="Name1", ssid="001", grade_level="06")
    )
    tables = loaded(roster)
    merged = merge(roster, tables, as_of=DAY_2)
    assert merged.changes.is_empty()
    after = publish(tables, merged)
    assert all(after[name].equals(tables[name]) for name in tables)


def test_the_same_inputs_are_due_again_on_the_next_day_on_which_somebody_comes_or_leaves() -> None:
    roster = Roster().school("1").student("s1", stay={"entry_date": "2025-10-05"})
    roster.student("s2", stay={"exit_date": "2025-10-09"}).student(
        "s3", stay={"status": "graduated", "exit_date": "2026-05-30"}
    )
    days = [date(2025, 10, day) for day in (1, 4, 5, 8, 9)]
    due = [merge(roster, as_of=day).stats.due for day in days]
    assert due == ["2025-10-05", "2025-10-05", "2025-10-09", "2025-10-09", None]


def test_what_is_held_is_due_again_tomorrow() -> None:
    roster = district()
    held = second_day(roster, roster.without(*[f"s{number}" for number in range(10)]))
    assert (held.stats.held, held.stats.due) == (10, "2025-10-03")


def test_only_a_record_that_changed_names_the_new_snapshot() -> None:
    later = "00000000-0000-4000-8000-000000000002"
    inputs = changed(district(4), "students", "s1", email="s1@pine.example").inputs(loaded(district(4)), as_of=DAY_2)
    read_again = {name: frame.with_columns(snapshot_id=pl.lit(later)) for name, frame in inputs.records.items()}
    sources = merge_district(replace(inputs, records=read_again)).frames["student_sources"]
    assert sources.filter(pl.col("snapshot_id") == later)["sis_id"].to_list() == ["s1"]


def test_a_new_student_is_enrolled() -> None:
    merged = second_day(district(), district().student("new", last_name="New", stay={"entry_date": "2025-10-02"}))
    assert events(merged) == [("enroll", "new_record")]
    assert event(merged)["effective_date"] == DAY_2


def test_the_same_content_seen_by_another_operation_is_another_event() -> None:
    left = changed(district(), "enrollments", "e-s1-1", exit_date="2025-10-02", exit_code="W1")
    inputs = left.inputs(loaded(district()), as_of=DAY_2)
    seen = [merge_district(replace(inputs, operation_id=it)).changes for it in ("first", "first", "second")]
    first, again, later = (found["change_id"].item() for found in seen)
    assert first == again
    assert first != later


def test_an_exit_date_withdraws() -> None:
    merged = second_day(district(), changed(district(), "enrollments", "e-s1-1", **EXIT))
    found = event(merged)
    assert (found["kind"], found["evidence"], found["effective_date"]) == ("withdraw", "explicit_exit", DAY_1)
    assert (found["before"]["status"], found["after"]["exit_code"]) == ("active", "W1")
    year = merged.frames["student_years"].filter(pl.col("student_id") == found["student_id"])
    assert year["enrollment_status"].item() == "withdrawn"


def test_absence_from_a_complete_snapshot_withdraws_on_the_snapshots_day() -> None:
    taken = {"a": IntegrationInput(taken_on=date(2025, 10, 3))}
    before = district().section("m", "s1", "s3", "s5", "s7", "s9")
    tables = loaded(before)
    merged = merge(before.without("s1"), tables, as_of=date(2025, 10, 4), integrations=taken)
    assert events(merged) == [("section_drop", "absence"), ("withdraw", "absence")]
    gone = student_of(tables, "s1")
    stay = merged.frames["enrollments"].filter(pl.col("student_id") == gone)
    assert rows(stay, "exit_date", "exit_code", "status") == [(date(2025, 10, 3), None, "withdrawn")]
    after = publish(tables, merged)
    assert gone in after["students"]["student_id"]
    assert after["student_links"].filter(pl.col("sis_id") == "s1")["active"].item() is False
    again = merge(before.without("s1"), after, as_of=date(2025, 10, 5), integrations=taken)
    assert again.changes.is_empty()
    assert again.frames["enrollments"].equals(merged.frames["enrollments"])


@pytest.mark.parametrize("completeness", ["partial", "delta"])
def test_absence_from_any_other_snapshot_means_nothing(completeness: Any) -> None:
    before = district().section("m", "s1", "s3")
    tables = loaded(before)
    part = {"a": IntegrationInput(completeness=completeness)}
    merged = merge(before.without("s1", "s3", "s5", "s7"), tables, as_of=DAY_2, integrations=part)
    assert merged.changes.is_empty()
    after = publish(tables, merged)
    assert all(after[name].equals(tables[name]) for name in tables)
    assert merged.stats.integrations["a"]["carried"] == 4


def bare(**row: Any) -> Roster:
    """The district, of whose students only names and schools came."""
    return changed(district(), "students", "s1", birth_date=None, **row)


def test_a_partial_snapshot_takes_no_value_away() -> None:
    tables = loaded(district())
    part = {"a": IntegrationInput(completeness="partial")}
    merged = merge(bare(email="new@x.org"), tables, as_of=DAY_2, integrations=part)
    student = student_of(tables, "s1")
    found = merged.frames["students"].filter(pl.col("student_id") == student)
    assert rows(found, "birth_date", "email") == [(date(2012, 3, 4), "new@x.org")]
    after = publish(tables, merged)
    again = merge(bare(), after, as_of=DAY_2, integrations=part)
    assert again.frames["students"].equals(merged.frames["students"]), "nor does the one after it"

    whole = merge(bare(), tables, as_of=DAY_2)
    assert rows(whole.frames["students"].filter(pl.col("student_id") == student), "birth_date") == [None]


def test_a_partial_snapshot_gives_no_values_to_another_name() -> None:
    """The id may have been given to another child."""
    tables = loaded(district())
    part = {"a": IntegrationInput(completeness="partial")}
    merged = merge(bare(last_name="Other"), tables, as_of=DAY_2, integrations=part)
    known = merged.frames["student_sources"].filter(pl.col("sis_id") == "s1")
    assert rows(known, "birth_date", "last_name") == [(None, "Other")]


def test_an_empty_delta_changes_nothing_and_a_new_row_in_it_counts() -> None:
    tables = loaded(district())
    part = {"a": IntegrationInput(completeness="delta")}
    delta = Roster().student("new", last_name="New", stay={"entry_date": "2025-10-02"})
    merged = merge(delta, tables, as_of=DAY_2, integrations=part)
    assert events(merged) == [("enroll", "new_record")]
    assert merged.frames["enrollments"].height == 41
    assert merge(Roster(), tables, as_of=DAY_2, integrations=part).changes.is_empty()


def test_a_tombstone_ends_an_enrollment_even_in_a_delta() -> None:
    tables = loaded(district())
    delta = Roster().add(
        "enrollments", sis_id="e-s1-1", student_sis_id="s1", school_sis_id="school-1", record_status="to_be_deleted"
    )
    merged = merge(delta, tables, as_of=DAY_2, integrations={"a": IntegrationInput(completeness="delta")})
    assert events(merged) == [("withdraw", "tombstone")]


def test_a_rejected_row_is_present_not_absent() -> None:
    tables = loaded(district())
    rejected = {
        entity: pl.DataFrame({"integration": ["a"], "sis_id": [sis_id]})
        for entity, sis_id in [("students", "s1"), ("enrollments", "e-s1-1")]
    }
    merged = merge(district().without("s1"), tables, as_of=DAY_2, quarantined=rejected)
    assert merged.changes.is_empty()
    assert student_of(tables, "s1") in merged.frames["students"]["student_id"]


def test_an_integration_that_takes_no_part_keeps_what_it_published() -> None:
    tables = loaded(
        district().school("9", integration="b").student("b1", integration="b", school="9", last_name="Other")
    )
    merged = merge(district(), tables, as_of=DAY_2, integrations={"a": IntegrationInput()})
    assert merged.changes.is_empty()


def both_systems() -> Roster:
    return (
        district()
        .school("1", integration="b")
        .student("b1", integration="b", last_name="Name1", ssid="001", stay={"entry_date": "2025-08-20"})
    )


def test_a_student_who_vanishes_from_one_system_keeps_the_others_enrollment() -> None:
    tables = loaded(both_systems())
    merged = merge(both_systems().without("s1"), tables, as_of=DAY_2)
    stays = merged.frames["enrollments"].filter(pl.col("student_id") == student_of(tables, "s1"))
    assert rows(stays, "integration", "status", "entry_date") == [("b", "active", date(2025, 8, 20))]
    assert events(merged) == [("amend", "field_change")]


def test_a_silent_system_vouches_for_a_student_whom_another_dropped() -> None:
    tables = loaded(both_systems())
    parts = {"a": IntegrationInput(), "b": IntegrationInput(priority=200, completeness="partial")}
    after = both_systems().without("s1").without("b1", integration="b")
    assert merge(after, tables, as_of=DAY_2, integrations=parts).changes.is_empty()


def in_part(completeness: Any = "delta") -> dict[str, IntegrationInput]:
    """`a` is read whole, `b` in part."""
    return {"a": IntegrationInput(), "b": IntegrationInput(priority=200, completeness=completeness)}


def b_alone(**told: Any) -> Roster:
    """`both_systems` on a day on which `a` dropped the child, and `b` names the student, as `told`, and no enrollment."""
    after = both_systems().without("s1").without("b1", integration="b")
    about = {"last_name": "Name1", "ssid": "001", "school_sis_id": "school-1"}
    return after.add("students", sis_id="b1", integration="b", **{**about, **told})


@pytest.mark.parametrize("completeness", ["delta", "partial"])
def test_a_system_read_in_part_vouches_for_a_student_of_whom_it_tells_something_else(completeness: Any) -> None:
    """It need not repeat an enrollment that is unchanged, so that it is not there says nothing; and nobody comes back when
    it is read whole."""
    seated = both_systems().section("in-b", "b1", integration="b")
    tables = loaded(seated)
    told = b_alone(email="new@x.org").section("in-b", integration="b")
    merged = merged_both_ways(told.inputs(tables, as_of=DAY_2, integrations=in_part(completeness)))
    assert (events(merged), merged.held) == ([], ())
    after = publish(tables, merged)
    assert after["enrollments"].equals(tables["enrollments"])
    assert after["section_enrollments"].equals(tables["section_enrollments"])
    assert "re_enter" not in dict(events(merge(seated.without("s1"), after, as_of=DAY_2)))


def test_a_system_read_in_part_vouches_for_nobody_of_whom_it_tells_an_exit() -> None:
    tables = loaded(both_systems())
    gone = b_alone().stay("b1", "1", integration="b", entry_date="2025-08-20", record_status="to_be_deleted")
    left = b_alone().stay("b1", "1", integration="b", entry_date="2025-08-20", **EXIT)
    for roster, evidence in (
        (b_alone(enrollment_status="withdrawn"), "absence"),
        (gone, "absence"),
        (left, "explicit_exit"),
    ):
        found = merge(roster, tables, as_of=DAY_2, integrations=in_part())
        assert events(found) == [("withdraw", evidence)]
    elsewhere = b_alone(school_sis_id="school-2").school("2", integration="b")
    assert events(merge(elsewhere, tables, as_of=DAY_2, integrations=in_part())) == [("withdraw", "absence")]


def moved(integration: str = "a", entry: str = "2025-10-02", **stay: Any) -> Roster:
    return (
        changed(district(), "enrollments", "e-s1-1", **EXIT)
        .school("2", integration=integration)
        .stay("s1", "2", entry_date=entry, **stay)
    )


def test_an_exit_and_an_entry_within_fourteen_days_are_one_transfer() -> None:
    roster = changed(district(), "enrollments", "e-s1-1", **EXIT).stay("s1", "2", entry_date="2025-10-02")
    tables = loaded(district())
    merged = merge(roster, tables, as_of=DAY_2)
    found = event(merged)
    assert events(merged) == [("transfer", "explicit_exit")]
    assert found["effective_date"] == DAY_2
    assert found["before"]["school_id"] != found["after"]["school_id"] == found["school_id"]
    statuses = merged.frames["enrollments"].filter(pl.col("student_id") == student_of(tables, "s1"))
    assert rows(statuses, "status") == ["active", "transferred"]


def test_of_two_schools_entered_on_one_day_the_primary_one_is_where_the_student_was_transferred() -> None:
    left = changed(district(), "enrollments", "e-s1-1", **EXIT).school("3")
    for first, second in (("2", "3"), ("3", "2")):
        both = {"entry_date": "2025-10-02", "enrollment_type": "secondary"}
        roster = changed(left, "", "").stay("s1", second, **both).stay("s1", first, entry_date="2025-10-02")
        merged = merge(roster, loaded(district().school("3")), as_of=DAY_2)
        assert events(merged) == [("enroll", "new_record"), ("transfer", "explicit_exit")]
        moved = merged.changes.filter(pl.col("kind") == "transfer")
        assert rows(moved, "school_id") == [numbered_school("d1", first)]


def test_an_exit_whose_nearest_entry_another_takes_is_paired_with_the_next() -> None:
    before = district().school("3").school("4").stay("s1", "3", enrollment_type="secondary")
    after = changed(
        changed(before, "enrollments", "e-s1-1", **EXIT), "enrollments", "e-s1-3", **{**EXIT, "exit_date": "2025-09-30"}
    )
    after.stay("s1", "2", entry_date="2025-10-02").stay("s1", "4", entry_date="2025-10-04", enrollment_type="secondary")
    merged = merge(after, loaded(before), as_of=date(2025, 10, 4))
    moved = merged.changes.filter(pl.col("kind") == "transfer")
    assert sorted(merged.changes["kind"]) == ["transfer", "transfer"]
    assert set(moved["school_id"]) == {numbered_school("d1", "2"), numbered_school("d1", "4")}


def test_a_transfer_across_systems() -> None:
    after = changed(district(), "enrollments", "e-s1-1", **EXIT).school("7", integration="b")
    after.student("b1", integration="b", school="7", last_name="Name1", ssid="001", stay={"entry_date": "2025-10-02"})
    parts = {"a": IntegrationInput(1), "b": IntegrationInput(2)}
    before = district().school("7", integration="b").student("b0", integration="b", school="7", last_name="Other")
    after.student("b0", integration="b", school="7", last_name="Other")
    merged = merge(after, loaded(before, integrations=parts), as_of=DAY_2, integrations=parts)
    assert events(merged) == [("transfer", "explicit_exit")]


def test_the_two_halves_of_a_transfer_may_be_seen_on_two_days() -> None:
    left = changed(district(), "enrollments", "e-s1-1", **EXIT)
    first = publish(loaded(district()), merge(left, loaded(district()), as_of=DAY_2))
    arrived = changed(district(), "enrollments", "e-s1-1", **EXIT).stay("s1", "2", entry_date="2025-10-06")
    assert events(merge(arrived, first, as_of=date(2025, 10, 6))) == [("transfer", "new_record")]


def lived(*days: tuple[Roster, date]) -> list[list[tuple[str, str]]]:
    """The events of each day after the first load; every day merged again has none."""
    tables, found = loaded(district()), []
    for roster, day in days:
        merged = merge(roster, tables, as_of=day)
        tables = publish(tables, merged)
        assert merge(roster, tables, as_of=day).changes.is_empty()
        found.append(events(merged))
    return found


def there(day: str | None = None, **stay: str) -> Roster:
    """s1 went to school 2 on October 2nd; `day`: left it then."""
    gone = {"exit_date": day, "status": "withdrawn"} if day else {}
    return changed(district(), "enrollments", "e-s1-1", **EXIT).stay("s1", "2", entry_date="2025-10-02", **gone | stay)


def test_who_moves_back_to_the_school_of_before_is_transferred() -> None:
    back = there("2025-10-06").stay("s1", "1", sis_id="e-again", entry_date="2025-10-06")
    assert lived((there(), DAY_2), (back, date(2025, 10, 6))) == [
        [("transfer", "explicit_exit")], [("transfer", "explicit_exit")],
    ]  # fmt: skip
    seen_later = lived((there(), DAY_2), (there("2025-10-06"), date(2025, 10, 6)), (back, date(2025, 10, 7)))
    assert seen_later[1:] == [[("withdraw", "explicit_exit")], [("transfer", "new_record")]]


def test_who_moves_back_for_a_time_that_is_over_when_it_is_first_seen_is_transferred() -> None:
    back = there("2025-10-06").stay(
        "s1", "1", sis_id="e-again", entry_date="2025-10-06", exit_date="2025-10-20", status="withdrawn"
    )
    seen = lived((there(), DAY_2), (there("2025-10-06"), date(2025, 10, 6)), (back, date(2025, 10, 21)))
    assert seen[1:] == [
        [("withdraw", "explicit_exit")],
        [("transfer", "new_record"), ("withdraw", "explicit_exit")],
    ]


def test_who_moves_back_into_the_very_stay_that_had_ended_is_transferred() -> None:
    """Where enrollments are derived there is one stay per student and school, which opens again."""
    back = district().stay("s1", "2", entry_date="2025-10-02", exit_date="2025-10-06", status="withdrawn")
    assert lived((there(), DAY_2), (back, date(2025, 10, 6)))[1] == [("transfer", "explicit_exit")]


def test_who_moves_to_and_fro_between_two_such_stays_is_transferred_each_time() -> None:
    back = district().stay("s1", "2", entry_date="2025-10-02", exit_date="2025-10-06", status="withdrawn")
    gone = {"exit_date": "2025-10-08", "status": "withdrawn"}
    forth = changed(district(), "enrollments", "e-s1-1", **gone).stay("s1", "2", entry_date="2025-10-02")
    days = ((there(), DAY_2), (back, date(2025, 10, 6)), (forth, date(2025, 10, 8)))
    assert lived(*days) == [[("transfer", "explicit_exit")]] * 3


def test_who_comes_back_from_nowhere_re_enters() -> None:
    """To the school left last, after an earlier transfer; and to one of two schools that were both left."""
    again = there("2025-10-04").stay("s1", "2", sis_id="e-again", entry_date="2025-10-06")
    assert lived((there(), DAY_2), (there("2025-10-04"), date(2025, 10, 4)), (again, date(2025, 10, 6)))[1:] == [
        [("withdraw", "explicit_exit")], [("re_enter", "new_record")],
    ]  # fmt: skip
    both = {"exit_date": "2025-10-04", "status": "withdrawn"}
    co_enrolled = district().stay("s1", "2", entry_date="2025-08-18")
    left = changed(district(), "enrollments", "e-s1-1", **both).stay(
        "s1", "2", entry_date="2025-08-18", exit_date="2025-10-05", status="withdrawn"
    )
    back = changed(left, "enrollments", "e-s1-1").stay("s1", "1", sis_id="e-again", entry_date="2025-10-08")
    story = lived((co_enrolled, DAY_2), (left, date(2025, 10, 5)), (back, date(2025, 10, 8)))
    assert story[2] == [("re_enter", "new_record")]


@pytest.mark.parametrize(
    ("exit_date", "expected_events"),
    [
        ("2025-09-18", [("transfer", "explicit_exit")]),
        ("2025-09-17", [("enroll", "new_record"), ("withdraw", "explicit_exit")]),
    ],
    ids=["fourteen days", "fifteen days"],
)
def test_an_entry_more_than_fourteen_days_after_the_exit_is_an_enrollment(
    exit_date: str, expected_events: list[tuple[str, str]]
) -> None:
    roster = changed(district(), "enrollments", "e-s1-1", exit_date=exit_date, status="withdrawn").stay(
        "s1", "2", entry_date="2025-10-02"
    )
    assert events(second_day(district(), roster)) == expected_events


def test_coming_back_to_the_same_school_is_a_re_entry() -> None:
    left = changed(district(), "enrollments", "e-s1-1", exit_date="2025-09-01", status="withdrawn")
    back = changed(district(), "enrollments", "e-s1-1", exit_date="2025-09-01", status="withdrawn").stay(
        "s1", "1", sis_id="again", entry_date="2025-10-02"
    )
    merged = second_day(left, back)
    assert events(merged) == [("re_enter", "new_record")]
    reopened = second_day(left, district())
    assert events(reopened) == [("re_enter", "field_change")]


def test_a_return_that_is_dated_has_its_own_date() -> None:
    """Where enrollments are derived, the stay that had ended begins anew; seen late, it is told as of its entry."""
    left = changed(district(), "enrollments", "e-s1-1", exit_date="2025-09-20", status="withdrawn")
    back = changed(district(), "enrollments", "e-s1-1", entry_date="2025-09-29")
    merged = second_day(left, back)
    assert events(merged) == [("re_enter", "field_change")]
    assert merged.changes["effective_date"].to_list() == [date(2025, 9, 29)]


def test_a_transfer_that_was_taken_back_and_comes_again_is_a_transfer() -> None:
    """As from a system that was restored from yesterday's backup, and then brought up to date."""
    assert lived((there(), DAY_2), (district(), DAY_2), (there(), DAY_2)) == [
        [("transfer", "explicit_exit")],
        [("no_show", "absence"), ("re_enter", "field_change")],
        [("transfer", "explicit_exit")],
    ]


def test_a_zero_day_stay_is_a_no_show() -> None:
    roster = changed(district(), "enrollments", "e-s1-1", exit_date="2025-08-18", status="withdrawn")
    assert events(second_day(district(), roster)) == [("no_show", "explicit_exit")]


def test_graduation_has_its_own_event() -> None:
    roster = changed(district(), "enrollments", "e-s1-1", exit_date="2025-10-01", status="graduated")
    assert events(second_day(district(), roster)) == [("graduate", "explicit_exit")]


@pytest.mark.parametrize(
    "columns",
    [
        {"entry_date": "2025-08-20"},
        {"entry_code": "E2"},
        {"exit_date": "2026-05-29"},
        {"sis_id": "renamed", "entry_date": "2025-08-20"},
    ],
)
def test_corrected_dates_and_codes_amend(columns: dict[str, Any]) -> None:
    merged = second_day(district(), changed(district(), "enrollments", "e-s1-1", **columns))
    assert events(merged) == [("amend", "field_change")]
    assert merged.frames["enrollments"].height == 40


def test_a_new_grade_is_a_grade_change() -> None:
    merged = second_day(district(), changed(district(), "students", "s1", grade_level="06"))
    assert events(merged) == [("grade_change", "field_change")]
    assert (event(merged)["before"], event(merged)["after"]) == ({"grade_level": "05"}, {"grade_level": "06"})


def test_seats_that_come_and_go() -> None:
    before = district().section("m", *(f"s{n}" for n in range(1, 40, 2))).section("n", "s1")
    after = district().section("m", *(f"s{n}" for n in range(3, 40, 2))).section("n", "s1", "s3")
    merged = second_day(before, after)
    assert events(merged) == [("section_add", "new_record"), ("section_drop", "absence")]
    ended = merged.frames["section_enrollments"].drop_nulls("end_date")
    assert rows(ended, "end_date") == [DAY_2]


def test_a_seat_that_ends_with_its_section_is_not_dropped() -> None:
    def roster(end: str | None) -> Roster:
        made = district().add("academic_sessions", sis_id="t", start_date="2025-08-01", end_date="2025-12-20")
        made.section("m", "s1", session_sis_ids='["t"]')
        return changed(made, "section_enrollments", "m-s1", end_date=end) if end else made

    assert second_day(roster(None), roster("2025-12-20")).changes.is_empty()
    assert events(second_day(roster(None), roster("2025-10-02"))) == [("section_drop", "explicit_exit")]


def seat_of_spring(roster: Roster, **dates: str) -> Roster:
    """One student's seat in a section of the spring, which begins after these days."""
    roster.add("academic_sessions", sis_id="t", start_date="2026-01-25", end_date="2026-06-19")
    roster.section("m", "s1", session_sis_ids='["t"]')
    return changed(roster, "section_enrollments", "m-s1", **{"begin_date": "2026-01-25", **dates})


def test_a_seat_that_is_given_up_before_it_began_is_new_when_taken_again() -> None:
    """The drop is shown by absence; taken again with the same first day, it is added once, and every state is quiet."""
    with_seat, without = seat_of_spring(district(), end_date="2026-06-19"), seat_of_spring(district())
    without.rows["section_enrollments"].clear()
    tables = loaded(with_seat)
    expected = [[("section_drop", "absence")], [], [("section_add", "new_record")], [], [("section_drop", "absence")]]
    for day, (roster, news) in enumerate(
        zip([without, without, with_seat, with_seat, without], expected, strict=True), start=2
    ):
        merged = merge(roster, tables, as_of=date(2025, 10, day))
        assert events(merged) == news, day
        assert rows(merged.changes, "effective_date") == [date(2026, 1, 25)] * len(news)
        tables = publish(tables, merged)


@pytest.mark.parametrize(
    ("was", "now", "news"),
    [
        ({"end_date": "2026-06-19"}, {"end_date": "2026-01-25"}, [("section_drop", "explicit_exit")]),
        ({"end_date": "2026-01-25"}, {"end_date": "2026-06-19"}, [("section_add", "new_record")]),
        ({"end_date": "2026-01-25"}, {}, [("section_add", "new_record")]),
        # taken again sooner, and over before the day on which it would have begun
        ({"end_date": "2026-01-25"}, {"begin_date": "2025-10-02", "end_date": "2026-01-20"}, [("section_add", "new_record")]),
        ({"end_date": "2026-01-25"}, {"end_date": "2026-01-25"}, []),
        # its dates are corrected, but it still never begins
        ({"end_date": "2026-01-25"}, {"end_date": "2025-10-01"}, []),
        ({"begin_date": "2025-09-01", "end_date": "2025-09-20"}, {"end_date": "2026-01-25"}, []),
    ],
)  # fmt: skip
def test_a_seat_that_never_begins_is_not_taken(
    was: dict[str, str], now: dict[str, str], news: list[tuple[str, str]]
) -> None:
    tables = loaded(seat_of_spring(district(), **was))
    merged = merge(seat_of_spring(district(), **now), tables, as_of=DAY_2)
    assert events(merged) == news
    assert merge(seat_of_spring(district(), **now), publish(tables, merged), as_of=DAY_2).changes.is_empty()


def test_a_seat_that_never_begins_is_no_removal_that_the_guard_counts() -> None:
    """Given up before its first day in a section that runs: absent ever after, which is nothing to hold."""

    def roster(*students: str) -> Roster:
        made = district().section("m", *students)
        made.rows["section_enrollments"] = [
            {**row, "begin_date": "2025-12-01", "end_date": "2025-12-01"} for row in made.rows.get("section_enrollments", [])
        ]  # fmt: skip
        return made

    tables = loaded(roster(*(f"s{n}" for n in range(1, 40, 2))))
    assert tables["section_enrollments"].height == 20
    merged = merge(roster(), tables, as_of=DAY_2)
    assert merged.held == ()
    assert merged.changes.is_empty()


def test_a_preregistered_student_starts_quietly_when_the_day_comes() -> None:
    roster = district().student("early", last_name="Early", stay={"entry_date": "2025-10-02"})
    tables = loaded(roster, as_of=DAY_1)
    assert rows(tables["enrollments"].filter(pl.col("status") == "pre_registered"), "entry_date") == [DAY_2]
    merged = merge(roster, tables, as_of=DAY_2)
    assert merged.changes.is_empty()
    assert set(merged.frames["enrollments"]["status"]) == {"active"}


@pytest.mark.parametrize("as_of", [date(2026, 7, 1), date(2026, 10, 7)])
def test_nobody_leaves_a_year_that_is_over_and_its_grades_are_no_news(as_of: date) -> None:
    """Systems forget who left in a later year, in all their years, and show the grade of today in each."""
    tables = loaded(district())
    later = changed(district().without("s1"), "students", "s3", grade_level="06")
    merged = merge(later, tables, as_of=as_of)
    assert merged.changes.is_empty()
    assert merged.held == ()
    assert merged.frames["enrollments"].equals(tables["enrollments"])
    assert merge(later, publish(tables, merged), as_of=as_of).changes.is_empty()
    assert events(merge(later, tables, as_of=date(2026, 6, 30))) == [
        ("grade_change", "field_change"), ("withdraw", "absence"),
    ]  # fmt: skip


def test_the_year_is_over_when_the_schools_sessions_are() -> None:
    def roster() -> Roster:
        return district().add("academic_sessions", sis_id="y", start_date="2025-08-18", end_date="2026-06-19")

    tables = loaded(roster())
    assert merge(roster().without("s1"), tables, as_of=date(2026, 6, 19)).changes.is_empty()
    assert events(merge(roster().without("s1"), tables, as_of=date(2026, 6, 15))) == [("withdraw", "absence")]


def test_too_many_absences_are_held_while_everything_else_flows_and_a_release_lets_them_pass() -> None:
    tables = loaded(district().section("m", *(f"s{n}" for n in range(1, 40, 2))))
    vanished = district().section("m", *(f"s{n}" for n in range(1, 40, 2))).without("s1", "s3", "s5")
    vanished.student("new", last_name="New", stay={"entry_date": "2025-10-02"})
    merged = merge(vanished, tables, as_of=DAY_2)
    enrollments = next(hold for hold in merged.held if hold.entity == "enrollments")
    assert (enrollments.scope, enrollments.removals, enrollments.limit) == ("district", 3, 2)
    assert ("enroll", "new_record") in events(merged)
    assert "withdraw" not in {kind for kind, _ in events(merged)}
    after = publish(tables, merged)
    assert after["students"].height == 41
    assert after["student_sources"].height == 41
    assert set(after["student_links"]["active"]) == {True}
    rulings = Rulings(released=tuple(map(Ruling.about, merged.held)))
    released = merge(vanished, after, as_of=DAY_2, rulings=rulings)
    assert [kind for kind, _ in events(released)].count("withdraw") == 3
    assert not [hold for hold in released.held if hold.entity == "enrollments"]


def of_school(number: str) -> list[str]:
    """The students of a school of `district`."""
    return [f"s{n}" for n in range(40) if (n % 2 == 1) == (number == "1")]


def enrollment_holds(merged: MergedRoster) -> list[tuple[str, int]]:
    return [(hold.reason, hold.removals) for hold in merged.held if hold.entity == "enrollments"]


def test_a_declared_closure_is_not_held_and_hides_no_other_absence() -> None:
    made, closed = district(), Rulings(closed=frozenset({numbered_school("d1", "1")}))
    tables = loaded(made)
    assert enrollment_holds(merge(made.without(*of_school("1")), tables, as_of=DAY_2)) == [
        ("more absences than the district's limit", 20)
    ]
    merged = merge(made.without(*of_school("1")), tables, as_of=DAY_2, rulings=closed)
    assert merged.held == ()
    assert events(merged) == [("withdraw", "absence")] * 20
    more = made.without(*of_school("1"), *of_school("2")[:3])
    assert [count for _, count in enrollment_holds(merge(more, tables, as_of=DAY_2, rulings=closed))] == [3]


def test_whoever_moved_to_a_declared_new_school_is_not_held() -> None:
    made = district()
    tables = loaded(made)
    moved = made.without(*of_school("1")[:12]).school("3")
    for student in of_school("1")[:12]:
        [row] = [row for row in made.rows["students"] if row["sis_id"] == student]
        name = {key: row[key] for key in ("first_name", "last_name", "birth_date") if key in row}
        moved.student(student, school="3", stay={"entry_date": "2025-10-02"}, **name)
    assert [count for _, count in enrollment_holds(merge(moved, tables, as_of=DAY_2))] == [12]
    opened = Rulings(opened=frozenset({numbered_school("d1", "3")}))
    assert enrollment_holds(merge(moved, tables, as_of=DAY_2, rulings=opened)) == []


def test_absences_between_two_school_years_are_held_and_exits_are_not() -> None:
    """From two days before the last day, 18 June, which the end, exclusive, names as the 19th."""

    def made() -> Roster:
        return district().add("academic_sessions", sis_id="y", start_date="2025-08-18", end_date="2026-06-19")

    tables = loaded(made())
    missing = made().without("s1", "s2")
    assert enrollment_holds(merge(missing, tables, as_of=date(2026, 6, 15))) == []
    frozen = merge(missing, tables, as_of=date(2026, 6, 16))
    assert enrollment_holds(frozen) == [("absences between two school years, until 2026-08-18", 2)]
    assert frozen.held[0].until == "2026-08-18"
    assert enrollment_holds(merge(missing, tables, as_of=date(2026, 6, 16), thresholds=Thresholds(freeze=False))) == []
    exits = changed(made(), "enrollments", "e-s1-1", status="withdrawn", exit_date="2026-06-10")
    assert events(merge(exits, tables, as_of=date(2026, 6, 16))) == [("withdraw", "explicit_exit")]


def test_what_a_partial_release_leaves_waits_on_although_it_is_below_the_limits() -> None:
    made = district()
    tables = loaded(made)
    missing = made.without(*of_school("1")[:4], *of_school("2")[:1])
    merged = merge(missing, tables, as_of=DAY_2)
    [hold] = [hold for hold in merged.held if hold.entity == "enrollments"]
    assert sorted(part.removals for part in hold.parts) == [1, 4]
    one, two = (numbered_school("d1", number) for number in "12")

    def ruled(school: str) -> Ruling:
        keys = frozenset(key for key in hold.keys if key[1] == school)
        return Ruling(f"part {school}", "absence", "enrollments", keys)

    let_through = merge(missing, publish(tables, merged), as_of=DAY_2, rulings=Rulings((ruled(one),), (ruled(two),)))
    assert events(let_through) == [("withdraw", "absence")] * 4
    later = merge(
        missing, publish(publish(tables, merged), let_through), as_of=DAY_2, rulings=Rulings(waiting=(ruled(two),))
    )
    assert later.changes.is_empty()
    assert [(held.kept, held.removals) for held in later.held] == [(f"part {two}", 1)]


def test_an_entity_of_which_nothing_would_be_left_is_kept_until_a_person_says_so() -> None:
    made = district().add("courses", sis_id="c1").add("courses", sis_id="c2")
    tables = loaded(made)
    merged = merge(district(), tables, as_of=DAY_2)
    assert [(hold.entity, hold.removals, hold.reason) for hold in merged.held] == [
        ("courses", 2, "nothing would be left")
    ]
    assert merged.frames["courses"].equals(tables["courses"])
    assert merge(district().add("courses", sis_id="c1"), tables, as_of=DAY_2).held == (), "one is left"
    released = merge(district(), tables, as_of=DAY_2, rulings=Rulings(released=tuple(map(Ruling.about, merged.held))))
    assert (released.held, released.frames["courses"].height) == ((), 0)


def teachers(*numbers: int, gone: tuple[int, ...] = ()) -> Roster:
    roster = district()
    for number in numbers:
        status = "to_be_deleted" if number in gone else "active"
        where = f"school-{1 if number % 2 else 2}"
        roster.add("staff", sis_id=f"t{number}", last_name=f"Teach{number}", school_sis_id=where, record_status=status)
    return roster


def active_staff(merged: MergedRoster) -> int:
    return int(merged.frames["staff_links"]["active"].sum())


def test_staff_whom_a_short_export_lacks_stay_until_a_person_lets_them_go() -> None:
    tables = loaded(teachers(*range(30)))
    few = merge(teachers(*range(20, 30)), tables, as_of=DAY_2)
    [hold] = few.held
    assert (hold.entity, hold.removals, hold.active_before, hold.limit) == ("staff", 20, 30, 5)
    assert sorted(part.removals for part in hold.parts) == [10, 10], "school by school, so that one can be let go"
    assert few.frames["staff_links"].equals(tables["staff_links"])
    after = publish(tables, few)
    one = Ruling("part", "absence", "staff", frozenset(hold.keys[:10]))
    rest = Ruling("rest", "absence", "staff", frozenset(hold.keys[10:]))
    released = merge(teachers(*range(20, 30)), after, as_of=DAY_2, rulings=Rulings(released=(one,), waiting=(rest,)))
    assert (active_staff(released), [held.removals for held in released.held]) == (20, [10])
    whole = merge(teachers(*range(30)), after, as_of=DAY_2)
    assert (whole.held, active_staff(whole)) == ((), 30)


def test_staff_who_leave_in_believable_numbers_or_by_the_word_of_their_system_go() -> None:
    tables = loaded(teachers(*range(30)))
    assert active_staff(merge(teachers(*range(5, 30)), tables, as_of=DAY_2)) == 25
    deleted = merge(teachers(*range(30), gone=tuple(range(20))), tables, as_of=DAY_2)
    assert (deleted.held, active_staff(deleted)) == ((), 10)
    closed = Rulings(closed=frozenset(tables["schools"]["school_id"]))
    assert merge(teachers(29), tables, as_of=DAY_2, rulings=closed).held == (), "their schools are declared closed"


def test_a_staff_member_whom_one_of_two_systems_lacks_is_not_gone() -> None:
    both = teachers(*range(30))
    for number in range(30):
        both.add("staff", sis_id=f"b{number}", last_name=f"Teach{number}", state_staff_id=f"{number}", integration="b")
    for row in both.rows["staff"]:
        row["state_staff_id"] = row["sis_id"][1:]
    tables = loaded(both)
    assert tables["staff_links"]["staff_id"].n_unique() == 30
    some = Roster()
    some.rows = {**both.rows, "staff": [row for row in both.rows["staff"] if row["sis_id"][0] == "t"]}
    merged = merge(some, tables, as_of=DAY_2, integrations={"a": IntegrationInput(), "b": IntegrationInput()})
    assert (merged.held, active_staff(merged)) == ((), 30)


@pytest.mark.parametrize("completeness", ["delta", "partial", "complete"])
def test_who_waits_among_the_staff_is_of_now_whether_or_not_the_reading_names_them(completeness: Any) -> None:
    """Two staff members waited for a word that was long given, because no delta named them."""
    pair = district().add("staff", sis_id="t1", email="t@x.example").school("1", "b")
    pair.add("staff", sis_id="u1", email="t@x.example", last_name="Wed", integration="b")
    silent = district().school("1", "b")
    parts = {name: IntegrationInput(completeness=completeness) for name in "ab"}
    tables = loaded(pair)
    assert tables["staff"]["near_match"].to_list() == [True, True]
    distinct = pl.DataFrame([("a", "t1", None, "b", "u1", None, "distinct")], schema=DECISIONS, orient="row")
    named = pair if completeness == "complete" else silent
    merged = merge(named, tables, as_of=DAY_2, integrations=parts, staff_decisions=distinct)
    assert publish(tables, merged)["staff"]["near_match"].to_list() == [False, False]
    unnamed = merge(named, publish(tables, merged), as_of=DAY_2, integrations=parts, staff_decisions=distinct)
    assert completeness == "complete" or unnamed.frames["staff"].is_empty(), "nobody turned"


def expected(**stay: Any) -> Roster:
    student = {"enrollment_status": stay.get("status", "active")}
    return district().student("early", last_name="Early", stay={"entry_date": "2025-10-02", **stay}, **student)


def status_of(merged: MergedRoster, record: str) -> str:
    return str(merged.frames["enrollments"].filter(pl.col("sis_id") == record)["status"].item())


PARTIAL = {"a": IntegrationInput(completeness="partial")}


@pytest.mark.parametrize(
    ("said", "rest", "status"),
    [
        ("active", {"integrations": PARTIAL}, "active"),
        ("pre_registered", {"integrations": PARTIAL}, "pre_registered"),
        (
            "active",
            {"quarantined": {"enrollments": pl.DataFrame({"integration": ["a"], "sis_id": ["e-early-1"]})}},
            "pre_registered",
        ),
    ],
    ids=["not named again", "the SIS itself keeps waiting", "its row can't be read"],
)
def test_who_is_expected_comes_on_the_day_only_by_a_word_of_the_system(
    said: str, rest: dict[str, Any], status: str
) -> None:
    tables = loaded(expected(status=said))
    silent = expected(status=said)
    silent.rows["enrollments"] = [row for row in silent.rows["enrollments"] if row["sis_id"] != "e-early-1"]
    assert status_of(merge(silent, tables, as_of=DAY_2, **rest), "e-early-1") == status


@pytest.mark.parametrize(("before", "now"), [("active", "pre_registered"), ("pre_registered", "active")])
def test_whether_the_sis_keeps_somebody_waiting_is_what_it_says_now(before: str, now: str) -> None:
    tables = loaded(expected(status=before))
    silent = expected(status=now)
    silent.rows["enrollments"] = [row for row in silent.rows["enrollments"] if row["sis_id"] != "e-early-1"]
    for _ in range(2):
        merged = merge(silent, tables, as_of=DAY_2, integrations=PARTIAL)
        assert status_of(merged, "e-early-1") == now
        tables = publish(tables, merged)


def test_nobody_comes_by_the_word_of_a_system_that_takes_no_part_any_more() -> None:
    here = district().school("1", integration="b")
    here.student("early", integration="b", last_name="Early", stay={"entry_date": "2025-10-02"})
    later = merge(district(), loaded(here), as_of=date(2026, 1, 15), integrations={"a": IntegrationInput()})
    assert status_of(later, "e-early-1") == "pre_registered"


@pytest.mark.parametrize(
    ("entry", "rest", "events_of_day"),
    [
        ("2025-08-20", {"integrations": PARTIAL}, [("amend", "field_change")]),
        ("2025-10-01", {"integrations": PARTIAL}, [("enroll", "new_record")]),
        (
            "2025-10-01",
            {"quarantined": {"enrollments": pl.DataFrame({"integration": ["a"], "sis_id": ["e-s1-1"]})}},
            [("enroll", "new_record")],
        ),
    ],
    ids=["corrected", "a return, the first stay not named", "a return, the first stay unreadable"],
)
def test_a_return_to_a_school_is_no_correction_of_the_stay_that_the_day_does_not_name(
    entry: str, rest: dict[str, Any], events_of_day: list[tuple[str, str]]
) -> None:
    """Six weeks of enrollment went as a corrected entry date."""
    tables = loaded(district())
    again = district()
    again.rows["enrollments"] = [row for row in again.rows["enrollments"] if row["sis_id"] != "e-s1-1"]
    again.stay("s1", "1", sis_id="e2", entry_date=entry)
    merged = merge(again, tables, as_of=DAY_2, **rest)
    found = merged.frames["enrollments"].filter(pl.col("student_id") == student_of(tables, "s1"))
    stays = {"e2"} if entry < "2025-09-01" else {"e-s1-1", "e2"}
    assert (set(found["sis_id"]), events(merged)) == (stays, events_of_day)


DELTA = {"a": IntegrationInput(1), "b": IntegrationInput(0, "delta")}


def one_child(*stays: dict[str, Any]) -> Roster:
    """One child, who has two records in system b, and one in a; with the stays that the records `of` tell."""
    roster = Roster().school("1").school("1", "b")
    for integration, sis_id in (("a", "1"), ("b", "2"), ("b", "3")):
        roster.student(sis_id, integration=integration, school=None, ssid="7")
    for stay in stays:
        of = stay.pop("of")
        roster.stay(of, "1", integration="a" if of == "1" else "b", **stay)
    return roster


@pytest.mark.parametrize("others", [(), ({"of": "1", "sis_id": "e1-0"},)], ids=["alone", "beside another system"])
def test_a_stay_that_its_system_tells_under_another_id_is_told_anew(others: tuple[dict[str, Any], ...]) -> None:
    """By the record delivered now, not by the carried one, though that is open and the first by its id."""
    tables = loaded(one_child({"of": "2", "sis_id": "e2-0"}), integrations=DELTA)
    again = one_child({"of": "3", "sis_id": "e3-0", "exit_date": "2025-09-30", "exit_code": "W1"}, *map(dict, others))
    merged = merge(again, tables, as_of=DAY_2, integrations=DELTA)
    assert rows(merged.frames["enrollments"], "sis_id", "exit_code") == [("e3-0", "W1")]


def test_two_reports_of_one_stay_tell_no_other_one_anew() -> None:
    to_come = {"of": "2", "sis_id": "e2-1", "entry_date": "2025-10-02"}
    tables = loaded(one_child({"of": "2", "sis_id": "e2-0", "entry_date": "2025-09-20"}, to_come), integrations=DELTA)
    twice = one_child(*({"of": of, "sis_id": f"e{of}", "entry_date": "2025-09-20"} for of in "23"))
    merged = merge(twice, tables, as_of=DAY_2, integrations=DELTA)
    assert rows(merged.frames["enrollments"], "sis_id", "status") == [("e2", "active"), ("e2-1", "active")]


def test_a_snapshot_that_is_complete_and_empty_removes_nobody() -> None:
    tables = loaded(district())
    merged = merge(Roster(), tables, as_of=DAY_2)
    assert merged.changes.is_empty()
    assert merged.held[0].reason == "nothing would be left"
    after = publish(tables, merged)
    assert after["enrollments"].equals(tables["enrollments"])


def test_explicit_exits_above_their_limit_are_held() -> None:
    roster = district()
    for number in range(11):
        roster = changed(roster, "enrollments", f"e-s{number}-{1 if number % 2 else 2}", **EXIT)
    merged = second_day(district(), roster)
    assert merged.changes.is_empty()
    assert [(hold.kind, hold.removals) for hold in merged.held] == [("explicit_exit", 11)]


def test_a_co_enrolled_student_has_one_primary() -> None:
    roster = district().stay("s1", "2", sis_id="second", enrollment_type="primary", entry_date="2025-09-01")
    tables = loaded(roster)
    mine = tables["enrollments"].filter(pl.col("student_id") == student_of(tables, "s1"))
    assert rows(mine, "enrollment_type", "entry_date") == [
        ("primary", date(2025, 9, 1)),
        ("secondary", date(2025, 8, 18)),
    ]
    year = tables["student_years"].filter(pl.col("student_id") == student_of(tables, "s1"))
    assert year["school_id"].item() == mine.filter(pl.col("enrollment_type") == "primary")["school_id"].item()


def test_a_recycled_id_is_reported_and_the_child_who_had_it_stays() -> None:
    tables = loaded(district())
    other = changed(
        district(), "students", "s1", first_name="Ben", last_name="Other", birth_date="2016-09-09", ssid="999"
    )
    merged = merge(other, tables, as_of=DAY_2)
    assert rows(merged.recycled, "integration", "sis_id") == [("a", "s1")]
    assert merged.changes.is_empty()
    assert publish(tables, merged)["students"].equals(tables["students"])


def test_students_that_turn_out_to_be_one_are_joined_without_a_removal() -> None:
    before = district().school("1", integration="b").student("b1", integration="b", last_name="Name1", ssid=None)
    after = district().school("1", integration="b").student("b1", integration="b", last_name="Name1", ssid="001")
    tables = loaded(before)
    merged = merge(after, tables, as_of=DAY_2)
    assert list(merged.retired) in ([student_of(tables, "s1")], [student_of(tables, "b1", "b")])
    assert merged.changes.is_empty()
    assert merged.held == ()
    result = publish(tables, merged)
    assert student_of(result, "s1") == student_of(result, "b1", "b")
    assert result["students"].height == result["student_years"].height == 40
    assert merge(after, result, as_of=DAY_2).changes.is_empty()


def test_near_matches_are_flagged_on_both_students() -> None:
    roster = district().student("b1", integration="b", school=None, last_name="Name1")
    tables = loaded(roster)
    flagged = tables["students"].filter("near_match")
    assert set(flagged["student_id"]) == {student_of(tables, "s1"), student_of(tables, "b1", "b")}


def test_sections_carry_their_dates_teacher_and_course() -> None:
    roster = district().add("staff", sis_id="t9").add("courses", sis_id="c1", course_code="M1")
    roster.add("academic_sessions", sis_id="t1", start_date="2025-08-01", end_date="2025-12-20")
    roster.add("academic_sessions", sis_id="t2", start_date="2026-01-05", end_date="2026-06-01")
    roster.section("m", "s1", course_sis_id="c1", session_sis_ids='["t1", "t2"]')
    roster.add(
        "section_enrollments", sis_id="x", section_sis_id="m", person_sis_id="t9", role="teacher", is_primary=True
    )
    frames = merge(roster).frames
    section = frames["sections"].row(0, named=True)
    assert (section["start_date"], section["end_date"]) == (date(2025, 8, 1), date(2026, 6, 1))
    assert section["teacher_id"] == frames["staff"]["staff_id"].item()
    assert section["course_id"] == frames["courses"]["course_id"].item()
    assert rows(frames["section_enrollments"], "role") == ["student", "teacher"]


def test_a_student_and_a_teacher_with_one_number_are_two_people() -> None:
    roster = district().add("staff", sis_id="s1").section("m", "s1")
    roster.add("section_enrollments", sis_id="x", section_sis_id="m", person_sis_id="s1", role="teacher")
    seats = merge(roster).frames["section_enrollments"]
    assert seats["person_id"].n_unique() == 2


def test_rows_of_another_year_are_counted_and_left_out() -> None:
    merged = merge(district().stay("s1", "1", sis_id="last-year", school_year="2024-2025", entry_date="2024-08-18"))
    assert merged.stats.other_year_rows == 1
    assert merged.stats.enrollments == 40


def test_an_earlier_year_does_not_change_the_person() -> None:
    this_year = district().student("s99", last_name="Married", first_name="Ada")
    last_year = (
        Roster("2024-2025")
        .school("1")
        .student("s99", last_name="Maiden", first_name="Ada", stay={"entry_date": "2024-08-18"})
    )
    tables = loaded(this_year)
    merged = merge(last_year, tables, as_of=DAY_2)
    assert merged.frames["students"].is_empty()
    after = publish(tables, merged, "2024-2025")
    assert after["students"].equals(tables["students"])
    assert rows(after["student_years"].filter(pl.col("student_id") == student_of(tables, "s99")), "school_year") == [
        "2024-2025",
        "2025-2026",
    ]


# --- the laws of the whole ------------------------------------------------------------------------------------------

PEOPLE = [
    ("Ada", "Moss", "2012-03-04"),
    ("Bea", "Moss", "2012-03-04"),
    ("Cy", "Hill", "2011-01-01"),
    ("Di", "Reyes-Cruz", "2010-05-05"),
]

enrolled = st.fixed_dictionaries(
    {
        "integration": st.sampled_from("ab"),
        "person": st.integers(0, 3),
        "has_ssid": st.booleans(),
        "school": st.sampled_from(["1", "2"]),
        "entry": st.sampled_from(["2025-08-18", "2025-08-25", "2025-09-20"]),
        "exit": st.sampled_from([None, None, "2025-09-01", "2026-06-01"]),
        "grade": st.sampled_from(["05", "06"]),
        "email": st.sampled_from(["f@example.org", None]),
        "seat": st.booleans(),
    }
)


def world(students: list[dict[str, Any]], year: str = "2025-2026") -> Roster:
    """A small district: every student record with one enrollment and perhaps a seat."""
    roster = Roster(year)
    for integration in "ab":
        for number in "12":
            roster.school(number, integration)
            roster.section(f"m{number}", integration=integration, school=number)
    for number, row in enumerate(students):
        first, last, born = PEOPLE[row["person"]]
        sis_id, integration = f"{row['person']}-{number}", row["integration"]
        shift = int(year[:4]) - 2025
        dates = {
            name: row[key] and f"{int(row[key][:4]) + shift}{row[key][4:]}"
            for name, key in (("entry_date", "entry"), ("exit_date", "exit"))
        }
        roster.student(
            sis_id, integration=integration, school=row["school"], first_name=first, last_name=last, birth_date=born,
            ssid=str(row["person"]) if row["has_ssid"] else None, grade_level=row["grade"], email=row["email"], stay=dates,
        )  # fmt: skip
        if row["seat"]:
            roster.add(
                "section_enrollments", sis_id=f"x{number}", section_sis_id=f"m{row['school']}", person_sis_id=sis_id,
                begin_date=dates["entry_date"], integration=integration,
            )  # fmt: skip
    return roster


def same_tables(one: Mapping[str, pl.DataFrame], other: Mapping[str, pl.DataFrame], *but: str) -> None:
    for name in one:
        if name not in but:
            assert one[name].equals(other[name]), name


@laws(8)
@given(st.lists(enrolled, min_size=1, max_size=7), st.randoms(use_true_random=False))
def test_the_order_of_the_input_decides_nothing(students: list[dict[str, Any]], shuffle: random.Random) -> None:
    inputs = world(students).inputs()
    seed = shuffle.randrange(1000)
    mixed = {entity: frame.sample(fraction=1, shuffle=True, seed=seed) for entity, frame in inputs.records.items()}
    parts = dict(reversed(inputs.integrations.items()))
    one, other = merge_district(inputs), merge_district(replace(inputs, records=mixed, integrations=parts))
    assert one.held == other.held
    for name, frame in one.frames.items():
        assert frame.sort(frame.columns).equals(other.frames[name].sort(frame.columns)), name


@laws(6)
@given(
    st.lists(enrolled, min_size=1, max_size=7),
    st.lists(enrolled, min_size=0, max_size=7),
    st.sampled_from([Thresholds(), Thresholds(district_floor=99, school_floor=99, seat_floor=99, exit_floor=99)]),
)
def test_feeding_the_result_back_changes_nothing(
    students: list[dict[str, Any]], later: list[dict[str, Any]], thresholds: Thresholds
) -> None:
    """After a first load, and after a second day on top of it, with removals held and with removals let through."""
    tables: Tables = {}
    for roster, day in ((world(students), DAY_1), (world(later), DAY_2)):
        tables = publish(tables, merge(roster, tables, as_of=day, thresholds=thresholds))
        again = merge(roster, tables, as_of=day, thresholds=thresholds)
        assert again.changes.is_empty()
        same_tables(tables, publish(tables, again))


@laws(12)
@given(st.lists(enrolled, min_size=1, max_size=7))
def test_nobody_is_lost_or_invented(students: list[dict[str, Any]]) -> None:
    merged = merge(world(students))
    links = merged.frames["student_links"]
    assert links.height == len(students)
    assert (
        set(links["student_id"])
        == set(merged.frames["students"]["student_id"])
        == set(merged.frames["student_years"]["student_id"])
    )
    assert set(merged.frames["enrollments"]["student_id"]) == set(links["student_id"])
    truth = {f"{row['integration']}/{row['person']}-{n}": row["person"] for n, row in enumerate(students)}
    persons: dict[str, set[int]] = {}
    for integration, sis_id, student in links.select("integration", "sis_id", "student_id").iter_rows():
        persons.setdefault(student, set()).add(truth[f"{integration}/{sis_id}"])
    assert all(len(found) == 1 for found in persons.values())
    active = merged.frames["enrollments"].filter(pl.col("status") == "active")
    primaries = active.filter(pl.col("enrollment_type") == "primary")
    assert set(primaries["student_id"]) == set(active["student_id"])
    assert not primaries["student_id"].is_duplicated().any()


@laws(5)
@given(st.lists(enrolled.map(lambda row: {**row, "has_ssid": True}), min_size=1, max_size=6), st.data())
def test_the_years_may_be_merged_in_any_order(students: list[dict[str, Any]], data: st.DataObject) -> None:
    """Everything but the ids is the same; ids are compared through the records that lead to them."""
    years = ["2023-2024", "2024-2025", "2025-2026"]
    rosters = {year: world([row for row in students if data.draw(st.booleans())] or students, year) for year in years}

    def tables_in(order: list[str]) -> Tables:
        tables: Tables = {}
        for year in order:
            tables = publish(tables, merge(rosters[year], tables, as_of=DAY_1), year)
        return tables

    one, other = tables_in(years), tables_in(data.draw(st.permutations(years)))
    keep = {
        "students": ["origins", "latest_school_year", "last_name"],
        "student_years": ["school_year", "grade_level", "school_id"],
        "enrollments": ["school_year", "school_id", "entry_date", "status"],
    }
    for name, columns in keep.items():
        assert rows(_named(one, name), "who", *columns) == rows(_named(other, name), "who", *columns), name


def _named(tables: Tables, name: str) -> pl.DataFrame:
    """A table with `who`: the records that a student is, instead of the id."""
    links = tables["student_links"]
    who = links.group_by("student_id").agg(who=pl.concat_str("integration", "sis_id").sort().str.join(" "))
    return tables[name].join(who, on="student_id")


def test_tables_as_the_database_has_them_may_have_columns_of_their_own() -> None:
    tables = loaded(district())
    tables["student_links"] = tables["student_links"].with_columns(first_seen=pl.lit(None, pl.Datetime("us", "UTC")))
    tables = {name: frame.with_columns(written_by=pl.lit("x")) for name, frame in tables.items()}
    assert merge(district(), tables, as_of=DAY_2).changes.is_empty()


def test_inputs_of_nothing_give_nothing() -> None:
    merged = merge_district(DistrictInputs("d1", "2025-2026", DAY_1, OPERATION, {}, {}))
    assert all(frame.is_empty() for frame in merged.frames.values())
