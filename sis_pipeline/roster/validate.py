"""Typing and validation of what a SIS delivered: every rejected row says which column broke which rule, never the value.
pandas lives here and nowhere else in the roster; who is whom and what changed is decided on Polars frames elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from sis_pipeline.roster.frames import PANDAS_DTYPES, pandas_dtypes
from sis_pipeline.roster.model import ENTITIES, Column, Kind, Table
from sis_pipeline.roster.sieve import all_differ, may_be_blank, may_hold_nul, surely_kept
from sis_pipeline.roster.texts import by_value, in_arrow, is_among

if TYPE_CHECKING:
    import pandera.pandas as pandera

    Series = pd.Series[Any]

EARLIEST_BIRTH = date(1900, 1, 1)

MISSING = "required value is missing"
BORN_IN_THE_FUTURE = "in the future"
NOT_A_CODE = "not one of the allowed codes"
NUL = "contains a NUL character"
SURROGATE = "lone surrogate"
NOT_TEXT = "not text"
UNREADABLE: dict[Kind, str] = {
    "date": "not a date",
    "timestamp": "not a timestamp",
    "int": "not a whole number",
    "float": "not a number",
    "bool": "not true or false",
    "list": "not a JSON array",
}


NO_LINES = pd.DataFrame(
    {"row": pd.Series(dtype="int64")} | dict.fromkeys(("sis_id", "column", "reason"), pd.Series(dtype="str"))
)


class UnknownColumns(ValueError):  # noqa: N818 - said as it is
    """The frame has columns that the model does not know."""


@dataclass(frozen=True)
class Validated:
    """`frame`: the good rows, typed, the model's columns, one row per `sis_id`.

    `rejected`: `row` (position in the given frame), `sis_id`, `column`, `reason`, one line per failing check.
    `warnings`: same columns, for rows that were kept. `duplicates`: rows left out because a newer one has their id.
    `rows`: rows given. `proven`: pandera found nothing wrong in any of them, so that it would find nothing in fewer.
    """

    frame: pd.DataFrame
    rejected: pd.DataFrame
    warnings: pd.DataFrame
    duplicates: int = 0
    rows: int = 0
    proven: bool = False

    @property
    def rejected_rows(self) -> int:
        return int(self.rejected["row"].nunique())

    @property
    def reasons(self) -> dict[str, int]:
        """Rejected lines by `column: reason`, most frequent first."""
        return _count_reasons(self.rejected)


@dataclass(frozen=True, slots=True)
class Dangling:
    """References of one column that lead nowhere. `rows`: the `sis_id`s of the referring rows."""

    entity: str
    column: str
    refers: str
    rows: tuple[str, ...] = field(default_factory=tuple)


@dataclass(frozen=True)
class Referenced:
    """Frames in which every reference leads somewhere.

    `removed`: by entity, the rows whose required reference is missing, as `Validated.rejected` has them (`row` is the
    position in the frame given). `nulled`: optional references that were taken out, the rows stay.
    """

    frames: dict[str, pd.DataFrame]
    removed: dict[str, pd.DataFrame]
    nulled: tuple[Dangling, ...]


def _count_reasons(lines: pd.DataFrame) -> dict[str, int]:
    counts = (lines["column"] + ": " + lines["reason"]).value_counts()
    return {str(reason): int(count) for reason, count in counts.items()}


class _Findings:
    """Collects (rows, column, reason) while a frame is examined."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray[Any, Any], str, str]] = []

    def add(self, rows: Any, column: str, reason: str) -> None:
        positions = np.asarray(rows, dtype=np.int64)
        if len(positions):
            self._parts.append((positions, column, reason))

    def add_where(self, mask: Any, column: str, reason: str) -> None:
        self.add(np.flatnonzero(np.asarray(mask, dtype=bool)), column, reason)

    def seen(self) -> set[tuple[int, str]]:
        return {(int(row), column) for rows, column, _ in self._parts for row in rows}

    def rows(self) -> np.ndarray[Any, Any]:
        return np.unique(np.concatenate([rows for rows, _, _ in self._parts])) if self._parts else np.array([], "int64")

    def lines(self, sis_ids: Series) -> pd.DataFrame:
        """One line per finding. A `sis_id` that is itself the fault is left out: it may not even be storable."""
        if not self._parts:
            return NO_LINES.copy()
        parts = [pd.DataFrame({"row": rows, "column": column, "reason": why}) for rows, column, why in self._parts]
        lines = pd.concat(parts, ignore_index=True).astype({"row": "int64", "column": "str", "reason": "str"})
        lines = lines.sort_values(["row", "column", "reason"], ignore_index=True)
        named = sis_ids.iloc[lines["row"].to_numpy()].reset_index(drop=True).astype("str")
        faulty = lines.loc[lines["column"] == "sis_id", "row"]
        lines.insert(1, "sis_id", named.mask(lines["row"].isin(faulty)))
        return lines


