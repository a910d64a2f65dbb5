"""What a merge of a school year is made of: per integration the newest good snapshot, how old it is, and why.
Reading anew, and judging whether a snapshot is good, happens elsewhere; nothing here is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.store.integrations import Integrations
from sis_pipeline.store.snapshots import SnapshotStore
from sis_pipeline.store.status import Status


@dataclass(frozen=True, slots=True)
class Input:
    """One integration's part in a school year. `verdict` and `age_hours` (since the reading began) are None where no
    good snapshot of that year is there. `fresh` is False where a newer one was due."""

    integration: str
    provider: str
    districts: tuple[str, ...]
    verdict: str | None
    age_hours: float | None
    status: Status
    reason: str | None
    fresh: bool

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "districts": list(self.districts)}

    def in_words(self) -> str:
        """`lincoln-ps: its last good snapshot is 41 h old (failing: …)`."""
        age = (
            "has no good snapshot"
            if self.age_hours is None
            else f"its last good snapshot is {self.age_hours:,.0f} h old"
        )
        joint = " " if self.age_hours is None else ": "
        why = self.status + (f": {self.reason}" if self.reason else "")
        return f"{self.integration}{joint}{age} ({why})"


def inputs_of(
    integrations: Integrations, snapshots: SnapshotStore, year: SchoolYear, *, current: SchoolYear, fresh_hours: float
) -> list[Input]:
    """Every integration that has a good snapshot of the year or, for the current year, should have one; by key.

    Other years than the current one are read when a person asks for it, so nothing of them is ever due.
    """
    good = {one.integration: one for one in snapshots.latest_good(year.key)}
    found = []
    for one in integrations.list():
        snapshot = good.get(one.key)
        if snapshot is None and year != current:
            continue
        age = snapshot.age if snapshot else None
        found.append(
            Input(
                integration=one.key,
                provider=one.provider,
                districts=tuple(sorted(one.districts)),
                verdict=snapshot.verdict if snapshot else None,
                age_hours=round(age / timedelta(hours=1), 2) if age is not None else None,
                status=one.status,
                reason=one.status_reason,
                fresh=year != current or (age is not None and age <= timedelta(hours=fresh_hours)),
            )
        )
    return found


def as_rows(inputs: Sequence[Input]) -> Mapping[str, Mapping[str, object]]:
    """The inputs as lines of a table, the oldest first."""
    oldest = sorted(inputs, key=lambda one: (one.age_hours is not None, -(one.age_hours or 0.0), one.integration))
    return {
        one.integration: {
            "district": ", ".join(one.districts),
            "verdict": one.verdict or "none",
            "age in hours": "" if one.age_hours is None else one.age_hours,
            "fresh": "yes" if one.fresh else "no",
            "status": one.status,
            "why": one.reason or "",
        }
        for one in oldest
    }
