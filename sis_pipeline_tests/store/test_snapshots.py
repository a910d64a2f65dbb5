"""What was read is kept as it came, privately, and is only good when its reading and its check say so."""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sqlalchemy import text

from sis_pipeline.connect.errors import ConfigError, DataError, InternalError, TransientError
from sis_pipeline.providers.base import Origin, RawSnapshot
from sis_pipeline.roster.frames import empty
from sis_pipeline.roster.model import ENTITIES
from sis_pipeline.store.locks import AlreadyRunningError
from sis_pipeline.store.snapshots import SnapshotStore, fingerprint
from sis_pipeline_tests.store.conftest import (
    SCHOOL,
    YEAR,
    Read,
    add_integration,
    good_snapshot,
    pandas_frame,
    sis_student,
)


def read_pages(store, *bodies, resource="students", completeness="complete"):
    writer = store.begin("lincoln-ps", "powerschool", YEAR, run_id="run-1")
    for number, body in enumerate(bodies, 1):
        writer.add_page(resource, {"school": "1"}, number, body, 1)
    return writer.finish([Read(resource, len(bodies))], completeness, api_calls=3, seconds=1.5)


def test_pages_come_back_as_they_were_sent(snapshots):
    snapshot = read_pages(snapshots, b'{"a": 1}', b"", b"\x00\xff binary")
    raw: RawSnapshot = snapshots.open_raw(snapshot.snapshot_id)
    assert raw.resources == ["students"]
    assert list(raw.bodies("students")) == [({"school": "1"}, body) for body in (b'{"a": 1}', b"", b"\x00\xff binary")]
    assert list(raw.bodies("staff")) == []
    assert raw.school_year.key == YEAR
    assert (snapshot.completeness, snapshot.verdict, snapshot.api_calls, snapshot.seconds) == (
        "complete",
        "pending",
        3,
        1.5,
    )
    assert snapshot.bytes == 8 + 0 + 9
    assert snapshot.evidence == {"students": {"rows": 3, "complete": True, "reason": "the source's own count"}}


def test_the_manifest_tells_the_whole_reading(snapshots):
    snapshot = read_pages(snapshots, b"[1]")
    manifest = snapshots.files.read_json(f"{snapshot.path}/manifest.json")
    [page] = manifest["resources"]["students"]["pages"]
    assert page["file"] == "students/00001.json.zst"
    assert (page["number"], page["records"], page["bytes"], page["about"]) == (1, 1, 3, {"school": "1"})
    assert manifest["resources"]["students"]["reading"]["rows"] == 1
    assert manifest["content_hash"] == snapshot.content_hash
    packed = snapshots.files.read(f"{snapshot.path}/students/00001.json.zst")
    assert pa.decompress(packed, decompressed_size=3, codec="zstd", asbytes=True) == b"[1]"


def test_files_and_folders_are_private(snapshots, tmp_path):
    good_snapshot(snapshots)
    found = list((tmp_path / "data").rglob("*"))
    assert len([path for path in found if path.is_file()]) == 4
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in [tmp_path / "data", *found]}
    assert modes == {(True, 0o700), (False, 0o600)}


def test_any_fsspec_url_serves(database):
    store = SnapshotStore(database, "memory://roster-data")
    snapshot = read_pages(store, b"[1]", b"[2]")
    assert [body for _, body in store.open_raw(snapshot.snapshot_id).bodies("students")] == [b"[1]", b"[2]"]


@pytest.mark.parametrize("change", ["page", "cut", "manifest", "gone"])
def test_a_changed_snapshot_is_not_read(snapshots, tmp_path, change):
    snapshot = read_pages(snapshots, b'[{"name": "Zyx"}]')
    folder = tmp_path / "data" / snapshot.path
    page, manifest = folder / "students" / "00001.json.zst", folder / "manifest.json"
    if change == "page":
        page.write_bytes(pa.compress(b'[{"name": "Abc"}]', codec="zstd", asbytes=True))
    elif change == "cut":
        page.write_bytes(page.read_bytes()[:-5])
    elif change == "manifest":
        content = json.loads(manifest.read_text())
        content["resources"]["students"]["pages"] = []
        manifest.write_text(json.dumps(content))
    else:
        page.unlink()
    with pytest.raises(DataError, match=r"changed after it was written|missing in the data folder") as caught:
        list(snapshots.open_raw(snapshot.snapshot_id).bodies("students"))
    assert "Zyx" not in str(caught.value)


