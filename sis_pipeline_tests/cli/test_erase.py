"""A student is erased everywhere: nothing of the name, the ids or the address is left in any table or file."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from sqlalchemy import text

from sis_pipeline.cli.installation import Installation
from sis_pipeline.connect.errors import DataError
from sis_pipeline.db.tables import metadata
from sis_pipeline.roster.district import merge_district
from sis_pipeline.store.merged import ErasedMeanwhileError, MergeStore
from sis_pipeline.store.publish import publish
from sis_pipeline.store.snapshots import SnapshotStore
from sis_pipeline_tests.store.conftest import (
    YEAR,
    Read,
    add_integration,
    count,
    good_snapshot,
    pandas_frame,
    sis_student,
)
from sis_pipeline_tests.store.test_roundtrip import delivery

CANARIES = ("Quillfeather", "77431990", "Canary Lane 9")
"""The name, the id in the SIS and the address of the student who is erased."""
WHY = ("--reason", "the family asked")
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def merges(home, database) -> MergeStore:
    add_integration(database, "lincoln-ps")
    here = Installation()
    return MergeStore(here.engine, SnapshotStore(here.engine, here.settings.data_url))


def read(merges: MergeStore, *, canary: bool) -> str:
    """A reading with two others and, with `canary`, the student; their pages as a SIS would send them."""
    snapshots: SnapshotStore = merges._snapshots
    rows = delivery(0, 1, *([2] if canary else []))
    for entity, key in (
        ("students", "sis_id"),
        ("enrollments", "student_sis_id"),
        ("section_enrollments", "person_sis_id"),
    ):
        for row in rows[entity]:
            if row[key] == "2":
                row[key] = "77431990"
                if entity == "students":
                    row |= {"last_name": "Quillfeather", "home_street": "Canary Lane 9"}
    writer = snapshots.begin("lincoln-ps", "powerschool", YEAR)
    writer.add_page("students", {}, 1, json.dumps(rows["students"]).encode(), len(rows["students"]))
    snapshot = writer.finish([Read("students", 3)], "complete", 1, 0.1)
    frames = {entity: pandas_frame(entity, found) for entity, found in rows.items()}
    snapshots.write_roster(snapshot, frames, {}, {})
    snapshots.set_verdict(snapshot.snapshot_id, "complete")
    return snapshot.snapshot_id


def merge(merges: MergeStore):
    gathered = merges.gather("lincoln", YEAR)
    return merges.write_merged(gathered, merge_district(gathered.inputs))


def sync(merges: MergeStore, *, canary: bool) -> str:
    snapshot_id = read(merges, canary=canary)
    publish(merges._engine, merges, merge(merges))
    return snapshot_id


@pytest.fixture
def student(merges, database) -> str:
    """Published, edited by a person, and gone from the source since."""
    sync(merges, canary=True)
    with database.begin() as connection:
        connection.execute(text("update sis.students set phone = '555-0199' where last_name = 'Quillfeather'"))
        who = connection.scalar(text("select student_id from sis.students where last_name = 'Quillfeather'"))
    sync(merges, canary=False)
    return str(who)


def places(database, home: Path, words: tuple[str, ...]) -> set[str]:
    """Where any of the words is: every table as text, every file decoded."""
    found = set()
    with database.connect() as connection:
        for table in metadata.sorted_tables:
            rows = connection.execute(text(f"select to_jsonb(t)::text from {table} t")).scalars().all()
            found |= {table.name for row in rows for word in words if word in row}
    for path in (file for file in home.rglob("*") if file.is_file()):
        body = path.read_bytes()
        if path.suffix == ".parquet":
            body = pl.read_parquet(io.BytesIO(body)).cast(pl.String, strict=False).write_json().encode()
        elif path.suffix == ".zst":
            body = _unpacked(body)
        found |= {path.relative_to(home).parts[1] for word in words if word.encode() in body}
    return found


def _unpacked(body: bytes) -> bytes:
    return pa.CompressedInputStream(pa.BufferReader(body), "zstd").read()


def test_nothing_of_an_erased_student_is_left(student, database, home, sis, merges):
    before = places(database, home, CANARIES)
    assert {"students", "student_links", "raw", "roster", "merged"} <= before
    assert {"student_edits", "enrollment_changes"} <= places(database, home, (student,))

    plan = sis("erase", student, *WHY, "--dry-run", "--json").json["student"]
    assert (plan["tables"]["students"], plan["tables"]["student_edits"], plan["rows"]["students"]) == (1, 1, 1)
    assert places(database, home, CANARIES) == before
    asked = sis("erase", student, *WHY)
    assert (asked.code, "Add --yes" in asked.err, count(database, "select count(*) from sis.erasures")) == (2, True, 0)

    done = sis("erase", student, *WHY, "--yes")
    assert (done.code, "was erased" in done.out, any(word in done.out for word in CANARIES)) == (0, True, False)
    assert places(database, home, CANARIES) == set()
    assert places(database, home, (student,)) == {"audit_log", "erasures"}
    assert count(database, "select count(*) from sis.students") == 2
    assert sis("audit", "verify").code == 0
    assert sis("audit", "show", "--subject", student, "--json").out.count("student.erase") == 2
    gone = sis("erase", student, *WHY, "--yes")
    assert (gone.code != 0, "There is no student" in gone.err) == (True, True)


def test_the_others_are_merged_as_before_and_nobody_comes_back(student, database, home, sis, merges):
    assert sis("erase", student, *WHY, "--yes").code == 0
    published = merges.newest("lincoln", YEAR, "published")
    assert merges.manifest(published)["rows"]["enrollments"] == count(database, "select count(*) from sis.enrollments")
    sync(merges, canary=False)
    assert count(database, "select count(*) from sis.students") == 2
    assert count(database, "select count(*) from sis.enrollments where status = 'active'") == 2
    old = count(database, "select snapshot_id from sis.snapshots order by started_at limit 1")
    with pytest.raises(DataError, match="because a student was erased"):
        merges._snapshots.open_raw(str(old))
    last = count(database, "select operation_id from sis.sync_operations order by epoch desc limit 1")
    refused = sis("undo", last, *WHY, "--yes")
    assert (refused.code != 0, "can't be undone" in refused.err) == (True, True)


def test_a_student_who_is_still_delivered_is_kept_unless_forced(merges, database, home, sis):
    sync(merges, canary=True)
    who = count(database, "select student_id from sis.students where last_name = 'Quillfeather'")
    refused = sis("erase", who, *WHY, "--yes")
    assert (refused.code != 0, "still delivered by lincoln-ps" in refused.err) == (True, True)
    assert count(database, "select count(*) from sis.students") == 3
    assert sis("erase", who, *WHY, "--yes", "--force").code == 0
    assert places(database, home, CANARIES) == set()


def test_a_merge_that_was_under_way_leaves_nothing_of_the_student(student, merges, database, home, sis):
    read(merges, canary=True)
    gathered = merges.gather("lincoln", YEAR)
    assert sis("erase", student, *WHY, "--yes", "--force").code == 0
    with pytest.raises(ErasedMeanwhileError, match="erased while its roster was merged"):
        merges.write_merged(gathered, merge_district(gathered.inputs))
    assert places(database, home, CANARIES) == set()


def test_who_is_kept_out_is_let_in_by_a_person(student, database, sis):
    nobody = sis("erase", student, "--lift", *WHY)
    assert (nobody.code != 0, "is kept out" in nobody.err) == (True, True)
    assert sis("erase", student, *WHY, "--yes").code == 0
    assert count(database, "select count(*) from sis.erased_records") == 1
    assert sis("erase", student, "--lift", *WHY, "--json").json == {"lifted": 1, "student_id": student}
    assert count(database, "select count(*) from sis.erased_records") == 0


def test_without_an_encryption_key_nothing_is_erased(student, database, sis, monkeypatch):
    monkeypatch.delenv("SIS_ENCRYPTION_KEYS")
    refused = sis("erase", student, *WHY, "--yes")
    assert (refused.code != 0, "sis keys create" in refused.err) == (True, True)
    assert count(database, "select count(*) from sis.erasures") == 0


def test_holds_quarantine_and_merged_ids_go_too(student, database, home, sis, merges):
    merged_away, other = "11111111-1111-5111-8111-111111111111", "22222222-2222-5222-8222-222222222222"
    snapshot_id = count(database, "select snapshot_id from sis.snapshots order by started_at desc limit 1")
    parts = [{"school_id": None, "change": "withdraw", "removals": 2}]
    with database.begin() as connection:
        connection.execute(
            text("""insert into sis.holds (district, hold_id, school_year, fingerprint, reason, removals, rows, operation_id)
                 values ('lincoln', gen_random_uuid(), :year, 'f', 'many', cast(:removals as jsonb), cast(:rows as jsonb),
                 gen_random_uuid())"""),
            {"year": YEAR, "removals": json.dumps({"removals": 2, "parts": parts}),
             "rows": json.dumps([[student, None, None], [other, None, None]])},
        )  # fmt: skip
        connection.execute(
            text("""insert into sis.student_aliases (district, alias_id, student_id, records, operation_id)
                 values ('lincoln', :alias, :student, '[["lincoln-ps", "Quillfeather-old"]]', gen_random_uuid())"""),
            {"alias": merged_away, "student": student},
        )
        connection.execute(
            text("""insert into sis.quarantine (integration, snapshot_id, entity, row, "column", reason, school_year, sis_id)
                 values ('lincoln-ps', :id, 'students', 5, 'ssid', 'bad', :year, 'Quillfeather-old')"""),
            {"id": snapshot_id, "year": YEAR},
        )
    rejected = pl.DataFrame(
        {"row": [5, 6, 7], "reasons": ["[]"] * 3, "sis_id": ["Quillfeather-old", "8", None],
         "last_name": ["Quillfeather", "Other", "Quillfeather"]}
    )  # fmt: skip
    folder = f"quarantine/lincoln-ps/{YEAR}/{snapshot_id}"
    merges.files.write_frame(f"{folder}/students.parquet", rejected)

    done = sis("erase", merged_away, *WHY, "--yes")
    assert (done.code, f"{merged_away} was merged into that student" in done.out) == (0, True)
    assert places(database, home, (*CANARIES, merged_away)) == set()
    assert merges.files.read_frame(f"{folder}/students.parquet")["row"].to_list() == [6]
    with database.connect() as connection:
        hold = connection.execute(text("select rows, removals, status from sis.holds")).one()
    assert (hold.rows, hold.removals["removals"], hold.status) == ([[other, None, None]], 1, "open")
    assert hold.removals["parts"] == [{**parts[0], "removals": 1}]


def test_what_people_decided_about_who_is_who_is_no_trace(database, home, sis, merges):
    """Joined and split again, of which the audit log keeps who did it, when and why."""
    add_integration(database, "lincoln-ic", priority=200)
    born = date(2012, 3, 4)
    for key, sis_id in (("lincoln-ps", "77431990"), ("lincoln-ic", "77431991")):
        found = [sis_student(sis_id, last_name="Quillfeather", birth_date=born)]
        good_snapshot(merges._snapshots, key, students=found)
    publish(database, merges, merge(merges))
    [near] = sis("links", "review", "--json").json["near_matches"]
    assert sis("links", "confirm", near["near_match_id"], *WHY).code == 0
    publish(database, merges, merge(merges))
    who = str(count(database, "select student_id from sis.students"))
    assert sis("links", "split", who, "--record", "lincoln-ic/77431991", *WHY).code == 0
    publish(database, merges, merge(merges))
    assert count(database, "select count(*) from sis.students") == 2
    with database.connect() as connection:
        both = connection.scalars(text("select student_id from sis.students")).all()
    for one in both:
        assert sis("erase", one, *WHY, "--yes", "--force").code == 0
    assert places(database, home, ("Quillfeather", "77431990", "77431991")) == set()
    assert count(database, "select count(*) from sis.audit_log where action like 'link.%'") == 2


def test_a_kill_before_a_file_is_written_leaves_no_count_behind(database, home, sis, merges, student):
    """Of a rejected row of the student, which also waits in the quarantine."""
    snapshot_id = count(database, "select snapshot_id from sis.snapshots order by started_at desc limit 1")
    with database.begin() as connection:
        connection.execute(
            text("""insert into sis.quarantine (integration, snapshot_id, entity, row, "column", reason, school_year, sis_id)
                 values ('lincoln-ps', :id, 'enrollments', 5, 'entry_date', 'bad', :year, 'e77431990')"""),
            {"id": snapshot_id, "year": YEAR},
        )  # fmt: skip
        quarantined = text("update sis.snapshots set quarantined = '{\"enrollments\": 2}' where snapshot_id = :id")
        connection.execute(quarantined, {"id": snapshot_id})
    rejected = pl.DataFrame({"row": [5, 6], "reasons": ["[]"] * 2, "student_sis_id": ["77431990", "1"]})
    merges.files.write_frame(f"quarantine/lincoln-ps/{YEAR}/{snapshot_id}/enrollments.parquet", rejected)

    killed = erase_killed_at("erase.file_written:4", student)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sis("erase", student, *WHY, "--yes").code == 0
    assert places(database, home, CANARIES) == set()
    with database.connect() as connection:
        rows = connection.execute(text("select rows, quarantined from sis.snapshots order by started_at")).all()
    assert [one.rows["students"] for one in rows] == [2, 2]
    assert rows[1].quarantined == {"enrollments": 1}


def erase_killed_at(point: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from sis_pipeline.cli.main import main; main()", "erase", *arguments, *WHY, "--yes"],
        env={**os.environ, "SIS_CRASH_AT": point}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("point", ["erase.rows_gone", "erase.file_done:2"])
def test_a_killed_erasure_is_finished_by_the_next(point, student, database, home, sis):
    child = erase_killed_at(point, student)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert places(database, home, CANARIES) >= {"erasures", "merged"}
    assert sis("erase", student, *WHY, "--yes").code == 0
    assert places(database, home, CANARIES) == set()
    assert count(database, "select count(*) from sis.audit_log where action = 'student.erase'") == 1


def test_what_a_merge_brought_back_after_a_kill_goes_with_the_rest(merges, database, home, sis):
    sync(merges, canary=True)
    who = str(count(database, "select student_id from sis.students where last_name = 'Quillfeather'"))
    erase_killed_at("erase.rows_gone", who, "--force")
    assert count(database, "select count(*) from sis.students") == 2
    publish(database, merges, merge(merges))
    assert count(database, "select count(*) from sis.students") == 3
    assert sis("erase", who, *WHY, "--yes").code == 0
    assert places(database, home, CANARIES) == set()
    assert places(database, home, (who,)) == {"audit_log", "erasures"}
    assert count(database, "select count(*) from sis.erasures where finished_at is null") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((UNKNOWN, *WHY, "--yes"), "There is no student"),
        (("ada", *WHY), "not a UUID"),
        ((UNKNOWN, "--reason", " ", "--yes"), "why"),
        ((UNKNOWN, *WHY, "--yes", "--dry-run"), "Leave one of them out"),
        ((UNKNOWN, *WHY, "--lift", "--dry-run"), "--lift erases nothing"),
        ((UNKNOWN, "--reason", " ", "--lift"), "why"),
    ],
)
def test_what_can_not_be_erased_is_refused(arguments, words, home, sis):
    refused = sis("erase", *arguments)
    assert (refused.code != 0, words in refused.err) == (True, True)
