"""What the sieve lets go by is what judging each value finds nothing against."""

from __future__ import annotations

import re

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.roster.frames import PANDAS_DTYPES
from sis_pipeline.roster.model import ENTITIES, Column
from sis_pipeline.roster.sieve import all_differ, may_be_blank, may_hold_nul, surely_kept
from sis_pipeline.roster.texts import in_arrow
from sis_pipeline.roster.validate import pandera_schema
from sis_pipeline_tests.roster.rosters import laws

RULED = {
    (column.kind, column.required, column.codes, column.pattern, column.longest, column.minimum, column.maximum): (
        table.name,
        column.name,
    )
    for table in ENTITIES.values()
    for column in table
    if column.kind in {"text", "int", "float"}
}
"""One column of every set of rules that the model has."""
IDS = [".".join(names) for names in RULED.values()]
ODD = ["", " ", "a", " a", "a ", "a b", "a\n", "\na", "a\nb", "a\0", "\x1fa", "\xa0", "é", "2025-2026", "2025-2026\n", "٢٠٢٥-2026", "x" * 256, "é" * 255]  # fmt: skip
TEXTS = st.lists(st.none() | st.sampled_from(ODD) | st.text(max_size=4), max_size=4)


def judged(series: pd.Series, table: str, column: Column) -> bool:
    """Whether pandera finds nothing."""
    from pandera.errors import SchemaErrors

    try:
        pandera_schema(ENTITIES[table]).columns[column.name].validate(series.to_frame(column.name), lazy=True)
    except SchemaErrors:
        return False
    return True


def written(values: list[str | None], table: str, name: str) -> pd.Series:
    """Values as a typed column; numbers begin just below what is allowed, and go on with the lengths of the texts."""
    column = ENTITIES[table][name]
    below = (column.minimum or 0) - 1
    plain = values if column.kind == "text" else [None if value is None else below + len(value) for value in values]
    return pd.Series(plain, dtype=PANDAS_DTYPES[column.kind])


@laws(60)
@given(TEXTS, st.data())
def test_what_is_surely_kept_pandera_finds_nothing_against(values: list[str | None], data: st.DataObject) -> None:
    table, name = data.draw(st.sampled_from(sorted(RULED.values())))
    column = ENTITIES[table][name]
    good = st.sampled_from([*column.codes, None] if column.codes else ["1", "7f3c", "2025-2026"])
    series = written([*values, *data.draw(st.lists(good, max_size=3))], table, name)
    if surely_kept(series, column):
        assert judged(series, table, column)


@pytest.mark.parametrize(("table", "name"), RULED.values(), ids=IDS)
def test_no_odd_value_is_let_by_against_which_pandera_finds_something(table: str, name: str) -> None:
    for odd in ODD:
        series = written([odd], table, name)
        assert not surely_kept(series, ENTITIES[table][name]) or judged(series, table, ENTITIES[table][name])


@pytest.mark.parametrize(("table", "name"), RULED.values(), ids=IDS)
def test_what_systems_usually_send_is_let_by(table: str, name: str) -> None:
    column = ENTITIES[table][name]
    usual = column.codes[0] if column.codes else "2025-2026" if name == "school_year" else "7f"
    assert surely_kept(written([usual] * 3, table, name), column)
    assert surely_kept(written([usual, None], table, name), column) is not column.required


@given(TEXTS, st.integers(0, 2), st.booleans())
def test_texts_that_are_let_by_hold_no_nul_and_none_is_blank(values: list[str | None], skip: int, whole: bool) -> None:
    arrow = in_arrow(pd.Series(values, dtype="str"))
    said = (arrow if whole else pa.chunked_array([arrow[:1], arrow], arrow.type))[skip:]
    held = [value for value in said.to_pylist() if value is not None]
    assert may_hold_nul(said) or not any("\0" in value for value in held)
    assert may_be_blank(said) or not any(re.fullmatch(r"\s*", value, re.ASCII) for value in held)


def test_a_text_that_comes_twice_is_seen() -> None:
    assert all_differ(pd.Series(["a", "A", "a "], dtype="str"))
    assert not all_differ(pd.Series(["a", "b", "a"], dtype="str"))
