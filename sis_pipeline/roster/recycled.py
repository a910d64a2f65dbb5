"""Whether a record still tells of whom it is linked to, or its id was given to somebody else: by what both are known to say.
What becomes of such a record is decided in `identity`, `people` and `staff`; what people said of it is in `decisions`."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from sis_pipeline.roster.presence import RECORD

FACTS = ["first", "firsts", "lasts", "birth_date", "ssid", "ssid_issuer", "email"]
"""What is compared, beside the same columns with `_before`."""
OWN = ["first", "firsts", "lasts", "birth_date", "ssid"]
"""What is compared with what the record said before."""

Own = Callable[[pl.DataFrame], pl.DataFrame]
"""Of records the OWN facts they told when they were last published, and `student_id`."""


def find_recycled(facts: pl.DataFrame, links: pl.DataFrame, is_another: pl.Expr, own: Own | None) -> pl.DataFrame:
    """integration, sis_id, person_id of the records that tell of another one than the person they are linked to. Not those
    that said so before: a chain, or a person, joined them to a student who is published under other values."""
    people = facts.filter(pl.col("sis_id").is_null()).select("person_id", *FACTS)
    linked = facts.filter(pl.col("sis_id").is_not_null()).select(*RECORD, *FACTS)
    linked = linked.join(links.select(*RECORD, "person_id"), on=RECORD, how="inner")
    both = linked.join(people, on="person_id", suffix="_before")
    few = both.filter(pl.any_horizontal(_differ(name) for name in ("birth_date", "ssid", "email")))
    found = few.filter(is_another).with_columns(**_WITNESSES)
    if own is not None and found.height:
        found = found.join(_as_before(found, own(found)), on=RECORD, how="anti")
    return found.select(*RECORD, "person_id")


def _as_before(found: pl.DataFrame, own: pl.DataFrame) -> pl.DataFrame:
    """Those that said before, of the same student, what makes them tell of another one now."""
    both = found.select(*RECORD, "person_id", *_WITNESSES, *OWN).join(
        own.select(*RECORD, "student_id", *OWN), on=RECORD, suffix="_before"
    )
    number = pl.col("ssid").str.extract(r"([^\x1f]*)$")  # a record does not always name the issuer
    said = {
        "by_name": _same_first() & _share("lasts"),
        "by_birth": _same("birth_date"),
        "by_ssid": number == pl.col("ssid_before"),
    }
    news = pl.sum_horizontal(
        (pl.col(witness) & ~is_old.fill_null(value=False)).cast(pl.Int8) for witness, is_old in said.items()
    )
    is_theirs = pl.col("student_id").is_null() | (pl.col("student_id") == pl.col("person_id"))
    return both.filter((news < _ENOUGH) & is_theirs).select(RECORD)


def _differ(name: str) -> pl.Expr:
    """Both known, and not the same."""
    return (pl.col(name) != pl.col(f"{name}_before")).fill_null(value=False)


def _same(name: str) -> pl.Expr:
    return (pl.col(name) == pl.col(f"{name}_before")).fill_null(value=False)


def _share(variants: str) -> pl.Expr:
    """A variant in common, or nothing known on a side."""
    return _unknown(variants) | (pl.col(variants).list.set_intersection(f"{variants}_before").list.len() > 0)


def _unknown(variants: str) -> pl.Expr:
    return (pl.col(variants).list.len() == 0) | (pl.col(f"{variants}_before").list.len() == 0)


def _same_first() -> pl.Expr:
    """As `_share`, but that a first word in common is nothing where both go on otherwise: Maria Elena is not Maria Jose."""
    one, other = pl.col("first"), pl.col("first_before")
    shared = pl.col("firsts").list.set_intersection("firsts_before")
    word = shared.list.first()
    begin = one.str.starts_with(word) & other.str.starts_with(word) & (one != word) & (other != word)
    differ = ~one.str.starts_with(other) & ~other.str.starts_with(one)
    only_word = (shared.list.len() == 1) & begin & differ
    return _share("firsts") & ~only_word.fill_null(value=False)


_WITNESSES = {
    "by_name": ~(_same_first() & _share("lasts")),
    "by_birth": _differ("birth_date"),
    "by_ssid": _differ("ssid") & _same("ssid_issuer"),
}
_ENOUGH = 2
"""Witnesses that have to contradict: one of them alone is a correction, or a change of name."""

ANOTHER_STUDENT = pl.sum_horizontal(one.cast(pl.Int8) for one in _WITNESSES.values()) >= _ENOUGH
ANOTHER_STAFF = (
    ~_same_first()
    & ~_share("lasts")
    & (_differ("email") | _differ("ssid"))
    & ~_same("email")
    & ~_same("ssid")
)  # fmt: skip
"""Both names, and whatever is known of email and state id."""
