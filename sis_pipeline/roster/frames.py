"""The types a model table has in pandas, Polars and Arrow, and the one crossing from pandas to Polars.
No rule about a value lives here; those are in `validate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa

from sis_pipeline.roster.model import Kind, Table
from sis_pipeline.roster.texts import in_arrow

PANDAS_DTYPES: dict[Kind, str] = {
    "text": "str",
    "date": "datetime64[s]",
    "timestamp": "datetime64[us, UTC]",
    "int": "Int64",
    "float": "Float64",
    "bool": "boolean",
    "list": "str",
    "json": "str",
    "uuid": "str",
}
POLARS_DTYPES: dict[Kind, pl.DataType] = {
    "text": pl.String(),
    "date": pl.Date(),
    "timestamp": pl.Datetime("us", "UTC"),
    "int": pl.Int64(),
    "float": pl.Float64(),
    "bool": pl.Boolean(),
    "list": pl.String(),
    "json": pl.String(),
    "uuid": pl.String(),
}
ARROW_TYPES: dict[Kind, pa.DataType] = {
    "text": pa.string(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", "UTC"),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "list": pa.string(),
    "json": pa.string(),
    "uuid": pa.string(),
}


def pandas_dtypes(table: Table) -> dict[str, str]:
    return {column.name: PANDAS_DTYPES[column.kind] for column in table}


def polars_schema(table: Table) -> dict[str, pl.DataType]:
    return {column.name: POLARS_DTYPES[column.kind] for column in table}


def to_polars(frame: pd.DataFrame, table: Table) -> pl.DataFrame:
    """The one crossing: a frame typed by `validate` in Polars, dates as `pl.Date`, over Arrow."""
    return fit(pl.DataFrame({column.name: _series(frame[column.name], column.kind) for column in table}), table)


def _series(values: pd.Series[Any], kind: Kind) -> pl.Series:
    texts = ARROW_TYPES[kind] == pa.string()
    return pl.Series(in_arrow(values) if texts else pa.array(values, ARROW_TYPES[kind], from_pandas=True))


@cache
def empty(table: Table) -> pl.DataFrame:
    return pl.DataFrame(schema=polars_schema(table))


def fit(frame: pl.DataFrame, table: Table) -> pl.DataFrame:
    """The table's columns, in its order and types; columns that the frame lacks are null, others are left out."""
    if is_of(frame, table):
        return frame
    given = dict(zip(frame.columns, frame.dtypes, strict=True))
    return frame.select(
        name if given.get(name) == dtype else (pl.col(name) if name in given else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in polars_schema(table).items()
    )


def is_of(frame: pl.DataFrame, table: Table) -> bool:
    """Whether a frame has exactly the table's columns, in its order and types."""
    schema = polars_schema(table)
    return frame.columns == list(schema) and frame.dtypes == list(schema.values())


def rows_where(frame: pl.DataFrame, holds: pl.Series) -> pl.DataFrame:
    """The rows of which something holds; where it does of all, the frame itself and no copy of it."""
    if holds.all(ignore_nulls=False):
        return frame
    return frame.filter(holds) if holds.any() else frame.clear()


def example_frame(table: Table, rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Literal rows as a full typed frame: what a row leaves out is null, dates and timestamps may be ISO text.

    Raises KeyError for a column that the table does not have, so that a test can't misspell one.
    """
    known = set(table.names)
    for row in rows:
        if unknown := sorted(set(row) - known):
            raise KeyError(f"{table.name} has no column {', '.join(unknown)}")
    data = {column.name: [_literal(row.get(column.name), column.kind) for row in rows] for column in table}
    return pl.DataFrame(data, schema=polars_schema(table))


def example_text_frame(table: Table, rows: Sequence[Mapping[str, str | None]]) -> pd.DataFrame:
    """Literal rows as a provider delivers them: text columns only, those that some row names."""
    names = [name for name in table.names if any(name in row for row in rows)]
    return pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype="str") for name in names})


def _literal(value: Any, kind: Kind) -> Any:
    if not isinstance(value, str):
        return value
    if kind == "date":
        return date.fromisoformat(value)
    if kind == "timestamp":
        return datetime.fromisoformat(value)
    return value


COMPARED_AT_ONCE = 100_000
"""Rows of which two copies are held while they are compared."""


def rows_in_common(one: pl.DataFrame, other: pl.DataFrame) -> pl.DataFrame:
    """The rows that two frames of the same columns both have, by their row number in each: `one`, `other`; in the order of
    `other`. A row that a frame has more than once is left out."""
    if one.is_empty() or other.is_empty():
        return pl.DataFrame(schema={"one": pl.Int64, "other": pl.Int64})
    other = other.select(one.columns)
    numbered = [
        pl.DataFrame({name: pl.arange(frame.height, eager=True), "hash": frame.hash_rows()})
        for name, frame in (("one", one), ("other", other))
    ]
    mine, theirs = (
        frame if frame["hash"].n_unique() == frame.height else frame.filter(~pl.col("hash").is_duplicated())
        for frame in numbered
    )
    pairs = theirs.join(mine, on="hash", maintain_order="left").select("one", "other")
    return pl.concat([_equal(one, other, part) for part in pairs.iter_slices(COMPARED_AT_ONCE)] or [pairs])


def _equal(one: pl.DataFrame, other: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Those of the pairs that are: a hash only says which rows to compare."""
    mine, theirs = one[pairs["one"]], other[pairs["other"]]
    if mine.equals(theirs):
        return pairs
    return pairs.filter(pl.all_horizontal(mine[name].eq_missing(theirs[name]) for name in mine.columns))


def without_rows(frame: pl.DataFrame, numbers: pl.Series) -> pl.DataFrame:
    """The rows of a frame but those of these numbers, as they were ordered."""
    if numbers.is_empty():
        return frame
    left = np.ones(frame.height, dtype=np.bool_)
    left[numbers.to_numpy()] = False
    return frame.filter(pl.Series(left))
