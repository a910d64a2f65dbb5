"""Which students a merge merges anew: those of whom something is said, asked or due that was not when they last were.
The others stay as they are published; what becomes of those touched is decided in the steps of `district`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date

import polars as pl

from sis_pipeline.roster.catalog import newest_runs
from sis_pipeline.roster.changes import State
from sis_pipeline.roster.clearing import CLEARED, EMPTIED
from sis_pipeline.roster.contract import Memory
from sis_pipeline.roster.decisions import SAME
from sis_pipeline.roster.delivery import Delivery
from sis_pipeline.roster.enrollments import is_open
from sis_pipeline.roster.frames import rows_where
from sis_pipeline.roster.guard import Hold
from sis_pipeline.roster.people import People
from sis_pipeline.roster.presence import DELIVERED, RECORD
from sis_pipeline.roster.seats import Seats

_RECORD_OF = {"students": "sis_id", "enrollments": "student_sis_id", "section_enrollments": "person_sis_id"}
"""Entities that speak of a student, and their column that names the student's record."""


@dataclass(frozen=True)
class Touched:
    """`students`: who is merged anew; None where everybody is. `asked`: those of whom a person, or a near match, said
    something, who are merged anew the next time too. `said`, `context`: as Memory has them, of now."""

    students: pl.Series | None
    asked: frozenset[str]
    said: pl.DataFrame
    context: str

    def of(self, rows: pl.DataFrame, person: str = "student_id") -> pl.DataFrame:
        """The rows of those who are merged anew."""
        return rows if self.students is None else rows.filter(pl.col(person).is_in(self.students.implode()))

    def rest(self, rows: pl.DataFrame, person: str = "student_id") -> pl.DataFrame:
        """The rows of those who stay as they are."""
        if self.students is None:
            return rows.clear()
        return rows.filter(~pl.col(person).is_in(self.students.implode()))

    def delivery(self, now: Delivery, people: People) -> Delivery:
        """Without the enrollments and section enrollments of records that stay as they are; those who teach are all there."""
        if self.students is None:
            return now
        settled = self.rest(people.records).select(RECORD)
        left = {}
        for entity in ("enrollments", "section_enrollments"):
            of_student, others = _spoken_of(now, entity)
            named = settled.rename({"sis_id": _RECORD_OF[entity]})
            rest = of_student.join(named, on=named.columns, how="anti", maintain_order="left")
            left[entity] = pl.concat([rest, others])
        return Delivery(replace(now.inputs, records={**now.inputs.records, **left}))

    def people(self, people: People) -> People:
        """Whose records are merged anew; who is who stays that of everybody."""
        if self.students is None:
            return people
        return replace(people, records=self.of(people.records), previous=self.of(people.previous))

    def state(self, state: State) -> State:
        """Those who teach are all there."""
        if self.students is None:
            return state
        seats = state.section_enrollments
        of_staff = rows_where(seats, seats["role"] != "student")
        return replace(
            state,
            enrollments=self.of(state.enrollments),
            student_years=self.of(state.student_years),
            section_enrollments=pl.concat(
                [of_staff, self.of(rows_where(seats, seats["role"] == "student"), "person_id")]
            ),
        )


def find_touched(
    now: Delivery, people: People, before: State, *, sections: pl.DataFrame, concerns: Iterable[object]
) -> Touched:
    """Who is merged anew. `people`, `before`: of everybody; `sections`: those of now; `concerns`: what, beside policies and
    priorities, matters to every student; where any of it is not what it was, everybody is touched.

    A student is left out where all records say, with their enrollments and section enrollments, what they said when the
    student was last merged, are the same records, and had been at rest then, as `remember` says. A reading that may leave
    records out has said nothing else of who is not in it; but of several records of a student it may have left out one.
    """
    said = _what_is_said(now)
    context = _context(now, concerns)
    asked = _asked(now, people)
    memory = now.inputs.memory
    is_alike = memory is not None and memory.context == context and memory.as_of <= now.inputs.as_of
    if now.inputs.whole or memory is None or not is_alike or not now.is_owner:
        return Touched(None, asked, said, context)
    records = pl.concat(
        [_saying_something_else(now, said, memory.said), _in_another_section(now, before.sections, sections)]
    )
    known = people.resolution.known.join(records, on=RECORD, how="semi")["person_id"]
    found = [
        known,
        _of_other_records(now, people),
        _told_in_part(people),
        _due(now, people, before, memory.as_of),
        pl.Series(list(asked), dtype=pl.String),
    ]
    return Touched(_with_takers(now, people, before, pl.concat(found).unique()), asked, said, context)


