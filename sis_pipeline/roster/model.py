"""Every table of a roster, declared once: what SIS systems deliver (ENTITIES) and what is published (MERGED).

The pandera schemas, SQL tables, Dagster column metadata, docs page and test frames are derived from here; no other
module lists a roster column.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["text", "date", "timestamp", "int", "float", "bool", "list", "json", "uuid"]
Scope = Literal["record", "person", "year"]

# CEDS Entry Grade Level option set (ceds.ed.gov element 100); "Other" is what OneRoster allows beside it.
GRADE_LEVELS = (
    "IT", "PR", "PK", "TK", "KG", "01", "02", "03", "04", "05", "06", "07", "08", "09", "10", "11", "12",
    "13", "PS", "UG", "AE", "Other",
)  # fmt: skip
SEXES = ("female", "male", "unspecified", "other")
RECORD_STATUSES = ("active", "to_be_deleted")
ENROLLMENT_STATUSES = ("pre_registered", "active", "no_show", "withdrawn", "transferred", "graduated")
ENROLLMENT_TYPES = ("primary", "secondary")
ENTRY_DATE_SOURCES = ("sis", "class_begin", "session_start")
SESSION_KINDS = ("school_year", "semester", "trimester", "quarter", "term", "grading_period", "other")
SCHOOL_KINDS = ("school", "district", "department", "local", "state", "national", "other")
SECTION_KINDS = ("homeroom", "scheduled", "other")
SECTION_ROLES = ("student", "teacher", "aide", "proctor", "administrator", "other")
STAFF_ROLES = (
    "teacher", "aide", "counselor", "principal", "proctor",
    "district_administrator", "site_administrator", "system_administrator", "staff", "other",
)  # fmt: skip
CHANGE_KINDS = (
    "enroll", "withdraw", "transfer", "no_show", "re_enter", "graduate", "amend", "grade_change",
    "section_add", "section_drop",
)  # fmt: skip
ACCOUNT_KINDS = ("student", "staff")
ACCOUNT_STATUSES = ("active", "suspended")
STANDING_CONFLICTS = ("open", "auto", "resolved")
STALE = "stale"
CONFLICT_STATUSES = (*STANDING_CONFLICTS, STALE)

SCHOOL_YEAR_PATTERN = r"^\d{4}-\d{4}$"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its kind, its constraints and what the field calls it.

    `scope` says who owns the value of a student column: the record (ids of one SIS record), the person (one value
    whatever the year) or the school year. `merged` columns take part in survivorship and conflicts.
    `required` means never null. `codes`, `pattern`, `minimum` and `maximum` are validated; `refers` names the
    entity (or entities, with ` or `) whose `sis_id` the value must be.
    """

    name: str
    kind: Kind
    about: str
    required: bool = False
    key: bool = False
    codes: tuple[str, ...] = ()
    pattern: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    longest: int | None = None
    refers: str | None = None
    scope: Scope = "record"
    merged: bool = False
    personal: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """One table: an entity that a SIS delivers, or a table that is published."""

    name: str
    about: str
    columns: tuple[Column, ...]

    def __iter__(self) -> Iterator[Column]:
        return iter(self.columns)

    def __getitem__(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    @property
    def key(self) -> list[str]:
        return [column.name for column in self.columns if column.key]

    def of_scope(self, scope: Scope) -> list[Column]:
        return [column for column in self.columns if column.scope == scope]

    @property
    def merged(self) -> list[Column]:
        return [column for column in self.columns if column.merged]


def _text(name: str, about: str, **rest: object) -> Column:
    return Column(name, "text", about, **{"longest": 255, **rest})  # type: ignore[arg-type]


def _person(name: str, about: str, kind: Kind = "text", **rest: object) -> Column:
    limits: dict[str, object] = {"longest": 255} if kind == "text" else {}
    return Column(name, kind, about, scope="person", merged=True, personal=True, **{**limits, **rest})  # type: ignore[arg-type]


def _year(name: str, about: str, kind: Kind = "text", **rest: object) -> Column:
    return Column(name, kind, about, scope="year", **rest)  # type: ignore[arg-type]


def _sis_id(about: str = "the record's id in its SIS, opaque text") -> Column:
    return _text("sis_id", about, required=True, key=True, pattern=r"^\S(.*\S)?$")


def _tail() -> tuple[Column, Column]:
    return (
        _text(
            "record_status",
            "active, or to_be_deleted where the SIS sent a tombstone",
            required=True,
            codes=RECORD_STATUSES,
        ),
        Column("modified_at", "timestamp", "when the SIS says the record last changed, UTC"),
    )


def _address(prefix: str, what: str) -> tuple[Column, ...]:
    return (
        _person(f"{prefix}_street", f"{what} address: street lines"),
        _person(f"{prefix}_city", f"{what} address: city"),
        _person(f"{prefix}_state", f"{what} address: state or province"),
        _person(f"{prefix}_postal_code", f"{what} address: postal code, as text"),
    )


SCHOOLS = Table(
    "schools",
    "Schools and the organisations above them, as the SIS lists them.",
    (
        _sis_id(),
        _text("name", "school name", required=True),
        _text("school_number", "the number the district gave the school; equal numbers in one district are one school"),
        _text("state_school_id", "the id the state gave the school"),
        _text("nces_id", "the federal (NCES) school id"),
        _text("kind", "what kind of organisation this is", required=True, codes=SCHOOL_KINDS),
        _text("parent_sis_id", "the organisation above, if the SIS says"),
        _text("low_grade", "lowest grade level taught", codes=GRADE_LEVELS),
        _text("high_grade", "highest grade level taught", codes=GRADE_LEVELS),
        _text("street", "street address"),
        _text("city", "city"),
        _text("state", "state or province"),
        _text("postal_code", "postal code, as text"),
        _text("phone", "main phone"),
        _text("principal_name", "principal's name"),
        _text("principal_email", "principal's email"),
        *_tail(),
    ),
)

ACADEMIC_SESSIONS = Table(
    "academic_sessions",
    "School years, terms and grading periods.",
    (
        _sis_id(),
        _text("title", "session title", required=True),
        _text("kind", "what kind of session this is", required=True, codes=SESSION_KINDS),
        Column("start_date", "date", "first day", required=True),
        Column("end_date", "date", "first day after the session (exclusive)", required=True),
        _text("school_year", "the school year it belongs to, as 2025-2026", required=True, pattern=SCHOOL_YEAR_PATTERN),
        _text("school_sis_id", "the school, where sessions are kept per school", refers="schools"),
        _text("parent_sis_id", "the session that contains it"),
        *_tail(),
    ),
)

STUDENTS = Table(
    "students",
    "Students, one row per SIS record.",
    (
        _sis_id(),
        _text("ssid", "state student id", scope="person", merged=True, personal=True),
        _text("ssid_issuer", "the state that issued the ssid", scope="person"),
        _text("local_id", "local student number", scope="person", merged=True, personal=True),
        _text("local_id_issuer", "the district that issued the local id", scope="person"),
        _person("first_name", "legal first name", required=True),
        _person("middle_name", "legal middle name"),
        _person("last_name", "legal last name", required=True),
        _person("name_suffix", "Jr., III and the like"),
        _person("preferred_first_name", "preferred first name; never overwrites the legal one"),
        _person("preferred_middle_name", "preferred middle name"),
        _person("preferred_last_name", "preferred last name"),
        _person("pronouns", "pronouns, as the SIS has them"),
        _person("birth_date", "birth date", "date"),
        _person("sex", "sex as recorded", codes=SEXES),
        _person("username", "user name in the SIS"),
        _person("email", "student's email", longest=320),
        _person("phone", "main phone"),
        _person("mobile_phone", "phone that takes text messages"),
        *_address("home", "home"),
        *_address("mailing", "mailing"),
        _person("hispanic_or_latino", "federal ethnicity flag", "bool"),
        _person("american_indian_or_alaska_native", "federal race flag", "bool"),
        _person("asian", "federal race flag", "bool"),
        _person("black_or_african_american", "federal race flag", "bool"),
        _person("native_hawaiian_or_other_pacific_islander", "federal race flag", "bool"),
        _person("white", "federal race flag", "bool"),
        _person("graduation_year", "projected year of graduation", "int", minimum=1900, maximum=2200),
        _person("district_entry_date", "first entry to the district", "date"),
        _person("directory_opt_out", "true if the family refused directory information", "bool"),
        _person("address_confidential", "true if the address is protected", "bool"),
        _year("grade_level", "grade level, CEDS code", codes=GRADE_LEVELS, merged=True),
        _year("grade_level_source", "grade level as the SIS writes it"),
        _year("school_sis_id", "the student's (primary) school in the year", refers="schools"),
        _year("homeroom", "homeroom"),
        _year("enrollment_status", "status in the year", codes=ENROLLMENT_STATUSES),
        _year("fte", "full-time equivalency, 0 to 1", "float", minimum=0, maximum=2),
        *_tail(),
    ),
)

STAFF = Table(
    "staff",
    "Teachers and other staff, one row per SIS person.",
    (
        _sis_id(),
        _text("state_staff_id", "id issued by the state", personal=True),
        _text("local_id", "local staff or teacher number", personal=True),
        _text("first_name", "first name", required=True, personal=True),
        _text("middle_name", "middle name", personal=True),
        _text("last_name", "last name", required=True, personal=True),
        _text("preferred_first_name", "preferred first name", personal=True),
        _text("username", "user name in the SIS", personal=True),
        _text("email", "email", personal=True, longest=320),
        _text("phone", "phone", personal=True),
        _text("role", "main role", required=True, codes=STAFF_ROLES),
        _text("school_sis_id", "main school", refers="schools"),
        Column("school_sis_ids", "list", "all schools"),
        *_tail(),
    ),
)

DEPARTMENTS = Table(
    "departments",
    "Departments that offer courses.",
    (
        _sis_id(),
        _text("name", "department name", required=True),
        _text("school_sis_id", "the school, where departments are kept per school", refers="schools"),
        *_tail(),
    ),
)

COURSES = Table(
    "courses",
    "The course catalogue.",
    (
        _sis_id(),
        _text("title", "course title", required=True),
        _text("course_code", "course number or code"),
        _text("school_sis_id", "the school, where courses are kept per school", refers="schools"),
        _text("department_sis_id", "the department", refers="departments"),
        Column("grade_levels", "list", "grade levels, CEDS codes"),
        Column("subjects", "list", "subjects"),
        Column("subject_codes", "list", "subject codes (SCED)"),
        *_tail(),
    ),
)

SECTIONS = Table(
    "sections",
    "Sections of courses (OneRoster classes).",
    (
        _sis_id(),
        _text("title", "section title"),
        _text("section_code", "section number or class code"),
        _text("kind", "homeroom or scheduled", required=True, codes=SECTION_KINDS),
        _text("course_sis_id", "the course", refers="courses"),
        _text("school_sis_id", "the school", required=True, refers="schools"),
        Column("session_sis_ids", "list", "the academic sessions it runs in"),
        _text("teacher_sis_id", "lead teacher", refers="staff"),
        _text("location", "room"),
        Column("periods", "list", "periods"),
        Column("grade_levels", "list", "grade levels, CEDS codes"),
        Column("subjects", "list", "subjects"),
        *_tail(),
    ),
)

ENROLLMENTS = Table(
    "enrollments",
    "School enrollments: one student at one school in one school year from one entry date.",
    (
        _sis_id("the record's id in its SIS, or one derived from student, school and entry date where it has none"),
        _text("student_sis_id", "the student", required=True, refers="students"),
        _text("school_sis_id", "the school", required=True, refers="schools"),
        _text("school_year", "school year, as 2025-2026", required=True, pattern=SCHOOL_YEAR_PATTERN),
        Column("entry_date", "date", "first day enrolled", required=True),
        _text("entry_date_source", "where the entry date comes from", required=True, codes=ENTRY_DATE_SOURCES),
        _text("entry_code", "entry code, as the SIS writes it"),
        Column("exit_date", "date", "first day no longer enrolled (exclusive); null while enrolled"),
        _text("exit_code", "exit code, as the SIS writes it"),
        _text("grade_level", "grade level, CEDS code", codes=GRADE_LEVELS),
        Column("fte", "float", "full-time equivalency, 0 to 1", minimum=0, maximum=2),
        _text("enrollment_type", "primary, or secondary for a co-enrollment", required=True, codes=ENROLLMENT_TYPES),
        _text("status", "status of the enrollment", required=True, codes=ENROLLMENT_STATUSES),
        *_tail(),
    ),
)

SECTION_ENROLLMENTS = Table(
    "section_enrollments",
    "Who sits in, or teaches, a section.",
    (
        _sis_id(),
        _text("section_sis_id", "the section", required=True, refers="sections"),
        _text("role", "student, teacher or another role", required=True, codes=SECTION_ROLES),
        _text("person_sis_id", "the student, or the staff member", required=True, refers="students or staff"),
        _text("school_sis_id", "the school", refers="schools"),
        Column("is_primary", "bool", "true for the teacher of record"),
        Column("begin_date", "date", "first day in the section"),
        Column("end_date", "date", "first day no longer in the section (exclusive)"),
        *_tail(),
    ),
)

CONTACTS = Table(
    "contacts",
    "Guardians and other contacts of a student.",
    (
        _sis_id(),
        _text("student_sis_id", "the student", required=True, refers="students"),
        _text("first_name", "first name", personal=True),
        _text("last_name", "last name", personal=True),
        _text("relationship", "relationship to the student"),
        _text("email", "email", personal=True, longest=320),
        _text("phone", "phone", personal=True),
        Column("priority", "int", "contact order, 1 first", minimum=0, maximum=99),
        *_tail(),
    ),
)

ENTITIES: dict[str, Table] = {
    table.name: table
    for table in (
        SCHOOLS,
        ACADEMIC_SESSIONS,
        DEPARTMENTS,
        COURSES,
        STUDENTS,
        STAFF,
        SECTIONS,
        ENROLLMENTS,
        SECTION_ENROLLMENTS,
        CONTACTS,
    )
}
"""What a SIS delivers, in an order in which every referred entity stands before the one that refers to it
(a school's sessions, a section's teacher)."""


def _district() -> Column:
    return _text("district", "the district (LEA)", required=True, key=True)


def _uuid(name: str, about: str, *, key: bool = False, required: bool = True) -> Column:
    return Column(name, "uuid", about, required=required, key=key)


def _year_key() -> Column:
    return _text("school_year", "school year, as 2025-2026", required=True, key=True, pattern=SCHOOL_YEAR_PATTERN)


def _carried(table: Table, *left_out: str) -> tuple[Column, ...]:
    """The entity's columns without the SIS record's own: nothing published is keyed by, or names, one SIS's ids."""
    return tuple(
        replace(column, key=False, refers=None)
        for column in table
        if not column.name.endswith(("sis_id", "sis_ids"))
        and column.name not in {"record_status", "modified_at", *left_out}
    )


def _origin(what: str) -> tuple[Column, Column]:
    return (
        _text("integration", f"the integration this {what} comes from", required=True),
        _text("sis_id", f"the {what}'s id in that SIS", required=True),
    )


MERGED_STUDENTS = Table(
    "students",
    "One trusted record per student of a district: the person, whatever the year.",
    (
        _district(),
        _uuid("student_id", "the student's permanent id", key=True),
        *(replace(column, key=False) for column in STUDENTS.of_scope("person")),
        _text(
            "latest_school_year",
            "the latest school year with a record; it owns the person's attributes",
            required=True,
            pattern=SCHOOL_YEAR_PATTERN,
        ),
        Column(
            "near_match",
            "bool",
            "true while a possible same person waits for review; no account is made",
            required=True,
        ),
        Column(
            "origins",
            "json",
            'where each value comes from: {"*": "integration/sis_id", attribute: "integration/sis_id rule"}',
            required=True,
        ),
    ),
)

STUDENT_YEARS = Table(
    "student_years",
    "What holds for a student in one school year.",
    (
        _district(),
        _uuid("student_id", "the student", key=True),
        _year_key(),
        *(replace(column, key=False) for column in STUDENTS.of_scope("year") if column.name != "school_sis_id"),
        _uuid("school_id", "the school of the primary enrollment", required=False),
    ),
)

STUDENT_LINKS = Table(
    "student_links",
    "Which SIS records are which student, and why.",
    (
        _district(),
        _text("integration", "the integration", required=True, key=True),
        _text("sis_id", "the student record's id in that SIS", required=True, key=True),
        _uuid("student_id", "the student"),
        _text("rule", "the rule that matched the record, `new` for the first", required=True),
        Column(
            "confidence", "float", "1 for exact rules, below 1 for near matches", required=True, minimum=0, maximum=1
        ),
        Column("active", "bool", "false when the record is no longer delivered", required=True),
    ),
)

STUDENT_SOURCES = Table(
    "student_sources",
    "The latest value of every attribute per contributing SIS record.",
    (
        _district(),
        _text("integration", "the integration", required=True, key=True),
        _text("sis_id", "the student record's id in that SIS", required=True, key=True),
        _year_key(),
        _uuid("student_id", "the student"),
        *(
            replace(column, key=False, required=False, refers=None)
            for column in STUDENTS
            if column.name not in {"sis_id", "record_status"}
        ),
        Column(
            "emptied", "list", "attributes of which it had a value, and has none in a reading that does not prove why"
        ),
        Column("cleared", "list", "attributes of which it had a value, and which a complete reading shows taken away"),
        _uuid("snapshot_id", "the snapshot that first held these values"),
    ),
)

CONFLICTS = Table(
    "conflicts",
    "Attributes on which the systems disagree, what was chosen and by which rule; and, stale, on which they did until `changed_at`.",
    (
        _district(),
        _uuid("student_id", "the student", key=True),
        _year_key(),
        _text("attribute", "the attribute", required=True, key=True),
        Column(
            "candidates",
            "json",
            "the values and the records that hold them, null where one cleared it: [{integration, sis_id, value, modified_at}]",
            required=True,
        ),
        _text("chosen", "the published value, as text"),
        _text("chosen_from", "integration/sis_id of the chosen value"),
        _text("rule", "the rule that chose", required=True),
        _text(
            "status",
            "whether nobody has chosen, a rule, or a person; stale where nothing conflicts any more",
            required=True,
            codes=CONFLICT_STATUSES,
        ),
    ),
)

MERGED_SCHOOLS = Table(
    "schools",
    "Schools of a district, one row whatever the number of systems.",
    (_district(), _uuid("school_id", "the school's permanent id", key=True), *_carried(SCHOOLS), *_origin("school")),
)

MERGED_ACADEMIC_SESSIONS = Table(
    "academic_sessions",
    "Academic sessions of every integration of a district.",
    (
        _district(),
        _uuid("session_id", "the session's id", key=True),
        *_carried(ACADEMIC_SESSIONS),
        _uuid("school_id", "the school", required=False),
        *_origin("session"),
    ),
)

MERGED_COURSES = Table(
    "courses",
    "Courses of every integration of a district in a school year.",
    (
        _district(),
        _uuid("course_id", "the course's id", key=True),
        _year_key(),
        *_carried(COURSES),
        _uuid("school_id", "the school", required=False),
        *_origin("course"),
    ),
)

MERGED_SECTIONS = Table(
    "sections",
    "Sections of every integration of a district in a school year.",
    (
        _district(),
        _uuid("section_id", "the section's id", key=True),
        _year_key(),
        *_carried(SECTIONS),
        _uuid("school_id", "the school"),
        _uuid("course_id", "the course", required=False),
        _uuid("teacher_id", "the teacher of record", required=False),
        Column("start_date", "date", "first day of its first session"),
        Column("end_date", "date", "first day after its last session (exclusive)"),
        *_origin("section"),
    ),
)

MERGED_STAFF = Table(
    "staff",
    "One record per staff member of a district.",
    (
        _district(),
        _uuid("staff_id", "the staff member's permanent id", key=True),
        *_carried(STAFF),
        _uuid("school_id", "main school", required=False),
        Column(
            "near_match",
            "bool",
            "true while a possible same person waits for review; no account is made",
            required=True,
        ),
    ),
)

STAFF_LINKS = Table(
    "staff_links",
    "Which SIS records are which staff member, and why.",
    (
        _district(),
        _text("integration", "the integration", required=True, key=True),
        _text("sis_id", "the staff record's id in that SIS", required=True, key=True),
        _uuid("staff_id", "the staff member"),
        _text("rule", "the rule that matched the record", required=True),
        Column("active", "bool", "false when the record is no longer delivered", required=True),
    ),
)

MERGED_ENROLLMENTS = Table(
    "enrollments",
    "School enrollments: one student at one school in one school year from one entry date.",
    (
        _district(),
        _uuid("student_id", "the student", key=True),
        _uuid("school_id", "the school", key=True),
        _year_key(),
        *(replace(column, key=column.name == "entry_date") for column in _carried(ENROLLMENTS, "school_year")),
        *_origin("enrollment"),
    ),
)

MERGED_SECTION_ENROLLMENTS = Table(
    "section_enrollments",
    "Who sits in, or teaches, a section.",
    (
        _district(),
        _uuid("section_id", "the section", key=True),
        _uuid("person_id", "the student or staff member", key=True),
        replace(SECTION_ENROLLMENTS["role"], key=True),
        _year_key(),
        *_carried(SECTION_ENROLLMENTS, "role"),
        *_origin("section enrollment"),
    ),
)

ENROLLMENT_CHANGES = Table(
    "enrollment_changes",
    "The ledger: who enrolled, left, transferred or changed. Append-only.",
    (
        _district(),
        _uuid("change_id", "the event's id; publishing an operation again gives the same one", key=True),
        _uuid("student_id", "the student"),
        _text("school_year", "school year, as 2025-2026", required=True, pattern=SCHOOL_YEAR_PATTERN),
        _text("kind", "what happened", required=True, codes=CHANGE_KINDS),
        Column("effective_date", "date", "the day it takes effect"),
        _uuid("school_id", "the school (the new one of a transfer)", required=False),
        _uuid("section_id", "the section, for section events", required=False),
        Column("before", "json", "what held before"),
        Column("after", "json", "what holds now"),
        _text(
            "evidence",
            "what shows it: first_load, new_record, explicit_exit, absence, tombstone, field_change, "
            "withdrawal:WITHDRAWAL, undo:OPERATION",
            required=True,
        ),
        _text("integration", "the integration that showed it"),
        _uuid("operation_id", "the sync operation that detected it"),
    ),
)

MERGED: dict[str, Table] = {
    table.name: table
    for table in (
        MERGED_SCHOOLS,
        MERGED_ACADEMIC_SESSIONS,
        MERGED_COURSES,
        MERGED_STAFF,
        STAFF_LINKS,
        MERGED_SECTIONS,
        MERGED_STUDENTS,
        STUDENT_YEARS,
        STUDENT_LINKS,
        STUDENT_SOURCES,
        CONFLICTS,
        MERGED_ENROLLMENTS,
        MERGED_SECTION_ENROLLMENTS,
        ENROLLMENT_CHANGES,
    )
}
"""What is published to PostgreSQL, in the order in which it is written."""

ACCOUNTS = Table(
    "accounts",
    "Accounts of students and staff, as the published roster and the district's account rules say. Never deleted.",
    (
        _district(),
        _uuid("account_id", "the account's permanent id, always the same for a person", key=True),
        _text("kind", "whose account it is", required=True, codes=ACCOUNT_KINDS),
        _uuid("person_id", "the student or staff member"),
        _text(
            "username", "user name; given once, kept, and never given to another person", required=True, personal=True
        ),
        _text(
            "email", "the user name at the domain of now; null where the rules name none", personal=True, longest=320
        ),
        _text("status", "active or suspended", required=True, codes=ACCOUNT_STATUSES),
        Column(
            "missing_since",
            "date",
            "the day on which the roster was first found to have no place for the person; the grace period runs from it",
        ),
        _text("note", "why it is suspended"),
        _text("role", "student, or the role of the staff member", required=True),
        Column("school_ids", "list", "the schools: enrolled at, or working at; of someone missing, the last ones"),
    ),
)
"""Written with what is published, but by the account rules and not by the merge."""
