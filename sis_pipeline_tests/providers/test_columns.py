"""Records as columns: what is known by its bytes is not decoded again, and the frames are those of decoding everything."""

from __future__ import annotations

import json
from collections.abc import Mapping as Map
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.connect.errors import ContractError, InternalError
from sis_pipeline.providers.columns import FINGERPRINT, Columns, Reader, Remembered
from sis_pipeline.providers.decoding import json_body, pieces
from sis_pipeline.providers.mapping import Mapping
from sis_pipeline.providers.oneroster import OneRoster, OneRosterSettings
from sis_pipeline.providers.oneroster_records import wanted
from sis_pipeline.providers.reading import MemorySnapshot
from sis_pipeline_tests.providers.sources import YEAR
from sis_pipeline_tests.providers.test_oneroster import BASE, klass, roster, seat, staff, student

ACTIVE = {"active_year": YEAR.key}
Json = dict[str, Any]
Collections = Map[str, Sequence[Json]]


class Shelf:
    """A memory: what one reading keeps, the next one recalls."""

    def __init__(self) -> None:
        self.columns: dict[str, pa.Table] = {}

    def recall(self, resource: str) -> pa.Table | None:
        return self.columns.get(resource)

    def keep(self, resource: str, columns: pa.Table) -> None:
        self.columns[resource] = columns


class Counting(OneRoster):
    """Counts the records that are decoded, but for the first and the last of each page."""

    decoded = 0
    split = OneRoster.split  # it decodes what that splits

    def decode(self, resource: str, body: bytes) -> Sequence[Json]:
        records = super().decode(resource, body)
        self.decoded += len(records)
        return records


PROVIDER = Counting(OneRosterSettings(**BASE))
READER = Reader(lambda resource, body, _: PROVIDER.decode(resource, body), PROVIDER.split)
USERS = wanted(Mapping.load("oneroster.yaml"), PROVIDER.settings)["users"]


def paged(collections: Collections, size: int = 3, overlap: int = 0) -> MemorySnapshot:
    """Pages of so many records, the last `overlap` of which are also the first of the next."""
    raw = MemorySnapshot(YEAR)
    for name, records in collections.items():
        for start in range(0, len(records), size - overlap) or [0]:
            raw.add(name, json.dumps({name: list(records[start : start + size])}).encode(), **ACTIVE)
    return raw


def collections(**lists: Sequence[Json]) -> dict[str, Sequence[Json]]:
    return {name: page[name] for name, page in roster(**lists).items()}


def frames(raw: MemorySnapshot, shelf: Shelf | None = None) -> dict[str, pd.DataFrame]:
    return PROVIDER.standardise(Remembered(raw, shelf) if shelf else raw)


def assert_same(found: Map[str, pd.DataFrame], expected: Map[str, pd.DataFrame]) -> None:
    assert list(found) == list(expected)
    for entity, frame in expected.items():
        pd.testing.assert_frame_equal(found[entity], frame)
        assert found[entity].attrs == frame.attrs


def people(count: int, edited: frozenset[int] = frozenset(), gone: frozenset[int] = frozenset()) -> dict[str, Any]:
    """Students, a teacher and two guardians, with their seats and birth dates; odd ones among them."""
    numbers = [number for number in range(count) if number not in gone]
    grades: list[Any] = [["07"], "08", ["Klingon"], [], 9]
    users = [
        student(
            f"u{number}",
            "310" if number % 3 else "320",
            grades=grades[number % 5],
            givenName="Ada" if number in edited else "Bo",
            agents=[{"sourcedId": "g1"}] if number % 4 == 0 else [],
            userIds=[{"type": "stateID", "identifier": str(number)}] if number % 2 else [],
        )
        for number in numbers
    ]
    guardian = {**staff("g1", "310", role="parent"), "agents": [{"sourcedId": "u1"}, {"sourcedId": "u2"}]}
    return {
        "users": [*users, staff("t1", "310"), guardian, {**student("", "310"), "sourcedId": None}],
        "classes": [klass("alg", "s1"), klass("bio", "s1", "s2"), klass("art", "s2", school="320")],
        "enrollments": [
            seat(f"e{number}", f"u{number}", ("alg", "bio", "gym")[number % 3], endDate=None if number % 2 else "soon")
            for number in numbers
        ],
        "demographics": [
            {"sourcedId": f"u{number}", "birthDate": f"2012-01-{number % 28 + 1:02d}"} for number in numbers
        ],
    }


def shuffled(lists: Map[str, Sequence[Json]], seed: int) -> dict[str, Sequence[Json]]:
    return {name: Random(seed).sample(rows, len(rows)) for name, rows in lists.items()}


@pytest.mark.parametrize(("count", "size", "overlap"), [(14, 5, 0), (9, 3, 1)])
def test_frames_made_from_known_records_are_those_of_decoding_everything(count: int, size: int, overlap: int):
    shelf = Shelf()
    assert_same(frames(paged(collections(**people(11))), shelf), frames(paged(collections(**people(11)))))
    changed = shuffled(people(count, frozenset({2, 7}), frozenset({0, 5})), seed=count)
    raw = paged(collections(**changed), size, overlap)
    assert_same(frames(raw, shelf), frames(raw))


@dataclass(frozen=True)
class Day:
    """One list, whatever is in it, and how it is cut into pages."""

    numbers: list[int]
    edited: frozenset[int]
    size: int
    overlap: int

    @property
    def raw(self) -> MemorySnapshot:
        users = [student(f"u{n}", "310", grades=["Klingon" if n in self.edited else "07"]) for n in self.numbers]
        return paged({"users": users}, self.size, self.overlap)


DAYS = st.builds(
    Day,
    st.lists(st.integers(0, 9), max_size=12),
    st.frozensets(st.integers(0, 9)),
    st.integers(2, 9),
    st.integers(0, 1),
)


