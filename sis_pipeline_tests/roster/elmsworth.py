"""A small published district in literal rows, for what is done with a published roster: nobody in it exists.
Ada has values that a spreadsheet would run, Ben a protected address; Cy left, Dee moved, Eve never came, Fay is in two
schools, Gus left and came back."""

from __future__ import annotations

import uuid
from typing import Any

import polars as pl

from sis_pipeline.roster.frames import example_frame
from sis_pipeline.roster.model import MERGED
from sis_pipeline.roster.oneroster_export import TABLES
from sis_pipeline.roster.school_year import SchoolYear

DISTRICT, YEAR = "elmsworth", SchoolYear.parse("2025-2026")
STREET = "77 Hidden Lane"


def uid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))


def _of(integration: str, name: str) -> dict[str, str]:
    return {"integration": integration, "sis_id": name}


def _session(name: str, kind: str, start: str, end: str, integration: str = "ps", **more: Any) -> dict[str, Any]:
    return {"session_id": uid(name), "title": name, "kind": kind, "start_date": start, "end_date": end,
            "school_year": YEAR.key, **_of(integration, name), **more}  # fmt: skip


def _section(name: str, school: str, integration: str = "ps", **more: Any) -> dict[str, Any]:
    return {"section_id": uid(name), "school_year": YEAR.key, "title": name, "kind": "scheduled",
            "school_id": uid(school), **_of(integration, name), **more}  # fmt: skip


def _student(name: str, **more: Any) -> dict[str, Any]:
    return {"student_id": uid(name), "first_name": name, "last_name": "Moss", "birth_date": "2011-05-06",
            "ssid": f"00{name}", "ssid_issuer": "TX", "local_id": f"0{name}", "local_id_issuer": DISTRICT,
            "latest_school_year": YEAR.key, "near_match": False, "origins": "{}", **more}  # fmt: skip


def _stay(student: str, school: str, entry: str, exit_: str | None = None, **more: Any) -> dict[str, Any]:
    return {"student_id": uid(student), "school_id": uid(school), "school_year": YEAR.key, "entry_date": entry,
            "exit_date": exit_, "entry_date_source": "sis", "enrollment_type": "primary",
            "status": "withdrawn" if exit_ else "active", **_of("ps", student), **more}  # fmt: skip


def _seat(section: str, person: str, role: str = "student", **more: Any) -> dict[str, Any]:
    begin = {"begin_date": "2025-08-18", "end_date": "2026-01-10"} if role == "student" else {}
    return {"section_id": uid(section), "person_id": uid(person), "role": role, "school_year": YEAR.key,
            **_of("ps", f"{section}-{person}"), **begin, **more}  # fmt: skip


def _staff(name: str, role: str = "teacher", **more: Any) -> dict[str, Any]:
    return {"staff_id": uid(name), "first_name": name, "last_name": "Quist", "role": role, "local_id": f"T{name}",
            "school_id": uid("North"), "near_match": False, **more}  # fmt: skip


def _link(name: str, *, active: bool = True) -> dict[str, Any]:
    return {**_of("ps", name), "staff_id": uid(name), "rule": "new", "active": active}


