"""Going on where an interrupted reading stopped: a door that answers from the pages it kept, then from the source.
Whether what comes out is complete is `reading`'s to judge, as of any other walk; who keeps the pages is the sink's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from sis_pipeline.connect.errors import DataError, SisError, source_status
from sis_pipeline.providers.base import Answer, Origin, Page, Record, Request, Resource, Send, fingerprint
from sis_pipeline.providers.decoding import identity_of

LOST_CURSOR = frozenset({400, 404, 410})
"""How a source answers for a cursor that it does not know any more."""


class Kept(Protocol):
    """One page an interrupted reading kept. `total`: the source's own count at that time, None where it has none."""

    @property
    def origin(self) -> Origin: ...
    @property
    def total(self) -> int | None: ...

    def body(self) -> bytes:
        """Raises DataError where it is not as it was kept."""


KeptOf = Callable[[str], Sequence[Kept]]
"""Resource -> the pages an interrupted reading kept of it, in order, from the first."""


class StartOver(Exception):  # noqa: N818 - said as it is
    """What was kept of a resource is of no use; the text says why, after "because"."""


class ResumingDoor:
    """The door of one walk. Answers the walk's first requests from the kept pages, as long as it asks what they answer.

    Before the first other request it makes sure that the list still is the one that was left. The pages of a list
    without a cursor are places in it, so the last kept page is asked for once more and must hold the same records: one
    that came or went before it has moved all behind it. Cursors belong to the access token they were given for. The
    source's count, where it is known, must be what it was. Raises StartOver where any of that does not hold.

    A question whose answer the walk does not take as a page (whether offsets may point inside pages) leaves the kept
    pages as they are.
    """

    def __init__(
        self,
        resource: Resource,
        kept: Sequence[Kept],
        send: Send,
        decode: Callable[[str, bytes], Sequence[Record]],
    ) -> None:
        self._resource, self._send, self._decode = resource, send, decode
        self._kept = {page.origin.request: page for page in kept}
        self._total = kept[0].total if kept else None
        self._given: set[str] = set()
        self._asked: dict[str, int | None] = {}
        self._last: tuple[Request, Kept, bytes] | None = None
        self._unmoved: Kept | None = None
        self._resuming = bool(kept)

    def send(self, request: Request) -> Answer:
        key = fingerprint(request)
        page = self._kept.get(key) if self._resuming else None
        if page is not None:
            return self._again(request, key, page)
        if self._resuming and self._last is not None:
            return self._noted(key, self._first_new(request, *self._last))
        return self._noted(key, self._send(request))

    def marked(self, page: Page) -> Page:
        """The page with what this door knows of it. Raises StartOver where its count is not that of the kept pages."""
        if self._total is not None and page.total is not None and page.total != self._total:
            raise StartOver(f"the source counted {self._total} rows when it was interrupted and {page.total} now")
        if page.origin is None:
            return page
        if page.origin.request in self._given:
            return replace(page, kept=True)
        self._resuming = False
        return replace(page, origin=replace(page.origin, token_version=self._asked.pop(page.origin.request, None)))

    def _again(self, request: Request, key: str, page: Kept) -> Answer:
        try:
            body = page.body()
        except DataError:
            raise StartOver("a page is not as it was kept") from None
        self._given.add(key)
        self._last = (request, page, body)
        return Answer(200, page.origin.headers, body)

    def _noted(self, key: str, answer: Answer) -> Answer:
        self._asked[key] = answer.token_version
        return answer

    def _first_new(self, request: Request, asked: Request, last: Kept, body: bytes) -> Answer:
        """The answer to the first request that no kept page answers."""
        if self._resource.pager.resumes == "any_token":
            if last is not self._unmoved:
                now = self._send(asked)
                if now.body != body and self._ids(now.body) != self._ids(body):
                    raise StartOver("the list moved while it was interrupted")
                self._unmoved = last
            return self._send(request)
        version = last.origin.token_version
        try:
            answer = self._send(request)
        except SisError as error:
            if source_status(error) in LOST_CURSOR:
                raise StartOver("the source does not know the place where it was interrupted any more") from None
            raise
        if version is None or answer.token_version != version:
            raise StartOver("it goes by a cursor, and the access token is another one now")
        return answer

    def _ids(self, body: bytes) -> list[Any]:
        """The records of a page by their ids, whole where they have none."""
        return [
            identity_of(record, self._resource.identity) or record for record in self._decode(self._resource.name, body)
        ]
