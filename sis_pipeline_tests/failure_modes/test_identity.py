"""Modes 8 to 14: whose record is it. Two children are never made one, and one child is found again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import polars as pl
import pytest

from sis_pipeline.roster.contract import IntegrationInput, MergedRoster
from sis_pipeline.roster.decisions import DISTINCT, GIVEN, KEPT, SAME, SAME_WITH_TWO_IDS
from sis_pipeline.roster.oneroster_export import TABLES, oneroster_set
from sis_pipeline.roster.policies import Policies, Rule
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.thresholds import Thresholds
from sis_pipeline_tests.roster.rosters import (
    DAY_2,
    YEAR,
    Roster,
    former_names,
    loaded,
    merge,
    merged_both_ways,
    publish,
    rows,
)
from sis_pipeline_tests.roster.test_decisions import decided, decisions
from sis_pipeline_tests.roster.test_district import changed, district, student_of

Tables = dict[str, pl.DataFrame]


def two_systems(one: dict[str, Any], other: dict[str, Any]) -> Roster:
    """A school in two systems, with a child in each and four others."""
    roster = Roster().school("1").school("1", "b")
    for number in range(4):
        roster.student(f"s{number}", last_name=f"Name{number}", ssid=f"9{number}", birth_date="2011-01-01")
    return roster.student("a1", **one).student("b1", integration="b", **other)


def two(tables: Tables) -> bool:
    return student_of(tables, "a1") != student_of(tables, "b1", "b")


def asked(merged: MergedRoster) -> list[str]:
    return rows(merged.near_matches, "rule")


def test_08_one_state_id_of_two_children_joins_nobody() -> None:
    roster = two_systems(
        {"ssid": "77"}, {"ssid": "77", "first_name": "Ben", "last_name": "Hill", "birth_date": "2016-05-05"}
    )
    merged = merge(roster)
    tables = publish({}, merged)
    assert two(tables)
    assert asked(merged) == ["ssid"], "a person is asked"
    assert tables["students"].filter("near_match").height == 2


def test_09_one_child_under_two_numbers_is_joined_by_a_person_and_can_be_split_again() -> None:
    roster = two_systems({"local_id": "5"}, {"local_id": "6"})
    merged = merge(roster)
    tables = publish({}, merged)
    before = {student_of(tables, "a1"), student_of(tables, "b1", "b")}
    assert asked(merged) == ["name_birth"]

    same = decisions(decided(SAME, "a/a1", "b/b1"))
    joined = merge(roster, tables, as_of=DAY_2, decisions=same)
    [(gone, kept)] = joined.retired.items()
    assert {gone, kept} == before, "one of the two ids stays, the other leads to it"
    assert joined.changes.is_empty(), "nobody enrolls or leaves by it"
    one = publish(tables, joined)
    assert not two(one)

    record = ("a/a1", "b/b1") if gone == student_of(tables, "a1") else ("b/b1", "a/a1")
    apart = merge(roster, one, as_of=DAY_2, decisions=decisions(decided(DISTINCT, *record, gone, kept)))
    assert apart.changes.is_empty()
    split = publish(one, apart)
    assert two(split)
    assert {student_of(split, "a1"), student_of(split, "b1", "b")} == before, "each has its own id again"


def test_09_one_child_whom_one_system_has_twice_is_asked_about_and_its_twins_are_not() -> None:
    roster = Roster().school("1").student("a1", last_name="Lockhart", local_id="5")
    merged = merge(
        roster.student("a2", last_name="Lockart", local_id="6").student("a3", first_name="Adda", last_name="Lockhart")
    )
    assert rows(merged.near_matches, "rule", "sis_id", "other_sis_id") == [("similar_name", "a2", "a1")]


@pytest.mark.parametrize(
    ("policy", "survives", "status"),
    [("sis_wins", "77", "auto"), ("newest_wins", "78", "auto"), ("manual", None, "open")],
)
def test_09_one_child_under_two_state_ids_is_asked_about_and_joined_where_a_person_says_so(
    policy: Rule, survives: str | None, status: str
) -> None:
    known = {"email": "ada@example.org", "grade_level": "07"}
    old, new = (
        {"ssid": ssid, "modified_at": f"2025-0{month}-01T00:00:00+00:00"} for ssid, month in (("77", 8), ("78", 9))
    )
    roster, policies = two_systems({**known, **old}, {**known, **new}), Policies(policy)
    merged = merge(roster)
    tables = publish({}, merged)
    assert two(tables)
    [evidence] = rows(merged.near_matches, "evidence")
    assert evidence == "first_name, last_name, birth_date, email, school, grade_level, but two state ids"

    unsaid = merge(roster, tables, as_of=DAY_2, decisions=decisions(decided(SAME, "a/a1", "b/b1")))
    assert unsaid.retired == {}, "never by a decision that knows nothing of it"
    assert asked(unsaid) == ["name_birth"]

    said = {"policies": policies, "decisions": decisions(decided(SAME_WITH_TWO_IDS, "a/a1", "b/b1"))}
    joined = merge(roster, tables, as_of=DAY_2, **said)
    [(gone, kept)] = joined.retired.items()
    assert joined.changes.is_empty()
    assert asked(joined) == []
    one = publish(tables, joined)
    student = one["students"].filter(pl.col("student_id") == kept)
    [published] = rows(tables["students"].filter(pl.col("student_id") == kept), "ssid")
    assert rows(student, "ssid") == [survives or published], "as of any attribute"
    of_ids = one["conflicts"].filter(pl.col("attribute") == "ssid")
    assert rows(of_ids, "student_id", "status") == [(kept, status)], "and the other one is not forgotten"
    again = publish(one, merge(roster, one, as_of=DAY_2, **said))
    assert again["students"].equals(one["students"]), "for ever"

    record = ("a/a1", "b/b1") if gone == student_of(tables, "a1") else ("b/b1", "a/a1")
    apart = merge(roster, one, as_of=DAY_2, decisions=decisions(decided(DISTINCT, *record, gone, kept)))
    assert (asked(apart), apart.changes.height) == ([], 0)
    split = publish(one, apart)
    assert {student_of(split, "a1"), student_of(split, "b1", "b")} == {gone, kept}
    assert sorted(split["students"].filter(pl.col("first_name") == "Ada")["ssid"].drop_nulls())[:2] == ["77", "78"]


def test_10_twins_are_never_joined_whatever_else_agrees() -> None:
    home = {"email": "home@example.org", "phone": "512-555-0100", "grade_level": "07"}
    merged = merge(two_systems(home, {**home, "first_name": "Bea"}))
    assert two(publish({}, merged))
    assert asked(merged) == []

    with_one_id = two_systems({**home, "ssid": "77"}, {**home, "first_name": "Bea", "ssid": "77"})
    merged = merge(with_one_id)
    assert two(publish({}, merged))
    assert asked(merged) == ["ssid"], "never more than a question"
    told = merge(with_one_id, decisions=decisions(decided(DISTINCT, "a/a1", "b/b1")))
    assert asked(told) == [], "and it is asked once"


@pytest.mark.parametrize("kind", ["ssid", "local_id"])
@pytest.mark.parametrize("third", [None, {"first_name": "Juan"}, {"first_name": "Juan", "birth_date": None}])
@pytest.mark.parametrize("names", [{}, {"preferred_first_name": "Juan"}], ids=["first word", "preferred name"])
def test_10_twins_with_the_first_word_of_their_names_in_common_are_two_also_beside_a_third_record(
    kind: str, third: dict[str, Any] | None, names: dict[str, Any]
) -> None:
    home = {"email": "home@example.org", "phone": "512-555-0100", "grade_level": "07", kind: "77", **names}
    roster = two_systems({**home, "first_name": "Juan Carlos"}, {**home, "first_name": "Juan Pablo"})
    if third:
        roster.school("1", "c").student("c1", integration="c", **{**home, **third})
    merged = merge(roster)
    tables = publish({}, merged)
    assert two(tables)
    assert asked(merged) == [kind] * (3 if third else 1), "never more than a question, about every two of them"
    again = merge(roster, tables, as_of=DAY_2)
    assert again.retired == {}
    assert again.near_matches.equals(merged.near_matches)


def test_11_an_id_that_is_given_to_another_child_brings_no_history_along() -> None:
    tables = loaded(district())
    other = changed(
        district(), "students", "s1", first_name="Ben", last_name="Other", birth_date="2016-09-09", ssid="999"
    )
    merged = merge(other, tables, as_of=DAY_2)
    assert rows(merged.recycled, "integration", "sis_id") == [("a", "s1")], "the record is set aside"
    assert merged.changes.is_empty()
    assert publish(tables, merged)["students"].equals(tables["students"]), "the child of before keeps all of it"


NEW_CHILD = {"first_name": "Ben", "last_name": "Other", "birth_date": "2016-09-09", "ssid": "999"}
EXIT = {"status": "withdrawn", "exit_date": "2025-10-01", "exit_code": "W1"}


def given_to_ben(roster: Roster) -> Roster:
    return changed(roster, "students", "s1", **NEW_CHILD)


def enrolled(sis_id: str, school: str, **stay: Any) -> Roster:
    """Ben under the number that was Ada's, with one enrollment of his own."""
    section = district().without("s1").section("m", "s3").section("n")
    return section.student("s1", school=school, stay={"sis_id": sis_id, **stay}, **NEW_CHILD)


