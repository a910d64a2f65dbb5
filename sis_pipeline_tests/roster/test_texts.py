"""Text columns asked by way of Arrow answer as pandas does."""

from __future__ import annotations

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.roster.texts import is_among
from sis_pipeline_tests.roster.rosters import laws

TEXTS = st.lists(st.sampled_from(["", "a", "b", "é", "\U0001f469", None]))


@laws(60)
@given(TEXTS, TEXTS)
def test_texts_are_among_others_as_pandas_says(texts: list[str | None], known: list[str | None]) -> None:
    series = pd.Series(texts, dtype="str", index=range(5, 5 + len(texts)))
    expected = series.isin(known)
    for form in (known, set(known), pd.Series(known, dtype="str")):
        pd.testing.assert_series_equal(is_among(series, form), expected)
