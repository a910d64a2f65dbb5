"""`python -m sis_pipeline_tests.reference`: the merge and the reference on many nasty rosters, and on the benchmark's.
Prints how many were compared and every difference; ends with an error where there is one."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import polars as pl
from hypothesis import HealthCheck, Phase, given, seed, settings
from rich.console import Console

from sis_pipeline.roster.contract import DistrictInputs, Memory, MergedRoster
from sis_pipeline.roster.district import merge_district
from sis_pipeline.roster.guard import Hold
from sis_pipeline.roster.names import no_former_names
from sis_pipeline_tests.reference import benchmark, rosters
from sis_pipeline_tests.reference.comparing import differences
from sis_pipeline_tests.roster.rosters import former_names, merged_both_ways, publish

SHOWN = 20
"""Differences of a roster that are printed."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sis_pipeline_tests.reference", description=__doc__)
    parser.add_argument("--examples", type=int, default=0, help="nasty rosters of three days")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--students", type=int, nargs="*", default=[], help="student rows of the benchmark's roster")
    asked = parser.parse_args()
    if not (asked.examples or asked.students):
        parser.error("say what to compare: --examples, --students or both")
    console = Console()
    if asked.examples:
        _compare_examples(console, asked.examples, asked.seed)
        _compare_days(console, asked.examples, asked.seed)
    for students in asked.students:
        _compare_benchmark(console, students)


def _compare_examples(console: Console, examples: int, which: int) -> None:
    seen: Counter[str] = Counter()

    @seed(which)
    @_drawn(examples)
    @given(rosters.three_days())
    def compare(days: tuple[dict[str, Any], ...]) -> None:
        tables: dict[str, pl.DataFrame] = {}
        memory: Memory | None = None
        called = no_former_names()
        for day, as_of in zip(days, rosters.DAYS, strict=True):
            inputs = rosters.inputs(day, tables, as_of, memory=memory, former_names=called)
            merged = _compared(console, f"example {seen['merges'] // len(rosters.DAYS)}", inputs)
            before, tables, memory = tables, publish(tables, merged), merged.memory
            called = former_names(before, tables, called)
            seen.update(_happened(merged))

    compare()
    console.print(f"{examples:,} rosters of three days agree: {dict(sorted(seen.items()))}")


def _compare_days(console: Console, examples: int, which: int) -> None:
    """The incremental merge beside the whole one."""
    seen: Counter[str] = Counter()

    @seed(which)
    @_drawn(examples)
    @given(rosters.many_days())
    def compare(days: list[rosters.Day]) -> None:
        tables: dict[str, pl.DataFrame] = {}
        memory: Memory | None = None
        held: Sequence[Hold] = ()
        called = no_former_names()
        for day in days:
            merged = merged_both_ways(day.inputs(tables, held, memory=memory, former_names=called))
            seen.update(days=1, students=merged.stats.students, **{"merged anew": merged.stats.students_merged or 0})
            before, tables, memory, held = tables, publish(tables, merged), merged.memory, merged.held
            called = former_names(before, tables, called)

    compare()
    console.print(f"{examples:,} rosters are merged incrementally as they are whole: {dict(seen)}")


def _drawn(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


def _happened(merged: MergedRoster) -> dict[str, int]:
    return {
        "merges": 1,
        "students of several systems": merged.stats.matched,
        "near matches": merged.near_matches.height,
        "cut chains": merged.cut_chains.height,
        "recycled ids": merged.recycled.height,
        "students merged": len(merged.retired),
        "conflicts": merged.stats.conflicts,
        "values cleared": _named(merged, "cleared"),
        "values emptied": _named(merged, "emptied"),
        "attributes no longer supplied": sum(map(len, merged.stats.unsupplied.values())),
        "students with nothing published of it": merged.frames["students"]["origins"].str.contains(' cleared"').sum(),
        "removals held": merged.stats.held,
        **merged.stats.changes,
    }


def _named(merged: MergedRoster, column: str) -> int:
    """How many attributes a list column of the records names."""
    return int(merged.frames["student_sources"][column].str.json_decode(pl.List(pl.String)).list.len().sum())


def _compare_benchmark(console: Console, students: int) -> None:
    tables: dict[str, pl.DataFrame] = {}
    for day, name in enumerate(("first load", "3.7 % changed")):
        inputs = benchmark.inputs(students, day, tables)
        began = time.perf_counter()
        merged = _compared(console, f"{students:,} student rows, {name}", inputs)
        seconds = time.perf_counter() - began
        console.print(f"{students:,} student rows, {name}: agree in {seconds:.0f} s: {_happened(merged)}")
        tables = publish(tables, merged, benchmark.YEAR.key)


def _compared(console: Console, name: str, inputs: DistrictInputs) -> MergedRoster:
    merged = merge_district(inputs)
    found = differences(inputs, merged)
    if found:
        console.print(f"{name}: {len(found):,} differences", *found[:SHOWN], sep="\n", markup=False, soft_wrap=True)
        raise SystemExit(1)
    return merged


if __name__ == "__main__":
    main()