@pytest.mark.parametrize(
    "now",
    [
        changed(given_to_ben(district().section("m", "s1", "s3").section("n")), "enrollments", "e-s1-1", **EXIT),
        changed(
            given_to_ben(district().section("m", "s1", "s3").section("n")),
            "enrollments",
            "e-s1-1",
            record_status="to_be_deleted",
        ),
        enrolled("e-s1-1", "2"),
        enrolled("e-s1-2", "2", entry_date="2025-10-02"),
        given_to_ben(district().section("m", "s1", "s3").section("n").stay("s1", "2", entry_date="2025-10-02")),
        given_to_ben(district().section("m", "s1", "s3").section("n", "s1")),
        given_to_ben(district().section("m", "s3").section("n")),
        enrolled("e-s1-1", "1", entry_date="2025-08-21"),
        enrolled("e-s1-9", "1", entry_date="2025-09-30"),
    ],
    ids=[
        "exit",
        "deleted",
        "moved",
        "another school",
        "a second school",
        "a seat",
        "no seat",
        "entry date",
        "entered again",
    ],
)
def test_11_what_is_said_of_the_other_child_is_not_said_of_the_one_before(now: Roster) -> None:
    tables = loaded(district().section("m", "s1", "s3").section("n"))
    memory = None
    for day in (DAY_2, DAY_2 + timedelta(1), DAY_2 + timedelta(40)):
        merged = merged_both_ways(now.inputs(tables, as_of=day, memory=memory))
        assert merged.recycled.height == 1
        assert merged.changes.is_empty()
        assert merged.held == ()
        after, memory = publish(tables, merged), merged.memory
        for name in ("students", "student_years", "student_sources", "enrollments", "section_enrollments"):
            assert after[name].equals(tables[name]), name
        tables = after


