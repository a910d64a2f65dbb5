"""A bulk withdrawal is kept with who and why, done by the next merge, and taken back by a person, not by a sync."""

from __future__ import annotations

from datetime import date

import pytest
from sqlalchemy import text

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db import audit
from sis_pipeline.roster.district import merge_district
from sis_pipeline.store.erasure import Erasing
from sis_pipeline.store.publish import publish
from sis_pipeline.store.undo import Undoing
from sis_pipeline.store.withdrawals import Withdrawals
from sis_pipeline_tests.store.conftest import YEAR, count, good_snapshot, uid
from sis_pipeline_tests.store.test_roundtrip import day_of_snapshot, delivery

ENDS = date(2025, 9, 30)
BY = {"actor": "ada", "reason": "the school burned down"}
OPEN = "select count(*) from sis.enrollments where status = 'active'"


@pytest.fixture
def store(database) -> Withdrawals:
    return Withdrawals(database)


@pytest.fixture
def sync(database, snapshots, merges):
    """Six students, read and published; again, only merged."""
    day_of_snapshot(database, good_snapshot(snapshots, **delivery(*range(6))), date(2025, 10, 1))

    def merge():
        gathered = merges.gather("lincoln", YEAR, as_of=date(2025, 10, 1))
        return publish(database, merges, merges.write_merged(gathered, merge_district(gathered.inputs)))

    merge()
    return merge


def rows(database, query: str) -> list[tuple]:
    with database.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def test_a_plan_says_whom_and_keeps_nothing(database, store, sync):
    plan = store.plan("lincoln", "101", ENDS)
    assert (plan.enrollments, plan.statuses, plan.grades, len(plan.students), plan.elsewhere) == (
        6, {"active": 6}, {"07": 6}, 6, 0,
    )  # fmt: skip
    assert (plan.school, plan.school_year) == ("North", YEAR)
    assert store.list("lincoln") == []
    assert sync().unchanged


def test_a_school_is_withdrawn_by_the_next_merge_and_stays_so(database, snapshots, merges, store, sync):
    assert merges.stale_districts(YEAR) == []
    done, plan = store.withdraw("lincoln", "North", ENDS, code="W9", **BY)
    assert (done.enrollments, done.school, done.withdrawn_by, plan.enrollments) == (6, "North", "ada", 6)
    assert (merges.stale_districts(YEAR), count(database, OPEN)) == (["lincoln"], 6)
    published = sync()
    assert (published.changes["withdraw"], published.held, count(database, OPEN)) == (6, 0, 0)
    evidence = "select distinct evidence, effective_date from sis.enrollment_changes where kind = 'withdraw'"
    assert rows(database, evidence) == [(f"withdrawal:{done.withdrawal_id}", ENDS)]
    assert rows(database, "select distinct exit_date, exit_code, status from sis.enrollments") == [
        (ENDS, "W9", "withdrawn")
    ]
    assert merges.stale_districts(YEAR) == []
    good_snapshot(snapshots, **delivery(*range(6), email="new@lincoln.example"))
    sync()
    assert count(database, OPEN) == 0, "a sync brings nobody back"
    with database.connect() as connection:
        [entry] = audit.read(connection, action="enrollments.withdraw")
    assert (entry["actor"], entry["subject"], entry["details"]["reason"]) == ("ada", done.withdrawal_id, BY["reason"])
    assert entry["details"]["enrollments"] == 6


def test_it_is_taken_back_by_a_person(database, merges, store, sync):
    done, _ = store.withdraw("lincoln", "101", ENDS, **BY)
    sync()
    back = store.take_back(done.withdrawal_id, actor="bo", reason="it was the other school")
    assert (back.taken_back_by, back.taken_back_at is not None) == ("bo", True)
    assert merges.stale_districts(YEAR) == ["lincoln"]
    assert (sync().changes["re_enter"], count(database, OPEN)) == (6, 6)
    with pytest.raises(ConfigError, match="taken back already"):
        store.take_back(done.withdrawal_id, actor="bo", reason="again")
    with database.connect() as connection:
        [entry] = audit.read(connection, action="enrollments.reinstate")
    assert (entry["actor"], entry["details"]["reason"]) == ("bo", "it was the other school")


def test_its_publication_is_undone_and_the_word_stands(database, merges, store, sync):
    store.withdraw("lincoln", "101", ENDS, **BY)
    operation = sync().operation_id
    Undoing(database, merges).undo(operation, "bo", "too early")
    assert (count(database, OPEN), merges.stale_districts(YEAR)) == (6, [])
    assert store.list("lincoln")[0].taken_back_at is None
    sync()
    assert count(database, OPEN) == 0, "what a person decided is applied by the next merge; it is taken back by its id"


def test_an_erased_student_is_in_no_withdrawal(database, merges, store, sync, vault):
    store.withdraw("lincoln", "101", ENDS, **BY)
    sync()
    who = rows(database, "select student_id::text from sis.students limit 1")[0][0]
    Erasing(database, merges.files, lambda: vault).erase(who, "ada", "the family asked", force=True)
    assert store.list("lincoln")[0].enrollments == 5


@pytest.mark.parametrize(
    ("school", "effective", "why"),
    [
        ("Nowhere", ENDS, "no published school"),
        ("101", date(2999, 1, 1), "still to come"),
        ("101", date(2024, 9, 30), "Nobody is enrolled at North in 2024-2025"),
    ],
)
@pytest.mark.usefixtures("sync")
def test_what_can_not_be_withdrawn_is_refused_in_words(store, school, effective, why):
    with pytest.raises(ConfigError, match=why):
        store.withdraw("lincoln", school, effective, **BY)
    assert store.list("lincoln") == []


def test_a_reason_and_a_known_withdrawal_are_asked_for(store):
    with pytest.raises(ConfigError, match="needs who withdraws and why"):
        store.withdraw("lincoln", "101", ENDS, actor="ada", reason=" ")
    with pytest.raises(ConfigError, match="needs who withdraws and why"):
        store.take_back(uid("nothing"), actor=" ", reason="why")
    with pytest.raises(ConfigError, match="There is no withdrawal"):
        store.take_back(uid("nothing"), **BY)
