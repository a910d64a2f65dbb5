"""Modes 3 to 7 and 30: what a reading over HTTP may get wrong, from real requests to the published tables."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from functools import partial

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL

from sis_pipeline.connect import source
from sis_pipeline.connect.errors import ConfigError, SisError
from sis_pipeline.connect.retry import Backoff
from sis_pipeline.defs.deltas import total
from sis_pipeline.defs.loading import RawLoad, RosterLoad, load_raw, load_roster
from sis_pipeline.defs.merging import merge_one
from sis_pipeline.defs.resources import provider_resource
from sis_pipeline.providers.registry import load_providers
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline.store.publish import Published, publish
from sis_pipeline_tests.truth.chain import YEAR, Town, connect, town, unheard

SYSTEMS = (
    System("ps", "powerschool", 30, {"max_page_size": 100}),
    System("or", "oneroster_1.2", 120, {"page_cap": 500, "forgets_modified": 0.5}),
)


@pytest.fixture(scope="module")
def place(postgres: URL, _template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """Two systems, of which the second is asked for changes only; the first day is published."""
    world = World(systems=SYSTEMS, school_year=YEAR.key, shared=0.1)
    with town(world, postgres, _template, tmp_path_factory.mktemp("modes")) as place:
        place.connect(**{"or": {"reads": "delta"}})
        for system in SYSTEMS:
            judged(place, system.name)
        merged(place)
        yield place


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch, place: Town) -> Iterator[None]:
    """Retries wait for hundredths of seconds, and a fault lasts for one test, with what was learned of the system."""
    monkeypatch.setattr(source, "Backoff", partial(Backoff, base=0.01))
    yield
    good_again(place)


def good_again(place: Town) -> None:
    place.server.faults.clear()
    with place.roster.engine.begin() as connection:
        connection.execute(text("delete from sis.circuit_breakers"))


def judged(place: Town, key: str, *, full: bool = False) -> tuple[RawLoad, RosterLoad]:
    run, provider = uuid.uuid4().hex, load_providers().providers[place.roster.integrations.get(key).provider]
    raw = load_raw(provider_resource(provider)(roster=place.roster), key, YEAR, run, unheard, full=full)
    return raw, load_roster(place.roster, key, YEAR, run, unheard)


def sync(place: Town, key: str, *, full: bool = False) -> tuple[RawLoad, RosterLoad, Published]:
    """A system is read and judged, and the district merged and published, whatever the reading is worth."""
    return *judged(place, key, full=full), merged(place)


def merged(place: Town) -> Published:
    operation = merge_one(place.roster, place.world.district, YEAR.key, uuid.uuid4().hex)
    return publish(place.roster.engine, place.roster.merges, operation)


def active(place: Town) -> int:
    query = "select count(*) from sis.enrollments where status = 'active' and school_year = :year"
    with place.roster.engine.connect() as connection:
        return int(connection.scalar(text(query), {"year": YEAR.key}))


@pytest.mark.parametrize("path", ["student", "query/.*section_enrollments"])
def test_03_an_empty_page_is_not_read_as_everybody_left(place: Town, path: str) -> None:
    before = active(place)
    fault = place.server.faults.add("empty_page", system="ps", path=path, times=None)
    _, worth, published = sync(place, "ps")
    assert fault.fired
    assert worth.snapshot.verdict in {"partial", "rejected"}
    assert (published.changes, published.held, active(place)) == ({}, 0, before)


def test_04_an_extract_that_was_cut_off_withdraws_nobody(place: Town) -> None:
    before = active(place)
    cut = place.server.faults.add("truncate", system="ps", path="query/.*section_enrollments.*page=2", times=None)
    with pytest.raises(SisError):
        sync(place, "ps")
    assert cut.fired > 1, "it was tried again"
    assert (merged(place).changes, active(place)) == ({}, before), "the last good snapshot counts"

    good_again(place)
    short = place.server.faults.add("wrong_count", system="ps", path="query/.*section_enrollments", times=None, by=7)
    raw, worth, published = sync(place, "ps")
    assert short.fired
    assert worth.snapshot.verdict == "partial", "the source counts more rows than came"
    assert any("section_enrollments" in reason for reason in raw.reasons)
    assert (published.changes, published.held, active(place)) == ({}, 0, before)


def test_05_rows_that_shift_between_pages_are_read_again(place: Town) -> None:
    fault = place.server.faults.add(
        "shifted_page", system="ps", path="query/.*section_enrollments.*page=2(&|$)", change="delete"
    )
    raw, worth, published = sync(place, "ps")
    assert fault.fired == 1
    [moved] = [reading for reading in raw.readings if reading.resource == "section_enrollments"]
    assert moved.attempts > 1
    good = worth.entities["section_enrollments"].good
    assert published.changes == {}
    place.server.faults.clear()
    _, undisturbed, _ = sync(place, "ps")
    assert good == undisturbed.entities["section_enrollments"].good, "no row was lost on a page's edge"


def test_06_a_change_that_no_modified_time_tells_is_found_by_the_full_reading_and_counted(place: Town) -> None:
    place.set_day(2)
    _, by_changes, _ = sync(place, "or")
    assert by_changes.snapshot.verdict == "delta"
    _, full, _ = sync(place, "or", full=True)
    assert full.snapshot.verdict == "complete"
    assert full.snapshot.drift is not None
    assert total(full.snapshot.drift, "missed") > 0, "changed before the delta asked, and not told: an alert"


def test_07_a_deletion_that_changes_can_not_tell_withdraws_nobody_until_a_full_reading(place: Town) -> None:
    def students(one: RosterLoad) -> set[str]:
        return set(place.roster.snapshots.read_roster(one.snapshot, "students")["sis_id"])

    def left(published: Published) -> int:
        return sum(published.changes.get(kind, 0) for kind in ("withdraw", "transfer"))

    place.set_day(3)
    _, by_changes, published = sync(place, "or")
    assert by_changes.snapshot.verdict == "delta"
    assert left(published) == 0
    _, full, published = sync(place, "or", full=True)
    gone = students(by_changes) - students(full)
    assert gone, "nobody left in these days, so nothing was shown"
    assert full.snapshot.drift is not None
    assert full.snapshot.drift["entities"]["students"]["removed"] == len(gone)
    assert left(published) == len(gone)


def test_30_credentials_of_another_district_are_stopped_before_anything_is_read(place: Town) -> None:
    before, key = active(place), "ps"
    mine = place.roster.integrations.get(key)
    other = World(systems=SYSTEMS, school_year=YEAR.key, district="cedarfalls")
    with SandboxServer(other, enforce_limits=False) as elsewhere:
        mixed_up = elsewhere.system(key)
        connect(place.roster, elsewhere, key, replace=True, **{**mine.settings, **mixed_up.settings})
        with pytest.raises(ConfigError) as refused:
            judged(place, key)
        assert refused.value.code == "config.wrong_district"
        calls = mixed_up.stats()["calls"]
        assert len(calls) == 1, "one question, whose data these are"
        assert next(iter(calls)).endswith("/metadata")
    assert (merged(place).changes, active(place)) == ({}, before)
