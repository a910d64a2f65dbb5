"""What a merge is given, and that what it decided is kept as it was."""

from __future__ import annotations

from datetime import date

import pandas as pd
import pytest

from sis_pipeline.connect.errors import ConfigError, DataError, InternalError
from sis_pipeline.roster.model import ENTITIES, MERGED
from sis_pipeline.roster.policies import Policies
from sis_pipeline.store.holds import Holds
from sis_pipeline.store.publish import publish
from sis_pipeline.store.told import irregular_in_words, unsupplied_in_words
from sis_pipeline_tests.store.conftest import (
    SCHOOL,
    YEAR,
    Read,
    add_integration,
    change,
    enrollment,
    good_snapshot,
    hold,
    merged_roster,
    pandas_frame,
    sis_student,
    student,
    uid,
)


def test_a_merge_gets_the_newest_records_of_every_integration_of_its_district(database, snapshots, merges):
    add_integration(database, "lincoln-ic", priority=5, status="paused")
    add_integration(database, "washington-ps", district="washington")
    newest = good_snapshot(snapshots, students=[sis_student("7"), sis_student("8")])
    second = good_snapshot(snapshots, "lincoln-ic", verdict="partial", students=[sis_student("7")])
    good_snapshot(snapshots, "washington-ps", students=[sis_student("99")])
    gathered = merges.gather("lincoln", YEAR, run_id="run-1", as_of=date(2026, 1, 2))
    inputs, operation = gathered.inputs, gathered.operation
    rows = inputs.records["students"].select("integration", "sis_id", "snapshot_id").rows()
    assert sorted(rows) == [
        ("lincoln-ic", "7", second.snapshot_id),
        ("lincoln-ps", "7", newest.snapshot_id),
        ("lincoln-ps", "8", newest.snapshot_id),
    ]
    assert set(inputs.records) == set(ENTITIES)
    assert {key: (one.priority, one.completeness) for key, one in inputs.integrations.items()} == {
        "lincoln-ic": (5, "partial"),
        "lincoln-ps": (100, "complete"),
    }
    assert inputs.integrations["lincoln-ps"].taken_on == newest.started_at.date()
    assert (inputs.as_of, inputs.operation_id) == (date(2026, 1, 2), operation.operation_id)
    assert (operation.epoch, operation.base_epoch, operation.status) == (1, 0, "merging")
    assert operation.inputs["lincoln-ic"]["snapshot_id"] == second.snapshot_id
    assert operation.inputs["lincoln-ic"]["verdict"] == "partial"
    assert operation.inputs["lincoln-ic"]["age_seconds"] >= 0


def test_a_shared_system_gives_each_district_its_own(database, snapshots, merges):
    add_integration(database, "shared", district="washington", organisations={"1": "lincoln", "2": "washington"})
    good_snapshot(
        snapshots,
        "shared",
        schools=[SCHOOL, {**SCHOOL, "sis_id": "2", "name": "South"}],
        students=[sis_student("a"), sis_student("b", school_sis_id="2")],
    )
    here = merges.gather("lincoln", YEAR).inputs.records["students"]
    assert sorted(here.select("integration", "sis_id").rows()) == [("lincoln-ps", "7"), ("shared", "a")]
    assert merges.gather("washington", YEAR).inputs.records["students"]["sis_id"].to_list() == ["b"]
    assert merges.districts_of(YEAR) == ["lincoln", "washington"]
    assert merges.districts_of("2024-2025") == []


def test_rejected_rows_are_reported_as_present(snapshots, merges):
    writer = snapshots.begin("lincoln-ps", "powerschool", YEAR)
    snapshot = writer.finish([Read("students", 2)], "complete", 1, 0.1)
    rejected = pd.DataFrame(
        {"row": [1, 1], "sis_id": ["8", "8"], "column": ["birth_date", "sex"], "reason": ["is no date", "unknown"]}
    )
    standard = pd.DataFrame({"sis_id": ["7", "8"]}, dtype="str")
    snapshots.write_roster(
        snapshot,
        {"students": pandas_frame("students", [sis_student("7")])},
        {"students": rejected},
        {"students": standard},
    )
    snapshots.set_verdict(snapshot.snapshot_id, "complete")
    quarantined = merges.gather("lincoln", YEAR).inputs.quarantined
    assert {name: frame.rows() for name, frame in quarantined.items()} == {"students": [("lincoln-ps", "8")]}


