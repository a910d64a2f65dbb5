"""Real pages, spoilt in ten thousand ways per flavor: an error of the contract, a quarantined row, or the truth."""

from __future__ import annotations

import copy
import csv
import io
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import pytest
from sqlalchemy import Engine

from sis_pipeline.connect.contract import Request
from sis_pipeline.connect.errors import Call, ContractError, SisError, TransientError
from sis_pipeline.connect.http import Door
from sis_pipeline.connect.retry import Backoff
from sis_pipeline.providers.base import Record
from sis_pipeline.sandbox.faults import _bomb
from sis_pipeline_tests.connect.servers import http_answer, raw_server, writes
from sis_pipeline_tests.connect.workers import a_source
from sis_pipeline_tests.faults.pages import FLAVORS, Flavor, Outcome, RecordedPage, flavor, records_in, scalars
from sis_pipeline_tests.faults.rows import Count, Recorder, Row

ROW = Row(
    4,
    "truncated JSON, half a CSV file, HTML with 200, an error body with 200, a wrong content type, a BOM, a gzip bomb, "
    "an empty body, and pages spoilt at random",
    "an error of the contract or a quarantined row; never a crash, never a row that is not the truth",
    10_000 * len(FLAVORS) + 11,
    "payloads",
)

SPOILT = 0.5
"""The share of a batch's pages that are spoilt: enough rows must stay that have nothing to do with those."""

STUDENTS = {"infinite campus": 120, "skyward oneroster": 120, "oneroster 1.1": 120, "oneroster 1.2": 120}
"""More pages in a batch are judged for the same cost. Not where one spoilt page may have the whole batch refused."""

VALUES: tuple[Any, ...] = (
    None, "", " ", "x", "0", 0, -1, 1.5, 10**30, True, False, [], {}, [None], [[]], {"": ""}, "null", "None", "NaN", "NULL",
    "0000-00-00", "2026-02-30", "9999-12-31", "12/31/2026", "1e5", "\u0000", "\ud800", "\u202eabc", "a" * 5_000, "é" * 40,
    "=1+1", "'; drop table students; --", {"value": "x"}, {"sourcedId": None}, ["x", {"a": [1]}], "99999999999999999999",
)  # fmt: skip


def a_value(chance: random.Random) -> Any:
    return copy.deepcopy(chance.choice(VALUES))


# --- one record ----------------------------------------------------------------------------------------------------


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything inside a record."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def replaced(record: Record, chance: random.Random) -> None:
    container, key = chance.choice(list(places(record)))
    container[key] = a_value(chance)


def dropped(record: Record, chance: random.Random) -> None:
    container, key = chance.choice(list(places(record)))
    del container[key]


def renamed(record: Record, chance: random.Random) -> None:
    key = chance.choice(list(record))
    record[chance.choice([key.upper(), f"{key}2", f" {key}", ""])] = record.pop(key)


def swapped(record: Record, chance: random.Random) -> None:
    one, other = chance.choice(list(record)), chance.choice(list(record))
    record[one], record[other] = record[other], record[one]


def added(record: Record, chance: random.Random) -> None:
    record[chance.choice(["extra", "_id", "status", "id", "sourcedId"])] = a_value(chance)


RECORD_CHANGES: tuple[Callable[[Record, random.Random], None], ...] = (
    replaced,
    replaced,
    dropped,
    renamed,
    swapped,
    added,
)

# --- a document ----------------------------------------------------------------------------------------------------


def spoilt_record(document: Any, chance: random.Random) -> Any:
    found = records_in(document)
    record = chance.choice(found) if found else None
    if not record:
        return document
    chance.choice(RECORD_CHANGES)(record, chance)
    return document


def odd_element(document: Any, chance: random.Random) -> Any:
    found = records_in(document)
    if found is not None:
        found.insert(chance.randint(0, len(found)), a_value(chance))
    return document


def record_twice(document: Any, chance: random.Random) -> Any:
    found = records_in(document)
    if found:
        found.append(copy.deepcopy(chance.choice(found)))
    return document


def other_envelope(document: Any, chance: random.Random) -> Any:
    spoilt = [
        {"error": "not today"}, {"message": "Unauthorized", "status": 200}, {}, [], None, "ok", 0, True, [document],
        {"data": document}, {"errors": [{"code": 1}]},
    ]  # fmt: skip
    if isinstance(document, dict) and document:
        key = chance.choice(list(document))
        spoilt += [{**document, key: a_value(chance)}, {name: value for name, value in document.items() if name != key}]
    return chance.choice(spoilt)


DOCUMENT_CHANGES = (
    spoilt_record,
    spoilt_record,
    spoilt_record,
    spoilt_record,
    odd_element,
    record_twice,
    other_envelope,
)

# --- bytes ---------------------------------------------------------------------------------------------------------


def cut_off(body: bytes, chance: random.Random) -> bytes:
    return body[: chance.randrange(len(body))]


