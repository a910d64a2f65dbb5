"""Across districts: who is one child by state id, and what two ledgers tell together. Invented people."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.roster.enrollments import TRANSFER_DAYS
from sis_pipeline.roster.statewide import (
    LINKS,
    PEOPLE,
    SIDES,
    STAYS,
    TOO_MANY,
    TRANSFERS,
    across_districts,
    same_children,
)
from sis_pipeline_tests.roster.rosters import YEAR, laws, published, rows

DAY = date(2025, 11, 3)
TODAY = date(2025, 12, 1)


def child(district: str, **values: Any) -> dict[str, Any]:
    ada = {"ssid": "77", "first_name": "Ada", "last_name": "Moss", "birth_date": "2012-03-04"}
    return {"district": district, "student_id": f"of-{district}", **ada, **values}


def linked(*people: dict[str, Any]) -> pl.DataFrame:
    return same_children(published("students", *people).select(PEOPLE))


def stay(district: str, school: str = "1", **values: Any) -> dict[str, Any]:
    return {
        "district": district, "student_id": f"of-{district}", "school_id": f"{district}-{school}", "school_year": YEAR,
        "entry_date": date(2025, 8, 18), "enrollment_type": "primary", "status": "active", **values,
    }  # fmt: skip


def left(district: str, on: date, **values: Any) -> dict[str, Any]:
    return stay(district, **{"exit_date": on, "status": "withdrawn", **values})


def across(*stays: dict[str, Any], districts: str = "ab", as_of: date = TODAY) -> list[tuple[Any, ...]]:
    links = linked(*(child(one) for one in districts))
    found = across_districts(links, published("enrollments", *stays).select(STAYS), as_of)
    assert dict(found.schema) == TRANSFERS
    return rows(found, "kind", "school_id", "exit_date", "other_school_id", "entry_date")


def test_one_ssid_and_an_agreeing_name_are_one_child_with_a_record_in_each() -> None:
    found = linked(child("b", last_name="Moss-Hill"), child("a"), child("c", ssid="78"))
    assert dict(found.schema) == LINKS
    assert found.rows() == [("a", "of-a", "b", "of-b", "match", "ssid, first_name, birth_date, similar last_name")]


@pytest.mark.parametrize(
    ("other", "decision"),
    [
        ({"birth_date": "2012-03-05"}, "match"),
        ({"birth_date": None, "last_name": "MOSS"}, "match"),
        ({"first_name": "Bea"}, "near_match"),
        ({"last_name": "Hill", "birth_date": None}, "near_match"),
        ({"ssid_issuer": "TX"}, "match"),
        ({"preferred_first_name": "Ada", "first_name": "Adelheid"}, "match"),
    ],
    ids=["two names", "no birth date", "twins with one number", "a name alone", "issuer not said", "preferred"],
)
def test_an_ssid_needs_what_it_needs_inside_a_district(other: dict[str, Any], decision: str) -> None:
    assert rows(linked(child("a"), child("b", **other)), "decision") == [decision]


def test_a_first_word_that_may_be_two_childrens_matches_neither() -> None:
    carlos, pablo = child("a", first_name="Juan Carlos"), child("b", first_name="Juan Pablo")
    assert rows(linked(carlos, pablo), "decision") == ["near_match"]
    assert rows(linked(carlos, pablo, child("c", first_name="Juan")), "decision") == ["near_match"] * 3
    assert rows(linked(carlos, child("c", first_name="Juan")), "decision") == ["match"]


def test_numbers_of_two_issuers_are_two_numbers() -> None:
    assert linked(child("a", ssid_issuer="CA"), child("b", ssid_issuer="TX")).is_empty()
    assert linked(child("a", ssid=None), child("b", ssid=None)).is_empty()
    assert linked(child("a"), child("a", student_id="twice")).is_empty(), "inside a district it is the merge's question"


def test_a_number_that_many_have_is_nobodys() -> None:
    fillers = [
        child(district, student_id=f"{district}{number}") for district in "ab" for number in range(TOO_MANY // 2)
    ]
    assert linked(*fillers).is_empty()
    assert linked(*fillers[1:]).height == (TOO_MANY // 2 - 1) * TOO_MANY // 2


def test_a_withdrawal_and_an_entry_within_the_days_are_one_transfer() -> None:
    moved = ("transfer", "a-1", DAY, "b-1", DAY + timedelta(TRANSFER_DAYS))
    assert across(left("a", DAY), stay("b", entry_date=moved[-1])) == [moved]
    assert across(left("a", DAY), stay("b", entry_date=moved[-1] + timedelta(1))) == []
    early = DAY - timedelta(TRANSFER_DAYS)
    assert across(left("a", DAY), stay("b", entry_date=early)) == [("transfer", "a-1", DAY, "b-1", early)]
    assert across(left("a", DAY, status="graduated"), stay("b", entry_date=DAY)) == []
    assert across(left("a", DAY), stay("b", entry_date=DAY, status="no_show")) == []


def test_who_comes_back_went_over_twice() -> None:
    back = DAY + timedelta(40)
    found = across(left("a", DAY), left("b", back, entry_date=DAY), stay("a", "2", entry_date=back))
    assert found == [("transfer", "a-1", DAY, "b-1", DAY), ("transfer", "b-1", back, "a-2", back)]


def test_each_half_is_used_once_and_the_nearest_first() -> None:
    found = across(
        left("a", DAY),
        stay("b", entry_date=DAY + timedelta(2)),
        stay("c", entry_date=DAY + timedelta(1)),
        districts="abc",
    )
    assert ("transfer", "a-1", DAY, "c-1", DAY + timedelta(1)) in found
    assert sum(row[0] == "transfer" for row in found) == 1


def test_of_several_as_near_the_primary_goes_first_and_a_second_choice_counts() -> None:
    """At two schools on each side, all on one day: the secondary ones have the ids that come first."""
    from_both = [left("a", DAY, school="9"), left("a", DAY, school="2", enrollment_type="secondary")]
    to_both = [
        stay("b", "9", entry_date=DAY),
        stay("b", "2", entry_date=DAY, enrollment_type="secondary"),
    ]
    primary, secondary = (("transfer", f"a-{school}", DAY, f"b-{school}", DAY) for school in "92")
    assert across(*from_both, *to_both) == [secondary, primary]
    assert across(*from_both, to_both[0]) == [primary]
    assert across(from_both[0], *to_both) == [primary]


def test_a_move_inside_one_district_is_not_one_to_the_other() -> None:
    """Another school of the first district, then the other one: who left last is who went over; and the same at the end."""
    then = DAY + timedelta(6)
    chain = [
        left("a", DAY, status="transferred"),
        left("a", then, school="2", entry_date=DAY),
        stay("b", entry_date=then),
    ]
    assert across(*chain) == [("transfer", "a-2", then, "b-1", then)]
    still = [chain[0], stay("a", "2", entry_date=DAY), chain[2]]
    assert across(*still) == [("concurrent", "a-2", None, "b-1", then)], "who is still there did not go"
    onward = [left("a", DAY), left("b", then, entry_date=DAY, status="transferred"), stay("b", "2", entry_date=then)]
    assert across(*onward) == [("transfer", "a-1", DAY, "b-1", DAY)]


def test_who_is_in_two_districts_at_once_is_reported_and_nothing_else() -> None:
    assert across(stay("a"), stay("b", entry_date=DAY)) == [("concurrent", "a-1", None, "b-1", DAY)]
    assert across(stay("a"), stay("b", enrollment_type="secondary")) == [], "a course elsewhere"
    assert across(stay("a"), stay("b", status="pre_registered", entry_date=date(2026, 1, 7))) == []
    past = {"school_year": "2024-2025", "entry_date": date(2024, 8, 18)}
    assert across(stay("a", **past), stay("b")) == [], "whoever finished a year is active in it for ever"
    assert across(stay("a", exit_date=TODAY), stay("b", entry_date=DAY)) == []


def test_only_matches_are_paired() -> None:
    links = linked(child("a"), child("b", first_name="Bea"))
    stays = published("enrollments", left("a", DAY), stay("b", entry_date=DAY)).select(STAYS)
    assert across_districts(links, stays, TODAY).is_empty()


PERSON = st.fixed_dictionaries(
    {
        "district": st.sampled_from("abc"),
        "ssid": st.sampled_from(["1", "2", None]),
        "first_name": st.sampled_from(["Ada", "Bea"]),
        "birth_date": st.sampled_from([date(2012, 3, 4), None]),
    }
)
STAY = st.fixed_dictionaries(
    {
        "whose": st.integers(0, 5),
        "school": st.sampled_from("12"),
        "entry": st.integers(0, 30),
        "days": st.integers(1, 20),
        "status": st.sampled_from(["active", "withdrawn", "transferred", "graduated"]),
    }
)


@laws(25)
@given(st.lists(PERSON, min_size=2, max_size=6), st.lists(STAY, max_size=8), st.randoms())
def test_the_order_of_the_rows_does_not_matter_and_no_half_is_used_twice(people, stays, random) -> None:
    who = [child(one["district"], student_id=f"{one['district']}{number}", **{k: one[k] for k in ("ssid", "first_name", "birth_date")})
           for number, one in enumerate(people)]  # fmt: skip
    taken = {
        (who[it["whose"] % len(who)]["student_id"], it["school"], it["entry"]): stay(
            who[it["whose"] % len(who)]["district"],
            it["school"],
            student_id=who[it["whose"] % len(who)]["student_id"],
            entry_date=DAY + timedelta(it["entry"]),
            exit_date=None if it["status"] == "active" else DAY + timedelta(it["entry"] + it["days"]),
            status=it["status"],
        )
        for it in stays
    }
    ordered = list(taken.values())
    shuffled = random.sample(ordered, len(ordered))
    links, again = linked(*who), linked(*random.sample(who, len(who)))
    assert links.equals(again)
    found, same = (
        across_districts(links, published("enrollments", *them).select(STAYS), TODAY) for them in (ordered, shuffled)
    )
    assert found.equals(same)
    went = found.filter(pl.col("kind") == "transfer")
    assert not went.select("other_district", "other_student_id", "other_school_id", "entry_date").is_duplicated().any()
    matched = set(links.filter(pl.col("decision") == "match").select(SIDES).iter_rows())
    assert {tuple(row) for row in found.select(SIDES).iter_rows()} <= matched | {
        (*row[2:], *row[:2]) for row in matched
    }
