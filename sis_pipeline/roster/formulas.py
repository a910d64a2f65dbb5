"""Texts that a spreadsheet would run as a formula: how they are written into a CSV file, and read back (ASVS 1.2.10).
Quotes and separators are the CSV writer's business."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

SYSTEM = "sis_pipeline"
"""`source.systemName` of a OneRoster manifest: such a set has its formulas quoted as here."""
_FORMULA = r"^'*[=+\-@\t\r]"
_NUMBER = r"^\+[0-9][0-9 ().-]*$"
"""A phone number: it calls nothing and names no cell, and whoever reads it must be able to dial it."""
_QUOTED = re.compile(r"'+[=+\-@\t\r]")


def quoted(text: pl.Expr) -> pl.Expr:
    """A text with an apostrophe before what would begin a formula. One that begins so already gets one more, so that
    `unquoted` gives back exactly what was there."""
    import polars as pl  # the reader, which providers load, needs none of it

    runs = text.str.contains(_FORMULA) & ~text.str.contains(_NUMBER)
    return pl.when(runs).then(pl.lit("'") + text).otherwise(text)


def unquoted(text: str) -> str:
    """What a text was before `quoted`."""
    return text[1:] if _QUOTED.match(text) else text
