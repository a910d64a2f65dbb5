"""Erasing a student: every row of ours in one transaction, then every file in the data folder, until nothing is left.
What a source delivers afterwards is the business of `keeping_out`; exports and backups are outside of what this can reach."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import polars as pl
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Table,
    and_,
    column,
    delete,
    func,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, distinct_on

from sis_pipeline.connect.errors import ConfigError, InternalError
from sis_pipeline.connect.vault import Vault
from sis_pipeline.crashpoints import crash_point
from sis_pipeline.db import audit
from sis_pipeline.db.tables import (
    SCHEMA,
    conflict_decisions,
    erasures,
    holds,
    integrations,
    metadata,
    quarantine,
    roster_tables,
    snapshot_pages,
    snapshots,
    student_aliases,
    sync_operations,
)
from sis_pipeline.roster.model import ENTITIES
from sis_pipeline.store import keeping_out, statewide, survivorship
from sis_pipeline.store.accounts import spend_usernames
from sis_pipeline.store.files import DataFolder, is_part
from sis_pipeline.store.holds import without_students
from sis_pipeline.store.locks import all_integrations_locked, begin_writing
from sis_pipeline.store.merged import BEFORE, lasting
from sis_pipeline.store.snapshots import GOOD

Record = tuple[str, str]
PERSON = ("student_id", "other_student_id", "person_id", "alias_id")
"""Columns of our tables and frames that hold a student's id."""
BY_RECORD = ("student_links", "student_sources", "near_matches", "identity_decisions")
"""Tables whose integration and sis_id name a student's record, and not an enrollment's or a section's."""
NAMING = {student_aliases: "records", conflict_decisions: "seen"}
"""Tables whose rows about one student may name another one's records, in a list of [integration, sis_id, …]."""
NOW = text(f"{SCHEMA}.clock()")
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom an erasure is about: the ids we gave, those merged away among them, and the records in the systems that
    are nobody else's."""

    district: str
    student_id: str
    ids: tuple[str, ...]
    records: tuple[Record, ...]

    def sis_ids(self, integration: str) -> list[str]:
        return [sis_id for key, sis_id in self.records if key == integration]

    @property
    def integrations(self) -> list[str]:
        return sorted({key for key, _ in self.records})


@dataclass(frozen=True, slots=True)
class Found:
    """What there is of a student. `tables`: rows by table; `holds` are changed, not deleted. `rows`: in snapshots, by
    entity. `files`: to be deleted or written anew, by layer. `delivered_by`: integrations that still deliver the student."""

    student_id: str
    district: str
    merged_from: str | None
    tables: Mapping[str, int]
    rows: Mapping[str, int]
    files: Mapping[str, int]
    delivered_by: tuple[str, ...]
    erasure_id: str | None = None


@dataclass(frozen=True, slots=True)
class Folders:
    """The readings and merges whose folders may hold something of a student. `since`: when an erasure that is under way
    was begun."""

    readings: Sequence[Any]
    merges: Sequence[Any]
    since: datetime | None

    def new_since(self, swept: Folders) -> Folders:
        """Those that were not there when others were swept, or may have written since: a merge that did not end."""
        readings = {row.snapshot_id for row in swept.readings}
        merges = {row.operation_id for row in swept.merges if row.finished_at is not None}
        return Folders(
            [row for row in self.readings if row.snapshot_id not in readings],
            [row for row in self.merges if row.operation_id not in merges],
            self.since,
        )

    def from_before(self, row: Any) -> bool:
        return self.since is None or row.started_at <= self.since


