"""The real merge through the store: what it publishes is what it finds again, so that merging again changes nothing."""

from __future__ import annotations

from datetime import date

from sqlalchemy import text

from sis_pipeline.roster.district import merge_district
from sis_pipeline.roster.model import MERGED
from sis_pipeline.store.publish import Published, publish
from sis_pipeline_tests.store.conftest import SCHOOL, YEAR, add_integration, count, good_snapshot, sis_student

ACTIVE = {"record_status": "active"}
SESSION = {"sis_id": "y", "title": "Year", "kind": "school_year", "start_date": "2025-08-18", "end_date": "2026-06-06", "school_year": YEAR, **ACTIVE}  # fmt: skip
TEACHER = {"sis_id": "t", "first_name": "Grace", "last_name": "Hopper", "role": "teacher", "school_sis_id": "1", "school_sis_ids": '["1"]', **ACTIVE}  # fmt: skip
COURSE = {"sis_id": "c", "title": "Algebra", "grade_levels": '["07","08"]', "subjects": '["math"]', **ACTIVE}
SECTION = {"sis_id": "s", "kind": "scheduled", "school_sis_id": "1", "course_sis_id": "c", "session_sis_ids": '["y"]', "periods": '["1", "2"]', "teacher_sis_id": "t", **ACTIVE}  # fmt: skip


def delivery(*numbers: int, **values) -> dict[str, list[dict]]:
    """A small school; the last names carry what breaks careless loaders."""
    names = ["Null", "None", "=1+1", "O'Brien; --", "שלום", "x" * 200]
    people = [
        sis_student(str(n), ssid=f"{n:010d}", ssid_issuer="IL", first_name=f"First{n}", last_name=names[n % len(names)],
                    birth_date=f"2010-01-{n + 1:02d}", grade_level="07", modified_at=f"2026-01-0{n + 1}T00:00:00Z", **values)
        for n in numbers
    ]  # fmt: skip
    enrolled = [
        {"sis_id": f"e{n}", "student_sis_id": str(n), "school_sis_id": "1", "school_year": YEAR, "entry_date": "2025-08-18",
         "entry_date_source": "sis", "enrollment_type": "primary", "status": "active", "grade_level": "07", **ACTIVE}
        for n in numbers
    ]  # fmt: skip
    seats = [{"sis_id": f"se{n}", "section_sis_id": "s", "role": "student", "person_sis_id": str(n), "school_sis_id": "1", **ACTIVE} for n in numbers]  # fmt: skip
    return {
        "schools": [SCHOOL], "academic_sessions": [SESSION], "students": people, "staff": [TEACHER], "courses": [COURSE],
        "sections": [SECTION], "enrollments": enrolled, "section_enrollments": seats,
    }  # fmt: skip


def merge_and_publish(database, merges, day: date) -> Published:
    gathered = merges.gather("lincoln", YEAR, as_of=day)
    return publish(database, merges, merges.write_merged(gathered, merge_district(gathered.inputs)))


def test_merging_again_finds_its_own_rows_and_changes_nothing(database, snapshots, merges):
    add_integration(database, "lincoln-ic", priority=200)
    good_snapshot(snapshots, **delivery(*range(6)))
    good_snapshot(snapshots, "lincoln-ic", **delivery(0, 1, email="other@lincoln.example"))
    first = merge_and_publish(database, merges, date(2025, 10, 1))
    assert count(database, "select count(*) from sis.students") == 6
    assert first.changes["enroll"] == 6
    assert first.applied["student_links"].inserted == 8
    again = merge_and_publish(database, merges, date(2025, 10, 1))
    assert {name: done.written for name, done in again.applied.items()} == dict.fromkeys(MERGED, 0)
    assert again.changes == {}
    with database.connect() as connection:
        names = connection.scalars(text("select last_name from sis.students order by ssid")).all()
    assert names == ["Null", "None", "=1+1", "O'Brien; --", "שלום", "x" * 200]


def day_of_snapshot(database, snapshot, day: date) -> None:
    """Date a snapshot, the ones before it a day earlier: who is missing from it left then; after the year nobody leaves."""
    with database.begin() as connection:
        connection.execute(
            text("update sis.snapshots set started_at = least(started_at, cast(:day as date) - 1)"), {"day": day}
        )
        change = text("update sis.snapshots set started_at = :day where snapshot_id = :snapshot_id")
        connection.execute(change, {"day": day, "snapshot_id": snapshot.snapshot_id})


def test_a_day_of_changes_touches_what_changed(database, snapshots, merges):
    day_of_snapshot(database, good_snapshot(snapshots, **delivery(*range(6))), date(2025, 10, 1))
    merge_and_publish(database, merges, date(2025, 10, 1))
    day_of_snapshot(database, good_snapshot(snapshots, **delivery(*range(1, 7))), date(2025, 10, 2))
    done = merge_and_publish(database, merges, date(2025, 10, 2))
    assert (done.changes["enroll"], done.changes["withdraw"], done.held) == (1, 1, 0)
    assert (done.applied["students"].inserted, done.applied["students"].deleted) == (1, 0)
    assert merge_and_publish(database, merges, date(2025, 10, 2)).unchanged
