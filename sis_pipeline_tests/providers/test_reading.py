"""A reading is complete only by proof: counts before and after, distinct ids, no repeated page, nothing skipped unseen."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.connect.errors import ConfigError, ContractError, TransientError
from sis_pipeline.providers.base import Answer, End, Page, Plan, Request, Resource
from sis_pipeline.providers.decoding import json_body, member, records
from sis_pipeline.providers.pagers import OffsetPager, PageNumberPager, SinglePage
from sis_pipeline.providers.reading import MemorySnapshot, count_in, read, verdict
from sis_pipeline.roster.school_year import SchoolYear

YEAR = SchoolYear.parse("2025-2026")


def decode(_resource: str, body: bytes) -> list[dict[str, Any]]:
    return records(member(json_body(body, "the page"), ("rows",), "the page"), "the page")


class Collection:
    """Rows that may change between calls: `change(call)` gives the rows as of that call. Counts at /count."""

    def __init__(self, change: Callable[[int], Sequence[Any]], size: int = 3) -> None:
        self.change = change
        self.size = size
        self.calls: list[str] = []

    def send(self, request: Request) -> Answer:
        self.calls.append("count" if request.path.endswith("/count") else f"page {request.params.get('page', 1)}")
        have = self.change(len(self.calls))
        if request.path.endswith("/count"):
            return answer({"resource": {"count": len(have)}})
        offset = (int(str(request.params["page"])) - 1) * self.size
        return answer({"rows": [{"id": row} for row in have[offset : offset + self.size]]})


def answer(content: Any, **headers: str) -> Answer:
    return Answer(200, headers, json.dumps(content).encode())


def resource(name: str = "students", *, counted: bool = True, size: int = 3, **more: Any) -> Resource:
    count = Request(f"/{name}/count") if counted else None
    return Resource(name, Request(f"/{name}"), PageNumberPager(size, maximum=size), ("id",), count=count, **more)


def plan(*resources: Resource) -> Plan:
    return Plan(resources, "first_read")


def test_one_page_below_the_proven_maximum_needs_no_count():
    source = Collection(lambda _: range(2))
    (reading,) = read(plan(resource()), source.send, decode, MemorySnapshot(YEAR))
    assert source.calls == ["page 1"]
    assert (reading.complete, reading.end, reading.total_before) == (True, End.SHORT_PAGE, None)


def test_more_pages_are_counted_before_and_after():
    source = Collection(lambda _: range(7))
    planned = plan(resource(expected_rows=7))
    (reading,) = read(planned, source.send, decode, MemorySnapshot(YEAR))
    assert source.calls == ["page 1", "count", "page 2", "page 3", "count"]
    assert len(source.calls) == planned.calls
    assert (reading.rows, reading.distinct, reading.total_before, reading.total_after) == (7, 7, 7, 7)
    assert reading.complete
    assert (
        reading.reason == "the last page was shorter than the source's page size; all 7 rows of the source's count came"
    )


def test_the_count_ends_a_list_that_fills_its_last_page():
    source = Collection(lambda _: range(6))
    (reading,) = read(plan(resource()), source.send, decode, MemorySnapshot(YEAR))
    assert source.calls == ["page 1", "count", "page 2", "count"]
    assert (reading.complete, reading.end) == (True, End.TOTAL)


@given(st.integers(0, 40))
def test_the_calls_of_a_counted_list_are_known_before(count):
    source = Collection(lambda _: range(count))
    planned = plan(resource(expected_rows=count))
    (reading,) = read(planned, source.send, decode, MemorySnapshot(YEAR))
    assert reading.complete
    assert len(source.calls) == planned.calls


def test_a_single_full_page_is_proven_by_one_count():
    source = Collection(lambda _: range(3))
    (reading,) = read(plan(resource()), source.send, decode, MemorySnapshot(YEAR))
    assert source.calls == ["page 1", "count"]
    assert (reading.complete, reading.end) == (True, End.TOTAL)


def test_a_list_that_moved_is_read_again_and_its_pages_start_over():
    source = Collection(lambda call: range(7) if call < 3 else range(8))
    pages = MemorySnapshot(YEAR)
    (reading,) = read(plan(resource()), source.send, decode, pages)
    assert (reading.attempts, reading.complete, reading.rows) == (2, True, 8)
    kept = [record["id"] for _, body in pages.bodies("students") for record in decode("students", body)]
    assert kept == list(range(8))


def test_a_list_that_never_stands_still_is_partial_after_three_readings():
    source = Collection(lambda call: range(7 + call))
    (reading,) = read(plan(resource()), source.send, decode, MemorySnapshot(YEAR))
    assert (reading.attempts, reading.complete) == (3, False)
    assert "before" in reading.reason
    assert verdict([reading]) == "partial"


def test_a_shift_that_keeps_the_count_is_seen_by_the_ids():
    """A row left page 1 while it was read and another came at the end: one of page 2 was never shown."""
    shifted = [0, 1, 2, 2, 3, 4, 5]
    source = Collection(lambda call: shifted if call < 6 else range(7))
    (reading,) = read(plan(resource()), source.send, decode, MemorySnapshot(YEAR))
    assert (reading.attempts, reading.complete) == (2, True)
    stubborn = Collection(lambda _: shifted)
    (reading,) = read(plan(resource()), stubborn.send, decode, MemorySnapshot(YEAR))
    assert (reading.attempts, reading.duplicates, reading.complete) == (3, 1, False)
    assert "on two pages" in reading.reason


def test_a_duplicate_on_one_page_is_the_sources_own():
    source = Collection(lambda _: [0, 1, 1, 2])
    (reading,) = read(plan(resource()), source.send, decode, MemorySnapshot(YEAR))
    assert (reading.rows, reading.distinct, reading.duplicates, reading.complete) == (4, 3, 1, True)


class Offsets:
    """A list of ids asked for by offset, in which something goes or comes before single calls; no total."""

    def __init__(self, count: int, moves: dict[int, Callable[[list[int]], object]]) -> None:
        self.ids, self.moves, self.calls = list(range(count)), moves, 0

    def send(self, request: Request) -> Answer:
        self.calls += 1
        self.moves.get(self.calls, lambda _: None)(self.ids)
        offset, limit = (int(str(request.params[name])) for name in ("offset", "limit"))
        return answer({"rows": [{"id": one} for one in self.ids[offset : offset + limit]]})


def of_tens(pager: OffsetPager | None = None) -> Resource:
    return Resource("users", Request("/users"), pager or OffsetPager(10), ("id",))


@pytest.mark.parametrize("call", [2, 3, 4])
@pytest.mark.parametrize("gone", [3, 9, 18])
def test_a_row_deleted_behind_us_is_seen_without_any_count(call, gone):
    """It moves all others up: one of them slips from the next page to the one that was read."""
    source, pages = Offsets(40, {call: lambda ids: ids.remove(gone)}), MemorySnapshot(YEAR)
    (reading,) = read(plan(of_tens()), source.send, decode, pages)
    seen = {record["id"] for _, body in pages.bodies("users") for record in decode("users", body)}
    assert set(source.ids) <= seen
    assert reading.complete
    behind = gone < 9 * (call - 1) + 1
    assert (reading.attempts, reading.rows) == ((2, 39) if behind else (1, 39))


def test_a_deletion_made_up_for_by_an_addition_is_seen():
    def swap(ids: list[int]) -> None:
        ids.remove(3)
        ids.append(99)

    source = Offsets(40, {3: swap})
    (reading,) = read(plan(of_tens(OffsetPager(10, totals=True))), source.send, decode, MemorySnapshot(YEAR))
    assert (reading.attempts, reading.complete, reading.rows) == (2, True, 40)


def test_a_list_that_never_stands_still_before_us_is_partial():
    source = Offsets(40, {call: lambda ids: ids.pop(0) for call in range(2, 100)})
    (reading,) = read(plan(of_tens()), source.send, decode, MemorySnapshot(YEAR))
    assert (reading.attempts, reading.complete) == (3, False)
    assert "did not begin where the one before ended" in reading.reason


def test_an_answer_without_the_row_that_is_known_is_no_end():
    """So many went at once that nothing is left where the next page began; the last of the list was never shown."""
    source = Offsets(12, {2: lambda ids: ids.__delitem__(slice(0, 8))})
    pages = MemorySnapshot(YEAR)
    (reading,) = read(plan(of_tens()), source.send, decode, pages)
    assert (reading.attempts, reading.complete, reading.rows) == (2, True, 4)


def test_a_row_that_is_asked_for_twice_is_no_duplicate():
    kept: list[Page] = []
    (reading,) = read(plan(of_tens()), Offsets(25, {}).send, decode, lambda _, page: kept.append(page))
    assert (reading.rows, reading.distinct, reading.duplicates, reading.pages) == (25, 25, 0, 3)
    assert [len(page.records) for page in kept] == [10, 9, 6]
    assert [len(decode("users", page.body)) for page in kept] == [10, 10, 7], "bodies stay as they came"


def test_rows_without_an_id_are_known_by_what_they_hold():
    nameless = Resource("users", Request("/users"), OffsetPager(10), ("none",))
    (reading,) = read(plan(nameless), Offsets(25, {}).send, decode, MemorySnapshot(YEAR))
    assert (reading.complete, reading.rows, reading.duplicates) == (True, 25, 0)


def test_fewer_rows_than_counted_are_not_complete():
    def send(request: Request) -> Answer:
        if request.path.endswith("/count"):
            return answer({"count": 9})
        page = int(str(request.params["page"]))
        return answer({"rows": [{"id": number} for number in range((page - 1) * 3, min(page * 3, 5))]})

    (reading,) = read(plan(resource()), send, decode, MemorySnapshot(YEAR))
    assert not reading.complete
    assert reading.reason == "the source counts 9 rows, but 5 came"


def test_totals_in_headers_count_as_the_sources_own():
    def send(request: Request) -> Answer:
        offset = int(str(request.params["offset"]))
        total = "5" if offset == 0 else "6"
        return answer(
            {"rows": [{"id": number} for number in range(offset, min(offset + 3, 5))]}, **{"x-total-count": total}
        )

    listed = Resource("users", Request("/users"), OffsetPager(3), ("id",))
    (reading,) = read(plan(listed), send, decode, MemorySnapshot(YEAR))
    assert (reading.total_before, reading.total_after, reading.complete) == (5, 6, False)


def test_a_server_that_repeats_a_page_is_partial():
    def send(_: Request) -> Answer:
        return answer({"rows": [{"id": 1}, {"id": 2}, {"id": 3}]})

    (reading,) = read(plan(resource(counted=False)), send, decode, MemorySnapshot(YEAR))
    assert (reading.complete, reading.repeated_pages, reading.end) == (False, 1, End.UNPROVEN)
    assert verdict([reading]) == "partial"


def test_nothing_where_there_was_something_is_no_proof():
    source = Collection(lambda _: [])
    gone, never = read(
        plan(resource("a", counted=False, expected_rows=40), resource("b", counted=False)),
        source.send, decode, MemorySnapshot(YEAR),
    )  # fmt: skip
    assert (gone.complete, gone.attempts) == (False, 3)
    assert never.complete


def refused(status: int, **context: object) -> Callable[[Request], Answer]:
    def send(_: Request) -> Answer:
        raise ConfigError("The request was refused.", status=status, **context)

    return send


def test_an_optional_resource_is_skipped_with_its_status():
    optional = resource(optional=frozenset({403, 404}))
    (reading,) = read(plan(optional), refused(403), decode, MemorySnapshot(YEAR))
    assert (reading.skipped, reading.complete, reading.rows) == (403, True, 0)
    assert "403" in reading.reason


def test_an_optional_resource_that_was_there_last_time_is_a_gap():
    optional = resource(optional=frozenset({403}), expected_rows=500)
    (reading,) = read(plan(optional), refused(403), decode, MemorySnapshot(YEAR))
    assert not reading.complete
    assert reading.reason == (
        'not offered to us (HTTP 403), although it gave 500 rows before; if that is right, set gone to ["students"]'
    )


@pytest.mark.parametrize("status", [401, 500])
def test_other_refusals_are_raised(status):
    with pytest.raises(ConfigError):
        read(plan(resource(optional=frozenset({404}))), refused(status), decode, MemorySnapshot(YEAR))


@pytest.mark.parametrize("said", ["invalid_client", None])
def test_dead_credentials_do_not_pass_for_a_resource_that_is_not_offered(said):
    optional = resource(optional=frozenset({401, 404}))
    for status in (401, 404):
        with pytest.raises(ConfigError):
            read(plan(optional), refused(status, oauth_error=said), decode, MemorySnapshot(YEAR))


def test_a_refusal_in_the_middle_is_raised_whatever_is_optional():
    def send(request: Request) -> Answer:
        if str(request.params.get("page")) == "2":
            raise TransientError("The server failed.", status=404)
        return answer({"rows": [{"id": 1}, {"id": 2}, {"id": 3}]})

    with pytest.raises(TransientError):
        read(plan(resource(counted=False, optional=frozenset({404}))), send, decode, MemorySnapshot(YEAR))


def test_a_resource_that_is_refused_when_it_is_read_again_is_not_skipped():
    """Its pages of before are kept, and nothing proves them."""
    source = Collection(lambda call: range(7) if call < 3 else range(8))

    def send(request: Request) -> Answer:
        if len(source.calls) == 5:
            raise ConfigError("Access is not granted.", status=403)
        return source.send(request)

    with pytest.raises(ConfigError, match=r"not granted\. It was page 1 of students"):
        read(plan(resource(optional=frozenset({403}))), send, decode, MemorySnapshot(YEAR))
    assert source.calls == ["page 1", "count", "page 2", "page 3", "count"]


def test_progress_is_told_page_by_page():
    seen: list[tuple[Any, ...]] = []
    source = Collection(lambda _: range(5))
    sink: list[tuple[str, int, End | None]] = []

    def keep(kept: Resource, page: Page) -> None:
        sink.append((kept.name, page.number, page.end))

    read(plan(resource(expected_rows=9)), source.send, decode, keep, lambda *facts: seen.append(facts))
    assert seen == [("students", 1, 3, 5), ("students", 2, 5, 5)]
    assert sink == [("students", 1, None), ("students", 2, End.SHORT_PAGE)]


def test_rows_without_an_id_count_each():
    def send(_: Request) -> Answer:
        return answer({"rows": [{"id": None}, {}, {"id": 0}]})

    single = Resource("odd", Request("/odd"), SinglePage(), ("id",))
    (reading,) = read(plan(single), send, decode, MemorySnapshot(YEAR))
    assert (reading.rows, reading.distinct, reading.complete) == (3, 3, True)


def test_verdict_is_complete_only_if_all_are():
    good, bad = read(
        plan(resource("a", counted=False), resource("b", counted=False, expected_rows=1)),
        Collection(lambda _: []).send, decode, MemorySnapshot(YEAR),
    )  # fmt: skip
    assert (verdict([good]), verdict([good, bad]), verdict([])) == ("complete", "partial", "complete")


@pytest.mark.parametrize("content", [{"resource": {"count": 293}}, {"count": 293}, {"count": "293"}])
def test_counts_come_bare_or_wrapped(content):
    assert count_in(answer(content)) == 293


def test_a_count_may_be_a_header_and_nonsense_is_refused():
    assert count_in(answer([], **{"x-total-count": "7"})) == 7
    for content in ({"resource": {}}, [], {"count": -1}, {"count": None}, {"a": 1, "b": 2}):
        with pytest.raises(ContractError):
            count_in(answer(content))
