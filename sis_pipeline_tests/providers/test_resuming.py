"""Going on behind kept pages gives what an undisturbed walk gives, with the calls that are left, or starts anew and says why."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.connect.errors import ConfigError, DataError, TransientError
from sis_pipeline.providers.base import Answer, Origin, Page, Pager, Plan, Request, Resource, fingerprint
from sis_pipeline.providers.decoding import json_body, member, records
from sis_pipeline.providers.pagers import CursorPager, NextPathPager, OffsetPager, PageNumberPager
from sis_pipeline.providers.reading import Reading, read, verdict

SIZE = 3


def decode(_resource: str, body: bytes) -> list[dict[str, Any]]:
    return records(member(json_body(body, "the page"), ("rows",), "the page"), "the page")


@dataclass
class Server:
    """Lists of ids in every paging dialect; `calls` are what was asked of it, `token` the version of its token."""

    rows: Sequence[Any]
    token: int | None = 1
    calls: list[str] = field(default_factory=list)
    totals: bool = False
    dies_after: int | None = None
    empty: frozenset[int] = frozenset()
    cursors: bool = True
    rounds: bool = False

    def send(self, request: Request) -> Answer:
        if self.dies_after is not None and len(self.calls) >= self.dies_after:
            raise TransientError("The server is down.", status=503)
        if request.path.endswith("/count"):
            self.calls.append("count")
            return Answer(200, {}, json.dumps({"count": len(self.rows)}).encode(), self.token)
        start, headers, link = self._place(request)
        self.calls.append(str(start))
        page = [] if start in self.empty else self.rows[start : start + SIZE]
        body: dict[str, Any] = {"rows": [{"id": row} for row in page]}
        if start + SIZE < len(self.rows):
            body["Paging"] = {"Next": f"/things/{start // SIZE + 2}/{SIZE}"}
            headers |= {"link": f'<https://x.example/?cursor={start + SIZE}>; rel="next"'} if link else {}
        return Answer(200, headers, json.dumps(body).encode(), self.token)

    def _place(self, request: Request) -> tuple[int, dict[str, str], bool]:
        headers = {"x-total-count": str(len(self.rows))} if self.totals else {}
        params = {name: str(value) for name, value in request.params.items()}
        if "paging.cursor" in params:
            if params["paging.cursor"] and not self.cursors:
                raise ConfigError("This cursor is unknown.", status=400)
            return int(params["paging.cursor"] or 0), headers, True
        if "offset" in params:
            offset = int(params["offset"])
            return offset - (offset % SIZE if self.rounds else 0), headers, False
        if "page" in params:
            return (int(params["page"]) - 1) * SIZE, headers, False
        return (int(request.path.split("/")[-2]) - 1) * SIZE, headers, False


@dataclass
class Left:
    """Keeps pages as the store does, and gives them back; `spoilt` pages are not as they were kept."""

    pages: dict[str, list[Page]] = field(default_factory=dict)
    spoilt: set[int] = field(default_factory=set)

    def __call__(self, resource: Resource, page: Page) -> None:
        if page.number == 1:
            self.pages[resource.name] = []
        self.pages[resource.name].append(page)

    def of(self, resource: str) -> list[Any]:
        @dataclass
        class Kept:
            origin: Origin
            total: int | None
            number: int
            content: bytes
            spoilt: set[int]

            def body(self) -> bytes:
                if self.number in self.spoilt:
                    raise DataError("changed")
                return self.content

        return [
            Kept(page.origin, page.total, page.number, page.body, self.spoilt)
            for page in self.pages.get(resource, [])
            if page.origin is not None
        ]

    def ids(self, resource: str = "things") -> list[Any]:
        return [record["id"] for page in self.pages[resource] for record in page.records]


PAGERS: dict[str, Pager] = {
    "offset": OffsetPager(SIZE, maximum=SIZE),
    "page": PageNumberPager(SIZE, maximum=SIZE),
    "path": NextPathPager(SIZE),
    "cursor": CursorPager(SIZE),
}


def things(kind: str, *, counted: bool = False, name: str = "things") -> Resource:
    path = f"/{name}/1/{SIZE}" if kind == "path" else f"/{name}"
    count = Request(f"/{name}/count") if counted else None
    return Resource(name, Request(path), PAGERS[kind], ("id",), count=count)


def interrupted(resource: Resource, server: Server, after: int) -> Left:
    """What a reading leaves whose source fails after so many calls."""
    left = Left()
    server.dies_after = after
    with pytest.raises(TransientError):
        read(Plan((resource,), "first_read"), server.send, decode, left)
    server.dies_after = None
    server.calls.clear()
    return left


def go_on(resource: Resource, server: Server, left: Left) -> tuple[Reading, Left, list[str]]:
    again, said = Left(), list[str]()
    (reading,) = read(Plan((resource,), "first_read"), server.send, decode, again, kept=left.of, say=said.append)
    return reading, again, said


@given(st.sampled_from(sorted(PAGERS)), st.integers(SIZE + 1, 40), st.integers(1, 14), st.booleans(), st.booleans())
def test_going_on_gives_what_an_undisturbed_walk_gives(kind, count, after, counted, totals):
    counted = counted and kind == "page"
    resource = things(kind, counted=counted)
    whole, plain = Left(), Server(range(count), totals=totals)
    (undisturbed,) = read(Plan((resource,), "first_read"), plain.send, decode, whole)
    after = min(after, len(plain.calls) - 1)
    server = Server(range(count), totals=totals)
    left = interrupted(resource, server, after)
    reading, again, said = go_on(resource, server, left)
    kept = len(left.pages.get("things", []))
    assert (reading.complete, reading.rows, reading.kept) == (undisturbed.complete, count, kept)
    assert [page.body for page in again.pages["things"]] == [page.body for page in whole.pages["things"]]
    assert [page.kept for page in again.pages["things"]] == [True] * kept + [False] * (undisturbed.pages - kept)
    seam = 1 if 0 < kept < undisturbed.pages and kind != "cursor" else 0
    assert len(server.calls) == len(plain.calls) - kept + seam
    assert said == []


def test_behind_the_first_new_page_everything_is_new():
    """A page in between is not there any more; those behind it are of another walk."""
    server = Server(range(12))
    left = interrupted(things("page"), server, 4)
    del left.pages["things"][1]
    reading, again, _ = go_on(things("page"), server, left)
    assert (reading.complete, reading.kept) == (True, 1)
    assert [page.kept for page in again.pages["things"]] == [True, False, False, False, False]
    assert again.ids() == list(range(12))


def test_going_on_with_a_server_that_takes_no_offset_inside_a_page():
    server = Server(range(12), rounds=True)
    left = interrupted(things("offset"), server, 6)  # two of these calls find out how it takes offsets
    assert left.ids() == list(range(12))[: 4 * SIZE]
    reading, again, said = go_on(things("offset"), server, left)
    assert (reading.complete, reading.kept, said) == (True, 4, [])
    assert again.ids() == list(range(12))
    assert server.calls == ["0", "0", "0", "9", "12", "12"]


def test_a_count_that_moved_starts_the_list_over():
    resource = things("page", counted=True)
    server = Server(range(9))
    left = interrupted(resource, server, 3)
    server.rows = range(10)
    reading, again, said = go_on(resource, server, left)
    assert (reading.complete, reading.rows, reading.kept, reading.attempts) == (True, 10, 0, 2)
    assert reading.restarted == "the source counted 9 rows when it was interrupted and 10 now"
    assert said == ["things: read anew, because the source counted 9 rows when it was interrupted and 10 now."]
    assert again.ids() == list(range(10))


@pytest.mark.parametrize("kind", ["offset", "page", "path"])
@pytest.mark.parametrize("rows", [[0, *range(2, 13)], [*range(13, 14), *range(12)], [5, *range(12)]])
def test_what_came_or_went_before_the_place_starts_the_list_over(kind, rows):
    """Also where the count did not move: one record went, another came at the end, and one would never be seen."""
    server = Server(range(12))
    left = interrupted(things(kind), server, 2)
    server.rows = rows
    reading, again, _ = go_on(things(kind), server, left)
    assert reading.restarted == "the list moved while it was interrupted"
    assert again.ids() == list(rows)
    assert reading.attempts in {2, 3}  # a record twice in the list counts against it as ever


def test_a_total_in_a_header_that_moved_starts_the_list_over():
    server = Server(range(12), totals=True)
    left = interrupted(things("offset"), server, 2)
    server.rows = range(13)
    reading, again, _ = go_on(things("offset"), server, left)
    assert (reading.complete, reading.total_before, reading.total_after, reading.kept) == (True, 13, 13, 0)
    assert again.ids() == list(range(13))
    assert server.calls == ["2", "4", "0", "2", "4", "6", "8", "10"]


@pytest.mark.parametrize("token", [2, None])
def test_a_cursor_is_worth_nothing_with_another_token(token):
    server = Server(range(12))
    left = interrupted(things("cursor"), server, 2)
    server.token = token
    reading, again, said = go_on(things("cursor"), server, left)
    assert (reading.complete, reading.kept, reading.attempts) == (True, 0, 2)
    assert "token" in said[0]
    assert again.ids() == list(range(12))


def test_a_cursor_that_the_source_forgot_starts_the_list_over():
    server = Server(range(12))
    left = interrupted(things("cursor"), server, 2)
    server.cursors = False
    with pytest.raises(ConfigError):  # at the second page of the new attempt: it has no cursors at all now
        go_on(things("cursor"), server, left)
    assert server.calls == ["0"]


def test_a_refused_token_call_says_nothing_about_a_cursor():
    server = Server(range(12))
    left = interrupted(things("cursor"), server, 2)

    def send(_: Request) -> Answer:
        raise ConfigError("The token request is not accepted.", status=404, oauth_error=None)

    said = list[str]()
    with pytest.raises(ConfigError, match="token request"):
        read(Plan((things("cursor"),), "first_read"), send, decode, Left(), kept=left.of, say=said.append)
    assert said == [], "what was kept is not given up"


@pytest.mark.parametrize("kind", sorted(PAGERS))
def test_lists_with_another_token_go_on_unless_they_have_cursors(kind):
    server = Server(range(12))
    left = interrupted(things(kind), server, 2)
    server.token = 2
    reading, _, _ = go_on(things(kind), server, left)
    assert (reading.kept == 2) == (kind != "cursor")


def test_a_page_that_is_not_as_it_was_kept_starts_its_list_over():
    server = Server(range(12))
    left = interrupted(things("page"), server, 3)
    left.spoilt = {2}
    reading, again, _ = go_on(things("page"), server, left)
    assert (reading.restarted, reading.kept, reading.complete) == ("a page is not as it was kept", 0, True)
    assert again.ids() == list(range(12))


def test_pages_of_other_requests_are_not_taken_over():
    server = Server(range(12))
    left = interrupted(things("page"), server, 3)
    other = Resource("things", Request("/things", {"year": "35"}), PAGERS["page"], ("id",))
    reading, _, said = go_on(other, server, left)
    assert (reading.kept, reading.complete, said) == (0, True, [])


def test_a_list_that_moves_after_it_went_on_is_read_again_from_the_source():
    server = Server(range(12))
    resource = things("page", counted=True)
    left = interrupted(resource, server, 3)
    moving = iter([12, 12, 12])  # the count, the last kept page, the next page; from then on there is one more

    def send(request: Request) -> Answer:
        server.rows = range(next(moving, 13))
        return server.send(request)

    (reading,) = read(Plan((resource,), "first_read"), send, decode, Left(), kept=left.of)
    assert (reading.attempts, reading.kept, reading.rows, reading.complete) == (2, 0, 13, True)


def test_a_page_without_anything_in_the_middle_is_asked_for_again_and_never_proof():
    for kind in ("cursor", "path"):
        server = Server(range(9), empty=frozenset({3}))
        (reading,) = read(Plan((things(kind),), "first_read"), server.send, decode, Left())
        assert (reading.complete, reading.hollow_pages, reading.attempts) == (False, 1, 3)
        assert reading.reason == "1 pages held nothing although others followed"
        assert server.calls == ["0", "3", "3", "6"] * 3


def test_fingerprints_tell_requests_apart_and_nothing_else():
    one = Request("/a", {"x": "1", "ids": ["1", "2"]}, template="/a")
    assert fingerprint(one) == fingerprint(Request("/a", {"ids": ("1", "2"), "x": "1"}, template="other"))
    different = [
        Request("/b", one.params),
        Request("/a", {"x": "1"}),
        Request("/a", one.params, method="POST", json={}),
    ]
    assert len({fingerprint(request) for request in [one, *different]}) == 4


# --- several at once -------------------------------------------------------------------------------------------------


def names(count: int) -> tuple[Resource, ...]:
    return tuple(things("page", name=f"list-{number}") for number in range(count))


def test_as_many_lists_as_doors_are_read_at_once_and_kept_by_one_thread():
    together = threading.Barrier(3, timeout=20)  # nobody gets an answer before three ask at the same time
    servers = [Server(range(10)) for _ in range(3)]
    keepers: set[int] = set()
    left, heard = Left(), list[tuple[Any, ...]]()

    def door(server: Server) -> Callable[[Request], Answer]:
        def send(request: Request) -> Answer:
            together.wait()
            return server.send(request)

        return send

    def sink(resource: Resource, page: Page) -> None:
        keepers.add(threading.get_ident())
        left(resource, page)

    send, *others = map(door, servers)
    plan = Plan(names(6), "first_read")
    readings = read(plan, send, decode, sink, lambda *facts: heard.append(facts), others=others)
    assert [reading.resource for reading in readings] == [resource.name for resource in plan.resources]
    assert verdict(readings) == "complete"
    assert all(left.ids(resource.name) == list(range(10)) for resource in plan.resources)
    assert [page.number for page in left.pages["list-4"]] == [1, 2, 3, 4]
    assert keepers == {threading.get_ident()}
    assert len(heard) == 24


@pytest.mark.parametrize("where", ["door", "sink"])
def test_one_failure_ends_all_of_them(where):
    """The others would go on for ever: their lists have no end."""
    asked: list[str] = []

    def endless(request: Request) -> Answer:
        asked.append(request.path)
        number = int(str(request.params["page"]))
        if where == "door" and request.path == "/list-1" and number == 3:
            raise TransientError("The server is down.", status=503)
        return Answer(200, {}, json.dumps({"rows": [{"id": f"{number}-{row}"} for row in range(SIZE)]}).encode())

    def sink(resource: Resource, page: Page) -> None:
        if where == "sink" and page.number == 3:
            raise TransientError("The disk is full.")

    with pytest.raises(TransientError, match="down" if where == "door" else "full"):
        read(Plan(names(3), "first_read"), endless, decode, sink, others=[endless, endless])
    assert len(asked) < 3_000


def test_an_interrupted_reading_of_several_lists_goes_on_with_each():
    plan, left = Plan(names(4), "first_read"), Left()
    for name, kept in (("list-0", 4), ("list-1", 2), ("list-3", 1)):
        (resource,) = [one for one in plan.resources if one.name == name]
        read(Plan((resource,), "first_read"), Server(range(10)).send, decode, left)
        del left.pages[name][kept:]
    doors = [Server(range(10)) for _ in range(2)]
    again = Left()
    send, other = (server.send for server in doors)
    readings = read(plan, send, decode, again, kept=left.of, others=[other])
    assert [reading.kept for reading in readings] == [4, 2, 0, 1]
    assert all(again.ids(resource.name) == list(range(10)) for resource in plan.resources)
    assert sum(len(server.calls) for server in doors) == 0 + (1 + 2) + 4 + (1 + 3)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [one.name for one in threading.enumerate() if one.name.startswith("reading-")] == []
