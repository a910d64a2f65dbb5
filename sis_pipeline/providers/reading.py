"""Reading everything a plan lists, page by page into a sink, going on behind what an interrupted reading had kept, and
saying per collection whether it is proven complete. How pages are walked is `pagers`' business, where they are kept the
sink's, several collections at once `crew`'s; what an absence then means the guard's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from structlog.contextvars import bind_contextvars, bound_contextvars

from sis_pipeline.connect.errors import ContractError, SisError, source_status
from sis_pipeline.providers.base import Answer, End, Page, Plan, Record, Resource, Send
from sis_pipeline.providers.crew import HandOver, together
from sis_pipeline.providers.decoding import identity_of, json_body, shape
from sis_pipeline.providers.pagers import total_count
from sis_pipeline.providers.resuming import Kept, KeptOf, ResumingDoor, StartOver
from sis_pipeline.roster.school_year import SchoolYear

__all__ = [
    "ATTEMPTS", "Kept", "KeptOf", "MemorySnapshot", "OnPage", "Reading", "Sink", "count_in", "read", "verdict",
]  # fmt: skip

Sink = Callable[[Resource, Page], None]
"""Keeps a page. Page number 1 of a resource it already has starts that resource over: drop what was kept of it, unless
the page says that it is `kept`."""

OnPage = Callable[[str, int, int, int | None], None]
"""(resource, page number, rows so far, rows expected), for progress."""

DecodeOf = Callable[[str, bytes], Sequence[Record]]
"""(resource, body) -> records: `Provider.decode`."""

ATTEMPTS = 3
"""Readings of one resource before a list that moves under our feet is taken as it is, and called partial."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What came of one resource. `complete` only by proof; `reason` says in words what proved it or what is missing.

    `distinct` and `duplicates` count records by their id, records without one as distinct. `total_before` and
    `total_after` are the source's own counts. `hollow_pages` held nothing although others followed. `kept` counts the
    pages taken over from an interrupted reading, `restarted` says why they were not. `attempts` is how often the
    resource was read; all else is about the last attempt. `skipped` is the HTTP status of a resource that is not
    offered to us.
    """

    resource: str
    pages: int = 0
    rows: int = 0
    distinct: int = 0
    duplicates: int = 0
    total_before: int | None = None
    total_after: int | None = None
    end: End = End.UNPROVEN
    repeated_pages: int = 0
    hollow_pages: int = 0
    kept: int = 0
    restarted: str = ""
    skipped: int | None = None
    attempts: int = 1
    complete: bool = False
    reason: str = ""


def read(
    plan: Plan,
    send: Send,
    decode: DecodeOf,
    sink: Sink,
    on_page: OnPage | None = None,
    *,
    kept: KeptOf | None = None,
    say: Callable[[str], object] | None = None,
    others: Sequence[Send] = (),
) -> list[Reading]:
    """Read every resource of a plan; the readings are in its order. `decode` is the provider's.

    A resource whose count moved, that repeats a page or that shows another sign of having moved is read again, up to
    two more times. `kept` gives the pages that an interrupted reading left: as far as the pager allows, a resource goes
    on behind them, else it starts anew and `say` is told why. `others` are further doors to the same source: with them
    that many more resources are read at once, while `sink`, `on_page` and `say` are called by the caller's thread only.
    Raises what `send` and `decode` raise, except the statuses that a resource calls optional.
    """
    reader = _Reader(send, decode, sink, on_page, kept, say or _unheard)
    if not others:
        return [reader.read(resource) for resource in plan.resources]
    return together([send, *others], [partial(reader.read_apart, resource) for resource in plan.resources])


def _unheard(_line: str) -> None:
    """Nobody listens."""


def verdict(readings: Iterable[Reading]) -> Literal["complete", "partial"]:
    """`complete` only if every resource is; nothing else may imply that a missing record is gone."""
    return "complete" if all(reading.complete for reading in readings) else "partial"


@dataclass(slots=True)
class _Tally:
    """What one reading of a resource has seen so far. Ids are kept with the page they came on: an id twice on one page
    is the source's own duplicate, an id on two pages means that the list moved while it was read."""

    identity: tuple[str, ...]
    pages: int = 0
    rows: int = 0
    across: int = 0
    repeated: int = 0
    hollow: int = 0
    kept: int = 0
    torn: int = 0
    end: End = End.UNPROVEN
    first_total: int | None = None
    last_total: int | None = None
    unidentified: int = 0
    seen: dict[Any, int] = field(default_factory=dict)
    last: Record | None = None

    def take(self, page: Page) -> None:
        self.pages += 1
        self.rows += len(page.records)
        self.repeated += page.repeated
        self.hollow += page.hollow
        self.kept += page.kept
        self.end = page.end or End.UNPROVEN
        self.first_total = page.total if self.first_total is None else self.first_total
        self.last_total = self.last_total if page.total is None else page.total
        self.torn += page.known is not None and not self._continues(page.known)
        for record in page.records:
            key = identity_of(record, self.identity)
            if key is None:
                self.unidentified += 1
            elif self.seen.setdefault(key, page.number) != page.number:
                self.across += 1
        self.last = page.records[-1] if page.records else self.last

    def _continues(self, known: Sequence[Record]) -> bool:
        """Whether a page begins with the record that was the last so far. If it does not, then what came or went moved
        all behind it, and a record may have slipped between the two pages."""
        if len(known) != 1 or self.last is None:
            return False
        key = identity_of(known[0], self.identity)
        return known[0] == self.last if key is None else key == identity_of(self.last, self.identity)

    @property
    def distinct(self) -> int:
        return len(self.seen) + self.unidentified


