"""Only what differs is written, and every value comes back as it went in."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from sis_pipeline.connect.errors import DataError, InternalError
from sis_pipeline.roster.model import MERGED
from sis_pipeline.store import bulk
from sis_pipeline.store.bulk import Applied
from sis_pipeline_tests.store.conftest import YEAR, change, enrollment, student, table, uid

STUDENTS = MERGED["students"]
LINCOLN = {"district": "lincoln"}
HOSTILE = [
    '=HYPERLINK("http://x")',
    "'; drop table sis.students; --",
    "\u202eشيماء\u200f עברית",
    "x" * 10_000,
    "\\N",
    "\\.\n\\.",
    "",
    " ",
    'a,b\r\n"c"\t\\',
    "NULL",
    "None",
    "👩‍👩‍👧 José Nuñez",
    "%s :name {0}",
]


def put(database, rows, name="students", scope=LINCOLN, *, delete_absent=False) -> Applied:
    with database.begin() as connection:
        return bulk.apply(connection, MERGED[name], table(name, rows), scope=scope, delete_absent=delete_absent)


def versions(database, name="students") -> dict[str, tuple[str, datetime]]:
    """Of every row: the transaction that wrote it, and its stamp."""
    with database.connect() as connection:
        rows = connection.execute(text(f"select student_id::text, xmin::text, changed_at from sis.{name}"))
        return {row[0]: (row[1], row[2]) for row in rows}


def test_rows_are_inserted_updated_and_left_alone(database):
    assert put(database, [student(n) for n in range(5)]) == Applied(inserted=5)
    before = versions(database)
    applied = put(database, [student(n) for n in range(4)] + [student(4, last_name="New"), student(5)])
    assert applied == Applied(inserted=1, updated=1, unchanged=4)
    after = versions(database)
    assert {key for key in after if after[key] != before.get(key)} == {uid("student", 4), uid("student", 5)}
    assert after[uid("student", 4)][1] > before[uid("student", 4)][1]


def test_writing_the_same_again_touches_no_row_and_locks_none(database):
    rows = [student(n, origins='{"b": 1, "a": [1, 2]}') for n in range(50)]
    put(database, rows)
    before = versions(database)
    same = [student(n, origins='{"a":[1,2],  "b":1}') for n in range(50)]
    with database.begin() as connection:
        applied = bulk.apply(connection, STUDENTS, table("students", same), scope=LINCOLN, delete_absent=True)
        wrote = connection.scalar(text("select pg_current_xact_id_if_assigned() is not null"))
        locked = connection.scalar(text("select count(*) from sis.students where xmax::text <> '0'"))
    assert applied == Applied(unchanged=50)
    assert (wrote, locked) == (True, 0)  # creating the temporary table takes a transaction id; no row was touched
    assert versions(database) == before


def test_null_and_empty_text_are_different_values(database):
    put(database, [student(1, middle_name=None), student(2, middle_name="")])
    assert put(database, [student(1, middle_name=""), student(2, middle_name="")]) == Applied(updated=1, unchanged=1)
    assert put(database, [student(1, middle_name=None), student(2, middle_name="")]) == Applied(updated=1, unchanged=1)


def test_only_rows_of_the_scope_are_deleted(database):
    other_year = {"district": "lincoln", "school_year": "2024-2025"}
    other_district = {"district": "washington", "school_year": YEAR}
    here = {"district": "lincoln", "school_year": YEAR}
    put(database, [enrollment(n) for n in range(3)], "enrollments", here)
    put(database, [enrollment(9, school_year="2024-2025")], "enrollments", other_year)
    put(database, [enrollment(9, district="washington")], "enrollments", other_district)
    applied = put(database, [enrollment(0)], "enrollments", here, delete_absent=True)
    assert applied == Applied(deleted=2, unchanged=1)
    with database.connect() as connection:
        left = connection.execute(text("select district, school_year, sis_id from sis.enrollments order by 1, 2"))
        assert [tuple(row) for row in left] == [
            ("lincoln", "2024-2025", "9"),
            ("lincoln", YEAR, "0"),
            ("washington", YEAR, "9"),
        ]


def test_absent_rows_stay_unless_deleting_was_asked_for(database):
    put(database, [student(n) for n in range(3)])
    assert put(database, [student(0)]) == Applied(unchanged=1)
    assert len(versions(database)) == 3


def test_append_never_changes_a_row_that_is_there(database):
    operation = uid("operation")
    ledger = MERGED["enrollment_changes"]
    first = table("enrollment_changes", [change(1, "enroll", operation), change(2, "enroll", operation)])
    again = table(
        "enrollment_changes", [change(2, "enroll", uid("later"), evidence="absence"), change(3, "enroll", operation)]
    )
    with database.begin() as connection:
        assert bulk.append(connection, ledger, first, scope=LINCOLN) == Applied(inserted=2)
        assert bulk.append(connection, ledger, again, scope=LINCOLN) == Applied(inserted=1, unchanged=1)
        kept = bulk.read(connection, ledger, {"change_id": uid("change", 2, "enroll")})
    assert kept["evidence"].to_list() == ["new_record"]


def test_delete_by_id_stays_in_its_district(database):
    put(database, [student(1), student(2)])
    put(database, [student(1, district="washington")], scope={"district": "washington"})
    with database.begin() as connection:
        assert bulk.delete(connection, STUDENTS, "student_id", [uid("student", 1)], scope=LINCOLN) == 1
        assert bulk.delete(connection, STUDENTS, "student_id", [], scope=LINCOLN) == 0
        assert bulk.read(connection, STUDENTS, {}).height == 2


def test_hostile_text_is_stored_exactly(database):
    put(database, [student(n, last_name=value) for n, value in enumerate(HOSTILE)])
    with database.connect() as connection:
        assert connection.scalars(text("select last_name from sis.students order by ssid")).all() == HOSTILE
        assert bulk.read(connection, STUDENTS, LINCOLN).sort("ssid")["last_name"].to_list() == HOSTILE


def test_every_kind_comes_back_as_it_went_in(database):
    rows = [
        student(
            1, birth_date=date(1899, 12, 31), hispanic_or_latino=True, graduation_year=2_147_483_647, near_match=True
        ),
        student(2, birth_date=date(9999, 12, 31), hispanic_or_latino=False, graduation_year=-2_147_483_648),
        student(3, birth_date=None, hispanic_or_latino=None, graduation_year=None),
    ]
    put(database, rows)
    stamps = [datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC), datetime(2026, 11, 1, 5, 30, 0, 1, UTC), None]
    year = {"district": "lincoln", "school_year": YEAR}
    sources = [
        {"district": "lincoln", "integration": "i", "sis_id": str(n), "school_year": YEAR, "student_id": uid(n),
         "snapshot_id": uid("s"), "modified_at": stamp, "fte": fte}
        for n, (stamp, fte) in enumerate(zip(stamps, [0.1, math.inf, None], strict=True))
    ]  # fmt: skip
    put(database, sources, "student_sources", year)
    with database.connect() as connection:
        back = bulk.read(connection, STUDENTS, LINCOLN).sort("ssid")
        assert back.equals(table("students", rows), null_equal=True)
        assert (
            bulk.read(connection, MERGED["student_sources"], year)
            .sort("sis_id")
            .equals(table("student_sources", sources))
        )


TEXTS = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30)


@pytest.fixture(scope="module")
def one_database(_module_engine):
    """The same for all examples: each leaves it empty."""
    return _module_engine


@settings(max_examples=25)
@given(names=st.lists(TEXTS, min_size=1, max_size=6))
def test_any_text_survives_the_round_trip(one_database, names):
    rows = [student(n, middle_name=name) for n, name in enumerate(names)]
    with one_database.begin() as connection:
        bulk.apply(connection, STUDENTS, table("students", rows), scope=LINCOLN, delete_absent=True)
        assert bulk.apply(connection, STUDENTS, table("students", rows), scope=LINCOLN, delete_absent=True) == Applied(
            unchanged=len(rows)
        )
        assert bulk.read(connection, STUDENTS, LINCOLN).sort("ssid")["middle_name"].to_list() == names
        bulk.apply(connection, STUDENTS, table("students", []), scope=LINCOLN, delete_absent=True)


def test_an_empty_frame_empties_its_scope_only_when_told(database):
    put(database, [student(1)])
    assert put(database, []) == Applied()
    assert put(database, [], delete_absent=True) == Applied(deleted=1)
    with database.connect() as connection:
        assert bulk.read(connection, STUDENTS, LINCOLN).equals(table("students", []))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"last_name": "Zyx\x00Zyx"}, "NUL characters: students has some in last_name"),
        ({"last_name": None}, "column last_name: NotNullViolation"),
        ({"origins": '{"a": "Zyx\\u0000"}'}, "UntranslatableCharacter"),
        ({"origins": '{"a": "Zyx\\ud800"}'}, "InvalidTextRepresentation"),
        ({"origins": "Zyx"}, "InvalidTextRepresentation"),
        ({"student_id": "Zyx"}, "1 values of student_id are no UUIDs"),
        ({"graduation_year": 2**31}, "1 values of graduation_year are beyond 32 bits"),
    ],
)
def test_what_postgresql_cannot_hold_is_refused_in_words_without_the_value(database, values, words):
    with pytest.raises(DataError, match=words) as caught:
        put(database, [student(1, **values)])
    assert "Zyx" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert versions(database) == {}


def test_a_lone_surrogate_never_gets_into_a_frame():
    with pytest.raises(UnicodeEncodeError):
        pl.Series(["\ud800"])


def test_a_frame_of_another_scope_or_table_or_with_doubles_is_refused(database):
    with database.begin() as connection:
        with pytest.raises(InternalError, match="1 rows for students are outside of lincoln"):
            bulk.apply(
                connection, STUDENTS, table("students", [student(1, district="x")]), scope=LINCOLN, delete_absent=True
            )
        with pytest.raises(InternalError, match=r"1 rows for students repeat a key \(district, student_id\)"):
            bulk.apply(
                connection, STUDENTS, table("students", [student(1), student(1)]), scope=LINCOLN, delete_absent=True
            )
        with pytest.raises(InternalError, match="not of that table"):
            bulk.apply(connection, STUDENTS, table("students", []).drop("ssid"), scope=LINCOLN, delete_absent=True)


def test_links_are_stamped_when_they_change(database):
    link = {
        "district": "lincoln",
        "integration": "i",
        "sis_id": "1",
        "student_id": uid(1),
        "rule": "new",
        "confidence": 1.0,
        "active": True,
    }
    put(database, [link], "student_links")
    with database.connect() as connection:
        first = bulk.read(
            connection, MERGED["student_links"], LINCOLN, beside={"first_seen": "timestamp", "last_seen": "timestamp"}
        )
    put(database, [{**link, "active": False}], "student_links")
    with database.connect() as connection:
        then = bulk.read(
            connection, MERGED["student_links"], LINCOLN, beside={"first_seen": "timestamp", "last_seen": "timestamp"}
        )
    assert then["first_seen"].to_list() == first["first_seen"].to_list()
    assert then["last_seen"][0] > first["last_seen"][0]