def remember(
    now: Delivery, people: People, touched: Touched, *, stays: pl.DataFrame, seats: Seats, holds: Iterable[Hold]
) -> Memory:
    """What the next merge may go by: what was said of all but the students who are not at rest, of whose records nothing
    counts as said. Those are the ones who were `asked` about, who wait in a hold, and of whom something is published that
    this reading did not say: what becomes of it depends on what the next one says of it, or does not. `people`, `stays`,
    `seats`: of those merged anew."""
    silent = [people.previous.filter(pl.col("fate") != DELIVERED)["student_id"], _filled_in(now, people)]
    if now.inputs.existing:
        # what had ended stays as it was, unless another report takes its place, as it may once a reading is complete again
        in_part = ~pl.col("integration").is_in(now.complete)
        goes_on = pl.col("end_date").is_null() | (pl.col("end_date") > now.inputs.as_of)
        silent.append(_not_said(now, "enrollments", stays.filter(is_open() | in_part))["student_id"])
        silent.append(_not_said(now, "section_enrollments", seats.after.filter(goes_on | in_part))["person_id"])
    held = [name for hold in holds for key in hold.keys for name in key]
    restless = pl.concat([*silent, pl.Series([*touched.asked, *held], dtype=pl.String)]).unique()
    unnamed = [now.inputs.memory.said.join(touched.said, on=RECORD, how="anti")] if now.inputs.memory else []
    may_be_left_out = ~pl.col("integration").is_in(now.complete) & pl.col("said").is_not_null()
    said = pl.concat([touched.said, *(frame.filter(may_be_left_out) for frame in unnamed)])
    theirs = people.resolution.known.filter(pl.col("person_id").is_in(restless.implode())).select(RECORD)
    at_rest = said.join(theirs, on=RECORD, how="anti")
    said = pl.concat([at_rest, theirs.with_columns(said=pl.lit(None, at_rest.schema["said"]))])
    return Memory(said.sort(RECORD), touched.context, now.inputs.as_of)


def _filled_in(now: Delivery, people: People) -> pl.Series:
    """The students of whom a partial reading lacks a value that is published: the next one may mean that there is none."""
    partial = [key for key, part in now.inputs.integrations.items() if part.completeness == "partial"]
    if not partial:
        return people.records["student_id"].clear()
    said = now.records("students")
    names = [name for name in said.columns if name in people.records.columns and name != "snapshot_id"]
    filled = people.records.filter(pl.col("integration").is_in(partial))
    return filled.join(said.select(names), on=names, how="anti", nulls_equal=True)["student_id"]


def _not_said(now: Delivery, entity: str, published: pl.DataFrame) -> pl.DataFrame:
    return published.join(now.records(entity, RECORD), on=RECORD, how="anti")


def _what_is_said(now: Delivery) -> pl.DataFrame:
    """integration, sis_id of each student record that anything speaks of, and `said`: a hash of all of that, whatever the
    order. Two rows that are exchanged count as another saying, as do a value and a null."""
    parts = []
    for seed, (entity, record) in enumerate(_RECORD_OF.items()):
        rows = _spoken_of(now, entity)[0].drop("snapshot_id")
        parts.append(rows.select("integration", sis_id=record, said=rows.hash_rows(seed)))
    return pl.concat(parts).drop_nulls("sis_id").group_by(RECORD).agg(pl.col("said").sum())


