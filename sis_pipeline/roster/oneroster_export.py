"""The published roster of one district and school year in OneRoster's words, 1.1 or 1.2: frames of text, one per CSV file.
Files, and the columns that a file has beside those filled here, are not this module's business."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import polars as pl

from sis_pipeline.roster.formulas import quoted
from sis_pipeline.roster.ids import derived_id, derived_ids
from sis_pipeline.roster.school_year import SchoolYear

Version = Literal["1.1", "1.2"]
VERSIONS: tuple[Version, ...] = ("1.1", "1.2")
TABLES = (
    "schools", "academic_sessions", "courses", "sections", "staff", "staff_links", "students", "student_years",
    "enrollments", "section_enrollments",
)  # fmt: skip
"""The published tables that an export needs."""

OPEN = ("active", "pre_registered")
THE_DISTRICT = ("district", "local")
ABOVE = ("state", "national")
TEACHER, STUDENT = "teacher", "student"
SESSION_RANK = {
    "school_year": 0, "semester": 1, "trimester": 1, "term": 1, "other": 1, "quarter": 2, "grading_period": 3,
}  # fmt: skip
"""Sessions of a higher rank lie inside those of a lower one."""
SESSION_TYPES = {"school_year": "schoolYear", "semester": "semester", "grading_period": "gradingPeriod"}
"""Every other kind is a `term`."""
LEAST_ROLE = "aide"
"""For staff whose role OneRoster has no word for: it opens nothing that no section opens."""
STAFF_ROLES: dict[Version, dict[str, str]] = {
    "1.1": {"teacher": TEACHER, "proctor": "proctor", "principal": "administrator",
            **dict.fromkeys(("district_administrator", "site_administrator", "system_administrator"), "administrator")},
    "1.2": {"teacher": TEACHER, "proctor": "proctor", "principal": "principal", "counselor": "counselor",
            "district_administrator": "districtAdministrator", "site_administrator": "siteAdministrator",
            "system_administrator": "systemAdministrator"},
}  # fmt: skip
SEAT_ROLES: dict[Version, dict[str, str]] = {
    "1.1": {role: role for role in (STUDENT, TEACHER, "aide", "proctor", "administrator")},
    "1.2": {**{role: role for role in (STUDENT, TEACHER, "proctor", "administrator")}, "aide": "ext:aide"},
}
"""1.2 dropped the aide in a class, and allows words of one's own that begin with `ext:`."""
RACES = {
    "american_indian_or_alaska_native": "americanIndianOrAlaskaNative",
    "asian": "asian",
    "black_or_african_american": "blackOrAfricanAmerican",
    "native_hawaiian_or_other_pacific_islander": "nativeHawaiianOrOtherPacificIslander",
    "white": "white",
}


@dataclass(frozen=True)
class OneRosterSet:
    """A set, by file name without `.csv`: text, null for an empty cell, ordered by sourcedId. `left_out`: how many
    students, staff and section enrollments of the roster have no place in it."""

    files: Mapping[str, pl.DataFrame]
    left_out: Mapping[str, int]


def oneroster_set(
    published: Mapping[str, pl.DataFrame],
    district: str,
    school_year: SchoolYear,
    version: Version,
    *,
    preferred_names: bool = False,
) -> OneRosterSet:
    """The whole (bulk) set of a district's school year. `published`: the rows of TABLES, those of the year where a
    table has years. Preferred names and pronouns are in it only if asked for. Raises ValueError where they are asked
    for in 1.1, which has no columns for them."""
    if preferred_names and version == "1.1":
        raise ValueError("OneRoster 1.1 has no columns for preferred names")
    export = _Export(published, district, school_year, version, preferred_names=preferred_names)
    return OneRosterSet({name: _finished(frame) for name, frame in export.files().items()}, export.left_out())


def _finished(frame: pl.DataFrame) -> pl.DataFrame:
    texts = frame.select(pl.all().cast(pl.String).replace("", None))
    return texts.select(quoted(pl.col(name)).alias(name) for name in texts.columns).sort("sourcedId")


