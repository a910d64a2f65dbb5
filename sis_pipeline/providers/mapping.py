"""Vendor records to standard frames, driven by YAML: renames, paths, conversions and code tables are data, not code.
What a vendor's data mean beyond a rename (which rows belong to a year, what follows from what) is the provider's."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as Facts
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from sis_pipeline.connect.errors import ConfigError, ContractError
from sis_pipeline.providers.base import Record
from sis_pipeline.roster.model import ENTITIES, Kind

__all__ = ["CodeTable", "Mapping", "Missing", "code_table", "day_after", "text"]

Path_ = tuple[str, ...]
Convert = Callable[[Any], str | None]
Batch = tuple[Facts[str, str], Sequence[Record]]

CODE_TABLES = "codes.yaml"
TEXT = pa.large_string()
"""What pandas keeps its `str` columns in."""
NOTHING: tuple[object, ...] = (None, "", [], {})
"""How vendors write that there is no value."""


@dataclass(frozen=True, slots=True)
class CodeTable:
    """What each of a vendor's codes means here. Codes are compared without case and surrounding blanks; `unknown` is
    what any other code becomes, null where the table names nothing."""

    codes: Facts[str, str]
    unknown: str | None = None

    def __call__(self, value: str) -> tuple[str | None, bool]:
        """The meaning of a code, and whether the table knows it."""
        known = self.codes.get(value.strip().casefold())
        return (known, True) if known is not None else (self.unknown, False)


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """Where one column comes from: the first of `paths` that has a value, a fact about the batch, or a constant."""

    column: str
    paths: tuple[Path_, ...] = ()
    about: str | None = None
    constant: str | None = None
    kind: Kind = "text"
    codes: CodeTable | None = None
    required: bool = False

    def raw(self, about: Facts[str, str], batch: Sequence[Record]) -> list[Any]:
        """What the records hold there, as the vendor wrote it."""
        if self.about is not None:
            return [about.get(self.about)] * len(batch)
        if not self.paths:
            return [self.constant] * len(batch)
        found = _values(self.paths[0], batch)
        for path in self.paths[1:]:
            if all(found):
                break
            others = _values(path, batch)
            found = [
                value if value or value not in NOTHING else other for value, other in zip(found, others, strict=True)
            ]
        return found

    def texts(self, raw: Sequence[Any]) -> tuple[list[str | None], dict[int, list[str]]]:
        """The values as text, and by row the codes that the table does not know."""
        if self.codes is None:
            return _converted(raw, _identifier if self.column == "sis_id" else _CONVERSIONS[self.kind]), {}
        return _coded(raw, self.kind, self.codes)


@dataclass(frozen=True, slots=True)
class EntityMap:
    """One entity: the resources its records come from, and its columns."""

    entity: str
    resources: tuple[str, ...]
    columns: tuple[ColumnMap, ...]


@dataclass
class Mapping:
    """The mapping of one provider for one standardisation.

    The YAML names, per entity, its `resource` (or a list of them) and its `columns`; an entity that comes in several
    shapes has more entries, named `entity.shape`. A column is a path (or alternatives), or an object
    of `path` (one, or alternatives in order), `about` (a fact of the batch), `constant`, `codes` (a table's name),
    `type` (the column's kind in roster.model where unset) and `required` (as in roster.model where unset). A path is
    field names with dots; a number picks an element of a list, `*` all of them. Paths that start with `/` name one
    field whose name has dots.

    `unknown_codes` counts, per (entity, column, code as the source spells it), what a code table does not know.
    """

    entities: Facts[str, EntityMap]
    unknown_codes: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    @classmethod
    def load(cls, package_file: str | Path, custom: Facts[str, Facts[str, str]] | None = None) -> Self:
        """Read a mapping: a file of providers/mappings by its name, or any path a plugin has.

        `custom` overrides paths, entity -> column -> path, as a district sets them. Raises ConfigError where it names
        a column that the entity does not have, ValueError for a file that is not a mapping.
        """
        entities = dict(_read(str(package_file)))
        for entity, columns in (custom or {}).items():
            entities[entity] = _overridden(entities[entity], columns)
        return cls(entities)

    def resources(self, entity: str) -> tuple[str, ...]:
        return self.entities[entity].resources

    def annotate(self, frames: Facts[str, pd.DataFrame]) -> None:
        """Leave the counts of unknown codes with the frames, as `attrs["unknown_codes"]`: column -> code -> values."""
        for entity, frame in frames.items():
            counts: dict[str, dict[str, int]] = {}
            for (of, column, code), count in sorted(self.unknown_codes.items()):
                if of == entity:
                    counts.setdefault(column, {})[code] = count
            frame.attrs["unknown_codes"] = counts

    def frame(self, entity: str, records: Sequence[Record], **about: str) -> pd.DataFrame:
        """One batch of records as a standard frame. `about` are facts that hold for all of them."""
        return self.gather(entity, [(about, records)])

    def gather(self, entity: str, batches: Iterable[Batch]) -> pd.DataFrame:
        """All records of an entity as one frame: the mapped columns, all text, missing as null; the index counts rows.

        Raises ContractError where a required field is in none of the records: the source renamed or dropped it.
        """
        spec = self.entities[entity]
        chunks: dict[str, list[pa.Array]] = {column.column: [] for column in spec.columns}
        missing = Missing(spec)
        for about, batch in batches:
            missing.see(batch)
            for column in spec.columns if batch else ():
                raw = column.raw(about, batch)
                missing.look(column, raw, batch)
                values, strange = column.texts(raw)
                chunks[column.column].append(pa.array(values, TEXT))
                self.count_unknown(spec.entity, column.column, strange.values())
        missing.complain()
        return pd.DataFrame({name: text_series(pa.chunked_array(parts, TEXT)) for name, parts in chunks.items()})

    def count_unknown(self, entity: str, column: str, codes: Iterable[Iterable[str]]) -> None:
        for several in codes:
            self.unknown_codes.update((entity, column, code) for code in several)


class Missing:
    """Watches batch by batch for required fields that no record has, whatever their value."""

    def __init__(self, spec: EntityMap) -> None:
        self._entity = spec.entity
        self._wanted = {column.column: column for column in spec.columns if column.required and column.paths}
        self._names: set[str] = set()
        self._rows = 0

    def see(self, batch: Sequence[Record]) -> None:
        self._rows += len(batch)
        if self._wanted:
            self._names.update(name for record in batch[:100] for name in _names(record))

    def look(self, column: ColumnMap, raw: Sequence[Any], batch: Sequence[Record]) -> None:
        if column.column not in self._wanted:
            return
        filled = any(value not in NOTHING for value in raw)
        if filled or any(_has(record, path) for record in batch for path in column.paths):
            del self._wanted[column.column]

    def complain(self) -> None:
        """Raises ContractError where there were records and one of the fields was in none of them."""
        if not (self._rows and self._wanted):
            return
        column = next(iter(self._wanted.values()))
        wanted = " or ".join(".".join(path) for path in column.paths)
        raise ContractError(
            f"Mapping {self._entity}: no record has {wanted}, from which {column.column} comes. Fields there are: "
            f"{', '.join(sorted(self._names)[:60]) or 'none'}.",
            code="contract.missing_field",
        )


def text_series(values: pa.ChunkedArray) -> pd.Series:
    """Arrow texts as a pandas column, without a Python object per value."""
    return pd.Series(pd.StringDtype(na_value=np.nan).__from_arrow__(values))  # type: ignore[attr-defined]


def text(value: Any) -> str | None:
    """A value as text, exactly: numbers as written, without `.0`; blanks around it and emptiness dropped.

    Lone surrogates, which no encoding can store, become U+FFFD.
    """
    if type(value) is not str:
        if value is None or isinstance(value, list | dict):
            return None if value in NOTHING else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        value = _number(value)
    said: str = value.strip()
    if not said:
        return None
    return said if said.isascii() else _SURROGATE.sub("\ufffd", said)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _identifier(value: Any) -> str | None:
    """A record's own id: a text or a number. Objects, lists and flags are none, so that their row is quarantined."""
    return None if isinstance(value, bool | dict | list) else text(value)


_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_DATE_FORMATS = ("%Y-%m-%d", "%m/%d/%Y", "%Y%m%d")


def date_text(value: Any) -> str | None:
    """An ISO date. The .NET minimum is no date; what can't be read as a date stays as it is, for validation to name."""
    said = text(value)
    if said is None or said.startswith("0001-01-01"):
        return None
    day = said.split("T")[0].split(" ")[0]
    if _ISO_DATE.fullmatch(day) and _is_day(day):
        return day
    for pattern in _DATE_FORMATS:
        try:
            return datetime.strptime(day, pattern).date().isoformat()  # noqa: DTZ007
        except ValueError:
            continue
    return said


def _is_day(iso: str) -> bool:
    try:
        date.fromisoformat(iso)
    except ValueError:
        return False
    return True


def timestamp_text(value: Any) -> str | None:
    """An ISO timestamp in UTC; one without a zone is taken as UTC. What can't be read stays as it is."""
    said = text(value)
    if said is None or said.startswith("0001-01-01"):
        return None
    try:
        moment = datetime.fromisoformat(said)
    except ValueError:
        return said
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.isoformat(timespec="microseconds" if moment.microsecond else "seconds").replace("+00:00", "Z")


_BOOLEANS = {
    "true": "true", "yes": "true", "y": "true", "1": "true", "t": "true",
    "false": "false", "no": "false", "n": "false", "0": "false", "f": "false",
}  # fmt: skip


def boolean_text(value: Any) -> str | None:
    """`true` or `false` from the ways vendors write them; anything else stays as it is, for validation to name."""
    said = text(value)
    return None if said is None else _BOOLEANS.get(said.casefold(), said)


def _elements(value: Any) -> list[str]:
    """The texts in a list, in a single value standing for a list, or in a list of lists."""
    if isinstance(value, list):
        return [element for item in value for element in _elements(item)]
    said = text(value)
    return [] if said is None else [said]


def list_text(value: Any) -> str | None:
    """A JSON array of texts, each once, in order; null for none."""
    elements = list(dict.fromkeys(_elements(value)))
    return json.dumps(elements, ensure_ascii=False) if elements else None


_CONVERSIONS: dict[str, Convert] = {
    "text": text,
    "uuid": text,
    "int": text,
    "float": text,
    "json": text,
    "date": date_text,
    "timestamp": timestamp_text,
    "bool": boolean_text,
    "list": list_text,
}


def day_after(values: pd.Series) -> pd.Series:
    """Inclusive last days as exclusive end dates; what is not an ISO date stays as it is."""
    return pd.Series(_converted(values.tolist(), _next_day), index=values.index, dtype="str")


def _next_day(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    try:
        return (date.fromisoformat(value) + timedelta(days=1)).isoformat()
    except (ValueError, OverflowError):
        return value


def _converted(rows: Sequence[Any], convert: Convert) -> list[str | None]:
    """Every value converted, equal texts once: dates and flags repeat a thousandfold in a roster."""
    if _PLAIN.issuperset(map(type, rows)):
        if convert in (text, _identifier):
            return _stripped(rows)
        known = {value: None if value is None else convert(value) for value in set(rows)}
        return [known[value] for value in rows]
    known = {value: convert(value) for value in {value for value in rows if type(value) is str}}
    return [known[value] if type(value) is str else None if value is None else convert(value) for value in rows]


def _stripped(rows: Sequence[str | None]) -> list[str | None]:
    """As `text` of each, of texts and nulls: ids and names differ from row to row."""
    said = [(value.strip() or None) if value else None for value in rows]
    return said if "".join(filter(None, said)).isascii() else [text(value) for value in said]


_PLAIN = frozenset({str, type(None)})
"""Types that are equal only to their like: 1 and True are not, and their texts differ."""


def _coded(rows: Sequence[Any], kind: Kind, table: CodeTable) -> tuple[list[str | None], dict[int, list[str]]]:
    """Every value through a code table, equal ones once, and by row the codes that the table does not know."""
    if _PLAIN.issuperset(map(type, rows)):
        meanings = {value: (None, []) if value is None else _meaning(value, kind, table) for value in set(rows)}
        strange = {value: codes for value, (_, codes) in meanings.items() if codes}
        places = [row for row, value in enumerate(rows) if value in strange] if strange else []
        return [meanings[value][0] for value in rows], {row: strange[rows[row]] for row in places}
    known: dict[Any, tuple[str | None, list[str]]] = {}
    out: list[str | None] = []
    unknown: dict[int, list[str]] = {}
    for row, value in enumerate(rows):
        key = _key(value)
        if key is None or (found := known.get(key)) is None:
            found = (None, []) if value is None else _meaning(value, kind, table)
            if key is not None:
                known[key] = found
        out.append(found[0])
        if found[1]:
            unknown[row] = found[1]
    return out, unknown


def _key(value: Any) -> Any:
    """What is equal for values that mean the same; None for those that are looked up each time."""
    if type(value) is str or type(value) is int:
        return value
    if type(value) is list and len(value) == 1 and type(value[0]) is str:
        return (value[0],)
    return None


def _meaning(value: Any, kind: Kind, table: CodeTable) -> tuple[str | None, list[str]]:
    looked_up = [(element, *table(element)) for element in _elements(value)]
    meanings = [meaning for _, meaning, _ in looked_up if meaning is not None]
    strange = [element for element, _, found in looked_up if not found]
    return (list_text(meanings) if kind == "list" else next(iter(meanings), None)), strange


def _values(path: Path_, batch: Sequence[Record]) -> list[Any]:
    """What is at a path in every record, step by step over all of them: much faster than record by record."""
    values = [record.get(path[0]) for record in batch]
    for position, step in enumerate(path[1:], start=1):
        if step == "*" or step.isdecimal():
            return [_walk(value, path[position:]) for value in values]
        values = [value.get(step) if type(value) is dict else None for value in values]
    return values


def _walk(value: Any, path: Path_) -> Any:
    for position, step in enumerate(path):
        if isinstance(value, dict) and step != "*":
            value = value.get(step)
        elif step == "*":
            rest = path[position + 1 :]
            return [_walk(element, rest) for element in (value if isinstance(value, list) else [value])]
        elif isinstance(value, list) and step.isdecimal():
            value = value[int(step)] if int(step) < len(value) else None
        else:
            return None
    return value


def _has(record: Record, path: Path_) -> bool:
    """Whether the field is there, even if empty: then rows are bad, not the contract."""
    *above, last = path
    parent = _walk(record, tuple(above))
    parents = parent if isinstance(parent, list) else [parent]
    return any(isinstance(item, dict) and last in item for item in parents)


def _names(record: Record) -> Iterable[str]:
    for name, value in record.items():
        yield str(name)
        if isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner in value)


@cache
def _read(package_file: str) -> dict[str, EntityMap]:
    document = _yaml(package_file)
    return {key: _entity(key, spec, package_file) for key, spec in document.items()}


def _yaml(package_file: str) -> dict[str, Any]:
    """BaseLoader: every scalar stays text, so that the codes NO, 01 and 1e3 are what they look like."""
    inside = files("sis_pipeline.providers.mappings").joinpath(package_file)
    place = Path(package_file) if Path(package_file).is_absolute() else inside
    document = yaml.load(place.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506 BaseLoader builds text, lists and dicts only
    if not isinstance(document, dict):
        raise ValueError(f"{package_file} is not a mapping")  # noqa: TRY004 the file is wrong, not the caller's type
    return document


@cache
def _code_tables() -> dict[str, CodeTable]:
    return {name: _table(spec) for name, spec in _yaml(CODE_TABLES).items()}


def code_table(name: str) -> CodeTable:
    """One of the shared code tables, by its name in mappings/codes.yaml."""
    return _code_tables()[name]


def _table(spec: Facts[str, Any]) -> CodeTable:
    """`codes` maps each meaning to the codes that have it: a meaning is reviewed together with all its spellings."""
    codes: dict[str, str] = {}
    for meaning, spellings in spec["codes"].items():
        for spelling in [spellings] if isinstance(spellings, str) else spellings:
            if codes.setdefault(spelling.casefold(), meaning) != meaning:
                raise ValueError(f"code {spelling!r} stands for both {codes[spelling.casefold()]} and {meaning}")
    return CodeTable(codes, spec.get("unknown") or None)


def _entity(key: str, spec: Facts[str, Any], package_file: str) -> EntityMap:
    entity = key.partition(".")[0]
    if entity not in ENTITIES:
        raise ValueError(f"{package_file}: {entity} is not an entity of the roster")
    resources = spec["resource"]
    columns = tuple(_column(entity, name, about, package_file) for name, about in spec["columns"].items())
    return EntityMap(entity, (resources,) if isinstance(resources, str) else tuple(resources), columns)


_KEYS = {"path", "about", "constant", "codes", "type", "required"}


def _column(entity: str, name: str, spec: str | list[str] | Facts[str, Any], package_file: str) -> ColumnMap:
    table = ENTITIES[entity]
    if name not in table.names:
        raise ValueError(f"{package_file}: {entity} has no column {name}")
    declared = table[name]
    stated: dict[str, Any] = {"path": spec} if isinstance(spec, str | list) else dict(spec)
    if not stated or set(stated) - _KEYS:
        raise ValueError(f"{package_file}: {entity}.{name} must be a path or an object of {', '.join(sorted(_KEYS))}")
    paths = stated.get("path", [])
    return ColumnMap(
        column=name,
        paths=tuple(map(_path, [paths] if isinstance(paths, str) else paths)),
        about=stated.get("about"),
        constant=stated.get("constant"),
        kind=stated.get("type", declared.kind),
        codes=code_table(stated["codes"]) if "codes" in stated else None,
        required=stated.get("required", str(declared.required).lower()) == "true",
    )


def _path(written: str) -> Path_:
    return (written[1:],) if written.startswith("/") else tuple(written.split("."))


def _overridden(spec: EntityMap, columns: Facts[str, str]) -> EntityMap:
    unknown = sorted(set(columns) - set(ENTITIES[spec.entity].names))
    if unknown:
        raise ConfigError(
            f"Setting custom_fields: {spec.entity} have no column {', '.join(unknown)}.", code="config.custom_field"
        )
    mapped = {column.column: column for column in spec.columns}
    for name, path in columns.items():
        blank = ColumnMap(name, kind=ENTITIES[spec.entity][name].kind)
        mapped[name] = replace(mapped.get(name, blank), paths=(_path(path),), about=None, constant=None)
    return replace(spec, columns=tuple(mapped.values()))
