"""Lists that move or lie while they are read: every id exactly once, or the reading is not called complete."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from sis_pipeline.connect.contract import Answer, Request
from sis_pipeline.connect.errors import ContractError
from sis_pipeline.providers.base import Page, Pager, Plan, Record, Resource
from sis_pipeline.providers.decoding import json_body, member, records
from sis_pipeline.providers.pagers import CursorPager, NextPathPager, OffsetPager, PageNumberPager
from sis_pipeline.providers.reading import Reading, read
from sis_pipeline_tests.faults.rows import Count, Recorder, Row

ROW = Row(
    5,
    "an empty page in the middle, a page twice, a shifted page (insert or delete while paging), a repeating next "
    "link, a loop, a missing or wrong total",
    "every id exactly once, or the reading is not complete; never a silent loss",
    2_000,
    "interleavings",
)

COUNT = Request("/count")
DIALECTS = ("offset", "offset with totals", "offset with links", "page number", "cursor", "path")
LIES = ("empty page", "page twice", "earlier page", "same link", "loop", "no total", "wrong total")
MOVES = ("insert", "delete")


@dataclass
class List:
    """A collection sorted by id that answers as one dialect does. `events` maps a call number to what goes wrong or moves
    at that call; each is counted in `happened` when it changed an answer or the list."""

    dialect: str
    ids: list[int]
    size: int
    counted: bool
    events: dict[int, str]
    chance: random.Random
    calls: int = 0
    happened: Counter[str] = field(default_factory=Counter)
    earlier: Answer | None = None
    present: set[int] = field(default_factory=set)
    """Ids that were there during all of the current reading."""
    ever: set[int] = field(default_factory=set)
    """Ids that were there at any time of it."""

    def send(self, request: Request) -> Answer:
        self.calls += 1
        event = self.events.get(self.calls, "")
        if request is COUNT:
            return self._count(event)
        offset = self._offset(request)
        if offset == 0:
            self.present, self.ever = set(self.ids), set(self.ids)
        if event in MOVES and offset > 0:
            self._move(event)
        answer = self._lie(event, self._page(offset), offset)
        self.earlier = answer
        return answer

    def _count(self, event: str) -> Answer:
        total = len(self.ids)
        if event == "wrong total":
            total = self._wrong()
            self.happened[event] += 1
        return Answer(200, {}, json.dumps({"count": total}).encode())

    def _wrong(self) -> int:
        """Not the truth, and not the end of an earlier page either: a total that is exactly that can't be told from the
        truth by any reader, and is what the guard over removals is for."""
        near = (len(self.ids) + by for by in self.chance.sample([-3, -1, 1, 5], 4))
        return next((total for total in near if total > len(self.ids) or (total > 0 and total % self.size)), 10**6)

    def _move(self, event: str) -> None:
        if event == "insert":
            new = self.chance.randrange(10**6)
            if new not in self.ids:
                self.ids = sorted([*self.ids, new])
                self.ever.add(new)
                self.happened[event] += 1
        elif self.ids:
            gone = self.chance.choice(self.ids)
            self.ids.remove(gone)
            self.present.discard(gone)
            self.happened[event] += 1

    def _offset(self, request: Request) -> int:
        if self.dialect.startswith("offset"):
            return int(str(request.params["offset"]))
        if self.dialect == "page number":
            return (int(str(request.params["page"])) - 1) * self.size
        if self.dialect == "cursor":
            return int(str(request.params["paging.cursor"] or 0))
        return (int(request.path.split("/")[-2]) - 1) * self.size

    def _page(self, offset: int) -> Answer:
        rows = [{"id": one} for one in self.ids[offset : offset + self.size]]
        end = offset + len(rows)
        more = end < len(self.ids)
        headers: dict[str, str] = {}
        following = ""
        if self.dialect == "offset with totals":
            headers["x-total-count"] = str(len(self.ids))
        if self.dialect == "offset with links" and more:
            headers["link"] = f'<https://sis.example.org/rows?limit={self.size}&offset={end}>; rel="next"'
        if self.dialect == "cursor" and more:
            headers["link"] = f'<https://sis.example.org/rows?cursor={end}>; rel="next"'
        if self.dialect == "path" and more:
            following = f"/Generic/1/Student/{offset // self.size + 2}/{self.size}"
        return Answer(200, headers, json.dumps({"rows": rows, "Paging": {"Next": following}}).encode())

    def _lie(self, event: str, answer: Answer, offset: int) -> Answer:
        told = self._lied(event, answer, offset)
        if told is not answer:
            self.happened[event] += 1
        return told

    def _lied(self, event: str, answer: Answer, offset: int) -> Answer:
        if event in {"no total", "wrong total"}:
            return self._miscounted(event, answer)
        if event in {"same link", "loop"}:
            return self._misled(event, answer)
        content = json.loads(answer.body)
        if event == "empty page" and content["rows"]:
            return replace(answer, body=json.dumps(content | {"rows": []}).encode())
        if event in {"page twice", "earlier page"} and self.earlier is not None and offset:
            before = json.loads(self.earlier.body)["rows"]
            if before and before != content["rows"]:
                body = json.dumps(content | {"rows": before}).encode()
                return self.earlier if event == "page twice" else replace(answer, body=body)
        return answer

    def _miscounted(self, event: str, answer: Answer) -> Answer:
        if "x-total-count" not in answer.headers:
            return answer
        return replace(answer, headers={} if event == "no total" else {"x-total-count": str(self._wrong())})

    def _misled(self, event: str, answer: Answer) -> Answer:
        content = json.loads(answer.body)
        if "link" in answer.headers:
            place = 0 if event == "loop" else self.chance.choice([0, self.size])
            link = f'<https://sis.example.org/rows?limit={self.size}&offset={place}&cursor={place}>; rel="next"'
            return replace(answer, headers={**answer.headers, "link": link})
        if content["Paging"]["Next"]:
            content["Paging"]["Next"] = f"/Generic/1/Student/1/{self.size}"
            return replace(answer, body=json.dumps(content).encode())
        return answer


def decode(body: bytes) -> list[Record]:
    return records(member(json_body(body, "the page"), ("rows",), "the page"), "the page")


def pager_of(dialect: str, size: int, *, proven: bool) -> Pager:
    if dialect == "page number":
        return PageNumberPager(size, maximum=size if proven else None)
    if dialect == "cursor":
        return CursorPager(size)
    if dialect == "path":
        return NextPathPager(size)
    return OffsetPager(size, maximum=size if proven else None, totals=dialect == "offset with totals")


@dataclass
class Kept:
    """The pages that were kept: those of the last attempt at each resource."""

    pages: list[Page] = field(default_factory=list)

    def __call__(self, _resource: Resource, page: Page) -> None:
        if page.number == 1:
            self.pages.clear()
        self.pages.append(page)

    @property
    def ids(self) -> Counter[Any]:
        return Counter(record["id"] for page in self.pages for record in page.records)


def read_list(source: List, pager: Pager, expected: int | None) -> tuple[Reading | None, Kept]:
    """Read it; None where its answers contradict the contract, which fails the run and keeps nothing."""
    kept = Kept()
    path = "/Generic/1/Student/1/" + str(source.size) if source.dialect == "path" else "/rows"
    count = COUNT if source.counted else None
    resource = Resource("rows", Request(path, {"sort": "id"}), pager, ("id",), expected_rows=expected, count=count)
    plan = Plan((resource,), basis="first_read")
    try:
        (reading,) = read(plan, source.send, lambda _name, body: decode(body), kept)
    except ContractError:
        return None, kept
    return reading, kept


def interleaved(
    chance: random.Random, dialect: str, events: Callable[[random.Random], list[str]]
) -> tuple[List, Pager, int | None]:
    size = chance.randint(1, 7)
    ids = sorted(chance.sample(range(10**6), chance.randint(0, 40)))
    pages = len(ids) // size + 3
    at = {chance.randint(1, pages + 2): event for event in events(chance)}
    source = List(dialect, ids, size, dialect == "page number" or chance.random() < 0.3, at, chance)
    return source, pager_of(dialect, size, proven=chance.random() < 0.5), chance.choice([None, len(ids)])


def judge(source: List, reading: Reading | None, kept: Kept, expected: int | None) -> Counter[str]:
    """How many ids a reading that calls itself complete lost, or invented. A first reading in which nothing came at all
    has nothing to lose: there is no earlier one that its absences could end."""
    if reading is None or not reading.complete or (not reading.rows and expected is None):
        return Counter()
    lost = source.present - set(kept.ids)
    invented = set(kept.ids) - source.ever
    return +Counter(lost=len(lost), invented=len(invented))


def inserts(chance: random.Random) -> list[str]:
    return ["insert"] * chance.randint(1, 3)


def deletes(chance: random.Random) -> list[str]:
    return ["delete"] * chance.randint(1, 3)


def both(chance: random.Random) -> list[str]:
    """The total is the same before and after."""
    return ["insert", "delete"]


def lies(chance: random.Random) -> list[str]:
    """Empty pages, repeated pages, circles and wrong totals; in half of the cases a row comes as well."""
    return [chance.choice(LIES) for _ in range(chance.randint(1, 2))] + chance.choices(["insert", ""], k=1)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("events", [inserts, lies])
def test_nothing_is_lost(
    dialect: str, events: Callable[[random.Random], list[str]], count: Count, chance: random.Random, row: Recorder
) -> None:
    cases, complete = count(full=130, part=50), 0
    for number in range(cases):
        source, pager, expected = interleaved(chance, dialect, events)
        reading, kept = read_list(source, pager, expected)
        said = f"case {number}: {source.events}, pages of {source.size}, counted: {source.counted}, {reading}"
        assert not judge(source, reading, kept, expected), said
        complete += reading is not None and reading.complete
        row.happened(source.happened.total())
        row.ran()
    assert complete, "if nothing ever is complete, nothing is shown"


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("events", [deletes, both])
def test_deletions_while_a_list_is_read(
    dialect: str, events: Callable[[random.Random], list[str]], count: Count, chance: random.Random, row: Recorder
) -> None:
    """Pages asked for by offset overlap where they have more than one row, and nothing is lost. In the other dialects
    nothing is lost with a count of the source. Without one, or where as many rows came as went, a deletion moves a row
    over a page's edge unseen; then no more rows are lost than were deleted meanwhile."""
    cases, complete, lost = count(full=130, part=50), 0, 0
    for number in range(cases):
        source, pager, expected = interleaved(chance, dialect, events)
        reading, kept = read_list(source, pager, expected)
        trouble = judge(source, reading, kept, expected)
        overlaps = dialect.startswith("offset") and source.size > 1
        counted = events is deletes and (source.counted or dialect == "offset with totals")
        said = f"case {number}: {source.events}, pages of {source.size}, {reading}"
        assert trouble["invented"] == 0, said
        assert trouble["lost"] <= (0 if overlaps or counted else source.happened["delete"]), said
        complete += reading is not None and reading.complete
        lost += trouble["lost"]
        row.happened(source.happened.total())
        row.ran()
    assert complete
    if lost:
        row.note(
            f"{dialect}, {'a row came and a row went' if events is both else 'rows went'} while the list was read: {lost} "
            f"rows in {cases} readings were missed although the reading was complete; "
            + ("the total was the same" if events is both else "only where the source gives no count")
        )
