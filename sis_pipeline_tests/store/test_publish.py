"""A publication is all or nothing, never over a newer one, and writes only what differs."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from sis_pipeline.connect.errors import DataError, InternalError
from sis_pipeline.roster.model import MERGED
from sis_pipeline.store.bulk import Applied
from sis_pipeline.store.holds import Holds
from sis_pipeline.store.publish import SupersededError, publish
from sis_pipeline_tests.store.conftest import (
    YEAR,
    add_integration,
    change,
    count,
    enrollment,
    good_snapshot,
    hold,
    merged_roster,
    student,
    uid,
)

CHILD = """
import sys
from sqlalchemy.engine import make_url
from sis_pipeline.db.engine import engine_for
from sis_pipeline.store.merged import MergeStore
from sis_pipeline.store.publish import publish
from sis_pipeline.store.snapshots import SnapshotStore
engine = engine_for(make_url(sys.argv[1]))
store = MergeStore(engine, SnapshotStore(engine, sys.argv[2]))
publish(engine, store, store.get(sys.argv[3]))
"""

PUBLICATIONS = "sis.audit_log where action not like 'sync.%'"


def merge(merges, year=YEAR, district="lincoln", **rows):
    gathered = merges.gather(district, year)
    return merges.write_merged(gathered, merged_roster(**rows))


def roster(version: str, size: int = 20) -> dict[str, list[dict]]:
    """A whole roster in which every row of every table says which version it is of."""
    return {
        "students": [student(n, last_name=version) for n in range(size)],
        "enrollments": [enrollment(n, entry_code=version) for n in range(size)],
    }


def state(database) -> dict[str, list[tuple]]:
    """The content of every published table, stamps left out."""
    with database.connect() as connection:
        return {
            name: sorted(map(str, connection.execute(text(f"select {', '.join(table.names)} from sis.{name}"))))
            for name, table in MERGED.items()
        }


def test_a_publication_says_what_it_did(database, merges):
    gathered = merges.gather("lincoln", YEAR)
    ledger = [change(n, "enroll", gathered.operation.operation_id) for n in range(3)]
    merged = merged_roster(
        students=[student(n) for n in range(3)],
        enrollments=[enrollment(n) for n in range(3)],
        enrollment_changes=ledger,
        held=[hold("f1", 7, 8)],
    )
    operation = merges.write_merged(gathered, merged)
    done = publish(database, merges, operation, actor="ada")
    assert done.applied["students"] == Applied(inserted=3)
    assert (done.changes, done.held, done.unchanged, done.written) == ({"enroll": 3}, 2, False, 9)
    published = merges.get(operation.operation_id)
    assert published.status == "published"
    assert published.summary["applied"]["enrollments"] == {"inserted": 3, "updated": 0, "deleted": 0, "unchanged": 0}
    assert (published.summary["changes"], published.summary["held"], published.summary["students"]) == (
        {"enroll": 3},
        2,
        3,
    )
    with database.connect() as connection:
        entries = connection.execute(text(f"select action, actor, details from {PUBLICATIONS} order by entry")).all()
    assert [(one.action, one.actor) for one in entries] == [("roster.publish", "ada"), ("hold.opened", "ada")]
    assert (entries[0].details["written"], entries[0].details["changes"]) == (9, {"enroll": 3})
    assert entries[1].details == {"operation_id": operation.operation_id, "removals": 2}
    assert (
        count(database, f"select count(*) from sis.audit_links where jsonb_array_length(entries) = {len(entries)}") == 1
    )
    assert publish(database, merges, operation) == done
    assert count(database, f"select count(*) from {PUBLICATIONS}") == 2


def test_publishing_the_same_content_again_writes_no_row(database, merges):
    publish(database, merges, merge(merges, **roster("one")))
    with database.connect() as connection:
        query = text(
            "select xmin::text, xmax::text, changed_at from sis.students union all select xmin::text, xmax::text, changed_at from sis.enrollments order by 3"
        )
        before = connection.execute(query).all()
    again = publish(database, merges, merge(merges, **roster("one")))
    assert again.unchanged
    assert again.applied["students"] == Applied(unchanged=20)
    with database.connect() as connection:
        assert connection.execute(query).all() == before


def test_only_differing_rows_are_touched_and_absent_ones_go_by_their_tables_scope(database, merges):
    publish(database, merges, merge(merges, **roster("one", 5)))
    changed = roster("one", 4)
    changed["students"][0]["last_name"] = changed["enrollments"][0]["entry_code"] = "two"
    done = publish(database, merges, merge(merges, **changed))
    assert done.applied["students"] == Applied(updated=1, unchanged=3)  # a person of another year stays
    assert done.applied["enrollments"] == Applied(updated=1, deleted=1, unchanged=3)
    assert count(database, "select count(*) from sis.students") == 5


def test_retired_students_and_staff_go(database, merges):
    person = {"district": "lincoln", "staff_id": uid("staff"), "first_name": "A", "last_name": "B", "role": "teacher",
              "near_match": False}  # fmt: skip
    publish(database, merges, merge(merges, students=[student(1), student(2)], staff=[person]))
    gathered = merges.gather("lincoln", YEAR)
    merged = merged_roster(students=[student(1)], retired={uid("student", 2): uid("student", 1)})
    object.__setattr__(merged, "retired_staff", {uid("staff"): uid("other")})
    done = publish(database, merges, merges.write_merged(gathered, merged))
    assert (done.applied["students"], done.applied["staff"]) == (Applied(deleted=1, unchanged=1), Applied(deleted=1))
    assert count(database, "select count(*) from sis.students") == 1


def test_the_ledger_is_only_appended_to(database, merges):
    first = merge(merges, enrollment_changes=[change(1, "enroll", uid("op"))])
    publish(database, merges, first)
    gathered = merges.gather("lincoln", YEAR)
    operation_id = gathered.operation.operation_id
    again = merged_roster(enrollment_changes=[change(1, "enroll", operation_id), change(1, "withdraw", operation_id)])
    done = publish(database, merges, merges.write_merged(gathered, again))
    assert done.changes == {"withdraw": 1}
    assert done.applied["enrollment_changes"] == Applied(inserted=1, unchanged=1)


def test_a_late_merge_never_overwrites_a_newer_one(database, merges):
    late, newer = merge(merges, **roster("late")), merge(merges, **roster("newer"))
    publish(database, merges, newer)
    before = state(database)
    with pytest.raises(SupersededError, match=f"another merge was published since, for {YEAR}"):
        publish(database, merges, late)
    assert state(database) == before
    assert merges.get(late.operation_id).status == "superseded"
    assert merges.get(late.operation_id).summary["superseded"] == f"another merge was published since, for {YEAR}"
    with pytest.raises(SupersededError):
        publish(database, merges, late)
    publish(database, merges, merge(merges, **roster("late")))  # merged again, it is the newest


def test_an_older_epoch_may_be_published_while_nothing_newer_is(database, merges):
    older = merge(merges, **roster("older"))
    merge(merges, **roster("abandoned"))
    assert publish(database, merges, older).written == 40


def test_another_school_year_of_the_district_counts_as_newer(database, snapshots, merges):
    """Persons and links are shared by all years: a merge that did not see them would make the same students again."""
    writer = snapshots.begin("lincoln-ps", "powerschool", "2024-2025")
    snapshot = writer.finish([], "partial", 0, 0.0)
    snapshots.write_roster(snapshot, {}, {}, {})
    snapshots.set_verdict(snapshot.snapshot_id, "partial")
    this, earlier = merge(merges), merge(merges, "2024-2025")
    publish(database, merges, earlier)
    with pytest.raises(SupersededError, match="another merge was published since, for 2024-2025"):
        publish(database, merges, this)


def test_a_merge_that_is_not_finished_is_not_published(database, merges):
    gathered = merges.gather("lincoln", YEAR)
    operation = merges.write_merged(gathered, merged_roster())
    with database.begin() as connection:
        connection.execute(text("update sis.sync_operations set status = 'failed'"))
    with pytest.raises(InternalError, match="is failed; only a merged one is published"):
        publish(database, merges, operation)


def test_a_failure_in_the_middle_leaves_everything_as_it_was(database, merges):
    publish(database, merges, merge(merges, **roster("one")))
    before = state(database)
    bad = merge(merges, **{**roster("two"), "enrollments": [enrollment(1, integration=None)]})
    with pytest.raises(DataError, match="column integration: NotNullViolation"):
        publish(database, merges, bad)
    assert state(database) == before
    assert merges.get(bad.operation_id).status == "merged"


def test_a_publication_killed_before_its_commit_leaves_the_old_state_and_a_rerun_completes(
    database, database_url, merges, tmp_path
):
    publish(database, merges, merge(merges, **roster("one")))
    before = state(database)
    gathered = merges.gather("lincoln", YEAR)
    ledger = [change(n, "grade_change", gathered.operation.operation_id) for n in range(4)]
    operation = merges.write_merged(
        gathered, merged_roster(**roster("two"), enrollment_changes=ledger, held=[hold("f1", 7)])
    )
    with database.connect() as gate:
        # The audit row is written after all others: whoever publishes stops right there.
        gate.execute(text("lock table sis.audit_log in exclusive mode"))
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                CHILD,
                database_url.render_as_string(hide_password=False),
                str(tmp_path / "data"),
                operation.operation_id,
            ]
        )
        _until_blocked(database, child)
        assert state(database) == before
        child.send_signal(signal.SIGKILL)
        assert child.wait(10) == -signal.SIGKILL
    assert state(database) == before
    assert merges.get(operation.operation_id).status == "merged"
    assert count(database, "select count(*) from sis.holds") == 0
    done = publish(database, merges, operation)
    assert done.applied["students"] == Applied(updated=20)
    assert done.changes == {"grade_change": 4}
    assert state(database) != before
    assert count(database, f"select count(*) from {PUBLICATIONS} and action = 'roster.publish'") == 2


def _until_blocked(database, child) -> None:
    """Poll until the child waits at the audit log; by then it has written to students, enrollments and the ledger."""
    waiting = text("select pid from pg_locks where relation = 'sis.audit_log'::regclass and not granted")
    wrote = text(
        "select count(*) from pg_locks where pid = :pid and mode = 'RowExclusiveLock' and granted and relation in "
        "('sis.students'::regclass, 'sis.enrollments'::regclass, 'sis.enrollment_changes'::regclass)"
    )
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while (pid := connection.scalar(waiting)) is None:
            assert child.poll() is None, "the child ended before it could be killed"
        assert connection.scalar(wrote, {"pid": pid}) == 3


def test_publications_of_one_district_go_one_after_the_other(database, merges):
    operations = [merge(merges, **roster(str(n))) for n in range(4)]

    def attempt(operation):
        try:
            return publish(database, merges, operation).written
        except SupersededError:
            return None

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(attempt, operations))
    assert sorted(results, key=str) == [40, None, None, None]
    won = str(results.index(40))
    assert count(database, f"select count(*) from sis.students where last_name = '{won}'") == 20
    assert count(database, f"select count(*) from sis.enrollments where entry_code = '{won}'") == 20


def test_districts_do_not_wait_for_each_other(database, snapshots, merges):
    add_integration(database, "washington-ps", district="washington")
    good_snapshot(snapshots, "washington-ps")
    operation = merge(merges, district="washington", students=[student(1, district="washington")])
    other = merge(merges)
    with database.begin() as connection:
        from sis_pipeline.store.locks import lock_district

        lock_district(connection, "lincoln")
        assert publish(database, merges, operation).written == 1
    publish(database, merges, other)


def test_readers_see_the_old_state_or_the_new_one(database, merges):
    publish(database, merges, merge(merges, **roster("v0", 200)))
    stop, seen = threading.Event(), []

    def poll() -> None:
        """One statement sees one point in time."""
        query = text(
            "select array_agg(distinct v), count(*) from (select last_name v from sis.students "
            "union all select entry_code from sis.enrollments) everything"
        )
        with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not stop.is_set():
                seen.append(tuple(connection.execute(query).one()))

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        for version in range(1, 6):
            publish(database, merges, merge(merges, **roster(f"v{version}", 200)))
    finally:
        stop.set()
        reader.join()
    assert {(len(versions), rows) for versions, rows in seen} == {(1, 400)}
    assert len({tuple(versions) for versions, _ in seen}) > 2


def test_holds_open_close_reopen_and_apply(database, merges):
    holds = Holds(database)

    def publish_with(*held):
        publish(database, merges, merge(merges, held=list(held)))
        return {one.fingerprint: one.status for one in holds.list()}

    assert publish_with(hold("f1", 1, 2, 3), hold("f2", 4)) == {"f1": "open", "f2": "open"}
    assert publish_with(hold("f1", 1, 2, 3)) == {"f1": "open", "f2": "discarded"}
    [closed] = holds.list(status="discarded")
    assert (closed.decided_by, closed.decided_reason) == ("sis_pipeline", "these removals are no longer pending")
    assert publish_with(hold("f1", 1, 2, 3), hold("f2", 4)) == {"f1": "open", "f2": "open"}
    first, second = sorted(holds.list(status="open"), key=lambda one: one.fingerprint)
    holds.release(first.hold_id, "ada", "the school closed")
    holds.discard(second.hold_id, "ada", "a mistake of the SIS")
    assert publish_with(hold("f2", 4)) == {"f1": "applied", "f2": "discarded"}  # it is not asked again
    assert publish_with(hold("f1", 1, 2, 3), hold("f2", 4)) == {"f1": "open", "f2": "discarded"}


def test_a_hold_taken_back_stops_the_merge_that_lets_it_through(database, merges):
    publish(database, merges, merge(merges, held=[hold("f1", 1)]))
    [held] = Holds(database).list()
    Holds(database).release(held.hold_id, "ada", "they moved")
    operation = merge(merges)
    Holds(database).discard(held.hold_id, "bo", "they did not")
    with pytest.raises(SupersededError, match="no longer released"):
        publish(database, merges, operation)
    assert Holds(database).get(held.hold_id).status == "discarded"
