"""The demo with a small district and raised limits: the truth after two days, and nothing new when run again."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import text

from sis_pipeline.cli import demo
from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import ExitCode, console
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World

SCALE = 60
SYSTEMS = (
    System("powerschool", "powerschool", 60, {"max_page_size": 1_000}),
    System("oneroster-csv", "oneroster_csv", 40),
)


def small_world():
    today = datetime.now(UTC).date()
    usual = demo.demo_world(None, today)
    return World(seed=3, systems=SYSTEMS, district="small", school_year=usual.school_year, first_day=usual.first_day)


def run(world):
    said: list[str] = []
    return demo.run_demo(Installation(), world, port=0, say=said.append, rate_scale=SCALE), said


def test_two_days_equal_the_truth_and_a_second_run_finds_nothing(home, database, capsys):
    world = small_world()
    first, said = run(world)
    assert first.days_synced == [1, 2]
    assert all(run["ok"] for run in first.runs)
    if first.comparable:
        assert first.equal, [row for row in (*first.systems, *first.merged, *first.changes) if not row["equal"]]
    assert first.ok
    assert any("Day 2" in line for line in said)
    assert any("pages of 1000" in note for note in first.notes)
    assert {row["system"] for row in first.limits} == {"powerschool"}, "files have no limit"
    assert all(row["refused"] == 0 and row["calls"] > 0 for row in first.limits)
    found = {row["what"]: row["found"] for row in first.merged}
    assert found["students"] == len(world.truth(2).known_people)
    assert found["matched"] > 0
    assert found["conflicts"] > 0
    before = rows(database)

    again, _ = run(small_world())
    assert again.days_synced == [2]
    assert again.runs[0]["merges"][0]["changes"] == {}
    assert (again.merged, again.changes) == (first.merged, first.changes)
    assert rows(database) == before, "nothing is doubled"

    demo.print_overview(console(), again)
    printed = capsys.readouterr().out
    for words in (
        "Calls against each limit",
        "matched across systems",
        "Changes by kind",
        "sis students show",
        "sis up",
    ):
        assert words in printed


def rows(database):
    tables = (
        "students",
        "student_links",
        "enrollments",
        "section_enrollments",
        "conflicts",
        "enrollment_changes",
        "integrations",
    )
    with database.connect() as connection:
        return {table: connection.scalar(text(f"select count(*) from {table}")) for table in tables}


@pytest.mark.parametrize(
    ("today", "year", "second"),
    [
        (date(2026, 11, 22), "2026-2027", date(2026, 11, 22)),
        (date(2027, 3, 1), "2026-2027", date(2027, 3, 1)),
        (date(2027, 6, 18), "2026-2027", date(2027, 6, 17)),
        (date(2027, 7, 20), "2026-2027", date(2027, 6, 17)),
        (date(2027, 9, 5), "2026-2027", date(2027, 6, 17)),
        (date(2027, 9, 20), "2027-2028", date(2027, 9, 20)),
    ],
)
def test_the_second_day_is_today_while_there_is_school(monkeypatch, today, year, second):
    made = []
    monkeypatch.setattr(demo, "_world", lambda first_day, school_year: made.append((first_day, school_year)))
    demo.demo_world(None, today)
    assert made == [(second - timedelta(days=1), year)]


def test_a_database_keeps_the_calendar_of_its_first_time(monkeypatch):
    made = []
    monkeypatch.setattr(demo, "_world", lambda first_day, school_year: made.append((first_day, school_year)))
    seen = demo.Seen(2, date(2026, 10, 1), "2026-2027", datetime(2026, 10, 2, tzinfo=UTC))
    demo.demo_world(seen, date(2027, 2, 1))
    assert made == [(date(2026, 10, 1), "2026-2027")]


def test_days_are_remembered_in_the_database(home):
    here, world = Installation(), small_world()
    assert demo.remembered(here, world.district) is None
    for day in (1, 2, 2):
        demo.remember_day(here, world, day)
    seen = demo.remembered(here, world.district)
    assert (seen.day, seen.first_day, seen.school_year) == (2, world.first_day, world.school_year)


def test_somebody_elses_integration_of_that_name_is_left_alone(sis, home, tmp_path):
    sis(
        "integration",
        "add",
        "powerschool",
        "--provider",
        "oneroster_csv",
        "--district",
        "real",
        "--option",
        f"path={tmp_path}",
    )
    said = sis("demo", "--port", 0)
    assert said.code == ExitCode.CONFIG
    assert "leaves it alone" in said.err
    assert sis("integration", "show", "powerschool", "--json").json["integration"]["district"] == "real"


@pytest.mark.usefixtures("home")
def test_the_demos_sandbox_needs_a_demo(sis):
    assert "sis demo" in sis("sandbox", "serve", "--demo").err
