"""Accounts are written with the roster that they follow, and go its ways: publication, undo, erasure, holds, merges."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from sqlalchemy import text

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db import audit
from sis_pipeline.db.tables import account_rules
from sis_pipeline.roster.accounts import LEFT, UNKNOWN
from sis_pipeline.roster.district import merge_district
from sis_pipeline.store.accounts import Accounts, RulesVersion
from sis_pipeline.store.erasure import Erasing
from sis_pipeline.store.publish import publish
from sis_pipeline.store.undo import Undoing
from sis_pipeline_tests.store.conftest import YEAR, add_integration, count, good_snapshot
from sis_pipeline_tests.store.test_roundtrip import TEACHER, day_of_snapshot, delivery

BY = {"actor": "ada", "reason": "the year begins"}
RULES = {"student.username": "{first_name}", "student.domain": "kids.lincoln.example", "staff.username": "{last_name}"}
DAY = date(2025, 10, 1)


@pytest.fixture
def store(database) -> Accounts:
    return Accounts(database)


@pytest.fixture
def day(database, snapshots, merges):
    """Read and publish a day of six students, or of those named."""
    turn = iter(range(1000))

    def sync(*numbers: int, **values):
        snapshot = good_snapshot(snapshots, **(delivery(*(numbers or range(6))) | values))
        when = DAY + timedelta(next(turn))
        day_of_snapshot(database, snapshot, when)
        gathered = merges.gather("lincoln", YEAR, as_of=when)
        return publish(database, merges, merges.write_merged(gathered, merge_district(gathered.inputs)))

    return sync


def rows(database, query: str) -> list[tuple]:
    with database.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def accounts(database) -> dict[str, str]:
    return dict(rows(database, "select username, status from sis.accounts"))


def let_grace_pass(database) -> None:
    with database.begin() as connection:
        connection.execute(text("update sis.accounts set missing_since = missing_since - 30"))


def test_a_district_has_accounts_once_it_says_how(database, store, day):
    assert day().accounts == {}
    assert accounts(database) == {}
    done = store.set("lincoln", RULES, **BY)
    assert (done.rules.version, done.counts["created"]) == (1, 7)
    assert accounts(database) == dict.fromkeys(["hopper", *(f"first{n}" for n in range(6))], "active")
    assert store.set("lincoln", RULES, **BY).counts == {}
    assert store.set("lincoln", {"student.grace_days": "30"}, **BY).rules.version == 2
    assert [it.version for it in store.history("lincoln")] == [2, 1]
    with database.connect() as connection:
        [second, first] = audit.read(connection, action="accounts.rules")
    assert (first["actor"], first["details"]["set"], first["details"]["accounts"]["created"]) == ("ada", RULES, 7)
    assert second["details"]["accounts"]["created"] == 0


def test_a_plan_says_what_rules_would_do_and_keeps_nothing(database, store, day):
    day()
    then, plan = store.plan("lincoln", {"student.username": "{last_name}"})
    assert (then.version, plan.counts["created"], plan.numbered) == (1, 6, 0)
    assert (accounts(database), store.rules("lincoln")) == ({}, RulesVersion("lincoln"))
    store.set("lincoln", RULES, **BY)
    _, plan = store.plan("lincoln", {"student.domain": "x.example", "staff.username": "{first_name}"})
    assert plan.counts == {"created": 0, "updated": 6, "suspended": 0, "restored": 0, "leaving": 0, "waiting": 0}


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"student.shoe": "1"}, "'student.shoe' is no setting"),
        ({"student.shoe": "default"}, "'student.shoe' is no setting"),
        ({"student.domain": "lincoln.example"}, "no student.username"),
    ],
)
def test_a_wrong_rule_is_refused_and_nothing_kept(store, values, why):
    for act in (lambda: store.set("lincoln", values, **BY), lambda: store.plan("lincoln", values)):
        with pytest.raises(ConfigError, match=why):
            act()
    with pytest.raises(ConfigError, match="needs who makes it and why"):
        store.set("lincoln", RULES, actor="ada", reason=" ")
    assert store.history("lincoln") == []


def test_a_publication_makes_and_suspends_in_its_own_transaction(database, store, day):
    store.set("lincoln", RULES, **BY)
    assert day().accounts["created"] == 7
    done = day(*range(1, 7))
    assert {name: done.accounts[name] for name in ("created", "suspended", "leaving")} == {
        "created": 1, "suspended": 0, "leaving": 1,
    }  # fmt: skip
    let_grace_pass(database)
    assert day(*range(1, 7)).accounts["suspended"] == 1
    assert rows(database, "select username, note from sis.accounts where status = 'suspended'") == [("first0", LEFT)]
    assert day(*range(7)).accounts["restored"] == 1
    with database.connect() as connection:
        told = [entry["details"]["accounts"] for entry in audit.read(connection, action="roster.publish")]
        summaries = connection.scalars(
            text("select summary -> 'accounts' ->> 'restored' from sis.sync_operations order by epoch")
        ).all()
    assert told[0]["restored"] == 1
    assert summaries == ["0", "0", "0", "1"]
    assert not any(name in str(told) for name in accounts(database))


def test_a_publication_that_fails_leaves_the_accounts_as_they_were(database, store, day, monkeypatch):
    store.set("lincoln", RULES, **BY)
    day()

    def break_off(place: str) -> None:
        if place == "publish.before_commit":
            raise RuntimeError(place)

    monkeypatch.setattr("sis_pipeline.store.publish.crash_point", break_off)
    with pytest.raises(RuntimeError):
        day(*range(7))
    assert "first6" not in accounts(database)


def test_what_the_guard_holds_suspends_nobody(database, store, day):
    store.set("lincoln", RULES, **BY)
    day()
    done = day(0)
    assert (done.held, done.accounts["leaving"], done.accounts["suspended"]) == (10, 0, 0)
    let_grace_pass(database)
    assert store.follow_days()["districts"] == 0, "the publication was of today"


def test_an_undo_takes_accounts_along_and_deletes_none(database, merges, store, day):
    store.set("lincoln", RULES, **BY)
    day()
    second = day(*range(1, 7))
    let_grace_pass(database)
    before = accounts(database)
    undoing = Undoing(database, merges)
    plan = undoing.plan(second.operation_id)
    assert accounts(database) == before
    undo = undoing.undo(second.operation_id, "ada", "the extract was of another year")
    assert undo.published.accounts == plan.published.accounts
    assert accounts(database) == before | {"first6": "suspended"}
    assert rows(database, "select username, note from sis.accounts where status = 'suspended'") == [("first6", UNKNOWN)]
    assert count(database, "select count(*) from sis.accounts where missing_since is not null") == 1
    undoing.undo(undo.operation_id, "bo", "it was right")
    assert accounts(database) == before


def test_an_erased_student_leaves_no_account_and_the_name_goes_to_nobody(database, merges, store, day, vault):
    store.set("lincoln", RULES, **BY)
    day()
    day(*range(1, 6))
    who = rows(database, "select person_id::text from sis.accounts where username = 'first0'")[0][0]
    erasing = Erasing(database, merges.files, lambda: vault)
    assert erasing.plan(who).tables["accounts"] == 1
    erasing.erase(who, "ada", "the family asked")
    assert "first0" not in accounts(database)
    day(*range(6))  # another child of that name
    assert {"first02", "first1"} <= set(accounts(database))


def test_the_days_pass_without_a_sync(database, store, day):
    store.set("lincoln", RULES, **BY)
    day()
    day(*range(1, 6))
    let_grace_pass(database)
    with database.begin() as connection:
        connection.execute(account_rules.update().values(followed_on=date(2025, 1, 1)))
    done = store.follow_days()
    assert (done["districts"], done["suspended"], accounts(database)["first0"]) == (1, 1, "suspended")
    assert store.follow_days()["districts"] == 0
    with database.connect() as connection:
        [entry] = audit.read(connection, action="accounts.follow")
    assert entry["details"]["suspended"] == 1


def test_a_student_in_a_near_match_waits_for_the_decision(database, snapshots, merges, store, day):
    add_integration(database, "lincoln-ic", priority=200)
    store.set("lincoln", RULES, **BY)
    twin = delivery(0)["students"][0] | {"sis_id": "900", "ssid": None, "ssid_issuer": None, "first_name": "First00"}
    good_snapshot(snapshots, "lincoln-ic", students=[twin])
    assert day(0).accounts["waiting"] == 1
    assert accounts(database) == {"hopper": "active"}


def test_staff_in_a_near_match_wait_for_the_decision(database, snapshots, store, day):
    add_integration(database, "lincoln-ic", priority=200)
    store.set("lincoln", RULES, **BY)
    other = {**TEACHER, "sis_id": "900", "last_name": "Hoper"}
    good_snapshot(snapshots, "lincoln-ic", schools=delivery(0)["schools"], students=[], staff=[other])
    assert day(0).accounts["waiting"] == 2
    assert accounts(database) == {"first0": "active"}


def test_two_who_are_one_keep_the_older_account_and_an_undo_gives_the_other_back(
    database, snapshots, merges, store, day
):
    add_integration(database, "lincoln-ic", priority=200)
    store.set("lincoln", {"student.username": "{first_name}"}, **BY)
    other = delivery(0)
    other["students"][0] |= {"ssid": None, "ssid_issuer": None, "birth_date": "2011-11-11"}
    good_snapshot(snapshots, "lincoln-ic", **other)
    day(0)
    assert accounts(database) == {"first0": "active", "first02": "active"}
    other["students"][0] |= {"birth_date": "2010-01-01"}
    good_snapshot(snapshots, "lincoln-ic", **other)
    joined = day(0)
    assert joined.accounts["suspended"] == 1
    [(name, note)] = rows(database, "select username, note from sis.accounts where status = 'suspended'")
    older = "select 'merged into ' || student_id from sis.students"
    assert [(note,)] == rows(database, older)
    Undoing(database, merges).undo(joined.operation_id, "ada", "they are two")
    assert accounts(database)[name] == "active"


def test_what_downstream_reads_says_records_sections_and_who_teaches(database, store, day):
    second = {**TEACHER, "sis_id": "u", "first_name": "Alan", "last_name": "Kay"}
    rows_ = delivery(0)
    seats = [
        *rows_["section_enrollments"],
        *({"sis_id": f"t{n}", "section_sis_id": "s", "role": "teacher", "person_sis_id": n, "is_primary": n == "t", "record_status": "active"} for n in "tu"),
    ]  # fmt: skip
    store.set("lincoln", RULES, **BY)
    day(0, staff=[TEACHER, second], section_enrollments=seats)
    seen = "select a.username, s.role from sis.account_sections s join sis.accounts a using (district, account_id)"
    assert sorted(rows(database, seen)) == [("first0", "student"), ("hopper", "teacher"), ("kay", "co_teacher")]
    no_lead = {key: value for key, value in rows_["sections"][0].items() if key != "teacher_sis_id"}
    for seat in seats:
        seat.pop("is_primary", None)
    day(0, staff=[TEACHER, second], section_enrollments=seats, sections=[no_lead])
    assert sorted(role for _, role in rows(database, seen)) == ["co_teacher", "student", "teacher"]
    kept = "select a.username, integration, sis_id from sis.account_records r join sis.accounts a using (district, account_id)"
    assert sorted(rows(database, kept)) == [
        ("first0", "lincoln-ps", "0"), ("hopper", "lincoln-ps", "t"), ("kay", "lincoln-ps", "u"),
    ]  # fmt: skip


def test_broken_rules_of_one_district_are_its_own_trouble(database, store, day):
    day()
    with database.begin() as connection:
        broken = {"rules": {"student.shoe": 1}, "set_by": "x", "reason": "x"}
        connection.execute(account_rules.insert().values(district="lincoln", version=1, **broken))
        connection.execute(account_rules.insert().values(district="franklin", version=1, **broken | {"rules": {}}))
    with pytest.raises(ConfigError, match="account rules of lincoln are wrong"):
        day(*range(7))
    assert store.rules("franklin").rules.kinds == ()
    with database.begin() as connection:
        connection.execute(account_rules.insert().values(district="washington", version=1, **broken | {"rules": RULES}))
    with pytest.raises(ConfigError, match="account rules of lincoln are wrong"):
        store.follow_days()
    assert store.rules("washington").followed_on is not None, "another district is seen to all the same"
    assert store.set("lincoln", {"student.shoe": "default"}, **BY).rules.values == {}
