"""What dlt's merge needs for the same pages: run by `peers` with a Python that has dlt, which the product does not need.
It imports nothing of ours, so that it says what a user of dlt would have."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dlt


def main(home: str, url: dict[str, str], pages: str, day: str) -> None:
    pipeline = dlt.pipeline(
        "peer",
        pipelines_dir=f"{home}/dlt",
        destination=dlt.destinations.postgres(url | {"drivername": "postgresql"}),
        dataset_name="dlt_peer",
    )
    collections = sorted({place.name for place in Path(pages, day).glob("*/*")})
    began = time.perf_counter()
    pipeline.run([_resource(Path(pages, day), name) for name in collections])
    print(time.perf_counter() - began)


def _resource(day: Path, name: str) -> Any:
    """One collection of all systems, as a table keyed by system and id; lists stay in one column."""
    return dlt.resource(
        _rows(day, name),
        name=name,
        primary_key=("system", "sourcedId"),
        write_disposition={"disposition": "merge", "strategy": "upsert"},
        max_table_nesting=0,
    )


def _rows(day: Path, name: str) -> Iterator[list[dict[str, Any]]]:
    for file in sorted(day.glob(f"*/{name}/*.json")):
        yield [{"system": file.parts[-3], **row} for row in json.loads(file.read_bytes())[name]]


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), *sys.argv[3:])