FIRST, HALF, LAST = "2025-08-18", "2026-01-10", "2026-06-06"
ROWS: dict[str, list[dict[str, Any]]] = {
    "schools": [
        {"school_id": uid("Elmsworth"), "name": "Elmsworth District", "school_number": "900", "kind": "district", **_of("ps", "1")},
        {"school_id": uid("Elmsworth too"), "name": "Elmsworth SD", "kind": "district", **_of("ic", "1")},
        {"school_id": uid("North"), "name": "North, Upper", "school_number": "0101", "kind": "school", **_of("ps", "2")},
        {"school_id": uid("Brook"), "name": "Brook", "school_number": "0102", "kind": "school", **_of("ic", "2")},
    ],
    "academic_sessions": [
        _session("Year", "school_year", FIRST, LAST),
        _session("S1", "semester", FIRST, HALF),
        _session("S2", "semester", HALF, LAST),
        _session("G1", "grading_period", FIRST, "2025-10-01"),
        _session("Q1", "quarter", FIRST, "2025-10-20", "ic", school_id=uid("Brook")),
        _session("Q2", "quarter", "2025-10-20", HALF, "ic", school_id=uid("Brook")),
        _session("Q2 elsewhere", "quarter", "2025-10-20", HALF, "ic", school_id=uid("North")),
        _session("Q3", "quarter", HALF, LAST, "ic"),
    ],
    "courses": [
        {"course_id": uid("Algebra"), "school_year": YEAR.key, "title": "Algebra", "course_code": "MA1",
         "grade_levels": '["09", "10"]', "subjects": '["Mathematics, pure"]', "school_id": uid("North"), **_of("ps", "a")},
    ],
    "sections": [
        _section("ALG", "North", course_id=uid("Algebra"), teacher_id=uid("Tia"), start_date=FIRST, end_date=HALF,
                 section_code="A-1", location="B1", periods='["3", "4"]', grade_levels='["09"]'),
        _section("HR", "North", kind="homeroom"),
        _section("ART", "Brook", "ic", teacher_id=uid("Tia"), start_date=FIRST, end_date=HALF, kind="other"),
    ],
    "staff": [
        _staff("Tia", email="tia@elmsworth.example", preferred_first_name="T."),
        _staff("Abe", "counselor", state_staff_id="S-9"),
        _staff("Pat", "principal", school_id=uid("Elmsworth")),
        _staff("Jo", "staff", school_id=None),
        _staff("Sub", "other"),
        _staff("Old"),
    ],
    "staff_links": [_link("Tia"), _link("Abe"), _link("Pat"), _link("Jo"), _link("Sub", active=False), _link("Old", active=False)],
    "students": [
        _student("Ada", last_name="=cmd|' /C calc'!A0", phone="+1 (555) 010-7788", middle_name="'-x", preferred_first_name="Addie",
                 pronouns="she", white=True, asian=True, sex="female", username="@ada", home_street="1 Elm Street"),
        _student("Ben", address_confidential=True, directory_opt_out=True, near_match=True, home_street=STREET, sex="other"),
        _student("Cy", white=False, email="cy@elmsworth.example"),
        _student("Dee", hispanic_or_latino=True, ssid=None, ssid_issuer=None),
        _student("Eve"),
        _student("Fay", first_name='Fay "Fi"', last_name="Li,\nOrr"),
        _student("Gus", mobile_phone="+44 20"),
        _student("Hal", latest_school_year="2024-2025"),
    ],
    "student_years": [
        {"student_id": uid(name), "school_year": YEAR.key, "grade_level": "09"}
        for name in ("Ada", "Ben", "Cy", "Dee", "Eve", "Fay", "Gus")
    ],
    "enrollments": [
        _stay("Ada", "North", FIRST),
        _stay("Ben", "Brook", FIRST),
        _stay("Cy", "North", FIRST, "2025-11-03"),
        _stay("Dee", "North", FIRST, "2025-10-06", status="transferred", enrollment_type="secondary"),
        _stay("Dee", "Brook", "2025-10-06"),
        _stay("Eve", "North", FIRST, FIRST, status="no_show"),
        _stay("Fay", "Brook", FIRST, enrollment_type="secondary"),
        _stay("Fay", "North", "2025-08-20"),
        _stay("Gus", "North", FIRST, "2025-09-30"),
        _stay("Gus", "North", "2025-12-01"),
    ],
    "section_enrollments": [
        _seat("ALG", "Ada"), _seat("ALG", "Cy", end_date="2025-11-03"), _seat("ALG", "Dee", end_date="2025-10-06"),
        _seat("HR", "Ada"), _seat("ART", "Ben"), _seat("ART", "Fay"), _seat("HR", "Fay"), _seat("HR", "Gus"),
        _seat("HR", "Eve"), _seat("HR", "Nobody"), _seat("HR", "Ada", "other"),
        _seat("ALG", "Tia", "teacher", is_primary=False), _seat("HR", "Sub", "teacher", is_primary=True),
        _seat("HR", "Jo", "aide"),
    ],
}  # fmt: skip


def published() -> dict[str, pl.DataFrame]:
    """The published rows of the district and year, as they are read from the tables."""
    return {name: example_frame(MERGED[name], [{"district": DISTRICT, **row} for row in ROWS[name]]) for name in TABLES}
