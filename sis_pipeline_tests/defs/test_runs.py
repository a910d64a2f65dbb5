"""Whole Dagster runs against real HTTP servers, recorded on PostgreSQL: what is read, judged, merged and published."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
from sqlalchemy import create_engine, text

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db.engine import dagster_storage_url
from sis_pipeline.defs.runs import check_integration, fail_orphaned_runs, orphaned_runs, run_merge, run_sync
from sis_pipeline.providers.oneroster import OneRoster
from sis_pipeline.roster.model import STUDENTS
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline.store.locks import integration_lock
from sis_pipeline_tests.defs.conftest import THIS_YEAR, Installation


@pytest.fixture
def sandbox() -> Iterator[SandboxServer]:
    systems = (System("ps", "powerschool", 40), System("or", "oneroster_1.1", 30))
    with SandboxServer(World(systems=systems, school_year=THIS_YEAR, shared=0.3), enforce_limits=False) as server:
        yield server


@pytest.fixture
def connected(installation: Installation, sandbox: SandboxServer) -> Installation:
    installation.connect(sandbox.system("ps"), "fern-ps")
    installation.connect(sandbox.system("or"), "fern-or")
    return installation


def test_two_systems_are_read_merged_and_published(connected, instance, sandbox, checks_of):
    heard: list[dict] = []
    read = [
        run_sync("fern-ps", THIS_YEAR, instance=instance, on_event=heard.append),
        run_sync("fern-or", THIS_YEAR, instance=instance),
    ]
    truth = sandbox.truth()
    for result in read:
        assert (result.error, result.verdict, result.completeness) == (None, "complete", "complete")
        system = result.integration.removeprefix("fern-")
        assert result.rows["students"] == truth.rows[system]["students"].good
        assert result.quarantined["students"] == truth.rows[system]["students"].bad
        assert result.api_calls == connected.scalar(
            "select count(*) from sis.api_calls where integration = :key", key=result.integration
        )

    plan, *pages = heard
    assert (plan["event"], {page["event"] for page in pages}) == ("plan", {"page"})
    assert plan["calls"] >= len({page["resource"] for page in pages})
    assert pages[-1]["calls"] <= read[0].api_calls

    event = instance.get_latest_materialization_event(dg.AssetKey(["powerschool", "raw_roster"]))
    shown = {name: value.value for name, value in event.asset_materialization.metadata.items()}
    assert shown["calls_by_status"] == {"200": read[0].api_calls}
    assert 0 < shown["p50_ms"] <= shown["p95_ms"]
    assert shown["rate_limit"].startswith("6000 a minute (powerschool http://127.0.0.1:")
    assert (shown["breakers"], shown["repeated_calls"]) == ("closed", 0)

    merged = run_merge(THIS_YEAR, instance=instance)
    (district,) = merged.districts
    assert merged.error is None
    assert (district["district"], district["students"], district["matched"]) == (
        "fernhollow",
        truth.students,
        truth.matched,
    )
    assert connected.scalar("select count(*) from sis.students") == truth.students
    assert district["changes"] == truth.changes_by_kind()
    assert set(checks_of(instance, merged.run_id).values()) == {True}

    event = instance.get_latest_materialization_event(dg.AssetKey("merged_students"))
    seats = connected.scalar("select count(*) from sis.section_enrollments")
    told = event.asset_materialization.metadata["by_district"].value
    assert f"{seats:,} of {seats:,} section enrollments anew" in told

    again = run_merge(THIS_YEAR, instance=instance)
    assert (again.districts[0]["changes"], again.districts[0]["applied"]) == ({}, {})

    assert json.loads(json.dumps(merged.as_json()))["districts"][0]["students"] == truth.students
    for run in (*read, merged):
        recorded = instance.get_run_by_id(run.run_id)
        assert recorded.status is dg.DagsterRunStatus.SUCCESS
        assert recorded.tags["sis/pid"] == str(os.getpid())
    assert instance.get_run_by_id(read[0].run_id).tags["dagster/partition/integration"] == "fern-ps"
    _prove_nothing_leaked(connected, sandbox)


def _prove_nothing_leaked(installation: Installation, sandbox: SandboxServer) -> None:
    """No value of a student and no secret in what Dagster keeps or in the pipeline's own log tables."""
    personal = [column.name for column in STUDENTS if column.personal and column.kind == "text"]
    values = {
        str(value)
        for row in installation.rows(f"select {', '.join(personal)} from sis.students")
        for value in row
        # Short numbers stand in any timestamp or hash.
        if value is not None and len(value) >= (9 if value.isdecimal() else 6)
    }
    names = installation.rows("select first_name || ' ' || last_name, birth_date::text from sis.students")
    canaries = values | {part for row in names for part in row if part}
    secrets = {os.environ["SIS_ENCRYPTION_KEYS"], *(system.client_secret for system in sandbox.systems)}
    assert len(canaries) > 100

    written = _everything(installation)
    assert "fern-ps" in written  # the haystack is the right one
    assert [canary for canary in canaries | secrets if canary in written] == []


