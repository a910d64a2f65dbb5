"""Who is enrolled where: the systems' reports of one stay made one, its status on the day, and what became of stays that
nobody reports any more. Written from DESIGN 7 and docs/failure-modes.md 15 to 23; withdrawals, declared schools and the
freeze are not played here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any

from sis_pipeline.roster.model import ENTRY_DATE_SOURCES, MERGED
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline_tests.reference.delivery import Delivery, Fates, Key, Row, key_of

OPEN = {"pre_registered", "active"}
COLUMNS = MERGED["enrollments"].names
NEAR_DAYS = 14
"""Entries this near are one stay told by two systems; an exit and an entry this near are one transfer."""


def is_open(stay: Mapping[str, Any]) -> bool:
    return stay["status"] in OPEN


def place(stay: Mapping[str, Any]) -> tuple[str, str]:
    return stay["student_id"], stay["school_id"]


def stay_key(stay: Mapping[str, Any]) -> tuple[str, str, date]:
    return stay["student_id"], stay["school_id"], stay["entry_date"]


def published_stays(now: Delivery, renamed: Mapping[str, str]) -> list[Row]:
    """The stays published before, as if students merged since had always been one: of two of them that become one, the
    one that is open."""
    found: dict[Any, Row] = {}
    for stay in sorted(now.existing("enrollments"), key=lambda stay: not is_open(stay)):
        mine = stay | {"student_id": renamed.get(stay["student_id"], stay["student_id"])}
        found.setdefault(stay_key(mine), mine)
    return list(found.values())


def placed_reports(now: Delivery, students: Mapping[Key, str]) -> list[Row]:
    """The enrollment records of the year that lead to a student and a school."""
    reports = []
    for row in now.active("enrollments"):
        student = students.get((row["integration"], row["student_sis_id"]))
        school = now.school_of.get((row["integration"], row["school_sis_id"]))
        if student and school:
            known = row | {"student_id": student, "school_id": school, "district": now.district}
            reports.append({name: known[name] for name in COLUMNS})
    return reports


def enrollment_fates(now: Delivery, reports: Iterable[Row], spared: Iterable[Key]) -> Fates:
    """The enrollments of a student who is deleted are deleted too."""
    gone = {key_of(row) for row in now.all["students"] if row["record_status"] == "to_be_deleted"}
    deleted = [key_of(row) for row in now.all["enrollments"] if (row["integration"], row["student_sis_id"]) in gone]
    return now.fates("enrollments", map(key_of, reports), deleted, spared)


def combined(now: Delivery, reports: Sequence[Row]) -> list[Row]:
    """One stay of all its reports: the best system speaks for it, but the entry is the most exactly known one. A report
    belongs to the nearest stay that a better system told; of two as near to the later (written at `combine_reports`)."""
    stays: list[Row] = []
    entries: list[list[Row]] = []
    at: dict[Any, list[int]] = defaultdict(list)
    systems = sorted({row["integration"] for row in reports}, key=lambda name: (now.priority(name), name))
    for system in systems:
        fresh = []
        for report in _one_per_entry([row for row in reports if row["integration"] == system]):
            near = [
                (abs(day - report["entry_date"]).days, -day.toordinal(), number)
                for number in at[place(report)]
                for day in [stays[number]["entry_date"]]
            ]
            days, _, number = min(near, default=(NEAR_DAYS + 1, 0, -1))
            if days <= NEAR_DAYS:
                entries[number].append(report)
            else:
                fresh.append(report)
        for report in fresh:
            at[place(report)].append(len(stays))
            stays.append(report)
            entries.append([report])
    found: dict[Any, Row] = {}
    for stay, told in zip(stays, entries, strict=True):
        best = min(told, key=lambda report: ENTRY_DATE_SOURCES.index(report["entry_date_source"]))
        whole = stay | {name: best[name] for name in ("entry_date", "entry_date_source", "entry_code")}
        found.setdefault(stay_key(whole), whole)
    return list(found.values())


def _one_per_entry(reports: Sequence[Row]) -> list[Row]:
    """Of one system's reports with one entry the open one, then the longest, then the first by its id."""
    found: dict[Any, Row] = {}
    for report in sorted(
        reports,
        key=lambda it: (it["entry_date"], not is_open(it), -(it["exit_date"] or date.max).toordinal(), it["sis_id"]),
    ):
        found.setdefault(stay_key(report), report)
    return list(found.values())


