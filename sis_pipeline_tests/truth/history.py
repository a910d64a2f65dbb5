"""What the ledger must be told, and the tables hold, when a system's days are read one after the other, or not quite:
a day that is never read, a reading that proves nothing absent, a day that comes again after a later one.

Worked out from the sandbox's events alone: each reading is told what happened since the one before. Two rules make it
simple, and are asserted: no person has an event on two days that one reading tells together, and only the day before
is ever shown again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.sandbox.things import Change, Stint
from sis_pipeline.sandbox.truth import SisRecord
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.truth.proofs import true_seats
from sis_pipeline_tests.truth.tables import Event

Enrolled = Mapping[int, frozenset[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Reading:
    """`shown`: the day that the systems show; `on`: that of the clock, where they show an older one. `partial`: the
    system that is not read to a proven end."""

    shown: int
    year: SchoolYear
    on: int | None = None
    partial: str | None = None

    @property
    def today(self) -> int:
        return self.on or self.shown


@dataclass(frozen=True, slots=True)
class Told:
    """What a reading must bring: the events that the ledger gains, and what is published afterwards."""

    events: Counter[Event]
    enrolled: Enrolled
    seats: set[tuple[int, SisRecord]]
    matched: set[frozenset[SisRecord]]


class History:
    """The readings of a world so far."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._years: set[str] = set()
        self._shown = 0
        self._late: tuple[Change, ...] = ()
        """What was not told because only an absence shows it, and none was proven."""
        self._taken_back = False

    def told(self, reading: Reading) -> Told:
        """What one more reading must bring."""
        if reading.year.key != self._world.school_year:
            return self._of_a_year_that_is_over(reading)
        events = self._events(reading)
        self._shown = reading.shown
        truth = self._world.truth(reading.shown)
        before = self._world.truth(reading.shown - 1) if self._late else truth
        late = {change.person for change in self._late if change.section is None}
        groups = [truth.people.get(key, frozenset()) | before.people[key] for key in late]
        return Told(
            Counter(self._event(change) for change in events),
            {**truth.enrolled, **{key: self._still_enrolled(key, reading.shown) for key in late}},
            true_seats(self._world, reading.shown) | set(self._late_seats()),
            truth.groups | {records for records in groups if len({system for system, _ in records}) > 1},
        )

    def _of_a_year_that_is_over(self, reading: Reading) -> Told:
        """Its first reading brings it whole; nothing happens in it any more."""
        truth = self._world.truth(reading.shown, reading.year.key)
        changes = truth.changes if reading.year.key in self._years else truth.first_load
        self._years.add(reading.year.key)
        return Told(Counter(self._event(change) for change in changes), truth.enrolled, set(), truth.groups)

    def _events(self, reading: Reading) -> Sequence[Change]:
        today = self._world.date(reading.today)
        if reading.shown < self._shown:
            assert reading.shown == self._shown - 1
            assert not self._late
            self._taken_back = True
            return [back for one in self._world.changes(self._shown) for back in self._back(one, today)]
        days = [self._world.truth(day).changes for day in range(self._shown + 1, reading.shown + 1)]
        _prove_nobody_is_in_two([self._late, *days])
        happened = [change for changes in days for change in changes]
        if self._taken_back:
            self._taken_back = False
            return [_again(change, today) for change in happened]
        late, self._late = self._late, tuple(one for one in happened if self._is_late(one, reading.partial))
        told = [change for change in happened if change not in self._late]
        arrivals = [
            replace(change, kind="enroll", from_school=None) for change in self._late if change.kind == "transfer"
        ]
        return [*(_dated(change, today) for change in (*told, *late)), *arrivals]

    # --- a reading that proves nothing absent ------------------------------------------------------------------------

    def _is_late(self, change: Change, partial: str | None) -> bool:
        """Whether it can be seen only by what a system, whose reading is partial, does not show any more."""
        if partial is None:
            return False
        if change.kind == "transfer":
            left = self._world.population.schools[str(change.from_school)].system
            return left == partial and self._world.system(partial).leaving == "vanish"
        return not change.stated and change.kind in {"withdraw", "section_drop"} and self._system(change) == partial

    def _still_enrolled(self, person: int, day: int) -> frozenset[tuple[str, str]]:
        """Where the person is and was: of several places that of the first system, then the latest, is the primary one."""
        here = {stint.school: stint for number in (day - 1, day) for stint in self._running(person, number)}
        order = [system.name for system in self._world.systems]
        first = min(here.values(), key=lambda stint: (order.index(stint.system), -stint.entry.toordinal()))
        return frozenset((school, "primary" if stint is first else "secondary") for school, stint in here.items())

    def _running(self, person: int, day: int) -> Iterator[Stint]:
        for stint in self._world.people(day)[person].stints:
            if stint.year == self._world.year and stint.status == "active":
                yield stint

    def _late_seats(self) -> Iterator[tuple[int, SisRecord]]:
        truth = self._world.truth(self._shown)
        for change in self._late:
            section = truth.section_sis_id(change)
            if section is not None:
                yield change.person, section

    # --- a day that is taken back and said again ---------------------------------------------------------------------

    def _back(self, change: Change, today: date) -> Iterator[Change]:
        """What an event looks like when its system is as it was the day before: who had come never came, who had left
        is there again, from today on; a correction is corrected; a seat that was given up is taken from its first day."""
        kind, before = change.kind, self._world.people(self._shown - 1).get(change.person)
        if kind in {"enroll", "re_enter", "transfer"}:
            yield replace(change, kind="no_show", from_school=None)
        if kind in {"withdraw", "graduate", "no_show", "transfer"}:
            yield replace(
                change, kind="re_enter", effective=today, school=change.from_school or change.school, from_school=None
            )
        if kind == "amend":
            assert before is not None
            [stint] = [
                stint for stint in before.stints if stint.school == change.school and stint.year == self._world.year
            ]
            yield replace(change, effective=stint.entry)
        if kind == "grade_change":
            yield change
        if kind == "section_add":
            yield replace(change, kind="section_drop", effective=max(today, change.effective))
        if kind == "section_drop":
            assert before is not None
            seats = [
                seat for seat in before.seats if (seat.system, seat.section) == change.section and seat.dropped is None
            ]
            yield replace(change, kind="section_add", effective=seats[-1].begin)

    def _system(self, change: Change) -> str:
        return self._world.population.schools[str(change.school)].system

    def _event(self, change: Change) -> Event:
        section = self._world.truth(1).section_sis_id(change)
        return change.person, change.kind, change.effective, change.school, change.from_school, section


def _again(change: Change, today: date) -> Change:
    """What an event looks like the second time: who came and then never came is one who comes back."""
    return replace(change, kind="re_enter", effective=today) if change.kind == "enroll" else _dated(change, today)


def _dated(change: Change, today: date) -> Change:
    """The source's own date or, where it gives none, the day on which it shows; nothing ends before it begins."""
    return change if change.stated else replace(change, effective=max(today, change.effective))


def _prove_nobody_is_in_two(days: Sequence[Iterable[Change]]) -> None:
    people = [{change.person for change in changes} for changes in days]
    assert sum(map(len, people)) == len(set().union(*people)), "choose another day, on which nobody's events meet"
