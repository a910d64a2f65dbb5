"""A vendor's new version: fields come, go, are renamed, change their type or their codes. Nothing is guessed."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from sis_pipeline.connect.errors import ContractError
from sis_pipeline_tests.faults.pages import FLAVORS, Flavor, Outcome, RecordedPage, flavor
from sis_pipeline_tests.faults.rows import Count, Recorder, Row
from sis_pipeline_tests.faults.test_22_duplicates import edited

ROW = Row(
    20,
    "a new field, a field gone, renamed, in other letters, of another type, with an unknown code",
    "what is added changes nothing; without a required field the snapshot is refused or its rows are quarantined; no value "
    "is guessed from another",
    200,
    "drifts",
)

Record = dict[str, Any]


def new_field(record: Record, field: str) -> None:
    record[f"{field}_v2"] = record.get(field)


def gone(record: Record, field: str) -> None:
    record.pop(field, None)


def renamed(record: Record, field: str) -> None:
    if field in record:
        record[f"x_{field}"] = record.pop(field)


def other_letters(record: Record, field: str) -> None:
    if field in record:
        record[field.swapcase()] = record.pop(field)


def other_type(record: Record, field: str) -> None:
    value = record.get(field)
    if isinstance(value, str) and value.isdecimal() and not value.startswith("0"):
        record[field] = int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        record[field] = str(value)
    elif isinstance(value, dict | list):
        record[field] = "changed"
    else:
        record[field] = {"value": value}


def other_code(record: Record, field: str) -> None:
    if isinstance(record.get(field), str):
        record[field] = "zz-unheard-of"


DRIFTS: dict[str, Callable[[Record, str], None]] = {
    "new field": new_field,
    "gone": gone,
    "renamed": renamed,
    "other letters": other_letters,
    "other type": other_type,
    "unknown code": other_code,
}


def drifted(spoil: Flavor, resource: str, field: str, drift: str) -> tuple[list[RecordedPage], int]:
    """All pages, one list of them as the vendor's next version would send it; and how many records that changed."""
    changed = 0

    def change(records: list[Any]) -> None:
        nonlocal changed
        for record in records:
            before = json.dumps(record)
            DRIFTS[drift](record, field)
            changed += json.dumps(record) != before

    pages = [edited(page, change) if page.resource == resource else page for page in spoil.pages]
    return pages, changed


def chosen(spoil: Flavor, chance: random.Random) -> tuple[str, str]:
    """A list and one of its fields, at random."""
    page = chance.choice([page for page in spoil.pages if spoil.decoded(page)])
    return page.resource, chance.choice(sorted(spoil.decoded(page)[0]))


def guessed(spoil: Flavor, outcome: Outcome, field_values: set[str]) -> list[str]:
    """Names of persons' and schools' columns that hold what the truth does not: neither it, nor nothing, nor the changed
    field's own words."""
    wrong = []
    without_school = {key.partition(":")[2] for entity, key in spoil.truth.rows if entity == "academic_sessions"}
    for (entity, key), values in outcome.rows.items():
        truth = spoil.truth.rows.get((entity, key))
        if truth is None:
            # Other ids, as the vendor now says, are no guess, nor is a session's that has lost its school; any other is.
            fine = key in field_values or (entity == "academic_sessions" and key in without_school)
            wrong += [] if fine else [f"{entity}: a row that is not, {key}"]
            continue
        names = list(outcome.frames[entity].columns)
        for name, value, true in zip(names, values, truth, strict=True):
            said = value is None or value == true or str(value) in field_values
            if not said and name not in WORKED_OUT:
                wrong.append(f"{entity}.{name}")
    return wrong


WORKED_OUT = frozenset(
    {"entry_date", "exit_date", "entry_date_source", "begin_date", "end_date", "status", "kind", "is_primary", "role"}
    | {"school_sis_id", "school_sis_ids", "parent_sis_id", "session_sis_id", "session_sis_ids", "teacher_sis_id"}
    | {"grades", "grade_level", "grade_levels", "homeroom", "primary_school_sis_id", "record_status", "school_year"}
)
"""Columns that have a rule for when the source says nothing (docs/roster-model.md), which is no guess."""


@pytest.mark.parametrize("name", FLAVORS)
def test_drifts(name: str, count: Count, chance: random.Random, row: Recorder) -> None:
    spoil, seen = flavor(name, students=14), Counter[str]()
    for number in range(count(full=30, part=9)):
        drift = list(DRIFTS)[number % len(DRIFTS)]
        resource, field, pages, changed = "", "", [], 0
        while not changed:
            resource, field = chosen(spoil, chance)
            pages, changed = drifted(spoil, resource, field, drift)
        said = f"{name}: {drift} {resource}.{field}"
        row.happened(changed)
        row.ran()
        try:
            outcome = spoil.bring_in(pages)
        except ContractError:
            seen[f"refused: {drift}"] += 1
            continue
        if drift == "new field":
            assert outcome.rows == spoil.truth.rows, said
            seen["additive"] += 1
            continue
        values = {text for page in pages if page.resource == resource for text in _texts(spoil, page, field)}
        assert not guessed(spoil, outcome, values), said
        seen["quarantined" if outcome.rejected else "optional"] += 1
    assert seen["additive"]
    assert not seen["refused: new field"]
    assert seen["quarantined"] + sum(cases for what, cases in seen.items() if what.startswith("refused"))


def _texts(spoil: Flavor, page: RecordedPage, field: str) -> set[str]:
    """What the drifted field now says, as a column would write it."""
    try:
        records = spoil.decoded(page)
    except ContractError:
        return set()
    return {
        text
        for record in records
        for value in [record.get(field)]
        for text in (str(value), json.dumps(value, ensure_ascii=False, separators=(",", ":")), json.dumps([value]))
    }
