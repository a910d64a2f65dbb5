"""Runs one roster through all stages at each size, asks `sis health`, and prints each stage beside its floor.
Quote the ratios, not the seconds: both sides of a ratio were measured in the same run on the same machine."""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import health, stages
from sis_pipeline.db import embedded
from sis_pipeline.roster.model import ENTITIES

FLOORS = {
    "decode": "floor: json",
    "publish": "floor: copy",
    "write merged": "floor: parquet",
    "snapshots": "floor: parquet",
}


def _print(students: int, timed: Mapping[str, tuple[float, float]]) -> None:
    table = Table(title=f"{students:,} student rows, three systems, {len(ENTITIES)} entities")
    for heading in ("stage", "seconds", "peak MiB", "ratio to its floor"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage, (seconds, peak) in timed.items():
        floor = FLOORS.get(stage)
        ratio = f"{seconds / timed[floor][0]:.1f} x {floor.removeprefix('floor: ')}" if floor else ""
        table.add_row(stage, f"{seconds:.2f}", f"{peak:,.0f}", ratio)
    own = {stage: seconds for stage, (seconds, _) in timed.items() if not stage.startswith("floor")}
    first = sum(seconds for stage, seconds in own.items() if "again" not in stage)
    again = own["merge again"] + own["publish again"]
    table.add_row(
        "first load",
        f"{first:.2f}",
        "",
        f"{first / sum(timed[floor][0] for floor in set(FLOORS.values())):.1f} x the floors",
    )
    table.add_row("nothing changed", f"{again:.2f}", "", f"{again / first:.0%} of the first load")
    Console().print(table)


def _print_health(answers: Sequence[health.Answered]) -> None:
    table = Table(title=f"sis health, {health.INTEGRATIONS} integrations (median of {health.ROUNDS})")
    for heading in ("calls in 24 hours", "seconds", "floor: python and its imports", "ratio to its floor"):
        table.add_column(heading, justify="right")
    for one in answers:
        row = (f"{one.calls:,}", f"{one.seconds:.2f}", f"{one.floor:.2f}", f"{one.seconds / one.floor:.1f} x")
        table.add_row(*row)
    Console().print(table)


@contextmanager
def _home() -> Any:
    with tempfile.TemporaryDirectory(prefix="sis-bench-", ignore_cleanup_errors=True) as home:
        Path(home).chmod(0o755)
        try:
            yield home
        finally:
            embedded.stop(Path(home) / "postgres")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--students", type=int, nargs="*", default=[10_000, 100_000], help="student rows over all systems"
    )
    parser.add_argument(
        "--calls", type=int, nargs="*", default=[500_000, 2_000_000], help="calls of a day that `sis health` looks at"
    )
    asked = parser.parse_args()
    for students in asked.students:
        with _home() as home, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            _print(students, pool.submit(stages.run, students, home).result())
    answers = []
    for calls in asked.calls:
        with _home() as home:
            answers.append(health.run(calls, home))
    _print_health(answers)


if __name__ == "__main__":
    main()
