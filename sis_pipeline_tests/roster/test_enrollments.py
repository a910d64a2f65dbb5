"""One stay of several reports, its status on a day, one primary."""

from __future__ import annotations

from datetime import date
from typing import Any

import polars as pl
import pytest

from sis_pipeline.roster.enrollments import (
    choose_primary,
    combine_reports,
    combine_seats,
    homes,
    mark_transfers,
    match_stays,
    settle_statuses,
)
from sis_pipeline_tests.roster.rosters import published, rows

PRIORITIES = {"a": 1, "b": 2, "c": 3}
AS_OF = date(2025, 10, 1)
NO_CLOSINGS = pl.DataFrame(schema={"school_id": pl.String, "day_after": pl.Date})


def stays(*given: dict[str, Any]) -> pl.DataFrame:
    default = {
        "district": "d1",
        "student_id": "s",
        "school_id": "pine",
        "school_year": "2025-2026",
        "entry_date": "2025-08-18",
        "entry_date_source": "sis",
        "enrollment_type": "primary",
        "status": "active",
        "integration": "a",
    }
    return published("enrollments", *({**default, "sis_id": str(n), **row} for n, row in enumerate(given)))


def combined(*given: dict[str, Any]) -> pl.DataFrame:
    return combine_reports(stays(*given), PRIORITIES)


def test_two_systems_within_fourteen_days_report_one_stay() -> None:
    result = combined(
        {"integration": "b", "entry_date": "2025-09-01"}, {"integration": "a", "entry_date": "2025-08-18"}
    )
    assert rows(result, "integration", "entry_date") == [("a", date(2025, 8, 18))]


def test_of_two_stays_as_near_a_report_belongs_to_the_later() -> None:
    told = {"entry_date_source": "session_start"}
    result = combined(
        {"entry_date": "2025-08-18", "exit_date": "2025-08-24", "status": "withdrawn", **told},
        {"entry_date": "2025-09-01", **told},
        {"integration": "b", "entry_date": "2025-08-25"},
    )
    assert rows(result, "entry_date", "status") == [
        (date(2025, 8, 18), "withdrawn"),
        (date(2025, 8, 25), "active"),
    ]


def test_more_than_fourteen_days_apart_are_two_stays() -> None:
    assert combined({"integration": "b", "entry_date": "2025-09-02"}, {"integration": "a"}).height == 2


def test_two_stays_of_one_system_stay_two_however_near() -> None:
    result = combined(
        {"exit_date": "2025-08-25", "status": "withdrawn"},
        {"entry_date": "2025-08-28"},
        {"integration": "b", "entry_date": "2025-08-27"},
    )
    assert rows(result, "entry_date") == [date(2025, 8, 18), date(2025, 8, 28)]


def test_the_best_entry_date_is_the_sis_own() -> None:
    result = combined(
        {"entry_date_source": "session_start"}, {"integration": "b", "entry_date": "2025-08-20", "entry_code": "E1"}
    )
    assert rows(result, "integration", "entry_date", "entry_date_source", "entry_code") == [
        ("a", date(2025, 8, 20), "sis", "E1")
    ]


def test_two_records_of_one_student_in_one_system_are_one_stay_and_the_open_one_counts() -> None:
    result = combined({"exit_date": "2025-09-01", "status": "withdrawn"}, {})
    assert rows(result, "status") == ["active"]


@pytest.mark.parametrize(
    ("row", "status"),
    [
        ({}, "active"),
        ({"entry_date": "2025-10-02"}, "pre_registered"),
        ({"entry_date": "2025-10-01"}, "active"),
        ({"exit_date": "2025-10-02"}, "active"),
        ({"exit_date": "2025-10-01"}, "withdrawn"),
        ({"exit_date": "2025-08-18"}, "no_show"),
        ({"exit_date": "2025-08-18", "status": "withdrawn"}, "no_show"),
        ({"exit_date": "2025-09-18", "status": "transferred"}, "transferred"),
        ({"exit_date": "2025-09-18", "status": "graduated"}, "graduated"),
        ({"status": "no_show"}, "no_show"),
        ({"status": "pre_registered"}, "pre_registered"),
    ],
)
def test_the_status_is_what_the_sis_says_corrected_by_the_dates(row: dict[str, Any], status: str) -> None:
    assert rows(settle_statuses(stays(row), NO_CLOSINGS, AS_OF, date(2026, 7, 1)), "status") == [status]


