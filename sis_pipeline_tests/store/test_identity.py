"""From a published near match to a decision that every later merge honours, and from a wrong merge back to two students."""

from __future__ import annotations

import uuid
from datetime import date

import pytest
from sqlalchemy import text

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.roster.district import merge_district
from sis_pipeline.store.erasure import Erasing
from sis_pipeline.store.identity import Identities
from sis_pipeline.store.publish import SupersededError, publish
from sis_pipeline_tests.store.conftest import YEAR, add_integration, count, good_snapshot, sis_student

BORN = date(2012, 3, 4)


@pytest.fixture
def who(database, snapshots, merges, once):
    """Ada Null in two systems, with nothing but name and birth date in common: published, and waiting."""

    def two_systems():
        add_integration(database, "lincoln-ic")
        deliver(snapshots)
        merge(database, merges)

    once("who", two_systems)
    return Identities(database)


def deliver(snapshots, **of_ic):
    """What both systems send: Ada in each; `of_ic` is what lincoln-ic says otherwise."""
    good_snapshot(
        snapshots, students=[sis_student("7", birth_date=BORN, local_id="L7"), sis_student("8", first_name="Bea")]
    )
    good_snapshot(snapshots, "lincoln-ic", students=[sis_student("70", **{"birth_date": BORN, **of_ic})])


def merge(database, merges, year=YEAR):
    gathered = merges.gather("lincoln", year)
    return publish(database, merges, merges.write_merged(gathered, merge_district(gathered.inputs)))


def holders(database) -> dict[str, str]:
    with database.connect() as connection:
        rows = connection.execute(text("select integration || '/' || sis_id, student_id from sis.student_links"))
        return {record: str(student) for record, student in rows}


def ada(database) -> tuple[str, str]:
    found = holders(database)
    return found["lincoln-ps/7"], found["lincoln-ic/70"]


def audited(database, *actions) -> list[tuple]:
    query = text(
        "select action, subject, actor, details from sis.audit_log where action = any(:actions) order by entry"
    )
    with database.connect() as connection:
        return [tuple(row) for row in connection.execute(query, {"actions": list(actions)})]


def test_a_near_match_waits_with_rule_evidence_and_score(database, merges, who):
    [one] = who.near_matches("lincoln")
    assert {side.record for side in one.sides} == {("lincoln-ps", "7"), ("lincoln-ic", "70")}
    assert {side.student_id for side in one.sides} == set(ada(database))
    assert (one.rule, one.status, one.school_year) == ("name_birth", "open", YEAR)
    assert one.evidence == "first_name, last_name, birth_date, school"
    assert 0.8 < one.score < 1
    assert who.near_matches("washington") == []
    assert who.near_match(one.near_match_id) == one
    merge(database, merges)
    assert who.near_matches() == [one]  # the same doubt, waiting since the same time
    assert count(database, "select count(*) from sis.students where near_match") == 2
    assert [row[3] for row in audited(database, "near_match.found")] == [{"opened": 1, "withdrawn": 0}]


def test_a_confirmed_pair_is_one_student_from_the_next_merge_on(database, snapshots, merges, who):
    [one] = who.near_matches()
    first, second = ada(database)
    assert merges.stale_districts(YEAR) == []
    decision = who.confirm(one.near_match_id, "ada", "seen both birth certificates")
    assert (decision.verdict, decision.decided_by, decision.superseded_by) == ("same", "ada", None)
    assert merges.stale_districts(YEAR) == ["lincoln"]
    done = merge(database, merges)
    assert (dict(done.changes), done.held) == ({}, 0)
    assert merges.stale_districts(YEAR) == []
    kept, also = ada(database)
    assert kept == also
    assert kept in {first, second}
    gone = ({first, second} - {kept}).pop()
    assert count(database, f"select count(*) from sis.students where student_id = '{gone}'") == 0
    assert (
        count(database, f"select count(*) from sis.student_aliases where alias_id = '{gone}' and student_id = '{kept}'")
        == 1
    )
    assert who.near_matches() == []
    deliver(snapshots, first_name="Adelheid", birth_date=date(2011, 11, 11), last_name="Other")
    merge(database, merges)
    assert holders(database)["lincoln-ps/7"] == kept
    [confirmed, merged] = audited(database, "link.confirm", "student.merged")
    assert confirmed[1:3] == (one.near_match_id, "ada")
    assert confirmed[3]["reason"] == "seen both birth certificates"
    assert (confirmed[3]["decisions"], set(confirmed[3]["students"])) == ([decision.decision_id], {first, second})
    assert merged[1] == gone
    assert merged[3]["into"] == kept


