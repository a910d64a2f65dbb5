"""What a person decided about two holds against every rule and every link, and only between those two."""

from __future__ import annotations

import random
from datetime import date
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.roster.contract import IntegrationInput
from sis_pipeline.roster.decisions import CONFIRMED, DECISIONS, DISTINCT, SAME, SAME_WITH_TWO_IDS, SPLIT
from sis_pipeline.roster.identity import Resolution
from sis_pipeline.roster.ids import derived_id
from sis_pipeline_tests.roster.rosters import DAY_2, Roster, laws, loaded, merge, publish, published, rows
from sis_pipeline_tests.roster.test_identity import ADA, known_student, link, people, resolve, same, student

A1 = {"integration": "a", "sis_id": "1", **ADA}
B2 = {"integration": "b", "sis_id": "2", **ADA}
C3 = {"integration": "c", "sis_id": "3", **ADA}


def decided(
    verdict: str, one: str, other: str, person: str | None = None, other_person: str | None = None
) -> tuple[str | None, ...]:
    """A decision between two records written `integration/sis_id`; a side without one is a person."""

    def side(record: str, who: str | None) -> tuple[str | None, ...]:
        return (*record.split("/"), who) if record else (None, None, who)

    return (*side(one, person), *side(other, other_person), verdict)


def decisions(*made: tuple[str | None, ...]) -> pl.DataFrame:
    return pl.DataFrame(list(made), schema=DECISIONS, orient="row")


def links_of(result: Resolution) -> pl.DataFrame:
    named = result.assignment.rename({"person_id": "student_id"})
    return named.with_columns(district=pl.lit("d1"), active=pl.lit(value=True))


def test_a_near_match_decided_to_be_one_student_is_joined_and_stays_so() -> None:
    made = decisions(decided(SAME, "a/1", "b/2"))
    result = resolve(A1, B2, decisions=made)
    assert same(result)
    assert sorted(result.assignment["rule"]) == [CONFIRMED, "new"]
    assert result.near_matches.is_empty()
    assert same(resolve(A1, {**B2, "first_name": "Zoe", "birth_date": "2011-01-01"}, decisions=made))


def test_a_near_match_decided_to_be_two_is_neither_asked_again_nor_joined() -> None:
    made = decisions(decided(DISTINCT, "b/2", "a/1"))
    assert resolve(A1, B2, decisions=made).near_matches.is_empty()
    now_with_id = resolve({**A1, "ssid": "7"}, {**B2, "ssid": "7"}, decisions=made)
    assert not same(now_with_id)
    assert now_with_id.near_matches.is_empty()
    assert now_with_id.cut_chains.is_empty()


def test_a_decision_is_about_people_and_holds_for_their_other_records() -> None:
    links = published("student_links", link("a", "1", "x"), link("c", "3", "x"), link("b", "2", "y"))
    made = decisions(decided(DISTINCT, "a/1", "b/2"))
    assert resolve(
        C3, B2, links=links, known=published("students", known_student("x"), known_student("y")), decisions=made
    ).near_matches.is_empty()


def test_a_third_that_agrees_with_both_sides_joins_neither_and_is_asked_about() -> None:
    mail = {"email": "ada@example.org"}
    made = decisions(decided(DISTINCT, "a/1", "b/2"))
    result = resolve({**A1, **mail}, {**B2, **mail}, {**C3, **mail}, decisions=made)
    assert len(set(people(result).values())) == 3
    assert rows(result.near_matches, "integration", "other_integration") == [("c", "a"), ("c", "b")]


def test_a_person_without_a_record_here_can_be_decided_about() -> None:
    known = published("students", known_student("x"))
    assert people(resolve(B2, known=known, decisions=decisions(decided(SAME, "b/2", "", None, "x")))) == {"b/2": "x"}
    apart = resolve({**B2, "ssid": "1"}, known=published("students", known_student("x", ssid="1")),
                    decisions=decisions(decided(DISTINCT, "b/2", "", None, "x")))  # fmt: skip
    assert people(apart) != {"b/2": "x"}


