"""Policies on the command line: shown, set, and what another one would change, on a merged district with an edit."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import ExitCode
from sis_pipeline.roster.district import merge_district
from sis_pipeline.roster.policies import PERSONAL
from sis_pipeline.store.publish import publish
from sis_pipeline.store.snapshots import SnapshotStore
from sis_pipeline_tests.store.conftest import YEAR, add_integration, good_snapshot, sis_student

WHY = ("--reason", "the registrar keeps the phone list")


@pytest.fixture
def edited(home, database):
    """A published student whose phone was edited since."""
    installation = Installation()
    add_integration(database, "lincoln-ps")
    store = SnapshotStore(database, installation.settings.data_url)
    good_snapshot(store, students=[sis_student("7", phone="5125550100", email="ada@x.org")])
    gathered = installation.merges.gather("lincoln", YEAR)
    merged = installation.merges.write_merged(gathered, merge_district(gathered.inputs))
    publish(database, installation.merges, merged)
    with database.begin() as connection:
        connection.execute(text("update sis.students set phone = '5125550199'"))
        return connection.scalar(text("select student_id::text from sis.students"))


@pytest.mark.usefixtures("home")
def test_policies_are_set_and_shown(sis):
    shown = sis("policy", "show", "lincoln", "--json").json["policy"]
    assert shown == {
        "district": "lincoln", "version": 0, "default": "sis_wins", "policies": dict.fromkeys(PERSONAL, "sis_wins"), "set": {},
    }  # fmt: skip
    assert sis("policy", "set", "lincoln", "phone=local_wins", "default=newest_wins", *WHY).code == 0
    done = sis("policy", "set", "lincoln", "phone=default", "home_address=manual", *WHY, "--json").json["policy"]
    assert (done["version"], done["set"]) == (2, {"default": "newest_wins", "home_address": "manual"})
    said = sis("policy", "show", "lincoln", "--history")
    assert "version 2" in said.out
    assert "the registrar keeps the phone list" in said.out
    lines = [line.split()[:3] for line in said.out.splitlines()]
    assert ["home_address", "manual", "set"] in lines
    assert ["phone", "newest_wins", "by"] in lines
    assert len(sis("policy", "show", "lincoln", "--history", "--json").json["history"]) == 2


@pytest.mark.parametrize("command", ["set", "check"])
@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (("phone",), (ExitCode.USAGE, "is no ATTRIBUTE=POLICY")),
        (("phone=manual", "phone=sis_wins"), (ExitCode.USAGE, "given twice")),
        (("phone=loudest",), (ExitCode.CONFIG, "not 'loudest'")),
        (("shoe_size=manual",), (ExitCode.CONFIG, "has no policy")),
        (("grade_level=local_wins",), (ExitCode.CONFIG, "belongs to a school year")),
    ],
)
@pytest.mark.usefixtures("home")
def test_what_is_wrong_is_refused_in_words(database, sis, command, given, answer):
    said = sis("policy", command, "lincoln", *given, *(WHY if command == "set" else ()))
    assert (said.code, answer[1] in said.err) == (answer[0], True)
    with database.connect() as connection:
        assert connection.scalar(text("select count(*) from sis.survivorship_policies")) == 0


@pytest.mark.usefixtures("home")
def test_a_reason_and_a_usable_district_are_asked_for(sis):
    assert sis("policy", "set", "lincoln", "phone=manual").code == ExitCode.USAGE
    assert sis("policy", "set", "../lincoln", "phone=manual", *WHY).code == ExitCode.CONFIG
    assert sis("policy", "show", "../lincoln").code == ExitCode.CONFIG


def test_a_check_says_what_would_change_and_changes_nothing(edited, database, sis):
    found = sis("policy", "check", "lincoln", "phone=local_wins", "email=local_wins", "--json").json
    assert (found["values"], found["students"], found["attributes"]) == (1, 1, {"phone": 1})
    assert found["changes"] == [{"attribute": "phone", "student_id": edited, "school_year": YEAR}]
    said = sis("policy", "check", "lincoln", "phone=local_wins")
    assert (said.code, "1 value would change" in said.out, edited in said.out) == (0, True, True)
    assert "5125550199" not in said.out
    assert sis("policy", "check", "lincoln", "email=local_wins", "--json").json["values"] == 0
    with database.connect() as connection:
        assert connection.scalar(text("select count(*) from sis.survivorship_policies")) == 0
        assert connection.scalar(text("select count(*) from sis.sync_operations")) == 1


def test_a_conflict_is_decided_and_reopened(edited, database, sis):
    def merge():
        merges = Installation().merges
        gathered = merges.gather("lincoln", YEAR)
        publish(database, merges, merges.write_merged(gathered, merge_district(gathered.inputs)))

    merge()
    said = sis("conflicts", "decide", edited, "phone", "--from", "local edit", *WHY)
    assert (said.code, f"phone of student {edited} is from local edit/" in said.out) == (0, True)
    merge()
    [found] = sis("conflicts", "list", "--json").json["conflicts"]
    assert (found["chosen"], found["rule"], found["status"]) == ("5125550199", "decided", "resolved")
    assert WHY[1] in sis("students", "show", edited).out
    assert sis("conflicts", "reopen", edited, "phone", *WHY, "--json").json["decision"]["integration"] is None
    assert sis("conflicts", "decide", edited, "email", "--from", "lincoln-ps", *WHY).code == ExitCode.CONFIG
    assert sis("conflicts", "decide", "ada", "phone", "--from", "lincoln-ps", *WHY).code == ExitCode.USAGE
    assert sis("conflicts", "decide", edited, "phone", "--from", "lincoln-ps").code == ExitCode.USAGE


def test_a_student_is_shown_with_the_edits(edited, sis):
    [file] = sis("students", "show", edited, "--json").json["students"]
    assert [(it["attribute"], it["settled_at"]) for it in file["edits"]] == [("phone", None)]
    assert "Local edits" in sis("students", "show", edited).out
