"""Snapshots: the pages one reading of a SIS gave, what they prove, and the standard frames made of them.
A snapshot is written once and never changed; which snapshots are merged, and how, is decided by their verdict and in `merged`."""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

import pandas as pd
import polars as pl
import pyarrow as pa
from sqlalchemy import ColumnElement, Engine, Row, select, text, update
from sqlalchemy.dialects.postgresql import distinct_on

from sis_pipeline.connect.errors import ConfigError, DataError, InternalError
from sis_pipeline.db.tables import SCHEMA, integrations, snapshots
from sis_pipeline.providers.base import RESOURCE_NAME
from sis_pipeline.roster.frames import empty, to_polars
from sis_pipeline.roster.model import ENTITIES, Kind
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.store import bulk
from sis_pipeline.store.files import DataFolder, digest
from sis_pipeline.store.integrations import check_key

Completeness = Literal["complete", "partial", "delta"]
Verdict = Literal["pending", "complete", "partial", "delta", "rejected"]
GOOD: tuple[Verdict, ...] = ("complete", "partial", "delta")
"""Verdicts with which a snapshot is merged."""
WHOLE_ROW = "*"
"""The column of a quarantine line that is about the whole row."""
QUARANTINE: dict[str, Kind] = {
    "integration": "text", "snapshot_id": "uuid", "entity": "text", "row": "int", "column": "text", "reason": "text",
    "school_year": "text", "sis_id": "text",
}  # fmt: skip
REJECTED = pa.schema({"row": pa.int64(), "sis_id": pa.string(), "column": pa.string(), "reason": pa.string()})
AGED = [*snapshots.c, text(f"{SCHEMA}.clock() - snapshots.started_at as age")]
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
    started_at: datetime
    finished_at: datetime | None
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
        self._engine = engine
        self.files = DataFolder(data_url)

    def begin(self, integration: str, provider: str, school_year: str, run_id: str | None = None) -> SnapshotWriter:
        """Start a snapshot; until `finish` it is a pending row, whatever happens to this process."""
        snapshot_id = str(uuid.uuid4())
        path = f"raw/{check_key(integration)}/{_year(school_year)}/{snapshot_id}"
        with self._engine.begin() as connection:
            connection.execute(
                snapshots.insert().values(
                    integration=integration,
                    provider=provider,
                    school_year=school_year,
                    snapshot_id=snapshot_id,
                    path=path,
                    run_id=run_id,
                )
            )
        return SnapshotWriter(self, self.get(snapshot_id))

    def get(self, snapshot_id: str) -> Snapshot:
        """Raises ConfigError where there is none."""
        found = self._newest(snapshots.c.snapshot_id == snapshot_id)
        if found is None:
            raise ConfigError(f"There is no snapshot {snapshot_id}.")
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
        with self._engine.connect() as connection:
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
        with self._engine.connect() as connection:
            found = [_snapshot(row) for row in connection.execute(newest)]
        return [
            one
            for one in found
            if one.integration in registered and (integrations is None or one.integration in integrations)
        ]

    def last_rows(self, integration: str, school_year: str) -> dict[str, int]:
        """Rows per resource of the newest reading that came to its end; empty where there is none."""
        return self._last(integration, school_year, "rows")

    def last_pages(self, integration: str, school_year: str) -> dict[str, int]:
        """Pages per resource of the newest reading that came to its end; empty where there is none."""
        return self._last(integration, school_year, "pages")

    def _last(self, integration: str, school_year: str, what: str) -> dict[str, int]:
        read = self._newest(_of(integration, school_year) & snapshots.c.completeness.is_not(None))
        return {name: int(reading[what]) for name, reading in read.evidence.items()} if read else {}

    def open_raw(self, snapshot_id: str) -> StoredPages:
        """The raw pages of a finished snapshot. Raises DataError where its manifest is not the one that was written."""
        snapshot = self.get(snapshot_id)
        if snapshot.completeness is None:
            raise ConfigError(f"The reading of snapshot {snapshot_id} of {snapshot.integration} never came to its end.")
        manifest = self.files.read_json(f"{snapshot.path}/manifest.json")
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
    ) -> Snapshot:
        """Keep the validated frames of a snapshot, by entity, and the rejected rows, whole, with their reasons.

        `rejected`: row (position in `standard`), sis_id, column, reason. `standard`: the frames before validation.
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
        with self._engine.begin() as connection:
            connection.execute(
                text(f"delete from {SCHEMA}.quarantine where snapshot_id = :id"), {"id": snapshot.snapshot_id}
            )
            for frame in lines.values():
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

    def read_roster(self, snapshot: Snapshot, entity: str) -> pl.DataFrame:
        """The good rows of an entity, typed; empty where the snapshot has none of it."""
        if entity not in snapshot.rows:
            return empty(ENTITIES[entity])
        return self.files.read_frame(f"{snapshot.folder('roster')}/{entity}.parquet")

    def read_quarantine(self, snapshot: Snapshot, entity: str) -> pl.DataFrame:
        """The rejected rows of an entity as the provider delivered them, behind `row` and `reasons` (a JSON array)."""
        if entity not in snapshot.quarantined:
            return pl.DataFrame(schema={"row": pl.Int64, "reasons": pl.String})
        return self.files.read_frame(f"{snapshot.folder('quarantine')}/{entity}.parquet")

    def set_verdict(self, snapshot_id: str, verdict: Verdict) -> Snapshot:
        """Say what a snapshot is worth. Raises InternalError for more than its reading proved, or without frames."""
        snapshot = self.get(snapshot_id)
        if verdict in GOOD and snapshot.roster_hash is None:
            raise InternalError(f"Snapshot {snapshot_id} has no standard frames; it can't be {verdict}.")
        if verdict in {"complete", "delta"} and verdict != snapshot.completeness:
            raise InternalError(f"Snapshot {snapshot_id} was read {snapshot.completeness}; it can't be {verdict}.")
        self._set(snapshot_id, verdict=verdict)
        return self.get(snapshot_id)

    def _set(self, snapshot_id: str, **values: Any) -> None:
        with self._engine.begin() as connection:
            connection.execute(update(snapshots).where(snapshots.c.snapshot_id == snapshot_id).values(**values))

    def _newest(self, condition: ColumnElement[bool]) -> Snapshot | None:
        with self._engine.connect() as connection:
            row = connection.execute(select(*AGED).where(condition).order_by(*NEWEST).limit(1)).one_or_none()
        return _snapshot(row) if row else None

    def _registered(self, district: str | None) -> set[str]:
        query = select(integrations.c.key, integrations.c.district, integrations.c.organisations)
        with self._engine.connect() as connection:
            return {
                row.key
                for row in connection.execute(query)
                if district is None or district in {row.district, *row.organisations.values()}
            }


class SnapshotWriter:
    """One reading as it is kept, page by page. Nothing is good before `finish`, and nothing is added after it."""

    def __init__(self, store: SnapshotStore, snapshot: Snapshot) -> None:
        self._store = store
        self.snapshot = snapshot
        self._kept: dict[str, list[KeptPage]] = {}
        self._closed = False

    def add_page(self, resource: str, about: Mapping[str, str], page_number: int, body: bytes, records: int) -> None:
        """Keep one page. Page 1 of a resource that has pages starts it over: those are dropped."""
        self._check_open()
        if not RESOURCE_NAME.fullmatch(resource):
            raise InternalError(
                f"{resource[:80]!r} can't name a resource: letters, digits, hyphens and underscores only."
            )
        if page_number == 1:
            self._drop(resource)
        file = f"{resource}/{len(self._kept.get(resource, [])) + 1:05d}.json.zst"
        self._store.files.write(f"{self.snapshot.path}/{file}", pa.compress(body, codec="zstd", asbytes=True))
        page = KeptPage(page_number, file, records, len(body), digest(body), dict(about))
        self._kept.setdefault(resource, []).append(page)

    def finish(
        self, readings: Iterable[Reading], completeness: Completeness, api_calls: int, seconds: float
    ) -> Snapshot:
        """Write the manifest, then the row. `seconds`: what the reading took."""
        self._check_open()
        evidence = {reading.resource: _plain(reading) for reading in readings}
        whole = content_hash(self._kept)
        size = sum(page.bytes for pages in self._kept.values() for page in pages)
        self._store.files.write_json(
            f"{self.snapshot.path}/manifest.json",
            {
                "version": 1,
                "integration": self.snapshot.integration,
                "provider": self.snapshot.provider,
                "school_year": self.snapshot.school_year,
                "snapshot_id": self.snapshot.snapshot_id,
                "started_at": self.snapshot.started_at.isoformat(),
                "completeness": completeness,
                "api_calls": api_calls,
                "seconds": seconds,
                "content_hash": whole,
                "resources": {
                    name: {"pages": [asdict(page) for page in self._kept.get(name, [])], "reading": evidence.get(name)}
                    for name in sorted({*self._kept, *evidence})
                },
            },
        )
        return self._close(
            completeness=completeness,
            evidence=evidence,
            content_hash=whole,
            api_calls=api_calls,
            bytes=size,
            seconds=seconds,
        )

    def abandon(self, reason: str) -> Snapshot:
        """End a reading that failed; its pages stay for inspection. `reason` is for a person and holds no values."""
        self._check_open()
        return self._close(verdict="rejected", evidence={"abandoned": reason})

    def _close(self, **values: Any) -> Snapshot:
        self._closed = True
        self._store._set(self.snapshot.snapshot_id, finished_at=text(f"{SCHEMA}.clock()"), **values)  # noqa: SLF001
        return self._store.get(self.snapshot.snapshot_id)

    def _drop(self, resource: str) -> None:
        for page in self._kept.pop(resource, []):
            self._store.files.delete(f"{self.snapshot.path}/{page.file}")

    def _check_open(self) -> None:
        if self._closed:
            raise InternalError(f"Snapshot {self.snapshot.snapshot_id} is closed; it takes no more pages.")


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
            packed = self._files.read(f"{self._snapshot.path}/{page.file}")
            try:
                body = pa.decompress(packed, decompressed_size=page.bytes, codec="zstd", asbytes=True)
            except (OSError, pa.ArrowInvalid):
                raise _tampered(self._snapshot, page.file) from None
            if digest(body) != page.sha256:
                raise _tampered(self._snapshot, page.file)
            yield page.about, body


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

    The order of rows does not matter. Texts are always quoted and nulls never, so that no two contents look alike.
    """
    whole = hashlib.sha256()
    for entity, frame in sorted({**good, **{f"rejected {name}": frame for name, frame in rejected.items()}}.items()):
        part = frame if entity in good else frame.select("sis_id").unique()
        whole.update(entity.encode())
        lines = io.BytesIO()
        part.sort("sis_id").write_csv(lines, quote_style="non_numeric", null_value="null")
        whole.update(lines.getbuffer())
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


def _snapshot(row: Row[Any]) -> Snapshot:
    values = dict(row._mapping)  # noqa: SLF001
    return Snapshot(**values | {name: values[name] or {} for name in ("evidence", "rows", "quarantined")})


def _year(school_year: str) -> str:
    try:
        return SchoolYear.parse(school_year).key
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _tampered(snapshot: Snapshot, what: str) -> DataError:
    return DataError(
        f"Snapshot {snapshot.snapshot_id} of {snapshot.integration} was changed after it was written: {what} is not as recorded.",
        advice="Restore the data folder from a backup, or sync again.",
    )
