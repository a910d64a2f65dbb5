"""What holds for every command: quick help, JSON alone on stdout, errors in words, exit codes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
import structlog
from typer.main import get_command

from sis_pipeline.cli.boundary import explain
from sis_pipeline.cli.main import app
from sis_pipeline.cli.output import EXIT_CODES, ExitCode, as_text
from sis_pipeline.connect.errors import AuthRevokedError, ConfigError, TransientError


def commands(command, path=()):
    subcommands = getattr(command, "commands", {})
    if not subcommands:
        yield path, command
    for name, subcommand in subcommands.items():
        yield from commands(subcommand, (*path, name))


COMMANDS = dict(commands(get_command(app)))


def test_help_answers_at_once_and_lists_the_exit_codes():
    """Processor time, so that a busy machine doesn't count."""
    script = "from sis_pipeline.cli.main import main; main()"
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5
    text = " ".join(done.stdout.split())
    for code, meaning in EXIT_CODES.items():
        assert f"{code.value} {meaning}" in text


def test_help_loads_nothing_heavy():
    script = (
        "import sys, sis_pipeline.cli.main\n"
        "heavy = {'dagster', 'pandas', 'polars', 'sqlalchemy', 'pydantic', 'pandera', 'requests'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(sis, path):
    said = sis(*path, "--help")
    assert said.code == 0
    assert COMMANDS[path].help
    assert all(parameter.help for parameter in COMMANDS[path].params), "every option has a help text"


def test_every_command_speaks_json():
    without = {path for path, command in COMMANDS.items() if "as_json" not in {it.name for it in command.params}}
    assert without == {("up",), ("db", "psql")}, "these two hand the terminal to another program"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_an_unknown_option_is_wrong_usage(sis, bare_home, path):
    if path == ("db", "psql"):
        pytest.skip("hands its arguments on")
    said = sis(*path, "--no-such-option")
    assert said.code == ExitCode.USAGE
    assert "--no-such-option" in said.err
    assert said.out == ""
    assert not bare_home.exists(), "nothing was done"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("changes", "list", "--json", "--limit", "0"), "--limit"),
        (("changes", "list", "--limit", "many", "--json"), "--limit"),
        (("changes", "list", "--json", "--since", "yesterday"), "--since"),
        (("integration", "show", "--json"), "KEY"),
        (("holds", "release", "7", "--json"), "--reason"),
        (("vanish", "--json"), "vanish"),
        (("--vanish", "version", "--json"), "--vanish"),
        (("students", "show", "--json"), "exactly one"),
    ],
)
def test_wrong_usage_is_json_too_where_asked_for(sis, bare_home, arguments, words):
    said = sis(*arguments)
    assert said.code == ExitCode.USAGE
    error = said.json["error"]
    assert error["class"] == "usage"
    assert words in error["message"]
    assert words in said.err
    assert "Traceback" not in said.err
    assert not bare_home.exists(), "nothing was done"
    handed_on = ("version", "--vanish", "--", "--json")
    assert sis(*handed_on).out == "", "after -- it is no option"


def test_no_command_takes_a_secret_as_an_argument():
    for path, command in COMMANDS.items():
        for parameter in command.params:
            assert not {"secret", "password", "client_secret"} & {parameter.name}, path


@pytest.mark.parametrize(
    ("variables", "code", "words"),
    [
        ({"SIS_DATABASE_URL": "mysql://somewhere/db"}, ExitCode.DATABASE, "only PostgreSQL is supported"),
        ({"SIS_DATABASE_URL": "postgresql://u:canary-7731@127.0.0.1:1/x"}, ExitCode.DATABASE, "does not answer"),
        ({"SIS_DATABASE_URL": "canary-7731"}, ExitCode.DATABASE, "is not a database URL"),
        ({"SIS_FIRST_SCHOOL_YEAR": "canary-7731"}, ExitCode.CONFIG, "first_school_year"),
        ({"SIS_FIRST_SCHOOL_YEAR": "1066"}, ExitCode.CONFIG, "first_school_year"),
        ({"SIS_TIME_ZONE": "canary-7731"}, ExitCode.CONFIG, "time_zone"),
        ({"SIS_SCHEDULE_CRON": "canary-7731"}, ExitCode.CONFIG, "schedule_cron"),
        ({"SIS_MERGE_CRON": "canary-7731"}, ExitCode.CONFIG, "merge_cron"),
        ({"SIS_LOG_FORMAT": "canary-7731"}, ExitCode.CONFIG, "log_format"),
    ],
)
@pytest.mark.usefixtures("bare_home")
def test_a_wrong_environment_is_told_in_words_without_its_values(sis, variables, code, words):
    os.environ.update(variables)
    said = sis("integration", "list", "--json")
    assert said.code == code
    assert words in said.err
    assert said.json["error"]["message"] in said.err
    assert "canary-7731" not in said.out + said.err
    assert "Traceback" not in said.out + said.err


@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.usefixtures("home")
def test_logs_go_to_stderr_as_the_environment_wants_and_leave_json_alone(sis, monkeypatch, log_format):
    from sis_pipeline.db import engine

    monkeypatch.setenv("SIS_LOG_FORMAT", log_format)
    reachable = engine.check_reachable

    def talkative(checked):
        structlog.get_logger("sis_pipeline.db.engine").warning("database.slow", header="Bearer canary-7731")
        reachable(checked)

    monkeypatch.setattr(engine, "check_reachable", talkative)
    said = sis("integration", "list", "--json")
    assert said.code == 0, said.err
    assert said.json["integrations"] == []
    written = [line for line in said.err.splitlines() if "database.slow" in line]
    assert len(written) == 1
    assert written[0].startswith("{") == (log_format == "json")
    assert "canary-7731" not in said.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("no such year."), ExitCode.CONFIG),
        (AuthRevokedError("credentials refused."), ExitCode.CONFIG),
        (TransientError("the system is down."), ExitCode.FAILED),
        (ValueError("canary-7731"), ExitCode.FAULT),
    ],
)
def test_errors_become_a_sentence_and_a_code(error, code):
    trouble = explain(error)
    assert trouble.code == code
    assert trouble.message
    assert trouble.advice
    assert "canary-7731" not in trouble.message


def test_a_fault_of_our_own_says_where_and_debug_shows_it(sis, bare_home, monkeypatch):
    def stumble(_self):
        raise KeyError("canary-7731")

    monkeypatch.setattr("sis_pipeline.cli.installation.Installation.unmigrated", property(stumble))
    said = sis("db", "upgrade")
    assert said.code == ExitCode.FAULT
    assert "KeyError at test_basics.py" in said.err
    assert "canary-7731" not in said.err
    from typer.testing import CliRunner

    assert isinstance(CliRunner().invoke(app, ["--debug", "db", "upgrade"]).exception, KeyError)


def test_values_are_written_for_people():
    assert as_text(12345) == "12,345"
    assert as_text({"rows": 1234, "bad": None}) == "rows 1,234"
    assert as_text(True) == "yes"
    assert as_text([1, "a"]) == "1, a"
