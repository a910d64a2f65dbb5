"""Syncs that read changes, end to end: real HTTP, real PostgreSQL, the clock moved day by day. When everything is read,
what the deltas had missed, and that nobody is withdrawn because of one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL

from sis_pipeline.connect.errors import ConfigError, ContractError, DataError
from sis_pipeline.defs.checks import drift_result
from sis_pipeline.defs.deltas import FULL_TAG, choose, drift_in_words, total, unfit
from sis_pipeline.defs.loading import RawLoad, load_raw, load_roster
from sis_pipeline.defs.merging import merge_districts, publish_districts
from sis_pipeline.defs.resources import Roster, provider_resource
from sis_pipeline.defs.runs import run_sync
from sis_pipeline.providers.base import Plan, Provider, Request, Resource
from sis_pipeline.providers.deltas import OVERLAP
from sis_pipeline.providers.pagers import SinglePage
from sis_pipeline.providers.registry import load_providers, make
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline.store.integrations import Integration
from sis_pipeline.store.snapshots import Snapshot
from sis_pipeline_tests.defs.children import load, run
from sis_pipeline_tests.defs.conftest import THIS_YEAR
from sis_pipeline_tests.truth.chain import YEAR, fresh_database, installation, unheard

SYSTEMS = (
    System("marks", "oneroster_1.1", 40),
    System("loses", "oneroster_1.2", 40),
    System("forgets", "oneroster_1.1", 60, {"forgets_modified": 0.5, "guardians": False}),
    System("deaf", "oneroster_1.2", 15, {"filters": "ignored"}),
    System("strict", "oneroster_1.2", 15, {"filters": "refused"}),
    System("ps", "powerschool", 30, {"max_page_size": 100}),
)
ROSTER_KEY = dg.AssetKey(["oneroster", "roster"])
ENTITIES = ("students", "enrollments", "section_enrollments")


@dataclass
class Place:
    """An installation and the systems around it; every test connects integrations of its own."""

    roster: Roster
    server: SandboxServer
    url: URL
    files: Path
    numbers: Iterator[int] = field(default_factory=count)
    today: int = 0

    def connect(self, system: str, district: str = "", **settings: Any) -> str:
        handle = self.server.system(system)
        given = {**handle.settings, "requests_per_minute": 6_000, "reads": "delta", **settings}
        key = f"{system}-{next(self.numbers)}"
        with (
            self.roster.engine.begin() as connection
        ):  # the same system gave its data to another district's test before
            connection.execute(text("update sis.integrations set source_identity = null"))
        # All give the data of the sandbox's one district, as integrations with a district of ours in common may.
        shared = {"of nobody": "fernhollow"}
        self.roster.integrations.add(Integration(key, handle.provider, district or f"d-{key}", shared, settings=given))
        self.roster.vault.put(key, "client_secret", handle.client_secret)
        return key

    def day(self, number: int) -> None:
        """Noon of a day, in the systems and on the database's clock, which goes on from there."""
        if number == self.today:
            return
        self.today = number
        self.server.set_day(number)
        noon = datetime.combine(self.server.world.date(number), datetime.min.time(), UTC) + timedelta(hours=12)
        offset = f"{(noon - datetime.now(UTC)).total_seconds()} seconds"
        with self.roster.engine.begin() as connection:
            connection.execute(text(f"alter database {self.url.database} set sis.clock_offset = '{offset}'"))
            connection.execute(text("delete from sis.rate_limits"))  # a clock that goes back must not hold us
        self.roster.engine.dispose()

    def read(self, key: str, *, full: bool = False, said: list[str] | None = None) -> RawLoad:
        provider = load_providers().providers[self.roster.integrations.get(key).provider]
        heard = [] if said is None else said
        return load_raw(
            provider_resource(provider)(roster=self.roster), key, YEAR, uuid.uuid4().hex, heard.append, full=full
        )

    def take(self, key: str, day: int, *, full: bool = False, said: list[str] | None = None) -> RawLoad:
        """Read a day, and believe it without looking at its rows, which takes most of a sync's time."""
        self.day(day)
        raw = self.read(key, full=full, said=said)
        return replace(raw, snapshot=self.trust(raw.snapshot.snapshot_id))

    def trust(self, snapshot_id: str) -> Snapshot:
        with self.roster.engine.begin() as connection:
            connection.execute(
                text("update sis.snapshots set verdict = completeness where snapshot_id = :id"), {"id": snapshot_id}
            )
        return self.roster.snapshots.get(snapshot_id)

    def sync(self, key: str, day: int, *, full: bool = False, said: list[str] | None = None) -> Snapshot:
        """Read a day and judge its rows, as a sync does."""
        self.day(day)
        heard = [] if said is None else said
        raw = self.read(key, full=full, said=heard)
        return load_roster(self.roster, key, YEAR, raw.snapshot.run_id or "", heard.append).snapshot

    def good(self, snapshot: Snapshot, entity: str) -> dict[str, dict[str, Any]]:
        """The good rows by sis_id, without the modified time."""
        frame = self.roster.snapshots.read_roster(snapshot, entity).drop("modified_at")
        return {row["sis_id"]: row for row in frame.iter_rows(named=True)}

    def columns(self, snapshot: Snapshot, entity: str) -> list[str]:
        return self.roster.snapshots.read_roster(snapshot, entity).columns

    def rows(self, query: str, **values: object) -> list[Any]:
        with self.roster.engine.connect() as connection:
            return list(connection.execute(text(query), values))


