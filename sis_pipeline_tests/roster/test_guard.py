"""What is too much to believe, and what a release lets pass."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from sis_pipeline.roster.guard import Hold, Question, Thresholds, guard

NOTHING: frozenset[str] = frozenset()


def ask(
    before: dict[str, int],
    gone: dict[str, int],
    *,
    evidence: str = "absence",
    released: frozenset[str] = NOTHING,
    entity: Any = "enrollments",
) -> tuple[Hold, ...]:
    removals = pl.DataFrame(
        [(f"{school}-{n}", school, evidence) for school, count in gone.items() for n in range(count)],
        schema=["student_id", "school_id", "evidence"],
        orient="row",
        schema_overrides=dict.fromkeys(["student_id", "school_id", "evidence"], pl.String),
    )

    def counts(active: dict[str, int]) -> pl.DataFrame:
        return pl.DataFrame(
            {"school_id": list(active), "active": list(active.values())},
            schema={"school_id": pl.String, "active": pl.Int64},
        )

    after = {school: count - gone.get(school, 0) for school, count in before.items()}
    question = Question(entity, ["student_id"], removals, counts(before), counts({s: n for s, n in after.items() if n}))
    return guard(question, Thresholds(), released)


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


def test_a_release_lets_exactly_the_held_removals_pass() -> None:
    (hold,) = ask({"s": 50}, {"s": 5})
    assert hold.keys == tuple((f"s-{n}",) for n in range(5))
    assert not ask({"s": 50}, {"s": 5}, released=frozenset({hold.fingerprint}))
    assert ask({"s": 50}, {"s": 6}, released=frozenset({hold.fingerprint}))


def test_what_was_not_there_before_cannot_go() -> None:
    assert not ask({}, {})
