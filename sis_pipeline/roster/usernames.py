"""User names from a template: normalised, cut, and numbered where several people would have the same one.
Who gets an account at all is decided in `accounts`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable

import polars as pl

from sis_pipeline.roster.account_rules import INITIALS, PUNCTUATION, AccountKind, KindRules, placeholders
from sis_pipeline.roster.normalise import plain_letters

FIRST_NUMBER = 2
MARKS = 1 << 16


def wanted_names(people: pl.DataFrame, rules: KindRules, kind: AccountKind) -> pl.Series:
    """The user name that everybody would have alone. `people`: the columns of STUDENT or STAFF names. Whoever's names
    have no letter that could stand in one is called by the kind."""
    parts = [
        piece
        for literal, name in placeholders(rules.username or "", kind)
        for piece in (pl.lit(literal), *([_value(name, rules.characters)] if name else []))
    ]
    marks = re.escape(PUNCTUATION)
    tidy = pl.concat_str(parts).str.replace_all(rf"([{marks}])[{marks}]+", "$1").str.strip_chars(PUNCTUATION)
    cut = tidy.str.slice(0, rules.max_length).str.strip_chars_end(PUNCTUATION)
    named = pl.when(cut.str.contains("[a-z]")).then(cut).otherwise(pl.lit(kind) + cut.str.slice(0, rules.max_length))
    return people.with_columns(wanted=named.str.slice(0, rules.max_length))["wanted"]


def _value(name: str, characters: str) -> pl.Expr:
    if name in INITIALS:
        return _value(INITIALS[name], "").str.slice(0, 1)
    if name == "grad_year2":
        return _value("grad_year", "").str.slice(-2)
    column = {
        "grad_year": pl.col("graduation_year").cast(pl.String),
        "sis_username": pl.col("username"),
        "preferred_first_name": pl.coalesce("preferred_first_name", "first_name"),
    }.get(name, pl.col(name))
    return plain_letters(column).str.replace_all(rf"[^a-z0-9{re.escape(characters)}]", "").fill_null("")


def given_names(wanted: Iterable[tuple[str, int]], taken: Collection[str], spent: Collection[int]) -> list[str]:
    """A free user name for each (name, longest), in the order given: the first of several keeps it as it is, the others
    get a number.

    Whoever can have the plain name has it before anybody gets a number, so that no numbered name takes it away.
    `spent`: marks of names that were given to people who were erased since.
    """
    used = set(taken)
    counters: dict[str, int] = {}

    def free(name: str) -> bool:
        return name not in used and (not spent or mark(name) not in spent)

    asked = list(wanted)
    found: dict[int, str] = {}
    for number, (name, _) in enumerate(asked):
        if free(name):
            used.add(name)
            found[number] = name
    for number, (name, longest) in enumerate(asked):
        if number not in found:
            found[number] = _numbered(name, counters, longest, free)
            used.add(found[number])
    return [found[number] for number in range(len(asked))]


def _numbered(name: str, counters: dict[str, int], longest: int, free: Callable[[str], bool]) -> str:
    while True:
        counters[name] = counters.get(name, FIRST_NUMBER - 1) + 1
        tail = str(counters[name])
        candidate = name[: max(0, longest - len(tail))] + tail
        if free(candidate):
            return candidate


def mark(username: str) -> int:
    """What is kept of a user name whose holder was erased: one in 65,536 names has the same, so that it names nobody."""
    return int.from_bytes(hashlib.sha256(username.encode()).digest()[:4], "big") % MARKS
