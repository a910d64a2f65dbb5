"""Merge operations: gathering what a merge of one district's school year depends on, and keeping what it decided.
The merge itself is the roster's, its publication is in `publish`."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import polars as pl
import structlog
from sqlalchemy import Connection, Engine, Row, func, select, update

import sis_pipeline.roster
from sis_pipeline import __version__
from sis_pipeline.connect.errors import ConfigError, DataError, InternalError, TransientError
from sis_pipeline.crashpoints import crash_point
from sis_pipeline.db.tables import quarantine, sync_operations
from sis_pipeline.roster.contract import (
    LAST_SAID,
    PUBLICATION,
    DistrictInputs,
    IntegrationInput,
    Memory,
    MergedRoster,
    MergeStats,
)
from sis_pipeline.roster.guard import Hold, Part
from sis_pipeline.roster.model import CONFLICTS, ENTITIES, MERGED, STALE, STUDENT_SOURCES, Kind, Table
from sis_pipeline.roster.policies import Policies
from sis_pipeline.roster.presence import RECORD
from sis_pipeline.roster.thresholds import Thresholds
from sis_pipeline.store import bulk, conflicts, decisions, erased, former_names, guarding, survivorship, withdrawals
from sis_pipeline.store.districts import of_district
from sis_pipeline.store.files import digest
from sis_pipeline.store.integrations import Integration, all_of, check_district
from sis_pipeline.store.known import KNOWN, NOTHING_KNOWN, WRITES, KeptFrames, KnownTables, writes_mark
from sis_pipeline.store.locks import lock_district
from sis_pipeline.store.news import News, news_of
from sis_pipeline.store.snapshots import Snapshot, SnapshotStore, fingerprint
from sis_pipeline.store.sources import hash_of_sources

log = structlog.get_logger(__name__)

EXTRA_FRAMES = ("near_matches", "cut_chains", "recycled")
"""Frames of a MergedRoster that are kept with it but are no published tables."""
NEWS: Final = "news"
"""How the files of what a merge left otherwise than it was begin, and key of what the manifest says about them."""
SAID: Final = "said"
"""Frame of a MergedRoster's memory, and key of what the manifest says about it."""
TOOLS: Final = ("polars",)
"""Packages that have a say in what a merge remembers: hashes of rows are a version's own."""
NO_OPERATION = str(uuid.UUID(int=0))
"""What names an operation that is not opened: of a merge that is only looked at."""
BEFORE = "before"
"""Folder of an operation, and key of its summary: the rows of tables shared by all school years as they were before."""
SEEN: dict[str, Kind] = {"first_seen": "timestamp"}
SAID_BEFORE: Final = """
select distinct on (r.integration, r.sis_id) r.*
from unnest(%s::text[], %s::text[]) as asked (integration, sis_id)
join sis.student_sources r on r.district = %s and r.integration = asked.integration and r.sis_id = asked.sis_id
where r.school_year < %s order by r.integration, r.sis_id, r.school_year desc
"""


class ErasedMeanwhileError(TransientError):
    """The merge may have read a student who was erased since: gather and merge again."""

    default_code = "transient.superseded"


@dataclass(frozen=True, slots=True)
class Operation:
    """One merge of a district and school year. `epoch` rises with every one; `released` are the holds it lets through.

    `published_before`: school year -> epoch that the whole district had published when the merge read it. The merge
    may be published only on top of exactly that. `undoes`: see `undo`. `withheld`: integration -> fingerprints of its
    snapshots that were undone, where the newest is one of them and what was published before was taken instead.
    `frames_expired_at`: since when its frames are given up, see `retention`.
    """

    operation_id: str
    district: str
    school_year: str
    epoch: int
    base_epoch: int
    status: Literal["merging", "merged", "published", "superseded", "failed"]
    published_before: Mapping[str, int]
    fingerprint: str
    inputs: Mapping[str, Mapping[str, Any]]
    summary: Mapping[str, Any] | None
    path: str
    undoes: str | None
    withheld: Mapping[str, Sequence[str]]
    frames_expired_at: datetime | None


@dataclass(frozen=True, slots=True)
class Terms:
    """What a merge depends on beside snapshots, released holds and the published state. `integrations`: of those it read,
    or could have read. `rules`: decisions, settings, policies and edits, as they are hashed."""

    version: str
    integrations: Mapping[str, Sequence[object]]
    rules: Sequence[str]