def test_page_one_starts_a_resource_over(snapshots):
    writer = snapshots.begin("lincoln-ps", "powerschool", YEAR)
    writer.add_page("students", {}, 1, b"old 1", 1)
    writer.add_page("students", {}, 2, b"old 2", 1)
    writer.add_page("staff", {}, 1, b"staff", 1)
    writer.add_page("students", {}, 1, b"new", 1)
    snapshot = writer.finish([], "complete", 4, 1.0)
    raw = snapshots.open_raw(snapshot.snapshot_id)
    assert [body for _, body in raw.bodies("students")] == [b"new"]
    assert [body for _, body in raw.bodies("staff")] == [b"staff"]
    assert not snapshots.files.exists(f"{snapshot.path}/students/00002.json.zst")


def test_a_crashed_reading_is_never_good(snapshots, database):
    add_integration(database, "lincoln-ps")
    writer = snapshots.begin("lincoln-ps", "powerschool", YEAR)
    writer.add_page("students", {}, 1, b"[]", 0)
    left = snapshots.latest("lincoln-ps", YEAR)
    assert (left.verdict, left.completeness, left.finished_at) == ("pending", None, None)
    assert snapshots.latest_good(YEAR) == []
    with pytest.raises(ConfigError, match="never came to its end"):
        snapshots.open_raw(left.snapshot_id)
    with pytest.raises(InternalError, match="no standard frames"):
        snapshots.set_verdict(left.snapshot_id, "complete")


def test_an_abandoned_reading_says_why_and_takes_no_more_pages(snapshots):
    writer = snapshots.begin("lincoln-ps", "powerschool", YEAR)
    snapshot = writer.abandon("the source answered 503 five times")
    assert (snapshot.verdict, snapshot.evidence) == ("rejected", {"abandoned": "the source answered 503 five times"})
    assert snapshot.finished_at is not None
    with pytest.raises(InternalError, match="takes no more pages"):
        writer.add_page("students", {}, 1, b"", 0)
    assert snapshots.last_rows("lincoln-ps", YEAR) == {}


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".hidden", "a b", "x" * 101])
def test_resource_names_cannot_leave_their_folder(snapshots, name):
    writer = snapshots.begin("lincoln-ps", "powerschool", YEAR)
    with pytest.raises(InternalError, match="can't name a resource"):
        writer.add_page(name, {}, 1, b"", 0)


@pytest.mark.parametrize(
    ("key", "year"), [("../../etc", YEAR), ("Lincoln", YEAR), ("lincoln-ps", "2025"), ("lincoln-ps", "../x")]
)
def test_keys_and_years_cannot_leave_their_folder(snapshots, key, year):
    with pytest.raises(ConfigError):
        snapshots.begin(key, "powerschool", year)
    assert snapshots.latest(key, year) is None


