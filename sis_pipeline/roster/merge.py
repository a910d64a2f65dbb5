"""One record per student: which system's value survives, attribute by attribute, and where the systems disagree.
Who is whom is decided in `identity`; enrollments are merged in `enrollments`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from sis_pipeline.roster.attributes import ATTRIBUTES, EDITED, PERSON, Attribute
from sis_pipeline.roster.clearing import CLEARED, is_cleared
from sis_pipeline.roster.frames import POLARS_DTYPES, fit
from sis_pipeline.roster.model import CONFLICTS, MERGED_STUDENTS, STALE, STUDENT_YEARS, STUDENTS
from sis_pipeline.roster.normalise import value_key
from sis_pipeline.roster.policies import OF_YEAR, Policies

Rows = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

RECORD = ["integration", "sis_id"]
LOCAL: Final = "local edit"
"""In place of an integration where a person edited `students`; no integration's key has a space."""
KEPT: Final = "as published"
"""In place of an integration where a published value stays that no system says any longer."""

EDITS: dict[str, pl.DataType] = {
    "edit": pl.Int64(),
    "student_id": pl.String(),
    "attribute": pl.String(),
    "edited_by": pl.String(),
    "edited_at": pl.Datetime("us", "UTC"),
    **{column.name: POLARS_DTYPES[column.kind] for column in STUDENTS if column.name in PERSON},
}
"""One row per attribute that a person edited in `students`: who, when, and the columns of the attribute; a later edit of
the same one has a higher number."""


DECIDED_RULE: Final = "decided"
"""The rule of a value that a person chose."""
CLEARED_RULE: Final = "cleared"
"""The rule where no value is published because a system, to which the policy listens, cleared its own."""


@dataclass(frozen=True, slots=True)
class Decided:
    """A person's choice between the values of a student's attribute: whose it is. It holds while what the systems, and an
    edit, say is what was `seen`: integration, sis_id and value of each."""

    student_id: str
    attribute: str
    integration: str
    sis_id: str
    seen: frozenset[tuple[str, str, str | None]]


_DISPUTE = dict.fromkeys(
    ("student_id", "attribute", "candidates", "chosen", "chosen_from", "rule", "status"), pl.String
)
_NO_DISPUTES = pl.DataFrame(schema=_DISPUTE)


@dataclass(frozen=True)
class MergedStudents:
    """`students`: one row per student_id with the person columns and `origins`; `years`: student_id and the year
    columns, `school_id` as the chosen record has it; `conflicts`: the model's columns but district and school_year;
    `settled`: numbers of the edits that the systems agree with by now."""

    students: pl.DataFrame
    years: pl.DataFrame
    conflicts: pl.DataFrame
    settled: tuple[int, ...] = ()


def merge_students(
    records: pl.DataFrame,
    policies: Policies,
    priorities: Mapping[str, int],
    *,
    edits: pl.DataFrame | None = None,
    published: pl.DataFrame | None = None,
    decided: Sequence[Decided] = (),
) -> MergedStudents:
    """The surviving value of every attribute of every student.

    `records`: `student_id`, `integration`, `school_id`, `cleared` and the columns of the students entity. `edits`: as
    EDITS, of the students that this merge publishes. `published`: their rows of `students`, for what `manual` leaves as
    it is.

    `sis_wins` takes the integration with the lowest priority number, then the first integration key, then within it the
    newest record; `newest_wins` the latest `modified_at` (unknown is oldest), then as `sis_wins`. A source that does not
    supply a field has no say in it: its null counts, like any value, only where `cleared` names the attribute. An edit
    counts until the systems' own choice equals it: `sis_wins` takes it last, `local_wins` and `manual` first, cleared
    values included, `newest_wins` by its time.

    Values conflict if they differ by more than case, accents, punctuation and spaces (ids: by anything; phones: by
    their digits), see `normalise.value_key`, and from an edit by anything; a block is compared as a whole.
    """
    voices = _Voices(_with_others(records, policies, edits, published), priorities)
    answers = {name: [one for one in decided if one.attribute == name] for name in {one.attribute for one in decided}}
    choices = [voices.choose(attribute, policies, answers.get(attribute.name, ())) for attribute in ATTRIBUTES]
    picks = {choice.attribute.name: choice.pick for choice in choices}
    disputes = [voices.disputes(choice) for choice in choices if choice.attribute.compared]
    chosen = _gathered(voices.ranked, picks, voices.size)
    return MergedStudents(
        students=chosen.with_columns(voices.origins(choices)),
        years=chosen,
        conflicts=pl.concat(disputes).sort("student_id", "attribute"),
        settled=_with_earlier([number for choice in choices for number in choice.settled], edits),
    )


