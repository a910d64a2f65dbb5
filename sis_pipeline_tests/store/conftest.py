"""A small district in literal frames, and merged rosters made by hand: what a merge decides is tested elsewhere."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from cryptography.fernet import Fernet
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.engine import URL

from sis_pipeline.connect.keys import Keys
from sis_pipeline.connect.vault import Vault
from sis_pipeline.db.engine import engine_for
from sis_pipeline.db.tables import integrations, metadata
from sis_pipeline.roster.contract import MergedRoster, MergeStats
from sis_pipeline.roster.frames import example_frame, pandas_dtypes
from sis_pipeline.roster.guard import Hold
from sis_pipeline.roster.model import ENTITIES, MERGED
from sis_pipeline.store.merged import MergeStore
from sis_pipeline.store.snapshots import Snapshot, SnapshotStore

YEAR = "2025-2026"


@pytest.fixture
def vault(database: Engine) -> Vault:
    """The database's own, with a new key."""
    return Vault.open(database, Keys([Fernet.generate_key().decode()]))


@dataclass(frozen=True)
class Read:
    """A reading as the reader reports it, as far as the store looks."""

    resource: str
    rows: int
    complete: bool = True
    reason: str = "the source's own count"


def uid(*names: object) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, "/".join(map(str, names))))


def student(number: int, **values: object) -> dict[str, object]:
    return {
        "district": "lincoln",
        "student_id": uid("student", number),
        "ssid": f"{number:010d}",
        "first_name": f"First{number}",
        "last_name": f"Last{number}",
        "birth_date": date(2010, 1, 1 + number % 28),
        "latest_school_year": YEAR,
        "near_match": False,
        "origins": f'{{"*": "lincoln-ps/{number}"}}',
        **values,
    }


def enrollment(number: int, **values: object) -> dict[str, object]:
    return {
        "district": "lincoln",
        "student_id": uid("student", number),
        "school_id": uid("school"),
        "school_year": YEAR,
        "entry_date": date(2025, 8, 18),
        "entry_date_source": "sis",
        "enrollment_type": "primary",
        "status": "active",
        "integration": "lincoln-ps",
        "sis_id": str(number),
        **values,
    }


def change(number: int, kind: str, operation_id: str, **values: object) -> dict[str, object]:
    return {
        "district": "lincoln",
        "change_id": uid("change", number, kind),
        "student_id": uid("student", number),
        "school_year": YEAR,
        "kind": kind,
        "after": '{"status": "active"}',
        "evidence": "new_record",
        "operation_id": operation_id,
        **values,
    }


def table(name: str, rows: Sequence[Mapping[str, object]]) -> pl.DataFrame:
    return example_frame(MERGED[name], rows)


def merged_roster(
    held: Sequence[Hold] = (), retired: Mapping[str, str] | None = None, **rows: list[dict]
) -> MergedRoster:
    """A merge result with the given rows; every other table is empty."""
    nothing = pl.DataFrame(schema={"integration": pl.String, "sis_id": pl.String})
    frames = {name: table(name, rows.get(name, [])) for name in MERGED}
    return MergedRoster(
        frames=frames,
        held=tuple(held),
        near_matches=nothing,
        cut_chains=nothing,
        recycled=pl.DataFrame(schema={"integration": pl.String, "sis_id": pl.String, "entity": pl.String}),
        retired=retired or {},
        retired_staff={},
        stats=MergeStats(
            students=frames["students"].height,
            matched=0,
            near_matches=0,
            conflicts=0,
            enrollments=frames["enrollments"].height,
            section_enrollments=0,
            changes={},
            held=sum(hold.removals for hold in held),
            recycled=0,
            other_year_rows=0,
            integrations={},
        ),
    )


def hold(fingerprint: str, *numbers: int) -> Hold:
    return Hold(
        fingerprint=fingerprint,
        kind="absence",
        entity="enrollments",
        scope="district",
        school_id=None,
        removals=len(numbers),
        active_before=100,
        limit=2,
        reason=f"{len(numbers)} of 100 enrollments would end at once; the limit is 2",
        keys=tuple((uid("student", number), uid("school"), "2025-08-18") for number in numbers),
    )


def pandas_frame(entity: str, rows: Sequence[Mapping[str, object]]):
    """Literal rows as `validate` hands them on."""
    return _pandas_frame(entity, tuple(tuple(row.items()) for row in rows))


@cache
def _pandas_frame(entity: str, rows: tuple[tuple[tuple[str, object], ...], ...]):
    """Most tests deliver the same schools, staff and sections; to type a frame of forty columns takes 10 ms."""
    typed = example_frame(ENTITIES[entity], [dict(row) for row in rows])
    return typed.to_pandas().astype(pandas_dtypes(ENTITIES[entity]))


def add_integration(engine: Engine, key: str, district: str = "lincoln", **values: object) -> None:
    """Straight into the table: which providers are installed does not matter here."""
    with engine.begin() as connection:
        connection.execute(
            integrations.insert().values(
                key=key, provider="powerschool", district=district, **{"settings": {}, **values}
            )
        )


