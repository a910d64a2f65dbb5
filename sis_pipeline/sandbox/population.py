"""Fills a world for day 1: schools, sections and staff, families and students of this year and the year before.
Deterministic: the same arguments give the same world in every process. What happens later is in `days`."""

from __future__ import annotations

import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from itertools import count, pairwise
from random import Random
from typing import Any

from sis_pipeline.sandbox import names
from sis_pipeline.sandbox.school_calendar import stamp, term, terms
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.things import (
    Course,
    Family,
    Person,
    Record,
    School,
    Seat,
    Section,
    Stint,
    Teacher,
    ceds_grade,
)

ENTRY_NEW, ENTRY_RETURNING, EXIT_TRANSFER, EXIT_YEAR_END, EXIT_GRADUATED = "E1", "R1", "T1", "Y1", "G1"
STUDENTS_PER_SECTION = 26
LOWEST_GRADE, HIGHEST_GRADE = -1, 12
MISSING_SECTION = 999_999
"""The order of a section that no system has."""

_RACES = (
    "white", "black_or_african_american", "asian", "american_indian_or_alaska_native",
    "native_hawaiian_or_other_pacific_islander",
)  # fmt: skip


def fold(name: str) -> str:
    """A name without accents, case and punctuation: two names that fold alike are one to a careful reader."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return "".join(letter for letter in plain.casefold() if letter.isalnum()) or name.casefold()


@dataclass
class Timetable:
    """The sections of one school in one year, by who may sit in them."""

    core: dict[tuple[int, str], list[Section]] = field(default_factory=lambda: defaultdict(list))
    """By lowest grade of the band and course prefix."""
    electives: dict[tuple[str, str], list[Section]] = field(default_factory=lambda: defaultdict(list))
    """By term and course prefix."""


@dataclass
class NameRegistry:
    """Keeps two students from looking like one: no two share names and birth date, and only twins share the last
    name and the birth date. Very large worlds run out of the second freedom and keep the first."""

    full: set[tuple[str, str, date]] = field(default_factory=set)
    half: set[tuple[str, date]] = field(default_factory=set)

    def take(self, first: str, last: str, birth: date, *, twin: bool = False, strict: bool = True) -> bool:
        first, last = fold(first), fold(last)
        if (first, last, birth) in self.full:
            return False
        clash = (f"first:{first}", birth) in self.half or (not twin and (f"last:{last}", birth) in self.half)
        if strict and clash:
            return False
        self.full.add((first, last, birth))
        self.half |= {(f"first:{first}", birth), (f"last:{last}", birth)}
        return True


@dataclass
class Population:
    """Everything that exists on day 1, and the counters from which later days go on."""

    systems: tuple[System, ...]
    year: int
    first_day: date
    seed: object
    schools: dict[str, School] = field(default_factory=dict)
    courses: dict[str, list[Course]] = field(default_factory=lambda: defaultdict(list))
    sections: dict[tuple[str, int], Section] = field(default_factory=dict)
    teachers: dict[str, Teacher] = field(default_factory=dict)
    families: list[Family] = field(default_factory=list)
    people: dict[int, Person] = field(default_factory=dict)
    timetables: dict[tuple[str, int], Timetable] = field(default_factory=dict)
    """By school number and year."""
    counters: dict[tuple[str, str], Iterator[int]] = field(default_factory=lambda: defaultdict(lambda: count(1)))
    registry: NameRegistry = field(default_factory=NameRegistry)

    def next(self, system: str, kind: str) -> int:
        return next(self.counters[system, kind])

    def schools_of(self, system: str) -> list[School]:
        return [school for school in self.schools.values() if school.system == system]


# --- schools -----------------------------------------------------------------------------------------------------


def _levels(students: int) -> list[tuple[str, int, int]]:
    """What schools a system of that size has. The academy takes every grade, so that a transfer is always possible."""
    return [
        *[("Elementary", -1, 5)] * max(1, round(students / 450)),
        *[("Middle School", 6, 8)] * max(1, round(students / 900)),
        *[("High School", 9, 12)] * max(1, round(students / 1200)),
        *[("Academy", 0, 12)] * max(1, round(students / 2500)),
    ]


def add_schools(world: Population) -> None:
    rng = Random(f"{world.seed}/schools")
    for index, system in enumerate(world.systems, start=1):
        levels = _levels(system.students)
        base = index * 10 ** max(2, len(str(len(levels))))
        for order, (level, low, high) in enumerate(levels, start=1):
            number = f"{base + order}" if system.dialect == "powerschool" else f"0{base + order}"
            town, postal_code = names.TOWNS[(index + order) % len(names.TOWNS)]
            word = names.SCHOOL_NAMES[(index * 7 + order) % len(names.SCHOOL_NAMES)]
            world.schools[number] = School(
                system.name, order, number, f"{word} {number.lstrip('0')} {level}", low, high,
                f"{rng.randint(1, 999)} {rng.choice(names.STREETS)}", town, postal_code,
                f"97355501{order % 100:02d}", principal=f"{system.name}-principal-{order}",
            )  # fmt: skip


def _bands(school: School) -> list[tuple[int, int]]:
    """Grades taught together: every grade alone, but a few at a time in an academy."""
    if (school.low, school.high) == (0, 12):
        return [(0, 2), (3, 5), (6, 8), (9, 12)]
    return [(grade, grade) for grade in range(school.low, school.high + 1)]


def band_of(school: School, grade: int) -> int:
    return next(low for low, high in _bands(school) if low <= grade <= high)


# --- sections and staff ------------------------------------------------------------------------------------------


def add_sections(world: Population, headcount: dict[tuple[str, int], dict[int, int]]) -> None:
    """Sections for both years: `headcount` gives students per (school number, year) and grade."""
    for year in (world.year - 1, world.year):
        for school in world.schools.values():
            _timetable(world, school, year, headcount.get((school.number, year), {}))


def _timetable(world: Population, school: School, year: int, grades: dict[int, int]) -> None:
    timetable = world.timetables[school.number, year] = Timetable()
    teachers = [
        key for key, teacher in world.teachers.items() if school.number in teacher.schools and not teacher.principal
    ]
    turn = count()

    def add(course: Course, code: str, index: int) -> Section:
        order = world.next(school.system, "section")
        made = Section(
            school.system, order, year, school.number, course, code, f"{course.code}-{index:02d}",
            room=f"{'ABC'[index % 3]}{100 + order % 40}", period=str(1 + next(turn) % 7),
            teacher=teachers[order % len(teachers)],
        )  # fmt: skip
        return world.sections.setdefault((school.system, order), made)

    for low, high in _bands(school):
        groups = _groups(sum(grades.get(grade, 0) for grade in range(low, high + 1)))
        for prefix, *_rest in names.CORE_SUBJECTS:
            course = _course(world, school.system, prefix, low, high)
            timetable.core[low, prefix] = [add(course, "Y", index) for index in range(1, groups + 1)]
    groups = _groups(math.ceil(sum(grades.values()) / len(names.ELECTIVES)))
    for prefix, *_rest in names.ELECTIVES:
        course = _course(world, school.system, prefix, LOWEST_GRADE, HIGHEST_GRADE)
        for semester in ("S1", "S2"):
            timetable.electives[semester, prefix] = [add(course, semester, index) for index in range(1, groups + 1)]


def _groups(students: int) -> int:
    return max(1, math.ceil(students / STUDENTS_PER_SECTION))


def _course(world: Population, system: str, prefix: str, low: int, high: int) -> Course:
    code = f"{prefix}{ceds_grade(low)}{ceds_grade(high) if high != low else ''}"
    for course in world.courses[system]:
        if course.code == code:
            return course
    _, title, subject, subject_code = next(row for row in names.CORE_SUBJECTS + names.ELECTIVES if row[0] == prefix)
    label = ceds_grade(low) if low == high else f"{ceds_grade(low)}-{ceds_grade(high)}"
    made = Course(
        system,
        world.next(system, "course"),
        code,
        f"{title} {label}",
        subject,
        subject_code,
        tuple(range(low, high + 1)),
    )
    world.courses[system].append(made)
    return made


def add_teachers(world: Population, headcount: dict[tuple[str, int], dict[int, int]]) -> None:
    """A principal and a pool of teachers per school. Some teach at two schools of a system, one at two systems."""
    rng = Random(f"{world.seed}/teachers")
    pools: dict[str, list[str]] = {}
    for system in world.systems:
        schools = world.schools_of(system.name)
        for school in schools:
            _add_teacher(world, rng, school, school.principal, principal=True)
            wanted = max(2, math.ceil(sum(headcount.get((school.number, world.year), {}).values()) / 12))
            pools[school.number] = [
                _add_teacher(world, rng, school, f"{school.number}-teacher-{n}") for n in range(1, wanted + 1)
            ]
        for first, second in pairwise(schools):
            _also_at(world, pools[first.number][0], second)
    for left, right in zip(world.systems, world.systems[1:], strict=False):
        _also_at(world, pools[world.schools_of(left.name)[0].number][1], world.schools_of(right.name)[0])


def _add_teacher(world: Population, rng: Random, school: School, key: str, *, principal: bool = False) -> str:
    number = len(world.teachers) + 1
    sex = rng.choice(("female", "male"))
    first, last = rng.choice(names.FIRST_NAMES[sex]), rng.choice(names.LAST_NAMES)
    world.teachers[key] = Teacher(
        key, first, last, f"{fold(first)}.{fold(last)}{number}@fernhollow.example",
        local_id=f"{90_000 + number}", state_id=f"{5_500_000 + number}", principal=principal,
        records={school.system: world.next(school.system, "staff")}, schools=(school.number,),
    )  # fmt: skip
    return key


def _also_at(world: Population, key: str, school: School) -> None:
    teacher = world.teachers[key]
    records = dict(teacher.records)
    if school.system not in records:
        records[school.system] = world.next(school.system, "staff")
    world.teachers[key] = replace(teacher, records=records, schools=(*teacher.schools, school.number))


# --- people ------------------------------------------------------------------------------------------------------


def add_family(world: Population, rng: Random) -> int:
    town, postal_code = rng.choice(names.TOWNS)
    last = _last_name(rng)
    digits = f"{rng.choice((973, 201, 732, 609, 856, 908))}555{rng.randint(0, 9999):04d}"
    phone = digits if rng.random() < 0.5 else f"({digits[:3]}) {digits[3:6]}-{digits[6:]}"
    first = rng.choice(names.FIRST_NAMES[rng.choice(("female", "male"))])
    number = len(world.families) + 1
    world.families.append(
        Family(
            last, f"{rng.randint(1, 1999)} {rng.choice(names.STREETS)}", town, postal_code,
            phone if rng.random() < 0.95 else "", first, f"{fold(first)}.{fold(last)}{number}@home.example",
        )
    )  # fmt: skip
    return number - 1


def _last_name(rng: Random) -> str:
    roll = rng.random()
    if roll < 0.03:
        return rng.choice(names.AWKWARD_LAST_NAMES)
    if roll < 0.18:
        return "-".join(rng.sample(names.LAST_NAMES, 2))
    return rng.choice(names.LAST_NAMES)


def add_person(
    world: Population,
    rng: Random,
    system: System,
    family: int,
    grade: int,
    *,
    twin_of: Person | None = None,
    namesake_of: Person | None = None,
) -> Person:
    """A new student of a family, in one system, not yet at any school."""
    home = world.families[family]
    last = namesake_of.facts["last_name"] if namesake_of else home.last_name
    for attempt in range(500):
        sex = rng.choice(("female", "male"))
        first = namesake_of.facts["first_name"] if namesake_of else rng.choice(names.FIRST_NAMES[sex])
        birth = twin_of.facts["birth_date"] if twin_of else _birth(rng, world.year, grade)
        if world.registry.take(first, last, birth, twin=twin_of is not None, strict=attempt < 200):
            break
    else:
        raise ValueError("the world is too large for its list of names")
    key = len(world.people) + 1
    known = {"first_name": first, "last_name": last, "birth_date": birth, "sex": sex}
    facts = _facts(rng, world, system, home=home, grade=grade, known=known)
    record = Record(system.name, world.next(system.name, "student"), _modified(rng, world.year))
    person = Person(key, facts, family, (record,), (), ())
    world.people[key] = person
    return person


def _birth(rng: Random, year: int, grade: int) -> date:
    """A birthday that makes the child old enough for the grade on September 1, and not a year too old."""
    return date(year - grade - 6, 9, 2) + timedelta(days=rng.randrange(365))


def _modified(rng: Random, year: int) -> Any:
    return stamp(date(year, 7, 1) + timedelta(days=rng.randrange(90)), rng.randrange(24))


def _facts(
    rng: Random, world: Population, system: System, *, home: Family, grade: int, known: dict[str, Any]
) -> dict[str, Any]:
    number = len(world.people) + 1
    plain = system.dialect == "powerschool" or rng.random() < 0.7 or number > 99_999
    local_id = str(200_000 + number * 3) if plain else f"{number:06d}"
    ssid = f"{'77' if plain else '07'}{number * 41 + 1_203_345:08d}" if rng.random() < 0.94 else None
    first, last = fold(known["first_name"]), fold(known["last_name"])
    mailing = (
        (home.street, home.city, home.postal_code)
        if rng.random() < 0.9
        else (f"PO Box {number}", home.city, home.postal_code)
    )
    return {
        **known,
        "ssid": ssid,
        "local_id": local_id,
        "middle_name": rng.choice(names.MIDDLE_NAMES) if rng.random() < 0.65 else None,
        "preferred_first_name": rng.choice(names.PREFERRED_NAMES) if rng.random() < 0.08 else None,
        "pronouns": rng.choice(names.PRONOUNS) if rng.random() < 0.03 else None,
        "username": f"{first[0]}{last}{number}",
        "email": f"{first}.{last}{number}@students.fernhollow.example" if rng.random() < 0.92 else None,
        "phone": home.phone or None,
        "mobile_phone": f"9085552{number % 1000:03d}" if grade > 5 and rng.random() < 0.3 else None,
        "home_street": home.street,
        "home_city": home.city,
        "home_state": names.STATE,
        "home_postal_code": home.postal_code,
        "mailing_street": mailing[0],
        "mailing_city": mailing[1],
        "mailing_state": names.STATE,
        "mailing_postal_code": mailing[2],
        **_race(rng),
        "graduation_year": world.year + 13 - grade,
        "district_entry_date": date(world.year - rng.randint(0, max(0, grade)), 9, 1),
        "grade_level": grade,
    }


def _race(rng: Random) -> dict[str, bool]:
    chosen = set(rng.sample(_RACES, 2)) if rng.random() < 0.06 else set(rng.choices(_RACES, (50, 22, 18, 6, 4)))
    return {"hispanic_or_latino": rng.random() < 0.25, **{race: race in chosen for race in _RACES}}


# --- placement ---------------------------------------------------------------------------------------------------


def pick_school(world: Population, system: str, grade: int, family: int) -> School:
    """The school of a family for a grade: siblings of one level go to one school, most to the regular one."""
    fitting = [school for school in world.schools_of(system) if school.low <= grade <= school.high]
    regular = [school for school in fitting if (school.low, school.high) != (0, 12)]
    academies = [school for school in fitting if school not in regular]
    pool = academies if academies and (family % 5 == 0 or not regular) else regular
    return pool[family % len(pool)]


def sit(world: Population, rng: Random, person: int, stint: Stint) -> tuple[Seat, ...]:
    """Seats for a student who starts at a school: every core subject and one elective per semester."""
    timetable = world.timetables[stint.school, stint.year]
    band = band_of(world.schools[stint.school], stint.grade)
    chosen = [timetable.core[band, prefix] for prefix, *_rest in names.CORE_SUBJECTS]
    first, second = rng.sample([prefix for prefix, *_rest in names.ELECTIVES], 2)
    chosen += [timetable.electives["S1", first], timetable.electives["S2", second]]
    sections = [group[person % len(group)] for group in chosen]
    entry = stint.entry
    return tuple(seat_in(world, section, entry) for section in sections if term(stint.year, section.term).end > entry)


def seat_in(world: Population, section: Section, entry: date) -> Seat:
    span = term(section.year, section.term)
    begin = max(span.begin, entry)
    return Seat(
        world.next(section.system, "seat"), section.system, section.order, section.year, begin, span.end, None,
        stamp(min(begin, entry), 4),
    )  # fmt: skip


def stint_at(
    world: Population,
    school: School,
    year: int,
    grade: int,
    entry: date,
    *,
    status: str = "active",
    primary: bool = True,
) -> Stint:
    code = ENTRY_NEW if entry > terms(year)[0].begin else ENTRY_RETURNING
    return Stint(
        world.next(school.system, "stint"), school.system, school.number, year, grade, entry, None, code, None,
        status, primary, stamp(entry, 4),
    )  # fmt: skip