@dataclass(frozen=True, slots=True)
class Gathered:
    """An operation that was opened, and what its merge takes. `decided`: the mark of the decisions it honours; `edited`:
    that of the edits of `students` that it knows; `known_erasures`: that of the erasures that it knows."""

    operation: Operation
    inputs: DistrictInputs
    terms: Terms
    decided: str
    edited: str | None = None
    known_erasures: str | None = None


@dataclass(frozen=True, slots=True)
class Preview:
    """What a merge would take, of which no operation was opened. `published_before` as in `Operation`."""

    inputs: DistrictInputs
    published_before: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Basis:
    """What a merge goes by. `inputs` without the records, and named as no operation is."""

    found: Sequence[Snapshot]
    integrations: Mapping[str, Integration]
    inputs: DistrictInputs
    published_before: Mapping[str, int]
    fingerprint: str
    terms: Terms
    decided: str
    edited: str | None
    known_erasures: str | None
    withheld: Mapping[str, Sequence[str]]


class MergeStore:
    """The merge operations and their frames, under `merged/` in the data folder."""

    def __init__(self, engine: Engine, snapshots: SnapshotStore) -> None:
        self._engine = engine
        self._snapshots = snapshots
        self.files = snapshots.files

    def districts_of(self, school_year: str) -> list[str]:
        """The districts with a registered integration that has a good snapshot of the school year."""
        read = {one.integration for one in self._snapshots.latest_good(school_year)}
        return sorted({district for one in self._integrations() if one.key in read for district in one.districts})

    def stale_districts(self, school_year: str) -> list[str]:
        """The districts whose newest snapshots, holds, decisions, settings, edits or integrations are not those of the last
        published merge, in which a date has come since, or whose roster names a student that another year's merge found
        to be another one."""
        with self._engine.connect() as connection:
            last = {row.district: row for row in connection.execute(_last_published(school_year))}
            outrun = decisions.naming_aliases(connection, school_year)
            today = guarding.today_of(connection).isoformat()
        due = {district for district, row in last.items() if row.due is not None and row.due <= today}
        return [
            one
            for one in self.districts_of(school_year)
            if one in outrun | due or one not in last or self.fingerprint(one, school_year) != last[one].fingerprint
        ]

    def fingerprint(self, district: str, school_year: str, rules: Sequence[object] = ()) -> str:
        """Hash of what a merge depends on, but for the published state.

        `rules`: what is asked of this merge in particular. The guard's settings, the policies and what people edited are
        always part of it.
        """
        found, _ = self._to_merge(district, school_year)
        with self._engine.connect() as connection:
            released = guarding.released(connection, district, school_year)
            own = _rules(connection, district, school_year)
            decided = decisions.mark(connection, district)
        return _fingerprint(found, released, _terms(self._integrations(district), [decided, *rules, *own]))

    def gather(
        self,
        district: str,
        school_year: str,
        *,
        run_id: str | None = None,
        as_of: date | None = None,
        policies: Policies | None = None,
        thresholds: Thresholds | None = None,
        whole: bool = False,
    ) -> Gathered:
        """Open an operation and read everything its merge depends on, the published state at one point in time.

        `as_of`: the day the roster is judged on; the database's, in UTC, where unset. `policies`, `thresholds`: in place
        of the district's own. `whole`: as DistrictInputs.whole, and read all that is published from the tables. Raises
        ConfigError where no integration of the district has a good snapshot of the school year.
        """
        basis = self._basis(district, school_year, as_of=as_of, policies=policies, thresholds=thresholds, whole=whole)
        operation = self.open(
            district,
            school_year,
            before=basis.published_before,
            mark=basis.fingerprint,
            inputs={one.integration: _used(one) for one in basis.found},
            run_id=run_id,
            withheld=basis.withheld,
        )
        inputs = self._inputs(basis, operation.operation_id)
        return Gathered(operation, inputs, basis.terms, basis.decided, basis.edited, basis.known_erasures)

    def preview(self, district: str, school_year: str) -> Preview:
        """What a merge would take now; nothing is written. Raises as `gather`."""
        basis = self._basis(district, school_year)
        return Preview(self._inputs(basis, NO_OPERATION), basis.published_before)

    def published_years(self, district: str) -> list[str]:
        """The school years that a district has published."""
        with self._engine.connect() as connection:
            return sorted(published_epochs(connection, check_district(district)))

    def _basis(
        self,
        district: str,
        school_year: str,
        *,
        as_of: date | None = None,
        policies: Policies | None = None,
        thresholds: Thresholds | None = None,
        whole: bool = False,
    ) -> _Basis:
        found, withheld = self._to_merge(check_district(district), school_year)
        if not found:
            raise ConfigError(
                f"No integration of {district} has a good snapshot for {school_year}.",
                code="config.no_snapshot",
                advice="Run `sis sync` first, and see `sis integration list` for what failed.",
            )
        rules: list[object] = [rule for rule in (policies, thresholds) if rule is not None]
        with steady_view(self._engine) as connection:
            before = published_epochs(connection, district)
            erasures = erased.mark(connection, district)
            today = as_of or guarding.today_of(connection)
            rulings = guarding.rulings(connection, district, school_year, today)
            rules += _rules(connection, district, school_year)
            own = thresholds or guarding.thresholds(connection, district)
            own_policies = policies or survivorship.policies(connection, district)
            edits = survivorship.edits(connection, district)
            chosen = conflicts.decided(connection, district)
            edited = survivorship.edited(connection, district, school_year)
            calendar = guarding.calendar(connection, district, school_year)
            withdrawn = withdrawals.standing(connection, district, school_year)
            writes = writes_mark(connection)
            known = NOTHING_KNOWN if whole else self.known(connection, district, school_year, writes)
            memory = None if whole else self.memory(connection, district, school_year, writes)
            existing = _existing(connection, district, school_year, known)
            rejected = _quarantined(connection, found)
            decided = decisions.mark(connection, district)
            of_students, of_staff = (decisions.standing(connection, district, one) for one in ("student", "staff"))
            aliases = decisions.aliases(connection, district)
            called = former_names.known_former_names(connection, district)
        integrations = {one.key: one for one in self._integrations(district)}
        released = frozenset(ruling.fingerprint for ruling in rulings.released)
        inputs = DistrictInputs(
            district=district,
            school_year=school_year,
            as_of=today,
            operation_id=NO_OPERATION,
            integrations={one.integration: _input(integrations[one.integration], one) for one in found},
            records={},
            existing=existing,
            quarantined=rejected,
            policies=own_policies,
            thresholds=own,
            decisions=of_students,
            staff_decisions=of_staff,
            aliases=aliases,
            former_names=called,
            edits=edits,
            decided=chosen,
            rulings=rulings,
            calendar=calendar,
            withdrawals=withdrawn,
            memory=memory,
            whole=whole,
        )
        terms = _terms(integrations.values(), [decided, *rules])
        mark = _fingerprint(found, released, terms)
        return _Basis(found, integrations, inputs, before, mark, terms, decided, edited, erasures, withheld)

    def _inputs(self, basis: _Basis, operation_id: str) -> DistrictInputs:
        records = self._records(basis.integrations, basis.found, basis.inputs.district)
        inputs = replace(basis.inputs, operation_id=operation_id, records=records)
        return replace(inputs, said_before=self._said_before(inputs))

    def _said_before(self, inputs: DistrictInputs) -> pl.DataFrame:
        """See DistrictInputs; in a year's first merge these are all records, and afterwards those that come back."""
        if "students" not in inputs.records:
            return inputs.said_before
        linked = inputs.records["students"].join(inputs.existing["student_links"], on=RECORD, how="semi")
        back = linked.join(inputs.existing["student_sources"], on=RECORD, how="anti")
        if back.is_empty():
            return inputs.said_before
        kinds = {column.name: column.kind for column in STUDENT_SOURCES if column.name in LAST_SAID}
        asked = [back[name].to_list() for name in RECORD]
        with self._engine.connect() as connection:
            return bulk.copy_out(connection, SAID_BEFORE, kinds, [*asked, inputs.district, inputs.school_year]).select(
                LAST_SAID
            )

    def write_merged(self, gathered: Gathered, merged: MergedRoster) -> Operation:
        """Keep what the merge decided, for good, and mark the operation merged. Raises ErasedMeanwhileError, and keeps
        nothing, where a student was erased since it was gathered."""
        operation, inputs = gathered.operation, gathered.inputs
        waiting = [ruling.fingerprint for ruling in inputs.rulings.waiting]
        self.keep(
            operation,
            merged,
            released=inputs.released,
            waiting=waiting,
            terms=gathered.terms,
            decided=gathered.decided,
            edited=gathered.edited,
            known_erasures=gathered.known_erasures,
            news=news_of(inputs, merged) if operation.base_epoch and not inputs.whole else None,
        )
        crash_point("merge.frames_written")
        self._keep_nobody_erased(gathered)
        self._mark(operation, "merged", merged.stats)
        return self.get(operation.operation_id)

    def _keep_nobody_erased(self, gathered: Gathered) -> None:
        """An erasure that began before the frames were written may have looked here too early; a later one finds them."""
        operation = gathered.operation
        with self._engine.connect() as connection:
            if erased.mark(connection, operation.district) == gathered.known_erasures:
                return
        self.files.delete_folder(operation.path)
        raise ErasedMeanwhileError(
            f"A student of {operation.district} was erased while its roster was merged.",
            advice="Nothing of the merge was kept. Merge the district again.",
            operation_id=operation.operation_id,
        )

    def keep(
        self,
        operation: Operation,
        merged: MergedRoster,
        *,
        released: Collection[str],
        waiting: Collection[str],
        terms: Terms | None,
        decided: str,
        edited: str | None,
        known_erasures: str | None,
        news: Mapping[str, News] | None = None,
    ) -> None:
        """Write the frames of an operation and, last, what the decisions and erasures are that it knows."""
        extra = {name: getattr(merged, name) for name in EXTRA_FRAMES}
        if merged.memory is not None:
            extra[SAID] = merged.memory.said
        for name, one in (news or {}).items():
            extra |= {f"{NEWS}-fresh-{name}": one.fresh, f"{NEWS}-replaced-{name}": one.replaced}
        hashes = {
            name: self.files.write_frame(f"{operation.path}/{name}.parquet", frame)
            for name, frame in {**merged.frames, **extra}.items()
        }
        self.files.write_json(
            f"{operation.path}/manifest.json",
            {
                "version": 1,
                "operation_id": operation.operation_id,
                "files": hashes,
                "rows": {name: lasting(name, frame).height for name, frame in merged.frames.items()},
                "released": sorted(released),
                "waiting": sorted(waiting),
                "terms": asdict(terms) if terms else None,
                "decided": decided,
                "edited": edited,
                "known_erasures": known_erasures,
                "settled": list(merged.settled),
                SAID: _remembered(merged.memory),
                NEWS: {name: one.rows for name, one in news.items()} if news else None,
                "held": [asdict(hold) for hold in merged.held],
                "retired": dict(merged.retired),
                "retired_staff": dict(merged.retired_staff),
                "stats": asdict(merged.stats),
            },
        )

    def read_merged(self, operation: Operation) -> MergedRoster:
        """What the merge decided, each frame read when it is asked for. Raises DataError where it is no longer kept and,
        then, for a file that was changed since."""
        if operation.frames_expired_at is not None:
            raise DataError(
                f"The frames of operation {operation.operation_id} are no longer kept, since "
                f"{operation.frames_expired_at:%Y-%m-%d}.",
                code="data.expired",
                advice="Merge the district again; the next merge starts from what is published now.",
            )
        manifest = self.manifest(operation)
        if manifest.get("erased"):
            raise DataError(
                f"The frames of operation {operation.operation_id} were deleted because a student was erased.",
                code="data.erased",
                advice="Merge the district again; the next merge starts from what is published now.",
            )
        extra = self._kept_frames(operation, manifest["files"], EXTRA_FRAMES)
        return MergedRoster(
            frames=self._kept_frames(operation, manifest["files"], MERGED),
            held=tuple(_hold(one) for one in manifest["held"]),
            retired=manifest["retired"],
            retired_staff=manifest["retired_staff"],
            stats=MergeStats(**manifest["stats"]),
            settled=tuple(manifest.get("settled", ())),  # kept by an earlier version
            near_matches=extra["near_matches"],
            cut_chains=extra["cut_chains"],
            recycled=extra["recycled"],
        )

    def set_aside(self, district: str, school_year: str, entity: str, record: tuple[str, str]) -> dict[str, Any]:
        """What a record says of which nothing is published, see MergedRoster.recycled; empty where that is not kept."""
        operation = self.newest(district, school_year, "published")
        if operation is None or not self.kept(operation):
            return {}
        frame = self.read_merged(operation).recycled
        mine = dict(zip((*RECORD, "entity"), (*record, entity), strict=True))
        if not {*mine} <= {*frame.columns}:  # kept by an earlier version
            return {}
        return next(frame.filter(pl.col(name) == value for name, value in mine.items()).iter_rows(named=True), {})

    def cut_chains(self, district: str | None = None) -> list[dict[str, str]]:
        """As MergedRoster.cut_chains, with `district`, of the latest school year that each district has published."""
        found = []
        for one in sorted({it for part in self._integrations(district) for it in part.districts}):
            with self._engine.connect() as connection:
                years = published_epochs(connection, one)
            operation = self.newest(one, max(years), "published") if years and district in (None, one) else None
            if operation is not None and self.kept(operation):
                chains = self.read_merged(operation).cut_chains
                found += [{"district": one, **row} for row in chains.iter_rows(named=True)]
        return found

    def known(self, connection: Connection, district: str, school_year: str, writes: str) -> KnownTables:
        """The tables of a school year whose rows of a district are sure to be what its last publication left. `writes`:
        writes_mark of now."""
        found = self._left_alone(connection, district, school_year, writes)
        if found is None:
            return NOTHING_KNOWN
        operation, manifest = found
        return KnownTables(self._kept_frames(operation, manifest["files"], KNOWN))

    def memory(self, connection: Connection, district: str, school_year: str, writes: str) -> Memory | None:
        """What the merge of the last publication remembers, where it holds: as `known`, and the rules are the same."""
        found = self._left_alone(connection, district, school_year, writes)
        if found is None:
            return None
        operation, manifest = found
        about = manifest.get(SAID)
        if about is None or about["made_by"] != _code():
            return None
        try:
            said = self._kept_frames(operation, manifest["files"], [SAID])[SAID]
        except DataError as error:  # then everybody is merged anew
            log.warning("memory.unreadable", operation_id=operation.operation_id, code=error.code)
            return None
        return Memory(said, about["context"], date.fromisoformat(about["as_of"]))

    def news(self, connection: Connection, operation: Operation, writes: str) -> dict[str, News] | None:
        """By table, what a merge left otherwise than it was; None where it did not note that, or where the tables may not be
        as it read them: nobody but the pipeline may have written to them since the publication before. `writes`:
        writes_mark of now."""
        manifest = self.manifest(operation)
        rows, hashes = manifest.get(NEWS), manifest["files"]
        if rows is None or self._left_alone(connection, operation.district, operation.school_year, writes) is None:
            return None

        def read(part: str) -> pl.DataFrame:
            return self.files.read_frame(f"{operation.path}/{NEWS}-{part}.parquet", hashes[f"{NEWS}-{part}"])

        return {name: News(read(f"fresh-{name}"), read(f"replaced-{name}"), count) for name, count in rows.items()}

    def _left_alone(
        self, connection: Connection, district: str, school_year: str, writes: str
    ) -> tuple[Operation, Mapping[str, Any]] | None:
        """The last published operation and its manifest, where nobody wrote to its tables beside the pipeline since."""
        epoch = published_epochs(connection, district).get(school_year)
        if epoch is None:
            return None
        same = (sync_operations.c.district == district) & (sync_operations.c.school_year == school_year)
        row = connection.execute(select(sync_operations).where(same, sync_operations.c.epoch == epoch)).one()
        operation = _operation(row)
        if (operation.summary or {}).get(WRITES) != writes or not self.kept(operation):
            return None
        manifest = self.manifest(operation)
        return (operation, manifest) if manifest.get("known_erasures") == erased.mark(connection, district) else None

    def _kept_frames(self, operation: Operation, hashes: Mapping[str, str], names: Iterable[str]) -> KeptFrames:
        return KeptFrames(self.files, operation.path, {name: hashes[name] for name in names if name in hashes})

    def read_frame(self, operation: Operation, name: str) -> pl.DataFrame:
        """One table as an operation left it. Raises DataError for a file that is gone or was changed since."""
        return self.files.read_frame(f"{operation.path}/{name}.parquet", self.manifest(operation)["files"][name])

    def kept(self, operation: Operation) -> bool:
        """Whether what an operation decided is still in the data folder."""
        path = f"{operation.path}/manifest.json"
        return (
            operation.frames_expired_at is None
            and self.files.exists(path)
            and not self.files.read_json(path).get("erased")
        )

    def write_before(self, operation: Operation, before: Mapping[str, pl.DataFrame]) -> dict[str, str]:
        """Keep the rows that an operation is about to change, as `bulk.apply` tells them; the hash of each table's."""
        return {
            name: self.files.write_frame(f"{operation.path}/{BEFORE}/{name}.parquet", frame, replace=True)
            for name, frame in before.items()
        }

    def read_before(self, operation: Operation) -> dict[str, pl.DataFrame]:
        """What `write_before` kept. Raises DataError where a file is gone or was changed since."""
        hashes: Mapping[str, str] = (operation.summary or {})[BEFORE]
        return {
            name: self.files.read_frame(f"{operation.path}/{BEFORE}/{name}.parquet", expected)
            for name, expected in hashes.items()
        }

    def manifest(self, operation: Operation) -> dict[str, Any]:
        """`files` (table -> hash), `rows` (see `lasting`), `released`, `waiting`, `terms`, `decided`, `edited`, `known_erasures`,
        `settled`, `said`, `news` (table -> rows), `held`, `retired`, `retired_staff`, `stats`."""
        return self.files.read_json(f"{operation.path}/manifest.json")

    def terms(self, operation: Operation) -> Terms | None:
        """What an operation's merge went by; None for one of an earlier version, which did not keep it."""
        kept = self.manifest(operation).get("terms")
        return Terms(**kept) if kept else None

    def resting_on(self, operation: Operation, terms: Terms) -> str:
        """The fingerprint of a roster that rests on an operation's inputs and on `terms`, and let no hold through."""
        found = [self._snapshots.get(read["snapshot_id"]) for read in operation.inputs.values()]
        return _fingerprint(found, frozenset(), terms)

    def changed_inputs(self, operation: Operation, before: Operation) -> dict[str, str]:
        """Integration -> fingerprint of the snapshots that one operation has and the one before it had not."""
        marks, old = ({key: self._mark_of(read) for key, read in it.inputs.items()} for it in (operation, before))
        return {key: mark for key, mark in marks.items() if old.get(key) != mark}

    def _mark_of(self, read: Mapping[str, Any]) -> str:
        return fingerprint([self._snapshots.get(read["snapshot_id"])])

    def fail(self, operation: Operation) -> None:
        """Say that the merge of an operation failed; it will not be published."""
        self._mark(operation, "failed")

    def get(self, operation_id: str) -> Operation:
        """Raises ConfigError where there is none."""
        with self._engine.connect() as connection:
            return read_operation(connection, operation_id)

    def newest(self, district: str, school_year: str, status: str | None = None) -> Operation | None:
        """The newest operation of a district's school year, of that status or whatever became of it."""
        condition = (sync_operations.c.district == district) & (sync_operations.c.school_year == school_year)
        if status is not None:
            condition &= sync_operations.c.status == status
        else:  # an undo that was not finished is nothing to go on with
            condition &= sync_operations.c.undoes.is_(None) | (sync_operations.c.status == "published")
        query = select(sync_operations).where(condition).order_by(sync_operations.c.epoch.desc()).limit(1)
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        return _operation(row) if row else None

    def _integrations(self, district: str | None = None) -> list[Integration]:
        with self._engine.connect() as connection:
            return [one for one in all_of(connection) if district is None or district in one.districts]

    def _records(
        self, integrations: Mapping[str, Integration], found: Sequence[Snapshot], district: str
    ) -> dict[str, pl.DataFrame]:
        """By entity, the rows of all integrations below each other, with `integration` and `snapshot_id`."""
        parts: dict[str, list[pl.DataFrame]] = {entity: [] for entity in ENTITIES}
        for snapshot in found:
            read = {entity: self._snapshots.read_roster(snapshot, entity) for entity in ENTITIES}
            origin = {"integration": pl.lit(snapshot.integration), "snapshot_id": pl.lit(snapshot.snapshot_id)}
            for entity, frame in of_district(integrations[snapshot.integration], read, district).items():
                parts[entity].append(frame.with_columns(**origin))
        return {entity: pl.concat(frames) for entity, frames in parts.items()}

    def _to_merge(self, district: str, school_year: str) -> tuple[list[Snapshot], dict[str, Sequence[str]]]:
        """The snapshots a merge is made of: the newest good ones, but for those that were undone and did not change
        since, instead of which it takes what is published. And those, as `Operation.withheld`."""
        latest = self._snapshots.latest_good(school_year, district)
        published = self.newest(district, school_year, "published")
        if published is None or not published.withheld:
            return latest, {}
        marks = {one.integration: fingerprint([one]) for one in latest}
        withheld = {key: undone for key, undone in published.withheld.items() if marks.get(key) in undone}
        instead = [
            self._snapshots.get(published.inputs[key]["snapshot_id"]) for key in withheld if key in published.inputs
        ]
        rest = [one for one in latest if one.integration not in withheld]
        return sorted([*rest, *instead], key=lambda one: one.integration), withheld

    def open(
        self,
        district: str,
        school_year: str,
        *,
        before: Mapping[str, int],
        mark: str,
        inputs: Mapping[str, Mapping[str, object]],
        run_id: str | None = None,
        undoes: str | None = None,
        withheld: Mapping[str, Sequence[str]],
    ) -> Operation:
        """Begin an operation; it has its epoch from then on, whatever becomes of it."""
        operation_id = str(uuid.uuid4())
        same = (sync_operations.c.district == district) & (sync_operations.c.school_year == school_year)
        with self._engine.begin() as connection:
            lock_district(connection, district)
            last = connection.scalar(select(func.max(sync_operations.c.epoch)).where(same)) or 0
            connection.execute(
                sync_operations.insert().values(
                    operation_id=operation_id,
                    district=district,
                    school_year=school_year,
                    epoch=last + 1,
                    base_epoch=before.get(school_year, 0),
                    published_before=dict(before),
                    status="merging",
                    fingerprint=mark,
                    inputs=dict(inputs),
                    path=f"merged/{district}/{school_year}/{last + 1}",
                    run_id=run_id,
                    undoes=undoes,
                    withheld=dict(withheld),
                )
            )
            return read_operation(connection, operation_id)

    def _mark(self, operation: Operation, status: str, stats: MergeStats | None = None) -> None:
        values = {"summary": asdict(stats)} if stats else {}
        with self._engine.begin() as connection:
            marked = connection.execute(
                update(sync_operations)
                .where(
                    sync_operations.c.operation_id == operation.operation_id,
                    # A later merge was published meanwhile: the publication of this one will say so.
                    sync_operations.c.status.in_(("merging", "superseded")),
                )
                .values(status=status, **values)
            )
        if marked.rowcount != 1:
            raise InternalError(
                f"Operation {operation.operation_id} is not being merged; it can't become {status}.",
                code="internal.state",
            )


