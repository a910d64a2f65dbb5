"""The merge of one district's school year, read from top to bottom: who is who, one record each, enrollments, guard, ledger.
Each step has its own module; nothing here reads or writes anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta

import polars as pl

from sis_pipeline.roster.catalog import (
    newest_runs,
    published_courses,
    published_schools,
    published_sections,
    published_sessions,
    with_kept,
)
from sis_pipeline.roster.changes import State, detect_changes
from sis_pipeline.roster.contract import DistrictInputs, MergedRoster, MergeStats
from sis_pipeline.roster.delivery import Delivery
from sis_pipeline.roster.enrollments import OPEN, SEAT, STAY, irregular
from sis_pipeline.roster.frames import empty, fit, rows_where
from sis_pipeline.roster.guard import Entity, Hold, Question, guard, held_keys
from sis_pipeline.roster.identity import RECYCLED, Resolution, resolve_schools
from sis_pipeline.roster.merge import published_conflicts, published_students
from sis_pipeline.roster.model import MERGED, STALE
from sis_pipeline.roster.people import (
    People,
    identify_students,
    own_students,
    state_before,
    student_links,
    student_sources,
    student_years,
    surviving_values,
)
from sis_pipeline.roster.presence import ABSENT, RECORD
from sis_pipeline.roster.seats import merge_seats
from sis_pipeline.roster.staff import identify_staff, merged_staff, merged_staff_links
from sis_pipeline.roster.stays import frozen_schools, merge_stays, school_closings
from sis_pipeline.roster.touched import Touched, find_touched, remember

_OF_STUDENTS = ("students", "student_years", "student_sources", "conflicts", "enrollments", "section_enrollments")
"""Tables whose rows are a student's."""


def merge_district(inputs: DistrictInputs) -> MergedRoster:
    """Merge one district's school year. Pure: the result depends on the inputs only, and not on their order."""
    now = Delivery(inputs)
    school_ids = _school_ids(now)

    everybody = identify_students(now, school_ids)
    published = state_before(now, everybody, school_ids)
    staff = identify_staff(now, school_ids)

    frozen, closings = frozen_schools(now, school_ids), school_closings(now, school_ids)
    catalog = _catalog(now, school_ids, staff, published)
    touched = find_touched(now, everybody, published, sections=catalog["sections"], concerns=(school_ids, closings))
    rest = _settled(now, touched, published)
    people, before, said = touched.people(everybody), touched.state(published), touched.delivery(now, everybody)

    stays, stay_holds = merge_stays(
        said, people, before, school_ids=school_ids, closings=closings, frozen=frozen, rest=rest["enrollments"]
    )
    seats, seat_holds = merge_seats(
        said,
        people,
        before,
        stays=stays,
        sections=catalog["sections"],
        staff=staff,
        frozen=frozen,
        rest=rest["section_enrollments"],
    )
    catalog, catalog_holds = _without_unused(now, catalog, seats.section_ids, before)
    staff_links, staff_holds = merged_staff_links(now, staff)
    holds = (*stay_holds, *seat_holds, *catalog_holds, *staff_holds)

    sources = people.with_held(stay_holds)
    own = touched.of(own_students(now, everybody))
    merged = surviving_values(now, people, sources, own)
    near = people.resolution.doubted
    years = student_years(now, merged, stays, before)
    links = student_links(now, everybody, everybody.with_held(stay_holds))
    after = State(stays, seats.after, years, catalog["sections"])
    changes = detect_changes(replace(before, section_enrollments=seats.before), after, now.about)
    conflicts = published_conflicts(
        merged, touched.of(now.existing("conflicts")), people.renamed, inputs.district, inputs.school_year
    )
    students = published_students(merged, own, near, inputs.district, inputs.school_year)

    def with_rest(table: str, frame: pl.DataFrame) -> pl.DataFrame:
        if touched.students is None:
            return frame
        own = [name for name in MERGED[table].key if name not in ("district", "school_year")]
        return pl.concat([frame, rest[table].select(frame.columns)]).sort(own)

    frames = {
        "schools": _schools(now, school_ids),
        "academic_sessions": catalog["academic_sessions"],
        "courses": catalog["courses"],
        "staff": merged_staff(now, staff, school_ids),
        "staff_links": staff_links,
        "sections": catalog["sections"],
        "students": with_rest("students", students),
        "student_years": with_rest("student_years", years),
        "student_links": links,
        "student_sources": with_rest("student_sources", student_sources(now, sources)),
        "conflicts": with_rest("conflicts", conflicts),
        "enrollments": with_rest("enrollments", fit(stays, MERGED["enrollments"]).sort(STAY)),
        "section_enrollments": seats.all.sort(SEAT),
        "enrollment_changes": changes,
    }
    students_merged = sources["student_id"].n_unique()
    near_matches = _near_matches(now, people.resolution, staff)
    return MergedRoster(
        frames=frames,
        held=holds,
        near_matches=near_matches,
        cut_chains=people.resolution.cut_chains,
        recycled=_set_aside(now, people.resolution, staff),
        retired=people.resolution.retired,
        retired_staff=staff.retired,
        stats=replace(
            _stats(now, everybody, frames, holds, near=near_matches.height),
            undecided=_undecided(near_matches, people.resolution.cut_chains),
            whole=inputs.whole,
            students_merged=students_merged,
            seats_merged=seats.after.height,
        ),
        settled=merged.settled,
        touched=touched.students,
        memory=remember(said, people, touched, stays=stays, seats=seats, holds=holds),
    )


