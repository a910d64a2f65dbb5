"""The guard on the command line: thresholds, declared schools, and a hold looked at and released in part."""

from __future__ import annotations

import uuid

import pytest
from sqlalchemy import text

from sis_pipeline.cli.output import ExitCode
from sis_pipeline.db.tables import holds, roster_tables
from sis_pipeline.roster.thresholds import DEFAULTS

YEAR = "2026-2027"
LINCOLN, FRANKLIN = (str(uuid.UUID(int=number)) for number in (11, 12))
NORTH = ("--district", "north")
WHY = ("--reason", "agreed with the registrar")


@pytest.fixture
def schools(home, database):
    with database.begin() as connection:
        for school_id, name, number in ((LINCOLN, "Lincoln High", "100"), (FRANKLIN, "Franklin Middle", "200")):
            connection.execute(
                roster_tables["schools"].insert().values(
                    district="north", school_id=school_id, name=name, school_number=number, kind="school",
                    integration="ps", sis_id=number,
                )
            )  # fmt: skip
    return database


@pytest.mark.usefixtures("schools")
def test_thresholds_are_set_shown_and_reset(sis):
    assert sis("guard", "show", *NORTH, "--json").json["guard"] == {
        "district": "north", "version": 0, "thresholds": DEFAULTS, "set": {}, "schools": {},
    }  # fmt: skip
    assert sis("guard", "set", "district_cap=400", "school_share=15%", *NORTH, *WHY).code == 0
    done = sis("guard", "set", "school_floor=9", "--school", "lincoln high", *NORTH, *WHY, "--json").json["guard"]
    assert (done["version"], done["set"]) == (2, {"district_cap": 400, "school_share": 0.15})
    assert done["schools"] == {LINCOLN: {"school_floor": 9}}
    shown = sis("guard", "show", *NORTH, "--history")
    assert "version 2" in shown.out
    assert "agreed with the registrar" in shown.out
    assert [line.split()[:3] for line in shown.out.splitlines() if "district_cap " in line] == [
        ["district_cap", "400", "250"]
    ]
    assert sis("guard", "reset", "school_share", *NORTH, *WHY, "--json").json["guard"]["set"] == {"district_cap": 400}
    assert sis("guard", "reset", *NORTH, *WHY, "--json").json["guard"]["thresholds"] == DEFAULTS
    assert len(sis("guard", "show", *NORTH, "--history", "--json").json["history"]) == 4


@pytest.mark.parametrize(
    ("given", "code", "why"),
    [
        (("set", "district_cap"), ExitCode.USAGE, "is no NAME=VALUE"),
        (("set", "cap=4"), ExitCode.USAGE, "can't be set for a district"),
        (("set", "district_cap=-4"), ExitCode.USAGE, "out of bounds"),
        (("set", "district_cap=4", "--school", "100"), ExitCode.USAGE, "can't be set for a single school"),
        (("set", "school_floor=4", "--school", "300"), ExitCode.CONFIG, "no published school '300'"),
        (("set", "district_floor=300"), ExitCode.CONFIG, "one of them never counts"),
        (("reset", "cap"), ExitCode.CONFIG, "can't be reset"),
    ],
)
def test_what_is_wrong_is_refused_in_words(schools, sis, given, code, why):
    said = sis("guard", *given, *NORTH, *WHY)
    assert (said.code, why in said.err) == (code, True)
    with schools.connect() as connection:
        assert connection.scalar(text("select count(*) from sis.guard_settings")) == 0


def test_a_reason_and_a_usable_district_are_asked_for(sis):
    assert sis("guard", "set", "district_cap=4", *NORTH).code == ExitCode.USAGE
    assert sis("school", "close", "100", *NORTH, "--effective", "2026-11-20").code == ExitCode.USAGE


