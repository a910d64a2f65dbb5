"""Who is matched, who is not, and under which id."""

from __future__ import annotations

import random
import uuid
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.roster.decisions import DECISIONS, DISTINCT, SAME
from sis_pipeline.roster.frames import empty
from sis_pipeline.roster.identity import (
    Resolution,
    components,
    resolve_schools,
    resolve_staff,
    resolve_students,
)
from sis_pipeline.roster.ids import NAMESPACE, derived_id
from sis_pipeline.roster.model import MERGED
from sis_pipeline_tests.roster.rosters import laws, published, records, rows

LINKS = empty(MERGED["student_links"])
ADA: dict[str, Any] = {"first_name": "Ada", "last_name": "Moss", "birth_date": "2012-03-04"}


def resolve(
    *students: dict[str, Any],
    links: pl.DataFrame = LINKS,
    known: pl.DataFrame | None = None,
    decisions: pl.DataFrame | None = None,
    before: pl.DataFrame | None = None,
) -> Resolution:
    return resolve_students("d1", records("students", *students), links, known, decisions, before=before)


def people(resolution: Resolution) -> dict[str, str]:
    return {
        f"{i}/{s}": person
        for i, s, person in resolution.assignment.select("integration", "sis_id", "person_id").iter_rows()
    }


def same(resolution: Resolution) -> bool:
    return resolution.assignment["person_id"].n_unique() == 1


def pair(one: dict[str, Any], other: dict[str, Any]) -> Resolution:
    return resolve({"integration": "a", "sis_id": "1", **one}, {"integration": "b", "sis_id": "2", **other})


@pytest.mark.parametrize("kind", ["ssid", "local_id"])
@pytest.mark.parametrize(
    "differs",
    [
        {},
        {"last_name": "Moss-Hill"},
        {"last_name": "Hill"},
        {"birth_date": "2012-04-03"},
        {"birth_date": None, "last_name": "MOSS"},
        {"first_name": "Adelaide", "preferred_first_name": "Ada", "birth_date": "2012-04-03"},
        {"first_name": "Ada Maria"},
    ],
)
def test_a_shared_id_and_two_agreeing_facts_match(kind: str, differs: dict[str, Any]) -> None:
    result = pair({**ADA, kind: "77"}, {**ADA, kind: "77", **differs})
    assert same(result)
    assert set(rows(result.assignment, "rule")) == {kind, "new"}
    assert result.near_matches.is_empty()


@pytest.mark.parametrize(
    "differs",
    [
        {"first_name": "Bea"},
        {"first_name": "Bea", "last_name": "Hill"},
        {"last_name": "Hill", "birth_date": "2011-01-01"},
        {"last_name": "Hill", "birth_date": None},
    ],
    ids=["twins", "other names", "only the first name", "unknown is not agreement"],
)
def test_a_shared_id_without_two_agreeing_facts_is_a_near_match(differs: dict[str, Any]) -> None:
    result = pair({**ADA, "ssid": "77"}, {**ADA, "ssid": "77", **differs})
    assert not same(result)
    assert rows(result.near_matches, "rule") == ["ssid"]
    assert "ssid" in result.near_matches["evidence"].item()
    assert set(result.assignment["confidence"]) == {0.5}


@pytest.mark.parametrize(
    ("fact", "rule"),
    [
        ({"email": "ada@example.org"}, "name_birth_email"),
        ({"phone": "512-555-0100"}, "name_birth_phone"),
        ({"school_id": "s1", "grade_level": "07"}, "name_birth_school_grade"),
    ],
)
def test_name_birth_date_and_a_second_fact_match(fact: dict[str, Any], rule: str) -> None:
    result = pair({**ADA, **fact}, {**ADA, **fact})
    assert same(result)
    assert rows(result.assignment, "rule") == [rule, "new"]


def test_phone_and_mobile_phone_are_one_kind_of_fact() -> None:
    assert same(pair({**ADA, "phone": "(512) 555-0100"}, {**ADA, "mobile_phone": "+1 512 555 0100"}))