def answered(verdict: str, merged: MergedRoster) -> pl.DataFrame:
    """A person's answer to the question about a recycled id."""
    [asked] = merged.near_matches.filter(pl.col("rule") == "recycled_id").rows(named=True)
    record = f"{asked['integration']}/{asked['sis_id']}"
    return decisions(decided(verdict, record, None, asked["student_id"], asked["other_student_id"]))


def test_11_a_person_says_that_it_is_a_new_child() -> None:
    tables = loaded(district().section("m", "s1", "s3"))
    ada = student_of(tables, "s1")
    now = given_to_ben(district().section("m", "s1", "s3"))
    undecided = merge(now, tables, as_of=DAY_2)
    tables = publish(tables, undecided)
    given = answered(GIVEN, undecided)
    memory = undecided.memory
    merged = merged_both_ways(now.inputs(tables, as_of=DAY_2, decisions=given, memory=memory))
    assert merged.recycled.is_empty()
    after = publish(tables, merged)
    ben = student_of(after, "s1")
    assert ben != ada
    assert rows(merged.changes, "student_id", "kind", "evidence") == sorted(
        [
            (ada, "withdraw", "absence"),
            (ada, "section_drop", "absence"),
            (ben, "enroll", "new_record"),
            (ben, "section_add", "new_record"),
        ],
        key=str,
    )
    named = after["students"].filter(pl.col("student_id").is_in([ada, ben]))
    assert set(rows(named, "student_id", "first_name")) == {(ada, "Ada"), (ben, "Ben")}
    for day in range(1, 3):
        merged = merged_both_ways(
            now.inputs(after, as_of=DAY_2 + timedelta(day), decisions=given, memory=merged.memory)
        )
        assert merged.changes.is_empty()
        assert merged.near_matches.is_empty()
        after = publish(after, merged)
        assert student_of(after, "s1") == ben


