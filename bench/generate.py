"""Raw OneRoster 1.2 pages of three overlapping systems, the same for the same arguments on every machine.
What is done with them, and how long it takes, is measured in `__main__`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from sis_pipeline.roster.school_year import SchoolYear

SYSTEMS = ("alder", "birch", "cedar")
OVERLAP = 0.1
"""Share of a system's students that the next system holds too."""
SECTIONS_PER_STUDENT = 7
SEATS = 25
PAGE = 5_000
BEGIN = "2026-08-20"
FIRST = ("Ada", "Bo", "Cleo", "Dara", "Elio", "Fay", "Gus", "Hana", "Ivo", "Juno", "Kai", "Lior", "Mina", "Nils", "Oda")
LAST = (
    "Aster",
    "Beck",
    "Cray",
    "Dell",
    "Eyre",
    "Frost",
    "Gale",
    "Hale",
    "Iver",
    "Jarl",
    "Keel",
    "Lund",
    "Moss",
    "Null",
)


@dataclass(frozen=True)
class Pages:
    """The raw pages of one system's snapshot, as `Provider.standardise` takes them."""

    school_year: SchoolYear
    by_resource: Mapping[str, Sequence[bytes]]

    @property
    def resources(self) -> list[str]:
        return list(self.by_resource)

    def bodies(self, resource: str) -> Iterator[tuple[Mapping[str, str], bytes]]:
        for body in self.by_resource.get(resource, ()):
            yield {"active_year": self.school_year.key}, body


def systems(students: int, year: SchoolYear) -> dict[str, Pages]:
    """The systems' pages; `students` are student rows over all systems."""
    each = students // len(SYSTEMS)
    return {name: _system(index, each, year) for index, name in enumerate(SYSTEMS)}


def _system(index: int, students: int, year: SchoolYear) -> Pages:
    random = Random(index)
    first = index * students - (int(students * OVERLAP) if index else 0)
    people = [_person(number, random) for number in range(first, first + students)]
    classes = [
        _class(index, number) for number in range(max(SECTIONS_PER_STUDENT, students * SECTIONS_PER_STUDENT // SEATS))
    ]
    seats = [
        _seat(
            index,
            place,
            person["sourcedId"],
            classes[(place * SECTIONS_PER_STUDENT + nth) % len(classes)]["sourcedId"],
            nth,
        )
        for place, person in enumerate(people)
        for nth in range(SECTIONS_PER_STUDENT)
    ]
    return Pages(
        year,
        {
            "academicSessions": _paged("academicSessions", [_session(year)]),
            "orgs": _paged(
                "orgs",
                [
                    _common(f"school-{index}")
                    | {"name": f"School {index}", "type": "school", "identifier": f"0{index}1"}
                ],
            ),
            "courses": _paged("courses", [_common("course") | {"title": "Course", "courseCode": "C1"}]),
            "classes": _paged("classes", classes),
            "users": _paged("users", [_user(index, person) for person in people]),
            "enrollments": _paged("enrollments", seats),
            "demographics": _paged(
                "demographics",
                [
                    _common(person["sourcedId"]) | {"birthDate": person["birthDate"], "sex": person["sex"]}
                    for person in people
                ],
            ),
        },
    )


def _person(number: int, random: Random) -> dict[str, Any]:
    fixed = Random(number)
    return {
        "sourcedId": f"s{number:08d}",
        "first": fixed.choice(FIRST) + fixed.choice(FIRST).lower(),
        "last": fixed.choice(LAST) + fixed.choice(LAST).lower(),
        "birthDate": f"{fixed.randint(2008, 2020)}-{fixed.randint(1, 12):02d}-{fixed.randint(1, 28):02d}",
        "sex": fixed.choice(("male", "female")),
        "grade": f"{fixed.randint(1, 12):02d}",
        "phone": f"608555{random.randint(0, 9999):04d}" if random.random() < 0.02 else f"608555{number % 10_000:04d}",
    }


def _common(sourced_id: str) -> dict[str, Any]:
    return {"sourcedId": sourced_id, "status": "active", "dateLastModified": "2026-09-01T06:00:00.000Z"}


def _session(year: SchoolYear) -> dict[str, Any]:
    return _common("year") | {
        "title": year.key, "type": "schoolYear", "startDate": f"{year.start}-08-20", "endDate": f"{year.end}-06-10", "schoolYear": str(year.end),
    }  # fmt: skip


def _class(index: int, number: int) -> dict[str, Any]:
    return _common(f"class-{number}") | {
        "title": f"Class {number}", "classCode": f"C-{number}", "classType": "scheduled", "location": "B1", "periods": ["1"],
        "course": _ref("course", "course"), "school": _ref(f"school-{index}", "org"), "terms": [_ref("year", "academicSession")],
    }  # fmt: skip


def _seat(index: int, place: int, user: str, section: str, nth: int) -> dict[str, Any]:
    return _common(f"seat-{place}-{nth}") | {
        "role": "student", "beginDate": BEGIN, "user": _ref(user, "user"), "class": _ref(section, "class"),
        "school": _ref(f"school-{index}", "org"),
    }  # fmt: skip


def _user(index: int, person: dict[str, Any]) -> dict[str, Any]:
    number = person["sourcedId"][1:]
    return _common(person["sourcedId"]) | {
        "enabledUser": "true", "givenName": person["first"], "familyName": person["last"], "middleName": "M", "username": f"user{number}",
        "userMasterIdentifier": f"7{number}", "identifier": number, "email": f"user{number}@district.example", "phone": person["phone"],
        "grades": [person["grade"]], "roles": [{"roleType": "primary", "role": "student", "org": _ref(f"school-{index}", "org")}],
    }  # fmt: skip


def _ref(sourced_id: str, kind: str) -> dict[str, str]:
    return {"href": f"https://sis.example/{kind}/{sourced_id}", "sourcedId": sourced_id, "type": kind}


def _paged(key: str, rows: list[dict[str, Any]]) -> list[bytes]:
    return [json.dumps({key: rows[start : start + PAGE]}).encode() for start in range(0, len(rows), PAGE)]