def _settled(now: Delivery, touched: Touched, before: State) -> dict[str, pl.DataFrame]:
    """By table, the rows of the students who stay as they are published."""
    if touched.students is None:
        return {name: empty(MERGED[name]) for name in _OF_STUDENTS}
    sources, seats = touched.rest(now.existing("student_sources")), before.section_enrollments
    students = now.existing("students").filter(pl.col("latest_school_year") == now.inputs.school_year)
    return {
        "students": students.join(sources, on="student_id", how="semi"),
        "student_years": touched.rest(before.student_years),
        "student_sources": sources,
        "conflicts": touched.rest(now.existing("conflicts")),
        "enrollments": touched.rest(before.enrollments),
        "section_enrollments": touched.rest(rows_where(seats, seats["role"] == "student"), "person_id"),
    }


def _school_ids(now: Delivery) -> pl.DataFrame:
    """integration, sis_id, school_id: of the records of now, then of schools published before (a delta names few)."""
    resolved = resolve_schools(now.inputs.district, now.records("schools"))
    published = now.existing("schools").select(*RECORD, "school_id")
    return pl.concat([resolved, published]).unique(RECORD, keep="first", maintain_order=True)


def _schools(now: Delivery, school_ids: pl.DataFrame) -> pl.DataFrame:
    """Schools of now; in an earlier year than the latest one published, only those that are not there yet."""
    merged = published_schools(now.records("schools"), school_ids, now.inputs.district, now.priorities)
    if not now.is_owner:
        merged = merged.join(now.existing("schools"), on="school_id", how="anti")
    return merged


def _catalog(now: Delivery, school_ids: pl.DataFrame, staff: Resolution, before: State) -> dict[str, pl.DataFrame]:
    """Sessions, courses and sections of now, and all published before; `_without_unused` takes the rest out."""
    inputs = now.inputs
    about = (inputs.district, inputs.school_year)
    courses = published_courses(now.records("courses"), school_ids, *about)
    known = pl.concat([courses, now.existing("courses")]).unique("course_id", keep="first", maintain_order=True)
    references = {"schools": school_ids, "courses": known, "staff": staff.meant.rename({"person_id": "teacher_id"})}
    sections = published_sections(
        now.sections_of_year(),
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
        "sections": pl.concat([_taught_as_before(sections, before.sections, staff), before.sections]).unique(
            "section_id", keep="first", maintain_order=True
        ),
    }


def _taught_as_before(sections: pl.DataFrame, before: pl.DataFrame, staff: Resolution) -> pl.DataFrame:
    """The sections; of whose teacher the id seems to be somebody else's by now, they have the teacher they had."""
    had = before.join(
        staff.spared, left_on=["integration", "teacher_id"], right_on=["integration", "person_id"], how="semi"
    )
    if had.is_empty():
        return sections
    kept = sections.join(had.select("section_id", had="teacher_id"), on="section_id", how="left", maintain_order="left")
    return kept.with_columns(pl.coalesce("teacher_id", "had").alias("teacher_id")).drop("had")