@pytest.mark.parametrize("completeness", ["delta", "partial"])
def test_11_a_new_child_is_one_in_a_reading_that_proves_nobody_absent_too(completeness: Any) -> None:
    tables = loaded(district().section("m", "s1", "s3"))
    ada = student_of(tables, "s1")
    now = enrolled("e-ben", "2", entry_date="2025-10-02")
    parts = {"a": IntegrationInput(completeness=completeness)}
    undecided = merge(now, tables, as_of=DAY_2, integrations=parts)
    tables, memory = publish(tables, undecided), undecided.memory
    given = answered(GIVEN, undecided)
    found = []
    for day in range(2):
        inputs = now.inputs(tables, as_of=DAY_2 + timedelta(day), integrations=parts, decisions=given, memory=memory)
        merged = merged_both_ways(inputs)
        tables, memory = publish(tables, merged), merged.memory
        found += rows(merged.changes, "student_id", "kind")
    assert found == [(student_of(tables, "s1"), "enroll")], "hers are carried until a complete reading lacks them"
    last = merged_both_ways(now.inputs(tables, as_of=DAY_2 + timedelta(2), decisions=given, memory=memory))
    assert rows(last.changes, "student_id", "kind") == [(ada, "section_drop"), (ada, "withdraw")]


def test_11_the_child_before_who_goes_by_a_persons_word_is_guarded_as_who_is_absent() -> None:
    tables = loaded(district(2))
    now = given_to_ben(district(2))
    merged = merge(now, tables, as_of=DAY_2)
    given = answered(GIVEN, merged)
    ada, tables = student_of(tables, "s1"), publish(tables, merged)
    strict = Thresholds(district_floor=0, school_floor=0, week_floor=0)
    for day in range(2):
        merged = merge(now, tables, as_of=DAY_2 + timedelta(day), decisions=given, thresholds=strict)
        assert [hold.removals for hold in merged.held] == [1]
        tables = publish(tables, merged)
        stays = tables["enrollments"].filter(pl.col("student_id") == ada)
        assert rows(stays, "status") == ["active"]


def test_11_a_person_says_that_it_is_the_same_child_after_all() -> None:
    tables = loaded(district())
    ada = student_of(tables, "s1")
    now = given_to_ben(district())
    undecided = merge(now, tables, as_of=DAY_2)
    tables = publish(tables, undecided)
    kept = answered(KEPT, undecided)
    merged = merged_both_ways(now.inputs(tables, as_of=DAY_2, decisions=kept, memory=undecided.memory))
    assert (merged.recycled.height, merged.near_matches.height, merged.changes.height) == (0, 0, 0)
    after = publish(tables, merged)
    assert student_of(after, "s1") == ada
    assert rows(after["students"].filter(pl.col("student_id") == ada), "first_name") == ["Ben"]


ANN = {"first_name": "Ann", "last_name": "Hill", "email": "hill@x.example", "state_staff_id": "111"}
BO = {"first_name": "Bo", "last_name": "Moss", "email": "moss@x.example", "state_staff_id": "222"}


