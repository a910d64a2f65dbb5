"""Questions about pandas columns of text that Arrow answers without a Python object per value.
What a text means is decided elsewhere, and nothing here needs Polars: providers import it at every start."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc


def by_value(texts: pd.Series, answer: Callable[[pd.Series], pd.Series]) -> pd.Series:
    """As `answer(texts)`, for an answer that depends on each text alone: dates and flags repeat a thousandfold, and each is
    asked about once."""
    places, distinct = texts.factorize(use_na_sentinel=False)
    return answer(pd.Series(distinct, dtype="str")).take(places).set_axis(texts.index)


def is_among(texts: pd.Series, known: Collection[Any] | pd.Series) -> pd.Series:
    """As `texts.isin(known)`, which makes a Python object of each of `known` first; null is among them where they have one."""
    known_texts = pa.array(known if isinstance(known, pd.Series) else list(known), pa.string(), from_pandas=True)
    found = pc.is_in(pa.array(texts, pa.string(), from_pandas=True), value_set=known_texts)
    return pd.Series(found.to_numpy(zero_copy_only=False), index=texts.index)
