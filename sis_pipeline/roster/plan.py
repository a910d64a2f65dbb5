"""What the next publication of a district's school year would change, from what is published and a merge of it.
Nothing is decided here: rows, events, holds and near matches are the merge's; what they would replace is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from sis_pipeline.roster.accounts import Decision
from sis_pipeline.roster.contract import DistrictInputs, MergedRoster
from sis_pipeline.roster.difference import Difference, differences
from sis_pipeline.roster.enrollments import SEAT, STAY
from sis_pipeline.roster.frames import empty, fit
from sis_pipeline.roster.guard import Hold
from sis_pipeline.roster.model import MERGED, Table
from sis_pipeline.roster.near import near_match_id
from sis_pipeline.roster.presence import RECORD

What = Literal["add", "change", "remove"]
NEAR = dict.fromkeys(("near_match_id", "school_year", "status", "student_id", "other_student_id"), pl.String)
PERSONS = ("student_id", "person_id", "staff_id")
UNSETTLED = ("open", "auto")
"""Statuses of a conflict that stands, whether a rule or nobody has chosen."""
SAYS: dict[str, tuple[str, ...]] = {
    "schools": ("name",),
    "academic_sessions": ("title",),
    "courses": ("title",),
    "sections": ("section_code", "title"),
    "enrollment_changes": ("kind", "effective_date"),
}
"""What tells people which row it is, beside the parts of its key that are no UUIDs."""


@dataclass(frozen=True, slots=True)
class StoredHold:
    """A hold that is kept: its id, and whether it is open, released or discarded."""

    hold_id: str
    status: str


@dataclass(frozen=True)
class Standing:
    """What a publication would meet beside the published rows.

    `holds`: by fingerprint those that are open, released, or kept waiting by a person. `near_matches`: the district's
    queue, as NEAR. `accounts`: what would become of accounts; None where the district has none.
    """

    holds: Mapping[str, StoredHold] = field(default_factory=dict)
    near_matches: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=NEAR))
    accounts: Decision | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of a table."""

    added: int = 0
    changed: int = 0
    removed: int = 0

    @property
    def total(self) -> int:
        return self.added + self.changed + self.removed

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.added + other.added, self.changed + other.changed, self.removed + other.removed)


@dataclass(frozen=True)
class PlannedRow:
    """A row that would be written. `ids`: its UUIDs. `says`: what else names it. `local_id` and `name`: of the person.
    `columns`: names of those that would change; their values are no part of a plan."""

    what: What
    ids: Mapping[str, str]
    says: Mapping[str, str]
    local_id: str | None
    name: str | None
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class TablePlan:
    """What would become of one school's rows of a table; `school_id` is None where they are no school's.

    `columns`: of the changed rows, how many differ in it. `first`: the first rows to be added, changed and removed.
    """

    table: str
    school_id: str | None
    counts: Counts
    columns: Mapping[str, int]
    first: tuple[PlannedRow, ...]


@dataclass(frozen=True)
class PlannedHold:
    """Removals that would wait, the first of them by name. `hold_id`: the hold that has them already, None where one
    would open."""

    hold: Hold
    hold_id: str | None
    first: tuple[PlannedRow, ...] = ()


@dataclass(frozen=True, slots=True)
class PlannedNearMatch:
    """A pair that would begin to wait for review."""

    near_match_id: str
    sides: tuple[str, str]
    rule: str
    evidence: str
    score: float


