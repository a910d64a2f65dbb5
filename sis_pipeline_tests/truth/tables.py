"""The published tables in the sandbox's words: people by their key, schools by number, sections as (system, sis_id).
A published student is the person whose records are exactly the student's; whoever is nobody's is said, not guessed."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any

from sqlalchemy import Connection, text

from sis_pipeline.sandbox.truth import SisRecord, Truth

Event = tuple[int, str, date, str | None, str | None, SisRecord | None]
"""(person, kind, effective date, school number, number of the school that was left, section)"""


def known_people(lived: Iterable[Truth]) -> dict[int, frozenset[SisRecord]]:
    """Person -> every good record that these days and school years delivered."""
    found: dict[int, set[SisRecord]] = defaultdict(set)
    for truth in lived:
        for key, records in truth.people.items():
            found[key] |= records
    return {key: frozenset(records) for key, records in found.items()}


def true_events(truth: Truth) -> Counter[Event]:
    return Counter(
        (one.person, one.kind, one.effective, one.school, one.from_school, truth.section_sis_id(one))
        for one in truth.changes
    )


class Tables:
    """What a district's tables say after a day; of the ledger, what was not in it before (`seen`: its change ids).

    `lived` are the days and school years loaded so far, the last of them the one that is looked at.
    """

    def __init__(self, connection: Connection, lived: Sequence[Truth], seen: frozenset[str]) -> None:
        self._connection = connection
        self._about = {"district": lived[-1].world.district, "year": lived[-1].school_year}
        self.known = known_people(lived)
        self._schools = dict(
            self._rows("select school_id::text, school_number from sis.schools where district = :district")
        )

        self.groups: dict[str, frozenset[SisRecord]] = self._groups()
        person_of = {records: key for key, records in self.known.items()}
        self._people = {student: person_of.get(records, -1) for student, records in self.groups.items()}
        """student_id -> person, -1 for nobody's records."""

        self.students = {
            student for (student,) in self._rows("select student_id::text from sis.students where district = :district")
        }
        self.matched = self._matched()
        self.conflicts = self._conflicts()
        self.active = self._active()
        self.seats = self._seats()
        self.values = self._values()
        self.quarantined = self._quarantined()
        self.holds = self._rows("select hold_id::text from sis.holds where district = :district")
        self.events, self.change_ids = self._events(seen)

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self._connection.execute(text(query), self._about)]

    def _groups(self) -> dict[str, frozenset[SisRecord]]:
        found: dict[str, set[SisRecord]] = defaultdict(set)
        for student, system, sis_id in self._rows(
            "select student_id::text, integration, sis_id from sis.student_links where district = :district"
        ):
            found[student].add((system, sis_id))
        return {student: frozenset(records) for student, records in found.items()}

    def _matched(self) -> set[frozenset[SisRecord]]:
        """Records of this year's students that have records in two or more systems."""
        found: dict[str, set[SisRecord]] = defaultdict(set)
        for student, system, sis_id in self._rows(
            "select student_id::text, integration, sis_id from sis.student_sources"
            " where district = :district and school_year = :year"
        ):
            found[student].add((system, sis_id))
        return {frozenset(records) for records in found.values() if len({system for system, _ in records}) > 1}

    def _conflicts(self) -> dict[tuple[int, str], frozenset[SisRecord]]:
        """(person, attribute) -> the records that say something about it."""
        rows = self._rows(
            "select student_id::text, attribute, candidates from sis.conflicts"
            " where district = :district and school_year = :year and status <> 'stale'"
        )
        return {
            (self._people[student], attribute): frozenset(
                (one["integration"], one["sis_id"]) for one in candidates if one["value"] is not None
            )
            for student, attribute, candidates in rows
        }

    def _active(self) -> dict[int, frozenset[tuple[str, str]]]:
        """Person -> (school number, primary or secondary) of the enrollments that run."""
        found: dict[int, set[tuple[str, str]]] = defaultdict(set)
        for student, school, kind in self._rows(
            "select student_id::text, school_id::text, enrollment_type from sis.enrollments"
            " where district = :district and school_year = :year and status = 'active'"
        ):
            found[self._people[student]].add((self._schools[school], kind))
        return {person: frozenset(schools) for person, schools in found.items()}

    def _seats(self) -> set[tuple[int, SisRecord]]:
        """(person, section) of the students' seats that are not over, nor over before they begin."""
        rows = self._rows(
            "select seat.person_id::text, section.integration, section.sis_id from sis.section_enrollments seat"
            " join sis.sections section using (district, section_id)"
            " where seat.district = :district and seat.school_year = :year and seat.role = 'student'"
            " and (seat.end_date is null or (seat.end_date > sis.clock()::date and seat.end_date > seat.begin_date))"
        )
        return {(self._people[student], (system, sis_id)) for student, system, sis_id in rows}

    def _values(self) -> dict[int, dict[str, Any]]:
        """Person -> attributes, those of the person and those of the year."""
        rows = self._connection.execute(
            text(
                "select * from sis.students join sis.student_years using (district, student_id)"
                " where district = :district and school_year = :year"
            ),
            self._about,
        ).mappings()
        return {self._people[str(row["student_id"])]: dict(row) for row in rows}

    def _quarantined(self) -> dict[str, dict[str, int]]:
        """System -> entity -> rows of its newest snapshot that were set aside."""
        found: dict[str, dict[str, int]] = defaultdict(dict)
        for system, entity, rows in self._rows(
            "select q.integration, q.entity, count(distinct q.row) from sis.quarantine q join ("
            "  select distinct on (integration) integration, snapshot_id from sis.snapshots"
            "  where school_year = :year order by integration, started_at desc"
            ") newest using (integration, snapshot_id) group by 1, 2"
        ):
            found[system][entity] = rows
        return dict(found)

    def _events(self, seen: frozenset[str]) -> tuple[Counter[Event], frozenset[str]]:
        rows = self._rows(
            "select change_id::text, student_id::text, kind, effective_date, school_id::text, before,"
            " section.integration, section.sis_id"
            " from sis.enrollment_changes left join ("
            "  select section_id, integration, sis_id from sis.sections where district = :district"
            " ) section using (section_id) where district = :district and school_year = :year"
        )
        new = [row for row in rows if row[0] not in seen]
        events = Counter(
            (
                self._people[student], kind, effective, self._schools.get(school),
                self._schools[_shown(before)["school_id"]] if kind == "transfer" else None,
                (system, sis_id) if system else None,
            )
            for _, student, kind, effective, school, before, system, sis_id in new
        )  # fmt: skip
        return events, frozenset(row[0] for row in new)


def _shown(value: Any) -> dict[str, Any]:
    """A JSON column, which holds a document or the text of one."""
    shown = json.loads(value) if isinstance(value, str) else value
    assert isinstance(shown, dict)
    return shown