def test_the_roster_comes_back_typed_and_rejected_rows_whole(snapshots, database):
    hostile = "=1+1\u202e'; drop table"
    snapshot = read_pages(snapshots, b"[]")
    standard = pd.DataFrame(
        {
            "sis_id": pd.Series(["1", "2", None], dtype="str"),
            "last_name": pd.Series(["Null", hostile, None], dtype="str"),
            "birth_date": pd.Series(["2010-02-03", "03/02/2010", ""], dtype="str"),
        }
    )
    rejected = pd.DataFrame(
        {
            "row": [1, 1, 2],
            "sis_id": ["2", "2", None],
            "column": ["birth_date", "grade_level", None],
            "reason": ["is no date", "is no grade level", "has no id"],
        }
    )
    frames = {
        "students": pandas_frame(
            "students", [sis_student("1", birth_date="2010-02-03", modified_at="2026-01-02T03:04:05Z")]
        )
    }
    after = snapshots.write_roster(snapshot, frames, {"students": rejected}, {"students": standard})
    assert (after.rows, after.quarantined) == ({"students": 1}, {"students": 2})
    back = snapshots.read_roster(after, "students")
    assert back.schema == empty(ENTITIES["students"]).schema
    assert back.row(0, named=True)["birth_date"].isoformat() == "2010-02-03"
    assert snapshots.read_roster(after, "staff").equals(empty(ENTITIES["staff"]))
    kept = snapshots.read_quarantine(after, "students")
    assert kept["row"].to_list() == [1, 2]
    assert kept["last_name"].to_list() == [hostile, None]
    assert [len(json.loads(reasons)) for reasons in kept["reasons"]] == [2, 1]
    assert snapshots.read_quarantine(after, "staff").is_empty()
    with database.connect() as connection:
        lines = connection.execute(
            text('select "row", "column", reason, sis_id from sis.quarantine order by 1, 2')
        ).all()
    assert [tuple(line) for line in lines] == [
        (1, "birth_date", "is no date", "2"),
        (1, "grade_level", "is no grade level", "2"),
        (2, "*", "has no id", None),
    ]


def test_writing_the_roster_again_replaces_it_and_waits_for_a_new_verdict(snapshots, database):
    add_integration(database, "lincoln-ps")
    first = good_snapshot(snapshots)
    again = snapshots.write_roster(first, {"students": pandas_frame("students", [sis_student("8")])}, {}, {})
    assert (again.verdict, again.rows) == ("pending", {"students": 1})
    assert again.roster_hash != first.roster_hash
    assert snapshots.latest_good(YEAR) == []


def test_a_verdict_never_exceeds_what_the_reading_proved(snapshots):
    snapshot = read_pages(snapshots, b"[]", completeness="partial")
    snapshots.write_roster(snapshot, {}, {}, {})
    with pytest.raises(InternalError, match="read partial; it can't be complete"):
        snapshots.set_verdict(snapshot.snapshot_id, "complete")
    assert snapshots.set_verdict(snapshot.snapshot_id, "partial").good
    assert not snapshots.set_verdict(snapshot.snapshot_id, "rejected").good


def test_the_newest_good_snapshot_of_every_registered_integration_counts(snapshots, database):
    add_integration(database, "lincoln-ps", status="paused")
    add_integration(database, "shared", organisations={"9": "lincoln"}, district="washington")
    old = good_snapshot(snapshots, verdict="partial")
    good_snapshot(snapshots, verdict="rejected")
    good_snapshot(snapshots, "gone")
    shared = good_snapshot(snapshots, "shared")
    ids = [one.snapshot_id for one in snapshots.latest_good(YEAR)]
    assert ids == [old.snapshot_id, shared.snapshot_id]
    assert [one.integration for one in snapshots.latest_good(YEAR, "lincoln")] == ["lincoln-ps", "shared"]
    assert [one.integration for one in snapshots.latest_good(YEAR, "washington")] == ["shared"]
    assert [one.integration for one in snapshots.latest_good(YEAR, integrations=["shared"])] == ["shared"]
    assert snapshots.latest_good("2024-2025") == []
    assert snapshots.latest("lincoln-ps", YEAR).verdict == "rejected"
    assert snapshots.last_rows("lincoln-ps", YEAR) == {"students": 1}
    assert old.age.total_seconds() >= 0


