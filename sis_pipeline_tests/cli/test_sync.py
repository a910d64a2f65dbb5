"""The real `sis sync` against the sandbox: children, a failing system, a killed child, merges, and no secret anywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from sis_pipeline.cli import sandbox
from sis_pipeline.cli.fanout import PATIENCE
from sis_pipeline.cli.output import ExitCode
from sis_pipeline.defs.merging import merge_districts, publish_districts
from sis_pipeline.defs.resources import Roster
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World

SIS = [sys.executable, "-c", "from sis_pipeline.cli.main import main; main()"]
CANARY = "canary-secret-5511"
SCALE = 60
YEAR, LAST = "2026-2027", "2025-2026"
SYSTEMS = (
    System("campus", "infinite_campus", 40),
    System("rooster", "oneroster_1.1", 30),
    System("victim", "oneroster_1.2", 30),
)


@pytest.fixture
def systems():
    """The systems of the test's district; a test with others overrides it."""
    return SYSTEMS


@pytest.fixture
def server(systems, tmp_path):
    world = World(seed=7, systems=systems, school_year=YEAR)
    with sandbox.listen(world, 0, tmp_path / "files", rate_scale=SCALE) as server:
        yield server


@pytest.fixture
def added(sis, home, server):
    """The sandbox's systems as integrations of one district, through the command."""
    for system in sandbox.describe(server, home / "sandbox", SCALE):
        add(sis, server, system, system["client_secret"])
    return server


def add(sis, server, system, secret, *more):
    settings = [
        part for name, value in system["settings"].items() for part in ("--option", f"{name}={as_option(value)}")
    ]
    os.environ["SYSTEM_SECRET"] = secret
    said = sis(
        "integration", "add", system["name"], "--provider", system["provider"], "--district", server.world.district,
        *settings, "--client-secret-env", "SYSTEM_SECRET", *more,
    )  # fmt: skip
    del os.environ["SYSTEM_SECRET"]
    assert said.code == 0, said.err


def as_option(value):
    return value if isinstance(value, str) else json.dumps(value)


