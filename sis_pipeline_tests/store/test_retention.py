"""What is old and needed by nobody goes, rows and files; what a merge, a delta or an undo may still need never does."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from sis_pipeline.connect.errors import ConfigError, DataError
from sis_pipeline.db.tables import holds, roster_tables
from sis_pipeline.db.tables import snapshots as snapshot_rows
from sis_pipeline.roster.district import merge_district
from sis_pipeline.settings import Settings
from sis_pipeline.store import retention
from sis_pipeline.store.files import DataFolder
from sis_pipeline.store.locks import integration_lock
from sis_pipeline.store.operations import Operations
from sis_pipeline.store.publish import publish
from sis_pipeline.store.retention import Retention
from sis_pipeline.store.snapshots import Snapshot
from sis_pipeline.store.undo import Undoing
from sis_pipeline_tests.store.conftest import YEAR, count, good_snapshot, sis_student, uid
from sis_pipeline_tests.store.test_publish import state

LAYERS = ("raw", "roster", "quarantine")
WHY = "the extract was of another year"


@pytest.fixture
def old(database, snapshots) -> Retention:
    return Retention(database, snapshots, Settings())


def age(database: Engine, days: float, table: str = "snapshots", where: str = "true", **values: object) -> None:
    """What time alone would do."""
    columns = {"snapshots": ("started_at", "finished_at"), "sync_operations": ("started_at", "finished_at"),
               "holds": ("opened_at", "decided_at"), "conflict_decisions": ("decided_at",), "conflicts": ("changed_at",)}[table]  # fmt: skip
    moved = ", ".join(f"{column} = {column} - make_interval(secs => :seconds)" for column in columns)
    with database.begin() as connection:
        query = text(f"update sis.{table} set {moved} where {where}")
        assert connection.execute(query, {"seconds": days * 86_400, **values}).rowcount


def aged(database: Engine, snapshot: Snapshot, days: float) -> Snapshot:
    age(database, days, where="snapshot_id = :id", id=snapshot.snapshot_id)
    return snapshot


def there(store, found: Iterable[Snapshot], layer: str) -> list[bool]:
    return [bool(store.files.names(one.folder(layer))) for one in found]


def merge(database, merges, *numbers: int):
    good_snapshot(merges._snapshots, students=[sis_student(str(number)) for number in numbers])
    gathered = merges.gather("lincoln", YEAR, as_of=date(2025, 10, 1))
    operation = merges.write_merged(gathered, merge_district(gathered.inputs))
    publish(database, merges, operation)
    return merges.get(operation.operation_id)


class TestSnapshots:
    def test_each_layer_goes_after_its_time_but_for_the_newest(self, database, snapshots, old):
        young, middle, ancient = (aged(database, good_snapshot(snapshots), days) for days in (3, 40, 400))
        last = good_snapshot(snapshots)
        before = there(snapshots, (young, middle, ancient, last), "raw")
        assert old.snapshots(dry_run=True) == {"raw": 2, "roster": 1, "quarantine": 1, "reasons": 0, "folders": 3}
        assert there(snapshots, (young, middle, ancient, last), "raw") == before == [True] * 4
        assert old.snapshots() == {"raw": 2, "roster": 1, "quarantine": 1, "reasons": 0, "folders": 3}
        assert there(snapshots, (young, middle, ancient, last), "raw") == [True, False, False, True]
        assert there(snapshots, (young, middle, ancient, last), "roster") == [True, True, False, True]
        assert old.snapshots() == {"raw": 0, "roster": 0, "quarantine": 0, "reasons": 0, "folders": 0}
        with database.connect() as connection:
            told = connection.execute(
                text("select subject, details from sis.audit_log where action ~ 'retention'")
            ).all()
        assert [(one.subject, one.details["raw"]) for one in told] == [("snapshots", 2)]

    def test_who_reads_what_is_gone_is_told_so(self, database, snapshots, old):
        gone = aged(database, good_snapshot(snapshots), 400)
        good_snapshot(snapshots)
        old.snapshots()
        with pytest.raises(DataError, match=r"raw pages of snapshot .* no longer kept") as refused:
            snapshots.open_raw(gone.snapshot_id)
        assert refused.value.code == "data.expired"
        with pytest.raises(DataError, match=r"standard frames of snapshot .* no longer kept"):
            snapshots.read_roster(snapshots.get(gone.snapshot_id), "students")

    def test_rejected_rows_go_with_their_reasons(self, database, snapshots, old):
        gone = aged(database, good_snapshot(snapshots), 400)
        good_snapshot(snapshots)
        with database.begin() as connection:
            connection.execute(
                text("""insert into sis.quarantine (integration, snapshot_id, entity, row, "column", reason, school_year)
                     values ('lincoln-ps', :id, 'students', 1, 'ssid', 'bad', :year)"""),
                {"id": gone.snapshot_id, "year": YEAR},
            )
        snapshots.files.write(f"{gone.folder('quarantine')}/students.parquet", b"rows")
        assert old.snapshots()["reasons"] == 1
        assert count(database, "select count(*) from sis.quarantine") == 0
        assert there(snapshots, [gone], "quarantine") == [False]

    def test_an_integration_that_is_being_read_is_left_for_the_next_time(self, database, snapshots, old):
        aged(database, good_snapshot(snapshots), 400)
        good_snapshot(snapshots)
        with integration_lock(database, "lincoln-ps", YEAR):
            assert old.snapshots()["raw"] == 0
        assert old.snapshots()["raw"] == 1

    def test_a_kill_after_the_marks_leaves_files_for_the_next_time(self, database, snapshots, old, monkeypatch):
        one, other = (aged(database, good_snapshot(snapshots), days) for days in (300, 400))
        good_snapshot(snapshots)
        monkeypatch.setattr(retention, "crash_point", _die_at("retention.folder_gone"))
        with pytest.raises(KeyboardInterrupt):
            old.snapshots()
        assert sorted(there(snapshots, (one, other), "raw")) == [False, True]
        monkeypatch.undo()
        assert old.snapshots() == {"raw": 0, "roster": 0, "quarantine": 0, "reasons": 0, "folders": 3}
        assert [there(snapshots, (one, other), layer) for layer in LAYERS] == [[False] * 2] * 3


def _die_at(point: str):
    def crash(name: str) -> None:
        if name == point:
            raise KeyboardInterrupt

    return crash


READING = st.tuples(
    st.sampled_from(["complete", "partial", "delta", "rejected", "abandoned"]), st.integers(1, 40), st.booleans()
)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(readings=st.lists(READING, min_size=1, max_size=8))
def test_the_newest_of_every_sort_stays_with_what_it_is_laid_over(database, snapshots, readings):
    """`readings`: verdict, days since the one before, whether something may be laid over it."""
    with database.begin() as connection:
        connection.execute(snapshot_rows.delete())
    rows, days = [], 0
    for verdict, more, builds in reversed(readings):
        days += more
        rows.insert(0, {"verdict": verdict, "days": days, "builds": builds, "id": str(uuid.uuid4()), "base": None})
    head = None
    for row in rows:
        if row["verdict"] == "delta":
            row["base"] = head
        if row["builds"] and row["verdict"] in {"complete", "delta"}:
            head = row["id"]
    for row in rows:
        _insert(database, row)
    needed = _needed(rows)
    old = {row["id"] for row in rows if row["days"] >= 30}
    Retention(database, snapshots, Settings()).snapshots()
    with database.connect() as connection:
        marked = set(
            connection.scalars(text("select snapshot_id::text from sis.snapshots where raw_expired_at is not null"))
        )
    assert marked == old - needed


def _insert(database: Engine, row: dict) -> None:
    abandoned = row["verdict"] == "abandoned"
    with database.begin() as connection:
        now = connection.scalar(text("select sis.clock()"))
        then = now - timedelta(days=row["days"], seconds=1)
        connection.execute(
            snapshot_rows.insert().values(
                integration="lincoln-ps", school_year=YEAR, snapshot_id=row["id"], provider="powerschool", path="raw/x",
                completeness=None if abandoned else "complete", verdict="rejected" if abandoned else row["verdict"],
                base_snapshot_id=row["base"], watermark=then if row["builds"] else None, started_at=then, finished_at=then,
            )
        )  # fmt: skip


def _needed(rows: list[dict]) -> set[str]:
    """The slow and obvious way."""

    def newest(*verdicts: str, builds: bool = False) -> list[str]:
        fit = [row for row in rows if row["verdict"] in verdicts and (row["builds"] or not builds)]
        return [one["id"] for one in fit if one["days"] == min(it["days"] for it in fit)]

    wanted = [
        *newest("complete"),
        *newest("complete", "partial", "delta"),
        *newest("complete", "partial", "delta", "rejected"),
        *newest("complete", "delta", builds=True),
    ]
    bases = {row["id"]: row["base"] for row in rows}
    found = set()
    while wanted:
        one = wanted.pop()
        found.add(one)
        wanted += [bases[one]] if bases[one] else []
    return found


class TestMerges:
    def test_what_can_be_undone_is_kept_with_what_it_goes_back_to(self, database, merges, old):
        first, second = merge(database, merges, 7), merge(database, merges, 7, 8)
        before = state(database)["students"]
        third = merge(database, merges, 7, 8, 9)
        age(database, 400)
        age(database, 400, "sync_operations", "epoch < 3")
        assert old.merges(dry_run=True) == {"operations": 1, "folders": 1}
        assert old.merges() == {"operations": 1, "folders": 1}
        old.snapshots()
        assert [bool(merges.files.names(one.path)) for one in (first, second, third)] == [False, True, True]
        undoing = Undoing(database, merges)
        undoing.undo(third.operation_id, "ada", WHY)
        assert state(database)["students"] == before
        gathered = merges.gather("lincoln", YEAR)  # of the snapshot from before, whose frames are kept for that
        used, then = gathered.operation.inputs["lincoln-ps"], second.inputs["lincoln-ps"]
        assert used["snapshot_id"] == then["snapshot_id"]
        with pytest.raises(ConfigError, match=f"operation {first.operation_id}.* was deleted") as refused:
            undoing.undo(second.operation_id, "ada", WHY)
        assert "older than SIS_UNDO_DAYS" in refused.value.advice

    def test_the_last_publication_stays_for_the_next_to_be_undone(self, database, merges, old):
        first, second = merge(database, merges, 7), merge(database, merges, 7, 8)
        age(database, 400, "sync_operations")
        assert old.merges() == {"operations": 1, "folders": 1}
        before = state(database)["students"]
        third = merge(database, merges, 7, 8, 9)
        assert not merges.files.names(first.path)
        Undoing(database, merges).undo(third.operation_id, "ada", WHY)
        assert state(database)["students"] == before
        assert merges.kept(merges.get(second.operation_id))

    def test_a_merge_under_way_and_one_whose_hold_waits_stay(self, database, merges, old):
        held = merge(database, merges, 7)
        merge(database, merges, 7, 8)
        merge(database, merges, 7, 8, 9)
        waiting = merges.gather("lincoln", YEAR).operation
        with database.begin() as connection:
            connection.execute(holds.insert().values(**_hold("f", "open", held.operation_id)))
        age(database, 400, "sync_operations")
        assert old.merges()["operations"] == 1
        assert merges.get(held.operation_id).frames_expired_at is None
        assert merges.get(waiting.operation_id).frames_expired_at is None

    def test_what_is_gone_is_not_read(self, database, merges, old):
        first = merge(database, merges, 7)
        merge(database, merges, 7, 8)
        age(database, 400, "sync_operations")
        old.merges()
        with pytest.raises(DataError, match="no longer kept"):
            merges.read_merged(merges.get(first.operation_id))


def _hold(fingerprint: str, status: str, operation_id: str = uid("operation"), **values: object) -> dict[str, object]:
    about = {"removals": 1, "pinned": False}
    return {"district": "lincoln", "hold_id": uid("hold", fingerprint), "school_year": YEAR, "fingerprint": fingerprint,
            "reason": "many", "removals": about, "rows": [["a", "b", "c"]], "status": status, "operation_id": operation_id,
            **values}  # fmt: skip


def test_operations_lose_their_details_and_unpublished_ones_go(database, merges, old):
    first = merge(database, merges, 7)
    failed = merges.gather("lincoln", YEAR).operation
    merges.fail(failed)
    second = merge(database, merges, 7, 8)
    last = merges.gather("lincoln", YEAR).operation
    merges.fail(last)  # its epoch must not be given again
    age(database, 900, "sync_operations")
    old.merges()
    assert old.operations(dry_run=True) == old.operations() == {"never_published": 1, "details": 1}
    assert old.operations() == {"never_published": 0, "details": 0}
    told = {one.operation_id: one for one in Operations(database).list("lincoln", unpublished=True)[0]}
    assert set(told) == {first.operation_id, second.operation_id, last.operation_id}
    assert (told[first.operation_id].inputs, told[first.operation_id].applied) == ({}, {})
    assert told[first.operation_id].changes == {"enroll": 1} or told[first.operation_id].changes == {}
    assert told[first.operation_id].details_expired_at is not None
    assert told[second.operation_id].inputs == second.inputs
    assert merges.gather("lincoln", YEAR).operation.epoch == last.epoch + 1


def test_holds_that_are_over_go_unless_an_undo_would_need_them(database, merges, old):
    rows = [
        _hold("open", "open"), _hold("released", "released"), _hold("applied", "applied"), _hold("closed", "discarded", decided_by="sis_pipeline"),
        _hold("pinned", "discarded", decided_by="ada", removals={"removals": 1, "pinned": True}), _hold("named", "applied"),
    ]  # fmt: skip
    operation = merge(database, merges, 7)
    manifest = merges.manifest(operation)
    merges.files.write_json(f"{operation.path}/manifest.json", {**manifest, "released": ["named"]}, replace=True)
    with database.begin() as connection:
        for row in rows:
            connection.execute(holds.insert().values(**row))
    assert old.holds() == {"deleted": 0}
    age(database, 400, "holds")
    assert old.holds(dry_run=True) == old.holds() == {"deleted": 2}
    with database.connect() as connection:
        left = set(connection.scalars(text("select fingerprint from sis.holds")))
    assert left == {"open", "released", "pinned", "named"}


def test_replaced_decisions_go_and_the_newest_stays(database, old):
    with database.begin() as connection:
        for attribute, integration in (("phone", "a"), ("phone", "b"), ("email", "a"), ("phone", None)):
            connection.execute(
                text("""insert into sis.conflict_decisions (district, student_id, attribute, integration, seen, decided_by, reason)
                     values ('lincoln', :who, :attribute, :integration, '[["a", "1", "555-0100"]]', 'ada', 'she said so')"""),
                {"who": uid("student", 1), "attribute": attribute, "integration": integration},
            )
    assert old.decisions() == {"deleted": 0}
    age(database, 400, "conflict_decisions")
    assert old.decisions(dry_run=True) == old.decisions() == {"deleted": 2}
    with database.connect() as connection:
        left = connection.execute(text("select attribute, integration from sis.conflict_decisions order by 1")).all()
    assert [tuple(row) for row in left] == [("email", "a"), ("phone", None)]


def test_stale_conflicts_go_and_those_that_stand_stay(database, old):
    rows = [conflict(1, "phone", "stale"), conflict(2, "phone", "open"), conflict(3, "phone", "auto")]
    with database.begin() as connection:
        connection.execute(roster_tables["conflicts"].insert(), rows)
    assert old.conflicts() == {"deleted": 0}
    age(database, 100, "conflicts")
    assert old.conflicts(dry_run=True) == old.conflicts() == {"deleted": 1}
    assert count(database, "select count(*) from sis.conflicts where status = 'stale'") == 0
    assert count(database, "select count(*) from sis.conflicts") == 2


def conflict(number: int, attribute: str, status: str) -> dict[str, object]:
    return {
        "district": "lincoln", "student_id": uid("student", number), "school_year": YEAR, "attribute": attribute,
        "candidates": [], "rule": "sis_wins", "status": status,
    }  # fmt: skip


def test_folders_that_no_row_knows_go_when_they_are_old(database, merges, snapshots, old):
    operation = merge(database, merges, 7)
    folders = [
        f"raw/lincoln-ps/{YEAR}/{uid('x')}/students",
        f"merged/lincoln/{YEAR}/99",
        f"raw/nobody/{YEAR}/{uid('y')}/a",
    ]
    for folder in folders:
        snapshots.files.write(f"{folder}/1.parquet", b"x")
    assert old.unknown_files() == {"folders": 0}
    for path in Path(str(snapshots.files._local)).rglob("*"):
        os.utime(path, (time.time() - 40 * 86_400,) * 2)
    assert old.unknown_files(dry_run=True) == old.unknown_files() == {"folders": 2}
    assert [snapshots.files.names(folder) for folder in folders] == [[], [], ["1.parquet"]]
    assert merges.kept(operation)


def test_what_an_undo_needs_can_not_be_set_to_go_earlier():
    with pytest.raises(ValueError, match="holds_days is less than undo_days"):
        Settings(undo_days=400, holds_days=300)


def test_folders_of_a_bucket_are_deleted_like_those_of_a_disk():
    bucket = DataFolder(f"memory://{uuid.uuid4()}")
    for name in ("s", "t"):
        bucket.write(f"raw/a/{YEAR}/{name}/students/1.json", b"[]")
    assert bucket.age(f"raw/a/{YEAR}/nothing") is None
    bucket.delete_folder(f"raw/a/{YEAR}/s")
    bucket.delete_folder(f"raw/a/{YEAR}/s")  # by another night's run that was killed
    assert bucket.names(f"raw/a/{YEAR}") == ["t"]
