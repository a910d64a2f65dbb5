"""Enrollments that a person withdrew: they end on that day, whatever the systems go on saying about them.
Keeping what people withdrew is the store's work; what the end is called in the ledger is decided in `changes`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import polars as pl

from sis_pipeline.roster.enrollments import PLACE, SEAT, STAY, is_open
from sis_pipeline.roster.presence import ABSENT, TOMBSTONE

WITHDRAWALS: Mapping[str, pl.DataType] = {
    "withdrawal_id": pl.String(), "student_id": pl.String(), "school_id": pl.String(), "entry_date": pl.Date(),
    "effective_date": pl.Date(), "exit_code": pl.String(),
}  # fmt: skip
"""One row per enrollment that a person withdrew; `entry_date` as it was then."""
WITHDRAWAL: Final = "withdrawal"
"""How the evidence of an event begins that a person's withdrawal shows; its id follows."""


def withdraw(stays: pl.DataFrame, withdrawals: pl.DataFrame) -> pl.DataFrame:
    """The stays of `reconcile` with those ended that a person withdrew, `evidence` naming the withdrawal.

    A withdrawal ends every open stay of the student at the school that began before its day, however the entry date is
    corrected, and the one it named. An entry on its day or later is a new one and stays open; an end that a system says
    itself is believed. One that had not begun by then is a no-show.
    """
    if withdrawals.is_empty():
        return stays
    named = withdrawals.select(*PLACE, "withdrawal_id", "effective_date", code="exit_code", named="entry_date")
    rows = stays.with_row_index("stay")
    covered = pl.col("entry_date") < pl.col("effective_date")
    ends_on = pl.max_horizontal("effective_date", "entry_date")
    ends_here = is_open() | pl.col("evidence").is_in([ABSENT, TOMBSTONE]).fill_null(value=False)
    has_ended = pl.col("exit_date").eq_missing(ends_on)
    found = (
        rows.select("stay", *STAY, "status", "exit_date", "evidence")
        .join(named, on=PLACE)
        .filter((covered | (pl.col("entry_date") == pl.col("named"))) & (ends_here | has_ended))
        .sort("stay", "effective_date", "withdrawal_id")
        .unique("stay", keep="first", maintain_order=True)
        .select("stay", "withdrawal_id", "code", ends_on=ends_on, began=covered, ended=ends_here)
    )
    shown, ended = pl.col("withdrawal_id").is_not_null(), pl.col("ended").fill_null(value=False)
    status = pl.when("began").then(pl.lit("withdrawn")).otherwise(pl.lit("no_show"))
    return (
        rows.join(found, on="stay", how="left", maintain_order="left")
        .with_columns(
            exit_date=pl.when(ended).then("ends_on").otherwise("exit_date"),
            exit_code=pl.when(ended).then("code").otherwise("exit_code"),
            status=pl.when(ended).then(status).otherwise("status"),
            evidence=pl.when(shown).then(pl.lit(f"{WITHDRAWAL}:") + pl.col("withdrawal_id")).otherwise("evidence"),
        )
        .select(stays.columns)
    )


def was_withdrawn() -> pl.Expr:
    """Whether the evidence is a person's withdrawal."""
    return pl.col("evidence").str.starts_with(f"{WITHDRAWAL}:").fill_null(value=False)


def end_seats(seats: pl.DataFrame, stays: pl.DataFrame, sections: pl.DataFrame) -> pl.DataFrame:
    """The seats of `reconcile_seats` without those that went on at a school from which the student was withdrawn."""
    left = _left_by_withdrawal(stays)
    if left.is_empty():
        return seats
    ends = left.group_by(PLACE).agg(pl.col("exit_date").max(), showing=pl.col("evidence").sort_by("exit_date").last())
    places = sections.select("section_id", "school_id")
    gone = (
        seats.filter(pl.col("role") == "student")
        .select(*SEAT, "end_date")
        .join(places, on="section_id")
        .join(ends, left_on=["person_id", "school_id"], right_on=["student_id", "school_id"])
        .filter(pl.col("end_date").is_null() | (pl.col("end_date") >= pl.col("exit_date")))
        .select(*SEAT, left_on="exit_date", showing="showing")
    )
    ended = pl.col("left_on").is_not_null()
    return (
        seats.join(gone, on=SEAT, how="left", maintain_order="left")
        .with_columns(
            end_date=pl.when(ended).then("left_on").otherwise("end_date"),
            evidence=pl.when(ended).then("showing").otherwise("evidence"),
        )
        .select(seats.columns)
    )


def withdrawn_students(stays: pl.DataFrame) -> pl.Series:
    """Whose seats `end_seats` may end."""
    return _left_by_withdrawal(stays)["student_id"].unique()


def _left_by_withdrawal(stays: pl.DataFrame) -> pl.DataFrame:
    return stays.filter(was_withdrawn()).join(stays.filter(is_open()), on=PLACE, how="anti")
