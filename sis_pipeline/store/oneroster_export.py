"""Writing a district's published roster as a OneRoster CSV set: one moment of the tables, private files, put in place whole.
What the rows say is `roster.oneroster_export`'s business."""

from __future__ import annotations

import os
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import polars as pl
from sqlalchemy import Engine

from sis_pipeline.connect.errors import ConfigError, ContractError, InternalError, TransientError
from sis_pipeline.db import audit
from sis_pipeline.providers.oneroster_bundle import MANIFEST, Bundle, contract
from sis_pipeline.roster.formulas import SYSTEM
from sis_pipeline.roster.model import MERGED
from sis_pipeline.roster.oneroster_export import TABLES, OneRosterSet, Version, oneroster_set
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.store import bulk, disclosure
from sis_pipeline.store.disclosure import Disclosing
from sis_pipeline.store.files import FILE_MODE, FOLDER_MODE, make_private, private
from sis_pipeline.store.integrations import check_district
from sis_pipeline.store.merged import published_epochs, scope_of

ZIP = "oneroster.zip"
PART = ".part"
FORMER = "former."
LEFTOVER_SECONDS = 24 * 3600
"""What a killed export left beside its target is deleted by the next one after this time."""
PLAIN_ZIP_BYTES = 1 << 30
"""A zip member that may be larger is written in the zip64 format, which old readers lack."""


@dataclass(frozen=True, slots=True)
class Exported:
    """An export that is in place. `rows`: by file. `left_out`: what of the roster has no place in the format.
    `disclosure`: its number in the record of disclosures."""

    path: Path
    district: str
    school_year: str
    version: Version
    epoch: int
    rows: Mapping[str, int]
    left_out: Mapping[str, int]
    disclosure: int = 0

    @property
    def form(self) -> str:
        return f"OneRoster {self.version} CSV"


def export_oneroster(
    engine: Engine,
    folder: Path,
    district: str,
    school_year: str,
    *,
    version: Version = "1.2",
    zipped: bool = False,
    preferred_names: bool = False,
    reason: str | None = None,
    recipient: str | None = None,
    actor: str | None = None,
) -> Exported:
    """Write the set into `folder`, or as `oneroster.zip` in it, in place of a former one; the audit log and the record of
    disclosures know of it first.

    The same published state gives the same bytes. Raises ConfigError where nothing of the school year is published or
    the folder holds anything but a former export of the district, and TransientError where it can't be written.
    """
    target = folder.expanduser().resolve()
    with _words(target):
        _check_target(target, check_district(district), zipped=zipped)
    epoch, published = _published(engine, district, school_year)
    made = oneroster_set(published, district, SchoolYear.parse(school_year), version, preferred_names=preferred_names)
    path = target / ZIP if zipped else target
    done = Exported(
        path,
        district,
        school_year,
        version,
        epoch,
        {name: frame.height for name, frame in made.files.items()},
        made.left_out,
    )
    with _words(target), _part_of(path) as part:
        (_write_zip if zipped else _write_folder)(part, _files(made, district, version))
        going = _disclosing(done, made, reason=reason, recipient=recipient, actor=actor)
        students = _students(made, published)
        done = replace(done, disclosure=_record(engine, done, going, students, preferred_names=preferred_names))
        _put_in_place(part, path)
        target.chmod(FOLDER_MODE)
    return done


def _published(engine: Engine, district: str, school_year: str) -> tuple[int, dict[str, pl.DataFrame]]:
    """The published epoch and tables, all of one moment: a publication meanwhile is seen whole or not at all."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        epochs = published_epochs(connection, district)
        if school_year not in epochs:
            years = ", ".join(sorted(epochs)) or "nothing"
            raise ConfigError(
                f"Exporting {district}: nothing is published for {school_year}; published is {years}.",
                code="config.not_published",
                advice="Choose a school year that is published, or run `sis sync` first.",
            )
        tables = {name: MERGED[name] for name in TABLES}
        return epochs[school_year], {
            name: bulk.read(connection, table, scope_of(table, district, school_year)) for name, table in tables.items()
        }


def _disclosing(
    done: Exported, made: OneRosterSet, *, reason: str | None, recipient: str | None, actor: str | None
) -> Disclosing:
    held = {
        name: [column.name for column in frame if column.null_count() < frame.height]
        for name, frame in made.files.items()
    }
    return Disclosing(
        district=done.district,
        school_year=done.school_year,
        epoch=done.epoch,
        form=done.form,
        destination=str(done.path),
        recipient=recipient,
        reason=reason,
        actor=actor or audit.current_actor(),
        fields={name: columns for name, columns in held.items() if columns},
        rows=done.rows,
    )


def _students(made: OneRosterSet, published: Mapping[str, pl.DataFrame]) -> pl.Series:
    """The students who are in the set; who has no place in the format is in none of its files."""
    ids = published["students"]["student_id"]
    return ids.filter(ids.is_in(made.files["users"]["sourcedId"].implode()))


def _record(engine: Engine, done: Exported, going: Disclosing, students: pl.Series, *, preferred_names: bool) -> int:
    """Before the files are in place: none may be found that the log does not know. The disclosure's number."""
    details = {
        "format": done.form,
        "school_year": done.school_year,
        "epoch": done.epoch,
        "to": going.destination,
        "rows": dict(done.rows),
        "left_out": dict(done.left_out),
        "preferred_names": preferred_names,
        "recipient": going.recipient,
        "reason": going.reason,
    }
    with engine.begin() as connection:
        number = disclosure.record(connection, going, students)
        told = {**details, "disclosure": number}
        audit.append(
            connection, "export.oneroster", done.school_year, district=done.district, actor=going.actor, details=told
        )
    return number