class Erasing:
    """Erases students of this installation."""

    def __init__(self, engine: Engine, files: DataFolder, vault: Callable[[], Vault]) -> None:
        """`vault` is asked for when something is erased: it has the key by which records are kept out."""
        self._engine = engine
        self._files = files
        self._vault = vault

    def plan(self, student_id: str) -> Found:
        """What `erase` would erase; nothing is changed. Raises ConfigError for an id that no student has."""
        with self._engine.connect() as connection:
            subject = _subject(connection, student_id)
            found = self._found(connection, subject, student_id)
            folders = _folders(connection, subject)
        return _with_files(found, self._file_work(folders, subject, None, do=False))

    def erase(self, student_id: str, actor: str, reason: str, *, force: bool = False) -> Found:
        """Erase a student for good. Broken off, it is finished by calling it again.

        Raises ConfigError without a reason, for an unknown id and, unless `force`, where a system still delivers the
        student; AlreadyRunningError while an integration that knows the student is being synced.
        """
        if not (reason.strip() and actor.strip()):
            raise ConfigError(
                "An erasure needs who erases and why.",
                code="config.erasure_reason",
                advice="Give both, and run it again.",
            )
        with self._engine.connect() as connection:
            subject = _subject(connection, student_id)
            found = self._found(connection, subject, student_id)
            begun = _row_under_way(connection, subject.student_id) is not None
        if found.delivered_by and not (force or begun):
            raise ConfigError(
                f"Student {subject.student_id} is still delivered by {', '.join(found.delivered_by)}.",
                code="config.still_delivered",
                advice="Delete the record in that system and sync first: what it delivers would be set aside each time, and "
                "its raw pages hold the student. --force erases all the same.",
            )
        vault = self._vault()
        with self._nobody_syncing(subject):
            erasure_id = self._erase_rows(subject, actor, reason, vault)
            crash_point("erase.rows_gone")
            with self._engine.connect() as connection:  # what was linked while this waited for its turn is in there
                subject = _under_way(connection, subject.student_id) or subject
                folders = _folders(connection, subject)
            found = _with_files(found, self._swept(folders, subject, erasure_id))
            self._finish(subject, erasure_id, folders, actor)
        return replace(found, erasure_id=erasure_id)

    def _found(self, connection: Connection, subject: Subject, asked: str) -> Found:
        """Without what is in files."""
        tables = {name: number for name, number in _counts(connection, subject).items() if number}
        merged_from = asked if asked != subject.student_id else None
        delivered = self._delivered_by(connection, subject)
        return Found(subject.student_id, subject.district, merged_from, tables, {}, {}, delivered)

    def _delivered_by(self, connection: Connection, subject: Subject) -> tuple[str, ...]:
        """Registered integrations whose link to the student is active, or whose newest good snapshot has the record."""
        links = roster_tables["student_links"]
        registered = set(connection.scalars(select(integrations.c.key)))
        active = select(links.c.integration).where(links.c.student_id.in_(subject.ids), links.c.active)
        found = set(connection.scalars(active))
        newest = (
            select(snapshots.c.integration, snapshots.c.school_year, snapshots.c.snapshot_id)
            .ext(distinct_on(snapshots.c.integration))
            .where(snapshots.c.integration.in_(subject.integrations), snapshots.c.verdict.in_(GOOD))
            .order_by(snapshots.c.integration, snapshots.c.started_at.desc())
        )
        for row in connection.execute(newest):
            path = f"roster/{row.integration}/{row.school_year}/{row.snapshot_id}/students.parquet"
            sis_ids = subject.sis_ids(row.integration)
            if self._files.exists(path) and self._mine(path, "students", sis_ids, rejected=False).any():
                found.add(row.integration)
        return tuple(sorted(found & registered))

    @contextmanager
    def _nobody_syncing(self, subject: Subject) -> Iterator[None]:
        query = select(snapshots.c.integration, snapshots.c.school_year).distinct()
        mine = query.where(snapshots.c.integration.in_(subject.integrations))
        with self._engine.connect() as connection:
            readings = [(row.integration, row.school_year) for row in connection.execute(mine)]
        with all_integrations_locked(self._engine, readings):
            yield

    def _erase_rows(self, known: Subject, actor: str, reason: str, vault: Vault) -> str:
        """Every row, in one transaction with the note of what is left to do; the erasure's id.

        An erasure under way is gone on with: a sync since may have brought rows back from files that it had not reached.
        """
        with self._engine.begin() as connection:
            begin_writing(connection, known.district)
            statewide.hold_still(connection)
            begun = _row_under_way(connection, known.student_id)
            subject = _subject(connection, known.student_id)
            others = _doubted_with(connection, subject)
            spend_usernames(connection, subject.district, subject.ids)
            deleted = {table.name: _delete(connection, table, subject) for table in _tables()}
            _name_no_more(connection, subject)
            deleted[holds.name] = without_students(connection, subject.district, frozenset(subject.ids))
            _no_doubt_left(connection, subject.district, others)
            _build_no_more(connection, subject)
            open_merges = (sync_operations.c.district == subject.district) & sync_operations.c.status.in_(
                ("merging", "merged")
            )
            connection.execute(update(sync_operations).where(open_merges).values(status="superseded"))
            if begun is not None:
                again = update(erasures).where(erasures.c.erasure_id == begun.erasure_id).values(begun_at=NOW)
                connection.execute(again)
                keeping_out.remember(connection, vault, str(begun.erasure_id), subject.records)
                return str(begun.erasure_id)
            erasure_id = str(uuid.uuid4())
            connection.execute(
                erasures.insert().values(
                    district=subject.district,
                    erasure_id=erasure_id,
                    student_id=subject.student_id,
                    student_ids=list(subject.ids),
                    records=[list(record) for record in subject.records],
                    erased_by=actor,
                    reason=reason,
                )
            )
            keeping_out.remember(connection, vault, erasure_id, subject.records)
            details = {"erasure_id": erasure_id, "reason": reason, "rows": {k: n for k, n in deleted.items() if n}}
            audit.append(
                connection, "student.erase", subject.student_id, district=subject.district, actor=actor, details=details
            )
            return erasure_id

    def _finish(self, subject: Subject, erasure_id: str, swept: Folders, actor: str) -> None:
        """Prove that nothing is left, and forget the ids. Raises InternalError where something is.

        Folders that were swept are not looked at again: the district waits for this, and PostgreSQL ends a transaction
        that does nothing for long.
        """
        with self._engine.begin() as connection:
            begin_writing(connection, subject.district)
            left = {name: number for name, number in _counts(connection, subject).items() if number}
            new = _folders(connection, subject).new_since(swept)
            left |= Counter(layer for layer, _, _ in self._file_work(new, subject, None, do=False))
            if left:
                raise InternalError(
                    f"Something of student {subject.student_id} is still in {', '.join(sorted(left))}: it came while the "
                    "erasure was under way. Run the command again.",
                    code="internal.erasure",
                )
            row = erasures.c.erasure_id == erasure_id
            connection.execute(update(erasures).where(row).values(student_ids=[], records=[], finished_at=NOW))
            details = {"erasure_id": erasure_id}
            audit.append(
                connection,
                "student.erased",
                subject.student_id,
                district=subject.district,
                actor=actor,
                details=details,
            )

    def _file_work(
        self, folders: Folders, subject: Subject, erasure_id: str | None, *, do: bool
    ) -> Iterator[tuple[str, str, int]]:
        """(layer, entity or file, rows) of every file that holds, or may hold, the student; `do`: erase it first."""
        for row in folders.readings:
            if folders.from_before(row):
                yield from self._raw(row, erasure_id, do=do)
            yield from self._frames(row, subject, do=do)
        for row in folders.merges:
            if folders.from_before(row):
                yield from self._merge(row, subject, erasure_id, do=do)

    def _swept(self, folders: Folders, subject: Subject, erasure_id: str) -> Iterator[tuple[str, str, int]]:
        for done in self._file_work(folders, subject, erasure_id, do=True):
            crash_point("erase.file_done")
            yield done

    def _raw(self, row: Any, erasure_id: str | None, *, do: bool) -> Iterator[tuple[str, str, int]]:
        """A page can't be trusted to name whom it is about, so all of an integration that knows the student go."""
        path = row.path
        pages = [
            f"{folder}/{file}"
            for folder in self._files.names(path)
            if "." not in folder
            for file in self._files.names(f"{path}/{folder}")
        ]
        if do and pages and self._files.exists(f"{path}/{MANIFEST}"):
            self._mark(path, erasure_id)
        for page in pages:
            if do:
                self._files.delete(f"{path}/{page}")
            yield "raw", page, 0

    def _frames(self, row: Any, subject: Subject, *, do: bool) -> Iterator[tuple[str, str, int]]:
        """The counts are put right before the file is: broken off in between, the file still says that it is to be done."""
        sis_ids = subject.sis_ids(row.integration)
        for layer, counts in (("roster", "rows"), ("quarantine", "quarantined")):
            folder = f"{layer}/{row.integration}/{row.school_year}/{row.snapshot_id}"
            for file in self._files.names(folder):
                path, entity = f"{folder}/{file}", file.removesuffix(".parquet")
                if is_part(file):
                    if do:
                        self._files.delete(path)
                    yield layer, entity, 0
                    continue
                mine = self._mine(path, entity, sis_ids, rejected=layer == "quarantine")
                if not mine.any():
                    continue
                if do:
                    frame = self._files.read_frame(path)
                    numbers = frame.filter(mine)["row"].to_list() if layer == "quarantine" else []
                    rest = frame.filter(~mine)
                    self._recount(row.snapshot_id, counts, entity, rest.height, numbers)
                    self._files.write_frame(path, rest, replace=True)
                    crash_point("erase.file_written")
                yield layer, entity, int(mine.sum())

    def _mine(self, path: str, entity: str, sis_ids: Sequence[str], *, rejected: bool) -> pl.Series:
        """Which rows of a standard frame are a student's; of rejected ones also the students that have no id to tell by."""
        names = [column.name for column in ENTITIES.get(entity, ()) if "students" in (column.refers or "")]
        names += ["sis_id"] if entity == "students" else []
        frame = self._files.read_columns(path, {*names, "role"})
        found = [pl.col(name).cast(pl.String).is_in(sis_ids) for name in names if name in frame.columns]
        if rejected:
            found += [pl.col(name).is_null() for name in names if name in frame.columns]
        if not found:
            return pl.Series([], dtype=pl.Boolean)
        mine = pl.any_horizontal(found)
        if "role" in frame.columns and not rejected:
            mine &= pl.col("role").eq_missing("student")
        return frame.select(mine.fill_null(value=False)).to_series()

    def _recount(self, snapshot_id: str, column: str, entity: str, rows: int, quarantined: Sequence[int]) -> None:
        """The hash of the frames stays: nothing that is published changes because of what is gone from both."""
        counted = func.jsonb_set(
            snapshots.c[column], text("cast(:entity as text[])").bindparams(entity=[entity]), func.to_jsonb(rows)
        )
        with self._engine.begin() as connection:
            query = update(snapshots).where(snapshots.c.snapshot_id == snapshot_id, snapshots.c[column].is_not(None))
            connection.execute(query.values({column: counted}))
            connection.execute(
                delete(quarantine).where(
                    quarantine.c.snapshot_id == snapshot_id,
                    quarantine.c.entity == entity,
                    quarantine.c.row.in_(quarantined),
                )
            )

    def _merge(self, row: Any, subject: Subject, erasure_id: str | None, *, do: bool) -> Iterator[tuple[str, str, int]]:
        """All frames of a district's merges go; its manifest keeps what they counted, without the student."""
        frames = [file for file in self._files.names(row.path) if file.endswith(".parquet") or is_part(file)]
        before = [f"{BEFORE}/{file}" for file in self._files.names(f"{row.path}/{BEFORE}")]
        if do and frames and self._files.exists(f"{row.path}/{MANIFEST}"):
            manifest = self._files.read_json(f"{row.path}/{MANIFEST}")
            if not manifest.get("erased"):
                rows = {
                    name: number - self._rows_of(row.path, name, subject) for name, number in manifest["rows"].items()
                }
                self._mark(row.path, erasure_id, rows=rows, files={}, held=[], retired={})
        for file in [*before, *frames]:
            if do:
                self._files.delete(f"{row.path}/{file}")
            yield "merged", file, 0

    def _rows_of(self, folder: str, table: str, subject: Subject) -> int:
        """As the manifest counts them."""
        path = f"{folder}/{table}.parquet"
        if not self._files.exists(path):
            return 0
        frame = lasting(table, self._files.read_columns(path, {*PERSON, "status"})).drop("status", strict=False)
        named = [pl.col(name).is_in(subject.ids) for name in frame.columns]
        return frame.filter(pl.any_horizontal(named)).height if named else 0

    def _mark(self, path: str, erasure_id: str | None, **changes: Any) -> None:
        manifest = self._files.read_json(f"{path}/{MANIFEST}")
        self._files.write_json(f"{path}/{MANIFEST}", {**manifest, **changes, "erased": erasure_id}, replace=True)


