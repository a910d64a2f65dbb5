"""The engine's result beside the reference's: every row that only one of them has, or that has another value.
Neither is computed here, and nothing here says which of the two is right."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sis_pipeline.roster.contract import DistrictInputs, MergedRoster
from sis_pipeline_tests.reference.district import Expected, expected

Row = Mapping[str, Any]
HELD = ("enrollments", "section_enrollments")
"""Of which removals the reference knows whether they are held; not of staff and the catalogue."""
JSON = {"origins", "candidates", "before", "after"}


def differences(inputs: DistrictInputs, merged: MergedRoster) -> list[str]:
    """Each difference in a line, the rows' columns as the reference has them; none where the two agree."""
    reference = expected(inputs)
    found = []
    for name, rows in {**reference.tables, **reference.findings}.items():
        columns = list(rows[0]) if rows else None
        found += _differing(name, rows, [_only(row, columns) for row in _engine(merged, reference, name)])
    return found


def _engine(merged: MergedRoster, reference: Expected, name: str) -> Iterable[Row]:
    if name == "retired":
        return [{"student_id": one, "now": other} for one, other in merged.retired.items()]
    if name == "held":
        return [{"entity": hold.entity, "key": key} for hold in merged.held if hold.entity in HELD for key in hold.keys]
    frame = merged.frames[name] if name in reference.tables else getattr(merged, name)
    rows: Iterable[Row] = frame.to_dicts()
    of_staff = {"near_matches": ("entity", "staff"), "section_enrollments": ("role", "teacher")}
    column, value = of_staff.get(name, ("", None))
    return [row for row in rows if value is None or row[column] != value]


def _only(row: Row, columns: list[str] | None) -> Row:
    return row if columns is None else {name: row[name] for name in columns}


def _differing(name: str, rows: Iterable[Row], engine: Iterable[Row]) -> list[str]:
    rows, engine = list(rows), list(engine)
    one, other = (Counter(map(_comparable, side)) for side in (rows, engine))
    found = [f"{name}: the reference alone has {row}" for row in sorted((one - other).elements())]
    found += [f"{name}: the engine alone has {row}" for row in sorted((other - one).elements())]
    return found or _scores_differing(name, rows, engine)


def _comparable(row: Row) -> str:
    """A row as text, JSON whatever the order of its names; scores are compared apart."""
    shown = {
        name: json.loads(value) if name in JSON and isinstance(value, str) else value
        for name, value in row.items()
        if name != "score"
    }
    return json.dumps(shown, default=str, sort_keys=True, ensure_ascii=False)


def _scores_differing(name: str, rows: Iterable[Row], engine: Iterable[Row]) -> list[str]:
    """The engine's scores are of single precision, rounded to three places."""
    scores = ({_comparable(row): row.get("score", 0.0) for row in side} for side in (rows, engine))
    one, other = scores
    return [
        f"{name}: the reference scores {score:.4f}, the engine {other[row]:.4f}: {row}"
        for row, score in one.items()
        if abs(score - other[row]) > 0.0006
    ]
