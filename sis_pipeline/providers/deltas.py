"""Asking a source only for what changed, and noticing what its answers say about that: its clock, and whether it heeded
the question. When changes are enough is decided in `defs.deltas`; how they join what was read before, in `layers`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from sis_pipeline.connect.contract import Answer, Request, Source
from sis_pipeline.connect.errors import ConfigError, http_date
from sis_pipeline.providers.base import Page, Resource
from sis_pipeline.providers.decoding import identity_of

OVERLAP = timedelta(hours=1)
"""How long before the beginning of the last reading changes are asked for. A bulk import stamps its rows when it begins
and commits them when it ends, and the time in an answer may be a gateway's instead of the database's. Changes that are
read twice cost a page; one that is not read costs a student a week."""

ZONELESS = timedelta(hours=12)
"""And how much longer where the source writes times without a zone: its own may be that far behind UTC."""

REFUSED = frozenset({400, 422, 501})
"""How a source answers a filter that it does not know."""

DOUBT = timedelta(days=1)
"""By how much a record must be older than asked for before it counts: a source may show dates where it keeps times."""

CHANGES_BY = "changes_by"
"""In what is kept about a page: it holds only changed records, identified by the value at this path."""


class DeltaRefusedError(ConfigError):
    """The source refuses to be asked for changes; everything can still be read."""

    default_code = "config.refused"


def changes_of(resource: Resource, request: Request, modified: tuple[str, ...], *, rows: int | None = None) -> Resource:
    """A resource asked for changed records only, by `request`; `modified` is the path of a record's modified time and
    `rows` how many there are, None where that is not known."""
    about = {**resource.about, CHANGES_BY: ".".join(resource.identity)}
    return replace(resource, request=request, modified=modified, expected_rows=rows, about=about)


def changes_by(about: Mapping[str, str]) -> tuple[str, ...] | None:
    """The path of the id where a page holds changes only; None for a page of a whole reading."""
    path = about.get(CHANGES_BY)
    return None if path is None else tuple(path.split("."))


@dataclass
class ServerClock:
    """What the source's own clock said in the first answer that was heard (`Date`, RFC 9110 6.6.1); None until then.

    Modified times are by that clock, so what changed since is asked for by it: ours may be wrong by hours.
    """

    first: datetime | None = None

    def listening(self, source: Source) -> Source:
        """The source, with this clock listening to its answers."""
        return _Listening(source, self)

    def hear(self, answer: Answer) -> None:
        if self.first is None:
            self.first = http_date(answer.headers.get("date", ""))


@dataclass(frozen=True)
class _Listening:
    source: Source
    clock: ServerClock

    def send(self, request: Request) -> Answer:
        answer = self.source.send(request)
        self.clock.hear(answer)
        return answer


@dataclass
class Unheeded:
    """Counts the records that came although they had not changed: then the source ignores the question."""

    since: datetime
    old: Counter[str] = field(default_factory=Counter)

    def look(self, resource: Resource, page: Page) -> None:
        if resource.modified and page.number == 1:
            self.old.pop(resource.name, None)  # the first page starts a resource over
        if resource.modified:
            self.old[resource.name] += sum(
                stamp is not None and stamp < self.since - DOUBT
                for stamp in (_instant(identity_of(record, resource.modified)) for record in page.records)
            )

    def in_words(self) -> str:
        """A sentence for the person; empty where there is nothing to say."""
        found = {name: count for name, count in self.old.items() if count}
        if not found:
            return ""
        counts = ", ".join(f"{count:,} in {name}" for name, count in found.items())
        return (
            f"The system ignores the question for changes: it also gave records that have not changed ({counts}). What "
            "came is right, but costs as much as a full reading and proves less; set `reads` to full."
        )


def _instant(text: str | None) -> datetime | None:
    try:
        said = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return said if said.tzinfo else said.replace(tzinfo=UTC)