def _with_files(found: Found, work: Iterator[tuple[str, str, int]]) -> Found:
    rows: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for layer, name, count in work:
        files[layer] += 1
        if count:
            rows[name] += count
    return replace(found, rows=dict(rows), files=dict(files))


def _folders(connection: Connection, subject: Subject) -> Folders:
    read = select(snapshots).where(snapshots.c.integration.in_(subject.integrations)).order_by(snapshots.c.started_at)
    own = sync_operations.c.district == subject.district
    merges = select(sync_operations).where(own).order_by(sync_operations.c.epoch)
    begun = _row_under_way(connection, subject.student_id)
    return Folders(
        connection.execute(read).all(), connection.execute(merges).all(), begun.begun_at if begun is not None else None
    )


def _subject(connection: Connection, student_id: str) -> Subject:
    """Raises ConfigError for an id that no student has, or had."""
    under_way = _under_way(connection, student_id)
    if under_way is not None:
        return under_way
    alias = select(student_aliases).where(
        student_aliases.c.alias_id == student_id, student_aliases.c.restored_at.is_(None)
    )
    found = connection.execute(alias).first()
    own = found.student_id if found else student_id
    students = roster_tables["students"].c
    district = connection.scalar(select(students.district).where(students.student_id == own))
    if district is None:
        raise ConfigError(
            f"There is no student {student_id}.",
            code="config.no_student",
            advice="`sis students show --ssid …` shows ids; who was erased already has none any more.",
        )
    mine = (student_aliases.c.student_id == own) & student_aliases.c.restored_at.is_(None)
    aliases = connection.execute(select(student_aliases).where(mine)).all()
    ids = sorted({own, *(row.alias_id for row in aliases)})
    had = {tuple(record) for row in aliases for record in row.records}
    return Subject(district, own, tuple(ids), _records(connection, district, ids, had))


