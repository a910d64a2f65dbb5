"""`sis sync --dry-run` at the terminal: what it tells, what it leaves alone, and what it refuses."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from sis_pipeline.cli.output import ExitCode
from sis_pipeline.cli.syncing import Report
from sis_pipeline.db.tables import guard_settings
from sis_pipeline.defs.merging import merge_districts, publish_districts
from sis_pipeline.defs.resources import Roster
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline_tests.store.conftest import SCHOOL, add_integration, good_snapshot, sis_student

NOW = SchoolYear.on(datetime.now(UTC).date())
YEAR, LAST = NOW.key, SchoolYear(NOW.start - 1).key
NAMES = ("Ada", "Wim", "Bo", "Cyril", "Dagmar", "Ed", "Fay", "Gus", "Hal", "Ivy", "Jan", "Kimberly")
DRY = ("sync", "--dry-run", "--school-year", YEAR)


def student(number, **values):
    return sis_student(
        f"s{number}", first_name=NAMES[number], last_name="Moss", local_id=f"L{number}", birth_date=f"2012-03-{number + 1:02d}",
        phone="555-0100", **values,
    )  # fmt: skip


def stay(number, year):
    return {
        "sis_id": f"e{number}", "student_sis_id": f"s{number}", "school_sis_id": "1", "school_year": year,
        "entry_date": SchoolYear.parse(year).first_day, "entry_date_source": "sis", "enrollment_type": "primary",
        "status": "active", "record_status": "active",
    }  # fmt: skip


def town(*numbers, year=YEAR):
    return {
        "schools": [SCHOOL],
        "students": [student(number) for number in numbers],
        "enrollments": [stay(number, year) for number in numbers],
    }


@pytest.fixture
def roster(home, database):
    """An installation with one system of one district, of which nothing is read yet."""
    add_integration(database, "north-ps", "north")
    roster = Roster()
    yield roster
    roster.close()


def read(roster, *numbers, integration="north-ps", year=YEAR):
    good_snapshot(roster.snapshots, integration, year=year, **town(*numbers, year=year))


def publish(roster):
    merge_districts(roster, YEAR, "run", print)
    return publish_districts(roster, YEAR, "run", print)


def published(roster):
    with roster.engine.connect() as connection:
        return connection.scalar(text("select count(*) from sis.student_years"))


def test_a_plan_names_schools_people_and_columns_and_publishes_nothing(roster, sis):
    read(roster, *range(4))
    said = sis(*DRY, "--rows", 2)
    assert said.code == ExitCode.OK, said.err
    assert f"north, {YEAR}: " in said.out
    assert "rows would be added, 0 changed, 0 removed" in said.out
    assert ["North", "students", "4", "0", "0"] in [line.split() for line in said.out.splitlines()]
    shown = [line.split()[2] for line in said.out.splitlines() if line.split()[:2] == ["students", "add"]]
    assert len(shown) == 2, "two rows were asked for"
    assert set(shown) < set(NAMES[:4])
    assert "Nothing was read, and nothing was written." in said.out
    for value in ("555-0100", "2012-03"):
        assert value not in said.out
    assert (published(roster), roster.merges.newest("north", YEAR)) == (0, None)


def test_what_would_be_held_is_told_with_its_reason_and_is_no_error(roster, sis):
    read(roster, *range(12))
    publish(roster)
    read(roster, 0, 1)
    said = sis(*DRY, "--rows", 10)
    assert said.code == ExitCode.OK
    assert "10 removals would be held" in said.out
    held = [line.split()[1] for line in said.out.splitlines() if line.split()[:1] == ["enrollments"]]
    assert sorted(held) == sorted(NAMES[2:])
    assert "more absences than the district's limit" in said.out
    assert "(new)" in said.out
    [plan] = sis(*DRY, "--rows", 1, "--json").json["plans"]
    [hold] = plan["holds"]
    assert (hold["removals"], hold["hold_id"], len(hold["first"])) == (10, None, 1)
    assert (plan["held"], plan["open_holds"], plan["due"]) == (10, 0, True)
    publish(roster)
    again = sis(*DRY)
    assert again.code == ExitCode.OK
    assert "nothing would change; the newest snapshots and decisions are published" in again.out
    assert "1 hold" in again.out
    [plan] = sis(*DRY, "--json").json["plans"]
    assert (plan["due"], plan["open_holds"], plan["tables"]) == (False, 1, [])


def test_json_has_ids_and_names_of_the_first_rows_and_no_other_value(roster, sis):
    read(roster, *range(3))
    publish(roster)
    good_snapshot(
        roster.snapshots, "north-ps", year=YEAR, **town(0, 1) | {"students": [student(0), student(1, middle_name="Q")]}
    )
    said = sis(*DRY, "--json")
    document = said.json
    [plan] = document["plans"]
    assert document["ok"]
    assert plan["total"] == {
        what: sum(part["counts"][what] for part in plan["tables"]) for what in ("added", "changed", "removed")
    }
    [students] = [part for part in plan["tables"] if part["table"] == "students"]
    assert students["school"] == "North"
    assert students["columns"] == {"middle_name": 1}
    [row] = students["first"]
    assert (row["what"], row["name"], row["local_id"], row["columns"]) == ("change", "Wim Moss", "L1", ["middle_name"])
    assert plan["changes"] == {"withdraw": 1}
    assert [(it["integration"], it["verdict"]) for it in document["inputs"]] == [("north-ps", "complete")]
    for value in ("555-0100", "2012-03", '"Q"'):
        assert value not in said.out


def test_every_district_and_year_is_planned_and_one_can_be_chosen(roster, sis):
    add_integration(roster.engine, "south-ps", "south")
    read(roster, 0)
    read(roster, 0, 1, integration="south-ps")
    read(roster, 0, year=LAST)
    said = sis("backfill", "--dry-run", "--school-year", YEAR, "--school-year", LAST, "--json")
    assert said.code == ExitCode.OK, said.err
    assert [(it["district"], it["school_year"]) for it in said.json["plans"]] == [
        ("north", LAST), ("north", YEAR), ("south", YEAR),
    ]  # fmt: skip
    [south] = sis(*DRY, "--integration", "south-ps", "--json").json["plans"]
    assert (south["district"], south["changes"]) == ("south", {"enroll": 2})
    assert published(roster) == 0


def test_a_district_that_cannot_be_planned_is_an_error_and_the_others_are_told(roster, sis):
    add_integration(roster.engine, "south-ps", "south")
    read(roster, 0)
    read(roster, 0, integration="south-ps")
    broken = {"settings": {"district": {"exit_floor": "many"}, "schools": {}}, "set_by": "x", "reason": "x"}
    with roster.engine.begin() as connection:
        connection.execute(guard_settings.insert().values(district="south", version=1, **broken))
    said = sis(*DRY)
    assert said.code == ExitCode.FAILED
    assert f"south, {YEAR}: could not be planned" in said.out
    assert "exit_floor" in said.out
    assert f"north, {YEAR}: " in said.out
    north, south = sis(*DRY, "--json").json["plans"]
    assert (north["error"], south["error"]["class"]) == (None, "config")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("sync", "--read"), ExitCode.USAGE, "options of a dry run"),
        (("sync", "--rows", 3), ExitCode.USAGE, "options of a dry run"),
        (("sync", "--dry-run", "--no-merge"), ExitCode.USAGE, "Leave out --no-merge"),
        (("sync", "--dry-run", "--full"), ExitCode.USAGE, "Give --read too"),
        (("sync", "--dry-run", "--rows", -1), ExitCode.USAGE, "rows"),
        (("sync", "--dry-run", "--school-year", "1999-2000"), ExitCode.USAGE, "can't be loaded"),
        (("backfill", "--read", "--school-year", YEAR), ExitCode.USAGE, "options of a dry run"),
        (("sync", "--dry-run", "--integration", "nobody"), ExitCode.CONFIG, "no integration"),
        (DRY, ExitCode.CONFIG, f"no good snapshot for {YEAR}"),
    ],
)
@pytest.mark.usefixtures("roster")
def test_wrong_use_of_a_dry_run(sis, arguments, code, words):
    said = sis(*arguments)
    assert (said.code, words in said.err) == (code, True), said.err


def test_a_year_without_snapshots_is_named_beside_the_others(roster, sis):
    read(roster, 0)
    said = sis("backfill", "--dry-run", "--school-year", YEAR, "--school-year", LAST)
    assert said.code == ExitCode.OK
    assert f"there is no good snapshot for {LAST}" in said.err


@pytest.fixture
def readings(roster, monkeypatch):
    """What would be read, and how; the readings themselves are made up, and bring three students."""
    calls = []

    class Readings:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def run(self, targets, **how):
            calls.append(([(it.integration.key, it.school_year) for it in targets], how))
            read(roster, 0, 1, 2)
            failed = {"class": "transient", "code": "transient", "message": "It did not answer.", "advice": "Wait."}
            about = dict.fromkeys(("verdict", "api_calls", "seconds"))
            entry = {"integration": "north-ps", "school_year": YEAR, **about, "rows": {}, "quarantined": {}}
            return Report([{**entry, "error": failed if how["full"] else None}])

    monkeypatch.setattr("sis_pipeline.cli.sync.Syncing", Readings)
    return calls


def test_a_dry_run_reads_where_it_is_told_to_and_says_what_becomes_of_it(roster, readings, sis):
    said = sis(*DRY, "--read")
    assert said.code == ExitCode.OK, said.err
    assert readings == [([("north-ps", YEAR)], {"merge": False, "full": False})]
    assert "Nothing was published." in said.out
    assert "the next merge publishes it" in said.out
    assert published(roster) == 0


def test_a_reading_that_fails_is_an_error_and_what_there_is_is_planned(readings, sis):
    said = sis(*DRY, "--read", "--full")
    assert said.code == ExitCode.FAILED
    assert "It did not answer." in said.out
    assert f"north, {YEAR}: " in said.out
    assert not sis(*DRY, "--read", "--full", "--json").json["ok"]
    assert [how for _, how in readings] == [{"merge": False, "full": True}] * 2


def test_a_backfill_that_is_not_dry_reads_and_merges(readings, sis, tmp_path):
    sis("integration", "add", "files", "--provider", "oneroster_csv", "--district", "d", "--option", f"path={tmp_path}")
    assert sis("backfill", "--school-year", LAST, "--integration", "files").code == ExitCode.OK
    assert readings == [([("files", LAST)], {"merge": True, "full": False})]
