"""Raw OneRoster 1.2 pages of three overlapping systems over two days, the same for the same arguments on every machine.
What is done with them, and how long it takes, is measured in `stages`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from sis_pipeline.roster.school_year import SchoolYear

SYSTEMS = ("alder", "birch", "cedar")
OVERLAP = 0.1
"""Share of a system's students that the next system holds too."""
SECTIONS_PER_STUDENT = 7
SEATS = 25
STUDENTS_PER_SCHOOL = 500
PAGE = 5_000
NEW, GONE, MOVED, EDITED = 0.005, 0.005, 0.01, 0.02
"""Shares of a system's students, on the second day."""
NAMES = ("Ada", "Bo", "Cleo", "Dara", "Elio", "Fay", "Gus", "Hana", "Ivo", "Juno", "Kai", "Lior", "Mina", "Nils", "Oda")
MODIFIED = ("2026-09-01T06:00:00.000Z", "2026-09-02T06:00:00.000Z")
Row = dict[str, Any]


@dataclass(frozen=True)
class System:
    """One system on a day, 0 or 1; `students` are those of day 0."""

    index: int
    students: int
    year: SchoolYear
    day: int

    @property
    def numbers(self) -> range:
        """The students by number; neighbouring systems share some."""
        first = self.index * self.students - (int(self.students * OVERLAP) if self.index else 0)
        fresh = int(self.students * NEW) if self.day else 0
        return range(first, first + self.students + fresh)

    @property
    def schools(self) -> int:
        return max(2, self.students // STUDENTS_PER_SCHOOL)

    @property
    def classes(self) -> int:
        return max(SECTIONS_PER_STUDENT, self.students * SECTIONS_PER_STUDENT // SEATS)

    def what_happens(self, number: int) -> str:
        """What the second day brings for a student, everywhere the same."""
        if not self.day:
            return ""
        drawn = Random(-1 - number).random()
        for happening, share in (("gone", GONE), ("moved", MOVED), ("edited", EDITED)):
            if drawn < share:
                return happening
            drawn -= share
        return ""

    def school(self, number: int) -> str:
        return f"school-{(number + (self.what_happens(number) == 'moved')) % self.schools}"

    def common(self, sourced_id: str, happened: str = "") -> Row:
        status = "tobedeleted" if happened == "gone" else "active"
        return {"sourcedId": sourced_id, "status": status, "dateLastModified": MODIFIED[bool(happened)]}

    def collections(self) -> dict[str, Iterable[Row]]:
        days = {"startDate": f"{self.year.start}-08-20", "endDate": f"{self.year.end}-06-10"}
        year = {"title": self.year.key, "type": "schoolYear", "schoolYear": str(self.year.end), **days}
        return {
            "academicSessions": [self.common("year") | year],
            "orgs": map(self._org, range(self.schools)),
            "courses": [self.common("course") | {"title": "Course", "courseCode": "C1"}],
            "classes": map(self._class, range(self.classes)),
            "users": map(self._user, self.numbers),
            "enrollments": (seat for number in self.numbers for seat in self._seats(number)),
            "demographics": map(self._demographics, self.numbers),
        }

    def _org(self, number: int) -> Row:
        named = {"name": f"School {self.index}-{number}", "identifier": f"{self.index}{number:04d}"}
        return self.common(f"school-{number}") | {"type": "school", **named}

    def _class(self, number: int) -> Row:
        return self.common(f"class-{number}") | {
            "title": f"Class {number}", "classCode": f"C-{number}", "classType": "scheduled", "location": "B1", "periods": ["1"],
            "course": _ref("course", "course"), "school": _ref(f"school-{number % self.schools}", "org"),
            "terms": [_ref("year", "academicSession")],
        }  # fmt: skip

    def _seats(self, number: int) -> Iterator[Row]:
        happened, place = self.what_happens(number), number - self.numbers.start
        seen = happened if happened in {"gone", "moved"} else ""
        for nth in range(SECTIONS_PER_STUDENT):
            section = (place * SECTIONS_PER_STUDENT + nth) % self.classes
            yield self.common(f"seat-{number}-{nth}", seen) | {
                "role": "student", "beginDate": f"{self.year.start}-08-20", "user": _ref(_id(number), "user"),
                "class": _ref(f"class-{section}", "class"), "school": _ref(self.school(number), "org"),
            }  # fmt: skip

    def _user(self, number: int) -> Row:
        person, happened = Random(number), self.what_happens(number)
        first, last = (person.choice(NAMES) + person.choice(NAMES).lower() for _ in range(2))
        # a few phones differ from system to system, and those of who was edited from day to day
        odd = Random(number * len(SYSTEMS) + self.index).random() < 0.02
        phone = number + 5_000 * (happened == "edited") + self.index * odd
        role = {"roleType": "primary", "role": "student", "org": _ref(self.school(number), "org")}
        return self.common(_id(number), happened) | {
            "enabledUser": "true", "givenName": first, "familyName": last, "middleName": "M", "username": f"user{number}",
            "userMasterIdentifier": f"7{number}", "identifier": str(number), "email": f"user{number}@district.example",
            "phone": f"608555{phone % 10_000:04d}", "grades": [f"{person.randint(1, 12):02d}"], "roles": [role],
        }  # fmt: skip

    def _demographics(self, number: int) -> Row:
        person, happened = Random(number + 0.5), self.what_happens(number)
        born = f"{person.randint(2008, 2020)}-{person.randint(1, 12):02d}-{person.randint(1, 28):02d}"
        about = {"birthDate": born, "sex": person.choice(("male", "female"))}
        return self.common(_id(number), happened if happened == "gone" else "") | about


def write(students: int, year: SchoolYear, folder: Path) -> None:
    """The pages of all systems on both days, one file each; `students` are student rows over all systems."""
    for day in (0, 1):
        for index, name in enumerate(SYSTEMS):
            for resource, rows in System(index, students // len(SYSTEMS), year, day).collections().items():
                place = folder / str(day) / name / resource
                place.mkdir(parents=True)
                for number, page in enumerate(_pages(rows), 1):
                    (place / f"{number:05d}.json").write_text(json.dumps({resource: page}), encoding="utf-8")


def pages(folder: Path, day: int, system: str) -> Iterator[tuple[str, int, bytes]]:
    """Resource, page number and body of every page of a system on a day."""
    for place in sorted((folder / str(day) / system).iterdir()):
        for number, file in enumerate(sorted(place.iterdir()), 1):
            yield place.name, number, file.read_bytes()


def _pages(rows: Iterable[Row]) -> Iterator[list[Row]]:
    remaining = iter(rows)
    while page := list(islice(remaining, PAGE)):
        yield page


def _id(number: int) -> str:
    return f"s{number:08d}"


def _ref(sourced_id: str, kind: str) -> dict[str, str]:
    return {"href": f"https://sis.example/{kind}/{sourced_id}", "sourcedId": sourced_id, "type": kind}
