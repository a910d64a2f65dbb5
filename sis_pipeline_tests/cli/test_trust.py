"""`sis integration trust`, and what show and errors say of whose data a system gives."""

from __future__ import annotations

import pytest

from sis_pipeline.cli.output import ExitCode
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.cli.conftest import Sis

SYSTEMS = (System("qm", "skyward_qmlativ", 20),)


def add(sis: Sis, server: SandboxServer, key: str, district: str) -> None:
    handle = server.system("qm")
    options = [f"--option={name}={value}" for name, value in handle.settings.items() if isinstance(value, str)]
    added = ("--provider", handle.provider, "--district", district, "--client-secret-env", "QM_SECRET")
    assert sis("integration", "add", key, *added, *options).code == 0


@pytest.fixture
def port(sis, home, monkeypatch) -> int:
    """An integration that was tested against one district, whose server is gone now; where it was."""
    with SandboxServer(World(systems=SYSTEMS), enforce_limits=False) as here:
        monkeypatch.setenv("QM_SECRET", here.system("qm").client_secret)
        add(sis, here, "fern-qm", "fernhollow")
        tested = sis("integration", "test", "fern-qm")
        assert tested.code == 0, tested.err
        assert "those of district FERN/1." in tested.out
        return int(here.url.rpartition(":")[2])


def test_a_person_says_which_district_is_the_right_one(sis, port):
    assert "district FERN/1" in sis("integration", "show", "fern-qm").out
    with SandboxServer(World(systems=SYSTEMS), enforce_limits=False, port=port):
        assert sis("integration", "trust", "fern-qm", "--json").json["changed"] is False

    with SandboxServer(World(systems=SYSTEMS, district="cedarfalls"), enforce_limits=False, port=port):
        refused = sis("integration", "test", "fern-qm", "--json")
        assert refused.code == ExitCode.CONFIG
        error = refused.json["error"]
        assert (error["class"], error["code"]) == ("config", "config.wrong_district")
        assert "CEDA/1" in error["message"]
        assert "FERN/1" in error["message"]
        assert "sis integration trust" in error["advice"]

        asked = sis("integration", "trust", "fern-qm")
        assert asked.code == ExitCode.USAGE
        assert "needs a confirmation" in asked.err
        trusted = sis("integration", "trust", "fern-qm", "--yes", "--json")
        assert trusted.json == {"integration": "fern-qm", "before": ["FERN/1"], "now": ["CEDA/1"], "changed": True}
        assert sis("integration", "test", "fern-qm").code == 0
    shown = sis("integration", "show", "fern-qm", "--json").json["integration"]
    assert shown["source_identity"] == ["CEDA/1"]
    assert shown["failures"] == 0


def test_one_system_for_two_districts_is_trusted_once(sis, port):
    with SandboxServer(World(systems=SYSTEMS), enforce_limits=False, port=port) as here:
        add(sis, here, "cedar-qm", "cedarfalls")
        refused = sis("integration", "test", "cedar-qm", "--json")
        assert (refused.code, refused.json["error"]["code"]) == (ExitCode.CONFIG, "config.wrong_district")
        assert "'fern-qm' of fernhollow" in refused.json["error"]["message"]
        assert "sis integration trust cedar-qm" in refused.json["error"]["advice"]
        assert sis("integration", "trust", "cedar-qm", "--yes", "--json").json["now"] == ["FERN/1"]
        assert sis("integration", "test", "cedar-qm").code == 0
        assert sis("integration", "test", "fern-qm").code == 0
