"""Modes 27 and 28: rows that stand for nobody, and files that are not written as agreed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sis_pipeline.connect.errors import ContractError
from sis_pipeline.providers.oneroster_csv import OneRosterCsv, OneRosterCsvSettings
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.sandbox.oneroster_csv import write_bundle
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.providers.sources import Pulled, Script, pull
from sis_pipeline_tests.providers.test_powerschool import MARIBEL, earlier, provider, snapshot, students

WORLD = World(systems=(System("csv", "oneroster_csv", 20),))


def test_27_rows_that_the_vendor_keeps_for_nobody_are_left_out_and_counted() -> None:
    """A DCID below 1, or the student number 0; with what hangs on them."""
    nobody = [{**MARIBEL, "id": 0}, {**MARIBEL, "id": -100}, {**MARIBEL, "id": 9001, "local_id": 0}]
    seats = {
        "name": "cc",
        "record": [
            {"dcid": "1", "students_dcid": "9001", "sections_dcid": "5", "dateenrolled": "2025-08-11", "dateleft": "2026-05-29"}
        ],
    }  # fmt: skip
    raw = snapshot(
        students=students(MARIBEL, *nobody),
        school_enrollments=earlier(students_dcid="9001"),
        section_enrollments=seats,
    )
    frames = provider().standardise(raw)
    assert frames["students"]["sis_id"].tolist() == ["8841"]
    assert frames["enrollments"]["student_sis_id"].tolist() == ["8841"]
    assert frames["section_enrollments"].empty
    assert frames["students"].attrs["placeholders"] == 3


def delivered(folder: Path) -> Pulled:
    settings = OneRosterCsvSettings(path=str(folder), state="NJ", district="fernhollow")
    return pull(OneRosterCsv(settings), Script({}), SchoolYear.parse(WORLD.school_year))


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[[Callable[[str], str], str], Path]:
    """A delivery of the sandbox, whose file of users is rewritten."""

    def rewritten(change: Callable[[str], str], encoding: str = "utf-8") -> Path:
        write_bundle(WORLD.view("csv", 1), tmp_path)
        users = tmp_path / "users.csv"
        users.write_bytes(change(users.read_text("utf-8")).encode(encoding))
        return tmp_path

    return rewritten


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_28_a_file_in_another_encoding_is_read_as_it_is_meant(bundle, encoding: str) -> None:
    plain = delivered(bundle(str)).good("students")
    assert delivered(bundle(str, encoding)).good("students").equals(plain)
    assert len(plain) == 20


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace("familyName", "lastName", 1), "required column familyName is missing"),
        (lambda text: text.replace("familyName", "givenName", 1), "column givenName is there more than once"),
        (lambda text: text.replace("familyName", "family\u200bName", 1), "required column familyName is missing"),
    ],
    ids=["renamed", "twice", "with a character that nobody sees"],
)
def test_28_a_header_that_is_not_as_agreed_stops_the_delivery_by_name(bundle, change, told: str) -> None:
    with pytest.raises(ContractError, match=told):
        delivered(bundle(change))
