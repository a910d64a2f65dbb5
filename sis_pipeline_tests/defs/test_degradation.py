"""What one system's trouble does to the others: nothing. An outage shows with the age of the last good data, a credential
that reaches another district is stopped before anything is read, and both recover."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from sqlalchemy import text

from sis_pipeline.connect import source
from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.connect.retry import Backoff
from sis_pipeline.defs.checks import unknown_codes
from sis_pipeline.defs.runs import check_integration, districts_behind, run_merge, run_sync
from sis_pipeline.sandbox.oneroster_csv import write_bundle
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline.store.integrations import Integration
from sis_pipeline_tests.defs.conftest import THIS_YEAR, YEAR, Installation
from sis_pipeline_tests.truth.chain import read

SYSTEMS = (System("ps", "powerschool", 30), System("or", "oneroster_1.1", 25))


def world(district: str = "fernhollow") -> World:
    return World(systems=SYSTEMS, school_year=THIS_YEAR, shared=0.3, district=district)


@pytest.fixture
def sandbox() -> Iterator[SandboxServer]:
    with SandboxServer(world(), enforce_limits=False) as server:
        yield server


@pytest.fixture
def connected(installation: Installation, sandbox: SandboxServer) -> Installation:
    installation.connect(sandbox.system("ps"), "fern-ps")
    installation.connect(sandbox.system("or"), "fern-or")
    return installation


@pytest.fixture
def later(connected: Installation) -> Callable[[int], None]:
    """Moves the database's clock to so many hours from now."""

    def move(hours: int) -> None:
        name = connected.engine.url.database
        with connected.engine.begin() as connection:
            connection.execute(text(f"alter database {name} set sis.clock_offset = '{hours} hours'"))
        connected.engine.dispose()
        connected.roster.close()

    return move


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries wait for hundredths of seconds."""
    monkeypatch.setattr(source, "Backoff", partial(Backoff, base=0.01))


def shown(instance: dg.DagsterInstance, asset: str) -> dict[str, Any]:
    event = instance.get_latest_materialization_event(dg.AssetKey(asset.split("/")))
    return {name: value.value for name, value in event.asset_materialization.metadata.items()}


@pytest.mark.usefixtures("impatient")
def test_an_outage_leaves_the_others_going_and_shows_how_old_its_data_are(
    connected, instance, sandbox, later, checks_of
):
    for key in ("fern-ps", "fern-or"):
        assert run_sync(key, THIS_YEAR, instance=instance).success
    assert checks_of(instance, run_merge(THIS_YEAR, instance=instance).run_id)["inputs_are_fresh"]

    later(40)
    fault = sandbox.faults.add("status", system="or", times=None, status=503)
    down = run_sync("fern-or", THIS_YEAR, instance=instance)
    assert fault.fired >= 1
    assert (down.success, down.error.error_class) == (False, "transient")
    noted = connected.roster.integrations.get("fern-or")
    assert (noted.status, noted.failures) == ("degraded", 1)
    assert noted.last_success_at is not None
    assert run_sync("fern-ps", THIS_YEAR, instance=instance).success
    merged = run_merge(THIS_YEAR, instance=instance)
    assert merged.success
    assert merged.districts[0]["students"] == sandbox.truth().students, "nobody is lost because a system is down"

    checks = checks_of(instance, merged.run_id)
    assert [name for name, passed in checks.items() if not passed] == ["inputs_are_fresh"]
    for asset in ("merged_students", "published_roster"):
        found = shown(instance, asset)
        assert found["inputs_not_fresh"] == 1
        assert 40 <= found["oldest_input_hours"] < 40.5
        lines = {line.split("|")[1].strip(): line for line in found["inputs"].splitlines()[2:]}
        assert list(lines) == ["fern-or", "fern-ps"], "the oldest first"
        assert re.search(r" 40(\.\d+)? ", lines["fern-or"])
        assert "degraded" in lines["fern-or"]
        assert noted.status_reason in lines["fern-or"]
        assert "healthy" in lines["fern-ps"]

    later(41)  # also past the time for which the system is left alone
    sandbox.faults.clear()
    assert run_sync("fern-or", THIS_YEAR, instance=instance).success
    assert connected.roster.integrations.get("fern-or").status == "healthy"
    assert checks_of(instance, run_merge(THIS_YEAR, instance=instance).run_id)["inputs_are_fresh"]


def test_a_rejected_snapshot_leaves_the_integration_failing_until_a_good_one_comes(connected, instance, sandbox):
    sandbox.faults.add("empty_page", system="or", path="students|users", times=None)
    for failures in (1, 2):
        assert not run_sync("fern-or", THIS_YEAR, instance=instance).success
        noted = connected.roster.integrations.get("fern-or")
        assert (noted.status, noted.failures) == ("failing", failures)
        assert "The snapshot is rejected." in noted.status_reason
    sandbox.faults.clear()
    assert run_sync("fern-or", THIS_YEAR, instance=instance).success
    assert connected.roster.integrations.get("fern-or").status == "healthy"
    changes = connected.rows(
        "select details->>'from', details->>'to' from sis.audit_log where action = 'integration.status' order by entry"
    )
    assert changes == [("healthy", "failing"), ("failing", "healthy")], "a reading that ends is no recovery by itself"


@pytest.mark.parametrize(
    ("path", "answer", "told"),
    [
        ("demographics", {"status": 403}, "not offered to us (HTTP 403), although it gave"),
        ("courses", {"status": 200, "body": '{"courses": []}'}, "nothing came, although there were"),
    ],
)
def test_what_does_not_come_any_more_is_a_gap_every_night_until_a_person_says_that_it_is_gone(
    connected, sandbox, path, answer, told
):
    def night():
        return read(connected.roster, "fern-or", YEAR, "run").snapshot

    assert night().completeness == "complete"
    fault = sandbox.faults.add("status", system="or", path=path, times=None, **answer)
    for number in (1, 2, 3):
        found = night()
        assert (found.completeness, number) == ("partial", number), "what was not seen may still be there"
        reason = found.evidence[path]["reason"]
        assert reason.startswith(told)
        assert f'set gone to ["{path}"]' in reason
    assert fault.fired

    integration = connected.roster.integrations.get("fern-or")
    accepted = replace(integration, settings={**integration.settings, "gone": [path]})
    for settings in (accepted, integration):  # said once, it needs not be said for ever
        connected.roster.integrations.add(settings, replace=True)
        assert night().completeness == "complete"

    sandbox.faults.clear()
    assert night().completeness == "complete"
    sandbox.faults.add("status", system="or", path=path, times=None, **answer)
    assert night().completeness == "partial", "it was there again"


def test_another_districts_data_are_stopped_before_anything_is_read(installation, instance):
    key, system = "fern-ps", "ps"
    with SandboxServer(world(), enforce_limits=False) as here:
        installation.connect(here.system(system), key)
        port = int(here.url.rpartition(":")[2])
        first = run_sync(key, THIS_YEAR, instance=instance)
        assert first.success
    known = installation.roster.integrations.get(key).source_identity
    assert len(known) == 1

    with SandboxServer(world("cedarfalls"), enforce_limits=False, port=port) as elsewhere:
        stopped = run_sync(key, THIS_YEAR, instance=instance)
        assert not stopped.success
        assert stopped.error.code == "config.wrong_district"
        assert "sis integration trust" in stopped.error.advice
        calls = elsewhere.system(system).stats()["calls"]
        # The token was the other server's, so the first attempt is refused.
        assert (len(calls), sum(calls.values())) == (1, 2), "one question, and then nothing"
        assert next(iter(calls)).endswith("/metadata")
        row = "select verdict, path from sis.snapshots where integration = :key order by started_at desc limit 1"
        ((verdict, path),) = installation.rows(row, key=key)
        assert verdict == "rejected"
        folder = Path(installation.settings.data_url) / path
        assert not [one for one in folder.rglob("*") if one.is_file()], "no page of it was kept"
        noted = installation.roster.integrations.get(key)
        assert (noted.status, noted.source_identity) == ("failing", known)
        with pytest.raises(ConfigError) as refused:
            check_integration(installation.settings, key)
        assert refused.value.code == "config.wrong_district"
        assert installation.roster.snapshots.latest_good(THIS_YEAR)[0].snapshot_id == first.snapshot_id

        installation.roster.integrations.trust(key, districts_behind(installation.settings, key), actor="ada")
        assert run_sync(key, THIS_YEAR, instance=instance).success
        assert installation.roster.integrations.get(key).status == "healthy"


def test_refused_credentials_are_not_tried_every_night_and_heal_by_a_test(connected, instance, sandbox):
    fault = sandbox.faults.add("status", system="or", path="token", times=None, status=401)
    assert not run_sync("fern-or", THIS_YEAR, instance=instance).success
    assert fault.fired >= 1
    assert connected.roster.integrations.get("fern-or").status == "needs_reauth"
    sandbox.faults.clear()
    connected.roster.vault.put("fern-or", "client_secret", sandbox.system("or").client_secret)
    check_integration(connected.settings, "fern-or")
    assert connected.roster.integrations.get("fern-or").status == "healthy"


def test_a_failure_says_where_in_the_reading_it_happened(connected, instance, sandbox):
    sandbox.faults.add("html", system="or", path="users|students", times=None)
    failed = run_sync("fern-or", THIS_YEAR, instance=instance)
    assert failed.error.code in {"contract.html", "contract.content_type"}
    assert "It was page 1 of " in failed.error.message
    records = instance.get_records_for_run(failed.run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
    shown = records[0].event_log_entry.dagster_event.step_failure_data.user_failure_data.metadata
    assert shown["code"].value == failed.error.code
    context = shown["context"].value
    facts = ("integration", "school_year", "run", "page", "attempt")
    assert [context[name] for name in facts] == ["fern-or", THIS_YEAR, failed.run_id, 1, 1]
    assert context["entity"] in {"users", "students"}
    assert len(context["request_id"]) == 32


def test_codes_that_nobody_knows_are_counted_and_named_only_if_they_are_codes(installation, instance, tmp_path):
    here = World(systems=(System("csv", "oneroster_csv", 40),), school_year=THIS_YEAR)
    folder = write_bundle(here.view("csv", 1), tmp_path / "set")
    _spoil(folder / "users.csv", "grades", [*["G-9"] * 4, "ask Ms. Kowalska", "Kowalska"])
    settings = {"path": str(folder)}
    installation.roster.integrations.add(Integration("fern-csv", "oneroster_csv", "fernhollow", settings=settings))
    result = run_sync("fern-csv", THIS_YEAR, instance=instance)
    assert result.success
    assert result.unknown_codes["students.grade_level"] == {"G-9": 4, "other": 2}
    found = shown(instance, "oneroster_csv/roster")
    assert found["unknown_codes"] == sum(sum(codes.values()) for codes in result.unknown_codes.values())
    assert found["unknown_codes_per_column"] == result.unknown_codes
    assert "Kowalska" not in json.dumps(found, default=str)


def _spoil(path: Path, column: str, values: list[str]) -> None:
    """Other values for the first students of a CSV file."""
    with path.open(newline="") as file:
        header, *rows = list(csv.reader(file))
    students = [row for row in rows if row[header.index(column)]]
    for row, value in zip(students, values, strict=False):
        row[header.index(column)] = value
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def test_a_column_with_many_unknown_codes_is_no_enumeration():
    frame = pd.DataFrame()
    frame.attrs["unknown_codes"] = {"sex": {f"K{n}": 5 for n in range(21)}, "role": {"AIDE2": 3, "X" * 21: 9, "T": 2}}
    assert unknown_codes({"staff": frame}) == {"staff.sex": {"other": 105}, "staff.role": {"AIDE2": 3, "other": 11}}