def _everything(installation: Installation) -> str:
    engine = create_engine(dagster_storage_url(installation.settings))
    own = ("api_calls", "audit_log", "sync_operations", "snapshots", "integrations")
    with engine.connect() as connection:
        tables = [
            *connection.scalars(text("select quote_ident(tablename) from pg_tables where schemaname = 'dagster'")),
            *(f"sis.{name}" for name in own),
        ]
        rows = [row for table in tables for row in connection.scalars(text(f"select t::text from {table} t"))]
        snapshots = connection.execute(text("select snapshot_body from snapshots")).scalars()
        rows += [zlib.decompress(body).decode() for body in snapshots]
    engine.dispose()
    home = Path(os.environ["DAGSTER_HOME"])
    kept = [path.read_text(errors="replace") for path in home.rglob("*") if path.is_file()]
    return "\n".join([*rows, *kept])


def test_a_system_that_fails_leaves_the_others(connected, instance, sandbox):
    sandbox.faults.add("status", system="ps", path="oauth", times=None, status=401)
    failed = run_sync("fern-ps", THIS_YEAR, instance=instance)
    assert not failed.success
    assert failed.error.error_class in {"auth_revoked", "config"}
    assert connected.roster.integrations.get("fern-ps").status in {"needs_reauth", "failing"}
    assert instance.get_run_by_id(failed.run_id).status is dg.DagsterRunStatus.FAILURE
    assert connected.scalar("select verdict from sis.snapshots where integration = 'fern-ps'") == "rejected"

    assert run_sync("fern-or", THIS_YEAR, instance=instance).success
    merged = run_merge(THIS_YEAR, instance=instance)
    assert merged.success
    assert list(merged.districts[0]["integrations"]) == ["fern-or"]


def test_a_snapshot_that_fails_a_check_is_rejected_and_not_merged(connected, instance, sandbox, checks_of):
    sandbox.faults.add("empty_page", system="or", path="students|users", times=None)
    result = run_sync("fern-or", THIS_YEAR, instance=instance)
    assert not result.success
    assert (result.verdict, result.error.error_class) == ("rejected", "data")
    assert "students" in result.error.message
    assert not checks_of(instance, result.run_id)["students_schema"]
    assert checks_of(instance, result.run_id)["schools_schema"]
    assert connected.roster.merges.districts_of(THIS_YEAR) == []


def test_a_broken_contract_fails_the_reading_and_nothing_of_it_is_used(connected, instance, sandbox):
    sandbox.faults.add("html", system="or", times=None, path="/ims|/v1p1|orgs")
    result = run_sync("fern-or", THIS_YEAR, instance=instance)
    assert not result.success
    assert result.error.error_class == "contract"
    assert result.verdict is None
    assert connected.rows("select verdict, completeness from sis.snapshots") == [("rejected", None)]


