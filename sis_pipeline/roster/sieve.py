"""What Arrow can say of a whole column at once: that all of its values surely keep a rule, in a fraction of the time that
judging each takes. Which rows break one, and why, is said in `validate`, of the columns that this lets pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from sis_pipeline.roster.model import Column
from sis_pipeline.roster.texts import in_arrow

if TYPE_CHECKING:
    Series = pd.Series[Any]

Values: TypeAlias = pa.Array | pa.ChunkedArray
FIRST_VISIBLE = "!"
"""No text that begins with this character, or one behind it, is blank."""


def surely_kept(values: Series, column: Column) -> bool:
    """Whether nothing can be found against a typed column; where not, it must be looked into."""
    if column.required and values.isna().any():
        return False
    if not (column.codes or column.pattern or (column.longest, column.minimum, column.maximum) != (None, None, None)):
        return True
    said = pa.array(values, from_pandas=True).drop_null()
    if column.codes:
        return _all(pc.is_in(said, value_set=pa.array(column.codes, said.type)))
    return (
        (column.longest is None or _longest(said) <= column.longest)
        and (column.pattern is None or _all_match(said, column.pattern))
        and (column.minimum is None or _all(pc.greater_equal(said, column.minimum)))
        and (column.maximum is None or _all(pc.less_equal(said, column.maximum)))
    )


def may_hold_nul(said: Values) -> bool:
    return _bytes_between(said)[0] == 0


def may_be_blank(said: Values) -> bool:
    """Whether some text may be empty, or nothing but white space."""
    return bool(pc.any(pc.less(said, FIRST_VISIBLE)).as_py())


def all_differ(values: Series) -> bool:
    """Whether no text comes twice."""
    return pl.Series(in_arrow(values)).n_unique() == len(values)


def _longest(said: Values) -> int:
    """In bytes, which are at least as many as characters."""
    return pc.max(pc.binary_length(said)).as_py() or 0


def _all_match(said: Values, pattern: str) -> bool:
    """Of plain ASCII text alone Arrow's regular expressions say what Python's do: `\\s` and `$` mean less to them."""
    lowest, highest = _bytes_between(said)
    return lowest >= ord(" ") and highest <= ord("~") and _all(pc.match_substring_regex(said, pattern))


def _bytes_between(said: Values) -> tuple[int, int]:
    """The lowest and the highest byte of texts; a visible one where there is none."""
    found = [bound for part in _characters(said) if len(part) for bound in (int(part.min()), int(part.max()))]
    return min(found, default=ord(FIRST_VISIBLE)), max(found, default=ord(FIRST_VISIBLE))


def _characters(said: Values) -> Iterator[np.ndarray[Any, Any]]:
    """The bytes of all texts, and perhaps some that belong to none."""
    for chunk in said.chunks if isinstance(said, pa.ChunkedArray) else [said]:
        _, ends, body = chunk.buffers()
        if body is not None:
            places = np.frombuffer(ends, "int64" if pa.types.is_large_string(chunk.type) else "int32")
            first, behind = places[chunk.offset], places[chunk.offset + len(chunk)]
            yield np.frombuffer(body, "uint8")[first:behind]


def _all(mask: Values) -> bool:
    return bool(pc.all(mask, min_count=0).as_py())