@pytest.mark.parametrize("fact", [{}, {"school_id": "s1"}, {"grade_level": "07"}])
def test_name_and_birth_date_alone_are_a_near_match(fact: dict[str, Any]) -> None:
    result = pair({**ADA, **fact}, {**ADA, **fact})
    assert not same(result)
    assert rows(result.near_matches, "rule", "evidence")[0][0] == "name_birth"


def test_twins_are_never_matched_whatever_else_agrees() -> None:
    shared = {"email": "family@example.org", "phone": "512-555-0100", "school_id": "s1", "grade_level": "07"}
    result = pair({**ADA, **shared}, {**ADA, **shared, "first_name": "Bea"})
    assert not same(result)
    assert result.near_matches.is_empty()


JUAN: dict[str, Any] = {"last_name": "Sol", "birth_date": "2012-03-04"}
THREE = tuple({"integration": key, "sis_id": "1"} for key in "abc")


def groups(*students: dict[str, Any]) -> list[list[str]]:
    """Who of the records of three systems is one student."""
    found: dict[str, list[str]] = {}
    named = [{**JUAN, **row, **key} for row, key in zip(students, THREE, strict=False)]
    for record, person in sorted(people(resolve(*named)).items()):
        found.setdefault(person, []).append(record[0])
    return sorted(found.values())


@pytest.mark.parametrize("names", [("Juan", "Juan Carlos"), ("Juan C.", "Juan Carlos"), ("Juan Carlos", "JUAN CARLOS")])
def test_a_first_word_agrees_with_a_name_without_another_second_one(names: tuple[str, str]) -> None:
    assert groups(*({"first_name": name, "ssid": "7"} for name in names)) == [["a", "b"]]


@pytest.mark.parametrize(
    ("one", "other", "third"),
    [
        ({"ssid": "7"}, {"ssid": "7"}, {"ssid": "7"}),
        ({"ssid": "7"}, {"local_id": "5"}, {"ssid": "7", "local_id": "5"}),
        ({"ssid": "7", "last_name": "Luna"}, {"ssid": "7", "birth_date": "2012-12-12"}, {"ssid": "7"}),
        ({"ssid": "7", "last_name": "Sol-Luna"}, {"local_id": "5"}, {"ssid": "7", "local_id": "5"}),
    ],
    ids=["by one number", "by two numbers", "by birth date and by last name", "by a part of the last name"],
)
def test_who_may_be_either_of_two_joins_neither(
    one: dict[str, Any], other: dict[str, Any], third: dict[str, Any]
) -> None:
    twins = {**one, "first_name": "Juan Carlos"}, {**other, "first_name": "Juan Pablo"}
    assert groups(*twins, {**third, "first_name": "Juan"}) == [["a"], ["b"], ["c"]]
    assert groups(*twins, {**third, "first_name": "Juan Carlos"}) == [["a", "c"], ["b"]], "but a full name says which"


def test_a_first_word_is_doubted_only_among_who_agree_otherwise() -> None:
    one, third = {"first_name": "Juan Carlos", "ssid": "7"}, {"first_name": "Juan", "ssid": "7"}
    for other in ({"last_name": "Hill"}, {"birth_date": "2011-01-01"}):
        assert groups(one, {"first_name": "Juan Pablo", "ssid": "8", **other}, third) == [["a", "c"], ["b"]]


def test_half_of_a_double_name_joins_no_cousins() -> None:
    ana = {"first_name": "Ana", "ssid": "7"}
    cousins = (
        {**ana, "last_name": "Garcia-Lopez", "birth_date": "2011-01-01"},
        {**ana, "last_name": "Garcia-Perez", "birth_date": None},
    )
    assert groups(*cousins) == [["a"], ["b"]]
    assert groups(*cousins, {**ana, "last_name": "Garcia", "birth_date": "2012-02-02"}) == [["a"], ["b"], ["c"]]
    assert groups(*cousins, {**ana, "last_name": "Lopez", "birth_date": None}) == [["a", "c"], ["b"]]
    born = [{**one, "birth_date": "2012-03-04"} for one in cousins]
    assert groups(*born) == [["a", "b"]], "a number, first name and birth date are enough"


