"""The two halves of a merge: merging every district that needs it, and publishing what was merged. No Dagster in here.
One district's failure never stops another's; who is who, what changed and what is held is decided in roster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl
from sqlalchemy import func, select

from sis_pipeline.connect.errors import InternalError
from sis_pipeline.db.tables import roster_tables
from sis_pipeline.defs.failures import Trouble, trouble
from sis_pipeline.defs.partitions import today
from sis_pipeline.defs.resources import Roster
from sis_pipeline.roster.contract import PUBLICATION, DistrictInputs, MergedRoster, is_latest_year
from sis_pipeline.roster.district import merge_district
from sis_pipeline.roster.model import STALE
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.store.bulk import Applied
from sis_pipeline.store.freshness import Input, inputs_of
from sis_pipeline.store.holds import StoredHold
from sis_pipeline.store.merged import ErasedMeanwhileError, Operation
from sis_pipeline.store.publish import Published, SupersededError, publish
from sis_pipeline.store.told import irregular_in_words, undecided_in_words, unsupplied_in_words, way_in_words

Say = Callable[[str], Any]
ATTEMPTS = 3
"""Merges of one district in a run, where another publication or an erasure comes in between."""


@dataclass(frozen=True)
class DistrictMerge:
    """One district's merge: `merged` in this run or, where nothing changed since, the one that is published."""

    district: str
    operation: Operation | None
    merged: bool = False
    rows: Mapping[str, int] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)
    trouble: Trouble | None = None


@dataclass(frozen=True)
class DistrictPublication:
    """One district's publication. `published` is None where nothing was waiting to be published."""

    district: str
    operation: Operation | None = None
    published: Published | None = None
    stats: Mapping[str, Any] = field(default_factory=dict)
    waiting: tuple[StoredHold, ...] = ()
    miscounted: tuple[str, ...] = ()
    trouble: Trouble | None = None

    @property
    def open_holds(self) -> int:
        return len(self.waiting)

    def summary(self) -> dict[str, Any]:
        """Counts for people, JSON and the UI; what is zero because nothing was published is said as zero."""
        applied = self.published.applied if self.published else {}
        known = ("students", "matched", "near_matches", "conflicts", "enrollments", "section_enrollments")
        return {
            **{name: self.stats.get(name, 0) for name in known},
            "integrations": self.stats.get("integrations", {}),
            "changes": dict(self.published.changes) if self.published else {},
            "applied": {table: asdict(counts) for table, counts in applied.items()},
            "accounts": dict(self.published.accounts) if self.published else {},
            "unsupplied": self.stats.get("unsupplied", {}),
            "irregular": self.stats.get("irregular", {}),
            "held": self.published.held if self.published else self.stats.get("held", 0),
            "open_holds": self.open_holds,
            "left_out": sorted(self.operation.withheld) if self.operation else [],
            "operation_id": self.operation.operation_id if self.operation else None,
            "published": self.published is not None,
            "error": self.trouble.as_json() if self.trouble else None,
        }


def merge_inputs(roster: Roster, school_year: str) -> list[Input]:
    """What the merge of a school year rests on now: per integration the age and verdict of its last good snapshot."""
    return inputs_of(
        roster.integrations,
        roster.snapshots,
        SchoolYear.parse(school_year),
        current=today(roster.settings),
        fresh_hours=roster.settings.fresh_hours,
    )


def merge_districts(
    roster: Roster, school_year: str, run_id: str, say: Say, *, whole: bool = False
) -> list[DistrictMerge]:
    """Merge every district of a school year whose inputs changed since its last publication; describe the others. `whole`:
    merge all of them, as MergeStore.gather says."""
    stale = set(roster.merges.stale_districts(school_year))
    return [
        _merged(roster, district, school_year, run_id, say, whole=whole)
        if whole or district in stale
        else _unchanged(roster, district, school_year, say)
        for district in roster.merges.districts_of(school_year)
    ]


def _merged(roster: Roster, district: str, school_year: str, run_id: str, say: Say, *, whole: bool) -> DistrictMerge:
    try:
        operation = merge_one(roster, district, school_year, run_id, whole=whole)
    except Exception as error:  # noqa: BLE001 whatever fails is this district's trouble and nobody else's
        said = trouble(error)
        say(f"{district}: the merge failed, its published roster stays as it is. {said.message}")
        return DistrictMerge(district, None, trouble=said)
    manifest = roster.merges.manifest(operation)
    stats = manifest["stats"]
    say(
        f"{district}: {stats['students']:,} students, {stats['matched']:,} of them in several systems, "
        f"{stats['conflicts']:,} conflicts, {sum(stats['changes'].values()):,} changes, {stats['held']:,} removals held. "
        f"Merged {way_in_words(stats)}." + _left_out(operation)
    )
    if waiting := undecided_in_words(stats):
        say(f"{district}: {waiting}")
    if lost := unsupplied_in_words(stats):
        say(f"{district}: {lost} Check its permissions and its mapping.")
    if doubtful := irregular_in_words(stats):
        say(f"{district}: {doubtful}")
    return DistrictMerge(district, operation, merged=True, rows=manifest["rows"], stats=stats)


def _unchanged(roster: Roster, district: str, school_year: str, say: Say) -> DistrictMerge:
    operation = roster.merges.newest(district, school_year, "published")
    say(f"{district}: nothing changed since its last merge.{_left_out(operation)}")
    if operation is None:
        return DistrictMerge(district, None)
    manifest = roster.merges.manifest(operation)
    return DistrictMerge(district, operation, rows=manifest["rows"], stats=manifest["stats"])


