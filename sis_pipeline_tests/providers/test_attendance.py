"""Stays at schools, from memberships and classes. What each of them means is tested with the systems that need it."""

from __future__ import annotations

from random import Random
from typing import Any

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.providers.attendance import school_enrollments
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline_tests.roster.rosters import laws

PEOPLE, SCHOOLS = st.sampled_from(["u1", "u2", "u3"]), st.sampled_from(["s1", "s2", "s3", None])
DAYS = st.sampled_from([None, "2026-08-20", "2027-01-10", "2027-06-10", "2025-01-01", "soon"])
STATUSES = st.sampled_from(["active", "to_be_deleted", None])
MOMENTS = st.sampled_from([None, "2026-09-01T06:00:00Z", "2026-11-02T06:00:00Z"])
STUDENTS = {"sis_id": PEOPLE, "grade_level": st.sampled_from(["07", None]), "record_status": STATUSES, "modified_at": MOMENTS}  # fmt: skip
MEMBERSHIPS = {
    "person_sis_id": PEOPLE, "school_sis_id": SCHOOLS, "is_primary": st.booleans(), "begin_date": DAYS, "end_date": DAYS,
    "position": st.integers(0, 2),
}  # fmt: skip
ATTENDANCE = {
    "student_sis_id": PEOPLE, "school_sis_id": SCHOOLS, "record_status": STATUSES, "modified_at": MOMENTS, "begin_date": DAYS,
    "end_date": DAYS, "session_start": DAYS, "session_end": DAYS,
}  # fmt: skip
KINDS = {"is_primary": "bool", "position": "int64"}
Rows = list[dict[str, Any]]


def frame(columns: dict[str, st.SearchStrategy], rows: Rows) -> pd.DataFrame:
    return pd.DataFrame(
        {name: pd.Series([row[name] for row in rows], dtype=KINDS.get(name, "str")) for name in columns}
    )


def derived(students: Rows, memberships: Rows, attendance: Rows) -> pd.DataFrame:
    given_frames = (frame(STUDENTS, students), frame(MEMBERSHIPS, memberships), frame(ATTENDANCE, attendance))
    return school_enrollments(
        *given_frames, session_start="2026-08-20", year_end="2027-06-10", school_year=SchoolYear(2026)
    )


@laws(20)
@given(
    st.lists(st.fixed_dictionaries(STUDENTS), max_size=3, unique_by=lambda row: row["sis_id"]),
    st.lists(st.fixed_dictionaries(MEMBERSHIPS), max_size=6),
    st.lists(st.fixed_dictionaries(ATTENDANCE), max_size=8),
    st.randoms(),
)
def test_every_student_has_one_stay_at_a_school_and_one_that_is_primary_whatever_the_order(
    students: Rows, memberships: Rows, attendance: Rows, random: Random
) -> None:
    found = derived(students, memberships, attendance)
    named = {(row["person_sis_id"], row["school_sis_id"]) for row in memberships}
    named |= {(row["student_sis_id"], row["school_sis_id"]) for row in attendance}
    known = {row["sis_id"] for row in students}
    expected = sorted((person, school) for person, school in named if school and person in known)
    assert list(zip(found["student_sis_id"], found["school_sis_id"], strict=True)) == expected
    primary = found.loc[found["enrollment_type"] == "primary", "student_sis_id"]
    assert sorted(primary) == sorted({person for person, _ in expected})
    assert not (found["exit_date"] <= found["entry_date"]).any()
    shuffled = (random.sample(rows, len(rows)) for rows in (students, memberships, attendance))
    pd.testing.assert_frame_equal(derived(*shuffled), found)
