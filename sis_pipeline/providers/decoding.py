"""From a raw body to records: strict JSON and the envelope a collection must have.
What the records mean is the mapping's business; which envelope a vendor uses is the provider's."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec

from sis_pipeline.connect.errors import ContractError

Json = Any


@contextmanager
def without_collecting() -> Iterator[None]:
    """Without the search for reference cycles, which decoded JSON has none of: over millions of live objects it takes a
    third of the time that decoding them does."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def json_body(body: bytes, what: str) -> Json:
    """The decoded JSON of an answer. `what` names it in the error, as in "the students page".

    Raises ContractError, without quoting the body, for anything that is not one complete JSON document in UTF-8:
    HTML, a cut-off answer, NaN and Infinity (not JSON), nesting beyond reason.
    """
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return _leniently(body, what)


def _leniently(body: bytes, what: str) -> Json:
    """What the fast parser refuses may be JSON all the same: with a byte order mark, or with lone surrogates."""
    try:
        return json.loads(body.decode("utf-8-sig"), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        raise ContractError(
            f"{what} is not JSON: {_looks_like(body)}, {len(body)} bytes.", code="contract.not_json"
        ) from None


def _finite(written: str) -> float:
    number = float(written)
    return number if math.isfinite(number) else _refuse(written)


def _refuse(_constant: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _looks_like(body: bytes) -> str:
    start = body[:64].lstrip().lower()
    if not start:
        return "it is empty"
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<")):
        return "it is a page of HTML or XML"
    if start.startswith((b"{", b"[")):
        return "it is cut off or malformed"
    return "it is some other text"


@dataclass(frozen=True, slots=True)
class Pieces:
    """The records of one page, each in its own bytes."""

    key: str
    items: Sequence[msgspec.Raw]

    def page(self, items: Sequence[msgspec.Raw | bytes]) -> bytes:
        """A page of the same collection that holds just these."""
        return b"".join((b"{", msgspec.json.encode(self.key), b":[", b",".join(items), b"]}"))


_LISTS = msgspec.json.Decoder(dict[str, list[msgspec.Raw]])
_ENVELOPE = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST = msgspec.json.Decoder(list[msgspec.Raw])


def pieces(body: bytes, keys: Sequence[str]) -> Pieces | None:
    """The list under the first of `keys` that a page has, without looking into its elements; None where there is no list,
    or the page is not read without pains: `json_body` then says what it is."""
    try:
        try:
            lists = _LISTS.decode(body)
        except msgspec.ValidationError:  # beside the list there is something else, as a count
            lists = {key: _LIST.decode(value) for key, value in _ENVELOPE.decode(body).items() if key in keys}
    except (ValueError, RecursionError):
        return None
    return next((Pieces(key, lists[key]) for key in keys if key in lists), None)


def member(document: Json, keys: Sequence[str], what: str) -> Json:
    """The value under the first of `keys` that an object has.

    Raises ContractError naming the fields it has instead where none is there: a missing envelope is not an empty page.
    """
    if isinstance(document, dict):
        for key in keys:
            if key in document:
                return document[key]
    expected = " or ".join(repr(key) for key in keys)
    raise ContractError(f"{what} has no {expected}: it is {shape(document)}.", code="contract.shape")


def records(value: Json, what: str) -> list[dict[str, Any]]:
    """A list of objects, also from one object or from nothing (null and ""), as loosely typed vendors write them.

    Raises ContractError where an element is not an object.
    """
    if value is None or value == "":
        return []
    elements = value if isinstance(value, list) else [value]
    for element in elements:
        if not isinstance(element, dict):
            raise ContractError(f"{what} holds {shape(element)} where a record was expected.", code="contract.shape")
    return elements


def behind(before: Sequence[Mapping[str, Any]], page: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """The records of a page but for the one that the page before ended with: lists are read with an overlap (see
    pagers.OffsetPager), and that record has not come twice."""
    return page[1:] if before and page and page[0] == before[-1] else page


def identity_of(record: Mapping[str, Any], path: Sequence[str]) -> str | None:
    """The value at a path of a record, as text; None where it has none, or an empty one."""
    value: Any = record
    for step in path:
        value = value.get(step) if isinstance(value, Mapping) else None
    return None if value is None or value == "" else str(value)


def shape(document: Json) -> str:
    """What a value is, in words and field names only, for error messages."""
    if isinstance(document, dict):
        names = ", ".join(sorted(map(str, document))[:12])
        return f"an object with {names}" if names else "an empty object"
    if isinstance(document, list):
        return f"a list of {len(document)}"
    return "null" if document is None else f"a single {type(document).__name__}"
