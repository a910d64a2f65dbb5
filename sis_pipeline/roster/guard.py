"""The guard: removals too large to believe wait for a person while everything else flows on.
Finding removals belongs to `enrollments`; showing, releasing and discarding holds to the store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

import polars as pl

from sis_pipeline.roster.ids import name
from sis_pipeline.roster.presence import ABSENT
from sis_pipeline.roster.thresholds import Thresholds

HoldKind = Literal["absence", "explicit_exit"]
Entity = Literal["enrollments", "section_enrollments", "staff", "academic_sessions", "courses", "sections"]
Key = tuple[str, ...]

WEEK_DAYS = 7
OPENING_DAYS = 30
"""For how long after a school's declared opening its students may be missing elsewhere without being held."""
WAITS = "a hold that waits for a person, whatever its number"


@dataclass(frozen=True, slots=True)
class Part:
    """Removals of a hold at one school and of one kind; `change` is the kind that the ledger would give them."""

    school_id: str | None
    change: str
    removals: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Removals that wait. `fingerprint` names exactly this set of removals; releasing it lets these pass, not others.

    `keys` come part by part, in the order of `parts`. `until`: the day on which the reason to hold them is over by
    itself, ISO. `kept`: the stored hold, by its fingerprint, of which these are what is still missing, where a person
    keeps it waiting whatever its number.
    """

    fingerprint: str
    kind: HoldKind
    entity: Entity
    scope: Literal["district", "school"]
    school_id: str | None
    removals: int
    active_before: int
    limit: int
    reason: str
    keys: tuple[Key, ...]
    """enrollments: (student_id, school_id, entry_date); section_enrollments: (section_id, person_id, role); else the id."""
    parts: tuple[Part, ...] = ()
    until: str | None = None
    kept: str | None = None


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a person said about removals that were held, by their keys."""

    fingerprint: str
    kind: HoldKind
    entity: Entity
    keys: frozenset[Key]

    @classmethod
    def about(cls, hold: Hold) -> Ruling:
        return cls(hold.fingerprint, hold.kind, hold.entity, frozenset(hold.keys))


@dataclass(frozen=True)
class Rulings:
    """What the guard goes by beside the thresholds. `released`: removals let through. `waiting`: removals that wait
    until a person decides, whatever their number. `closed`, `opened`: schools declared closed, or new, by now.
    `removed_lately`: enrollments that ended by absence within the last seven days and that nobody vouched for."""

    released: tuple[Ruling, ...] = ()
    waiting: tuple[Ruling, ...] = ()
    closed: frozenset[str] = frozenset()
    opened: frozenset[str] = frozenset()
    removed_lately: int = 0


@dataclass(frozen=True)
class Question:
    """What the guard is asked. `removals`: key columns, `school_id`, `evidence`, `change`; one row per stay or seat that
    would go. `before`, `after`: school_id, active (count); `after` as it would be with all removals. A school that was
    empty or unknown before sets its baseline: nothing of it can go. `frozen`: school -> until when it is."""

    entity: Entity
    key: Sequence[str]
    removals: pl.DataFrame
    before: pl.DataFrame
    after: pl.DataFrame
    frozen: Mapping[str, date] = field(default_factory=dict)


def guard(question: Question, thresholds: Thresholds, rulings: Rulings) -> tuple[Hold, ...]:
    """The removals that have to wait.

    What a person let through goes and what a person keeps waiting waits; only the rest is judged. Absences of a frozen
    school are held, those of other schools for the whole district above its limits or when nothing would be left, else
    school by school above the school's limit or when a school would be left empty. Explicit exits have a limit of
    their own. The district limits count students; seats are held by school only, by limits of their own, or when none
    would be left; staff have a limit of their own for the district; of other entities nothing is held but the last.
    """
    if question.removals.is_empty():
        return ()
    return tuple(_holds(question, thresholds, rulings))


def _holds(question: Question, thresholds: Thresholds, rulings: Rulings) -> Iterator[Hold]:
    rest = question.removals
    for ruling in rulings.released:
        rest = rest.filter(~_ruled(question, ruling, rest))
    active = int(question.before["active"].sum())
    for ruling in rulings.waiting:
        waits = _ruled(question, ruling, rest)
        still, rest = rest.filter(waits), rest.filter(~waits)
        if still.height:
            kept = ruling.fingerprint
            yield _hold(question, still, ruling.kind, None, active=active, limit=0, reason=WAITS, kept=kept)
    absences, exits = rest.filter(pl.col("evidence") == ABSENT), rest.filter(pl.col("evidence") != ABSENT)
    frozen = pl.col("school_id").is_in(list(question.frozen)).fill_null(value=False)
    yield from _frozen_holds(question, absences.filter(frozen))
    yield from _absence_holds(question, absences.filter(~frozen), thresholds, rulings.removed_lately)
    limit = thresholds.exits(active)
    if question.entity == "enrollments" and exits.height > limit:
        why = "more explicit exits than the limit"
        yield _hold(question, exits, "explicit_exit", None, active=active, limit=limit, reason=why)


def _ruled(question: Question, ruling: Ruling, removals: pl.DataFrame) -> pl.Series:
    """Which of the removals a person spoke about; an absence that has become an explicit exit is another removal."""
    if ruling.entity != question.entity:
        return pl.repeat(value=False, n=removals.height, dtype=pl.Boolean, eager=True)
    spoken = pl.Series([key in ruling.keys for key in _keys(question, removals).iter_rows()], dtype=pl.Boolean)
    return spoken & ((removals["evidence"] == ABSENT) == (ruling.kind == "absence"))


def _frozen_holds(question: Question, absences: pl.DataFrame) -> Iterator[Hold]:
    """One hold per day on which schools thaw."""
    active = dict(question.before.select("school_id", "active").iter_rows())
    for until in sorted(set(question.frozen.values())):
        schools = sorted(school for school, day in question.frozen.items() if day == until)
        removals = absences.filter(pl.col("school_id").is_in(schools))
        if removals.height:
            here = removals["school_id"].unique().to_list()
            yield _hold(
                question,
                removals,
                "absence",
                here[0] if len(here) == 1 else None,
                active=sum(active.get(school, 0) for school in here),
                limit=0,
                reason=f"absences between two school years, until {until}",
                until=until,
            )


def _absence_holds(
    question: Question, absences: pl.DataFrame, thresholds: Thresholds, removed_lately: int
) -> Iterator[Hold]:
    active, left = int(question.before["active"].sum()), int(question.after["active"].sum())
    if not absences.height:
        return
    found = _district_limit(question, absences.height, thresholds, removed_lately, active=active, left=left)
    if found:
        limit, why = found
        yield _hold(question, absences, "absence", None, active=active, limit=limit, reason=why)
        return  # a person who releases the whole has seen every school's share of it
    if question.entity not in {"enrollments", "section_enrollments"}:
        return
    counts = question.before.join(question.after, on="school_id", how="left", suffix="_after")
    sizes = {
        school: (was, left or 0)
        for school, was, left in counts.select("school_id", "active", "active_after").iter_rows()
    }
    limit_of = thresholds.school if question.entity == "enrollments" else thresholds.seats
    for (school,), removals in sorted(absences.group_by("school_id"), key=lambda part: str(part[0])):
        was, left = sizes.get(school, (0, 0))
        limit = limit_of(was, str(school))
        if removals.height > limit or left == 0:
            why = "the school would be left empty" if left == 0 else "more absences than the school's limit"
            yield _hold(question, removals, "absence", str(school), active=was, limit=limit, reason=why)


def _district_limit(
    question: Question, absences: int, thresholds: Thresholds, removed_lately: int, *, active: int, left: int
) -> tuple[int, str] | None:
    """The limit of the district that the absences exceed, and why; None where they exceed none."""
    limit = thresholds.staff(active) if question.entity == "staff" else thresholds.district(active)
    week = thresholds.week(active + removed_lately)
    if left == 0:
        return limit, "nothing would be left"
    if question.entity not in {"enrollments", "staff"}:
        return None
    if absences > limit:
        return limit, "more absences than the district's limit"
    if question.entity == "enrollments" and absences + removed_lately > week:
        return week, f"more absences within {WEEK_DAYS} days than the district's limit"
    return None


def _hold(
    question: Question,
    removals: pl.DataFrame,
    kind: HoldKind,
    school: str | None,
    *,
    active: int,
    limit: int,
    reason: str,
    until: date | None = None,
    kept: str | None = None,
) -> Hold:
    rows = _keys(question, removals).with_columns(_school=removals["school_id"], _change=removals["change"])
    rows = rows.sort("_school", "_change", *rows.columns[: len(question.key)], nulls_last=True)
    parts = rows.group_by("_school", "_change", maintain_order=True).agg(removals=pl.len().cast(pl.Int64))
    keys = tuple(rows.drop("_school", "_change").iter_rows())
    scope: Literal["district", "school"] = "district" if school is None else "school"
    return Hold(
        fingerprint=fingerprint(question.entity, kind, school, keys),
        kind=kind,
        entity=question.entity,
        scope=scope,
        school_id=school,
        removals=len(keys),
        active_before=active,
        limit=limit,
        reason=reason,
        keys=keys,
        parts=tuple(Part(*part) for part in parts.iter_rows()),
        until=until.isoformat() if until else None,
        kept=kept,
    )


def _keys(question: Question, removals: pl.DataFrame) -> pl.DataFrame:
    return removals.select(pl.col(column).cast(pl.String) for column in question.key)


def fingerprint(entity: str, kind: str, school: str | None, keys: Sequence[Key]) -> str:
    """Names a set of removals, in whatever order they come."""
    named = "\n".join(name(*key) for key in sorted(keys))
    return hashlib.sha256(name(entity, kind, school, named).encode()).hexdigest()[:32]


def held_keys(holds: Sequence[Hold], key: Sequence[str], like: pl.DataFrame) -> pl.DataFrame:
    """The keys of all holds as a frame, dates where the columns of `like` are dates."""
    rows = [row for hold in holds for row in hold.keys]
    text = pl.DataFrame(rows, schema=dict.fromkeys(key, pl.String), orient="row")
    dates = [name for name in key if like.schema[name] == pl.Date]
    return text.with_columns(pl.col(dates).str.to_date()).unique()