def test_no_decision_joins_two_state_ids() -> None:
    result = resolve({**A1, "ssid": "1"}, {**B2, "ssid": "2"}, decisions=decisions(decided(SAME, "a/1", "b/2")))
    assert not same(result)
    assert rows(result.cut_chains, "rule") == [CONFIRMED]


def test_two_state_ids_are_joined_by_a_person_who_says_so() -> None:
    made = decisions(decided(SAME_WITH_TWO_IDS, "a/1", "b/2"))
    both = {**A1, "ssid": "1"}, {**B2, "ssid": "2"}
    result = resolve(*both, decisions=made)
    assert same(result)
    assert (result.near_matches.height, result.cut_chains.height) == (0, 0)
    for ssid in ("1", "2"):
        third = resolve(*both, {**C3, "ssid": ssid}, decisions=made)
        assert same(third), "a third record with either is the same child's"
        assert same(resolve(*both, {**C3, "ssid": ssid}, links=links_of(result), decisions=made))
    other = resolve(*both, {**C3, "ssid": "3", "email": "ada@example.org"}, decisions=made)
    assert len(set(people(other).values())) == 2, "another number is another child's"
    assert set(rows(other.near_matches, "evidence")) == {"first_name, last_name, birth_date, but two state ids"}
    assert not same(resolve(*both, links=links_of(result), decisions=decisions(decided(DISTINCT, "a/1", "b/2"))))


def test_several_who_have_two_state_ids_each_are_joined_in_a_chain() -> None:
    made = decisions(decided(SAME_WITH_TWO_IDS, "a/1", "b/2"), decided(SAME_WITH_TWO_IDS, "c/3", "b/2"))
    assert same(resolve({**A1, "ssid": "1"}, {**B2, "ssid": "2"}, {**C3, "ssid": "3"}, decisions=made))
    assert same(resolve(A1, B2, C3, decisions=made)), "and without any"


def test_of_two_decisions_that_contradict_each_other_the_careful_one_holds() -> None:
    made = decisions(decided(SAME, "a/1", "c/3"), decided(SAME, "c/3", "b/2"), decided(DISTINCT, "a/1", "b/2"))
    found = people(resolve(A1, B2, C3, decisions=made))
    assert found["a/1"] != found["b/2"]


def test_a_split_record_goes_back_to_the_id_it_had() -> None:
    links = published("student_links", link("a", "1", "x"), link("b", "2", "x"))
    made = decisions(decided(DISTINCT, "b/2", "a/1", "y", "x"))
    result = resolve({**A1, "ssid": "1"}, {**B2, "ssid": "1"}, links=links, decisions=made)
    assert people(result) == {"a/1": "x", "b/2": "y"}
    assert rows(result.assignment, "sis_id", "rule") == [("1", "new"), ("2", SPLIT)]
    again = resolve({**A1, "ssid": "1"}, {**B2, "ssid": "1"}, links=links_of(result), decisions=made)
    assert again.assignment.equals(result.assignment)


def test_a_split_record_that_was_nobody_before_becomes_a_new_student() -> None:
    founded = derived_id("student", "d1", "b", "2")
    links = published("student_links", link("a", "1", founded), link("b", "2", founded))
    found = people(resolve(A1, B2, links=links, decisions=decisions(decided(DISTINCT, "b/2", "a/1", None, founded))))
    assert found == {"a/1": founded, "b/2": derived_id("student", "d1", "b", "2", "1")}


def test_a_decision_about_nobody_here_waits() -> None:
    assert people(
        resolve(A1, decisions=decisions(decided(SAME, "a/1", "z/9"), decided(DISTINCT, "z/9", "a/1")))
    ) == people(resolve(A1))