def _left_out(operation: Operation | None) -> str:
    withheld = ", ".join(sorted(operation.withheld)) if operation else ""
    return f" What {withheld} says was undone, and is left out until it says something else." if withheld else ""


def merge_one(roster: Roster, district: str, school_year: str, run_id: str, *, whole: bool = False) -> Operation:
    """Gather, merge and keep one district's school year; again where a student was erased meanwhile. An operation is marked
    failed where that fails."""
    for _ in range(ATTEMPTS - 1):
        with suppress(ErasedMeanwhileError):
            return _merge_once(roster, district, school_year, run_id, whole=whole)
    return _merge_once(roster, district, school_year, run_id, whole=whole)


def _merge_once(roster: Roster, district: str, school_year: str, run_id: str, *, whole: bool) -> Operation:
    gathered = roster.merges.gather(district, school_year, run_id=run_id, whole=whole)
    try:
        merged = merge_district(gathered.inputs)
        prove_nobody_lost(gathered.inputs, merged)
        return roster.merges.write_merged(gathered, merged)
    except BaseException:
        roster.merges.fail(gathered.operation)
        raise


def prove_nobody_lost(inputs: DistrictInputs, merged: MergedRoster) -> None:
    """Raises InternalError for a merge that is wrong."""
    lost = lost_records(inputs, merged)
    if lost:
        raise InternalError(
            f"The merge of {inputs.district} for {inputs.school_year} lost {lost:,} student records; it is not published.",
            code="internal.lost_records",
        )


def lost_records(inputs: DistrictInputs, merged: MergedRoster) -> int:
    """Active student records that were delivered and are linked to nobody; 0, or the merge is wrong.

    Records whose id seems to have gone to another person are set aside by the merge, and so not lost. In an
    earlier year a link that has ended since counts: it finds records that the latest year says are gone.
    """
    students = inputs.records.get("students")
    if students is None or students.is_empty():
        return 0
    record = ["integration", "sis_id"]
    set_aside = merged.recycled.filter(pl.col("entity") == "student").select(record)
    delivered = students.filter(pl.col("record_status") == "active").select(record)
    links = merged.frames["student_links"]
    linked = (links.filter("active") if is_latest_year(inputs) else links).select(record)
    return delivered.join(linked, on=record, how="anti").join(set_aside, on=record, how="anti").height


def publish_districts(
    roster: Roster, school_year: str, run_id: str, say: Say, *, whole: bool = False
) -> list[DistrictPublication]:
    """Publish the newest merge of every district that has one waiting; the others are described as they are. `whole`: as the
    merges were asked for, which wait although no input has changed."""
    stale = set(roster.merges.stale_districts(school_year))
    return [
        _published(roster, one, school_year, run_id, say, stale=whole or one in stale)
        for one in roster.merges.districts_of(school_year)
    ]


def _published(
    roster: Roster, district: str, school_year: str, run_id: str, say: Say, *, stale: bool
) -> DistrictPublication:
    """`stale`: what is published is not made from the inputs of now. Else no merge is waiting: a newer one that was left
    by a killed process is of inputs that have gone again."""
    operation = roster.merges.newest(district, school_year, None if stale else "published")
    if operation is None or operation.status in {"merging", "failed"}:
        said = Trouble(
            "internal.no_merge", f"{district} has no merge that could be published.", "See what its merge says."
        )
        return DistrictPublication(district, operation, trouble=said)
    if operation.status == "published":
        return _described(roster, operation, None)
    try:
        operation, published = _publish_newest(roster, operation, run_id, say)
    except Exception as error:  # noqa: BLE001 whatever fails is this district's trouble and nobody else's
        said = trouble(error)
        say(f"{district}: not published, its roster stays as it is. {said.message}")
        return DistrictPublication(district, operation, trouble=said)
    total = sum(published.applied.values(), Applied())
    say(
        f"{district}: {total.inserted:,} rows added, {total.updated:,} changed, {total.deleted:,} removed, "
        f"{total.unchanged:,} as they were; {published.held:,} removals held."
    )
    return _described(roster, operation, published)


def _publish_newest(roster: Roster, operation: Operation, run_id: str, say: Say) -> tuple[Operation, Published]:
    """Publish an operation; where another publication came first, merge on top of that one and publish again."""
    for _ in range(ATTEMPTS - 1):
        try:
            return operation, publish(roster.engine, roster.merges, operation)
        except SupersededError as error:
            say(f"{error.message} Merging it again.")
            operation = merge_one(roster, operation.district, operation.school_year, run_id)
    return operation, publish(roster.engine, roster.merges, operation)


def _described(roster: Roster, operation: Operation, published: Published | None) -> DistrictPublication:
    waiting = [one for one in roster.holds.list(operation.district, "open") if one.school_year == operation.school_year]
    manifest = roster.merges.manifest(operation)
    return DistrictPublication(
        operation.district,
        operation,
        published,
        manifest["stats"],
        waiting=tuple(waiting),
        miscounted=tuple(_miscounted(roster, operation, manifest["rows"])),
    )


def _miscounted(roster: Roster, operation: Operation, rows: Mapping[str, int]) -> list[str]:
    """Tables that hold another number of rows for the district's school year than its merge decided."""
    found = []
    with roster.engine.connect() as connection:
        for name, way in PUBLICATION.items():
            if way != "year" or name not in rows:
                continue
            table = roster_tables[name]
            here = (table.c.district == operation.district) & (table.c.school_year == operation.school_year)
            if table is roster_tables["conflicts"]:
                here &= table.c.status != STALE
            held = connection.scalar(select(func.count()).select_from(table).where(here)) or 0
            if held != rows[name]:
                found.append(f"{operation.district}: {name} has {held:,} rows, its merge {rows[name]:,}")
    return found
