"""docs/failure-modes.md names every mode once, and the test that plays it."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "failure-modes.md"
MODES = range(1, 31)
ROW = re.compile(r"\| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|")


def played() -> dict[int, set[str]]:
    """Number of a mode -> the files whose tests play it."""
    found: dict[int, set[str]] = defaultdict(set)
    for file in sorted(HERE.glob("test_*.py")):
        for number in re.findall(r"^def test_(\d\d)_", file.read_text(), flags=re.MULTILINE):
            found[int(number)].add(file.name)
    return found


def test_every_mode_is_played() -> None:
    assert set(played()) == set(MODES)


def test_the_page_and_the_tests_agree() -> None:
    rows = [
        ROW.fullmatch(line) for line in PAGE.read_text().splitlines() if line.startswith("| ") and line[2].isdigit()
    ]
    assert None not in rows
    told = {
        int(row[1]): set(re.findall(r"\]\(\.\./sis_pipeline_tests/failure_modes/(\w+\.py)\)", row[4]))
        for row in rows
        if row
    }
    assert list(told) == list(MODES)
    assert told == played()
