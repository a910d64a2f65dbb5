"""One district's school year, from what came to what is published: each step in its own module, in the order of the rules.
Not played: people's edits, decisions about students who are linked already, withdrawals, aliases, other years."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sis_pipeline.roster.contract import DistrictInputs
from sis_pipeline.roster.model import MERGED, STUDENT_YEARS, STUDENTS
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline_tests.reference import seats as seated
from sis_pipeline_tests.reference import stays as enrolled
from sis_pipeline_tests.reference.delivery import Delivery, Key, Row, key_of, published_records, student_records
from sis_pipeline_tests.reference.ledger import events, grade_events
from sis_pipeline_tests.reference.people import Found, who_is_who
from sis_pipeline_tests.reference.values import Merged, one_record_each

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
        links=now.existing("student_links"),
        students=now.existing("students"),
        before=previous,
        decisions=inputs.decisions.to_dicts(),
        former=inputs.former_names.to_dicts(),
    )
    records, previous = _with_students(candidates, previous, found)

    before = enrolled.published_stays(now, found.retired)
    students = {key_of(row): row["student_id"] for row in records if key_of(row) not in found.recycled}
    lost_id = {(row["integration"], row["student_id"]) for row in previous if key_of(row) in found.recycled}
    spared = [key_of(stay) for stay in before if (stay["integration"], stay["student_id"]) in lost_id]
    stays, held = _stays(now, records, previous, before, students=students, spared=spared)
    held_students = {student for student, _, _ in held}
    sources = records + [row for row in previous if row["fate"] == "absence" and row["student_id"] in held_students]
    merged = one_record_each(now, sources)
    years = _years(now, merged, stays, found.retired)
    years_before = _years_before(now, found.retired).values()
    known, seats_before = seated.sections(now), seated.published_seats(now, found.retired)
    spared = [key_of(seat) for seat in seats_before if (seat["integration"], seat["person_id"]) in lost_id]
    seats, held_seats = seated.seats(now, students, seats_before, known, stays, spared=spared)
    first = _first_loads(now)
    changes = [row | {"section_id": None} for row in events(now, before, stays, first)]
    changes += [row | {"section_id": None} for row in grade_events(now, years_before, years)]
    changes += seated.events(now, seats_before, seats, known, first)
    return Expected(
        tables={
            "student_links": _links(now, found, sources, previous),
            "student_sources": _sources(now, sources),
            "students": _students(now, merged, found),
            "student_years": years,
            "conflicts": _conflicts(now, merged, found),
            "enrollments": [{name: stay[name] for name in MERGED["enrollments"].names} for stay in stays],
            "section_enrollments": [{name: seat[name] for name in seated.COLUMNS} for seat in seats],
            "enrollment_changes": [row | {"operation_id": inputs.operation_id} for row in changes],
        },
        findings={
            "near_matches": [*found.near, *found.questions],
            "cut_chains": list(found.cut),
            "recycled": [{"integration": one, "sis_id": other} for one, other in found.recycled],
            "held": _held("enrollments", held)
            + _held("section_enrollments", [(*key, "student") for key in held_seats]),
            "retired": [{"student_id": one, "now": other} for one, other in found.retired.items()],
        },
    )


def _held(entity: str, keys: Collection[Any]) -> list[Row]:
    return [{"entity": entity, "key": [str(part) for part in key]} for key in keys]


def _with_students(candidates: Rows, previous: Rows, found: Found) -> tuple[list[Row], list[Row]]:
    """The records that count, and those published before, with their student. In place of a record whose id was given to
    another child stands what was published of the child who had it; enrollments under that id mean nobody."""
    before = [
        row
        | {"student_id": found.everybody[key_of(row)]}
        | ({"fate": "carried"} if key_of(row) in found.recycled else {})
        for row in previous
    ]
    records = [
        row | {"student_id": found.students[key_of(row)][0]} for row in candidates if key_of(row) in found.students
    ]
    return records + [row for row in before if key_of(row) in found.recycled], before


def _stays(
    now: Delivery,
    records: Rows,
    previous: Rows,
    before: Rows,
    *,
    students: Mapping[Key, str],
    spared: Collection[Key],
) -> tuple[list[Row], Collection[Any]]:
    """The stays of the year, and the keys of those that wait for a person. Who was expected comes on the day, also where
    only a reading of before says so, unless that said itself that the student waits; it has to be a system that takes part,
    and no row that can't be read, nor of a child whose id is another one's."""
    delivered = enrolled.placed_reports(now, students)
    fates = enrolled.enrollment_fates(now, delivered, spared)
    carried = enrolled.carried_over(before, delivered, fates)
    waiting = {
        (row["integration"], row["student_id"]) for row in records if row["enrollment_status"] == "pre_registered"
    }

    def comes(stay: Row) -> bool:
        waits = (stay["integration"], stay["student_id"]) in waiting
        silent = fates.is_there(stay) or fates.is_spared(stay)
        heard = stay["integration"] in now.inputs.integrations and not silent
        return stay["status"] == "pre_registered" and heard and not waits

    reports = delivered + [stay | {"status": "active"} if comes(stay) else stay for stay in carried]
    over = enrolled.day_after_year(now)
    stays = [enrolled.settled(stay, now.inputs.as_of, over) for stay in enrolled.combined(now, reports)]
    vouched = enrolled.vouched(now, records, previous, students)
    target = enrolled.with_missing(now, stays, before, fates, vouched=vouched, over=over)
    target, held = enrolled.guarded(now, before, target)
    return enrolled.with_one_primary(now, enrolled.with_transfers(target)), held


def _links(now: Delivery, found: Found, sources: Rows, previous: Rows) -> list[Row]:
    """Every record ever seen with its student. A link keeps its rule where its student became another; it is active from
    when the record comes until it is gone, as the present year says, or the latest that was merged."""
    here = {key_of(row) for row in sources}
    lost = {key_of(row) for row in previous} - here
    latest = max((row["latest_school_year"] for row in now.existing("students")), default=now.year)
    speaks = now.year >= min(SchoolYear.on(now.inputs.as_of).key, latest)
    before = {key_of(row): row for row in now.existing("student_links")}
    rows: list[Row] = []
    for key in {*before, *found.students}:
        was: Row = before.get(key, {"active": True})
        student, rule, confidence = found.students.get(key, (None, was.get("rule"), was.get("confidence")))
        rows.append(
            {
                "district": now.district,
                "integration": key[0],
                "sis_id": key[1],
                "student_id": student or found.everybody[key],
                "rule": rule,
                "confidence": confidence,
                "active": (was["active"] or key in here) and key not in lost
                if speaks and key in before
                else was["active"],
            }
        )
    return rows


def _sources(now: Delivery, sources: Rows) -> list[Row]:
    """What each record says; one that says what it said keeps the snapshot that said so first."""
    columns = MERGED["student_sources"].names
    before = {key_of(row): row for row in now.existing("student_sources")}
    rows = []
    for source in sources:
        known = source | {"district": now.district, "school_year": now.year}
        row = {name: known[name] for name in columns}
        was = before.get(key_of(row))
        same = was and all(
            was[name] == row[name] for name in columns if name not in {"snapshot_id", "emptied", "cleared"}
        )
        rows.append(row | ({"snapshot_id": was["snapshot_id"]} if was and same else {}))
    return rows


def _students(now: Delivery, merged: Merged, found: Found) -> list[Row]:
    """The students of this year; the values of those whom a later year has are that year's."""
    later = {row["student_id"] for row in now.existing("students") if row["latest_school_year"] > now.year}
    doubted = {row[side] for row in found.near for side in ("student_id", "other_student_id")}
    return [
        {column.name: values[column.name] for column in STUDENTS.of_scope("person")}
        | {
            "district": now.district,
            "student_id": student,
            "latest_school_year": now.year,
            "near_match": student in doubted,
            "origins": json.dumps(merged.origins[student]),
        }
        for student, values in merged.values.items()
        if student not in later
    ]


