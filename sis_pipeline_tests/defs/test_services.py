"""The real webserver and the real daemon on our dagster.yaml: a backfill asked for in the UI is read, merged and published;
one asked for on Dagster's command line is in the instance."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import requests

from sis_pipeline.defs.instance import dagster_environment
from sis_pipeline.defs.partitions import integrations_name, roster_key
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.defs.conftest import LAST_YEAR, THIS_YEAR, Installation

LOCATION = "sis_pipeline.definitions"
PATIENCE = 90.0
BACKFILL = """
mutation ($assets: [AssetKeyInput!], $partitions: [String!]) {
  launchPartitionBackfill(backfillParams: {assetSelection: $assets, partitionNames: $partitions}) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
    ... on PartitionKeysNotFoundError { message }
  }
}"""
DAEMONS = "{ instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } } }"
KEYS = '{ assetNodeOrError(assetKey: {path: ["oneroster", "roster"]}) { ... on AssetNode { partitionKeysByDimension { name partitionKeys } } } }'
STATUS = "query ($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }"
RUNS = (
    '{ runsOrError(filter: {pipelineName: "merge_rosters"}) { ... on Runs { results { status tags { key value } } } } }'
)


@pytest.fixture
def sandbox() -> Iterator[SandboxServer]:
    systems = (System("or", "oneroster_1.1", 25),)
    with SandboxServer(World(systems=systems, school_year=THIS_YEAR), enforce_limits=False) as server:
        yield server


@pytest.fixture
def webserver(installation: Installation, tmp_path: Path) -> Iterator[str]:
    """Both processes as a service manager would start them; all that they started ends with them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, **dagster_environment(installation.settings)}
    commands = {
        "webserver": ["dagster_webserver", "-h", "127.0.0.1", "-p", str(port), "-m", LOCATION],
        "daemon": ["dagster._daemon", "run", "-m", LOCATION],
    }
    running = []
    for name, command in commands.items():
        with (tmp_path / f"{name}.log").open("w") as log:
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", *command],
                    env=environment,
                    cwd=tmp_path,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
    yield f"http://127.0.0.1:{port}/graphql"
    for process in running:
        process.send_signal(signal.SIGINT)
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def ask(url: str, query: str, **variables: Any) -> Any:
    answer = requests.post(url, json={"query": query, "variables": variables}, timeout=20).json()
    assert "errors" not in answer, answer
    return answer["data"]


def wait_for(what: str, seen: Callable[[], Any]) -> Any:
    """The first true answer. Services start and tick in their own time; only the deadline is a failure."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if found := seen():
                return found
        except requests.RequestException:
            pass
        time.sleep(0.5)
    raise AssertionError(f"{what} did not happen within {PATIENCE:.0f} s")


def test_a_backfill_of_an_earlier_year_is_read_and_merged(installation, sandbox, webserver):
    installation.connect(sandbox.system("or"), "fern-or")

    def healthy() -> bool:
        statuses = ask(webserver, DAEMONS)["instance"]["daemonHealth"]["allDaemonStatuses"]
        return bool(statuses) and all(one["healthy"] for one in statuses if one["required"])

    def partitioned() -> bool:
        dimensions = ask(webserver, KEYS)["assetNodeOrError"]["partitionKeysByDimension"]
        return {one["name"]: one["partitionKeys"] for one in dimensions}["integration"] == ["fern-or"]

    wait_for("all daemons healthy", healthy)
    wait_for("the reconcile sensor's partition", partitioned)
    launched = ask(
        webserver,
        BACKFILL,
        assets=[{"path": ["oneroster", layer]} for layer in ("raw_roster", "roster")],
        partitions=[roster_key("fern-or", LAST_YEAR)],
    )["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched

    def finished() -> str | None:
        status = ask(webserver, STATUS, id=launched["backfillId"])["partitionBackfillOrError"]["status"]
        return status if status.startswith("COMPLETED") or status == "FAILED" else None

    assert wait_for("the backfill's end", finished) == "COMPLETED_SUCCESS"

    def merged() -> list[str] | None:
        runs = ask(webserver, RUNS)["runsOrError"]["results"]
        done = [run["status"] for run in runs if run["status"] in {"SUCCESS", "FAILURE"}]
        return done or None

    assert wait_for("the merge sensor's merge", merged) == ["SUCCESS"]
    assert installation.scalar("select count(*) from sis.students") == sandbox.truth(school_year=LAST_YEAR).students
    assert installation.rows("select distinct school_year from sis.student_years") == [(LAST_YEAR,)]


def test_a_backfill_is_enqueued_by_dagsters_own_command(installation, instance, tmp_path):
    environment = {**os.environ, **dagster_environment(installation.settings)}
    instance.add_dynamic_partitions(integrations_name("oneroster_csv"), ["fern-csv"])
    asked = ["-j", "sync_oneroster_csv", "--partitions", f"fern-csv|{LAST_YEAR}", "--noprompt"]
    command = [sys.executable, "-m", "dagster", "job", "backfill", "-m", LOCATION, *asked]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (backfill,) = instance.get_backfills()
    assert backfill.partition_names == [roster_key("fern-csv", LAST_YEAR)]
    (run,) = instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill.backfill_id}))
    assert run.status is dg.DagsterRunStatus.QUEUED, "the daemon starts it"