def test_equal_content_has_an_equal_fingerprint_whatever_its_order(snapshots, database):
    add_integration(database, "lincoln-ps")
    two = [sis_student("1"), sis_student("2")]
    first = good_snapshot(snapshots, students=two)
    second = good_snapshot(snapshots, students=two[::-1])
    assert first.snapshot_id != second.snapshot_id
    assert fingerprint([first]) == fingerprint([second])
    assert fingerprint([first]) != fingerprint([good_snapshot(snapshots, students=two, verdict="partial")])
    assert fingerprint([first]) != fingerprint([good_snapshot(snapshots, students=[*two, sis_student("3")])])
    empty_text, null = (good_snapshot(snapshots, students=[sis_student("1", ssid=value)]) for value in ("", None))
    assert empty_text.roster_hash != null.roster_hash
    names = [{"first_name": "Ada", "last_name": "Moss"}, {"first_name": "Moss", "last_name": "Ada"}]
    pairs = ([sis_student("1", **names[place]), sis_student("2", **names[1 - place])] for place in (0, 1))
    assert len({good_snapshot(snapshots, students=pair).roster_hash for pair in pairs}) == 2


def test_a_row_in_quarantine_counts_as_content(snapshots):
    """It is present, so it must not look like a row that is gone."""
    reason = {"row": [0], "sis_id": ["2"], "column": ["last_name"], "reason": ["is missing"]}
    standard = {"students": pd.DataFrame({"sis_id": ["2"]}, dtype="str")}
    hashes = set()
    for rejected in ({}, {"students": pd.DataFrame(reason)}):
        snapshot = read_pages(snapshots, b"[]")
        frames = {"students": pandas_frame("students", [sis_student("1")])}
        hashes.add(snapshots.write_roster(snapshot, frames, rejected, standard).roster_hash)
    assert len(hashes) == 2


def test_written_files_are_never_overwritten(snapshots):
    snapshots.files.write("raw/x", b"1")
    with pytest.raises(InternalError, match="exists already"):
        snapshots.files.write("raw/x", b"2")
    assert snapshots.files.read("raw/x") == b"1"


def test_parquet_files_are_readable_by_anything(snapshots, tmp_path):
    snapshot = good_snapshot(snapshots, schools=[SCHOOL])
    [path] = (tmp_path / "data").rglob("schools.parquet")
    assert Path(path).parent.name == snapshot.snapshot_id
    assert pl.read_parquet(path)["name"].to_list() == ["North"]


def test_the_latest_reading_is_the_runs_own_where_it_has_one(snapshots):
    first = read_pages(snapshots, b"[1]")
    writer = snapshots.begin("lincoln-ps", "powerschool", YEAR, run_id="run-2")
    second = writer.finish([], "partial", 0, 0.0)
    snapshots.begin("lincoln-ps", "powerschool", YEAR, run_id="run-3")
    assert snapshots.latest_read("lincoln-ps", YEAR).snapshot_id == second.snapshot_id
    assert snapshots.latest_read("lincoln-ps", YEAR, run_id="run-1").snapshot_id == first.snapshot_id
    assert snapshots.latest_read("lincoln-ps", YEAR, run_id="run-3").snapshot_id == second.snapshot_id
    assert snapshots.latest_read("lincoln-ic", YEAR) is None
    assert snapshots.good_years() == []
    good_snapshot(snapshots)
    assert snapshots.good_years() == [YEAR]


@dataclass(frozen=True)
class Pages(Read):
    """A reading that also says how many pages it took."""

    pages: int = 1


# --- readings that were interrupted ----------------------------------------------------------------------------------


def began(store, *pages, settings="s1", provider="powerschool"):
    """A reading with some pages of `students`, left as a killed process leaves it."""
    writer = store.begin("lincoln-ps", provider, YEAR, run_id="run-1", settings_hash=settings)
    for number, body in enumerate(pages, 1):
        origin = Origin(f"request-{number}", {"link": "<x>"}, 7)
        writer.add_page("students", {"school": "1"}, number, body, 1, origin=origin, total=9)
    return writer.snapshot


def go_on(store, settings="s1", provider="powerschool", hours=6.0):
    within = timedelta(hours=hours)
    return store.go_on("lincoln-ps", provider, YEAR, "run-2", settings_hash=settings, within=within)


