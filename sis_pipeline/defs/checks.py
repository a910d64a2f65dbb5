"""What the asset checks say: whether an entity fulfils its schema, whether references lead somewhere, whether anyone was
lost. Counts and column names only, never a value; acting on a failed check is the assets' business."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import dagster as dg
import pandas as pd

from sis_pipeline.defs.deltas import drift_in_words, total
from sis_pipeline.defs.metadata import counts_table
from sis_pipeline.roster.model import ENTITIES
from sis_pipeline.roster.validate import Referenced, Validated, pandera_schema
from sis_pipeline.store.told import undecided_in_words

REFERENCES = "references"
DRIFT = "deltas_missed_nothing"
NOBODY_WAITS = "no_record_waits_for_a_person"
DISTRICTS_NAMED = 20
"""Districts of which a check says what waits."""
DRIFT_COUNTS = ("missed", "added", "changed", "removed", "undated")
"""The counts of roster.drift that the UI plots over time, as `deltas_<count>`."""
REJECTED_SHARE = 0.10
"""An entity of which more than this is rejected was not read right: the snapshot is rejected as a whole."""
SMALLEST = 20
"""Rows below which a share says nothing."""
CODE_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,20}")
NAMED_FROM = 3
"""Values below which an unknown code is not named: a single one may be free text about one student."""
NAMED_AT_MOST = 20
"""Unknown codes of a column beyond which none is named: that many are no enumeration."""
OTHER_CODES = "other"
NEVER_EMPTY = frozenset({"schools", "students", "enrollments"})
"""Entities without which there is no roster, where the source delivers them at all."""


@dataclass(frozen=True)
class EntityFinding:
    """One entity of a snapshot. `reasons`: rejected lines by `column: reason`. `problem`: why it fails, or None."""

    entity: str
    delivered: bool
    rows: int = 0
    good: int = 0
    rejected: int = 0
    duplicates: int = 0
    warnings: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class ReferenceFinding:
    """References over all entities. `removed`, `cleared`: rows by `entity.column`, the required and the optional."""

    removed: Mapping[str, int]
    cleared: Mapping[str, int]
    problems: Sequence[str]


def schema_check(entity: str) -> str:
    """The name of the check of one entity."""
    return f"{entity}_schema"


def entity_finding(
    entity: str, promised: Set[str], validated: Validated | None, frame: pd.DataFrame | None
) -> EntityFinding:
    """Judge one entity. `promised`: what the source delivers. `frame`: the rows that are left after quarantine."""
    if validated is None or frame is None:
        problem = "the source promises it and delivered nothing of it" if entity in promised & NEVER_EMPTY else None
        return EntityFinding(entity, delivered=False, problem=problem)
    return EntityFinding(
        entity,
        delivered=True,
        rows=validated.rows,
        good=len(frame),
        rejected=validated.rejected_rows,
        duplicates=validated.duplicates,
        warnings=len(validated.warnings),
        reasons=validated.reasons,
        problem=_problem(entity, promised, validated, frame),
    )


def _problem(entity: str, promised: Set[str], validated: Validated, frame: pd.DataFrame) -> str | None:
    if frame.empty and entity in NEVER_EMPTY and entity in promised:
        return "no good row is left of it"
    if too_many(validated.rejected_rows, validated.rows):
        return f"{validated.rejected_rows:,} of {validated.rows:,} rows were rejected, more than {REJECTED_SHARE:.0%}"
    return None if validated.proven else _broken_schema(entity, frame)


def too_many(bad: int, rows: int) -> bool:
    return rows >= SMALLEST and bad > REJECTED_SHARE * rows


def _broken_schema(entity: str, frame: pd.DataFrame) -> str | None:
    """What the good rows still break, by column and rule. pandera's own text holds the values, so it is not used."""
    from pandera.errors import SchemaErrors

    try:
        pandera_schema(ENTITIES[entity]).validate(frame, lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases.groupby(["column", "check"], dropna=False).size()
        return "; ".join(f"{column} breaks {check} in {count} rows" for (column, check), count in cases.items())
    return None


def reference_finding(validated: Mapping[str, Validated], referenced: Referenced) -> ReferenceFinding:
    """Judge the references between the entities: what was taken out, and whether it was too much of any."""
    removed: dict[str, int] = {}
    problems = []
    for entity, lines in referenced.removed.items():
        for column, rows in lines.groupby("column")["row"].nunique().items():
            removed[f"{entity}.{column}"] = int(rows)
        gone, rows = lines["row"].nunique(), len(validated[entity].frame)
        if too_many(gone, rows):
            problems.append(f"{entity}: {gone:,} of {rows:,} rows refer to something that is not there")
    cleared = {f"{one.entity}.{one.column}": len(one.rows) for one in referenced.nulled}
    return ReferenceFinding(removed, cleared, problems)


def unknown_codes(standard: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, int]]:
    """Per `entity.column`: how many values came with which code that the provider's tables do not know.

    A code is named only where it is the vendor's vocabulary beyond doubt: it looks like a code, comes several times, and
    is one of few. Everything else could be what somebody typed about a student, and is only counted.
    """
    found = {}
    for entity, frame in standard.items():
        for column, codes in frame.attrs.get("unknown_codes", {}).items():
            found[f"{entity}.{column}"] = _nameable(codes)
    return found