def _with_others(
    records: pl.DataFrame, policies: Policies, edits: pl.DataFrame | None, published: pl.DataFrame | None
) -> pl.DataFrame:
    """The records, and below them who else has a say: a row per edited attribute, one per student published before."""
    parts = [records.with_columns(edit=pl.lit(None, pl.Int64), edited=pl.lit(None, pl.String))]
    here = records.select("student_id").unique()
    if edits is not None and edits.height:
        newest = edits.sort("edit").unique(["student_id", "attribute"], keep="last", maintain_order=True)
        parts.append(
            newest.join(here, on="student_id", how="semi").select(
                pl.all().exclude("attribute", "edited_by", "edited_at"),
                integration=pl.lit(LOCAL),
                sis_id="edited_by",
                modified_at="edited_at",
                edited="attribute",
            )
        )
    kept = [column for name, columns in EDITED.items() if policies.rule(name) == "manual" for column in columns]
    if kept and published is not None:
        several = records.group_by("student_id").len().filter(pl.col("len") > 1)
        parts.append(
            published.join(several, on="student_id", how="semi").select(
                "student_id", *kept, integration=pl.lit(KEPT), sis_id="student_id"
            )
        )
    return pl.concat(parts, how="diagonal") if len(parts) > 1 else parts[0]


def _with_earlier(settled: Sequence[int], edits: pl.DataFrame | None) -> tuple[int, ...]:
    """Settled edits and those that they took the place of, which must not come back."""
    if edits is None or not settled:
        return ()
    done = edits.filter(pl.col("edit").is_in(list(settled)))
    return tuple(edits.join(done, on=["student_id", "attribute"], how="semi")["edit"].sort())


@dataclass(frozen=True)
class _Choice:
    """Whose value of an attribute is taken, per student the row of `pick`, out of those of `candidates`; `decided`: the
    students of whom a person chose; `cleared`: those of whom a record that cleared it is taken."""

    attribute: Attribute
    rule: str
    pick: Rows
    candidates: Mask
    settled: Sequence[int]
    decided: Sequence[int]
    cleared: Rows

    def rules(self, groups: Rows) -> pl.Series:
        """The rule that chose, of each of these students."""
        named = pl.repeat(self.rule, len(groups), dtype=pl.String, eager=True)
        if len(self.cleared) and self.rule != "manual":  # which leaves it to people, and says so
            named = named.set(pl.Series(np.isin(groups, self.cleared)), CLEARED_RULE)
        if self.decided:
            named = named.set(pl.Series(np.isin(groups, list(self.decided))), DECIDED_RULE)
        return named


