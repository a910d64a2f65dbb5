"""The merge equals the reference, row for row: on nasty small rosters, two days of each."""

from __future__ import annotations

from typing import Any

import polars as pl
from hypothesis import given

from sis_pipeline.roster.district import merge_district
from sis_pipeline_tests.reference.comparing import differences
from sis_pipeline_tests.reference.rosters import DAYS, inputs, two_days
from sis_pipeline_tests.roster.rosters import laws, publish


@laws(40)
@given(two_days())
def test_two_days_of_a_nasty_roster_are_merged_as_the_rules_say(days: tuple[dict[str, Any], ...]) -> None:
    tables: dict[str, pl.DataFrame] = {}
    for day, as_of in zip(days, DAYS, strict=True):
        given_now = inputs(day, tables, as_of)
        merged = merge_district(given_now)
        assert differences(given_now, merged) == []
        tables = publish(tables, merged)