def _records(connection: Connection, district: str, ids: Sequence[str], had: Set[Record]) -> tuple[Record, ...]:
    """Those that a student has, or had before a merge, without what a split has given to another student since."""
    found = set(had)
    for name in ("student_links", "student_sources"):
        table = roster_tables[name].c
        query = select(table.integration, table.sis_id).where(table.student_id.in_(ids))
        found |= {tuple(row) for row in connection.execute(query)}
    links = roster_tables["student_links"].c
    record = tuple_(links.integration, links.sis_id)
    others = select(links.integration, links.sis_id).where(
        links.district == district, links.student_id.not_in(ids), record.in_(found)
    )
    return tuple(sorted(found - {tuple(row) for row in connection.execute(others)}))


def _row_under_way(connection: Connection, student_id: str) -> Any:
    named = or_(erasures.c.student_id == student_id, erasures.c.student_ids.contains([student_id]))
    return connection.execute(select(erasures).where(named, erasures.c.finished_at.is_(None))).first()


def _under_way(connection: Connection, student_id: str) -> Subject | None:
    row = _row_under_way(connection, student_id)
    if row is None:
        return None
    return Subject(row.district, row.student_id, tuple(row.student_ids), tuple(tuple(it) for it in row.records))


def _tables() -> list[Table]:
    """Every table that has rows of a student, but the note of the erasure itself."""
    named = [
        table for table in metadata.sorted_tables if any(name in table.c for name in PERSON) and table is not erasures
    ]
    return [*named, quarantine, snapshot_pages]


