"""Which value survives, where it came from, and what counts as a conflict."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.roster.merge import MergedStudents, merge_students
from sis_pipeline.roster.policies import Policies
from sis_pipeline_tests.roster.rosters import laws, rows, to_merge

PRIORITIES = {"a": 1, "b": 2, "c": 2}
NEWEST = Policies(default="newest_wins")


def merge(*students: dict[str, Any], policies: Policies | None = None) -> MergedStudents:
    """The records of one student, unless a row names its `student_id`."""
    return merge_students(to_merge(*students), policies or Policies(), PRIORITIES)


def one(merged: MergedStudents) -> dict[str, Any]:
    return merged.students.row(0, named=True)


def test_the_lowest_priority_number_wins_and_nulls_never_do() -> None:
    student = one(
        merge({"integration": "b", "email": "b@x.org", "phone": "5125550100"}, {"integration": "a", "email": "a@x.org"})
    )
    assert (student["email"], student["phone"]) == ("a@x.org", "5125550100")


def test_equal_priorities_are_decided_by_the_integration_key() -> None:
    assert (
        one(merge({"integration": "c", "email": "c@x.org"}, {"integration": "b", "email": "b@x.org"}))["email"]
        == "b@x.org"
    )


def test_the_newest_wins_where_the_policy_says_so() -> None:
    old = {"integration": "a", "email": "a@x.org", "phone": "1115550100", "modified_at": "2025-01-01T00:00:00+00:00"}
    new = {"integration": "b", "email": "b@x.org", "phone": "2225550100", "modified_at": "2025-02-01T00:00:00+00:00"}
    unknown = {"integration": "a", "email": "u@x.org"}
    assert one(merge(old, new, unknown, policies=NEWEST))["email"] == "b@x.org"
    mixed = one(merge(old, new, policies=Policies(attributes={"phone": "newest_wins"})))
    assert (mixed["email"], mixed["phone"]) == ("a@x.org", "2225550100")


def test_of_two_records_of_one_system_the_newest_speaks() -> None:
    old = {"integration": "a", "email": "old@x.org", "modified_at": "2025-01-01T00:00:00+00:00"}
    new = {"integration": "a", "email": "new@x.org", "modified_at": "2025-02-01T00:00:00+00:00"}
    assert one(merge(old, new))["email"] == "new@x.org"


def test_an_address_is_never_half_of_one_system_and_half_of_another() -> None:
    student = one(
        merge(
            {"integration": "a", "home_city": "Austin"},
            {"integration": "b", "home_street": "1 Elm", "home_city": "Waco"},
        )
    )
    assert (student["home_street"], student["home_city"]) == (None, "Austin")


def test_an_id_comes_with_its_issuer() -> None:
    student = one(
        merge({"integration": "a", "ssid_issuer": "OK"}, {"integration": "b", "ssid": "7", "ssid_issuer": "TX"})
    )
    assert (student["ssid"], student["ssid_issuer"]) == ("7", "TX")


@pytest.mark.parametrize("flag", ["directory_opt_out", "address_confidential"])
def test_a_protection_holds_if_any_system_says_so(flag: str) -> None:
    merged = merge({"integration": "a", flag: False}, {"integration": "b", flag: True})
    assert one(merged)[flag] is True
    assert merged.conflicts.row(0, named=True)["rule"] == "any_true"
    assert one(merge({"integration": "a"}, {"integration": "b", flag: False}))[flag] is False
    assert one(merge({"integration": "a"}, {"integration": "b"}))[flag] is None


def test_a_conflict_names_all_candidates_the_chosen_one_and_the_rule() -> None:
    merged = merge(
        {"integration": "b", "sis_id": "9", "birth_date": "2012-04-03", "modified_at": "2025-02-01T00:00:00+00:00"},
        {"integration": "a", "sis_id": "1"},
    )
    conflict = merged.conflicts.row(0, named=True)
    assert json.loads(conflict.pop("candidates")) == [
        {"integration": "a", "sis_id": "1", "value": "2012-03-04", "modified_at": None},
        {"integration": "b", "sis_id": "9", "value": "2012-04-03", "modified_at": "2025-02-01T00:00:00Z"},
    ]
    assert conflict == {
        "student_id": "s",
        "attribute": "birth_date",
        "chosen": "2012-03-04",
        "chosen_from": "a/1",
        "rule": "sis_wins",
        "status": "auto",
    }


@pytest.mark.parametrize(
    ("column", "one_value", "other_value"),
    [
        ("last_name", "O'Brien", "OBRIEN"),
        ("first_name", "Zoë", "zoe"),
        ("phone", "(512) 555-0100", "+1 512 555 0100"),
        ("email", "A@x.org", "a@x.org "),
        ("home_street", "1 Elm St.", "1 ELM ST"),
    ],
)
def test_spellings_do_not_conflict(column: str, one_value: str, other_value: str) -> None:
    merged = merge({"integration": "a", column: one_value}, {"integration": "b", column: other_value})
    assert merged.conflicts.is_empty()
    assert one(merged)[column] == one_value


@pytest.mark.parametrize(
    ("column", "one_value", "other_value", "attribute"),
    [
        ("local_id", "007", "7", "local_id"),
        ("home_street", "1 Elm St", "2 Elm St", "home_address"),
        ("grade_level", "05", "06", "grade_level"),
        ("white", True, False, "white"),
    ],
)
def test_differences_conflict(column: str, one_value: Any, other_value: Any, attribute: str) -> None:
    merged = merge({"integration": "a", column: one_value}, {"integration": "b", column: other_value})
    assert rows(merged.conflicts, "attribute") == [attribute]


def test_an_unknown_issuer_is_no_conflict() -> None:
    assert merge(
        {"integration": "a", "ssid": "7", "ssid_issuer": "TX"}, {"integration": "b", "ssid": "7"}
    ).conflicts.is_empty()


def test_origins_name_the_record_that_gives_most_and_the_exceptions() -> None:
    merged = merge(
        {"integration": "a", "sis_id": "1", "student_id": "s"},
        {"integration": "b", "sis_id": 'q"\\9', "student_id": "s", "phone": "5125550100", "home_city": "Waco"},
        {"integration": "b", "sis_id": 'only"one', "student_id": "t"},
    )
    origins = {
        student: json.loads(text) for student, text in merged.students.select("student_id", "origins").iter_rows()
    }
    assert origins == {
        "s": {"*": "a/1", "phone": 'b/q"\\9 sis_wins', "home_address": 'b/q"\\9 sis_wins'},
        "t": {"*": 'b/only"one'},
    }


def test_nobody_gives_nothing() -> None:
    merged = merge_students(to_merge(), Policies(), PRIORITIES)
    assert merged.students.is_empty()
    assert "origins" in merged.students.columns


record = st.fixed_dictionaries(
    {
        "integration": st.sampled_from("abc"),
        "student_id": st.sampled_from("stu"),
        "email": st.sampled_from(["x@x.org", "y@x.org", None]),
        "phone": st.sampled_from(["5125550100", "5125550111", None]),
        "home_street": st.sampled_from(["1 Elm", None]),
        "home_city": st.sampled_from(["Waco", "Austin", None]),
        "directory_opt_out": st.sampled_from([True, False, None]),
        "grade_level": st.sampled_from(["05", "06", None]),
        "modified_at": st.sampled_from(["2025-01-01T00:00:00+00:00", "2025-02-01T00:00:00+00:00", None]),
    }
)


@laws(25)
@given(
    st.lists(record, min_size=1, max_size=8), st.sampled_from([Policies(), NEWEST]), st.randoms(use_true_random=False)
)
def test_laws_of_survivorship(students: list[dict[str, Any]], policies: Policies, shuffle: random.Random) -> None:
    named = [{**row, "sis_id": str(number)} for number, row in enumerate(students)]
    merged = merge(*named, policies=policies)
    shuffled = named.copy()
    shuffle.shuffle(shuffled)
    again = merge(*shuffled, policies=policies)
    assert again.students.equals(merged.students)
    assert again.conflicts.equals(merged.conflicts)
    assert set(merged.students["student_id"]) == {row["student_id"] for row in named}
    for student in merged.students.iter_rows(named=True):
        mine = [row for row in named if row["student_id"] == student["student_id"]]
        for column in ("email", "phone", "directory_opt_out"):
            given_values = {row[column] for row in mine} - {None}
            assert student[column] in given_values if given_values else student[column] is None
        addresses = {(row["home_street"], row["home_city"]) for row in mine}
        assert (student["home_street"], student["home_city"]) in addresses | {(None, None)}