def _nameable(codes: Mapping[str, int]) -> dict[str, int]:
    few = len(codes) <= NAMED_AT_MOST
    named = {
        code: count
        for code, count in codes.items()
        if few and count >= NAMED_FROM and CODE_PATTERN.fullmatch(code) and code != OTHER_CODES
    }
    rest = sum(codes.values()) - sum(named.values())
    return named | ({OTHER_CODES: rest} if rest else {})


def roster_check_specs(asset: dg.AssetKey, partitions: dg.PartitionsDefinition) -> list[dg.AssetCheckSpec]:
    """The blocking checks of one provider's roster: one per entity, and one over all."""
    specs = [
        dg.AssetCheckSpec(
            schema_check(name),
            asset=asset,
            blocking=True,
            partitions_def=partitions,
            description=f"After quarantine every row of {name} fulfils its schema, and at most {REJECTED_SHARE:.0%} were rejected.",
        )
        for name in ENTITIES
    ]
    return [
        *specs,
        dg.AssetCheckSpec(
            DRIFT,
            asset=asset,
            partitions_def=partitions,
            description="A full reading finds nothing that the deltas before it should have brought. A warning only: the full reading has put it right.",
        ),
        dg.AssetCheckSpec(
            REFERENCES,
            asset=asset,
            blocking=True,
            partitions_def=partitions,
            description="Rows refer to rows that are there: every section enrollment has its student and section, every enrollment its school.",
        ),
    ]


def entity_result(asset: dg.AssetKey, finding: EntityFinding) -> dg.AssetCheckResult:
    metadata: dict[str, Any] = {
        "rows": finding.rows,
        "good": finding.good,
        "rejected": finding.rejected,
        "duplicates": finding.duplicates,
        "warnings": finding.warnings,
    }
    if finding.reasons:
        metadata["rejected_by"] = counts_table("column and reason", _lines(finding.reasons))
    what = finding.problem or ("fulfils its schema" if finding.delivered else "not delivered by this source")
    return dg.AssetCheckResult(
        passed=finding.problem is None,
        asset_key=asset,
        check_name=schema_check(finding.entity),
        description=f"{finding.entity}: {what}",
        metadata=metadata,
    )


def reference_result(asset: dg.AssetKey, finding: ReferenceFinding) -> dg.AssetCheckResult:
    metadata: dict[str, Any] = {"removed": sum(finding.removed.values()), "cleared": sum(finding.cleared.values())}
    if finding.removed:
        metadata["removed_by"] = counts_table("required reference", _lines(finding.removed))
    if finding.cleared:
        metadata["cleared_by"] = counts_table("optional reference", _lines(finding.cleared))
    return dg.AssetCheckResult(
        passed=not finding.problems,
        asset_key=asset,
        check_name=REFERENCES,
        description="; ".join(finding.problems) or "Every remaining reference leads somewhere.",
        metadata=metadata,
    )


def drift_result(asset: dg.AssetKey, measured: Mapping[str, Any] | None) -> dg.AssetCheckResult:
    """Judge what deltas had missed, see deltas.measure; None where there was nothing to compare."""
    metadata: dict[str, Any] = {}
    if measured is not None:
        metadata = {
            **{f"deltas_{count}": total(measured, count) for count in DRIFT_COUNTS},
            "deltas": measured["deltas"],
            "drift_by_entity": counts_table("entity", measured["entities"]),
        }
    return dg.AssetCheckResult(
        passed=measured is None or not total(measured, "missed"),
        asset_key=asset,
        check_name=DRIFT,
        severity=dg.AssetCheckSeverity.WARN,
        description="No deltas were read since the last full reading, or this is one."
        if measured is None
        else drift_in_words(measured),
        metadata=metadata,
    )


def waiting_result(asset: str, stats: Mapping[str, Mapping[str, Any]]) -> dg.AssetCheckResult:
    """Judge what waits for a person's word on who is who. `stats`: district -> those of its merge."""
    waiting = {district: words for district, one in stats.items() if (words := undecided_in_words(one))}
    counts = [it for one in stats.values() for it in one.get("undecided", {}).values()]
    named = " ".join(f"{district}: {words}" for district, words in islice(waiting.items(), DISTRICTS_NAMED))
    return dg.AssetCheckResult(
        passed=not waiting,
        asset_key=asset,
        check_name=NOBODY_WAITS,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{named} Whose a set aside record is, say `sis links distinct` (somebody new) and `sis links confirm` "
        "(the same person); a wrong state id is corrected in its SIS."
        if waiting
        else "No record waits.",
        metadata={name: sum(it.get(name, 0) for it in counts) for name in ("recycled", "cut_chains")},
    )


def _lines(counts: Mapping[str, int]) -> dict[str, dict[str, object]]:
    return {name: {"rows": count} for name, count in counts.items()}
