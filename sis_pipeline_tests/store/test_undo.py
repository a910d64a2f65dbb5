"""An undo puts every table back, takes the ledger back event by event, and keeps what was undone out of the next merge."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest
from sqlalchemy import event, text

from sis_pipeline.connect.errors import ConfigError, DataError
from sis_pipeline.roster.district import merge_district
from sis_pipeline.roster.guard import Hold, Part
from sis_pipeline.roster.model import MERGED
from sis_pipeline.settings import Settings
from sis_pipeline.store.conflicts import Conflicts
from sis_pipeline.store.guarding import Guarding
from sis_pipeline.store.holds import Holds
from sis_pipeline.store.identity import Identities
from sis_pipeline.store.operations import Operations
from sis_pipeline.store.publish import SupersededError, publish
from sis_pipeline.store.retention import Retention
from sis_pipeline.store.survivorship import Survivorship
from sis_pipeline.store.undo import Undoing
from sis_pipeline_tests.store.conftest import YEAR, add_integration, count, good_snapshot, hold, merged_roster, student
from sis_pipeline_tests.store.test_publish import state
from sis_pipeline_tests.store.test_roundtrip import day_of_snapshot, delivery

CHILD = """
import sys
from sqlalchemy.engine import make_url
from sis_pipeline.db.engine import engine_for
from sis_pipeline.store.merged import MergeStore
from sis_pipeline.store.snapshots import SnapshotStore
from sis_pipeline.store.undo import Undoing
engine = engine_for(make_url(sys.argv[1]))
Undoing(engine, MergeStore(engine, SnapshotStore(engine, sys.argv[2]))).undo(sys.argv[3], "ada", "a reason")
"""
DAY = date(2025, 10, 1)
EARLIER = "2024-2025"
WHY = "the extract was of another year"


@pytest.fixture
def undoing(database, merges) -> Undoing:
    return Undoing(database, merges)


def merge(database, merges, year: str = YEAR):
    """What is published now, and its operation."""
    gathered = merges.gather("lincoln", year, as_of=DAY)
    operation = merges.write_merged(gathered, merge_district(gathered.inputs))
    publish(database, merges, operation)
    return merges.get(operation.operation_id)


def roster(database) -> dict[str, list[tuple]]:
    """The content of every published table but the ledger, which is only added to."""
    return {name: rows for name, rows in state(database).items() if name != "enrollment_changes"}


def ledger(database, operation_id: str) -> list[tuple]:
    query = text(
        "select student_id, kind, effective_date, school_id, section_id, before, after, evidence "
        "from sis.enrollment_changes where operation_id = :operation_id"
    )
    with database.connect() as connection:
        return [tuple(row) for row in connection.execute(query, {"operation_id": operation_id})]


@pytest.fixture
def two_days(database, snapshots, merges, once):
    """A first load; then somebody who left, two who came, a name that changed, and a class dropped."""
    return once("two days", lambda: _two_days(database, snapshots, merges))


def _two_days(database, snapshots, merges):
    day_of_snapshot(database, good_snapshot(snapshots, **delivery(*range(6))), DAY - timedelta(1))
    first = merge(database, merges)
    before = roster(database)
    rows = delivery(*range(1, 8))
    rows["students"][0]["last_name"] = "Changed"
    rows["section_enrollments"] = rows["section_enrollments"][1:]
    day_of_snapshot(database, good_snapshot(snapshots, **rows), DAY)
    second = merge(database, merges)
    assert roster(database) != before
    return first, second, before


def test_tables_are_as_before_and_every_event_is_taken_back_once(database, undoing, two_days):
    _, second, before = two_days
    done = undoing.undo(second.operation_id, "ada", WHY)
    assert roster(database) == before
    events, back = ledger(database, second.operation_id), ledger(database, done.operation_id)
    assert {event[1] for event in events} >= {"enroll", "withdraw", "section_add", "section_drop"}
    assert {one[7] for one in back} == {f"undo:{second.operation_id}"}

    def essence(event, *, turned: bool):
        who, _, day, school, section, *states, _ = event
        return str((who, day, school, section, states[::-1] if turned else states))

    assert Counter(essence(one, turned=True) for one in back) == Counter(essence(one, turned=False) for one in events)
    assert done.published.changes == Counter(one[1] for one in back)
    kinds = dict(zip((essence(one, turned=False) for one in events), (one[1] for one in events), strict=True))
    assert {(kinds[essence(one, turned=True)], one[1]) for one in back} == {
        ("enroll", "withdraw"), ("withdraw", "re_enter"), ("section_add", "section_drop"), ("section_drop", "section_add"),
    }  # fmt: skip


def test_the_audit_log_and_the_operation_say_who_and_why(database, merges, undoing, two_days):
    first, second, _ = two_days
    assert merges.gather("lincoln", YEAR).inputs.rulings.removed_lately == 1
    done = undoing.undo(second.operation_id, "ada", WHY)
    assert merges.gather("lincoln", YEAR).inputs.rulings.removed_lately == 0  # the guard forgets what was taken back
    with database.connect() as connection:
        entry = connection.execute(text("select * from sis.audit_log where action = 'roster.undo'")).one()
    assert (entry.actor, entry.subject, entry.district) == ("ada", done.operation_id, "lincoln")
    assert (entry.details["undoes"], entry.details["reason"]) == (second.operation_id, WHY)
    own = merges.get(done.operation_id)
    assert (own.status, own.undoes, own.epoch, own.inputs) == ("published", second.operation_id, 4, first.inputs)
    assert merges.get(second.operation_id).status == "published"  # what happened stays told
    told = {it.operation_id: it for it in Operations(database).list("lincoln")[0]}
    assert (told[second.operation_id].status, told[second.operation_id].undone_by) == ("undone", done.operation_id)
    assert (told[done.operation_id].actor, told[done.operation_id].reason) == ("ada", WHY)


def test_a_plan_says_what_the_undo_does_and_changes_nothing(database, undoing, two_days):
    _, second, _ = two_days
    as_it_was, operations = state(database), "select count(*) from sis.sync_operations"
    entries = "select count(*) from sis.audit_log"
    counts = count(database, operations), count(database, entries)
    plan = undoing.plan(second.operation_id)
    assert state(database) == as_it_was
    assert (count(database, operations), count(database, entries)) == counts
    done = undoing.undo(second.operation_id, "ada", WHY)
    assert (plan.operation_id, plan.published.applied, plan.published.changes) == (
        None, done.published.applied, done.published.changes,
    )  # fmt: skip
    assert plan.withheld == done.withheld == ("lincoln-ps",)
    assert plan.published.applied["students"].deleted == 2


def test_what_was_undone_is_not_merged_again_until_it_changes(database, snapshots, merges, undoing, two_days):
    _, second, before = two_days
    undoing.undo(second.operation_id, "ada", WHY)
    assert merges.stale_districts(YEAR) == []
    rows = delivery(*range(1, 8))
    rows["students"][0]["last_name"] = "Changed"
    rows["section_enrollments"] = rows["section_enrollments"][1:]
    good_snapshot(snapshots, **rows)  # the same, read once more
    assert merges.stale_districts(YEAR) == []
    merge(database, merges)
    assert roster(database) == before
    rows["students"][0]["last_name"] = "Right"
    day_of_snapshot(database, good_snapshot(snapshots, **rows), DAY)
    assert merges.stale_districts(YEAR) == ["lincoln"]
    again = merge(database, merges)
    assert again.withheld == {}
    kinds = [Counter(one[1] for one in ledger(database, it.operation_id)) for it in (second, again)]
    assert kinds[0] == kinds[1], "the same news on the same day is told again"
    assert count(database, "select count(*) from sis.students") == 8
    assert merges.stale_districts(YEAR) == []


def test_what_a_system_cleared_is_said_again_once_that_is_undone_and_cleared_once_that_is(
    database, snapshots, merges, undoing
):
    add_integration(database, "lincoln-ic", priority=200)
    good_snapshot(snapshots, **delivery(*range(4), email="new@lincoln.example"))
    good_snapshot(snapshots, "lincoln-ic", **delivery(0, email="old@lincoln.example"))
    merge(database, merges)
    before = roster(database)
    rows = delivery(*range(4), email="new@lincoln.example")
    rows["students"][0] = {**rows["students"][0], "email": None}
    good_snapshot(snapshots, **rows)
    wrong = merge(database, merges)
    after = roster(database)
    empty = "select count(*) from sis.students where email is null and origins ->> 'email' like '% cleared'"
    known = "select count(*) from sis.student_sources where cleared = '[\"email\"]'"
    assert (count(database, empty), count(database, known)) == (1, 1)
    undone = undoing.undo(wrong.operation_id, "ada", WHY)
    assert roster(database) == before
    assert (count(database, empty), count(database, known)) == (0, 0)
    undoing.undo(undone.operation_id, "ada", WHY)
    assert roster(database) == after


def test_another_system_goes_on_while_the_one_that_was_undone_is_left_out(database, snapshots, merges, undoing):
    add_integration(database, "lincoln-ic", priority=200)
    good_snapshot(snapshots, **delivery(*range(6)))
    good_snapshot(snapshots, "lincoln-ic", **delivery(0, 1))
    merge(database, merges)
    good_snapshot(snapshots, **delivery(*range(1, 7)))
    wrong = merge(database, merges)
    assert undoing.undo(wrong.operation_id, "ada", WHY).withheld == ("lincoln-ps",)
    good_snapshot(snapshots, "lincoln-ic", **delivery(0, 1, email="new@lincoln.example"))
    assert merges.stale_districts(YEAR) == ["lincoln"]
    merged = merge(database, merges)
    assert set(merged.withheld) == {"lincoln-ps"}
    assert merged.inputs["lincoln-ps"]["snapshot_id"] != wrong.inputs["lincoln-ps"]["snapshot_id"]
    assert count(database, "select count(*) from sis.enrollments where status = 'active'") == 6
    assert count(database, "select count(*) from sis.student_sources where email = 'new@lincoln.example'") == 2
    assert count(database, "select count(*) from sis.students where ssid = '0000000006'") == 0
    assert merges.stale_districts(YEAR) == []


def test_an_undo_is_undone_like_any_other_operation(database, merges, undoing, two_days):
    _, second, before = two_days
    after = roster(database)
    undo = undoing.undo(second.operation_id, "ada", WHY)
    redo = undoing.undo(undo.operation_id, "bo", "it was right")
    assert roster(database) == after
    assert (redo.withheld, merges.stale_districts(YEAR)) == ((), [])
    assert merges.preview("lincoln", YEAR).inputs.rulings.removed_lately == 1  # who is withdrawn again counts again
    assert Counter(one[1] for one in ledger(database, redo.operation_id)) == Counter(
        one[1] for one in ledger(database, second.operation_id)
    )
    told = {it.operation_id: it for it in Operations(database).list("lincoln")[0]}
    assert [told[it].status for it in (second.operation_id, undo.operation_id)] == ["published", "undone"]
    undoing.undo(second.operation_id, "cy", "it was wrong")
    assert roster(database) == before


def test_operations_are_undone_one_after_the_other_back_to_the_first(database, snapshots, merges, undoing, two_days):
    first, second, before = two_days
    between = roster(database)
    good_snapshot(snapshots, **delivery(*range(2, 9)))
    third = merge(database, merges)
    with pytest.raises(ConfigError, match=f"operation {third.operation_id} was published since") as refused:
        undoing.undo(second.operation_id, "ada", WHY)
    assert refused.value.advice == f"Undo the later one first: `sis undo {third.operation_id}`."
    last = undoing.undo(third.operation_id, "ada", WHY)
    assert roster(database) == between
    with pytest.raises(ConfigError, match=f"operation {last.operation_id} undid it already"):
        undoing.plan(third.operation_id)
    undoing.undo(second.operation_id, "ada", WHY)
    assert roster(database) == before
    with pytest.raises(ConfigError, match=r"it is an undo, and operation .* was published since"):
        undoing.plan(last.operation_id)
    with pytest.raises(ConfigError, match="it is the first of lincoln for 2025-2026"):
        undoing.plan(first.operation_id)


def test_a_walk_of_merges_and_undos_always_leads_back(database, snapshots, merges, undoing):
    draw = random.Random(11)
    stood: list[tuple[str, dict]] = []
    for step in (*"mm", *(draw.choice("mmu") for _ in range(6)), *"uu"):
        if step == "u" and len(stood) > 1:
            undoing.undo(stood.pop()[0], "ada", WHY)
            assert roster(database) == stood[-1][1]
            # what is held is due again by now: the merges are judged on a day that is long gone
            assert merges.newest("lincoln", YEAR, "published").fingerprint == merges.fingerprint("lincoln", YEAR)
        else:
            rows = delivery(*sorted(draw.sample(range(9), draw.randint(3, 9))))
            rows["students"][0]["first_name"] = f"Once{len(stood)}"
            rows["enrollments"] = [one | {"entry_code": draw.choice("EF")} for one in rows["enrollments"]]
            good_snapshot(snapshots, **rows)
            operation = merge(database, merges)
            stood.append((operation.operation_id, roster(database)))
    told, _ = Operations(database).list("lincoln", limit=100)
    standing = [it.operation_id for it in told if it.status == "published" and not it.undoes]
    assert standing == [operation_id for operation_id, _ in reversed(stood)]


def test_people_of_another_year_stay_and_a_year_that_builds_on_it_goes_first(
    database, snapshots, merges, undoing, two_days
):
    _, second, _ = two_days
    good_snapshot(snapshots, year=EARLIER, **_of_year(delivery(*range(4, 9))))
    other = merge(database, merges, EARLIER)
    with pytest.raises(
        ConfigError, match=f"operation {other.operation_id} of {EARLIER} was published since"
    ) as refused:
        undoing.plan(second.operation_id)
    assert f"sis undo {other.operation_id}" in refused.value.advice
    good_snapshot(snapshots, **delivery(*range(3, 9)))
    before = roster(database)
    third = merge(database, merges)
    undoing.undo(third.operation_id, "ada", WHY)
    assert roster(database) == before


def _of_year(rows: dict[str, list[dict]]) -> dict[str, list[dict]]:
    years = {"school_year": EARLIER, "start_date": "2024-08-18", "end_date": "2025-06-06", "entry_date": "2024-08-18"}
    return {
        name: [{**row, **{key: value for key, value in years.items() if key in row}} for row in found]
        for name, found in rows.items()
    }


def test_students_that_it_had_joined_are_two_again_and_those_it_had_parted_one(database, snapshots, merges, undoing):
    add_integration(database, "lincoln-ic")
    good_snapshot(snapshots, **delivery(0, 1))
    rows = delivery(0)
    rows["students"][0] |= {"ssid": None, "ssid_issuer": None, "grade_level": None}
    good_snapshot(snapshots, "lincoln-ic", **rows)
    merge(database, merges)
    apart, people = roster(database), Identities(database)
    [near] = people.near_matches(entity="student")
    people.confirm(near.near_match_id, "ada", "the same child")
    joining = merge(database, merges)
    together = roster(database)
    assert len(apart["students"]) == len(together["students"]) + 1
    undoing.undo(joining.operation_id, "ada", WHY)
    assert roster(database) == apart
    assert count(database, "select count(*) from sis.student_aliases where restored_at is null") == 0
    assert [one.status for one in people.near_matches(status=None, entity="student")] == [
        "decided"
    ]  # a decision stands
    assert merges.stale_districts(YEAR) == []
    [undo] = [it for it in Operations(database).list("lincoln")[0] if it.undoes]
    undoing.undo(undo.operation_id, "ada", "it was right")
    assert roster(database) == together
    assert count(database, "select count(*) from sis.student_aliases where restored_at is null") == 1


def test_what_it_let_through_waits_again_and_what_it_raised_is_closed(database, merges, undoing):
    def publish_with(*held: Hold) -> str:
        operation = merges.write_merged(merges.gather("lincoln", YEAR), merged_roster(held=list(held)))
        publish(database, merges, operation)
        return operation.operation_id

    def statuses() -> dict[str, str]:
        return {one.fingerprint: one.status for one in Holds(database).list()}

    publish_with(hold("f1", 1), hold("f2", 2), hold("f3", 3))
    found = {one.fingerprint: one.hold_id for one in Holds(database).list()}
    Holds(database).release(found["f1"], "ada", "they moved")
    second = publish_with(hold("f3", 3), hold("f4", 4))
    assert statuses() == {"f1": "applied", "f2": "discarded", "f3": "open", "f4": "open"}
    undo = undoing.undo(second, "ada", WHY)
    assert statuses() == {"f1": "open", "f2": "open", "f3": "open", "f4": "discarded"}
    assert undo.published.held == 3
    assert merges.stale_districts(YEAR) == []
    waiting = merges.gather("lincoln", YEAR).inputs.rulings.waiting
    assert [ruling.fingerprint for ruling in waiting] == ["f1"]  # until a person decides again, whatever its number
    detail = Operations(database).show(undo.operation_id)
    assert {what: len(ids) for what, ids in detail.holds.items()} == {"opened": 2, "closed": 1, "applied": 0}
    undoing.undo(undo.operation_id, "ada", "it was right")
    assert statuses() == {"f1": "applied", "f2": "discarded", "f3": "open", "f4": "open"}


def test_what_was_let_through_in_part_waits_again_in_its_parts_and_nobody_twice(database, merges, undoing):
    def publish_with(held: Hold) -> str:
        operation = merges.write_merged(merges.gather("lincoln", YEAR), merged_roster(held=[held]))
        publish(database, merges, operation)
        return operation.operation_id

    publish_with(replace(hold("f1", 1, 2, 3), parts=(Part(None, "no_show", 1), Part(None, "withdraw", 2))))
    [whole] = Holds(database).list()
    part = Holds(database).release(whole.hold_id, "ada", "they never came", change="no_show")
    rest = Holds(database).get(whole.hold_id)
    second = publish_with(replace(hold(rest.fingerprint, 2, 3), kept=rest.fingerprint))
    assert {one.hold_id: one.status for one in Holds(database).list()} == {
        part.hold_id: "applied", rest.hold_id: "open"
    }  # fmt: skip
    undoing.undo(second, "ada", WHY)
    waiting = {one.hold_id: one.rows for one in Holds(database).list(status="open")}
    assert waiting == {part.hold_id: part.rows, rest.hold_id: rest.rows}


def test_no_reason_and_what_is_no_operation_or_changed_nothing_are_refused(database, merges, undoing, two_days):
    for actor, reason in (("", WHY), ("ada", " ")):
        with pytest.raises(ConfigError, match="needs who undoes and why"):
            undoing.undo(two_days[1].operation_id, actor, reason)
    with pytest.raises(ConfigError, match="'the last' is no operation id"):
        undoing.plan("the last")
    with pytest.raises(ConfigError, match="There is no operation"):
        undoing.plan("00000000-0000-4000-8000-000000000000")
    assert count(database, "select count(*) from sis.sync_operations") == 2
    waiting = merges.gather("lincoln", YEAR).operation
    with pytest.raises(ConfigError, match="it is merging and changed nothing"):
        undoing.plan(waiting.operation_id)


def test_what_is_no_longer_kept_is_not_undone(database, undoing, two_days, tmp_path):
    first, second, _ = two_days
    shutil.rmtree(Path(tmp_path) / "data" / first.path)
    with pytest.raises(ConfigError, match=f"the merge of operation {first.operation_id}.* was deleted"):
        undoing.undo(second.operation_id, "ada", WHY)
    with database.begin() as connection:
        connection.execute(text("update sis.sync_operations set summary = summary - 'before'"))
    with pytest.raises(ConfigError, match="published by an earlier version"):
        undoing.undo(second.operation_id, "ada", WHY)


def test_an_undo_that_fails_changes_nothing_and_is_not_published_later(database, merges, undoing, two_days, tmp_path):
    _, second, _ = two_days
    as_it_was = state(database)
    (Path(tmp_path) / "data" / second.path / "before" / "students.parquet").write_bytes(b"altered")
    with pytest.raises(DataError, match="was changed after it was written"):
        undoing.undo(second.operation_id, "ada", WHY)
    assert state(database) == as_it_was
    assert merges.newest("lincoln", YEAR).operation_id == second.operation_id
    assert count(database, "select count(*) from sis.sync_operations where status = 'failed'") == 1


def test_an_undo_that_is_killed_changed_nothing_and_can_be_done_again(database, merges, undoing, two_days, tmp_path):
    _, second, before = two_days
    as_it_was = state(database)
    url, data = database.url.render_as_string(hide_password=False), str(tmp_path / "data")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, url, data, second.operation_id],
        env={**os.environ, "SIS_CRASH_AT": "undo.before_commit"},
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    assert state(database) == as_it_was
    assert merges.newest("lincoln", YEAR).operation_id == second.operation_id
    undoing.undo(second.operation_id, "ada", WHY)
    assert roster(database) == before
    assert count(database, "select count(*) from sis.audit_log where action = 'roster.undo'") == 1


def test_a_publication_in_between_is_never_overwritten(database, merges, undoing, two_days, monkeypatch):
    _, second, _ = two_days
    opened, newer = (
        merges.open,
        merges.write_merged(merges.gather("lincoln", YEAR), merged_roster(students=[student(1)])),
    )

    def overtaken(*arguments, **options):
        operation = opened(*arguments, **options)
        publish(database, merges, newer)
        return operation

    monkeypatch.setattr(merges, "open", overtaken)
    with pytest.raises(SupersededError, match="published meanwhile"):
        undoing.undo(second.operation_id, "ada", WHY)
    assert (
        count(database, "select count(*) from sis.sync_operations where undoes is not null and status = 'failed'") == 1
    )


def test_a_merge_on_top_of_what_was_undone_is_overtaken(database, snapshots, merges, undoing, two_days):
    _, second, before = two_days
    good_snapshot(snapshots, **delivery(*range(3)))
    late = merges.gather("lincoln", YEAR, as_of=DAY)
    undoing.undo(second.operation_id, "ada", WHY)
    with pytest.raises(SupersededError):
        publish(database, merges, merges.write_merged(late, merge_district(late.inputs)))
    assert roster(database) == before


def test_an_operation_is_told_in_depth(database, two_days):
    first, second, _ = two_days
    told, total = Operations(database).list("lincoln", YEAR, limit=1)
    assert ([it.operation_id for it in told], total) == ([second.operation_id], 2)
    detail = Operations(database).show(second.operation_id)
    assert detail.operation == told[0]
    assert set(detail.operation.applied) == set(MERGED)
    assert {(one.kind, one.school, one.events) for one in detail.ledger} == {
        ("enroll", "North", 2), ("withdraw", "North", 1), ("section_add", "North", 2), ("section_drop", "North", 2),
    }  # fmt: skip
    assert detail.operation.inputs["lincoln-ps"]["snapshot_id"] != first.inputs["lincoln-ps"]["snapshot_id"]
    assert Operations(database).list("franklin") == ([], 0)


def test_a_list_reads_the_history_once_however_many_it_tells_of(database, two_days):
    asked: list[str] = []

    def note(_connection, _cursor, statement: str, *_rest: object) -> None:
        asked.append(statement)

    event.listen(database, "before_cursor_execute", note)
    numbers = []
    for limit in (1, 2):
        asked.clear()
        assert len(Operations(database).list("lincoln", limit=limit)[0]) == limit
        numbers.append(len(asked))
    event.remove(database, "before_cursor_execute", note)
    assert numbers[0] == numbers[1]
    [history] = [one for one in asked if "base_epoch" in one and "LIMIT" not in one and "count(" not in one]
    assert "summary" not in history


def test_merges_that_were_overtaken_are_told_where_asked_for(database, merges, two_days):
    late, newer = (merges.gather("lincoln", YEAR) for _ in range(2))
    merges.write_merged(late, merged_roster())
    publish(database, merges, merges.write_merged(newer, merge_district(newer.inputs)))
    assert [it.epoch for it in Operations(database).list("lincoln")[0]] == [4, 2, 1]
    told = {it.epoch: it for it in Operations(database).list("lincoln", unpublished=True)[0]}
    assert (told[3].status, told[3].superseded_by, told[3].published_at) == (
        "superseded", newer.operation.operation_id, None,
    )  # fmt: skip


def edit_phone(database, phone: str, who: str = "First0") -> None:
    with database.begin() as connection:
        connection.execute(
            text("update sis.students set phone = :phone where first_name = :who"), {"phone": phone, "who": who}
        )


def phones(database) -> dict[str, str]:
    with database.connect() as connection:
        rows = connection.execute(text("select first_name, phone, email from sis.students"))
        return {row.first_name: (row.phone, row.email) for row in rows}


def test_what_was_edited_since_stays_and_is_merged(database, snapshots, merges, undoing):
    """Also beside a value of the same student that is put back, and through two undos one after the other."""
    Survivorship(database).set("lincoln", {"phone": "local_wins"}, actor="ada", reason="we know better")
    good_snapshot(snapshots, **delivery(0, 1))
    merge(database, merges)
    [before] = {row[1] for row in phones(database).values()}
    good_snapshot(snapshots, **delivery(0, 1, email="second@lincoln.example"))
    second = merge(database, merges)
    good_snapshot(snapshots, **delivery(0, 1, email="third@lincoln.example", phone="2015550100"))
    third = merge(database, merges)
    edit_phone(database, "5125550199")
    undoing.undo(third.operation_id, "ada", WHY)
    assert phones(database) == {
        "First0": ("5125550199", "second@lincoln.example"), "First1": (None, "second@lincoln.example"),
    }  # fmt: skip
    assert merges.stale_districts(YEAR) == ["lincoln"], "the edit is due"
    undoing.undo(second.operation_id, "ada", WHY)
    assert phones(database) == {"First0": ("5125550199", before), "First1": (None, before)}
    assert merges.stale_districts(YEAR) == ["lincoln"]
    merge(database, merges)
    assert phones(database)["First0"] == ("5125550199", before)
    assert merges.stale_districts(YEAR) == []


def test_what_the_operation_knew_of_edits_is_put_back_as_it_was(database, snapshots, merges, undoing):
    """An edit from before it, which it had overwritten, is in the table again and not due: the operation had judged it."""
    good_snapshot(snapshots, **delivery(0, phone="2015550100"))
    merge(database, merges)
    edit_phone(database, "5125550199")
    second = merge(database, merges)
    assert phones(database)["First0"][0] == "2015550100"
    undoing.undo(second.operation_id, "ada", WHY)
    assert phones(database)["First0"][0] == "5125550199"
    assert merges.stale_districts(YEAR) == []


def decide(what: str, database) -> None:
    by = {"actor": "ada", "reason": "called the family"}
    if what == "policy":
        Survivorship(database).set("lincoln", {"phone": "local_wins"}, **by)
    elif what == "guard":
        Guarding(database).set("lincoln", {"district_floor": 7}, **by)
    elif what == "school":
        Guarding(database).declare("close", "North", "lincoln", effective=date(2025, 1, 1), **by)
    elif what == "near match":
        people = Identities(database)
        people.confirm(people.near_matches(entity="student")[0].near_match_id, **by)
    elif what == "conflict":
        with database.connect() as connection:
            student_id = connection.scalar(text("select student_id from sis.conflicts where attribute = 'phone'"))
        Conflicts(database).decide(str(student_id), "phone", "lincoln-ic", **by)
    else:
        with database.begin() as connection:
            connection.execute(text("update sis.integrations set priority = 50 where key = 'lincoln-ic'"))


DECISIONS = ["policy", "guard", "school", "near match", "conflict", "priority"]


@pytest.fixture
def conflicting(database, snapshots, merges, once):
    """Two systems that say otherwise, one of a student who may be another; and the operation after the first."""
    return once("conflicting", lambda: _conflicting(database, snapshots, merges))


def _conflicting(database, snapshots, merges):
    add_integration(database, "lincoln-ic", priority=200)
    other = delivery(0, 1, phone="2015550102")
    other["students"][1] |= {"ssid": None, "ssid_issuer": None, "grade_level": None}  # may be First1: a near match
    good_snapshot(snapshots, **delivery(0, 1, phone="2015550101"))
    good_snapshot(snapshots, "lincoln-ic", **other)
    merge(database, merges)
    good_snapshot(snapshots, **delivery(0, 1, phone="2015550101", email="second@lincoln.example"))
    return merge(database, merges)


@pytest.mark.parametrize("what", DECISIONS)
def test_what_was_decided_since_is_due_after_an_undo(database, merges, undoing, conflicting, what):
    decide(what, database)
    undoing.undo(conflicting.operation_id, "ada", WHY)
    assert merges.stale_districts(YEAR) == ["lincoln"], "no merge has applied it yet"


def test_what_a_merge_had_applied_is_not_due_after_its_undo(database, merges, undoing, conflicting):
    assert merges.stale_districts(YEAR) == []
    for what in DECISIONS:
        decide(what, database)
    undo = undoing.undo(conflicting.operation_id, "ada", WHY)
    undoing.undo(undo.operation_id, "ada", "it was right")
    assert merges.stale_districts(YEAR) == ["lincoln"], "an undo that is undone has applied nothing either"
    applied = merge(database, merges)
    assert merges.stale_districts(YEAR) == []
    undoing.undo(applied.operation_id, "ada", WHY)
    assert merges.stale_districts(YEAR) == [], "it is applied again when something else asks for a merge"


def test_a_stale_conflict_that_was_given_up_by_age_does_not_come_back(database, snapshots, merges, undoing):
    add_integration(database, "lincoln-ic", priority=200)
    agreed = delivery(0, 1, phone="2015550101")
    good_snapshot(snapshots, **agreed)
    good_snapshot(snapshots, "lincoln-ic", **delivery(0, 1, phone="2015550102"))
    merge(database, merges)
    good_snapshot(snapshots, "lincoln-ic", **agreed)
    merge(database, merges)
    good_snapshot(snapshots, "lincoln-ic", **delivery(1, phone="2015550103"))
    last = merge(database, merges)
    query = text("select attribute, status, student_id, changed_at from sis.conflicts order by status")
    with database.begin() as connection:
        auto, stale = connection.execute(query)
        assert (auto[:2], stale[:2]) == (("phone", "auto"), ("phone", "stale"))
        connection.execute(text("update sis.conflicts set changed_at = now() - interval '100 days'"))
    assert Retention(database, snapshots, Settings()).conflicts() == {"deleted": 1}
    undoing.undo(last.operation_id, "ada", WHY)
    with database.connect() as connection:
        assert [row[:3] for row in connection.execute(query)] == [("phone", "stale", auto.student_id)]


def of_day(database, snapshots, merges, day: int, *who: int, verdict: str = "complete", **values: object):
    taken = good_snapshot(snapshots, verdict=verdict, **delivery(*who, **values))
    day_of_snapshot(database, taken, DAY + timedelta(day))
    return merge(database, merges)


def held_and_active(database) -> tuple[list[tuple], int]:
    found = [
        (one.status, len(one.rows), one.removals["removals"], sum(part.removals for part in one.parts))
        for one in Holds(database).list("lincoln")
        if one.removals["entity"] == "enrollments"
    ]
    return sorted(found), count(database, "select count(*) from sis.enrollments where status = 'active'")


def enrollment_holds(database, status: str = "open"):
    return [one for one in Holds(database).list("lincoln", status) if one.removals["entity"] == "enrollments"]


@pytest.mark.parametrize("back", [range(2, 9), range(9)], ids=["some are back", "all are back"])
def test_whom_a_person_keeps_is_kept_again_after_an_undo(database, snapshots, merges, undoing, back):
    """However many of them the undone operation had found back; and the undo of the undo takes that back."""
    of_day(database, snapshots, merges, -9, *range(9))
    of_day(database, snapshots, merges, -8, *range(4, 9))
    for one in Holds(database).list("lincoln"):
        Holds(database).discard(one.hold_id, "ada", "they are at camp")
    kept = held_and_active(database)
    assert kept == ([("discarded", 4, 4, 4)], 9)
    wrong = of_day(database, snapshots, merges, -7, *back)
    found_back = held_and_active(database)
    undo = undoing.undo(wrong.operation_id, "ada", WHY)
    assert held_and_active(database) == kept
    undoing.undo(undo.operation_id, "ada", "it was right")
    assert held_and_active(database) == found_back
    undoing.undo(wrong.operation_id, "ada", WHY)
    of_day(database, snapshots, merges, -6, 3, *range(4, 9), email="new@lincoln.example")
    assert held_and_active(database) == ([("discarded", 3, 3, 3)], 9), (
        "three are below the limits, and kept all the same"
    )
    assert count(database, "select count(*) from sis.enrollment_changes where evidence = 'absence'") == 0


def test_the_rest_of_a_hold_released_in_part_is_given_back_and_asked_about_where_it_was_decided_since(
    database, snapshots, merges, undoing
):
    add_integration(database, "lincoln-ic")
    of_day(database, snapshots, merges, -9, *range(9))
    of_day(database, snapshots, merges, -8, *range(4, 9))
    for one in Holds(database).list("lincoln"):
        Holds(database).discard(one.hold_id, "ada", "they are at camp")
    merge(database, merges)
    wrong = of_day(database, snapshots, merges, -7, *range(2, 9))
    [hold_of_two] = enrollment_holds(database, "discarded")
    Holds(database).release(hold_of_two.hold_id, "bo", "these two have moved")
    undone = undoing.undo(wrong.operation_id, "ada", WHY)
    [again] = enrollment_holds(database)
    assert (again.hold_id, len(again.rows), again.decided_by) == (hold_of_two.hold_id, 4, None)
    assert again.hold_id in Operations(database).show(undone.operation_id).holds["opened"]
    of_day(database, snapshots, merges, -6, *range(4, 9), email="new@lincoln.example")
    assert held_and_active(database) == ([("open", 4, 4, 4)], 9)
