"""Ten days in which everything happens that the ledger has a word for: it gains exactly that, event for event, whatever
the systems are and however their days are read. Run by `make truth`, which writes docs/truth.md."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from sis_pipeline.roster.model import CHANGE_KINDS
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline.store.guarding import Guarding
from sis_pipeline_tests.truth.chain import YEAR, Lived, Town, town
from sis_pipeline_tests.truth.history import History, Reading, Told
from sis_pipeline_tests.truth.proofs import (
    flavour,
    prove_again_writes_nothing,
    prove_disagreements,
    prove_ledger,
    prove_nobody_is_lost_or_invented,
    prove_own_values,
    prove_what_was_planned_was_published,
    quarantined,
)
from sis_pipeline_tests.truth.test_truth import PRIOR, SYSTEMS

PROPERTY = "truth_run"
DAYS = 10
OF_EVERYBODY = frozenset({"enroll", "withdraw", "transfer", "re_enter", "grade_change", "section_add", "section_drop"})
"""What every system can tell; the rest takes school enrollments with dates and codes."""
SCHEDULED = {"pre_registered": 2, "graduates": True}
"""What a system does that has enrollments with dates and codes, if it is asked to."""


def each_day(*, but: Mapping[int, tuple[Reading, ...]] | None = None) -> tuple[Reading, ...]:
    """A reading on every day; `but`: the days on which there are other readings, or none."""
    usual = {day: (Reading(day, YEAR),) for day in range(1, DAYS + 1)}
    return tuple(reading for readings in (usual | dict(but or {})).values() for reading in readings)


@dataclass(frozen=True)
class Run:
    """Ten days of some systems. `about`: how they are read. `shared`: the share of students that are in two systems."""

    name: str
    systems: tuple[System, ...]
    readings: tuple[Reading, ...] = each_day()
    about: str = "every day"
    shared: float = 0.0
    seed: int = 1
    guard: Mapping[str, float] = field(default_factory=lambda: {"week_share": 1.0})
    """Small schools lose more than the twentieth of their students in a week that the guard lets go."""

    @property
    def kinds(self) -> Collection[str]:
        return CHANGE_KINDS if any(system.speech.scheduled for system in self.systems) else OF_EVERYBODY


def lively(system: System, students: int | None = None, **more: object) -> System:
    """The system, with what it does not do unasked."""
    options = {**system.options, **(SCHEDULED if system.speech.scheduled else {}), **more}
    return System(system.name, system.dialect, students or system.students, options)


PS, OR12 = (next(system for system in SYSTEMS if system.name == name) for name in ("ps", "or12"))
TWO = (lively(PS, 80, stays_away=4), lively(OR12, 170, stays_away=4))
"""One that states who left and when, and one whose students are there no more. Who leaves stays away for some days, so
that nobody comes back on the day after, which is the rule of `history`."""
RUNS = (
    Run(
        "all merged",
        tuple(lively(system) for system in SYSTEMS),
        each_day(but={1: (Reading(1, YEAR), Reading(1, PRIOR)), DAYS: (Reading(DAYS, YEAR), Reading(DAYS, PRIOR))}),
        "every day, the year before on the first and on the last",
        shared=0.15,
    ),
    *(Run(f"{flavour(system)} alone", (lively(system, 160),)) for system in SYSTEMS),
    Run("two that disagree", TWO, about="every day; every second student is in both systems", shared=0.5, seed=2),
    Run(
        "a partial day",
        TWO,
        each_day(but={4: (Reading(4, YEAR, partial="or12"),), 7: (Reading(7, YEAR, partial="ps"),)}),
        "one system counts more seats than it shows, on day 4 the one, on day 7 the other",
        shared=0.3,
        seed=2,
    ),
    Run("a lost day", TWO, each_day(but={5: (), 8: ()}), "never on days 5 and 8", shared=0.3, seed=2),
    Run(
        "out of order",
        TWO,
        each_day(
            but={
                1: (Reading(1, PRIOR), Reading(1, YEAR)),
                6: (Reading(6, YEAR), Reading(5, YEAR, on=6), Reading(6, YEAR)),
                DAYS: (Reading(DAYS, PRIOR), Reading(DAYS, YEAR)),
            }
        ),
        "the year before first and again on the last day; on day 6 day 5 comes once more, and then day 6",
        shared=0.3,
        seed=2,
        guard={"week_share": 1.0, "district_share": 1.0, "school_share": 1.0, "seat_share": 1.0},
    ),
)


@pytest.mark.truth
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_ten_days(
    run: Run,
    postgres: URL,
    _template: str,  # noqa: PT019 its value is used
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    world = World(seed=run.seed, systems=run.systems, school_year=YEAR.key, shared=run.shared)
    history, kinds, began = History(world), Counter[str](), time.monotonic()
    facts: dict[str, object] = {"name": run.name}  # plain values, because they may have to leave a worker process
    record_property(PROPERTY, facts)
    with town(world, postgres, _template, tmp_path) as place:
        connect(place, run)
        for reading in run.readings:
            told = history.told(reading)
            seen = place.live(reading.shown, reading.year, on=reading.today, partial=reading.partial)
            prove(seen, told, reading)
            kinds.update(kind for _, kind, *_ in told.events.elements())
        students = len(seen.tables.students)
    assert set(kinds) == set(run.kinds)
    facts.update(students=students, kinds=dict(kinds), seconds=time.monotonic() - began)


SETTINGS: Mapping[str, Mapping[str, object]] = {
    "ps": {"section_enrollments_via": "powerquery"},
    "sky-q": {"withdrawal_statuses": {"G1": "graduated"}},
}
"""What a district says of its system. What a withdrawal code means is the district's own affair in Qmlativ."""


def connect(place: Town, run: Run) -> None:
    names = {system.name for system in run.systems}
    place.connect(**{name: settings for name, settings in SETTINGS.items() if name in names})
    guarding = Guarding(place.roster.engine)
    guarding.set(place.world.district, run.guard, actor="tests", reason="the guard is looked at elsewhere")


def prove(seen: Lived, told: Told, reading: Reading) -> None:
    verdicts = {name: loaded.snapshot.verdict for name, (_, loaded) in seen.loads.items()}
    assert verdicts == {name: "partial" if name == reading.partial else "complete" for name in verdicts}
    prove_ledger(seen.tables.events, told.events)
    prove_nobody_is_lost_or_invented(seen)
    assert seen.tables.matched == told.matched
    prove_disagreements(seen)
    if reading.year == YEAR:
        assert seen.tables.active == told.enrolled
        assert seen.tables.seats == told.seats
        assert prove_own_values(seen.tables.values, seen.truth) > 500
    quarantined(seen)
    assert seen.tables.holds == []
    prove_what_was_planned_was_published(seen)
    prove_again_writes_nothing(seen)