def day_after_year(now: Delivery) -> dict[str | None, date]:
    """The first day after the school year, by school, and under None for schools without a session of their own."""
    ends: dict[str | None, list[date]] = defaultdict(list)
    for session in now.active("academic_sessions"):
        if session["kind"] == "school_year":
            ends[None].append(session["end_date"])
            if school := now.school_of.get((session["integration"], session["school_sis_id"])):
                ends[school].append(session["end_date"])
    general = {None: SchoolYear.parse(now.year).day_after}
    return general | {school: max(days) for school, days in ends.items()}


def settled(stay: Row, as_of: date, over: Mapping[str | None, date]) -> Row:
    """What the system says, corrected by the dates: judged today, or on the school's last day if that was before."""
    day = min(as_of, over.get(stay["school_id"], over[None]) - timedelta(1))
    entry, exit_date = stay["entry_date"], stay["exit_date"]
    if exit_date and exit_date <= entry:
        status = "no_show"
    elif not is_open(stay):
        status = stay["status"]
    elif exit_date and exit_date <= day:
        status = "withdrawn"
    elif entry > day:
        status = "pre_registered"
    else:
        status = stay["status"]
    return stay | {"status": status}


def counterparts(before: Sequence[Row], after: Sequence[Row]) -> dict[int, int]:
    """Which stay of before is which of now: by student, school and entry; by record, at the same school; then what is
    left of a student at a school in order, if the earlier had not ended by the later's entry."""
    old, new = dict(enumerate(before)), dict(enumerate(after))
    found: dict[int, int] = {}

    def pair(number: int, other: int) -> None:
        found[number] = other
        del old[number], new[other]

    for name in (stay_key, lambda stay: (*place(stay), *key_of(stay))):
        there = {name(stay): number for number, stay in new.items()}
        for number, stay in list(old.items()):
            other = there.get(name(stay))
            if other in new:
                pair(number, other)
    queues: dict[Any, list[list[int]]] = defaultdict(lambda: [[], []])
    for side, stays in enumerate((old, new)):
        for number in sorted(stays, key=lambda number: stays[number]["entry_date"]):
            queues[place(stays[number])][side].append(number)
    for lasts, nexts in queues.values():
        for number, other in zip(lasts, nexts, strict=False):
            if old[number]["exit_date"] is None or new[other]["entry_date"] < old[number]["exit_date"]:
                pair(number, other)
    return found


def carried_over(before: Sequence[Row], delivered: Sequence[Row], fates: Fates) -> list[Row]:
    """The stays of before of which nothing was said. What a system says now stands for what it said of that stay before,
    under whatever id, if the entries are at most two weeks apart; not for what a row says that is there and unreadable."""
    kept = []
    for system in {stay["integration"] for stay in before}:
        mine, told = ([row for row in rows if row["integration"] == system] for rows in (before, delivered))
        told = _one_per_entry(told)
        anew = counterparts(mine, told)
        for number, stay in enumerate(mine):
            other = told[anew[number]] if number in anew else None
            is_told = other and abs(other["entry_date"] - stay["entry_date"]) <= timedelta(NEAR_DAYS)
            if fates.of(stay) == "carried" and (fates.is_there(stay) or not is_told):
                kept.append(stay)
    return kept


def vouched(
    now: Delivery, records: Iterable[Row], previous: Iterable[Row], students: Mapping[Key, str]
) -> set[tuple[str, str]]:
    """Student and school of the records whose system may merely have left an enrollment there unsaid: it said nothing of the
    student, or its reading is not complete. Who says that the student left, or deletes the enrollment, vouches for nobody."""
    deleted = {
        (row["integration"], students.get((row["integration"], row["student_sis_id"])), now.school_of.get((row["integration"], row["school_sis_id"])))
        for row in now.all["enrollments"]
        if row["record_status"] == "to_be_deleted" and row["school_year"] == now.year
    }  # fmt: skip
    parts = now.inputs.integrations
    complete = {name for name, part in parts.items() if part.completeness == "complete"}
    unsaid = [row for row in previous if row["fate"] == "carried"]
    unsaid += [row for row in records if row["integration"] not in complete]
    return {
        place(row)
        for row in unsaid
        if row["enrollment_status"] in {None, *OPEN} and (row["integration"], *place(row)) not in deleted
    }


