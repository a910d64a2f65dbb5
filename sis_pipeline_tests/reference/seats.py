"""Who sits in which section: seats reported, seats that nobody reports any more, and what their difference is called.
Written from docs/failure-modes.md 2 and 24 and what `enrollments` and `changes` promise; who teaches is not played here."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date
from typing import Any

from sis_pipeline.roster.ids import derived_id
from sis_pipeline.roster.model import MERGED
from sis_pipeline_tests.reference.delivery import Delivery, Fates, Key, Row, key_of
from sis_pipeline_tests.reference.stays import is_open

COLUMNS = MERGED["section_enrollments"].names


def seat_key(seat: Mapping[str, Any]) -> tuple[str, str]:
    return seat["section_id"], seat["person_id"]


def sections(now: Delivery) -> dict[str, Row]:
    """The sections of now, and those published before, by id: school, first day, day after the last."""
    found = {row["section_id"]: row for row in now.existing("sections")}
    runs: dict[Key, list[Row]] = defaultdict(list)
    for row in found.values():
        runs[key_of(row)].append(row)
    sessions = {key_of(row): row for row in now.all["academic_sessions"] if row["record_status"] == "active"}
    # a section of which every session is another year's is that year's
    for row in now.active("sections"):
        school = now.school_of.get((row["integration"], row["school_sis_id"]))
        named = [(row["integration"], one) for one in json.loads(row["session_sis_ids"] or "[]")]
        years = {sessions[one]["school_year"] if one in sessions else now.year for one in named}
        if named and now.year not in years:
            continue
        start = min((sessions[one]["start_date"] for one in named if one in sessions), default=None)
        end = max((sessions[one]["end_date"] for one in named if one in sessions), default=None)
        if school:
            section = _section_id(now, key_of(row), start, runs[key_of(row)])
            about = {"section_id": section, "school_id": school, "start_date": start, "end_date": end}
            found[section] = {"integration": row["integration"], "sis_id": row["sis_id"], **about}
    return found


def _section_id(now: Delivery, key: Key, start: date | None, runs: Sequence[Row]) -> str:
    """A section keeps its id; what begins when all that had the SIS's id are over is another one."""
    going_on = [run for run in runs if not (run["end_date"] and start and run["end_date"] <= start)]
    if going_on:
        latest = max(going_on, key=lambda run: (run["start_date"] or date.min, run["section_id"]))
        return str(latest["section_id"])
    again = (str(start),) if runs else ()
    return derived_id("section", now.district, now.year, *key, *again)


def published_seats(now: Delivery, renamed: Mapping[str, str]) -> list[Row]:
    found: dict[Any, Row] = {}
    for seat in now.existing("section_enrollments"):
        if seat["role"] == "student":
            mine = seat | {"person_id": renamed.get(seat["person_id"], seat["person_id"])}
            found.setdefault(seat_key(mine), mine)
    return list(found.values())


def seats(
    now: Delivery,
    students: Mapping[Key, str],
    before: Sequence[Row],
    known: Mapping[str, Row],
    stays: Iterable[Row],
    *,
    spared: Iterable[Key],
) -> tuple[list[Row], Collection[Any]]:
    """The seats of the year with `evidence`, and the keys of those as before whose end has to wait for a person."""
    newest: dict[Key, str] = {}
    for section in sorted(known.values(), key=lambda row: (row["start_date"] or date.min, row["section_id"])):
        newest[key_of(section)] = section["section_id"]
    placed = []
    for row in now.active("section_enrollments"):
        section = newest.get((row["integration"], row["section_sis_id"]))
        student = students.get((row["integration"], row["person_sis_id"]))
        if row["role"] == "student" and section and student:
            whole = row | {"section_id": section, "person_id": student, "district": now.district}
            placed.append({name: whole.get(name, now.year) for name in COLUMNS})
    fates = now.fates("section_enrollments", map(key_of, placed), spared=spared)
    reported = _one_each(placed + [seat for seat in before if fates.of(seat) == "carried"])
    told = set(map(seat_key, reported))
    target = [seat | {"evidence": None} for seat in reported]
    target += [_without_report(now, seat, fates) for seat in before if seat_key(seat) not in told]
    return _guarded(now, before, target, known, {stay["student_id"] for stay in stays if is_open(stay)})


def _one_each(reports: Iterable[Row]) -> list[Row]:
    """Of several reports of a seat the one that goes on longest, then the one that began last."""
    found: dict[Any, Row] = {}
    for report in sorted(reports, key=lambda it: it["sis_id"]):
        other = found.get(seat_key(report))
        if other is None or _span(report) > _span(other):
            found[seat_key(report)] = report
    return list(found.values())


