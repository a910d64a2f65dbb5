"""An exported set is read back as the roster it was made of; it is private, whole, the same twice, and in the audit log."""

from __future__ import annotations

import os
import stat
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from sqlalchemy import Engine, text

from sis_pipeline.connect.errors import ConfigError, InternalError, TransientError
from sis_pipeline.db.tables import sync_operations
from sis_pipeline.providers.oneroster_bundle import Bundle, contract
from sis_pipeline.providers.oneroster_csv import OneRosterCsv, OneRosterCsvSettings
from sis_pipeline.roster.frames import to_polars
from sis_pipeline.roster.model import ENTITIES, MERGED, STUDENTS
from sis_pipeline.roster.oneroster_export import VERSIONS, Version
from sis_pipeline.roster.validate import check_references
from sis_pipeline.store import bulk, oneroster_export
from sis_pipeline.store.oneroster_export import Exported, export_oneroster
from sis_pipeline_tests.providers.sources import Pulled, Script, pull
from sis_pipeline_tests.roster.elmsworth import DISTRICT, STREET, YEAR, published, uid


@pytest.fixture
def engine(database: Engine) -> Engine:
    """A database in which the district is published."""
    with database.begin() as connection:
        for name, frame in published().items():
            bulk.append(connection, MERGED[name], frame, scope={"district": DISTRICT})
        connection.execute(
            sync_operations.insert().values(
                district=DISTRICT, school_year=YEAR.key, operation_id=uid("operation"), epoch=7, base_epoch=6,
                status="published", fingerprint="f", inputs={},
            )
        )  # fmt: skip
    return database


def export(engine: Engine, folder: Path, **options: Any) -> Exported:
    return export_oneroster(engine, folder, DISTRICT, YEAR.key, actor="registrar", **options)


def read_back(path: Path) -> Pulled:
    settings = OneRosterCsvSettings(path=path, state="TX", district=DISTRICT)
    return pull(OneRosterCsv(settings), Script({}), YEAR)


def good(found: Pulled, entity: str) -> pl.DataFrame:
    return to_polars(found.good(entity), ENTITIES[entity])