class _Voices:
    """Everybody who has a say about some students: their records, edits, and what is published of them."""

    def __init__(self, records: pl.DataFrame, priorities: Mapping[str, int]) -> None:
        self.ranked = ranked = _ranked(records, priorities)
        self.groups: Rows = ranked["group"].to_numpy()
        self.size = int(self.groups[-1]) + 1 if ranked.height else 0
        self.is_kept: Mask = (ranked["integration"] == KEPT).to_numpy()
        self.is_edit: Mask = ranked["edited"].is_not_null().to_numpy()
        self.is_record: Mask = ~(self.is_kept | self.is_edit)
        self.shared: Mask = np.bincount(self.groups, minlength=self.size) > 1
        self._any_cleared = ranked[CLEARED].null_count() < ranked.height
        by_rank = np.arange(ranked.height)
        edits_first = np.argsort(~self.is_edit, kind="stable") if self.is_edit.any() else by_rank
        self._orders: dict[str, Rows] = {
            "sis_wins": by_rank,
            "newest_wins": _newest_first(ranked),
            "local_wins": edits_first,
            "manual": edits_first,
        }

    def choose(self, attribute: Attribute, policies: Policies, answers: Sequence[Decided]) -> _Choice:
        rule = policies.rule(attribute.name)
        edits, settled = self._edits(attribute, self._orders[rule if rule in OF_YEAR else "sis_wins"])
        cleared = self._cleared(attribute)
        candidates = (_said(self.ranked, attribute) & self.is_record) | cleared
        candidates[edits] = True
        pick = self._pick(self._orders[rule], _heard(self.ranked, attribute, candidates))
        if rule == "manual" and self.is_kept.any():
            self._keep_published(attribute, pick, candidates)
        decided = self._decide(attribute, answers, pick, candidates) if answers else ()
        named = "any_true" if attribute.is_protection else rule
        empty = np.flatnonzero((pick >= 0) & cleared[pick])
        return _Choice(attribute, named, pick, candidates, settled, decided, empty)

    def _cleared(self, attribute: Attribute) -> Mask:
        """Which records cleared an attribute."""
        if not (self._any_cleared and attribute.is_clearable):
            return np.zeros(self.ranked.height, dtype=np.bool_)
        return self.ranked.select(is_cleared(attribute.name)).to_series().to_numpy()

    def _edits(self, attribute: Attribute, order: Rows) -> tuple[Rows, Sequence[int]]:
        """The edits of an attribute that count, and the numbers of those that the systems agree with."""
        if not self.is_edit.any():
            return np.empty(0, dtype=np.int64), ()
        edits = np.flatnonzero((self.ranked["edited"] == attribute.name).fill_null(value=False).to_numpy())
        said = (_said(self.ranked, attribute) & self.is_record) | self._cleared(attribute)
        theirs = self._pick(order, _heard(self.ranked, attribute, said))[self.groups[edits]]
        agreed = np.ones(len(edits), dtype=np.bool_)
        for name in attribute.columns:
            values = self.ranked[name]
            agreed &= values.gather(edits).eq_missing(values.gather(_index(theirs))).to_numpy()
        return edits[~agreed], self.ranked["edit"].gather(edits[agreed]).to_list()

    def _pick(self, order: Rows, heard: Mask) -> Rows:
        """Per student the first row, in `order`, that is heard; -1 where none is.

        Assigned from last to first, so that the first one is written last and stays.
        """
        rows = order[heard[order]][::-1]
        picked = np.full(self.size, -1, dtype=np.int64)
        picked[self.groups[rows]] = rows
        return picked

    def _keep_published(self, attribute: Attribute, pick: Rows, candidates: Mask) -> None:
        """Where the systems disagree and nobody edited, what is published stays: as a record that still says so has it,
        or on its own."""
        rows = np.flatnonzero(candidates | self.is_kept)
        said = self.ranked.select(
            "group", "integration", "edited", *attribute.columns, key=_compared(self.ranked, attribute)
        )
        said = said.with_columns(said=pl.Series(_said(self.ranked, attribute))).with_row_index("row")[rows]
        is_kept = pl.col("integration") == KEPT
        open_ones = (pl.col("key").filter(~is_kept).n_unique().over("group") > 1) & pl.col(
            "edited"
        ).is_null().all().over("group")
        disputed = said.filter(open_ones)
        kept = disputed.filter(is_kept & pl.col("said"))
        same = disputed.filter(~is_kept).select("group", *attribute.columns, record="row")
        found = (
            kept.join(same, on=["group", *attribute.columns], how="left", nulls_equal=True)
            .group_by("group", "row")
            .agg(pl.col("record").min())
        )
        alone = found.filter(pl.col("record").is_null())["row"].to_numpy()
        pick[found["group"].to_numpy()] = (
            found.select(pl.coalesce("record", "row").cast(pl.Int64)).to_series().to_numpy()
        )
        candidates[alone] = True

    def _decide(self, attribute: Attribute, answers: Sequence[Decided], pick: Rows, candidates: Mask) -> Sequence[int]:
        """Take what a person chose, where the same is said as then; of which students that was."""
        rows = np.flatnonzero(candidates)
        said = self.ranked.select("student_id", "group", *RECORD, value=_text(attribute))[rows]
        said = said.with_columns(row=pl.Series(rows)).filter(
            pl.col("student_id").is_in([it.student_id for it in answers])
        )
        of_student = said.partition_by("student_id", as_dict=True, include_key=False)
        decided = []
        for answer in answers:
            voices = list(of_student.get((answer.student_id,), said.clear().drop("student_id")).iter_rows())
            now = {
                (integration, sis_id, value or None)
                for _, integration, sis_id, value, _ in voices
                if integration != KEPT
            }
            chosen = [(it[0], it[-1]) for it in voices if it[1:3] == (answer.integration, answer.sis_id)]
            seen = {(*record, value or None) for *record, value in answer.seen}  # an emptied block was "" once
            if now == seen and chosen:
                [(group, pick[group])] = chosen
                decided.append(group)
        return decided

    def disputes(self, choice: _Choice) -> pl.DataFrame:
        return _disputes(self.ranked, choice)

    def origins(self, choices: Sequence[_Choice]) -> pl.Series:
        return _origins(self, [choice for choice in choices if choice.attribute.is_personal])