def test_two_state_ids_of_one_issuer_never_match() -> None:
    fact = {"email": "ada@example.org", "local_id": "5"}
    result = pair({**ADA, **fact, "ssid": "1"}, {**ADA, **fact, "ssid": "2"})
    assert not same(result)
    evidence = "local_id, first_name, last_name, birth_date, email, but two state ids"
    assert rows(result.near_matches, "rule", "evidence") == [("local_id", evidence)], (
        "but one child may have been given both"
    )
    assert result.near_matches["score"].item() == 0.5
    for differs in (
        {"first_name": "Adda"},
        {"last_name": "Moss-Hill"},
        {"birth_date": "2012-04-03"},
        {"birth_date": None},
    ):
        assert pair({**ADA, **fact, "ssid": "1"}, {**ADA, **fact, "ssid": "2", **differs}).near_matches.is_empty()


def test_one_number_of_two_issuers_is_two_ids() -> None:
    two = pair(
        {**ADA, "local_id": "5", "local_id_issuer": "north"},
        {**ADA, "last_name": "Hill", "local_id": "5", "local_id_issuer": "south"},
    )
    assert not same(two)
    assert two.near_matches.is_empty()


def test_an_issuer_that_is_not_named_is_the_only_one_there_is() -> None:
    assert same(pair({**ADA, "ssid": "5", "ssid_issuer": "TX"}, {**ADA, "ssid": "5"}))


def test_a_chain_that_would_join_two_state_ids_is_cut_and_reported() -> None:
    mail, phone = {"email": "ada@example.org"}, {"phone": "512-555-0100"}
    result = resolve(
        {"integration": "a", "sis_id": "1", **ADA, **mail, "ssid": "1"},
        {"integration": "b", "sis_id": "2", **ADA, **mail, **phone},
        {"integration": "c", "sis_id": "3", **ADA, **phone, "ssid": "2"},
    )
    assert len(set(people(result).values())) == 3
    assert rows(result.cut_chains, "integration", "other_integration") == [("b", "a"), ("c", "b")]


def test_a_state_id_holds_where_the_weaker_chain_is_cut() -> None:
    mail = {"email": "ada@example.org"}
    result = resolve(
        {"integration": "a", "sis_id": "1", **ADA, **mail, "ssid": "1"},
        {"integration": "b", "sis_id": "2", **ADA, **mail, "ssid": "1"},
        {"integration": "c", "sis_id": "3", **ADA, **mail, "ssid": "2"},
    )
    found = people(result)
    assert found["a/1"] == found["b/2"] != found["c/3"]


def test_many_records_of_one_student_are_one_student() -> None:
    many = [{"integration": f"i{n}", "sis_id": str(n), **ADA, "ssid": "1"} for n in range(50)]
    assert same(resolve(*many))


def link(integration: str, sis_id: str, student_id: str) -> dict[str, Any]:
    return {
        "district": "d1",
        "integration": integration,
        "sis_id": sis_id,
        "student_id": student_id,
        "rule": "new",
        "confidence": 1.0,
        "active": True,
    }


def known_student(student_id: str, **row: Any) -> dict[str, Any]:
    return {
        "district": "d1",
        "student_id": student_id,
        **ADA,
        "latest_school_year": "2025-2026",
        "near_match": False,
        "origins": "{}",
        **row,
    }


def test_a_link_holds_through_a_change_of_name() -> None:
    links, known = published("student_links", link("a", "1", "old")), published("students", known_student("old"))
    changed = {"integration": "a", "sis_id": "1", **ADA, "first_name": "Alan", "last_name": "Hill"}
    assert people(resolve(changed, links=links, known=known)) == {"a/1": "old"}


def test_a_link_holds_through_a_corrected_birth_date() -> None:
    links, known = published("student_links", link("a", "1", "old")), published("students", known_student("old"))
    assert people(
        resolve({"integration": "a", "sis_id": "1", **ADA, "birth_date": "2012-04-03"}, links=links, known=known)
    ) == {"a/1": "old"}


def test_a_recycled_id_is_nobody_and_reported() -> None:
    links, known = published("student_links", link("a", "1", "old")), published("students", known_student("old"))
    other_child = {
        "integration": "a",
        "sis_id": "1",
        "first_name": "Ben",
        "last_name": "Moss",
        "birth_date": "2016-09-09",
    }
    result = resolve(other_child, links=links, known=known)
    assert result.assignment.is_empty()
    assert rows(result.recycled, "integration", "sis_id") == [("a", "1")]