def two_systems(**of_b: Any) -> Roster:
    roster = Roster().school("1").school("1", "b")
    for number in range(6):
        roster.student(f"s{number}", last_name=f"Name{number}", ssid=f"{number}")
    roster.section("m1", "s1").section("m1", "b1", integration="b")
    return roster.student("b1", integration="b", last_name="Name1", **of_b)


def test_a_split_is_no_removal_and_each_side_keeps_its_history() -> None:
    roster = two_systems(ssid="1")
    tables = loaded(roster)
    [(joined,)] = tables["student_links"].filter(pl.col("integration") == "b").select("student_id").iter_rows()
    made = decisions(decided(DISTINCT, "b/b1", "a/s1", None, joined))
    merged = merge(roster, tables, as_of=DAY_2, decisions=made)
    assert merged.changes.is_empty()
    assert merged.held == ()
    after = publish(tables, merged)
    apart = dict(
        after["student_links"].filter(pl.col("sis_id").is_in(["s1", "b1"])).select("sis_id", "student_id").iter_rows()
    )
    assert apart["s1"] != apart["b1"]
    for table, person in (
        ("students", "student_id"),
        ("enrollments", "student_id"),
        ("section_enrollments", "person_id"),
    ):
        assert set(apart.values()) <= set(after[table][person]), table
    again = merge(roster, after, as_of=DAY_2, decisions=made)
    assert again.changes.is_empty()
    for name, frame in publish(after, again).items():
        assert frame.equals(after[name]), name


def test_what_only_the_split_record_reported_goes_with_it() -> None:
    roster = two_systems(ssid="1", stay={"sis_id": "x"})
    roster.school("2", "b").stay("b1", "2", integration="b", enrollment_type="secondary")
    tables = loaded(roster)
    [(joined,)] = tables["student_links"].filter(pl.col("integration") == "b").select("student_id").iter_rows()
    assert tables["enrollments"].filter(pl.col("student_id") == joined).height == 2
    merged = merge(roster, tables, as_of=DAY_2, decisions=decisions(decided(DISTINCT, "b/b1", "a/s1", None, joined)))
    counts = dict(merged.frames["enrollments"].group_by("student_id").len().iter_rows())
    assert counts[joined] == 1
    assert merged.changes.is_empty()


@pytest.mark.parametrize("told", [True, False])
def test_a_split_record_takes_along_what_its_system_no_longer_tells(*, told: bool) -> None:
    """A stay that was over, and one that is only carried over as the system's snapshot is partial."""
    roster = two_systems(ssid="1").school("2", "b").school("3", "b")
    gone = roster.stay("b1", "2", integration="b", exit_date="2025-09-01", status="withdrawn")
    tables = loaded(gone.stay("b1", "3", integration="b", enrollment_type="secondary"))
    [(joined,)] = tables["student_links"].filter(pl.col("integration") == "b").select("student_id").iter_rows()
    now = two_systems(ssid="1").school("2", "b").school("3", "b")
    now = now.stay("b1", "3", integration="b", enrollment_type="secondary") if told else now
    partial = {"a": IntegrationInput(0), "b": IntegrationInput(1, "complete" if told else "partial")}
    made = decisions(decided(DISTINCT, "b/b1", "a/s1", None, joined))
    merged = merge(now, tables, as_of=DAY_2, integrations=partial, decisions=made)
    assert merged.changes.is_empty()
    counts = dict(merged.frames["enrollments"].group_by("student_id").len().iter_rows())
    assert counts[joined] == 1
    assert 3 in counts.values()


verdicts = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 8), st.sampled_from([SAME, SAME_WITH_TWO_IDS, DISTINCT])), max_size=5
)