def test_a_distinct_pair_is_never_joined_nor_asked_about_again(database, snapshots, merges, who):
    [one] = who.near_matches()
    who.distinct(one.near_match_id, "ada", "cousins")
    assert merges.stale_districts(YEAR) == ["lincoln"]
    merge(database, merges)
    assert who.near_matches() == []
    assert who.near_match(one.near_match_id).status == "decided"
    assert count(database, "select count(*) from sis.students where near_match") == 0
    deliver(snapshots, local_id="L7", email="ada@example.org")  # now a rule would join them
    merge(database, merges)
    assert len(set(ada(database))) == 2
    assert who.near_matches() == []


def test_a_split_restores_the_merged_student_and_tells_the_two_apart_for_good(database, snapshots, merges, who):
    before = ada(database)
    deliver(snapshots, local_id="L7")
    merge(database, merges)
    kept, also = ada(database)
    assert kept == also
    records = {before[0]: ("lincoln-ps", "7"), before[1]: ("lincoln-ic", "70")}
    gone = ({*before} - {kept}).pop()
    [decision] = who.split(kept, records[gone], "ada", "two cousins with one number")
    assert {side.student_id for side in decision.sides} == set(before)
    done = merge(database, merges)
    assert (dict(done.changes), done.held) == ({}, 0)
    assert ada(database) == before
    assert count(database, "select count(*) from sis.students") == 3
    assert count(database, "select count(*) from sis.student_aliases where restored_at is null") == 0
    assert merge(database, merges).unchanged
    assert ada(database) == before
    [split, restored] = audited(database, "link.split", "student.restored")
    assert split[1:3] == (kept, "ada")
    assert split[3] == {
        "decisions": [decision.decision_id],
        "reason": "two cousins with one number",
        "restores": gone,
        "leaving": 1,
        "kept_apart": 1,
    }
    assert restored[1] == gone
    assert (
        {one.decision_id for one in who.decisions(kept)}
        == {one.decision_id for one in who.decisions(gone)}
        == {decision.decision_id}
    )


def test_a_later_decision_about_the_same_two_stands(database, merges, who):
    [one] = who.near_matches()
    before = ada(database)
    same = who.confirm(one.near_match_id, "ada", "one child")
    merge(database, merges)
    distinct = who.distinct(one.near_match_id, "bea", "no, two")
    merge(database, merges)
    assert ada(database) == before
    [newest, oldest] = who.decisions(before[0])
    assert (newest.decision_id, newest.superseded_by) == (distinct.decision_id, None)
    assert (oldest.decision_id, oldest.superseded_by) == (same.decision_id, distinct.decision_id)
    who.confirm(one.near_match_id, "ada", "one after all")
    merge(database, merges)
    assert len(set(ada(database))) == 1


def test_a_split_takes_the_place_of_a_confirmation_of_the_same_two(database, merges, who):
    [one] = who.near_matches()
    who.confirm(one.near_match_id, "ada", "one child")
    merge(database, merges)
    kept = ada(database)[0]
    who.split(kept, ("lincoln-ic", "70"), "bea", "two children")
    assert [it.verdict for it in who.decisions(kept) if it.superseded_by is None] == ["distinct"]
    merge(database, merges)
    assert len(set(ada(database))) == 2