def _condition(table: Table, subject: Subject) -> ColumnElement[bool]:
    if table is quarantine:
        return (table.c.entity == "students") & _is_record(table.c.integration, table.c.sis_id, subject)
    if table is snapshot_pages:
        return table.c.integration.in_(subject.integrations)
    found: list[ColumnElement[bool]] = [table.c[name].in_(subject.ids) for name in PERSON if name in table.c]
    if table.name in BY_RECORD:
        sides = [side for side in ("", "other_") if f"{side}sis_id" in table.c]
        records = [_is_record(table.c[f"{side}integration"], table.c[f"{side}sis_id"], subject) for side in sides]
        # a student's and a teacher's record may have the same id
        found += [and_(one, table.c.entity == "student") if "entity" in table.c else one for one in records]
    if table.name == "conflicts":  # another student's, from before a record became this one's; a merge writes it anew
        found += [table.c.candidates.contains([{"integration": one, "sis_id": two}]) for one, two in subject.records]
    districts = [table.c[name] == subject.district for name in ("district", "other_district") if name in table.c]
    return and_(or_(*districts), or_(*found))


def _is_record(integration: Any, sis_id: Any, subject: Subject) -> ColumnElement[bool]:
    return tuple_(integration, sis_id).in_(subject.records)


def _naming(table: Table, subject: Subject) -> ColumnElement[bool]:
    """Which rows of a table of NAMING have a record of the student in their list."""
    one = func.jsonb_array_elements(table.c[NAMING[table]]).table_valued(column("value", JSONB), name="one")
    record = (one.c.value[0].astext, one.c.value[1].astext)
    named = select(1).select_from(one).where(_is_record(*record, subject)).correlate(table).exists()
    return and_(table.c.district == subject.district, named)