@dataclass(frozen=True, slots=True)
class _Reader:
    """What one sync reads with."""

    send: Send
    decode: DecodeOf
    sink: Sink
    on_page: OnPage | None
    kept: KeptOf | None
    say: Callable[[str], object]

    def read(self, resource: Resource) -> Reading:
        resumes = self.kept is not None and resource.pager.resumes != "never"
        reading, again = self._attempt(resource, self.kept(resource.name) if self.kept and resumes else ())
        restarted = reading.restarted
        while again and reading.attempts < ATTEMPTS:
            attempts = reading.attempts + 1
            reading, again = self._attempt(replace(resource, optional=frozenset()))  # it was there a moment ago
            reading = replace(reading, attempts=attempts, restarted=restarted)
        return reading

    def read_apart(self, resource: Resource, send: Send, hand_over: HandOver) -> Reading:
        """`read` in another thread, with a door of its own; what others would notice is left to the first thread."""
        on_page = self.on_page
        apart = replace(
            self,
            send=send,
            sink=lambda *page: hand_over(lambda: self.sink(*page)),
            on_page=None if on_page is None else lambda *facts: hand_over(lambda: on_page(*facts)),
            say=lambda line: hand_over(lambda: self.say(line)),
        )
        return apart.read(resource)

    def _attempt(self, resource: Resource, kept: Sequence[Kept] = ()) -> tuple[Reading, bool]:
        """One reading from the first page on, and whether another might come out better. `kept`: the first pages, as
        an interrupted reading left them."""
        tally = _Tally(resource.identity)
        door = ResumingDoor(resource, kept, self.send, self.decode)
        try:
            with bound_contextvars(entity=resource.name, page=1):
                before = self._walk(resource, tally, door)
        except StartOver as why:
            self.say(f"{resource.name}: read anew, because {why}.")
            return Reading(resource.name, restarted=str(why)), True
        except SisError as error:
            status = source_status(error)
            if tally.pages or status is None or status not in resource.optional:
                error.at(resource.name, tally.pages + 1)
                raise
            return _skipped(resource, status), False
        after = before
        if resource.count is not None and tally.pages > 1:
            after = count_in(self.send(resource.count))
        return _judged(resource, tally, _first(before, tally.first_total), _first(after, tally.last_total))

    def _walk(self, resource: Resource, tally: _Tally, door: ResumingDoor) -> int | None:
        """Walk the pages into the sink. The source's count is asked for once the first page turns out not to be the
        last, and ends the walk when reached; returns it, or None if it was not needed."""
        count: int | None = None
        for page in resource.pager.pages(door.send, resource.request, lambda body: self.decode(resource.name, body)):
            if page.number == 1 and page.end is None and resource.count is not None:
                count = count_in(self.send(resource.count))
            reached = count is not None and tally.rows + len(page.records) >= count
            counted = replace(page, total=_first(page.total, count))
            taken = door.marked(replace(counted, end=End.TOTAL) if page.end is None and reached else counted)
            tally.take(taken)
            self.sink(resource, taken)
            if self.on_page is not None:
                self.on_page(resource.name, page.number, tally.rows, _first(count, page.total, resource.expected_rows))
            if taken.end is not None:
                break
            bind_contextvars(page=page.number + 1)
        return count


