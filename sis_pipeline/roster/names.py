"""What students were called before, as far as it helps to find them: names that were published of them and are no longer.
They make a question, or support an id, and never join two by themselves; the rules that use them are in `identity`."""

from __future__ import annotations

from functools import cache
from typing import Any

import polars as pl

FORMER_NAMES = dict.fromkeys(("student_id", "first_name", "last_name"), pl.String)
"""A name that was published of a student, by the id that the student has now."""
ONCE = {"firsts": "once_firsts", "lasts": "once_lasts"}
"""By the variants of a name, the column of those under which a student is, or was, published; none for a record."""


@cache
def no_former_names() -> pl.DataFrame:
    return pl.DataFrame(schema=FORMER_NAMES)


def with_published_names(facts: pl.DataFrame, former: pl.DataFrame) -> pl.DataFrame:
    """Facts of students with the columns of ONCE. `former`: person_id, firsts, lasts of names of before."""
    before = former.group_by("person_id").agg(
        pl.col(variants).explode().drop_nulls().unique().sort().alias(once) for variants, once in ONCE.items()
    )
    facts = _filled(facts.join(before, on="person_id", how="left", maintain_order="left"))
    published = [pl.col(variants).list.concat(once) for variants, once in ONCE.items()]
    is_record = pl.col("sis_id").is_not_null()
    return facts.with_columns(
        pl.when(is_record).then(_no_names()).otherwise(names).alias(once)
        for once, names in zip(ONCE.values(), published, strict=True)
    )


def without_published_names(facts: pl.DataFrame) -> pl.DataFrame:
    """Facts of people of whom no former names are kept."""
    return facts.with_columns(_no_names().alias(once) for once in ONCE.values())


def with_forgotten_names(facts: pl.DataFrame, here: pl.Expr) -> pl.DataFrame:
    """The facts, by `label`, with the names of before, which in `here` nobody has any more, among the variants of all of
    their person's; the columns of ONCE have those alone. So a change of name never ends a doubt by itself."""
    said = facts.filter(here)
    for variants, once in ONCE.items():
        published, now = (
            rows.select("label", name=it).explode("name") for rows, it in ((facts, once), (said, variants))
        )
        forgotten = published.drop_nulls().join(now, on=["label", "name"], how="anti").unique().sort("label", "name")
        names = forgotten.group_by("label").agg(pl.col("name").alias(once))
        facts = _filled(facts.drop(once).join(names, on="label", how="left", maintain_order="left"), once)
        facts = facts.with_columns(pl.col(variants).list.concat(once))
    return facts


def _filled(facts: pl.DataFrame, *columns: str) -> pl.DataFrame:
    return facts.with_columns(pl.col(*columns or ONCE.values()).fill_null(_no_names()))


def _no_names() -> Any:
    return pl.lit([], pl.List(pl.String))