def test_a_killed_reading_is_gone_on_with_behind_its_pages(snapshots, database):
    left = began(snapshots, b"one", b"two")
    writer = go_on(snapshots)
    assert (writer.snapshot.snapshot_id, writer.snapshot.run_id, writer.snapshot.resumed) == (
        left.snapshot_id,
        "run-2",
        1,
    )
    assert writer.pages_before == 2
    first, second = writer.before("students")
    assert (first.body(), second.body()) == (b"one", b"two")
    assert (second.origin, second.total) == (Origin("request-2", {"link": "<x>"}, 7), 9)
    for number, page in enumerate((first, second), 1):
        writer.add_page("students", {"school": "1"}, number, page.body(), 1, kept=True)
    writer.add_page("students", {"school": "1"}, 3, b"three", 1)
    snapshot = writer.finish([Read("students", 3)], "complete", 1, 0.1)
    whole = read_pages(snapshots, b"one", b"two", b"three")
    assert snapshot.content_hash == whole.content_hash
    assert [body for _, body in snapshots.open_raw(snapshot.snapshot_id).bodies("students")] == [
        b"one",
        b"two",
        b"three",
    ]
    with database.connect() as connection:
        assert connection.scalar(text("select count(*) from sis.snapshot_pages")) == 0
    assert go_on(snapshots) is None


def test_what_was_not_taken_over_is_not_in_the_snapshot(snapshots):
    """A page that differs drops those behind it, and a resource that is not read any more is gone."""
    writer = snapshots.begin("lincoln-ps", "powerschool", YEAR, settings_hash="s1")
    for resource in ("students", "staff"):
        for number in (1, 2, 3):
            writer.add_page(resource, {}, number, b"old", 1, origin=Origin(f"{number}", {}))
    writer = go_on(snapshots)
    writer.add_page("students", {}, 1, b"old", 1, kept=True)
    writer.add_page("students", {}, 2, b"new", 1)
    snapshot = writer.finish([Read("students", 2)], "complete", 1, 0.1)
    raw = snapshots.open_raw(snapshot.snapshot_id)
    assert raw.resources == ["students"]
    assert [body for _, body in raw.bodies("students")] == [b"old", b"new"]
    files = snapshots.files
    assert files.names(f"{snapshot.path}/students") == ["00001.json.zst", "00002.1.json.zst"]
    assert files.names(f"{snapshot.path}/staff") == []


def test_files_without_a_row_are_removed_before_going_on(snapshots):
    left = began(snapshots, b"one")
    orphans = ["students/00002.json.zst", "students/.00003.json.zst.77.part", "courses/00001.json.zst", "manifest.json"]
    for name in orphans:
        snapshots.files.write(f"{left.path}/{name}", b"left behind")
    go_on(snapshots)
    assert snapshots.files.names(f"{left.path}/students") == ["00001.json.zst"]
    assert not any(snapshots.files.exists(f"{left.path}/{name}") for name in orphans)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"settings": "s2"}, "the integration was changed since"),
        ({"provider": "oneroster"}, "the integration was changed since"),
        ({"hours": 0.0}, "it was too old to go on with"),
    ],
)
def test_a_reading_that_does_not_fit_is_given_up(snapshots, database, changed, reason):
    left = began(snapshots, b"one")
    assert go_on(snapshots, **changed) is None
    after = snapshots.get(left.snapshot_id)
    assert (after.verdict, after.evidence) == ("rejected", {"abandoned": reason})
    with database.connect() as connection:
        assert connection.scalar(text("select count(*) from sis.snapshot_pages")) == 0


def lost_to(store):
    """(writer of a process that lost the lock, writer of the one that has gone on meanwhile)."""
    first = store.begin("lincoln-ps", "powerschool", YEAR, settings_hash="s1")
    for number in (1, 2):
        first.add_page("students", {}, number, b"page %d" % number, 1, origin=Origin(f"request-{number}", {}))
    second = go_on(store)
    assert second.snapshot.snapshot_id == first.snapshot.snapshot_id
    return first, second


