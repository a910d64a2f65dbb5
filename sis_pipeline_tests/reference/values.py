"""One record for each student: whose value is taken of each attribute, where it comes from, and where the systems disagree.
Written from docs/first-district.md and DESIGN 6; edits and people's choices in conflicts are not played here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from sis_pipeline.roster.attributes import ATTRIBUTES, Attribute
from sis_pipeline.roster.policies import Policies
from sis_pipeline_tests.reference import spelling
from sis_pipeline_tests.reference.delivery import Delivery, Row, listed

PUBLISHED = "as published"
"""In place of an integration where `manual` leaves what is published."""
LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Merged:
    """By student: the values taken, where they come from, and the conflicts by attribute."""

    values: Mapping[str, Row]
    origins: Mapping[str, dict[str, str]]
    conflicts: Sequence[Row]


def one_record_each(now: Delivery, sources: Sequence[Row]) -> Merged:
    """`sources`: the student records that count, with `student_id` and `school_id`."""
    of_student: dict[str, list[Row]] = defaultdict(list)
    for row in sources:
        of_student[row["student_id"]].append(row)
    published = {row["student_id"]: row for row in now.existing("students")}
    values, origins, conflicts = {}, {}, []
    for student, rows in of_student.items():
        said = sorted(rows, key=lambda row: _rank(now, row))
        chosen = {one.name: _choice(one, said, now.inputs.policies, published.get(student)) for one in ATTRIBUTES}
        values[student] = {
            column: chosen[one.name].winner[column] if chosen[one.name].winner else None
            for one in ATTRIBUTES
            for column in one.columns
        }
        origins[student] = _origins(said, chosen)
        conflicts += [_conflict(student, one, chosen[one.name]) for one in ATTRIBUTES if chosen[one.name].disputed]
    return Merged(values, origins, conflicts)


@dataclass(frozen=True)
class Choice:
    """`winner`: the record whose value is taken, None where nobody has one; `candidates`: those who have one."""

    winner: Row | None
    candidates: Sequence[Row]
    rule: str
    disputed: bool


def _rank(now: Delivery, row: Row) -> tuple[Any, ...]:
    """The system with the lowest priority number first, then by its name; of one system the newest record, then by id."""
    return now.priority(row["integration"]), row["integration"], *_newest(row), row["sis_id"]


def _newest(row: Row) -> tuple[bool, float]:
    modified = row["modified_at"]
    return modified is None, -(modified or LONG_AGO).timestamp()


def _choice(attribute: Attribute, said: Sequence[Row], policies: Policies, published: Row | None) -> Choice:
    """A value that nobody supplies is nobody's say, but one that somebody cleared is; a block is taken from one record as a whole; a protection is true if
    anybody says so."""
    candidates = [row for row in said if _has(row, attribute) or _cleared(row, attribute)]
    rule = policies.rule(attribute.name)
    heard = candidates
    if attribute.is_protection:
        heard = [row for row in candidates if row[attribute.name]] or candidates
    order = sorted(heard, key=_newest) if rule == "newest_wins" else heard
    winner = order[0] if order else None
    disputed = attribute.compared and len({_compared(row, attribute) for row in candidates}) > 1
    if rule == "manual" and published and _has(published, attribute) and _disagree(candidates, attribute):
        same = [row for row in candidates if all(row[name] == published[name] for name in attribute.columns)]
        winner = same[0] if same else _as_published(published)
        candidates = candidates if same else [*candidates, winner]
    if winner and not _has(winner, attribute) and rule != "manual":
        rule = "cleared"
    return Choice(winner, candidates, "any_true" if attribute.is_protection else rule, disputed)


def _cleared(row: Row, attribute: Attribute) -> bool:
    """Whether it says that there is nothing, rather than nothing at all."""
    return attribute.name in listed(row, "cleared")


def _has(row: Row, attribute: Attribute) -> bool:
    return any(row[name] is not None for name in attribute.lead)


def _disagree(candidates: Sequence[Row], attribute: Attribute) -> bool:
    return len({_compared(row, attribute) for row in candidates}) > 1


def _as_published(published: Row) -> Row:
    return published | {"integration": PUBLISHED, "sis_id": published["student_id"], "modified_at": None}


def _compared(row: Row, attribute: Attribute) -> tuple[Any, ...]:
    """Values that differ by their spelling only are one value; ids are compared letter by letter."""
    return tuple(_spelled(name, row[name]) for name in attribute.lead)


def _spelled(column: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if column in {"ssid", "local_id"}:
        return spelling.exact(value) or value
    if column in {"email", "username"}:
        return value.strip().lower()
    return (spelling.phone(value) if column.endswith("phone") else spelling.name(value)) or value


def _origins(said: Sequence[Row], chosen: Mapping[str, Choice]) -> dict[str, str]:
    """The record that gives most of the person, the better ranked of two that give equally many, the exceptions, and what
    was cleared."""
    personal = [(one.name, chosen[one.name]) for one in ATTRIBUTES if one.is_personal]
    given = Counter(_source(choice.winner) for _, choice in personal if choice.winner)
    base = max(said, key=lambda row: given[_source(row)])
    empty = {one.name for one in ATTRIBUTES if (it := chosen[one.name].winner) and not _has(it, one)}
    exceptions = {
        name: f"{_source(choice.winner)} {choice.rule}"
        for name, choice in personal
        if choice.winner and (_source(choice.winner) != _source(base) or name in empty)
    }
    return {"*": _source(base), **exceptions}


def _source(row: Row) -> str:
    return f"{row['integration']}/{row['sis_id']}"


def _conflict(student: str, attribute: Attribute, choice: Choice) -> Row:
    assert choice.winner is not None, "candidates that differ have a winner among them"
    return {
        "student_id": student,
        "attribute": attribute.name,
        "candidates": [
            {
                "integration": row["integration"],
                "sis_id": row["sis_id"],
                "value": _text(row, attribute),
                "modified_at": row["modified_at"] and f"{row['modified_at']:%Y-%m-%dT%H:%M:%SZ}",
            }
            for row in choice.candidates
        ],
        "chosen": _text(choice.winner, attribute),
        "chosen_from": _source(choice.winner),
        "rule": choice.rule,
        "status": "open" if choice.rule == "manual" else "auto",
    }


def _text(row: Row, attribute: Attribute) -> str | None:
    values = [row[name] for name in attribute.lead if row[name] is not None]
    return ", ".join(_shown(value) for value in values) if values else None


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.isoformat() if isinstance(value, date) else str(value)