@contextmanager
def steady_view(engine: Engine) -> Iterator[Connection]:
    """A connection that sees one point in time and can't write."""
    options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with engine.connect().execution_options(**options) as connection:
        yield connection


def _terms(integrations: Iterable[Integration], rules: Sequence[object]) -> Terms:
    mapped = {one.key: [one.priority, one.district, sorted(one.organisations.items())] for one in integrations}
    return Terms(__version__, mapped, [repr(rule) for rule in rules])


def _fingerprint(found: Sequence[Snapshot], released: frozenset[str], terms: Terms) -> str:
    read = sorted({one.integration for one in found} & set(terms.integrations))
    mapped = [[key, *terms.integrations[key]] for key in read]
    parts = [terms.version, fingerprint(found), mapped, sorted(released), list(terms.rules)]
    return digest(json.dumps(parts).encode())


def _rules(connection: Connection, district: str, school_year: str) -> list[object]:
    return [
        *guarding.rules(connection, district, school_year),
        *survivorship.rules(connection, district, school_year),
        *conflicts.rules(connection, district, school_year),
        *withdrawals.rules(connection, district, school_year),
    ]


@cache
def _code() -> str:
    return hash_of_sources([Path(sis_pipeline.roster.__file__).parent], TOOLS)


def _remembered(memory: Memory | None) -> dict[str, str] | None:
    if memory is None:
        return None
    return {"context": memory.context, "as_of": memory.as_of.isoformat(), "made_by": _code()}


