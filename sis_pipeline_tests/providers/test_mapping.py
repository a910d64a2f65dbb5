"""Renames, paths, conversions and code tables from YAML; text out, exactly; drift and bad overrides named."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.connect.errors import ConfigError, ContractError
from sis_pipeline.providers.mapping import Mapping, code_table, day_after, text
from sis_pipeline.roster.model import ENROLLMENT_STATUSES, GRADE_LEVELS, SESSION_KINDS, SEXES, STAFF_ROLES

MAPPING = """
students:
  resource: people
  columns:
    sis_id: id
    ssid: [ids.state, ids.0.value]
    ssid_issuer: {about: state}
    first_name: name.first
    last_name: name.last
    birth_date: born
    sex: {path: sex, codes: sexes}
    email: {path: /mail.address}
    hispanic_or_latino: flags.hispanic
    grade_level: {path: grade, codes: grade_levels}
    modified_at: changed
    record_status: {constant: active}
courses:
  resource: [courses, catalogue]
  columns:
    sis_id: id
    title: {path: title, required: false}
    grade_levels: {path: grades, codes: grade_levels}
    subjects: areas.*.name
    record_status: {constant: active}
courses.old:
  resource: old_courses
  columns:
    sis_id: key
    title: label
"""


@pytest.fixture
def mapping(tmp_path: Path) -> Mapping:
    file = tmp_path / "mapping.yaml"
    file.write_text(MAPPING)
    return Mapping.load(file)


def person(**more: object) -> dict[str, object]:
    return {"id": 7, "name": {"first": "Ana", "last": "Null"}, **more}


def one(mapping: Mapping, column: str, **record: object) -> object:
    value = mapping.frame("students", [person(**record)])[column].iloc[0]
    return None if pd.isna(value) else value


def test_all_columns_are_text_with_missing_as_null(mapping):
    frame = mapping.frame("students", [person(), person(id="8", born="2012-02-29", grade=3)], state="AZ")
    assert {str(dtype) for dtype in frame.dtypes} == {"str"}
    assert frame["sis_id"].tolist() == ["7", "8"]
    assert frame["ssid_issuer"].tolist() == ["AZ", "AZ"]
    assert frame["record_status"].tolist() == ["active", "active"]
    assert frame["birth_date"].isna().tolist() == [True, False]


def test_no_records_give_an_empty_frame_with_the_columns(mapping):
    frame = mapping.frame("students", [])
    assert len(frame) == 0
    assert "grade_level" in frame
    assert {str(dtype) for dtype in frame.dtypes} == {"str"}


def test_paths_reach_into_objects_and_lists_and_have_alternatives(mapping):
    assert one(mapping, "ssid", ids={"state": 12}) == "12"
    assert one(mapping, "ssid", ids=[{"value": "0012"}]) == "0012"
    assert one(mapping, "ssid", ids="") is None
    assert one(mapping, "email", **{"mail.address": "a@x.example"}) == "a@x.example"
    assert one(mapping, "last_name") == "Null"


def test_a_star_gathers_a_list_and_one_object_counts_as_one(mapping):
    found = mapping.frame(
        "courses",
        [{"id": 1, "areas": [{"name": "Math"}, {"name": "Art"}]}, {"id": 2, "areas": {"name": "Art"}}, {"id": 3}],
    )
    assert found["subjects"].tolist()[:2] == ['["Math", "Art"]', '["Art"]']
    assert pd.isna(found["subjects"].iloc[2])


def test_codes_in_lists_are_translated_one_by_one(mapping):
    frame = mapping.frame("courses", [{"id": 1, "grades": ["K4", "9", "Klingon"]}, {"id": 2, "grades": "10"}])
    assert frame["grade_levels"].tolist() == ['["PK", "09", "Other"]', '["10"]']
    assert mapping.unknown_codes == {("courses", "grade_levels", "Klingon"): 1}


def test_unknown_codes_become_what_the_table_says_and_are_counted(mapping):
    frame = mapping.frame("students", [person(sex="F"), person(id=8, sex="ext:x"), person(id=9)])
    assert frame["sex"].tolist()[:2] == ["female", "other"]
    assert pd.isna(frame["sex"].iloc[2])
    mapping.annotate({"students": frame})
    assert frame.attrs["unknown_codes"] == {"sex": {"ext:x": 1}}


def test_two_mappings_count_on_their_own(mapping, tmp_path):
    mapping.frame("students", [person(sex="?")])
    assert not Mapping.load(tmp_path / "mapping.yaml").unknown_codes


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("2012-02-29", "2012-02-29"),
        ("02/29/2012", "2012-02-29"),
        ("2012-02-29T00:00:00", "2012-02-29"),
        ("20120229", "2012-02-29"),
        ("0001-01-01T00:00:00", None),
        ("", None),
        ("soon", "soon"),
        ("2012-02-30", "2012-02-30"),
    ],
)
def test_dates_become_iso_and_what_is_none_stays_for_validation(mapping, written, said):
    assert one(mapping, "birth_date", born=written) == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("2025-09-01T08:00:00-04:00", "2025-09-01T12:00:00Z"),
        ("2025-09-01T08:00:00.250Z", "2025-09-01T08:00:00.250000Z"),
        ("2025-09-01T08:00:00", "2025-09-01T08:00:00Z"),
        ("yesterday", "yesterday"),
    ],
)
def test_timestamps_become_utc(mapping, written, said):
    assert one(mapping, "modified_at", changed=written) == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (True, "true"),
        (False, "false"),
        ("YES", "true"),
        ("0", "false"),
        (1, "true"),
        ("N", "false"),
        ("", None),
        ("maybe", "maybe"),
    ],
)
def test_booleans_come_in_many_ways(mapping, written, said):
    assert one(mapping, "hispanic_or_latino", flags={"hispanic": written}) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("00123", "00123"), ("NA", "NA"), ("None", "None"), (7, "7"), (85250.0, "85250"), (0.5, "0.5"),
        (9007199254740993, "9007199254740993"), (0, "0"), (False, "false"), ("  Núñez ", "Núñez"), ("   ", None), (None, None),
        ([], None), ({}, None), ("a\ud800b", "a\ufffdb"),
    ],
)  # fmt: skip
def test_text_is_exact(value, said):
    assert text(value) == said


@given(st.text())
def test_any_text_can_be_stored(value):
    said = text(value)
    if said is not None:
        pd.Series([said], dtype="str").to_numpy()
        said.encode("utf-8")
        assert said == said.strip()


def test_a_required_field_that_no_record_has_is_a_broken_contract(mapping):
    renamed = [{"id": 1, "name": {"first": "Ana", "surname": "Okafor"}, "born": "2012-02-29"}]
    with pytest.raises(ContractError) as drift:
        mapping.frame("students", renamed)
    said = str(drift.value)
    assert "students" in said
    assert "name.last" in said
    assert "last_name" in said
    assert "name.surname" in said
    assert "Okafor" not in said
    assert "2012-02-29" not in said


def test_a_required_field_that_is_empty_in_some_rows_is_not(mapping):
    frame = mapping.frame(
        "students", [person(), {"id": 8, "name": {"first": "Bo"}}, {"id": 9, "name": {"first": "Cy", "last": ""}}]
    )
    assert frame["last_name"].isna().tolist() == [False, True, True]


def test_drift_is_judged_over_all_batches(mapping):
    frame = mapping.gather("students", [({}, [{"id": 1, "name": {"first": "Ana"}}]), ({"state": "AZ"}, [person()])])
    assert frame["last_name"].isna().tolist() == [True, False]
    assert frame["ssid_issuer"].isna().tolist() == [True, False]


def test_a_mapping_may_have_several_shapes_of_one_entity(mapping):
    assert mapping.frame("courses.old", [{"key": "c1", "label": "Art"}])["title"].tolist() == ["Art"]
    assert mapping.resources("courses") == ("courses", "catalogue")


def test_custom_fields_override_a_path_and_keep_the_conversion(tmp_path):
    (tmp_path / "mapping.yaml").write_text(MAPPING)
    custom = {"students": {"sex": "extra.gender", "homeroom": "extra.room", "birth_date": "extra.dob"}}
    frame = Mapping.load(tmp_path / "mapping.yaml", custom).frame(
        "students", [person(extra={"gender": "M", "room": 12, "dob": "01/31/2012"})]
    )
    assert (frame["sex"][0], frame["homeroom"][0], frame["birth_date"][0]) == ("male", "12", "2012-01-31")


def test_a_custom_field_must_be_a_column(tmp_path):
    (tmp_path / "mapping.yaml").write_text(MAPPING)
    with pytest.raises(ConfigError, match="shoe_size"):
        Mapping.load(tmp_path / "mapping.yaml", {"students": {"shoe_size": "extra.shoe"}})


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("pupils:\n  resource: a\n  columns: {sis_id: id}\n", "not an entity"),
        ("students:\n  resource: a\n  columns: {nickname: id}\n", "no column nickname"),
        ("students:\n  resource: a\n  columns: {sis_id: {paht: id}}\n", "must be a path"),
        ("- students\n", "not a mapping"),
    ],
)
def test_a_mapping_with_a_mistake_is_refused(tmp_path, written, complaint):
    (tmp_path / "bad.yaml").write_text(written)
    with pytest.raises(ValueError, match=complaint):
        Mapping.load(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("table", "allowed"),
    [
        ("grade_levels", GRADE_LEVELS), ("powerschool_grade_levels", GRADE_LEVELS), ("sexes", SEXES),
        ("powerschool_enrollment_statuses", ENROLLMENT_STATUSES), ("enrollment_statuses", ENROLLMENT_STATUSES),
        ("session_kinds", SESSION_KINDS), ("powerschool_session_kinds", SESSION_KINDS), ("staff_roles", STAFF_ROLES),
        ("powerschool_staff_roles", STAFF_ROLES),
    ],
)  # fmt: skip
def test_code_tables_lead_to_codes_of_the_model(table, allowed):
    codes = code_table(table)
    assert set(codes.codes.values()) | ({codes.unknown} - {None}) <= set(allowed)


@pytest.mark.parametrize("grade", GRADE_LEVELS)
def test_every_ceds_grade_is_its_own_code(grade):
    assert code_table("grade_levels")(grade) == (grade, True)


@pytest.mark.parametrize(
    ("number", "grade"), [("-2", "PR"), ("-1", "PK"), ("0", "KG"), ("8", "08"), ("12", "12"), ("99", "Other")]
)
def test_powerschool_counts_grades_from_kindergarten(number, grade):
    assert code_table("powerschool_grade_levels")(number)[0] == grade


@pytest.mark.parametrize(
    ("code", "status"),
    [("-1", "pre_registered"), ("P", "pre_registered"), ("0", "active"), ("1", "withdrawn"), ("2", "transferred"),
     ("3", "graduated"), ("4", "withdrawn"), ("17", "withdrawn"), ("h", "withdrawn")],
)  # fmt: skip
def test_powerschool_statuses_by_number_and_letter(code, status):
    assert code_table("powerschool_enrollment_statuses")(code)[0] == status


def test_inclusive_last_days_become_exclusive():
    days = pd.Series(["2026-05-29", "2024-02-28", "9999-12-31", "soon", None], dtype="str")
    assert day_after(days).fillna("-").tolist() == ["2026-05-30", "2024-02-29", "9999-12-31", "soon", "-"]


def test_a_hundred_thousand_rows_take_seconds(mapping):
    records = [
        {"id": number, "name": {"first": "Ana", "last": "Okafor"}, "born": f"201{number % 10}-02-0{number % 9 + 1}", "grade": number % 13,
         "sex": "F", "changed": f"2025-09-{number % 28 + 1:02d}T08:00:00Z", "flags": {"hispanic": "NO"}, "ids": {"state": number}}
        for number in range(100_000)
    ]  # fmt: skip
    begun = time.perf_counter()
    frame = mapping.frame("students", records, state="AZ")
    assert len(frame) == 100_000
    assert time.perf_counter() - begun < 8, "12 columns of 100,000 rows take about 1 s"
