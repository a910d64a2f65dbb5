"""Accounts on the command line: rules checked and set, accounts listed masked, and one shown with what it may see."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import ExitCode
from sis_pipeline.roster.account_rules import SETTINGS
from sis_pipeline.roster.district import merge_district
from sis_pipeline.store.publish import publish
from sis_pipeline.store.snapshots import SnapshotStore
from sis_pipeline_tests.store.conftest import YEAR, add_integration, good_snapshot, uid
from sis_pipeline_tests.store.test_roundtrip import delivery

WHY = ("--reason", "the year begins")
RULES = ("student.username={first_name}", "student.domain=kids.lincoln.example", "staff.username={last_name}")


@pytest.fixture
def published(home, database):
    """Two students and a teacher."""
    installation = Installation()
    add_integration(database, "lincoln-ps")
    good_snapshot(SnapshotStore(database, installation.settings.data_url), **delivery(0, 1))
    gathered = installation.merges.gather("lincoln", YEAR)
    publish(database, installation.merges, installation.merges.write_merged(gathered, merge_district(gathered.inputs)))
    return database


def test_rules_are_checked_set_and_shown(published, sis):
    checked = sis("accounts", "rules", "check", "lincoln", *RULES, "--json").json
    assert (checked["accounts"]["created"], checked["accounts"]["numbered"], len(checked["new"])) == (3, 0, 3)
    assert "first0" not in str(checked)
    shown = sis("accounts", "rules", "check", "lincoln", *RULES, "--reveal", "--limit", 1)
    assert (shown.code, "New accounts" in shown.out) == (0, True)
    assert sis("accounts", "rules", "show", "lincoln", "--json").json["rules"] == {
        "district": "lincoln", "version": 0, "set": {}, "kinds": [],
    }  # fmt: skip
    assert "has no accounts" in sis("accounts", "rules", "show", "lincoln").out

    done = sis("accounts", "rules", "set", "lincoln", *RULES, *WHY, "--json").json
    assert (done["rules"]["version"], done["accounts"]["created"]) == (1, 3)
    sis("accounts", "rules", "set", "lincoln", "student.domain=default", *WHY)
    told = sis("accounts", "rules", "show", "lincoln", "--history")
    assert all(setting in told.out for setting in SETTINGS)
    assert ("version 2" in told.out, WHY[1] in told.out) == (True, True)
    assert sis("accounts", "rules", "show", "lincoln", "--json").json["rules"]["kinds"] == ["student", "staff"]


def test_accounts_are_listed_masked_unless_asked_for(published, sis):
    sis("accounts", "rules", "set", "lincoln", *RULES, *WHY)
    found = sis("accounts", "list", "--district", "lincoln", "--json").json
    assert (found["total"], {row["username"] for row in found["accounts"]}) == (3, {"(protected)"})
    assert {row["email"] for row in found["accounts"]} == {"(protected)", None}
    revealed = sis("accounts", "list", "--district", "lincoln", "--kind", "student", "--reveal", "--json").json
    assert [row["email"] for row in revealed["accounts"]] == [f"first{n}@kids.lincoln.example" for n in (0, 1)]
    assert {row["schools"] for row in revealed["accounts"]} == {"North"}
    said = sis("accounts", "list", "--district", "lincoln", "--school", "101", "--limit", 1)
    assert ("3 accounts, 1 shown" in said.out, "hopper" in said.out) == (True, False)
    with published.begin() as connection:
        connection.execute(text("update sis.accounts set missing_since = '2026-01-01' where username = 'first0'"))
    totals = {
        status: sis("accounts", "list", "--district", "lincoln", "--status", status, "--json").json["total"]
        for status in ("active", "leaving", "suspended")
    }
    assert totals == {"active": 3, "leaving": 1, "suspended": 0}
    assert sis("accounts", "list", "--district", "lincoln", "--school", "South", "--json").json["total"] == 0


def test_one_account_is_shown_with_its_records_and_sections(published, sis):
    sis("accounts", "rules", "set", "lincoln", *RULES, *WHY)
    rows = sis("accounts", "list", "--district", "lincoln", "--reveal", "--json").json["accounts"]
    teacher, student = (next(row for row in rows if row["kind"] == kind) for kind in ("staff", "student"))
    found = sis("accounts", "show", teacher["person_id"], "--json").json
    assert (found["account"]["username"], found["account"]["role"]) == ("(protected)", "teacher")
    assert [(row["school"], row["role"]) for row in found["sections"]] == [("North", "teacher")]
    assert [(row["integration"], row["sis_id"]) for row in found["records"]] == [("lincoln-ps", "t")]
    said = sis("accounts", "show", student["account_id"], "--reveal")
    assert (said.code, "first0" in said.out, "lincoln-ps" in said.out) == (0, True, True)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("rules", "set", "lincoln", "student.username", *WHY), (ExitCode.USAGE, "is no SETTING=VALUE")),
        (("rules", "set", "lincoln", *RULES, RULES[0], *WHY), (ExitCode.USAGE, "given twice")),
        (("rules", "set", "lincoln", *RULES), (ExitCode.USAGE, "reason")),
        (("rules", "set", "lincoln", "student.username={ssid}", *WHY), (ExitCode.CONFIG, "names what there is not")),
        (("rules", "check", "lincoln", "student.grace_days=soon"), (ExitCode.CONFIG, "from 0 to 365")),
        (("rules", "show", "../lincoln"), (ExitCode.CONFIG, "lincoln")),
        (("list", "--district", "lincoln", "--kind", "parent"), (ExitCode.USAGE, "--kind")),
        (("list", "--district", "lincoln", "--status", "open"), (ExitCode.USAGE, "leaving")),
        (("show", "ada"), (ExitCode.USAGE, "not a UUID")),
        (("show", uid("nobody")), (ExitCode.USAGE, "Nobody of that id")),
    ],
)
@pytest.mark.usefixtures("home")
def test_what_is_wrong_is_refused_in_words(sis, arguments, answer):
    said = sis("accounts", *arguments)
    assert (said.code, answer[1] in said.err) == (answer[0], True)
