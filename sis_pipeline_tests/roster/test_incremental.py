"""What is published and said again is not merged anew: a merge that leaves it out decides what a whole merge decides."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.roster import frames
from sis_pipeline.roster.contract import IntegrationInput, Memory
from sis_pipeline.roster.frames import rows_in_common
from sis_pipeline.roster.thresholds import Thresholds
from sis_pipeline.roster.withdrawals import WITHDRAWALS
from sis_pipeline_tests.roster.rosters import (
    DAY_1,
    DAY_2,
    Roster,
    events,
    laws,
    loaded,
    merge,
    merged_both_ways,
    publish,
)

Row = dict[str, Any]
NAMES = [("Ada", "Moss"), ("Adah", "Moss"), ("Bea", "Moss"), ("Cy", "Hill"), ("Di", "Reyes")]
FEW = Thresholds()
MANY = Thresholds(district_floor=99, school_floor=99, seat_floor=99, exit_floor=99)

record = st.fixed_dictionaries(
    {
        "integration": st.sampled_from("ab"),
        "person": st.integers(0, len(NAMES) - 1),
        "ssid": st.sampled_from(["own", "first", None]),
        "school": st.sampled_from("12"),
        "status": st.sampled_from(["active", "active", "active", "to_be_deleted"]),
        "exit": st.sampled_from([None, None, None, "2025-10-02"]),
    }
)
seat = st.fixed_dictionaries(
    {
        "record": st.integers(0, 5),
        "section": st.sampled_from("12"),
        "begin": st.sampled_from([None, "2025-08-18", "2025-10-02"]),
        "end": st.sampled_from([None, None, None, "2025-08-18", "2025-10-03", "2026-06-01"]),
        "role": st.sampled_from(["student"] * 5 + ["teacher"]),
        "status": st.sampled_from(["active"] * 5 + ["to_be_deleted"]),
    }
)
happening = st.fixed_dictionaries(
    {
        "records": st.dictionaries(st.integers(0, 5), st.none() | record, max_size=1),
        "seats": st.dictionaries(st.integers(0, 9), st.none() | seat, max_size=3),
        "verdict": st.sampled_from(["complete", "complete", "partial", "delta"]),
        "school_of_section": st.sampled_from("112"),
        "thresholds": st.sampled_from([FEW, MANY]),
        "withdrawn": st.booleans(),
        "days_later": st.integers(0, 2),
    }
)


def delivery(records: Mapping[int, Row], seats: Mapping[int, Row], school_of_section: str) -> Roster:
    roster = Roster()
    for integration in "ab":
        roster.school("1", integration).school("2", integration)
        roster.section("m1", integration=integration, school=school_of_section)
        roster.section("m2", integration=integration, school="2")
        roster.add("staff", sis_id="t", integration=integration, last_name=f"Teach{integration}")
    for number, row in records.items():
        first, last = NAMES[row["person"]]
        ssid = {"own": str(number), "first": str(row["person"]), None: None}[row["ssid"]]
        left = {"exit_date": row["exit"], "exit_code": "W1", "status": "withdrawn"} if row["exit"] else {}
        roster.student(
            f"s{number}", integration=row["integration"], school=row["school"], first_name=first, last_name=last,
            ssid=ssid, record_status=row["status"], stay=left,
        )  # fmt: skip
    for number, row in seats.items():
        of = records.get(row["record"])
        roster.add(
            "section_enrollments", sis_id=f"x{number}", integration=of["integration"] if of else "a",
            section_sis_id=f"m{row['section']}", role=row["role"], begin_date=row["begin"], end_date=row["end"],
            person_sis_id=f"s{row['record']}" if row["role"] == "student" else "t", record_status=row["status"],
        )  # fmt: skip
    return roster


def withdrawals(tables: Mapping[str, pl.DataFrame], *, made: bool) -> pl.DataFrame:
    """The first of those enrolled, withdrawn by a person."""
    if not made or not tables:
        return pl.DataFrame(schema=WITHDRAWALS)
    first = tables["enrollments"].sort("student_id", "school_id", "entry_date").head(1)
    return first.select(
        "student_id", "school_id", "entry_date", withdrawal_id=pl.lit("w"), effective_date=DAY_2, exit_code=pl.lit("W9")
    ).select(list(WITHDRAWALS))


@laws(5)
@given(
    st.lists(record, min_size=2, max_size=6),
    st.lists(seat, min_size=3, max_size=10),
    st.lists(happening, min_size=2, max_size=4),
    st.randoms(use_true_random=False),
)
def test_it_decides_what_a_whole_merge_decides_day_after_day(
    first: list[Row], sitting: list[Row], days: list[Row], shuffle: random.Random
) -> None:
    records, seats = dict(enumerate(first)), dict(enumerate(sitting))
    tables: dict[str, pl.DataFrame] = {}
    memory: Memory | None = None
    as_of = DAY_1
    for day in days:
        as_of += timedelta(days=day["days_later"])
        records = {number: row for number, row in (records | day["records"]).items() if row}
        seats = {number: row for number, row in (seats | day["seats"]).items() if row}
        parts = {"a": IntegrationInput(1, day["verdict"]), "b": IntegrationInput(2)}
        inputs = delivery(records, seats, day["school_of_section"]).inputs(
            tables, as_of=as_of, integrations=parts, thresholds=day["thresholds"],
            withdrawals=withdrawals(tables, made=day["withdrawn"]), memory=memory,
        )  # fmt: skip
        seed = shuffle.randrange(1000)
        mixed = {name: frame.sample(fraction=1, shuffle=True, seed=seed) for name, frame in inputs.records.items()}
        merged = merged_both_ways(replace(inputs, records=mixed))
        tables, memory = publish(tables, merged), merged.memory


def seated(*students: str, **row: Any) -> Roster:
    roster = Roster().school("1").add("staff", sis_id="t")
    for number in range(1, 6):
        roster.student(f"s{number}", last_name=f"Name{number}", ssid=str(number))
    roster.section("m", *students, **row)
    roster.add("section_enrollments", sis_id="m-t", section_sis_id="m", person_sis_id="t", role="teacher")
    return roster


ALL = ("s1", "s2", "s3", "s4", "s5")


def merged_anew(before: Roster, after: Roster, as_of: date = DAY_2, **rest: Any) -> int | None:
    return merged_both_ways(after.inputs(loaded(before), as_of=as_of, **rest)).stats.seats_merged


def test_a_first_load_merges_every_seat_and_the_same_again_none() -> None:
    assert merge(seated(*ALL)).stats.seats_merged == 6
    assert merged_anew(seated(*ALL), seated(*ALL)) == 0


@pytest.mark.parametrize(
    ("after", "anew"),
    [
        (seated("s1", "s2", "s3", "s4"), 1),
        (seated(*ALL).add("section_enrollments", sis_id="x", section_sis_id="m", person_sis_id="s1"), 1),
        (seated(*ALL).section("n", "s1", "s2"), 2),
        (seated(*ALL).student("s6", last_name="Name6"), 0),
    ],
    ids=["one is missing", "one is said twice", "two are new", "a student is new"],
)
def test_only_what_is_not_said_again_just_so_is_merged(after: Roster, anew: int) -> None:
    assert merged_anew(seated(*ALL), after) == anew


def test_another_report_of_a_seat_may_win_over_the_one_that_repeats_it() -> None:
    ended = {"begin_date": "2025-08-18", "end_date": "2025-12-01"}
    before = seated().add("section_enrollments", sis_id="1", section_sis_id="m", person_sis_id="s1", **ended)
    tables = loaded(before)
    before.add("section_enrollments", sis_id="2", section_sis_id="m", person_sis_id="s1", begin_date="2025-08-18")
    seats = merged_both_ways(before.inputs(tables, as_of=DAY_2)).frames["section_enrollments"]
    assert seats.filter(pl.col("role") == "student")["sis_id"].to_list() == ["2"]


def test_the_seats_of_a_withdrawn_student_end_although_they_are_said_again() -> None:
    tables = loaded(seated(*ALL))
    gone = withdrawals(tables, made=True)
    merged = merged_both_ways(seated(*ALL).inputs(tables, as_of=DAY_2, withdrawals=gone))
    assert [kind for kind, _ in events(merged)] == ["section_drop", "withdraw"]
    again = seated(*ALL).inputs(publish(tables, merged), as_of=DAY_2, withdrawals=gone)
    assert merged_both_ways(again).changes.is_empty()


def test_seats_that_stay_count_where_the_guard_counts() -> None:
    """Four of five absences in a section are too many; the one that stays is no more merged than the teacher's."""
    merged = merged_both_ways(seated("s1").inputs(loaded(seated(*ALL)), as_of=DAY_2, thresholds=Thresholds()))
    [hold] = merged.held
    assert (hold.removals, hold.active_before, merged.stats.seats_merged) == (4, 5, 4)


