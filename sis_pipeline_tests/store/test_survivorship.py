"""A district's policies, kept with who and why, and what becomes of an edit by SQL in `students`."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import create_engine, text

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db import audit
from sis_pipeline.db.tables import survivorship_policies
from sis_pipeline.roster.attributes import EDITED
from sis_pipeline.roster.district import merge_district
from sis_pipeline.roster.policies import Policies
from sis_pipeline.store.conflicts import Conflicts
from sis_pipeline.store.publish import SupersededError, publish
from sis_pipeline.store.survivorship import Survivorship
from sis_pipeline.store.undo import Undoing
from sis_pipeline_tests.store.conftest import YEAR, add_integration, count, good_snapshot, sis_student

BY = {"actor": "ada", "reason": "the registrar keeps the phone list"}


@pytest.fixture
def policies(database) -> Survivorship:
    return Survivorship(database)


@pytest.fixture
def roster(database, merges, once):
    """A published student with an address of the system's own."""

    def merge():
        gathered = merges.gather("lincoln", YEAR)
        return publish(database, merges, merges.write_merged(gathered, merge_district(gathered.inputs)))

    once("roster", merge)
    return merge


def edit(database, **values: object) -> None:
    """As a person does, by SQL."""
    assigned = ", ".join(f"{name} = :{name}" for name in values)
    with database.begin() as connection:
        connection.execute(text(f"update sis.students set {assigned}"), values)


def value(database, column: str = "phone"):
    with database.connect() as connection:
        return connection.scalar(text(f"select {column} from sis.students"))


def rows(database, query: str) -> list[tuple]:
    with database.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def conflicts(database) -> list[tuple]:
    return rows(database, "select attribute, chosen, chosen_from, rule, status from sis.conflicts order by attribute")


def read_again(snapshots, **values: object) -> None:
    good_snapshot(snapshots, students=[sis_student("7", **values)])


def test_policies_are_versions_with_who_and_why(database, policies):
    assert policies.policies("lincoln").policies == Policies()
    policies.set("lincoln", {"phone": "local_wins", "default": "newest_wins"}, **BY)
    done = policies.set("lincoln", {"phone": "default", "email": "manual"}, **BY)
    assert (done.version, done.set_by, done.reason) == (2, "ada", BY["reason"])
    assert done.policies == Policies("newest_wins", {"email": "manual"})
    assert policies.set("lincoln", {"email": "manual"}, **BY).version == 2
    assert [one.version for one in policies.history("lincoln")] == [2, 1]
    assert policies.policies("washington").version == 0
    with database.connect() as connection:
        [last, *_] = audit.read(connection, action="policy.set")
    assert (last["actor"], last["details"]) == (
        "ada", {"version": 2, "reason": BY["reason"], "set": {"phone": "default", "email": "manual"}},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"shoe_size": "manual"}, "'shoe_size' has no policy"),
        ({"shoe_size": "default"}, "'shoe_size' has no policy"),
        ({"phone": "loudest"}, "not 'loudest'"),
        ({"grade_level": "local_wins"}, "belongs to a school year"),
    ],
)
def test_a_wrong_policy_is_refused_and_nothing_kept(policies, values, why):
    with pytest.raises(ConfigError, match=why):
        policies.set("lincoln", values, **BY)
    with pytest.raises(ConfigError, match="needs who makes it and why"):
        policies.set("lincoln", {"phone": "manual"}, actor="ada", reason=" ")
    assert policies.history("lincoln") == []


def test_broken_policies_of_one_district_stop_no_other(database, merges, snapshots):
    add_integration(database, "franklin-ps", "franklin")
    good_snapshot(snapshots, "franklin-ps")
    with database.begin() as connection:
        broken = {"policies": {"phone": "loudest"}, "set_by": "x", "reason": "x"}
        connection.execute(survivorship_policies.insert().values(district="lincoln", version=1, **broken))
    assert merges.stale_districts(YEAR) == ["franklin", "lincoln"]
    assert merges.gather("franklin", YEAR).inputs.policies == Policies()
    with pytest.raises(ConfigError, match="policies of lincoln are wrong: phone takes"):
        merges.gather("lincoln", YEAR)
    Survivorship(database).set("lincoln", {"phone": "default"}, **BY)
    assert merges.gather("lincoln", YEAR).inputs.policies == Policies()


def test_policies_and_edits_are_merged_once(database, merges, policies, roster):
    for act in (
        lambda: policies.set("lincoln", {"phone": "local_wins"}, **BY),
        lambda: edit(database, phone="5125550199"),
        lambda: policies.set("lincoln", {"phone": "default"}, **BY),
    ):
        assert merges.stale_districts(YEAR) == []
        act()
        assert merges.stale_districts(YEAR) == ["lincoln"]
        roster()
    assert merges.stale_districts(YEAR) == []


