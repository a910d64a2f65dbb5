"""Near matches: pairs of people who may be one, found in small blocks and scored, for a person to decide.
Nobody is joined here, and what a decision does is not known; that is `identity`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from rapidfuzz import process
from rapidfuzz.distance import OSA, Hamming, JaroWinkler

from sis_pipeline.roster.ids import derived_id
from sis_pipeline.roster.names import ONCE
from sis_pipeline.roster.nicknames import NICKNAMES

Nodes = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Scores = np.ndarray[Any, np.dtype[np.float32]]

NEIGHBOURS = 8
"""With how many of its block, in the order of names, somebody is compared: work stays linear whatever the block."""
PAIR = {"node": pl.Int64, "hub": pl.Int64, "label": pl.Int64, "other_label": pl.Int64}
_NO_PAIRS = pl.DataFrame(schema=PAIR)
_NONE_ALIKE = pl.DataFrame(schema={**PAIR, "rule": pl.String})

VARIANT, NICKNAME = 0.97, 0.95
"""Likeness of names that share a part (Garcia-Lopez and Lopez), and of a name with its nickname."""
SWAPPED, ONE_DIGIT, UNKNOWN = 0.9, 0.8, 0.5
"""Likeness of birth dates: day and month swapped, one digit different, one of them not known."""
ALIKE, ALIKE_TOGETHER = 0.85, 0.92
"""Likeness that each of first and last name needs, and both on average."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """How alike the two of every pair are, from 0 to 1 each; `more`: what else of email, phone, school and grade agrees."""

    first: Scores
    last: Scores
    birth: Scores
    more: Scores
    nickname: Mask

    @property
    def score(self) -> Scores:
        return 0.3 * (self.first + self.last + self.birth) + 0.1 * self.more


def near_match_id(district: str, student_id: str, other_student_id: str) -> str:
    """The id of a near match: the same two students always have the same one."""
    return derived_id("near_match", district, *sorted((student_id, other_student_id)))


def neighbours(facts: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """Pairs (`PAIR`, the later node first) of different labels that agree on all columns, each with its next few only.

    `facts`: node, label, first, last, birth_date and the columns; a list column agrees where any of its values does.
    """
    order = ["first", "last", "birth_date", "node"]
    keyed = facts.select(*{*columns, *order, "label"}).drop_nulls(columns)
    if keyed.is_empty():
        return _NO_PAIRS
    for name in columns:
        if isinstance(keyed.schema[name], pl.List):
            keyed = keyed.with_columns(pl.col(name).alias(f"_{name}")).explode(f"_{name}").drop_nulls(f"_{name}")
    keys = [f"_{name}" if f"_{name}" in keyed.columns else name for name in columns]
    block = (
        keyed.sort("node")
        .unique([*keys, "label"], keep="first", maintain_order=True)
        .filter(pl.len().over(keys) > 1)
        .sort(*keys, *order)
    )
    if block.is_empty():
        return _NO_PAIRS
    return _next_few(block.select("node", "label", number=pl.struct(keys).rle_id()))


def _next_few(block: pl.DataFrame) -> pl.DataFrame:
    nodes, labels, number = (block[name].to_numpy() for name in ("node", "label", "number"))
    parts = [_NO_PAIRS]
    for step in range(1, min(NEIGHBOURS, block.height - 1) + 1):
        same = number[step:] == number[:-step]
        a, b = nodes[step:][same], nodes[:-step][same]
        x, y = labels[step:][same], labels[:-step][same]
        later = a > b
        columns = (np.maximum(a, b), np.minimum(a, b), np.where(later, x, y), np.where(later, y, x))
        parts.append(pl.DataFrame(dict(zip(PAIR, columns, strict=True)), schema=PAIR))
    return pl.concat(parts)


def similar(everybody: pl.DataFrame, facts: pl.DataFrame) -> pl.DataFrame:
    """Pairs of `facts` whose names and birth dates are alike without being equal, with their `rule`.

    `everybody`: all facts, in the order of `node`; `facts`: those of them to look at, as in `neighbours`.

    Only where a state id does not settle it (of two people with different ones no pair could come), and where no system
    has both: one that does tells them apart already, and every twin would wait for a person. But a system may have
    somebody twice whose last name is a slip of the pen: twins do not share the first name.
    """
    birth, swappable = pl.col("birth_date"), (pl.col("birth_date").dt.day() <= 12)
    day, month = birth.dt.day().cast(pl.Int32), birth.dt.month().cast(pl.Int32)
    unsettled = facts.filter(pl.Series(_unsettled(facts)))
    if unsettled.is_empty():
        return _NONE_ALIKE
    keyed = {
        "year": birth.dt.year(),
        "either_way": pl.when(swappable).then(
            birth.dt.year() * 10_000 + pl.min_horizontal(day, month) * 100 + pl.max_horizontal(day, month)
        ),
        "first_initial": pl.col("first").str.head(1),
        "last_initial": pl.col("last").str.head(1),
    }
    facts, unsettled = facts.with_columns(**keyed), unsettled.with_columns(**keyed)
    blocks = (
        ("birth_date", "lasts"),
        ("birth_date", "firsts"),
        ("birth_date", "first_initial", "last_initial"),
        ("either_way", "lasts"),
        ("lasts", "first_initial", "year"),
    )
    pairs = pl.concat(neighbours(_around(facts, unsettled, columns), columns) for columns in blocks)
    if pairs.is_empty():
        return _NONE_ALIKE
    pairs = pairs.unique(["node", "hub"]).sort("node", "hub")
    alike = likeness(everybody, pairs)
    names = _are_alike(alike)
    # many children share name and birth year: a slip of the pen in the date needs something else that agrees
    exactly = _at_least(alike.first, NICKNAME) & _at_least(alike.last, VARIANT) & (alike.more > 0)
    rule = np.select(
        [names & (alike.birth == 1), names & _is(alike.birth, SWAPPED), exactly & _is(alike.birth, ONE_DIGIT)],
        ["similar_name", "swapped_day_month", "similar_birth_date"],
        "",
    )
    found = pairs.with_columns(rule=pl.Series(rule, dtype=pl.String), twice=_are_one_slip_apart(everybody, pairs))
    found = found.filter(pl.col("rule") != "")
    told = told_apart(facts, found.filter(~pl.col("twice")))
    return found.drop("twice").join(told, on=["node", "hub"], how="anti", maintain_order="left")


def similar_staff(everybody: pl.DataFrame, facts: pl.DataFrame) -> pl.DataFrame:
    """As `similar`, of staff, who have no birth date: pairs at one school whose names are alike."""
    blocks = (("school_id", "lasts"), ("school_id", "firsts"))
    pairs = pl.concat(neighbours(facts, columns) for columns in blocks)
    if pairs.is_empty():
        return _NONE_ALIKE
    pairs = pairs.unique(["node", "hub"]).sort("node", "hub")
    alike = likeness(everybody, pairs)
    names = _are_alike(alike)
    return pairs.filter(pl.Series(names)).with_columns(rule=pl.lit("similar_name"))


def told_apart(facts: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """The pairs of which one system has both."""
    systems = facts.select("label", "integration").drop_nulls().unique()
    return pairs.join(systems, on="label").join(
        systems.rename({"label": "other_label"}), on=["other_label", "integration"], how="semi"
    )


def _are_one_slip_apart(facts: pl.DataFrame, pairs: pl.DataFrame) -> pl.Series:
    """Whether first name and birth date are equal, and the last names but for one letter or two that changed places."""
    one, other = facts[pairs["node"]], facts[pairs["hub"]]
    a, b = (side["last"].fill_null("").to_list() for side in (one, other))
    slip = pl.Series(_compared(a, b, OSA.distance) == 1)
    same = [(one[name] == other[name]).fill_null(value=False) for name in ("first", "birth_date")]
    return slip & same[0] & same[1]


def _are_alike(alike: Likeness) -> Mask:
    """Whether the names are: each, and both together."""
    each = (alike.first >= ALIKE) & (alike.last >= ALIKE)
    return each & (alike.first + alike.last >= 2 * ALIKE_TOGETHER)


def _at_least(scores: Scores, value: float) -> Mask:
    """As single precision holds the value."""
    return scores >= np.float32(value)


def _is(scores: Scores, value: float) -> Mask:
    return np.isclose(scores, value)


def _unsettled(facts: pl.DataFrame) -> Mask:
    """The nodes of people who have no state id of at least one issuer."""
    known = facts.select("label", "ssid_issuer", "ssid").drop_nulls("ssid").unique(["label", "ssid_issuer"])
    issuers = max(known["ssid_issuer"].n_unique(), 1)
    settled = known.group_by("label").len().filter(pl.col("len") >= issuers)["label"]
    return ~np.isin(facts["label"].to_numpy(), settled.to_numpy())


def _around(facts: pl.DataFrame, unsettled: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """Those who could share a block with somebody unsettled."""
    plain = [name for name in columns if not isinstance(facts.schema[name], pl.List)]
    return facts.join(unsettled.select(plain).drop_nulls().unique(), on=plain, how="semi", maintain_order="left")


def likeness(facts: pl.DataFrame, pairs: pl.DataFrame) -> Likeness:
    """How alike the two of each pair are. `facts` has its rows in the order of `node`."""
    one, other = facts[pairs["node"]], facts[pairs["hub"]]
    nickname = _nicknames(one, other)
    first = np.maximum(_names(one, other, "first", "firsts"), np.where(nickname, np.float32(NICKNAME), 0))
    return Likeness(first, _names(one, other, "last", "lasts"), _births(one, other), _more(one, other), nickname)


def _names(one: pl.DataFrame, other: pl.DataFrame, name: str, variants: str) -> Scores:
    a, b = one[name].fill_null("").to_list(), other[name].fill_null("").to_list()
    alike = _compared(a, b, JaroWinkler.similarity)
    unknown = (one[name].is_null() | other[name].is_null()).to_numpy()
    equal = (one[name] == other[name]).fill_null(value=False).to_numpy()
    shared = np.where(_share(one[variants], other[variants]), np.maximum(alike, VARIANT), alike)
    return np.where(equal, 1, np.where(unknown, 0, shared)).astype(np.float32)


def _compared(a: list[str], b: list[str], scorer: Any) -> Scores:
    # cpdist takes no empty lists
    return process.cpdist(a, b, scorer=scorer, dtype=np.float32) if a else np.empty(0, np.float32)


def _share(one: pl.Series, other: pl.Series) -> Mask:
    both = pl.DataFrame({"one": one, "other": other})
    shared = pl.col("one").list.set_intersection("other").list.len() > 0
    return both.select(shared.fill_null(value=False)).to_series().to_numpy()


def _nicknames(one: pl.DataFrame, other: pl.DataFrame) -> Mask:
    def names(side: pl.DataFrame) -> pl.DataFrame:
        return side.select(name="firsts").with_row_index("row").explode("name").drop_nulls()

    forms = names(one).join(_FORMS, on="name").select("row", name="form")
    found = forms.join(names(other), on=["row", "name"], how="semi")["row"]
    hit = np.zeros(one.height, dtype=np.bool_)
    hit[found.to_numpy()] = True
    return hit


_FORMS = pl.DataFrame(
    [(name, form) for name, forms in sorted(NICKNAMES.items()) for form in sorted(forms)],
    schema={"name": pl.String, "form": pl.String},
    orient="row",
)


def _births(one: pl.DataFrame, other: pl.DataFrame) -> Scores:
    both = pl.DataFrame({"a": one["birth_date"], "b": other["birth_date"]})
    a, b = pl.col("a").dt, pl.col("b").dt
    facts = both.select(
        unknown=pl.any_horizontal(pl.all().is_null()),
        same=(pl.col("a") == pl.col("b")).fill_null(value=False),
        swapped=((a.year() == b.year()) & (a.day() == b.month()) & (a.month() == b.day())).fill_null(value=False),
    )
    written = both.select(pl.all().dt.strftime("%Y%m%d").fill_null(""))
    digit = _compared(written["a"].to_list(), written["b"].to_list(), Hamming.distance) == 1
    unknown, same, swapped = (facts[name].to_numpy() for name in ("unknown", "same", "swapped"))
    found = np.select([unknown, same, swapped, digit], [UNKNOWN, 1.0, SWAPPED, ONE_DIGIT], 0.0)
    return found.astype(np.float32)


def _more(one: pl.DataFrame, other: pl.DataFrame) -> Scores:
    def agrees(name: str) -> Any:
        return (one[name] == other[name]).fill_null(value=False).to_numpy()

    reachable = agrees("email") | _share(one["phones"], other["phones"])
    return np.where(reachable, 1.0, np.where(agrees("school_id") & agrees("grade_level"), 0.5, 0.0)).astype(np.float32)


WORDS: Mapping[str, str] = {
    "ssid": "ssid",
    "local_id": "local_id",
    "first": "first_name",
    "last": "last_name",
    "birth_date": "birth_date",
    "email": "email",
    "school_id": "school",
    "grade_level": "grade_level",
}

TWO_IDS = "but two state ids"
"""The last word of the evidence where two who agree in name and birth date have different state ids of one issuer."""


def judged(facts: pl.DataFrame, pairs: pl.DataFrame, words: Mapping[str, str]) -> pl.DataFrame:
    """The pairs with `score`, from 0 to 1, and `evidence`: names of what agrees or is alike, never a value. `words`: WORDS,
    or what other people's facts are called."""
    one, other = facts[pairs["node"]], facts[pairs["hub"]]
    alike = likeness(facts, pairs)
    agree = {name: (one[name] == other[name]).fill_null(value=False) for name in words}
    same_id = agree["ssid"].to_numpy() | agree["local_id"].to_numpy()
    former = {name: _by_former_name(one, other, f"{name}s") for name in ("first", "last")}
    score = np.where(same_id, (1 + alike.score) / 2, alike.score)
    marks = {
        **{word: agree[name] for name, word in words.items()},
        "nickname": pl.Series(alike.nickname),
        "similar first_name": pl.Series(
            _is_alike(alike.first) & ~alike.nickname & ~former["first"] & ~agree["first"].to_numpy()
        ),
        "similar last_name": pl.Series(_is_alike(alike.last) & ~former["last"] & ~agree["last"].to_numpy()),
        "former name": pl.Series(former["first"] | former["last"]),
        "swapped day and month": pl.Series(_is(alike.birth, SWAPPED)),
        "birth_date but for a digit": pl.Series(_is(alike.birth, ONE_DIGIT)),
        "phone": pl.Series(_share(one["phones"], other["phones"])),
    }
    evidence = pl.concat_str([pl.when(pl.col(it)).then(pl.lit(it)) for it in marks], separator=", ", ignore_nulls=True)
    return pairs.with_columns(
        pl.DataFrame(marks).select(evidence).to_series().alias("evidence"),
        score=pl.Series(np.round(score.astype(np.float64), 3)),
    )


def _by_former_name(one: pl.DataFrame, other: pl.DataFrame, variants: str) -> Mask:
    """Whether a name of one is what the other was called before."""
    once = ONCE[variants]
    return _share(one[once], other[variants]) | _share(one[variants], other[once])


def _is_alike(scores: Scores) -> Mask:
    return scores >= ALIKE