@pytest.fixture(scope="module")
def place(postgres: URL, _template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("deltas")
    world = World(seed=11, systems=SYSTEMS, school_year=YEAR.key, shared=0.0)
    with (
        fresh_database(postgres, _template) as url,
        installation(url, home) as roster,
        SandboxServer(world, enforce_limits=False) as server,
    ):
        yield Place(roster, server, url, home)


@pytest.fixture(autouse=True)
def _calm(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "place" in request.fixturenames:
        request.getfixturevalue("place").server.faults.clear()


# --- when, and what over what --------------------------------------------------------------------------------------


def test_days_of_changes_between_full_readings(place: Place) -> None:
    key = place.connect("marks", page_size=25)
    loads = {day: place.take(key, day) for day in (1, 2, 3)}
    laid = place.sync(key, 7)
    loads[8] = place.take(key, 8)
    found = {**{day: raw.snapshot for day, raw in loads.items()}, 7: laid}
    assert {day: one.verdict for day, one in sorted(found.items())} == {
        1: "complete", 2: "delta", 3: "delta", 7: "delta", 8: "complete",
    }  # fmt: skip
    for day, one in found.items():
        noon = datetime.combine(place.server.world.date(day), datetime.min.time(), UTC) + timedelta(hours=12)
        assert one.watermark == noon, "the time is the system's own"
    for before, day in ((1, 2), (2, 3), (3, 7)):
        assert found[day].base_snapshot_id == found[before].snapshot_id
        assert found[day].since == found[before].watermark - OVERLAP  # type: ignore[operator]
        assert found[day].api_calls < loads[1].calls / 2  # type: ignore[operator]
    # The evidence is that of the changes, the frames are those of the whole roster.
    assert sum(reading["rows"] for reading in laid.evidence.values()) < sum(laid.rows.values()) / 2
    assert found[8].base_snapshot_id is None
    assert "Everything is read, because the last one was 7 days ago." in loads[8].plan.notes
    assert [one.snapshot_id for one in place.roster.snapshots.chain(laid)] == [
        found[day].snapshot_id for day in (1, 2, 3, 7)
    ]
    # The state the deltas gave is what a full reading of the same day finds: this system marks what it deletes.
    at_once = place.sync(key, 7, full=True)
    for entity in ENTITIES:
        had = {sis_id: row for sis_id, row in place.good(laid, entity).items() if row["record_status"] == "active"}
        now = {sis_id: row for sis_id, row in place.good(at_once, entity).items() if row["record_status"] == "active"}
        assert had == now, entity
        assert len(now) > 20


def test_nothing_is_read_by_changes_unless_the_settings_say_so(place: Place) -> None:
    key = place.connect("marks", reads="full")
    assert [place.take(key, day).snapshot.verdict for day in (1, 2)] == ["complete", "complete"]


def test_a_full_reading_can_be_asked_for(place: Place) -> None:
    key = place.connect("marks")
    place.take(key, 1)
    raw = place.take(key, 2, full=True)
    assert raw.snapshot.verdict == "complete"
    assert "Everything is read, because it was asked for." in raw.plan.notes


def test_changed_settings_begin_with_a_full_reading(place: Place) -> None:
    """What is read may be another thing then; even another system."""
    key = place.connect("marks")
    place.take(key, 1)
    integration = place.roster.integrations.get(key)
    place.roster.integrations.add(
        replace(integration, settings={**integration.settings, "page_size": 40}), replace=True
    )
    raw = place.take(key, 2)
    assert raw.snapshot.verdict == "complete"
    assert "Everything is read, because the settings were changed since the last one." in raw.plan.notes


def test_a_reading_that_was_not_believed_is_not_built_on(place: Place) -> None:
    key = place.connect("marks")
    base = place.take(key, 1).snapshot
    place.day(2)
    rejected = place.read(key).snapshot
    assert rejected.base_snapshot_id == base.snapshot_id
    later = place.take(key, 3).snapshot
    assert (later.base_snapshot_id, later.since) == (base.snapshot_id, rejected.since)


def test_powerschool_reads_changed_seats_only(place: Place) -> None:
    key = place.connect("ps")
    whole, changes = ({one.resource: one.rows for one in place.take(key, day).readings} for day in (1, 2))
    assert 0 < changes["section_enrollments"] < whole["section_enrollments"] / 4
    assert changes["students"] >= whole["students"] > 0


def test_a_refused_question_is_followed_by_a_full_reading_at_once(place: Place) -> None:
    key, said = place.connect("strict"), list[str]()
    place.take(key, 1)
    raw = place.take(key, 2, said=said)
    assert (raw.snapshot.verdict, raw.snapshot.base_snapshot_id) == ("complete", None)
    assert any("refuses to be asked for changes (HTTP 400)" in line and "`reads` to full" in line for line in said)
    given_up = place.rows(
        "select verdict, base_snapshot_id is not null, evidence ->> 'abandoned' from sis.snapshots"
        " where integration = :key and completeness is null", key=key
    )  # fmt: skip
    assert [tuple(row) for row in given_up] == [
        ("rejected", True, f"{key} refuses to be asked for changes (HTTP 400).")
    ]
    assert place.roster.integrations.get(key).failures == 0


def test_a_system_without_changes_is_read_whole_after_one_vain_call(place: Place) -> None:
    """501 is no failure that passes: to try again would only open its breaker."""
    key = place.connect("marks")
    place.take(key, 1)
    fault = place.server.faults.add("status", system="marks", path="filter=", times=None, status=501)
    raw = place.take(key, 2)
    assert (raw.snapshot.verdict, raw.snapshot.base_snapshot_id) == ("complete", None)
    assert fault.fired == 1
    assert place.rows("select 1 from sis.circuit_breakers where failures > 0 or state <> 'closed'") == []


def test_a_refused_token_call_is_no_refused_question(place: Place) -> None:
    """Everything would be read instead, with credentials that do not work."""
    key, said = place.connect("marks"), list[str]()
    place.take(key, 1)
    ended = place.server.faults.add("expired_token", system="marks", path="enrollments.*filter=")
    refusals = place.server.faults.add("status", system="marks", path="token", times=None, status=400)
    with pytest.raises(ConfigError, match="the token request is not accepted"):
        place.take(key, 1, said=said)  # a day later the token would have ended before the first question
    assert (ended.fired, refusals.fired) == (1, 1)
    assert not any("refuses to be asked" in line for line in said)


def test_an_ignored_question_is_said(place: Place) -> None:
    key, said = place.connect("deaf"), list[str]()
    place.take(key, 1)
    raw = place.take(key, 2, said=said)
    assert raw.snapshot.verdict == "delta"
    assert any("ignores the question" in line for line in said)
    assert any("ignores the question" in note for note in raw.plan.notes)


def test_changes_that_did_not_all_come_are_asked_for_again(place: Place) -> None:
    key = place.connect("marks", page_size=10)
    base = place.take(key, 1).snapshot
    fault = place.server.faults.add("repeated_page", system="marks", path="enrollments.*offset=[1-9]", times=None)
    raw = place.take(key, 2)
    short = raw.snapshot
    assert fault.fired > 0
    assert raw.reasons, "the fault kept it from being proven"
    assert (short.verdict, short.watermark, short.base_snapshot_id) == ("delta", None, base.snapshot_id)
    place.server.faults.clear()
    again = place.take(key, 3).snapshot
    assert (again.base_snapshot_id, again.since) == (base.snapshot_id, short.since), "from where it was sure"
    assert again.watermark is not None


def test_changes_of_a_collection_that_was_refused_are_asked_for_again(place: Place) -> None:
    """It may only be missing where it was not there before either."""
    key = place.connect("marks")
    base = place.take(key, 1).snapshot
    fault = place.server.faults.add("status", system="marks", path="demographics", times=None, status=403)
    raw = place.take(key, 2)
    short = raw.snapshot
    assert fault.fired > 0
    assert raw.reasons == ["demographics: not offered to us (HTTP 403), although it was before"]
    assert (short.verdict, short.watermark, short.base_snapshot_id) == ("delta", None, base.snapshot_id)
    place.server.faults.clear()
    again = place.take(key, 3).snapshot
    assert (again.base_snapshot_id, again.since) == (base.snapshot_id, short.since), "from where it was sure"


def test_a_collection_that_never_was_offered_keeps_no_changes_from_being_built_on(place: Place) -> None:
    place.server.faults.add("status", system="marks", path="demographics", times=None, status=403)
    key = place.connect("marks")
    first, second = (place.take(key, day).snapshot for day in (1, 2))
    assert first.evidence["demographics"]["skipped"] == second.evidence["demographics"]["skipped"] == 403
    assert (second.verdict, second.base_snapshot_id) == ("delta", first.snapshot_id)
    assert second.watermark is not None


def test_what_can_not_be_laid_over_any_more_is_read_anew(place: Place) -> None:
    key = place.connect("marks")
    base = place.take(key, 1).snapshot
    page = next((place.files / "data" / base.path / "users").glob("*.zst"))
    page.write_bytes(page.read_bytes()[:-9])
    with pytest.raises(DataError):
        place.sync(key, 2)
    raw = place.take(key, 3)
    assert raw.snapshot.verdict == "complete"
    assert "there is no complete reading yet" in " ".join(raw.plan.notes)


def test_a_killed_reading_of_changes_goes_on_as_one(place: Place) -> None:
    key = place.connect("marks", page_size=10)
    base = place.take(key, 1).snapshot
    place.day(2)
    assert run(load, key, YEAR.key, crash_at="read.page_committed:4").exit_code == -9
    place.server.set_day(3)  # the database's clock stays: a reading is gone on with for some hours only
    place.today = 0
    gone_on = place.read(key)
    found = gone_on.snapshot
    assert (found.resumed, found.base_snapshot_id, found.completeness) == (1, base.snapshot_id, "delta")
    assert sum(reading.kept for reading in gone_on.readings) > 0
    assert found.watermark == base.watermark + timedelta(days=1), "it began when it began"  # type: ignore[operator]


def test_changes_that_did_not_all_come_and_a_kill_at_the_end_are_asked_for_from_when_they_began(place: Place) -> None:
    key = place.connect("marks", page_size=10)
    base = place.take(key, 1).snapshot
    place.day(2)
    fault = place.server.faults.add("repeated_page", system="marks", path="enrollments.*offset=[1-9]", times=None)
    assert run(load, key, YEAR.key, crash_at="read.manifest_written").exit_code == -9
    assert fault.fired > 0
    place.server.faults.clear()
    place.server.set_day(3)  # the database's clock stays: a reading is gone on with for some hours only
    place.today = 0
    found = place.read(key).snapshot
    assert (found.resumed, found.completeness) == (1, "delta")
    assert found.watermark == base.watermark + timedelta(days=1), "pages of then are among it"  # type: ignore[operator]


def test_a_full_reading_that_is_asked_for_does_not_go_on_with_changes(place: Place) -> None:
    key = place.connect("marks", page_size=10)
    place.take(key, 1)
    place.day(2)
    place.server.faults.add(
        "status", system="marks", path="enrollments", times=1, status=200, body='{"enrollments": 7}'
    )
    with pytest.raises(ContractError):
        place.read(key)
    with place.roster.engine.begin() as connection:  # as if it had been interrupted there
        connection.execute(text("update sis.snapshots set finished_at = null where integration = :key"
                                " and completeness is null"), {"key": key})  # fmt: skip
    raw = place.read(key, full=True)
    assert (raw.snapshot.completeness, raw.snapshot.resumed, raw.snapshot.base_snapshot_id) == ("complete", 0, None)


# --- what deltas miss ----------------------------------------------------------------------------------------------


def test_the_drift_is_exactly_what_the_system_forgot_to_say(place: Place) -> None:
    """Half of its students never get a new modified time. What of them differs between two full readings, worked out
    here from those, is what the deltas between them had missed."""
    key, said = place.connect("forgets"), list[str]()
    first = place.sync(key, 1)
    assert [place.take(key, day).snapshot.verdict for day in (2, 3)] == ["delta"] * 2
    assert place.sync(key, 4).verdict == "delta"
    full = place.sync(key, 4, full=True, said=said)

    view = place.server.world.view("forgets", 4)
    forgotten = {row.sis_id for row in view.students if view.forgets(row.person)}
    measured = full.drift
    assert measured is not None
    assert measured["deltas"] == 3
    expected = {}
    for entity in full.rows:
        before, now = place.good(first, entity), place.good(full, entity)
        columns = place.roster.snapshots.read_roster(full, entity).columns
        whose = next((name for name in ("student_sis_id", "person_sis_id") if name in columns), "sis_id")
        added = [row for sis_id, row in now.items() if sis_id not in before and row[whose] in forgotten]
        changed = [row for sis_id, row in now.items() if before.get(sis_id, row) != row and row[whose] in forgotten]
        expected[entity] = (len(added), len(changed), len(added) + len(changed), 0)
    found = {
        entity: tuple(counts[name] for name in ("added", "changed", "missed", "removed"))
        for entity, counts in measured["entities"].items()
    }
    assert found == expected
    assert expected["students"][2] > 0
    assert expected["section_enrollments"][2] > 0

    sentence, missed = drift_in_words(measured), total(measured, "missed")
    assert f"3 deltas had missed {missed} of " in sentence
    assert any(sentence in line for line in said)
    check = drift_result(ROSTER_KEY, measured)
    assert (check.passed, check.description) == (False, sentence)
    assert check.metadata["deltas_missed"].value == missed
    told = str(place.rows("select drift from sis.snapshots where snapshot_id = :id", id=full.snapshot_id))
    assert not any(sis_id in told for sis_id in forgotten), "counts, no rows"


def test_what_vanishes_without_a_word_is_counted_and_withdraws_nobody_until_the_full_reading(place: Place) -> None:
    key = place.connect("loses", district="losing")
    place.sync(key, 1)
    publish(place)
    assert [place.take(key, day).snapshot.verdict for day in (2, 3)] == ["delta"] * 2
    laid = place.sync(key, 4)
    publish(place)
    assert gone_from(place) == set()

    full = place.sync(key, 4, full=True)
    gone = {entity: place.good(laid, entity).keys() - place.good(full, entity).keys() for entity in ENTITIES}
    assert gone["students"], "nobody left in these days, so nothing was proven"
    assert full.drift is not None
    counted = {entity: full.drift["entities"][entity]["removed"] for entity in ENTITIES}
    assert counted == {entity: len(keys) for entity, keys in gone.items()}
    assert total(full.drift, "missed") == 0
    assert drift_result(ROSTER_KEY, full.drift).passed
    publish(place)
    assert gone_from(place) == gone["students"]


def gone_from(place: Place) -> set[str]:
    """sis_ids of the students of district `losing` who have left."""
    left = (
        "select l.sis_id from sis.enrollment_changes c join sis.student_links l using (student_id)"
        " where c.district = 'losing' and c.kind = 'withdraw'"
    )
    return {row.sis_id for row in place.rows(left)}


def test_a_tombstone_in_a_delta_ends_an_enrollment_and_a_new_student_comes_with_one(place: Place) -> None:
    key = place.connect("marks", district="marking")
    place.sync(key, 1)
    publish(place)
    ended = "select count(*) from sis.enrollments where district = 'marking' and status in ('withdrawn', 'transferred')"
    left_before = place.rows(ended)[0][0]
    assert place.sync(key, 2).verdict == "delta"
    publish(place)
    held = {
        day: {row.sis_id for row in place.server.world.view("marks", day).students if not row.tombstone}
        for day in (1, 2)
    }
    came, left = held[2] - held[1], held[1] - held[2]
    assert came
    assert left
    linked = {
        row.sis_id for row in place.rows("select sis_id from sis.student_links where integration = :key", key=key)
    }
    assert came <= linked
    assert place.rows(ended)[0][0] >= left_before + len(left)


def publish(place: Place) -> None:
    run_id = uuid.uuid4().hex
    for merged in merge_districts(place.roster, YEAR.key, run_id, unheard):
        assert merged.trouble is None, merged.trouble
    for done in publish_districts(place.roster, YEAR.key, run_id, unheard):
        assert done.trouble is None, done.trouble


# --- the decision alone --------------------------------------------------------------------------------------------


def snapshot(**facts: Any) -> Snapshot:
    blank: dict[str, Any] = dict.fromkeys(Snapshot.__dataclass_fields__)
    return Snapshot(**blank | {"settings_hash": "h", "age": timedelta(days=1), "evidence": {"users": {}}} | facts)


def oneroster(**settings: Any) -> Provider:
    given = {"base_url": "https://sis.example/api", "token_url": "https://sis.example/token", "client_id": "x"}
    return make("oneroster", given | settings)


@pytest.mark.parametrize(
    ("days", "age", "due"),
    [
        (7, timedelta(days=6, hours=11), False),
        (7, timedelta(days=6, hours=23, minutes=59), True),
        (1, timedelta(hours=1), False),
        (1, timedelta(hours=13), True),
    ],
)
def test_a_full_reading_is_due_by_age_of_the_last_and_not_a_day_late(days: int, age: timedelta, due: bool) -> None:
    chain = [snapshot(age=age), snapshot(age=timedelta(minutes=5))]
    way = choose(oneroster(reads="delta", full_read_days=days), chain, "h", full=False)
    assert (way.chain == (), bool(way.why)) == (due, due)
    assert due or way.head is chain[-1]


def test_a_system_that_can_not_tell_changes_is_read_whole() -> None:
    settings = {"base_url": "https://sis.example/api", "client_id": "x", "api_flavor": "sms", "reads": "delta"}
    way = choose(make("skyward", settings), [snapshot()], "h", full=False)
    assert (way.chain, way.why) == ((), "this system can't be asked for changes")


def test_settings_that_ask_for_everything_need_no_reason() -> None:
    assert choose(oneroster(), [snapshot()], "h", full=True).why == ""


def test_changes_are_not_laid_over_what_they_do_not_fit() -> None:
    watermark = datetime(2026, 10, 5, tzinfo=UTC)
    way = choose(oneroster(reads="delta"), [snapshot(watermark=watermark)], "h", full=False)
    users = Resource("users", Request("/users"), SinglePage(), ("id",))
    plan = Plan((users,), "last_snapshot", delta=True, since=watermark)
    assert unfit(plan, way, watermark) == unfit(plan, way, None) == ""
    assert "clock has gone back" in unfit(plan, way, watermark - timedelta(seconds=1))
    others = replace(plan, resources=(users, replace(users, name="seats")))
    assert "other collections" in unfit(others, way, watermark)


# --- in Dagster ----------------------------------------------------------------------------------------------------


def test_the_ui_shows_changes_and_a_tag_asks_for_everything(installation: Any, instance: Any, checks_of: Any) -> None:
    system = System("or", "oneroster_1.1", 15)
    with SandboxServer(World(systems=(system,), school_year=THIS_YEAR), enforce_limits=False) as server:
        installation.connect(server.system("or"), "fern", reads="delta")
        provider = provider_resource(load_providers().providers["oneroster"])
        load_raw(provider(roster=installation.roster), "fern", YEAR, "first", unheard)
        with installation.engine.begin() as connection:
            connection.execute(text("update sis.snapshots set verdict = completeness"))
        server.set_day(2)
        results = [run_sync("fern", THIS_YEAR, instance=instance, full=full) for full in (False, True)]
    assert [one.error for one in results] == [None] * 2
    assert [one.completeness for one in results] == ["delta", "complete"]
    assert [instance.get_run_by_id(one.run_id).tags.get(FULL_TAG) for one in results] == [None, "true"]
    for one in results:
        checks = checks_of(instance, one.run_id)
        assert checks["complete"]
        assert checks["deltas_missed_nothing"]
