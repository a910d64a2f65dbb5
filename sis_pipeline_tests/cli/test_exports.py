"""`sis export oneroster` from the outside: what it says, writes and refuses."""

from __future__ import annotations

import pytest

from sis_pipeline.cli.output import ExitCode
from sis_pipeline.db.tables import sync_operations
from sis_pipeline.roster.model import MERGED
from sis_pipeline.store import bulk
from sis_pipeline_tests.roster.elmsworth import DISTRICT, YEAR, published, uid

WHOSE = ("--district", DISTRICT, "--school-year", YEAR.key)


@pytest.fixture
def elmsworth(home, database):
    with database.begin() as connection:
        for name, frame in published().items():
            bulk.append(connection, MERGED[name], frame, scope={"district": DISTRICT})
        operation = {"operation_id": uid("operation"), "epoch": 1, "base_epoch": 0, "status": "published"}
        connection.execute(
            sync_operations.insert().values(
                district=DISTRICT, school_year=YEAR.key, fingerprint="f", inputs={}, **operation
            )
        )
    return home


@pytest.mark.usefixtures("elmsworth")
def test_a_set_is_written_and_told(sis, tmp_path):
    said = sis("export", "oneroster", tmp_path / "out", *WHOSE, "--reason", "for the library")
    assert said.code == ExitCode.OK, said.err
    assert ["users", "11"] in [line.split() for line in said.out.splitlines()]
    assert ["students", "1"] in [line.split() for line in said.out.splitlines()], "what is left out is told"
    done = sis("export", "oneroster", tmp_path / "out", *WHOSE, "--version", "1.1", "--json").json["export"]
    assert (done["version"], done["rows"]["users"], done["path"]) == ("1.1", 10, str(tmp_path / "out"))
    zipped = sis("export", "oneroster", tmp_path / "zip", *WHOSE, "--zip", "--preferred-names", "--json").json["export"]
    assert zipped["path"] == str(tmp_path / "zip" / "oneroster.zip")
    entries = sis("audit", "show", "--action", "export", "--json").json["entries"]
    assert [entry["details"]["preferred_names"] for entry in entries] == [True, False, False]
    assert entries[-1]["details"]["reason"] == "for the library"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((*WHOSE, "--version", "1.0"), ExitCode.USAGE, "1.1, 1.2"),
        ((*WHOSE, "--version", "1.1", "--preferred-names"), ExitCode.USAGE, "preferred names"),
        (("--school-year", YEAR.key), ExitCode.USAGE, "--district"),
        (("--district", DISTRICT, "--school-year", "25-26"), ExitCode.USAGE, "school year"),
        (("--district", "nowhere", "--school-year", YEAR.key), ExitCode.CONFIG, "nothing is published"),
        (("--district", "../up", "--school-year", YEAR.key), ExitCode.CONFIG, "can't be the id of a district"),
        (("--district", DISTRICT), ExitCode.CONFIG, f"published is {YEAR.key}"),
    ],
)
@pytest.mark.usefixtures("elmsworth")
def test_what_can_not_be_exported(sis, tmp_path, arguments, code, words):
    said = sis("export", "oneroster", tmp_path / "out", *arguments)
    assert (said.code, words in said.err) == (code, True), said.err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("elmsworth")
def test_a_folder_with_something_else_in_it_is_left_alone(sis, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    said = sis("export", "oneroster", tmp_path, *WHOSE)
    assert said.code == ExitCode.CONFIG
    assert "empty" in said.err


@pytest.mark.usefixtures("elmsworth")
def test_what_was_handed_on_of_a_student_is_told(sis, tmp_path):
    who = uid("Ada")
    before = sis("disclosure", who)
    assert (before.code, "No export is known" in before.out) == (ExitCode.OK, True), before.err
    given = ("--recipient", "the library", "--reason", "library cards")
    assert sis("export", "oneroster", tmp_path / "out", *WHOSE, *given).code == ExitCode.OK
    said = sis("disclosure", who.upper())
    assert said.code == ExitCode.OK, said.err
    assert all(words in said.out for words in ("the library", "library cards", "familyName", "is not recorded here"))
    record = sis("disclosure", who, "--json").json["disclosure"]
    assert [(one["recipient"], one["included"]) for one in record["disclosures"]] == [("the library", True)]
    assert ("students", 1) in {(one["table"], one["rows"]) for one in record["published"]}
    ada = published()["students"].filter(student_id=who)
    values = [value for value in ada.select("last_name", "ssid", "birth_date").row(0) if value is not None]
    assert [value for value in values if str(value) in said.out] == []


@pytest.mark.parametrize(("student", "words"), [("ada", "not a UUID"), (uid("nobody"), "There is no student")])
@pytest.mark.usefixtures("elmsworth")
def test_nobody_has_no_record_of_disclosures(sis, student, words):
    said = sis("disclosure", student)
    assert (said.code != ExitCode.OK, words in said.err) == (True, True)
