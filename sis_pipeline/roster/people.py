"""The students of a merge: their records of now and of before, the state they were in, and what is published of them.
Who is who is decided in `identity`, whose value survives in `merge`; where they are enrolled belongs to `stays`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from sis_pipeline.roster.catalog import newest_runs, refer
from sis_pipeline.roster.changes import State
from sis_pipeline.roster.clearing import CLEARED, EMPTIED, find_clearings
from sis_pipeline.roster.decisions import DISTINCT, SPLIT
from sis_pipeline.roster.delivery import Delivery
from sis_pipeline.roster.enrollments import OPEN, SEAT, STAY, homes
from sis_pipeline.roster.frames import fit
from sis_pipeline.roster.guard import Hold
from sis_pipeline.roster.identity import SAID, Resolution, repointed, resolve_students
from sis_pipeline.roster.merge import MergedStudents, merge_students, published_years
from sis_pipeline.roster.model import ENTITIES, MERGED
from sis_pipeline.roster.presence import ABSENT, CARRIED, RECORD
from sis_pipeline.roster.school_year import SchoolYear


@dataclass(frozen=True)
class People:
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
        """Whom an enrollment means by a record. One whose id seems to be another child's by now means nobody."""
        meant = self.records.join(self.resolution.recycled, on=RECORD, how="anti", maintain_order="left")
        return meant.select(*RECORD, "student_id")

    def spared(self, published: pl.DataFrame, person: str = "student_id") -> pl.DataFrame:
        """Of the rows published before those that a system said of a child whose id it seems to have given to another one:
        whatever it says under that id now, it says nothing of these."""
        had = self.previous.join(self.resolution.recycled, on=RECORD, how="semi")
        named = had.select("integration", pl.col("student_id").alias(person))
        return published.join(named, on=named.columns, how="semi").select(RECORD)

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
        kept = kept.join(self.records, on=RECORD, how="anti", maintain_order="left")  # another child's by now
        return pl.concat([self.records, kept.select(self.records.columns)])


def identify_students(now: Delivery, school_ids: pl.DataFrame) -> People:
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
        before=repointed(pl.concat([before.select(SAID), now.inputs.said_before.select(SAID)]), now.inputs.aliases),
        former=now.inputs.former_names,
    )
    renamed = _renamed(now.inputs.aliases, resolution)
    # the record of a recycled id is nobody's; the child who had the id before keeps the record published before
    # until a person says that it is another child's: then hers is not there any more
    spared = fated.join(resolution.recycled, on=RECORD, how="semi").with_columns(fate=pl.lit(CARRIED))
    absent = fated.join(resolution.passed_on, on=RECORD, how="semi").with_columns(fate=pl.lit(ABSENT))
    hers = pl.concat([spared, absent])
    fated = repointed(pl.concat([fated.join(hers, on=RECORD, how="anti"), hers]), renamed).with_columns(
        was="student_id"
    )
    known = resolution.known.join(hers, on=RECORD, how="anti")
    fated = fated.update(known.rename({"person_id": "student_id"}), on=RECORD)
    who = resolution.assignment.select(*RECORD, student_id="person_id")
    records = candidates.join(who, on=RECORD, how="inner")
    spared = fated.join(resolution.recycled, on=RECORD, how="semi")
    records = pl.concat([records, spared.select(records.columns)])
    return People(resolution, records, fated, renamed, clearings.unsupplied)


def _renamed(aliases: Mapping[str, str], resolution: Resolution) -> dict[str, str]:
    """Every id that was merged away, now or before, and not brought back by now, with the student it is now."""
    retired = resolution.retired
    back = set(resolution.known["person_id"]) if aliases else set()
    before = {alias: retired.get(student, student) for alias, student in aliases.items() if alias not in back}
    return {**before, **retired}


def _with_values_before(now: Delivery) -> pl.DataFrame:
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
    both = delivered.join(before, on=same, how="left", suffix="state_before", maintain_order="left")
    filled = both.with_columns(pl.coalesce(name, f"{name}state_before") for name in values)
    return filled.select(delivered.columns)