def test_a_child_with_two_state_ids_is_joined_for_ever_by_who_says_so_and_can_be_split(
    database, snapshots, merges, who
):
    def deliver_two_ids():
        born = {"birth_date": BORN, "ssid_issuer": "TX"}
        good_snapshot(snapshots, students=[sis_student("7", ssid="S1", **born), sis_student("8", first_name="Bea")])
        good_snapshot(snapshots, "lincoln-ic", students=[sis_student("70", ssid="S2", **born)])
        merge(database, merges)

    deliver_two_ids()
    [one] = who.near_matches()
    assert one.evidence == "first_name, last_name, birth_date, school, but two state ids"
    before = ada(database)
    with pytest.raises(ConfigError, match="different state ids of one issuer") as refused:
        who.confirm(one.near_match_id, "ada", "one birth certificate")
    assert "--two-state-ids" in str(refused.value.advice)
    decision = who.confirm(one.near_match_id, "ada", "one birth certificate", two_state_ids=True)
    assert (decision.verdict, decision.decided_by) == ("same_with_two_state_ids", "ada")
    merge(database, merges)
    [student_id] = set(ada(database))
    assert count(database, "select count(*) from sis.students where ssid in ('S1', 'S2')") == 1
    assert count(database, "select count(*) from sis.conflicts where attribute = 'ssid'") == 1
    assert who.near_matches() == []
    deliver_two_ids()
    assert set(ada(database)) == {student_id}
    [(_, _, actor, details)] = audited(database, "link.confirm")
    assert (actor, details["reason"], details["two_state_ids"]) == ("ada", "one birth certificate", True)
    who.split(student_id, ("lincoln-ic", "70"), "bea", "two children after all")
    merge(database, merges)
    assert ada(database) == before
    assert who.near_matches() == []


def test_two_state_ids_are_not_confirmed_by_accident(database, snapshots, merges, who):
    [one] = who.near_matches()
    with database.begin() as connection:  # an id that came after the near match was found
        for sis_id, ssid in (("7", "S1"), ("70", "S2")):
            connection.execute(
                text("update sis.student_sources set ssid = :ssid where sis_id = :id"), {"ssid": ssid, "id": sis_id}
            )
    with pytest.raises(ConfigError, match="different state ids of one issuer") as refused:
        who.confirm(one.near_match_id, "ada", "sure")
    assert refused.value.code == "config.two_state_ids"
    assert "S1" not in str(refused.value)
    assert count(database, "select count(*) from sis.identity_decisions") == 0
    assert who.near_match(one.near_match_id).status == "open"


def test_a_near_match_that_is_no_longer_found_is_withdrawn_and_comes_back(database, snapshots, merges, who):
    [one] = who.near_matches()
    deliver(snapshots, birth_date=date(2014, 9, 21))
    merge(database, merges)
    assert who.near_matches() == []
    with pytest.raises(ConfigError, match="was withdrawn"):
        who.confirm(one.near_match_id, "ada", "sure")
    deliver(snapshots)
    merge(database, merges)
    [again] = who.near_matches()
    assert again.near_match_id == one.near_match_id
    assert again.opened_at > one.opened_at


def test_a_merge_that_began_before_a_decision_is_not_published(database, merges, who):
    gathered = merges.gather("lincoln", YEAR)
    operation = merges.write_merged(gathered, merge_district(gathered.inputs))
    [one] = who.near_matches()
    who.distinct(one.near_match_id, "ada", "cousins")
    with pytest.raises(SupersededError, match="somebody decided since who is who"):
        publish(database, merges, operation)
    assert who.near_match(one.near_match_id).status == "decided"


@pytest.mark.parametrize(("actor", "reason"), [("ada", " "), ("", "because")])
def test_a_decision_needs_a_name_and_a_reason(who, database, actor, reason):
    [one] = who.near_matches()
    for decide in (who.confirm, who.distinct):
        with pytest.raises(ConfigError, match="needs who decides and why"):
            decide(one.near_match_id, actor, reason)
    with pytest.raises(ConfigError, match="needs who decides and why"):
        who.split(ada(database)[0], ("lincoln-ps", "7"), actor, reason)
    assert count(database, "select count(*) from sis.identity_decisions") == 0


def test_what_can_not_be_split_is_refused_in_words(who, database):
    mine, other = ada(database)
    with pytest.raises(ConfigError, match="is the only one of student"):
        who.split(mine, ("lincoln-ps", "7"), "ada", "because")
    with pytest.raises(ConfigError, match="is not one of student"):
        who.split(other, ("lincoln-ps", "7"), "ada", "because")
    with pytest.raises(ConfigError, match="is no student's or staff member's id"):
        who.split("7", ("lincoln-ps", "7"), "ada", "because")


def test_an_unknown_near_match_is_named(who):
    with pytest.raises(ConfigError, match="is no near match's id"):
        who.confirm("7", "ada", "because")
    with pytest.raises(ConfigError, match="There is no near match"):
        who.near_match(str(uuid.uuid4()))


