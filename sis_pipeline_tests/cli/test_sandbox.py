"""`sis sandbox serve`: the printed commands work as they stand, and days can be moved."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys

import pytest
import requests

from sis_pipeline.cli import sandbox
from sis_pipeline.cli.output import ExitCode

SIS = [sys.executable, "-c", "from sis_pipeline.cli.main import main; main()"]


@pytest.fixture
def served(home):
    """A small sandbox in a process of its own; what it printed."""
    command = [*SIS, "sandbox", "serve", "--port", "0", "--students", "120", "--school-year", "2026-2027", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line == "}\n":
            break
    yield json.loads("".join(lines)), process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_printed_commands_add_the_systems(served, sis):
    document, _ = served
    for system in document["systems"]:
        words = shlex.split(sandbox.add_command(system, document["district"]))
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            os.environ[name] = value
        assert words.pop(0) == "sis"
        said = sis(*words)
        assert said.code == 0, said.err
        if system["client_secret"]:
            assert system["client_secret"] not in " ".join(words), "a secret is never an argument"
    assert len(sis("integration", "list", "--json").json["integrations"]) == 5
    tested = sis("integration", "test", "powerschool")
    assert tested.code == 0, tested.err
    assert tested.out.strip()


def test_the_day_is_moved_for_apis_and_files_alike(served, sis, home):
    document, process = served
    port = document["url"].rsplit(":", 1)[1]
    files = home / "sandbox" / "oneroster-csv"
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    said = sis("sandbox", "day", 2, "--port", port)
    assert said.code == 0, said.err
    assert "day 2" in said.out
    assert requests.get(f"{document['url']}/_sandbox/day", timeout=10).json()["day"] == 2
    assert {path.name: path.read_bytes() for path in files.iterdir()} != before
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == ExitCode.INTERRUPTED


def test_wrong_use(sis, home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = sis("sandbox", "serve", "--port", port, "--students", 50)
        assert said.code == ExitCode.USAGE
        assert "--port" in said.err
    assert sis("sandbox", "day", 2, "--port", port).code == ExitCode.FAILED
    assert sis("sandbox", "day", 0).code == ExitCode.USAGE
    assert sis("sandbox", "serve", "--school-year", "1900-1901").code == ExitCode.USAGE