def _ranked(records: pl.DataFrame, priorities: Mapping[str, int]) -> pl.DataFrame:
    """Records in `sis_wins` order inside each student, with the student's number as `group`."""
    lowest = max(priorities.values(), default=0) + 1
    known = {**priorities, KEPT: lowest + 1, LOCAL: lowest + 2}
    priority = pl.col("integration").replace_strict(known, default=lowest, return_dtype=pl.Int64)
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


def _said(ranked: pl.DataFrame, attribute: Attribute) -> Mask:
    """Which records have something to say about an attribute."""
    said: Mask = ~ranked[attribute.lead[0]].is_null().to_numpy()
    for name in attribute.lead[1:]:
        said = said | ~ranked[name].is_null().to_numpy()
    return said


def _heard(ranked: pl.DataFrame, attribute: Attribute, candidates: Mask) -> Mask:
    """Which of the candidates can be chosen: of a protection, a false is only heard where nobody says true."""
    if not attribute.is_protection:
        return candidates
    said = pl.when(pl.Series(candidates)).then(pl.col(attribute.name))
    says = ranked.select("group", said=said)
    says_true = pl.col("said").fill_null(value=False)
    heard = pl.when(says_true.any().over("group")).then(says_true).otherwise(pl.col("said").is_not_null())
    return says.select(heard).to_series().to_numpy()


def _index(rows: Rows) -> pl.Series:
    """What gathers these rows; null for -1."""
    return pl.Series(rows) if (rows >= 0).all() else pl.Series(rows).replace(-1, None)


def _gathered(ranked: pl.DataFrame, picks: Mapping[str, Rows], size: int) -> pl.DataFrame:
    students = ranked.select(pl.col("student_id").unique(maintain_order=True))
    columns = [
        column
        for attribute in ATTRIBUTES
        for column in ranked.select(pl.col(attribute.columns).gather(_index(picks[attribute.name])))
    ]
    return students.with_columns(columns) if size else students.with_columns(ranked.select(c.name for c in columns))


def _text(attribute: Attribute) -> pl.Expr:
    parts = [pl.col(name).cast(pl.String) for name in attribute.lead]
    if len(parts) == 1:
        return parts[0]
    known = pl.any_horizontal(part.is_not_null() for part in parts)
    return pl.when(known).then(pl.concat_str(parts, separator=", ", ignore_nulls=True))


def _compared(ranked: pl.DataFrame, attribute: Attribute) -> pl.Expr:
    """What decides whether two values of an attribute are the same; an issuer that is not known contradicts nobody."""
    keys = [
        value_key(name) if ranked.schema[name] == pl.String else pl.col(name).cast(pl.String) for name in attribute.lead
    ]
    return pl.concat_str([key.fill_null("") for key in keys], separator="\x1f")


def _disputes(ranked: pl.DataFrame, choice: _Choice) -> pl.DataFrame:
    """Students of whom different values are said: all candidates, in `sis_wins` order, and the chosen one."""
    attribute, groups = choice.attribute, ranked["group"].to_numpy()
    several = np.bincount(groups[choice.candidates], minlength=len(choice.pick)) > 1
    rows = np.flatnonzero(choice.candidates & several[groups])
    if not len(rows):
        return _NO_DISPUTES
    candidates = ranked.select("group", "student_id", *RECORD, "modified_at", "edited", *attribute.columns)[rows]
    candidates = candidates.with_columns(key=_compared(ranked, attribute), value=_text(attribute), row=pl.Series(rows))
    disputed = candidates.filter((pl.col("key").n_unique().over("group") > 1) | _is_of_edited(candidates, attribute))
    is_chosen = pl.col("row") == pl.lit(pl.Series(choice.pick[disputed["group"].to_numpy()]))
    modified = _moment(pl.col("modified_at"))
    return (
        disputed.with_columns(
            candidate=pl.struct("integration", "sis_id", "value", modified_at=modified),
            source=pl.concat_str("integration", pl.lit("/"), "sis_id"),
            is_chosen=is_chosen,
            rule=choice.rules(disputed["group"].to_numpy()),
        )
        .group_by("group", maintain_order=True)
        .agg(
            pl.col("student_id").first(),
            pl.col("rule").first(),
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
            rule="rule",
            status=pl.col("rule").replace_strict({DECIDED_RULE: "resolved", "manual": "open"}, default="auto"),
        )
    )