def test_the_published_state_is_what_the_next_merge_compares_with(database, merges):
    gathered = merges.gather("lincoln", YEAR)
    link = {
        "district": "lincoln",
        "integration": "lincoln-ps",
        "sis_id": "7",
        "student_id": student(7)["student_id"],
        "rule": "new",
        "confidence": 1.0,
        "active": True,
    }
    merged = merged_roster(
        students=[student(7)],
        enrollments=[enrollment(7)],
        student_links=[link],
        enrollment_changes=[change(7, "enroll", gathered.operation.operation_id)],
    )
    publish(database, merges, merges.write_merged(gathered, merged))
    existing = merges.gather("lincoln", YEAR).inputs.existing
    assert set(existing) == set(MERGED) - {"enrollment_changes"}
    assert existing["students"].drop("origins").equals(merged.frames["students"].drop("origins"))
    assert existing["enrollments"].equals(merged.frames["enrollments"])
    assert existing["student_links"]["first_seen"].null_count() == 0
    merges_other_year = {name: frame.height for name, frame in _other_year(merges).items() if frame.height}
    assert merges_other_year == {"students": 1, "student_links": 1}


def test_a_year_begins_with_what_linked_records_last_said(database, merges):
    record = {"district": "lincoln", "integration": "lincoln-ps", "sis_id": "7", "student_id": student(7)["student_id"]}
    for year, name in (("2023-2024", "Old"), ("2024-2025", "Newer")):
        said = {
            **record,
            "school_year": year,
            "first_name": "Ann",
            "last_name": name,
            "birth_date": date(2011, 5, 5),
            "cleared": '["email"]',
            "snapshot_id": uid("snapshot"),
        }
        rows = {
            "students": [student(7, latest_school_year=year)],
            "student_links": [{**record, "rule": "new", "confidence": 1.0, "active": True}],
            "student_sources": [said],
        }
        publish(database, merges, merges.write_merged(_gathered(merges, year), merged_roster(**rows)))
    first = merges.gather("lincoln", YEAR)
    assert first.inputs.said_before.select("sis_id", "last_name", "birth_date", "emptied", "cleared").rows() == [
        ("7", "Newer", date(2011, 5, 5), None, '["email"]')
    ]
    rows["student_sources"] = [{**said, "school_year": YEAR}]
    publish(database, merges, merges.write_merged(first, merged_roster(**rows)))
    assert merges.gather("lincoln", YEAR).inputs.said_before.is_empty(), "this year has its own word"


def _other_year(merges):
    return _gathered(merges, "2024-2025").inputs.existing


def _gathered(merges, year):
    writer = merges._snapshots.begin("lincoln-ps", "powerschool", year)
    snapshot = writer.finish([], "partial", 0, 0.0)
    merges._snapshots.write_roster(snapshot, {}, {}, {})
    merges._snapshots.set_verdict(snapshot.snapshot_id, "partial")
    return merges.gather("lincoln", year)


def test_what_systems_stopped_supplying_is_told_in_words():
    lost = {"lincoln-ps": {"email": 1_200, "phone": 3}, "lincoln-ic": {"home_address": 40}}
    assert unsupplied_in_words({"unsupplied": lost}) == (
        "lincoln-ps stopped supplying email of 1,200 records at once; lincoln-ps stopped supplying phone of 3 records at "
        "once; lincoln-ic stopped supplying home_address of 40 records at once: not taken for cleared."
    )
    assert unsupplied_in_words({}) == "", "a merge of an earlier version says nothing of it"


def test_enrollments_that_cannot_all_be_right_are_told_in_words():
    found = {"lincoln-ps": {"overlapping": 1, "second_primary": 1_200}}
    assert irregular_in_words({"irregular": found}) == (
        "lincoln-ps: of 1 student an enrollment overlaps another one at the same school; lincoln-ps: of 1,200 students a "
        "second enrollment is called primary, at another school. One is published as primary."
    )
    assert irregular_in_words({}) == "", "a merge of an earlier version says nothing of it"


