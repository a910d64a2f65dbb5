"""A person settles who is who at the terminal, and sees values only where asked for."""

from __future__ import annotations

import uuid
from datetime import date

import pytest
from sqlalchemy import text

from sis_pipeline.cli.output import ExitCode
from sis_pipeline.db.tables import identity_decisions, near_matches, roster_tables, student_aliases

YEAR = "2026-2027"
ANA, ANNA, NEAR, OLD = (str(uuid.UUID(int=number)) for number in (1, 2, 3, 4))
SECRETS = ("Ana", "Anna", "O'Neil", "2012-03-04", "ana@north.example")


@pytest.fixture
def waiting(home, database):
    """Ana in two systems under one id, Anna in a third, and the question whether they are one."""
    with database.begin() as connection:

        def add(table, **values):
            connection.execute(roster_tables[table].insert().values(district="north", **values))

        for student_id, first_name in ((ANA, "Ana"), (ANNA, "Anna")):
            add("students", student_id=student_id, first_name=first_name, last_name="O'Neil", birth_date=date(2012, 3, 4),
                latest_school_year=YEAR, near_match=True, origins={"*": "ps/7"})  # fmt: skip
        for student_id, integration, sis_id, values in (
            (ANA, "ps", "7", {"first_name": "Ana", "last_name": "O'Neil", "email": "ana@north.example"}),
            (ANA, "sky", "70", {"first_name": "Ana", "last_name": "O'Neil"}),
            (ANNA, "ic", "9", {"first_name": "Anna", "last_name": "ONEIL", "birth_date": date(2012, 3, 4)}),
        ):
            add(
                "student_links",
                student_id=student_id,
                integration=integration,
                sis_id=sis_id,
                rule="new",
                confidence=0.5,
                active=True,
            )
            add("student_sources", student_id=student_id, integration=integration, sis_id=sis_id, school_year=YEAR,
                snapshot_id=str(uuid.uuid4()), **values)  # fmt: skip
        connection.execute(
            near_matches.insert().values(
                district="north", near_match_id=NEAR, school_year=YEAR, integration="ps", sis_id="7", student_id=ANA,
                other_integration="ic", other_sis_id="9", other_student_id=ANNA, rule="similar_name",
                evidence="last_name, similar first_name", score=0.89, operation_id=str(uuid.uuid4()),
            )
        )  # fmt: skip
        connection.execute(
            student_aliases.insert().values(
                district="north", alias_id=OLD, student_id=ANA, records=[["sky", "70"]], operation_id=str(uuid.uuid4())
            )
        )
    return database


@pytest.fixture
def teachers(home, database):
    """Grace of the staff in two systems, and the question whether they are one."""
    with database.begin() as connection:
        for staff_id, integration, last_name in ((ANA, "ps", "Hopper"), (ANNA, "ic", "Hooper")):
            who = {"district": "north", "staff_id": staff_id}
            connection.execute(roster_tables["staff"].insert().values(
                first_name="Grace", last_name=last_name, email=f"{integration}@north.example", role="teacher",
                near_match=True, **who,
            ))  # fmt: skip
            connection.execute(roster_tables["staff_links"].insert().values(
                integration=integration, sis_id="7", rule="new", active=True, **who
            ))  # fmt: skip
        connection.execute(
            near_matches.insert().values(
                district="north", near_match_id=NEAR, entity="staff", school_year=YEAR, integration="ps", sis_id="7",
                student_id=ANA, other_integration="ic", other_sis_id="7", other_student_id=ANNA, rule="similar_name",
                evidence="first_name, school, similar last_name", score=0.74, operation_id=str(uuid.uuid4()),
            )
        )  # fmt: skip
    return database


def test_staff_are_reviewed_side_by_side_and_decided_as_students_are(teachers, sis):
    said = sis("links", "review")
    assert "of north, staff, open: 74% alike by similar_name" in said.out
    assert "Grace" not in said.out
    rows = {line.split()[0]: line.split()[1:] for line in said.out.splitlines() if "•••" in line}
    assert (rows["first_name"][-1], rows["last_name"][-1], rows["email"][-1]) == ("same", "differs", "differs")
    assert sis("links", "review", "--entity", "student", "--json").json["total"] == 0
    [asked] = sis("links", "review", "--entity", "staff", "--json", "--values").json["near_matches"]
    assert {"attribute": "last_name", "one": "Hopper", "other": "Hooper", "verdict": "differs"} in asked["attributes"]

    confirmed = sis("links", "confirm", NEAR, "--reason", "she signed both")
    assert "They are one of the staff" in confirmed.out
    shown = sis("links", "show", ANNA, "--json").json
    assert [(it["integration"], it["sis_id"]) for it in shown["staff"]["records"]] == [("ic", "7")]
    assert [(it["entity"], it["verdict"]) for it in shown["decisions"]] == [("staff", "same")]
    assert "Hooper" not in sis("links", "show", ANNA).out
    assert "Hooper" in sis("links", "show", ANNA, "--values").out
    assert "They are two of the staff" in sis("links", "distinct", NEAR, "--reason", "two cousins").out
    assert [row[0] for row in decisions(teachers)] == ["same", "distinct"]


