"""The files of a OneRoster CSV set: found in a folder or a zip, decoded, and checked against the header contract before
a row is parsed. What the rows mean is not this module's business."""

from __future__ import annotations

import codecs
import csv
import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sis_pipeline.connect.errors import ConfigError, ContractError
from sis_pipeline.providers.base import End, Page, Pager, Record, Request, Send
from sis_pipeline.roster.formulas import SYSTEM, unquoted

if TYPE_CHECKING:
    from sis_pipeline.roster.oneroster_export import Version


MANIFEST = "manifest"
LISTS = frozenset(
    {"agentSourcedIds", "grades", "orgSourcedIds", "periods", "subjectCodes", "subjects", "termSourcedIds"}
)
"""Columns that hold lists, written `a,b` in one quoted cell."""
LARGEST = 4 * 1024**3
"""Bytes of one file; a zip that unpacks to more is refused."""


@dataclass(frozen=True, slots=True)
class Contract:
    """What the CSV binding of one version promises: the files read, their columns and the required ones."""

    files: Mapping[str, Mapping[str, Sequence[str]]]
    optional_files: frozenset[str]
    others: frozenset[str]


@cache
def contract(version: Version) -> Contract:
    text = files("sis_pipeline.providers.mappings").joinpath("oneroster_csv_contract.yaml").read_text(encoding="utf-8")
    part: dict[str, Any] = yaml.safe_load(text)[version]
    return Contract(part["files"], frozenset(part["optional_files"]), frozenset(part["others"]))