@given(st.lists(DAYS, min_size=2, max_size=3))
def test_after_any_changes_the_columns_are_those_of_decoding_everything(days: list[Day]):
    shelf = Shelf()
    for day in days:
        known, _ = USERS.gather(Remembered(day.raw, shelf), "users", READER)
        anew, about = USERS.gather(day.raw, "users", READER)
        assert known.to_pylist() == anew.to_pylist()
        assert about == ACTIVE


def test_what_is_known_is_not_decoded_again():
    shelf, days = Shelf(), [collections(**people(40)), collections(**people(40, edited=frozenset({3, 30})))]
    frames(paged(days[0], 50), shelf)
    PROVIDER.decoded = 0
    frames(paged(days[1], 50), shelf)
    small = sum(len(days[1][name]) for name in ("orgs", "academicSessions", "courses"))
    ends = 2 * len(shelf.columns)
    assert PROVIDER.decoded == small + ends + 2


def test_columns_of_another_shape_are_not_used():
    shelf, raw = Shelf(), paged(collections(**people(5)))
    frames(raw, shelf)
    shelf.columns = {name: kept.drop_columns([kept.column_names[0]]) for name, kept in shelf.columns.items()}
    assert_same(frames(raw, shelf), frames(raw))


def test_who_comes_no_more_is_not_kept():
    shelf = Shelf()
    for day in (people(9), people(9, gone=frozenset({1, 2}))):
        frames(paged(collections(**day)), shelf)
    assert shelf.columns["enrollments"].num_rows == 7
    assert len(set(shelf.columns["enrollments"][FINGERPRINT.name].to_pylist())) == 7


@pytest.mark.parametrize("body", [b'\xef\xbb\xbf{"enrollments": []}', b'{"enrollments": {"sourcedId": "e1"}}'])
def test_a_page_that_can_not_be_split_is_decoded_whole(body: bytes):
    shelf, raw = Shelf(), paged(collections(**people(5)))
    raw.add("enrollments", body)
    assert_same(frames(raw, shelf), frames(raw))
    assert "enrollments" not in shelf.columns
    assert "users" in shelf.columns


def test_a_field_that_was_dropped_is_noticed_although_its_records_are_known():
    nameless = [
        {name: value for name, value in student(f"u{n}", "310").items() if name != "familyName"} for n in range(3)
    ]
    shelf = Shelf()
    for _ in range(2):
        with pytest.raises(ContractError, match="no record has familyName") as drift:
            frames(paged(collections(users=nameless)), shelf)
        assert "Maribel" not in str(drift.value)
    assert shelf.columns["users"].num_rows == 3


def test_a_reader_that_loses_records_of_a_split_page_is_a_mistake_of_the_plugin():
    def merging(_resource: str, body: bytes, _about: Map[str, str]) -> Sequence[Json]:
        return list({one["id"]: one for one in json.loads(body)["rows"]}.values())

    raw = MemorySnapshot(YEAR)
    raw.add("rows", b'{"rows": [{"id": 1}, {"id": 1}, {"id": 2}]}')
    reader = Reader(merging, lambda _, body: pieces(body, ["rows"]))
    with pytest.raises(InternalError, match="rows"):
        Columns({}, {}).gather(raw, "rows", reader)


class PageWide(OneRoster):
    """A plugin for a server that says once on each page what it means for all its records."""

    def decode(self, resource: str, body: bytes) -> Sequence[Json]:
        of_all = json.loads(body)["ofAll"]
        return [{**record, **of_all} for record in super().decode(resource, body)]


class StillPageWide(PageWide):
    split = OneRoster.split


def test_a_subclass_that_decodes_its_own_way_is_given_whole_pages_unless_it_says_how_they_are_split():
    raw = MemorySnapshot(YEAR)
    for name, records in collections(users=[student(f"u{n}", "310") for n in range(3)]).items():
        wide = {"ofAll": {"familyName": "Quill"} if name == "users" else {}, name: list(records)}
        raw.add(name, json.dumps(wide).encode(), **ACTIVE)
    settings = OneRosterSettings(**BASE)
    students = PageWide(settings).standardise(Remembered(raw, Shelf()))["students"]
    assert students["last_name"].tolist() == ["Quill"] * 3
    with pytest.raises(KeyError, match="ofAll"):
        StillPageWide(settings).standardise(Remembered(raw, Shelf()))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, st.booleans())
def test_json_means_what_the_standard_library_says(document: Any, ascii_only: bool):
    written = json.dumps(document, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    try:
        expected = json.loads(written)
    except UnicodeDecodeError:
        with pytest.raises(ContractError):
            json_body(written, "It")
    else:
        assert repr(json_body(written, "It")) == repr(expected)


@pytest.mark.parametrize("written", [b'"\\ud800"', b"\xef\xbb\xbf[1]", b"1e5", b"-0.0", b"12345678901234567890123"])
def test_json_that_only_the_standard_library_reads(written: bytes):
    assert repr(json_body(written, "It")) == repr(json.loads(written.decode("utf-8-sig")))


@given(st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=3), max_size=6), st.randoms())
def test_a_page_of_some_pieces_is_read_as_those_records(records: list[Json], random: Random):
    split = pieces(json.dumps({"meta": 1, "rows": records}, indent=random.choice([None, 2])).encode(), ["rows"])
    if split is None:  # lone surrogates: then the page is decoded whole
        assert "\\ud" in json.dumps(records)
        return
    chosen = [place for place in range(len(records)) if random.random() < 0.5]
    page = json_body(split.page([split.items[place] for place in chosen]), "It")
    assert repr(page["rows"]) == repr([json.loads(json.dumps(records[place])) for place in chosen])
