"""Across the districts of one installation: which of their students are one child, by ssid only, and who went over.
Districts are merged apart, and nothing here changes what a merge decided; who is who inside a district is `identity`'s."""

from __future__ import annotations

from datetime import date

import polars as pl

from sis_pipeline.roster.changes import each_once
from sis_pipeline.roster.enrollments import TRANSFER_DAYS
from sis_pipeline.roster.frames import fit
from sis_pipeline.roster.identity import STUDENT_RULES, Rule, student_facts, sure_names
from sis_pipeline.roster.ids import derived_ids
from sis_pipeline.roster.model import MERGED_STUDENTS
from sis_pipeline.roster.near import WORDS, judged
from sis_pipeline.roster.school_year import SchoolYear

PEOPLE = (
    "district", "student_id", "ssid", "ssid_issuer", "first_name", "preferred_first_name", "last_name",
    "preferred_last_name", "birth_date",
)  # fmt: skip
"""What is asked about a published student."""
STAYS = (
    "district", "student_id", "school_id", "school_year", "entry_date", "exit_date", "enrollment_type", "status",
)  # fmt: skip
"""What is asked about an enrollment."""
MATCH, NEAR_MATCH = "match", "near_match"
TRANSFER, CONCURRENT = "transfer", "concurrent"
TOO_MANY = 20
"""Students who have one ssid, from which on it is a filler (0, 999999999) and nobody's number."""

SIDES = ["district", "student_id", "other_district", "other_student_id"]
LINKS: dict[str, pl.DataType] = dict.fromkeys((*SIDES, "decision", "evidence"), pl.String())
"""One row per two students of two districts with one ssid, the first district by name first. `evidence`: names of what
agrees, never a value."""
TRANSFERS: dict[str, pl.DataType] = {
    **dict.fromkeys(
        ("transfer_id", "kind", "district", "student_id", "school_id", "school_year"), pl.String()
    ),
    "exit_date": pl.Date(),
    **dict.fromkeys(("other_district", "other_student_id", "other_school_id", "other_school_year"), pl.String()),
    "entry_date": pl.Date(),
}  # fmt: skip
"""From the district that was left to the `other` one, which was entered; of a `concurrent` pair the one entered last."""

_LEFT = ("withdrawn", "transferred")
_BY_SSID = tuple(rule for rule in STUDENT_RULES if rule.name == "ssid")
_COMPARED = tuple(dict.fromkeys(name for rule in _BY_SSID for name in rule.columns if name != "ssid"))
_VARIANTS = {"firsts", "lasts"}
"""Facts of which somebody may have several."""
_ASKED = ("node", "integration", "sis_id", "issuer", *_COMPARED)
_RANKED = pl.struct("enrollment_type", "school_id", "entry_date")
"""What `each_once` asks about a stay."""
_FOUND = [*(name for name in TRANSFERS if name not in {"transfer_id", "kind"}), "left_entry"]


def same_children(people: pl.DataFrame) -> pl.DataFrame:
    """The students of two districts who have one ssid, as LINKS: a `match` where the rest agrees that an ssid needs inside
    a district too, else a `near_match`.

    `people`: PEOPLE. An issuer that is not known contradicts nobody; two different issuers are two different numbers.
    """
    # a number counts by itself here, because an issuer is missing from whole districts
    records = fit(people.drop("ssid_issuer"), MERGED_STUDENTS).rename(
        {"district": "integration", "student_id": "sis_id"}
    )
    facts = student_facts(records, records.clear())
    issuers = people.select(integration="district", sis_id="student_id", issuer=pl.col("ssid_issuer").str.strip_chars())
    sides = (
        sure_names(facts, _BY_SSID)
        .join(issuers, on=["integration", "sis_id"], maintain_order="left")
        .drop_nulls("ssid")
    )
    sides = sides.filter(pl.len().over("ssid") < TOO_MANY)
    one, other = (
        sides.select("ssid", *(pl.col(name).alias(f"{side}{name}") for name in _ASKED)) for side in ("", "other_")
    )
    pairs = one.join(other, on="ssid").filter(
        (pl.col("integration") < pl.col("other_integration"))
        & (pl.col("issuer") == pl.col("other_issuer")).fill_null(value=True)
    )
    decision = pl.when(pl.any_horizontal(_agree(rule) for rule in _BY_SSID)).then(pl.lit(MATCH)).otherwise(pl.lit(NEAR_MATCH))  # fmt: skip
    decided = pairs.with_columns(decision=decision, hub="other_node")
    return (
        judged(facts, decided, WORDS)
        .select(
            "decision",
            "evidence",
            district="integration",
            student_id="sis_id",
            other_district="other_integration",
            other_student_id="other_sis_id",
        )
        .select(list(LINKS))
        .sort(SIDES)
    )


