"""PowerSchool's `/ws/v1` objects, written from the tables with the quirks of its JSON: numbers for number-looking text,
empty text for empty blocks, missing keys for missing values. Paths, pages and queries are served in `powerschool`."""

from __future__ import annotations

from typing import Any

from sis_pipeline.sandbox.dialects.api import Json
from sis_pipeline.sandbox.dialects.powerschool_tables import (
    FULL_TIME,
    GRADUATED_SCHOOL,
    GRADUATED_SCHOOL_DCID,
    RACE_LETTERS,
    Tables,
    TextRow,
)
from sis_pipeline.sandbox.things import School
from sis_pipeline.sandbox.views import SeatRow, StudentRow

EXPANSIONS = (
    "demographics", "addresses", "alerts", "phones", "school_enrollment", "ethnicity_race", "contact", "contact_info",
    "initial_enrollment", "schedule_setup", "fees", "lunch",
)  # fmt: skip
EXTENSIONS = ("s_stu_x", "u_students_extension", "studentcorefields")
STATUS_LETTERS = {"-1": "P", "0": "A", "1": "I", "2": "T", "3": "G", "4": "H"}
STATUS_NAMES = {
    "P": "Pre-registered", "A": "Active", "I": "Inactive", "T": "Transferred Out", "G": "Graduated", "H": "Historical",
}  # fmt: skip


def as_json_guesses(text: str | None) -> str | int | None:
    """Text that looks like a number becomes one, leading zeros lost."""
    return int(text) if text and text.isascii() and text.isdigit() else text


