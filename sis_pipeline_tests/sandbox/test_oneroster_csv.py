"""The CSV writer: files, headers, manifest, whole sets and deltas."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import pytest

from sis_pipeline.sandbox.oneroster_csv import FILES, Version, write_bundle
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def folder(world: World, where: Path, **how: str) -> dict[str, list[dict[str, str]]]:
    day = int(how.pop("day", "1"))
    write_bundle(world.view("csv", day), where / "set", **how)
    return {path.stem: table(path.read_text(encoding="utf-8")) for path in (where / "set").iterdir()}


@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_a_set_has_the_files_and_columns_of_its_version(world: World, tmp_path: Path, version: Version) -> None:
    files = folder(world, tmp_path, version=version)
    assert files.keys() == {*FILES[version], "manifest"}
    for name, columns in FILES[version].items():
        assert list(files[name][0]) == list(columns)
    said = {row["propertyName"]: row["value"] for row in files["manifest"]}
    assert said["oneroster.version"] == version
    assert {said[f"file.{name}"] for name in FILES[version]} == {"bulk"}
    assert said["file.lineItems"] == "absent"


def test_a_set_holds_what_the_truth_says(world: World, tmp_path: Path) -> None:
    files = folder(world, tmp_path)
    truth = world.truth(1).rows["csv"]
    terms = {row["sourcedId"] for row in files["academicSessions"] if row["schoolYear"] == str(world.year + 1)}
    classes = {row["sourcedId"] for row in files["classes"] if row["termSourcedIds"] in terms}
    assert len(classes) == truth["sections"].good
    seats = [row for row in files["enrollments"] if row["role"] == "student"]
    known = {row["sourcedId"] for row in files["classes"]}
    current = [row for row in seats if row["classSourcedId"] in classes or row["classSourcedId"] not in known]
    assert len(current) == truth["section_enrollments"].good + truth["section_enrollments"].bad
    roles = {row["userSourcedId"] for row in files["roles"] if row["role"] == "student"}
    assert {row["userSourcedId"] for row in seats} <= roles
    assert len({row["sourcedId"] for row in files["roles"]}) == len(files["roles"])
    assert any(row["userIds"].startswith("{stateID:") for row in files["users"])


def test_a_zip_holds_the_same_files_and_is_the_same_every_time(world: World, tmp_path: Path) -> None:
    first = write_bundle(world.view("csv", 1), tmp_path / "a.zip")
    second = write_bundle(world.view("csv", 1), tmp_path / "b.zip")
    assert first.read_bytes() == second.read_bytes()
    write_bundle(world.view("csv", 1), tmp_path / "folder")
    with zipfile.ZipFile(first) as archive:
        for name in archive.namelist():
            assert archive.read(name) == (tmp_path / "folder" / name).read_bytes()


def test_a_whole_set_leaves_the_departed_out_and_a_delta_names_them(tmp_path: Path) -> None:
    world = World(systems=[System("csv", "oneroster_csv", 200)])
    before = folder(world, tmp_path / "1")
    now = folder(world, tmp_path / "2", day="2")
    delta = folder(world, tmp_path / "3", day="2", mode="delta")
    for name in FILES["1.2"]:
        old = {row["sourcedId"]: row for row in before[name]}
        new = {row["sourcedId"]: row for row in now[name]}
        changed = {row["sourcedId"]: row for row in delta[name]}
        gone = {key for key, row in changed.items() if row["status"] == "tobedeleted"}
        assert gone == old.keys() - new.keys()
        assert changed.keys() - gone == {key for key, row in new.items() if old.get(key) != row}
    assert {row["status"] for row in delta["users"]} == {"active", "tobedeleted"}
    assert {row["value"] for row in delta["manifest"] if row["propertyName"] == "file.users"} == {"delta"}


def test_encodings_and_byte_order_marks(world: World, tmp_path: Path) -> None:
    write_bundle(world.view("csv", 1), tmp_path / "bom", bom=True)
    assert (tmp_path / "bom" / "users.csv").read_bytes().startswith(b"\xef\xbb\xbfsourcedId,")
    write_bundle(world.view("csv", 1), tmp_path / "wide", encoding="utf-16")
    plain = write_bundle(world.view("csv", 1), tmp_path / "plain") / "users.csv"
    assert (tmp_path / "wide" / "users.csv").read_text(encoding="utf-16") == plain.read_text(encoding="utf-8")


def test_the_first_day_has_no_delta(world: World, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="day 1 has none"):
        write_bundle(world.view("csv", 1), tmp_path / "x", mode="delta")
