"""What a source took away, told from what it does not supply: record by record, reading by reading."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.roster.attributes import ATTRIBUTES, CLEARABLE
from sis_pipeline.roster.clearing import find_clearings
from sis_pipeline.roster.contract import IntegrationInput
from sis_pipeline.roster.frames import fit
from sis_pipeline.roster.model import STUDENT_SOURCES
from sis_pipeline_tests.roster.rosters import DAY_1, DAY_2, Roster, laws, loaded, merge, publish, records, rows

Values = Mapping[str, Any]
COLUMNS = {one.name: one.columns for one in ATTRIBUTES if one.is_clearable}
CAROL = {
    "sis_id": "1",
    "email": "carol@x.org",
    "home_street": "1 Elm",
    "home_city": "Waco",
    "preferred_first_name": "Caz",
}


class Source:
    """A system that is read again and again."""

    def __init__(self) -> None:
        self.kept = fit(records("students"), STUDENT_SOURCES)
        self.unsupplied: Mapping[str, Mapping[str, int]] = {}

    def read(self, *said: Values, complete: bool = True) -> Source:
        found = find_clearings(records("students", *said), self.kept, ["a"] if complete else [])
        self.kept, self.unsupplied = fit(found.records, STUDENT_SOURCES), found.unsupplied
        return self

    def says(self, column: str = "cleared") -> dict[str, list[str]]:
        return {
            sis_id: json.loads(names) for sis_id, names in self.kept.select("sis_id", column).drop_nulls().iter_rows()
        }


def without(row: Values, *columns: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in columns}


def test_only_what_a_source_may_take_away_can_be_cleared() -> None:
    personal = {
        "first_name",
        "last_name",
        "birth_date",
        "ssid",
        "local_id",
        "grade_level",
        "school_id",
        "sex",
        "username",
    }
    assert not personal & set(CLEARABLE)
    assert set(COLUMNS) == set(CLEARABLE), "each is an attribute"


def test_a_value_that_a_complete_reading_has_no_more_is_cleared_until_there_is_one_again() -> None:
    source = Source().read(CAROL).read(without(CAROL, "email"))
    assert source.says() == {"1": ["email"]}
    assert source.read(without(CAROL, "email")).says() == {"1": ["email"]}, "and stays so"
    assert source.read(without(CAROL, "email", "preferred_first_name")).says() == {
        "1": ["email", "preferred_first_name"]
    }
    assert source.read({**CAROL, "email": "new@x.org"}).says() == {}


def test_what_it_never_had_is_not_cleared() -> None:
    assert Source().read(without(CAROL, "email")).read(without(CAROL, "email")).says() == {}


def test_an_address_is_cleared_as_a_whole_only() -> None:
    source = Source().read(CAROL).read(without(CAROL, "home_street"))
    assert source.says() == {}
    assert source.read(without(CAROL, "home_street", "home_city")).says() == {"1": ["home_address"]}


def test_another_reading_only_empties_and_the_next_complete_one_says_what_it_was() -> None:
    source = Source().read(CAROL).read(without(CAROL, "email"), complete=False)
    assert (source.says(), source.says("emptied")) == ({}, {"1": ["email"]})
    source.read(without(CAROL, "email"))
    assert (source.says(), source.says("emptied")) == ({"1": ["email"]}, {})
    source.read(without(CAROL, "email"), complete=False)
    assert source.says() == {"1": ["email"]}, "what is proven stays so"


def test_a_record_that_went_and_came_back_begins_anew() -> None:
    assert Source().read(CAROL).read(without(CAROL, "email")).read().read(without(CAROL, "email")).says() == {}


def test_a_column_that_most_records_lost_is_no_longer_supplied_and_nobody_cleared_it() -> None:
    everybody = [{**CAROL, "sis_id": str(number)} for number in range(5)]
    some = [without(row, "email") if number < 3 else row for number, row in enumerate(everybody)]
    source = Source().read(*everybody).read(*some)
    assert source.says() == {}
    assert source.says("emptied") == {"0": ["email"], "1": ["email"], "2": ["email"]}
    assert source.unsupplied == {"a": {"email": 3}}
    back = [without(row, "email") if number < 1 else row for number, row in enumerate(everybody)]
    assert source.read(*back).says() == {"0": ["email"]}, "who has none once it is back"
    assert source.unsupplied == {}


@pytest.mark.parametrize(("losing", "cleared"), [(4, 4), (5, 0)], ids=["a tenth", "more"])
def test_of_many_a_tenth_may_lose_it_at_once(losing: int, cleared: int) -> None:
    everybody = [{**CAROL, "sis_id": str(number)} for number in range(40)]
    some = [without(row, "email") if number < losing else row for number, row in enumerate(everybody)]
    assert len(Source().read(*everybody).read(*some).says()) == cleared


@pytest.mark.parametrize(
    ("other", "cleared"),
    [({"last_name": "Moore"}, {"1": ["email"]}), ({"last_name": "Zed", "birth_date": "2014-09-09"}, {})],
    ids=["a new name", "another child who was given the id"],
)
def test_only_the_child_itself_takes_something_away(other: Values, cleared: Mapping[str, list[str]]) -> None:
    row = {**CAROL, "last_name": "Moss", "birth_date": "2012-03-04"}
    assert Source().read(row).read({**without(row, "email"), **other}).says() == cleared


def test_what_was_cleared_before_its_column_went_stays_cleared() -> None:
    everybody = [{**CAROL, "sis_id": str(number)} for number in range(5)]
    one = [without(row, "email") if number == 0 else row for number, row in enumerate(everybody)]
    nobody = [without(row, "email") for row in everybody]
    source = Source().read(*everybody).read(*one).read(*nobody)
    assert source.says() == {"0": ["email"]}
    assert source.unsupplied == {"a": {"email": 4}}


def test_the_few_who_alone_had_a_value_may_clear_it() -> None:
    source = Source().read(CAROL, {"sis_id": "2"}, {"sis_id": "3"})
    assert source.read({"sis_id": "1"}, {"sis_id": "2"}, {"sis_id": "3"}).says() == {
        "1": ["email", "home_address", "preferred_first_name"]
    }


reading = st.tuples(
    st.booleans(),
    st.dictionaries(
        st.sampled_from("123456"),
        st.fixed_dictionaries(
            {"email": st.sampled_from(["x@x.org", None]), "home_city": st.sampled_from(["Waco", None]),
             "home_street": st.sampled_from(["1 Elm", None]), "phone": st.sampled_from(["5125550100", None])}
        ),
        min_size=3,
    ),
)  # fmt: skip


@laws(20)
@given(st.lists(reading, min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_laws_of_clearing(readings: Sequence[tuple[bool, Mapping[str, Values]]], shuffle: random.Random) -> None:
    source, shuffled = Source(), Source()
    had: set[tuple[str, str]] = set()
    for complete, said in readings:
        told = [{"sis_id": sis_id, **values} for sis_id, values in said.items()]
        source.read(*told, complete=complete)
        shuffled.read(*shuffle.sample(told, len(told)), complete=complete)
        assert source.kept.sort("sis_id").equals(shuffled.kept.sort("sis_id"))
        supplied = {
            (row["sis_id"], name)
            for row in told
            for name, columns in COLUMNS.items()
            if any(row.get(column) for column in columns)
        }
        had = {one for one in had if one[0] in said} | supplied
        lists = {column: {(one, name) for one, names in source.says(column).items() for name in names} for column in ("cleared", "emptied")}  # fmt: skip
        assert lists["cleared"] | lists["emptied"] == had - supplied, "what it had, and has no more"
        assert not lists["cleared"] & lists["emptied"]
        kept = source.kept
        assert source.read(*told, complete=complete).kept.equals(kept), "read again it says the same"


def both(**of_carol: Any) -> Roster:
    """Carol in two systems, of which the first goes before the second."""
    known = {"ssid": "7", "first_name": "Carol", **CAROL, **of_carol}
    roster = Roster().school("1").school("1", "b").student("s2", email="s2@x.org").student("s3", email="s3@x.org")
    other = {
        "integration": "b",
        "school": None,
        "ssid": "7",
        "first_name": "Carol",
        "email": "old@x.org",
        "home_street": "9 Oak",
    }
    return roster.student(known.pop("sis_id"), **known).student("b1", **other)


@pytest.mark.parametrize(
    ("verdict", "published"), [("complete", None), ("delta", "old@x.org"), ("partial", "carol@x.org")]
)
def test_the_next_systems_email_is_not_published_where_a_complete_reading_shows_it_cleared(
    verdict: Any, published: str | None
) -> None:
    tables = loaded(both())
    parts = {"a": IntegrationInput(0, verdict), "b": IntegrationInput(1)}
    merged = merge(both(email=None), tables, as_of=DAY_2, integrations=parts)
    carol = merged.frames["students"].filter(pl.col("first_name") == "Carol")
    assert rows(carol, "email", "home_street") == [(published, "1 Elm")]
    assert carol["origins"].str.json_path_match("$.email").to_list() == {
        "complete": ["a/1 cleared"], "delta": ["b/b1 sis_wins"], "partial": [None],
    }[verdict]  # fmt: skip


def test_it_stays_so_day_after_day_and_in_a_whole_merge() -> None:
    tables = publish(loaded(both()), merge(both(email=None), loaded(both()), as_of=DAY_2))
    again = [merge(both(email=None), tables, as_of=DAY_2, whole=whole) for whole in (False, True)]
    for merged in again:
        assert all(frame.equals(tables[name]) for name, frame in merged.frames.items() if name != "enrollment_changes")


@pytest.mark.parametrize("already", [True, False], ids=["cleared before", "cleared over the summer"])
def test_what_was_cleared_is_so_in_the_next_school_year(*, already: bool) -> None:
    tables = loaded(both())
    if already:
        tables = publish(tables, merge(both(email=None), tables, as_of=DAY_2))
    year = "2026-2027"
    rolled = Roster(year)
    rolled.rows = {
        name: [
            {**row, **({"school_year": year, "entry_date": "2026-08-18"} if name == "enrollments" else {})}
            for row in found
        ]
        for name, found in both(email=None).rows.items()
    }
    merged = merge(rolled, tables, as_of=date(2026, 9, 1))
    carol = merged.frames["students"].filter(pl.col("first_name") == "Carol")
    assert rows(carol, "email", "latest_school_year") == [(None, year)]
    assert carol["origins"].str.json_path_match("$.email").item() == "a/1 cleared"


def test_a_record_that_its_source_did_not_name_keeps_what_it_cleared() -> None:
    tables = publish(loaded(both()), merge(both(email=None), loaded(both()), as_of=DAY_2))
    delta = {"a": IntegrationInput(0, "delta"), "b": IntegrationInput(1)}
    merged = merge(both().without("1"), tables, as_of=DAY_2, integrations=delta)
    assert merged.frames["students"].sort("student_id").equals(tables["students"].sort("student_id"))


def test_the_merge_says_which_system_stopped_supplying_what() -> None:
    tables = loaded(both())
    roster = both(email=None)
    roster.rows["students"] = [
        without(row, "email") if row.get("integration") == "a" else row for row in roster.rows["students"]
    ]
    merged = merge(roster, tables, as_of=DAY_2)
    assert merged.stats.unsupplied == {"a": {"email": 3}}
    assert "old@x.org" in merged.frames["students"]["email"]
    assert merge(both(email=None), loaded(both()), as_of=DAY_1).stats.unsupplied == {}
