"""Bad rows are rejected one by one, with a reason and without their values; good rows are typed and unique."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.roster import validate as validation
from sis_pipeline.roster.frames import example_text_frame, pandas_dtypes
from sis_pipeline.roster.model import ENTITIES
from sis_pipeline.roster.validate import (
    UnknownColumns,
    Validated,
    check_references,
    pandera_schema,
    quarantine_dangling,
    validate,
)
from sis_pipeline_tests.roster.rosters import laws

TODAY = date(2025, 10, 1)
GOOD: dict[str, dict[str, str]] = {
    "students": {"sis_id": "1", "first_name": "Ada", "last_name": "Moss", "record_status": "active"},
    "academic_sessions": {
        "sis_id": "1",
        "title": "Year",
        "kind": "school_year",
        "start_date": "2025-08-01",
        "end_date": "2026-06-01",
        "school_year": "2025-2026",
        "record_status": "active",
    },
    "enrollments": {
        "sis_id": "1",
        "student_sis_id": "1",
        "school_sis_id": "1",
        "school_year": "2025-2026",
        "entry_date": "2025-08-18",
        "entry_date_source": "sis",
        "enrollment_type": "primary",
        "status": "active",
        "record_status": "active",
    },
}


def check(entity: str, *rows: dict[str, str | None]) -> Validated:
    table = ENTITIES[entity]
    return validate(entity, example_text_frame(table, [{**GOOD[entity], **row} for row in rows]), today=TODAY)


def lines(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(frame[["row", "column", "reason"]].itertuples(index=False, name=None))


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("birth_date", "31/12/2012", "not a date"),
        ("birth_date", "2012-02-30", "not a date"),
        ("birth_date", "2025-10-02", "in the future"),
        ("birth_date", "1899-12-31", "before 1900"),
        ("graduation_year", "2030.5", "not a whole number"),
        ("graduation_year", "1066", "below 1900"),
        ("fte", "half", "not a number"),
        ("fte", "nan", "not a number"),
        ("fte", "2.5", "above 2"),
        ("white", "Y", "not true or false"),
        ("modified_at", "yesterday", "not a timestamp"),
        ("grade_level", "Grade 5", "not one of the allowed codes"),
        ("last_name", None, "required value is missing"),
        ("last_name", "   ", "required value is missing"),
        ("last_name", "x" * 256, "longer than 255 characters"),
        ("last_name", "Mo\0ss", "contains a NUL character"),
        ("sis_id", " 1", "begins or ends with a space"),
    ],
)
def test_a_bad_value_rejects_its_row_only(column: str, value: str | None, reason: str) -> None:
    result = check("students", {"sis_id": "good"}, {column: value})
    assert result.frame["sis_id"].tolist() == ["good"]
    assert (1, column, reason) in lines(result.rejected)
    assert result.rejected_rows == 1
    if value and value.strip():
        assert value not in result.rejected.drop(columns="row").to_csv()


def test_an_unreadable_required_value_is_not_also_called_missing() -> None:
    assert lines(check("enrollments", {"entry_date": "soon"}).rejected) == [(0, "entry_date", "not a date")]


def test_a_lone_surrogate_rejects_its_row() -> None:
    frame = pd.DataFrame([GOOD["students"], {**GOOD["students"], "sis_id": "2", "last_name": "\ud800"}], dtype=object)
    result = validate("students", frame)
    assert lines(result.rejected) == [(1, "last_name", "lone surrogate")]
    assert result.frame["sis_id"].tolist() == ["1"]


def test_what_is_not_text_rejects_its_row() -> None:
    frame = pd.DataFrame([{**GOOD["students"], "local_id": 7}, {**GOOD["students"], "sis_id": "2"}], dtype=object)
    assert lines(validate("students", frame).rejected) == [(0, "local_id", "not text")]


def test_words_that_look_like_nothing_survive() -> None:
    result = check(
        "students", *({"sis_id": f"00{name}", "last_name": name} for name in ("NA", "None", "Null", "nan", "true"))
    )
    assert result.frame["last_name"].tolist() == ["NA", "None", "Null", "nan", "true"]
    assert result.frame["sis_id"].tolist() == ["00NA", "00None", "00Null", "00nan", "00true"]
    assert result.rejected.empty


def test_an_unknown_column_is_an_error_that_names_it() -> None:
    with pytest.raises(UnknownColumns, match="frist_name"):
        validate("students", pd.DataFrame({"frist_name": ["Ada"]}))


def test_an_empty_frame_has_all_columns_and_types() -> None:
    result = validate("students", pd.DataFrame())
    assert {name: str(dtype) for name, dtype in result.frame.dtypes.items()} == pandas_dtypes(ENTITIES["students"])
    assert result.rows == 0


def test_of_rows_with_one_id_the_newest_stays_then_the_last() -> None:
    result = check(
        "students",
        {"sis_id": "1", "first_name": "Newest", "modified_at": "2025-09-02T00:00:00Z"},
        {"sis_id": "1", "first_name": "Older", "modified_at": "2025-09-01T00:00:00Z"},
        {"sis_id": "1", "first_name": "Unknown"},
        {"sis_id": "2", "first_name": "First"},
        {"sis_id": "2", "first_name": "Last"},
    )
    assert result.frame["first_name"].tolist() == ["Newest", "Last"]
    assert result.duplicates == 3
    assert result.rejected.empty


def test_an_exit_before_the_entry_is_rejected_and_a_zero_day_stay_is_kept() -> None:
    result = check(
        "enrollments",
        {"sis_id": "before", "exit_date": "2025-08-17"},
        {"sis_id": "zero", "exit_date": "2025-08-18"},
    )
    assert result.frame["sis_id"].tolist() == ["zero"]
    assert lines(result.rejected) == [(0, "exit_date", "before the entry date")]


def test_a_session_that_overruns_its_parent_is_warned_about_and_kept() -> None:
    result = check(
        "academic_sessions",
        {"sis_id": "year"},
        {"sis_id": "term", "kind": "term", "parent_sis_id": "year", "end_date": "2026-06-05"},
        {"sis_id": "backwards", "end_date": "2025-07-01"},
    )
    assert result.frame["sis_id"].tolist() == ["year", "term"]
    assert lines(result.warnings) == [(1, "end_date", "after its parent session")]
    assert lines(result.rejected) == [(2, "end_date", "before the start date")]


@pytest.mark.parametrize("table", ENTITIES.values(), ids=lambda table: table.name)
def test_the_pandera_schema_is_the_model(table: Any) -> None:
    schema = pandera_schema(table)
    assert list(schema.columns) == table.names
    assert {name for name, column in schema.columns.items() if not column.nullable} == {
        c.name for c in table if c.required
    }


@laws(12)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(
                ["sis_id", "first_name", "birth_date", "fte", "white", "modified_at", "grade_level", "ssid"]
            ),
            st.text(max_size=12),
        ),
        max_size=6,
    )
)
def test_whatever_is_delivered_every_row_is_either_good_rejected_or_a_duplicate(rows: list[dict[str, str]]) -> None:
    frame = pd.DataFrame(
        [{**GOOD["students"], "sis_id": str(number), **row} for number, row in enumerate(rows)], dtype=object
    )
    result = validate("students", frame, today=TODAY)
    assert len(result.frame) + result.rejected_rows + result.duplicates == len(rows) == result.rows
    assert result.frame["sis_id"].is_unique


def test_columns_that_pandera_is_not_asked_about_are_those_in_which_it_finds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows: dict[str, list[dict[str, str | None]]] = {
        "students": [{"last_name": None}, {"email": "e" * 400}, {"fte": "9"}, {"sis_id": " 1"}, {"grade_level": "99"}],
        "academic_sessions": [{}, {"kind": "era"}, {"end_date": "never"}],
        "enrollments": [{"school_year": "25-26"}, {"exit_code": None}],
    }
    few = {entity: check(entity, *several) for entity, several in rows.items()}
    monkeypatch.setattr(validation, "_doubtful", lambda _typed, table: tuple(table.names))
    for entity, several in rows.items():
        everything = check(entity, *several)
        assert lines(everything.rejected) == lines(few[entity].rejected) != []
        pd.testing.assert_frame_equal(everything.frame, few[entity].frame)
        assert everything.frame.dtypes.astype(str).to_dict() == pandas_dtypes(ENTITIES[entity])


def references() -> dict[str, pd.DataFrame]:
    def frame(entity: str, *rows: dict[str, str]) -> pd.DataFrame:
        filled = [{name: row.get(name) for name in ENTITIES[entity].names} for row in rows]
        return pd.DataFrame(filled, columns=ENTITIES[entity].names, dtype="str")

    return {
        "schools": frame("schools", {"sis_id": "s"}),
        "students": frame("students", {"sis_id": "1", "school_sis_id": "s"}, {"sis_id": "2", "school_sis_id": "gone"}),
        "staff": frame("staff", {"sis_id": "9"}),
        "sections": frame("sections", {"sis_id": "m", "school_sis_id": "s"}, {"sis_id": "n", "school_sis_id": "gone"}),
        "section_enrollments": frame(
            "section_enrollments",
            {"sis_id": "ok", "section_sis_id": "m", "person_sis_id": "1", "role": "student"},
            {"sis_id": "teacher", "section_sis_id": "m", "person_sis_id": "9", "role": "teacher"},
            {"sis_id": "no section", "section_sis_id": "n", "person_sis_id": "1", "role": "student"},
            {"sis_id": "staff as student", "section_sis_id": "m", "person_sis_id": "9", "role": "student"},
        ),
    }


def test_dangling_references_are_found_per_column() -> None:
    found = {(d.entity, d.column): d.rows for d in check_references(references())}
    assert found == {
        ("students", "school_sis_id"): ("2",),
        ("sections", "school_sis_id"): ("n",),
        ("section_enrollments", "person_sis_id"): ("staff as student",),
    }


def test_quarantine_cascades_and_optional_references_are_taken_out() -> None:
    given_frames = references()
    result = quarantine_dangling(given_frames)
    assert {name: frame["sis_id"].tolist() for name, frame in result.removed.items()} == {
        "sections": ["n"],
        "section_enrollments": ["no section", "staff as student"],
    }
    assert result.frames["students"]["sis_id"].tolist() == ["1", "2"]
    assert result.frames["students"]["school_sis_id"].isna().tolist() == [False, True]
    assert [(d.entity, d.rows) for d in result.nulled] == [("students", ("2",))]
    assert check_references(result.frames) == []
    assert given_frames["students"]["school_sis_id"].notna().all()


def test_every_referred_entity_stands_before_the_one_that_refers_to_it() -> None:
    order = list(ENTITIES)
    for table in ENTITIES.values():
        for column in table:
            for target in (column.refers or "").split(" or ") if column.refers else ():
                assert order.index(target) < order.index(table.name)


def test_a_list_must_be_a_json_array() -> None:
    frame = example_text_frame(
        ENTITIES["courses"],
        [
            {"sis_id": "1", "title": "Math", "grade_levels": json.dumps(["05"]), "record_status": "active"},
            {"sis_id": "2", "title": "Art", "grade_levels": "05", "record_status": "active"},
        ],
    )
    assert lines(validate("courses", frame).rejected) == [(1, "grade_levels", "not a JSON array")]
