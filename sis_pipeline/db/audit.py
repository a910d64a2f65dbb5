"""The audit log: appending to it in the transaction of the effect, reading it, and proving that nobody changed it since.
Where the heads of its chains are kept outside the database is decided elsewhere; so is what deserves an entry.

Every district has a chain of its own, so that only writers of the same district wait for each other, with one link per
operation. A link holds the digest of each row it covers and the hash of the link before:

    digest = sha256(json [entry, district, at, actor, action, subject, details as text])
    hash   = sha256(json [district, link, previous, entries as text])

with the JSON written as PostgreSQL's json_build_array and Python's json.dumps both write it.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Engine, Row, Text, cast, func, or_, select, text
from sqlalchemy.dialects.postgresql import distinct_on

from sis_pipeline.db.tables import audit_links, audit_log, integrations

EVERYWHERE = "*"
"""The district of what concerns the whole installation; it has a chain like any other."""
LOCK = text("select pg_advisory_xact_lock(hashtextextended('audit ' || :district, 0))")
ROW = (
    audit_log.c.entry,
    audit_log.c.district,
    func.to_char(func.timezone("UTC", audit_log.c.at), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"').label("at"),
    audit_log.c.actor,
    audit_log.c.action,
    audit_log.c.subject,
    cast(audit_log.c.details, Text).label("details"),
)
"""What a digest covers: every column, as PostgreSQL prints it."""
LINK = (
    audit_links.c.link,
    cast(audit_links.c.entries, Text).label("entries"),
    audit_links.c.previous,
    audit_links.c.hash,
)
STREAMED = {"stream_results": True, "yield_per": 2000}
"""A chain is walked in constant memory."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One effect of an operation. `details` carries counts and ids, never a secret or a student's value."""

    action: str
    subject: str
    district: str = EVERYWHERE
    details: Mapping[str, object] = field(default_factory=dict)


def append(
    connection: Connection,
    action: str,
    subject: str,
    *,
    district: str = EVERYWHERE,
    actor: str | None = None,
    details: Mapping[str, object] | None = None,
) -> None:
    """Record who did what to what, as `append_all` does."""
    append_all(connection, [Entry(action, subject, district, details or {})], actor=actor)


def append_all(connection: Connection, entries: Iterable[Entry], *, actor: str | None = None) -> None:
    """Record all effects of an operation, in its transaction and last in it: one link in the chain of each district.

    Locks those chains until the transaction ends, in the same order for everybody. What a transaction locks after them
    could be held by somebody who waits for a chain, so nothing but the commit should follow.
    """
    by_district: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_district[entry.district].append(entry)
    who = actor or current_actor()
    for district in sorted(by_district):
        _append_link(connection, district, by_district[district], who)


def _append_link(connection: Connection, district: str, entries: Sequence[Entry], actor: str) -> None:
    connection.execute(LOCK, {"district": district})
    values = [
        {"district": district, "actor": actor, "action": it.action, "subject": it.subject, "details": dict(it.details)}
        for it in entries
    ]
    rows = connection.execute(audit_log.insert().values(values).returning(*ROW)).all()
    pairs = sorted([int(row.entry), row_digest(row)] for row in rows)
    newest = select(audit_links.c.link, audit_links.c.hash).where(audit_links.c.district == district)
    before = connection.execute(newest.order_by(audit_links.c.link.desc()).limit(1)).one_or_none()
    link, previous = (before.link + 1, before.hash) if before else (1, "")
    connection.execute(
        audit_links.insert().values(
            district=district,
            link=link,
            entries=pairs,
            previous=previous,
            hash=link_hash(district, link, previous, json.dumps(pairs)),
        )
    )


def row_digest(row: Row[Any]) -> str:
    """The digest of a row that was selected as `ROW`."""
    return _sha256(*row)


def link_hash(district: str, link: int, previous: str, entries: str) -> str:
    """`entries`: the column as PostgreSQL prints it."""
    return _sha256(district, link, previous, entries)


def _sha256(*fields: object) -> str:
    return hashlib.sha256(json.dumps(fields, ensure_ascii=False).encode()).hexdigest()