WRITES = {
    "add_page": lambda writer: writer.add_page("students", {}, 3, b"late", 1),
    "start over": lambda writer: writer.add_page("students", {}, 1, b"late", 1),
    "build_on": lambda writer: writer.build_on(None, since=None, watermark=None),
    "finish": lambda writer: writer.finish([Read("students", 2)], "complete", 1, 0.1),
    "interrupt": lambda writer: writer.interrupt("late"),
    "abandon": lambda writer: writer.abandon("late"),
}


@pytest.mark.parametrize("when", ["under way", "ended"])
@pytest.mark.parametrize("write", WRITES)
def test_who_lost_the_lock_changes_nothing_of_what_another_process_goes_on_with(snapshots, database, write, when):
    first, second = lost_to(snapshots)
    for number, page in enumerate(second.before("students"), 1):
        second.add_page("students", {}, number, page.body(), 1, kept=True)
    second.add_page("students", {}, 3, b"page 3", 1)
    if when == "ended":
        second.finish([Read("students", 3)], "complete", 1, 0.1)
    before = snapshots.get(second.snapshot.snapshot_id)
    with pytest.raises(AlreadyRunningError, match="another process took the reading over or ended it"):
        WRITES[write](first)
    assert first.closed
    with database.connect() as connection:
        rows = connection.scalar(text("select count(*) from sis.snapshot_pages"))
    assert rows == (0 if when == "ended" else 3)
    after = before if when == "ended" else second.finish([Read("students", 3)], "complete", 1, 0.1)
    assert replace(snapshots.get(before.snapshot_id), age=before.age) == replace(after, age=before.age)
    assert after.completeness == "complete"
    bodies = [body for _, body in snapshots.open_raw(after.snapshot_id).bodies("students")]
    assert bodies == [b"page 1", b"page 2", b"page 3"]
    assert len(snapshots.files.names(f"{after.path}/students")) == 3, "what came too late is removed"


def test_who_lost_the_lock_and_is_first_at_the_end_has_the_snapshot(snapshots):
    """The lock was lost, and nobody has gone on yet: what was read stands by itself."""
    first = snapshots.begin("lincoln-ps", "powerschool", YEAR, settings_hash="s1")
    first.add_page("students", {}, 1, b"page 1", 1, origin=Origin("request-1", {}))
    left = snapshots.get(first.snapshot.snapshot_id)
    done = first.finish([Read("students", 1)], "complete", 1, 0.1)
    assert snapshots._taken_over(left, "run-2") is None
    snapshots._give_up(left, "too late")
    assert snapshots.get(done.snapshot_id).completeness == "complete"
    assert snapshots.get(done.snapshot_id).verdict == "pending"


def test_a_manifest_left_in_the_last_moment_is_replaced_by_who_went_on(snapshots):
    _, second = lost_to(snapshots)
    snapshots.files.write(f"{second.snapshot.path}/manifest.json", b"{}")
    for number, page in enumerate(second.before("students"), 1):
        second.add_page("students", {}, number, page.body(), 1, kept=True)
    done = second.finish([Read("students", 2)], "complete", 1, 0.1)
    assert snapshots.open_raw(done.snapshot_id).resources == ["students"]


def test_a_reading_that_can_not_be_ended_began_when_it_began(snapshots, monkeypatch):
    """A full disk at the very end: who goes on must ask for changes from when the first page was read."""
    began = datetime(2026, 10, 5, 12, tzinfo=UTC)
    writer = snapshots.begin("lincoln-ps", "powerschool", YEAR, settings_hash="s1")
    writer.build_on(None, since=None, watermark=began)
    writer.add_page("students", {}, 1, b"page 1", 1, origin=Origin("request-1", {}))

    def full(*_args, **_more):
        raise TransientError("No space left.", code="transient.storage")

    with monkeypatch.context() as disk:
        disk.setattr(snapshots.files, "write_json", full)
        with pytest.raises(TransientError):
            writer.finish([Read("students", 1)], "delta", 1, 0.1, builds=False)
    assert writer.interrupt("the disk is full") == 1
    again = go_on(snapshots)
    assert again.snapshot.watermark == began
    assert again.finish([Read("students", 1)], "delta", 1, 0.1, builds=False).watermark is None