@dataclass(frozen=True)
class Plan:
    """What publishing a merge would do; see `plan_publication`. Whatever is empty would stay as it is.

    `events`: (school_id, kind) -> new ledger events. `closing`, `applying`: ids of holds that are no longer pending, or
    whose removals would be let through. `opening_conflicts`, `resolving_conflicts`: by attribute. `withdrawing`: ids of
    near matches. `joined`: student_id -> the student it would be merged into, `joined_staff` the same for staff;
    `restored`: students that were merged away and would be students again. `matched`: new records of known students;
    `moved`: known records that would be another student's, of those who stay. `accounts`: what would become of accounts, as
    Decision.counts, and `first_accounts` the first of each kind of change, which `says` what becomes of it. `schools`: names.
    """

    district: str
    school_year: str
    tables: tuple[TablePlan, ...] = ()
    events: Mapping[tuple[str | None, str], int] = field(default_factory=dict)
    holds: tuple[PlannedHold, ...] = ()
    closing: tuple[str, ...] = ()
    applying: tuple[str, ...] = ()
    opening_conflicts: Mapping[str, int] = field(default_factory=dict)
    resolving_conflicts: Mapping[str, int] = field(default_factory=dict)
    near_matches: tuple[PlannedNearMatch, ...] = ()
    withdrawing: tuple[str, ...] = ()
    joined: Mapping[str, str] = field(default_factory=dict)
    joined_staff: Mapping[str, str] = field(default_factory=dict)
    restored: tuple[str, ...] = ()
    matched: int = 0
    moved: int = 0
    accounts: Mapping[str, int] = field(default_factory=dict)
    first_accounts: tuple[PlannedRow, ...] = ()
    schools: Mapping[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, Counts]:
        """By table, those that would be written."""
        found: dict[str, Counts] = {}
        for part in self.tables:
            found[part.table] = found.get(part.table, Counts()) + part.counts
        return found

    @property
    def total(self) -> Counts:
        return sum(self.counts.values(), Counts())

    @property
    def changes(self) -> dict[str, int]:
        """New ledger events by kind."""
        found: Counter[str] = Counter()
        for (_, kind), events in self.events.items():
            found[kind] += events
        return dict(sorted(found.items()))

    @property
    def held(self) -> int:
        """Removals that would wait for a person."""
        return sum(planned.hold.removals for planned in self.holds)

    @property
    def nothing(self) -> bool:
        """Whether nothing would change: no row, no hold, nobody's near match or account."""
        opened = any(planned.hold_id is None for planned in self.holds)
        return not (
            self.total.total
            or opened
            or self.closing
            or self.applying
            or self.near_matches
            or self.withdrawing
            or any(self.accounts.get(name) for name in Decision.CHANGES)
        )


def plan_publication(inputs: DistrictInputs, merged: MergedRoster, standing: Standing, *, rows: int) -> Plan:
    """The plan of publishing `merged`, which was made of `inputs`; of each kind of change to a table and school the
    first `rows` are named."""
    where = _Where(inputs.existing, merged)
    tables: list[TablePlan] = []
    found: dict[str, Difference] = {}
    for table, one in differences({**inputs.existing, "enrollment_changes": merged.changes.clear()}, merged):
        tables += _parts(table, one, where, rows)
        if table.name in {"conflicts", "enrollment_changes", "student_links"}:
            found[table.name] = one  # the others may be as large as the roster
    opening, resolving = _conflicts(found["conflicts"])
    back = _restored(inputs, merged)
    near, withdrawing = _near_matches(inputs, merged, standing, back)
    holds, closing = _holds(inputs, merged, standing, where, rows)
    return Plan(
        inputs.district,
        inputs.school_year,
        tables=tuple(tables),
        events=_events(found["enrollment_changes"]),
        holds=holds,
        closing=closing,
        applying=tuple(sorted(standing.holds[it].hold_id for it in inputs.released if it in standing.holds)),
        opening_conflicts=opening,
        resolving_conflicts=resolving,
        near_matches=near,
        withdrawing=withdrawing,
        joined=dict(merged.retired),
        joined_staff=dict(merged.retired_staff),
        restored=tuple(sorted(back)),
        matched=_matched(inputs, found["student_links"]),
        moved=_moved(found["student_links"], merged.retired),
        accounts=standing.accounts.counts if standing.accounts else {},
        first_accounts=_first_accounts(standing.accounts, where, rows) if standing.accounts else (),
        schools=where.school_names,
    )


class _Where:
    """Where rows belong and who they are about, by what would be published and, of those who go, by what is."""

    def __init__(self, existing: Mapping[str, pl.DataFrame], merged: MergedRoster) -> None:
        self._existing, self._merged = existing, merged
        self._places = {
            "section_id": self._of("sections", "section_id", "school_id"),
            "student_id": self._of("student_years", "student_id", "school_id"),
            "staff_id": self._of("staff", "staff_id", "school_id"),
        }
        labelled = self._of("sections", "section_id", "section_code", "title")
        self._sections = labelled.select("section_id", section=pl.coalesce("section_code", "title"))
        self._people = pl.concat(
            self._of(table, f"{who}_id", "local_id", "first_name", "last_name").rename({f"{who}_id": "person"})
            for table, who in (("students", "student"), ("staff", "staff"))
        ).select("person", "local_id", name=pl.concat_str("first_name", "last_name", separator=" ", ignore_nulls=True))
        names = self._of("schools", "school_id", "name")
        self.school_names: dict[str, str] = dict(names.iter_rows())

    def _of(self, table: str, key: str, *columns: str) -> pl.DataFrame:
        published = self._existing.get(table)
        before = empty(MERGED[table]) if published is None else fit(published, MERGED[table])
        both = [frame.select(key, *columns) for frame in (self._merged.frames[table], before)]
        return pl.concat(both).unique(key, keep="first", maintain_order=True)

    def placed(self, frame: pl.DataFrame) -> pl.DataFrame:
        """With `school`, the id of the school whose row it is."""
        if "school_id" in frame.columns:
            return frame.with_columns(school="school_id")
        for key, places in self._places.items():
            if key in frame.columns:
                named = places.rename({"school_id": "school"})
                return frame.join(named, on=key, how="left", maintain_order="left")
        return frame.with_columns(school=pl.lit(None, pl.String))

    def named(self, frame: pl.DataFrame) -> pl.DataFrame:
        """With `local_id` and `name` of the person, and `section`; for the few rows that are shown."""
        who = next((name for name in PERSONS if name in frame.columns), None)
        told = frame.drop("local_id", "name", strict=False) if who else frame
        if who:
            people = self._people.filter(pl.col("person").is_in(told[who].unique().implode()))
            told = told.join(people, left_on=who, right_on="person", how="left", maintain_order="left")
        if "section_id" in told.columns and "section_code" not in told.columns:
            told = told.join(self._sections, on="section_id", how="left", maintain_order="left")
        return told