def test_schools_are_declared_closed_and_open(schools, sis):
    said = sis("school", "close", "100", *NORTH, "--effective", "2026-11-20", *WHY)
    assert (said.code, "Lincoln High closes on 2026-11-20" in said.out) == (0, True)
    done = sis("school", "open", "300", *NORTH, "--effective", "2026-11-23", *WHY, "--json").json["declaration"]
    assert (done["name"], done["kind"], done["effective"]) == (None, "open", "2026-11-23")
    shown = sis("guard", "show", *NORTH, "--json").json["declarations"]
    assert [(it["kind"], it["name"]) for it in shown] == [("open", None), ("close", "Lincoln High")]
    assert "Lincoln High" in sis("guard", "show", *NORTH).out
    with schools.connect() as connection:
        logged = connection.execute(text("select action, subject from sis.audit_log order by entry")).all()
    assert logged == [("school.close", LINCOLN), ("school.open", done["school_id"])]


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (("close", "300", "--effective", "2026-11-20"), ExitCode.CONFIG),
        (("close", "100", "--effective", "20 November"), ExitCode.USAGE),
        (("close", "100", "--effective", "2026-11-20", "--district", "../x"), ExitCode.CONFIG),
    ],
)
@pytest.mark.usefixtures("schools")
def test_a_wrong_declaration_is_refused(sis, given, code):
    assert sis("school", *given, *(() if "--district" in given else NORTH), *WHY).code == code


@pytest.fixture
def hold(schools):
    """Three removals at Lincoln, of whom one never came, and one at Franklin."""
    hold_id = str(uuid.uuid4())
    places = [(LINCOLN, "no_show"), (LINCOLN, "withdraw"), (LINCOLN, "withdraw"), (FRANKLIN, "withdraw")]
    rows = [[str(uuid.UUID(int=100 + n)), school, "2026-08-20"] for n, (school, _) in enumerate(places)]
    parts = [
        {"school_id": LINCOLN, "change": "no_show", "removals": 1},
        {"school_id": LINCOLN, "change": "withdraw", "removals": 2},
        {"school_id": FRANKLIN, "change": "withdraw", "removals": 1},
    ]
    removals = {
        "kind": "absence", "entity": "enrollments", "scope": "district", "school_id": None, "removals": 4,
        "active_before": 50, "limit": 2, "parts": parts, "until": None, "pinned": False,
    }  # fmt: skip
    with schools.begin() as connection:
        connection.execute(
            holds.insert().values(
                district="north", hold_id=hold_id, school_year=YEAR, fingerprint="f", reason="more absences than the limit",
                removals=removals, rows=rows, operation_id=str(uuid.uuid4()),
            )
        )  # fmt: skip
    return hold_id


def test_a_hold_shows_what_it_holds_per_school_and_the_first_rows(hold, sis):
    shown = sis("holds", "show", hold, "--limit", "2", "--json").json
    assert [(it["school"], it["change"], it["removals"]) for it in shown["parts"]] == [
        ("Lincoln High", "no_show", 1), ("Lincoln High", "withdraw", 2), ("Franklin Middle", "withdraw", 1),
    ]  # fmt: skip
    assert [it["ids"][0] for it in shown["rows"]] == [str(uuid.UUID(int=n)) for n in (100, 101)]
    words = sis("holds", "show", hold, "--limit", "2").out
    for expected in (
        "4 removals of enrollments",
        "The first 2 removals",
        "Franklin Middle",
        f"sis holds release {hold}",
    ):
        assert expected in words


def test_a_part_is_released_and_the_rest_still_waits(hold, sis):
    said = sis("holds", "release", hold, "--school", "Lincoln High", "--kind", "withdraw", *WHY, "--json").json["hold"]
    assert (said["status"], said["held"], said["removals"]["part_of"]) == ("released", 2, hold)
    (rest,) = sis("holds", "list", "--json").json["holds"]
    assert (rest["hold_id"], rest["held"]) == (hold, 2)
    assert f"the rest of hold {hold} still waits" in sis("holds", "release", hold, "--kind", "no_show", *WHY).out
    assert sis("holds", "release", hold, "--school", "200", *WHY, "--json").json["hold"]["hold_id"] == hold
    assert sis("holds", "list", "--json").json["holds"] == []


@pytest.mark.parametrize(
    ("given", "why"),
    [(("--kind", "graduate"), "holds nothing of kind 'graduate'"), (("--school", "300"), "no published school '300'")],
)
def test_a_part_that_is_not_there_is_refused(hold, sis, given, why):
    said = sis("holds", "release", hold, *given, *WHY)
    assert (said.code, why in said.err) == (ExitCode.CONFIG, True)
    assert sis("holds", "list", "--json").json["holds"][0]["held"] == 4