def _without_unused(
    now: Delivery, catalog: dict[str, pl.DataFrame], seated: pl.Series, before: State
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

    catalog = {**catalog, "sections": newest_runs(catalog["sections"])}
    sections = current("sections", "section_id", before.sections, [seated])
    return {
        "sections": sections,
        "courses": current("courses", "course_id", now.existing("courses"), [sections["course_id"].drop_nulls()]),
        "academic_sessions": current("academic_sessions", "session_id", now.existing("academic_sessions")),
    }, tuple(holds)


def _last_of(now: Delivery, entity: Entity, key: str, existing: pl.DataFrame, kept: pl.DataFrame) -> tuple[Hold, ...]:
    """The hold on an entity of which nothing would be left; tombstones are no absences."""
    gone = existing.join(kept.select(key), on=key, how="anti")
    if gone.is_empty():
        return ()
    fated = now.presence(entity).fates(gone)
    removals = fated.filter(pl.col("fate") == ABSENT).with_columns(evidence="fate", change=pl.lit("remove"))
    sizes = [pl.DataFrame({"school_id": [None], "active": [frame.height]}) for frame in (existing, kept)]
    question = Question(entity, [key], removals, before=sizes[0], after=sizes[1])
    return guard(question, now.inputs.thresholds, now.inputs.rulings)


def _near_matches(now: Delivery, students: Resolution, staff: Resolution) -> pl.DataFrame:
    """With the records set aside, of which only the latest school year asks."""
    ids = {"person_id": "student_id", "other_person_id": "other_student_id"}
    parts = {"student": students, "staff": staff}
    found = [
        frame.rename(ids).with_columns(entity=pl.lit(entity))
        for entity, one in parts.items()
        for frame in ((one.near_matches, one.questions) if now.is_owner else (one.near_matches,))
    ]
    return pl.concat(found)


def _set_aside(now: Delivery, students: Resolution, staff: Resolution) -> pl.DataFrame:
    """What the records say that are set aside: nothing of it is published."""
    parts = {"students": students, "staff": staff}
    said = [
        now.records(name).join(one.recycled, on=RECORD, how="semi").with_columns(entity=pl.lit(entity))
        for (name, one), entity in zip(parts.items(), ("student", "staff"), strict=True)
    ]
    return pl.concat(said, how="diagonal_relaxed").sort("entity", *RECORD)


def _undecided(near: pl.DataFrame, cut: pl.DataFrame) -> dict[str, dict[str, int]]:
    """As MergeStats.undecided."""
    counted = {"recycled": near.filter(pl.col("rule") == RECYCLED), "cut_chains": cut}
    found: dict[str, dict[str, int]] = {}
    for name, frame in counted.items():
        for integration, number in frame["integration"].drop_nulls().value_counts().sort("integration").iter_rows():
            found.setdefault(integration, {})[name] = number
    return found


def _stats(
    now: Delivery,
    people: People,
    frames: Mapping[str, pl.DataFrame],
    holds: Sequence[Hold],
    *,
    near: int,
) -> MergeStats:
    sources = frames["student_sources"]
    systems = sources.group_by("student_id").agg(pl.col("integration").n_unique())
    kinds = frames["enrollment_changes"]["kind"].value_counts().sort("kind")
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
        other_year_rows=_other_year_rows(now),
        integrations={key: _counts(now, people, sources, key) for key in sorted(now.inputs.integrations)},
        due=_due(now.inputs.as_of, frames["enrollments"], holds),
        unsupplied=people.unsupplied,
        irregular=irregular(frames["enrollments"], now.of_year("enrollments")),
    )


def _other_year_rows(now: Delivery) -> int:
    """Enrollments and sections of other school years, with who sits in those."""
    sections = now.records("sections", RECORD).join(now.sections_of_year(), on=RECORD, how="anti")
    seats = now.records("section_enrollments", ["integration", "section_sis_id"])
    within = seats.join(sections, left_on=["integration", "section_sis_id"], right_on=RECORD, how="semi")
    enrollments = now.records("enrollments", RECORD).height - now.of_year("enrollments").height
    return enrollments + sections.height + within.height


def _due(as_of: date, stays: pl.DataFrame, holds: Sequence[Hold]) -> str | None:
    """The next day on which an enrollment begins or ends; tomorrow where something is held, as the days count in which
    it was removed."""
    open_ones = stays.filter(pl.col("status").is_in(OPEN))
    days = pl.concat([open_ones["entry_date"], open_ones["exit_date"]])
    to_come = [days.filter(days > as_of).min(), as_of + timedelta(days=1) if holds else None]
    first = min((day for day in to_come if isinstance(day, date)), default=None)
    return first.isoformat() if first else None


def _counts(now: Delivery, people: People, sources: pl.DataFrame, integration: str) -> dict[str, int]:
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