def test_a_district_without_a_good_snapshot_is_refused_in_words(merges):
    with pytest.raises(ConfigError, match="No integration of washington has a good snapshot for 2025-2026"):
        merges.gather("washington", YEAR)
    with pytest.raises(ConfigError, match="can't be the id of a district"):
        merges.gather("../lincoln", YEAR)


def test_merged_frames_come_back_as_they_were_written(merges):
    gathered = merges.gather("lincoln", YEAR)
    merged = merged_roster(students=[student(1)], held=[hold("f1", 1, 2)], retired={"old": "new"})
    operation = merges.write_merged(gathered, merged)
    back = merges.read_merged(operation)
    assert {name: frame.equals(merged.frames[name]) for name, frame in back.frames.items()} == dict.fromkeys(
        MERGED, True
    )
    assert (back.held, back.retired, back.stats) == (merged.held, merged.retired, merged.stats)
    assert (operation.status, operation.path) == ("merged", f"merged/lincoln/{YEAR}/1")
    assert operation.summary["students"] == 1


def test_merged_frames_are_immutable_and_checked(merges, tmp_path):
    gathered = merges.gather("lincoln", YEAR)
    operation = merges.write_merged(gathered, merged_roster())
    with pytest.raises(InternalError, match="never changed"):
        merges.write_merged(gathered, merged_roster())
    path = tmp_path / "data" / operation.path / "students.parquet"
    path.write_bytes(path.read_bytes().replace(b"district", b"distric_", 1))
    with pytest.raises(DataError, match=r"students\.parquet was changed after it was written"):
        _ = merges.read_merged(operation).frames["students"]


def test_epochs_rise_and_a_failed_merge_is_not_kept(merges):
    first, second = merges.gather("lincoln", YEAR), merges.gather("lincoln", YEAR)
    assert [first.operation.epoch, second.operation.epoch] == [1, 2]
    merges.fail(first.operation)
    assert merges.get(first.operation.operation_id).status == "failed"
    with pytest.raises(InternalError, match="is not being merged"):
        merges.write_merged(first, merged_roster())


def test_a_district_is_stale_until_its_newest_content_is_published(database, snapshots, merges):
    def merge_and_publish():
        publish(database, merges, merges.write_merged(merges.gather("lincoln", YEAR), merged_roster()))

    assert merges.stale_districts(YEAR) == ["lincoln"]
    merge_and_publish()
    assert merges.stale_districts(YEAR) == []
    good_snapshot(snapshots)  # read again, nothing new
    assert merges.stale_districts(YEAR) == []
    good_snapshot(snapshots, students=[sis_student("8")])
    assert merges.stale_districts(YEAR) == ["lincoln"]
    merge_and_publish()
    add_integration(database, "lincoln-ic")
    assert merges.stale_districts(YEAR) == []
    good_snapshot(snapshots, "lincoln-ic")
    assert merges.stale_districts(YEAR) == ["lincoln"]


def test_a_released_hold_and_other_rules_ask_for_a_merge(database, merges):
    publish(database, merges, merges.write_merged(merges.gather("lincoln", YEAR), merged_roster(held=[hold("f1", 1)])))
    before = merges.fingerprint("lincoln", YEAR)
    assert merges.fingerprint("lincoln", YEAR, [Policies(default="newest_wins")]) != before
    [held] = Holds(database).list()
    Holds(database).release(held.hold_id, "ada", "they moved away")
    assert merges.stale_districts(YEAR) == ["lincoln"]
    assert merges.gather("lincoln", YEAR).inputs.released == {"f1"}


def test_the_newest_operation_is_found_by_its_status(database, merges):
    assert merges.newest("lincoln", YEAR) is None
    publish(database, merges, merges.write_merged(merges.gather("lincoln", YEAR), merged_roster()))
    last = merges.gather("lincoln", YEAR).operation
    assert merges.newest("lincoln", YEAR) == last
    assert merges.newest("lincoln", YEAR, "published").epoch == 1
    assert merges.newest("lincoln", YEAR, "failed") is None