def _spoken_of(now: Delivery, entity: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows that speak of a student, and the others: a teacher may have a student's number."""
    rows = now.all(entity)
    if entity != "section_enrollments":
        return rows, rows.clear()
    is_student = rows["role"] == "student"
    return rows_where(rows, is_student), rows_where(rows, ~is_student)


def _context(now: Delivery, concerns: Iterable[object]) -> str:
    """Hash of what matters to every student: policies, the priorities of the systems that take part, and the concerns."""
    texts = [repr(now.inputs.policies), repr(sorted(now.priorities.items())), *map(_text, concerns)]
    return hashlib.sha256("\x1e".join(texts).encode()).hexdigest()


def _text(concern: object) -> str:
    if isinstance(concern, pl.DataFrame):
        return repr(sorted(concern.select(sorted(concern.columns)).cast(pl.String).rows(), key=repr))
    return repr(concern)


def _saying_something_else(now: Delivery, said: pl.DataFrame, before: pl.DataFrame) -> pl.DataFrame:
    """The records that say what they did not say when they were at rest, or that a complete reading has no longer; and those
    of students who were not."""
    other = said.join(before, on=[*RECORD, "said"], how="anti").select(RECORD)
    restless = before.filter(pl.col("said").is_null()).select(RECORD)
    gone = before.filter(pl.col("integration").is_in(now.complete)).join(said, on=RECORD, how="anti")
    published = now.existing("student_sources").select(RECORD).join(before, on=RECORD, how="anti")
    return pl.concat([other, restless, gone.select(RECORD), published])


def _in_another_section(now: Delivery, before: pl.DataFrame, sections: pl.DataFrame) -> pl.DataFrame:
    """The records with a seat in a section that is another one by now, or at another school."""
    columns = [*RECORD, "section_id", "school_id"]
    old, new = (newest_runs(frame).select(columns) for frame in (before, sections))
    moved = pl.concat([old.join(new, on=columns, how="anti"), new.join(old, on=columns, how="anti")])
    seats = now.all("section_enrollments")
    if moved.is_empty():
        return seats.select("integration", sis_id="person_sis_id").clear()
    within = moved.select("integration", section_sis_id="sis_id").unique()
    return seats.join(within, on=within.columns, how="semi").select("integration", sis_id="person_sis_id")


def _of_other_records(now: Delivery, people: People) -> pl.Series:
    """The students whose records are not those that were published, or lost another of their values by now, or who are no
    longer published themselves."""
    columns = [*RECORD, "student_id", EMPTIED, CLEARED]
    old, new = now.existing("student_sources").select(columns), people.records.select(columns)
    sides = [one.join(other, on=columns, how="anti", nulls_equal=True) for one, other in ((old, new), (new, old))]
    unpublished = old.join(now.existing("students"), on="student_id", how="anti")
    return pl.concat([*sides, unpublished])["student_id"]


def _told_in_part(people: People) -> pl.Series:
    """The students of whose several records one was not delivered: what it had said of an enrollment may be missing now."""
    unsaid = people.previous.filter(pl.col("fate") != DELIVERED)
    records = pl.concat([frame.select(*RECORD, "student_id") for frame in (people.records, people.previous)]).unique()
    of_unsaid = records.join(unsaid, on="student_id", how="semi")
    return of_unsaid.filter(pl.col("student_id").is_duplicated())["student_id"]


def _with_takers(now: Delivery, people: People, before: State, touched: pl.Series) -> pl.Series:
    """The touched, and who has by now an enrollment or section enrollment that was one of theirs: it is not gone."""
    owned = {"enrollments": before.enrollments, "section_enrollments": before.section_enrollments}
    fresh = touched
    while len(fresh):
        takers = []
        for entity, rows in owned.items():
            person = "student_id" if entity == "enrollments" else "person_id"
            theirs = rows.filter(pl.col(person).is_in(fresh.implode())).select(RECORD)
            given = _spoken_of(now, entity)[0].join(theirs, on=RECORD, how="semi")
            named = given.select("integration", sis_id=_RECORD_OF[entity])
            takers.append(people.records.join(named, on=RECORD, how="semi")["student_id"])
        found = pl.concat(takers).unique()
        fresh = found.filter(~found.is_in(touched.implode()))
        touched = pl.concat([touched, fresh])
    return touched


def _due(now: Delivery, people: People, before: State, since: date) -> pl.Series:
    """The students with an enrollment that began or ended since, and those who were expected by now."""
    as_of = now.inputs.as_of

    def has_come(column: str) -> pl.Expr:
        return ((pl.col(column) > since) & (pl.col(column) <= as_of)).fill_null(value=False)

    comes = has_come("entry_date") | has_come("exit_date")
    is_expected = (pl.col("status") == "pre_registered") & (pl.col("entry_date") <= as_of)
    published = before.enrollments.filter(comes | is_expected)["student_id"]
    reports = now.of_year("enrollments").filter(comes).select("integration", sis_id="student_sis_id")
    reported = people.records.join(reports, on=RECORD, how="semi")["student_id"]
    return pl.concat([published, reported])


def _asked(now: Delivery, people: People) -> frozenset[str]:
    """The students of whom a person said or edited something, who may be, or might have been, somebody else, and who were
    somebody else."""
    inputs = now.inputs
    near = now.existing("students").filter("near_match")["student_id"]
    distinct = inputs.decisions.filter(pl.col("verdict") != SAME)
    named = [
        *inputs.edits["student_id"],
        *(one.student_id for one in inputs.decided),
        *inputs.withdrawals["student_id"],
        *distinct["person_id"].drop_nulls(),
        *distinct["other_person_id"].drop_nulls(),
        *people.resolution.doubted,
        *near,
        *people.moved["was"],
        *people.moved["student_id"],
    ]
    became: Mapping[str, str] = people.renamed
    return frozenset({became.get(name, name) for name in named} | set(named) | set(became) | set(became.values()))