def _name_no_more(connection: Connection, subject: Subject) -> None:
    """Take the student's records out of what stays: who was merged into another student, and what a person chose for
    one. A choice that went by a record of this student is over, as it is when a value changes."""
    mine = set(subject.records)
    for row in connection.execute(select(student_aliases).where(_naming(student_aliases, subject))).all():
        rest = [record for record in row.records if tuple(record) not in mine]
        same = student_aliases.c.alias_id == row.alias_id
        connection.execute(update(student_aliases).where(same).values(records=rest))
    for row in connection.execute(select(conflict_decisions).where(_naming(conflict_decisions, subject))).all():
        seen = [it if tuple(it[:2]) not in mine else [it[0], None, None] for it in row.seen]
        chosen = None if (row.integration, row.sis_id) in mine else row.sis_id
        same = conflict_decisions.c.decision == row.decision
        connection.execute(update(conflict_decisions).where(same).values(seen=seen, sis_id=chosen))


def _counts(connection: Connection, subject: Subject) -> dict[str, int]:
    """Rows that are to be deleted, or changed, by table."""
    conditions = {table: _condition(table, subject) for table in _tables()}
    for table in NAMING:
        conditions[table] = or_(conditions[table], _naming(table, subject))
    found = {
        table.name: connection.scalar(select(func.count()).select_from(table).where(condition)) or 0
        for table, condition in conditions.items()
    }
    held = [holds.c.rows.contains([[one]]) for one in subject.ids]
    found[holds.name] = connection.scalar(select(func.count()).select_from(holds).where(or_(*held))) or 0
    return found


def _delete(connection: Connection, table: Table, subject: Subject) -> int:
    return connection.execute(delete(table).where(_condition(table, subject))).rowcount


def _doubted_with(connection: Connection, subject: Subject) -> list[str]:
    """The others of near matches: what they wait for is over."""
    table = metadata.tables[f"{SCHEMA}.near_matches"].c
    pairs = select(table.student_id, table.other_student_id).where(
        table.status == "open", or_(table.student_id.in_(subject.ids), table.other_student_id.in_(subject.ids))
    )
    return sorted({one for row in connection.execute(pairs) for one in row} - set(subject.ids))


def _no_doubt_left(connection: Connection, district: str, others: Sequence[str]) -> None:
    near = metadata.tables[f"{SCHEMA}.near_matches"].c
    students = roster_tables["students"]
    waits = select(near.student_id).where(
        near.status == "open",
        or_(near.student_id == students.c.student_id, near.other_student_id == students.c.student_id),
    )
    survivorship.begin_publishing(connection)
    same = (students.c.district == district) & students.c.student_id.in_(others) & ~waits.exists()
    connection.execute(update(students).where(same).values(near_match=False))


def _build_no_more(connection: Connection, subject: Subject) -> None:
    """The next reading is a whole one: the pages that changes would be laid over are deleted."""
    mine = snapshots.c.integration.in_(subject.integrations)
    connection.execute(update(snapshots).where(mine).values(watermark=None))