def taught(section: str = "m", **who: Any) -> Roster:
    """A section, and its teacher under the id t1."""
    roster = district().section("m", "s1", teacher_sis_id="t1" if section == "m" else None)
    roster.section("n", "s3", teacher_sis_id="t1" if section == "n" else None)
    taking = {"sis_id": f"t-{section}", "section_sis_id": section, "person_sis_id": "t1", "role": "teacher"}
    return roster.add("staff", sis_id="t1", **who).add("section_enrollments", begin_date="2025-08-18", **taking)


@pytest.mark.parametrize("section", ["m", "n"], ids=["the same section", "another section"])
def test_11_an_id_of_the_staff_that_is_given_to_somebody_else_brings_no_account_along(section: str) -> None:
    tables = loaded(taught(**ANN))
    [ann] = tables["staff"]["staff_id"]
    now = taught(section, **BO)
    merged = merge(now, tables, as_of=DAY_2)
    assert rows(merged.recycled, "sis_id", "entity") == [("t1", "staff")]
    assert merged.changes.is_empty()
    after = publish(tables, merged)
    for name in ("staff", "staff_links", "section_enrollments"):
        assert after[name].equals(tables[name]), name
    assert rows(after["sections"], "sis_id", "teacher_id") == [("m", ann), ("n", None)]

    given = merge(now, after, as_of=DAY_2, staff_decisions=answered(GIVEN, merged))
    assert (given.recycled.height, given.near_matches.height) == (0, 0)
    after = publish(after, given)
    [bo] = after["staff_links"]["staff_id"]
    assert bo != ann
    assert rows(after["staff"], "staff_id", "first_name") == sorted([(ann, "Ann"), (bo, "Bo")])
    assert rows(after["sections"], "sis_id", "teacher_id") == sorted(
        [(section, bo), ({"m": "n", "n": "m"}[section], None)]
    )

    kept = merge(now, publish(tables, merged), as_of=DAY_2, staff_decisions=answered(KEPT, merged))
    assert rows(kept.frames["staff"], "staff_id", "first_name") == [(ann, "Bo")]


@pytest.mark.parametrize(
    "now",
    [
        {"last_name": "Moss"},
        {"last_name": "Moss", "email": "moss@x.example"},
        {"first_name": "Bo", "last_name": "Moss", "email": "moss@x.example"},
        {"first_name": "Bo", "last_name": "Moss", "email": None, "state_staff_id": None},
    ],
    ids=["a new name", "a new name and address", "the same state id", "nothing else known"],
)
def test_11_a_staff_member_of_whom_something_is_the_same_is_the_same(now: dict[str, Any]) -> None:
    tables = loaded(taught(**ANN))
    assert merge(taught(**(ANN | now)), tables, as_of=DAY_2).recycled.is_empty()


def test_11_the_years_before_are_still_those_of_the_child_before() -> None:
    old, new = "2024-2025", "2025-2026"
    roster = {year: _of_year(year) for year in (old, new)}
    tables = loaded(roster[old])
    ada = student_of(tables, "s1")
    now = given_to_ben(roster[new])
    undecided = merge(now, tables, as_of=DAY_2)
    assert undecided.recycled.height == 1
    given = answered(GIVEN, undecided)
    tables = publish(tables, undecided)
    for year in (old, new, old, new):
        merged = merge(roster[old] if year == old else now, tables, as_of=DAY_2, decisions=given)
        tables = publish(tables, merged, year)
    ben = student_of(tables, "s1")
    assert ben != ada
    places = rows(tables["enrollments"].filter(pl.col("student_id").is_in([ada, ben])), "student_id", "school_year")
    assert sorted(places) == sorted([(ada, old), (ben, new)])
    assert merged.near_matches.is_empty()


def _of_year(year: str) -> Roster:
    roster = Roster(year).school("1")
    for number in range(4):
        stay = {"entry_date": f"{year[:4]}-08-18"}
        roster.student(f"s{number}", last_name=f"Name{number}", ssid=f"{number:03}", stay=stay)
    return roster