def flipped(body: bytes, chance: random.Random) -> bytes:
    spoilt = bytearray(body)
    for _ in range(chance.randint(1, 4)):
        spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
    return bytes(spoilt)


def inserted(body: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(body) + 1)
    odd = (
        b"\0",
        b"\xff",
        b'"',
        b"\r",
        b"\n",
        b",",
        b"}",
        b"[",
        b"NaN",
        b"\xed\xa0\x80",
        b"\\u0000",
        b"\\ud800",
        b"'",
        b"\\",
    )
    return body[:at] + chance.choice(odd) + body[at:]


def removed(body: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(body))
    return body[:at] + body[at + chance.randint(1, 30) :]


def encoded(body: bytes, chance: random.Random) -> bytes:
    text = body.decode("utf-8-sig")
    return chance.choice([
        b"\xef\xbb\xbf" + body, text.encode("utf-16"), text.encode("latin-1", "replace"), text.encode("utf-32"), body + body,
        b"\n\n" + body, body + b"\0", b"<!DOCTYPE html><html></html>", b"<?xml version='1.0'?><x/>", b"", b" ", b"OK",
    ])  # fmt: skip


BYTE_CHANGES = (cut_off, flipped, inserted, removed, encoded)

# --- a CSV file ----------------------------------------------------------------------------------------------------


def spoilt_cell(rows: list[list[str]], chance: random.Random) -> None:
    line = chance.choice(rows)
    if line:
        value = a_value(chance)
        line[chance.randrange(len(line))] = value if isinstance(value, str) else json.dumps(value)


def cell_gone(rows: list[list[str]], chance: random.Random) -> None:
    line = chance.choice(rows)
    if line:
        del line[chance.randrange(len(line))]


def line_twice(rows: list[list[str]], chance: random.Random) -> None:
    rows.append(list(chance.choice(rows)))


def head_gone(rows: list[list[str]], _chance: random.Random) -> None:
    del rows[0]


CSV_CHANGES = (spoilt_cell, spoilt_cell, spoilt_cell, cell_gone, line_twice, head_gone)


def spoilt_csv(body: bytes, chance: random.Random) -> bytes:
    rows = list(csv.reader(io.StringIO(body.decode("utf-8-sig"))))
    chance.choice(CSV_CHANGES)(rows, chance)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode("utf-8", "surrogatepass")


def spoilt(page: RecordedPage, chance: random.Random) -> RecordedPage:
    if chance.random() < 0.3:
        body = chance.choice(BYTE_CHANGES)(page.body, chance)
    elif page.is_csv:
        body = spoilt_csv(page.body, chance)
    else:
        document = chance.choice(DOCUMENT_CHANGES)(json.loads(page.body), chance)
        body = json.dumps(document, ensure_ascii=chance.random() < 0.9).encode("utf-8", "surrogatepass")
    return replace(page, body=body)


# --- the proof -----------------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """A flavor's pages, some of them spoilt: `pages` that decode, with the records in which each differs."""

    flavor: Flavor
    tally: Counter[str]

    def judge(self, pages: Sequence[tuple[RecordedPage, RecordedPage]], halvings: int = 2) -> None:
        """`pages`: each as it was and as it now is. Raises what is no SisError, and AssertionError for an untrue row.

        A page that is refused fails the whole reading; here it is put back as it was, so that the others are judged, too.
        The same where a snapshot is refused as a whole: then its halves are judged.
        """
        kept, changed = [], []
        for before, after in pages:
            page, was = after, self.flavor.decoded(before)
            try:
                now: Sequence[Record] = was if after is before else self.flavor.decoded(after)
            except ContractError:
                self.tally["contract error"] += 1
                page, now = before, was
            kept.append(page)
            changed += [(before.resource, record) for record in difference(was, now)]
        try:
            outcome = self.flavor.bring_in(kept)
        except SisError:
            self.tally["snapshot refused"] += 1
            bad = [at for at, (before, after) in enumerate(pages) if after is not before]
            for half in (bad[::2], bad[1::2]) if halvings and len(bad) > 1 else ():
                own = set(half)
                self.judge([(was, now if at in own else was) for at, (was, now) in enumerate(pages)], halvings - 1)
            return
        self.tally["quarantined rows"] += outcome.rejected
        self._compare(outcome, changed)

    def _compare(self, outcome: Outcome, changed: Sequence[tuple[str, Record]]) -> None:
        truth, touched = self.flavor.truth.rows, self.flavor.touched(changed, outcome)
        sent = {one for _, record in changed for one in scalars(record)}
        spoilt_ids = {self.flavor.identity(*one) for one in changed}
        # Who belongs to an organisation that nobody calls a district any more is taken for a student of the year, and so
        # is who sits in a class of a term of which nobody says any more that it is another year's.
        near = self._naming(spoilt_ids)
        explained = sent | near | self._naming(near)
        known = explained.union(*self.flavor.words.values(), *(_parts(name) for _, name in truth))
        for key, values in outcome.rows.items():
            if key in touched:
                continue
            if key in truth:
                assert values == truth[key], f"a row of {key[0]} differs although nothing of it was changed"
                self.tally["rows equal to the truth"] += 1
            else:
                composed = any(set(parts) <= known and set(parts) & explained for parts in _splits(key[1]))
                assert key[1] in explained or composed, f"a row of {key[0]} that nobody sent: {key[1]!r}"
        lost = [key for key in truth if key[0] == "students" and key not in outcome.rows and key not in touched]
        assert not lost, f"{len(lost)} students are gone although nothing of them was changed"

    def _naming(self, ids: Set[str | None]) -> set[str]:
        """Those whose records name one of these."""
        return {name for name, words in self.flavor.words.items() if words & ids}