def test_the_alias_of_an_alias_is_the_student_it_is_now(database, snapshots, merges, who):
    deliver(snapshots, local_id="L7")
    merge(database, merges)
    kept = ada(database)[0]
    with database.begin() as connection:
        connection.execute(
            text("update sis.student_links set first_seen = first_seen - interval '1 year' where sis_id = '8'")
        )
        connection.execute(
            text("update sis.student_links set first_seen = first_seen + interval '1 year' where sis_id <> '8'")
        )
    oldest = holders(database)["lincoln-ps/8"]
    good_snapshot(
        snapshots,
        students=[
            sis_student("7", birth_date=BORN, local_id="L7", ssid="S"),
            sis_student("8", birth_date=BORN, ssid="S"),
        ],
    )
    merge(database, merges)
    assert set(holders(database).values()) == {oldest}
    with database.connect() as connection:
        now = dict(connection.execute(text("select alias_id::text, student_id::text from sis.student_aliases")).all())
    assert set(now.values()) == {oldest}
    assert len(now) == 2
    assert kept in now


OF_ADA = {"lincoln-ic": "1", "lincoln-or": "3", "lincoln-ps": "2"}
IC, OR, PS = OF_ADA.items()


@pytest.fixture
def three(database, snapshots, merges, once):
    """Ada Null in three systems: one student of lincoln-or and lincoln-ps, and another one, perhaps, of lincoln-ic."""

    def three_systems():
        for integration, sis_id in OF_ADA.items():
            if integration != "lincoln-ps":
                add_integration(database, integration)
            number = None if integration == "lincoln-ic" else "L7"
            good_snapshot(snapshots, integration, students=[sis_student(sis_id, birth_date=BORN, local_id=number)])
        merge(database, merges)
        in_turn(database)

    once("three", three_systems)
    return Identities(database)


def in_turn(database):
    """As if the systems had come one after the other: a merge keeps the oldest id."""
    with database.begin() as connection:
        for years, integration in enumerate(reversed(OF_ADA)):
            connection.execute(
                text(
                    "update sis.student_links set first_seen = first_seen - :age * interval '1 year' where integration = :it"
                ),
                {"age": years, "it": integration},
            )


PARTINGS = {
    "one of its records": lambda who, kept, near: who.split(kept, PS, "bea", "two"),
    "its other record": lambda who, kept, near: who.split(kept, OR, "bea", "two"),
    "one after the other": lambda who, kept, near: [who.split(kept, it, "bea", "two") for it in (PS, OR)],
    "the record of who was there first": lambda who, kept, near: who.split(kept, IC, "bea", "two"),
    "the near match": lambda who, kept, near: who.distinct(near, "bea", "two"),
}


@pytest.mark.parametrize("part", PARTINGS.values(), ids=PARTINGS)
def test_who_was_merged_comes_back_with_all_records_whichever_is_named(database, merges, three, part):
    before = holders(database)
    assert before["lincoln-or/3"] == before["lincoln-ps/2"] != before["lincoln-ic/1"]
    [near] = three.near_matches()
    three.confirm(near.near_match_id, "ada", "one child")
    merge(database, merges)
    [kept] = set(holders(database).values())
    assert kept == before["lincoln-ic/1"]
    part(three, kept, near.near_match_id)
    done = merge(database, merges)
    assert (dict(done.changes), done.held) == ({}, 0)
    assert holders(database) == before
    assert count(database, "select count(*) from sis.student_aliases where restored_at is null") == 0
    assert merge(database, merges).unchanged
    three.confirm(near.near_match_id, "ada", "one after all")
    merge(database, merges)
    assert set(holders(database).values()) == {kept}


def test_a_confirmation_takes_the_place_of_a_split_that_no_merge_has_done_yet(database, merges, three):
    [near] = three.near_matches()
    three.confirm(near.near_match_id, "ada", "one child")
    merge(database, merges)
    [kept] = set(holders(database).values())
    three.split(kept, PS, "bea", "two")
    three.confirm(near.near_match_id, "ada", "one after all")
    merge(database, merges)
    assert set(holders(database).values()) == {kept}


