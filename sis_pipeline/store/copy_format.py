"""Arrow to PostgreSQL's binary COPY format, a column at a time (PostgreSQL documentation, COPY, "Binary Format").
Row by row in Python this is most of the time of a load; which rows go where is decided in `bulk`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from sis_pipeline.connect.errors import DataError
from sis_pipeline.roster.model import Kind

SIGNATURE = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
"""Eleven bytes, then no flags and no header extension."""
TRAILER = b"\xff\xff"
NULL = b"\xff\xff\xff\xff"
"""The length -1."""
EPOCH_DAYS = 10_957
"""PostgreSQL counts from 2000-01-01, Arrow from 1970-01-01."""
EPOCH_MICROSECONDS = EPOCH_DAYS * 86_400_000_000
CHUNK = 50_000
"""Rows encoded at a time."""

Pieces = list[pa.Array]
"""One field as arrays whose elements stand one behind the other: its length, then its bytes, or both at once."""


def encode(frame: pl.DataFrame, kinds: Mapping[str, Kind]) -> Iterator[bytes]:
    """The frame's columns of `kinds`, in that order, as a COPY stream.

    Raises DataError for a whole number beyond 32 bits or a malformed uuid.
    """
    yield SIGNATURE
    fields = pa.scalar(len(kinds).to_bytes(2, "big"), pa.binary())
    for chunk in frame.select(kinds.keys()).iter_slices(CHUNK):
        pieces = [piece for name, kind in kinds.items() for piece in ENCODERS[kind](chunk[name])]
        rows = pc.binary_join_element_wise(
            fields, *pieces, pa.scalar(b"", pa.binary()), null_handling="replace", null_replacement=b""
        )
        yield _bytes(rows)
    yield TRAILER


def _bytes(rows: pa.Array) -> bytes:
    offsets = np.frombuffer(rows.buffers()[1], dtype=np.int32)[rows.offset : rows.offset + len(rows) + 1]
    return bytes(memoryview(rows.buffers()[2])[offsets[0] : offsets[-1]])


def _variable(series: pl.Series) -> Pieces:
    data = series.cast(pl.Binary).to_arrow().cast(pa.binary())
    lengths = pc.fill_null(pc.binary_length(data), -1).to_numpy(zero_copy_only=False)
    return [_elements(lengths.astype(">i4").tobytes(), 4), data]


def _json(series: pl.Series) -> Pieces:
    # jsonb's binary form is a version byte before the text
    return _variable("\x01" + series)


def _uuid(series: pl.Series) -> Pieces:
    data = series.str.replace_all("-", "", literal=True).str.decode("hex", strict=False)
    if wrong := int((series.is_not_null() & (data.is_null() | (data.bin.size() != 16))).sum()):
        raise DataError(f"{wrong} values of {series.name} are no UUIDs.", code="data.unstorable")
    return _variable(data)


def _int(series: pl.Series) -> Pieces:
    if wrong := int((~series.is_between(-(2**31), 2**31 - 1)).sum()):
        raise DataError(f"{wrong} values of {series.name} are beyond 32 bits.", code="data.unstorable")
    return _fixed(series, ">i4")


def _date(series: pl.Series) -> Pieces:
    return _fixed(series.to_physical() - EPOCH_DAYS, ">i4")


def _timestamp(series: pl.Series) -> Pieces:
    return _fixed(series.to_physical() - EPOCH_MICROSECONDS, ">i8")


def _float(series: pl.Series) -> Pieces:
    return _fixed(series, ">f8")


def _bool(series: pl.Series) -> Pieces:
    return _fixed(series.cast(pl.UInt8), "u1")


def _fixed(series: pl.Series, dtype: str) -> Pieces:
    """Length and value in one element."""
    width = np.dtype(dtype).itemsize
    layout = np.dtype([("length", ">i4"), ("value", dtype)])
    filled = np.empty(series.len(), layout)
    filled["length"] = width
    filled["value"] = series.fill_null(0).to_numpy()
    elements = _elements(filled.tobytes(), 4 + width)
    return [pc.if_else(series.is_not_null().to_arrow(), elements, pa.scalar(NULL, pa.binary()))]


def _elements(body: bytes, width: int) -> pa.Array:
    count = len(body) // width
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), count, [None, pa.py_buffer(body)]).cast(pa.binary())


ENCODERS: dict[Kind, Callable[[pl.Series], Pieces]] = {
    "text": _variable,
    "date": _date,
    "timestamp": _timestamp,
    "int": _int,
    "float": _float,
    "bool": _bool,
    "list": _json,
    "json": _json,
    "uuid": _uuid,
}
