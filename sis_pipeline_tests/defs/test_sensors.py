"""The two sensors and the schedules over several ticks: systems that appear, land, pause and go, without Dagster runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace

import dagster as dg
import pytest

from sis_pipeline.connect.errors import InternalError
from sis_pipeline.defs import merging, sensors
from sis_pipeline.defs.jobs import MERGE_JOB
from sis_pipeline.defs.partitions import roster_key
from sis_pipeline.defs.resources import Roster
from sis_pipeline.defs.schedules import nightly_merge, nightly_sync
from sis_pipeline.defs.sensors import PAUSES, Attempt, merge_sensor, next_attempt, reconcile_sensor
from sis_pipeline_tests.defs.conftest import LAST_YEAR, THIS_YEAR, Installation
from sis_pipeline_tests.store.conftest import SCHOOL, Read, add_integration, pandas_frame, sis_student

ENROLLMENT = {
    "school_sis_id": "1",
    "entry_date_source": "sis",
    "enrollment_type": "primary",
    "status": "active",
    "record_status": "active",
}


@dataclass
class Story:
    """The store, an instance without daemons, and what the sensors were told before."""

    installation: Installation
    instance: dg.DagsterInstance
    cursor: str | None = None
    requested: list[str] = field(default_factory=list)

    def land(self, integration: str, *students: str, year: str = THIS_YEAR) -> None:
        """A good, complete snapshot with these students arrives."""
        store = self.installation.roster.snapshots
        writer = store.begin(integration, "powerschool", year)
        writer.add_page("students", {}, 1, b"[]", len(students))
        snapshot = writer.finish([Read("students", len(students))], "complete", 1, 0.1)
        begins = datetime(int(year[:4]), 8, 18, tzinfo=UTC).date()
        frames = {
            "schools": [SCHOOL],
            "students": [sis_student(one, last_name=f"Last{one}") for one in students],
            "enrollments": [
                {**ENROLLMENT, "sis_id": f"e{one}", "student_sis_id": one, "school_year": year, "entry_date": begins}
                for one in students
            ],
        }
        store.write_roster(snapshot, {name: pandas_frame(name, rows) for name, rows in frames.items()}, {}, {})
        store.set_verdict(snapshot.snapshot_id, "complete")

    def tick(self) -> list[str]:
        """The school years that the merge sensor asks to merge now; Dagster takes a run key only once."""
        return [one.partition_key for one in self.ask()]

    def ask(self) -> list[dg.RunRequest]:
        with dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources={"roster": Roster()}
        ) as context:
            result = merge_sensor()(context)
        self.cursor = result.cursor
        fresh = [one for one in result.run_requests or [] if one.run_key not in self.requested]
        self.requested += [one.run_key for one in fresh]
        return fresh

    def merge(self, year: str = THIS_YEAR) -> list[merging.DistrictPublication]:
        merging.merge_districts(self.installation.roster, year, "run", str)
        return merging.publish_districts(self.installation.roster, year, "run", str)

    def run(self, job: str, status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED, **tags: str) -> dg.DagsterRun:
        """A run, under way unless told otherwise."""
        definition = dg.GraphDefinition(name=job).to_job()
        return self.instance.create_run_for_job(definition, status=status, tags=tags)

    def reconcile(self) -> object:
        with dg.build_sensor_context(instance=self.instance, resources={"roster": Roster()}) as context:
            return reconcile_sensor(["powerschool"])(context)


@pytest.fixture
def story(installation: Installation) -> Iterator[Story]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Story(installation, instance)


def test_merges_follow_what_landed(story):
    engine = story.installation.engine
    assert story.tick() == []
    add_integration(engine, "lincoln-ps")
    add_integration(engine, "lincoln-ic")
    story.land("lincoln-ps", "1", "2")
    assert story.tick() == [THIS_YEAR]  # the other system has not landed: it blocks nobody
    assert story.tick() == []  # the same request once only, also while its run is not there yet
    (published,) = story.merge()
    assert published.published.written > 0
    assert story.tick() == []

    story.land("lincoln-ps", "1", "2")
    assert story.tick() == []  # read again, nothing new in it
    story.land("lincoln-ic", "7")
    assert story.tick() == [THIS_YEAR]
    story.land("lincoln-ic", "7", "8")  # lands between the request and its merge: both are in
    story.merge()
    assert story.tick() == []
    assert story.installation.scalar("select count(*) from sis.students") == 4

    story.land("lincoln-ps", "1", "2", year=LAST_YEAR)
    assert story.tick() == [LAST_YEAR]  # only the year that changed
    story.merge(LAST_YEAR)
    assert story.tick() == []


def test_pausing_changes_nothing_and_removing_merges_again(story):
    engine, integrations = story.installation.engine, story.installation.roster.integrations
    add_integration(engine, "lincoln-ps")
    add_integration(engine, "lincoln-ic")
    story.land("lincoln-ps", "1")
    story.land("lincoln-ic", "7")
    assert story.tick() == [THIS_YEAR]
    story.merge()
    integrations.pause("lincoln-ic")
    assert story.tick() == []
    integrations.remove("lincoln-ic")
    assert story.tick() == [THIS_YEAR]
    story.merge()
    assert story.tick() == []
    assert story.installation.scalar("select count(*) from sis.students") == 2  # nobody is proven gone

    add_integration(engine, "lincoln-ic")  # the very state of before comes back
    assert story.tick() == [THIS_YEAR]


def test_a_merge_waits_for_the_syncs_of_its_year_and_for_itself(story):
    add_integration(story.installation.engine, "lincoln-ps")
    story.land("lincoln-ps", "1")
    other = story.run("sync_powerschool", **{"dagster/partition/school_year": LAST_YEAR})
    sync = story.run("sync_powerschool", **{"dagster/partition/school_year": THIS_YEAR})
    assert story.tick() == []
    story.instance.report_run_failed(sync)
    merge = story.run(MERGE_JOB, **{"dagster/partition": THIS_YEAR})
    assert story.tick() == []
    story.instance.report_run_failed(merge)
    assert story.tick() == [THIS_YEAR]
    assert story.instance.get_run_by_id(other.run_id).status is dg.DagsterRunStatus.STARTED


def test_a_merge_that_fails_is_tried_once_and_again_when_something_lands(story, monkeypatch):
    add_integration(story.installation.engine, "lincoln-ps")
    add_integration(story.installation.engine, "adams-ps", district="adams")
    story.land("lincoln-ps", "1")
    story.land("adams-ps", "1")
    assert story.tick() == [THIS_YEAR]

    real = merging.merge_district

    def fails_for_lincoln(inputs):
        if inputs.district == "lincoln":
            raise InternalError("It can't be.")
        return real(inputs)

    monkeypatch.setattr(merging, "merge_district", fails_for_lincoln)
    published = {one.district: one for one in story.merge()}
    assert published["adams"].published is not None  # isolated
    assert published["lincoln"].trouble is not None
    assert story.installation.scalar("select status from sis.sync_operations where district = 'lincoln'") == "failed"
    assert story.tick() == [THIS_YEAR]  # what is stale is now another set of districts
    assert story.tick() == []  # and is not tried for ever
    monkeypatch.setattr(merging, "merge_district", real)
    story.land("lincoln-ps", "1", "2")
    assert story.tick() == [THIS_YEAR]
    assert all(one.trouble is None for one in story.merge())


def test_a_merge_run_that_dies_is_asked_for_again_a_bounded_number_of_times(story, monkeypatch):
    add_integration(story.installation.engine, "lincoln-ps")
    story.land("lincoln-ps", "1")
    late = 0.0
    monkeypatch.setattr(sensors, "time", SimpleNamespace(time=lambda: time.time() + late))
    for pause in (*PAUSES, None):
        (request,) = story.ask()
        assert story.tick() == []  # once only, before its run is there
        died = story.run(MERGE_JOB, **{"dagster/partition": THIS_YEAR}, **request.tags)
        assert story.tick() == []  # under way
        story.instance.report_run_failed(died, "The worker is gone.")
        late = 0.9 * (pause or 0)
        assert story.tick() == []  # its pause
        late = pause or 7 * 86_400
    assert story.tick() == []  # the same is not tried for ever
    story.land("lincoln-ps", "1", "2")
    assert [one.tags["sis/attempt"] for one in story.ask()] == ["1"]


@pytest.mark.parametrize("end", [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.CANCELED])
def test_a_merge_run_that_did_not_fail_is_not_repeated(story, monkeypatch, end):
    add_integration(story.installation.engine, "lincoln-ps")
    story.land("lincoln-ps", "1")
    (request,) = story.ask()
    story.run(MERGE_JOB, status=end, **{"dagster/partition": THIS_YEAR}, **request.tags)
    monkeypatch.setattr(sensors, "time", SimpleNamespace(time=lambda: time.time() + 7 * 86_400))
    assert story.ask() == []


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (None, 1),
        (Attempt(1, failed=False, ended=0.0), None),
        (Attempt(1, failed=True, ended=881.0), None),
        (Attempt(1, failed=True, ended=880.0), 2),
        (Attempt(2, failed=True, ended=880.0), None),
        (Attempt(2, failed=True, ended=400.0), 3),
        (Attempt(3, failed=True, ended=0.0), None),
    ],
)
def test_the_next_attempt_comes_after_a_growing_pause(last, expected):
    assert next_attempt(last, now=1000.0) == expected


def test_a_publication_that_was_overtaken_is_merged_again(story):
    add_integration(story.installation.engine, "lincoln-ps")
    story.land("lincoln-ps", "1")
    merging.merge_districts(story.installation.roster, THIS_YEAR, "run", str)
    story.land("lincoln-ps", "1", year=LAST_YEAR)
    assert story.merge(LAST_YEAR)[0].published
    said: list[str] = []
    (published,) = merging.publish_districts(story.installation.roster, THIS_YEAR, "run", said.append)
    assert published.published is not None
    assert any("Merging it again" in line for line in said)
    assert story.tick() == []


def test_a_store_that_cannot_be_read_concludes_nothing(story, monkeypatch):
    add_integration(story.installation.engine, "lincoln-ps")
    story.instance.add_dynamic_partitions("powerschool_integrations", ["lincoln-ps", "another"])
    monkeypatch.setenv("SIS_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    assert isinstance(story.reconcile(), dg.SkipReason)
    assert story.tick() == []


def test_partitions_follow_the_registry(story):
    engine, integrations = story.installation.engine, story.installation.roster.integrations
    add_integration(engine, "lincoln-ps")
    (added,) = story.reconcile().dynamic_partitions_requests
    assert added.partition_keys == ["lincoln-ps"]
    story.instance.add_dynamic_partitions("powerschool_integrations", ["lincoln-ps"])
    assert isinstance(story.reconcile(), dg.SkipReason)

    integrations.pause("lincoln-ps")
    assert isinstance(story.reconcile(), dg.SkipReason)  # a paused one keeps its partitions
    integrations.remove("lincoln-ps")
    running = story.run("sync_powerschool", **{"dagster/partition/integration": "lincoln-ps"})
    assert "still being synced" in story.reconcile().skip_message
    story.instance.report_run_failed(running)
    (deleted,) = story.reconcile().dynamic_partitions_requests
    assert deleted.partition_keys == ["lincoln-ps"]


def tick(schedule: dg.ScheduleDefinition, story: Story, moment: str) -> list[dg.RunRequest | dg.SkipReason]:
    with dg.build_schedule_context(
        instance=story.instance,
        scheduled_execution_time=datetime.fromisoformat(moment),
        resources={"roster": Roster()},
    ) as context:
        return list(schedule(context))


def test_the_nightly_sync_takes_the_year_of_its_night(installation, tmp_path):
    story = Story(installation, dg.DagsterInstance.local_temp(str(tmp_path)))
    engine, settings = story.installation.engine, story.installation.settings
    schedule = nightly_sync("powerschool", settings)
    (skipped,) = tick(schedule, story, "2026-06-30T02:00:00+00:00")
    assert isinstance(skipped, dg.SkipReason)
    for key, status in {"a": "healthy", "b": "failing", "c": "paused", "d": "needs_reauth"}.items():
        add_integration(engine, key, status=status)
    before = tick(schedule, story, "2026-06-30T02:00:00+00:00")
    after = tick(schedule, story, "2026-07-01T02:00:00+00:00")
    assert [one.partition_key for one in before] == [roster_key(key, "2025-2026") for key in "ab"]
    assert [one.partition_key for one in after] == [roster_key(key, "2026-2027") for key in "ab"]
    assert [one.run_key for one in before] == ["a:2026-06-30", "b:2026-06-30"]
    assert set(story.instance.get_dynamic_partitions("powerschool_integrations")) == {"a", "b"}


def test_the_nightly_merge_takes_what_is_left_over(story):
    schedule = nightly_merge(story.installation.settings)
    add_integration(story.installation.engine, "lincoln-ps")
    (skipped,) = tick(schedule, story, "2026-11-22T06:00:00+00:00")
    assert isinstance(skipped, dg.SkipReason)
    story.land("lincoln-ps", "1")
    (request,) = tick(schedule, story, "2026-11-22T06:00:00+00:00")
    assert (request.partition_key, request.run_key) == (THIS_YEAR, f"{THIS_YEAR}:2026-11-22")
    story.merge()
    assert isinstance(tick(schedule, story, "2026-11-23T06:00:00+00:00")[0], dg.SkipReason)