def test_a_record_that_came_later_leaves_the_keeper_s_id_to_the_keeper(database, snapshots, merges, three):
    before = holders(database)
    three.confirm(three.near_matches()[0].near_match_id, "ada", "one child")
    merge(database, merges)
    add_integration(database, "lincoln-sky")
    good_snapshot(snapshots, "lincoln-sky", students=[sis_student("4", birth_date=BORN, local_id="L7")])
    merge(database, merges)
    [kept] = set(holders(database).values())
    three.split(kept, IC, "bea", "two")
    merge(database, merges)
    assert holders(database) == {**before, "lincoln-sky/4": before["lincoln-ps/2"]}


def test_a_chain_of_merges_is_taken_apart_link_by_link(database, snapshots, merges):
    """Of three students the second was given the third, and then the first the second."""
    for integration, sis_id in OF_ADA.items():
        if integration != "lincoln-ps":
            add_integration(database, integration)
        good_snapshot(snapshots, integration, students=[sis_student(sis_id, birth_date=BORN)])
    merge(database, merges)
    in_turn(database)
    who, before = Identities(database), holders(database)
    first, second, third = (before["/".join(record)] for record in (IC, OR, PS))
    for two in ({second, third}, {first, second}):
        [near] = [it for it in who.near_matches() if {side.student_id for side in it.sides} == two]
        who.confirm(near.near_match_id, "ada", "one child")
        merge(database, merges)
    assert set(holders(database).values()) == {first}
    who.split(first, IC, "bea", "the first is another child")
    merge(database, merges)
    assert holders(database) == {"/".join(IC): first, "/".join(OR): second, "/".join(PS): second}
    who.split(second, OR, "bea", "and the third, too")
    merge(database, merges)
    assert holders(database) == before
    assert merge(database, merges).unchanged


LAST = "2024-2025"


def deliver_year(snapshots, year, **both):
    """Ada in both systems with a stay in each, in a school year."""
    for integration, sis_id in (("lincoln-ps", "7"), ("lincoln-ic", "70")):
        stay = {
            "sis_id": f"e{sis_id}",
            "student_sis_id": sis_id,
            "school_sis_id": "1",
            "school_year": year,
            "entry_date": date(int(year[:4]), 8, 18),
            "entry_date_source": "sis",
            "enrollment_type": "primary",
            "status": "active",
            "record_status": "active",
        }
        student = sis_student(sis_id, birth_date=BORN, **both)
        good_snapshot(snapshots, integration, year=year, students=[student], enrollments=[stay])


def test_other_years_follow_a_join_and_its_split(database, snapshots, merges):
    add_integration(database, "lincoln-ic")
    for year in (LAST, YEAR):
        deliver_year(snapshots, year)
        merge(database, merges, year)
    before = ada(database)
    deliver_year(snapshots, YEAR, ssid="S1")
    assert merge(database, merges).changes == {}
    assert merges.stale_districts(YEAR) == []
    assert merges.stale_districts(LAST) == ["lincoln"]  # its roster names a student who is another one now
    done = merge(database, merges, LAST)
    assert (dict(done.changes), done.held) == ({}, 0)
    assert merges.stale_districts(LAST) == []
    [kept] = set(ada(database))
    for table, column in (
        ("student_years", "student_id"),
        ("enrollments", "student_id"),
        ("student_sources", "student_id"),
    ):
        assert count(database, f"select count(*) from sis.{table} where {column} <> '{kept}'") == 0, table
    Identities(database).split(kept, ("lincoln-ps", "7"), "ada", "two cousins with one number")
    for year in (YEAR, LAST):
        assert merges.stale_districts(year) == ["lincoln"]
        done = merge(database, merges, year)
        assert (dict(done.changes), done.held) == ({}, 0)
    assert ada(database) == before
    for student in before:
        assert count(database, f"select count(*) from sis.student_years where student_id = '{student}'") == 2
        assert (
            count(
                database, f"select count(*) from sis.enrollments where student_id = '{student}' and status = 'active'"
            )
            == 2
        )
    for year in (LAST, YEAR):
        assert merge(database, merges, year).unchanged