def test_an_edit_is_overruled_seen_and_brought_back_by_a_policy(database, snapshots, policies, roster):
    read_again(snapshots, phone="5125550100")
    roster()
    edit(database, phone="5125550199")
    roster()
    assert value(database) == "5125550100"
    assert conflicts(database) == [("phone", "5125550100", "lincoln-ps/7", "sis_wins", "auto")]
    assert roster().unchanged, "an edit that is overruled stays in sight, and changes nothing more"

    policies.set("lincoln", {"phone": "local_wins"}, **BY)
    roster()
    assert value(database) == "5125550199"
    read_again(snapshots, phone="5125550111")
    roster()
    assert value(database) == "5125550199"
    [(_, chosen, source, rule, _)] = conflicts(database)
    assert (chosen, source.startswith("local edit/"), rule) == ("5125550199", True, "local_wins")
    assert rows(database, "select origins ->> 'phone' ~ '^local edit/.+ 20.+Z local_wins$' from sis.students") == [
        (True,)
    ]

    read_again(snapshots, phone="5125550199")
    roster()
    assert [(attribute, status) for attribute, *_, status in conflicts(database)] == [("phone", "stale")]
    assert rows(database, "select count(*) from sis.student_edits where settled_at is null") == [(0,)]
    read_again(snapshots, phone="5125550122")
    roster()
    assert value(database) == "5125550122", "what the systems agreed with is theirs again"


def test_a_conflict_goes_stale_when_the_systems_agree_and_opens_again_when_they_do_not(
    database, merges, snapshots, roster
):
    add_integration(database, "lincoln-ic", priority=200)

    def systems(one, other):
        read_again(snapshots, ssid="77", phone=one)
        good_snapshot(snapshots, "lincoln-ic", students=[sis_student("70", ssid="77", phone=other)])
        return roster()

    def standing() -> list[tuple]:
        query = "select chosen, status, changed_at, jsonb_path_query_array(candidates, '$.value') from sis.conflicts"
        return rows(database, query)

    systems("5125550100", "5125550111")
    [(_, status, opened, _)] = standing()
    assert status == "auto"
    systems("5125550122", "5125550122")
    [(chosen, status, since, values)] = standing()
    assert (chosen, status, values) == ("5125550100", "stale", ["5125550100", "5125550111"]), "as it last stood"
    assert since > opened
    student = value(database, "student_id::text")
    with pytest.raises(ConfigError, match="Nothing conflicts about phone"):
        Conflicts(database).decide(student, "phone", "lincoln-ic", **BY)

    systems("5125550144", "5125550144")
    assert [row[1:3] for row in standing()] == [("stale", since)], "since when is kept"
    systems("5125550122", "5125550133")
    [(_, status, again, values)] = standing()
    assert (status, values) == ("auto", ["5125550122", "5125550133"])
    assert again > since

    good_snapshot(snapshots, "lincoln-ic", students=[sis_student("71", first_name="Bea", ssid="78")])
    roster()
    assert [row[1] for row in standing()] == ["stale"], "a record is gone"
    last = merges.newest("lincoln", YEAR)
    assert (last.summary["conflicts"], merges.manifest(last)["rows"]["conflicts"]) == (0, 0), "and counts no more"


def test_a_manual_attribute_waits_with_an_open_conflict(database, snapshots, policies, roster):
    policies.set("lincoln", {"email": "manual"}, **BY)
    read_again(snapshots, email="old@x.org")
    roster()
    edit(database, email="new@x.org")
    roster()
    assert value(database, "email") == "new@x.org"
    assert [(rule, status) for *_, rule, status in conflicts(database)] == [("manual", "open")]


def test_a_decision_is_remembered_until_a_value_changes(database, merges, snapshots, policies, roster):
    policies.set("lincoln", {"email": "manual"}, **BY)
    read_again(snapshots, email="old@x.org")
    roster()
    edit(database, email="new@x.org")
    roster()
    student = value(database, "student_id::text")
    decided = Conflicts(database).decide(student, "email", "lincoln-ps", **BY)
    assert (decided.integration, decided.sis_id, decided.decided_by) == ("lincoln-ps", "7", "ada")
    assert merges.stale_districts(YEAR) == ["lincoln"]
    roster()
    assert value(database, "email") == "old@x.org"
    assert conflicts(database) == [("email", "old@x.org", "lincoln-ps/7", "decided", "resolved")]
    assert roster().unchanged

    Conflicts(database).reopen(student, "email", **BY)
    roster()
    assert [status for *_, status in conflicts(database)] == ["open"]
    Conflicts(database).decide(student, "email", "local edit", **BY)
    roster()
    read_again(snapshots, email="later@x.org")
    roster()
    assert [status for *_, status in conflicts(database)] == ["open"]
    assert value(database, "email") == "new@x.org"
    assert [one.integration for one in Conflicts(database).decisions("lincoln", student)] == [
        "local edit",
        None,
        "lincoln-ps",
    ]
    with database.connect() as connection:
        [last, *_] = audit.read(connection, action="conflict.decide")
    assert last["details"] == {"attribute": "email", "integration": "local edit", "reason": BY["reason"]}


