"""Every paging dialect: all rows once, whatever the server leaves out or says wrongly, and no end without proof."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.connect.errors import ConfigError, ContractError
from sis_pipeline.providers.base import Answer, End, Page, Pager, Request
from sis_pipeline.providers.decoding import json_body, member, records
from sis_pipeline.providers.pagers import (
    CursorPager,
    HeldPages,
    NextPathPager,
    OffsetPager,
    PageNumberPager,
    SinglePage,
    next_link,
    total_count,
)


def decode(body: bytes) -> list[dict[str, Any]]:
    return records(member(json_body(body, "the page"), ("rows",), "the page"), "the page")


def rows(count: int) -> list[dict[str, int]]:
    return [{"id": number} for number in range(count)]


@dataclass
class Server:
    """A collection behind one dialect; `odd` replaces single answers, by call number from 1."""

    have: Sequence[dict[str, int]]
    window: Callable[[Request, int], tuple[int, int]]
    headers: Callable[[int, int, int], dict[str, str]] = lambda _offset, _end, _total: {}
    odd: dict[int, Sequence[dict[str, int]]] = field(default_factory=dict)
    sent: list[Request] = field(default_factory=list)

    def send(self, request: Request) -> Answer:
        self.sent.append(request)
        offset, size = self.window(request, len(self.sent))
        page = self.odd.get(len(self.sent), self.have[offset : offset + size])
        body = json.dumps({"rows": page}).encode()
        return Answer(200, self.headers(offset, offset + len(page), len(self.have)), body)


def by_offset(cap: int = 10**9) -> Callable[[Request, int], tuple[int, int]]:
    return lambda request, _: (int(request.params["offset"]), min(int(request.params["limit"]), cap))


def by_page(cap: int = 10**9) -> Callable[[Request, int], tuple[int, int]]:
    def window(request: Request, _: int) -> tuple[int, int]:
        size = min(int(request.params["pagesize"]), cap)
        return (int(request.params["page"]) - 1) * size, size

    return window


def totals(_offset: int, _end: int, total: int) -> dict[str, str]:
    return {"x-total-count": str(total)}


def links(_offset: int, end: int, total: int) -> dict[str, str]:
    return {"link": f'<https://sis.example/rows?limit=3&offset={end}>; rel="next"'} if end < total else {}


def walk(pager: Pager, server: Server, path: str = "/rows") -> list[Page]:
    return list(pager.pages(server.send, Request(path, {"sort": "id"}), decode))


def ids(pages: Sequence[Page]) -> list[int]:
    return [record["id"] for page in pages for record in page.records]


# --- offsets -------------------------------------------------------------------------------------------------------


@given(
    count=st.integers(0, 40),
    limit=st.integers(1, 12),
    cap=st.integers(1, 12),
    headers=st.sampled_from([lambda *_: {}, totals, links]),
)
def test_offset_paging_gets_every_row_once_whatever_the_server_clamps_or_leaves_out(count, limit, cap, headers):
    server = Server(rows(count), by_offset(cap), headers)
    pages = walk(OffsetPager(limit), server)
    assert ids(pages) == list(range(count))
    assert pages[-1].end in {End.TOTAL, End.EMPTY_PAGE, End.SHORT_PAGE}
    assert [page.end for page in pages[:-1]] == [None] * (len(pages) - 1)
    assert [page.number for page in pages] == list(range(1, len(pages) + 1))


@given(count=st.integers(0, 60), limit=st.integers(1, 12), kind=st.sampled_from(["bare", "proven", "totals"]))
def test_the_calls_of_offset_paging_are_known_before(count, limit, kind):
    pager = OffsetPager(limit, maximum=limit if kind == "proven" else None, totals=kind == "totals")
    server = Server(rows(count), by_offset(), totals if kind == "totals" else lambda *_: {})
    walk(pager, server)
    assert len(server.sent) == pager.calls_for(count)


def test_offset_paging_sends_its_own_parameters_and_asks_from_the_last_row_received():
    server = Server(rows(7), by_offset(cap=3), totals)
    pages = walk(OffsetPager(5), server)
    assert [request.params["offset"] for request in server.sent] == ["0", "2", "4"]
    assert [page.known for page in pages] == [None, [{"id": 2}], [{"id": 4}]]
    assert {(request.params["limit"], request.params["sort"]) for request in server.sent} == {("5", "id")}


def test_a_short_first_page_is_confirmed_unless_the_page_size_is_proven():
    clamped, proven = Server(rows(2), by_offset()), Server(rows(2), by_offset())
    assert [page.end for page in walk(OffsetPager(5), clamped)] == [None, End.EMPTY_PAGE]
    assert [page.end for page in walk(OffsetPager(5, maximum=5), proven)] == [End.SHORT_PAGE]


def test_a_maximum_below_the_limit_proves_nothing():
    server = Server(rows(4), by_offset(cap=2))
    assert ids(walk(OffsetPager(5, maximum=2), server)) == [0, 1, 2, 3]


def test_a_total_that_is_too_low_does_not_end_the_walk_while_the_server_names_a_next_page():
    def headers(offset: int, end: int, total: int) -> dict[str, str]:
        return {"x-total-count": str(end - offset), **links(offset, end, total)}

    assert ids(walk(OffsetPager(3), Server(rows(8), by_offset(), headers))) == list(range(8))


def test_a_next_link_to_the_page_itself_is_no_next_page():
    def headers(offset: int, _end: int, _total: int) -> dict[str, str]:
        return {"link": f'<https://sis.example/rows?&limit=3&offset={offset}>; rel="next"'}

    server = Server(rows(5), by_offset(), headers)
    pages = walk(OffsetPager(3), server)
    assert ids(pages) == list(range(5))
    assert pages[-1].end is End.EMPTY_PAGE


def test_a_link_never_leads_to_another_address():
    def headers(_offset: int, end: int, _total: int) -> dict[str, str]:
        return {"link": f'<http://169.254.169.254/latest?limit=3&offset={end}>; rel="next"'} if end < 5 else {}

    server = Server(rows(5), by_offset(), headers)
    walk(OffsetPager(3), server)
    assert {request.path for request in server.sent} == {"/rows"}


def test_an_empty_page_that_contradicts_the_total_is_asked_for_again():
    server = Server(rows(7), by_offset(), totals, odd={2: []})
    pages = walk(OffsetPager(3), server)
    assert ids(pages) == list(range(7))
    assert len(server.sent) == 4


def test_an_empty_page_behind_a_full_one_is_asked_for_again():
    server = Server(rows(7), by_offset(), odd={2: []})
    assert ids(walk(OffsetPager(3), server)) == list(range(7))


def by_windows(*, gone: range = range(0), total: int) -> Callable[[Request], Answer]:
    """A server that names a next page behind every page, also the last, and takes the rows `gone` out only then."""

    def send(request: Request) -> Answer:
        offset, limit = (int(str(request.params[name])) for name in ("offset", "limit"))
        page = [{"id": number} for number in range(offset, min(offset + limit, total)) if number not in gone]
        link = f'<https://sis.example/rows?limit={limit}&offset={offset + limit}>; rel="next"'
        return Answer(200, {"link": link}, json.dumps({"rows": page}).encode())

    return send


@pytest.mark.parametrize("gone", [range(10, 20), range(10)])
def test_an_empty_page_is_no_end_where_rows_come_behind_the_next_link(gone):
    pages = list(OffsetPager(10).pages(by_windows(gone=gone, total=30), Request("/rows"), decode))
    assert set(ids(pages)) == set(range(30)) - set(gone), "what can be had is read"
    assert sum(page.hollow for page in pages) == 1, "and is not proven to be all"


@given(count=st.integers(0, 40), limit=st.integers(1, 12))
def test_a_next_link_behind_the_last_page_is_followed_once_and_is_no_doubt(count, limit):
    pages = list(OffsetPager(limit).pages(by_windows(total=count), Request("/rows"), decode))
    assert ids(pages) == list(range(count))
    assert (pages[-1].end, any(page.hollow for page in pages)) == (End.EMPTY_PAGE, False)


@pytest.mark.parametrize("status", [400, 416])
def test_a_next_link_behind_the_last_page_may_be_refused(status):
    listed = by_windows(total=25)

    def send(request: Request) -> Answer:
        if int(str(request.params["offset"])) >= 25:
            raise ConfigError("The request was refused.", status=status)
        return listed(request)

    pages = list(OffsetPager(10).pages(send, Request("/rows"), decode))
    assert (ids(pages), pages[-1].end) == (list(range(25)), End.EMPTY_PAGE)


def test_a_repeated_page_is_asked_for_again_and_forgiven_once():
    server = Server(rows(7), by_offset(), odd={2: rows(3)})
    pages = walk(OffsetPager(3), server)
    assert ids(pages) == list(range(7))
    assert not any(page.repeated for page in pages)


def test_a_server_that_ignores_the_offset_is_not_read_for_ever_and_proves_nothing():
    server = Server(rows(3), lambda request, _: (0, 3))
    pages = walk(OffsetPager(3), server)
    assert [page.end for page in pages] == [None, End.UNPROVEN]
    assert [page.repeated for page in pages] == [False, True]
    assert [request.params["offset"] for request in server.sent] == ["0", "2", "2", "3", "3"]


def whole_pages_only(size: int) -> Callable[[Request, int], tuple[int, int]]:
    """As servers do that work a page number out of the offset."""
    return lambda request, _: (int(request.params["offset"]) // size * size, size)


@given(count=st.integers(0, 20), stamped=st.booleans())
def test_a_server_that_rounds_offsets_down_is_asked_for_whole_pages(count, stamped):
    server = Server(rows(count), whole_pages_only(3))

    def send(request: Request) -> Answer:
        answer = server.send(request)
        stamp = {"at": len(server.sent)} if stamped else {}  # then no two answers have the same bytes
        return Answer(200, answer.headers, json.dumps(json.loads(answer.body) | stamp).encode())

    pages = list(OffsetPager(3, maximum=3).pages(send, Request("/rows"), decode))
    assert ids(pages) == list(range(count))
    assert pages[-1].end in {End.EMPTY_PAGE, End.SHORT_PAGE}
    assert all(page.known is None for page in pages)
    asked = [int(request.params["offset"]) for request in server.sent]
    assert sum(offset % 3 > 0 for offset in asked) == (2 if count >= 3 else 0), "tried twice, and never again"


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_offsets_inside_a_page_is_asked_for_whole_pages(status):
    server = Server(rows(7), by_offset())

    def send(request: Request) -> Answer:
        if int(request.params["offset"]) % 3:
            raise ConfigError("The request was refused.", status=status)
        return server.send(request)

    pages = list(OffsetPager(3).pages(send, Request("/rows"), decode))
    assert ids(pages) == list(range(7))


@pytest.mark.parametrize(
    ("allowed", "context"),
    [(1, {"status": 403}), (2, {"status": 400}), (1, {"status": 400, "oauth_error": "invalid_request"})],
)
def test_other_refusals_are_none_of_an_offset(allowed, context):
    server = Server(rows(9), by_offset())

    def send(request: Request) -> Answer:
        if len(server.sent) == allowed:
            server.sent.append(request)
            raise ConfigError("The request was refused.", **context)
        return server.send(request)

    with pytest.raises(ConfigError):
        list(OffsetPager(3).pages(send, Request("/rows"), decode))


def test_the_page_cap_ends_a_walk_without_proof():
    pages = walk(OffsetPager(1, page_cap=4), Server(rows(10), by_offset()))
    assert [page.end for page in pages] == [None, None, None, End.UNPROVEN]


def test_a_pager_holds_no_state_between_walks():
    pager = OffsetPager(3)
    first, second = walk(pager, Server(rows(5), by_offset())), walk(pager, Server(rows(4), by_offset()))
    assert (ids(first), ids(second)) == ([0, 1, 2, 3, 4], [0, 1, 2, 3])


# --- page numbers --------------------------------------------------------------------------------------------------


@given(count=st.integers(0, 40), size=st.integers(1, 12), cap=st.integers(1, 12))
def test_page_numbers_get_every_row_once(count, size, cap):
    proven = size <= cap
    server = Server(rows(count), by_page(cap))
    pages = walk(PageNumberPager(size, maximum=cap if proven else None), server)
    assert ids(pages) == list(range(count))
    assert pages[-1].end in {End.SHORT_PAGE, End.EMPTY_PAGE}


@given(count=st.integers(0, 60), size=st.integers(1, 12), proven=st.booleans())
def test_the_calls_of_page_numbers_are_known_before(count, size, proven):
    pager = PageNumberPager(size, maximum=size if proven else None)
    server = Server(rows(count), by_page())
    walk(pager, server)
    assert len(server.sent) == pager.calls_for(count)


def test_one_page_below_the_proven_maximum_takes_one_call():
    server = Server(rows(4), by_page())
    assert [page.end for page in walk(PageNumberPager(5, maximum=5), server)] == [End.SHORT_PAGE]
    assert (server.sent[0].params["page"], server.sent[0].params["pagesize"]) == ("1", "5")


# --- cursors -------------------------------------------------------------------------------------------------------


def cursor_server(count: int, size: int, name: str = "cursor", **more: Any) -> Server:
    def window(request: Request, _: int) -> tuple[int, int]:
        return int(request.params["paging.cursor"] or 0), size

    def headers(_offset: int, end: int, total: int) -> dict[str, str]:
        return {"link": f'<https://sky.example/v1/rows?limit={size}&{name}={end}>; rel="next"'} if end < total else {}

    return Server(rows(count), window, headers, **more)


@pytest.mark.parametrize("name", ["cursor", "paging.cursor"])
def test_a_cursor_is_sent_back_under_our_own_name(name):
    server = cursor_server(7, 3, name)
    pages = walk(CursorPager(3), server)
    assert ids(pages) == list(range(7))
    assert pages[-1].end is End.LAST_LINK
    assert [request.params["paging.cursor"] for request in server.sent] == ["", "3", "6"]
    assert len(server.sent) == CursorPager(3).calls_for(7)


def test_a_full_first_page_without_any_link_proves_nothing():
    server = cursor_server(9, 3)
    server.headers = lambda *_: {}
    assert [page.end for page in walk(CursorPager(3), server)] == [End.UNPROVEN]
    short = cursor_server(2, 3)
    short.headers = lambda *_: {}
    assert [page.end for page in walk(CursorPager(3), short)] == [End.LAST_LINK]


def test_a_full_last_page_is_proven_once_links_were_seen():
    assert [page.end for page in walk(CursorPager(3), cursor_server(6, 3))] == [None, End.LAST_LINK]


def test_a_cursor_that_leads_in_a_circle_ends_unproven():
    server = cursor_server(9, 3)
    server.headers = lambda _offset, end, _total: {
        "link": f'<https://sky.example/v1/rows?cursor={end % 9 or 3}>; rel="next"'
    }
    pages = walk(CursorPager(3), server)
    assert pages[-1].end is End.UNPROVEN
    assert len(server.sent) == 3


# --- next paths ----------------------------------------------------------------------------------------------------


def path_server(count: int, size: int, following: Callable[[int, bool], Any]) -> Callable[[Request], Answer]:
    """`following(page, more)` writes Paging.Next."""

    def send(request: Request) -> Answer:
        sent.append(request.path)
        page = int(request.path.split("/")[-2])
        found = rows(count)[(page - 1) * size : page * size]
        body = {"rows": found, "Paging": {"Next": following(page, page * size < count)}}
        return Answer(200, {}, json.dumps(body).encode())

    sent: list[str] = []
    send.sent = sent  # type: ignore[attr-defined]
    return send


START = Request("/Generic/1/Student/Student/1/3")


@pytest.mark.parametrize(
    "prefix",
    ["", "https://sky.example", "https://elsewhere.example", "//sky.example", "https://sky.example/districtAPI"],
)
def test_a_next_path_moves_the_last_segments_only(prefix):
    send = path_server(7, 3, lambda page, more: f"{prefix}/Generic/1/Student/Student/{page + 1}/3" if more else "")
    pages = list(NextPathPager(3).pages(send, START, decode))
    assert ids(pages) == list(range(7))
    assert send.sent == [f"/Generic/1/Student/Student/{page}/3" for page in (1, 2, 3)]
    assert pages[-1].end is End.LAST_LINK
    assert NextPathPager(3).calls_for(7) == 3


@pytest.mark.parametrize("last", ["", None, "/Generic/1/Student/Student/3/3"])
def test_empty_missing_or_equal_is_the_end(last):
    send = path_server(9, 3, lambda page, more: f"/Generic/1/Student/Student/{page + 1}/3" if more else last)
    assert [page.end for page in NextPathPager(3).pages(send, START, decode)] == [None, None, End.LAST_LINK]


def test_a_full_page_without_next_proves_nothing():
    send = path_server(9, 3, lambda *_: None)
    assert [page.end for page in NextPathPager(3).pages(send, START, decode)] == [End.UNPROVEN]


def test_a_path_to_another_collection_is_refused():
    send = path_server(9, 3, lambda *_: "/Generic/1/Staff/Staff/2/3")
    with pytest.raises(ContractError, match="same collection"):
        list(NextPathPager(3).pages(send, START, decode))


# --- single and held pages -----------------------------------------------------------------------------------------


def test_a_single_page_is_whole_and_held_pages_cost_nothing():
    server = Server(rows(4), lambda *_: (0, 99), totals)
    pages = walk(SinglePage(), server)
    assert (ids(pages), pages[0].end, pages[0].total) == ([0, 1, 2, 3], End.WHOLE_FILE, 4)
    held = HeldPages(tuple(pages))
    assert (walk(held, server), held.calls_for(4), len(server.sent)) == (pages, 0, 1)


# --- headers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        '<https://sis.example/users?limit=100&offset=200>; rel="next"',
        '<https://sis.example/users?offset=0>; rel="first", <https://sis.example/users?limit=100&offset=200>; rel="next"',
        "<https://sis.example/users?limit=100&offset=200>;rel=next,<https://sis.example/users?offset=900>;rel=last",
        'https://sis.example/users?limit=100&offset=200; rel="next", https://sis.example/users?offset=900; rel="last"',
        '</users?limit=100&offset=200>; rel="next"',
        "<?limit=100&offset=200>; rel='next'",
        '<sis.example/users?limit=100&offset=200>; rel="next",',
        '<//sis.example/users?limit=100&offset=200>; REL="Next" ; title="more"',
        '<https://sis.example/users?&limit=100&offset=200>; rel="next"',
        '<https://sis.example/users?limit=100&offset=200&fields=a,b>; title="x, y"; rel="next"',
    ],
)
def test_next_links_are_read_leniently(header):
    found = next_link(header)
    assert found is not None
    assert (found["limit"], found["offset"]) == ("100", "200")


@pytest.mark.parametrize(
    "header", [None, "", "nonsense", '<https://sis.example/users?offset=0>; rel="prev"', '; rel="next"', "<>"]
)
def test_no_next_link_is_none(header):
    assert not next_link(header)


@given(st.text(max_size=60))
def test_no_header_breaks_the_reading_of_links_and_totals(header):
    next_link(header)
    total_count({"x-total-count": header})


def test_totals_are_numbers_or_nothing():
    assert total_count({"x-total-count": " 12 "}) == 12
    assert total_count({"x-total-count": "many"}) is None
    assert total_count({}) is None
