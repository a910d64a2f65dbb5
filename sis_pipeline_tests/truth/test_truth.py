"""Whole days of a district with every kind of system: what PostgreSQL holds afterwards equals the sandbox's truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import polars as pl
import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL

from sis_pipeline.providers.oneroster_csv import OneRosterCsv, OneRosterCsvSettings
from sis_pipeline.roster.frames import to_polars
from sis_pipeline.roster.model import ENTITIES, MERGED
from sis_pipeline.roster.oneroster_export import OPEN, VERSIONS, Version
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.validate import check_references
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.views import as_published
from sis_pipeline.sandbox.world import World
from sis_pipeline.store import bulk
from sis_pipeline.store.oneroster_export import export_oneroster
from sis_pipeline_tests.providers.sources import Script, pull
from sis_pipeline_tests.truth.chain import YEAR, Lived, Town, town
from sis_pipeline_tests.truth.tables import Event, true_events

SYSTEMS = (
    System("ps", "powerschool", 60),
    System("campus", "infinite_campus", 50),
    System("sky-or", "skyward_oneroster", 40),
    System("sky-sms", "skyward_sms", 40),
    System("sky-q", "skyward_qmlativ", 40),
    System("or11", "oneroster_1.1", 40, {"page_cap": 50, "totals": False, "links": "none"}),
    System("or12", "oneroster_1.2", 40),
    System("csv11", "oneroster_csv", 30, {"version": "1.1"}),
    System("csv12", "oneroster_csv", 30, {"version": "1.2"}),
)
WITHOUT_PRIOR_YEAR = {"campus", "sky-sms"}
UNSAID = {"sky-sms": {"graduation_year"}, "csv11": {"pronouns", "preferred_first_name"}}
PRIOR = SchoolYear(YEAR.start - 1)
DAYS = ((1, YEAR), (1, PRIOR), (2, YEAR))
"""As they are loaded, one after the other, into one database."""


@pytest.fixture(scope="module")
def world() -> World:
    return World(seed=1, systems=SYSTEMS, school_year=YEAR.key, shared=0.15)


@pytest.fixture(scope="module")
def place(world: World, postgres: URL, _template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with town(world, postgres, _template, tmp_path_factory.mktemp("town")) as place:
        place.connect(ps={"section_enrollments_via": "powerquery"})
        yield place


@pytest.fixture(scope="module")
def lived(place: Town) -> dict[tuple[int, SchoolYear], Lived]:
    """Every day that was lived, each once; one of them is read a second time, too."""
    return {(number, year): place.live(number, year, reread=number == 2) for number, year in DAYS}


@pytest.fixture(params=DAYS, ids=lambda day: f"day {day[0]} of {day[1]}")
def seen(request: pytest.FixtureRequest, lived: dict[tuple[int, SchoolYear], Lived]) -> Lived:
    return lived[request.param]


def test_every_system_was_read_to_a_proven_end(seen: Lived) -> None:
    wanted = {system.name for system in SYSTEMS} - (set() if seen.truth.school_year == YEAR.key else WITHOUT_PRIOR_YEAR)
    assert set(seen.loads) == wanted
    assert {loaded.snapshot.verdict for _, loaded in seen.loads.values()} == {"complete"}
    assert "section_enrollments" in {reading.resource for reading in seen.loads["ps"][0].readings}  # the PowerQuery


def test_what_was_planned_is_what_was_then_published(seen: Lived) -> None:
    """Row for row by table, with every event of the ledger and every removal that waits."""
    assert {name: (it.added, it.changed, it.removed) for name, it in seen.plan.counts.items()} == {
        name: (it.inserted, it.updated, it.deleted) for name, it in seen.published.applied.items() if it.written
    }
    assert (seen.plan.changes, seen.plan.held) == (seen.published.changes, seen.published.held)
    assert seen.plan.total.total > 0


def test_nobody_is_lost_and_nobody_invented(seen: Lived) -> None:
    """Also over the years: who was here before is the same student, and who left is still known."""
    assert Counter(seen.tables.groups.values()) == Counter(seen.tables.known.values())
    assert seen.tables.students == set(seen.tables.groups)
    assert len(seen.tables.students) >= len(seen.truth.people) > 200


def test_who_is_in_several_systems_is_matched_and_nobody_else(seen: Lived) -> None:
    assert seen.tables.matched == seen.truth.groups
    assert seen.truth.matched > 10


def test_disagreements_are_conflicts_with_every_record_that_speaks(seen: Lived) -> None:
    """In a year that is over, systems keep the grade then or the grade now: the truth does not say who is right."""
    over = seen.truth.school_year != YEAR.key
    found = {key: who for key, who in seen.tables.conflicts.items() if not (over and key[1] == "grade_level")}
    true = {(person, _merged_as(name)): frozenset(who) for (person, name), who in seen.truth.disagreements.items()}
    assert found == true
    assert found


def _merged_as(attribute: str) -> str:
    """An address is chosen as a whole, never put together from two systems."""
    kind = attribute.partition("_")[0]
    return f"{kind}_address" if kind in {"home", "mailing"} else attribute


def test_the_ledger_gains_what_happened_and_nothing_else(seen: Lived, world: World) -> None:
    """Sections are dropped on the date the system gives; where it gives none, on the day it showed or, if that is
    later, on the first day of the seat. Every other event has the truth's own date."""
    true, found = true_events(seen.truth), seen.tables.events
    assert _undated(found) == _undated(true)
    stated = {event for event in true if event[1] != "section_drop"} | {
        (one.person, one.kind, one.effective, one.school, one.from_school, seen.truth.section_sis_id(one))
        for one in seen.truth.changes
        if one.kind == "section_drop" and one.stated
    }
    assert stated <= set(found)
    today = world.date(seen.truth.day)
    assert all(day >= today for _, _, day, *_ in set(found) - stated)


