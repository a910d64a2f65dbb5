"""The merge of one district's school year, read from top to bottom: who is who, one record each, enrollments, guard, ledger.
Each step's rules live in its own module; nothing here reads or writes anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import cache
from typing import Literal

import polars as pl

from sis_pipeline.roster.catalog import (
    published_courses,
    published_schools,
    published_sections,
    published_sessions,
    published_staff,
    refer,
    with_kept,
)
from sis_pipeline.roster.changes import CHANGE_OF_EXIT, About, State, detect_changes
from sis_pipeline.roster.clearing import CLEARABLE_COLUMNS, CLEARED, EMPTIED, find_clearings
from sis_pipeline.roster.decisions import DISTINCT, SPLIT, no_decisions
from sis_pipeline.roster.enrollments import (
    OPEN,
    PLACE,
    SAME_STAY_DAYS,
    SEAT,
    STAY,
    choose_primary,
    combine_reports,
    combine_seats,
    homes,
    mark_transfers,
    match_stays,
    one_per_entry,
    reconcile,
    reconcile_seats,
    settle_statuses,
    without_settled,
)
from sis_pipeline.roster.frames import empty, fit, polars_schema, rows_where
from sis_pipeline.roster.freeze import CALENDAR, frozen_until, schools_with_calendar
from sis_pipeline.roster.guard import Entity, Hold, Question, Rulings, guard, held_keys
from sis_pipeline.roster.identity import SAID, Resolution, resolve_schools, resolve_staff, resolve_students
from sis_pipeline.roster.merge import (
    EDITS,
    Decided,
    MergedStudents,
    merge_students,
    published_conflicts,
    published_students,
    published_years,
)
from sis_pipeline.roster.model import ENTITIES, MERGED, STALE
from sis_pipeline.roster.policies import Policies
from sis_pipeline.roster.presence import ABSENT, CARRIED, DELIVERED, RECORD, Presence
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.thresholds import Thresholds
from sis_pipeline.roster.withdrawals import WITHDRAWALS, end_seats, was_withdrawn, withdraw, withdrawn_students

Completeness = Literal["complete", "partial", "delta"]
PublicationScope = Literal["year", "upsert", "append"]

PUBLICATION: dict[str, PublicationScope] = {
    "schools": "upsert",
    "academic_sessions": "year",
    "courses": "year",
    "staff": "upsert",
    "staff_links": "upsert",
    "sections": "year",
    "students": "upsert",
    "student_years": "year",
    "student_links": "upsert",
    "student_sources": "year",
    "conflicts": "year",
    "enrollments": "year",
    "section_enrollments": "year",
    "enrollment_changes": "append",
}
"""How the frames of `MergedRoster` become table rows.