ADA = {"first_name": "Ada", "last_name": "Moss", "birth_date": "2012-03-04", "ssid": "77"}
UNBORN = {"birth_date": None}


@pytest.mark.parametrize(
    ("before", "now", "is_another"),
    [
        ({}, {"first_name": "Ben", "birth_date": "2016-09-09"}, True),
        (UNBORN, {"first_name": "Ben", "last_name": "Hill", "ssid": "78"} | UNBORN, True),
        (UNBORN, {"first_name": "Ben", "last_name": "Hill"} | UNBORN, False),
        ({}, {"birth_date": "2016-09-09", "ssid": "78"}, True),
        ({"ssid_issuer": "TX"}, {"ssid_issuer": "OK", "ssid": "78", "first_name": "Ben"}, False),
        (
            {"first_name": "Maria Elena"},
            {"first_name": "Maria Jose", "birth_date": "2016-09-09", "ssid": "78"},
            True,
        ),
        ({"first_name": "Maria Elena"}, {"first_name": "Maria Jose", "ssid": "78"}, True),
        ({"first_name": "Maria Elena"}, {"first_name": "Maria", "ssid": "78"}, False),
        ({"first_name": "Maria Elena"}, {"first_name": "Maria E.", "ssid": "78"}, False),
        ({}, {"last_name": "Hill"}, False),
        ({}, {"ssid": "78"}, False),
        ({}, {"birth_date": "2012-04-03"}, False),
    ],
    ids=[
        "name and birth date",
        "name and state id, no birth date",
        "name, no birth date",
        "birth date and state id",
        "name and another issuer's state id",
        "another second name",
        "another second name and state id",
        "second name left out",
        "second name shortened",
        "married or adopted",
        "state id corrected",
        "birth date corrected",
    ],
)
def test_11_two_of_name_birth_date_and_state_id_tell_of_another_child(
    before: dict[str, Any], now: dict[str, Any], is_another: bool
) -> None:
    tables = loaded(district().student("x1", **(ADA | before)))
    merged = merge(district().student("x1", **(ADA | before | now)), tables, as_of=DAY_2)
    assert rows(merged.recycled, "sis_id") == (["x1"] if is_another else [])
    asked_about = merged.near_matches.filter(pl.col("rule") == "recycled_id")
    assert rows(asked_about, "sis_id", "other_student_id") == ([("x1", student_of(tables, "x1"))] if is_another else [])


def test_11_a_record_that_differs_from_its_student_as_it_always_did_is_no_other_child() -> None:
    roster = Roster().school("1").school("1", "b").school("1", "c")
    for integration, last, born in (
        ("a", "Moss", "2012-03-04"),
        ("b", "Moss-Hill", "2012-03-05"),
        ("c", "Hill", "2012-03-05"),
    ):
        roster.student("1", integration=integration, ssid="77", last_name=last, birth_date=born)
    tables = loaded(roster)
    assert tables["students"].height == 1, "by the one in the middle"
    again = merge(changed(roster, "students", "1", email="new@pine.example"), tables, as_of=DAY_2)
    assert again.recycled.is_empty()
    assert rows(again.frames["student_sources"], "email") == ["new@pine.example"] * 3


def test_12_one_number_in_two_districts_is_two_children() -> None:
    roster = two_systems(
        {"local_id": "5", "local_id_issuer": "north"},
        {"local_id": "5", "local_id_issuer": "south", "last_name": "Hill"},
    )
    merged = merge(roster)
    assert two(publish({}, merged))
    assert asked(merged) == [], "not even a question: numbers of two issuers are two things"


