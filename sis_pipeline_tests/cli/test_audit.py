"""`sis audit`: what was done is shown, what was changed is named; `sis db grant` and `sis maintenance` beside it."""

from __future__ import annotations

import json
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from sis_pipeline.cli.output import ExitCode
from sis_pipeline.db import audit
from sis_pipeline.db.audit import Entry


@pytest.fixture
def filled(home, database):
    with database.begin() as connection:
        entries = [Entry("token.refresh", "lincoln-ps", "lincoln", {"version": n}) for n in range(3)]
        audit.append_all(connection, entries, actor="ada")
    with database.begin() as connection:
        audit.append(connection, "hold.released", "[red]h1[/red]", district="fernhollow", actor="bob")
    with database.begin() as connection:
        audit.append(connection, "integration.pause", "lincoln-ps", district="lincoln", actor="bob")
    return database


def forge(database, statement: str) -> None:
    with database.begin() as connection:
        connection.execute(text("alter table sis.audit_log disable trigger all"))
        connection.execute(text("alter table sis.audit_links disable trigger all"))
        assert connection.execute(text(statement)).rowcount > 0


def test_show_lists_the_newest_first_and_filters(sis, filled):
    everything = sis("audit", "show", "--json").json["entries"]
    assert [it["action"] for it in everything] == [
        "integration.pause",
        "hold.released",
        "token.refresh",
        "token.refresh",
        "token.refresh",
    ]
    assert everything[-1]["details"] == {"version": 0}

    def shown(*options: str) -> list[str]:
        return [it["action"] for it in sis("audit", "show", *options, "--json").json["entries"]]

    assert shown("--district", "fernhollow") == ["hold.released"]
    assert shown("--subject", "lincoln-ps", "--limit", "1") == ["integration.pause"]
    assert shown("--action", "token") == ["token.refresh"] * 3
    assert shown("--action", "tok") == []
    assert shown("--since", "2099-01-01") == []
    assert shown("--action", "nothing") == []

    table = sis("audit", "show").out
    assert "5 entries" in table
    assert "[red]h1[/red]" in table
    assert "version 2" in table


def test_a_whole_log_is_proven_and_says_whether_heads_were_known(sis, filled):
    before = sis("audit", "verify")
    assert before.code == 0
    assert "2 chains, all whole; no heads are kept yet" in before.out
    assert sis("maintenance").code == 0
    said = sis("audit", "verify", "--json")
    assert said.code == 0
    assert (said.json["whole"], said.json["known_heads"]) == (True, 2)
    assert {it["district"]: (it["links"], it["rows"], it["heads"]) for it in said.json["chains"]} == {
        "fernhollow": (1, 1, 1),
        "lincoln": (2, 4, 1),
    }


def test_an_altered_entry_is_named_with_a_failing_exit_code(sis, filled):
    forge(filled, "update sis.audit_log set actor = 'eve' where entry = 2")
    said = sis("audit", "verify")
    assert said.code == ExitCode.FAILED
    assert "BROKEN: 1 chain of 2" in said.out
    assert "Entry 2 was altered." in said.out
    one = sis("audit", "verify", "--district", "lincoln", "--json")
    assert one.code == ExitCode.FAILED
    assert one.json["chains"][0]["broken"] == {
        "what": "row altered",
        "link": 1,
        "entry": 2,
        "message": "Entry 2 was altered.",
    }
    assert sis("audit", "verify", "--district", "fernhollow").code == 0


def test_a_log_that_was_cut_short_is_found_by_the_heads_that_were_kept(sis, filled, home):
    assert sis("maintenance").code == 0
    forge(filled, "delete from sis.audit_links where (district, link) = ('lincoln', 2)")
    forge(filled, "delete from sis.audit_log where action = 'integration.pause'")
    said = sis("audit", "verify")
    assert said.code == ExitCode.FAILED
    assert "ends with link 1, but link 2 was there" in said.out
    for file in (home / "data" / "audit" / "heads").iterdir():
        file.unlink()
    assert sis("audit", "verify").code == 0  # nothing is left that could tell


def test_an_unknown_district_is_wrong_usage(sis, filled):
    assert sis("audit", "verify", "--district", "fernhollov").code == ExitCode.USAGE


def test_an_empty_log_is_whole(sis, home):
    assert sis("audit", "verify").code == 0
    assert sis("audit", "show", "--json").json == {"entries": []}


def heads(home: Path) -> list[Path]:
    return sorted((home / "data" / "audit" / "heads").iterdir())


def test_maintenance_keeps_only_heads_that_are_new_in_private_files(sis, filled, home, database):
    assert sis("maintenance", "--json").json["chores"][-1] == {
        "chore": "audit_log", "chains": 2, "links": 3, "entries": 5, "new_heads": 2, "error": None,
    }  # fmt: skip
    (first,) = heads(home)
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    assert sis("maintenance").code == 0
    assert heads(home) == [first]
    with database.begin() as connection:
        audit.append(connection, "a", "b", district="lincoln")
    assert sis("maintenance").code == 0
    _, second = heads(home)
    assert [(it["district"], it["link"]) for it in json.loads(second.read_text())["heads"]] == [("lincoln", 3)]
    assert sis("audit", "verify", "--json").json["known_heads"] == 3


def test_maintenance_names_a_broken_log_and_keeps_no_head_of_it(sis, filled, home):
    forge(filled, "update sis.audit_log set actor = 'eve' where entry = 2")
    said = sis("maintenance", "--json")
    assert said.code == ExitCode.FAILED
    *others, log = said.json["chores"]
    broken = log["error"]
    assert "lincoln: Entry 2 was altered." in broken["message"]
    assert [chore["error"] for chore in others] == [None] * len(others)
    (file,) = heads(home)
    assert [it["district"] for it in json.loads(file.read_text())["heads"]] == ["fernhollow"]


@pytest.fixture
def role(database) -> Iterator[str]:
    name = f"worker_{uuid.uuid4().hex[:8]}"
    with database.begin() as connection:
        connection.execute(text(f"create role {name} login"))
    yield name
    with database.begin() as connection:
        connection.execute(text(f"drop owned by {name}"))
        connection.execute(text(f"drop role {name}"))


def test_a_granted_role_works_and_a_reader_reads(sis, home, database, database_url, role):
    said = sis("db", "grant", role)
    assert said.code == 0
    assert sis("db", "grant", "nobody-7", "--json").code == ExitCode.USAGE
    os.environ["SIS_DATABASE_URL"] = database_url.set(username=role).render_as_string(hide_password=False)
    assert sis("maintenance").code == 0
    assert [it["actor"] for it in sis("audit", "show", "--action", "database.grant", "--json").json["entries"]] == [
        audit.current_actor()
    ]
    assert "does not own the tables" in sis("db", "grant", role).err

    os.environ["SIS_DATABASE_URL"] = database_url.render_as_string(hide_password=False)
    assert sis("db", "grant", role, "--read-only").code == 0
    os.environ["SIS_DATABASE_URL"] = database_url.set(username=role).render_as_string(hide_password=False)
    assert sis("audit", "verify").code == 0
    assert sis("conflicts", "list", "--json").json["total"] == 0
