"""One record per student: which system's value survives, attribute by attribute, and where the systems disagree.
Who is whom is decided in `identity`; enrollments are merged in `enrollments`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl

from sis_pipeline.roster.frames import fit
from sis_pipeline.roster.model import CONFLICTS, MERGED_STUDENTS, STUDENT_YEARS, STUDENTS
from sis_pipeline.roster.normalise import value_key

Rule = Literal["sis_wins", "newest_wins"]
Rows = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

BLOCKS: dict[str, tuple[str, ...]] = {
    "ssid": ("ssid", "ssid_issuer"),
    "local_id": ("local_id", "local_id_issuer"),
    "home_address": ("home_street", "home_city", "home_state", "home_postal_code"),
    "mailing_address": ("mailing_street", "mailing_city", "mailing_state", "mailing_postal_code"),
    "grade_level": ("grade_level", "grade_level_source"),
}
"""Columns that one record supplies together: half an address from each of two systems is nobody's address.

A record supplies a block if any of its columns has a value (an issuer alone supplies no id). In `conflicts` and
`origins` a block goes by its name here."""

RECORD = ["integration", "sis_id"]
ANY_TRUE = ("directory_opt_out", "address_confidential")
"""Protections: true if any system says so, whatever the policy."""


@dataclass(frozen=True, slots=True)
class Policies:
    """The survivorship rule of a district, and of single attributes (or blocks) where it differs."""

    default: Rule = "sis_wins"
    attributes: Mapping[str, Rule] = field(default_factory=dict)

    def rule(self, attribute: str) -> Rule:
        return self.attributes.get(attribute, self.default)


_DISPUTE = dict.fromkeys(
    ("student_id", "attribute", "candidates", "chosen", "chosen_from", "rule", "status"), pl.String
)


@dataclass(frozen=True)
class MergedStudents:
    """`students`: one row per student_id with the person columns and `origins`; `years`: student_id and the year
    columns, `school_id` as the chosen record has it; `conflicts`: the model's columns but district and school_year."""

    students: pl.DataFrame
    years: pl.DataFrame
    conflicts: pl.DataFrame


@dataclass(frozen=True)
class _Attribute:
    """One thing that survives as a whole: a column or a block. `lead` are the columns that make it supplied."""

    name: str
    columns: tuple[str, ...]
    lead: tuple[str, ...]
    compared: bool

    @property
    def is_protection(self) -> bool:
        return self.name in ANY_TRUE


def merge_students(records: pl.DataFrame, policies: Policies, priorities: Mapping[str, int]) -> MergedStudents:
    """The surviving value of every attribute of every student.

    `records`: `student_id`, `integration`, `school_id` and the columns of the students entity. `sis_wins` takes the
    integration with the lowest priority number, then the first integration key, then within it the newest record;
    `newest_wins` the latest `modified_at` (unknown is oldest), then as `sis_wins`. A null never wins: a source that
    does not supply a field has no say in it.

    Values conflict if they differ by more than case, accents, punctuation and spaces (ids: by anything; phones: by
    their digits), see `normalise.value_key`; the address of a block is compared as a whole.
    """
    ranked = _ranked(records, priorities)
    orders = {"sis_wins": np.arange(ranked.height), "newest_wins": _newest_first(ranked)}
    groups = ranked["group"].to_numpy()
    size = int(groups[-1]) + 1 if ranked.height else 0
    shared = np.bincount(groups, minlength=size) > 1
    picks: dict[str, Rows] = {}
    disputes = []
    for attribute in _attributes():
        rule = "any_true" if attribute.is_protection else policies.rule(attribute.name)
        heard = _heard(ranked, attribute)
        picks[attribute.name] = _pick(groups, size, orders[policies.rule(attribute.name)], heard)
        if attribute.compared:
            disputes.append(_disputes(ranked, attribute, rule, picks[attribute.name], _said(ranked, attribute)))
    chosen = _gathered(ranked, picks, size)
    origins = _origins(ranked, picks, policies, shared)
    return MergedStudents(
        students=chosen.with_columns(origins),
        years=chosen,
        conflicts=pl.concat(disputes).sort("student_id", "attribute"),
    )


def _attributes() -> Iterator[_Attribute]:
    blocked = {column for columns in BLOCKS.values() for column in columns}
    for name, columns in BLOCKS.items():
        lead = (name,) if name in columns else columns
        yield _Attribute(name, columns, lead, compared=True)
    for column in STUDENTS:
        if column.scope != "record" and column.name not in blocked and column.name != "school_sis_id":
            yield _Attribute(column.name, (column.name,), (column.name,), compared=column.merged)
    yield _Attribute("school_id", ("school_id",), ("school_id",), compared=False)