@pytest.mark.parametrize(
    ("own", "is_recycled"),
    [
        ({}, False),
        ({"birth_date": "2015-01-01"}, False),
        ({"first_name": "Cleo"}, False),
        ({"first_name": "Cleo", "birth_date": "2015-01-01"}, True),
    ],
    ids=["the same", "its birth date corrected", "its name corrected", "both others"],
)
def test_a_record_that_differed_from_its_student_before_is_compared_with_itself(
    own: dict[str, Any], is_recycled: bool
) -> None:
    """A person had joined it to a student who is published under another record's values."""
    links, known = published("student_links", link("a", "1", "old")), published("students", known_student("old"))
    now = {"integration": "a", "sis_id": "1", "first_name": "Ben", "last_name": "Moss", "birth_date": "2016-09-09"}
    result = resolve(now, links=links, known=known, before=published("student_sources", {**now, **own}))
    assert (result.recycled.height == 1) == is_recycled


def test_a_student_who_changes_systems_stays_the_same_student() -> None:
    links, known = (
        published("student_links", link("old-sis", "1", "old")),
        published("students", known_student("old", ssid="1")),
    )
    assert people(resolve({"integration": "new-sis", "sis_id": "9", **ADA, "ssid": "1"}, links=links, known=known)) == {
        "new-sis/9": "old"
    }


def test_joining_two_existing_students_keeps_the_oldest_and_says_so() -> None:
    links = published("student_links", link("a", "1", "bbb"), link("b", "2", "aaa")).with_columns(
        first_seen=pl.Series(["2024-01-01T00:00:00", "2025-01-01T00:00:00"]).str.to_datetime(
            time_unit="us", time_zone="UTC"
        )
    )
    both = [
        {"integration": "a", "sis_id": "1", **ADA, "ssid": "1"},
        {"integration": "b", "sis_id": "2", **ADA, "ssid": "1"},
    ]
    result = resolve(*both, links=links)
    assert people(result) == {"a/1": "bbb", "b/2": "bbb"}
    assert result.retired == {"aaa": "bbb"}
    assert resolve(*both, links=links.drop("first_seen")).retired == {"bbb": "aaa"}


def test_a_doubt_between_two_known_students_is_not_this_merges_business() -> None:
    known = published(
        "students",
        known_student("x"),
        known_student("y"),
        known_student("z", first_name="Cy", last_name="Hill", ssid="9"),
    )
    result = resolve(
        {"sis_id": "1", "first_name": "Di", "last_name": "Hill", "birth_date": None, "ssid": "9"}, known=known
    )
    found = rows(result.near_matches, "sis_id", "other_sis_id", "person_id", "rule", "evidence")
    assert found == [(None, "1", "z", "ssid", "ssid, last_name")]


def test_a_new_id_is_derived_and_steps_aside_for_one_that_is_taken() -> None:
    derived = derived_id("student", "d1", "a", "1")
    assert people(resolve({"sis_id": "1", **ADA})) == {"a/1": derived}
    taken = published("students", known_student(derived, first_name="Someone", last_name="Else"))
    assert people(resolve({"sis_id": "1", **ADA}, known=taken)) == {"a/1": derived_id("student", "d1", "a", "1", "1")}


def test_the_same_record_in_two_districts_is_two_students() -> None:
    one = resolve_students("d1", records("students", {"sis_id": "1", **ADA}), LINKS)
    other = resolve_students("d2", records("students", {"sis_id": "1", **ADA}), LINKS)
    assert set(one.assignment["person_id"]).isdisjoint(other.assignment["person_id"])


def test_derived_ids_are_version_5_uuids() -> None:
    assert derived_id("a", "b") == str(uuid.uuid5(NAMESPACE, "a\x1fb"))
    assert derived_id("a", "bc") != derived_id("ab", "c")
    assert derived_id("a", None) != derived_id("a", "")


