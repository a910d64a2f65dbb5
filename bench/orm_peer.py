"""What the usual loader needs for the same pages: an ORM that looks for each row, then adds or changes it, and commits every
200. Nothing of the product is used, so that both start from the same pages and end in PostgreSQL."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Text, create_engine
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column

A_COMMIT = 200
Row = dict[str, Any]


class Base(DeclarativeBase):
    """The tables of the collections, made from the fields of their first rows."""


def main(url: str, pages: str, day: str) -> None:
    models = {name: _model(name, next(_rows(Path(pages, "0"), name))) for name in _collections(Path(pages, "0"))}
    engine = create_engine(url)
    began = time.perf_counter()
    Base.metadata.create_all(engine)
    for name, model in models.items():
        remaining = _rows(Path(pages, day), name)
        while batch := list(islice(remaining, A_COMMIT)):
            with Session(engine) as session, session.begin():
                for row in batch:
                    _upsert(session, model, row)
    print(time.perf_counter() - began)


def _upsert(session: Session, model: type[Base], row: Row) -> None:
    found = session.get(model, (row["system"], row["sourced_id"]))
    if found is None:
        session.add(model(**row))
        return
    for name, value in row.items():
        setattr(found, name, value)


def _model(name: str, row: Row) -> type[Base]:
    columns = {
        field: mapped_column(Text if isinstance(value, str) else JSON, primary_key=field in {"system", "sourced_id"})
        for field, value in row.items()
    }
    return type(name, (Base,), {"__tablename__": f"orm_peer_{name.lower()}", **columns})


def _collections(day: Path) -> list[str]:
    return [name for name, _ in groupby(sorted(place.name for place in day.glob("*/*")))]


def _rows(day: Path, name: str) -> Iterator[Row]:
    for file in sorted(day.glob(f"*/{name}/*.json")):
        for row in json.loads(file.read_bytes())[name]:
            yield {"system": file.parts[-3]} | {_snake(field): value for field, value in row.items()}


def _snake(field: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", field).lower()


if __name__ == "__main__":
    main(*sys.argv[1:])
