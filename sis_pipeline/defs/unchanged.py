"""Recognising a reading that brought what the last one brought: its pages need not be decoded and validated again.
What is found about a snapshot is decided in `checks` and `loading`; here it is kept, and found again while it holds."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import sis_pipeline.roster
from sis_pipeline.defs.checks import EntityFinding, ReferenceFinding
from sis_pipeline.providers.base import Provider
from sis_pipeline.roster.validate import BORN_IN_THE_FUTURE
from sis_pipeline.store.files import digest
from sis_pipeline.store.snapshots import Snapshot, SnapshotStore
from sis_pipeline.store.sources import hash_of_sources

TOOLS = ("msgspec", "pandas", "pandera", "polars", "pyarrow")
"""Packages that have a say in what a text means."""


@dataclass(frozen=True)
class Findings:
    """What judging a snapshot found, as `loading.RosterLoad` has it."""

    entities: Mapping[str, EntityFinding]
    references: ReferenceFinding
    unknown_codes: Mapping[str, Mapping[str, int]]
    placeholders: Mapping[str, int]


def keep(store: SnapshotStore, judged_by: str, snapshot: Snapshot, findings: Findings) -> None:
    store.keep_findings(snapshot, {"judged_by": judged_by, **asdict(findings)})


def taken_over(store: SnapshotStore, judged_by: str, snapshot: Snapshot) -> tuple[Snapshot, Findings] | None:
    """The snapshot with the frames of the last good one, where both have the same pages and would be judged alike; and
    what was found then. None where it must be judged itself."""
    if snapshot.base_snapshot_id is not None:
        return None
    before = store.with_same_pages(snapshot)
    kept = store.findings(before) if before else None
    if before is None or kept is None or before.completeness != snapshot.completeness:
        return None
    if kept["judged_by"] != judged_by:
        return None
    entities = {name: EntityFinding(**one) for name, one in kept["entities"].items()}
    if any(reason.endswith(BORN_IN_THE_FUTURE) for one in entities.values() for reason in one.reasons):
        return None  # the future comes: the same row may be right today
    findings = Findings(entities, ReferenceFinding(**kept["references"]), kept["unknown_codes"], kept["placeholders"])
    return store.take_over(snapshot, before), findings


def judged_by(provider: Provider, kept_out: Collection[str]) -> str:
    """Hash of what decides about the same pages: the code that decodes and validates, the integration's settings, and
    the marks of the erased records that are kept out."""
    settings = provider.settings.model_dump(mode="json")
    return digest(json.dumps([_code(type(provider)), settings, sorted(kept_out)], sort_keys=True).encode())


@cache
def _code(provider: type[Provider]) -> str:
    """Hash of the source of the roster's rules and of everything in the provider's package, so that neither an upgrade
    nor a plugin under development is taken for what it was."""
    places = {Path(inspect.getfile(one)) for one in provider.__mro__ if one.__module__ != "builtins"}
    packages = {place.parent if (place.parent / "__init__.py").exists() else place for place in places}
    return hash_of_sources({*packages, Path(inspect.getfile(sis_pipeline.roster)).parent}, TOOLS)
