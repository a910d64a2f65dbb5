"""The freeze: between two school years systems drop and move everybody, so nobody's absence is believed then.
Which days those are follows from the schools' sessions; holding what falls into them is `guard`'s work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date, timedelta

import polars as pl

from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.roster.thresholds import Thresholds

USUAL_START = (9, 1)
"""Month and day taken for a school's first day where no session of the next year is known yet."""
CALENDAR = {"school_id": pl.String, "school_year": pl.String, "start_date": pl.Date, "end_date": pl.Date}
"""A calendar: one row per session of a whole school year; `school_id` null where it is every school's; ends exclusive."""

Years = Mapping[int, tuple[date, date]]
"""By the year a school year starts in: first day, day after the last."""


def frozen_until(calendar: pl.DataFrame, as_of: date, thresholds: Thresholds) -> dict[str | None, date]:
    """The schools that are between two school years on a day, with the first day on which they no longer are.

    A school is frozen from `freeze_before_end` days before its last day until `freeze_before_start` days before its
    next first day. Sessions that name no school are every school's that has none of its own: under None.
    """
    if not thresholds.freeze:
        return {}
    frozen = {}
    for school, years in _by_school(calendar).items():
        ends = [until for begin, until in _windows(years, thresholds) if begin <= as_of < until]
        if ends:
            frozen[school] = max(ends)
    return frozen


def schools_with_calendar(calendar: pl.DataFrame) -> list[str]:
    return calendar["school_id"].drop_nulls().unique().to_list()


def _by_school(calendar: pl.DataFrame) -> dict[str | None, dict[int, tuple[date, date]]]:
    spans = calendar.group_by("school_id", "school_year").agg(pl.col("start_date").min(), pl.col("end_date").max())
    found: dict[str | None, dict[int, tuple[date, date]]] = {}
    for school, year, start, end in spans.iter_rows():
        found.setdefault(school, {})[SchoolYear.parse(year).start] = (start, end)
    return found


def _windows(years: Years, thresholds: Thresholds) -> Iterator[tuple[date, date]]:
    """The time between each school year that is known and its neighbours; a neighbour that is not begins as usual."""
    before = timedelta(days=thresholds.freeze_before_end + 1)  # the end is the day after the last day
    until = timedelta(days=thresholds.freeze_before_start)
    for start in sorted({year for known in years for year in (known - 1, known)}):
        ended = years[start][1] if start in years else SchoolYear(start).day_after
        begins = years[start + 1][0] if start + 1 in years else date(start + 1, *USUAL_START)
        yield ended - before, begins - until
