"""On which days a school is between two school years."""

from __future__ import annotations

from datetime import date

import polars as pl
import pytest

from sis_pipeline.roster.freeze import CALENDAR, frozen_until
from sis_pipeline.roster.thresholds import Thresholds

LAST, NEXT = "2025-2026", "2026-2027"


def calendar(*sessions: tuple[str | None, str, date, date]) -> pl.DataFrame:
    return pl.DataFrame(sessions, schema=CALENDAR, orient="row")


BOTH = calendar(
    (None, LAST, date(2025, 8, 18), date(2026, 6, 13)),
    ("s", LAST, date(2025, 8, 18), date(2026, 6, 6)),
    ("s", NEXT, date(2026, 8, 10), date(2027, 6, 6)),
)
"""The district's last day is 12 June, that of school s 5 June; s begins again on 10 August."""


@pytest.mark.parametrize(
    ("day", "frozen"),
    [
        (date(2026, 6, 2), {}),
        (date(2026, 6, 3), {"s": date(2026, 7, 27)}),
        (date(2026, 6, 10), {"s": date(2026, 7, 27), None: date(2026, 8, 18)}),
        (date(2026, 7, 26), {"s": date(2026, 7, 27), None: date(2026, 8, 18)}),
        (date(2026, 7, 27), {None: date(2026, 8, 18)}),
        (date(2026, 8, 18), {}),
        (date(2027, 1, 10), {}),
    ],
)
def test_from_two_days_before_the_last_until_two_weeks_before_the_first(day: date, frozen: dict) -> None:
    """The district's next year is not known yet, so it is taken to begin on 1 September."""
    assert frozen_until(BOTH, day, Thresholds()) == frozen


@pytest.mark.parametrize(("day", "frozen"), [(date(2026, 6, 30), True), (date(2026, 7, 27), False)])
def test_before_the_first_year_that_is_known_the_summer_counts(day: date, frozen: bool) -> None:
    next_only = BOTH.filter(pl.col("school_year") == NEXT)
    assert bool(frozen_until(next_only, day, Thresholds())) is frozen


def test_days_are_settings_and_the_freeze_can_be_turned_off() -> None:
    assert frozen_until(BOTH, date(2026, 6, 4), Thresholds(freeze_before_end=0)) == {}
    assert frozen_until(BOTH, date(2026, 7, 30), Thresholds(freeze_before_start=5))["s"] == date(2026, 8, 5)
    assert frozen_until(BOTH, date(2026, 7, 1), Thresholds(freeze=False)) == {}


def test_without_a_calendar_nothing_is_frozen() -> None:
    assert frozen_until(calendar(), date(2026, 7, 1), Thresholds()) == {}
