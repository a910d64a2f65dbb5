"""Walking the pages of one collection in each paging dialect, and proving the end or saying that it was not proven.
Nothing here knows a vendor, stores a page or decides whether a snapshot is complete; see `reading` for the last."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from sis_pipeline.connect.errors import ContractError, SisError, source_status
from sis_pipeline.providers.base import (
    Answer,
    Decode,
    End,
    Origin,
    Page,
    Pager,
    Record,
    Request,
    Send,
    fingerprint,
)
from sis_pipeline.providers.decoding import Json, json_body

__all__ = [
    "PAGE_CAP", "CursorPager", "HeldPages", "NextPathPager", "OffsetPager", "PageNumberPager", "SinglePage",
    "next_link", "total_count",
]  # fmt: skip

PAGE_CAP = 20_000
"""Pages after which a reading stops unproven: a source that never ends must not be read for ever."""

PAGING_HEADERS = frozenset({"link", "x-total-count", "date"})
"""The headers of an answer that are kept with its page: where the next one is, how many there are, and as of when."""

_LINK = re.compile(r"""<?\s*([^\s<>]+?)\s*>?\s*((?:;\s*[\w*-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s;,"']*)\s*)+)""")
_NEXT = re.compile(r""";\s*rel\s*=\s*["']?\s*next\s*["']?\s*(?:;|$)""", re.IGNORECASE)


def next_link(header: str | None) -> dict[str, str] | None:
    """The query parameters of the `rel=next` target of a Link header (RFC 8288), or None.

    Only the parameters: the address itself is never followed, so that no link can lead to another origin. Read
    leniently, because servers write links without angle brackets, relative, without a scheme, with a trailing comma
    or with `?&`.
    """
    for target, attributes in _LINK.findall(header or ""):
        if _NEXT.search(attributes.strip()):
            return dict(parse_qsl(urlsplit(target.lstrip(",")).query, keep_blank_values=True))
    return None


def total_count(headers: Mapping[str, str]) -> int | None:
    """`X-Total-Count`, where it is a number."""
    text = headers.get("x-total-count", "").strip()
    return int(text) if text.isdecimal() else None


@dataclass(frozen=True, slots=True)
class _Got:
    """One answer, decoded."""

    request: Request
    headers: Mapping[str, str]
    body: bytes
    records: Sequence[Record]
    digest: bytes

    @property
    def rows(self) -> int:
        return len(self.records)

    @property
    def origin(self) -> Origin:
        kept = {name: value for name, value in self.headers.items() if name in PAGING_HEADERS}
        return Origin(fingerprint(self.request), kept)


class _Position(ABC):
    """Where a walk stands: the request to send next, and what has been learnt. One per walk, so pagers stay stateless."""

    request: Request
    total: int | None = None
    overlap: int = 0
    """How many records of the next page are known: those it begins with."""

    @abstractmethod
    def learn(self, got: _Got) -> End | None:
        """Take in a page: None if `request` now asks for the next one, else why there is none."""

    def doubts(self, got: _Got) -> bool:  # noqa: ARG002
        """Whether an answer contradicts what is known, and is asked for once more before it is believed."""
        return False

    def step_aside(self, answer: _Got | SisError) -> bool:  # noqa: ARG002
        """Ask for the next page in another way, where `answer` shows that the source can't be asked in this one."""
        return False

    def leap(self, got: _Got) -> bool:  # noqa: ARG002
        """Ask next where the source says that it goes on, although nothing new came; False where it says nothing."""
        return False


@dataclass(frozen=True, kw_only=True)
class _Walker(Pager):
    """The loop all dialects share: cap on pages, repeated pages found by the hash of their body."""

    page_cap: int = PAGE_CAP

    @property
    def resumes(self) -> Literal["same_token", "any_token"]:
        return "any_token"

    @abstractmethod
    def begin(self, request: Request) -> _Position: ...

    def pages(self, send: Send, request: Request, decode: Decode) -> Iterator[Page]:
        position = self.begin(request)
        seen: set[bytes] = set()
        for number in range(1, self.page_cap + 1):
            got, repeated = self._fetch(send, decode, position, seen)
            overlap = position.overlap
            end = End.UNPROVEN if repeated else position.learn(got)
            if end is End.EMPTY_PAGE and position.leap(got) and self._answers(send, decode, position.request):
                end = None
            known = got.records[:overlap] if overlap else None
            records = got.records[overlap:]
            hollow = end is None and not records
            if end is None and number == self.page_cap:
                end = End.UNPROVEN
            yield Page(number, got.body, records, position.total, end, repeated, hollow, got.origin, known=known)
            if end is not None:
                return
            seen.add(got.digest)

    def _answers(self, send: Send, decode: Decode, request: Request) -> bool:
        """Whether there are rows at a place behind an end; servers that name a next page behind every page may refuse
        to be asked for it."""
        try:
            return _got(request, send, decode).rows > 0
        except SisError as error:
            if source_status(error) in REFUSED_OFFSET:
                return False
            raise

    def _fetch(self, send: Send, decode: Decode, position: _Position, seen: set[bytes]) -> tuple[_Got, bool]:
        """The next answer and whether it repeats an earlier one; a doubtful answer is asked for once more."""
        try:
            got = _got(position.request, send, decode)
            if _repeats(got, seen) or position.doubts(got):
                got = _got(position.request, send, decode)
        except SisError as error:
            if position.step_aside(error):
                return self._fetch(send, decode, position, seen)
            raise
        if position.step_aside(got):
            return self._fetch(send, decode, position, seen)
        return got, _repeats(got, seen)


def _got(request: Request, send: Send, decode: Decode) -> _Got:
    answer: Answer = send(request)
    records = decode(answer.body)
    return _Got(request, answer.headers, answer.body, records, hashlib.blake2b(answer.body, digest_size=16).digest())


def _repeats(got: _Got, seen: set[bytes]) -> bool:
    return got.rows > 0 and got.digest in seen


def _with(request: Request, **params: str) -> Request:
    return replace(request, params={**request.params, **params})


@dataclass(frozen=True)
class SinglePage(Pager):
    """A collection that comes in one answer (or one file)."""

    end: End = End.WHOLE_FILE

    @property
    def resumes(self) -> Literal["any_token"]:
        return "any_token"

    def pages(self, send: Send, request: Request, decode: Decode) -> Iterator[Page]:
        got = _got(request, send, decode)
        yield Page(1, got.body, got.records, total_count(got.headers), self.end, origin=got.origin)

    def calls_for(self, rows: int) -> int:  # noqa: ARG002
        return 1


@dataclass(frozen=True)
class HeldPages(Pager):
    """Pages that were read while planning: they are kept like all others and cost no further call."""

    held: tuple[Page, ...]

    def pages(self, send: Send, request: Request, decode: Decode) -> Iterator[Page]:  # noqa: ARG002
        yield from self.held

    def calls_for(self, rows: int) -> int:  # noqa: ARG002
        return 0


REFUSED_OFFSET = frozenset({400, 416, 422})
"""How a server answers for an offset that it does not take."""


@dataclass(frozen=True)
class OffsetPager(_Walker):
    """`limit` and `offset`, advancing by the rows received, because servers clamp `limit` without saying so.

    Each page is asked for from the last row of the one before on: a row that was deleted meanwhile moves all behind it
    over the pages' edge, and only that known row shows it, whatever the source counts. A server that takes no offset
    inside a page (it refuses, or rounds down) is seen at the second page, and then asked without that proof.

    `X-Total-Count` ends the walk when reached; a next link only speaks against an end: nothing new is one where nothing
    comes behind the link either. Where there is neither, a page shorter than the page size the server has shown (or than
    `limit`, where `maximum` proves that `limit` is not clamped) is the last; a first page that is short is confirmed by
    one more call.

    `maximum` is the page size the server is known to allow. `totals` says the source sends totals; it only makes
    `calls_for` exact.
    """

    limit: int
    maximum: int | None = None
    totals: bool = False
    limit_param: str = "limit"
    offset_param: str = "offset"

    def begin(self, request: Request) -> _Position:
        return _Offset(self, request)

    def calls_for(self, rows: int) -> int:
        """Exact for a source that neither clamps nor moves while it is read."""
        step = max(1, self.limit - 1)  # pages of one row can't overlap
        behind = rows - self.limit
        if self.totals:
            return 1 + max(0, -(-behind // step))
        if behind < 0:
            return 1 if self.proven or not rows else 2
        return 2 + behind // step + (self.limit == 1)

    @property
    def proven(self) -> bool:
        """Whether the server is known to give `limit` rows if it has them."""
        return self.maximum is not None and self.limit <= self.maximum


class _Offset(_Position):
    def __init__(self, pager: OffsetPager, request: Request) -> None:
        self.pager = pager
        self.offset = 0
        self.size = pager.limit if pager.proven else 0
        """The page size the server is known to give; 0 until it has shown one."""
        self.full = False
        self.more = False
        self.overlaps = True
        self.first: Sequence[Record] = ()
        """What the first page begins with, while the second is asked for."""
        self.request = _with(request, **{pager.limit_param: str(pager.limit), pager.offset_param: "0"})

    def doubts(self, got: _Got) -> bool:
        if got.rows > self.overlap:
            return self._rounded(got)
        total = total_count(got.headers) if self.total is None else self.total
        if got.rows < self.overlap:
            return True
        if total is not None:
            return self.offset < total
        return self.more or self._leads_on(got) or (self.full and not self.overlap)

    def leap(self, got: _Got) -> bool:
        if self.total is not None or not self._leads_on(got):
            return False
        self.offset, self.overlap = self._next_offset(got), 0
        self.request = _with(self.request, **{self.pager.offset_param: str(self.offset)})
        return True

    def _leads_on(self, got: _Got) -> bool:
        return self._next_offset(got) > self.offset

    def step_aside(self, answer: _Got | SisError) -> bool:
        if isinstance(answer, SisError):
            aside = bool(self.overlap and self.first) and source_status(answer) in REFUSED_OFFSET
        else:
            aside = self._rounded(answer)
        if aside:
            self.overlaps = False
            self._ask()
        return aside

    def _rounded(self, got: _Got) -> bool:
        """Whether the second page is the first one again: the server takes offsets in whole pages only."""
        return bool(self.overlap and self.first) and got.records[:1] == self.first

    def learn(self, got: _Got) -> End | None:
        self.total = _first(total_count(got.headers), self.total)
        new = max(0, got.rows - self.overlap)
        self.first = () if self.offset else got.records[:1]
        self.offset += new
        self.more = self._next_offset(got) >= self.offset > 0
        end = self._end(new, got.rows)
        self.size = max(self.size, got.rows)
        self.full = got.rows >= self.pager.limit
        self._ask()
        return end

    def _ask(self) -> None:
        """For the next page; from the row on that is known, where that leaves room for others."""
        self.overlap = int(self.overlaps and self.offset > 0 and self.size > 1)
        self.request = _with(self.request, **{self.pager.offset_param: str(self.offset - self.overlap)})

    def _end(self, new: int, rows: int) -> End | None:
        if not new:
            return End.EMPTY_PAGE
        if self.more:
            return None
        if self.total is not None:
            return End.TOTAL if self.offset >= self.total else None
        return End.SHORT_PAGE if rows < self.size else None

    def _next_offset(self, got: _Got) -> int:
        """Where the next link points; -1 without one. A link to where we are, or before, says nothing."""
        offset = (next_link(got.headers.get("link")) or {}).get(self.pager.offset_param, "")
        return int(offset) if offset.isdecimal() else -1


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


@dataclass(frozen=True)
class PageNumberPager(_Walker):
    """`page` (from 1) and `pagesize`. A page shorter than `size` is the last where `maximum` proves that the server
    allows `size`; otherwise where an earlier page was longer; otherwise one more page confirms it.

    Sources that page so give no total in their answers; a count known otherwise ends the reading, see `reading`.
    """

    size: int
    maximum: int | None = None
    page_param: str = "page"
    size_param: str = "pagesize"
    first_page: int = 1

    def begin(self, request: Request) -> _Position:
        return _PageNumber(self, request)

    def calls_for(self, rows: int) -> int:
        """Exact for a source that neither clamps nor moves, without the page that a known count saves."""
        full, rest = divmod(rows, self.size)
        if not rows or (rest and (full or self.proven)):
            return full + 1
        return full + 2

    @property
    def proven(self) -> bool:
        """Whether the server is known to give `size` rows if it has them."""
        return self.maximum is not None and self.size <= self.maximum


class _PageNumber(_Position):
    def __init__(self, pager: PageNumberPager, request: Request) -> None:
        self.pager = pager
        self.page = pager.first_page
        self.size = pager.size if pager.proven else 0
        self.full = False
        self.request = _with(request, **{pager.size_param: str(pager.size), pager.page_param: str(self.page)})

    def doubts(self, got: _Got) -> bool:
        return not got.rows and self.full

    def learn(self, got: _Got) -> End | None:
        self.page += 1
        self.request = _with(self.request, **{self.pager.page_param: str(self.page)})
        self.full = got.rows >= self.pager.size
        size, self.size = self.size, max(self.size, got.rows)
        if not got.rows:
            return End.EMPTY_PAGE
        return End.SHORT_PAGE if got.rows < size else None


@dataclass(frozen=True)
class CursorPager(_Walker):
    """A cursor, found in the next link under any of `link_names` and sent back as `cursor_param`; no link is the end.

    A page as long as asked for without any link so far proves nothing: something may strip the header. A cursor that
    was already used leads in a circle.
    """

    limit: int
    limit_param: str = "paging.limit"
    cursor_param: str = "paging.cursor"
    link_names: tuple[str, ...] = ("cursor", "paging.cursor")

    @property
    def resumes(self) -> Literal["same_token"]:
        return "same_token"

    def begin(self, request: Request) -> _Position:
        return _Cursor(self, request)

    def calls_for(self, rows: int) -> int:
        return max(1, -(-rows // self.limit))


class _Cursor(_Position):
    def __init__(self, pager: CursorPager, request: Request) -> None:
        self.pager = pager
        self.visited = {""}
        self.linked = False
        self.request = _with(request, **{pager.limit_param: str(pager.limit), pager.cursor_param: ""})

    def doubts(self, got: _Got) -> bool:
        return not got.rows and (self.linked or self._next(got) is not None)

    def _next(self, got: _Got) -> str | None:
        link = next_link(got.headers.get("link")) or {}
        return next((link[name] for name in self.pager.link_names if link.get(name)), None)

    def learn(self, got: _Got) -> End | None:
        cursor = self._next(got)
        if cursor is None:
            return End.LAST_LINK if self.linked or got.rows < self.pager.limit else End.UNPROVEN
        if cursor in self.visited:
            return End.UNPROVEN
        self.linked = True
        self.visited.add(cursor)
        self.request = _with(self.request, **{self.pager.cursor_param: cursor})
        return None


@dataclass(frozen=True)
class NextPathPager(_Walker):
    """The body names the path of the next page (`Paging.Next`); missing, empty or equal to the current one is the end.

    Only the last `moving` segments of the path (page and page size) are taken from the answer; the rest stays ours,
    so that no answer can lead elsewhere. A path that is not a sibling of the current one raises ContractError.
    A full first page without any `Next` proves nothing.
    """

    size: int
    next_path: tuple[str, ...] = ("Paging", "Next")
    moving: int = 2

    def begin(self, request: Request) -> _Position:
        return _NextPath(self, request)

    def calls_for(self, rows: int) -> int:
        return max(1, -(-rows // self.size))


class _NextPath(_Position):
    def __init__(self, pager: NextPathPager, request: Request) -> None:
        self.pager = pager
        self.request = request
        self.visited = {request.path}
        self.linked = False

    def doubts(self, got: _Got) -> bool:
        return not got.rows and (self.linked or self._following(got.body) not in {None, self.request.path})

    def learn(self, got: _Got) -> End | None:
        following = self._following(got.body)
        if following is None or following == self.request.path:
            return End.LAST_LINK if self.linked or got.rows < self.pager.size else End.UNPROVEN
        if following in self.visited:
            return End.UNPROVEN
        self.linked = True
        self.visited.add(following)
        self.request = replace(self.request, path=following)
        return None

    def _following(self, body: bytes) -> str | None:
        link: Json = json_body(body, "the page")
        for key in self.pager.next_path:
            link = link.get(key) if isinstance(link, dict) else None
        if not isinstance(link, str) or not link.strip():
            return None
        ours = self.request.path.rstrip("/").split("/")
        theirs = urlsplit(link.strip()).path.strip("/").split("/")
        stem = ours[: -self.pager.moving]
        named = [segment for segment in stem if segment]
        if theirs[: -self.pager.moving][-len(named) :] != named:
            raise ContractError(
                "The next page that the answer names is not a page of the same collection.", code="contract.wrong_page"
            )
        return "/".join([*stem, *theirs[-self.pager.moving :]])
