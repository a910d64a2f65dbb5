"""What the environment may say, and how it is told what it may not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import structlog
from pydantic import ValidationError

from sis_pipeline.cli.installation import Installation
from sis_pipeline.connect import log
from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.defs.assembly import build_defs
from sis_pipeline.defs.resources import Roster
from sis_pipeline.settings import Settings

BAD = [
    ("time_zone", "Canary/City"),
    ("time_zone", "../canary"),
    ("time_zone", "America"),
    ("time_zone", ""),
    ("schedule_cron", "canary"),
    ("schedule_cron", ""),
    ("schedule_cron", "0 2 * *"),
    ("schedule_cron", "61 2 * * *"),
    ("schedule_cron", "0 0 2 * * *"),
    ("schedule_cron", "0 2 30 2 *"),
    ("merge_cron", "canary"),
    ("log_format", "canary"),
    ("log_format", "JSON"),
    ("log_level", "canary"),
    ("log_level", "DEBUG"),
    ("first_school_year", "canary"),
    ("first_school_year", "1989"),
    ("first_school_year", "2101"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_refused_by_name_and_not_repeated(monkeypatch, name, value):
    monkeypatch.setenv(f"SIS_{name.upper()}", value)
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert [problem["loc"] for problem in refused.value.errors()] == [(name,)]
    assert "canary" not in str(refused.value).lower()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("time_zone", "America/Chicago"),
        ("schedule_cron", "30 1 * * 1-5"),
        ("schedule_cron", "@daily"),
        ("merge_cron", "*/15 * * * *"),
        ("log_format", "json"),
        ("log_level", "debug"),
        ("first_school_year", "1990"),
        ("first_school_year", "2100"),
    ],
)
def test_a_good_value_is_taken(monkeypatch, name, value):
    monkeypatch.setenv(f"SIS_{name.upper()}", value)
    assert str(getattr(Settings(), name)) == value


@pytest.mark.parametrize("opens", [Roster, Installation], ids=["a run", "a command"])
@pytest.mark.parametrize(("level", "told"), [(None, 1), ("debug", 2), ("error", 0)])
def test_our_lines_are_logged_from_the_level_on_that_was_asked_for(monkeypatch, capsys, opens, level, told):
    if level:
        monkeypatch.setenv("SIS_LOG_LEVEL", level)
    try:
        assert opens().settings.log_level == (level or "info")
        ours = structlog.get_logger("sis_pipeline.test")
        ours.debug("one.page")
        ours.info("one.sync")
    finally:
        log.configure()
    assert capsys.readouterr().err.count("one.") == told


def test_the_defaults_keep_the_rules():
    defaults = {name: field.default for name, field in Settings.model_fields.items() if field.default is not None}
    kept = Settings(**defaults)
    assert {name: getattr(kept, name) for name in defaults} == defaults


def test_reading_the_defaults_loads_no_dagster():
    code = "import sys; from sis_pipeline.settings import Settings; Settings(); print('dagster' in sys.modules)"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SIS_")}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_definitions_say_in_a_sentence_what_is_wrong(monkeypatch):
    monkeypatch.setenv("SIS_TIME_ZONE", "Canary/City")
    monkeypatch.setenv("SIS_LOG_FORMAT", "canary")
    with pytest.raises(ConfigError) as refused:
        build_defs()
    said = str(refused.value)
    assert "time_zone: " in said
    assert "log_format: " in said
    assert "\n" not in said
    assert "canary" not in said.lower()
    assert refused.value.__cause__ is None


def test_importing_the_definitions_ends_in_that_sentence():
    done = subprocess.run(
        [sys.executable, "-c", "import sis_pipeline.definitions"],
        env={**os.environ, "SIS_MERGE_CRON": "canary"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "merge_cron: Value error, this is not a cron schedule" in last
    assert "canary" not in done.stderr