def test_rows_are_expected_as_they_were_last_proven(snapshots):
    def read(completeness="complete", **found):
        writer = snapshots.begin("lincoln-ps", "powerschool", YEAR)
        readings = [Pages(name, rows, complete=whole, pages=rows // 10 + 1) for name, (rows, whole) in found.items()]
        writer.finish(readings, completeness, 1, 0.1)

    assert snapshots.last_rows("lincoln-ps", YEAR) == {}
    read(students=(40, True), courses=(7, True), never=(3, False))
    for _ in range(3):
        read("partial", students=(41, True), courses=(0, False), never=(4, False))
    snapshots.begin("lincoln-ps", "powerschool", YEAR).abandon("the source was down")
    assert snapshots.last_rows("lincoln-ps", YEAR) == {"students": 41, "courses": 7, "never": 4}
    assert snapshots.last_pages("lincoln-ps", YEAR) == {"students": 5, "courses": 1, "never": 1}
    read(students=(41, True), courses=(0, True))
    assert snapshots.last_rows("lincoln-ps", YEAR)["courses"] == 0, "that it is gone is proven now"
    read("partial", students=(41, True), courses=(0, False), never=(0, False))
    assert snapshots.last_rows("lincoln-ps", YEAR)["never"] == 4, "that nothing came proves nothing"
    assert snapshots.last_pages("lincoln-ps", YEAR)["never"] == 1
    read("partial", students=(41, True), courses=(9, False), never=(5, False))
    assert snapshots.last_rows("lincoln-ps", YEAR) == {"students": 41, "courses": 0, "never": 5}
    assert snapshots.last_rows("lincoln-ps", "2024-2025") == {}


def test_only_the_newest_reading_with_pages_is_gone_on_with(snapshots):
    old, newest = began(snapshots, b"one"), began(snapshots, b"other")
    assert go_on(snapshots).snapshot.snapshot_id == newest.snapshot_id
    assert snapshots.get(old.snapshot_id).evidence == {"abandoned": "a newer reading took its place"}
    empty_one = began(snapshots)
    assert go_on(snapshots) is None
    assert snapshots.get(empty_one.snapshot_id).verdict == "rejected"


def test_an_interrupted_reading_says_why_and_stays_open(snapshots):
    writer = snapshots.begin("lincoln-ps", "powerschool", YEAR, settings_hash="s1")
    writer.add_page("students", {}, 1, b"one", 1)
    assert writer.interrupt("the source was down") == 1
    left = snapshots.get(writer.snapshot.snapshot_id)
    assert (left.verdict, left.finished_at) == ("pending", None)
    assert left.evidence == {"interrupted": "the source was down", "pages": 1}
    with pytest.raises(InternalError, match="takes no more pages"):
        writer.add_page("students", {}, 2, b"", 0)
    assert go_on(snapshots).before("students") == []  # nobody could tell what that page answers


def test_a_page_that_was_changed_is_not_given_back(snapshots, tmp_path):
    left = began(snapshots, b"one")
    (tmp_path / "data" / left.path / "students" / "00001.json.zst").write_bytes(b"rubbish")
    (page,) = go_on(snapshots).before("students")
    with pytest.raises(DataError, match="changed after it was written"):
        page.body()


def test_a_disk_that_takes_nothing_is_a_passing_failure(snapshots, tmp_path):
    snapshots.files.write("raw/file", b"")
    with pytest.raises(TransientError, match=r"raw/file/x could not be written: ") as caught:
        snapshots.files.write("raw/file/x", b"[]")
    assert caught.value.code == "transient.storage"
    assert list((tmp_path / "data").rglob("*.part")) == []
