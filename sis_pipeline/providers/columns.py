"""A collection's records as Arrow columns, made a batch at a time, so that Python objects of one batch only are alive; what
an earlier reading held in the same bytes is taken from its columns. What a column means is the mapping's business."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import xxhash
from msgspec import Raw

from sis_pipeline.connect.errors import InternalError
from sis_pipeline.providers.base import RawSnapshot, Record
from sis_pipeline.providers.decoding import Pieces, behind
from sis_pipeline.providers.mapping import TEXT, ColumnMap, text_series
from sis_pipeline.providers.mapping import Mapping as Renames

BATCH = 2_000
"""Records that are Python objects at the same time, where their pages can be split: few enough that those after them find
room where they were, which saves the system's handing out memory again and again."""
TEXTS = pa.large_list(TEXT)
FINGERPRINT = pa.field("fingerprint", pa.binary(16))
UNKNOWN = " unknown"
"""Behind the name of a coded column: the column with the codes that its table does not know."""

About = Mapping[str, str]
Make = tuple[pa.DataType, Callable[[Sequence[Record]], Any]]


class Memory(Protocol):
    """Columns that pages of earlier readings were decoded to, by resource: a cache, which may have nothing."""

    def recall(self, resource: str) -> pa.Table | None: ...

    def keep(self, resource: str, columns: pa.Table) -> None: ...


class Remembered:
    """Raw pages and the memory of earlier ones, for providers that make use of it."""

    def __init__(self, raw: RawSnapshot, memory: Memory) -> None:
        self._raw = raw
        self.memory = memory
        self.school_year = raw.school_year

    @property
    def resources(self) -> Sequence[str]:
        return self._raw.resources

    def bodies(self, resource: str) -> Iterator[tuple[About, bytes]]:
        return self._raw.bodies(resource)


def _unsplit(_resource: str, _body: bytes) -> Pieces | None:
    return None


@dataclass(frozen=True)
class Reader:
    """How pages are read. `split`: the records of a page in their own bytes, None where it can't be split; `decode` reads
    a page that is made of some of them as the same records."""

    decode: Callable[[str, bytes, About], Sequence[Record]]
    split: Callable[[str, bytes], Pieces | None] = _unsplit

    def records(self, raw: RawSnapshot, resource: str) -> Iterator[tuple[About, Sequence[Record]]]:
        """The records of every page, but for those that lists which overlap give twice."""
        last: Sequence[Record] = ()
        for about, body in raw.bodies(resource):
            page = self.decode(resource, body, about)
            yield about, behind(last, page)
            last = page[-1:] or last


class Columns:
    """What is wanted of the records of a collection: what entities map, each path and conversion once, and what is `made`
    of the records otherwise. A row depends on its record alone, never on its neighbours. `within`: paths begin at the
    object which holds the record under that name."""

    def __init__(
        self, mapped: Mapping[str, Sequence[ColumnMap]], made: Mapping[str, Make], *, within: str | None = None
    ) -> None:
        self._made = dict(made)
        self._within = within
        self._mapped: dict[str, ColumnMap] = {}
        self._names: dict[tuple[str, str], str] = {}
        same: dict[tuple[object, ...], str] = {}
        for entity, columns in mapped.items():
            for column in columns:
                means = (column.paths, column.constant, column.kind, id(column.codes), column.column == "sis_id")
                name = same.setdefault(means, f"{entity}.{column.column}")
                self._mapped.setdefault(name, column)
                self._names[entity, column.column] = name

    @cached_property
    def schema(self) -> pa.Schema:
        fields = [(name, kind) for name, (kind, _) in self._made.items()]
        for name, column in self._mapped.items():
            fields += [(name, TEXT)] if column.codes is None else [(name, TEXT), (name + UNKNOWN, TEXTS)]
        return pa.schema(fields)

    def of(self, records: Sequence[Record]) -> pa.Table:
        columns: dict[str, Any] = {name: make(records) for name, (_, make) in self._made.items()}
        if self._within:
            records = [{self._within: record} for record in records]
        for name, column in self._mapped.items():
            texts, strange = column.texts(column.raw({}, records))
            columns[name] = texts
            if column.codes is not None:
                nothing = pa.nulls(len(records), TEXTS)
                columns[name + UNKNOWN] = [strange.get(row) for row in range(len(records))] if strange else nothing
        return pa.table(columns, schema=self.schema)

    def values(self, rows: pa.Table, entity: str, mapping: Renames) -> dict[str, pd.Series]:
        """The columns of one entity; the codes that a table does not know are counted with the mapping."""
        found = {}
        for (of, column), name in self._names.items():
            if of != entity:
                continue
            found[column] = text_series(rows[name])
            if self._mapped[name].codes is not None:
                mapping.count_unknown(of, column, rows[name + UNKNOWN].drop_null().to_pylist())
        return found

    def gather(self, raw: RawSnapshot, resource: str, reader: Reader) -> tuple[pa.Table, dict[str, str]]:
        """The columns of all records of a resource, and the facts kept with its pages."""
        memory = raw.memory if isinstance(raw, Remembered) else None
        gathered = _Gathered(self, resource, reader, memory.recall(resource) if memory else None)
        facts: dict[str, str] = {}
        for about, body in raw.bodies(resource):
            facts.update(about)
            gathered.add(about, body)
        table, fingerprints = gathered.finish()
        if memory and fingerprints is not None:
            memory.keep(resource, table.append_column(FINGERPRINT, fingerprints))
        return table, facts