def _undated(events: Counter[Event]) -> Counter[tuple[object, ...]]:
    return Counter((person, kind, *rest) for person, kind, _, *rest in events.elements())


@pytest.mark.parametrize("number", [1, 2])
def test_enrollments_that_run_are_the_true_ones_each_with_its_type(
    lived: dict[tuple[int, SchoolYear], Lived], number: int
) -> None:
    found = lived[number, YEAR]
    assert found.tables.active == found.truth.enrolled


@pytest.mark.parametrize("number", [1, 2])
def test_seats_are_the_true_ones(lived: dict[tuple[int, SchoolYear], Lived], world: World, number: int) -> None:
    today: date = world.date(number)
    expected = {
        (row.student.person.key, (system.name, system.sis_id("section", row.seat.section)))
        for system in SYSTEMS
        for row in world.view(system.name, number).seats
        if row.seat.year == world.year and row.end > today and not (row.bad or row.tombstone or row.never)
    }
    assert lived[number, YEAR].tables.seats == expected


@pytest.mark.parametrize("number", [1, 2])
def test_who_is_in_one_system_only_has_that_systems_values(
    lived: dict[tuple[int, SchoolYear], Lived], world: World, number: int
) -> None:
    """In SMS 2.0 the graduation year is how the grade is written, so the grade stands for it; CSV 1.1 has no
    column for preferred names and pronouns."""
    wrong, compared = [], 0
    values = lived[number, YEAR].tables.values
    for system in SYSTEMS:
        for student in world.view(system.name, number).students:
            if student.person.shared or student.bad or student.tombstone or not student.stint_in(world.year):
                continue
            for attribute in system.carries - UNSAID.get(system.name, set()):
                compared += 1
                if values[student.person.key][attribute] != as_published(student.values, attribute):
                    wrong.append((system.name, attribute, student.sis_id))
    assert wrong == []
    assert compared > 3_000


def test_bad_rows_are_set_aside_and_no_others(seen: Lived) -> None:
    """What is not promised to be counted (contacts, teachers' rows) is left out on both sides."""
    counted = {"students", "enrollments", "section_enrollments", "sections", "staff", "schools", "courses"}
    found = {
        (system, entity): rows
        for system, of_system in seen.tables.quarantined.items()
        for entity, rows in of_system.items()
        if entity in counted
    }
    assert found == {
        (system, entity): rows.bad
        for system, of_system in seen.truth.rows.items()
        for entity, rows in of_system.items()
        if entity in counted and rows.bad
    }
    assert bool(found) == (seen.truth.school_year == YEAR.key)


