"""Snapshots: the pages one reading of a SIS gave, what they prove, and the standard frames made of them.
A page is kept for good as it arrives, so that a reading that was interrupted can be gone on with; once it has come to its
end it is never changed. Which snapshots are merged, and how, is decided by their verdict and in `merged`."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

import pandas as pd
import polars as pl
import pyarrow as pa
from sqlalchemy import ColumnElement, Connection, Engine, Row, Select, Text, bindparam, select, text, update
from sqlalchemy.dialects.postgresql import JSONB, distinct_on

from sis_pipeline.connect.errors import ConfigError, DataError, InternalError
from sis_pipeline.crashpoints import crash_point
from sis_pipeline.db import audit
from sis_pipeline.db.tables import SCHEMA, integrations, snapshot_pages, snapshots
from sis_pipeline.providers.base import RESOURCE_NAME, Origin
from sis_pipeline.roster.frames import empty, to_polars
from sis_pipeline.roster.model import ENTITIES, Kind
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.store import bulk
from sis_pipeline.store.files import DataFolder, digest
from sis_pipeline.store.integrations import check_key
from sis_pipeline.store.locks import AlreadyRunningError

Completeness = Literal["complete", "partial", "delta"]
Verdict = Literal["pending", "complete", "partial", "delta", "rejected"]
GOOD: tuple[Verdict, ...] = ("complete", "partial", "delta")
"""Verdicts with which a snapshot is merged."""
FINDINGS = "findings.json"
"""Beside a snapshot's manifest: what judging it found, for the next one with the same pages."""
WHOLE_ROW = "*"
"""The column of a quarantine line that is about the whole row."""
KEPT_OUT = "of a student who was erased"
QUARANTINE: dict[str, Kind] = {
    "integration": "text", "snapshot_id": "uuid", "entity": "text", "row": "int", "column": "text", "reason": "text",
    "school_year": "text", "sis_id": "text",
}  # fmt: skip
TAKE_OVER = text(f"""
insert into {SCHEMA}.quarantine ({", ".join(f'"{name}"' for name in QUARANTINE)})
select {", ".join(":id" if name == "snapshot_id" else f'"{name}"' for name in QUARANTINE)}
from {SCHEMA}.quarantine where snapshot_id = :before
""")
REJECTED = pa.schema({"row": pa.int64(), "sis_id": pa.string(), "column": pa.string(), "reason": pa.string()})
AGED = [*snapshots.c, text(f"{SCHEMA}.clock() - snapshots.started_at as age")]
LAST_READINGS = f"""
select distinct on (resource) resource, reading
from {SCHEMA}.snapshots, jsonb_each(evidence) as one(resource, reading),
  coalesce((reading ->> 'complete')::boolean, false) as complete
where integration = :integration and school_year = :school_year
  and completeness is not null and base_snapshot_id is null
order by resource, (:proven and complete) desc, (:proven and (complete or (reading ->> 'rows')::int > 0)) desc,
  started_at desc, snapshot_id
"""
ROW_SEEDS = (1, 2)
"""Of two hashes of a row, so that no two rows are taken for one."""
NEWEST = (snapshots.c.integration, snapshots.c.started_at.desc(), snapshots.c.snapshot_id)