def district_of(connection: Connection, integration: str) -> str:
    """In whose chain an entry about an integration belongs: EVERYWHERE where the integration is gone."""
    found = connection.scalar(select(integrations.c.district).where(integrations.c.key == integration))
    return found or EVERYWHERE


def current_actor() -> str:
    """The operating-system user, or the numeric id where it has no name (containers)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def read(
    connection: Connection,
    *,
    district: str | None = None,
    subject: str | None = None,
    action: str | None = None,
    since: datetime | None = None,
    limit: int = 50,
) -> list[dict[str, Any]]:
    """Entries, the newest first. `action`: one action, or a family of them, as `token` for all of `token.…`."""
    query = select(audit_log).order_by(audit_log.c.entry.desc()).limit(limit)
    if district is not None:
        query = query.where(audit_log.c.district == district)
    if subject is not None:
        query = query.where(audit_log.c.subject == subject)
    if action is not None:
        family = audit_log.c.action.startswith(f"{action}.", autoescape=True)
        query = query.where(or_(audit_log.c.action == action, family))
    if since is not None:
        query = query.where(audit_log.c.at >= since)
    return [dict(row._mapping) for row in connection.execute(query)]  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class Head:
    """The last link of a chain at some time: who keeps it elsewhere notices a chain that was cut or made anew."""

    district: str
    link: int
    hash: str


def heads(connection: Connection) -> list[Head]:
    """The last link of every chain, by district."""
    columns = (audit_links.c.district, audit_links.c.link, audit_links.c.hash)
    query = select(*columns).ext(distinct_on(audit_links.c.district))
    rows = connection.execute(query.order_by(audit_links.c.district, audit_links.c.link.desc()))
    return [Head(*row) for row in rows]


What = Literal[
    "row altered", "row missing", "row not in any link", "link altered", "link missing", "chain cut", "chain rewritten"
]


@dataclass(frozen=True, slots=True)
class Break:
    """The first thing in a chain that is not as it was written. `entry`: of a row. `link`: where in the chain."""

    what: What
    link: int | None
    entry: int | None
    message: str


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain that was walked: the links, rows and known heads found in order before its end, or before `broken`."""

    district: str
    links: int
    rows: int
    heads: int
    broken: Break | None


@contextmanager
def standing_still(engine: Engine) -> Iterator[Connection]:
    """A connection that sees one moment of the database, as `verify` needs it where others append meanwhile."""
    with engine.connect() as connection:
        yield connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def verify(
    connection: Connection,
    district: str | None = None,
    heads: Iterable[Head] = (),
    *,
    newest_only: bool = False,
) -> Iterator[Chain]:
    """Walk every chain, or one district's, and say what is the first thing broken in each.

    `heads`: those that were known before and kept elsewhere; without them a chain whose end was cut off, or which was
    computed anew, looks whole. `newest_only`: begin at the newest known head of each chain, which is cheap and says
    nothing about what came before it. Nothing of it is computed by the database, which whoever alters rows could alter.
    """
    known: dict[str, list[Head]] = defaultdict(list)
    for head in sorted(heads, key=lambda one: one.link):
        known[head.district].append(head)
    for one in sorted({*_districts(connection), *known}) if district is None else [district]:
        yield _Walk(connection, one, known[one], known[one][-1].link if newest_only and known[one] else 1).chain()


def _districts(connection: Connection) -> Iterable[str]:
    return connection.scalars(select(audit_log.c.district).union(select(audit_links.c.district)))


class _BrokenError(Exception):
    """Ends a walk."""

    def __init__(self, what: What, message: str, *, link: int | None = None, entry: int | None = None) -> None:
        super().__init__(message)
        self.broken = Break(what, link, entry, message)


