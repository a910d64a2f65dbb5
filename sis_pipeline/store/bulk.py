"""Moving whole frames between Polars and PostgreSQL: binary COPY in, CSV COPY out, and writing only what differs.
Which rows belong in a table, and when, is decided by the callers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import polars as pl
import psycopg
import pyarrow as pa
import pyarrow.csv as pacsv
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from sis_pipeline.connect.errors import DataError, InternalError
from sis_pipeline.db.tables import SCHEMA, metadata
from sis_pipeline.roster import model
from sis_pipeline.roster.frames import ARROW_TYPES, POLARS_DTYPES, is_of, polars_schema, rows_in_common, without_rows
from sis_pipeline.store import copy_format

TOUCHED = ("changed_at", "last_seen")
"""Columns that say when a row was last written; stamped on the rows a statement touches and on no other."""
PARSED_AT_ONCE = 32 * 1024 * 1024
"""Bytes of CSV that are gathered before they become a frame: PostgreSQL sends each row by itself."""
Scope = Mapping[str, object]
"""Column -> the value that every row of the scope has."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What a write did, in rows."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    unchanged: int = 0

    @property
    def written(self) -> int:
        return self.inserted + self.updated + self.deleted

    def __add__(self, other: Applied) -> Applied:
        return Applied(
            self.inserted + other.inserted,
            self.updated + other.updated,
            self.deleted + other.deleted,
            self.unchanged + other.unchanged,
        )


def apply(
    connection: Connection,
    table: model.Table,
    frame: pl.DataFrame,
    *,
    scope: Scope,
    delete_absent: bool,
    keep: Callable[[pl.DataFrame], object] | None = None,
    there: pl.DataFrame | None = None,
) -> Applied:
    """Make the rows of `scope` equal to `frame`, writing only those that differ; jsonb is compared as jsonb.

    `frame`: exactly the table's columns. Rows of the scope that the frame lacks are deleted only if `delete_absent`.
    The rows of the scope are read first, unless the caller knows what is `there`, so that only those that differ travel to
    PostgreSQL; where none does, nothing is locked or written. `keep` is called before each statement with the rows that will differ, as they
    are: the table's columns, of a new row the key only, and `existed`. Raises DataError for values that PostgreSQL can't hold and InternalError for a frame
    that is not of the table or not of the scope.
    """
    _check(table, frame, scope)
    with _words(table.name, frame.height):
        if keep is None and there is None and _is_empty(connection, table, scope):
            copy_in(connection, _target(table), _kinds(table), frame)
            return Applied(inserted=frame.height)
        fresh, replaced = differences(frame, read(connection, table, scope) if there is None else there)
        gone = replaced.join(fresh, on=list(table.key), how="anti") if delete_absent else replaced.clear()
        if fresh.is_empty() and gone.is_empty():
            return Applied(unchanged=frame.height)
        inserted = updated = deleted = 0
        if fresh.height:
            with _staged(connection, table, fresh, "fresh") as stage:
                if keep is not None:
                    keep(_differing(connection, table, stage))
                updated = _count(connection, _update(table, stage))
                inserted = _count(connection, _insert(table, stage))
        if gone.height:
            if keep is not None:
                keep(gone.with_columns(existed=pl.lit(value=True)))
            with _staged(connection, table, gone.select(table.key), "gone") as stage:
                deleted = _count(connection, _delete(table, stage))
    return Applied(inserted, updated, deleted, frame.height - inserted - updated)


def append(connection: Connection, table: model.Table, frame: pl.DataFrame, *, scope: Scope) -> Applied:
    """Add the rows whose key is not there yet; rows that are there stay as they are. Raises as `apply`."""
    _check(table, frame, scope)
    if frame.is_empty():
        return Applied()
    with _words(table.name, frame.height):
        if _is_empty(connection, table, scope):
            copy_in(connection, _target(table), _kinds(table), frame)
            return Applied(inserted=frame.height)
        with _staged(connection, table, frame, "fresh") as stage:
            inserted = _count(connection, _insert(table, stage))
    return Applied(inserted=inserted, unchanged=frame.height - inserted)


def read_named(
    connection: Connection, table: model.Table, column: str, values: Sequence[str], *, scope: Scope
) -> pl.DataFrame:
    """The rows of a scope whose uuid column has one of `values`, as `apply` hands them to `keep`."""
    named = (
        f'select t.*, true as existed from {_target(table)} t where t."{column}" = any(%s::uuid[]) and {_where(scope)}'
    )
    return copy_out(connection, named, _kinds_kept(table), [list(values), *scope.values()])


def delete(connection: Connection, table: model.Table, column: str, values: Sequence[str], *, scope: Scope) -> int:
    """Delete the rows of a scope whose uuid column has one of `values`; how many there were."""
    if not values:
        return 0
    statement = (
        f'delete from {_target(table)} t where t."{column}" = any(cast(:_values as uuid[])) and {_in_scope(scope)}'
    )
    return connection.execute(text(statement), {**scope, "_values": list(values)}).rowcount