@dataclass(frozen=True)
class Bundle:
    """One CSV set on disk. Nothing is opened before it is asked for; every method may raise ConfigError (no such set)
    or ContractError (not what the binding allows)."""

    path: Path
    version_setting: Version | None = None

    @cached_property
    def members(self) -> dict[str, str]:
        """File name without `.csv` -> where it is: in the folder, or in the zip (one enclosing folder is tolerated)."""
        found = [place for place in self._places() if place.lower().endswith(".csv")]
        known = {name.lower(): name for version in ("1.1", "1.2") for name in _all_names(version)}
        names = [known.get(stem.lower(), stem) for stem in (Path(place).stem for place in found)]
        twice = sorted(name for name, times in Counter(names).items() if times > 1)
        if twice:
            raise ContractError(
                f"Reading the CSV set {self.path.name}: {', '.join(twice)}.csv is there more than once.",
                code="contract.csv_damaged",
            )
        if not found:
            raise ConfigError(f"Reading the CSV set {self.path.name}: it holds no CSV file.", code="config.csv_missing")
        return dict(zip(names, found, strict=True))

    def read(self, name: str) -> bytes:
        """The bytes of one file; a zip proves them by its checksum."""
        place = self.members[name]
        if not self.is_zip:
            return (self.path / place).read_bytes()
        try:
            with zipfile.ZipFile(self.path) as archive:
                if archive.getinfo(place).file_size > LARGEST:
                    raise ContractError(
                        f"Reading {place} of {self.path.name}: it unpacks to more than {LARGEST} bytes.",
                        code="contract.csv_damaged",
                    )
                return archive.read(place)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise ContractError(
                f"Reading {place} of {self.path.name}: the zip is damaged, cut or encrypted ({type(error).__name__}).",
                code="contract.csv_damaged",
                advice="Have the set delivered again; nothing of this one was used.",
            ) from None

    @cached_property
    def is_zip(self) -> bool:
        return self.path.is_file()

    @cached_property
    def manifest(self) -> dict[str, str]:
        """propertyName -> value; empty where the set has none (it is optional before 1.1 and often left out)."""
        if MANIFEST not in self.members:
            return {}
        header, rows = _parse(self.read(MANIFEST), f"{MANIFEST}.csv")
        if [column.strip() for column in header[:2]] != ["propertyName", "value"]:
            raise ContractError(
                "Reading manifest.csv: its columns must be propertyName and value.", code="contract.csv_manifest"
            )
        return {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}

    @cached_property
    def version(self) -> Version:
        """As set, else as the manifest says, else by what only 1.2 has (roles.csv)."""
        said = self.version_setting or self.manifest.get("oneroster.version")
        if said not in (None, "1.1", "1.2"):
            raise ConfigError(
                f"Reading manifest.csv: OneRoster version {said} is not supported; 1.1 and 1.2 are.",
                code="config.csv_version",
            )
        if said is not None:
            return "1.2" if said == "1.2" else "1.1"
        return "1.2" if "roles" in self.members else "1.1"

    @property
    def quotes_formulas(self) -> bool:
        """True for our own exports: an apostrophe before what would be a formula belongs to the file, not to the value."""
        return self.manifest.get("source.systemName") == SYSTEM

    @property
    def delta(self) -> bool:
        """True if any file holds changes only: nothing may then be concluded from what is not in the set."""
        return any(self.manifest.get(f"file.{name}") == "delta" for name in contract(self.version).files)

    @cached_property
    def names(self) -> list[str]:
        """The files to read, in the binding's order. A file that the manifest promises must be there; one that a complete
        roster needs may be missing only from a delta."""
        promised = contract(self.version)
        present = [name for name in promised.files if name in self.members and self._mode(name) != "absent"]
        missing = [
            name for name in promised.files if name not in self.members and self._mode(name) in {"bulk", "delta"}
        ]
        if missing:
            raise ContractError(
                f"Reading the CSV set {self.path.name}: manifest.csv promises {_listed(missing)}.",
                code="contract.csv_incomplete",
            )
        needed = [name for name in promised.files if name not in promised.optional_files and name not in present]
        if needed and not self.delta:
            raise ContractError(
                f"Reading the CSV set {self.path.name}: {_listed(needed)} missing, and without it no roster is complete.",
                code="contract.csv_incomplete",
            )
        return present

    def notes(self) -> Iterator[str]:
        """What a person should know: unknown files, extra columns, encodings other than UTF-8."""
        promised = contract(self.version)
        known = set(promised.files) | promised.others
        unknown = sorted(name for name in self.members if name not in known)
        if unknown:
            yield f"Not part of OneRoster {self.version} and not read: {_listed(unknown)}."
        for name in self.names:
            body = self.read(name)
            encoding = encoding_of(body, f"{name}.csv")
            if encoding not in {"utf-8", "utf-8-sig"}:
                yield f"{name}.csv is not UTF-8; it was read as {encoding}."
            extra = [
                column
                for column in header_of(body, name, self.version)
                if column not in promised.files[name]["columns"]
            ]
            if extra:
                yield f"{name}.csv has columns beyond the standard: {', '.join(extra)}."

    def _mode(self, name: str) -> str | None:
        mode = self.manifest.get(f"file.{name}")
        if mode not in {None, "bulk", "delta", "absent"}:
            raise ContractError(
                f"Reading manifest.csv: file.{name} must be bulk, delta or absent.", code="contract.csv_manifest"
            )
        return mode

    def _places(self) -> list[str]:
        if self.path.is_dir():
            return sorted(entry.name for entry in self.path.iterdir() if entry.is_file())
        if not self.path.is_file():
            raise ConfigError(
                f"Reading the CSV set {self.path.name}: no such folder or zip.",
                code="config.csv_missing",
                advice="Set `path` to the folder or .zip that holds the set, readable by the pipeline.",
            )
        try:
            with zipfile.ZipFile(self.path) as archive:
                return [
                    info.filename
                    for info in archive.infolist()
                    if not info.is_dir() and "__MACOSX" not in info.filename
                ]
        except zipfile.BadZipFile:
            raise ContractError(
                f"Reading the CSV set {self.path.name}: it is not a whole zip file.",
                code="contract.csv_damaged",
                advice="It may still have been uploading, or was cut; have it delivered again. Nothing of it was used.",
            ) from None


@dataclass(frozen=True)
class WholeFile(Pager):
    """Reads one file of a set as one page; no call is made."""

    bundle: Bundle
    name: str

    def pages(self, send: Send, request: Request, decode: Any) -> Iterator[Page]:  # noqa: ARG002
        body = self.bundle.read(self.name)
        header_of(body, self.name, self.bundle.version)
        yield Page(1, body, decode(body), end=End.WHOLE_FILE if self._proven(body) else End.UNPROVEN)

    def calls_for(self, rows: int) -> int:  # noqa: ARG002
        return 0

    def _proven(self, body: bytes) -> bool:
        """A zip has checksums. A bare file that stops without a line break may have been cut inside its last value."""
        return self.bundle.is_zip or _text(body, self.name)[0].endswith(("\n", "\r"))