class TestRoundTrip:
    """Exported, read by our own provider, validated: the same roster."""

    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize("zipped", [False, True])
    def test_nothing_is_rejected_or_dangling(
        self, engine: Engine, tmp_path: Path, version: Version, zipped: bool
    ) -> None:
        done = export(engine, tmp_path / "out", version=version, zipped=zipped)
        assert list(Bundle(done.path).notes()) == []
        assert Bundle(done.path).version == version
        found = read_back(done.path)
        assert all(reading.complete for reading in found.readings)
        assert {name: it.rejected_rows for name, it in found.validated.items() if it.rejected_rows} == {}
        frames = {name: it.frame for name, it in found.validated.items()}
        assert [problem for problem in check_references(frames) if problem.rows] == []

    @pytest.mark.parametrize(("version", "left"), [("1.1", {"Cy"}), ("1.2", set())])
    def test_the_same_students(self, engine: Engine, tmp_path: Path, version: Version, left: set[str]) -> None:
        found = good(read_back(export(engine, tmp_path / "out", version=version).path), "students")
        gone = [uid(name) for name in ("Eve", "Hal", *left)]
        there = published()["students"].filter(~pl.col("student_id").is_in(gone)).sort("student_id")
        held = [
            "ssid",
            "local_id",
            "first_name",
            "middle_name",
            "last_name",
            "birth_date",
            "phone",
            "mobile_phone",
            "email",
        ]
        if version == "1.2":
            held += ["sex", "username"]
        held += [column.name for column in STUDENTS if column.about.startswith("federal")]
        read = found.sort("sis_id")
        assert read["sis_id"].to_list() == there["student_id"].to_list()
        for column in held:
            assert read[column].to_list() == there[column].to_list(), column
        assert read["grade_level"].unique().to_list() == ["09"]

    def test_the_same_enrollments(self, engine: Engine, tmp_path: Path) -> None:
        found = good(read_back(export(engine, tmp_path / "out").path), "enrollments")
        columns = ["student_sis_id", "school_sis_id", "entry_date", "exit_date", "enrollment_type"]
        there = published()["enrollments"].filter(pl.col("status") != "no_show").drop("sis_id")
        stays = {
            (row["student_id"], row["school_id"], row["entry_date"], row["exit_date"], row["enrollment_type"])
            for row in there.to_dicts()
        }
        gus = [one for one in stays if one[0] == uid("Gus")]
        returned = (uid("Gus"), uid("North"), date(2025, 8, 18), None, "primary")
        assert set(found.select(columns).rows()) == stays - set(gus) | {returned}, (
            "our reader joins two stays in one place"
        )
        ended = {one[0] for one in found.filter(status="withdrawn").select("student_sis_id").rows()}
        assert ended == {uid("Cy"), uid("Dee")}

    def test_what_1_1_holds_of_the_enrollments(self, engine: Engine, tmp_path: Path) -> None:
        found = good(read_back(export(engine, tmp_path / "out", version="1.1").path), "enrollments")
        is_open = published()["enrollments"].filter(pl.col("status") == "active")
        read = found.filter(status="active").select("student_sis_id", "school_sis_id").rows()
        assert sorted(read) == sorted(is_open.select("student_id", "school_id").rows())

    @pytest.mark.parametrize("version", VERSIONS)
    def test_the_same_sections_and_seats(self, engine: Engine, tmp_path: Path, version: Version) -> None:
        found, tables = read_back(export(engine, tmp_path / "out", version=version).path), published()
        renamed = {"sis_id": "section_id", "teacher_sis_id": "teacher_id", "school_sis_id": "school_id"}
        columns = ["section_id", "title", "section_code", "school_id", "location", "periods", "grade_levels"]
        read = good(found, "sections").rename(renamed)
        assert read.select(columns).sort("section_id").equals(tables["sections"].select(columns).sort("section_id"))
        leads = tables["sections"].drop_nulls("teacher_id").select("section_id", "teacher_id")
        assert set(leads.rows()) <= set(read.select("section_id", "teacher_id").rows())
        left = [uid(name) for name in ("Eve", "Nobody", *(["Cy"] if version == "1.1" else []))]
        seats = tables["section_enrollments"].filter((pl.col("role") != "other") & ~pl.col("person_id").is_in(left))
        key = ["section_id", "person_id", "role", "begin_date", "end_date"]
        expected = {*seats.select(key).rows(), (uid("ART"), uid("Tia"), "teacher", None, None)}
        sitting = good(found, "section_enrollments").rename(
            {"section_sis_id": "section_id", "person_sis_id": "person_id"}
        )
        assert sitting.height == len(expected)
        assert set(sitting.select(key).rows()) == expected

    def test_an_apostrophe_of_somebody_elses_set_belongs_to_the_value(self, engine: Engine, tmp_path: Path) -> None:
        done = export(engine, tmp_path / "out")
        manifest = done.path / "manifest.csv"
        manifest.write_text(manifest.read_text().replace("sis_pipeline", "another"))
        ada = good(read_back(done.path), "students").filter(sis_id=uid("Ada"))
        assert ada["username"].item() == "'@ada"


