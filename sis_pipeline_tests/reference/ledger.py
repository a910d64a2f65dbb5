"""What the difference between two days is called: who enrolled, left, was transferred, came back, was corrected.
Written from DESIGN 7, docs/failure-modes.md 15 to 23 and what `changes` promises; events of sections are
found in `seats`, and ids of events are not compared."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline_tests.reference.delivery import Delivery, Row
from sis_pipeline_tests.reference.stays import NEAR_DAYS, counterparts, is_open, place

LEFT = {"graduated": "graduate", "no_show": "no_show", "transferred": "withdraw", "withdrawn": "withdraw"}
SHOWN = ("school_id", "entry_date", "entry_code", "exit_date", "exit_code", "grade_level", "enrollment_type", "status")


@dataclass(frozen=True)
class Story:
    """One stay: as it is, as it was (None for a new one), and what shows that it is over."""

    number: int
    now: Row
    was: Row | None

    @property
    def opened(self) -> bool:
        return is_open(self.now) and (self.was is None or not is_open(self.was))

    @property
    def ended(self) -> bool:
        return not is_open(self.now) and (self.was is None or is_open(self.was))

    @property
    def why(self) -> str:
        return self.now["evidence"] or "explicit_exit"


@dataclass(frozen=True)
class Arrival:
    """Somebody at a school from a day on; `left`, where they were there before: when they had gone."""

    story: Story
    day: date
    left: date | None
    is_news: bool


def events(now: Delivery, before: Sequence[Row], after: Sequence[Row], first_loads: Collection[str]) -> list[Row]:
    was = {other: before[number] for number, other in counterparts(before, after).items()}
    of_student: dict[str, list[Story]] = defaultdict(list)
    for number, stay in enumerate(after):
        of_student[stay["student_id"]].append(Story(number, stay, was.get(number)))
    return [event for stories in of_student.values() for event in _events(now, stories, first_loads)]


def _events(now: Delivery, stories: Sequence[Story], first_loads: Collection[str]) -> list[Row]:
    """What happened to one student."""
    first = [it for it in stories if it.was is None and it.now["integration"] in first_loads]
    later = [it for it in stories if it.was is not None or it.now["integration"] not in first_loads]
    entries = [it for it in later if it.was is None and it.now["status"] != "no_show"]
    reopened = [it for it in later if it.was is not None and it.opened]
    exits = [it for it in later if it.ended]
    as_of = now.inputs.as_of

    transfers = list(_transfers(stories, entries, reopened, exits, as_of))
    entries, reopened = (_without(some, [arrival.story for _, arrival in transfers]) for some in (entries, reopened))
    exits = _without(exits, [one for one, _ in transfers])
    continued = list(_continued(entries, exits))
    entries = _without(entries, [other for _, other in continued])
    exits = _without(exits, [one for one, _ in continued])

    found = [_event(it, "enroll", it.now["entry_date"], "first_load") for it in first]
    found += [_event(it, _entry_kind(it, stories), it.now["entry_date"], "new_record") for it in entries]
    found += [_event(it, LEFT[it.now["status"]], it.now["exit_date"] or as_of, it.why) for it in exits]
    found += [_event(it, "re_enter", _returned(it, as_of), "field_change") for it in reopened]
    found += [_event(it, "amend", day, "field_change") for it in later if (day := _amended(it, as_of))]
    found += [
        _two(one, other.story, "transfer", other.day, one.why if one.ended else "new_record")
        for one, other in transfers
    ]
    found += [_two(one, other, "amend", other.now["entry_date"], one.why) for one, other in continued]
    return found


def _without(stories: Iterable[Story], used: Iterable[Story]) -> list[Story]:
    numbers = {it.number for it in used}
    return [it for it in stories if it.number not in numbers]


def grade_events(now: Delivery, before: Iterable[Row], after: Iterable[Row]) -> list[Row]:
    """Grades that changed while the year ran."""
    was = {row["student_id"]: row["grade_level"] for row in before}
    as_of = now.inputs.as_of
    runs = as_of < SchoolYear.parse(now.year).day_after
    return [
        {
            "student_id": row["student_id"],
            "kind": "grade_change",
            "effective_date": as_of,
            "school_id": row["school_id"],
            "before": json.dumps({"grade_level": was[row["student_id"]]}),
            "after": json.dumps({"grade_level": row["grade_level"]}),
            "evidence": "field_change",
            "integration": None,
        }
        for row in after
        if runs
        and row["grade_level"]
        and was.get(row["student_id"], row["grade_level"]) not in {None, row["grade_level"]}
    ]


def _been(it: Story, stories: Iterable[Story]) -> list[date]:
    """When the student had left the school before the stay began."""
    exits = [
        other.now["exit_date"]
        for other in stories
        if place(other.now) == place(it.now)
        and not is_open(other.now)
        and other.now["entry_date"] < it.now["entry_date"]
    ]
    return [day for day in exits if day and day <= it.now["entry_date"]]


def _entry_kind(it: Story, stories: Iterable[Story]) -> str:
    return "re_enter" if _been(it, stories) else "enroll"


def _transfers(
    stories: Sequence[Story], entries: Sequence[Story], reopened: Sequence[Story], exits: Sequence[Story], as_of: date
) -> Iterator[tuple[Story, Arrival]]:
    """An exit and an entry at two schools within two weeks, of which at least one is news. Who comes back was transferred
    from where they went when they left, or from where they leave at once, not from before."""
    gone = [it for it in exits if LEFT[it.now["status"]] == "withdraw"]
    gone += [it for it in stories if it.was and not is_open(it.now) and not is_open(it.was)]
    arrivals = [Arrival(it, it.now["entry_date"], max(_been(it, stories), default=None), True) for it in entries]
    arrivals += [Arrival(it, _returned(it, as_of), _gone_since(it), True) for it in reopened]
    arrivals += [
        Arrival(it, it.now["entry_date"], None, False)
        for it in stories
        if it.was and is_open(it.now) and is_open(it.was)
    ]
    pairs = [
        (abs((arrival.day - one.now["exit_date"]).days), one, arrival.story)
        for one in gone
        if one.now["exit_date"]
        for arrival in arrivals
        if _is_transfer(one, arrival)
    ]
    by_number = {arrival.story.number: arrival for arrival in arrivals}
    return ((one, by_number[came.number]) for one, came in _each_once(pairs))


def _each_once(pairs: Iterable[tuple[int, Story, Story]]) -> Iterator[tuple[Story, Story]]:
    """Of days between, exit and entry: each exit and entry once, nearest first; of several as near the entry that is
    primary, then the exit that is, then by school and entry date (written at `changes.each_once`)."""

    def order(pair: tuple[int, Story, Story]) -> tuple[Any, ...]:
        days, left, came = pair
        names = ("enrollment_type", "school_id", "entry_date")
        return days, *((came.now[name], left.now[name]) for name in names)

    used: set[tuple[str, int]] = set()
    for _, left, came in sorted(pairs, key=order):
        if not used & {("left", left.number), ("came", came.number)}:
            used |= {("left", left.number), ("came", came.number)}
            yield left, came


def _is_transfer(one: Story, arrival: Arrival) -> bool:
    stay, days = one.now, timedelta(NEAR_DAYS)
    went_there = arrival.left is None or (
        stay["entry_date"] >= arrival.left - days and stay["exit_date"] > arrival.left
    )
    at_once = one.ended and arrival.is_news and abs(arrival.day - stay["exit_date"]) <= timedelta(1)
    return (
        stay["school_id"] != arrival.story.now["school_id"]
        and arrival.day > stay["entry_date"]
        and (one.ended or arrival.is_news)
        and (went_there or at_once)
        and abs(arrival.day - stay["exit_date"]) <= days
    )


def _continued(entries: Sequence[Story], exits: Sequence[Story]) -> Iterator[tuple[Story, Story]]:
    """A row that ends and one that begins at the same school, the same or the next day: nobody left."""
    pairs = [
        ((came.now["entry_date"] - left.now["exit_date"]).days, left, came)
        for left in exits
        if left.was and LEFT[left.now["status"]] == "withdraw" and left.now["exit_date"]
        for came in entries
        if place(came.now) == place(left.now) and came.now["entry_date"] > left.now["entry_date"]
    ]
    return _each_once(pair for pair in pairs if pair[0] in {0, 1})


def _gone_since(it: Story) -> date | None:
    """When who comes back had left; a no-show had never been there."""
    return it.was["exit_date"] if it.was and it.was["status"] != "no_show" else None


def _returned(it: Story, as_of: date) -> date:
    """The day of a return: the entry, where that was moved to the exit or behind it, else the day on which it showed."""
    entry: date = it.now["entry_date"]
    was = it.was or it.now
    moved = was["exit_date"] is not None and entry > was["entry_date"] and entry >= was["exit_date"]
    return entry if moved else as_of


def _amended(it: Story, as_of: date) -> date | None:
    """The day that a correction of dates, codes, or of the reason of leaving is about."""
    if it.was is None or is_open(it.was) != is_open(it.now):
        return None
    corrected = any(it.now[name] != it.was[name] for name in ("entry_date", "exit_date", "entry_code", "exit_code"))
    reason = not is_open(it.now) and LEFT[it.now["status"]] != LEFT[it.was["status"]]
    if not (corrected or reason):
        return None
    changed = it.now["exit_date"] if it.now["exit_date"] != it.was["exit_date"] else it.now["entry_date"]
    return changed or as_of


def _event(it: Story, kind: str, day: date, evidence: str) -> Row:
    return _row(it.now, kind, day, evidence, before=_shown(it.was), after=_shown(it.now))


def _two(left: Story, came: Story, kind: str, day: date, evidence: str) -> Row:
    """An event of two stays tells both, as they were and as they are."""
    before = {**(_shown(left.was) or _shown(left.now) or {}), "other_stay": _shown(came.was)}
    after = {**(_shown(came.now) or {}), "other_stay": _shown(left.now)}
    return _row(came.now, kind, day, evidence, before=before, after=after)


def _row(
    stay: Row, kind: str, day: date, evidence: str, *, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> Row:
    return {
        "student_id": stay["student_id"],
        "kind": kind,
        "effective_date": day,
        "school_id": stay["school_id"],
        "before": before and json.dumps(before),
        "after": after and json.dumps(after),
        "evidence": evidence,
        "integration": stay["integration"],
    }


def _shown(stay: Row | None) -> dict[str, str | None] | None:
    return stay and {name: None if stay[name] is None else str(stay[name]) for name in SHOWN}