def decisions(database) -> list[tuple]:
    table = identity_decisions.c
    with database.connect() as connection:
        query = identity_decisions.select().with_only_columns(
            table.verdict, table.sis_id, table.other_sis_id, table.student_id, table.reason
        )
        return [tuple(row) for row in connection.execute(query.order_by(table.decided_at))]


def no_values(*texts: str) -> bool:
    return not any(secret in text for secret in SECRETS for text in texts)


def test_review_shows_the_two_side_by_side_without_values(waiting, sis):
    said = sis("links", "review")
    assert said.code == ExitCode.OK
    assert "89% alike by similar_name" in said.out
    assert "last_name, similar first_name" in said.out
    assert "ps/7" in said.out
    assert "ic/9" in said.out
    rows = {line.split()[0]: line.split()[1:] for line in said.out.splitlines() if "•••" in line}
    assert rows["last_name"] == ["•••", "•••", "same"]
    assert rows["first_name"] == ["•••", "•••", "differs"]
    assert rows["email"] == ["•••", "only", "one"]
    assert "1 near match." in said.out
    assert no_values(said.out, said.err)


def test_values_are_shown_where_asked_for(waiting, sis):
    for command in (("review",), ("show", NEAR)):
        shown = sis("links", *command, "--values").out
        assert all(secret in shown for secret in SECRETS)


def test_json_has_values_only_where_asked_for(waiting, sis):
    plain = sis("links", "review", "--json")
    assert no_values(plain.out)
    [near] = plain.json["near_matches"]
    assert (near["near_match_id"], near["score"], near["status"]) == (NEAR, 0.89, "open")
    assert [side["record"] for side in near["sides"]] == [["ps", "7"], ["ic", "9"]]
    [asked] = sis("links", "review", "--json", "--values").json["near_matches"]
    assert {"attribute": "first_name", "one": "Ana", "other": "Anna", "verdict": "differs"} in asked["attributes"]
    assert no_values(sis("links", "show", NEAR, "--json").out, sis("links", "show", ANA, "--json").out)


def test_review_is_filtered(waiting, sis):
    assert sis("links", "review", "--district", "south", "--json").json == {
        "near_matches": [],
        "total": 0,
        "cut_chains": [],
    }
    assert sis("links", "review", "--status", "decided", "--json").json["total"] == 0
    assert sis("links", "review", "--status", "all", "--json").json["total"] == 1
    for option in ("--status", "--entity"):
        refused = sis("links", "review", option, "lost")
        assert refused.code == ExitCode.USAGE
        assert option in refused.err


def test_two_state_ids_are_confirmed_with_a_word_about_them(waiting, sis):
    with waiting.begin() as connection:
        for sis_id, ssid in (("7", "S1"), ("9", "S2")):
            values = {"ssid": ssid, "id": sis_id}
            connection.execute(text("update sis.student_sources set ssid = :ssid where sis_id = :id"), values)
    refused = sis("links", "confirm", NEAR, "--reason", "saw the papers")
    assert refused.code == ExitCode.CONFIG
    assert "--two-state-ids" in refused.err
    assert decisions(waiting) == []
    said = sis("links", "confirm", NEAR, "--reason", "saw the papers", "--two-state-ids")
    assert said.out.startswith("Decided. They are one student")
    assert decisions(waiting) == [("same_with_two_state_ids", "7", "9", ANA, "saw the papers")]
    shown = sis("links", "show", ANA, "--json").json
    assert [it["verdict"] for it in shown["decisions"]] == ["same_with_two_state_ids"]