@pytest.mark.parametrize(
    "now",
    [{"last_name": "Moss-Hill"}, {"last_name": "Hill"}, {"last_name": "Móss"}, {"last_name": "MOSS HILL"}],
    ids=["hyphenated", "changed", "accented", "in two words"],
)
def test_13_a_change_of_name_changes_nobody(now: dict[str, Any]) -> None:
    across = publish({}, merge(two_systems({"ssid": "77"}, {"ssid": "77", **now})))
    assert not two(across), "in another system, by the state id, the first name and the birth date"

    tables = loaded(district().student("a1"))
    merged = merge(district().student("a1", **now), tables, as_of=DAY_2)
    assert student_of(publish(tables, merged), "a1") == student_of(tables, "a1"), "in the same system, by its record"
    assert (merged.recycled.height, merged.changes.height) == (0, 0)


@pytest.mark.parametrize("renamed", [{"last_name": "Hill"}, {"first_name": "Kim"}], ids=["last name", "first name"])
def test_13_who_changed_a_name_is_asked_about_under_the_name_of_before(renamed: dict[str, Any]) -> None:
    mine = {"email": "ada@pine.example", "ssid": "77"}
    tables = loaded(district().student("a1", **mine))
    now = merge(district().student("a1", **mine, **renamed), tables, as_of=DAY_2)
    called = former_names(tables, publish(tables, now))
    assert rows(called, "first_name", "last_name") == [("Ada", "Moss")]
    tables = publish(tables, now)

    def with_other(tables: Tables, **other: Any) -> MergedRoster:
        both = district().school("1", "b").student("a1", **mine, **renamed).student("b1", integration="b", **other)
        return merge(both, tables, as_of=DAY_2, former_names=called)

    merged = with_other(tables, email=mine["email"])
    assert two(publish(tables, merged)), "a name of before joins nobody"
    [(rule, evidence)] = rows(merged.near_matches, "rule", "evidence")
    assert rule == "similar_name"
    assert {"former name", "birth_date", "email"} <= set(evidence.split(", "))
    assert asked(with_other(tables, first_name="Zoe", last_name="Reed", email=mine["email"])) == []
    assert two(publish(tables, with_other(tables, ssid="77", birth_date="2012-03-05"))) == ("first_name" in renamed)


def test_13_a_doubt_outlives_a_change_of_name() -> None:
    roster = two_systems({}, {})
    tables = loaded(roster)
    assert asked(merge(roster)) == ["name_birth"]
    renamed = changed(roster, "students", "a1", last_name="Reed")
    merged = merge(renamed, tables, as_of=DAY_2)
    assert asked(merged) == ["similar_name"], "in the merge that renames"
    after = publish(tables, merged)
    again = merge(renamed, after, as_of=DAY_2, former_names=former_names(tables, after))
    assert again.near_matches.equals(merged.near_matches), "and in those that know it from before"


@pytest.mark.parametrize(
    ("last_name", "agrees"), [("Moss-Hill", True), ("Hill Moss", True), ("MÓSS", True), ("Reyes", False)]
)
def test_13_a_last_name_that_is_hyphenated_accented_or_split_agrees(last_name: str, agrees: bool) -> None:
    """It is the second fact that a state id needs where a system has no birth date."""
    told = {"ssid": "77", "birth_date": None, "last_name": last_name}
    assert two(publish({}, merge(two_systems({"ssid": "77"}, told)))) is not agrees


def test_14_a_preferred_name_never_becomes_the_legal_one() -> None:
    roster = two_systems({"ssid": "77"}, {"ssid": "77", "preferred_first_name": "Lee"})
    tables = publish({}, merge(roster))
    assert not two(tables)
    mine = tables["students"].filter(pl.col("ssid") == "77")
    assert rows(mine, "first_name", "preferred_first_name") == [("Ada", "Lee")]

    def users(**asked_for: bool) -> pl.DataFrame:
        sets = oneroster_set({name: tables[name] for name in TABLES}, "d1", SchoolYear.parse(YEAR), "1.2", **asked_for)
        return sets.files["users"].filter(pl.col("sourcedId") == mine["student_id"].item())

    assert "Lee" not in {value for row in users().rows() for value in row}, "a target gets it only if it asks"
    assert rows(users(preferred_names=True), "givenName", "preferredGivenName") == [("Ada", "Lee")]