def test_nothing_is_held(seen: Lived) -> None:
    assert seen.tables.holds == []


def test_the_same_day_again_writes_nothing(seen: Lived) -> None:
    assert seen.again.changes == {}
    assert {table: applied.written for table, applied in seen.again.applied.items() if applied.written} == {}
    assert sum(applied.unchanged for applied in seen.again.applied.values()) > 2_000


@pytest.mark.usefixtures("lived")
def test_the_ledger_alone_knows_every_enrollment(place: Town) -> None:
    """As of now, of both school years: with the same dates, and over where the published one is."""
    columns = "student_id::text, school_id::text, school_year, entry_date, entry_code, exit_date, exit_code"
    known = text(f"select {columns}, is_open from sis.stays_known_at(:district)")
    published = text(
        f"select {columns}, status in ('pre_registered', 'active') from sis.enrollments where district = :district"
    )
    with place.roster.engine.connect() as connection:
        found, true = (
            {tuple(row) for row in connection.execute(query, {"district": place.world.district})}
            for query in (known, published)
        )
    assert found == true
    assert len({row[2] for row in true}) == 2


@pytest.mark.usefixtures("lived")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("year", [YEAR, PRIOR], ids=str)
def test_an_export_reads_as_the_published_roster(
    place: Town, tmp_path: Path, version: Version, year: SchoolYear
) -> None:
    """Whatever the systems it was merged from: the same students, enrollments, sections and seats."""
    engine, district = place.roster.engine, place.world.district
    with engine.connect() as connection:
        tables = {
            name: bulk.read(connection, MERGED[name], {"district": district, "school_year": year.key})
            for name in ("enrollments", "sections", "section_enrollments")
        }
    path = export_oneroster(engine, tmp_path / "out", district, year.key, version=version).path
    found = pull(OneRosterCsv(OneRosterCsvSettings(path=path, state="TX", district=district)), Script({}), year)
    assert {name: checked.rejected_rows for name, checked in found.validated.items() if checked.rejected_rows} == {}
    assert [it for it in check_references({name: it.frame for name, it in found.validated.items()}) if it.rows] == []
    read = {name: to_polars(checked.frame, ENTITIES[name]) for name, checked in found.validated.items()}

    closed = () if version == "1.1" else ("withdrawn", "transferred", "graduated")
    stays = tables["enrollments"].filter(pl.col("status").is_in((*OPEN, *closed)))
    assert set(read["students"]["sis_id"]) == set(stays["student_id"])
    if version == "1.2":
        first = stays.group_by("student_id", "school_id").agg(pl.col("entry_date").min())
        places = read["enrollments"].select("student_sis_id", "school_sis_id", "entry_date")
        assert set(places.rows()) == set(first.rows())
        assert year != YEAR or set(closed) & set(stays["status"]), "somebody left"
    else:
        there = read["enrollments"].filter(status="active").select("student_sis_id", "school_sis_id")
        ever = set(tables["enrollments"].select("student_id", "school_id").rows())
        # a school that was left when a session ended looks attended: 1.1 has class enrollments only to tell by
        assert set(stays.select("student_id", "school_id").rows()) <= set(there.rows()) <= ever
    assert set(read["sections"]["sis_id"]) == set(tables["sections"]["section_id"])

    span = ("begin_date", "end_date")
    seats = tables["section_enrollments"].filter(
        (pl.col("role") == "student") & pl.col("person_id").is_in(stays["student_id"].implode())
    )
    sitting = read["section_enrollments"].filter(role="student").select("section_sis_id", "person_sis_id", *span)
    assert set(sitting.rows()) == set(seats.select("section_id", "person_id", *span).rows())
    assert seats.height > 100
    leads = tables["sections"].drop_nulls("teacher_id").select("section_id", "teacher_id")
    assert set(leads.rows()) <= set(read["sections"].select("sis_id", "teacher_sis_id").rows())
