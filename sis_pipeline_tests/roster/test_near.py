"""Which pairs a person is asked about, how alike they are said to be, and that the asking stays linear."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import polars as pl
import pytest

from sis_pipeline.roster.near import NEIGHBOURS, neighbours
from sis_pipeline.roster.nicknames import NICKNAMES
from sis_pipeline.roster.normalise import name_key
from sis_pipeline_tests.roster.rosters import rows
from sis_pipeline_tests.roster.test_identity import pair, resolve, same

WILL: dict[str, Any] = {"first_name": "William", "last_name": "Garcia-Lopez", "birth_date": "2012-03-04"}


def test_the_nicknames_are_symmetric_and_written_as_keys() -> None:
    for name, forms in NICKNAMES.items():
        assert name not in forms
        for form in forms:
            assert name in NICKNAMES[form], (name, form)
    keys = pl.DataFrame({"name": list(NICKNAMES)}).filter(pl.col("name") != name_key(pl.col("name")))
    assert keys.is_empty()


@pytest.mark.parametrize(
    ("differs", "rule", "evidence"),
    [
        ({"first_name": "Bill"}, "similar_name", "nickname"),
        ({"first_name": "Wiliam"}, "similar_name", "similar first_name"),
        ({"last_name": "Gracia-Lopez"}, "similar_name", "similar last_name"),
        ({"last_name": "Lopez"}, "similar_name", "first_name"),
        ({"birth_date": "2012-04-03"}, "swapped_day_month", "swapped day and month"),
        ({"first_name": "Will", "birth_date": "2012-04-03"}, "swapped_day_month", "swapped day and month"),
    ],
)
def test_a_likely_pair_is_asked_about_and_never_joined(differs: dict[str, Any], rule: str, evidence: str) -> None:
    same_home = {"email": "home@example.org", "school_id": "s1", "grade_level": "07"}
    for also in ({}, same_home):
        result = pair({**WILL, **also}, {**WILL, **also, **differs})
        assert not same(result)
        assert rows(result.near_matches, "rule") == [rule]
        assert evidence in result.near_matches["evidence"].item().split(", ")
        assert 0.8 <= result.near_matches["score"].item() < 1
        assert set(result.assignment["confidence"]) == {0.5}


@pytest.mark.parametrize(
    "differs",
    [
        {"first_name": "Nora"},
        {"last_name": "Schmidt"},
        {"birth_date": "2012-03-05"},
        {"birth_date": "2013-05-09"},
        {"birth_date": None},
    ],
    ids=["twins", "another last name", "a digit and nothing else", "another birth date", "no birth date"],
)
def test_an_unlikely_pair_is_nobodys_business(differs: dict[str, Any]) -> None:
    assert pair(WILL, {**WILL, **differs}).near_matches.is_empty()


def test_a_digit_in_the_birth_date_needs_something_else_that_agrees() -> None:
    mail = {"email": "home@example.org"}
    result = pair({**WILL, **mail}, {**WILL, **mail, "birth_date": "2012-03-05"})
    assert rows(result.near_matches, "rule") == ["similar_birth_date"]


def test_twins_with_names_alike_are_at_most_asked_about_whatever_agrees() -> None:
    everything = {"email": "home@example.org", "phone": "512-555-0100", "school_id": "s1", "grade_level": "07"}
    result = pair({**WILL, **everything, "first_name": "Maria"}, {**WILL, **everything, "first_name": "Marta"})
    assert not same(result)
    assert rows(result.near_matches, "rule") == ["similar_name"]


def test_a_system_that_has_both_tells_them_apart() -> None:
    twins = [
        {**WILL, "integration": "a", "sis_id": sis_id, "first_name": name}
        for sis_id, name in (("1", "Maria"), ("2", "Marta"))
    ]
    assert resolve(*twins).near_matches.is_empty()


LOCKHART: dict[str, Any] = {"first_name": "Iris", "last_name": "Lockhart", "birth_date": "2012-03-04"}


def asked_of_one_system(**differs: Any) -> list[str]:
    one = {**LOCKHART, "sis_id": "1"}
    return rows(resolve(one, {**one, "sis_id": "2", **differs}).near_matches, "rule")


@pytest.mark.parametrize("last_name", ["Lockart", "Lokchart", "Lockhert", "Lockhartt", "LOCK-HART'S"])
def test_whom_a_system_has_twice_but_for_a_slip_of_the_last_name_is_asked_about(last_name: str) -> None:
    assert asked_of_one_system(last_name=last_name) == ["similar_name"]


@pytest.mark.parametrize(
    "differs",
    [
        {"last_name": "Lokhert"},
        {"last_name": "Lockhart-Hill"},
        {"last_name": "Lockart", "first_name": "Irs"},
        {"last_name": "Lockart", "birth_date": "2012-04-03"},
        {"last_name": "Lockart", "birth_date": None},
        {"first_name": "Irina"},
        {"first_name": "Irs"},
    ],
    ids=["two slips", "another name", "two names", "another day", "no day", "twins", "twins with names alike"],
)
def test_others_of_one_system_are_told_apart_by_it(differs: dict[str, Any]) -> None:
    assert asked_of_one_system(**differs) == []


def test_two_state_ids_settle_it_and_a_missing_one_does_not() -> None:
    assert pair({**WILL, "ssid": "1"}, {**WILL, "first_name": "Bill", "ssid": "2"}).near_matches.is_empty()
    assert pair({**WILL, "ssid": "1"}, {**WILL, "first_name": "Bill"}).near_matches.height == 1


def test_the_score_orders_the_queue_by_likeness() -> None:
    def score(**differs: Any) -> float:
        return pair({**WILL, "local_id": None}, {**WILL, **differs}).near_matches["score"].item()

    assert score() > score(first_name="Bill") > score(first_name="Bill", birth_date="2012-04-03")


def test_a_lesser_near_match_is_not_asked_about_beside_a_better_one() -> None:
    result = resolve(
        {**WILL, "integration": "a", "sis_id": "1"},
        {**WILL, "integration": "b", "sis_id": "2"},
        {**WILL, "integration": "a", "sis_id": "3", "first_name": "Wiliam"},
    )
    assert rows(result.near_matches, "rule", "sis_id", "other_sis_id") == [("name_birth", "2", "1")]


def test_a_block_of_any_size_gives_a_few_pairs_for_each() -> None:
    size = 500
    facts = pl.DataFrame(
        {
            "node": np.arange(size),
            "label": np.arange(size),
            "first": ["ada"] * size,
            "last": ["moss"] * size,
            "birth_date": [None] * size,
            "block": ["x"] * size,
        }
    )
    pairs = neighbours(facts, ["block"])
    assert pairs.height == sum(min(NEIGHBOURS, size - 1 - number) for number in range(size))
    assert not pairs.select("node", "hub").is_duplicated().any()


def test_a_block_of_a_few_gives_every_pair() -> None:
    facts = pl.DataFrame(
        {
            "node": [3, 1, 2],
            "label": [3, 1, 2],
            "first": list("abc"),
            "last": list("abc"),
            "birth_date": [None] * 3,
            "block": [["x"], ["x", "y"], ["y", "x"]],
        }
    )
    found = set(neighbours(facts, ["block"]).select("hub", "node").iter_rows())
    assert found == set(itertools.combinations([1, 2, 3], 2))