@pytest.mark.parametrize(("command", "verdict"), [("confirm", "same"), ("distinct", "distinct")])
def test_a_decision_is_remembered_and_audited_without_values(waiting, sis, command, verdict):
    said = sis("links", command, NEAR, "--reason", "saw the papers")
    assert said.code == ExitCode.OK
    assert said.out.startswith("Decided. ")
    assert decisions(waiting) == [(verdict, "7", "9", ANA, "saw the papers")]
    assert sis("links", "review", "--json").json["total"] == 0
    with waiting.connect() as connection:
        [row] = connection.execute(text("select action, details from sis.audit_log where action like 'link.%'"))
        made = connection.scalar(text("select decision_id from sis.identity_decisions"))
    assert row.action == f"link.{command}"
    assert row.details == {
        "decisions": [str(made)],
        "students": [ANA, ANNA],
        "reason": "saw the papers",
        "rule": "similar_name",
    }


def test_a_split_names_the_student_that_comes_back(waiting, sis):
    said = sis("links", "split", ANA, "--record", "sky/70", "--reason", "a cousin")
    assert said.code == ExitCode.OK
    assert f"makes sky/70 student {OLD} again" in " ".join(said.out.split())
    assert decisions(waiting) == [("distinct", "70", "7", OLD, "a cousin")]
    shown = sis("links", "show", ANA, "--json").json
    assert [it["verdict"] for it in shown["decisions"]] == ["distinct"]


def test_show_takes_a_student_and_an_id_that_was_merged_away(waiting, sis):
    for given in (ANA, OLD):
        shown = sis("links", "show", given, "--json").json["student"]
        assert shown["student_id"] == ANA
        assert [(it["integration"], it["sis_id"]) for it in shown["records"]] == [("ps", "7"), ("sky", "70")]
        assert [it["alias_id"] for it in shown["aliases"]] == [OLD]
    said = sis("links", "show", OLD)
    assert f"Student {OLD} was merged into this one." in said.out
    assert no_values(said.out)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("confirm", "7", "--reason", "x"), ExitCode.CONFIG, "is no near match's id"),
        (("distinct", str(uuid.UUID(int=9)), "--reason", "x"), ExitCode.CONFIG, "There is no near match"),
        (("confirm", NEAR, "--reason", " "), ExitCode.CONFIG, "needs who decides and why"),
        (("confirm", NEAR), ExitCode.USAGE, "--reason"),
        (("show", "7"), ExitCode.USAGE, "not a UUID"),
        (("show", str(uuid.UUID(int=9))), ExitCode.USAGE, "No near match and no student or staff member"),
        (("split", ANA, "--record", "70", "--reason", "x"), ExitCode.USAGE, "INTEGRATION/SIS_ID"),
        (("split", ANA, "--record", "ic/9", "--reason", "x"), ExitCode.CONFIG, "is not one of student"),
        (("split", ANNA, "--record", "ic/9", "--reason", "x"), ExitCode.CONFIG, "nothing to split"),
    ],
)
def test_what_can_not_be_done_is_refused_in_words(waiting, sis, arguments, code, words):
    said = sis("links", *arguments)
    assert said.code == code
    assert words in said.err
    assert decisions(waiting) == []


def test_a_recycled_id_is_shown_with_who_had_it_and_answered(waiting, sis):
    with waiting.begin() as connection:
        connection.execute(
            near_matches.insert().values(
                district="north", near_match_id=str(uuid.UUID(int=5)), school_year=YEAR, integration="ps", sis_id="7",
                student_id=str(uuid.UUID(int=6)), other_student_id=ANA, rule="recycled_id", evidence="", score=0.1,
                operation_id=str(uuid.uuid4()),
            )
        )  # fmt: skip
    said = sis("links", "review").out
    assert said.index("by recycled_id") < said.index("by similar_name"), "nobody is published of it"
    assert "The id ps/7 seems to be given to somebody else: nothing that it says is published." in said
    assert "2 near matches." in said
    split = sis("links", "split", ANA, "--record", "ps/7", "--reason", "a new girl").out
    assert "a student of its own" in split
    assert [row[:3] for row in decisions(waiting)] == [("distinct", "7", None)]
    said = sis("links", "confirm", str(uuid.UUID(int=5)), "--reason", "no, it is she").out
    assert "The record is whose it was" in said


def test_cut_chains_are_listed_after_the_near_matches(waiting, sis, monkeypatch):
    chain = {"integration": "ps", "sis_id": "7", "other_integration": "ic", "other_sis_id": "9", "rule": "ssid"}
    monkeypatch.setattr(
        "sis_pipeline.store.merged.MergeStore.cut_chains", lambda _, district: [{"district": "north", **chain}]
    )
    said = sis("links", "review").out
    assert "1 cut chain" in said
    assert said.index("1 near match.") < said.index("1 cut chain")
    assert sis("links", "review", "--json").json["cut_chains"] == [{"district": "north", **chain}]