class _Gathered:
    """The columns of one resource while its pages come: those of known records by their place, the others as decoded."""

    def __init__(self, columns: Columns, resource: str, reader: Reader, known: pa.Table | None) -> None:
        fits = known is not None and known.schema.remove_metadata() == columns.schema.append(FINGERPRINT)
        self._columns, self._resource, self._reader = columns, resource, reader
        self._known = _Known(known) if known is not None and fits else None
        self._tables = [self._known.table] if self._known else []
        self._rows = self._known.table.num_rows if self._known else 0
        self._places: list[np.ndarray[Any, Any]] = []
        self._fingerprints: list[bytes] | None = []
        self._waiting: list[bytes] = []
        self._page: Callable[[Sequence[Raw | bytes]], bytes]
        self._about: About = {}
        self._last: Sequence[Record] = ()

    def add(self, about: About, body: bytes) -> None:
        pieces = self._reader.split(self._resource, body)
        if pieces is None:
            self._decode_waiting()
            self._fingerprints = None
            records = self._reader.decode(self._resource, body, about)
            left = behind(self._last, records)
            self._add(np.full(len(left), -1))
            self._tables += [self._columns.of(left[start : start + BATCH]) for start in range(0, len(left), BATCH)]
            self._last = records[-1:] or self._last
        elif pieces.items:
            self._add_pieces(about, pieces)

    def _add_pieces(self, about: About, pieces: Pieces) -> None:
        self._page, self._about = pieces.page, about
        first, last = self._decode([pieces.items[0], pieces.items[-1]])
        items = pieces.items if behind(self._last, [first]) else pieces.items[1:]
        self._last = [last]
        digests = b"".join(map(xxhash.xxh3_128_digest, items))
        places = self._known.places(digests) if self._known else np.full(len(items), -1)
        self._waiting += [bytes(items[row]) for row in np.flatnonzero(places < 0).tolist()]
        self._add(places)
        if self._fingerprints is not None:
            self._fingerprints.append(digests)
        if len(self._waiting) >= BATCH:
            self._decode_waiting()

    def _add(self, places: np.ndarray[Any, Any]) -> None:
        """Rows to come, in their order: where they are known, and behind all of those the others."""
        fresh = places < 0
        places[fresh] = self._rows + np.arange(fresh.sum())
        self._rows += int(fresh.sum())
        self._places.append(places)

    def _decode_waiting(self) -> None:
        for start in range(0, len(self._waiting), BATCH):
            self._tables.append(self._columns.of(self._decode(self._waiting[start : start + BATCH])))
        self._waiting = []

    def _decode(self, items: Sequence[Raw | bytes]) -> Sequence[Record]:
        records = self._reader.decode(self._resource, self._page(items), self._about)
        if len(records) != len(items):
            raise InternalError(
                f"A page of {len(items)} records of {self._resource} was read as {len(records)}.",
                code="internal.plugin",
                advice="Correct the plugin: what it splits a page into must be read one by one.",
            )
        return records

    def finish(self) -> tuple[pa.Table, pa.Array | None]:
        """The columns, and the fingerprints of their rows; None where some came on pages that can't be split."""
        self._decode_waiting()
        table = pa.concat_tables([self._columns.schema.empty_table(), *self._tables])
        if self._known:
            table = table.take(pa.array(np.concatenate([np.array([], "int64"), *self._places])))
        table = table.combine_chunks()  # what follows takes longer over many small parts than over a large one
        if self._fingerprints is None:
            return table, None
        whole = pa.py_buffer(b"".join(self._fingerprints))
        return table, pa.Array.from_buffers(FINGERPRINT.type, table.num_rows, [None, whole])


class _Known:
    """The rows of an earlier reading, by fingerprint."""

    def __init__(self, columns: pa.Table) -> None:
        self.table = columns.drop_columns([FINGERPRINT.name])
        fingerprints = columns[FINGERPRINT.name].combine_chunks().cast(pa.binary()).buffers()[2]
        self._halves = _halves(memoryview(fingerprints or b"")[: columns.num_rows * FINGERPRINT.type.byte_width])
        self._order = np.argsort(self._halves[:, 0], kind="stable")
        self._sorted = self._halves[self._order, 0]

    def places(self, digests: bytes) -> np.ndarray[Any, Any]:
        """The row of each, -1 where there is none."""
        wanted = _halves(digests)
        if not len(self._order):
            return np.full(len(wanted), -1)
        nearest = np.minimum(np.searchsorted(self._sorted, wanted[:, 0]), len(self._sorted) - 1)
        found = self._order[nearest]
        return np.where((self._halves[found] == wanted).all(axis=1), found, -1)


def _halves(digests: bytes | memoryview) -> np.ndarray[Any, Any]:
    return np.frombuffer(digests, "uint64").reshape(-1, 2)
