"""A consortium's system delivers for several districts; each gets its own records and nobody else's."""

from __future__ import annotations

import polars as pl
import pytest

from sis_pipeline.roster.frames import empty, example_frame
from sis_pipeline.roster.model import ENTITIES
from sis_pipeline.store.districts import of_district
from sis_pipeline.store.integrations import Integration
from sis_pipeline_tests.store.conftest import YEAR

ACTIVE = {"record_status": "active"}


def person(sis_id, school=None, **values):
    return {"sis_id": sis_id, "first_name": "A", "last_name": "B", "school_sis_id": school, **ACTIVE, **values}


def enrolled(student, school):
    return {
        "sis_id": f"{student}@{school}", "student_sis_id": student, "school_sis_id": school, "school_year": YEAR,
        "entry_date": "2025-08-18", "entry_date_source": "sis", "enrollment_type": "primary", "status": "active", **ACTIVE,
    }  # fmt: skip


def sits(section, who, role="student"):
    return {"sis_id": f"{who}-{section}", "section_sis_id": section, "role": role, "person_sis_id": who, **ACTIVE}


def section(sis_id, school):
    return {"sis_id": sis_id, "kind": "scheduled", "school_sis_id": school, **ACTIVE}


def school(sis_id, parent=None, kind="school"):
    return {"sis_id": sis_id, "name": f"School {sis_id}", "kind": kind, "parent_sis_id": parent, **ACTIVE}


ROWS = {
    "schools": [school("L", kind="district"), school("W", kind="district"), school("l1", "L"), school("w1", "W"), school("x"), school("loop", "loop")],
    "courses": [{"sis_id": "algebra", "title": "Algebra", **ACTIVE}],
    "students": [person("s-l", "l1"), person("s-w", "w1"), person("s-both", "l1"), person("s-none")],
    "staff": [person("t-l", "l1", role="teacher"), person("t-all", role="teacher"), person("t-two", "l1", role="teacher", school_sis_ids='["l1", "w1"]'), person("t-guest", "l1", role="teacher")],
    "sections": [section("sec-l", "l1"), section("sec-w", "w1")],
    "enrollments": [enrolled("s-l", "l1"), enrolled("s-w", "w1"), enrolled("s-both", "l1"), enrolled("s-both", "w1")],
    "section_enrollments": [sits("sec-l", "s-l"), sits("sec-w", "s-both"), sits("sec-w", "t-guest", "teacher")],
    "contacts": [{"sis_id": "c-l", "student_sis_id": "s-l", **ACTIVE}, {"sis_id": "c-both", "student_sis_id": "s-both", **ACTIVE}],
}  # fmt: skip
RECORDS = {name: example_frame(table, ROWS[name]) if name in ROWS else empty(table) for name, table in ENTITIES.items()}
SHARED = Integration("shared", "oneroster", "lincoln", organisations={"L": "lincoln", "W": "washington"})


def ids(records: dict[str, pl.DataFrame]) -> dict[str, set[str]]:
    return {name: set(frame["sis_id"]) for name, frame in records.items() if frame.height}


def test_a_system_of_one_district_gives_everything():
    own = Integration("own", "oneroster", "lincoln", organisations={"l1": "lincoln"})
    assert of_district(own, RECORDS, "lincoln") == RECORDS


def test_each_district_gets_its_schools_and_who_is_there():
    assert ids(of_district(SHARED, RECORDS, "washington")) == {
        "schools": {"W", "w1"},
        "courses": {"algebra"},
        "students": {"s-w", "s-both"},
        "staff": {"t-all", "t-two", "t-guest"},
        "sections": {"sec-w"},
        "enrollments": {"s-w@w1", "s-both@w1"},
        "section_enrollments": {"s-both-sec-w", "t-guest-sec-w"},
        "contacts": {"c-both"},
    }


def test_what_is_not_mapped_belongs_to_the_integrations_own_district():
    found = ids(of_district(SHARED, RECORDS, "lincoln"))
    assert found["schools"] == {"L", "l1", "x", "loop"}
    assert found["students"] == {"s-l", "s-both", "s-none"}
    assert found["enrollments"] == {"s-l@l1", "s-both@l1"}


@pytest.mark.parametrize("district", ["lincoln", "washington"])
def test_every_entity_comes_back_with_its_columns(district):
    found = of_district(SHARED, RECORDS, district)
    assert {name: frame.schema for name, frame in found.items()} == {
        name: frame.schema for name, frame in RECORDS.items()
    }