def test_a_decision_that_makes_no_sense_is_refused(database, roster):
    edit(database, email="new@x.org", address_confidential=True)
    roster()
    edit(database, address_confidential=False)
    student, kept = value(database, "student_id::text"), Conflicts(database)
    for attribute, source, why in (
        ("phone", "lincoln-ps", "Nothing conflicts about phone"),
        ("email", "lincoln-ps", "Nothing conflicts about email"),
    ):
        with pytest.raises(ConfigError, match=why):
            kept.decide(student, attribute, source, **BY)
    with pytest.raises(ConfigError, match="needs who decides and why"):
        kept.decide(student, "email", "lincoln-ps", actor="ada", reason="")


def test_a_source_that_says_nothing_and_a_protection_are_not_chosen(database, snapshots, roster):
    read_again(snapshots, phone="5125550100", address_confidential=True)
    roster()
    edit(database, phone="5125550199", address_confidential=False)
    roster()
    student, kept = value(database, "student_id::text"), Conflicts(database)
    with pytest.raises(ConfigError, match="0 of the values of phone are of 'franklin-ps'"):
        kept.decide(student, "phone", "franklin-ps", **BY)
    with pytest.raises(ConfigError, match="address_confidential holds as long as any system"):
        kept.decide(student, "address_confidential", "local edit", **BY)
    with pytest.raises(ConfigError, match="there is no decision to take back"):
        kept.reopen(student, "phone", **BY)
    assert rows(database, "select count(*) from sis.conflict_decisions") == [(0,)]


def test_what_the_pipeline_writes_is_no_edit(database, snapshots, roster):
    read_again(snapshots, phone="5125550100", home_street="1 Elm")
    assert roster().applied["students"].updated == 1
    assert rows(database, "select count(*) from sis.student_edits") == [(0,)]


def test_an_edit_is_noted_with_what_was_before_and_who(database, roster):
    edit(database, home_street="9 Oak", birth_date="2012-03-04", white=True, graduation_year=2030, near_match=True)
    noted = rows(database, "select attribute, base, value, edited_by = session_user from sis.student_edits order by 1")
    assert [(name, mine) for name, *_, mine in noted] == [
        (name, True) for name in ("birth_date", "graduation_year", "home_address", "white")
    ]
    _, base, after, _ = noted[2]
    assert (base["home_street"], after["home_street"], list(after)) == (
        None,
        "9 Oak",
        sorted(EDITED["home_address"], key=len),
    )
    edit(database, home_street="9 Oak", near_match=False)
    assert rows(database, "select count(*) from sis.student_edits") == [(4,)]
    roster()
    kept = rows(database, "select home_street, birth_date::text, white, graduation_year from sis.students")
    assert kept == [("9 Oak", "2012-03-04", True, 2030)]


def test_an_editor_needs_no_right_beside_those_on_students(database_url, database, roster):
    with database.begin() as connection:
        connection.execute(text("drop role if exists registrar"))
        connection.execute(text("create role registrar login"))
        connection.execute(text("grant usage on schema sis to registrar"))
        connection.execute(text("grant select, update on sis.students to registrar"))
    registrar = create_engine(database_url.set(username="registrar"))
    try:
        edit(registrar, phone="5125550199")
        assert rows(database, "select attribute, edited_by from sis.student_edits") == [("phone", "registrar")]
        roster()
        assert rows(database, "select origins ->> 'phone' like 'local edit/registrar %' from sis.students") == [(True,)]
    finally:
        registrar.dispose()
        with database.begin() as connection:
            connection.execute(text("drop owned by registrar"))
            connection.execute(text("drop role registrar"))


def test_the_trigger_knows_every_attribute(database):
    [(arguments,)] = rows(
        database, "select encode(tgargs, 'escape') from pg_trigger where tgname = 'students_note_edit'"
    )
    assert {name: tuple(columns) for name, columns in json.loads(arguments.removesuffix("\\000")).items()} == EDITED


def test_an_edit_between_merge_and_publication_is_not_written_over(database, merges, roster):
    gathered = merges.gather("lincoln", YEAR)
    operation = merges.write_merged(gathered, merge_district(gathered.inputs))
    edit(database, phone="5125550199")
    with pytest.raises(SupersededError, match="somebody edited students since"):
        publish(database, merges, operation)
    assert value(database) == "5125550199"


