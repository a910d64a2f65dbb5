"""What happens from one day to the next: arrivals, departures, transfers, corrections and the rest, seeded.
Each event changes one person and says which ledger entries must follow; nobody has two events on one day."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from random import Random

from sis_pipeline.sandbox import filling, names
from sis_pipeline.sandbox.population import (
    ENTRY_NEW,
    EXIT_GRADUATED,
    EXIT_TRANSFER,
    HIGHEST_GRADE,
    Population,
    add_family,
    add_person,
    pick_school,
    seat_in,
    sit,
    stint_at,
)
from sis_pipeline.sandbox.school_calendar import day_date, stamp
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.things import Change, Person, Record, School, Seat, Stint

ABSENCES_PER_SCHOOL = 2
EXIT_NO_SHOW = "NS"


@dataclass
class Day:
    """One day in the making: whom events may still pick, what they did, and how many absences remain allowed."""

    world: Population
    number: int
    date: date
    rng: Random
    people: dict[int, Person]
    changes: list[Change] = field(default_factory=list)
    corrected: dict[tuple[int, str], str] = field(default_factory=dict)
    """(person, attribute) of every value that changed, with the system that holds the new value."""
    touched: set[int] = field(default_factory=set)
    absences: Counter[str] = field(default_factory=Counter)
    """Departures that only an absence shows, per school number."""
    absent_seats: int = 0
    headcount: Counter[str] = field(default_factory=Counter)
    """Students enrolled per school number when the day began."""

    @property
    def at(self) -> datetime:
        return stamp(self.date)

    @property
    def year(self) -> int:
        return self.world.year

    def put(self, person: Person) -> None:
        self.people[person.key] = person
        self.touched.add(person.key)


def live(world: Population, people: dict[int, Person], day: int) -> Day:
    """Day `day` (2, 3 …) made from the people of the day before."""
    made = Day(
        world, day, day_date(world.first_day, day), Random(f"{world.seed}/day/{day}"), dict(people)
    )  # fmt: skip
    made.headcount.update(stint.school for person in people.values() if (stint := _running(made, person)))
    settled = _settled(made)
    for system in world.systems:
        _live_in(made, system, settled[system.name])
    _move_between_systems(made, settled)
    _stir_disputes(made)
    return made


def _settled(day: Day) -> dict[str, list[int]]:
    """Who may have an event, per system in random order: enrolled, good, and held by one system only."""
    found: dict[str, list[int]] = {system.name: [] for system in day.world.systems}
    for person in day.people.values():
        ordinary = not person.shared and not person.bad and person.records[0].gone is None
        odd_row = any(stint.status == filling.EXIT_BEFORE_ENTRY for stint in person.stints) or any(
            (seat.system, seat.section) not in day.world.sections for seat in person.seats
        )
        if ordinary and not odd_row and current(day, person, person.home):
            found[person.home].append(person.key)
    for keys in found.values():
        day.rng.shuffle(keys)
    return found


def current(day: Day, person: Person, system: str) -> Stint | None:
    """The enrollment that runs this year in a system, if one does."""
    running = [
        stint for stint in person.stints
        if stint.system == system and stint.year == day.year and stint.status == "active"
    ]  # fmt: skip
    return running[-1] if running else None


def _running(day: Day, person: Person) -> Stint | None:
    return current(day, person, person.records[-1].system)


def _live_in(day: Day, system: System, settled: list[int]) -> None:
    size = system.students

    def times(per: int, act: Callable[[Day, System, Person], bool]) -> None:
        """Let `act` happen to one in `per` students, at least one; it refuses whom it does not suit."""
        wanted = max(1, size // per)
        for key in settled:
            if wanted == 0:
                break
            if key not in day.touched:
                wanted -= act(day, system, day.people[key])

    for _ in range(max(1, size // 150)):
        _arrive(day, system)
    times(200, _depart)
    times(250, _transfer)
    times(100, _correct)
    times(300, _change_grade)
    times(100, _swap_section)
    if system.speech.scheduled:
        times(10**9, _amend_entry)
        times(10**9, _no_show)
        if system.options.get("graduates"):
            times(10**9, _graduate)
    _enter_pre_registered(day, system)
    if day.number > 2:
        _re_enter(day, system)


# --- the ledger's words ------------------------------------------------------------------------------------------


def _log(day: Day, person: Person, kind: str, **about: object) -> None:
    """Note an enrollment event; `stated` is whether the system gives the date of what happened."""
    stated = about.pop("stated", True)
    day.changes.append(Change(person.key, kind, about.pop("effective", day.date), bool(stated), **about))  # type: ignore[arg-type]


def _log_seats(day: Day, person: Person, kind: str, seats: tuple[Seat, ...], *, stated: bool) -> None:
    """A drop that no date is given for shows today, and if that is later, on the first day of the seat."""
    for seat in seats:
        shown = seat.dropped if stated and seat.dropped else max(day.date, seat.begin)
        effective = seat.begin if kind == "section_add" else shown
        day.changes.append(
            Change(person.key, kind, effective, stated, section=(seat.system, seat.section),
                   school=day.world.sections[seat.system, seat.section].school)
        )  # fmt: skip


# --- coming and going --------------------------------------------------------------------------------------------


def _arrive(day: Day, system: System) -> None:
    grade = day.rng.randint(0, 12)
    person = add_person(day.world, day.rng, system, add_family(day.world, day.rng), grade)
    record = replace(person.records[0], modified=day.at)
    person = replace(person, records=(record,))
    school = pick_school(day.world, system.name, grade, person.family)
    _start(day, person, school, grade, kind="enroll")


def _start(day: Day, person: Person, school: School, grade: int, *, kind: str) -> None:
    """Enroll a person at a school today, seats included, and note it."""
    stint = stint_at(day.world, school, day.year, grade, day.date)._replace(modified=day.at)
    seats = _seats(day, person, stint)
    person = replace(person, stints=(*person.stints, stint), seats=(*person.seats, *seats))
    day.put(person)
    _log(day, person, kind, school=school.number)
    _log_seats(day, person, "section_add", seats, stated=True)


def _seats(day: Day, person: Person, stint: Stint) -> tuple[Seat, ...]:
    return tuple(seat._replace(modified=day.at) for seat in sit(day.world, day.rng, person.key, stint))


def open_seats(day: Day, person: Person, system: str) -> tuple[Seat, ...]:
    """The person's seats of this year in a system that are not over and not dropped."""
    return tuple(
        seat for seat in person.seats
        if seat.system == system and seat.year == day.year and seat.dropped is None and seat.end > day.date
    )  # fmt: skip