def scope_of(table: Table, district: str, school_year: str) -> dict[str, object]:
    """The rows of a table that a merge of a district and school year owns, by the table's way of publication."""
    scope: dict[str, object] = {"district": district}
    if PUBLICATION[table.name] == "year":
        scope["school_year"] = school_year
    return scope


def lasting(name: str, frame: pl.DataFrame) -> pl.DataFrame:
    """The rows of a table that stay as long as it is published: stale conflicts are given up by age."""
    return frame.filter(pl.col("status") != STALE) if name == CONFLICTS.name else frame


def published_epochs(connection: Connection, district: str) -> dict[str, int]:
    """The newest published epoch of every school year of a district."""
    query = (
        select(sync_operations.c.school_year, func.max(sync_operations.c.epoch).label("epoch"))
        .where(sync_operations.c.district == district, sync_operations.c.status == "published")
        .group_by(sync_operations.c.school_year)
    )
    return {row.school_year: row.epoch for row in connection.execute(query)}


def read_operation(connection: Connection, operation_id: str, *, lock: bool = False) -> Operation:
    query = select(sync_operations).where(sync_operations.c.operation_id == operation_id)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise ConfigError(f"There is no operation {operation_id}.", code="config.no_operation")
    return _operation(row)


def _operation(row: Row[Any]) -> Operation:
    return Operation(**{name: getattr(row, name) for name in Operation.__dataclass_fields__})