def _span(seat: Row) -> tuple[date, date]:
    return seat["end_date"] or date.max, seat["begin_date"] or date.min


def never_begins(seat: Row) -> bool:
    return bool(seat["begin_date"] and seat["end_date"] and seat["end_date"] <= seat["begin_date"])


def _without_report(now: Delivery, seat: Row, fates: Fates) -> Row:
    """Ended on the snapshot's day if it still ran and its end is proven."""
    runs = seat["end_date"] is None or (seat["end_date"] > now.inputs.as_of and not never_begins(seat))
    fate = fates.of(seat)
    if not runs or fate == "carried":
        return seat | {"evidence": None}
    end = max(day for day in (now.taken_on(seat["integration"]), seat["begin_date"]) if day)
    return seat | {"end_date": end, "evidence": "tombstone" if fate == "tombstone" else "absence"}


def _guarded(
    now: Delivery, before: Sequence[Row], target: Sequence[Row], known: Mapping[str, Row], enrolled: Collection[str]
) -> tuple[list[Row], Collection[Any]]:
    """Seats count while their section runs; the absence of one who is still enrolled is held above the school's limit."""
    as_of = now.inputs.as_of

    def is_taken(seat: Row) -> bool:
        section = known.get(seat["section_id"])
        return (
            section is not None
            and (seat["end_date"] is None or seat["end_date"] > as_of)
            and (section["start_date"] is None or section["start_date"] <= as_of)
            and (section["end_date"] is None or section["end_date"] > as_of)
        )

    def school(seat: Row) -> str:
        return str(known[seat["section_id"]]["school_id"])

    taken = {seat_key(seat): seat for seat in before if is_taken(seat)}
    absent = [
        taken[seat_key(seat)]
        for seat in target
        if seat["evidence"] == "absence" and seat_key(seat) in taken and seat["person_id"] in enrolled
    ]
    active, left = Counter(map(school, taken.values())), Counter(map(school, filter(is_taken, target)))
    missing = Counter(map(school, absent))
    limits = now.inputs.thresholds
    waits = {one for one, number in missing.items() if number > limits.seats(active[one], one) or not left[one]} | (
        {*missing} if not left.total() else set()
    )
    held = {seat_key(seat): seat | {"evidence": None} for seat in absent if school(seat) in waits}
    return [held.get(seat_key(seat), seat) for seat in target], held.keys()


def events(
    now: Delivery,
    before: Iterable[Row],
    after: Iterable[Row],
    known: Mapping[str, Row],
    first_loads: Collection[str],
) -> list[Row]:
    """A seat that is new, or ends earlier than it did and than its section. One that never begins was never taken."""
    was_seat = {seat_key(seat): seat for seat in before}
    found = []
    for seat in after:
        was = was_seat.get(seat_key(seat))
        taken_before = was is not None and not never_begins(was)
        is_first = was is None and seat["integration"] in first_loads
        if not is_first and not never_begins(seat) and (not taken_before or _again(now, was, seat)):
            found.append(_event(now, known, seat, was, "section_add"))
        section_end = known[seat["section_id"]]["end_date"]
        if taken_before and _is_earlier(seat, was) and (section_end is None or seat["end_date"] < section_end):
            found.append(_event(now, known, seat, was, "section_drop"))
    return found


def _again(now: Delivery, was: Row | None, seat: Row) -> bool:
    """Taken again after it had ended."""
    if was is None or was["end_date"] is None or was["end_date"] > now.inputs.as_of:
        return False
    return seat["end_date"] is None or seat["end_date"] > was["end_date"]


def _is_earlier(seat: Row, was: Row | None) -> bool:
    if was is None or seat["end_date"] is None:
        return False
    return was["end_date"] is None or seat["end_date"] < was["end_date"]


def _event(now: Delivery, known: Mapping[str, Row], seat: Row, was: Row | None, kind: str) -> Row:
    added = kind == "section_add"
    return {
        "student_id": seat["person_id"],
        "kind": kind,
        "effective_date": (seat["begin_date"] if added else seat["end_date"]) or now.inputs.as_of,
        "school_id": known[seat["section_id"]]["school_id"],
        "section_id": seat["section_id"],
        "before": was and _shown(was),
        "after": _shown(seat),
        "evidence": "new_record" if added else seat["evidence"] or "explicit_exit",
        "integration": seat["integration"],
    }


def _shown(seat: Row) -> str:
    return json.dumps({name: seat[name] and str(seat[name]) for name in ("begin_date", "end_date")})