class TestFiles:
    @pytest.mark.parametrize("zipped", [False, True])
    def test_two_exports_of_one_state_are_the_same_bytes(self, engine: Engine, tmp_path: Path, zipped: bool) -> None:
        first, second = (export(engine, tmp_path / name, zipped=zipped).path for name in "ab")
        contents = [{file.name: file.read_bytes() for file in sorted(path.parent.rglob("*.*") if zipped else path.iterdir())} for path in (first, second)]  # fmt: skip
        assert contents[0] == contents[1] != {}

    def test_the_columns_are_the_bindings_and_cells_a_bulk_set_has_none_of_are_empty(
        self, engine: Engine, tmp_path: Path
    ) -> None:
        for version in VERSIONS:
            done = export(engine, tmp_path / version, version=version)
            for name, about in contract(version).files.items():
                frame = pl.read_csv(done.path / f"{name}.csv", infer_schema=False)
                assert frame.columns == about["columns"]
                assert frame.height == done.rows[name]
                assert frame.select(pl.col("status", "dateLastModified").is_not_null().any()).row(0) == (False, False)
            assert {file.stem for file in done.path.iterdir()} == {*contract(version).files, "manifest"}

    @pytest.mark.parametrize("zipped", [False, True])
    def test_files_are_private_and_nothing_is_left_beside_them(
        self, engine: Engine, tmp_path: Path, zipped: bool
    ) -> None:
        folder = tmp_path / "new" / "out"
        os.umask(os.umask(0o022))
        export(engine, folder, zipped=zipped)
        export(engine, folder, zipped=zipped)
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").rglob("*")}
        assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
        assert (
            {mode for path, mode in modes.items() if path.is_dir()}
            == {0o700}
            == {stat.S_IMODE(folder.parent.stat().st_mode)}
        )
        assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["out"]
        if zipped:
            assert [entry.name for entry in folder.iterdir()] == ["oneroster.zip"]
            with zipfile.ZipFile(folder / "oneroster.zip") as archive:
                assert archive.testzip() is None

    def test_a_former_export_is_replaced_whole(self, engine: Engine, tmp_path: Path) -> None:
        export(engine, tmp_path / "out", version="1.2")
        export(engine, tmp_path / "out", version="1.1")
        assert not (tmp_path / "out" / "roles.csv").exists()

    @pytest.mark.parametrize(
        ("case", "zipped"),
        [("notes", False), ("notes", True), ("file", False), ("foreign", False), ("other", False), ("csv", True), ("zip", False)],
    )  # fmt: skip
    def test_a_folder_that_holds_something_else_is_refused(
        self, engine: Engine, tmp_path: Path, case: str, zipped: bool
    ) -> None:
        out = tmp_path / "out"
        match case:
            case "notes":
                export(engine, out, zipped=zipped)
                (out / "notes.txt").write_text("mine")
            case "file":
                out.write_text("mine")
            case "foreign":
                out.mkdir()
                (out / "orgs.csv").write_text("sourcedId\n")
            case "other":
                export(engine, out)
                manifest = out / "manifest.csv"
                manifest.write_text(manifest.read_text().replace(DISTRICT, "fernhollow"))
            case _:
                export(engine, out, zipped=case == "zip")
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(ConfigError) as refused:
            export(engine, out, zipped=zipped)
        assert refused.value.code == "config.export_target"
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    def test_an_empty_folder_is_taken(self, engine: Engine, tmp_path: Path) -> None:
        for zipped in (False, True):
            folder = tmp_path / str(zipped)
            folder.mkdir(0o755)
            export(engine, folder, zipped=zipped)
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    @pytest.mark.parametrize("zipped", [False, True])
    def test_a_failure_leaves_the_former_export(
        self, engine: Engine, tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        export(engine, tmp_path / "out", zipped=zipped)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(oneroster_export, "_on_disk", full)
        with pytest.raises(TransientError, match="No space left"):
            export(engine, tmp_path / "out", zipped=zipped)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    def test_the_former_folder_is_back_where_the_last_step_fails(
        self, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        export(engine, tmp_path / "out")
        rename = Path.rename

        def refuse(self: Path, target: Path) -> Path:
            if self.name.endswith(f"{os.getpid()}.part") and ".former." not in self.name:
                raise PermissionError(13, "Permission denied")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", refuse)
        with pytest.raises(TransientError, match="Permission denied"):
            export(engine, tmp_path / "out", version="1.1")
        assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
        assert Bundle(tmp_path / "out").version == "1.2"

    def test_what_a_killed_export_left_is_in_nobodys_way_and_deleted_a_day_later(
        self, engine: Engine, tmp_path: Path
    ) -> None:
        old, young, own = (tmp_path / f".out.{number}.part" for number in (1, 2, os.getpid()))
        former = tmp_path / f".out.former.{os.getpid()}.part"
        for folder in (old, young, own, former):
            folder.mkdir()
            (folder / "users.csv").write_text("x")
        os.utime(old, (0, 0))
        export(engine, tmp_path / "out")
        export(engine, tmp_path / "out")
        assert {entry.name for entry in tmp_path.iterdir()} == {"out", young.name}


class TestRecord:
    def test_an_export_is_in_the_audit_log_without_values(self, engine: Engine, tmp_path: Path) -> None:
        done = export(engine, tmp_path / "out", reason="for the library")
        with engine.connect() as connection:
            (entry,) = connection.execute(text("select * from sis.audit_log")).mappings().all()
        assert (entry["actor"], entry["action"], entry["district"], entry["subject"]) == (
            "registrar", "export.oneroster", DISTRICT, YEAR.key,
        )  # fmt: skip
        details = entry["details"]
        assert (details["reason"], details["epoch"], details["rows"]["users"]) == (
            "for the library",
            7,
            done.rows["users"],
        )
        assert not {"Ada", "Moss", STREET} & set(str(dict(details)).replace("'", " ").split())

    def test_what_is_not_published_is_not_exported(self, engine: Engine, tmp_path: Path) -> None:
        for district, year in ((DISTRICT, "2024-2025"), ("fernhollow", YEAR.key)):
            with pytest.raises(ConfigError) as refused:
                export_oneroster(engine, tmp_path / "out", district, year)
            assert refused.value.code == "config.not_published"
        assert not (tmp_path / "out").exists()

    def test_nothing_is_in_place_that_the_log_does_not_know(
        self, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def lost(*_: object, **__: object) -> None:
            raise InternalError("the log can't be written", code="internal.state")

        monkeypatch.setattr(oneroster_export.audit, "append", lost)
        with pytest.raises(InternalError, match="the log"):
            export(engine, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []
