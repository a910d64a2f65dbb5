"""Decides who lives in a world on day 1: families, twins and namesakes, who is in two systems, who left earlier,
and which rows are bad. The making of single people and sections is in `population`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from random import Random
from typing import Any, NamedTuple

from sis_pipeline.sandbox import names
from sis_pipeline.sandbox.population import (
    EXIT_GRADUATED,
    EXIT_TRANSFER,
    EXIT_YEAR_END,
    MISSING_SECTION,
    Population,
    add_family,
    add_person,
    add_schools,
    add_sections,
    add_teachers,
    pick_school,
    sit,
    stint_at,
)
from sis_pipeline.sandbox.school_calendar import stamp, terms
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.things import Person, Record, School, Seat, Stint

DISPUTABLE = ("email", "phone", "preferred_first_name", "home_street", "middle_name", "mobile_phone")
"""Attributes on which two systems may disagree whatever proves that the records are one person."""
DISPUTABLE_WITH_SSID = (*DISPUTABLE, "birth_date", "grade_level")
"""With a common ssid and equal names, the birth date proves nothing and may differ too."""
NO_LAST_NAME, IMPOSSIBLE_BIRTH_DATE, MISSING_SECTION_SEAT, EXIT_BEFORE_ENTRY = (
    "no_last_name", "impossible_birth_date", "missing_section", "exit_before_entry",
)  # fmt: skip


class Place(NamedTuple):
    """Where a student is to be: one school in one year, from a day, perhaps only until another."""

    school: School
    year: int
    grade: int
    entry: date
    exit: date | None = None
    exit_code: str | None = None
    status: str = "active"
    primary: bool = True


@dataclass
class Plans:
    places: dict[int, list[Place]] = field(default_factory=lambda: defaultdict(list))

    def headcount(self) -> dict[tuple[str, int], dict[int, int]]:
        counted: dict[tuple[str, int], dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for places in self.places.values():
            for place in places:
                counted[place.school.number, place.year][place.grade] += 1
        return counted


def fill(systems: tuple[System, ...], year: int, first_day: date, seed: object, shared: float) -> Population:
    """The world of day 1. `shared` is the share of all distinct students that two systems hold."""
    world = Population(systems, year, first_day, seed)
    add_schools(world)
    plans = Plans()
    away = _away(systems, shared)
    for system in systems:
        rng = Random(f"{seed}/people/{system.name}")
        _add_households(world, plans, rng, system, system.students - away[system.name])
        _add_leavers(world, plans, rng, system)
        _add_pre_registered(world, plans, rng, system)
        _add_bad_students(world, plans, rng, system)
    _share(world, plans, away)
    add_teachers(world, plans.headcount())
    add_sections(world, plans.headcount())
    _place(world, plans)
    _add_bad_rows(world)
    return world


def _away(systems: tuple[System, ...], shared: float) -> dict[str, int]:
    """How many of each system's students have their home in an earlier one."""
    total = sum(system.students for system in systems)
    wanted = round(total * shared / (1 + shared)) if len(systems) > 1 else 0
    later = sum(system.students for system in systems[1:]) or 1
    away = {systems[0].name: 0} if systems else {}
    before = systems[0].students if systems else 0
    for system in systems[1:]:
        away[system.name] = min(round(wanted * system.students / later), system.students // 2, before // 3)
        before += system.students
    return away


# --- households --------------------------------------------------------------------------------------------------


def _add_households(world: Population, plans: Plans, rng: Random, system: System, wanted: int) -> None:
    """Families of one to three children, some twins, and now and then a namesake of somebody older or younger."""
    added: list[Person] = []
    while len(added) < wanted:
        if len(added) > 20 and rng.random() < 0.008:
            namesake = rng.choice(added)
            grade = (namesake.facts["grade_level"] + rng.randint(2, 9)) % 13
            added.append(add_person(world, rng, system, add_family(world, rng), grade, namesake_of=namesake))
            continue
        added += _household(world, rng, system, min(rng.choices((1, 2, 3), (55, 32, 13))[0], wanted - len(added)))
    for person in added:
        _plan(world, plans, rng, system.name, person)


def _household(world: Population, rng: Random, system: System, size: int) -> list[Person]:
    family = add_family(world, rng)
    grades = rng.sample(range(-1, 13), size)
    children = [add_person(world, rng, system, family, grades[0])]
    twins = size > 1 and rng.random() < 0.06
    for position, grade in enumerate(grades[1:], start=1):
        if twins and position == 1:
            children.append(add_person(world, rng, system, family, grades[0], twin_of=children[0]))
        else:
            children.append(add_person(world, rng, system, family, grade))
    return children


def _plan(world: Population, plans: Plans, rng: Random, system: str, person: Person, *, primary: bool = True) -> None:
    """A place this year and, unless new to the district, one last year a grade below."""
    grade = person.facts["grade_level"]
    first = terms(world.year)[0].begin
    earlier = plans.places[person.key]
    was_here = any(place.year < world.year for place in earlier) if not primary else rng.random() >= 0.06
    if was_here and grade > -1:
        plans.places[person.key].append(_last_year(world, system, person, grade - 1, EXIT_YEAR_END, primary=primary))
    school = pick_school(world, system, grade, person.family)
    plans.places[person.key].append(Place(school, world.year, grade, first, primary=primary))


def _last_year(world: Population, system: str, person: Person, grade: int, code: str, *, primary: bool = True) -> Place:
    span = terms(world.year - 1)[0]
    school = pick_school(world, system, grade, person.family)
    status = "graduated" if code == EXIT_GRADUATED else "withdrawn"
    return Place(school, world.year - 1, grade, span.begin, span.end, code, status, primary)


def _add_leavers(world: Population, plans: Plans, rng: Random, system: System) -> None:
    """Who is gone on day 1: graduates and leavers of last year and, where a system tells, this September's leavers."""
    first = terms(world.year)[0].begin
    if system.speech.prior_year:
        for _ in range(max(1, system.students // 18)):
            person = add_person(world, rng, system, add_family(world, rng), 13)
            plans.places[person.key].append(_last_year(world, system.name, person, 12, EXIT_GRADUATED))
        for _ in range(max(1, system.students // 30)):
            person = add_person(world, rng, system, add_family(world, rng), rng.randint(1, 11))
            grade = person.facts["grade_level"] - 1
            plans.places[person.key].append(_last_year(world, system.name, person, grade, EXIT_TRANSFER))
    if system.leaving == "explicit":
        for _ in range(max(1, system.students // 150)):
            person = add_person(world, rng, system, add_family(world, rng), rng.randint(0, 12))
            grade, gone = person.facts["grade_level"], first + timedelta(days=rng.randint(8, 25))
            school = pick_school(world, system.name, grade, person.family)
            plans.places[person.key].append(Place(school, world.year, grade, first, gone, EXIT_TRANSFER, "withdrawn"))


def _add_pre_registered(world: Population, plans: Plans, rng: Random, system: System) -> None:
    """Students whose first day is day 3: known, but not yet enrolled."""
    for _ in range(system.options.get("pre_registered", 0)):
        person = add_person(world, rng, system, add_family(world, rng), rng.randint(0, 12))
        grade, entry = person.facts["grade_level"], world.first_day + timedelta(days=2)
        school = pick_school(world, system.name, grade, person.family)
        plans.places[person.key].append(Place(school, world.year, grade, entry, status="pre_registered"))


def _add_bad_students(world: Population, plans: Plans, rng: Random, system: System) -> None:
    """One student without a last name and, where birth dates are shown, one born on a day that does not exist."""
    if not system.options.get("bad_rows", True):
        return
    kinds = [NO_LAST_NAME] + ([IMPOSSIBLE_BIRTH_DATE] if "birth_date" in system.carries else [])
    for kind in kinds:
        person = add_person(world, rng, system, add_family(world, rng), rng.randint(1, 12))
        world.people[person.key] = replace(person, records=(replace(person.records[0], bad=kind),))
        grade = person.facts["grade_level"]
        school = pick_school(world, system.name, grade, person.family)
        plans.places[person.key].append(Place(school, world.year, grade, terms(world.year)[0].begin))


# --- two systems, one student ------------------------------------------------------------------------------------


def _share(world: Population, plans: Plans, away: dict[str, int]) -> None:
    rng = Random(f"{world.seed}/shared")
    for position, system in enumerate(world.systems):
        earlier = {other.name: other for other in world.systems[:position]}
        pool = [
            person
            for person in world.people.values()
            if person.home in earlier and not person.shared and not person.bad and _attends(plans, world, person)
        ]
        for person in rng.sample(pool, min(away[system.name], len(pool))):
            shared = _with_second_record(world, rng, person, earlier[person.home], system)
            world.people[person.key] = shared
            _plan(world, plans, rng, system.name, shared, primary=False)
    _dispute_some(world, rng)


def _attends(plans: Plans, world: Population, person: Person) -> bool:
    last = plans.places[person.key][-1]
    return last.year == world.year and last.status == "active"


def _with_second_record(world: Population, rng: Random, person: Person, home: System, system: System) -> Person:
    """The same person in a second system, provably: by ssid, or by name, birth date and an equal email or phone."""
    proofs = ["ssid"] * 6
    both = home.carries & system.carries
    if "birth_date" in both:
        proofs += [name for name in ("email", "phone") if person.facts[name]]
    proof = rng.choice(proofs)
    facts = dict(person.facts)
    facts["ssid"] = facts["ssid"] or f"77{person.key * 41 + 1_203_345:08d}"
    if home.dialect == "powerschool" or system.dialect == "powerschool":
        facts["ssid"] = "77" + facts["ssid"][2:]
    hidden = frozenset[str]()
    if proof != "ssid":
        hidden = frozenset({"ssid", "local_id"}) if rng.random() < 0.5 else frozenset({"ssid"})
    record = Record(
        system.name, world.next(system.name, "student"), stamp(date(world.year, 8, 20) , 3), hides=hidden
    )  # fmt: skip
    return replace(person, facts=facts, records=(*person.records, record), proof=proof)


def _dispute_some(world: Population, rng: Random) -> None:
    """A fifth of the shared students have a value on which their systems disagree."""
    for key in sorted(world.people):
        person = world.people[key]
        if person.shared and rng.random() < 0.2:
            attribute = disputable(world.systems, person, rng, DISPUTABLE_WITH_SSID)
            if attribute:
                world.people[key] = dispute(person, attribute)


def disputable(systems: Iterable[System], person: Person, rng: Random, attributes: tuple[str, ...]) -> str | None:
    """An attribute that both systems show and that does not prove that the two records are one person."""
    held = {system.name: system.carries for system in systems}
    shown = frozenset.intersection(*(held[record.system] for record in person.records))
    free = [
        attribute
        for attribute in attributes
        if attribute in shown
        and attribute != person.proof
        and (attribute not in {"birth_date", "grade_level"} or person.proof == "ssid")
        and attribute not in person.records[-1].differs
    ]
    return rng.choice(free) if free else None


def dispute(person: Person, attribute: str) -> Person:
    """The person with another value of an attribute in the second system (and one in the first, if it had none)."""
    facts = dict(person.facts)
    facts[attribute] = facts[attribute] if facts[attribute] is not None else other_value(person, attribute, 7)
    changed = replace(person, facts=facts)
    second = person.records[-1]
    differs = {**second.differs, attribute: other_value(changed, attribute, 1)}
    return replace(changed, records=(*person.records[:-1], replace(second, differs=differs)))


def other_value(person: Person, attribute: str, turn: int) -> Any:
    """A plausible value that is not the one the person has; `turn` picks another."""
    present, key = person.facts[attribute], person.key
    if attribute == "grade_level":
        return present - 1 if present > 0 else present + 1
    if attribute == "birth_date":
        return present + timedelta(days=10 + turn)
    if attribute in {"phone", "mobile_phone"}:
        return (
            f"973555{(key * 7 + turn * 131) % 10_000:04d}"
            if attribute == "phone"
            else f"9085559{(key + turn) % 1000:03d}"
        )
    if attribute == "email":
        return f"{person.facts['username']}.{turn}@mail.example"
    if attribute == "home_street":
        return f"{2000 + key % 700 + turn} {names.STREETS[(key + turn) % len(names.STREETS)]}"
    choices = [name for name in names.PREFERRED_NAMES + names.MIDDLE_NAMES if name != present and len(name) > 2]
    return choices[(key + turn) % len(choices)]


# --- places become stints and seats ------------------------------------------------------------------------------


def _place(world: Population, plans: Plans) -> None:
    rng = Random(f"{world.seed}/seats")
    for key in sorted(plans.places):
        person = world.people[key]
        stints, seats = list[Stint](), list[Seat]()
        for place in plans.places[key]:
            stint, taken = _settle(world, rng, key, place)
            stints.append(stint)
            seats += taken
        world.people[key] = replace(person, stints=tuple(stints), seats=tuple(seats))


def _settle(world: Population, rng: Random, key: int, place: Place) -> tuple[Stint, tuple[Seat, ...]]:
    stint = stint_at(
        world, place.school, place.year, place.grade, place.entry, status=place.status, primary=place.primary
    )
    seats = sit(world, rng, key, stint)
    if place.exit is not None:
        stint = stint._replace(exit=place.exit, exit_code=place.exit_code, modified=stamp(place.exit))
        over = place.exit < terms(place.year)[0].end
        seats = (
            tuple(seat._replace(dropped=place.exit, modified=stamp(place.exit)) for seat in seats) if over else seats
        )
    return stint, seats


def _add_bad_rows(world: Population) -> None:
    """A seat in a section that does not exist and, where enrollments have dates, one that ends before it begins."""
    for system in world.systems:
        if not system.options.get("bad_rows", True):
            continue
        fitting = [
            person
            for person in world.people.values()
            if person.home == system.name and not person.shared and not person.bad
            and person.stints[-1].status == "active"
        ]  # fmt: skip
        if len(fitting) < 2:
            continue
        unseated, backwards = fitting[0], fitting[1]
        seat = unseated.seats[-7]._replace(order=world.next(system.name, "seat"), section=MISSING_SECTION)
        world.people[unseated.key] = replace(unseated, seats=(*unseated.seats, seat))
        if system.speech.scheduled:
            entry = terms(world.year)[0].begin
            stint = backwards.stints[-1]._replace(
                order=world.next(system.name, "stint"), entry=entry, exit=entry - timedelta(days=30),
                exit_code=EXIT_TRANSFER, status=EXIT_BEFORE_ENTRY, primary=False,
            )  # fmt: skip
            world.people[backwards.key] = replace(backwards, stints=(stint, *backwards.stints))