`year`: the frame is the whole target state of (district, school_year): rows of that scope that are not in the frame
are deleted. `upsert`: rows of the frame are inserted or updated by key, other rows of the district stay (an earlier
year's person, a school that closed, a link that went inactive); `students` and `staff` rows named by
`MergedRoster.retired` and `.retired_staff` are deleted. `append`: rows whose `change_id` is not there yet are added.
"""


LAST_SAID = list(dict.fromkeys([*SAID, *CLEARABLE_COLUMNS, EMPTIED, CLEARED]))
"""What a school year takes over from what a record said in the one before."""


@dataclass(frozen=True, slots=True)
class IntegrationInput:
    """One integration's part in a merge.

    `priority`: lower wins. `completeness`: the verdict of its snapshot; only `complete` may imply an absence.
    `taken_on`: the snapshot's day, the effective date of absences; `DistrictInputs.as_of` where unset.
    """

    priority: int = 100
    completeness: Completeness = "complete"
    taken_on: date | None = None


@dataclass(frozen=True)
class DistrictInputs:
    """Everything a merge of one district and school year depends on.

    `records`: validated frames by entity, all integrations below each other, the model's columns plus `integration`
    and `snapshot_id` (text). An integration that is in `integrations` but has no rows delivered nothing; one that is
    not in `integrations` is left as it was published. `quarantined`: by entity, `integration` and `sis_id` of rows
    that were delivered but rejected: they are present, so they are never taken for absent.
    `existing`: published rows by MERGED table name. `students`, `student_links`, `staff`, `staff_links` and `schools`
    of the whole district (links may carry a `first_seen` timestamp beside the model's columns), all other tables of
    the school year only; a table that is left out is empty.
    `as_of`: the day the roster is judged on. `decisions`: what people decided about who is who among
    the students, as `decisions.DECISIONS`; `staff_decisions`: among the staff. `aliases`: ids that merges of any school year retired -> the student they are now; the
    published rows of this year may still name them. `edits`: what people edited in `students` and is not settled, as
    `merge.EDITS`. `decided`: what they chose where values conflict. `rulings`: what they decided about removals and schools. `calendar`: the sessions of whole
    school years that are published for other years, as freeze.CALENDAR. `withdrawals`: the enrollments of this year
    that people withdrew, as withdrawals.WITHDRAWALS. `said_before`: what linked records without a row in this school year
    last said of who they are, had, and had cleared, as LAST_SAID. `whole`: merge what did not change anew as well; the result is
    the same.
    """

    district: str
    school_year: str
    as_of: date
    operation_id: str
    integrations: Mapping[str, IntegrationInput]
    records: Mapping[str, pl.DataFrame]
    existing: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    quarantined: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    policies: Policies = field(default_factory=Policies)
    thresholds: Thresholds = field(default_factory=Thresholds)
    decisions: pl.DataFrame = field(default_factory=no_decisions)
    staff_decisions: pl.DataFrame = field(default_factory=no_decisions)
    aliases: Mapping[str, str] = field(default_factory=dict)
    edits: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=EDITS))
    decided: tuple[Decided, ...] = ()
    rulings: Rulings = field(default_factory=Rulings)
    calendar: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=CALENDAR))
    withdrawals: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=WITHDRAWALS))
    said_before: pl.DataFrame = field(default_factory=lambda: empty(MERGED["student_sources"]).select(LAST_SAID))
    whole: bool = False

    @property
    def released(self) -> frozenset[str]:
        """Fingerprints of the holds that a person released."""
        return frozenset(ruling.fingerprint for ruling in self.rulings.released)


@dataclass(frozen=True, slots=True)
class MergeStats:
    """Numbers for people and plots. `matched`: students with records in two or more integrations this year.

    `due`: the ISO day from which on the same inputs are to be merged again, because a date in them has come; None where
    no day changes anything. `whole`: as DistrictInputs.whole.
    """

    students: int
    matched: int
    near_matches: int
    conflicts: int
    enrollments: int
    section_enrollments: int
    changes: Mapping[str, int]
    held: int
    recycled: int
    other_year_rows: int
    integrations: Mapping[str, Mapping[str, int]]
    """By integration: `records`, `carried` (kept from before), `absent`, `tombstones`, `students`."""
    due: str | None = None
    whole: bool = True
    unsupplied: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """As Clearings.unsupplied; nobody's value is taken for cleared."""
    seats_merged: int | None = None
    """Section enrollments that were merged, and not settled by the one report that says what is published; None in a merge of
    an earlier version, which merged all."""


@dataclass(frozen=True)
class MergedRoster:
    """What the merge decided.

    `frames`: by MERGED table name, exactly the model's columns; how each is published says `PUBLICATION`.
    `changes` is `frames["enrollment_changes"]`. `held`: removals that wait for a person; the frames hold the previous
    state for them. `near_matches`: integration, sis_id, other_integration, other_sis_id, student_id,
    other_student_id, rule, evidence, score, entity: `student`, or `staff`, of whom the ids are theirs. `cut_chains`: integration, sis_id, other_integration, other_sis_id, rule.
    `recycled`: integration, sis_id of records whose id seems to be given to another person (to quarantine).
    `retired`: student_id -> the student_id it was merged into (all its links are in the frames, pointing to the
    survivor); other school years that name a retired student follow at their next merge, which is due then (see
    `DistrictInputs.aliases`). `retired_staff`: the same for staff. `settled`: the edits of `students` that the systems
    agree with by now.
    """

    frames: Mapping[str, pl.DataFrame]
    held: tuple[Hold, ...]
    near_matches: pl.DataFrame
    cut_chains: pl.DataFrame
    recycled: pl.DataFrame
    retired: Mapping[str, str]
    retired_staff: Mapping[str, str]
    stats: MergeStats
    settled: tuple[int, ...] = ()

    @property
    def changes(self) -> pl.DataFrame:
        return self.frames["enrollment_changes"]


def merge_district(inputs: DistrictInputs) -> MergedRoster:
    """Merge one district's school year. Pure: the result depends on the inputs only, and not on their order."""
    now = _Delivery(inputs)
    school_ids = _school_ids(now)

    people = _identify(now, school_ids)
    before = _before(now, people, school_ids)
    staff = _identify_staff(now, school_ids)
    staff_ids = staff.known.rename({"person_id": "staff_id"})

    frozen = _frozen(now, school_ids)
    stays, stay_holds = _stays(now, people, before, school_ids, frozen)
    catalog = _catalog(now, school_ids, staff_ids, before)
    seats, seat_holds = _seats(
        now, people, before, stays=stays, sections=catalog["sections"], staff_ids=staff_ids, frozen=frozen
    )
    catalog, catalog_holds = _without_unused(now, catalog, seats.section_ids, before)
    staff_links, staff_holds = _guarded_staff_links(now, staff)
    holds = (*stay_holds, *seat_holds, *catalog_holds, *staff_holds)

    sources = people.with_held(stay_holds)
    own = _own_students(now, people)
    merged = _merged_students(now, people, sources, own)
    near = _doubted(people.resolution)
    years = _years(now, merged, stays, before)
    links = _student_links(now, people, sources)
    after = State(stays, seats.after, years, catalog["sections"])
    changes = detect_changes(replace(before, section_enrollments=seats.before), after, now.about)

    frames = {
        "schools": _schools(now, school_ids),
        "academic_sessions": catalog["academic_sessions"],
        "courses": catalog["courses"],
        "staff": _staff(now, staff, school_ids),
        "staff_links": staff_links,
        "sections": catalog["sections"],
        "students": published_students(merged, own, near, inputs.district, inputs.school_year),
        "student_years": years,
        "student_links": links,
        "student_sources": _sources(now, sources),
        "conflicts": published_conflicts(
            merged, now.existing("conflicts"), people.renamed, inputs.district, inputs.school_year
        ),
        "enrollments": fit(stays, MERGED["enrollments"]).sort("student_id", "school_id", "entry_date"),
        "section_enrollments": seats.all.sort(SEAT),
        "enrollment_changes": changes,
    }
    near_matches = _near_matches(people.resolution, staff)
    return MergedRoster(
        frames=frames,
        held=holds,
        near_matches=near_matches,
        cut_chains=people.resolution.cut_chains,
        recycled=people.resolution.recycled,
        retired=people.resolution.retired,
        retired_staff=staff.retired,
        stats=replace(
            _stats(now, people, sources, frames, holds, near=near_matches.height),
            whole=inputs.whole,
            seats_merged=seats.after.height,
        ),
        settled=merged.settled,
    )


class _Delivery:
    """The inputs, asked in the words of the merge: usable records, tombstones, what was published, who took part."""

    def __init__(self, inputs: DistrictInputs) -> None:
        self.inputs = inputs
        self.year = SchoolYear.parse(inputs.school_year)
        self.priorities = {key: part.priority for key, part in inputs.integrations.items()}
        self.taken_on = {key: part.taken_on or inputs.as_of for key, part in inputs.integrations.items()}
        self.complete = [key for key, part in inputs.integrations.items() if part.completeness == "complete"]
        known = set(self.existing("student_sources")["integration"]) | set(self.existing("enrollments")["integration"])
        self.about = About(
            inputs.district,
            inputs.school_year,
            inputs.as_of,
            inputs.operation_id,
            first_loads=frozenset(inputs.integrations) - known,
        )

    def all(self, entity: str) -> pl.DataFrame:
        frame = self.inputs.records.get(entity)
        return _nothing_delivered(entity) if frame is None else frame

    def records(self, entity: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """The usable records; `columns`: only these, as all are much to carry along where there are many records."""
        found = self.all(entity)
        wanted = found if columns is None else found[list(columns)]
        return rows_where(wanted, found["record_status"] == "active")

    def of_year(self, entity: str) -> pl.DataFrame:
        """The records of this school year; a row's own year decides where it belongs."""
        found = self.records(entity)
        return rows_where(found, found["school_year"] == self.inputs.school_year)

    def tombstones(self, entity: str) -> pl.DataFrame:
        found = self.all(entity)
        return rows_where(found, found["record_status"] == "to_be_deleted")

    def existing(self, table: str) -> pl.DataFrame:
        """The rows published before; of columns beside the model's only `first_seen` is of use."""
        frame = self.inputs.existing.get(table)
        if frame is None:
            return empty(MERGED[table])
        fitted = fit(frame, MERGED[table])
        return fitted.with_columns(frame["first_seen"]) if "first_seen" in frame.columns else fitted

    def presence(
        self,
        entity: str,
        *,
        usable: pl.DataFrame | None = None,
        nowhere: pl.DataFrame | None = None,
        tombstones: Sequence[pl.DataFrame] = (),
    ) -> Presence:
        """What was delivered of an entity. `usable`: the records that could be placed; `nowhere`, or the rest, is there but
        unusable."""
        if usable is None:
            usable = self.records(entity, RECORD)
            nowhere = usable.clear()
        elif nowhere is None:
            nowhere = self.records(entity, RECORD).join(usable, on=RECORD, how="anti")
        rejected = self.inputs.quarantined.get(entity)
        unusable = [nowhere[RECORD]] + ([] if rejected is None else [rejected[RECORD]])
        deleted = pl.concat([part[RECORD] for part in (self.tombstones(entity), *tombstones)])
        return Presence(usable[RECORD], deleted, pl.concat(unusable), self.taken_on, self.complete)


@cache
def _nothing_delivered(entity: str) -> pl.DataFrame:
    schema = {**polars_schema(ENTITIES[entity]), "integration": pl.String(), "snapshot_id": pl.String()}
    return pl.DataFrame(schema=schema)


@dataclass(frozen=True)
class _People:
    """The student records of this merge with their `student_id` and `school_id`, and those published before."""

    resolution: Resolution
    records: pl.DataFrame
    """Records that count: delivered, or carried over from before."""
    previous: pl.DataFrame
    """Records published before, with `fate`; their student_id follows merges and splits of students. `was`: the student
    they were in this year, by the id it has now."""
    renamed: Mapping[str, str]
    """Ids that this year's rows may name -> the student they were merged into, be it by another year's merge."""
    unsupplied: Mapping[str, Mapping[str, int]]
    """As Clearings.unsupplied."""

    @property
    def ids(self) -> pl.DataFrame:
        return self.records.select(*RECORD, "student_id")

    @property
    def moved(self) -> pl.DataFrame:
        """Records published before that are another student now than the rest of their student: a split one."""
        return self.previous.filter(pl.col("student_id") != pl.col("was"))

    @property
    def carried(self) -> pl.DataFrame:
        return self.previous.filter(pl.col("fate") == CARRIED)

    def with_held(self, holds: Sequence[Hold]) -> pl.DataFrame:
        """The records to merge: those that count, and the absent ones of students whose removal is held."""
        held = [key[0] for hold in holds for key in hold.keys]
        kept = self.previous.filter((pl.col("fate") == ABSENT) & pl.col("student_id").is_in(held))
        return pl.concat([self.records, kept.select(self.records.columns)])


def _school_ids(now: _Delivery) -> pl.DataFrame:
    """integration, sis_id, school_id: of the records of now, then of schools published before (a delta names few)."""
    resolved = resolve_schools(now.inputs.district, now.records("schools"))
    published = now.existing("schools").select(*RECORD, "school_id")
    return pl.concat([resolved, published]).unique(RECORD, keep="first", maintain_order=True)


def _schools(now: _Delivery, school_ids: pl.DataFrame) -> pl.DataFrame:
    """Schools of now; in an earlier year than the latest one published, only those that are not there yet."""
    merged = published_schools(now.records("schools"), school_ids, now.inputs.district, now.priorities)
    if not _is_owner(now):
        merged = merged.join(now.existing("schools"), on="school_id", how="anti")
    return merged


def is_latest_year(inputs: DistrictInputs) -> bool:
    """Whether no later year than this one was merged; what has no year of its own belongs to the latest."""
    students = inputs.existing.get("students")
    latest = None if students is None else students["latest_school_year"].max()
    return latest is None or str(latest) <= inputs.school_year


def _is_owner(now: _Delivery) -> bool:
    return is_latest_year(now.inputs)


def _identify(now: _Delivery, school_ids: pl.DataFrame) -> _People:
    before = now.existing("student_sources")
    known = pl.concat([before, fit(now.inputs.said_before, MERGED["student_sources"])])
    clearings = find_clearings(_with_values_before(now), known, now.complete)
    delivered = refer(clearings.records, "school_sis_id", school_ids, "school_id")
    previous = refer(before, "school_sis_id", school_ids, "school_id")
    fated = now.presence("students").fates(previous)
    columns = [name for name in delivered.columns if name != "record_status"]
    candidates = pl.concat([delivered.select(columns), fated.filter(pl.col("fate") == CARRIED).select(columns)])
    resolution = resolve_students(
        now.inputs.district,
        candidates,
        now.existing("student_links"),
        now.existing("students"),
        now.inputs.decisions,
        before=pl.concat([before.select(SAID), now.inputs.said_before.select(SAID)]),
    )
    renamed = _renamed(now.inputs.aliases, resolution)
    # the record of a recycled id is nobody's; the child who had the id before keeps the record published before
    spared = fated.join(resolution.recycled, on=RECORD, how="semi").with_columns(fate=pl.lit(CARRIED))
    fated = pl.concat([fated.join(spared, on=RECORD, how="anti"), spared])
    fated = _repointed(fated, renamed).with_columns(was="student_id")
    fated = fated.update(resolution.known.rename({"person_id": "student_id"}), on=RECORD)
    who = resolution.assignment.select(*RECORD, student_id="person_id")
    records = candidates.join(who, on=RECORD, how="inner")
    spared = fated.join(resolution.recycled, on=RECORD, how="semi")
    records = pl.concat([records, spared.select(records.columns)])
    return _People(resolution, records, fated, renamed, clearings.unsupplied)


def _renamed(aliases: Mapping[str, str], resolution: Resolution) -> dict[str, str]:
    """Every id that was merged away, now or before, and not brought back by now, with the student it is now."""
    retired = resolution.retired
    back = set(resolution.known["person_id"]) if aliases else set()
    before = {alias: retired.get(student, student) for alias, student in aliases.items() if alias not in back}
    return {**before, **retired}


def _identify_staff(now: _Delivery, school_ids: pl.DataFrame) -> Resolution:
    records = refer(now.records("staff"), "school_sis_id", school_ids, "school_id")
    links, published = now.existing("staff_links"), now.existing("staff")
    return resolve_staff(now.inputs.district, records, links, published, now.inputs.staff_decisions)


def _with_values_before(now: _Delivery) -> pl.DataFrame:
    """The student records, those of a partial snapshot with their published values where they have none now.

    Such a snapshot may add and change, never remove; and what it lacks may be the very list that holds a value, as
    OneRoster's demographics hold the birth dates. Under another name it may be another child who was given the id, and
    is taken as it is.
    """
    delivered, same = now.records("students"), [*RECORD, "first_name", "last_name"]
    partial = [key for key, part in now.inputs.integrations.items() if part.completeness == "partial"]
    if not partial:
        return delivered
    values = [name for name in ENTITIES["students"].names if name not in {*same, "record_status", "modified_at"}]
    before = now.existing("student_sources").filter(pl.col("integration").is_in(partial)).select(*same, *values)
    both = delivered.join(before, on=same, how="left", suffix="_before", maintain_order="left")
    filled = both.with_columns(pl.coalesce(name, f"{name}_before") for name in values)
    return filled.select(delivered.columns)


def _repointed(frame: pl.DataFrame, retired: Mapping[str, str], column: str = "student_id") -> pl.DataFrame:
    return frame.with_columns(pl.col(column).replace(dict(retired))) if retired else frame


def _before(now: _Delivery, people: _People, school_ids: pl.DataFrame) -> State:
    """The published state, as it would read had merged students always been one, and split ones two: neither is a
    removal. Who a student was is what this year's own rows say: another year's merge may have changed the links before.
    """
    renamed = people.renamed
    stays = now.existing("enrollments").with_columns(closed=~pl.col("status").is_in(OPEN))
    stays = _repointed(stays, renamed).sort("closed", maintain_order=True).drop("closed")
    seats = _repointed(now.existing("section_enrollments"), renamed, "person_id")
    years = _repointed(now.existing("student_years"), renamed).unique("student_id", keep="first", maintain_order=True)
    sections = now.existing("sections")
    if people.moved.height:
        at_school = refer(now.of_year("enrollments"), "school_sis_id", school_ids, "school_id")
        in_section = refer(now.records("section_enrollments"), "section_sis_id", _newest_runs(sections), "section_id")
        stays = _divided(stays, people, at_school.select("integration", "school_id", sis_id="student_sis_id"))
        taken = in_section.filter(pl.col("role") == "student")
        taken = taken.select("integration", "section_id", sis_id="person_sis_id")
        seats = _divided(seats, people, taken, "person_id")
        years = _without_emptied(years, people, stays)
    if renamed or people.moved.height:
        seats = seats.unique(SEAT, keep="first", maintain_order=True)
    return State(stays.unique(STAY, keep="first", maintain_order=True), seats, years, sections)


def _divided(rows: pl.DataFrame, people: _People, reports: pl.DataFrame, person: str = "student_id") -> pl.DataFrame:
    """The rows published of a split student, shared out to one side, or to both: they go with who reports them now, or
    where nobody is left there of the system that they came from, and stay with who reports them, else who is left.

    `reports`: integration, the student record's sis_id, and the place, which is a column of `rows` too.
    """
    [place] = [name for name in reports.columns if name not in RECORD]
    key = [person, place]
    sides = people.previous.group_by("integration", pl.col("was").alias(person)).agg(
        goes_to=pl.col("student_id").first(), sides=pl.col("student_id").n_unique()
    )
    left = sides.filter((pl.col("sides") == 1) & (pl.col("goes_to") != pl.col(person)))
    reported = reports.join(people.moved, on=RECORD).select(place, pl.col("was").alias(person), goes_to="student_id")
    came = rows.join(left, on=["integration", person]).select(place, person, "goes_to")
    shared = pl.concat([reported, came]).unique(maintain_order=True)
    staying = reports.join(people.ids, on=RECORD).select(place, pl.col("student_id").alias(person))
    copies = rows.join(shared, on=key).with_columns(pl.col("goes_to").alias(person)).select(rows.columns)
    gone = shared.select(key).join(staying, on=key, how="anti")
    return pl.concat([rows.join(gone, on=key, how="anti", maintain_order="left"), copies])


def _without_emptied(years: pl.DataFrame, people: _People, stays: pl.DataFrame) -> pl.DataFrame:
    """The years without those of split students who keep neither a record nor a stay in this one: they never had it."""
    kept = pl.concat([frame["student_id"] for frame in (people.records, people.previous, stays)]).unique()
    emptied = pl.col("student_id").is_in(people.moved["was"].implode()) & ~pl.col("student_id").is_in(kept.implode())
    return years.filter(~emptied)


def _stays(
    now: _Delivery, people: _People, before: State, school_ids: pl.DataFrame, frozen: Mapping[str, date]
) -> tuple[pl.DataFrame, tuple[Hold, ...]]:
    """The school enrollments of the year, and the removals that wait."""
    inputs, table = now.inputs, MERGED["enrollments"]
    placed = refer(now.of_year("enrollments"), "student_sis_id", people.ids, "student_id")
    placed = refer(placed, "school_sis_id", school_ids, "school_id").drop_nulls(PLACE)
    gone_students = now.tombstones("students").select("integration", student_sis_id="sis_id")
    of_gone = now.all("enrollments").join(gone_students, on=["integration", "student_sis_id"], how="semi")
    presence = now.presence("enrollments", usable=placed, tombstones=[of_gone])
    delivered = fit(placed.with_columns(district=pl.lit(inputs.district)), table)
    carried = _carried_stays(presence, before.enrollments, delivered)
    carried = _expected_to_come(now, people, presence, carried)
    reports = pl.concat([delivered, carried.select(table.names)])

    stays = combine_reports(reports, now.priorities)
    closings = _closings(now, school_ids)
    stays = settle_statuses(stays, closings, inputs.as_of, now.year.day_after)
    vouching = pl.col("enrollment_status").is_null() | pl.col("enrollment_status").is_in(OPEN)
    vouched = people.carried.filter(vouching).select(PLACE).drop_nulls()
    target = reconcile(
        stays, before.enrollments, presence, vouched, closings=closings, day_after_year=now.year.day_after
    )
    target = withdraw(target, _repointed(now.inputs.withdrawals, people.renamed))
    target, holds = _guarded_stays(now, before.enrollments, target, frozen)
    return choose_primary(mark_transfers(target), now.priorities), holds


def _carried_stays(presence: Presence, existing: pl.DataFrame, delivered: pl.DataFrame) -> pl.DataFrame:
    """The stays published before of which the source said nothing. What a system says of a stay now stands for what it
    said before, under whatever id and with whatever end; that would stand beside it."""
    fated, place = presence.fates(existing), [*PLACE, "integration"]
    carried = fated.filter(pl.col("fate") == CARRIED)
    if carried.is_empty():
        return carried
    places = carried.join(delivered, on=place, how="semi").select(place)
    old, new = (rows.join(places, on=place, how="semi", maintain_order="left") for rows in (fated, delivered))
    told = [
        _told_anew(old.filter(pl.col("integration") == system), new.filter(pl.col("integration") == system))
        for system in places["integration"].unique()
    ]
    # a row that is there, if unreadable, is none told anew
    anew = pl.concat([carried.clear().select(STAY), *told]).join(
        carried.join(presence.unusable, on=RECORD, how="anti"), on=STAY, how="semi"
    )
    return carried.join(anew, on=STAY, how="anti", maintain_order="left")


def _told_anew(before: pl.DataFrame, now: pl.DataFrame) -> pl.DataFrame:
    """The stays of one system that it tells again, on the same day of entry or on one corrected by two weeks at most."""
    now = one_per_entry(now)
    entered = now.with_row_index("after").select("after", entered="entry_date")
    pairs = match_stays(before, now).drop_nulls().join(entered, on="after")
    told = before.with_row_index("before").join(pairs, on="before")
    return told.filter((pl.col("entered") - pl.col("entry_date")).dt.total_days().abs() <= SAME_STAY_DAYS).select(STAY)


def _expected_to_come(now: _Delivery, people: _People, presence: Presence, carried: pl.DataFrame) -> pl.DataFrame:
    """Carried stays, a pre-registration as active: who is expected comes on the day also if no later reading names them.
    Not so where the SIS itself keeps the student waiting, where its row can't be read, and where it takes no part."""
    if not (carried["status"] == "pre_registered").any():
        return carried
    waiting = people.records.filter(pl.col("enrollment_status") == "pre_registered").select("integration", "student_id")
    asked = pl.col("integration").is_in(list(now.inputs.integrations))
    come = (
        carried.filter(asked & (pl.col("status") == "pre_registered"))
        .join(presence.unusable, on=RECORD, how="anti")
        .join(waiting, on=waiting.columns, how="anti")
        .with_columns(status=pl.lit("active"))
    )
    return pl.concat([carried.join(come, on=STAY, how="anti", maintain_order="left"), come])


def _closings(now: _Delivery, school_ids: pl.DataFrame) -> pl.DataFrame:
    """The day after the school year, per school and (school_id null) for the district, as the sessions tell."""
    sessions = refer(now.of_year("academic_sessions"), "school_sis_id", school_ids, "school_id")
    years = sessions.filter(pl.col("kind") == "school_year").select("school_id", day_after="end_date")
    return pl.concat([years, years.with_columns(school_id=pl.lit(None, pl.String))])


def _frozen(now: _Delivery, school_ids: pl.DataFrame) -> dict[str, date]:
    """The district's schools that are between two school years, and until when, as their sessions tell."""
    sessions = refer(now.of_year("academic_sessions"), "school_sis_id", school_ids, "school_id")
    sessions = sessions.filter(pl.col("kind") == "school_year")
    published = now.existing("academic_sessions").filter(pl.col("kind") == "school_year")
    calendar = pl.concat([frame.select(list(CALENDAR)) for frame in (now.inputs.calendar, published, sessions)])
    found = frozen_until(calendar, now.inputs.as_of, now.inputs.thresholds)
    own = schools_with_calendar(calendar)
    others = school_ids.filter(~pl.col("school_id").is_in(own))["school_id"].unique().to_list()
    general = dict.fromkeys(others, found[None]) if None in found else {}
    return general | {school: until for school, until in found.items() if school is not None}


def _undeclared(now: _Delivery, removals: pl.DataFrame, person: str, stays: pl.DataFrame) -> pl.DataFrame:
    """Removals but those that a person declared: at a school that closed, or of students of one that just opened."""
    rulings = now.inputs.rulings
    moved = stays.filter(pl.col("status").is_in(OPEN) & pl.col("school_id").is_in(list(rulings.opened)))
    closed = pl.col("school_id").is_in(list(rulings.closed))
    return removals.filter(~closed & ~pl.col(person).is_in(moved["student_id"].implode()))


def _guarded_stays(
    now: _Delivery, existing: pl.DataFrame, target: pl.DataFrame, frozen: Mapping[str, date]
) -> tuple[pl.DataFrame, tuple[Hold, ...]]:
    pairs = match_stays(existing, target).drop_nulls()
    ends = target.with_row_index("after").select("after", "status", "evidence").join(pairs, on="after")
    removals = (
        existing.with_row_index("before")
        .filter(pl.col("status").is_in(OPEN))
        .join(
            ends.filter(~pl.col("status").is_in(OPEN)).select("before", "after", "evidence", became="status"),
            on="before",
        )
        .with_columns(
            evidence=pl.col("evidence").fill_null("explicit_exit"),
            change=pl.col("became").replace_strict(CHANGE_OF_EXIT, default="withdraw"),
        )
    )
    asked = _undeclared(now, removals.filter(~was_withdrawn()), "student_id", target)
    question = Question("enrollments", STAY, asked, _open_stays(existing), _open_stays(target), frozen)
    holds = guard(question, now.inputs.thresholds, now.inputs.rulings)
    if not holds:
        return target, holds
    held = removals.join(held_keys(holds, STAY, existing), on=STAY, how="semi")
    kept = existing.join(held, on=STAY, how="semi").with_columns(evidence=pl.lit(None, pl.String))
    rest = target.with_row_index("after").join(held.select("after"), on="after", how="anti", maintain_order="left")
    return pl.concat([rest.select(target.columns), kept.select(target.columns)]), holds


def _open_stays(stays: pl.DataFrame) -> pl.DataFrame:
    return stays.filter(pl.col("status").is_in(OPEN)).group_by("school_id").agg(active=pl.len().cast(pl.Int64))


def _catalog(
    now: _Delivery, school_ids: pl.DataFrame, staff_ids: pl.DataFrame, before: State
) -> dict[str, pl.DataFrame]:
    """Sessions, courses and sections of now, and all published before; `_without_unused` takes the rest out."""
    inputs = now.inputs
    about = (inputs.district, inputs.school_year)
    courses = published_courses(now.records("courses"), school_ids, *about)
    known = pl.concat([courses, now.existing("courses")]).unique("course_id", keep="first", maintain_order=True)
    references = {"schools": school_ids, "courses": known, "staff": staff_ids.rename({"staff_id": "teacher_id"})}
    sections = published_sections(
        now.records("sections"),
        references,
        now.records("academic_sessions"),
        now.records("section_enrollments"),
        before.sections,
        district=inputs.district,
        school_year=inputs.school_year,
    )
    return {
        "academic_sessions": published_sessions(now.of_year("academic_sessions"), school_ids, *about),
        "courses": known,
        "sections": pl.concat([sections, before.sections]).unique("section_id", keep="first", maintain_order=True),
    }


def _newest_runs(sections: pl.DataFrame) -> pl.DataFrame:
    """Of sections that had one id of a SIS one after the other, the last."""
    ordered = sections.sort("start_date", descending=True, nulls_last=True, maintain_order=True)
    return ordered.unique(RECORD, keep="first", maintain_order=True)


def _without_unused(
    now: _Delivery, catalog: dict[str, pl.DataFrame], seated: pl.Series, before: State
) -> tuple[dict[str, pl.DataFrame], tuple[Hold, ...]]:
    """The catalogue without what a complete snapshot no longer has, unless something that is kept refers to it or
    nothing would be left; and what is held so. `seated`: the sections that somebody sits in or teaches."""
    holds: list[Hold] = []

    def current(entity: Entity, key: str, existing: pl.DataFrame, in_use: Sequence[pl.Series] = ()) -> pl.DataFrame:
        of_now = catalog[entity].join(now.records(entity).select(RECORD), on=RECORD, how="semi", maintain_order="left")
        kept = with_kept(of_now, existing, now.presence(entity), key, in_use)
        found = _last_of(now, entity, key, existing, kept)
        if not found:
            return kept
        holds.extend(found)
        waiting = existing.join(held_keys(found, [key], existing), on=key, how="semi")
        return pl.concat([kept, waiting.select(kept.columns)]).sort(key)

    catalog = {**catalog, "sections": _newest_runs(catalog["sections"])}
    sections = current("sections", "section_id", before.sections, [seated])
    return {
        "sections": sections,
        "courses": current("courses", "course_id", now.existing("courses"), [sections["course_id"].drop_nulls()]),
        "academic_sessions": current("academic_sessions", "session_id", now.existing("academic_sessions")),
    }, tuple(holds)


def _last_of(now: _Delivery, entity: Entity, key: str, existing: pl.DataFrame, kept: pl.DataFrame) -> tuple[Hold, ...]:
    """The hold on an entity of which nothing would be left; tombstones are no absences."""
    gone = existing.join(kept.select(key), on=key, how="anti")
    if gone.is_empty():
        return ()
    fated = now.presence(entity).fates(gone)
    removals = fated.filter(pl.col("fate") == ABSENT).with_columns(evidence="fate", change=pl.lit("remove"))
    sizes = [pl.DataFrame({"school_id": [None], "active": [frame.height]}) for frame in (existing, kept)]
    question = Question(entity, [key], removals, before=sizes[0], after=sizes[1])
    return guard(question, now.inputs.thresholds, now.inputs.rulings)


@dataclass(frozen=True)
class _Seats:
    """Who sits in and teaches the sections: `settled` as before, and of the others what was published (`before`) and what
    it becomes (`after`, with evidence)."""

    settled: pl.DataFrame
    before: pl.DataFrame
    after: pl.DataFrame

    @property
    def all(self) -> pl.DataFrame:
        return pl.concat([self.settled, self.after.select(self.settled.columns)])

    @property
    def section_ids(self) -> pl.Series:
        return pl.concat([self.settled["section_id"], self.after["section_id"]]).unique()


def _seats(
    now: _Delivery,
    people: _People,
    before: State,
    *,
    stays: pl.DataFrame,
    sections: pl.DataFrame,
    staff_ids: pl.DataFrame,
    frozen: Mapping[str, date],
) -> tuple[_Seats, tuple[Hold, ...]]:
    """Who sits in and teaches the sections, and the removals that wait."""
    table, existing = MERGED["section_enrollments"], before.section_enrollments
    records = _placed_seats(now, people, sections, staff_ids)
    is_placed = pl.all_horizontal(pl.col(SEAT).is_not_null())
    nowhere = records.filter(~is_placed)
    placed = fit(records.filter(is_placed) if nowhere.height else records, table)
    presence = now.presence("section_enrollments", usable=placed, nowhere=nowhere)
    del records  # there are many: each copy counts
    if now.inputs.whole:
        settled = existing.clear()
    else:
        settled, placed, existing = without_settled(placed, existing, withdrawn_students(stays))
    carried = presence.fates(existing).filter(pl.col("fate") == CARRIED)
    seats = combine_seats(pl.concat([placed, carried.select(table.names)]))
    target = reconcile_seats(seats, existing, presence, now.inputs.as_of)
    found = _Seats(settled, existing, end_seats(target, stays, sections))
    return _guarded_seats(now, found, stays=stays, sections=sections, frozen=frozen)


def _placed_seats(now: _Delivery, people: _People, sections: pl.DataFrame, staff_ids: pl.DataFrame) -> pl.DataFrame:
    """The section enrollment records with the columns of SEAT, null where a reference leads nowhere."""
    named = [name for name in MERGED["section_enrollments"].names if name in now.all("section_enrollments").columns]
    records = now.records("section_enrollments", [*named, "section_sis_id", "person_sis_id"])
    records = refer(records, "section_sis_id", _newest_runs(sections), "section_id").drop("section_sis_id")
    is_student = pl.col("role") == "student"
    seated = refer(records.filter(is_student), "person_sis_id", people.ids, "student_id")
    others = refer(records.filter(~is_student), "person_sis_id", staff_ids, "staff_id")
    placed = pl.concat([seated.rename({"student_id": "person_id"}), others.rename({"staff_id": "person_id"})])
    return placed.drop("person_sis_id").with_columns(
        district=pl.lit(now.inputs.district), school_year=pl.lit(now.inputs.school_year)
    )


def _guarded_seats(
    now: _Delivery, seats: _Seats, *, stays: pl.DataFrame, sections: pl.DataFrame, frozen: Mapping[str, date]
) -> tuple[_Seats, tuple[Hold, ...]]:
    """Absences of seats are only asked about while the section runs and the student is still enrolled.

    A student who left takes the seats along; a held student keeps them, which the enrollment still open says.
    """
    as_of, existing, target = now.inputs.as_of, seats.before, seats.after
    enrolled = stays.filter(pl.col("status").is_in(OPEN)).select(person_id="student_id").unique()
    places = sections.select("section_id", "school_id", section_start="start_date", section_end="end_date")
    running = (pl.col("section_end").is_null() | (pl.col("section_end") > as_of)) & (
        pl.col("section_start").is_null() | (pl.col("section_start") <= as_of)
    )

    def taken(seats: pl.DataFrame) -> pl.DataFrame:
        here = (pl.col("role") == "student") & (pl.col("end_date").is_null() | (pl.col("end_date") > as_of))
        return seats.filter(here).join(places, on="section_id").filter(running)

    removals = (
        taken(existing)
        .join(target.filter(pl.col("evidence") == ABSENT).select(*SEAT, "evidence"), on=SEAT)
        .join(enrolled, on="person_id", how="semi")
        .with_columns(change=pl.lit("section_drop"))
    )
    if removals.is_empty():
        return seats, ()
    asked = _undeclared(now, removals, "person_id", stays)
    counts = [
        pl.concat([taken(seats.settled).select("school_id"), taken(others).select("school_id")])
        .group_by("school_id")
        .agg(active=pl.len().cast(pl.Int64))
        for others in (existing, target)
    ]
    question = Question("section_enrollments", SEAT, asked, before=counts[0], after=counts[1], frozen=frozen)
    holds = guard(question, now.inputs.thresholds, now.inputs.rulings)
    if not holds:
        return seats, holds
    held = held_keys(holds, SEAT, existing)
    kept = existing.join(held, on=SEAT, how="semi").with_columns(evidence=pl.lit(None, pl.String))
    rest = target.join(held, on=SEAT, how="anti", maintain_order="left")
    return replace(seats, after=pl.concat([rest, kept.select(rest.columns)])), holds


def _merged_students(now: _Delivery, people: _People, sources: pl.DataFrame, own: pl.DataFrame) -> MergedStudents:
    """The surviving values; edits, and what is published, count where this school year owns the student's attributes."""
    of_later = own.filter(pl.col("latest_school_year") > now.inputs.school_year).select("student_id")
    edits = _repointed(now.inputs.edits, people.renamed).join(of_later, on="student_id", how="anti")
    published = own.join(of_later, on="student_id", how="anti")
    decided = [replace(it, student_id=people.renamed.get(it.student_id, it.student_id)) for it in now.inputs.decided]
    return merge_students(
        sources, now.inputs.policies, now.priorities, edits=edits, published=published, decided=decided
    )


def _doubted(resolution: Resolution) -> list[str]:
    """Who may be somebody else."""
    near = resolution.near_matches
    return [*near["person_id"], *near["other_person_id"]]


def _near_matches(students: Resolution, staff: Resolution) -> pl.DataFrame:
    ids = {"person_id": "student_id", "other_person_id": "other_student_id"}
    parts = {"student": students, "staff": staff}
    found = [one.near_matches.rename(ids).with_columns(entity=pl.lit(entity)) for entity, one in parts.items()]
    return pl.concat(found)


def _own_students(now: _Delivery, people: _People) -> pl.DataFrame:
    """The students published before, but those whose values are of a record that was split off since: what a later year
    said of them was said of somebody else."""
    students, decided = now.existing("students"), now.inputs.decisions.filter(pl.col("verdict") == DISTINCT)
    named = pl.concat([decided["person_id"], decided["other_person_id"]]).unique()
    given = pl.col("origins").str.json_path_match('$["*"]')
    doubted = (
        students.filter(pl.col("student_id").is_in(named.implode())).select("student_id", given=given).drop_nulls()
    )
    own = people.resolution.known.select(student_id="person_id", given=pl.concat_str(RECORD, separator="/"))
    foreign = doubted.join(own, on=["student_id", "given"], how="anti")
    return students.join(foreign, on="student_id", how="anti", maintain_order="left")


def _years(now: _Delivery, merged: MergedStudents, stays: pl.DataFrame, before: State) -> pl.DataFrame:
    """The year of every student with a record, and of those who left, whose year goes on to say so."""
    home = homes(stays)
    current = published_years(merged, home, now.inputs.district, now.inputs.school_year)
    left = (
        before.student_years.join(current, on="student_id", how="anti", maintain_order="left")
        .join(home.rename({"school_id": "home", "status": "now"}), on="student_id", how="left", maintain_order="left")
        .with_columns(
            school_id=pl.coalesce("home", "school_id"), enrollment_status=pl.coalesce("now", "enrollment_status")
        )
    )
    return pl.concat([current, left.select(current.columns)]).sort("student_id")


def _student_links(now: _Delivery, people: _People, sources: pl.DataFrame) -> pl.DataFrame:
    """Links of all records ever seen. A link goes inactive when a record that this year had is gone from it.

    Only the present year says so, or the latest one merged: an old year that is merged again finds its records in
    their place and must not wake links that have ended since.
    """
    table, links, retired = MERGED["student_links"], now.existing("student_links"), people.resolution.retired
    new = people.resolution.assignment.rename({"person_id": "student_id"}).with_columns(active=pl.lit(value=True))
    linked = _repointed(links, retired)
    held = people.resolution.known.rename({"person_id": "student_id"})
    moved = held.join(linked.select(*RECORD, "student_id"), on=[*RECORD, "student_id"], how="anti")
    known = linked.update(moved.with_columns(rule=pl.lit(SPLIT)), on=RECORD).join(
        new.select(*RECORD, fresh_confidence="confidence"), on=RECORD, how="left", maintain_order="left"
    )
    if _speaks_for_links(now):
        here = sources.select(RECORD).with_columns(here=pl.lit(value=True))
        lost = people.previous.select(RECORD).join(sources, on=RECORD, how="anti").with_columns(lost=pl.lit(value=True))
        known = known.join(here, on=RECORD, how="left", maintain_order="left").join(
            lost, on=RECORD, how="left", maintain_order="left"
        )
        known = known.with_columns(
            active=(pl.col("active") | pl.col("here").fill_null(value=False)) & pl.col("lost").is_null()
        )
    known = known.with_columns(confidence=pl.coalesce("fresh_confidence", "confidence"))
    fresh = new.join(links, on=RECORD, how="anti").with_columns(district=pl.lit(now.inputs.district))
    return pl.concat([fit(known, table), fit(fresh, table)]).sort(RECORD)


def _speaks_for_links(now: _Delivery) -> bool:
    present = SchoolYear.on(now.inputs.as_of).key
    latest = str(now.existing("students")["latest_school_year"].max() or now.inputs.school_year)
    return now.inputs.school_year >= min(present, latest)


def _sources(now: _Delivery, sources: pl.DataFrame) -> pl.DataFrame:
    about = {"district": pl.lit(now.inputs.district), "school_year": pl.lit(now.inputs.school_year)}
    table = MERGED["student_sources"]
    said = fit(sources.with_columns(**about), table)
    values = [name for name in table.names if name not in {"snapshot_id", EMPTIED, CLEARED}]
    before = now.existing("student_sources").select(*values, first_snapshot="snapshot_id")
    # an unchanged record keeps the snapshot that first said so: a day with few changes rewrites few rows
    known = said.join(before, on=values, how="left", nulls_equal=True)
    return fit(known.with_columns(snapshot_id=pl.coalesce("first_snapshot", "snapshot_id")), table).sort(RECORD)


def _staff(now: _Delivery, staff: Resolution, school_ids: pl.DataFrame) -> pl.DataFrame:
    """Staff of now, and those who begin or cease to wait for a person's word on who they are. Someone whom a partial
    snapshot may not have named in full otherwise stays as published."""
    who = staff.assignment.select(*RECORD, staff_id="person_id")
    records = now.records("staff").join(who, on=RECORD)
    unsure = now.presence("staff").fates(_repointed(now.existing("staff_links"), staff.retired, "staff_id"))
    unsure = unsure.filter((pl.col("fate") == CARRIED) & pl.col("active"))
    doubted = _doubted(staff)
    merged = published_staff(records, school_ids, now.inputs.district, now.priorities, doubted)
    existing = now.existing("staff").filter(~pl.col("staff_id").is_in(list(staff.retired)))
    published = existing.join(unsure, on="staff_id", how="semi") if _is_owner(now) else existing
    current = merged.join(published, on="staff_id", how="anti", maintain_order="left")
    waits = pl.col("staff_id").is_in(pl.Series(doubted, dtype=pl.String).implode())
    turned = existing.filter(pl.col("near_match").ne_missing(waits)).with_columns(near_match=waits)
    rest = turned.join(current, on="staff_id", how="anti", maintain_order="left")
    return pl.concat([current, rest.select(current.columns)])


def _guarded_staff_links(now: _Delivery, staff: Resolution) -> tuple[pl.DataFrame, tuple[Hold, ...]]:
    """The links of staff, and the staff members whose absence waits: theirs stay active."""
    links = _staff_links(now, staff)
    ended = links.filter(pl.col("was") & ~pl.col("active"))
    if ended.is_empty():
        return fit(links, MERGED["staff_links"]), ()
    schools = now.existing("staff").select("staff_id", "school_id")
    ended = ended.join(links.filter("active"), on="staff_id", how="anti", maintain_order="left")
    absent = ended.filter(pl.col("fate") == ABSENT).unique("staff_id", maintain_order=True)
    removals = absent.join(schools, on="staff_id", how="left", maintain_order="left")
    removals = removals.with_columns(evidence="fate", change=pl.lit("remove"))
    closed = pl.col("school_id").is_in(list(now.inputs.rulings.closed)).fill_null(value=False)
    sizes = [
        pl.DataFrame({"school_id": [None], "active": [links.filter(column)["staff_id"].n_unique()]})
        for column in ("was", "active")
    ]
    question = Question("staff", ["staff_id"], removals.filter(~closed), before=sizes[0], after=sizes[1])
    holds = guard(question, now.inputs.thresholds, now.inputs.rulings)
    held = pl.col("staff_id").is_in([staff_id for hold in holds for (staff_id,) in hold.keys])
    kept = links.with_columns(active=pl.col("active") | (held & pl.col("was") & (pl.col("fate") == ABSENT)))
    return fit(kept, MERGED["staff_links"]), holds


def _staff_links(now: _Delivery, staff: Resolution) -> pl.DataFrame:
    """As `_student_links`, with `was` (active) and `fate`; only the latest year says that a staff member is no longer
    delivered."""
    owner = _is_owner(now)
    links = _repointed(now.existing("staff_links"), staff.retired, "staff_id")
    held = staff.known.rename({"person_id": "staff_id"})
    moved = held.join(links.select(*RECORD, "staff_id"), on=[*RECORD, "staff_id"], how="anti")
    fated = now.presence("staff").fates(links.update(moved.with_columns(rule=pl.lit(SPLIT)), on=RECORD))
    fated = fated.with_columns(was="active")
    if owner:
        seen = pl.when(pl.col("fate") == CARRIED).then("active").otherwise(pl.col("fate") == DELIVERED)
        fated = fated.with_columns(active=seen)
    new = staff.assignment.rename({"person_id": "staff_id"}).join(links, on=RECORD, how="anti")
    about = {"district": pl.lit(now.inputs.district), "active": pl.lit(owner), "was": pl.lit(value=False)}
    new = new.with_columns(**about, fate=pl.lit(DELIVERED))
    columns = [*MERGED["staff_links"].names, "was", "fate"]
    return pl.concat([fated.select(columns), new.select(columns)]).sort(RECORD)


def _stats(
    now: _Delivery,
    people: _People,
    sources: pl.DataFrame,
    frames: Mapping[str, pl.DataFrame],
    holds: Sequence[Hold],
    *,
    near: int,
) -> MergeStats:
    systems = sources.group_by("student_id").agg(pl.col("integration").n_unique())
    kinds = frames["enrollment_changes"]["kind"].value_counts().sort("kind")
    all_years = now.records("enrollments").height
    return MergeStats(
        students=systems.height,
        matched=systems.filter(pl.col("integration") > 1).height,
        near_matches=near,
        conflicts=frames["conflicts"].filter(pl.col("status") != STALE).height,
        enrollments=frames["enrollments"].height,
        section_enrollments=frames["section_enrollments"].height,
        changes=dict(kinds.iter_rows()),
        held=sum(hold.removals for hold in holds),
        recycled=people.resolution.recycled.height,
        other_year_rows=all_years - now.of_year("enrollments").height,
        integrations={key: _counts(now, people, sources, key) for key in sorted(now.inputs.integrations)},
        due=_due(now.inputs.as_of, frames["enrollments"], holds),
        unsupplied=people.unsupplied,
    )


def _due(as_of: date, stays: pl.DataFrame, holds: Sequence[Hold]) -> str | None:
    """The next day on which an enrollment begins or ends; tomorrow where something is held, as the days count in which
    it was removed."""
    open_ones = stays.filter(pl.col("status").is_in(OPEN))
    days = pl.concat([open_ones["entry_date"], open_ones["exit_date"]])
    to_come = [days.filter(days > as_of).min(), as_of + timedelta(days=1) if holds else None]
    first = min((day for day in to_come if isinstance(day, date)), default=None)
    return first.isoformat() if first else None


def _counts(now: _Delivery, people: _People, sources: pl.DataFrame, integration: str) -> dict[str, int]:
    def count(frame: pl.DataFrame) -> int:
        return frame.filter(pl.col("integration") == integration).height

    mine = sources.filter(pl.col("integration") == integration)
    return {
        "records": count(now.records("students")),
        "carried": count(people.carried),
        "absent": count(people.previous.filter(pl.col("fate") == ABSENT)),
        "tombstones": count(now.tombstones("students")),
        "students": mine["student_id"].n_unique(),
    }
