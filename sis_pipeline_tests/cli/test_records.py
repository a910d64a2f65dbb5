"""Showing what is published: one student, conflicts, changes, holds; and that protected addresses stay hidden."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime

import pytest
from sqlalchemy import text

from sis_pipeline.cli.output import ExitCode
from sis_pipeline.cli.records import only_what_differs
from sis_pipeline.db.tables import holds, roster_tables, student_aliases, student_names

YEAR = "2026-2027"
STREET, HIDDEN = "12 Elm Street", "77 Hidden Lane"
ANA, BEN, ANA_TOO = (str(uuid.UUID(int=number)) for number in (1, 2, 3))
LINCOLN, FRANKLIN = (str(uuid.UUID(int=number)) for number in (11, 12))


@pytest.fixture
def published(home, database):
    """Ana in two districts and two systems, Ben with a protected address, a conflict each, three changes."""
    with database.begin() as connection:

        def add(table, **values):
            connection.execute(roster_tables[table].insert().values(**{"district": "north", **values}))

        for school_id, name, number in ((LINCOLN, "Lincoln High", "100"), (FRANKLIN, "Franklin Middle", "200")):
            add(
                "schools",
                school_id=school_id,
                name=name,
                school_number=number,
                kind="school",
                integration="ps",
                sis_id=number,
            )
        student(
            add,
            ANA,
            "Ana",
            ssid="S1",
            local_id="0042",
            origins={"*": "ps/7", "email": "ic/9 sis_wins"},
            email="ana@north.example",
            home_street=STREET,
        )
        student(
            add,
            BEN,
            "Ben",
            ssid="S2",
            local_id="0043",
            address_confidential=True,
            home_street=HIDDEN,
            origins={"*": "ps/8", "email": "ps/8 cleared"},
        )
        student(add, ANA_TOO, "Ana", ssid="S1", local_id="0042", district="south")
        link(add, ANA, "ps", "7", home_street=STREET, modified_at=datetime(2026, 9, 1, tzinfo=UTC))
        link(add, ANA, "ic", "9", home_street=STREET)
        link(add, BEN, "ps", "8", home_street=HIDDEN, cleared=["email"])
        add("student_years", student_id=ANA, school_year=YEAR, grade_level="09", school_id=LINCOLN)
        add(
            "enrollments", student_id=ANA, school_id=LINCOLN, school_year=YEAR, entry_date=date(2026, 8, 20),
            entry_date_source="sis", enrollment_type="primary", status="active", integration="ps", sis_id="e1",
        )  # fmt: skip
        conflict(add, ANA, "email", "ana@north.example", "ana@old.example")
        conflict(add, BEN, "home_address", HIDDEN, "78 Hidden Lane")
        change(add, ANA, "enroll", LINCOLN, day=20)
        change(add, ANA, "grade_change", LINCOLN, day=21)
        change(add, BEN, "enroll", FRANKLIN, day=22)
    return database


def student(add, student_id, first_name, **values):
    defaults = {"last_name": "O'Neil", "latest_school_year": YEAR, "near_match": False, "origins": {"*": "ps/1"}}
    add("students", student_id=student_id, first_name=first_name, **{**defaults, **values})


def link(add, student_id, integration, sis_id, **values):
    seen = {"rule": "ssid", "confidence": 1.0, "active": True}
    add("student_links", integration=integration, sis_id=sis_id, student_id=student_id, **seen)
    add(
        "student_sources", integration=integration, sis_id=sis_id, student_id=student_id, school_year=YEAR,
        snapshot_id=str(uuid.uuid4()), **values,
    )  # fmt: skip


def conflict(add, student_id, attribute, chosen, other):
    candidates = [
        {"integration": "ps", "sis_id": "7", "value": chosen, "modified_at": None},
        {"integration": "ic", "sis_id": "9", "value": other, "modified_at": None},
    ]
    add(
        "conflicts", student_id=student_id, school_year=YEAR, attribute=attribute, candidates=candidates, chosen=chosen,
        chosen_from="ps/7", rule="sis_wins", status="auto",
    )  # fmt: skip


def change(add, student_id, kind, school_id, *, day):
    add(
        "enrollment_changes", change_id=str(uuid.uuid4()), student_id=student_id, school_year=YEAR, kind=kind,
        effective_date=date(2026, 8, day), school_id=school_id, evidence="first_load", integration="ps",
        operation_id=str(uuid.uuid4()), detected_at=datetime(2026, 9, day, tzinfo=UTC), after={"status": "active"},
    )  # fmt: skip


def test_a_student_is_shown_with_the_origin_of_every_value(published, sis):
    shown = sis("students", "show", ANA)
    assert shown.code == 0
    lines = [line.split() for line in shown.out.splitlines()]
    assert ["local_id", "0042", "ps/7", "sis_wins"] in lines, "leading zeros survive"
    assert ["email", "ana@north.example", "ic/9", "sis_wins"] in lines
    assert ["home_street", *STREET.split(), "ps/7", "2026-09-01", "sis_wins", "ic/9"] in lines, "and who is next"
    file = sis("students", "show", ANA, "--json").json["students"][0]
    assert {link["integration"] for link in file["links"]} == {"ps", "ic"}
    [home] = [it for it in file["provenance"] if it["attribute"] == "home_address"]
    assert (home["sis_id"], home["runner_up_integration"], home["runner_up_sis_id"]) == ("7", "ic", "9")
    assert file["enrollments"][0]["school"] == "Lincoln High"
    assert [it["kind"] for it in file["changes"]] == ["enroll", "grade_change"]
    assert file["years"][0]["grade_level"] == "09"
    assert file["conflicts"][0]["chosen"] == "ana@north.example"


def test_what_a_student_was_called_before_is_shown_with_until_when(published, sis):
    merged = str(uuid.UUID(int=4))
    about = {"district": "north", "first_name": "Ana"}
    with published.begin() as connection:
        for who, last_name, day in ((ANA, "Reed", 2), (merged, "Hill", 1), (BEN, "Dunn", 3)):
            until = datetime(2026, 9, day, tzinfo=UTC)
            connection.execute(student_names.insert().values(student_id=who, last_name=last_name, until=until, **about))
        alias = {"district": "north", "alias_id": merged, "student_id": ANA, "records": []}
        connection.execute(student_aliases.insert().values(operation_id=str(uuid.uuid4()), **alias))
    lines = [line.split() for line in sis("students", "show", ANA).out.splitlines()]
    assert ["Ana", "Reed", "2026-09-02", "00:00:00+00:00"] in lines
    file = sis("students", "show", ANA, "--json").json["students"][0]
    assert [name["last_name"] for name in file["former_names"]] == ["Hill", "Reed"], "who was merged into her counts"


def test_what_a_system_cleared_is_shown_with_its_origin(published, sis):
    lines = [line.split() for line in sis("students", "show", BEN).out.splitlines()]
    assert ["email", "(cleared)", "ps/8", "cleared"] in lines
    [email] = [
        it
        for it in sis("students", "show", BEN, "--json").json["students"][0]["provenance"]
        if it["attribute"] == "email"
    ]
    assert (email["integration"], email["rule"]) == ("ps", "cleared")


def test_what_a_system_cleared_is_a_candidate_of_a_conflict(published, sis, database):
    cleared = "update sis.conflicts set chosen = null, candidates = jsonb_set(candidates, '{0,value}', 'null') where attribute = :it"
    with database.begin() as connection:
        for attribute in ("email", "home_address"):
            connection.execute(text(cleared), {"it": attribute})
    shown = sis("conflicts", "list", "--limit", "9").out
    assert shown.count("(cleared)") == 2
    assert "Hidden" not in shown, "an address that is protected stays so"


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("--ssid", "S1"), {ANA, ANA_TOO}),
        (("--ssid", "S1", "--district", "south"), {ANA_TOO}),
        (("--local-id", "0043"), {BEN}),
        (("--sis", "ic/9"), {ANA}),
    ],
)
def test_a_student_is_found_by_any_id(published, sis, arguments, found):
    files = sis("students", "show", *arguments, "--json").json["students"]
    assert {file["record"]["student_id"] for file in files} == found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "exactly one"),
        ((ANA, "--ssid", "S1"), "exactly one"),
        (("not-a-uuid",), "UUID"),
        (("--sis", "ps"), "KEY/ID"),
        (("--ssid", "nobody"), "No published student"),
        ((str(uuid.UUID(int=99)),), "No published student"),
    ],
)
def test_ids_that_name_nobody_are_wrong_usage(published, sis, arguments, words):
    said = sis("students", "show", *arguments)
    assert said.code == ExitCode.USAGE
    assert words in said.err


def test_a_protected_address_is_hidden_everywhere_unless_asked_for(published, sis):
    commands = [
        ("students", "show", BEN), ("students", "show", BEN, "--json"), ("conflicts", "list"), ("conflicts", "list", "--json"),
        ("changes", "list", "--json"),
    ]  # fmt: skip
    for command in commands:
        assert "Hidden Lane" not in sis(*command).out, command
    assert HIDDEN in sis("students", "show", BEN, "--reveal").out
    assert "78 Hidden Lane" in sis("conflicts", "list", "--reveal").out
    assert STREET in sis("students", "show", ANA).out


def test_conflicts_are_filtered_and_counted(published, sis):
    both = sis("conflicts", "list", "--json", "--limit", 1).json
    assert (len(both["conflicts"]), both["total"]) == (1, 2)
    found = sis(
        "conflicts", "list", "--attribute", "email", "--district", "north", "--school-year", YEAR, "--json"
    ).json
    assert [it["chosen"] for it in found["conflicts"]] == ["ana@north.example"]
    assert "ic: ana@old.example" in sis("conflicts", "list").out
    assert sis("conflicts", "list", "--status", "open", "--json").json["total"] == 0
    with published.begin() as connection:
        connection.execute(text("update sis.conflicts set status = 'stale' where attribute = 'email'"))
    assert sis("conflicts", "list", "--json").json["total"] == 1, "what is stale conflicts no more"
    stale = sis("conflicts", "list", "--status", "stale")
    assert "ana@old.example" in stale.out
    assert f"stale since {datetime.now(UTC):%Y-}" in stale.out
    assert "Decide one" not in stale.out


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        ((), ["enroll", "grade_change", "enroll"]),
        (("--kind", "grade_change"), ["grade_change"]),
        (("--kind", "grade_change", "--kind", "enroll", "--limit", 2), ["enroll", "grade_change"]),
        (("--since", "2026-09-21"), ["enroll", "grade_change"]),
        (("--since", "2026-09-21T00:00:01"), ["enroll"]),
        (("--school", "franklin middle"), ["enroll"]),
        (("--school", "100"), ["grade_change", "enroll"]),
        (("--school", LINCOLN), ["grade_change", "enroll"]),
        (("--school", "%"), []),
        (("--district", "south"), []),
        (("--school-year", "2025-2026"), []),
    ],
)
def test_changes_are_filtered_and_the_newest_come_first(published, sis, arguments, kinds):
    said = sis("changes", "list", "--json", *arguments)
    assert [it["kind"] for it in said.json["changes"]] == kinds


@pytest.mark.parametrize(
    "arguments",
    [
        ("changes", "list", "--kind", "vanish"),
        ("changes", "list", "--since", "yesterday"),
        ("changes", "list", "--limit", "0"),
        ("changes", "list", "--school-year", "26-27"),
        ("conflicts", "list", "--status", "odd"),
        ("conflicts", "list", "--attribute", "shoe_size"),
        ("holds", "list", "--status", "odd"),
    ],
)
@pytest.mark.usefixtures("home")
def test_filters_that_can_match_nothing_are_wrong_usage(sis, arguments):
    said = sis(*arguments)
    assert said.code == ExitCode.USAGE
    assert said.err


def test_a_change_shows_what_differs_and_no_id_of_a_school_it_names():
    stay = {"school_id": LINCOLN, "entry_date": "2026-08-20", "exit_date": None, "status": "active"}
    row = {"kind": "withdraw", "school_id": LINCOLN, "school": "Lincoln High", "before": stay,
           "after": {**stay, "exit_date": "2026-10-01", "status": "exited"}}  # fmt: skip
    shown = only_what_differs(row)
    assert shown["before"] == {"exit_date": None, "status": "active"}
    assert shown["after"] == {"exit_date": "2026-10-01", "status": "exited"}
    assert row["before"] is stay, "what JSON prints stays whole"
    arrival = only_what_differs({**row, "before": None})
    assert arrival["before"] == {}
    assert arrival["after"] == {"entry_date": "2026-08-20", "exit_date": "2026-10-01", "status": "exited"}
    transfer = only_what_differs({**row, "before": {**stay, "school_id": FRANKLIN}, "after": stay})
    assert (transfer["before"], transfer["after"]) == ({"school_id": FRANKLIN}, {})
    nameless = only_what_differs({**row, "school": None, "before": None, "after": {"school_id": LINCOLN}})
    assert nameless["after"] == {"school_id": LINCOLN}


def test_tables_leave_out_what_json_keeps(published, sis, database):
    changes = roster_tables["enrollment_changes"]
    grade = {"before": {"grade_level": "08", "homeroom": "b2"}, "after": {"grade_level": "09", "homeroom": "b2"}}
    with database.begin() as connection:
        connection.execute(changes.update().where(changes.c.kind == "grade_change").values(**grade))
    for command in (("changes", "list"), ("students", "show", ANA)):
        said = sis(*command).out
        assert "grade_level 08" in said
        assert "homeroom b2" not in said
    (change,) = sis("changes", "list", "--kind", "grade_change", "--json").json["changes"]
    assert (change["before"], change["after"]) == (grade["before"], grade["after"])


@pytest.fixture
def hold(home, database):
    hold_id = str(uuid.uuid4())
    with database.begin() as connection:
        connection.execute(
            holds.insert().values(
                district="north", hold_id=hold_id, school_year=YEAR, fingerprint="f", reason="11 of 100 would leave (limit 2)",
                removals={"withdraw": 11}, rows=[["a"]] * 11, operation_id=str(uuid.uuid4()),
            )
        )  # fmt: skip
    return hold_id


def test_holds_are_shown_and_decided_by_name_with_a_reason(hold, sis, database):
    (shown,) = sis("holds", "list", "--json").json["holds"]
    assert (shown["hold_id"], shown["held"], shown["status"]) == (hold, 11, "open")
    assert "rows" not in shown
    assert sis("holds", "release", hold).code == ExitCode.USAGE, "needs a reason"
    assert sis("holds", "release", hold, "--reason", "the school closed", "--json").json["hold"]["status"] == "released"
    assert sis("holds", "list", "--json").json["holds"] == []
    assert sis("holds", "discard", hold, "--reason", "no, it did not").code == 0
    assert "discarded" in sis("holds", "list", "--status", "all").out
    with database.connect() as connection:
        logged = connection.execute(text("select action, details ->> 'reason' from audit_log order by entry")).all()
    assert logged == [("hold.released", "the school closed"), ("hold.discarded", "no, it did not")]


@pytest.mark.parametrize("name", ["no-uuid", str(uuid.UUID(int=5))])
@pytest.mark.usefixtures("home")
def test_an_unknown_hold(sis, name):
    said = sis("holds", "release", name, "--reason", "x")
    assert said.code == ExitCode.CONFIG
    assert "sis holds list" in said.err