def state_before(now: Delivery, people: People, school_ids: pl.DataFrame) -> State:
    """The published state, as it would read had merged students always been one, and split ones two: neither is a
    removal. Who a student was is what this year's own rows say: another year's merge may have changed the links before.
    """
    renamed = people.renamed
    stays = now.existing("enrollments").with_columns(closed=~pl.col("status").is_in(OPEN))
    stays = repointed(stays, renamed).sort("closed", maintain_order=True).drop("closed")
    seats = repointed(now.existing("section_enrollments"), renamed, "person_id")
    years = repointed(now.existing("student_years"), renamed).unique("student_id", keep="first", maintain_order=True)
    sections = now.existing("sections")
    if people.moved.height:
        at_school = refer(now.of_year("enrollments"), "school_sis_id", school_ids, "school_id")
        in_section = refer(now.records("section_enrollments"), "section_sis_id", newest_runs(sections), "section_id")
        stays = _divided(stays, people, at_school.select("integration", "school_id", sis_id="student_sis_id"))
        taken = in_section.filter(pl.col("role") == "student")
        taken = taken.select("integration", "section_id", sis_id="person_sis_id")
        seats = _divided(seats, people, taken, "person_id")
        years = _without_emptied(years, people, stays)
    if renamed or people.moved.height:
        seats = seats.unique(SEAT, keep="first", maintain_order=True)
    return State(stays.unique(STAY, keep="first", maintain_order=True), seats, years, sections)


def _divided(rows: pl.DataFrame, people: People, reports: pl.DataFrame, person: str = "student_id") -> pl.DataFrame:
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


def _without_emptied(years: pl.DataFrame, people: People, stays: pl.DataFrame) -> pl.DataFrame:
    """The years without those of split students who keep neither a record nor a stay in this one: they never had it."""
    kept = pl.concat([frame["student_id"] for frame in (people.records, people.previous, stays)]).unique()
    emptied = pl.col("student_id").is_in(people.moved["was"].implode()) & ~pl.col("student_id").is_in(kept.implode())
    return years.filter(~emptied)


def surviving_values(now: Delivery, people: People, sources: pl.DataFrame, own: pl.DataFrame) -> MergedStudents:
    """The surviving values; edits, and what is published, count where this school year owns the student's attributes."""
    of_later = own.filter(pl.col("latest_school_year") > now.inputs.school_year).select("student_id")
    edits = repointed(now.inputs.edits, people.renamed).join(of_later, on="student_id", how="anti")
    published = own.join(of_later, on="student_id", how="anti")
    decided = [replace(it, student_id=people.renamed.get(it.student_id, it.student_id)) for it in now.inputs.decided]
    return merge_students(
        sources, now.inputs.policies, now.priorities, edits=edits, published=published, decided=decided
    )


def own_students(now: Delivery, people: People) -> pl.DataFrame:
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


def student_years(now: Delivery, merged: MergedStudents, stays: pl.DataFrame, before: State) -> pl.DataFrame:
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


def student_links(now: Delivery, people: People, sources: pl.DataFrame) -> pl.DataFrame:
    """Links of all records ever seen. A link goes inactive when a record that this year had is gone from it.

    Only the present year says so, or the latest one merged: an old year that is merged again finds its records in
    their place and must not wake links that have ended since.
    """
    table, links, retired = MERGED["student_links"], now.existing("student_links"), people.resolution.retired
    new = people.resolution.assignment.rename({"person_id": "student_id"}).with_columns(active=pl.lit(value=True))
    linked = repointed(links, retired)
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


def _speaks_for_links(now: Delivery) -> bool:
    present = SchoolYear.on(now.inputs.as_of).key
    latest = str(now.existing("students")["latest_school_year"].max() or now.inputs.school_year)
    return now.inputs.school_year >= min(present, latest)


def student_sources(now: Delivery, sources: pl.DataFrame) -> pl.DataFrame:
    about = {"district": pl.lit(now.inputs.district), "school_year": pl.lit(now.inputs.school_year)}
    table = MERGED["student_sources"]
    said = fit(sources.with_columns(**about), table)
    values = [name for name in table.names if name not in {"snapshot_id", EMPTIED, CLEARED}]
    before = now.existing("student_sources").select(*values, first_snapshot="snapshot_id")
    # an unchanged record keeps the snapshot that first said so: a day with few changes rewrites few rows
    known = said.join(before, on=values, how="left", nulls_equal=True)
    return fit(known.with_columns(snapshot_id=pl.coalesce("first_snapshot", "snapshot_id")), table).sort(RECORD)