def run_sync(*arguments):
    return subprocess.Popen(
        [*SIS, "sync", "--json", "--school-year", YEAR, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(found, seconds=60):
    """What `found` gives once it gives something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        result = found()
        if result:
            return result
        threading.Event().wait(0.05)
    raise AssertionError("waited in vain")


def test_one_fails_one_is_killed_the_others_go_on(added, sis, home):
    wrong = next(it for it in sandbox.describe(added, home, SCALE) if it["name"] == "rooster")
    add(sis, added, wrong, CANARY, "--replace")
    added.faults.add("drip", system="victim", path="users|students", times=None, seconds=1)

    process = run_sync()
    seen: list[str] = []
    try:
        until(lambda: added.system("victim").stats()["total_calls"] > 0)
        children = psutil.Process(process.pid).children(recursive=True)
        seen += [" ".join(child.cmdline()) for child in children]
        victims = [child for child in children if " ".join(child.cmdline()).strip() == "sis worker victim"]
        victims[0].kill()
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    report = json.loads(out)
    entries = {entry["integration"]: entry for entry in report["integrations"]}

    assert process.returncode == ExitCode.FAILED
    assert entries["campus"]["verdict"] == "complete"
    assert entries["campus"]["error"] is None
    assert entries["rooster"]["error"]["class"] in {"auth_revoked", "config"}
    assert "SIGKILL" in entries["victim"]["error"]["message"]
    (merge,) = report["merges"]
    assert merge["error"] is None
    assert merge["students"] == entries["campus"]["rows"]["students"]

    logs = "".join(path.read_text() for path in (home / "logs").iterdir())
    for said in (out, err, logs, *seen):
        assert CANARY not in said
        assert "sandbox-secret" not in said
    assert "Traceback" not in err

    assert runs_by_status()["FAILURE"] == 2, "the killed child's run was closed"
    assert "STARTED" not in runs_by_status()
    assert sis("doctor", "--json").json["checks"]


def runs_by_status():
    from sis_pipeline.defs.instance import dagster_instance
    from sis_pipeline.settings import Settings

    found: dict[str, int] = {}
    with dagster_instance(Settings()) as instance:
        for run in instance.get_runs():
            found[run.status.value] = found.get(run.status.value, 0) + 1
    return found


@pytest.mark.parametrize("systems", [SYSTEMS[:2]])
def test_a_sync_gives_the_truth_and_a_second_one_changes_nothing(added, sis):
    truth = added.truth(1)
    first = sis("sync", "--json", "--school-year", YEAR, "--parallel", 2)
    assert first.code == 0, first.err
    for entry in first.json["integrations"]:
        true, stats = truth.rows[entry["integration"]], added.system(entry["integration"]).stats()
        assert entry["rows"]["students"] == true["students"].good + true["students"].tombstones
        assert entry["quarantined"]["students"] == true["students"].bad
        assert entry["api_calls"] == stats["total_calls"] + stats["token_calls"]
    (merge,) = first.json["merges"]
    assert (merge["students"], merge["matched"]) == (truth.students, truth.matched)
    assert merge["changes"] == truth.changes_by_kind()
    assert merge["applied"]["students"]["inserted"] == truth.students
    assert "calls planned" in first.err

    second = sis("sync", "--json", "--school-year", YEAR, "--integration", "campus")
    (merge,) = second.json["merges"]
    assert merge["changes"] == {}
    assert sum(table[what] for table in merge["applied"].values() for what in ("inserted", "updated", "deleted")) == 0

    shown = sis("changes", "list", "--kind", "enroll", "--limit", 1, "--json").json
    assert shown["total"] == truth.changes_by_kind()["enroll"]
    student = sis("students", "show", shown["changes"][0]["student_id"], "--json").json["students"][0]
    link = student["links"][0]
    assert (
        sis("students", "show", "--sis", f"{link['integration']}/{link['sis_id']}", "--json").json["students"][0]
        == student
    )


def test_interrupting_ends_every_process(added, home):
    added.faults.add("drip", system="campus", path="users|students", times=None, seconds=1)
    process = run_sync("--integration", "campus")
    until(lambda: added.system("campus").stats()["total_calls"] > 0)
    children = psutil.Process(process.pid).children(recursive=True)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < PATIENCE, "ended by itself, not killed"
    assert process.returncode == ExitCode.INTERRUPTED
    assert "interrupted" in err
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert "STARTED" not in runs_by_status()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--school-year", "2026"), ExitCode.USAGE, "2025-2026"),
        (("--school-year", "1999-2000"), ExitCode.USAGE, "can't be loaded"),
        (("--integration", "nobody"), ExitCode.CONFIG, "no integration"),
        ((), ExitCode.CONFIG, "sis integration add"),
        (("--parallel", "0"), ExitCode.USAGE, "parallel"),
    ],
)
@pytest.mark.usefixtures("home")
def test_wrong_use_of_sync(sis, arguments, code, words):
    said = sis("sync", *arguments)
    assert said.code == code
    assert words in said.err


def test_a_paused_integration_is_not_synced(sis, home, tmp_path):
    sis("integration", "add", "files", "--provider", "oneroster_csv", "--district", "d", "--option", f"path={tmp_path}")
    sis("integration", "pause", "files")
    assert "resume" in sis("sync", "--integration", "files").err
    assert "no integration to sync" in sis("sync").err


def test_without_its_key_a_sync_does_nothing(added, sis):
    del os.environ["SIS_ENCRYPTION_KEYS"]
    said = sis("sync", "--school-year", YEAR, "--json")
    assert said.code == ExitCode.CONFIG
    assert "key" in said.json["error"]["message"]
    assert added.system("campus").stats()["total_calls"] == 0


def test_a_backfill_that_is_dry_reads_what_has_a_past_and_publishes_nothing(added, sis):
    said = sis(
        "backfill", "--dry-run", "--read", "--school-year", LAST, "--integration", "campus", "--integration", "rooster",
        "--json",
    )  # fmt: skip
    assert "campus" in said.err
    assert said.code == 0, said.err
    [reading], [plan] = said.json["integrations"], said.json["plans"]
    assert (reading["integration"], reading["verdict"]) == ("rooster", "complete")
    assert (plan["school_year"], list(plan["changes"])) == (LAST, ["enroll"])

    roster = Roster()
    assert roster.merges.newest(added.world.district, LAST) is None, "nothing was merged"
    merge_districts(roster, LAST, "run", print)
    [done] = publish_districts(roster, LAST, "run", print)
    roster.close()
    assert done.published.applied["students"].inserted == reading["rows"]["students"]
    assert done.published.changes == plan["changes"]
    assert done.published.written == sum(plan["total"].values())
