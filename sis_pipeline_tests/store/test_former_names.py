"""What students were called before: noted whoever changes a name, followed, taken back and erased. Whom that finds is tested
in roster."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from sqlalchemy import create_engine, text

from sis_pipeline.roster.district import merge_district
from sis_pipeline.store.erasure import Erasing
from sis_pipeline.store.identity import Identities
from sis_pipeline.store.publish import publish
from sis_pipeline.store.undo import Undoing
from sis_pipeline_tests.store.conftest import YEAR, add_integration, good_snapshot, sis_student

WHY = ("ada", "the family said so")
MINE = {"birth_date": date(2012, 3, 4), "email": "cleo@lincoln.example"}


@pytest.fixture
def sync(database, merges, snapshots):
    """Deliver Cleo by a system, with what differs, and publish; the operation."""

    def deliver(integration: str = "lincoln-ps", **values: object):
        row = {"first_name": "Cleo", "last_name": "Moss", **MINE, **values}
        good_snapshot(snapshots, integration, students=[sis_student("7", **row)])
        return merge(database, merges)

    return deliver


@pytest.fixture
def cleo(sync) -> None:
    sync()


def merge(database, merges):
    gathered = merges.gather("lincoln", YEAR)
    publish(database, merges, merges.write_merged(gathered, merge_district(gathered.inputs)))
    return merges.get(gathered.operation.operation_id)


def rows(database, query: str) -> list[tuple]:
    with database.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def former(database) -> list[str]:
    return [
        f"{first} {last}"
        for first, last in rows(database, "select first_name, last_name from sis.student_names order by entry")
    ]


def called(database) -> list[str]:
    return [
        f"{first} {last}"
        for first, last in rows(database, "select first_name, last_name from sis.students order by 1, 2")
    ]


def edit(database, assigned: str) -> None:
    with database.begin() as connection:
        connection.execute(text(f"update sis.students set {assigned}"))


def test_a_name_that_is_published_no_longer_is_kept_with_until_when(database, cleo, sync):
    operation = sync(last_name="Hill")
    assert former(database) == ["Cleo Moss"]
    [(when, by)] = rows(database, "select sis.clock() - until, operation_id::text from sis.student_names")
    assert timedelta() <= when < timedelta(minutes=5)
    assert by == operation.operation_id


@pytest.mark.parametrize(
    "assigned",
    [
        "last_name = 'MOSS'",
        "first_name = 'Ben', last_name = 'Hill'",
        "last_name = 'Hill', birth_date = '2016-09-09'",
        "first_name = 'Ben', birth_date = null",
        "phone = '5125550100'",
    ],
    ids=["letter case", "both names", "last name and birth date", "first name and birth date", "no name"],
)
def test_what_may_be_another_child_s_is_no_former_name(database, cleo, assigned):
    edit(database, assigned)
    assert former(database) == []


def test_an_edit_by_somebody_without_any_other_right_is_kept(database_url, database, cleo, merges):
    with database.begin() as connection:
        connection.execute(text("drop role if exists registrar"))
        connection.execute(text("create role registrar login"))
        connection.execute(text("grant usage on schema sis to registrar"))
        connection.execute(text("grant select, update on sis.students to registrar"))
    registrar = create_engine(database_url.set(username="registrar"))
    try:
        edit(registrar, "last_name = 'Hill'")
    finally:
        registrar.dispose()
    assert rows(database, "select last_name, operation_id from sis.student_names") == [("Moss", None)]
    [named] = merges.gather("lincoln", YEAR).inputs.former_names.rows()
    assert named[1:] == ("Cleo", "Moss")


def test_another_system_s_old_name_is_asked_about(database, cleo, sync):
    sync(last_name="Hill")
    add_integration(database, "lincoln-ic", priority=200)
    sync("lincoln-ic")
    assert called(database) == ["Cleo Hill", "Cleo Moss"]
    [near] = Identities(database).near_matches()
    assert "former name" in near.evidence.split(", ")


def test_an_undo_leaves_the_undone_name_behind_no_more_and_its_undo_brings_it_back(database, merges, cleo, sync):
    undoing = Undoing(database, merges)
    sync(last_name="Hill")
    second = sync(last_name="Moss")
    assert former(database) == ["Cleo Moss", "Cleo Hill"]
    undone = undoing.undo(second.operation_id, *WHY)
    assert (called(database), former(database)) == (["Cleo Hill"], ["Cleo Moss"]), "as it was before"
    undoing.undo(undone.operation_id, *WHY)
    assert (called(database), former(database)) == (["Cleo Moss"], ["Cleo Moss", "Cleo Hill"])


def test_an_undone_rename_was_no_name(database, merges, cleo, sync):
    renamed = sync(last_name="Hill")
    Undoing(database, merges).undo(renamed.operation_id, *WHY)
    assert (called(database), former(database)) == (["Cleo Moss"], [])


@pytest.fixture
def joined(database, merges, cleo, sync) -> str:
    """Cleo Hill, joined by a person to another system's Cleo Moss, who had been Reed there; the second one's id of before."""
    sync(last_name="Hill")
    add_integration(database, "lincoln-ic", priority=200)
    sync("lincoln-ic")
    edit(database, "last_name = 'Reed' where last_name = 'Moss'")
    edit(database, "last_name = 'Moss' where last_name = 'Reed'")
    [near] = Identities(database).near_matches()
    Identities(database).confirm(near.near_match_id, *WHY)
    merge(database, merges)
    return rows(database, "select alias_id::text from sis.student_aliases")[0][0]


def test_names_of_who_was_merged_away_follow_and_are_told_apart_again_by_a_split(database, merges, joined):
    assert len(called(database)) == 1
    known = merges.gather("lincoln", YEAR).inputs.former_names
    [student] = rows(database, "select student_id::text from sis.students")
    assert set(known["student_id"]) == {student[0]}
    assert {"Reed", "Moss"} <= set(known["last_name"])
    before = former(database)
    Identities(database).split(student[0], ("lincoln-ic", "7"), *WHY)
    merge(database, merges)
    assert called(database) == ["Cleo Hill", "Cleo Moss"]
    assert former(database) == before, "a split is no change of name"
    known = merges.gather("lincoln", YEAR).inputs.former_names
    assert "Reed" in set(known.filter(student_id=joined)["last_name"])
    assert known["student_id"].n_unique() == 2


def test_who_parts_was_not_called_by_the_other_s_name(database, merges, joined, sync):
    """The other system's name had become the published one meanwhile."""
    with database.begin() as connection:
        connection.execute(text("update sis.integrations set priority = 1 where key = 'lincoln-ic'"))
    merge(database, merges)
    assert called(database) == ["Cleo Moss"]
    before = former(database)
    [student] = rows(database, "select student_id::text from sis.students")
    Identities(database).split(student[0], ("lincoln-ic", "7"), *WHY)
    merge(database, merges)
    assert called(database) == ["Cleo Hill", "Cleo Moss"]
    assert former(database) == before


def test_an_erasure_takes_the_names_of_before_and_of_who_was_merged_away(database, merges, joined, vault):
    assert former(database)
    [student] = rows(database, "select student_id::text from sis.students")
    erasing = Erasing(database, merges.files, lambda: vault)
    assert erasing.plan(student[0]).tables["student_names"] == len(former(database))
    erasing.erase(student[0], *WHY, force=True)
    assert former(database) == []
