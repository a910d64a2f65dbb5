"""The types of a model table are the same in pandas, Polars and Arrow, and survive the one crossing."""

from __future__ import annotations

from datetime import date

import polars as pl
import pytest

from sis_pipeline.roster.frames import (
    ARROW_TYPES,
    empty,
    example_frame,
    example_text_frame,
    fit,
    is_of,
    pandas_dtypes,
    polars_schema,
    rows_where,
    to_polars,
)
from sis_pipeline.roster.model import ENTITIES, MERGED, STUDENTS, Table
from sis_pipeline.roster.validate import validate


@pytest.mark.parametrize("table", [*ENTITIES.values(), *MERGED.values()], ids=lambda table: table.name)
def test_every_table_has_every_type(table: Table) -> None:
    assert list(pandas_dtypes(table)) == list(polars_schema(table)) == table.names
    assert {column.kind for column in table} <= set(ARROW_TYPES)
    assert dict(empty(table).schema) == polars_schema(table)


def test_the_crossing_keeps_types_and_values() -> None:
    text = example_text_frame(
        STUDENTS,
        [
            {
                "sis_id": "007",
                "first_name": "Zoë",
                "last_name": "Null",
                "birth_date": "2012-02-29",
                "white": "true",
                "graduation_year": "2030",
                "fte": "0.5",
                "record_status": "active",
                "modified_at": "2025-09-01T12:00:00.123456Z",
            },
            {"sis_id": "8", "first_name": "NA", "last_name": "None", "record_status": "active"},
        ],
    )
    frame = to_polars(validate("students", text).frame, STUDENTS)
    assert dict(frame.schema) == polars_schema(STUDENTS)
    assert frame["sis_id"].to_list() == ["007", "8"]
    assert frame["last_name"].to_list() == ["Null", "None"]
    assert frame["birth_date"].to_list() == [date(2012, 2, 29), None]
    assert frame["white"].to_list() == [True, None]
    assert frame["graduation_year"].to_list() == [2030, None]
    assert frame["modified_at"].dt.microsecond().to_list() == [123456, None]


def test_an_example_frame_refuses_a_column_that_does_not_exist() -> None:
    with pytest.raises(KeyError, match="frist_name"):
        example_frame(STUDENTS, [{"frist_name": "Ada"}])


def test_fit_adds_missing_columns_and_leaves_others_out() -> None:
    fitted = fit(pl.DataFrame({"sis_id": ["1"], "elsewhere": ["x"]}), STUDENTS)
    assert dict(fitted.schema) == polars_schema(STUDENTS)
    assert fitted["first_name"].to_list() == [None]
    assert fit(fitted, STUDENTS) is fitted


def test_a_frame_is_of_a_table_by_its_columns_their_order_and_types() -> None:
    frame = empty(STUDENTS)
    assert is_of(frame, STUDENTS)
    assert not is_of(frame.select(reversed(frame.columns)), STUDENTS)
    assert not is_of(frame.cast({"birth_date": pl.String}), STUDENTS)
    assert not is_of(frame.drop("ssid"), STUDENTS)


def test_rows_of_which_something_holds_are_copied_only_where_others_are_left_out() -> None:
    frame = pl.DataFrame({"said": ["yes", "yes", None, "no"]})
    assert rows_where(frame, frame["said"] == "yes")["said"].to_list() == ["yes", "yes"], "the unknown does not hold"
    assert rows_where(frame, frame["said"] == "never").is_empty()
    alike = frame.head(2)
    assert rows_where(alike, alike["said"] == "yes") is alike