def test_a_near_match_of_another_year_is_withdrawn_once_the_two_are_one(database, snapshots, merges):
    add_integration(database, "lincoln-ic")
    deliver_year(snapshots, LAST)
    merge(database, merges, LAST)
    who = Identities(database)
    assert [it.school_year for it in who.near_matches()] == [LAST]
    deliver_year(snapshots, YEAR, ssid="S1")
    merge(database, merges, YEAR)
    assert len(set(ada(database))) == 1
    assert who.near_matches() == []


def staff_row(sis_id, **values):
    return {"sis_id": sis_id, "first_name": "Grace", "last_name": "Hopper", "role": "teacher", "school_sis_id": "1",
            "school_sis_ids": '["1"]', "record_status": "active", **values}  # fmt: skip


@pytest.fixture
def teacher(database, snapshots, merges):
    """Grace Hopper in two systems under the ids of two students, who are nobody's doubt."""
    add_integration(database, "lincoln-ic")

    def sync(**of_ic):
        good_snapshot(snapshots, students=[sis_student("7", local_id="L7")], staff=[staff_row("7")])
        beas = [sis_student("70", first_name="Bea", last_name="Other")]
        good_snapshot(snapshots, "lincoln-ic", students=beas, staff=[staff_row("70", **of_ic)])
        return merge(database, merges)

    sync(last_name="Hooper")
    sync.people = Identities(database)
    return sync


def teachers(database) -> dict[str, str]:
    with database.connect() as connection:
        rows = connection.execute(text("select integration || '/' || sis_id, staff_id from sis.staff_links"))
        return {record: str(person) for record, person in rows}


def test_staff_wait_in_the_same_queue_and_are_joined_by_a_decision(database, merges, teacher):
    people = teacher.people
    [one] = people.near_matches("lincoln")
    assert (one.entity, one.rule, one.evidence) == ("staff", "similar_name", "first_name, school, similar last_name")
    assert {side.student_id for side in one.sides} == set(teachers(database).values())
    assert (people.near_matches(entity="student"), people.near_matches(entity="staff")) == ([], [one])
    assert count(database, "select count(*) from sis.staff where near_match") == 2
    assert count(database, "select count(*) from sis.students where near_match") == 0

    before = teachers(database)
    made = people.confirm(one.near_match_id, "ada", "she signed both")
    assert (made.entity, made.verdict) == ("staff", "same")
    assert merges.stale_districts(YEAR) == ["lincoln"]
    merge(database, merges)
    assert len(set(teachers(database).values())) == 1
    assert len(set(holders(database).values())) == 2, "the students with the same ids are two as before"
    assert count(database, "select count(*) from sis.staff") == 1
    assert count(database, "select count(*) from sis.staff where near_match") == 0
    assert merge(database, merges).unchanged
    [(_, _, actor, details)] = audited(database, "link.confirm")
    assert (actor, set(details["staff"]), details["reason"]) == ("ada", set(before.values()), "she signed both")

    people.distinct(one.near_match_id, "ada", "two cousins")
    merge(database, merges)
    assert teachers(database) == before, "and they part again, each with the old id"
    assert merge(database, merges).unchanged
    [staff_id] = {teachers(database)["lincoln-ic/70"]}
    assert [(it.verdict, it.superseded_by is None) for it in people.decisions(staff_id, "staff")] == [
        ("distinct", True),
        ("same", False),
    ]
    assert people.decisions(holders(database)["lincoln-ic/70"]) == [], "a student's decisions are not the teacher's"


def test_staff_told_apart_are_not_asked_about_again_and_a_doubt_that_is_over_is_withdrawn(database, merges, teacher):
    [one] = teacher.people.near_matches()
    teacher(last_name="Lovelace")
    assert teacher.people.near_match(one.near_match_id).status == "gone"
    assert count(database, "select count(*) from sis.staff where near_match") == 0
    teacher(last_name="Hooper")
    assert teacher.people.near_match(one.near_match_id).status == "open"
    teacher.people.distinct(one.near_match_id, "ada", "two cousins")
    teacher(email="grace@x.org")
    assert teacher.people.near_matches() == []
    assert len(set(teachers(database).values())) == 2