@cache
def pandera_schema(table: Table) -> pandera.DataFrameSchema:
    """The pandera schema of a model table: types, nullability, codes, patterns, ranges and lengths."""
    import pandera.pandas as pandera

    columns = {
        column.name: pandera.Column(dtype, checks=_checks(column), nullable=not column.required)
        for column, dtype in zip(table, pandas_dtypes(table).values(), strict=True)
    }
    return pandera.DataFrameSchema(columns, strict=True, ordered=True, name=table.name)


@cache
def _schema_of(table: Table, names: tuple[str, ...]) -> pandera.DataFrameSchema:
    """The schema of some of the columns."""
    import pandera.pandas as pandera

    columns = {name: column for name, column in pandera_schema(table).columns.items() if name in names}
    return pandera.DataFrameSchema(columns, name=table.name)


def _doubtful(typed: pd.DataFrame, table: Table) -> tuple[str, ...]:
    """The columns that pandera might find anything in, and is asked about: every column has its type already."""
    return tuple(column.name for column in table if not surely_kept(typed[column.name], column))


def _checks(column: Column) -> list[pandera.Check]:
    from pandera.pandas import Check

    checks = []
    if column.codes:
        checks.append(Check.isin(column.codes, error=NOT_A_CODE))
    if column.pattern:
        checks.append(Check.str_matches(column.pattern, error=_pattern_reason(column)))
    if column.longest is not None and not column.codes:
        checks.append(Check.str_length(max_value=column.longest, error=f"longer than {column.longest} characters"))
    if column.minimum is not None:
        checks.append(Check.ge(column.minimum, error=f"below {column.minimum:g}"))
    if column.maximum is not None:
        checks.append(Check.le(column.maximum, error=f"above {column.maximum:g}"))
    return checks


def _pattern_reason(column: Column) -> str:
    return "begins or ends with a space" if column.name == "sis_id" else "not written as 2025-2026"


def validate(entity: str, frame: pd.DataFrame, *, today: date | None = None) -> Validated:
    """Type and validate one entity's frame of text columns, as `Provider.standardise` delivers it.

    Columns that are left out are null, blank text is null. A value that can't be read, a broken rule or a broken rule
    between columns rejects its row; of several rows with one `sis_id` the one with the newest `modified_at` stays,
    then the last. `today` is the day after which nobody can be born; without it that rule is not asked.
    Raises UnknownColumns for columns that are not the model's, KeyError for an entity that is not.
    """
    table = ENTITIES[entity]
    given = _present(frame, table)
    findings = _Findings()
    texts = {column.name: _as_text(given[column.name], column.name, findings) for column in table}
    typed = pd.DataFrame({column.name: _typed(texts[column.name], column, findings) for column in table})
    proven = _check_schema(typed, table, findings)
    for rule in _RULES.get(entity, ()):
        findings.add_where(rule.broken(typed, today), rule.column, rule.reason)
    good = typed.drop(findings.rows())
    unique = _deduplicated(good)
    warnings = _Findings()
    if entity == "academic_sessions":
        _warn_of_overruns(typed, warnings)
    return Validated(
        frame=unique.reset_index(drop=True),
        rejected=findings.lines(texts["sis_id"]),
        warnings=warnings.lines(texts["sis_id"]),
        duplicates=len(good) - len(unique),
        rows=len(frame),
        proven=proven,
    )


def _present(frame: pd.DataFrame, table: Table) -> pd.DataFrame:
    unknown = sorted(str(name) for name in set(frame.columns) - set(table.names))
    if unknown:
        raise UnknownColumns(
            f"The {table.name} frame has columns that the roster model does not know: {', '.join(unknown)}. "
            f"It knows: {', '.join(table.names)}."
        )
    return frame.reset_index(drop=True).reindex(columns=table.names)


def _as_text(series: Series, name: str, findings: _Findings) -> Series:
    """Storable text: what is not text, or text that PostgreSQL or UTF-8 can't hold, is a finding and becomes null."""
    if series.isna().all():
        return pd.Series(pd.NA, index=series.index, dtype="str")
    if not isinstance(series.dtype, pd.StringDtype):
        series = _storable(series, name, findings)
    text = series.astype("str")
    if may_hold_nul(in_arrow(text)):
        nul = _true_where(pc.match_substring(in_arrow(text), "\0"))
        findings.add_where(nul, name, NUL)
        text = text.mask(nul)
    if may_be_blank(in_arrow(text)):
        text = text.mask(_true_where(pc.match_substring_regex(in_arrow(text), r"^\s*$")))
    return text