student = st.fixed_dictionaries(
    {
        "integration": st.sampled_from("abc"),
        "first_name": st.sampled_from(["Ada", "Bea", "Ada Maria"]),
        "last_name": st.sampled_from(["Moss", "Moss-Hill"]),
        "birth_date": st.sampled_from(["2012-03-04", "2012-04-03", None]),
        "ssid": st.sampled_from(["1", "2", None]),
        "local_id": st.sampled_from(["5", "6", None]),
        "email": st.sampled_from(["ada@example.org", None]),
        "school_id": st.sampled_from(["s1", "s2", None]),
        "grade_level": st.sampled_from(["07", None]),
    }
)


@laws(20)
@given(st.lists(student, min_size=1, max_size=9), st.randoms(use_true_random=False))
def test_laws_of_identity(students: list[dict[str, Any]], shuffle: random.Random) -> None:
    named = [{**row, "sis_id": str(number)} for number, row in enumerate(students)]
    result = resolve(*named)
    shuffled = named.copy()
    shuffle.shuffle(shuffled)
    again = resolve(*shuffled)
    assert again.assignment.equals(result.assignment)
    assert again.near_matches.equals(result.near_matches)
    assert again.cut_chains.equals(result.cut_chains)
    assert rows(result.assignment, "sis_id") == sorted((row["sis_id"] for row in named), key=str)
    found = {
        row["sis_id"]: person
        for row, person in zip(named, [people(result)[f"{r['integration']}/{r['sis_id']}"] for r in named], strict=True)
    }
    for one in named:
        for other in named:
            if found[one["sis_id"]] == found[other["sis_id"]]:
                assert not (one["ssid"] and other["ssid"] and one["ssid"] != other["ssid"])


@laws(15)
@given(st.lists(student, min_size=1, max_size=9))
def test_a_second_run_with_the_links_of_the_first_changes_nobody(students: list[dict[str, Any]]) -> None:
    named = [{**row, "sis_id": str(number)} for number, row in enumerate(students)]
    first = resolve(*named)
    links = first.assignment.select(
        pl.lit("d1").alias("district"),
        "integration",
        "sis_id",
        pl.col("person_id").alias("student_id"),
        "rule",
        "confidence",
        active=pl.lit(value=True),
    )
    second = resolve(*named, links=links)
    assert second.assignment.equals(first.assignment)
    assert not second.retired


@laws(20)
@given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40))
    )
)
def test_components_are_what_walking_the_edges_finds(graph: tuple[int, list[tuple[int, int]]]) -> None:
    size, edges = graph
    label = list(range(size))
    for _ in range(size):
        for a, b in edges:
            label[a] = label[b] = min(label[a], label[b])
    left, right = (np.array([edge[side] for edge in edges], dtype=np.int64) for side in (0, 1))
    assert components(size, left, right).tolist() == label


STAFF_LINKS = empty(MERGED["staff_links"])


@pytest.mark.parametrize("fact", [{"email": "T@example.org"}, {"state_staff_id": "5"}, {"local_id": "5"}])
def test_staff_match_by_one_id_and_the_last_name(fact: dict[str, Any]) -> None:
    def both(last_name: str) -> pl.DataFrame:
        one = {"integration": "a", "sis_id": "1", "last_name": "Teach", **fact}
        other = {"integration": "b", "sis_id": "2", "last_name": last_name, **{k: v.lower() for k, v in fact.items()}}
        return resolve_staff("d1", records("staff", one, other), STAFF_LINKS).assignment

    assert both("TEACH")["person_id"].n_unique() == 1
    assert both("Other")["person_id"].n_unique() == 2


def of_staff(one: dict[str, Any], other: dict[str, Any], **more: Any) -> Resolution:
    """A teacher in a system and somebody in another one, at one school."""
    tia = {"first_name": "Tia", "last_name": "Teach", "school_id": "s", "integration": "a", "sis_id": "1"}
    return resolve_staff(
        "d1", records("staff", {**tia, **one}, {**tia, "integration": "b", **other}), STAFF_LINKS, **more
    )


