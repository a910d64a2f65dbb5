"""What a row of the fault table says, and how its tests write down what they did.
Running the folder and writing the table is the runner's business (`python -m sis_pipeline_tests.faults`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

FULL = "SIS_FAULTS_FULL"
"""Set by the runner: every row in its full count. Without it the same tests run in a small part of it."""

PROPERTY = "fault_row"
"""Under this name a test's report carries its row and counts, also out of a worker process."""

Count = Callable[..., int]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: the fault, what must hold in spite of it, and how often it was to be tried.

    `asked` is in the row's own `unit`. `scaled` says why fewer are run, where fewer are.
    """

    number: int
    fault: str
    holds: str
    asked: int
    unit: str
    scaled: str = ""


@dataclass(slots=True)
class Recorder:
    """What one test did for its row: the cases it ran, and the faults that really happened (a counter of the server,
    an exit code, a refusal that was caught), never those that were only meant to."""

    row: Row
    cases: int = 0
    faults: int = 0
    notes: list[str] = field(default_factory=list)

    def ran(self, cases: int = 1) -> None:
        self.cases += cases

    def happened(self, faults: int = 1) -> None:
        self.faults += faults

    def note(self, words: str) -> None:
        """A measured figure worth a place in the table."""
        self.notes.append(words)

    def as_property(self) -> Mapping[str, object]:
        """Plain values: reports cross process borders."""
        return {
            "number": self.row.number,
            "fault": self.row.fault,
            "holds": self.row.holds,
            "asked": self.row.asked,
            "unit": self.row.unit,
            "scaled": self.row.scaled,
            "cases": self.cases,
            "faults": self.faults,
            "notes": list(self.notes),
        }
