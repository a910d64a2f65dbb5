"""The school enrollments of a merge, from reports to what they become, and the removals among them that wait.
The rules of a stay live in `enrollments`, how much may go at once in `guard`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

import polars as pl

from sis_pipeline.roster.catalog import refer
from sis_pipeline.roster.changes import CHANGE_OF_EXIT, State
from sis_pipeline.roster.delivery import Delivery
from sis_pipeline.roster.enrollments import (
    OPEN,
    PLACE,
    SAME_STAY_DAYS,
    STAY,
    choose_primary,
    combine_reports,
    is_open,
    mark_transfers,
    match_stays,
    one_per_entry,
    reconcile,
    settle_statuses,
)
from sis_pipeline.roster.frames import fit
from sis_pipeline.roster.freeze import CALENDAR, frozen_until, schools_with_calendar
from sis_pipeline.roster.guard import Hold, Question, guard, held_keys
from sis_pipeline.roster.identity import repointed
from sis_pipeline.roster.model import MERGED
from sis_pipeline.roster.people import People
from sis_pipeline.roster.presence import CARRIED, RECORD, Presence
from sis_pipeline.roster.withdrawals import was_withdrawn, withdraw


def merge_stays(
    now: Delivery,
    people: People,
    before: State,
    *,
    school_ids: pl.DataFrame,
    closings: pl.DataFrame,
    frozen: Mapping[str, date],
    rest: pl.DataFrame,
) -> tuple[pl.DataFrame, tuple[Hold, ...]]:
    """The school enrollments of the people, and the removals that wait. `rest`: those of everybody else, who count."""
    inputs, table = now.inputs, MERGED["enrollments"]
    placed = refer(now.of_year("enrollments"), "student_sis_id", people.ids, "student_id")
    placed = refer(placed, "school_sis_id", school_ids, "school_id").drop_nulls(PLACE)
    gone_students = now.tombstones("students").select("integration", student_sis_id="sis_id")
    of_gone = now.all("enrollments").join(gone_students, on=["integration", "student_sis_id"], how="semi")
    spared = people.spared(before.enrollments)
    presence = now.presence("enrollments", usable=placed, tombstones=[of_gone], spared=spared)
    delivered = fit(placed.with_columns(district=pl.lit(inputs.district)), table)
    carried = _carried_stays(presence, before.enrollments, delivered)
    carried = _expected_to_come(now, people, presence, carried)
    reports = pl.concat([delivered, carried.select(table.names)])

    stays = combine_reports(reports, now.priorities)
    stays = settle_statuses(stays, closings, inputs.as_of, now.year.day_after)
    vouched = _vouched(now, people, school_ids)
    target = reconcile(
        stays, before.enrollments, presence, vouched, closings=closings, day_after_year=now.year.day_after
    )
    target = withdraw(target, repointed(now.inputs.withdrawals, people.renamed))
    target, holds = _guarded_stays(now, before.enrollments, target, frozen, rest)
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


def _expected_to_come(now: Delivery, people: People, presence: Presence, carried: pl.DataFrame) -> pl.DataFrame:
    """Carried stays, a pre-registration as active: who is expected comes on the day also if no later reading names them.
    Not so where the SIS itself keeps the student waiting, where its row can't be read or its id seems to be another
    child's, and where it takes no part."""
    if not (carried["status"] == "pre_registered").any():
        return carried
    waiting = people.records.filter(pl.col("enrollment_status") == "pre_registered").select("integration", "student_id")
    asked = pl.col("integration").is_in(list(now.inputs.integrations))
    come = (
        carried.filter(asked & (pl.col("status") == "pre_registered"))
        .join(presence.unusable, on=RECORD, how="anti")
        .join(presence.spared, on=RECORD, how="anti")
        .join(waiting, on=waiting.columns, how="anti")
        .with_columns(status=pl.lit("active"))
    )
    return pl.concat([carried.join(come, on=STAY, how="anti", maintain_order="left"), come])


def _vouched(now: Delivery, people: People, school_ids: pl.DataFrame) -> pl.DataFrame:
    """student_id, school_id of the records whose system may have left an enrollment there unsaid: those carried over, and
    those of a reading that is not complete, which may name a student and not what is unchanged of them. Not of records that
    tell of an exit, or whose enrollment there is deleted."""
    columns = ["integration", *PLACE, "enrollment_status"]
    in_part = people.records.filter(~pl.col("integration").is_in(now.complete))
    unsaid = pl.concat([people.carried.select(columns), in_part.select(columns)])
    deleted = now.tombstones("enrollments").filter(pl.col("school_year") == now.inputs.school_year)
    deleted = refer(deleted, "student_sis_id", people.ids, "student_id")
    deleted = refer(deleted, "school_sis_id", school_ids, "school_id")
    attends = pl.col("enrollment_status").is_null() | is_open("enrollment_status")
    staying = unsaid.filter(attends).join(deleted, on=["integration", *PLACE], how="anti")
    return staying.select(PLACE).drop_nulls()


def school_closings(now: Delivery, school_ids: pl.DataFrame) -> pl.DataFrame:
    """The day after the school year, per school and (school_id null) for the district, as the sessions tell."""
    sessions = refer(now.of_year("academic_sessions"), "school_sis_id", school_ids, "school_id")
    years = sessions.filter(pl.col("kind") == "school_year").select("school_id", day_after="end_date")
    return pl.concat([years, years.with_columns(school_id=pl.lit(None, pl.String))])


def frozen_schools(now: Delivery, school_ids: pl.DataFrame) -> dict[str, date]:
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


def undeclared(now: Delivery, removals: pl.DataFrame, person: str, stays: pl.DataFrame) -> pl.DataFrame:
    """Removals but those that a person declared: at a school that closed, or of students of one that just opened."""
    rulings = now.inputs.rulings
    moved = stays.filter(pl.col("status").is_in(OPEN) & pl.col("school_id").is_in(list(rulings.opened)))
    closed = pl.col("school_id").is_in(list(rulings.closed))
    return removals.filter(~closed & ~pl.col(person).is_in(moved["student_id"].implode()))


def _guarded_stays(
    now: Delivery, existing: pl.DataFrame, target: pl.DataFrame, frozen: Mapping[str, date], rest: pl.DataFrame
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
    asked = undeclared(now, removals.filter(~was_withdrawn()), "student_id", target)
    sizes = [_open_stays(pl.concat([side.select(rest.columns), rest])) for side in (existing, target)]
    question = Question("enrollments", STAY, asked, before=sizes[0], after=sizes[1], frozen=frozen)
    holds = guard(question, now.inputs.thresholds, now.inputs.rulings)
    if not holds:
        return target, holds
    held = removals.join(held_keys(holds, STAY, existing), on=STAY, how="semi")
    kept = existing.join(held, on=STAY, how="semi").with_columns(evidence=pl.lit(None, pl.String))
    rest = target.with_row_index("after").join(held.select("after"), on="after", how="anti", maintain_order="left")
    return pl.concat([rest.select(target.columns), kept.select(target.columns)]), holds


def _open_stays(stays: pl.DataFrame) -> pl.DataFrame:
    return stays.filter(pl.col("status").is_in(OPEN)).group_by("school_id").agg(active=pl.len().cast(pl.Int64))
