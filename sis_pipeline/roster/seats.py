"""The section enrollments of a merge: who sits in and teaches the sections, and the removals among them that wait.
The rules of a seat live in `enrollments`, sections in `catalog`, how much may go at once in `guard`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date

import polars as pl

from sis_pipeline.roster.catalog import newest_runs, refer
from sis_pipeline.roster.changes import State
from sis_pipeline.roster.delivery import Delivery
from sis_pipeline.roster.enrollments import OPEN, SEAT, combine_seats, reconcile_seats, without_settled
from sis_pipeline.roster.frames import fit
from sis_pipeline.roster.guard import Hold, Question, guard, held_keys
from sis_pipeline.roster.identity import Resolution
from sis_pipeline.roster.model import MERGED
from sis_pipeline.roster.people import People
from sis_pipeline.roster.presence import ABSENT, CARRIED, RECORD
from sis_pipeline.roster.stays import undeclared
from sis_pipeline.roster.withdrawals import end_seats, withdrawn_students


@dataclass(frozen=True)
class Seats:
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


def merge_seats(
    now: Delivery,
    people: People,
    before: State,
    *,
    stays: pl.DataFrame,
    sections: pl.DataFrame,
    staff: Resolution,
    frozen: Mapping[str, date],
    rest: pl.DataFrame,
) -> tuple[Seats, tuple[Hold, ...]]:
    """Who of the people sits in the sections, who of the staff teaches them, and the removals that wait. `rest`: the section
    enrollments of everybody else, which are settled."""
    table, existing = MERGED["section_enrollments"], before.section_enrollments
    staff_ids = staff.meant.rename({"person_id": "staff_id"})
    records = _placed_seats(now, people, sections, staff_ids)
    is_placed = pl.all_horizontal(pl.col(SEAT).is_not_null())
    nowhere = records.filter(~is_placed)
    placed = fit(records.filter(is_placed) if nowhere.height else records, table)
    taught = existing.join(staff.spared, on=["integration", "person_id"], how="semi").select(RECORD)
    spared = pl.concat([people.spared(existing, "person_id"), taught])
    presence = now.presence("section_enrollments", usable=placed, nowhere=nowhere, spared=spared)
    del records  # there are many: each copy counts
    if now.inputs.whole:
        settled = existing.clear()
    else:
        settled, placed, existing = without_settled(placed, existing, withdrawn_students(stays))
    carried = presence.fates(existing).filter(pl.col("fate") == CARRIED)
    seats = combine_seats(pl.concat([placed, carried.select(table.names)]))
    target = reconcile_seats(seats, existing, presence, now.inputs.as_of)
    found = Seats(pl.concat([rest, settled]), existing, end_seats(target, stays, sections))
    return _guarded_seats(now, found, stays=stays, sections=sections, frozen=frozen)


def _placed_seats(now: Delivery, people: People, sections: pl.DataFrame, staff_ids: pl.DataFrame) -> pl.DataFrame:
    """The section enrollment records with the columns of SEAT, null where a reference leads nowhere."""
    named = [name for name in MERGED["section_enrollments"].names if name in now.all("section_enrollments").columns]
    records = now.records("section_enrollments", [*named, "section_sis_id", "person_sis_id"])
    records = refer(records, "section_sis_id", newest_runs(sections), "section_id").drop("section_sis_id")
    is_student = pl.col("role") == "student"
    seated = refer(records.filter(is_student), "person_sis_id", people.ids, "student_id")
    others = refer(records.filter(~is_student), "person_sis_id", staff_ids, "staff_id")
    placed = pl.concat([seated.rename({"student_id": "person_id"}), others.rename({"staff_id": "person_id"})])
    return placed.drop("person_sis_id").with_columns(
        district=pl.lit(now.inputs.district), school_year=pl.lit(now.inputs.school_year)
    )


def _guarded_seats(
    now: Delivery, seats: Seats, *, stays: pl.DataFrame, sections: pl.DataFrame, frozen: Mapping[str, date]
) -> tuple[Seats, tuple[Hold, ...]]:
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
    asked = undeclared(now, removals, "person_id", stays)
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
