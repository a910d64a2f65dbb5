"""Which value survives, where it came from, and what counts as a conflict."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.roster.merge import MergedStudents, merge_students
from sis_pipeline.roster.policies import Policies, Rule
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


GONE = {
    "integration": "a",
    "sis_id": "1",
    "cleared": ["email", "home_address"],
    "modified_at": "2025-02-01T00:00:00+00:00",
}
OTHER = {
    "integration": "b", "sis_id": "9", "email": "b@x.org", "home_street": "9 Oak", "modified_at": "2025-01-01T00:00:00+00:00",
}  # fmt: skip
NEWER = {**OTHER, "modified_at": "2025-03-01T00:00:00+00:00"}


@pytest.mark.parametrize(
    ("rule", "other", "email"),
    [
        ("sis_wins", OTHER, None),
        ("sis_wins", {**OTHER, "integration": "a"}, None),
        ("newest_wins", OTHER, None),
        ("newest_wins", NEWER, "b@x.org"),
        ("local_wins", OTHER, None),
        ("manual", OTHER, None),
    ],
)
def test_what_was_cleared_counts_like_a_value(rule: Rule, other: dict[str, Any], email: str | None) -> None:
    student = one(merge(GONE, other, policies=Policies(default=rule)))
    assert (student["email"], student["home_street"]) == (email, "9 Oak" if email else None)


def test_a_system_of_lower_priority_clears_nothing_of_a_better_one() -> None:
    merged = merge({**GONE, "integration": "b"}, {**OTHER, "integration": "a"})
    assert one(merged)["email"] == "b@x.org"
    assert set(rows(merged.conflicts, "attribute", "chosen", "rule")) == {
        ("email", "b@x.org", "sis_wins"),
        ("home_address", "9 Oak", "sis_wins"),
    }


def test_what_was_cleared_has_an_origin_and_is_in_the_conflict() -> None:
    merged = merge(GONE, OTHER)
    assert json.loads(one(merged)["origins"]) == {"*": "a/1", "email": "a/1 cleared", "home_address": "a/1 cleared"}
    assert rows(merged.conflicts, "attribute", "chosen", "chosen_from", "rule", "status") == [
        ("email", None, "a/1", "cleared", "auto"),
        ("home_address", None, "a/1", "cleared", "auto"),
    ]
    told = json.loads(merged.conflicts.filter(attribute="home_address")["candidates"].item())
    assert [(it["integration"], it["value"]) for it in told] == [("a", None), ("b", "9 Oak")]


def test_what_the_only_record_cleared_has_an_origin_too_and_is_no_conflict() -> None:
    merged = merge(GONE)
    assert json.loads(one(merged)["origins"]) == {"*": "a/1", "email": "a/1 cleared", "home_address": "a/1 cleared"}
    assert merge(GONE, {**GONE, "integration": "b"}).conflicts.is_empty(), "two that cleared it agree"


def test_a_conflict_with_what_was_cleared_waits_for_a_person_under_manual() -> None:
    merged = merge(GONE, OTHER, policies=Policies(default="manual"))
    assert rows(merged.conflicts, "attribute", "rule", "status") == [
        ("email", "manual", "open"),
        ("home_address", "manual", "open"),
    ]


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
        "cleared": st.sets(st.sampled_from(["email", "phone", "home_address"])),
    }
)


def _without_cleared(row: dict[str, Any]) -> dict[str, Any]:
    """What was cleared is not there."""
    columns = {"home_address": ("home_street", "home_city")}
    gone = [column for name in row["cleared"] for column in columns.get(name, (name,))]
    return row | dict.fromkeys(gone) | {"cleared": sorted(row["cleared"])}


@laws(25)
@given(
    st.lists(record, min_size=1, max_size=8), st.sampled_from([Policies(), NEWEST]), st.randoms(use_true_random=False)
)
def test_laws_of_survivorship(students: list[dict[str, Any]], policies: Policies, shuffle: random.Random) -> None:
    named = [_without_cleared({**row, "sis_id": str(number)}) for number, row in enumerate(students)]
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
            given_values = {row[column] for row in mine if row[column] is not None or column in row["cleared"]}
            assert student[column] in given_values if given_values else student[column] is None
        addresses = {(row["home_street"], row["home_city"]) for row in mine}
        assert (student["home_street"], student["home_city"]) in addresses | {(None, None)}
        for attribute, source in json.loads(student["origins"]).items():
            columns = ("home_street", "home_city") if attribute == "home_address" else (attribute,)
            if source.endswith(" cleared"):
                assert all(student[column] is None for column in columns)
