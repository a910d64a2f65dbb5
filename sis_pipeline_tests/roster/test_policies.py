"""What becomes of an edit in `students`, and of systems that disagree, under each policy."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, get_args

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.roster.attributes import ATTRIBUTES, EDITED
from sis_pipeline.roster.frames import fit
from sis_pipeline.roster.merge import EDITS, KEPT, LOCAL, Decided, MergedStudents, changed_values, merge_students
from sis_pipeline.roster.model import STUDENT_YEARS
from sis_pipeline.roster.policies import PERSONAL, Policies, Rule, check
from sis_pipeline_tests.roster.rosters import Roster, laws, loaded, published, to_merge
from sis_pipeline_tests.roster.rosters import merge as merge_year

PRIORITIES = {"a": 1, "b": 2}
JANUARY, FEBRUARY, MARCH = (f"2025-0{month}-01T00:00:00+00:00" for month in (1, 2, 3))
RULES: tuple[Rule, ...] = get_args(Rule)


def edit(attribute: str, student_id: str = "s", at: str = FEBRUARY, number: int = 1, **values: Any) -> dict[str, Any]:
    assert set(values) <= set(EDITED[attribute])
    when = datetime.fromisoformat(at)
    return {
        "edit": number,
        "student_id": student_id,
        "attribute": attribute,
        "edited_by": "ada",
        "edited_at": when,
        **values,
    }


def merge(
    said: Sequence[dict[str, Any]],
    edits: Sequence[dict[str, Any]] = (),
    rule: Rule = "sis_wins",
    before: MergedStudents | None = None,
    decided: Sequence[Decided] = (),
) -> MergedStudents:
    """The records of student `s`, unless one names its `student_id`, numbered unless they have a `sis_id`."""
    return merge_students(
        to_merge(*said),
        Policies(default=rule),
        PRIORITIES,
        edits=pl.DataFrame(list(edits), schema=EDITS),
        published=before.students if before else None,
        decided=decided,
    )


def value(merged: MergedStudents, column: str) -> Any:
    return merged.students.row(0, named=True)[column]


def origin(merged: MergedStudents, attribute: str) -> str | None:
    return json.loads(merged.students["origins"][0]).get(attribute)


def conflict(merged: MergedStudents, attribute: str) -> dict[str, Any] | None:
    found = merged.conflicts.filter(pl.col("attribute") == attribute).rows(named=True)
    return {**found[0], "candidates": json.loads(found[0]["candidates"])} if found else None


OLD = {"integration": "a", "email": "old@x.org", "modified_at": JANUARY}
EDIT = edit("email", email="new@x.org")


@pytest.mark.parametrize(
    ("rule", "published_email", "status"),
    [("sis_wins", "old@x.org", "auto"), ("local_wins", "new@x.org", "auto"), ("newest_wins", "new@x.org", "auto"), ("manual", "new@x.org", "open")],
)  # fmt: skip
def test_an_edit_is_published_or_overruled_by_policy_and_seen_either_way(
    rule: Rule, published_email: str, status: str
) -> None:
    merged = merge([OLD], [EDIT], rule)
    assert value(merged, "email") == published_email
    kept = published_email == "new@x.org"
    assert origin(merged, "email") == (f"{LOCAL}/ada 2025-02-01T00:00:00Z {rule}" if kept else None)
    assert conflict(merged, "email") == {
        "student_id": "s",
        "attribute": "email",
        "candidates": [
            {"integration": "a", "sis_id": "0", "value": "old@x.org", "modified_at": "2025-01-01T00:00:00Z"},
            {"integration": LOCAL, "sis_id": "ada", "value": "new@x.org", "modified_at": "2025-02-01T00:00:00Z"},
        ],
        "chosen": published_email,
        "chosen_from": f"{LOCAL}/ada" if kept else "a/0",
        "rule": rule,
        "status": status,
    }
    assert merged.settled == ()


def test_the_newest_is_a_record_that_changed_after_the_edit() -> None:
    later = {**OLD, "email": "later@x.org", "modified_at": MARCH}
    assert value(merge([later], [EDIT], "newest_wins"), "email") == "later@x.org"
    assert value(merge([{**OLD, "modified_at": None}], [EDIT], "newest_wins"), "email") == "new@x.org"


@pytest.mark.parametrize("rule", RULES)
def test_an_edit_that_the_systems_agree_with_is_settled(rule: Rule) -> None:
    merged = merge([{**OLD, "email": "new@x.org"}], [EDIT], rule)
    assert (value(merged, "email"), origin(merged, "email")) == ("new@x.org", None)
    assert (conflict(merged, "email"), merged.settled) == (None, (1,))


@pytest.mark.parametrize(("rule", "kept"), [("sis_wins", "MOSS"), ("local_wins", "Moss")])
def test_an_edit_of_the_spelling_counts(rule: Rule, kept: str) -> None:
    merged = merge([{"integration": "a", "last_name": "MOSS"}], [edit("last_name", last_name="Moss")], rule)
    assert value(merged, "last_name") == kept
    assert (conflict(merged, "last_name") or {})["chosen"] == kept


@pytest.mark.parametrize(("rule", "kept"), [("sis_wins", "old@x.org"), ("local_wins", None), ("manual", None)])
def test_a_value_that_was_cleared_is_an_edit_too(rule: Rule, kept: str | None) -> None:
    merged = merge([OLD], [edit("email", email=None)], rule)
    assert value(merged, "email") == kept
    assert (conflict(merged, "email") or {})["chosen_from"] == ("a/0" if kept else f"{LOCAL}/ada")


def test_an_edit_of_what_no_system_supplies_stays_whatever_the_policy() -> None:
    merged = merge([{"integration": "a"}], [EDIT])
    assert (value(merged, "email"), conflict(merged, "email")) == ("new@x.org", None)
    assert origin(merged, "email") == f"{LOCAL}/ada 2025-02-01T00:00:00Z sis_wins"


CLEARED = {"integration": "a", "cleared": ["email"], "modified_at": JANUARY}
OTHER = {"integration": "b", "email": "b@x.org", "modified_at": JANUARY}


@pytest.mark.parametrize(
    ("rule", "kept"), [("sis_wins", None), ("local_wins", "new@x.org"), ("newest_wins", "new@x.org"), ("manual", "new@x.org")]
)  # fmt: skip
def test_an_edit_stands_against_what_a_system_cleared_as_against_a_value(rule: Rule, kept: str | None) -> None:
    merged = merge([CLEARED, OTHER], [EDIT], rule)
    assert value(merged, "email") == kept
    found = conflict(merged, "email")
    assert found
    assert [it["value"] for it in found["candidates"]] == [None, "b@x.org", "new@x.org"]
    assert found["rule"] == ("cleared" if rule == "sis_wins" else rule)


def test_an_edit_that_cleared_what_a_system_then_clears_is_settled() -> None:
    merged = merge([CLEARED, OTHER], [edit("email", email=None)], "local_wins")
    assert (value(merged, "email"), origin(merged, "email")) == (None, "a/0 cleared")
    assert merged.settled == (1,)


def test_a_person_may_decide_for_what_was_cleared_and_against_it() -> None:
    seen = frozenset({("a", "0", None), ("b", "1", "b@x.org")})
    for system, sis_id, email in (("a", "0", None), ("b", "1", "b@x.org")):
        merged = merge([CLEARED, OTHER], decided=[Decided("s", "email", system, sis_id, seen)])
        assert (value(merged, "email"), origin(merged, "email")) == (email, f"{system}/{sis_id} decided")
        assert (conflict(merged, "email") or {})["status"] == "resolved"
    changed = merge([CLEARED, {**OTHER, "email": "c@x.org"}], decided=[Decided("s", "email", "b", "1", seen)])
    assert value(changed, "email") is None


def test_a_choice_that_an_earlier_version_kept_still_holds_for_an_emptied_block() -> None:
    """It wrote an address of which nothing is left as the empty text."""
    gone, there = {"integration": "a", "cleared": ["home_address"]}, {"integration": "b", "home_street": "9 Oak"}
    seen = frozenset({("a", "0", ""), ("b", "1", "9 Oak")})
    for system, sis_id, street in (("a", "0", None), ("b", "1", "9 Oak")):
        merged = merge([gone, there], decided=[Decided("s", "home_address", system, sis_id, seen)])
        assert (value(merged, "home_street"), origin(merged, "home_address")) == (street, f"{system}/{sis_id} decided")


def test_under_manual_what_is_published_stays_when_one_of_two_systems_clears_it() -> None:
    before = merge([{**CLEARED, "email": "a@x.org", "cleared": []}, OTHER], rule="manual")
    merged = merge([CLEARED, OTHER], rule="manual", before=before)
    assert value(merged, "email") == "a@x.org"
    assert (conflict(merged, "email") or {})["status"] == "open"


def test_an_edited_address_stays_whole() -> None:
    home = {"integration": "a", "home_street": "1 Elm", "home_city": "Waco", "home_state": "TX"}
    moved = edit("home_address", home_street="9 Oak", home_city="Waco")
    merged = merge([home], [moved], "local_wins")
    assert (value(merged, "home_street"), value(merged, "home_state")) == ("9 Oak", None)
    assert (conflict(merged, "home_address") or {})["chosen"] == "9 Oak, Waco"


@pytest.mark.parametrize("rule", RULES)
def test_a_protection_that_a_person_sets_holds_whatever_the_policy(rule: Rule) -> None:
    opened = {"integration": "a", "address_confidential": False}
    guarded = merge([opened], [edit("address_confidential", address_confidential=True)], rule)
    assert value(guarded, "address_confidential") is True
    closed = merge([{**opened, "address_confidential": True}], [edit("address_confidential", address_confidential=False)], rule)  # fmt: skip
    assert value(closed, "address_confidential") is True
    assert (conflict(closed, "address_confidential") or {})["rule"] == "any_true"


def test_of_two_edits_the_later_counts_and_an_edit_of_somebody_unknown_is_nobody() -> None:
    edits = [edit("email", email="last@x.org", number=3), edit("email", email="first@x.org", number=2)]
    merged = merge([OLD], [*edits, edit("phone", "stranger", phone="1")], "local_wins")
    assert (value(merged, "email"), merged.students.height) == ("last@x.org", 1)


def test_manual_keeps_what_is_published_while_the_systems_disagree() -> None:
    a, b = {"integration": "a", "email": "a@x.org"}, {"integration": "b", "email": "b@x.org"}
    agreed = merge([{**a, "email": "b@x.org"}, b], rule="manual")
    apart = merge([a, b], rule="manual", before=agreed)
    assert (value(apart, "email"), origin(apart, "email")) == ("b@x.org", "b/1 manual")
    assert (conflict(apart, "email") or {})["status"] == "open"
    gone = merge([a, {**b, "email": "c@x.org"}], rule="manual", before=apart)
    assert (value(gone, "email"), origin(gone, "email")) == ("b@x.org", f"{KEPT}/s manual")
    settled = merge([{**a, "email": "c@x.org"}, {**b, "email": "c@x.org"}], rule="manual", before=gone)
    assert (value(settled, "email"), conflict(settled, "email")) == ("c@x.org", None)


def test_the_first_merge_under_manual_has_nothing_to_keep() -> None:
    merged = merge([{"integration": "b", "email": "b@x.org"}, {"integration": "a", "email": "a@x.org"}], rule="manual")
    assert value(merged, "email") == "a@x.org"
    assert (conflict(merged, "email") or {})["status"] == "open"


def chosen(merged: MergedStudents, attribute: str, integration: str, sis_id: str) -> Decided:
    """As a person decides who looks at the conflict."""
    found = (conflict(merged, attribute) or {})["candidates"]
    seen = frozenset((it["integration"], it["sis_id"], it["value"]) for it in found if it["integration"] != KEPT)
    return Decided("s", attribute, integration, sis_id, seen)


@pytest.mark.parametrize("rule", RULES)
def test_a_decision_holds_whatever_the_policy_until_a_value_changes(rule: Rule) -> None:
    a, b = {"integration": "a", "email": "a@x.org"}, {"integration": "b", "email": "b@x.org"}
    asked = merge([a, b], rule=rule)
    answer = chosen(asked, "email", "b", "1")
    merged = merge([a, b], rule=rule, before=asked, decided=[answer])
    assert (value(merged, "email"), origin(merged, "email")) == ("b@x.org", "b/1 decided")
    found = conflict(merged, "email") or {}
    assert (found["rule"], found["status"], found["chosen_from"]) == ("decided", "resolved", "b/1")
    assert same(merge([a, b], rule=rule, before=merged, decided=[answer]), merged)
    moved = merge([{**a, "email": "c@x.org"}, b], rule=rule, before=merged, decided=[answer])
    assert (conflict(moved, "email") or {})["status"] == ("open" if rule == "manual" else "auto")
    assert value(moved, "email") == ("b@x.org" if rule == "manual" else "c@x.org")


def test_a_decision_is_for_an_edit_against_it_or_for_what_is_published() -> None:
    asked = merge([OLD], [EDIT])
    for integration, sis_id, kept in ((LOCAL, "ada", "new@x.org"), ("a", "0", "old@x.org")):
        for rule in RULES:
            merged = merge([OLD], [EDIT], rule, decided=[chosen(asked, "email", integration, sis_id)])
            assert (value(merged, "email"), (conflict(merged, "email") or {})["status"]) == (kept, "resolved")
    a, b = {"integration": "a", "email": "a@x.org"}, {"integration": "b", "email": "b@x.org"}
    before = merge([{**a, "email": "c@x.org"}, b])
    apart = merge([a, b], rule="manual", before=before)
    kept = merge([a, b], rule="manual", before=apart, decided=[chosen(apart, "email", KEPT, "s")])
    assert (value(kept, "email"), (conflict(kept, "email") or {})["status"]) == ("c@x.org", "resolved")


def test_what_differs_between_two_policies_is_named() -> None:
    sis, local = (merge([OLD], [EDIT, edit("phone", phone="5125550100")], rule) for rule in ("sis_wins", "local_wins"))
    frames = [{"students": one.students, "student_years": fit(one.years, STUDENT_YEARS)} for one in (sis, local)]
    assert changed_values(*frames).rows() == [("email", "s")]


@pytest.mark.parametrize(
    ("name", "policy", "why"),
    [
        ("shoe_size", "sis_wins", "'shoe_size' has no policy"),
        ("phone", "loudest_wins", "phone takes sis_wins, local_wins, newest_wins, manual, not 'loudest_wins'"),
        ("grade_level", "manual", r"grade_level takes sis_wins, newest_wins \(it belongs to a school year\)"),
        ("address_confidential", "sis_wins", "has no policy"),
        ("home_street", "sis_wins", "has no policy"),
        ("default", "default", "default takes"),
    ],
)
def test_a_wrong_policy_is_refused_in_words(name: str, policy: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check(name, policy)


def test_policies_are_those_of_the_attribute_else_of_the_district() -> None:
    policies = Policies.of({"default": "local_wins", "phone": "manual"})
    assert [policies.rule(name) for name in ("phone", "email", "grade_level")] == ["manual", "local_wins", "sis_wins"]
    assert set(PERSONAL) == {one.name for one in ATTRIBUTES if not one.is_protection}


EMAILS = st.sampled_from(["x@x.org", "y@x.org", None])
STREETS = st.sampled_from(["1 Elm", "9 Oak", None])
MOMENTS = st.sampled_from([JANUARY, FEBRUARY, MARCH, None])
record = st.fixed_dictionaries(
    {
        "integration": st.sampled_from("ab"),
        "student_id": st.sampled_from("st"),
        "email": EMAILS,
        "home_street": STREETS,
        "directory_opt_out": st.sampled_from([True, False, None]),
        "modified_at": MOMENTS,
    }
)
edits_of = st.builds(
    lambda student, values, at: [edit(name, student, at, n, **{column: said}) for n, (name, column, said) in enumerate(values)],
    st.sampled_from("st"),
    st.lists(
        st.one_of(
            st.tuples(st.just("email"), st.just("email"), EMAILS),
            st.tuples(st.just("home_address"), st.just("home_street"), STREETS),
            st.tuples(st.just("directory_opt_out"), st.just("directory_opt_out"), st.sampled_from([True, False, None])),
        ),
        max_size=3,
    ),
    st.sampled_from([JANUARY, FEBRUARY, MARCH]),
)  # fmt: skip
COLUMNS = {"email": "email", "home_address": "home_street", "directory_opt_out": "directory_opt_out"}


def same(one: MergedStudents, other: MergedStudents) -> bool:
    return (
        one.students.equals(other.students) and one.conflicts.equals(other.conflicts) and one.settled == other.settled
    )


@laws(16)
@given(
    st.lists(record, min_size=1, max_size=5),
    st.lists(record, min_size=1, max_size=5),
    edits_of,
    st.sampled_from(RULES),
    st.randoms(use_true_random=False),
)
def test_laws_of_edits(
    first: list[dict[str, Any]],
    second: list[dict[str, Any]],
    edits: list[dict[str, Any]],
    rule: Rule,
    shuffle: random.Random,
) -> None:
    named = [{**row, "sis_id": str(number)} for number, row in enumerate(second)]
    before = merge([{**row, "sis_id": str(number)} for number, row in enumerate(first)], rule=rule)
    merged = merge(named, edits, rule, before)

    mixed = [shuffle.sample(list(rows), len(rows)) for rows in (named, edits)]
    assert same(merge(*mixed, rule, before), merged), "the order does not count"

    open_edits = [one for one in edits if one["edit"] not in merged.settled]
    again = merge(named, open_edits, rule, merged)
    assert again.students.equals(merged.students), "merging the published result changes nothing"
    assert again.conflicts.equals(merged.conflicts)

    newest = {(one["student_id"], one["attribute"]): one for one in edits}
    was = {row["student_id"]: row for row in before.students.iter_rows(named=True)}
    for student in merged.students.iter_rows(named=True):
        mine = [row for row in named if row["student_id"] == student["student_id"]]
        for attribute, column in COLUMNS.items():
            edited = newest.get((student["student_id"], attribute))
            candidates = {row[column] for row in mine} | ({edited[column]} if edited else set()) | {None}
            base = {was[student["student_id"]][column]} if rule == "manual" and student["student_id"] in was else set()
            assert student[column] in candidates | base, "a value comes from a candidate"
            if edited and edited["edit"] not in merged.settled and student[column] != edited[column]:
                seen = [c for c in merged.conflicts.rows(named=True) if (c["student_id"], c["attribute"]) == (student["student_id"], attribute)]  # fmt: skip
                assert seen, "an edit is never lost without a trace"
                assert any(it["integration"] == LOCAL for it in json.loads(seen[0]["candidates"]))


def test_published_rows_of_the_table_are_taken_as_they_are() -> None:
    """The store hands over whole rows of `students`, with more columns than a merge makes."""
    frame = published("students", {"district": "d", "student_id": "s", "first_name": "Ada", "last_name": "Moss", "email": "b@x.org", "latest_school_year": "2025-2026", "near_match": False, "origins": "{}"})  # fmt: skip
    said = to_merge({"email": "a@x.org"}, {"integration": "b", "email": "b@x.org"})
    merged = merge_students(said, Policies(default="manual"), PRIORITIES, published=frame)
    assert value(merged, "email") == "b@x.org"


def test_edits_are_dated_in_utc() -> None:
    assert EDITS["edited_at"] == pl.Datetime("us", "UTC")
    assert edit("email")["edited_at"].tzinfo == UTC


def edited_later(tables: Mapping[str, pl.DataFrame], **values: Any) -> tuple[str, pl.DataFrame]:
    student = tables["students"]["student_id"][0]
    [(column, written)] = values.items()
    return student, pl.DataFrame([edit(column, student, **{column: written})], schema=EDITS)


def test_an_edit_counts_in_the_year_that_owns_the_student_only() -> None:
    old, new = (Roster(year).school("1").student("7", email="old@x.org") for year in ("2024-2025", "2025-2026"))
    tables = loaded(new)
    _, edits = edited_later(tables, email="new@x.org")
    policies = Policies("local_wins")
    earlier = merge_year(old, tables, edits=edits, policies=policies)
    assert (earlier.frames["students"].height, earlier.frames["conflicts"].height, earlier.settled) == (0, 0, ())
    owner = merge_year(new, tables, edits=edits, policies=policies)
    assert owner.frames["students"]["email"].to_list() == ["new@x.org"]
    assert owner.frames["conflicts"].height == 1


def test_an_edit_goes_with_a_student_who_was_merged_into_another() -> None:
    roster = Roster().school("1").student("7", email="old@x.org")
    tables = loaded(roster)
    student, edits = edited_later(tables, email="new@x.org")
    alias = "00000000-0000-4000-8000-00000000000b"
    merged = merge_year(
        roster,
        tables,
        edits=edits.with_columns(student_id=pl.lit(alias)),
        policies=Policies("local_wins"),
        aliases={alias: student},
    )
    assert merged.frames["students"]["email"].to_list() == ["new@x.org"]