def _conflicts(now: Delivery, merged: Merged, found: Found) -> list[Row]:
    """The conflicts of now, and those of before that are none any more, stale and as they last stood; not of students who
    are another one by now."""
    standing = {(row["student_id"], row["attribute"]): row for row in merged.conflicts}
    over = [
        row | {"candidates": json.loads(row["candidates"]), "status": "stale"}
        for row in now.existing("conflicts")
        if (row["student_id"], row["attribute"]) not in standing and row["student_id"] not in found.retired
    ]
    return [row | {"school_year": now.year, "district": now.district} for row in [*standing.values(), *over]]


def _years(now: Delivery, merged: Merged, stays: Rows, renamed: Mapping[str, str]) -> list[Row]:
    """The year of every student with a record, and of those who left, with the school and status of the stay that tells."""
    columns = STUDENT_YEARS.names
    about = {"district": now.district, "school_year": now.year}
    found = {student: {**values, **about, "student_id": student} for student, values in merged.values.items()}
    found = _years_before(now, renamed) | found
    for student, home in enrolled.homes(stays).items():
        if student in found:
            found[student] |= {"school_id": home["school_id"], "enrollment_status": home["status"]}
    return [{name: row[name] for name in columns} for row in found.values()]


def _years_before(now: Delivery, renamed: Mapping[str, str]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for row in now.existing("student_years"):
        student = renamed.get(row["student_id"], row["student_id"])
        found.setdefault(student, row | {"student_id": student})
    return found


def _first_loads(now: Delivery) -> frozenset[str]:
    """The integrations of which nothing is published this year."""
    known = {row["integration"] for table in ("student_sources", "enrollments") for row in now.existing(table)}
    return frozenset(set(now.inputs.integrations) - known)