def test_a_preview_opens_no_operation(database, merges, roster):
    before = rows(database, "select count(*) from sis.sync_operations")
    assert merge_district(merges.preview("lincoln", YEAR).inputs).frames["students"].height == 1
    assert rows(database, "select count(*) from sis.sync_operations") == before
    assert merges.published_years("lincoln") == [YEAR]


def test_an_undo_is_no_edit_and_lets_an_edit_stand_again_that_the_systems_had_come_to_say(
    database, snapshots, merges, policies, roster
):
    policies.set("lincoln", {"phone": "local_wins"}, **BY)
    edit(database, phone="(201) 555-0142")
    roster()
    read_again(snapshots, phone="(201) 555-0142")
    agreed = roster()
    settled = "select count(*), count(settled_at) from sis.student_edits"
    assert rows(database, settled) == [(1, 1)]

    Undoing(database, merges).undo(agreed.operation_id, "ada", "the extract was of another year")
    assert (rows(database, settled), value(database)) == ([(1, 0)], "(201) 555-0142")
    assert merges.stale_districts(YEAR) == []

    read_again(snapshots, phone="(201) 555-0199")
    roster()
    assert value(database) == "(201) 555-0142"


def test_an_undone_undo_settles_the_edit_again(database, snapshots, merges, policies, roster):
    policies.set("lincoln", {"phone": "local_wins"}, **BY)
    edit(database, phone="(201) 555-0142")
    roster()
    read_again(snapshots, phone="(201) 555-0142")
    undone = Undoing(database, merges).undo(roster().operation_id, "ada", "too early")
    Undoing(database, merges).undo(undone.operation_id, "ada", "it was right")
    assert rows(database, "select count(*), count(settled_at) from sis.student_edits") == [(1, 1)]


@pytest.fixture
def two_edits(database, snapshots, merges, policies):
    """Somebody has edited one student and not committed yet; an edit of another one, noted later, is committed. The last
    operation changed both students."""
    policies.set("lincoln", {"phone": "local_wins"}, **BY)
    people = [sis_student("7"), sis_student("8", first_name="Bea")]
    for email in (None, "new@lincoln.example"):
        good_snapshot(snapshots, students=[one | {"email": email} for one in people])
        gathered = merges.gather("lincoln", YEAR)
        operation = merges.write_merged(gathered, merge_district(gathered.inputs))
        publish(database, merges, operation)
    first = text("update sis.students set phone = :phone where first_name = :who")
    with database.connect() as editor:
        editor.execute(first, {"phone": "2015550142", "who": "Ada"})
        with database.begin() as connection:
            connection.execute(first, {"phone": "2015550143", "who": "Bea"})
        yield editor, operation, [one | {"email": "newer@lincoln.example"} for one in people]


def blocked_until_committed(database, editor, write) -> None:
    """Do what waits for a row of an editor, who commits when it waits. Raises as it does."""
    waiting = "select count(*) from pg_locks where locktype = 'transactionid' and not granted"
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(write)
        while not (done.done() or count(database, waiting)):
            time.sleep(0.01)
        editor.commit()
        done.result()


def test_an_edit_that_is_committed_late_is_neither_written_over_nor_forgotten(database, snapshots, merges, two_edits):
    editor, _, people = two_edits
    good_snapshot(snapshots, students=people)
    gathered = merges.gather("lincoln", YEAR)
    operation = merges.write_merged(gathered, merge_district(gathered.inputs))
    with pytest.raises(SupersededError, match="somebody edited students since"):
        blocked_until_committed(database, editor, lambda: publish(database, merges, operation))
    assert merges.get(operation.operation_id).status == "superseded"
    phones = "select first_name, phone, email from sis.students order by 1"
    both = [("Ada", "2015550142"), ("Bea", "2015550143")]
    assert rows(database, phones) == [(*one, "new@lincoln.example") for one in both]
    assert merges.stale_districts(YEAR) == ["lincoln"]
    gathered = merges.gather("lincoln", YEAR)
    publish(database, merges, merges.write_merged(gathered, merge_district(gathered.inputs)))
    assert rows(database, phones) == [(*one, "newer@lincoln.example") for one in both]
    assert merges.stale_districts(YEAR) == []


def test_an_undo_does_not_write_over_an_edit_that_is_committed_late(database, merges, two_edits):
    editor, operation, _ = two_edits
    undoing = Undoing(database, merges)
    with pytest.raises(SupersededError, match="Somebody edited students of lincoln while they were written"):
        blocked_until_committed(database, editor, lambda: undoing.undo(operation.operation_id, "ada", "wrong export"))
    assert rows(database, "select count(*) from sis.students where email is not null") == [(2,)]
    undoing.undo(operation.operation_id, "ada", "wrong export")
    phones = rows(database, "select first_name, phone, email from sis.students order by 1")
    assert phones == [("Ada", "2015550142", None), ("Bea", "2015550143", None)]
