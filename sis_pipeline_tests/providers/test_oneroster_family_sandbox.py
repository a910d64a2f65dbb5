"""Whole syncs over real sockets: for every system of the OneRoster family, rows equal the sandbox's truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest

from sis_pipeline.providers.base import Provider
from sis_pipeline.providers.conformance import ProviderConformance
from sis_pipeline.providers.infinite_campus import InfiniteCampus
from sis_pipeline.providers.oneroster import OneRoster
from sis_pipeline.providers.oneroster_csv import OneRosterCsv, OneRosterCsvSettings
from sis_pipeline.providers.reading import MemorySnapshot, Reading, verdict
from sis_pipeline.providers.skyward import Skyward
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.validate import quarantine_dangling
from sis_pipeline.sandbox.oneroster_csv import write_bundle
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.truth import Truth
from sis_pipeline.sandbox.views import as_published
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.providers.sources import OverHttp, Pulled, pull

PROVIDERS: dict[str, type[Provider]] = {"oneroster": OneRoster, "infinite_campus": InfiniteCampus, "skyward": Skyward}
SYSTEMS = (
    System("campus", "infinite_campus", 60),
    System("or11", "oneroster_1.1", 60, {"page_cap": 50, "totals": False, "links": "bare", "booleans": "real",
                                         "hrefs": "relative", "ext_values": True, "grades": "text"}),
    System("or12", "oneroster_1.2", 60, {"page_cap": 200, "links": "malformed", "demographics": False}),
    System("sky-or", "skyward_oneroster", 60, {"end_dates": "inclusive"}),
    System("sky-sms", "skyward_sms", 60, {"census": True, "page_cap": 40}),
    System("sky-q", "skyward_qmlativ", 60),
)  # fmt: skip
MORE: dict[str, dict[str, Any]] = {"sky-or": {"exit_dates": "inclusive"}, "sky-sms": {"excluded_schools": ["999"]}}
DAYS = (1, 2)


@dataclass
class Town:
    """The running sandbox and every sync made of it, each made once."""

    server: SandboxServer
    pulled: dict[tuple[str, int, str], Pulled]
    calls: dict[tuple[str, int, str], int]

    def sync(self, name: str, day: int, school_year: str) -> Pulled:
        key = (name, day, school_year)
        if key not in self.pulled:
            self.server.set_day(day)
            provider = self.provider(name)
            source = self.source(name, provider)
            self.pulled[key] = pull(provider, source, SchoolYear.parse(school_year))
            self.calls[key] = source.calls
        return self.pulled[key]

    def provider(self, name: str, **more: Any) -> Provider:
        handle = self.server.system(name)
        kind = PROVIDERS[handle.provider]
        settings = handle.settings | {"state": "NJ", "district": "fernhollow"} | MORE.get(name, {}) | more
        return kind(kind.Settings.model_validate(settings))

    def source(self, name: str, provider: Provider) -> OverHttp:
        oauth = provider.authentication()
        assert oauth is not None
        handle = self.server.system(name)
        return OverHttp(handle.base_url, oauth, handle.client_secret)

    def truth(self, day: int, school_year: str | None = None) -> Truth:
        return self.server.truth(day, school_year)


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    year = SchoolYear.on(datetime.now(UTC).date()).key
    with SandboxServer(World(seed=7, systems=SYSTEMS, school_year=year), enforce_limits=False) as server:
        yield Town(server, {}, {})


def counted(found: Pulled) -> dict[str, int]:
    """Good rows that are no tombstones, after references that lead nowhere are taken out."""
    frames = quarantine_dangling({name: checked.frame for name, checked in found.validated.items()}).frames
    live = {name: frame[frame["record_status"] == "active"] for name, frame in frames.items()}
    live["schools"] = live["schools"][live["schools"]["kind"] == "school"]
    seats = live["section_enrollments"]
    live["teaching"] = seats[seats["role"] == "teacher"]
    live["section_enrollments"] = seats[seats["role"] == "student"]
    return {name: len(frame) for name, frame in live.items()}


@pytest.mark.parametrize("day", DAYS)
@pytest.mark.parametrize("name", [system.name for system in SYSTEMS])
def test_rows_per_entity_equal_the_truth(town: Town, name: str, day: int) -> None:
    year = town.server.world.school_year
    found = town.sync(name, day, year)
    assert verdict(found.readings) == "complete", [reading for reading in found.readings if not reading.complete]
    expected = {entity: rows.good for entity, rows in town.truth(day).rows[name].items()}
    assert {entity: rows for entity, rows in counted(found).items() if entity in expected} == expected


@pytest.mark.parametrize("name", ["or11", "or12", "sky-or", "sky-q"])
def test_an_earlier_year(town: Town, name: str) -> None:
    year = town.server.world.prior_year
    found = town.sync(name, 1, year)
    expected = {entity: rows.good for entity, rows in town.truth(1, year).rows[name].items()}
    here = counted(found)
    assert {entity: here[entity] for entity in ("students", "sections", "enrollments", "section_enrollments")} == {
        entity: expected[entity] for entity in ("students", "sections", "enrollments", "section_enrollments")
    }


@pytest.mark.parametrize("name", [system.name for system in SYSTEMS])
def test_every_value_a_system_holds_arrives(town: Town, name: str) -> None:
    """In SMS 2.0 the graduation year is how the grade is written, so it is compared as the grade."""
    system = town.server.world.system(name)
    found = town.sync(name, 1, town.server.world.school_year).good("students").astype(object).set_index("sis_id")
    found = found.where(found.notna(), None)
    expected = {student.sis_id: student.values for student in town.server.world.view(name, 1).students}
    wrong = [
        (attribute, sis_id)
        for attribute in sorted(system.carries - ({"graduation_year"} if name == "sky-sms" else set()))
        for sis_id, value in found[attribute].items()
        if _plain(value) != _plain(as_published(expected[sis_id], attribute))
    ]
    assert wrong == []
    assert len(found) > 50


def _plain(value: Any) -> Any:
    """Dates and timestamps as the day they are; everything else as text."""
    return None if value is None or value == "" else str(value).partition(" 00:00:00")[0]


@pytest.mark.parametrize(
    ("name", "page_size", "planning"),
    [("campus", None, 1), ("or12", 200, 1), ("sky-or", 100, 1), ("sky-sms", 40, 0), ("sky-q", 50, 1)],
)
def test_the_number_of_calls_is_known_before(town: Town, name: str, page_size: int | None, planning: int) -> None:
    year = SchoolYear.parse(town.server.world.school_year)
    first = town.sync(name, 1, year.key)
    last_rows = {reading.resource: reading.rows for reading in first.readings if reading.skipped is None}
    town.server.set_day(1)
    provider = town.provider(name, page_size=page_size)
    source = town.source(name, provider)
    again = pull(provider, source, year, last_rows)
    assert source.calls == again.calls_planned + planning


def test_a_server_without_flat_lists_can_be_read_student_by_student(town: Town) -> None:
    system = System("sms", "skyward_sms", 12, {"flat_collections": False, "bad_rows": False})
    world = World(seed=3, systems=(system,), school_year=town.server.world.school_year)
    with SandboxServer(world, enforce_limits=False) as server:
        alone = Town(server, {}, {})
        year = SchoolYear.parse(world.school_year)
        flat = pull(alone.provider("sms"), alone.source("sms", alone.provider("sms")), year)
        assert {reading.resource for reading in flat.readings if reading.skipped} == {
            "staff", "courses", "sections", "enrollments", "guardians",
        }  # fmt: skip
        provider = alone.provider("sms", per_student=["enrollments", "guardians"])
        source = alone.source("sms", provider)
        found = pull(provider, source, year)
        truth = world.truth(1).rows["sms"]
        assert verdict(found.readings) == "complete"
        assert len(found.good("section_enrollments")) == truth["section_enrollments"].good
        assert len(found.good("contacts")) == truth["contacts"].good
        assert source.calls == found.calls_planned + 1


@pytest.mark.parametrize("day", [1, 2])
@pytest.mark.parametrize(
    ("place", "version", "how"),
    [("set.zip", "1.2", {}), ("set", "1.1", {"bom": True}), ("set.zip", "1.1", {"encoding": "utf-16"})],
)
def test_csv_sets_hold_the_truth_too(tmp_path: Path, day: int, place: str, version: Any, how: dict[str, Any]) -> None:
    year = SchoolYear.on(datetime.now(UTC).date())
    world = World(seed=5, systems=(System("files", "oneroster_csv", 50),), school_year=year.key)
    bundle = write_bundle(world.view("files", day), tmp_path / place, version=version, **how)
    found = pull(OneRosterCsv(OneRosterCsvSettings(path=bundle)), None, year)
    assert verdict(found.readings) == "complete"
    assert found.calls_planned == 0
    expected = {entity: rows.good for entity, rows in world.truth(day).rows["files"].items()}
    assert {entity: rows for entity, rows in counted(found).items() if entity in expected} == expected


def test_a_csv_delta_holds_what_changed_and_who_is_gone(tmp_path: Path) -> None:
    year = SchoolYear.on(datetime.now(UTC).date())
    world = World(seed=5, systems=(System("files", "oneroster_csv", 50, {"bad_rows": False}),), school_year=year.key)
    bundle = write_bundle(world.view("files", 2), tmp_path / "delta.zip", mode="delta")
    provider = OneRosterCsv(OneRosterCsvSettings(path=bundle))
    assert provider.plan(None, year, {}).delta  # type: ignore[arg-type]
    students = pull(provider, None, year).good("students").set_index("sis_id")["record_status"]
    before, after = ({student.sis_id for student in world.view("files", day).students} for day in (1, 2))
    assert set(students.index[students == "to_be_deleted"]) == before - after
    assert after - before <= set(students.index[students == "active"])
    assert len(students) < len(after)


class FamilyConformance(ProviderConformance):
    """The shipped contract on one system of the town; its pages are read once for all tests."""

    system: ClassVar[str]

    @pytest.fixture
    def school_year(self, town: Town) -> SchoolYear:
        return SchoolYear.parse(town.server.world.school_year)

    @pytest.fixture
    def provider(self, town: Town) -> Provider:
        return town.provider(self.system)

    @pytest.fixture
    def source(self, town: Town, provider: Provider) -> OverHttp:
        town.server.set_day(1)
        return town.source(self.system, provider)

    @pytest.fixture
    def pulled(self, town: Town, school_year: SchoolYear) -> Pulled:
        return town.sync(self.system, 1, school_year.key)

    @pytest.fixture
    def snapshot(self, pulled: Pulled) -> tuple[MemorySnapshot, list[Reading]]:  # type: ignore[override]
        return pulled.snapshot, list(pulled.readings)

    @pytest.fixture
    def frames(self, pulled: Pulled) -> dict[str, pd.DataFrame]:  # type: ignore[override]
        return pulled.frames


class TestInfiniteCampusConformance(FamilyConformance):
    system = "campus"


class TestOneRoster11Conformance(FamilyConformance):
    system = "or11"


class TestOneRoster12Conformance(FamilyConformance):
    system = "or12"


class TestSkywardOneRosterConformance(FamilyConformance):
    system = "sky-or"


class TestSkywardSmsConformance(FamilyConformance):
    system = "sky-sms"


class TestSkywardQmlativConformance(FamilyConformance):
    system = "sky-q"