def read(
    connection: Connection, table: model.Table, where: Scope, *, beside: Mapping[str, model.Kind] | None = None
) -> pl.DataFrame:
    """The rows of a table that have the given column values, typed as the model says, in no particular order.

    `beside`: further columns of the SQL table, with their kind (`first_seen`). jsonb comes as PostgreSQL writes it.
    """
    kinds = _kinds(table) | dict(beside or {})
    rows = f"select * from {_target(table)} t where {_where(where)}"
    return copy_out(connection, rows, kinds, list(where.values()))


def copy_out(
    connection: Connection, query: str, kinds: Mapping[str, model.Kind], parameters: Sequence[object]
) -> pl.DataFrame:
    """The columns of `kinds` of a query's rows, typed; the query has `%s` for its parameters."""
    shown = ", ".join(_out(name, kind) for name, kind in kinds.items())
    parts, rows = [], bytearray()
    with (
        _cursor(connection) as cursor,
        cursor.copy(f"copy (select {shown} from ({query}) t) to stdout (format csv)", list(parameters)) as copy,
    ):
        for row in copy:
            rows += row
            if len(rows) > PARSED_AT_ONCE:
                parts.append(_parse(bytes(rows), kinds))
                rows.clear()
    if rows or not parts:
        parts.append(_parse(bytes(rows), kinds))
    return pl.concat(parts)


def copy_in(connection: Connection, target: str, kinds: Mapping[str, model.Kind], frame: pl.DataFrame) -> None:
    """COPY a frame, column by column of `kinds`, into a table of those column types."""
    with _words(target, frame.height), _cursor(connection) as cursor:
        columns = ", ".join(f'"{name}"' for name in kinds)
        with cursor.copy(f"copy {target} ({columns}) from stdin (format binary)") as copy:
            for block in copy_format.encode(frame, kinds):
                copy.write(block)


def _check(table: model.Table, frame: pl.DataFrame, scope: Scope) -> None:
    if not is_of(frame, table):
        expected = polars_schema(table)
        wrong = {n: str(t) for n, t in frame.schema.items() if expected.get(n) != t} | {
            n: "missing" for n in table.names if n not in frame.columns
        }
        raise InternalError(
            f"The frame for {table.name} is not of that table: {wrong or 'columns in another order'}.",
            code="internal.frame",
        )
    if frame.is_empty():
        return
    outside = frame.filter(pl.any_horizontal(pl.col(name).ne_missing(value) for name, value in scope.items())).height
    if outside:
        raise InternalError(
            f"{outside} rows for {table.name} are outside of {', '.join(map(str, scope.values()))}.",
            code="internal.frame",
        )
    doubled = frame.height - frame.select(pl.struct(table.key).n_unique()).item()
    if doubled:
        raise InternalError(
            f"{doubled} rows for {table.name} repeat a key ({', '.join(table.key)}).", code="internal.frame"
        )
    _refuse_nul(table, frame)


def _refuse_nul(table: model.Table, frame: pl.DataFrame) -> None:
    texts = [column.name for column in table if POLARS_DTYPES[column.kind] == pl.String]
    found = frame.select(pl.col(texts).str.contains("\x00", literal=True).any())
    columns = [name for name, bad in zip(found.columns, found.row(0), strict=True) if bad]
    if columns:
        raise DataError(
            f"PostgreSQL can't hold NUL characters: {table.name} has some in {', '.join(columns)}.",
            code="data.unstorable",
        )


