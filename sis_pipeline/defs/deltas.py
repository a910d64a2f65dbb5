"""When a sync may read only what changed, and what a full reading then shows of what that had missed. No Dagster in here.
How changes are asked for is the providers', how they are laid over what was read before `providers.layers`'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sis_pipeline.providers.base import HttpSettings, Plan, Provider
from sis_pipeline.providers.reading import Reading
from sis_pipeline.roster.drift import Drift, drift
from sis_pipeline.store.snapshots import Snapshot, SnapshotStore

FULL_TAG = "sis/full"
"""The run tag that asks for a full reading, whatever the settings say, or a full merge; any value but `false`."""

SLACK = timedelta(hours=12)
"""By how much a full reading may come early: else a nightly sync that begins a minute sooner than the last one does
would be a day late."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a sync reads: what changed since `chain`, a full reading and the deltas built on it, or everything.

    `why`: why everything, where the settings ask for deltas; else empty.
    """

    chain: tuple[Snapshot, ...] = ()
    why: str = ""

    @property
    def head(self) -> Snapshot:
        """The newest reading of the chain."""
        return self.chain[-1]


def choose(provider: Provider, chain: Sequence[Snapshot], settings_hash: str, *, full: bool) -> Way:
    """How to read, by the settings, by what `chain` is worth, and by whether a full reading was asked for."""
    settings = provider.settings
    if not isinstance(settings, HttpSettings) or settings.reads == "full":
        return Way()
    age = timedelta(days=settings.full_read_days)
    findings = (
        (full, "it was asked for"),
        (not provider.capabilities.delta, "this system can't be asked for changes"),
        (not chain, "there is no complete reading yet that changes could be laid over"),
        (any(one.settings_hash != settings_hash for one in chain), "the settings were changed since the last one"),
        (any(one.age > age - SLACK for one in chain[:1]), f"the last one was {settings.full_read_days} days ago"),
    )
    why = next((reason for found, reason in findings if found), "")
    return Way(why=why) if why else Way(tuple(chain))


def unfit(plan: Plan, way: Way, now: datetime | None) -> str:
    """Why the changes that a plan asks for can't be laid over what was read before; empty where they can.

    `now`: the source's own time, None where it does not say.
    """
    watermark = way.head.watermark
    if now is not None and watermark is not None and now < watermark:
        return "the system's clock has gone back since the last reading"
    if {resource.name for resource in plan.resources} != set(way.chain[0].evidence):
        return "the system has other collections than at the last one"
    return ""


def against(way: Way, changes: Sequence[Reading]) -> list[Reading]:
    """What came of the changes, seen beside the readings they build on: a collection that those had and that is refused
    now may have changed unseen."""
    had = {name for before in way.chain for name, reading in before.evidence.items() if reading["skipped"] is None}
    return [
        replace(one, complete=False, reason=f"{one.reason}, although it was before")
        if one.skipped is not None and one.resource in had
        else one
        for one in changes
    ]


# --- what deltas had missed --------------------------------------------------------------------------------------


def measure(store: SnapshotStore, full: Snapshot) -> dict[str, Any] | None:
    """What the deltas before a complete reading had missed, as snapshots.drift keeps it; None where there were none,
    or none is kept any more."""
    last = store.head(full.integration, full.school_year, before=full)
    if last is None or last.base_snapshot_id is None or last.watermark is None or last.roster_expired_at is not None:
        return None  # what is no longer kept can't be compared with
    return {
        "deltas": len(store.chain(last)) - 1,
        "last_delta": last.snapshot_id,
        "watermark": last.watermark.isoformat(),
        "entities": {entity: asdict(_of_entity(store, entity, last, full, last.watermark)) for entity in full.rows},
    }


def _of_entity(store: SnapshotStore, entity: str, last: Snapshot, full: Snapshot, watermark: datetime) -> Drift:
    if last.roster_hash == full.roster_hash:
        return Drift(full.rows[entity])
    aside = store.read_quarantine(full, entity)
    return drift(
        store.read_roster(last, entity),
        store.read_roster(full, entity),
        watermark=watermark,
        set_aside=set(aside["sis_id"].drop_nulls()) if "sis_id" in aside.columns else set(),
    )


def total(measured: Mapping[str, Any], count: str) -> int:
    return sum(int(entity[count]) for entity in measured["entities"].values())


def drift_in_words(measured: Mapping[str, Any]) -> str:
    """One sentence about what the deltas had missed."""
    deltas, rows = measured["deltas"], total(measured, "rows")
    missed = ", ".join(
        f"{entity} {counts['missed']:,}" for entity, counts in measured["entities"].items() if counts["missed"]
    )
    later = total(measured, "added") + total(measured, "changed") - total(measured, "missed")
    found = f"{total(measured, 'missed'):,} of {rows:,} rows" + (f" ({missed})" if missed else "")
    return (
        f"{deltas} {'delta' if deltas == 1 else 'deltas'} had missed {found}; {total(measured, 'removed'):,} rows are gone "
        f"without a tombstone, and {later:,} others differ, of which {total(measured, 'undated'):,} have no modified time."
    )
