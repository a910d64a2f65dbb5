"""What takes ledger events back: each once, on its day and at its place, called what it is to whoever reads the ledger."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.roster.changes import compensations
from sis_pipeline.roster.model import CHANGE_KINDS
from sis_pipeline_tests.roster.rosters import laws, published

WRONG, UNDO, REDO = (f"00000000-0000-4000-8000-00000000000{number}" for number in range(3))
OPEN, LEFT, GRADUATED, MISSING = (
    {"school_id": "s1", "entry_date": "2025-08-18", "status": status}
    for status in ("active", "withdrawn", "graduated", "no_show")
)
SEAT = {"begin_date": "2025-08-18", "end_date": None}


def event(kind: str, before: Any, after: Any, number: int = 1) -> dict[str, Any]:
    return {
        "district": "d1", "change_id": f"change-{number}", "student_id": "ada", "school_year": "2025-2026", "kind": kind,
        "effective_date": "2025-10-01", "school_id": "s2", "before": before and json.dumps(before),
        "after": after and json.dumps(after), "evidence": "absence", "integration": "ps", "operation_id": WRONG,
    }  # fmt: skip


def back(*events: dict[str, Any], undone: str = WRONG, by: str = UNDO) -> pl.DataFrame:
    return compensations(published("enrollment_changes", *events), undone, by)


@pytest.mark.parametrize(
    ("kind", "before", "after", "taken_back_by"),
    [
        ("enroll", None, OPEN, "withdraw"),
        ("enroll", None, LEFT, "amend"),
        ("withdraw", OPEN, LEFT, "re_enter"),
        ("withdraw", None, LEFT, "amend"),
        ("no_show", OPEN, MISSING, "re_enter"),
        ("graduate", OPEN, GRADUATED, "re_enter"),
        ("re_enter", LEFT, OPEN, "withdraw"),
        ("re_enter", GRADUATED, OPEN, "graduate"),
        ("re_enter", MISSING, OPEN, "no_show"),
        ("re_enter", None, OPEN, "withdraw"),
        ("withdraw", OPEN, None, "enroll"),
        ("amend", LEFT, GRADUATED, "amend"),
        ("grade_change", {"grade_level": "07"}, {"grade_level": "08"}, "grade_change"),
        ("section_add", None, SEAT, "section_drop"),
        ("section_drop", SEAT, SEAT | {"end_date": "2025-10-01"}, "section_add"),
    ],
)
def test_an_event_is_taken_back_by_its_opposite(kind, before, after, taken_back_by) -> None:
    [found] = back(event(kind, before, after)).rows(named=True)
    assert found["kind"] == taken_back_by
    assert [value and json.loads(value) for value in (found["before"], found["after"])] == [after, before]
    assert (found["evidence"], found["operation_id"]) == (f"undo:{WRONG}", UNDO)
    assert (str(found["effective_date"]), found["school_id"]) == ("2025-10-01", "s2")


def test_a_transfer_goes_back_to_the_school_it_came_from() -> None:
    [found] = back(event("transfer", LEFT, OPEN | {"school_id": "s2"})).rows(named=True)
    assert (found["kind"], found["school_id"]) == ("transfer", "s1")


STATES = st.sampled_from([None, OPEN, LEFT, GRADUATED, MISSING])


@laws(60)
@given(st.lists(st.tuples(st.sampled_from(CHANGE_KINDS), STATES, STATES), max_size=6))
def test_every_event_is_taken_back_once_and_can_be_had_back(drawn) -> None:
    events = published("enrollment_changes", *(event(*one, number) for number, one in enumerate(drawn)))
    undo = compensations(events, WRONG, UNDO)
    redo = compensations(undo, UNDO, REDO)
    states = ["student_id", "effective_date", "before", "after"]
    assert sorted(redo.select(states).rows(), key=str) == sorted(events.select(states).rows(), key=str)
    ids = pl.concat([events["change_id"], undo["change_id"], redo["change_id"]])
    assert ids.n_unique() == 3 * events.height
    assert undo.equals(compensations(events, WRONG, UNDO))
