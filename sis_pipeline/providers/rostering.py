"""What a roster without school enrollments still says: which sessions, sections and people belong to a school year, and
which school enrollments follow from memberships and class enrollments. Pure functions on text frames; no vendor's names."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import pandas as pd

from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.texts import by_value, is_among

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
    schools = rows["section_sis_id"].map(sections.drop_duplicates("sis_id").set_index("sis_id")["school_sis_id"])
    return rows.assign(school_sis_id=rows["school_sis_id"].fillna(schools.astype("str")))


def memberships_of(memberships: pd.DataFrame, year: Year) -> pd.DataFrame:
    """The memberships that speak of the year: dated ones that overlap it, undated ones only in the active year."""
    begin, end = iso_dates(memberships["begin_date"]), iso_dates(memberships["end_date"])
    first, after = year.school_year.first_day.isoformat(), year.school_year.day_after.isoformat()
    dated = begin.notna() | end.notna()
    overlaps = (begin.isna() | (begin < after)) & (end.isna() | (end > first))
    return memberships[overlaps & (dated | year.active)]


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
    pairs = _pairs(memberships, attendance, students)
    if pairs.empty:
        return text_frame(_ENROLLMENT_COLUMNS)
    pairs = pairs.merge(_from_memberships(memberships, school_year), how="left", on=_PAIR)
    pairs = pairs.merge(_from_attendance(attendance), how="left", on=_PAIR)
    about = students.drop_duplicates("sis_id").set_index("sis_id")[["grade_level", "record_status", "modified_at"]]
    pairs = pairs.join(about.add_prefix("student_"), on="student_sis_id")
    pairs[["member", "attends", "flagged"]] = pairs[["member", "attends", "flagged"]].eq(True)  # noqa: FBT003 nulls are false

    removed = pairs["student_record_status"].eq(TOMBSTONE) | ~(pairs["member"] | pairs["attends"])
    entry, entry_source = _entries(pairs, session_start)
    exit_date = _exits(pairs, removed)
    exit_date = exit_date.where(exit_date > entry)
    left = removed | (exit_date < year_end)
    return pd.DataFrame(
        {
            "sis_id": pairs["student_sis_id"] + ":" + pairs["school_sis_id"] + ":" + school_year.key,
            "student_sis_id": pairs["student_sis_id"],
            "school_sis_id": pairs["school_sis_id"],
            "school_year": school_year.key,
            "entry_date": entry,
            "entry_date_source": entry_source,
            "exit_date": exit_date,
            "grade_level": pairs["student_grade_level"],
            "enrollment_type": _types(pairs, left),
            "status": _labels(pairs, "active", withdrawn=left),
            "record_status": _labels(pairs, "active", **{TOMBSTONE: removed}),
            "modified_at": pairs["student_modified_at"],
        }
    ).astype("str")


_PAIR = ["student_sis_id", "school_sis_id"]
_ENROLLMENT_COLUMNS = (
    "sis_id", *_PAIR, "school_year", "entry_date", "entry_date_source", "exit_date", "grade_level", "enrollment_type",
    "status", "record_status", "modified_at",
)  # fmt: skip


def _pairs(memberships: pd.DataFrame, attendance: pd.DataFrame, students: pd.DataFrame) -> pd.DataFrame:
    """Every (student, school) that either side names, for delivered students, in a stable order."""
    members = memberships.rename(columns={"person_sis_id": "student_sis_id"})[_PAIR]
    both = pd.concat([members, attendance[_PAIR]], ignore_index=True).dropna().drop_duplicates()
    return both[is_among(both["student_sis_id"], students["sis_id"])].sort_values(_PAIR, ignore_index=True)


def _from_memberships(memberships: pd.DataFrame, school_year: SchoolYear) -> pd.DataFrame:
    rows = memberships.rename(columns={"person_sis_id": "student_sis_id"})
    begin, end = iso_dates(rows["begin_date"]), iso_dates(rows["end_date"])
    in_year = (begin >= school_year.first_day.isoformat()) & (begin < school_year.day_after.isoformat())
    rows = rows.assign(role_begin=begin.where(in_year), role_end=end, open=end.isna(), member=True)
    facts = rows.groupby(_PAIR, as_index=False, sort=False).agg(
        role_begin=("role_begin", "min"),
        role_end=("role_end", "max"),
        open=("open", "any"),
        flagged=("is_primary", "any"),
        position=("position", "min"),
        member=("member", "any"),
    )
    # A second stint that is still open means the student is there.
    return facts.assign(role_end=facts["role_end"].astype("str").mask(facts["open"])).drop(columns="open")


def _from_attendance(attendance: pd.DataFrame) -> pd.DataFrame:
    live = attendance["record_status"] != TOMBSTONE
    end = iso_dates(attendance["end_date"])
    early = end < attendance["session_end"]
    rows = attendance.assign(
        live=live,
        class_begin=iso_dates(attendance["begin_date"]),
        dropped_at=end.where(live & early),
        stays=live & ~early,
        removed_at=attendance["modified_at"].mask(live),
    )
    facts = rows.groupby(_PAIR, as_index=False, sort=False).agg(
        class_begin=("class_begin", "min"),
        class_session_start=("session_start", "min"),
        attends=("live", "any"),
        sections=("live", "sum"),
        stays=("stays", "any"),
        dropped_at=("dropped_at", "max"),
        removed_at=("removed_at", "max"),
    )
    texts = ("class_begin", "class_session_start", "dropped_at", "removed_at")
    facts = facts.astype(dict.fromkeys(texts, "str"))
    return facts.assign(dropped_at=facts["dropped_at"].mask(facts["stays"])).drop(columns="stays")


def _entries(pairs: pd.DataFrame, session_start: str) -> tuple[pd.Series, pd.Series]:
    entry = pairs["role_begin"].fillna(pairs["class_begin"]).fillna(pairs["class_session_start"]).fillna(session_start)
    source = _labels(pairs, "session_start", class_begin=pairs["class_begin"].notna(), sis=pairs["role_begin"].notna())
    return entry, source


def _exits(pairs: pd.DataFrame, removed: pd.Series) -> pd.Series:
    elsewhere = pairs.loc[pairs["member"], "student_sis_id"]
    moved = ~pairs["member"] & is_among(pairs["student_sis_id"], elsewhere)
    own = pairs["student_modified_at"].where(pairs["student_record_status"].eq(TOMBSTONE))
    tombstone = own.fillna(pairs["removed_at"]).str.slice(0, 10)
    return pairs["role_end"].fillna(tombstone.where(removed)).fillna(pairs["dropped_at"].where(moved))


def _labels(pairs: pd.DataFrame, usual: str, **others: pd.Series) -> pd.Series:
    """`usual` everywhere but where one of the others holds; the last that does wins."""
    labels = pd.Series(usual, index=pairs.index, dtype="str")
    for label, where in others.items():
        labels = labels.mask(where, label)
    return labels


def _types(pairs: pd.DataFrame, left: pd.Series) -> pd.Series:
    """One primary per student: the flagged school, else the one with most sections, else the first the source lists.

    A school the student has left is primary only where there is no other.
    """
    ranked = pd.DataFrame(
        {
            "student": pairs["student_sis_id"],
            "left": left,
            "flagged": ~pairs["flagged"],
            "sections": -pairs["sections"].fillna(0).astype("int64"),
            "position": pairs["position"].fillna(1_000_000).astype("int64"),
            "school": pairs["school_sis_id"],
        }
    ).sort_values(["student", "left", "flagged", "sections", "position", "school"])
    primary = ranked.index[~ranked["student"].duplicated()]
    return _labels(pairs, "secondary", primary=pd.Series(pairs.index.isin(primary), index=pairs.index))


def placed_students(students: pd.DataFrame, enrollments: pd.DataFrame) -> pd.DataFrame:
    """Students with the school and the status of their primary enrollment."""
    primary = enrollments[enrollments["enrollment_type"] == "primary"].drop_duplicates("student_sis_id", keep="last")
    primary = primary.set_index("student_sis_id")
    return students.assign(
        school_sis_id=students["sis_id"].map(primary["school_sis_id"]).astype("str"),
        enrollment_status=students["sis_id"].map(primary["status"]).astype("str"),
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
