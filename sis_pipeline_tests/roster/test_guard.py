"""What is too much to believe, and what a release lets pass."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

import polars as pl
import pytest

from sis_pipeline.roster.guard import Hold, Part, Question, Ruling, Rulings, fingerprint, guard
from sis_pipeline.roster.thresholds import Thresholds


def ask(
    before: dict[str, int],
    gone: dict[str, int],
    *,
    evidence: str = "absence",
    rulings: Rulings | None = None,
    thresholds: Thresholds | None = None,
    frozen: Mapping[str, date] | None = None,
    entity: Any = "enrollments",
) -> tuple[Hold, ...]:
    columns = ["student_id", "school_id", "evidence", "change"]
    removals = pl.DataFrame(
        [
            (f"{school}-{n}", school, evidence, "no_show" if n % 3 == 2 else "withdraw")
            for school, count in gone.items()
            for n in range(count)
        ],
        schema=dict.fromkeys(columns, pl.String),
        orient="row",
    )

    def counts(active: dict[str, int]) -> pl.DataFrame:
        return pl.DataFrame(
            {"school_id": list(active), "active": list(active.values())},
            schema={"school_id": pl.String, "active": pl.Int64},
        )

    after = {school: count - gone.get(school, 0) for school, count in before.items()}
    question = Question(
        entity, ["student_id"], removals, counts(before), counts({s: n for s, n in after.items() if n}), frozen or {}
    )
    return guard(question, thresholds or Thresholds(), rulings or Rulings())


@pytest.mark.parametrize(
    ("before", "gone", "held"),
    [
        ({"s": 50}, {"s": 2}, 0),
        ({"s": 50}, {"s": 3}, 3),
        ({"s": 1000, "t": 1000}, {"s": 20, "t": 20}, 0),
        ({"s": 1000, "t": 1000}, {"s": 21, "t": 20}, 41),
        ({"s": 10_000, "t": 10_000}, {"s": 125, "t": 125}, 0),
        ({"s": 10_000, "t": 10_000}, {"s": 126, "t": 125}, 251),
        ({"s": 900, "small": 30}, {"s": 2, "small": 4}, 4),
        ({"s": 900, "tiny": 1}, {"tiny": 1}, 1),
        ({"s": 1}, {"s": 1}, 1),
    ],
)
def test_absences(before: dict[str, int], gone: dict[str, int], held: int) -> None:
    assert sum(hold.removals for hold in ask(before, gone)) == held


@pytest.mark.parametrize(("gone", "held"), [(10, 0), (11, 11)])
def test_explicit_exits_have_their_own_limit(gone: int, held: int) -> None:
    assert sum(hold.removals for hold in ask({"s": 200}, {"s": gone}, evidence="explicit_exit")) == held
    assert not ask({"s": 1000}, {"s": 50}, evidence="explicit_exit")


def test_seats_have_no_district_limit() -> None:
    assert not ask({"s": 1000, "t": 1000}, {"s": 100, "t": 100}, entity="section_enrollments")
    assert ask({"s": 1000, "t": 1000}, {"s": 101}, entity="section_enrollments")[0].scope == "school"


def test_seats_have_limits_of_their_own_by_district_and_school() -> None:
    """What holds students back at a school says nothing about who leaves its sections, and the other way round."""
    strict = Thresholds.of({"school_floor": 0, "school_share": 0.0}, {"s": {"seat_floor": 30}})
    assert not ask({"s": 100, "t": 100}, {"s": 30, "t": 10}, entity="section_enrollments", thresholds=strict)
    assert ask({"s": 100}, {"s": 1}, thresholds=strict), "students are still held"
    wide = Thresholds.of({"seat_share": 0.05, "school_share": 1.0})
    (hold,) = ask({"s": 100}, {"s": 6}, entity="section_enrollments", thresholds=wide)
    assert (hold.school_id, hold.limit) == ("s", 5)


def test_a_release_lets_exactly_the_held_removals_pass() -> None:
    (hold,) = ask({"s": 50}, {"s": 5})
    assert sorted(hold.keys) == [(f"s-{n}",) for n in range(5)]
    let_through = Rulings(released=(Ruling.about(hold),))
    assert not ask({"s": 50}, {"s": 5}, rulings=let_through)
    assert not ask({"s": 50}, {"s": 7}, rulings=let_through), "two more are no reason to ask"
    (again,) = ask({"s": 50}, {"s": 8}, rulings=let_through)
    assert sorted(again.keys) == [("s-5",), ("s-6",), ("s-7",)], "what was let through is not asked about again"


def test_a_release_of_absences_says_nothing_about_exits() -> None:
    (hold,) = ask({"s": 200}, {"s": 30})
    assert ask({"s": 200}, {"s": 30}, evidence="explicit_exit", rulings=Rulings(released=(Ruling.about(hold),)))


def test_a_hold_says_what_it_holds_part_by_part_in_the_order_of_its_keys() -> None:
    (hold,) = ask({"s": 50, "t": 50}, {"s": 4, "t": 1})
    assert hold.parts == (Part("s", "no_show", 1), Part("s", "withdraw", 3), Part("t", "withdraw", 1))
    assert hold.keys == (("s-2",), ("s-0",), ("s-1",), ("s-3",), ("t-0",))
    assert hold.fingerprint == fingerprint("enrollments", "absence", None, sorted(hold.keys))


def test_what_waits_for_a_person_waits_whatever_its_number_and_is_counted_with_nothing() -> None:
    waiting = Ruling("f", "absence", "enrollments", frozenset({("s-0",), ("gone",)}))
    (hold,) = ask({"s": 50}, {"s": 3}, rulings=Rulings(waiting=(waiting,)))
    assert (hold.keys, hold.kept, hold.removals) == ((("s-0",),), "f", 1)


@pytest.mark.parametrize(("lately", "gone", "held"), [(0, 20, 0), (31, 20, 20), (32, 20, 20), (30, 20, 0)])
def test_absences_within_seven_days_have_a_limit_of_their_own(lately: int, gone: int, held: int) -> None:
    """5 % of 1,020 or so, of whom 20 a day are nothing to ask about."""
    found = ask(
        {"s": 970}, {"s": gone}, rulings=Rulings(removed_lately=lately), thresholds=Thresholds(district_share=0.1)
    )
    assert sum(hold.removals for hold in found) == held
    assert {hold.reason for hold in found} <= {"more absences within 7 days than the district's limit"}


def test_explicit_exits_count_for_no_week() -> None:
    assert not ask({"s": 1000}, {"s": 3}, evidence="explicit_exit", rulings=Rulings(removed_lately=900))


@pytest.mark.parametrize("entity", ["courses", "sections", "academic_sessions"])
def test_of_other_entities_only_the_last_is_held(entity: str) -> None:
    assert not ask({"s": 10}, {"s": 9}, entity=entity)
    assert [hold.reason for hold in ask({"s": 10}, {"s": 10}, entity=entity)] == ["nothing would be left"]


@pytest.mark.parametrize(("active", "gone", "limit"), [(50, 5, None), (50, 6, 5), (300, 30, None), (300, 31, 30)])
def test_absent_staff_have_a_limit_of_their_own_and_none_per_school(active: int, gone: int, limit: int | None) -> None:
    found = ask({"s": active - 5, "t": 5}, {"s": gone - 4, "t": 4}, entity="staff", rulings=Rulings(removed_lately=90))
    assert [(hold.removals, hold.limit, hold.scope) for hold in found] == ([(gone, limit, "district")] if limit else [])


def test_a_frozen_school_holds_every_absence_and_no_exit() -> None:
    frozen = {"s": date(2026, 8, 18), "t": date(2026, 8, 18), "u": date(2026, 8, 25)}
    found = ask({"s": 50, "t": 50, "u": 50, "open": 50}, {"s": 1, "t": 1, "u": 2, "open": 2}, frozen=frozen)
    assert [(hold.until, hold.school_id, hold.removals) for hold in found] == [
        ("2026-08-18", None, 2), ("2026-08-25", "u", 2),
    ]  # fmt: skip
    assert not ask({"s": 50, "t": 50}, {"s": 2}, evidence="explicit_exit", frozen=frozen)


def test_a_school_may_have_limits_of_its_own() -> None:
    wide = Thresholds.of({"district_share": 0.5, "week_share": 0.5}, {"s": {"school_share": 0.3}})
    assert not ask({"s": 100, "t": 100}, {"s": 30}, thresholds=wide)
    assert ask({"s": 100, "t": 100}, {"t": 30}, thresholds=wide)[0].school_id == "t"


def test_what_was_not_there_before_cannot_go() -> None:
    assert not ask({}, {})