def _last_published(school_year: str) -> Any:
    newest = (
        select(sync_operations.c.district, func.max(sync_operations.c.epoch).label("epoch"))
        .where(sync_operations.c.school_year == school_year, sync_operations.c.status == "published")
        .group_by(sync_operations.c.district)
        .subquery()
    )
    due = sync_operations.c.summary["due"].as_string().label("due")
    return select(sync_operations.c.district, sync_operations.c.fingerprint, due).where(
        sync_operations.c.school_year == school_year,
        sync_operations.c.district == newest.c.district,
        sync_operations.c.epoch == newest.c.epoch,
    )


def _existing(connection: Connection, district: str, school_year: str, known: KnownTables) -> dict[str, pl.DataFrame]:
    """The published rows a merge compares with; the ledger is only ever appended to, so it is left out."""

    def published(table: Table) -> pl.DataFrame:
        frame = known.frame(table)
        if frame is not None:
            return frame
        beside = SEEN if table.name.endswith("_links") else None
        return bulk.read(connection, table, scope_of(table, district, school_year), beside=beside)

    return {name: published(table) for name, table in MERGED.items() if PUBLICATION[name] != "append"}


def _quarantined(connection: Connection, found: Sequence[Snapshot]) -> dict[str, pl.DataFrame]:
    """By entity: integration and sis_id of the rows that were delivered but rejected."""
    columns = (quarantine.c.entity, quarantine.c.integration, quarantine.c.sis_id)
    query = (
        select(*columns)
        .distinct()
        .where(quarantine.c.snapshot_id.in_([one.snapshot_id for one in found]), quarantine.c.sis_id.is_not(None))
        .order_by(*columns)
    )
    types = {"entity": pl.String, "integration": pl.String, "sis_id": pl.String}
    rows = pl.DataFrame([tuple(row) for row in connection.execute(query)], schema=types, orient="row")
    return {str(name): frame.drop("entity") for (name,), frame in rows.group_by("entity")}


def _input(integration: Integration, snapshot: Snapshot) -> IntegrationInput:
    if snapshot.verdict not in {"complete", "partial", "delta"}:
        raise InternalError(
            f"Snapshot {snapshot.snapshot_id} is {snapshot.verdict}; it can't be merged.", code="internal.state"
        )
    return IntegrationInput(
        priority=integration.priority,
        completeness=snapshot.verdict,
        taken_on=snapshot.started_at.date(),
    )


def _used(snapshot: Snapshot) -> dict[str, object]:
    return {
        "snapshot_id": snapshot.snapshot_id,
        "verdict": snapshot.verdict,
        "age_seconds": round(snapshot.age.total_seconds()),
        "started_at": snapshot.started_at.isoformat(),
    }


def _hold(values: Mapping[str, Any]) -> Hold:
    keys = tuple(tuple(key) for key in values["keys"])
    return Hold(**{**values, "keys": keys, "parts": tuple(Part(**part) for part in values["parts"])})