def _is_of_edited(candidates: pl.DataFrame, attribute: Attribute) -> pl.Expr:
    """Whether the row is of a student whose edit differs in anything: a spelling is what people edit."""
    if candidates["edited"].null_count() == candidates.height:
        return pl.lit(value=False)
    exact = pl.concat_str([pl.col(name).cast(pl.String).fill_null("") for name in attribute.columns], separator="\x1f")
    return pl.col("edited").is_not_null().any().over("group") & (exact.n_unique().over("group") > 1)


def _moment(time: pl.Expr) -> pl.Expr:
    return time.dt.strftime("%Y-%m-%dT%H:%M:%SZ")


def _json_of(value: pl.Expr) -> pl.Expr:
    """JSON of any value: Polars encodes structs only, so wrap it and take the wrapping off."""
    return pl.struct(value.alias("_")).struct.json_encode().str.slice(5).str.head(-1)


def _origins(voices: _Voices, choices: Sequence[_Choice]) -> pl.Series:
    """`{"*": "integration/sis_id", attribute: "integration/sis_id rule"}`: the record that gives most, and exceptions, among
    them everything that was cleared.

    Of two records that give equally many attributes the one with the higher priority counts as the base. Of an edit the
    time stands between its author and the rule.
    """
    ranked, shared = voices.ranked, voices.shared
    if not ranked.height:
        return pl.Series("origins", [], dtype=pl.String)
    base = _base(voices, [choice.pick for choice in choices])
    edited_at = pl.when(pl.col("edited").is_not_null()).then(_moment(pl.col("modified_at")))
    label = ranked.select(
        pl.concat_str("integration", pl.lit("/"), "sis_id", pl.coalesce(pl.lit(" ") + edited_at, pl.lit("")))
    ).to_series()
    origins = pl.DataFrame({"base": label.gather(base)}).with_row_index("group")
    exceptions = []
    for choice in choices:
        named = shared & (choice.pick >= 0) & (choice.pick != base)
        named[choice.cleared] = True
        differs = np.flatnonzero(named)
        if not len(differs):
            continue
        source = label.gather(choice.pick[differs]) + " " + choice.rules(differs)
        exceptions.append(
            pl.DataFrame({"group": pl.Series(differs, dtype=pl.UInt32), "source": source}).select(
                "group", "source", attribute=pl.lit(choice.attribute.name)
            )
        )
    if not exceptions:
        return origins.select(
            origins=pl.concat_str(pl.lit('{"*": '), _json_of(pl.col("base")), pl.lit("}"))
        ).to_series()
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


def _base(voices: _Voices, picks: Sequence[Rows]) -> Rows:
    """Per student the record that gives most attributes; the first row where nothing is shared."""
    ranked, shared = voices.ranked, voices.shared
    given = np.zeros(ranked.height, dtype=np.int64)
    for pick in picks:
        np.add.at(given, pick[shared & (pick >= 0)], 1)
    given[~voices.is_record] = -1
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


def published_conflicts(
    merged: MergedStudents, before: pl.DataFrame, gone: Collection[str], district: str, school_year: str
) -> pl.DataFrame:
    """The conflicts rows: those of now, and as they last stood those of before that are none any more, because the systems
    agree by now or a record is gone. `before`: the rows published; `gone`: ids of students who are another one by now."""
    stated = merged.conflicts.with_columns(district=pl.lit(district), school_year=pl.lit(school_year))
    standing = fit(stated, CONFLICTS)
    stale = before.join(standing, on=CONFLICTS.key, how="anti").filter(~pl.col("student_id").is_in(list(gone)))
    return pl.concat([standing, stale.with_columns(status=pl.lit(STALE))]).sort("student_id", "attribute")


def changed_values(one: Mapping[str, pl.DataFrame], other: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """`attribute` and `student_id` of the values in which two merges of the same school year differ, by their frames."""
    schema = dict.fromkeys(("attribute", "student_id"), pl.String)
    parts = [pl.DataFrame(schema=schema)]
    for table in ("students", "student_years"):
        both = one[table].join(other[table], on="student_id", suffix="_other")
        for attribute in ATTRIBUTES:
            if set(attribute.columns) <= set(one[table].columns):
                differs = pl.any_horizontal(
                    pl.col(name).ne_missing(pl.col(f"{name}_other")) for name in attribute.columns
                )
                parts.append(both.filter(differs).select(attribute=pl.lit(attribute.name), student_id="student_id"))
    return pl.concat(parts).sort("attribute", "student_id")
