"""A district from one seed: its systems, its people day by day, and the truth about them.
Pure and deterministic, across processes too; serving it over HTTP is the server's business."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from threading import RLock
from zlib import crc32

from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.sandbox.days import Day, live
from sis_pipeline.sandbox.filling import fill
from sis_pipeline.sandbox.school_calendar import day_date
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.things import Change, Person
from sis_pipeline.sandbox.truth import Truth
from sis_pipeline.sandbox.views import View

DEMO_SYSTEMS = (
    System("powerschool", "powerschool", 1_000, {"max_page_size": 1_000}),
    System("infinite-campus", "infinite_campus", 450),
    System("skyward", "skyward_oneroster", 450),
    System("oneroster", "oneroster_1.1", 400, {"page_cap": 500, "totals": False, "links": "none"}),
    System("oneroster-csv", "oneroster_csv", 250),
)
"""The demo district: five systems, more than 2,000 students."""


class World:
    """A district on any day.

    `systems` in order of priority: where two of them hold one student, the earlier is the student's home. Without
    `systems`, the demo district's are scaled so that about `students` distinct students live in it. `shared` is the
    share of students held by two systems. Day 1 is October 5 of the school year unless `first_day` says otherwise.
    """

    def __init__(
        self,
        *,
        seed: object = 1,
        students: int | None = None,
        school_year: str = "2026-2027",
        systems: Sequence[System] | None = None,
        district: str = "fernhollow",
        shared: float = 0.12,
        first_day: date | None = None,
    ) -> None:
        year = SchoolYear.parse(school_year)
        self.seed = seed
        self.school_year = year.key
        self.prior_year = SchoolYear(year.start - 1).key
        self.year = year.start
        self.district = district
        self.systems: tuple[System, ...] = tuple(systems) if systems is not None else _scaled(students or 2_280, shared)
        if len({system.name for system in self.systems}) < len(self.systems):
            raise ValueError("two systems of the sandbox have the same name")
        self.first_day = first_day or date(year.start, 10, 5)
        self.population = fill(self.systems, year.start, self.first_day, seed, shared)
        self._days: list[Mapping[int, Person]] = [dict(self.population.people)]
        self._events: list[Day | None] = [None]
        self._views: dict[tuple[str, int], View] = {}
        self._truths: dict[tuple[int, str], Truth] = {}
        self._lock = RLock()

    @property
    def district_number(self) -> int:
        """The number its state gives the district."""
        return 3_400_000 + crc32(self.district.encode()) % 90_000

    def date(self, day: int) -> date:
        return day_date(self.first_day, day)

    def system(self, name: str) -> System:
        for system in self.systems:
            if system.name == name:
                return system
        raise KeyError(
            f"the sandbox has no system {name!r}; it has {', '.join(system.name for system in self.systems)}"
        )

    def people(self, day: int) -> Mapping[int, Person]:
        """Everybody the district knows on a day, by person key."""
        self._live_until(day)
        return self._days[day - 1]

    def changes(self, day: int) -> tuple[Change, ...]:
        """The events of a day after the first."""
        happened = self._event(day)
        return tuple(happened.changes) if happened else ()

    def corrected(self, day: int) -> Mapping[tuple[int, str], str]:
        happened = self._event(day)
        return happened.corrected if happened else {}

    def _event(self, day: int) -> Day | None:
        self._live_until(day)
        return self._events[day - 1]

    def _live_until(self, day: int) -> None:
        if day < 1:
            raise ValueError(f"day {day} does not exist; the first day is 1")
        with self._lock:
            while len(self._days) < day:
                happened = live(self.population, dict(self._days[-1]), len(self._days) + 1)
                self._days.append(happened.people)
                self._events.append(happened)

    def view(self, system: str, day: int) -> View:
        """What one system holds on a day."""
        with self._lock:
            if (system, day) not in self._views:
                self._views[system, day] = View(self, self.system(system), day)
            return self._views[system, day]

    def truth(self, day: int = 1, school_year: str | None = None) -> Truth:
        """What must come out on a day, for the world's school year or the one before."""
        key = (day, school_year or self.school_year)
        with self._lock:
            if key not in self._truths:
                self._truths[key] = Truth(self, *key)
            return self._truths[key]


def demo_world(school_year: str = "2026-2027", seed: object = 1) -> World:
    """The district of the demo: PowerSchool, Infinite Campus, Skyward, a OneRoster 1.1 vendor and CSV files."""
    return World(seed=seed, school_year=school_year, systems=DEMO_SYSTEMS)


def _scaled(students: int, shared: float) -> tuple[System, ...]:
    total = sum(system.students for system in DEMO_SYSTEMS)
    factor = students * (1 + shared) / total
    return tuple(
        System(system.name, system.dialect, max(20, round(system.students * factor)), system.options)
        for system in DEMO_SYSTEMS
    )