def test_a_staff_member_that_is_two_is_split_for_good(database, merges, teacher):
    [one] = teacher.people.near_matches()
    teacher.people.confirm(one.near_match_id, "ada", "she signed both")
    merge(database, merges)
    [staff_id] = set(teachers(database).values())
    with pytest.raises(ConfigError, match=f"is not one of staff member {staff_id}"):
        teacher.people.split(staff_id, ("lincoln-ic", "71"), "ada", "two cousins")
    [made] = teacher.people.split(staff_id, ("lincoln-ic", "70"), "ada", "two cousins")
    assert (made.entity, made.verdict, made.sides[0].record) == ("staff", "distinct", ("lincoln-ic", "70"))
    merge(database, merges)
    after = teachers(database)
    assert after["lincoln-ps/7"] == staff_id != after["lincoln-ic/70"]
    assert len(set(holders(database).values())) == 2, "the students with the same ids are left alone"
    teacher(last_name="Hopper")
    assert (teachers(database), teacher.people.near_matches()) == (after, [])
    [(_, _, actor, details)] = audited(database, "link.split")
    assert (actor, details["leaving"], details["reason"]) == ("ada", 1, "two cousins")
    with pytest.raises(ConfigError, match="the only one"):
        teacher.people.split(staff_id, ("lincoln-ps", "7"), "ada", "again")


def test_two_state_ids_of_staff_are_not_confirmed(database, teacher):
    [one] = teacher.people.near_matches()
    with database.begin() as connection:
        connection.execute(text("update sis.staff set state_staff_id = staff_id::text"))
    with pytest.raises(ConfigError, match="different state ids of one issuer"):
        teacher.people.confirm(one.near_match_id, "ada", "the same")


def test_an_erased_student_takes_no_doubt_about_a_teacher_along(database, snapshots, vault, teacher):
    [one] = teacher.people.near_matches()
    student = holders(database)["lincoln-ps/7"]
    Erasing(database, snapshots.files, lambda: vault).erase(student, "ada", "asked for", force=True)
    assert teacher.people.near_matches() == [one]


def give_number_to_ben(database, snapshots, merges):
    """Bea's number is Ben's by now; the merge of that is published."""
    good_snapshot(
        snapshots,
        students=[
            sis_student("7", birth_date=BORN, local_id="L7"),
            sis_student("8", first_name="Ben", last_name="Other", birth_date=date(2016, 9, 9)),
        ],
    )
    merge(database, merges)


@pytest.fixture
def recycled(database, snapshots, merges, once):
    def given():
        add_integration(database, "lincoln-ic")
        students = [
            sis_student("7", birth_date=BORN, local_id="L7"),
            sis_student("8", first_name="Bea", birth_date=BORN),
        ]
        good_snapshot(snapshots, students=students)
        merge(database, merges)
        give_number_to_ben(database, snapshots, merges)

    once("recycled", given)
    return Identities(database)


@pytest.mark.parametrize("way", ["distinct", "split"])
def test_a_recycled_id_waits_and_becomes_somebody_new(database, merges, recycled, way):
    bea = holders(database)["lincoln-ps/8"]
    [asked] = recycled.near_matches("lincoln")
    assert asked.is_recycled
    assert [side.record for side in asked.sides] == [("lincoln-ps", "8"), None]
    assert asked.sides[1].student_id == bea
    assert merges.set_aside("lincoln", YEAR, "student", ("lincoln-ps", "8"))["first_name"] == "Ben"
    if way == "distinct":
        recycled.distinct(asked.near_match_id, "ada", "a new boy")
    else:
        recycled.split(bea, ("lincoln-ps", "8"), "ada", "a new boy")
    for _ in range(2):
        merge(database, merges)
        ben = holders(database)["lincoln-ps/8"]
        assert ben == asked.sides[0].student_id != bea
        names = count(database, f"select count(*) from sis.students where student_id = '{ben}' and first_name = 'Ben'")
        assert names == 1
        assert recycled.near_matches() == []
    assert recycled.near_match(asked.near_match_id).status == "decided"


def test_a_recycled_id_that_is_none_is_whose_it_was(database, merges, recycled):
    bea = holders(database)["lincoln-ps/8"]
    [asked] = recycled.near_matches()
    recycled.confirm(asked.near_match_id, "ada", "a new name, and a wrong birth date")
    for _ in range(2):
        merge(database, merges)
        assert holders(database)["lincoln-ps/8"] == bea
        assert count(database, f"select count(*) from sis.students where student_id = '{bea}' and first_name = 'Ben'")
        assert recycled.near_matches() == []
