"""Who was enrolled on a day as known at a moment: a count day, a late withdrawal, and what can't be answered."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime

import pytest

from sis_pipeline.cli.output import ExitCode
from sis_pipeline.db.tables import roster_tables, sync_operations

YEAR = "2026-2027"
ANA, BEN, LINCOLN, FRANKLIN = (str(uuid.UUID(int=number)) for number in (1, 2, 11, 12))
COUNT_DAY = "2026-10-01"
NORTH = ("enrollments", "list", "--district", "north", "--as-of", COUNT_DAY)


def stay(school_id, exit_date=None):
    status = "withdrawn" if exit_date else "active"
    return {"school_id": school_id, "entry_date": "2026-08-20", "entry_code": "E1", "exit_date": exit_date, "exit_code": None, "status": status}  # fmt: skip


@pytest.fixture
def ledger(home, database):
    """Ana and Ben enroll; on October 20, at noon, it shows that Ben had left on September 25."""
    with database.begin() as connection:

        def add(table, **values):
            connection.execute(roster_tables[table].insert().values(**{"district": "north", **values}))

        def publish(epoch, at, *changes):
            operation_id = str(uuid.UUID(int=100 + epoch))
            connection.execute(
                sync_operations.insert().values(
                    operation_id=operation_id, district="north", school_year=YEAR, epoch=epoch, base_epoch=epoch - 1,
                    status="published", fingerprint=str(epoch), inputs={}, published_before={}, started_at=at, finished_at=at,
                )
            )  # fmt: skip
            for student_id, kind, before, after in changes:
                add(
                    "enrollment_changes", change_id=str(uuid.uuid4()), student_id=student_id, school_year=YEAR, kind=kind,
                    effective_date=date(2026, 8, 20), school_id=after["school_id"], before=before, after=after,
                    evidence="new_record", operation_id=operation_id, detected_at=at,
                )  # fmt: skip

        for school_id, name, number in ((LINCOLN, "Lincoln High", "100"), (FRANKLIN, "Franklin Middle", "200")):
            add("schools", school_id=school_id, name=name, school_number=number, kind="school", integration="ps", sis_id=number)  # fmt: skip
        for student_id, name in ((ANA, "Ana"), (BEN, "Ben")):
            add("students", student_id=student_id, first_name=name, last_name="O'Neil", latest_school_year=YEAR, near_match=False, origins={})  # fmt: skip
        publish(
            1, datetime(2026, 9, 1, 12, tzinfo=UTC),
            (ANA, "enroll", None, stay(LINCOLN)), (BEN, "enroll", None, stay(FRANKLIN)),
        )  # fmt: skip
        publish(
            2, datetime(2026, 10, 20, 12, tzinfo=UTC),
            (BEN, "withdraw", stay(FRANKLIN), stay(FRANKLIN, "2026-09-25")),
        )  # fmt: skip
    return database


def who(said) -> list[str]:
    assert said.code == 0, said.err
    return [row["first_name"] for row in said.json["enrollments"]]


@pytest.mark.parametrize(
    ("known_at", "enrolled"),
    [
        ((), ["Ana"]),
        (("--known-at", "2026-10-19"), ["Ben", "Ana"]),
        (("--known-at", "2026-10-20"), ["Ana"]),  # the end of that day
        (("--known-at", "2026-10-20T11:59:59"), ["Ben", "Ana"]),
        (("--known-at", "2026-10-20T12:00:00"), ["Ana"]),
        (("--known-at", "2026-10-20T13:00:00+02:00"), ["Ben", "Ana"]),
        (("--known-at", "2026-09-01T12:00:00Z"), ["Ben", "Ana"]),
    ],
)
def test_a_count_day_is_as_it_was_known(ledger, sis, known_at, enrolled):
    later = known_at or ("--known-at", "2027-01-01")
    assert who(sis(*NORTH, *later, "--json")) == enrolled


@pytest.mark.parametrize(
    ("day", "enrolled"), [("2026-09-24", ["Ben", "Ana"]), ("2026-09-25", ["Ana"]), ("2026-08-19", [])]
)
def test_the_day_of_the_exit_is_outside(ledger, sis, day, enrolled):
    said = sis("enrollments", "list", "--district", "north", "--as-of", day, "--known-at", "2027-01-01", "--json")
    assert who(said) == enrolled


def test_a_list_is_of_one_school_and_says_what_it_leaves_out(ledger, sis):
    then = ("--known-at", "2026-10-19")
    for school in ("200", "franklin middle", FRANKLIN):
        assert who(sis(*NORTH, *then, "--school", school, "--json")) == ["Ben"]
    said = sis(*NORTH, *then, "--limit", "1")
    assert (said.code, said.err) == (0, "")
    assert "2 enrollments on 2026-10-01 as known at 2026-10-19 23:59:59 UTC, 1 shown" in said.out
    assert "Franklin Middle" in said.out
    assert "Lincoln" not in said.out


def test_a_student_is_shown_as_of_a_day(ledger, sis):
    show = ("students", "show", BEN, "--as-of", COUNT_DAY)
    [file] = sis(*show, "--known-at", "2026-10-19", "--json").json["students"]
    assert [(row["school"], row["entry_date"], row["exit_date"]) for row in file["enrollments"]] == [
        ("Franklin Middle", "2026-08-20", None)
    ]
    assert (file["as_of"], file["known_at"]) == (COUNT_DAY, "2026-10-19T23:59:59.999999+00:00")
    assert "Franklin Middle" in sis(*show, "--known-at", "2026-10-19").out
    said = sis(*show, "--known-at", "2026-10-20")
    assert said.code == 0
    assert "was not enrolled on 2026-10-01 as known at 2026-10-20" in said.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("enrollments", "list", "--district", "north", "--as-of", "yesterday"), "is not a day"),
        ((*NORTH, "--known-at", "noon"), "neither a day nor a time"),
        ((*NORTH, "--known-at", "2026-13-01"), "neither a day nor a time"),
        ((*NORTH, "--known-at", "2026-08-31"), "was known of district 'north' for 2026-2027 by 2026-08-31"),
        (("enrollments", "list", "--district", "north", "--as-of", "2024-10-01"), "is published of district 'north' for 2024"),
        (("enrollments", "list", "--district", "south", "--as-of", COUNT_DAY), "is published of district 'south'"),
        (("students", "show", ANA, "--known-at", "2026-10-19"), "goes with --as-of"),
        (("students", "show", ANA, "--as-of", "10/01/2026"), "is not a day"),
        (("students", "show", ANA, "--as-of", COUNT_DAY, "--known-at", "2026-08-31"), "first published at 2026-09-01 12:00"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_wrong_usage(ledger, sis, arguments, words):
    said = sis(*arguments)
    assert said.code == ExitCode.USAGE
    assert words in said.err
    assert said.out == ""
