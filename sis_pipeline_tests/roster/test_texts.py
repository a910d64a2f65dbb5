"""Text columns asked by way of Arrow answer as pandas does."""

from __future__ import annotations

from random import Random

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.roster.texts import by_value, is_among, looked_up
from sis_pipeline_tests.roster.rosters import laws

TEXTS = st.lists(st.sampled_from(["", "a", "b", "é", "\U0001f469", None]))


@laws(60)
@given(TEXTS, TEXTS)
def test_texts_are_among_others_as_pandas_says(texts: list[str | None], known: list[str | None]) -> None:
    series = pd.Series(texts, dtype="str", index=range(5, 5 + len(texts)))
    expected = series.isin(known)
    for form in (known, set(known), pd.Series(known, dtype="str")):
        pd.testing.assert_series_equal(is_among(series, form), expected)


@laws(60)
@given(TEXTS)
def test_equal_texts_are_asked_about_once_and_get_the_same_answer(texts: list[str | None]) -> None:
    asked: list[str] = []

    def lengths(distinct: pd.Series) -> pd.Series:
        asked.extend(distinct.dropna())
        return distinct.str.len().astype("Int64")

    series = pd.Series(texts, dtype="str", index=range(5, 5 + len(texts)))
    pd.testing.assert_series_equal(by_value(series, lengths), series.str.len().astype("Int64"))
    assert sorted(asked) == sorted({text for text in texts if text is not None})


@laws(60)
@given(TEXTS, TEXTS, st.randoms())
def test_what_is_looked_up_is_what_stands_beside_the_first_such_key(
    texts: list[str | None], keys: list[str | None], random: Random
) -> None:
    values = [random.choice(["x", "y", None]) for _ in keys]
    beside = {key: value for key, value in zip(reversed(keys), reversed(values), strict=True) if key is not None}
    index = range(5, 5 + len(texts))
    expected = pd.Series([beside.get(text) if text is not None else None for text in texts], dtype="str", index=index)
    given_keys, given_values = (pd.Series(column, dtype="str") for column in (keys, values))
    found = looked_up(pd.Series(texts, dtype="str", index=index), given_keys, given_values)
    pd.testing.assert_series_equal(found, expected, check_index_type=False)