def count(engine: Engine, query: str) -> int:
    with engine.connect() as connection:
        return connection.scalar(text(query))


SCHOOL = {"sis_id": "1", "name": "North", "school_number": "101", "kind": "school", "record_status": "active"}


def sis_student(sis_id: str, **values: object) -> dict[str, object]:
    return {
        "sis_id": sis_id,
        "first_name": "Ada",
        "last_name": "Null",
        "school_sis_id": "1",
        "record_status": "active",
        **values,
    }


def good_snapshot(
    store: SnapshotStore,
    integration: str = "lincoln-ps",
    verdict: str = "complete",
    year: str = YEAR,
    **rows: list[dict],
) -> Snapshot:
    """Read, keep, standardise and judge in one go."""
    rows = {"schools": [SCHOOL], "students": [sis_student("7")], **rows}
    writer = store.begin(integration, "powerschool", year)
    writer.add_page("students", {}, 1, b"[]", 0)
    completeness = "complete" if verdict == "rejected" else verdict
    snapshot = writer.finish([Read("students", len(rows["students"]))], completeness, 1, 0.1)
    frames = {entity: pandas_frame(entity, found) for entity, found in rows.items()}
    store.write_roster(snapshot, frames, {}, {})
    return store.set_verdict(snapshot.snapshot_id, verdict)


@pytest.fixture(scope="module")
def _module_database(postgres: URL, _template: str) -> Iterator[URL]:
    name = f"store_{uuid.uuid4().hex[:12]}"
    admin = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"create database {name} template {_template} strategy file_copy"))
    yield postgres.set(database=name)
    with admin.connect() as connection:
        connection.execute(text(f"drop database {name} with (force)"))
    admin.dispose()


@pytest.fixture(scope="module")
def _module_engine(_module_database: URL) -> Iterator[Engine]:
    engine = engine_for(_module_database)
    yield engine
    engine.dispose()


@pytest.fixture
def database_url(_module_database: URL, _module_engine: Engine) -> Iterator[URL]:
    """One database per module, emptied after each test: that takes milliseconds, a database of its own half a second."""
    yield _module_database
    with _module_engine.begin() as connection:
        _empty(connection)


@pytest.fixture
def database(database_url: URL, _module_engine: Engine) -> Engine:
    """An engine of the test's own, as to options and listeners, on the module's connections and compiled statements."""
    return _module_engine.execution_options()


EMPTY = "; ".join(
    (
        "set local session_replication_role = replica",  # some tables are insert-only
        "set local sis.publishing = 'on'",  # else it is noted who empties them
        *(f"delete from {name}" for name in metadata.tables),
    )
)


def _empty(connection: Connection) -> None:
    connection.connection.driver_connection.execute(EMPTY)  # in one go: it is done after each of hundreds of tests


@dataclass(frozen=True)
class Arranged:
    """Tables and data folder as something left them, and what that returned."""

    made: Any
    tables: Mapping[str, bytes]
    files: Mapping[Path, bytes]

    @classmethod
    def of(cls, made: Any, engine: Engine, folder: Path) -> Arranged:
        tables = {}
        with engine.begin() as connection:
            for name in metadata.tables:
                with _cursor(connection).copy(f"copy {name} to stdout (format binary)") as copy:
                    tables[name] = b"".join(copy)
        files = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        return cls(made, tables, files)

    def again(self, engine: Engine, folder: Path) -> None:
        with engine.begin() as connection:
            _empty(connection)
            for name, rows in self.tables.items():
                with _cursor(connection).copy(f"copy {name} from stdin (format binary)") as copy:
                    copy.write(rows)
        shutil.rmtree(folder, ignore_errors=True)
        for path, body in self.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(body)


def _cursor(connection: Connection) -> Any:
    return connection.connection.driver_connection.cursor()


@pytest.fixture(scope="module")
def _arranged() -> dict[str, Arranged]:
    return {}


@pytest.fixture
def once(database: Engine, tmp_path: Path, _arranged: dict[str, Arranged]) -> Callable[..., Any]:
    """What several tests of a module start from is merged and published for the first of them, and put back for the
    others: `once(name, make)` is what `make()` returned."""

    def arranged(name: str, make: Callable[[], Any]) -> Any:
        if name in _arranged:
            _arranged[name].again(database, tmp_path / "data")
        else:
            _arranged[name] = Arranged.of(make(), database, tmp_path / "data")
        return _arranged[name].made

    return arranged


@pytest.fixture
def snapshots(database: Engine, tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(database, str(tmp_path / "data"))


@pytest.fixture
def merges(database: Engine, snapshots: SnapshotStore) -> MergeStore:
    """A registered integration with one good snapshot, ready to merge."""
    add_integration(database, "lincoln-ps")
    good_snapshot(snapshots)
    return MergeStore(database, snapshots)