def _true_where(mask: pa.BooleanArray) -> np.ndarray[Any, Any]:
    return np.asarray(pc.fill_null(mask, fill_value=False), dtype=bool)


def _storable(series: Series, name: str, findings: _Findings) -> Series:
    values = series.array.astype(object)
    missing = series.isna().to_numpy()
    is_text = np.fromiter((isinstance(value, str) for value in values), bool, len(values))
    encodable = np.fromiter((not text or _encodable(value) for text, value in zip(is_text, values, strict=True)), bool)
    findings.add_where(~is_text & ~missing, name, NOT_TEXT)
    findings.add_where(~encodable, name, SURROGATE)
    kept = [value if keep else None for value, keep in zip(values, is_text & encodable, strict=True)]
    return pd.Series(kept, index=series.index, dtype="str")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _typed(text: Series, column: Column, findings: _Findings) -> Series:
    parse = _PARSERS.get(column.kind)
    if parse is None:
        return text
    if text.isna().all():
        return pd.Series(None, index=text.index, dtype=PANDAS_DTYPES[column.kind])
    parsed = by_value(text, parse)
    findings.add_where((parsed.isna() & text.notna()).to_numpy(), column.name, UNREADABLE[column.kind])
    return parsed


def _dates(text: Series) -> Series:
    iso = text.where(text.str.fullmatch(r"\d{4}-\d{2}-\d{2}", na=False))
    return pd.to_datetime(iso, format="%Y-%m-%d", errors="coerce").astype("datetime64[s]")


def _timestamps(text: Series) -> Series:
    iso = text.where(text.str.match(r"\d{4}-\d{2}-\d{2}", na=False))
    return pd.to_datetime(iso, format="ISO8601", utc=True, errors="coerce").astype("datetime64[us, UTC]")


def _integers(text: Series) -> Series:
    whole = text.where(text.str.fullmatch(r"[+-]?\d{1,18}", na=False))
    return pd.to_numeric(whole, errors="coerce", dtype_backend="numpy_nullable").astype("Int64")


def _numbers(text: Series) -> Series:
    plain = text.where(text.str.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,2})?", na=False))
    return pd.to_numeric(plain, errors="coerce").astype("Float64")


def _booleans(text: Series) -> Series:
    return text.map({"true": True, "false": False}).astype("boolean")


def _lists(text: Series) -> Series:
    distinct = text.dropna().unique()
    return text.where(text.isin([value for value in distinct if _is_list(value)]))


def _is_list(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list)
    except ValueError:
        return False


_PARSERS: dict[Kind, Callable[[Series], Series]] = {
    "date": _dates,
    "timestamp": _timestamps,
    "int": _integers,
    "float": _numbers,
    "bool": _booleans,
    "list": _lists,
}


def _check_schema(typed: pd.DataFrame, table: Table, findings: _Findings) -> bool:
    """Whether every row fulfils the schema; the findings say which do not, and why."""
    doubtful = _doubtful(typed, table)
    if not doubtful:
        return True
    from pandera.errors import SchemaErrors

    try:
        _schema_of(table, doubtful).validate(typed, lazy=True)
    except SchemaErrors as broken:
        # the exception carries the whole frame: take (row, column, check) and let go of it
        cases = broken.failure_cases[["index", "column", "check"]].copy()
    else:
        return True
    unreadable = findings.seen()
    for (column, check), rows in cases.groupby(["column", "check"], sort=True)["index"]:
        reason = MISSING if check == "not_nullable" else str(check)
        # a value that could not be read is null by now: saying that it is missing too would mislead
        findings.add([row for row in rows if (int(row), column) not in unreadable], str(column), reason)
    return False