# --- where it goes ----------------------------------------------------------------------------------------------------


def _check_target(target: Path, district: str, *, zipped: bool) -> None:
    """Raises ConfigError unless the folder is absent, empty, or holds a former export of the district, alike zipped."""
    if not target.exists():
        return
    found = {entry.name for entry in target.iterdir() if not _is_part(entry.name)} if target.is_dir() else {target.name}
    if target.is_dir() and (not found or _is_former(target, found, district, zipped=zipped)):
        return
    raise ConfigError(
        f"Exporting {district}: {target} holds something other than a former export of this district.",
        code="config.export_target",
        advice="Name a folder that is empty or does not exist yet; nothing was written.",
    )


def _is_former(target: Path, found: set[str], district: str, *, zipped: bool) -> bool:
    allowed = (
        {ZIP} if zipped else {f"{name}.csv" for name in (*contract("1.1").files, *contract("1.2").files, MANIFEST)}
    )
    if not found <= allowed or not all((target / name).is_file() for name in found):
        return False
    try:
        said = Bundle(target / ZIP if zipped else target).manifest
    except (ConfigError, ContractError):
        return False
    return said.get("source.systemName") == SYSTEM and said.get("source.systemCode") == district


def _is_part(name: str) -> bool:
    return name.startswith(f".{ZIP}.") and name.endswith(PART)


@contextmanager
def _part_of(path: Path) -> Iterator[Path]:
    """A name beside the target to write to; nothing is left there, whatever happens."""
    make_private(path.parent)
    _drop_leftovers(path)
    part = _beside(path)
    try:
        yield part
    finally:
        _drop(part)


def _drop_leftovers(path: Path) -> None:
    """Process ids come back, in containers at once: a name of this process can only be a dead one's."""
    before = time.time() - LEFTOVER_SECONDS
    own = {_beside(path), _beside(path, FORMER)}
    for other in path.parent.iterdir():
        is_part = other.name.startswith(f".{path.name}.") and other.name.endswith(PART)
        if is_part and (other in own or other.stat().st_mtime < before):
            _drop(other)


def _beside(path: Path, what: str = "") -> Path:
    return path.with_name(f".{path.name}.{what}{os.getpid()}{PART}")


def _drop(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _put_in_place(part: Path, path: Path) -> None:
    """A file is replaced in one step. A folder in two, and the former one is back if the second fails."""
    if part.is_file() or not path.exists():
        part.replace(path)
        return
    former = _beside(path, FORMER)
    path.rename(former)
    try:
        part.rename(path)
    except OSError:
        former.rename(path)
        raise
    _drop(former)


@contextmanager
def _words(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else "unknown reason"
        raise TransientError(
            f"The export to {target} could not be written: {why}.",
            code="transient.export",
        ) from None


# --- files ------------------------------------------------------------------------------------------------------------


def _files(made: OneRosterSet, district: str, version: Version) -> dict[str, pl.DataFrame]:
    """File name -> its rows with the columns of the binding, in its order; what we have nothing for is empty."""
    promised = contract(version).files
    listed = {name: _fitted(made.files[name], name, about["columns"]) for name, about in promised.items()}
    return {f"{name}.csv": frame for name, frame in {MANIFEST: _manifest(district, version), **listed}.items()}


def _fitted(frame: pl.DataFrame, name: str, columns: Sequence[str]) -> pl.DataFrame:
    if unknown := sorted(set(frame.columns) - set(columns)):
        raise InternalError(f"{name}.csv has no column {', '.join(unknown)}.", code="internal.frame")
    return frame.select(
        pl.col(column) if column in frame.columns else pl.lit(None, pl.String).alias(column) for column in columns
    )


def _manifest(district: str, version: Version) -> pl.DataFrame:
    promised = contract(version)
    listed = dict.fromkeys(promised.files, "bulk") | dict.fromkeys(promised.others - {MANIFEST}, "absent")
    rows = {
        "manifest.version": "1.0",
        "oneroster.version": version,
        **{f"file.{name}": listed[name] for name in sorted(listed)},
        "source.systemName": SYSTEM,
        "source.systemCode": district,
    }
    return pl.DataFrame({"propertyName": list(rows), "value": list(rows.values())})


def _write_folder(part: Path, files: Mapping[str, pl.DataFrame]) -> None:
    part.mkdir(FOLDER_MODE)
    for name, frame in files.items():
        with open(part / name, "wb", opener=private) as file:
            _write_csv(frame, file)
            _on_disk(file)


def _write_zip(part: Path, files: Mapping[str, pl.DataFrame]) -> None:
    """Members have a fixed date, so that the same roster gives the same bytes."""
    with open(part, "wb", opener=private) as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, frame in files.items():
                member = zipfile.ZipInfo(name)
                member.compress_type = zipfile.ZIP_DEFLATED
                member.external_attr = FILE_MODE << 16
                with archive.open(member, "w", force_zip64=frame.estimated_size() > PLAIN_ZIP_BYTES) as entry:
                    _write_csv(frame, entry)
        _on_disk(file)


def _write_csv(frame: pl.DataFrame, file: IO[bytes]) -> None:
    """RFC 4180: lines end in CR LF, quotes are doubled, what holds a quote, comma or line break is quoted."""
    frame.write_csv(file, line_terminator="\r\n", quote_style="necessary")


def _on_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
