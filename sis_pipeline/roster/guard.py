"""The guard: removals too large to believe wait for a person while everything else flows on.
Finding removals belongs to `enrollments`; showing, releasing and discarding holds to the store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from sis_pipeline.roster.ids import name
from sis_pipeline.roster.presence import ABSENT

HoldKind = Literal["absence", "explicit_exit"]
Entity = Literal["enrollments", "section_enrollments"]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How much may go at once. A share is of what was active before; a limit is exceeded by going above it."""

    district_floor: int = 2
    district_share: float = 0.02
    district_cap: int = 250
    school_floor: int = 2
    school_share: float = 0.10
    exit_floor: int = 10
    exit_share: float = 0.05

    def district(self, active: int) -> int:
        return int(max(self.district_floor, min(self.district_share * active, self.district_cap)))

    def school(self, active: int) -> int:
        return int(max(self.school_floor, self.school_share * active))

    def exits(self, active: int) -> int:
        return int(max(self.exit_floor, self.exit_share * active))


@dataclass(frozen=True, slots=True)
class Hold:
    """Removals that wait. `fingerprint` names exactly this set of removals; releasing it lets these pass, not others."""

    fingerprint: str
    kind: HoldKind
    entity: Entity
    scope: Literal["district", "school"]
    school_id: str | None
    removals: int
    active_before: int
    limit: int
    reason: str
    keys: tuple[tuple[str, ...], ...]
    """enrollments: (student_id, school_id, entry_date); section_enrollments: (section_id, person_id, role)."""


@dataclass(frozen=True)
class Question:
    """What the guard is asked. `removals`: key columns, `school_id`, `evidence`; one row per stay or seat that would
    go. `before`, `after`: school_id, active (count); `after` as it would be with all removals. A school that was
    empty or unknown before sets its baseline: nothing of it can go."""

    entity: Entity
    key: Sequence[str]
    removals: pl.DataFrame
    before: pl.DataFrame
    after: pl.DataFrame


def guard(question: Question, thresholds: Thresholds, released: frozenset[str]) -> tuple[Hold, ...]:
    """The removals that have to wait.

    Absences are held for the whole district above its limit or when nothing would be left, else school by school
    above the school's limit or when a school would be left empty. Explicit exits have a limit of their own. The
    district limits count students; seats are held by school only, or when none would be left.
    """
    absences = question.removals.filter(pl.col("evidence") == ABSENT)
    exits = question.removals.filter(pl.col("evidence") != ABSENT)
    found = [*_absence_holds(question, absences, thresholds)]
    active = int(question.before["active"].sum())
    limit = thresholds.exits(active)
    if question.entity == "enrollments" and exits.height > limit:
        found.append(
            _hold(
                question,
                exits,
                "explicit_exit",
                school=None,
                active=active,
                limit=limit,
                reason="more explicit exits than the limit",
            )
        )
    return tuple(hold for hold in found if hold.fingerprint not in released)


def _absence_holds(question: Question, absences: pl.DataFrame, thresholds: Thresholds) -> Iterator[Hold]:
    active, left = int(question.before["active"].sum()), int(question.after["active"].sum())
    limit = thresholds.district(active)
    emptied = bool(absences.height) and left == 0
    if emptied or (question.entity == "enrollments" and absences.height > limit):
        why = "nothing would be left" if emptied else "more absences than the district's limit"
        yield _hold(question, absences, "absence", school=None, active=active, limit=limit, reason=why)
        return  # a person who releases the whole has seen every school's share of it
    counts = question.before.join(question.after, on="school_id", how="left", suffix="_after")
    sizes = {
        school: (was, left or 0)
        for school, was, left in counts.select("school_id", "active", "active_after").iter_rows()
    }
    for (school,), removals in sorted(absences.group_by("school_id"), key=lambda part: str(part[0])):
        was, left = sizes.get(school, (0, 0))
        limit = thresholds.school(was)
        if removals.height > limit or left == 0:
            why = "the school would be left empty" if left == 0 else "more absences than the school's limit"
            yield _hold(question, removals, "absence", school=str(school), active=was, limit=limit, reason=why)


def _hold(
    question: Question,
    removals: pl.DataFrame,
    kind: HoldKind,
    *,
    school: str | None,
    active: int,
    limit: int,
    reason: str,
) -> Hold:
    keys = tuple(sorted(removals.select(pl.col(column).cast(pl.String) for column in question.key).iter_rows()))
    named = "\n".join(name(*key) for key in keys)
    digest = hashlib.sha256(name(question.entity, kind, school, named).encode()).hexdigest()[:32]
    scope: Literal["district", "school"] = "district" if school is None else "school"
    return Hold(digest, kind, question.entity, scope, school, len(keys), active, limit, reason, keys)


def held_keys(holds: Sequence[Hold], key: Sequence[str], like: pl.DataFrame) -> pl.DataFrame:
    """The keys of all holds as a frame, dates where the columns of `like` are dates."""
    rows = [row for hold in holds for row in hold.keys]
    text = pl.DataFrame(rows, schema=dict.fromkeys(key, pl.String), orient="row")
    dates = [name for name in key if like.schema[name] == pl.Date]
    return text.with_columns(pl.col(dates).str.to_date()).unique()