def _parts(table: Table, found: Difference, where: _Where, rows: int) -> Iterator[TablePlan]:
    """One table's part of the plan, school by school."""
    frames: dict[What, pl.DataFrame] = {
        "add": where.placed(found.added),
        "change": where.placed(found.changed),
        "remove": where.placed(found.removed),
    }
    counts = {what: _by_school(frame) for what, frame in frames.items()}
    columns = _changed_columns(frames["change"])
    first = _first_rows(table, frames, where, rows)
    for school in sorted({*counts["add"], *counts["change"], *counts["remove"]}, key=lambda it: it or ""):
        said = Counts(*(counts[what].get(school, 0) for what in ("add", "change", "remove")))
        yield TablePlan(table.name, school, said, columns.get(school, {}), tuple(first.get(school, ())))


def _by_school(frame: pl.DataFrame) -> dict[str | None, int]:
    return dict(frame.group_by("school").len().iter_rows())


def _changed_columns(changed: pl.DataFrame) -> dict[str | None, dict[str, int]]:
    counted = changed.select("school", column="columns").explode("column").group_by("school", "column").len()
    found: dict[str | None, dict[str, int]] = {}
    for school, column, rows in counted.sort("column").iter_rows():
        found.setdefault(school, {})[column] = rows
    return found


def _first_rows(
    table: Table, frames: Mapping[What, pl.DataFrame], where: _Where, rows: int
) -> dict[str | None, list[PlannedRow]]:
    found: dict[str | None, list[PlannedRow]] = {}
    for what, frame in frames.items():
        shown = where.named(frame.filter(pl.int_range(pl.len()).over("school") < rows))
        for row in shown.iter_rows(named=True):
            found.setdefault(row["school"], []).append(_row(table, what, row))
    return found


def _row(table: Table, what: What, row: Mapping[str, Any]) -> PlannedRow:
    ids = {it.name: row[it.name] for it in table if it.kind == "uuid" and (it.key or it.name in PERSONS)}
    scope = {"district", "school_year"}
    says = [it.name for it in table if it.key and it.kind != "uuid" and it.name not in scope]
    told = {name: row[name] for name in (*SAYS.get(table.name, ()), "section", *says) if row.get(name) is not None}
    person = any(name in ids for name in PERSONS)
    return PlannedRow(
        what,
        ids,
        {name: str(value) for name, value in told.items()},
        local_id=row.get("local_id") if person else None,
        name=row.get("name") if person else None,
        columns=tuple(row.get("columns") or ()),
    )


def _events(found: Difference) -> dict[tuple[str | None, str], int]:
    counted = found.added.group_by("school_id", "kind").len().sort("school_id", "kind", nulls_last=True)
    return {(school, kind): events for school, kind, events in counted.iter_rows()}


def _conflicts(found: Difference) -> tuple[dict[str, int], dict[str, int]]:
    """By attribute, how many would begin to stand and how many would not stand any more."""
    now = pl.concat([found.added, found.changed.drop("columns")]).filter(pl.col("status").is_in(UNSETTLED))
    was = pl.concat([found.removed, found.was]).filter(pl.col("status").is_in(UNSETTLED))
    key = MERGED["conflicts"].key
    opening, resolving = now.join(was, on=key, how="anti"), was.join(now, on=key, how="anti")
    opened, resolved = (
        dict(it["attribute"].value_counts().sort("attribute").iter_rows()) for it in (opening, resolving)
    )
    return opened, resolved