class Reading(Protocol):
    """What `providers.reading` says about one resource; a dataclass, kept whole as the evidence of the verdict."""

    @property
    def resource(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One reading of one integration for one school year. `completeness`: what the reading proved, None while it runs.

    `verdict`: pending until the standard frames were checked; only complete, partial and delta are merged.
    `evidence`: by resource, the reading. `rows` and `quarantined`: by entity. `age`: since it started.
    `resumed`: how often it was gone on with; `api_calls` and `seconds` are then those of the last time.
    `base_snapshot_id`, `since`: of a reading of changes, what they are laid over and from when on they were asked for.
    `watermark`: the source's time when it began; None where nothing can be built on it. `drift`: see defs.deltas.
    `raw_expired_at` and the like: since when that layer of it is given up, see `retention`.
    """

    integration: str
    school_year: str
    snapshot_id: str
    provider: str
    path: str
    completeness: Completeness | None
    verdict: Verdict
    evidence: Mapping[str, Any]
    content_hash: str | None
    roster_hash: str | None
    rows: Mapping[str, int]
    quarantined: Mapping[str, int]
    api_calls: int | None
    bytes: int | None
    seconds: float | None
    run_id: str | None
    base_snapshot_id: str | None
    since: datetime | None
    watermark: datetime | None
    drift: Mapping[str, Any] | None
    settings_hash: str | None
    resumed: int
    started_at: datetime
    finished_at: datetime | None
    raw_expired_at: datetime | None
    roster_expired_at: datetime | None
    quarantine_expired_at: datetime | None
    age: timedelta

    @property
    def good(self) -> bool:
        return self.verdict in GOOD

    def folder(self, layer: Literal["raw", "roster", "quarantine"]) -> str:
        return f"{layer}/{self.integration}/{self.school_year}/{self.snapshot_id}"


@dataclass(frozen=True, slots=True)
class KeptPage:
    """One page in the manifest. `bytes` and `sha256` are of the body as it was sent, before compression."""

    number: int
    file: str
    records: int
    bytes: int
    sha256: str
    about: Mapping[str, str]


class SnapshotStore:
    """The snapshots below `data_url` (a folder or any fsspec URL) and their rows in PostgreSQL."""

    def __init__(self, engine: Engine, data_url: str) -> None:
        self.engine = engine
        self.files = DataFolder(data_url)

    def begin(
        self,
        integration: str,
        provider: str,
        school_year: str,
        run_id: str | None = None,
        *,
        settings_hash: str | None = None,
    ) -> SnapshotWriter:
        """Start a snapshot; until `finish` it is a pending row, whatever happens to this process."""
        snapshot_id = str(uuid.uuid4())
        path = f"raw/{check_key(integration)}/{_year(school_year)}/{snapshot_id}"
        with self.engine.begin() as connection:
            connection.execute(
                snapshots.insert().values(
                    integration=integration,
                    provider=provider,
                    school_year=school_year,
                    snapshot_id=snapshot_id,
                    path=path,
                    run_id=run_id,
                    settings_hash=settings_hash,
                )
            )
        return SnapshotWriter(self, self.get(snapshot_id))

    def go_on(
        self,
        integration: str,
        provider: str,
        school_year: str,
        run_id: str | None,
        *,
        settings_hash: str,
        within: timedelta,
    ) -> SnapshotWriter | None:
        """The interrupted reading to go on with, or None. Only for who holds the integration's lock.

        It must be the newest, have kept pages, be of the same provider and settings, and not have begun longer ago than
        `within`: its first pages are that old. All others are given up for good. A process that is still at one of them,
        because it lost the lock, is kept from writing to it any more.
        """
        going_on: SnapshotWriter | None = None
        newest = select(*AGED).where(_of(integration, school_year), snapshots.c.finished_at.is_(None)).order_by(*NEWEST)
        with self.engine.connect() as connection:
            unfinished = [_snapshot(row) for row in connection.execute(newest)]
        for place, one in enumerate(unfinished):
            if place:
                reason = "a newer reading took its place"
            elif (one.provider, one.settings_hash) != (provider, settings_hash):
                reason = "the integration was changed since"
            elif one.age > within:
                reason = "it was too old to go on with"
            else:
                going_on = self._taken_over(one, run_id)
                continue
            self._give_up(one, reason)
        return going_on

    def _taken_over(self, left: Snapshot, run_id: str | None) -> SnapshotWriter | None:
        """The writer that goes on with an interrupted reading; None where it had kept no page, or has ended meanwhile.

        It is made ours before its pages are looked at: from then on no other process can add one.
        """
        ours = {"run_id": run_id, "resumed": left.resumed + 1, "evidence": None}
        with self.engine.begin() as connection:
            if not connection.execute(update(snapshots).where(_held_as(left)).values(**ours)).rowcount:
                return None
            kept = _kept_pages(connection, left.snapshot_id)
        snapshot = self.get(left.snapshot_id)
        if kept:
            return SnapshotWriter(self, snapshot, kept)
        self._give_up(snapshot, "it was interrupted before it had kept a page")
        return None

    def _give_up(self, left: Snapshot, reason: str) -> None:
        """End a reading for good that nobody goes on with; one that has come to its end meanwhile stays as it is."""
        with suppress(AlreadyRunningError):
            SnapshotWriter(self, left).abandon(reason)

    def unfinished(self, older_than: timedelta) -> list[Snapshot]:
        """Readings that began longer ago and have not come to an end; somebody may still be at one of them."""
        old = text(f"snapshots.started_at < {SCHEMA}.clock() - :age").bindparams(age=older_than)
        query = select(*AGED).where(snapshots.c.finished_at.is_(None), old).order_by(*NEWEST)
        with self.engine.connect() as connection:
            return [_snapshot(row) for row in connection.execute(query)]

    def get(self, snapshot_id: str) -> Snapshot:
        """Raises ConfigError where there is none."""
        found = self._newest(snapshots.c.snapshot_id == snapshot_id)
        if found is None:
            raise ConfigError(f"There is no snapshot {snapshot_id}.", code="config.no_snapshot")
        return found

    def latest(self, integration: str, school_year: str) -> Snapshot | None:
        """The newest snapshot of an integration and school year, whatever became of it."""
        return self._newest(_of(integration, school_year))

    def latest_read(self, integration: str, school_year: str, *, run_id: str | None = None) -> Snapshot | None:
        """The newest snapshot whose reading came to its end, that of a run before any other."""
        read = _of(integration, school_year) & snapshots.c.completeness.is_not(None)
        own = self._newest(read & (snapshots.c.run_id == run_id)) if run_id else None
        return own or self._newest(read)

    def good_years(self) -> list[str]:
        """The school years that have a good snapshot."""
        query = select(snapshots.c.school_year).where(snapshots.c.verdict.in_(GOOD)).distinct()
        with self.engine.connect() as connection:
            return sorted(connection.scalars(query))

    def latest_good(
        self, school_year: str, district: str | None = None, integrations: Sequence[str] | None = None
    ) -> list[Snapshot]:
        """The newest good snapshot of every registered integration, by key; paused ones contribute their last.

        `district`: only integrations that may deliver for it. `integrations`: only these.
        """
        condition = (snapshots.c.school_year == school_year) & snapshots.c.verdict.in_(GOOD)
        newest = select(*AGED).ext(distinct_on(snapshots.c.integration)).where(condition).order_by(*NEWEST)
        registered = self._registered(district)
        with self.engine.connect() as connection:
            found = [_snapshot(row) for row in connection.execute(newest)]
        return [
            one
            for one in found
            if one.integration in registered and (integrations is None or one.integration in integrations)
        ]

    def head(self, integration: str, school_year: str, *, before: Snapshot | None = None) -> Snapshot | None:
        """The newest good reading that changes can be laid over, a complete one or itself one of changes; `before`: the
        newest that began before that one."""
        fit = _of(integration, school_year) & snapshots.c.watermark.is_not(None)
        fit &= snapshots.c.verdict.in_(("complete", "delta"))
        return self._newest(fit if before is None else fit & (snapshots.c.started_at < before.started_at))

    def chain(self, last: Snapshot | None) -> list[Snapshot]:
        """A full reading and the readings of changes laid over it up to `last`, the oldest first; empty without one."""
        found: list[Snapshot] = []
        while last is not None:
            found.insert(0, last)
            last = self.get(last.base_snapshot_id) if last.base_snapshot_id else None
        return found

    def build_no_more(self, snapshot_id: str) -> None:
        """Nothing is laid over this reading any more, nor over those that are laid over it."""
        with self.engine.begin() as connection:
            later = select(snapshots.c.snapshot_id).where(snapshots.c.snapshot_id == snapshot_id).cte(recursive=True)
            later = later.union(
                select(snapshots.c.snapshot_id).where(snapshots.c.base_snapshot_id == later.c.snapshot_id)
            )
            chained = snapshots.c.snapshot_id.in_(select(later.c.snapshot_id))
            connection.execute(update(snapshots).where(chained).values(watermark=None))

    def keep_drift(self, snapshot_id: str, drift: Mapping[str, Any]) -> Snapshot:
        """Keep what the deltas before a full reading had missed: counts, no values."""
        self._set(snapshot_id, drift=dict(drift))
        return self.get(snapshot_id)

    def last_rows(self, integration: str, school_year: str) -> dict[str, int]:
        """Rows per resource, as its newest full reading that was proven complete found them, however long ago that was:
        what a reading did not see may still be there. Of a resource that never was proven, as last seen, if it ever was;
        empty where nothing was ever read to its end."""
        return {name: int(reading["rows"]) for name, reading in self._last(integration, school_year, proven=True)}

    def last_pages(self, integration: str, school_year: str) -> dict[str, int]:
        """Pages per resource of the newest full reading that came to its end; empty where there is none."""
        return {name: int(reading["pages"]) for name, reading in self._last(integration, school_year, proven=False)}

    def _last(self, integration: str, school_year: str, *, proven: bool) -> list[tuple[str, Mapping[str, Any]]]:
        """Per resource its newest reading to the end, `proven`: a complete one before any other."""
        query = (
            text(LAST_READINGS)
            .bindparams(integration=integration, school_year=school_year, proven=proven)
            .columns(resource=Text, reading=JSONB)
        )
        with self.engine.connect() as connection:
            return [(row.resource, row.reading) for row in connection.execute(query)]

    def open_raw(self, snapshot_id: str) -> StoredPages:
        """The raw pages of a finished snapshot. Raises DataError where its manifest is not the one that was written."""
        snapshot = self.get(snapshot_id)
        if snapshot.completeness is None:
            raise ConfigError(
                f"The reading of snapshot {snapshot_id} of {snapshot.integration} never came to its end.",
                code="config.no_snapshot",
            )
        _check_kept(snapshot, "raw pages", snapshot.raw_expired_at)
        manifest = self.files.read_json(f"{snapshot.path}/manifest.json")
        if manifest.get("erased"):
            raise DataError(
                f"The raw pages of snapshot {snapshot_id} of {snapshot.integration} were deleted because a student was erased.",
                code="data.erased",
                advice="It can't be decoded again; sync again.",
            )
        kept = {
            name: [KeptPage(**page) for page in resource["pages"]] for name, resource in manifest["resources"].items()
        }
        if content_hash(kept) != snapshot.content_hash:
            raise _tampered(snapshot, "its manifest")
        return StoredPages(self.files, snapshot, kept)

    def write_roster(
        self,
        snapshot: Snapshot,
        frames: Mapping[str, pd.DataFrame],
        rejected: Mapping[str, pd.DataFrame],
        standard: Mapping[str, pd.DataFrame],
        kept_out: Mapping[str, int] | None = None,
    ) -> Snapshot:
        """Keep the validated frames of a snapshot, by entity, and the rejected rows, whole, with their reasons.

        `rejected`: row (position in `standard`), sis_id, column, reason. `standard`: the frames before validation.
        `kept_out`: rows by entity that are in none of them, because their student was erased; only counted.
        The snapshot is pending until `set_verdict`. Writing it again replaces what was there.
        """
        self._set(snapshot.snapshot_id, verdict="pending", roster_hash=None)
        good = {entity: to_polars(frame, ENTITIES[entity]) for entity, frame in frames.items()}
        lines = {entity: _lines(snapshot, entity, frame) for entity, frame in rejected.items() if len(frame)}
        for entity, frame in good.items():
            self.files.write_frame(f"{snapshot.folder('roster')}/{entity}.parquet", frame, replace=True)
        for entity, frame in lines.items():
            whole = _whole_rows(standard[entity], frame)
            self.files.write_frame(f"{snapshot.folder('quarantine')}/{entity}.parquet", whole, replace=True)
        with self.engine.begin() as connection:
            connection.execute(
                text(f"delete from {SCHEMA}.quarantine where snapshot_id = :id"), {"id": snapshot.snapshot_id}
            )
            for frame in (*lines.values(), *_unnamed_lines(snapshot, kept_out or {})):
                bulk.copy_in(connection, f"{SCHEMA}.quarantine", QUARANTINE, frame)
            connection.execute(
                update(snapshots)
                .where(snapshots.c.snapshot_id == snapshot.snapshot_id)
                .values(
                    rows={entity: frame.height for entity, frame in good.items()},
                    quarantined={entity: frame["row"].n_unique() for entity, frame in lines.items()},
                    roster_hash=roster_hash(good, lines),
                )
            )
        return self.get(snapshot.snapshot_id)

    def discard_roster(self, snapshot: Snapshot) -> None:
        """Delete the frames and rejected rows of a snapshot again. Its pages stay, to be judged anew."""
        for layer in ("roster", "quarantine"):
            self.files.delete_folder(snapshot.folder(layer))
        with self.engine.begin() as connection:
            connection.execute(
                text(f"delete from {SCHEMA}.quarantine where snapshot_id = :id"), {"id": snapshot.snapshot_id}
            )
        self._set(snapshot.snapshot_id, verdict="pending", rows={}, quarantined={}, roster_hash=None)

    def keep_findings(self, snapshot: Snapshot, findings: Mapping[str, Any]) -> None:
        """Keep what judging a snapshot found: counts, reasons and codes, no student's values."""
        self.files.write_json(f"{snapshot.path}/{FINDINGS}", findings, replace=True)

    def findings(self, snapshot: Snapshot) -> dict[str, Any] | None:
        """What `keep_findings` kept; None where it kept nothing, and once a student was erased from the snapshot."""
        manifest, path = f"{snapshot.path}/manifest.json", f"{snapshot.path}/{FINDINGS}"
        if not (self.files.exists(path) and self.files.exists(manifest)) or self.files.read_json(manifest).get(
            "erased"
        ):
            return None
        return self.files.read_json(path)

    def with_same_pages(self, snapshot: Snapshot) -> Snapshot | None:
        """The newest other good snapshot, of a full reading, that has exactly the pages of this one."""
        same = _of(snapshot.integration, snapshot.school_year) & snapshots.c.verdict.in_(GOOD)
        same &= (snapshots.c.content_hash == snapshot.content_hash) & snapshots.c.base_snapshot_id.is_(None)
        return self._newest(same & (snapshots.c.snapshot_id != snapshot.snapshot_id))

    def last_good(self, snapshot: Snapshot) -> Snapshot | None:
        """The newest other good snapshot of the same integration and school year."""
        same = _of(snapshot.integration, snapshot.school_year) & snapshots.c.verdict.in_(GOOD)
        return self._newest(same & (snapshots.c.snapshot_id != snapshot.snapshot_id))

    def take_over(self, snapshot: Snapshot, before: Snapshot) -> Snapshot:
        """Give a snapshot the standard frames and the rejected rows of another one, without looking into them. It is
        pending until `set_verdict`."""
        mine = snapshot.snapshot_id
        self._set(mine, verdict="pending", roster_hash=None)
        folders = [(before.folder("roster"), snapshot.folder("roster"), before.rows)]
        folders += [(before.folder("quarantine"), snapshot.folder("quarantine"), before.quarantined)]
        for old, new, entities in folders:
            for entity in entities:
                self.files.write(f"{new}/{entity}.parquet", self.files.read(f"{old}/{entity}.parquet"), replace=True)
        with self.engine.begin() as connection:
            connection.execute(text(f"delete from {SCHEMA}.quarantine where snapshot_id = :id"), {"id": mine})
            connection.execute(TAKE_OVER, {"id": mine, "before": before.snapshot_id})
            same = {name: getattr(before, name) for name in ("rows", "quarantined", "roster_hash")}
            connection.execute(update(snapshots).where(snapshots.c.snapshot_id == mine).values(**same))
        return self.get(mine)

    def read_roster(self, snapshot: Snapshot, entity: str) -> pl.DataFrame:
        """The good rows of an entity, typed; empty where the snapshot has none of it."""
        if entity not in snapshot.rows:
            return empty(ENTITIES[entity])
        _check_kept(snapshot, "standard frames", snapshot.roster_expired_at)
        return self.files.read_frame(f"{snapshot.folder('roster')}/{entity}.parquet")

    def read_quarantine(self, snapshot: Snapshot, entity: str) -> pl.DataFrame:
        """The rejected rows of an entity as the provider delivered them, behind `row` and `reasons` (a JSON array)."""
        if entity not in snapshot.quarantined:
            return pl.DataFrame(schema={"row": pl.Int64, "reasons": pl.String})
        _check_kept(snapshot, "rejected rows", snapshot.quarantine_expired_at)
        return self.files.read_frame(f"{snapshot.folder('quarantine')}/{entity}.parquet")

    def set_verdict(self, snapshot_id: str, verdict: Verdict) -> Snapshot:
        """Say what a snapshot is worth. Raises InternalError for more than its reading proved, or without frames."""
        snapshot = self.get(snapshot_id)
        if verdict in GOOD and snapshot.roster_hash is None:
            raise InternalError(
                f"Snapshot {snapshot_id} has no standard frames; it can't be {verdict}.", code="internal.state"
            )
        if verdict in {"complete", "delta"} and verdict != snapshot.completeness:
            raise InternalError(
                f"Snapshot {snapshot_id} was read {snapshot.completeness}; it can't be {verdict}.",
                code="internal.state",
            )
        with self.engine.begin() as connection:
            connection.execute(update(snapshots).where(snapshots.c.snapshot_id == snapshot_id).values(verdict=verdict))
            counts = {"rows": sum(snapshot.rows.values()), "quarantined": sum(snapshot.quarantined.values())}
            _audit(connection, snapshot, "sync.verdict", {"verdict": verdict, **counts})
        return self.get(snapshot_id)

    def _set(self, snapshot_id: str, **values: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(update(snapshots).where(snapshots.c.snapshot_id == snapshot_id).values(**values))

    def _newest(self, condition: ColumnElement[bool]) -> Snapshot | None:
        with self.engine.connect() as connection:
            row = connection.execute(select(*AGED).where(condition).order_by(*NEWEST).limit(1)).one_or_none()
        return _snapshot(row) if row else None

    def _registered(self, district: str | None) -> set[str]:
        query = select(integrations.c.key, integrations.c.district, integrations.c.organisations)
        with self.engine.connect() as connection:
            return {
                row.key
                for row in connection.execute(query)
                if district is None or district in {row.district, *row.organisations.values()}
            }


def _audit(connection: Connection, snapshot: Snapshot, action: str, details: Mapping[str, object]) -> None:
    """An entry about a reading, last in its transaction."""
    about = {"snapshot_id": snapshot.snapshot_id, "school_year": snapshot.school_year, **details}
    district = audit.district_of(connection, snapshot.integration)
    audit.append(connection, action, snapshot.integration, district=district, details=about)


@dataclass(frozen=True, slots=True)
class PageBefore:
    """A page that an interrupted reading kept, as providers.reading takes it over (its `Kept`)."""

    page: KeptPage
    origin: Origin
    total: int | None
    _files: DataFolder
    _snapshot: Snapshot

    def body(self) -> bytes:
        """Raises DataError where it is not the one that was written."""
        return _body(self._files, self._snapshot, self.page)


@dataclass(slots=True)
class _Row:
    """A page with its row of snapshot_pages."""

    page: KeptPage
    origin: Origin | None
    total: int | None


@dataclass(slots=True)
class _Collection:
    """The pages of one resource. `sure`: how many of them belong to the reading; those behind are from before."""

    rows: list[_Row] = field(default_factory=list)
    sure: int = 0

    @property
    def pages(self) -> list[KeptPage]:
        return [row.page for row in self.rows[: self.sure]]


class SnapshotWriter:
    """One reading as it is kept, page by page. Nothing is good before `finish`, and nothing is added after it.

    A page counts as kept once its row is committed, which is after its file is on disk. What a killed process left
    without a row is removed when the reading is gone on with. A writer whose reading another process has taken over
    changes nothing of it any more: each of its methods that writes raises AlreadyRunningError.
    """

    def __init__(
        self, store: SnapshotStore, snapshot: Snapshot, before: Mapping[str, list[_Row]] | None = None
    ) -> None:
        self._store = store
        self.snapshot = snapshot
        self._resources = {name: _Collection(list(rows)) for name, rows in (before or {}).items()}
        self._before = {name: tuple(rows) for name, rows in (before or {}).items()}
        self._closed = False
        if before:
            self._sweep()

    @property
    def closed(self) -> bool:
        """Whether it takes no more pages."""
        return self._closed

    @property
    def pages_before(self) -> int:
        """How many pages the interrupted reading had kept."""
        return sum(map(len, self._before.values()))

    def before(self, resource: str) -> list[PageBefore]:
        """The pages that the interrupted reading kept of a resource, from the first on, as far as they can be taken
        over. Safe to be asked by several threads."""
        found = []
        for row in self._before.get(resource, ()):
            if row.origin is None:
                break
            found.append(PageBefore(row.page, row.origin, row.total, self._store.files, self.snapshot))
        return found

    def build_on(self, base: Snapshot | None, *, since: datetime | None, watermark: datetime | None) -> None:
        """Say what the reading is laid over, None for a full one; and when it began by the source's clock, None where
        nothing may be built on it. A reading that is gone on with began when it began."""
        self._check_open()
        self._set(base_snapshot_id=base.snapshot_id if base else None, since=since, watermark=watermark)

    def add_page(
        self,
        resource: str,
        about: Mapping[str, str],
        page_number: int,
        body: bytes,
        records: int,
        *,
        origin: Origin | None = None,
        total: int | None = None,
        kept: bool = False,
    ) -> None:
        """Keep one page. Page 1 of a resource that has pages starts it over: those are dropped.

        `origin` and `total` let a later process go on behind it. `kept`: it is one of `before`, and nothing is written.
        """
        self._check_open()
        if not RESOURCE_NAME.fullmatch(resource):
            raise InternalError(
                f"{resource[:80]!r} can't name a resource: letters, digits, hyphens and underscores only.",
                code="internal.plugin",
            )
        collection = self._resources.setdefault(resource, _Collection())
        if page_number == 1:
            collection.sure = 0
        if kept and collection.sure < len(collection.rows):
            collection.sure += 1
            return
        crash_point("read.page_received")
        self._drop(resource, collection)
        file = self._file(resource, collection.sure + 1)
        self._store.files.write(f"{self.snapshot.path}/{file}", pa.compress(body, codec="zstd", asbytes=True))
        crash_point("read.page_written")
        page = KeptPage(page_number, file, records, len(body), digest(body), dict(about))
        row = _Row(page, origin, total)
        try:
            self._note(self._values(resource, collection.sure + 1, row))
        except AlreadyRunningError:
            with suppress(FileNotFoundError):  # who took the reading over may have removed it
                self._store.files.delete(f"{self.snapshot.path}/{file}")
            raise
        collection.rows.append(row)
        collection.sure += 1
        crash_point("read.page_committed")

    def _file(self, resource: str, number: int) -> str:
        """Where a page is kept. Each process that goes on has names of its own, so that it never meets a file which the
        one before was just writing."""
        resumed = self.snapshot.resumed
        return f"{resource}/{number:05d}{f'.{resumed}' if resumed else ''}.json.zst"

    def _values(self, resource: str, number: int, row: _Row) -> dict[str, Any]:
        origin = row.origin or Origin("", {})
        return {
            **{name: value for name, value in asdict(row.page).items() if name != "number"},
            "integration": self.snapshot.integration,
            "snapshot_id": self.snapshot.snapshot_id,
            "resource": resource,
            "number": number,
            "request": origin.request,
            "headers": dict(origin.headers),
            "token_version": origin.token_version,
            "total": row.total,
        }

    def _note(self, values: Mapping[str, Any]) -> None:
        """The row of a page, in one statement with what `_ours` asks: there are thousands of them."""
        with self._store.engine.begin() as connection:
            if connection.scalar(_NOTE_PAGE, {**values, "resumed": self.snapshot.resumed}) is None:
                self._closed = True
                raise _taken_over(self.snapshot)

    def finish(
        self,
        readings: Iterable[Reading],
        completeness: Completeness,
        api_calls: int,
        seconds: float,
        *,
        builds: bool = True,
    ) -> Snapshot:
        """Write the manifest, then the row. `seconds`: what the reading took. `builds`: whether something may be laid
        over it; where not, its watermark goes with the same transaction that ends it, and not before: a reading that is
        gone on with must know when it began."""
        self._check_open()
        crash_point("read.before_finish")
        evidence = {reading.resource: _plain(reading) for reading in readings}
        for name, collection in self._resources.items():
            self._drop(name, collection)
        kept = {name: collection.pages for name, collection in self._resources.items() if collection.sure}
        found = {
            "completeness": completeness,
            "evidence": evidence,
            "content_hash": content_hash(kept),
            "api_calls": api_calls,
            "bytes": sum(page.bytes for pages in kept.values() for page in pages),
            "seconds": seconds,
        }
        # Nobody can take the reading over, and write a manifest of its own, while this transaction has its row.
        with self._ours() as connection:
            # Who lost the reading in the midst of this may have left one, after we had looked for leftovers.
            left_over = self.snapshot.resumed > 0
            manifest = self._manifest(kept, found)
            self._store.files.write_json(f"{self.snapshot.path}/manifest.json", manifest, replace=left_over)
            crash_point("read.manifest_written")
            self._close(connection, **found, **({} if builds else {"watermark": None}))
        self._closed = True
        crash_point("read.finished")
        return self._store.get(self.snapshot.snapshot_id)

    def _manifest(self, kept: Mapping[str, list[KeptPage]], found: Mapping[str, Any]) -> dict[str, Any]:
        facts = ("integration", "provider", "school_year", "snapshot_id")
        evidence = found["evidence"]
        return {
            "version": 1,
            **{name: getattr(self.snapshot, name) for name in facts},
            "started_at": self.snapshot.started_at.isoformat(),
            **{name: found[name] for name in ("completeness", "api_calls", "seconds", "content_hash")},
            "resources": {
                name: {"pages": [asdict(page) for page in kept.get(name, [])], "reading": evidence.get(name)}
                for name in sorted({*kept, *evidence})
            },
        }

    def interrupt(self, reason: str) -> int:
        """Leave a reading to be gone on with by a later one; how many pages it has. `reason` as for `abandon`."""
        self._check_open()
        self._closed = True
        pages = sum(len(collection.rows) for collection in self._resources.values())
        self._set(evidence={"interrupted": reason, "pages": pages})
        return pages

    def abandon(self, reason: str) -> Snapshot:
        """End a reading that failed; its pages stay for inspection. `reason` is for a person and holds no values."""
        self._check_open()
        self._closed = True
        with self._ours() as connection:
            self._close(connection, verdict="rejected", evidence={"abandoned": reason})
        return self._store.get(self.snapshot.snapshot_id)

    def _close(self, connection: Connection, **values: Any) -> None:
        """End the reading; from then on its pages are in the manifest, or nobody's."""
        mine = self.snapshot.snapshot_id
        connection.execute(snapshot_pages.delete().where(snapshot_pages.c.snapshot_id == mine))
        ended = {"finished_at": text(f"{SCHEMA}.clock()"), **values}
        connection.execute(update(snapshots).where(snapshots.c.snapshot_id == mine).values(**ended))
        told: dict[str, object] = {
            name: values[name] for name in ("completeness", "api_calls", "bytes") if name in values
        }
        failed = values["evidence"] if "verdict" in values else {}
        _audit(connection, self.snapshot, "sync.read", {**told, **failed})

    def _set(self, **values: Any) -> None:
        with self._ours() as connection:
            connection.execute(update(snapshots).where(_held_as(self.snapshot)).values(**values))

    @contextmanager
    def _ours(self) -> Iterator[Connection]:
        """A transaction during which nobody can take the reading over.

        The lock of the integration does not do for that: it ends with its connection, and a database that was restarted
        or failed over gives it to the next process while this one is still reading.
        """
        with self._store.engine.begin() as connection:
            held = _held(self.snapshot.snapshot_id, self.snapshot.resumed)
            if connection.scalar(held) is None:
                self._closed = True
                raise _taken_over(self.snapshot)
            yield connection

    def _drop(self, resource: str, collection: _Collection) -> None:
        """Drop the pages behind those that are sure: first their rows, so that a row always has its file."""
        gone = collection.rows[collection.sure :]
        if not gone:
            return
        with self._ours() as connection:
            connection.execute(
                snapshot_pages.delete().where(
                    snapshot_pages.c.snapshot_id == self.snapshot.snapshot_id,
                    snapshot_pages.c.resource == resource,
                    snapshot_pages.c.number > collection.sure,
                )
            )
        del collection.rows[collection.sure :]
        for row in gone:
            self._store.files.delete(f"{self.snapshot.path}/{row.page.file}")

    def _sweep(self) -> None:
        """Remove the files that have no row: a page or a manifest that a killed process had just written."""
        files, path = self._store.files, self.snapshot.path
        kept = {row.page.file for rows in self._before.values() for row in rows}
        for name in files.names(path):
            inside = [f"{name}/{file}" for file in files.names(f"{path}/{name}")] if _is_folder(name) else [name]
            for file in inside:
                if file not in kept:
                    files.delete(f"{path}/{file}")

    def _check_open(self) -> None:
        if self._closed:
            raise InternalError(
                f"Snapshot {self.snapshot.snapshot_id} is closed; it takes no more pages.", code="internal.state"
            )


class StoredPages:
    """The raw pages of a snapshot, each checked against the manifest as it is read."""

    def __init__(self, files: DataFolder, snapshot: Snapshot, kept: Mapping[str, list[KeptPage]]) -> None:
        self._files = files
        self._snapshot = snapshot
        self._kept = kept
        self.school_year = SchoolYear.parse(snapshot.school_year)

    @property
    def resources(self) -> list[str]:
        return [name for name, pages in self._kept.items() if pages]

    def bodies(self, resource: str) -> Iterator[tuple[Mapping[str, str], bytes]]:
        """(about, body) of every page, in order; nothing for a resource without pages. Raises DataError for a page that
        was changed after it was written."""
        for page in self._kept.get(resource, []):
            yield page.about, _body(self._files, self._snapshot, page)


def _body(files: DataFolder, snapshot: Snapshot, page: KeptPage) -> bytes:
    packed = files.read(f"{snapshot.path}/{page.file}")
    try:
        body = bytes(pa.decompress(packed, decompressed_size=page.bytes, codec="zstd", asbytes=True))
    except (OSError, pa.ArrowInvalid):
        raise _tampered(snapshot, page.file) from None
    if digest(body) != page.sha256:
        raise _tampered(snapshot, page.file)
    return body


def _is_folder(name: str) -> bool:
    """Of what lies in a snapshot's folder: resources have no dot in their names, files always do."""
    return RESOURCE_NAME.fullmatch(name) is not None


def _kept_pages(connection: Connection, snapshot_id: str) -> dict[str, list[_Row]]:
    """By resource, in order, the pages of a reading under way."""
    table = snapshot_pages.c
    query = select(snapshot_pages).where(table.snapshot_id == snapshot_id).order_by(table.resource, table.number)
    found: dict[str, list[_Row]] = {}
    for row in connection.execute(query):
        page = KeptPage(row.number, row.file, row.records, row.bytes, row.sha256, row.about)
        origin = Origin(row.request, row.headers, row.token_version) if row.request else None
        found.setdefault(row.resource, []).append(_Row(page, origin, row.total))
    return found


def content_hash(kept: Mapping[str, Sequence[KeptPage]]) -> str:
    """Hash over all pages in order, what is said about them included."""
    parts = [
        [name, [[page.sha256, sorted(page.about.items())] for page in kept[name]]]
        for name in sorted(kept)
        if kept[name]
    ]
    return digest(json.dumps(parts).encode())


def roster_hash(good: Mapping[str, pl.DataFrame], rejected: Mapping[str, pl.DataFrame]) -> str:
    """Hash of the standard frames' content and of which rows are in quarantine (they are present, too).

    The order of rows does not matter. Another version of Polars may give the same frames another hash: then they are merged
    once more.
    """
    whole = hashlib.sha256()
    for entity, frame in sorted({**good, **{f"rejected {name}": frame for name, frame in rejected.items()}}.items()):
        part = frame if entity in good else frame.select("sis_id").unique()
        whole.update(f"{entity} {part.height}\n".encode())
        rows = pl.DataFrame([part.hash_rows(seed).alias(str(seed)) for seed in ROW_SEEDS])
        whole.update(rows.sort(rows.columns).to_numpy().tobytes())
    return whole.hexdigest()


def fingerprint(found: Iterable[Snapshot]) -> str:
    """Equal content and verdicts of the same integrations give the same fingerprint, whatever was read again."""
    return digest(json.dumps(sorted([one.integration, one.roster_hash, one.verdict] for one in found)).encode())


def _plain(reading: Reading) -> dict[str, Any]:
    return {name: value for name, value in asdict(reading).items() if name != "resource"}  # type: ignore[call-overload]


def _lines(snapshot: Snapshot, entity: str, rejected: pd.DataFrame) -> pl.DataFrame:
    """The reasons as rows of the table quarantine."""
    return (
        pl.DataFrame(pa.Table.from_pandas(rejected, schema=REJECTED, preserve_index=False))
        .with_columns(
            pl.col("column").fill_null(WHOLE_ROW),
            integration=pl.lit(snapshot.integration),
            snapshot_id=pl.lit(snapshot.snapshot_id),
            school_year=pl.lit(snapshot.school_year),
            entity=pl.lit(entity),
        )
        .unique(["row", "column", "reason"], maintain_order=True)
        .select(QUARANTINE.keys())
    )


def _unnamed_lines(snapshot: Snapshot, kept_out: Mapping[str, int]) -> Iterator[pl.DataFrame]:
    """A line per row of an erased student, which says nothing of it: there is no such row, so its number is negative."""
    for entity, rows in kept_out.items():
        numbers = pd.RangeIndex(-1, -1 - rows, -1)
        nothing = {"row": numbers, "sis_id": None, "column": WHOLE_ROW, "reason": KEPT_OUT}
        yield _lines(snapshot, entity, pd.DataFrame(nothing))


def _whole_rows(standard: pd.DataFrame, lines: pl.DataFrame) -> pl.DataFrame:
    """The rejected rows as they were delivered, behind their number and reasons."""
    reasons = lines.group_by("row", maintain_order=True).agg(pl.struct("column", "reason")).sort("row")
    kept = standard.iloc[reasons["row"].to_list()].reset_index(drop=True)
    return pl.concat(
        [
            reasons.select(
                "row",
                pl.Series("reasons", [json.dumps(one) for one in reasons["column"].to_list()], dtype=pl.String),
            ),
            pl.DataFrame(pa.Table.from_pandas(kept, preserve_index=False)),
        ],
        how="horizontal",
    )


def _of(integration: str, school_year: str) -> ColumnElement[bool]:
    return (snapshots.c.integration == integration) & (snapshots.c.school_year == school_year)


def _held_as(mine: Snapshot) -> ColumnElement[bool]:
    """The reading as long as it has not ended and nobody has gone on with it since: who does counts `resumed` up."""
    return _is_held(mine.snapshot_id, mine.resumed)


def _is_held(snapshot_id: object, resumed: object) -> ColumnElement[bool]:
    same = (snapshots.c.snapshot_id == snapshot_id) & (snapshots.c.resumed == resumed)
    return same & snapshots.c.finished_at.is_(None)


def _held(snapshot_id: object, resumed: object) -> Select[tuple[str]]:
    """The reading's id, locked until the transaction ends; nothing where it is not held any more."""
    return select(snapshots.c.snapshot_id).where(_is_held(snapshot_id, resumed)).with_for_update(key_share=True)


_GIVEN = [bindparam(column.key, type_=column.type) for column in snapshot_pages.c if column.server_default is None]
_NOTE_PAGE = (
    snapshot_pages.insert()
    .from_select(
        [value.key for value in _GIVEN],
        select(*_GIVEN).select_from(_held(bindparam("snapshot_id"), bindparam("resumed")).cte()),
    )
    .returning(snapshot_pages.c.number)
)


def _snapshot(row: Row[Any]) -> Snapshot:
    values = dict(row._mapping)  # noqa: SLF001
    return Snapshot(**values | {name: values[name] or {} for name in ("evidence", "rows", "quarantined")})


def _year(school_year: str) -> str:
    try:
        return SchoolYear.parse(school_year).key
    except ValueError as error:
        raise ConfigError(str(error), code="config.school_year") from None


def _taken_over(mine: Snapshot) -> AlreadyRunningError:
    return AlreadyRunningError(
        f"The reading of {mine.integration} for {mine.school_year} is not this process's any more: it had lost the lock of "
        "the sync, as happens when the database is restarted, and another process took the reading over or ended it.",
        advice="Nothing needs to be done: what the other process reads counts, and nothing of it was changed.",
        integration=mine.integration,
        school_year=mine.school_year,
    )


def _check_kept(snapshot: Snapshot, what: str, expired_at: datetime | None) -> None:
    if expired_at is not None:
        raise DataError(
            f"The {what} of snapshot {snapshot.snapshot_id} of {snapshot.integration} are no longer kept, since "
            f"{expired_at:%Y-%m-%d}.",
            code="data.expired",
            advice="Sync again; docs/retention.md says what is kept for how long.",
        )


def _tampered(snapshot: Snapshot, what: str) -> DataError:
    return DataError(
        f"Snapshot {snapshot.snapshot_id} of {snapshot.integration} was changed after it was written: {what} is not as recorded.",
        code="data.tampered",
        advice="Restore the data folder from a backup, or sync again.",
    )