def encoding_of(body: bytes, name: str) -> str:
    """utf-8-sig or utf-16 by their marks, utf-16 by its NULs, else UTF-8 if it is, else Windows-1252."""
    if body.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in body[:200]:
        return "utf-16-le" if body[1:2] == b"\0" else "utf-16-be"
    for encoding in ("utf-8", "cp1252"):
        try:
            body.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    raise ContractError(
        f"Reading {name}: it is neither UTF-8, UTF-16 nor Windows-1252 text.", code="contract.csv_damaged"
    )


def header_of(body: bytes, name: str, version: Version) -> list[str]:
    """The header, held against the contract. Raises ContractError for a missing or a duplicate column."""
    header, _ = _parse(body, f"{name}.csv")
    twice = sorted(column for column, times in Counter(header).items() if times > 1 and column)
    if twice:
        raise ContractError(
            f"Reading {name}.csv: column {', '.join(twice)} is there more than once.", code="contract.csv_columns"
        )
    missing = [column for column in contract(version).files[name]["required"] if column not in header]
    if missing:
        raise ContractError(
            f"Reading {name}.csv: required column {', '.join(missing)} is missing (OneRoster {version}).",
            code="contract.csv_columns",
            advice="Names are case-sensitive. Have the export corrected, or set `version` if it is of another version.",
        )
    return [column for column in header if column]


def records_of(body: bytes, name: str) -> list[Record]:
    """The rows of one file by column, everything text, `NA` and leading zeros included; an empty cell is None.

    A last line with too few cells means the file was cut: ContractError. Any other line whose number of cells differs
    can't be trusted cell by cell; it keeps its id only, so that it is quarantined and counted.
    """
    header, lines = _parse(body, f"{name}.csv")
    if "sourcedId" not in header:
        raise ContractError(f"Reading {name}.csv: required column sourcedId is missing.", code="contract.csv_columns")
    rows = [row for row in lines if row]
    if rows and len(rows[-1]) < len(header):
        raise ContractError(
            f"Reading {name}.csv: its last line has {len(rows[-1])} of {len(header)} columns, so the file was cut.",
            code="contract.csv_columns",
            advice="Have the set delivered again; nothing of this one was used.",
        )
    width = _width(header, rows)
    return [_record(header, row, width) for row in rows]


def without_quotes(record: Record) -> Record:
    """A record of a set that quotes formulas, with its true values; a list was quoted as one text."""
    return {
        column: [unquoted(value[0]), *value[1:]] if isinstance(value, list) else value and unquoted(value)
        for column, value in record.items()
    }


def _width(header: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """How many cells a good row has: as many as the header, or as all rows that end in the same empty cells."""
    widths = {len(row) for row in rows}
    padded = len(widths) == 1 and not any(any(row[len(header) :]) for row in rows)
    return max(widths) if padded else len(header)


def _record(header: Sequence[str], row: Sequence[str], width: int) -> Record:
    if len(row) != width:
        named = dict(zip(header, row, strict=False)).get("sourcedId") or None
        return dict.fromkeys(filter(None, header)) | {"sourcedId": named}
    return {column: _cell(column, cell) for column, cell in zip(header, row, strict=False) if column}


def _cell(column: str, cell: str) -> str | list[str] | None:
    if column in LISTS and cell:
        return [part.strip() for part in cell.split(",")]
    return cell or None


def _parse(body: bytes, name: str) -> tuple[list[str], Iterator[list[str]]]:
    text, _ = _text(body, name)
    if "\0" in text:
        raise ContractError(
            f"Reading {name}: it holds NUL characters, so it is not a text file.", code="contract.csv_damaged"
        )
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = _strict(reader, name)
    header = next(rows, None)
    if not header:
        raise ContractError(
            f"Reading {name}: it is empty; even a file without rows has a header.", code="contract.csv_damaged"
        )
    return [column.strip() for column in header], rows


def _strict(reader: Iterator[list[str]], name: str) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error:
        line = getattr(reader, "line_num", 0)
        raise ContractError(
            f"Reading {name}: the quotes do not pair up near line {line}; the file is cut or not CSV.",
            code="contract.csv_damaged",
            advice="Have the set delivered again; nothing of this one was used.",
        ) from None


def _text(body: bytes, name: str) -> tuple[str, str]:
    encoding = encoding_of(body, name)
    try:
        return body.decode(encoding), encoding
    except UnicodeDecodeError:
        raise ContractError(
            f"Reading {name}: it is marked as {encoding} but is not.", code="contract.csv_damaged"
        ) from None


def _all_names(version: Version) -> Iterator[str]:
    promised = contract(version)
    yield from promised.files
    yield from promised.others


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"{name}.csv" for name in names)