def _close_seats(day: Day, person: Person, system: System, *, by_absence: bool) -> Person:
    """Drop every open seat in a system today. A date is stated only for what had begun, where drops are dated."""
    leaving = open_seats(day, person, system.name)
    dropped = tuple(seat._replace(dropped=day.date, modified=day.at) for seat in leaving)
    _log_drops(day, person, system, dropped, by_absence=by_absence)
    gone = {seat.order for seat in leaving}
    kept = tuple(seat for seat in person.seats if not (seat.system == system.name and seat.order in gone))
    return replace(person, seats=kept + dropped)


def _log_drops(day: Day, person: Person, system: System, dropped: tuple[Seat, ...], *, by_absence: bool) -> None:
    dated = system.dropping == "dated" and not by_absence
    for seat in dropped:
        shown = dated and seat.dropped is not None and seat.dropped > seat.begin
        _log_seats(day, person, "section_drop", (seat,), stated=shown)
        day.absent_seats += not shown and system.dropping != "tombstone"


def _absence_allowed(day: Day, system: System, school: str) -> bool:
    """Whether one more departure that only an absence shows keeps far from what a guard must hold."""
    enrolled = day.headcount.total()
    here = sum(gone for number, gone in day.absences.items() if day.world.schools[number].system == system.name)
    return (
        day.absences.total() < max(1, enrolled // 70)
        and here < max(1, system.students // 80)
        and day.absences[school] < ABSENCES_PER_SCHOOL
        and day.headcount[school] >= 4
        and day.absent_seats + 7 <= max(7, enrolled * 7 // 62)
    )


def _depart(day: Day, system: System, person: Person) -> bool:
    stint = current(day, person, system.name)
    if stint is None or (system.leaving == "vanish" and not _absence_allowed(day, system, stint.school)):
        return False
    _leave(day, system, person, stint, "withdrawn")
    _log(day, person, "withdraw", school=stint.school, stated=system.leaving == "explicit")
    return True


def _graduate(day: Day, system: System, person: Person) -> bool:
    """Early, in the middle of the year."""
    stint = current(day, person, system.name)
    if stint is None or stint.grade != HIGHEST_GRADE:
        return False
    _leave(day, system, person, stint, "graduated")
    _log(day, person, "graduate", school=stint.school)
    return True


def _leave(day: Day, system: System, person: Person, stint: Stint, status: str) -> Person:
    """End a person's time in a system today: an exit with code and date, or whatever the system makes of it."""
    if system.leaving == "vanish":
        day.absences[stint.school] += 1
    person = _close_seats(day, person, system, by_absence=system.leaving != "explicit")
    code = EXIT_GRADUATED if status == "graduated" else EXIT_TRANSFER
    ended = stint._replace(exit=day.date, exit_code=code, status=status, modified=day.at)
    person = _with_stint(person, stint, ended)
    records = tuple(
        replace(record, gone=day.date, modified=day.at) if record.system == system.name else record
        for record in person.records
    )
    person = replace(person, records=records)
    day.put(person)
    return person


def _with_stint(person: Person, old: Stint, new: Stint) -> Person:
    return replace(person, stints=tuple(new if stint == old else stint for stint in person.stints))


def _transfer(day: Day, system: System, person: Person) -> bool:
    """To another school of the same system, from today on."""
    stint = current(day, person, system.name)
    if stint is None:
        return False
    grade = stint.grade
    others = [
        school for school in day.world.schools_of(system.name)
        if school.low <= grade <= school.high and school.number != stint.school
    ]  # fmt: skip
    if not others or (system.dropping == "vanish" and not _absence_allowed(day, system, stint.school)):
        return False
    if system.dropping == "vanish":
        day.absences[stint.school] += 1
    school = day.rng.choice(others)
    person = _close_seats(day, person, system, by_absence=False)
    ended = stint._replace(exit=day.date, exit_code=EXIT_TRANSFER, status="transferred", modified=day.at)
    begun = stint_at(day.world, school, day.year, grade, day.date)._replace(entry_code=ENTRY_NEW, modified=day.at)
    seats = _seats(day, person, begun)
    person = _with_stint(person, stint, ended)
    person = _touch(day, replace(person, stints=(*person.stints, begun), seats=(*person.seats, *seats)), system)
    day.put(person)
    _log(day, person, "transfer", school=school.number, from_school=stint.school)
    _log_seats(day, person, "section_add", seats, stated=True)
    return True


def _touch(day: Day, person: Person, system: System) -> Person:
    records = tuple(
        replace(record, modified=day.at) if record.system == system.name else record for record in person.records
    )
    return replace(person, records=records)


def _move_between_systems(day: Day, settled: dict[str, list[int]]) -> None:
    """Transfers from a school of one system to one of another: for the district one transfer, not an exit and an entry."""
    systems = {system.name: system for system in day.world.systems}
    if len(systems) < 2:
        return
    wanted = max(1, len(day.people) // 1000)
    pairs = [(left, right) for left in systems.values() for right in systems.values() if left.name != right.name]
    day.rng.shuffle(pairs)
    for left, right in pairs:
        mover = next(
            (key for key in reversed(settled[left.name]) if _can_move(day, left, right, day.people[key])), None
        )
        if wanted and mover is not None:
            _move(day, left, right, day.people[mover])
            wanted -= 1


def _can_move(day: Day, left: System, right: System, person: Person) -> bool:
    """The ssid must prove it, in a form that survives a system that keeps it as a number."""
    stint = current(day, person, left.name)
    facts = person.facts
    as_number = "powerschool" not in {left.dialect, right.dialect} or not (
        str(facts["ssid"]).startswith("0") or facts["local_id"].startswith("0")
    )
    return (
        person.key not in day.touched
        and stint is not None
        and facts["ssid"] is not None
        and as_number
        and any(school.low <= stint.grade <= school.high for school in day.world.schools_of(right.name))
        and (left.leaving != "vanish" or _absence_allowed(day, left, stint.school))
    )


def _move(day: Day, left: System, right: System, person: Person) -> None:
    stint = current(day, person, left.name)
    assert stint is not None  # noqa: S101 - _can_move has looked
    person = _leave(day, left, person, stint, "transferred")
    school = pick_school(day.world, right.name, stint.grade, person.family)
    record = Record(right.name, day.world.next(right.name, "student"), day.at)
    person = replace(person, records=(*person.records, record))
    begun = stint_at(day.world, school, day.year, stint.grade, day.date)._replace(modified=day.at)
    seats = _seats(day, person, begun)
    person = replace(person, stints=(*person.stints, begun), seats=(*person.seats, *seats))
    day.put(person)
    _log(day, person, "transfer", school=school.number, from_school=stint.school)
    _log_seats(day, person, "section_add", seats, stated=True)


def _re_enter(day: Day, system: System) -> None:
    """Somebody who left on an earlier day comes back to the same school."""
    latest = day.date - timedelta(days=system.options.get("stays_away", 1))
    for person in day.people.values():
        record, last = person.records[0], person.stints[-1]
        own = not person.shared and record.system == system.name and person.key not in day.touched
        if own and record.gone is not None and record.gone <= latest and last.status != "graduated":
            back = replace(person, records=(replace(record, gone=None, modified=day.at),))
            if system.leaving == "tombstone":  # what was marked as deleted with the student is there again
                back = replace(back, seats=tuple(seat._replace(modified=day.at) for seat in back.seats))
            _start(day, back, day.world.schools[last.school], last.grade, kind="re_enter")
            return


def _enter_pre_registered(day: Day, system: System) -> None:
    """Their day has come; the ledger has had them since they were first seen."""
    for person in list(day.people.values()):
        last = person.stints[-1] if person.stints else None
        if last and last.status == "pre_registered" and last.system == system.name and last.entry <= day.date:
            entered = _with_stint(person, last, last._replace(status="active", modified=day.at))
            day.put(_touch(day, entered, system))


# --- corrections -------------------------------------------------------------------------------------------------


def _correct(day: Day, system: System, person: Person) -> bool:
    """A field is put right: no ledger entry, but a new published value."""
    attribute = day.rng.choice(sorted({"email", "phone", "middle_name", "home_street"} & system.carries))
    value = filling.other_value(person, attribute, 20 + day.number)
    person = replace(person, facts={**person.facts, attribute: value})
    day.put(_touch(day, person, system))
    day.corrected[person.key, attribute] = system.name
    return True


def _change_grade(day: Day, system: System, person: Person) -> bool:
    stint = current(day, person, system.name)
    if stint is None:
        return False
    school = day.world.schools[stint.school]
    fitting = [grade for grade in (stint.grade - 1, stint.grade + 1) if max(0, school.low) <= grade <= school.high]
    if not fitting:
        return False
    grade = day.rng.choice(fitting)
    facts = {**person.facts, "grade_level": grade, "graduation_year": day.year + 13 - grade}
    person = _with_stint(replace(person, facts=facts), stint, stint._replace(grade=grade, modified=day.at))
    day.put(_touch(day, person, system))
    _log(day, person, "grade_change", school=stint.school, stated=False)
    return True


def _swap_section(day: Day, system: System, person: Person) -> bool:
    """Out of this semester's elective, into another one."""
    stint = current(day, person, system.name)
    if stint is None:
        return False
    sections = day.world.sections
    seat = next(
        (seat for seat in open_seats(day, person, system.name)
         if sections[seat.system, seat.section].term == "S1" and seat.begin < day.date), None
    )  # fmt: skip
    if seat is None:
        return False
    taken = {sections[other.system, other.section].course.code[:2] for other in person.seats if other.year == day.year}
    free = [prefix for prefix, *_rest in names.ELECTIVES if prefix not in taken]
    if not free:
        return False
    group = day.world.timetables[stint.school, day.year].electives["S1", free[0]]
    dropped = seat._replace(dropped=day.date, modified=day.at)
    added = seat_in(day.world, group[person.key % len(group)], day.date)._replace(modified=day.at)
    kept = tuple(other for other in person.seats if other != seat)
    person = replace(person, seats=(*kept, dropped, added))
    day.put(person)
    _log_drops(day, person, system, (dropped,), by_absence=False)
    _log_seats(day, person, "section_add", (added,), stated=True)
    return True


def _amend_entry(day: Day, system: System, person: Person) -> bool:
    """The entry date turns out to have been two days later."""
    stint = current(day, person, system.name)
    if stint is None or stint.entry >= day.world.first_day - timedelta(days=7):
        return False
    entry = stint.entry + timedelta(days=2)
    day.put(_touch(day, _with_stint(person, stint, stint._replace(entry=entry, modified=day.at)), system))
    _log(day, person, "amend", school=stint.school, effective=entry)
    return True


def _no_show(day: Day, system: System, person: Person) -> bool:
    """Counted as enrolled until now, but never came: the exit is put on the entry."""
    stint = current(day, person, system.name)
    if stint is None or any(other.year == day.year for other in person.stints if other is not stint):
        return False
    never = stint._replace(exit=stint.entry, exit_code=EXIT_NO_SHOW, status="no_show", modified=day.at)
    leaving = open_seats(day, person, system.name)
    dropped = tuple(seat._replace(dropped=seat.begin, modified=day.at) for seat in leaving)
    kept = tuple(seat for seat in person.seats if seat not in leaving)
    records = tuple(replace(record, gone=day.date, modified=day.at) for record in person.records)
    person = replace(_with_stint(person, stint, never), seats=kept + dropped, records=records)
    day.put(person)
    _log(day, person, "no_show", school=stint.school, effective=stint.entry)
    _log_drops(day, person, system, dropped, by_absence=False)
    return True


def _stir_disputes(day: Day) -> None:
    """A few shared students get a new disagreement between their systems; for a few, one ends."""
    shared = [
        person for person in day.people.values()
        if person.shared and person.key not in day.touched and all(record.gone is None for record in person.records)
    ]  # fmt: skip
    day.rng.shuffle(shared)
    wanted = max(1, len(shared) // 50)
    for person in [person for person in shared if not person.records[-1].differs][:wanted]:
        known = tuple(
            name for name in ("email", "phone", "middle_name", "mobile_phone") if person.facts[name] is not None
        )
        attribute = filling.disputable(day.world.systems, person, day.rng, known)
        if attribute:
            day.corrected[person.key, attribute] = person.records[-1].system
            day.put(_touched_second(day, filling.dispute(person, attribute)))
    calm = [person for person in shared if set(person.records[-1].differs) - {"grade_level"}]
    for person in [person for person in calm if person.key not in day.touched][:wanted]:
        differs = dict(person.records[-1].differs)
        attribute = min(set(differs) - {"grade_level"})
        del differs[attribute]
        second = replace(person.records[-1], differs=differs)
        day.corrected[person.key, attribute] = second.system
        day.put(_touched_second(day, replace(person, records=(*person.records[:-1], second))))


def _touched_second(day: Day, person: Person) -> Person:
    second = replace(person.records[-1], modified=day.at)
    return replace(person, records=(*person.records[:-1], second))
