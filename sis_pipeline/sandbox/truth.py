"""What must come out of a world: good and bad rows per system, who is who, disagreements, and the ledger of a day.
Worked out from the world alone, never from what a dialect wrote."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sis_pipeline.sandbox.filling import EXIT_BEFORE_ENTRY
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.things import Change, Stint
from sis_pipeline.sandbox.views import SeatRow, StaffRow, StudentRow, View, as_published

if TYPE_CHECKING:
    from sis_pipeline.sandbox.world import World

SisRecord = tuple[str, str]
"""(system, sis_id)"""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one entity: `good` ones, those that must be quarantined, and tombstones (neither good nor bad)."""

    good: int
    bad: int = 0
    tombstones: int = 0


class Truth:
    """The truth of one day and school year.

    Rows per system and entity, for that school year:
    `schools` counts schools proper (no district, no pseudo school); `academic_sessions` as the dialect keeps them
    (PowerSchool per school, left out where it has none of its own); `courses` each once; `students` those with an enrollment in the year, seats included;
    `staff` each person once (only who taught, in a year that is over, where memberships have no dates); `sections` of the year; `enrollments` the system's own, or one per student and school
    where they must be derived (a tombstone where only tombstones are left); `section_enrollments` of students only; `teaching` the teachers' rows where a system
    sends them as enrollments; `contacts` where it has guardians. What hangs on a bad student is bad too.
    """

    def __init__(self, world: World, day: int, school_year: str) -> None:
        self.world = world
        self.day = day
        self.school_year = school_year
        self.year = int(school_year[:4])
        self._derivations: dict[str, dict[tuple[str, str], bool]] = {}

    def view(self, system: str) -> View:
        return self.world.view(system, self.day)

    # --- per system --------------------------------------------------------------------------------------------------

    @cached_property
    def rows(self) -> dict[str, dict[str, Rows]]:
        """Per system and entity; a system that does not show the year is left out."""
        shown = [system for system in self.world.systems if self.year in self.view(system.name).years]
        return {system.name: self._rows(system) for system in shown}

    def _rows(self, system: System) -> dict[str, Rows]:
        view, seats = self.view(system.name), self._seats(system)
        students = self._students(system)
        sections = [section for section in view.sections if section.year == self.year]
        counted = {
            "schools": Rows(len(view.schools)),
            "courses": Rows(len(view.courses)),
            "students": _count((student.bad, student.tombstone) for student in students),
            "staff": Rows(len(self._staff(view))),
            "sections": Rows(len(sections)),
            "enrollments": self._enrollment_rows(system),
            "section_enrollments": _count((row.bad, row.tombstone) for row in seats),
        }
        if system.dialect == "powerschool":
            counted["academic_sessions"] = Rows(3 * len(view.schools))
        if system.dialect.startswith("oneroster") or system.dialect in {"infinite_campus", "skyward_oneroster"}:
            counted["academic_sessions"] = Rows(3)
            counted["teaching"] = Rows(len(sections))
        if system.speech.contacts:
            counted["contacts"] = _count((student.bad, False) for student in students if not student.tombstone)
        return counted

    def _students(self, system: System) -> list[StudentRow]:
        """Delivered students that belong to the year."""
        if system.speech.scheduled:
            return [student for student in self.view(system.name).students if student.stint_in(self.year)]
        seated = {row.student.sis_id for row in self._seats(system)}
        return [student for student in self.view(system.name).students if student.sis_id in seated]

    def _staff(self, view: View) -> list[StaffRow]:
        """In a year that is over, systems without dated memberships know only who taught."""
        if self.year == self.world.year or view.system.speech.scheduled:
            return view.staff
        taught = {section.teacher for section in view.sections if section.year == self.year}
        return [row for row in view.staff if row.teacher.key in taught]

    def _seats(self, system: System) -> list[SeatRow]:
        return [row for row in self.view(system.name).seats if row.seat.year == self.year and not row.never]

    def _enrollment_rows(self, system: System) -> Rows:
        if system.speech.scheduled:
            stints = self.view(system.name).stints(self.year)
            return _count(
                (student.bad or stint.status == EXIT_BEFORE_ENTRY, student.tombstone) for stint, student in stints
            )
        derived = self._derived(system)
        ended = {(row.student.sis_id, row.school) for row in self._seats(system) if row.tombstone} - set(derived)
        return _count([*((bad, False) for bad in derived.values()), *((False, True) for _pair in ended)])

    def _derived(self, system: System) -> dict[tuple[str, str], bool]:
        """(student's sis_id, school number) -> bad, for systems whose school enrollments must be derived."""
        if system.name not in self._derivations:
            self._derivations[system.name] = self._derive(system)
        return self._derivations[system.name]

    def _derive(self, system: System) -> dict[tuple[str, str], bool]:
        found = {(row.student.sis_id, row.school): row.student.bad for row in self._seats(system) if not row.tombstone}
        if self.year == self.world.year:
            for student in self._students(system):
                stint = student.stint_in(self.year)
                if stint and stint.exit is None and not student.tombstone:
                    found[student.sis_id, stint.school] = student.bad
        return found

    @cached_property
    def quarantined_students(self) -> dict[str, frozenset[str]]:
        """Per system, the sis ids of students that must be quarantined."""
        return {
            name: frozenset(student.sis_id for student in self._students(self.world.system(name)) if student.bad)
            for name in self.rows
        }

    # --- merged ------------------------------------------------------------------------------------------------------

    @cached_property
    def people(self) -> dict[int, frozenset[SisRecord]]:
        """Person -> the good records that this day's systems deliver for the year; tombstones are no records."""
        found: dict[int, set[SisRecord]] = defaultdict(set)
        for name in self.rows:
            for student in self._students(self.world.system(name)):
                if not student.bad and not student.tombstone:
                    found[student.person.key].add((name, student.sis_id))
        return {key: frozenset(records) for key, records in found.items()}

    @cached_property
    def known_people(self) -> dict[int, frozenset[SisRecord]]:
        """The same over all days up to this one: what a table that never forgets holds when every day was loaded."""
        found: dict[int, set[SisRecord]] = defaultdict(set)
        for day in range(1, self.day + 1):
            for key, records in self.world.truth(day, self.school_year).people.items():
                found[key] |= records
        return {key: frozenset(records) for key, records in found.items()}

    @property
    def students(self) -> int:
        return len(self.people)

    @cached_property
    def groups(self) -> set[frozenset[SisRecord]]:
        """Records of one person in two or more systems."""
        return {records for records in self.people.values() if len({system for system, _ in records}) > 1}

    @property
    def matched(self) -> int:
        return len(self.groups)

    @cached_property
    def staff(self) -> dict[str, frozenset[SisRecord]]:
        """Staff key -> its records."""
        found: dict[str, set[SisRecord]] = defaultdict(set)
        for name in self.rows:
            for row in self._staff(self.view(name)):
                found[row.teacher.key].add((name, row.sis_id))
        return {key: frozenset(records) for key, records in found.items()}

    @cached_property
    def claims(self) -> dict[tuple[int, str], dict[SisRecord, Any]]:
        """(person, attribute) -> what each record says, for people in two or more systems; nulls left out."""
        found: dict[tuple[int, str], dict[SisRecord, Any]] = defaultdict(dict)
        for name in self.rows:
            system = self.world.system(name)
            for student in self._students(system):
                if student.tombstone or len(self.people.get(student.person.key, ())) < 2:
                    continue
                for attribute in system.carries:
                    value = as_published(student.values, attribute)
                    if value is not None:
                        found[student.person.key, attribute][name, student.sis_id] = value
        return dict(found)

    @cached_property
    def disagreements(self) -> dict[tuple[int, str], dict[SisRecord, Any]]:
        """The claims that differ. Phones are compared by their digits. In a year that is over, systems disagree on grade
        levels by what they keep (the grade then, or the grade now), so grade levels are left out there."""
        return {
            (key, attribute): claimed
            for (key, attribute), claimed in self.claims.items()
            if len({_plain(attribute, value) for value in claimed.values()}) > 1
            and (attribute != "grade_level" or self.year == self.world.year)
        }

    @cached_property
    def enrolled(self) -> dict[int, frozenset[tuple[str, str]]]:
        """Person -> (school number, `primary` or `secondary`) of the enrollments that run on this day."""
        found: dict[int, set[tuple[str, str]]] = defaultdict(set)
        for name in self.rows:
            for student in self._students(self.world.system(name)):
                if student.bad or student.tombstone:
                    continue
                for stint in student.stints:
                    if stint.year == self.year and stint.status == "active":
                        found[student.person.key].add((stint.school, "primary" if stint.primary else "secondary"))
        return {key: frozenset(schools) for key, schools in found.items()}

    # --- the ledger --------------------------------------------------------------------------------------------------

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """What the ledger must gain on this day.

        Day 1 is the first load, in either year: one `enroll` for every good school enrollment, whatever its status, and
        no section events. A pre-registration is enrolled when it is first seen; that its day comes is no event. Nothing
        new happens in the year before.
        """
        if self.day > 1:
            return self.world.changes(self.day) if self.year == self.world.year else ()
        return self.first_load

    @cached_property
    def first_load(self) -> tuple[Change, ...]:
        """What the ledger must gain when this day is the first of its school year that is loaded."""
        return tuple(change for name in self.rows for change in self._load_of(self.world.system(name)))

    def _load_of(self, system: System) -> Iterator[Change]:
        for student in self._students(system):
            stints = [
                stint for stint in student.stints if stint.year == self.year and stint.status != EXIT_BEFORE_ENTRY
            ]
            if student.bad:
                continue
            shown = {stint.school for stint in stints if (student.sis_id, stint.school) in self._derived(system)}
            for stint in stints if system.speech.scheduled else _first_at_each(stints, shown):
                yield Change(student.person.key, "enroll", stint.entry, stated=True, school=stint.school)

    def section_sis_id(self, change: Change) -> SisRecord | None:
        """(system, sis_id) of the section a change is about."""
        if change.section is None:
            return None
        system, order = change.section
        return system, self.world.system(system).sis_id("section", order)

    @cached_property
    def corrected(self) -> Mapping[tuple[int, str], str]:
        """(person, attribute) -> the system in which the value changed since the day before."""
        return self.world.corrected(self.day)

    def changes_by_kind(self) -> dict[str, int]:
        return dict(sorted(Counter(change.kind for change in self.changes).items()))

    def as_json(self) -> dict[str, Any]:
        """The counts, and the sets that tests compare, as plain JSON."""
        return {
            "day": self.day,
            "date": self.world.date(self.day).isoformat(),
            "school_year": self.school_year,
            "systems": {
                name: {entity: {"good": n.good, "bad": n.bad, "tombstones": n.tombstones} for entity, n in rows.items()}
                for name, rows in self.rows.items()
            },
            "students": self.students,
            "known_students": len(self.known_people),
            "matched": self.matched,
            "disagreements": len(self.disagreements),
            "changes": self.changes_by_kind(),
            "people": {str(key): sorted(records) for key, records in sorted(self.people.items())},
            "disagreeing": sorted([key, attribute] for key, attribute in self.disagreements),
            "ledger": [
                {
                    "person": change.person, "kind": change.kind, "effective": change.effective.isoformat(),
                    "stated": change.stated, "school": change.school, "from_school": change.from_school,
                    "section": self.section_sis_id(change),
                }
                for change in self.changes
            ],
        }  # fmt: skip


def _first_at_each(stints: Iterable[Stint], schools: Collection[str]) -> list[Stint]:
    """The earliest of the enrollments at each of some schools: where there are no enrollments, stays are derived."""
    first: dict[str, Stint] = {}
    for stint in stints:
        if stint.school in schools:
            first.setdefault(stint.school, stint)
    return list(first.values())


def _plain(attribute: str, value: Any) -> Any:
    if attribute in {"phone", "mobile_phone"}:
        return "".join(letter for letter in value if letter.isdigit())[-10:]
    return value


def _count(flags: Any) -> Rows:
    """Rows from (bad, tombstone) pairs."""
    tally = Counter("tombstone" if tombstone else "bad" if bad else "good" for bad, tombstone in flags)
    return Rows(tally["good"], tally["bad"], tally["tombstone"])
