"""The nightly chores: each does its work, none stops the others, and all of them are seen in Dagster."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import time_machine
from sqlalchemy import text

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db import audit
from sis_pipeline.defs import history, maintenance
from sis_pipeline.defs.assembly import build_defs
from sis_pipeline.defs.maintenance import CHORES, Done, run_all
from sis_pipeline.settings import Settings
from sis_pipeline.store.integrations import Integration
from sis_pipeline.store.locks import integration_lock
from sis_pipeline_tests.defs.conftest import THIS_YEAR, Installation

NAMES = [chore.name for chore in CHORES]


def done(installation: Installation) -> dict[str, Done]:
    return {one.chore: one for one in run_all(installation.roster)}


def add(installation: Installation, key: str = "lincoln-csv") -> Integration:
    settings = {"path": "/nowhere"}
    return installation.roster.integrations.add(Integration(key, "oneroster_csv", "lincoln", settings=settings))


def age(installation: Installation, statement: str, **values: object) -> None:
    """What time alone would do, hours later."""
    with installation.engine.begin() as connection:
        assert connection.execute(text(statement), values).rowcount > 0


@pytest.mark.parametrize("dry_run", [False, True])
def test_every_chore_is_done_on_an_empty_installation(installation, dry_run):
    done = run_all(installation.roster, dry_run=dry_run)
    assert {one.chore: one.trouble for one in done} == dict.fromkeys(NAMES)


def test_a_dry_run_says_the_same_counts_and_changes_nothing(installation):
    add(installation)
    begun = installation.roster.snapshots.begin("lincoln-csv", "oneroster_csv", THIS_YEAR).snapshot.snapshot_id
    late = {"late": f"{installation.settings.resume_hours + 0.1} hours"}
    age(installation, "update sis.snapshots set started_at = started_at - cast(:late as interval)", **late)
    with installation.engine.begin() as connection:
        connection.execute(
            text("""insert into sis.api_calls (integration, at, method, template, milliseconds, bytes, attempt)
                 values ('lincoln-csv', sis.clock() - interval '31 days', 'GET', '/x', 1, 1, 1)""")
        )
        audit.append(connection, "a", "b", district="lincoln")
    looked = {one.chore: one.facts for one in run_all(installation.roster, dry_run=True)}
    assert (looked["readings"], looked["api_calls"]) == ({"given_up": 1}, {"deleted": 1})
    assert installation.roster.snapshots.get(begun).finished_at is None
    assert installation.scalar("select count(*) from sis.api_calls") == 1
    assert installation.scalar("select count(*) from sis.audit_log where action = 'retention.delete'") == 0
    assert installation.roster.snapshots.files.names("audit/heads") == []
    found = {one.chore: one.facts for one in run_all(installation.roster)}
    assert {name: found[name] for name in NAMES if name != "audit_log"} == {
        name: looked[name] for name in NAMES if name != "audit_log"
    }
    assert installation.scalar("select count(*) from sis.api_calls") == 0


def test_old_runs_go_but_for_those_that_last_made_a_partition(installation, instance, monkeypatch):
    monkeypatch.setattr(history, "AT_ONCE", 1)
    days = dg.StaticPartitionsDefinition(["a", "b"])

    @dg.asset(partitions_def=days)
    def made() -> dg.MaterializeResult:
        return dg.MaterializeResult()

    first, second, other = (
        dg.materialize([made], partition_key=key, instance=instance).run_id for key in ("a", "a", "b")
    )
    young = dg.materialize([made], partition_key="b", instance=instance).run_id
    later = datetime.now(UTC) + timedelta(days=installation.settings.runs_days, seconds=1)
    with time_machine.travel(later, tick=True):
        assert history.forget(installation.settings, installation.engine, dry_run=True) == {"runs": 2}
        assert instance.has_run(first)
        assert done(installation)["runs"].facts == {"runs": 2}
        assert done(installation)["runs"].facts == {"runs": 0}
    assert [instance.has_run(one) for one in (first, second, other, young)] == [False, True, False, True]
    assert instance.get_materialized_partitions(dg.AssetKey("made")) == {"a", "b"}
    assert installation.scalar("select count(*) from sis.audit_log where subject = 'runs'") == 2


def test_a_chore_that_fails_leaves_the_others_and_is_told_in_words(installation, monkeypatch):
    def fail(_roster, *, dry_run):
        raise ConfigError("The disk is full.", advice="Make room.")

    def crash(_roster, *, dry_run):
        raise ValueError("Zoe Canary, born 2010-02-03")

    broken = (replace(CHORES[0], do=fail), replace(CHORES[1], do=crash), *CHORES[2:])
    monkeypatch.setattr(maintenance, "CHORES", broken)
    told = [one.trouble and one.trouble.message for one in run_all(installation.roster)]
    assert told[0] == "The disk is full."
    assert told[1].startswith("Unexpected ValueError at ")
    assert "Canary" not in told[1]
    assert told[2:] == [None] * (len(CHORES) - 2)


def test_readings_too_old_to_be_gone_on_with_are_closed_unless_somebody_is_at_them(installation):
    add(installation)
    add(installation, "busy-csv")
    begin = installation.roster.snapshots.begin
    old, busy, new = (begin(key, "oneroster_csv", THIS_YEAR) for key in ("lincoln-csv", "busy-csv", "lincoln-csv"))
    late = f"{installation.settings.resume_hours + 0.1} hours"
    for one in (old, busy):
        age(
            installation,
            "update sis.snapshots set started_at = started_at - cast(:late as interval) where snapshot_id = :id",
            late=late,
            id=one.snapshot.snapshot_id,
        )
    with integration_lock(installation.engine, "busy-csv", THIS_YEAR):
        assert done(installation)["readings"].facts == {"given_up": 1}
    verdicts = dict(installation.rows("select snapshot_id::text, verdict from sis.snapshots where finished_at is null"))
    assert verdicts == {busy.snapshot.snapshot_id: "pending", new.snapshot.snapshot_id: "pending"}
    assert done(installation)["readings"].facts == {"given_up": 1}  # the sync had died meanwhile
    with installation.engine.connect() as connection:
        entries = audit.read(connection, action="sync.read")
    assert [(it["subject"], it["district"]) for it in entries] == [("busy-csv", "lincoln"), ("lincoln-csv", "lincoln")]
    assert {it["details"]["abandoned"] for it in entries} == {"it was too old to go on with"}


def test_calls_are_kept_for_as_many_days_as_the_settings_say(installation, monkeypatch):
    monkeypatch.setenv("SIS_API_CALLS_DAYS", "2")
    with installation.engine.begin() as connection:
        for days in (0, 1.9, 2.1, 40):
            connection.execute(
                text(
                    "insert into sis.api_calls (integration, at, method, template, status, milliseconds, bytes, attempt) "
                    "values ('x', sis.clock() - make_interval(secs => :days * 86400), 'GET', '/', 200, 1, 1, 1)"
                ),
                {"days": days},
            )
    assert done(installation)["api_calls"].facts == {"deleted": 2}
    assert installation.scalar("select count(*) from sis.api_calls where at > sis.clock() - interval '2 days'") == 2
    assert done(installation)["api_calls"].facts == {"deleted": 0}


def test_tokens_that_are_over_are_emptied_and_those_of_nobody_deleted(installation):
    add(installation)
    vault = installation.roster.vault
    vault.put("lincoln-csv", "access", "canary-token", expires_in=60)
    vault.put("gone", "access", "canary-token", expires_in=60)
    assert done(installation)["tokens"].facts == {"emptied": 0, "deleted": 0}
    age(
        installation,
        "update sis.oauth_tokens set expires_at = expires_at - interval '3 hours', updated_at = updated_at - interval '3 hours'",
    )
    assert done(installation)["tokens"].facts == {"emptied": 1, "deleted": 1}
    assert vault.get("lincoln-csv", "access") is None
    assert installation.rows("select integration from sis.oauth_tokens") == [("lincoln-csv",)]


def test_no_key_is_needed_where_nothing_is_sealed(installation, monkeypatch):
    monkeypatch.delenv("SIS_ENCRYPTION_KEYS")
    assert done(installation)["tokens"].trouble is None


def test_files_that_a_killed_process_left_half_written_go_a_day_later(installation):
    files = installation.roster.snapshots.files
    files.write("raw/a/page.json", b"whole")
    folder = Path(installation.settings.data_url) / "raw" / "a"
    for name, hours in ((".page.json.7.part", 25), (".page.json.8.part", 1)):
        (folder / name).write_bytes(b"half")
        then = time.time() - hours * 3600
        os.utime(folder / name, (then, then))
    assert done(installation)["files"].facts == {"deleted": 1}
    assert files.names("raw/a") == [".page.json.8.part", "page.json"]


@pytest.fixture
def job(installation) -> dg.JobDefinition:
    return build_defs(settings=Settings()).resolve_job_def("maintenance")


def test_the_job_shows_what_each_chore_did(installation, instance, job):
    with installation.engine.begin() as connection:
        audit.append(connection, "a", "b", district="lincoln")
    result = job.execute_in_process(instance=instance)
    assert result.success
    told = {
        event.node_name: {name: value.value for name, value in event.step_output_data.metadata.items()}
        for event in result.all_events
        if event.is_step_success is False and event.event_type is dg.DagsterEventType.STEP_OUTPUT
    }
    assert set(told) == set(NAMES)
    assert told["audit_log"] == {"chains": 1, "links": 1, "entries": 1, "new_heads": 1}


def test_the_job_fails_at_the_chore_that_failed_after_the_others_were_done(installation, instance, job):
    with installation.engine.begin() as connection:
        audit.append(connection, "a", "b", district="lincoln")
    with installation.engine.begin() as connection:
        connection.execute(text("alter table sis.audit_log disable trigger all"))
        connection.execute(text("update sis.audit_log set actor = 'eve'"))
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    assert not result.success
    assert {event.node_name for event in result.get_step_failure_events()} == {"audit_log"}
    assert {event.node_name for event in result.get_step_success_events()} == set(NAMES) - {"audit_log"}
    (failed,) = result.get_step_failure_events()
    assert "lincoln: Entry 1 was altered." in failed.step_failure_data.user_failure_data.description


def test_it_runs_every_night_by_default():
    repository = build_defs(settings=Settings(maintenance_cron="15 3 * * *")).get_repository_def()
    schedule = repository.get_schedule_def("nightly_maintenance")
    assert (schedule.cron_schedule, schedule.default_status) == ("15 3 * * *", dg.DefaultScheduleStatus.RUNNING)
    assert int(repository.get_job("maintenance").run_tags["dagster/max_runtime"]) > 0


def test_a_schedule_that_is_none_is_refused():
    with pytest.raises(ValueError, match="not a cron schedule"):
        Settings(maintenance_cron="every night")
