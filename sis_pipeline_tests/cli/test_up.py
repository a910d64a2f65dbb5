"""`sis up`: both processes start, both end, and neither's end is silent."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest
import requests
from cryptography.fernet import Fernet

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import ExitCode
from sis_pipeline.cli.up import await_answer, ended, prepare, running, watch
from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.defs import instance, runs

UP = [sys.executable, "-c", "from sis_pipeline.cli.main import main; main()", "up"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_both_start_and_ctrl_c_ends_both(home, database_url):
    port = free_port()
    process = subprocess.Popen([*UP, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().strip() == f"http://127.0.0.1:{port}"
        assert "dagster_webserver_version" in requests.get(f"http://127.0.0.1:{port}/server_info", timeout=10).json()
        commands = {" ".join(child.cmdline()) for child in psutil.Process(process.pid).children(recursive=True)}
        assert any("dagster._daemon" in command for command in commands)
        assert all(str(database_url.database) not in command for command in commands), "no URL in anybody's arguments"
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.terminate()  # ends both as Ctrl-C does; killed, it would leave them behind
        process.wait(60)
    assert process.returncode == 0, err
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    assert (home / "logs" / "webserver.log").stat().st_mode & 0o777 == 0o600


def test_the_end_of_one_is_told(tmp_path, capsys):
    with running("daemon", ["this"], tmp_path, dict(os.environ)) as service:
        watch([service])
        assert ended([service]) == [service]
        assert not await_answer("http://127.0.0.1:1", [service])
    assert "the daemon ended by itself (code 0)" in capsys.readouterr().err
    assert "Beautiful is better than ugly" in (tmp_path / "daemon.log").read_text()


def test_leaving_ends_what_runs(tmp_path):
    with running("server", ["http.server", "0", "--bind", "127.0.0.1"], tmp_path, dict(os.environ)) as service:
        assert service.process.poll() is None
    assert service.process.poll() is not None


@pytest.mark.usefixtures("home")
def test_a_taken_port_is_refused_before_anything_starts(sis):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = sis("up", "--port", taken.getsockname()[1])
    assert said.code == ExitCode.USAGE
    assert "--port" in said.err


# --- the key is proven before anything starts


def test_nothing_starts_with_a_wrong_key(home, sis, monkeypatch):
    assert Installation().vault
    monkeypatch.setenv("SIS_ENCRYPTION_KEYS", Fernet.generate_key().decode())
    with pytest.raises(ConfigError) as caught:
        prepare(Installation(), print)
    assert caught.value.code == "config.key_unknown"
    said = sis("up", "--port", free_port())
    assert (said.code, "is not among the keys" in said.err) == (ExitCode.CONFIG, True)
    assert not (home / "logs").exists()


def test_nothing_starts_without_a_key_on_a_database_that_others_may_share(home, monkeypatch):
    monkeypatch.delenv("SIS_ENCRYPTION_KEYS")
    with pytest.raises(ConfigError) as caught:
        prepare(Installation(), print)
    assert caught.value.code == "config.key_missing"
    assert not (home / "encryption.key").exists()


@pytest.fixture
def embedded(home, monkeypatch):
    """Installations that take the test's database for the embedded one, and have no key in the environment."""
    monkeypatch.setattr(instance, "dagster_instance", lambda _settings: contextlib.nullcontext())
    monkeypatch.setattr(runs, "fail_orphaned_runs", lambda _instance: None)
    monkeypatch.setattr(instance, "dagster_environment", lambda _settings: {})
    monkeypatch.delenv("SIS_ENCRYPTION_KEYS")

    def installation():
        here = Installation()
        assert here.engine
        here.settings = here.settings.model_copy(update={"database_url": None})
        return here

    return installation


def test_the_embedded_default_gets_its_key_once_and_never_again(home, embedded):
    key, said = home / "encryption.key", []
    prepare(embedded(), said.append)
    made = key.read_text()
    assert key.stat().st_mode & 0o777 == 0o600
    assert [str(key) in line for line in said] == [True]
    prepare(embedded(), said.append)
    assert (key.read_text(), len(said)) == (made, 1)
    key.unlink()
    with pytest.raises(ConfigError, match="none was made") as caught:
        prepare(embedded(), said.append)
    assert (caught.value.code, key.exists()) == ("config.key_missing", False)
    assert "Put the key back" in caught.value.advice