def _deduplicated(good: pd.DataFrame) -> pd.DataFrame:
    if all_differ(good["sis_id"]):
        return good
    newest_last = good.sort_values("modified_at", kind="stable", na_position="first")
    return newest_last.drop_duplicates("sis_id", keep="last").sort_index()


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule between columns, or between a column and a day: `broken` gives the mask of the rows that break it."""

    column: str
    reason: str
    broken: Callable[[pd.DataFrame, date | None], Series]


def _before(column: str, other: str) -> Callable[[pd.DataFrame, date | None], Series]:
    return lambda frame, _: frame[column] < frame[other]


def _born_after(frame: pd.DataFrame, today: date | None) -> Series:
    latest = pd.Timestamp(today) if today else pd.Timestamp.max.as_unit("s")
    return frame["birth_date"] > latest


def _born_before_1900(frame: pd.DataFrame, _: date | None) -> Series:
    return frame["birth_date"] < pd.Timestamp(EARLIEST_BIRTH)


# An exit on the entry date is a student who never came: it is kept, as a no-show.
_RULES: dict[str, tuple[_Rule, ...]] = {
    "academic_sessions": (_Rule("end_date", "before the start date", _before("end_date", "start_date")),),
    "students": (
        _Rule("birth_date", BORN_IN_THE_FUTURE, _born_after),
        _Rule("birth_date", "before 1900", _born_before_1900),
    ),
    "enrollments": (_Rule("exit_date", "before the entry date", _before("exit_date", "entry_date")),),
    "section_enrollments": (_Rule("end_date", "before the begin date", _before("end_date", "begin_date")),),
}


def _warn_of_overruns(sessions: pd.DataFrame, warnings: _Findings) -> None:
    """Vendors let terms overrun their school year by a day or two; that is worth saying and worth nothing more."""
    known = sessions.dropna(subset=["sis_id"]).drop_duplicates("sis_id", keep="last").set_index("sis_id")
    if known.empty:
        return
    starts = sessions["parent_sis_id"].map(known["start_date"])
    ends = sessions["parent_sis_id"].map(known["end_date"])
    warnings.add_where(sessions["start_date"] < starts, "start_date", "before its parent session")
    warnings.add_where(sessions["end_date"] > ends, "end_date", "after its parent session")


def check_references(frames: Mapping[str, pd.DataFrame]) -> list[Dangling]:
    """Every reference that leads nowhere, per entity and column, in model order.

    A reference to an entity that is not among the frames is not asked: the source does not deliver it. The person of
    a section enrollment is a student where the role is `student`, else a staff member.
    """
    return [
        Dangling(table.name, column.name, column.refers or "", tuple(frame.loc[mask, "sis_id"]))
        for table, frame in _in_model_order(frames)
        for column, mask in _dangling(table, frame, frames)
        if mask.any()
    ]


def quarantine_dangling(frames: Mapping[str, pd.DataFrame]) -> Referenced:
    """Take out rows whose required reference leads nowhere, and optional references that do.

    Entities are taken in model order, in which what is referred to stands first, so that the section enrollments of
    a section that is taken out go with it in the same pass.
    """
    kept = dict(frames)
    removed: dict[str, pd.DataFrame] = {}
    nulled: list[Dangling] = []
    for table, frame in _in_model_order(frames):
        findings = _Findings()
        result = frame.copy(deep=False)
        for column, mask in _dangling(table, frame, kept):
            if column.required:
                findings.add_where(mask, column.name, f"refers to {column.refers} that are not there")
            elif mask.any():
                result[column.name] = result[column.name].mask(mask)
                nulled.append(Dangling(table.name, column.name, column.refers or "", tuple(frame.loc[mask, "sis_id"])))
        rows = findings.rows()
        if len(rows):
            removed[table.name] = findings.lines(frame["sis_id"])
            result = result.drop(index=result.index[rows])
        kept[table.name] = result.reset_index(drop=True)
    return Referenced(kept, removed, tuple(nulled))


def _in_model_order(frames: Mapping[str, pd.DataFrame]) -> Iterator[tuple[Table, pd.DataFrame]]:
    return ((table, frames[name]) for name, table in ENTITIES.items() if name in frames)


def _dangling(
    table: Table, frame: pd.DataFrame, frames: Mapping[str, pd.DataFrame]
) -> Iterator[tuple[Column, np.ndarray[Any, Any]]]:
    for column in table:
        if column.refers is None:
            continue
        mask = np.zeros(len(frame), dtype=bool)
        for entity, applies in _targets(column, frame):
            if entity in frames:
                mask |= applies & ~is_among(frame[column.name], frames[entity]["sis_id"]).to_numpy()
        yield column, mask & frame[column.name].notna().to_numpy()


def _targets(column: Column, frame: pd.DataFrame) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """The entity a reference leads to and the rows it holds for; two entities are told apart by the row's role."""
    if column.refers == "students or staff":
        is_student = (frame["role"] == "student").to_numpy(dtype=bool)
        yield "students", is_student
        yield "staff", ~is_student
    else:
        yield str(column.refers), np.ones(len(frame), dtype=bool)