class _Export:
    """One export on its way from published tables to files; every step is worked out once, when first asked for."""

    def __init__(
        self,
        published: Mapping[str, pl.DataFrame],
        district: str,
        school_year: SchoolYear,
        version: Version,
        *,
        preferred_names: bool,
    ) -> None:
        self.published = published
        self.district = district
        self.school_year = school_year
        self.version: Version = version
        self.preferred_names = preferred_names
        self.root = derived_id("organisation", district)
        """The district's sourcedId."""
        self.whole_year = derived_id("whole year", district, school_year.key)
        """The session of sections that name none."""

    def files(self) -> dict[str, pl.DataFrame]:
        dated = self.version == "1.2"
        return {
            "orgs": self.orgs,
            "academicSessions": self.sessions,
            "courses": self.courses,
            "classes": self.classes,
            "users": pl.concat([self.student_users, self.staff_users], how="diagonal"),
            **({"roles": self.roles} if dated else {}),
            "enrollments": self.enrollments,
            "demographics": self.demographics,
        }

    def left_out(self) -> dict[str, int]:
        known = {
            "students": (self.published["student_years"], self.students, "student_id"),
            "staff": (self.published["staff"], self.staff, "staff_id"),
            "section enrollments": (self.all_seats, self.seats, "sourcedId"),
        }
        return {name: every.join(kept, on=key, how="anti").height for name, (every, kept, key) in known.items()}

    # --- organisations and sessions -----------------------------------------------------------------------------------

    @cached_property
    def own_organisations(self) -> pl.DataFrame:
        """What the systems list as the district: every system its own row, all of them the one organisation `root`."""
        return self.published["schools"].filter(pl.col("kind").is_in(THE_DISTRICT)).sort("school_id")

    @cached_property
    def orgs(self) -> pl.DataFrame:
        listed = self.own_organisations.select(
            pl.col("name").first(), identifier=pl.col("school_number").drop_nulls().first()
        )
        district = listed.select(
            sourcedId=pl.lit(self.root),
            name=pl.col("name").fill_null(self.district),
            type=pl.lit("district"),
            identifier=pl.col("identifier").fill_null(self.district),
        )
        below = pl.when(pl.col("kind").is_in(ABOVE).not_()).then(pl.lit(self.root))
        others = (
            self.published["schools"]
            .join(self.own_organisations, on="school_id", how="anti")
            .select(
                sourcedId="school_id",
                name="name",
                type=pl.col("kind").replace("other", "department"),
                identifier="school_number",
                parentSourcedId=below,
            )
        )
        return pl.concat([district, others], how="diagonal")

    def at(self, school: str = "school_id") -> pl.Expr:
        """The sourcedId of the organisation that a school's id names."""
        is_district = pl.col(school).is_in(self.own_organisations["school_id"].implode())
        return pl.when(is_district).then(pl.lit(self.root)).otherwise(pl.col(school))

    @cached_property
    def ranked_sessions(self) -> pl.DataFrame:
        rank = pl.col("kind").replace_strict(SESSION_RANK, return_dtype=pl.Int64)
        return self.published["academic_sessions"].with_columns(rank=rank)

    @cached_property
    def sessions(self) -> pl.DataFrame:
        own = self.ranked_sessions.join(self._parents(), on="session_id", how="left").select(
            sourcedId="session_id",
            title="title",
            type=pl.col("kind").replace_strict(SESSION_TYPES, default="term", return_dtype=pl.String),
            startDate=_day("start_date"),
            endDate=_day("end_date"),
            parentSourcedId="parent",
            schoolYear=pl.lit(str(self.school_year.end)),
        )
        return pl.concat([own, self._whole_year()], how="diagonal") if self.yearless else own

    def _parents(self) -> pl.DataFrame:
        """session_id, parent: the shortest session of a lower rank, of the same system and school, that contains it."""
        above = self.ranked_sessions.select("integration", pl.exclude("integration").name.prefix("above_"))
        inside = (
            (pl.col("above_rank") < pl.col("rank"))
            & (pl.col("above_start_date") <= pl.col("start_date"))
            & (pl.col("above_end_date") >= pl.col("end_date"))
            & _same_or_any_school("above_school_id")
        )
        length = pl.col("above_end_date") - pl.col("above_start_date")
        return (
            self.ranked_sessions.join(above, on="integration")
            .filter(inside)
            .sort(length, -pl.col("above_rank"), "above_session_id")
            .unique("session_id", keep="first", maintain_order=True)
            .select("session_id", parent="above_session_id")
        )

    def _whole_year(self) -> pl.DataFrame:
        year = self.school_year
        return pl.DataFrame(
            {
                "sourcedId": [self.whole_year],
                "title": [year.key],
                "type": ["schoolYear"],
                "startDate": [year.first_day.isoformat()],
                "endDate": [year.day_after.isoformat()],
                "schoolYear": [str(year.end)],
            }
        )

    # --- courses and sections -----------------------------------------------------------------------------------------

    @cached_property
    def sections(self) -> pl.DataFrame:
        """The sections with the course and the terms that a class must have; `course` is made up where there is none."""
        rows = self.published["sections"]
        ids = derived_ids(rows.select("section_id").iter_rows(), "course of section")
        return (
            rows.with_columns(pl.Series("own_course", ids, dtype=pl.String))
            .with_columns(course=pl.coalesce("course_id", "own_course"))
            .join(self._terms(), on=SPAN, how="left", nulls_equal=True, maintain_order="left")
        )

    @property
    def yearless(self) -> bool:
        return self.sections["terms"].is_null().any()

    def _terms(self) -> pl.DataFrame:
        """SPAN, terms: the sessions that a section's span consists of, joined by commas.

        Published sections have dates but no sessions. They are those of the lowest rank that begin and end with the
        span; where no rank does, all that lie in it.
        """
        spans = self.published["sections"].select(SPAN).drop_nulls(["start_date", "end_date"]).unique()
        theirs = self.ranked_sessions.select(
            "integration", "session_id", "rank", begin="start_date", end="end_date", of_school="school_id"
        )
        inside = (pl.col("begin") >= pl.col("start_date")) & (pl.col("end") <= pl.col("end_date"))
        found = spans.join(theirs, on="integration").filter(inside & _same_or_any_school("of_school"))
        of_rank = [*SPAN, "rank"]
        covers = (pl.col("begin").min().over(of_rank) == pl.col("start_date")) & (
            pl.col("end").max().over(of_rank) == pl.col("end_date")
        )
        best = pl.col("rank").filter(pl.col("covers")).min().over(SPAN)
        chosen = found.with_columns(covers=covers).filter(best.is_null() | (pl.col("rank") == best))
        return chosen.group_by(SPAN).agg(terms=pl.col("session_id").sort().str.join(","))

    @cached_property
    def courses(self) -> pl.DataFrame:
        listed = self.published["courses"].select(
            sourcedId="course_id",
            title="title",
            courseCode="course_code",
            grades=_list("grade_levels"),
            orgSourcedId=self.at().fill_null(self.root),
            subjects=_list("subjects"),
            subjectCodes=_list("subject_codes"),
        )
        unlisted = self.sections.join(listed, left_on="course", right_on="sourcedId", how="anti")
        made_up = (
            unlisted.sort("section_id")
            .unique("course", keep="first")
            .select(sourcedId="course", title=_title(), orgSourcedId=self.at())
        )
        return pl.concat([listed, made_up], how="diagonal")

    @cached_property
    def classes(self) -> pl.DataFrame:
        return self.sections.select(
            sourcedId="section_id",
            title=_title(),
            grades=_list("grade_levels"),
            courseSourcedId="course",
            classCode="section_code",
            classType=pl.when(pl.col("kind") == "homeroom").then(pl.lit("homeroom")).otherwise(pl.lit("scheduled")),
            location="location",
            schoolSourcedId=self.at(),
            termSourcedIds=pl.col("terms").fill_null(self.whole_year),
            subjects=_list("subjects"),
            periods=_list("periods"),
        )

    # --- students -----------------------------------------------------------------------------------------------------

    @cached_property
    def stays(self) -> pl.DataFrame:
        """The school enrollments to tell, each student's in order of entry. 1.1 has no dates for them, so that it can
        tell only those that are open."""
        rows = self.published["enrollments"].filter(pl.col("status") != "no_show")
        rows = rows.with_columns(org=self.at(), open=pl.col("status").is_in(OPEN))
        if self.version == "1.1":
            rows = rows.filter("open")
        return rows.sort("student_id", "org", "entry_date")

    @cached_property
    def students(self) -> pl.DataFrame:
        return (
            self.published["students"]
            .join(self.stays, on="student_id", how="semi")
            .join(self._places(), on="student_id", how="left")
            .join(self.published["student_years"].select("student_id", "grade_level"), on="student_id", how="left")
        )

    def _places(self) -> pl.DataFrame:
        """student_id, main (the school of the primary enrollment), orgs (that one first), enrolled."""
        primary = pl.col("enrollment_type") == "primary"
        ordered = self.stays.sort(
            "student_id", "open", primary, "entry_date", "org", descending=[False, True, True, True, False]
        )
        return ordered.group_by("student_id", maintain_order=True).agg(
            main=pl.col("org").filter(primary).first(),
            orgs=pl.col("org").unique(maintain_order=True).str.join(","),
            enrolled=pl.col("open").any(),
        )

    @cached_property
    def student_users(self) -> pl.DataFrame:
        return self.students.select(
            *self._user("student_id", "ssid"),
            enabledUser=pl.col("enrolled") & ~pl.col("near_match"),
            sms="mobile_phone",
            grades="grade_level",
            **self._of_version("orgs", pl.lit(STUDENT), main="main", ssid="ssid"),
            **self._preferred(
                preferredGivenName="preferred_first_name",
                preferredMiddleName="preferred_middle_name",
                preferredFamilyName="preferred_last_name",
                pronouns="pronouns",
            ),
        )

    @cached_property
    def demographics(self) -> pl.DataFrame:
        sexes = ("female", "male") if self.version == "1.1" else ("female", "male", "unspecified", "other")
        flags = [pl.col(column) for column in RACES]
        several = pl.when(pl.any_horizontal(flag.is_not_null() for flag in flags)).then(
            pl.sum_horizontal(flag.fill_null(value=False).cast(pl.Int64) for flag in flags) > 1
        )
        return self.students.select(
            sourcedId="student_id",
            birthDate=_day("birth_date"),
            sex=pl.when(pl.col("sex").is_in(sexes)).then("sex"),
            **{name: pl.col(column) for column, name in RACES.items()},
            demographicRaceTwoOrMoreRaces=several,
            hispanicOrLatinoEthnicity="hispanic_or_latino",
        )

    # --- staff --------------------------------------------------------------------------------------------------------

    @cached_property
    def staff(self) -> pl.DataFrame:
        """Who works here now, and who has a section this year; with `main`, `orgs` and whether a system lists them."""
        listed = self.published["staff_links"].filter("active").select("staff_id").unique()
        teaching = self._teaching()
        place = self.published["staff"].with_columns(
            main=self.at(), listed=pl.col("staff_id").is_in(listed["staff_id"].implode())
        )
        places = (
            pl.concat([place.select("staff_id", org="main"), teaching.sort("org")])
            .drop_nulls("org")
            .unique(maintain_order=True)
            .group_by("staff_id", maintain_order=True)
            .agg(orgs="org")
        )
        here = place.filter(pl.col("listed") | pl.col("staff_id").is_in(teaching["staff_id"].implode()))
        return here.join(places, on="staff_id", how="left").with_columns(
            orgs=pl.col("orgs").fill_null(pl.lit([self.root])),
            said=pl.col("role").replace_strict(STAFF_ROLES[self.version], default=LEAST_ROLE, return_dtype=pl.String),
        )

    def _teaching(self) -> pl.DataFrame:
        """staff_id, org: the schools of the sections that somebody who is no student has a role in."""
        rows = self.all_seats.filter(pl.col("word").is_not_null() & (pl.col("role") != STUDENT))
        return rows.select("org", staff_id="person_id").unique().select("staff_id", "org")

    @cached_property
    def staff_users(self) -> pl.DataFrame:
        return self.staff.select(
            *self._user("staff_id", "state_staff_id"),
            enabledUser="listed",
            **self._of_version(pl.col("orgs").list.join(","), "said", main="main"),
            **self._preferred(preferredGivenName="preferred_first_name"),
        )

    # --- what students and staff share --------------------------------------------------------------------------------

    def _user(self, key: str, state_id: str) -> list[pl.Expr]:
        """1.1 wants a user name of everybody."""
        unnamed = [pl.col("email"), pl.col(key)] if self.version == "1.1" else []
        sayable = pl.when(~pl.col(state_id).str.contains(r"[{}]")).then(pl.format("{{stateID:{}}}", pl.col(state_id)))
        return [
            pl.col(key).alias("sourcedId"),
            pl.coalesce("username", *unnamed).alias("username"),
            sayable.alias("userIds"),
            pl.col("first_name").alias("givenName"),
            pl.col("last_name").alias("familyName"),
            pl.col("middle_name").alias("middleName"),
            pl.col("local_id").alias("identifier"),
            pl.col("email"),
            pl.col("phone"),
        ]

    def _of_version(
        self, orgs: pl.Expr | str, role: pl.Expr | str, *, main: str, ssid: str | None = None
    ) -> dict[str, pl.Expr | str]:
        if self.version == "1.1":
            return {"orgSourcedIds": orgs, "role": role}
        return {"primaryOrgSourcedId": main, **({"userMasterIdentifier": ssid} if ssid else {})}

    def _preferred(self, **columns: str) -> dict[str, str]:
        return columns if self.preferred_names else {}

    @cached_property
    def roles(self) -> pl.DataFrame:
        """One per school enrollment, one per school of a staff member. Of several at one school the last is primary.

        A role's id counts a student's enrollments at the school: it outlives a corrected entry date, which is part of
        the enrollment's key. An earlier enrollment that appears renumbers the later ones.
        """
        stint = pl.int_range(1, pl.len() + 1).over("student_id", "org")
        theirs = self.stays.join(self.students, on="student_id", how="semi", maintain_order="left").select(
            "org",
            person="student_id",
            role=pl.lit(STUDENT),
            stint=stint.cast(pl.String),
            last=stint == pl.len().over("student_id", "org"),
            beginDate=_day("entry_date"),
            endDate=_day("exit_date"),
        )
        staff = (
            self.staff.select("orgs", person="staff_id", role="said", stint=pl.lit("1"), last=pl.lit(value=True))
            .explode("orgs")
            .rename({"orgs": "org"})
        )
        rows = pl.concat([theirs, staff], how="diagonal")
        ids = derived_ids(rows.select("person", "org", "stint").iter_rows(), "role", self.district)
        return rows.select(
            pl.Series("sourcedId", ids, dtype=pl.String),
            "role",
            "beginDate",
            "endDate",
            userSourcedId="person",
            roleType=pl.when("last").then(pl.lit("primary")).otherwise(pl.lit("secondary")),
            orgSourcedId="org",
        )

    # --- section enrollments ------------------------------------------------------------------------------------------

    @cached_property
    def all_seats(self) -> pl.DataFrame:
        """The section enrollments, and a lead teacher's where a section names one that has none; `word` is the role in
        OneRoster's words, null where it has none."""
        key = ["section_id", "person_id", "role"]
        leads = self.sections.drop_nulls("teacher_id").select(
            "section_id", person_id="teacher_id", role=pl.lit(TEACHER)
        )
        rows = self.published["section_enrollments"].select(*key, "begin_date", "end_date")
        rows = pl.concat([rows, leads.join(rows, on=key, how="anti")], how="diagonal")
        about = self.sections.select("section_id", "teacher_id", org=self.at())
        rows = rows.join(about, on="section_id", how="left", maintain_order="left")
        ids = derived_ids(rows.select(key).iter_rows(), "section enrollment", self.district)
        word = pl.col("role").replace_strict(SEAT_ROLES[self.version], default=None, return_dtype=pl.String)
        return rows.with_columns(pl.Series("sourcedId", ids, dtype=pl.String), word=word)

    @cached_property
    def seats(self) -> pl.DataFrame:
        """Those of sections and people that are in the set."""
        is_student = pl.col("role") == STUDENT
        known = (is_student & pl.col("person_id").is_in(self.students["student_id"].implode())) | (
            ~is_student & pl.col("person_id").is_in(self.staff["staff_id"].implode())
        )
        return self.all_seats.filter(known & pl.col("word").is_not_null() & pl.col("org").is_not_null())

    @cached_property
    def enrollments(self) -> pl.DataFrame:
        leads = pl.col("teacher_id").eq_missing(pl.col("person_id"))
        return self.seats.select(
            sourcedId="sourcedId",
            classSourcedId="section_id",
            schoolSourcedId="org",
            userSourcedId="person_id",
            role="word",
            primary=pl.when(pl.col("role") == TEACHER).then(leads),
            beginDate=_day("begin_date"),
            endDate=_day("end_date"),
        )


SPAN = ["integration", "school_id", "start_date", "end_date"]


def _same_or_any_school(column: str) -> pl.Expr:
    """Whether a session is of the row's school, or of all schools."""
    return pl.col(column).is_null() | pl.col(column).eq_missing(pl.col("school_id"))


def _title() -> pl.Expr:
    """A class must have a title."""
    return pl.coalesce("title", "section_code", "section_id")


def _day(column: str) -> pl.Expr:
    return pl.col(column).dt.to_string("%Y-%m-%d")


def _list(column: str) -> pl.Expr:
    """The members of a list in one cell. The binding has no way to write a comma inside a member."""
    members = pl.col(column).str.json_decode(pl.List(pl.String))
    return members.list.eval(pl.element().str.replace_all(",", ";")).list.join(",")