def _splits(name: str) -> tuple[list[str], list[str]]:
    """An id that a mapping made of others, taken apart; UUIDs have hyphens of their own."""
    return name.split(":"), re.split("[:-]", name)


def _parts(name: str) -> list[str]:
    return [name, *(part for parts in _splits(name) for part in parts)]


def difference(was: Sequence[Record], now: Sequence[Record]) -> list[Record]:
    """The records that are in one of them only."""

    def written(records: Sequence[Record]) -> Counter[str]:
        return Counter(json.dumps(record, sort_keys=True, default=str) for record in records)

    apart = (written(was) - written(now)) + (written(now) - written(was))
    return [json.loads(record) for record in apart]


@pytest.mark.parametrize("name", FLAVORS)
def test_spoilt_pages(name: str, count: Count, chance: random.Random, row: Recorder) -> None:
    tally, made = Counter[str](), 0
    wanted = count(full=10_000, part=120)
    spoil = flavor(name, students=count(full=STUDENTS.get(name, 40), part=14))
    while made < wanted:
        seed = chance.randrange(2**32)
        own = random.Random(seed)
        pages = []
        for page in spoil.pages:
            bad = spoilt(page, own) if own.random() < SPOILT and made < wanted else page
            made += bad is not page
            row.happened(bad.body != page.body)
            pages.append((page, bad))
        try:
            Batch(spoil, tally).judge(pages)
        except Exception as error:
            error.add_note(f"{name}, seed {seed}")
            raise
    row.ran(made)
    assert tally["contract error"], "some must be refused"
    assert tally["quarantined rows"], "some must be quarantined"
    assert tally["rows equal to the truth"] > made / 10, "enough rows must stay that can be compared"


# --- on the wire ---------------------------------------------------------------------------------------------------

GOOD = b'{"users": [{"sourcedId": "1"}]}'
WIRE: dict[str, tuple[bytes, type[SisError]]] = {
    "truncated JSON": (http_answer(GOOD)[:-4], TransientError),
    "half without a length": (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/csv\r\n\r\nsourcedId,status\n1,act",
        TransientError,
    ),
    "HTML with 200": (http_answer(b"<html>sign in</html>", Content_Type="text/html"), ContractError),
    "HTML called JSON": (http_answer(b"<!DOCTYPE html><html>"), ContractError),
    "CSV where JSON is due": (http_answer(b"a,b\n1,2\n", Content_Type="text/csv"), ContractError),
    "another content type": (http_answer(GOOD, Content_Type="application/pdf"), ContractError),
    "empty body": (http_answer(b""), ContractError),
    "blank body": (http_answer(b" \r\n "), ContractError),
    "compression that is none": (http_answer(GOOD, Content_Encoding="gzip"), TransientError),
}


@pytest.mark.parametrize("kind", WIRE)
def test_answers_that_are_no_page(database: Engine, kind: str, row: Recorder) -> None:
    answer, expected = WIRE[kind]
    with raw_server(writes(answer)) as server:
        few = Backoff(attempts=2, base=0)
        with a_source(database, server.url, authorised=False, backoff=few) as source, pytest.raises(expected):
            source.send(Request("/users"))
        row.happened(len(server.requests))
    row.ran()


@pytest.mark.parametrize("status", ["200 OK", "302 Found"])
def test_a_gzip_bomb_is_not_unpacked(status: str, row: Recorder) -> None:
    """A gigabyte of blanks in a megabyte: reading stops at the cap; of an answer that is none, nothing more is read."""
    bomb = _bomb(1_000)
    answer = http_answer(bomb, status, Content_Encoding="gzip", Location="https://elsewhere.example.org/")
    with raw_server(writes(answer)) as server:
        door = Door([server.url], max_bytes=10_000_000)
        if status.startswith("200"):
            with pytest.raises(ContractError, match="more than 10,000,000 bytes"):
                door.send(Call("lincoln", "GET", "/users"), f"{server.url}/users")
        else:
            reply = door.send(Call("lincoln", "GET", "/users"), f"{server.url}/users")
            assert (reply.status, len(reply.body)) == (302, 64 * 1024)
        door.close()
        row.happened(len(server.requests))
    row.ran()
