"""Counting how far the state that deltas gave is from what a full reading finds, against a model in plain Python."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.roster.drift import Drift, drift

WATERMARK = datetime(2026, 10, 7, 12, tzinfo=UTC)
BEFORE, AFTER = datetime(2026, 10, 7, 12, tzinfo=UTC), datetime(2026, 10, 7, 12, 0, 1, tzinfo=UTC)
SCHEMA = {
    "sis_id": pl.String,
    "email": pl.String,
    "grade": pl.Int64,
    "record_status": pl.String,
    "modified_at": pl.Datetime("us", "UTC"),
}

ROW = st.tuples(
    st.sampled_from(["a@x.example", "b@x.example", None]),
    st.sampled_from([1, 2, None]),
    st.sampled_from(["active", "active", "to_be_deleted"]),
    st.sampled_from([BEFORE, AFTER, None]),
)
STATE = st.dictionaries(st.sampled_from("abcdefgh"), ROW)


def frame(state: dict[str, tuple[object, ...]]) -> pl.DataFrame:
    return pl.DataFrame([(key, *row) for key, row in state.items()], schema=SCHEMA, orient="row")


@given(had=STATE, found=STATE, aside=st.sets(st.sampled_from("abcdefgh")))
def test_every_count_is_that_of_a_plain_comparison(
    had: dict[str, tuple[object, ...]], found: dict[str, tuple[object, ...]], aside: set[str]
) -> None:
    added = [row for key, row in found.items() if key not in had]
    changed = [row for key, row in found.items() if key in had and had[key][:3] != row[:3]]
    removed = [key for key, row in had.items() if key not in found and key not in aside and row[2] == "active"]
    stamps = [row[3] for row in added + changed]
    assert drift(frame(had), frame(found), watermark=WATERMARK, set_aside=aside) == Drift(
        rows=len(found),
        added=len(added),
        changed=len(changed),
        removed=len(removed),
        missed=stamps.count(BEFORE),
        undated=stamps.count(None),
    )


def test_a_value_that_comes_or_goes_is_a_change() -> None:
    """Null is compared as a value, not as unknown."""
    had = frame({"a": (None, 1, "active", BEFORE), "b": ("b@x.example", None, "active", BEFORE)})
    found = frame({"a": ("a@x.example", 1, "active", BEFORE), "b": ("b@x.example", None, "active", AFTER)})
    assert drift(had, found, watermark=WATERMARK) == Drift(rows=2, changed=1, missed=1)