class Words:
    """Writes what the tables of one day hold as `/ws/v1` objects."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self._users = {row["dcid"]: row for row in tables.rows("users")}
        self._courses = {row["course_number"]: row for row in tables.rows("courses")}
        self._terms = {(row["schools_dcid"], row["id"]): row for row in tables.rows("terms")}
        self._staff_dcid = {row["id"]: int(row["dcid"]) for row in tables.school_staff}

    # --- students ----------------------------------------------------------------------------------------------------

    def student(self, student: StudentRow, expansions: set[str], extensions: list[str]) -> Json:
        row = self.tables.students_row(student)
        name = _present({key: row.get(key) for key in ("first_name", "middle_name", "last_name")})
        written: Json = _present({
            "id": int(row["dcid"]), "local_id": as_json_guesses(row.get("student_number")),
            "state_province_id": as_json_guesses(row.get("state_studentnumber")),
            "student_username": as_json_guesses(row.get("student_web_id")), "name": name,
        })  # fmt: skip
        blocks = self._blocks(student, row)
        written |= {block: blocks.get(block) or "" for block in EXPANSIONS if block in expansions}
        if extensions:
            known = [self._extension(student, table) for table in extensions if table in EXTENSIONS]
            written["_extension_data"] = {"_table_extension": known[0] if len(known) == 1 else known}
        return written

    def _blocks(self, student: StudentRow, row: TextRow) -> Json:
        return {
            "demographics": _present({
                "gender": row["gender"], "birth_date": row["dob"],
                "projected_graduation_year": int(row.get("sched_yearofgraduation", 0)),
                "district_entry_date": row.get("districtentrydate"),
            }),
            "addresses": {
                "physical": _address(row, "street", "city", "state", "zip"),
                "mailing": _address(row, "mailing_street", "mailing_city", "mailing_state", "mailing_zip"),
            },
            "phones": {"main": {"number": as_json_guesses(row["home_phone"])}} if "home_phone" in row else "",
            "school_enrollment": self._school_enrollment(row),
            "ethnicity_race": _ethnicity(student),
            "contact": _present({"guardian_email": row.get("guardianemail")}),
            "contact_info": {"email": row["email"]} if "email" in row else "",
            "initial_enrollment": _present({"district_entry_date": row.get("districtentrydate")}),
            "schedule_setup": _present({"home_room": row.get("home_room")}),
        }  # fmt: skip

    def _school_enrollment(self, row: TextRow) -> Json:
        letter = STATUS_LETTERS[row["enroll_status"]]
        graduated = row["schoolid"] == str(GRADUATED_SCHOOL)
        dcid = GRADUATED_SCHOOL_DCID if graduated else int(self.tables.school_dcid(row["schoolid"]))
        return _present({
            "enroll_status": letter, "enroll_status_description": STATUS_NAMES[letter],
            "enroll_status_code": int(row["enroll_status"]), "grade_level": int(row["grade_level"]),
            "entry_date": row.get("entrydate"), "exit_date": row.get("exitdate"), "school_number": int(row["schoolid"]),
            "school_id": dcid, "entry_code": row.get("entrycode"), "exit_code": row.get("exitcode"),
            "full_time_equivalency": {"fteid": FULL_TIME, "name": "Full time"},
        })  # fmt: skip

    def _extension(self, student: StudentRow, table: str) -> Json:
        fields = {
            "studentcorefields": {"pref_first_name": student.values["preferred_first_name"]},
            "u_students_extension": {"school_email": student.values["email"]},
            "s_stu_x": {},
        }[table]
        known = [{"name": name, "type": "String", "value": value} for name, value in fields.items() if value]
        return {"recordFound": bool(known), "name": table, "_field": known}

    def searchable(self, student: StudentRow) -> dict[str, str]:
        """What the search grammar may ask of a student."""
        row = self.tables.students_row(student)
        return _present({
            "id": row["dcid"], "local_id": row.get("student_number"), "state_province_id": row.get("state_studentnumber"),
            "student_username": row.get("student_web_id"), "name.last_name": row.get("last_name"),
            "name.first_name": row["first_name"], "school_enrollment.entry_date": row.get("entrydate"),
            "school_enrollment.enroll_status": STATUS_LETTERS[row["enroll_status"]],
            "school_enrollment.enroll_status_code": row["enroll_status"],
        })  # fmt: skip

    # --- schools, staff ----------------------------------------------------------------------------------------------

    def school(self, school: School | None, expansions: set[str]) -> Json:
        """A school; None is the pseudo school of the graduated."""
        if school is None:
            return {"id": GRADUATED_SCHOOL_DCID, "name": "Graduated Students", "school_number": GRADUATED_SCHOOL,
                    **{block: "" for block in ("addresses", "phones", "principal") if block in expansions}}  # fmt: skip
        principal = self.tables.view.world.population.teachers[school.principal]
        blocks = {
            "addresses": {"physical": {"street": school.street, "city": school.city, "state_province": "NJ",
                                       "postal_code": as_json_guesses(school.postal_code)}},
            "phones": {"main": {"number": as_json_guesses(school.phone)}},
            "principal": {"name": {"first_name": principal.first_name, "last_name": principal.last_name},
                          "email": principal.email},
        }  # fmt: skip
        return {
            "id": int(self.tables.school_dcid(school.number)), "name": school.name, "school_number": int(school.number),
            "low_grade": school.low, "high_grade": school.high, "alternate_school_number": 0,
            **{name: block for name, block in blocks.items() if name in expansions},
        }  # fmt: skip

    def staff(self, row: TextRow, expansions: set[str]) -> Json:
        """A person at one school; the same person has another id at the next."""
        user = self._users[row["users_dcid"]]
        places = [
            {"school_id": int(other["schools_dcid"]), "type": int(other["staffstatus"]), "status": 1}
            for other in self.tables.school_staff if other["users_dcid"] == row["users_dcid"]
        ]  # fmt: skip
        blocks: Json = {
            "emails": {"work_email": user["email_addr"]}, "addresses": "", "phones": "",
            "school_affiliations": {"school_affiliation": places[0] if len(places) == 1 else places},
        }  # fmt: skip
        return {
            "id": int(row["dcid"]), "local_id": as_json_guesses(user["teachernumber"]),
            "name": {"first_name": user["first_name"], "last_name": user["last_name"]},
            "users_dcid": int(row["users_dcid"]),
            **{name: block for name, block in blocks.items() if name in expansions},
        }  # fmt: skip

    # --- courses, sections, terms ------------------------------------------------------------------------------------

    def course(self, row: TextRow) -> Json:
        return {"id": int(row["dcid"]), "course_number": row["course_number"], "course_name": row["course_name"]}

    def section(self, row: TextRow, expansions: set[str]) -> Json:
        term = self._terms[row["schools_dcid"], row["termid"]]
        written: Json = {
            "id": int(row["dcid"]), "school_id": int(row["schools_dcid"]),
            "course_id": int(self._courses[row["course_number"]]["dcid"]), "staff_id": self._staff_dcid[row["teacher"]],
            "term_id": int(term["dcid"]), "section_number": as_json_guesses(row["section_number"]),
            "expression": row["expression"], "external_expression": row["external_expression"],
        }  # fmt: skip
        return {**written, "term": self.term(term)} if "term" in expansions else written

    def term(self, row: TextRow) -> Json:
        return {
            "id": int(row["dcid"]), "local_id": int(row["id"]), "school_id": int(row["schools_dcid"]),
            "start_year": int(row["yearid"]) + 1990, "portion": int(row["portion"]), "start_date": row["firstday"],
            "end_date": row["lastday"], "abbreviation": row["abbreviation"], "name": row["name"],
        }  # fmt: skip

    def section_enrollment(self, seat: SeatRow) -> Json:
        row = self.tables.cc_row(seat)
        return {
            "id": int(row["dcid"]), "section_id": self.tables.dcid("section", seat.seat.section),
            "student_id": int(seat.student.sis_id), "entry_date": row["dateenrolled"], "exit_date": row["dateleft"],
            "dropped": seat.dropped,
        }  # fmt: skip


def _address(row: TextRow, *columns: str) -> Json:
    street, city, state, postal_code = (row.get(column) for column in columns)
    written = {"street": street, "city": city, "state_province": state, "postal_code": as_json_guesses(postal_code)}
    return _present(written)


def _ethnicity(student: StudentRow) -> Json:
    letters = [letter for race, letter in RACE_LETTERS.items() if student.values[race]]
    races = [{"district_race_code": letter, "federal_race_code_category": letter} for letter in letters]
    ethnicity = "YES" if student.values["hispanic_or_latino"] else "NO"
    return {"federal_ethnicity": ethnicity, "races": races[0] if len(races) == 1 else races}


def _present(block: dict[str, Any]) -> Json:
    return {name: value for name, value in block.items() if value is not None}