@pytest.mark.parametrize(
    ("one", "other", "rule", "evidence"),
    [
        ({"state_staff_id": "5"}, {"state_staff_id": "5", "last_name": "Wed"}, "state_staff_id", "state_staff_id, first_name, school"),
        ({"email": "t@x.org"}, {"email": "t@x.org", "last_name": "Wed"}, "email", "first_name, email, school"),
        ({"local_id": "5"}, {"local_id": "5", "last_name": "Wed", "school_id": None}, "local_id", "local_id, first_name"),
        ({}, {}, "name_school", "first_name, last_name, school"),
        ({}, {"last_name": "Teech"}, "similar_name", "first_name, school, similar last_name"),
    ],
    ids=["state id", "email", "local id", "name and school", "a slip of the pen"],
)  # fmt: skip
def test_staff_who_may_be_one_are_near_matches(
    one: dict[str, Any], other: dict[str, Any], rule: str, evidence: str
) -> None:
    result = of_staff(one, other)
    assert rows(result.near_matches, "rule", "evidence") == [(rule, evidence)]
    assert 0.5 < result.near_matches["score"].item() < 1
    assert result.assignment["person_id"].n_unique() == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"school_id": "other"}),
        ({"email": "office@x.org"}, {"email": "office@x.org", "first_name": "Ben", "last_name": "Hill"}),
        ({"local_id": "12"}, {"local_id": "12", "first_name": "Ben", "last_name": "Hill"}),
        ({"state_staff_id": "5"}, {"state_staff_id": "6"}),
        ({}, {"integration": "a", "sis_id": "2"}),
    ],
    ids=["a name at two schools", "a shared mailbox", "numbers of two systems", "two state ids", "two of one system"],
)
def test_of_other_staff_nobody_is_asked(one: dict[str, Any], other: dict[str, Any]) -> None:
    result = of_staff(one, other)
    assert result.near_matches.is_empty()
    assert result.assignment["person_id"].n_unique() == 2


def test_two_state_ids_of_staff_are_never_joined() -> None:
    result = of_staff({"state_staff_id": "5", "email": "t@x.org"}, {"state_staff_id": "6", "email": "t@x.org"})
    assert result.assignment["person_id"].n_unique() == 2
    assert rows(result.cut_chains, "rule") == ["email"]


@pytest.mark.parametrize("fact", [{"email": "t@x.org"}, {"local_id": "5"}, {"state_staff_id": "5"}])
def test_half_of_a_double_name_joins_no_two_of_the_staff(fact: dict[str, Any]) -> None:
    lopez, perez = ({**fact, "last_name": name} for name in ("Garcia-Lopez", "Garcia-Perez"))
    assert of_staff(lopez, perez).assignment["person_id"].n_unique() == 2
    assert of_staff(lopez, {**fact, "last_name": "Garcia"}).assignment["person_id"].n_unique() == 1


def test_what_people_decided_of_staff_holds() -> None:
    made = [
        pl.DataFrame([("a", "1", None, "b", "1", None, verdict)], schema=DECISIONS, orient="row")
        for verdict in (SAME, DISTINCT)
    ]
    same, distinct = (of_staff({}, {"last_name": "Teech"}, decisions=one) for one in made)
    assert (same.assignment["person_id"].n_unique(), same.near_matches.height) == (1, 0)
    assert (distinct.assignment["person_id"].n_unique(), distinct.near_matches.height) == (2, 0)
    again = of_staff({"email": "t@x.org"}, {"email": "t@x.org"}, decisions=made[1])
    assert again.assignment["person_id"].n_unique() == 2, "not even by a rule"


def test_schools_with_one_number_are_one_school() -> None:
    schools = records(
        "schools",
        {"integration": "a", "sis_id": "1", "school_number": "012"},
        {"integration": "b", "sis_id": "9", "school_number": "012", "state_school_id": "x"},
        {"integration": "b", "sis_id": "8", "state_school_id": "012"},
        {"integration": "a", "sis_id": "2"},
        {"integration": "b", "sis_id": "2"},
        {"integration": "a", "sis_id": "d", "school_number": "012", "kind": "district"},
    )
    ids = {(i, s): school for i, s, school in resolve_schools("d1", schools).iter_rows()}
    assert ids["a", "1"] == ids["b", "9"]
    assert len(set(ids.values())) == 5