@laws(12)
@given(st.lists(student, min_size=2, max_size=9), verdicts, st.randoms(use_true_random=False))
def test_laws_of_decisions(
    students: list[dict[str, Any]], wanted: list[tuple[int, int, str]], shuffle: random.Random
) -> None:
    """Whatever is decided, before or after the rules had their say: order decides nothing, a second run changes nothing,
    nobody is invented or lost, distinct pairs are never joined, forced pairs always are unless a state id or another
    decision forbids it."""
    named = [{**row, "sis_id": str(number)} for number, row in enumerate(students)]
    key = {row["sis_id"]: f"{row['integration']}/{row['sis_id']}" for row in named}
    pairs = [(str(a), str(b), verdict) for a, b, verdict in wanted if a != b and max(a, b) < len(named)]
    made = decisions(*(decided(verdict, key[a], key[b]) for a, b, verdict in pairs))
    for links in (None, links_of(resolve(*named))):
        given_links = {} if links is None else {"links": links}
        result = resolve(*named, **given_links, decisions=made)
        mixed, mixed_decisions = named.copy(), made.sample(fraction=1, shuffle=True, seed=shuffle.randrange(1000))
        shuffle.shuffle(mixed)
        again = resolve(*mixed, **given_links, decisions=mixed_decisions)
        assert again.assignment.equals(result.assignment)
        assert again.near_matches.equals(result.near_matches)
        second = resolve(*named, links=links_of(result), decisions=made)
        assert second.assignment.select("sis_id", "person_id").equals(result.assignment.select("sis_id", "person_id"))
        assert rows(result.assignment, "sis_id") == sorted(row["sis_id"] for row in named)
        found = people(result)
        for a, b, verdict in pairs:
            if verdict == DISTINCT:
                assert found[key[a]] != found[key[b]]
        if not any(verdict == DISTINCT for *_, verdict in pairs) and not any(row["ssid"] for row in named):
            for a, b, _ in pairs:
                assert found[key[a]] == found[key[b]]
        if all(verdict == SAME_WITH_TWO_IDS for *_, verdict in pairs):
            for a, b, _ in pairs:
                assert found[key[a]] == found[key[b]]


def test_who_a_person_joined_keeps_being_read_though_names_and_birth_dates_differ() -> None:
    roster = Roster().school("1").school("1", "b").student("s1", ssid="77")
    other = {"integration": "b", "ssid": "77", "last_name": "Hill", "birth_date": "2011-05-05"}
    made = decisions(decided(SAME, "a/s1", "b/b1"))
    tables = loaded(roster.student("b1", **other), decisions=made)
    again = merge(roster, tables, as_of=DAY_2, decisions=made)
    assert again.recycled.is_empty()
    assert again.changes.is_empty()


def test_who_a_person_joined_is_nobody_new_when_the_school_year_turns() -> None:
    def roster(year: str, entry: str) -> Roster:
        found = Roster(year).school("1").school("1", "b").student("s1", ssid="77", stay={"entry_date": entry})
        other = {"ssid": "77", "last_name": "Hill", "birth_date": "2011-05-05", "stay": {"entry_date": entry}}
        return found.student("b1", integration="b", **other)

    made = decisions(decided(SAME, "a/s1", "b/b1"))
    tables = loaded(roster("2025-2026", "2025-08-18"), decisions=made)
    for day in (date(2026, 8, 20), date(2026, 8, 21)):
        merged = merge(roster("2026-2027", "2026-08-17"), tables, as_of=day, decisions=made)
        assert merged.recycled.is_empty()
        assert set(merged.frames["student_sources"]["sis_id"]) == {"s1", "b1"}
        tables = publish(tables, merged, "2026-2027")


def test_a_confirmation_that_can_not_be_is_reported_once_whichever_side_it_names_first() -> None:
    made = decisions(decided(SAME, "a/1", "b/2"), decided(SAME, "b/2", "a/1"))
    result = resolve({**A1, "ssid": "1"}, {**B2, "ssid": "2"}, decisions=made)
    assert rows(result.cut_chains, "integration", "other_integration", "rule") == [("b", "a", CONFIRMED)]
