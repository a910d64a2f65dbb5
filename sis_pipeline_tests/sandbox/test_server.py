"""The sandbox as a server: controls, loopback only, many clients at once, a clean end."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from sis_pipeline.providers.base import HttpSettings
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.sandbox.clients import client


def test_the_day_is_set_for_all_systems(sandbox: SandboxServer, world: World) -> None:
    control = f"{sandbox.url}/_sandbox/day"
    assert requests.get(control, timeout=5).json() == {"day": 1, "date": world.date(1).isoformat()}
    assert requests.post(control, json={"day": 2}, timeout=5).json()["day"] == 2
    assert sandbox.day == 2
    assert sandbox.truth().day == 2
    assert requests.post(control, json={"day": 0}, timeout=5).status_code == 400


def test_truth_is_told_over_http(sandbox: SandboxServer, world: World) -> None:
    told = requests.get(f"{sandbox.url}/_sandbox/truth", params={"day": 2}, timeout=20).json()
    truth = world.truth(2)
    assert told["students"] == truth.students
    assert told["changes"] == truth.changes_by_kind()
    assert {int(key): {tuple(record) for record in records} for key, records in told["people"].items()} == truth.people
    prior = requests.get(f"{sandbox.url}/_sandbox/truth", params={"school_year": world.prior_year}, timeout=20).json()
    assert prior["school_year"] == world.prior_year


def test_faults_are_asked_for_and_cleared_over_http(sandbox: SandboxServer) -> None:
    control = f"{sandbox.url}/_sandbox/faults"
    asked = {"kind": "status", "system": "or12", "path": "/orgs", "status": 500}
    assert requests.post(control, json=asked, timeout=5).status_code == 200
    assert client(sandbox.system("or12")).get("/orgs").status_code == 500
    (listed,) = requests.get(control, timeout=5).json()["faults"]
    assert (listed["kind"], listed["fired"], listed["with_"]) == ("status", 1, {"status": 500})
    assert requests.delete(control, timeout=5).json() == {"faults": []}
    assert requests.post(control, json={"kind": "flood"}, timeout=5).status_code == 400
    assert requests.post(control, json=[1], timeout=5).status_code == 400
    assert requests.get(f"{sandbox.url}/_sandbox/lunch", timeout=5).status_code == 404


def test_stats_and_systems_are_listed(sandbox: SandboxServer) -> None:
    stats = requests.get(f"{sandbox.url}/_sandbox/stats", timeout=5).json()
    systems = {row["name"]: row for row in requests.get(f"{sandbox.url}/_sandbox/systems", timeout=5).json()}
    assert stats.keys() == systems.keys() == {"ps", "ic", "or11", "or12", "sky", "sms", "qm"}
    handle = sandbox.system("ps")
    assert systems["ps"]["settings"] == handle.settings
    assert systems["ps"]["client_secret"] == handle.client_secret


def test_controls_answer_only_to_loopback_names(sandbox: SandboxServer) -> None:
    answer = requests.get(f"{sandbox.url}/_sandbox/systems", headers={"Host": "rebound.example"}, timeout=5)
    assert answer.status_code == 404


def test_the_sandbox_binds_loopback_only(world: World) -> None:
    with pytest.raises(ValueError, match="loopback only"):
        SandboxServer(world, host="0.0.0.0")


def test_the_sandbox_may_be_on_the_other_loopback(world: World) -> None:
    with SandboxServer(world, host="::1") as running:
        assert requests.get(f"{running.url}/_sandbox/day", timeout=5).json()["day"] == 1


def test_settings_name_what_a_provider_needs(sandbox: SandboxServer) -> None:
    for handle in sandbox.systems:
        common = {name: value for name, value in handle.settings.items() if name in HttpSettings.model_fields}
        assert HttpSettings(**common).base_url == handle.base_url
        assert handle.client_secret not in str(handle.settings)
    with pytest.raises(KeyError, match="serves no system 'csv'"):
        sandbox.system("csv")


def test_paths_outside_a_system_are_not_found(sandbox: SandboxServer) -> None:
    assert requests.get(f"{sandbox.url}/nowhere", timeout=5).status_code == 404
    ps = client(sandbox.system("ps"))
    assert ps.get("/ws/v1/lunch").status_code == 404
    assert "unknown path" in sandbox.system("ps").stats()["calls"]


def test_many_clients_at_once_get_the_same_answer(sandbox: SandboxServer) -> None:
    caller = client(sandbox.system("or12"))
    with ThreadPoolExecutor(8) as pool:
        bodies = set(pool.map(lambda _turn: caller.get("/classes", limit=50).content, range(24)))
    assert len(bodies) == 1


def test_closing_frees_the_port(world: World) -> None:
    with SandboxServer(world) as running:
        port = int(running.url.rpartition(":")[2])
        assert requests.get(f"{running.url}/_sandbox/day", timeout=5).status_code == 200
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", port))
    with SandboxServer(world, port=port) as again:
        assert again.url.endswith(str(port))
        with pytest.raises(OSError, match="in use"):
            SandboxServer(world, port=port)