def test_a_plugin_that_quotes_a_student_leaks_nothing_even_without_redaction(connected, instance, monkeypatch):
    def standardise(*_):
        raise ValueError("Canary Hopper was born on 2011-02-29")

    monkeypatch.setattr(OneRoster, "standardise", standardise)
    monkeypatch.delenv("DAGSTER_REDACT_USER_CODE_ERRORS")
    result = run_sync("fern-or", THIS_YEAR, instance=instance)
    assert (result.success, result.error.error_class) == (False, "internal")
    assert "ValueError at" in result.error.message
    written = _everything(connected)
    assert "ValueError at" in written
    assert "Hopper" not in written
    assert "2011-02-29" not in written


def test_only_one_sync_of_an_integration_at_a_time(connected, instance):
    with integration_lock(connected.engine, "fern-or", THIS_YEAR):
        second = run_sync("fern-or", THIS_YEAR, instance=instance)
    assert not second.success
    assert second.error.error_class == "transient"
    assert f"pid {os.getpid()}" in second.error.message
    assert connected.scalar("select count(*) from sis.snapshots") == 0
    assert connected.roster.integrations.get("fern-or").status == "healthy"


def test_a_key_that_is_no_slug_never_becomes_a_partition(installation, instance):
    with pytest.raises(ConfigError, match="can't be the key"):
        run_sync("../../etc", THIS_YEAR, instance=instance)
    with pytest.raises(ConfigError, match="no integration"):
        run_sync("nobody", THIS_YEAR, instance=instance)
    with pytest.raises(ConfigError, match="can't be loaded"):
        run_merge("1999-2000", instance=instance)


def test_settings_and_district_are_proven_with_one_call(connected, sandbox):
    district = sandbox.world.district_number
    assert f"those of district district-000001/{district}." in check_integration(connected.settings, "fern-or")
    assert sum(sandbox.system("or").stats()["calls"].values()) == 1


SLEEPER = """
import os, sys, time
from sis_pipeline.defs.instance import dagster_instance
from sis_pipeline.defs.runs import run_sync
from sis_pipeline.settings import Settings
run_sync("fern-or", sys.argv[1], on_event=lambda event: (print("reading", flush=True), time.sleep(600)))
"""


def test_a_run_whose_process_was_killed_is_closed_by_the_next(connected, instance):
    child = subprocess.Popen([sys.executable, "-c", SLEEPER, THIS_YEAR], stdout=subprocess.PIPE, text=True)
    while "reading" not in child.stdout.readline():
        assert child.poll() is None
    assert fail_orphaned_runs(instance) == []  # it is alive
    child.kill()
    assert child.wait() == -9

    (orphan,) = orphaned_runs(connected.settings)
    assert orphan.pid == child.pid
    assert instance.get_run_by_id(orphan.run_id).status is dg.DagsterRunStatus.STARTED
    assert [one.run_id for one in fail_orphaned_runs(instance)] == [orphan.run_id]
    assert instance.get_run_by_id(orphan.run_id).status is dg.DagsterRunStatus.FAILURE
    assert fail_orphaned_runs(instance) == []
    assert run_sync("fern-or", THIS_YEAR, instance=instance).success  # its lock went with it


# Killed before its first event, a run is not started yet, and nobody is left who would.
@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.NOT_STARTED])
def test_a_pid_that_went_to_another_process_counts_as_gone(instance, status):
    mine = psutil.Process()
    tags = {"sis/host": socket.gethostname(), "sis/pid": str(mine.pid), "sis/process_started": "1.00"}
    run = instance.create_run_for_job(dg.GraphDefinition(name="empty").to_job(), status=status, tags=tags)
    assert [one.run_id for one in fail_orphaned_runs(instance)] == [run.run_id]
    elsewhere = instance.create_run_for_job(
        dg.GraphDefinition(name="empty").to_job(),
        status=dg.DagsterRunStatus.STARTED,
        tags={**tags, "sis/host": "another-machine"},
    )
    assert fail_orphaned_runs(instance) == []
    assert instance.get_run_by_id(elsewhere.run_id).status is dg.DagsterRunStatus.STARTED
