"""One district's school year, from what came to what is published: each step in its own module, in the order of the rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sis_pipeline.roster.district import DistrictInputs
from sis_pipeline_tests.reference.delivery import Delivery, Row, key_of, published_records, student_records
from sis_pipeline_tests.reference.people import Found, who_is_who

Rows = Sequence[Row]


@dataclass(frozen=True)
class Expected:
    """What `merge_district` has to find: rows by table of `MergedRoster.frames`, and its other findings by name."""

    tables: dict[str, list[Row]]
    findings: dict[str, list[Row]]


def expected(inputs: DistrictInputs) -> Expected:
    now = Delivery(inputs)
    previous = published_records(now)
    candidates = student_records(now) + [row for row in previous if row["fate"] == "carried"]
    found = who_is_who(
        now.district,
        candidates,
        now.existing("student_links"),
        now.existing("students"),
        inputs.decisions.to_dicts(),
    )
    return Expected(
        tables={"student_links": links(now, found)},
        findings={
            "near_matches": list(found.near),
            "cut_chains": list(found.cut),
            "recycled": [{"integration": one, "sis_id": other} for one, other in found.recycled],
            "retired": [{"student_id": one, "now": other} for one, other in found.retired.items()],
        },
    )


def links(now: Delivery, found: Found) -> list[Row]:
    """Every record ever seen with its student: a link goes along where its student became another, and keeps its rule."""
    rows: list[Row] = []
    before = {key_of(row): row for row in now.existing("student_links")}
    for key in sorted({*before, *found.students}):
        was: dict[str, Any] = before.get(key, {})
        student, rule, confidence = found.students.get(key, (None, was.get("rule"), was.get("confidence")))
        rows.append(
            {
                "integration": key[0],
                "sis_id": key[1],
                "student_id": student or found.everybody[key],
                "rule": rule,
                "confidence": confidence,
            }
        )
    return rows