def test_staying_to_the_end_of_the_year_is_not_a_withdrawal() -> None:
    closings = pl.DataFrame({"school_id": ["pine", None], "day_after": [date(2026, 6, 6), date(2026, 6, 12)]})
    given = stays(
        {"exit_date": "2026-06-06"},
        {"exit_date": "2026-06-05", "student_id": "t"},
        {"exit_date": "2026-06-12", "school_id": "oak", "student_id": "u"},
    )
    result = settle_statuses(given, closings, date(2026, 11, 1), date(2026, 7, 1))
    assert rows(result, "student_id", "status") == [("s", "active"), ("t", "withdrawn"), ("u", "active")]


def test_exactly_one_active_stay_is_primary() -> None:
    result = choose_primary(
        stays(
            {"integration": "b", "school_id": "oak"},
            {"integration": "a", "school_id": "pine", "enrollment_type": "secondary"},
            {"integration": "c", "school_id": "elm"},
            {"integration": "a", "school_id": "ash", "status": "withdrawn", "exit_date": "2025-09-01"},
            {"student_id": "t", "enrollment_type": "secondary"},
        ),
        PRIORITIES,
    )
    active = result.filter(pl.col("status") == "active", pl.col("enrollment_type") == "primary")
    assert rows(active, "student_id", "school_id") == [("s", "oak"), ("t", "pine")]
    assert rows(homes(result), "student_id", "school_id") == [("s", "oak"), ("t", "pine")]


def test_home_is_the_latest_stay_of_a_student_who_left() -> None:
    gone = {"status": "withdrawn", "exit_date": "2025-09-01"}
    result = homes(stays(gone, {**gone, "school_id": "oak", "entry_date": "2025-09-01", "exit_date": "2025-09-20"}))
    assert rows(result, "school_id", "status") == [("oak", "withdrawn")]


@pytest.mark.parametrize(
    ("entered", "status"), [("2025-09-15", "transferred"), ("2025-09-16", "withdrawn"), ("2025-08-25", "transferred")]
)
def test_leaving_for_another_school_of_the_district_is_a_transfer(entered: str, status: str) -> None:
    result = mark_transfers(
        stays({"status": "withdrawn", "exit_date": "2025-09-01"}, {"school_id": "oak", "entry_date": entered})
    )
    assert rows(result.filter(pl.col("school_id") == "pine"), "status") == [status]


def test_a_stay_is_recognised_by_its_key_then_its_record_then_its_turn() -> None:
    before = stays(
        {"sis_id": "same"},
        {"student_id": "t", "sis_id": "record"},
        {"student_id": "u", "sis_id": "old"},
        {"student_id": "v", "sis_id": "ended", "exit_date": "2025-09-01"},
    )
    after = stays(
        {"sis_id": "other"},
        {"student_id": "t", "sis_id": "record", "entry_date": "2025-11-01"},
        {"student_id": "u", "sis_id": "new", "entry_date": "2025-08-20"},
        {"student_id": "v", "sis_id": "again", "entry_date": "2025-09-15"},
    )
    assert rows(match_stays(before, after), "before", "after") == [(0, 0), (1, 1), (2, 2), (3, None), (None, 3)]


def test_one_seat_of_several_reports_is_the_one_without_an_end() -> None:
    seat = {
        "district": "d1",
        "section_id": "m",
        "person_id": "s",
        "role": "student",
        "school_year": "2025-2026",
        "integration": "a",
    }
    seats = published(
        "section_enrollments",
        {**seat, "sis_id": "1", "end_date": "2025-09-01"},
        {**seat, "sis_id": "2", "begin_date": "2025-09-05"},
        {**seat, "sis_id": "3", "end_date": "2026-06-01"},
    )
    assert rows(combine_seats(seats), "sis_id") == ["2"]