def _ranked(records: pl.DataFrame, priorities: Mapping[str, int]) -> pl.DataFrame:
    """Records in `sis_wins` order inside each student, with the student's number as `group`."""
    lowest = max(priorities.values(), default=0) + 1
    priority = pl.col("integration").replace_strict(dict(priorities) or {"": 0}, default=lowest, return_dtype=pl.Int64)
    return (
        records.with_columns(priority=priority)
        .sort(
            "student_id", "priority", "integration", "modified_at", "sis_id",
            descending=[False, False, False, True, False], nulls_last=True,
        )
        .with_columns(group=(pl.col("student_id").rle_id()).cast(pl.Int64))
    )  # fmt: skip


def _newest_first(ranked: pl.DataFrame) -> Rows:
    order = (
        ranked.select("modified_at")
        .with_row_index("row")
        .sort("modified_at", "row", descending=[True, False], nulls_last=True)
    )
    return order["row"].cast(pl.Int64).to_numpy()


def _said(ranked: pl.DataFrame, attribute: _Attribute) -> Mask:
    """Which records have something to say about an attribute."""
    said: Mask = ~ranked[attribute.lead[0]].is_null().to_numpy()
    for name in attribute.lead[1:]:
        said = said | ~ranked[name].is_null().to_numpy()
    return said


def _heard(ranked: pl.DataFrame, attribute: _Attribute) -> Mask:
    """Which of them can be chosen: of a protection, a false is only heard where nobody says true."""
    if not attribute.is_protection:
        return _said(ranked, attribute)
    says_true = pl.col(attribute.name).fill_null(value=False)
    heard = pl.when(says_true.any().over("group")).then(says_true).otherwise(pl.col(attribute.name).is_not_null())
    return ranked.select(heard).to_series().to_numpy()


def _pick(groups: Rows, size: int, order: Rows, supplied: Mask) -> Rows:
    """Per student the first row, in `order`, that supplies the attribute; -1 where none does.

    Assigned from last to first, so that the first one is written last and stays.
    """
    rows = order[supplied[order]][::-1]
    picked = np.full(size, -1, dtype=np.int64)
    picked[groups[rows]] = rows
    return picked


def _index(rows: Rows) -> pl.Series:
    return pl.Series(rows).replace(-1, None)


def _gathered(ranked: pl.DataFrame, picks: Mapping[str, Rows], size: int) -> pl.DataFrame:
    students = ranked.select(pl.col("student_id").unique(maintain_order=True))
    columns = [
        ranked[column].gather(_index(picks[attribute.name])).alias(column)
        for attribute in _attributes()
        for column in attribute.columns
    ]
    return students.with_columns(columns) if size else students.with_columns(ranked.select(c.name for c in columns))


def _text(attribute: _Attribute) -> pl.Expr:
    parts = [pl.col(name).cast(pl.String) for name in attribute.lead]
    return parts[0] if len(parts) == 1 else pl.concat_str(parts, separator=", ", ignore_nulls=True)


def _compared(ranked: pl.DataFrame, attribute: _Attribute) -> pl.Expr:
    """What decides whether two values of an attribute are the same; an issuer that is not known contradicts nobody."""
    keys = [
        value_key(name) if ranked.schema[name] == pl.String else pl.col(name).cast(pl.String) for name in attribute.lead
    ]
    return pl.concat_str([key.fill_null("") for key in keys], separator="\x1f")


def _disputes(ranked: pl.DataFrame, attribute: _Attribute, rule: str, pick: Rows, supplied: Mask) -> pl.DataFrame:
    """Students whose records hold different values: all candidates, in `sis_wins` order, and the chosen one."""
    several = np.bincount(ranked["group"].filter(pl.Series(supplied)).to_numpy(), minlength=len(pick)) > 1
    rows = np.flatnonzero(supplied & several[ranked["group"].to_numpy()])
    if not len(rows):
        return pl.DataFrame(schema=_DISPUTE)
    candidates = ranked.select("group", "student_id", *RECORD, "modified_at", *attribute.columns)[rows]
    candidates = candidates.with_columns(key=_compared(ranked, attribute), value=_text(attribute), row=pl.Series(rows))
    disputed = candidates.filter(pl.col("key").n_unique().over("group") > 1)
    is_chosen = pl.col("row") == pl.lit(pl.Series(pick[disputed["group"].to_numpy()]))
    modified = pl.col("modified_at").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    return (
        disputed.with_columns(
            candidate=pl.struct("integration", "sis_id", "value", modified_at=modified),
            source=pl.concat_str("integration", pl.lit("/"), "sis_id"),
            is_chosen=is_chosen,
        )
        .group_by("group", maintain_order=True)
        .agg(
            pl.col("student_id").first(),
            candidates=pl.col("candidate"),
            chosen=pl.col("value").filter("is_chosen").first(),
            chosen_from=pl.col("source").filter("is_chosen").first(),
        )
        .select(
            "student_id",
            attribute=pl.lit(attribute.name),
            candidates=_json_of(pl.col("candidates")),
            chosen="chosen",
            chosen_from="chosen_from",
            rule=pl.lit(rule),
            status=pl.lit("auto"),
        )
    )