def _agree(rule: Rule) -> pl.Expr:
    """Whether the two sides agree on all columns of a rule, the number itself aside; the unknown does not agree."""
    both = [
        (pl.col(name).list.set_intersection(f"other_{name}").list.len() > 0)
        if name in _VARIANTS
        else pl.col(name) == pl.col(f"other_{name}")
        for name in rule.columns
        if name != "ssid"
    ]
    return pl.all_horizontal(both).fill_null(value=False)


def across_districts(links: pl.DataFrame, stays: pl.DataFrame, as_of: date) -> pl.DataFrame:
    """Who went from one district to another, and who is in two at once, as TRANSFERS.

    `links`: LINKS; `stays`: STAYS of those students. A `transfer` is a withdrawal in one district and an entry in the other
    at most 14 days apart, paired as those inside a district, see `changes.each_once`. `concurrent`, an anomaly: the primary
    enrollment of this year runs in both on `as_of`; of whom that is right is for people to find out.
    """
    found = pl.concat([_went_over(links, stays), _in_both(links, stays, as_of)])
    ids = derived_ids(
        found.select(
            "kind", *SIDES, "school_id", "other_school_id", pl.col("left_entry", "entry_date").cast(pl.String)
        ).iter_rows(),
        "transfer",
    )
    named = found.with_columns(transfer_id=pl.Series(ids, dtype=pl.String))
    return named.select(list(TRANSFERS)).sort("transfer_id")


def _went_over(links: pl.DataFrame, stays: pl.DataFrame) -> pl.DataFrame:
    taken = stays.filter(pl.col("status") != "no_show").with_row_index("row")
    left = taken.filter(pl.col("status").is_in(_LEFT) & pl.col("exit_date").is_not_null())
    gap = (pl.col("entry_date") - pl.col("exit_date")).dt.total_days().abs()
    pairs = _pairs(links, left, taken).with_columns(gap=gap)
    pairs = pairs.filter((pl.col("gap") <= TRANSFER_DAYS) & (pl.col("entry_date") > pl.col("left_entry")))
    # who was still, or already, at another school of either district went over later, or earlier
    stayed = _lasting(pairs, taken, "left_row", SIDES[:2], pl.col("until") > pl.col("exit_date"))
    was_there = _lasting(
        pairs, taken, "came_row", SIDES[2:], pl.col("until") >= pl.min_horizontal("entry_date", "exit_date")
    )
    pairs = pairs.join(pl.concat([stayed, was_there]), on=["left_row", "came_row"], how="anti")
    return each_once(pairs.sort(SIDES)).select(*_FOUND, kind=pl.lit(TRANSFER))


def _lasting(pairs: pl.DataFrame, stays: pl.DataFrame, row: str, who: list[str], lasting: pl.Expr) -> pl.DataFrame:
    """The pairs of which the student was, before the entry, at another school of a district for as long as `lasting`."""
    others = stays.select(
        pl.col("district").alias(who[0]),
        pl.col("student_id").alias(who[1]),
        another="row",
        began="entry_date",
        until=pl.col("exit_date").fill_null(date.max),
    )
    beside = pairs.join(others, on=who).filter(
        (pl.col("another") != pl.col(row)) & (pl.col("began") < pl.col("entry_date")) & lasting
    )
    return beside.select("left_row", "came_row").unique()


def _in_both(links: pl.DataFrame, stays: pl.DataFrame, as_of: date) -> pl.DataFrame:
    running = stays.filter(
        (pl.col("status") == "active")
        & (pl.col("enrollment_type") == "primary")
        & (pl.col("school_year") == SchoolYear.on(as_of).key)
        & (pl.col("exit_date").is_null() | (pl.col("exit_date") > as_of))
    ).with_row_index("row")
    in_order = (pl.col("left_entry") < pl.col("entry_date")) | (
        (pl.col("left_entry") == pl.col("entry_date")) & (pl.col("district") < pl.col("other_district"))
    )
    return _pairs(links, running, running).filter(in_order).select(*_FOUND, kind=pl.lit(CONCURRENT))


def _pairs(links: pl.DataFrame, left: pl.DataFrame, entered: pl.DataFrame) -> pl.DataFrame:
    """Every stay of `left` with every one of `entered` that is the same child's in another district."""
    matched = links.filter(pl.col("decision") == MATCH).select(SIDES)
    turned = matched.select(
        district="other_district",
        student_id="other_student_id",
        other_district="district",
        other_student_id="student_id",
    )
    one = left.select(
        "district", "student_id", "school_id", "school_year", "exit_date",
        left_row="row", left_entry="entry_date", left_now=_RANKED,
    )  # fmt: skip
    other = entered.select(
        "entry_date",
        came_row="row",
        came=_RANKED,
        other_district="district",
        other_student_id="student_id",
        other_school_id="school_id",
        other_school_year="school_year",
    )
    return pl.concat([matched, turned]).join(one, on=SIDES[:2]).join(other, on=SIDES[2:])
