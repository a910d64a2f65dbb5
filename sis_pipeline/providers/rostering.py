"""What a roster without school enrollments still says: which sessions, sections and people belong to a school year, and
which school enrollments follow from memberships and class enrollments. Pure functions on text frames; no vendor's names."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import pandas as pd

from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.texts import by_value, is_among, looked_up

TOMBSTONE = "to_be_deleted"
MEMBERSHIP_COLUMNS = ("person_sis_id", "school_sis_id", "role", "is_primary", "begin_date", "end_date", "position")
"""One row per (person, role, school): what the source says about belonging. `is_primary` is a Python bool, `position`
the place in the source's own list, the rest text."""


@dataclass(frozen=True, slots=True)
class Year:
    """The school year being read, and whether the source's undated memberships (orgs, roles) speak of it."""

    school_year: SchoolYear
    active: bool


def text_frame(columns: Iterable[str], rows: Iterable[Iterable[object]] = ()) -> pd.DataFrame:
    """A frame of text columns from plain rows; also the empty one with its columns."""
    return pd.DataFrame(list(rows), columns=list(columns)).astype("str")


def iso_dates(values: pd.Series) -> pd.Series:
    """Only what is an ISO date, the rest as null: an impossible date must not decide anything (it is quarantined later)."""
    return by_value(
        values, lambda said: said.where(said.str.fullmatch(r"\d{4}-\d{2}-\d{2}").fillna(value=False).astype(bool))
    )


def sessions_of(sessions: pd.DataFrame, school_year: SchoolYear) -> pd.DataFrame:
    """The sessions of one school year: their own ending year, else that of the nearest session above, else by start date.

    Takes and returns academic_sessions columns; `school_year` holds the key, or null where the source gave none.
    """
    above = dict(zip(sessions["sis_id"], sessions["parent_sis_id"], strict=True))
    own = dict(zip(sessions["sis_id"], sessions["school_year"], strict=True))

    def year_of(session: str) -> object:
        seen: set[str] = set()
        while isinstance(session, str) and session not in seen:
            seen.add(session)
            if isinstance(own.get(session), str):
                return own[session]
            session = above.get(session, "")
        return None

    years = pd.Series([year_of(session) for session in sessions["sis_id"]], index=sessions.index, dtype="str")
    starts = pd.to_datetime(sessions["start_date"], format="%Y-%m-%d", errors="coerce")
    by_date = starts.map(lambda day: SchoolYear.on(day.date()).key, na_action="ignore").astype("str")
    years = years.fillna(by_date)
    return sessions.assign(school_year=years)[years == school_year.key]


def sections_of(
    sections: pd.DataFrame, terms: pd.DataFrame, known: Collection[str], in_year: Collection[str], *, only_year: bool
) -> pd.DataFrame:
    """The sections that run in a session of the year.

    `terms` has section_sis_id and session_sis_id. A section none of whose sessions is known says nothing about its
    year: it counts only where the source holds this one year (`only_year`).
    """
    running = terms.loc[is_among(terms["session_sis_id"], in_year), "section_sis_id"]
    dated = terms.loc[is_among(terms["session_sis_id"], known), "section_sis_id"]
    keep = is_among(sections["sis_id"], running)
    if only_year:
        keep |= ~is_among(sections["sis_id"], dated)
    return sections[keep]


def section_enrollments_of(
    enrollments: pd.DataFrame, all_sections: Collection[str], sections: pd.DataFrame, year: Year
) -> pd.DataFrame:
    """The section enrollments of the year's sections, with the section's school where the row names none.

    A row that names a section nobody delivered is kept when it began in the year (or, undated, in the active one): it is
    reported as dangling instead of vanishing.
    """
    known = is_among(enrollments["section_sis_id"], all_sections)
    begin = iso_dates(enrollments["begin_date"])
    first, after = year.school_year.first_day.isoformat(), year.school_year.day_after.isoformat()
    began = (begin >= first) & (begin < after) | begin.isna() & year.active
    rows = enrollments[is_among(enrollments["section_sis_id"], sections["sis_id"]) | ~known & began]
    schools = looked_up(rows["section_sis_id"], sections["sis_id"], sections["school_sis_id"])
    return rows.assign(school_sis_id=rows["school_sis_id"].fillna(schools))


def memberships_of(memberships: pd.DataFrame, year: Year) -> pd.DataFrame:
    """The memberships that speak of the year: dated ones that overlap it, undated ones only in the active year."""
    begin, end = iso_dates(memberships["begin_date"]), iso_dates(memberships["end_date"])
    first, after = year.school_year.first_day.isoformat(), year.school_year.day_after.isoformat()
    dated = begin.notna() | end.notna()
    overlaps = (begin.isna() | (begin < after)) & (end.isna() | (end > first))
    return memberships[overlaps & (dated | year.active)]


def placed_students(students: pd.DataFrame, enrollments: pd.DataFrame) -> pd.DataFrame:
    """Students with the school and the status of their primary enrollment."""
    primary = enrollments[enrollments["enrollment_type"] == "primary"].drop_duplicates("student_sis_id", keep="last")
    ids, of = students["sis_id"], primary["student_sis_id"]
    return students.assign(
        school_sis_id=looked_up(ids, of, primary["school_sis_id"]),
        enrollment_status=looked_up(ids, of, primary["status"]),
    )


def beside(values: pd.Series, constant: str | None) -> pd.Series:
    """A constant beside every value there is: the issuer of an id."""
    return pd.Series(constant, index=values.index, dtype="str").where(values.notna())


def lead_teachers(section_enrollments: pd.DataFrame) -> pd.Series:
    """The lead teacher by section: the one flagged primary, else the earliest; removed rows don't count."""
    rows = section_enrollments[
        (section_enrollments["role"] == "teacher") & (section_enrollments["record_status"] != TOMBSTONE)
    ]
    rows = rows.assign(rank=rows["is_primary"].ne("true"), begun=iso_dates(rows["begin_date"]).fillna("9999"))
    rows = rows.sort_values(["rank", "begun", "person_sis_id"]).drop_duplicates("section_sis_id")
    return rows.set_index("section_sis_id")["person_sis_id"]


def placed_staff(
    staff: pd.DataFrame,
    memberships: pd.DataFrame,
    teaching: pd.DataFrame,
    roles: Callable[[str], tuple[str | None, bool]],
) -> pd.DataFrame:
    """Staff with main role, main school and all schools.

    The main membership is the flagged one, else the first the source lists; who has none is what the sections say.
    `roles` gives the meaning of the source's role, as a code table does.
    """
    listed = memberships.sort_values(["is_primary", "position"], ascending=[False, True], kind="stable")
    taught = teaching.sort_values("sis_id")[["person_sis_id", "school_sis_id", "role"]]
    every = pd.concat([listed[["person_sis_id", "school_sis_id", "role"]], taught], ignore_index=True)
    role = every.dropna(subset=["role"]).drop_duplicates("person_sis_id").set_index("person_sis_id")["role"]
    placed = every.dropna(subset=["school_sis_id"])
    schools = placed.groupby("person_sis_id")["school_sis_id"].agg(lambda ids: json.dumps(list(dict.fromkeys(ids))))
    main = placed.drop_duplicates("person_sis_id").set_index("person_sis_id")["school_sis_id"]
    ids = staff["sis_id"]
    return staff.assign(
        role=ids.map(role).map(lambda said: roles(said)[0], na_action="ignore").astype("str").fillna("other"),
        school_sis_id=ids.map(main).astype("str"),
        school_sis_ids=ids.map(schools).astype("str"),
    )