def _restored(inputs: DistrictInputs, merged: MergedRoster) -> set[str]:
    """Students that were merged away and would have a record of their own again."""
    holders = set(merged.frames["student_links"]["student_id"])
    return (set(inputs.aliases) - set(merged.retired)) & holders


def _near_matches(
    inputs: DistrictInputs, merged: MergedRoster, standing: Standing, restored: set[str]
) -> tuple[tuple[PlannedNearMatch, ...], tuple[str, ...]]:
    """Those that would begin to wait, the likeliest first, and the ids of those that would be withdrawn."""
    stored = {row["near_match_id"]: row for row in standing.near_matches.iter_rows(named=True)}
    found: dict[str, PlannedNearMatch] = {}
    for row in merged.near_matches.iter_rows(named=True):
        named = near_match_id(inputs.district, row["student_id"], row["other_student_id"])
        found[named] = _near_match(named, row)
    # what a later year found stays as that year left it
    fresh = [
        one
        for named, one in found.items()
        if named not in stored
        or (stored[named]["status"] != "open" and stored[named]["school_year"] <= inputs.school_year)
    ]
    away = ({*inputs.aliases, *merged.retired, *merged.retired_staff}) - restored
    withdrawn = [
        named
        for named, row in stored.items()
        if row["status"] == "open"
        and named not in found
        and (row["school_year"] == inputs.school_year or {row["student_id"], row["other_student_id"]} & away)
    ]
    likeliest = sorted(fresh, key=lambda one: (-one.score, one.near_match_id))
    return tuple(likeliest), tuple(sorted(withdrawn))


def _near_match(named: str, row: Mapping[str, Any]) -> PlannedNearMatch:
    one, other = (
        f"{row[f'{side}integration']}/{row[f'{side}sis_id']}"
        if row[f"{side}integration"] is not None
        else f"{row['entity']} {row[f'{side}student_id']}"
        for side in ("", "other_")
    )
    return PlannedNearMatch(named, (one, other), row["rule"], row["evidence"], row["score"])


def _holds(
    inputs: DistrictInputs, merged: MergedRoster, standing: Standing, where: _Where, rows: int
) -> tuple[tuple[PlannedHold, ...], tuple[str, ...]]:
    """The removals that would wait, and the ids of holds that would be closed because nothing of them is pending."""
    planned = []
    for hold in merged.held:
        stored = standing.holds.get(hold.kept or hold.fingerprint)
        planned.append(PlannedHold(hold, stored.hold_id if stored else None, _held_rows(hold, where, rows)))
    pending = {hold.kept or hold.fingerprint for hold in merged.held}
    if any(part.completeness != "complete" for part in inputs.integrations.values()):
        # a reading that is not complete did not look for everybody
        pending |= {ruling.fingerprint for ruling in inputs.rulings.waiting}
    closing = [
        stored.hold_id
        for fingerprint, stored in standing.holds.items()
        if stored.status == "open" and fingerprint not in pending
    ]
    return tuple(planned), tuple(sorted(closing))


def _held_rows(hold: Hold, where: _Where, rows: int) -> tuple[PlannedRow, ...]:
    table = MERGED[hold.entity]
    key = {"enrollments": STAY, "section_enrollments": SEAT}.get(
        hold.entity, [it.name for it in table if it.key and it.kind == "uuid"]
    )
    first = pl.DataFrame(hold.keys[:rows], schema=dict.fromkeys(key, pl.String), orient="row")
    return tuple(_row(table, "remove", row) for row in where.named(first).iter_rows(named=True))


def _first_accounts(decision: Decision, where: _Where, rows: int) -> tuple[PlannedRow, ...]:
    first = decision.becoming.filter(pl.int_range(pl.len()).over("becomes") < rows)
    return tuple(
        PlannedRow(
            "add" if row["becomes"] == "created" else "change",
            {"person_id": row["person_id"]},
            {"kind": row["kind"], "becomes": row["becomes"]},
            local_id=row["local_id"],
            name=row["name"],
        )
        for row in where.named(first).sort("becomes", "kind", "name").iter_rows(named=True)
    )


def _matched(inputs: DistrictInputs, links: Difference) -> int:
    """New records that would be linked to a student who is published."""
    published = inputs.existing.get("student_links")
    if published is None:
        return 0
    return links.added.join(published.select("student_id").unique(), on="student_id", how="semi").height


def _moved(links: Difference, retired: Mapping[str, str]) -> int:
    was = links.was.select(*RECORD, was="student_id").filter(~pl.col("was").is_in(sorted(retired)))
    now = links.changed.select(*RECORD, "student_id").join(was, on=RECORD)
    return now.filter(pl.col("student_id") != pl.col("was")).height