def test_rows_in_common_are_alike_in_every_column_nulls_included() -> None:
    one = pl.DataFrame({"a": ["x", "y", "z", "w"], "b": [1, None, 3, 4]})
    other = pl.DataFrame({"b": [None, 5, 1, 4, 4], "a": ["y", "z", "x", "w", "w"]})
    assert rows_in_common(one, other).rows() == [(1, 0), (0, 2)], "what is there twice is left out"


def test_rows_whose_hashes_are_equal_by_chance_are_not_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl.DataFrame, "hash_rows", lambda frame: pl.Series([7] * frame.height, dtype=pl.UInt64))
    assert rows_in_common(pl.DataFrame({"a": ["x"]}), pl.DataFrame({"a": ["y"]})).is_empty()


def test_rows_of_one_hash_are_common_only_where_they_are_alike(monkeypatch) -> None:
    monkeypatch.setattr(frames, "COMPARED_AT_ONCE", 1)
    monkeypatch.setattr(pl.DataFrame, "hash_rows", lambda frame: frame["b"].cast(pl.UInt64))
    one, other = (
        pl.DataFrame({"a": ["x", None, "z"], "b": [1, 2, 3]}),
        pl.DataFrame({"b": [3, 2, 1], "a": ["z", None, "y"]}),
    )
    assert rows_in_common(one, other).rows() == [(2, 0), (1, 1)]
    monkeypatch.setattr(frames, "COMPARED_AT_ONCE", 100)
    assert rows_in_common(one, other).rows() == [(2, 0), (1, 1)]
