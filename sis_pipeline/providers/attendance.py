"""School enrollments of systems that have none: who belongs to a school, and who sits in its classes, as stays there.
Which memberships and classes are the year's is decided in `rostering`. Loaded late: Polars would slow down every start."""

from __future__ import annotations

import pandas as pd
import polars as pl

from sis_pipeline.providers.mapping import TEXT, text_series
from sis_pipeline.providers.rostering import TOMBSTONE, iso_dates
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.texts import in_arrow

PAIR = ("student_sis_id", "school_sis_id")
LAST = 1_000_000
"""The position of a school that no membership lists."""


def school_enrollments(
    students: pd.DataFrame,
    memberships: pd.DataFrame,
    attendance: pd.DataFrame,
    *,
    session_start: str,
    year_end: str,
    school_year: SchoolYear,
) -> pd.DataFrame:
    """One enrollment per (student, school), from the student's memberships and section enrollments.

    `attendance` is section_enrollments with student_sis_id for the person, and session_start and session_end of the
    section. Entry is the membership's begin date where that lies in the year, else the earliest class begin date at
    the school, else the start of the session. An exit is a membership's end date; or a tombstone's day; or, where the
    student now belongs to another school only, the day the last class at this one was left before its session was over.
    A class enrollment that ends with its session says nothing: so do they all. Returns enrollments columns; exactly one
    row per student is `primary`.
    """
    belongs, attends = _from_memberships(memberships, school_year), _from_attendance(attendance)
    pairs = pl.concat([belongs.select(PAIR), attends.select(PAIR)]).unique().drop_nulls()
    about = _frame(
        **{f"student_{name}": students[name] for name in ("sis_id", "grade_level", "record_status", "modified_at")}
    )
    pairs = (
        pairs.join(about.unique("student_sis_id", keep="first"), on="student_sis_id")
        .join(belongs, on=PAIR, how="left")
        .join(attends, on=PAIR, how="left")
        .with_columns(pl.col("member", "flagged", "attends").fill_null(value=False), pl.col("position").fill_null(LAST))
        .with_columns(elsewhere=pl.col("member").any().over("student_sis_id"))
        .with_columns(removed=_REMOVED, entry_date=_entry(session_start))
        .with_columns(exit_date=pl.when(pl.col("entry_date") < _EXIT).then(_EXIT))
        .with_columns(left=pl.col("removed") | (pl.col("exit_date") < year_end).fill_null(value=False))
        .sort("student_sis_id", *_PRIMARY_FIRST)
        .with_columns(primary=pl.col("student_sis_id").is_first_distinct())
        .sort(PAIR)
    )
    return _in_pandas(pairs.select(_columns(school_year)))


def _from_memberships(memberships: pd.DataFrame, school_year: SchoolYear) -> pl.DataFrame:
    """By student and school; a second stint that is still open means the student is there."""
    first, after = school_year.first_day.isoformat(), school_year.day_after.isoformat()
    begin, end = pl.col("begin_date"), pl.col("end_date")
    return (
        _frame(
            student_sis_id=memberships["person_sis_id"],
            school_sis_id=memberships["school_sis_id"],
            begin_date=iso_dates(memberships["begin_date"]),
            end_date=iso_dates(memberships["end_date"]),
        )
        .with_columns(
            pl.Series("flagged", memberships["is_primary"].eq(True).to_numpy(dtype=bool)),  # noqa: FBT003 nulls are false
            pl.Series("position", memberships["position"].to_numpy(dtype="int64")),
        )
        .group_by(PAIR)
        .agg(
            begin.filter((begin >= first) & (begin < after)).min().alias("role_begin"),
            pl.when(end.is_null().any()).then(None).otherwise(end.max()).alias("role_end"),
            pl.col("flagged").any(),
            pl.col("position").min(),
            member=pl.lit(value=True),
        )
    )


def _from_attendance(attendance: pd.DataFrame) -> pl.DataFrame:
    """By student and school; who stays in one class has not left."""
    live, end = pl.col("record_status").ne_missing(TOMBSTONE), pl.col("end_date")
    early = (end < pl.col("session_end")).fill_null(value=False)
    as_they_are = (*PAIR, "record_status", "modified_at", "session_start", "session_end")
    dates = {name: iso_dates(attendance[name]) for name in ("begin_date", "end_date")}
    return (
        _frame(**{name: attendance[name] for name in as_they_are}, **dates)
        .group_by(PAIR)
        .agg(
            pl.col("begin_date").min().alias("class_begin"),
            pl.col("session_start").min().alias("class_session_start"),
            live.any().alias("attends"),
            live.sum().alias("sections"),
            pl.when(~(live & ~early).any()).then(end.filter(live & early).max()).alias("dropped_at"),
            pl.col("modified_at").filter(~live).max().alias("removed_at"),
        )
    )


_TOMBSTONE = pl.col("student_record_status").eq_missing(TOMBSTONE)
_REMOVED = _TOMBSTONE | ~(pl.col("member") | pl.col("attends"))
_TOMBSTONE_DAY = pl.coalesce(pl.when(_TOMBSTONE).then("student_modified_at"), "removed_at").str.head(10)
_EXIT = pl.coalesce(
    "role_end",
    pl.when(pl.col("removed")).then(_TOMBSTONE_DAY),
    pl.when(~pl.col("member") & pl.col("elsewhere")).then("dropped_at"),
)
_PRIMARY_FIRST = (
    "left",
    ~pl.col("flagged"),
    -pl.col("sections").fill_null(0).cast(pl.Int64),
    "position",
    "school_sis_id",
)
"""One primary per student: the flagged school, else the one with most sections, else the first the source lists. A school
the student has left is primary only where there is no other."""


def _entry(session_start: str) -> pl.Expr:
    return pl.coalesce("role_begin", "class_begin", "class_session_start", pl.lit(session_start))


def _columns(school_year: SchoolYear) -> list[pl.Expr]:
    """Of enrollments."""
    return [
        pl.format("{}:{}:{}", *PAIR, pl.lit(school_year.key)).alias("sis_id"),
        *map(pl.col, PAIR),
        pl.lit(school_year.key).alias("school_year"),
        pl.col("entry_date"),
        pl.when(pl.col("role_begin").is_not_null())
        .then(pl.lit("sis"))
        .when(pl.col("class_begin").is_not_null())
        .then(pl.lit("class_begin"))
        .otherwise(pl.lit("session_start"))
        .alias("entry_date_source"),
        pl.col("exit_date"),
        pl.col("student_grade_level").alias("grade_level"),
        pl.when("primary").then(pl.lit("primary")).otherwise(pl.lit("secondary")).alias("enrollment_type"),
        pl.when("left").then(pl.lit("withdrawn")).otherwise(pl.lit("active")).alias("status"),
        pl.when("removed").then(pl.lit(TOMBSTONE)).otherwise(pl.lit("active")).alias("record_status"),
        pl.col("student_modified_at").alias("modified_at"),
    ]


def _frame(**columns: pd.Series) -> pl.DataFrame:
    """Columns of text in Polars."""
    return pl.DataFrame({name: pl.Series(in_arrow(values)) for name, values in columns.items()})


def _in_pandas(frame: pl.DataFrame) -> pd.DataFrame:
    columns = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    return pd.DataFrame({name: text_series(columns[name].cast(TEXT)) for name in columns.column_names})