class _Walk:
    """One walk along one chain: its links in order, and beside them the district's rows in order."""

    def __init__(self, connection: Connection, district: str, heads: Sequence[Head], first_link: int) -> None:
        self._connection, self._district, self._heads, self._first_link = connection, district, heads, first_link
        self._links = self._seen_rows = self._seen_heads = 0
        self._rows: Iterator[Row[Any]] = iter(())
        self._row: Row[Any] | None = None

    def chain(self) -> Chain:
        broken = None
        with ExitStack() as cursors:
            try:
                self._follow(cursors)
            except _BrokenError as found:
                broken = found.broken
        return Chain(self._district, self._links, self._seen_rows, self._seen_heads, broken)

    def _follow(self, cursors: ExitStack) -> None:
        number, previous = self._first_link, "" if self._first_link == 1 else None
        table = audit_links.c
        query = select(*LINK).where(table.district == self._district, table.link >= number).order_by(table.link)
        for link in cursors.enter_context(self._connection.execute(query, execution_options=STREAMED)):
            entries = self._entries(link, number, previous)
            if self._links == 0:
                self._open_rows(cursors, None if number == 1 else entries[0][0])
            self._check_heads(link)
            for entry, digest in entries:
                self._check_row(link.link, entry, digest)
            self._links += 1
            number, previous = number + 1, link.hash
        if self._links == 0 and number == 1:
            self._open_rows(cursors, None)
        self._check_end(number - 1)

    def _open_rows(self, cursors: ExitStack, first: int | None) -> None:
        query = select(*ROW).where(audit_log.c.district == self._district).order_by(audit_log.c.entry)
        if first is not None:
            query = query.where(audit_log.c.entry >= first)
        self._rows = iter(cursors.enter_context(self._connection.execute(query, execution_options=STREAMED)))
        self._row = next(self._rows, None)

    def _entries(self, link: Row[Any], number: int, previous: str | None) -> list[tuple[int, str]]:
        """What the link covers. `previous`: the hash of the link before, None where that was not read."""
        if link.link != number:
            raise _BrokenError("link missing", f"Link {number} is missing.", link=number)
        if link.hash != link_hash(self._district, link.link, link.previous, link.entries):
            raise _BrokenError("link altered", f"Link {number} was altered.", link=number)
        if previous is not None and link.previous != previous:
            message = f"Link {number} does not continue the link before it: one of the two was replaced or moved."
            raise _BrokenError("link altered", message, link=number)
        try:
            pairs = [(int(entry), str(digest)) for entry, digest in json.loads(link.entries)]
        except (TypeError, ValueError):
            pairs = []
        if not pairs:
            raise _BrokenError("link altered", f"Link {number} covers no rows: it was replaced.", link=number)
        return pairs

    def _check_heads(self, link: Row[Any]) -> None:
        for head in self._heads:
            if head.link != link.link:
                continue
            if head.hash != link.hash:
                message = (
                    f"Link {link.link} is not the one that was there when the chain's head was kept elsewhere: "
                    f"the chain was rewritten at that link or before it{self._after_known_head()}."
                )
                raise _BrokenError("chain rewritten", message, link=link.link)
            self._seen_heads += 1

    def _after_known_head(self) -> str:
        good = self._heads[self._seen_heads - 1].link if self._seen_heads else None
        return f", after link {good}" if good else ""

    def _check_row(self, link: int, entry: int, digest: str) -> None:
        row = self._row
        if row is not None and row.entry < entry:
            self._refuse_row(row.entry)
        if row is None or row.entry > entry:
            message = f"Entry {entry} is missing: it was deleted, or given another number or district."
            raise _BrokenError("row missing", message, link=link, entry=entry)
        if row_digest(row) != digest:
            raise _BrokenError("row altered", f"Entry {entry} was altered.", link=link, entry=entry)
        self._seen_rows += 1
        self._row = next(self._rows, None)

    def _check_end(self, last: int) -> None:
        if self._heads and self._heads[-1].link > last:
            message = (
                f"The chain ends with link {last}, but link {self._heads[-1].link} was there: its end was cut off."
            )
            raise _BrokenError("chain cut", message, link=last + 1)
        if self._row is not None:
            self._refuse_row(self._row.entry)

    @staticmethod
    def _refuse_row(entry: int) -> None:
        message = f"Entry {entry} is in no link: it was inserted past the log, moved here, or its link was cut off."
        raise _BrokenError("row not in any link", message, entry=entry)