@contextmanager
def _words(name: str, rows: int) -> Iterator[None]:
    """A database error's text carries values (`DETAIL: Key (…)=(…)`, COPY's context): it is replaced by facts."""
    try:
        yield
    except (psycopg.Error, DBAPIError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        if not isinstance(cause, (psycopg.DataError, psycopg.IntegrityError)):
            raise
        column = f", column {cause.diag.column_name}" if cause.diag.column_name else ""
        raise DataError(
            f"Writing {rows} rows to {name} failed{column}: {type(cause).__name__} ({cause.sqlstate or 'no SQLSTATE'}).",
            code="data.unstorable",
        ) from None


@contextmanager
def _staged(connection: Connection, table: model.Table, frame: pl.DataFrame, name: str) -> Iterator[str]:
    """The frame as a temporary table with the target's column types and no constraints."""
    stage = f"{name}_{table.name}"
    kinds = {column: kind for column, kind in _kinds(table).items() if column in frame.columns}
    columns = ", ".join(f'"{column}"' for column in kinds)
    connection.execute(
        text(f"create temp table {stage} on commit drop as select {columns} from {_target(table)} with no data")
    )
    copy_in(connection, stage, kinds, frame)
    # the key columns only: sampling forty columns takes longer than the load
    connection.execute(text(f"analyze {stage} ({', '.join(table.key)})"))
    yield stage
    connection.execute(text(f"drop table {stage}"))


def _is_empty(connection: Connection, table: model.Table, scope: Scope) -> bool:
    """Whether a scope has no row, as before a first load: then there is nothing to compare with."""
    query = f"select not exists (select from {_target(table)} t where {_in_scope(scope)})"
    return bool(connection.scalar(text(query), dict(scope)))


def differences(frame: pl.DataFrame, there: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows of each that the other has not just so. jsonb that is spelled otherwise counts as another: PostgreSQL, which
    knows better, is asked about it."""
    same = rows_in_common(frame, there)
    return without_rows(frame, same["one"]), without_rows(there, same["other"])


def _kinds(table: model.Table) -> dict[str, model.Kind]:
    return {column.name: column.kind for column in table}


def _kinds_kept(table: model.Table) -> dict[str, model.Kind]:
    return {**_kinds(table), "existed": "bool"}


def _differing(connection: Connection, table: model.Table, stage: str) -> pl.DataFrame:
    """The rows that `_update` and `_insert` are about to write, as they are; see `apply`."""
    rest = [name for name in table.names if name not in table.key]
    columns = ", ".join(f'{"s" if name in table.key else "t"}."{name}"' for name in table.names)
    known = f't."{table.key[0]}" is not null'
    query = (
        f"select {columns}, {known} as existed from {stage} s left join {_target(table)} t on {_same_key(table)} "
        f"where not ({known}) or row({_of('t', rest)}) is distinct from row({_of('s', rest)})"
    )
    return copy_out(connection, query, _kinds_kept(table), [])


def _update(table: model.Table, stage: str) -> str:
    rest = [name for name in table.names if name not in table.key]
    stamps = [f"{name} = (select {SCHEMA}.clock())" for name in _sql_columns(table) if name in TOUCHED]
    assigned = [f'"{name}" = s."{name}"' for name in rest]
    return (
        f"update {_target(table)} t set {', '.join(assigned + stamps)} from {stage} s "
        f"where {_same_key(table)} and row({_of('t', rest)}) is distinct from row({_of('s', rest)})"
    )


def _insert(table: model.Table, stage: str) -> str:
    columns = ", ".join(f'"{name}"' for name in table.names)
    return (
        f"insert into {_target(table)} ({columns}) select {_of('s', table.names)} from {stage} s "
        f"where not exists (select from {_target(table)} t where {_same_key(table)})"
    )


def _delete(table: model.Table, stage: str) -> str:
    return f"delete from {_target(table)} t using {stage} s where {_same_key(table)}"


def _target(table: model.Table) -> str:
    return f'{SCHEMA}."{table.name}"'


def _sql_columns(table: model.Table) -> list[str]:
    return [column.name for column in metadata.tables[f"{SCHEMA}.{table.name}"].columns]


def _same_key(table: model.Table) -> str:
    return " and ".join(f't."{name}" = s."{name}"' for name in table.key)


def _of(alias: str, names: Sequence[str]) -> str:
    return ", ".join(f'{alias}."{name}"' for name in names)


def _in_scope(scope: Scope) -> str:
    return " and ".join(f't."{name}" = :{name}' for name in scope)


def _where(where: Scope) -> str:
    return " and ".join(f't."{name}" = %s' for name in where) or "true"


def _count(connection: Connection, statement: str) -> int:
    return connection.execute(text(statement)).rowcount


def _cursor(connection: Connection) -> psycopg.Cursor[Any]:
    """A cursor of the driver itself, in the same transaction: SQLAlchemy has no COPY."""
    return cast("psycopg.Connection[Any]", connection.connection.driver_connection).cursor()


def _out(name: str, kind: model.Kind) -> str:
    if kind == "timestamp":
        return f'(extract(epoch from t."{name}") * 1000000)::bigint as "{name}"'
    return f't."{name}"'


@cache
def _no_rows(kinds: tuple[tuple[str, model.Kind], ...]) -> pl.DataFrame:
    return pl.DataFrame(schema={name: POLARS_DTYPES[kind] for name, kind in kinds})


def _parse(body: bytes, kinds: Mapping[str, model.Kind]) -> pl.DataFrame:
    """PostgreSQL's CSV to types; an unquoted empty field is null, a quoted one is the empty text."""
    arrow = {**ARROW_TYPES, "timestamp": pa.int64()}  # microseconds, see _out
    if not body:
        return _no_rows(tuple(kinds.items()))
    parsed = pacsv.read_csv(
        pa.BufferReader(body),
        read_options=pacsv.ReadOptions(column_names=list(kinds)),
        parse_options=pacsv.ParseOptions(newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(
            column_types={name: arrow[kind] for name, kind in kinds.items()},
            null_values=[""],
            true_values=["t"],
            false_values=["f"],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    timestamps = [name for name, kind in kinds.items() if kind == "timestamp"]
    return pl.DataFrame(parsed).with_columns(pl.col(timestamps).cast(POLARS_DTYPES["timestamp"]))