def with_missing(
    now: Delivery,
    stays: Sequence[Row],
    before: Sequence[Row],
    fates: Fates,
    *,
    vouched: Collection[tuple[str, str]],
    over: Mapping[str | None, date],
) -> list[Row]:
    """The stays reported, and those of before that nobody reports: ended if that is proven, else as they were."""
    reported = counterparts(before, stays)
    target = [stay | {"evidence": None} for stay in stays]
    for number, stay in enumerate(before):
        if number in reported:
            continue
        fate, taken_on = fates.of(stay), now.taken_on(stay["integration"])
        in_year = taken_on is not None and taken_on < over.get(stay["school_id"], over[None])
        believed = fate != "carried" and not (fate == "absence" and place(stay) in vouched)
        if is_open(stay) and in_year and believed:
            target.append(_ended(stay, taken_on) | {"evidence": "tombstone" if fate == "tombstone" else "absence"})
        else:
            target.append(stay | {"evidence": None})
    return target


def _ended(stay: Row, day: date) -> Row:
    began = stay["entry_date"] < day
    return stay | {
        "exit_date": day if began else stay["entry_date"],
        "exit_code": None,
        "status": "withdrawn" if began else "no_show",
    }


def guarded(now: Delivery, before: Sequence[Row], target: Sequence[Row]) -> tuple[list[Row], set[Any]]:
    """The stays with those as before whose end has to wait for a person, and the keys of these."""
    ends = [
        (number, other, target[other]["evidence"] or "explicit_exit")
        for number, other in counterparts(before, target).items()
        if is_open(before[number]) and not is_open(target[other])
    ]
    active, left = (Counter(stay["school_id"] for stay in stays if is_open(stay)) for stays in (before, target))
    absent = [end for end in ends if end[2] == "absence"]
    exits = [end for end in ends if end[2] != "absence"]
    limits, lately = now.inputs.thresholds, now.inputs.rulings.removed_lately
    total = active.total()
    held = []
    too_many = len(absent) > limits.district(total) or len(absent) + lately > limits.week(total + lately)
    if absent and (too_many or not left.total()):
        held = absent
    else:
        for school in {before[number]["school_id"] for number, _, _ in absent}:
            here = [end for end in absent if before[end[0]]["school_id"] == school]
            if len(here) > limits.school(active[school], school) or not left[school]:
                held += here
    if len(exits) > limits.exits(total):
        held = held + exits
    waiting = {other for _, other, _ in held}
    kept = [before[number] | {"evidence": None} for number, _, _ in held]
    rest = [stay for other, stay in enumerate(target) if other not in waiting]
    return rest + kept, {stay_key(before[number]) for number, _, _ in held}


def with_transfers(stays: Sequence[Row]) -> list[Row]:
    """Who left and came to another school of the district within two weeks either way was transferred."""
    of_student = _of_student(stays)

    def goes_on(stay: Row) -> bool:
        return any(
            other["school_id"] != stay["school_id"]
            and other["status"] != "no_show"
            and other["entry_date"] > stay["entry_date"]
            and abs(other["entry_date"] - stay["exit_date"]) <= timedelta(NEAR_DAYS)
            for other in of_student[stay["student_id"]]
        )

    return [
        stay | {"status": "transferred"}
        if stay["status"] == "withdrawn" and stay["exit_date"] and goes_on(stay)
        else stay
        for stay in stays
    ]


def with_one_primary(now: Delivery, stays: Sequence[Row]) -> list[Row]:
    """Of a student's active stays the one that its system calls primary, of the best system, the latest, is primary."""

    def rank(stay: Row) -> tuple[Any, ...]:
        system = stay["integration"]
        is_second = stay["enrollment_type"] != "primary"
        return is_second, now.priority(system), system, -stay["entry_date"].toordinal(), stay["school_id"]

    active = _of_student(stay for stay in stays if stay["status"] == "active")
    first = {student: stay_key(min(mine, key=rank)) for student, mine in active.items()}
    return [
        stay | {"enrollment_type": "primary" if first[stay["student_id"]] == stay_key(stay) else "secondary"}
        if stay["status"] == "active"
        else stay
        for stay in stays
    ]


def homes(stays: Sequence[Row]) -> dict[str, Row]:
    """Every student's stay that tells school and status of the year: active, then to come, then over; primary; latest."""

    def rank(stay: Row) -> tuple[Any, ...]:
        standing = {"active": 0, "pre_registered": 1}.get(stay["status"], 2)
        return standing, stay["enrollment_type"] != "primary", -stay["entry_date"].toordinal(), stay["school_id"]

    return {student: min(mine, key=rank) for student, mine in _of_student(stays).items()}


def _of_student(stays: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for stay in stays:
        found[stay["student_id"]].append(stay)
    return found