def _json_of(value: pl.Expr) -> pl.Expr:
    """JSON of any value: Polars encodes structs only, so wrap it and take the wrapping off."""
    return pl.struct(value.alias("_")).struct.json_encode().str.slice(5).str.head(-1)


def _origins(ranked: pl.DataFrame, picks: Mapping[str, Rows], policies: Policies, shared: Mask) -> pl.Series:
    """`{"*": "integration/sis_id", attribute: "integration/sis_id rule"}`: the record that gives most, and exceptions.

    Of two records that give equally many attributes the one with the higher priority counts as the base.
    """
    if not ranked.height:
        return pl.Series("origins", [], dtype=pl.String)
    person = {column.name for column in STUDENTS.of_scope("person")}
    names = [a.name for a in _attributes() if set(a.columns) <= person]
    base = _base(ranked, [picks[name] for name in names], shared)
    label = ranked.select(pl.concat_str("integration", pl.lit("/"), "sis_id")).to_series()
    origins = pl.DataFrame({"base": label.gather(base)}).with_row_index("group")
    exceptions = []
    for name in names:
        differs = np.flatnonzero(shared & (picks[name] >= 0) & (picks[name] != base))
        rule = "any_true" if name in ANY_TRUE else policies.rule(name)
        source = label.gather(picks[name][differs]) + f" {rule}"
        exceptions.append(
            pl.DataFrame({"group": pl.Series(differs, dtype=pl.UInt32), "source": source}).select(
                "group", "source", attribute=pl.lit(name)
            )
        )
    listed = (
        pl.concat(exceptions)
        .select("group", entry=pl.concat_str(pl.lit(', "'), "attribute", pl.lit('": '), _json_of(pl.col("source"))))
        .group_by("group", maintain_order=True)
        .agg(pl.col("entry").str.join(""))
    )
    return (
        origins.join(listed, on="group", how="left", maintain_order="left")
        .select(
            origins=pl.concat_str(
                pl.lit('{"*": '), _json_of(pl.col("base")), pl.col("entry").fill_null(""), pl.lit("}")
            )
        )
        .to_series()
    )


def _base(ranked: pl.DataFrame, picks: Sequence[Rows], shared: Mask) -> Rows:
    """Per student the row that gives most attributes; the first row where nothing is shared."""
    given = np.zeros(ranked.height, dtype=np.int64)
    for pick in picks:
        np.add.at(given, pick[shared & (pick >= 0)], 1)
    counts = ranked.select("group", given=pl.Series(given)).with_row_index("row")
    best = counts.sort("group", "given", "row", descending=[False, True, False]).unique(
        "group", keep="first", maintain_order=True
    )
    return best["row"].cast(pl.Int64).to_numpy()


def published_students(
    merged: MergedStudents, existing: pl.DataFrame, near: Sequence[str], district: str, school_year: str
) -> pl.DataFrame:
    """The students rows that this school year owns: a later year's person keeps its attributes untouched."""
    later = existing.filter(pl.col("latest_school_year") > school_year).select("student_id")
    owned = merged.students.join(later, on="student_id", how="anti", maintain_order="left")
    return fit(
        owned.with_columns(
            district=pl.lit(district),
            latest_school_year=pl.lit(school_year),
            near_match=pl.col("student_id").is_in(pl.Series(near, dtype=pl.String).implode()),
        ),
        MERGED_STUDENTS,
    )


def published_years(merged: MergedStudents, homes: pl.DataFrame, district: str, school_year: str) -> pl.DataFrame:
    """The student_years rows. `homes`: student_id, school_id, status of the primary enrollment, which wins over what
    the student records say."""
    enrolled = merged.years.join(
        homes.select("student_id", home="school_id", home_status="status"),
        on="student_id",
        how="left",
        maintain_order="left",
    )
    return fit(
        enrolled.with_columns(
            district=pl.lit(district),
            school_year=pl.lit(school_year),
            school_id=pl.coalesce("home", "school_id"),
            enrollment_status=pl.coalesce("home_status", "enrollment_status"),
        ),
        STUDENT_YEARS,
    )


def published_conflicts(merged: MergedStudents, district: str, school_year: str) -> pl.DataFrame:
    return fit(merged.conflicts.with_columns(district=pl.lit(district), school_year=pl.lit(school_year)), CONFLICTS)