def _judged(resource: Resource, tally: _Tally, before: int | None, after: int | None) -> tuple[Reading, bool]:
    reason, again = _shortfall(resource, tally, before, after)
    reading = Reading(
        resource=resource.name,
        pages=tally.pages,
        rows=tally.rows,
        distinct=tally.distinct,
        duplicates=tally.rows - tally.distinct,
        total_before=before,
        total_after=after,
        end=tally.end,
        repeated_pages=tally.repeated,
        hollow_pages=tally.hollow,
        kept=tally.kept,
        complete=not reason,
        reason=reason or _proof(tally, after),
    )
    return reading, again


def _skipped(resource: Resource, status: int) -> Reading:
    """Not offered to us. That is no gap, unless it was offered before: then everything it held would seem gone."""
    expected = resource.expected_rows or 0
    reason = f"not offered to us (HTTP {status})"
    if expected:
        reason += f", although it gave {expected} rows before; {_if_gone(resource)}"
    return Reading(resource.name, skipped=status, complete=not expected, reason=reason)


def _if_gone(resource: Resource) -> str:
    """How a person says that it is meant to be so."""
    return f'if that is right, set gone to ["{resource.name}"]'


def _shortfall(resource: Resource, tally: _Tally, before: int | None, after: int | None) -> tuple[str, bool]:
    """What keeps a reading from being proven complete, empty if nothing does, and whether reading again may help."""
    missing = after is not None and tally.rows != after
    vanished = after is None and not tally.rows and resource.expected_rows
    findings = (
        (tally.repeated, f"page {tally.pages} repeated an earlier page", True),
        (tally.end is End.UNPROVEN, f"reading stopped after {tally.pages} pages without a proven end", False),
        (tally.hollow, f"{tally.hollow} pages held nothing although others followed", True),
        (before != after, f"the source counted {before} rows before and {after} after", True),
        (
            tally.torn,
            f"{tally.torn} pages did not begin where the one before ended: the list moved while it was read",
            True,
        ),
        (tally.across, f"{tally.across} records came on two pages: the list moved while it was read", True),
        (missing, f"the source counts {after} rows, but {tally.rows} came", True),
        (
            vanished,
            f"nothing came, although there were {resource.expected_rows} rows before; {_if_gone(resource)}",
            True,
        ),
    )
    return next(((reason, again) for found, reason, again in findings if found), ("", False))


_PROOFS = {
    End.SHORT_PAGE: "the last page was shorter than the source's page size",
    End.EMPTY_PAGE: "nothing came behind the last row",
    End.TOTAL: "all rows of the source's count came",
    End.LAST_LINK: "the source named no further page",
    End.WHOLE_FILE: "it was read whole",
}


def _proof(tally: _Tally, total: int | None) -> str:
    """Why a reading counts as complete."""
    counted = "" if total is None or tally.end is End.TOTAL else f"; all {total} rows of the source's count came"
    return _PROOFS[tally.end] + counted


def count_in(answer: Answer) -> int:
    """The source's own count: `{"count": 293}`, the same inside one object, or an X-Total-Count header.

    Raises ContractError for anything else.
    """
    total = total_count(answer.headers)
    if total is not None:
        return total
    document = json_body(answer.body, "The count")
    inner = document if isinstance(document, dict) and "count" in document else _only(document)
    said = inner.get("count") if isinstance(inner, dict) else None
    if str(said).isdecimal():
        return int(str(said))
    raise ContractError(f"The count holds no number: it is {shape(document)}.", code="contract.no_count")


def _only(document: Any) -> Any:
    """What a wrapper with one member wraps."""
    return next(iter(document.values())) if isinstance(document, dict) and len(document) == 1 else None


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


class MemorySnapshot:
    """Raw pages in memory, as a sink and as what `standardise` reads: for previews, tests and plugin authors."""

    def __init__(self, school_year: SchoolYear) -> None:
        self.school_year = school_year
        self._pages: dict[str, list[tuple[Mapping[str, str], bytes]]] = {}

    def __call__(self, resource: Resource, page: Page) -> None:
        if page.number == 1:
            self._pages[resource.name] = []
        self.add(resource.name, page.body, **resource.about)

    def add(self, resource: str, body: bytes, **about: str) -> None:
        """Append one recorded page."""
        self._pages.setdefault(resource, []).append((about, body))

    @property
    def resources(self) -> list[str]:
        return list(self._pages)

    def bodies(self, resource: str) -> Iterator[tuple[Mapping[str, str], bytes]]:
        yield from self._pages.get(resource, [])
