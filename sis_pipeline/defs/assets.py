"""The assets: per provider what was read and what it is worth, then the merged and the published roster.
Each is a thin shell that runs a step and shows its counts; frames never pass between steps, only ids through the store."""

# No `from __future__ import annotations` here: Dagster reads the context's annotation and wants the class itself.

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import dagster as dg

from sis_pipeline.connect.source import Report
from sis_pipeline.defs import merging
from sis_pipeline.defs.checks import (
    NOBODY_WAITS,
    drift_result,
    entity_result,
    reference_result,
    roster_check_specs,
    waiting_result,
)
from sis_pipeline.defs.deltas import FULL_TAG
from sis_pipeline.defs.failures import RETRY, Trouble, explained, failure
from sis_pipeline.defs.holding import NO_HOLDS, holds_result
from sis_pipeline.defs.loading import RawLoad, RosterLoad, load_raw, load_roster
from sis_pipeline.defs.metadata import (
    OWNERS,
    bar_plot,
    counts_table,
    definition_metadata,
    entities_schema,
    numbers,
    sentences,
)
from sis_pipeline.defs.partitions import by_school_year, read_roster_key, roster_partitions
from sis_pipeline.defs.resources import ROSTER
from sis_pipeline.providers.base import Provider
from sis_pipeline.providers.reading import Reading
from sis_pipeline.roster.contract import PUBLICATION
from sis_pipeline.roster.model import ENTITIES, MERGED
from sis_pipeline.store.bulk import Applied
from sis_pipeline.store.freshness import Input, as_rows
from sis_pipeline.store.told import irregular_in_words, undecided_in_words, unsupplied_in_words, way_in_words

MERGED_ASSETS: dict[str, str] = {
    "merged_students": "students",
    "student_years": "student_years",
    "conflicts": "conflicts",
    "enrollment_changes": "enrollment_changes",
    "merged_staff": "staff",
    "merged_sections": "sections",
    "section_enrollments": "section_enrollments",
}
"""Asset -> the table it holds."""
PUBLISHED = "published_roster"
NOBODY_LOST = "every_district_merged"
ONE_PRIMARY = "one_primary_enrollment"
EVERY_PUBLISHED = "every_district_published"
ROWS_MATCH = "rows_match_the_merge"
INPUTS_FRESH = "inputs_are_fresh"
INPUTS_SHOWN = 100
"""Integrations listed in an asset's metadata, the oldest first: a state has thousands."""


def raw_key(provider: str) -> dg.AssetKey:
    return dg.AssetKey([provider, "raw_roster"])


def roster_asset_key(provider: str) -> dg.AssetKey:
    return dg.AssetKey([provider, "roster"])


def provider_assets(provider: type[Provider], years: dg.StaticPartitionsDefinition) -> list[dg.AssetsDefinition]:
    """`<provider>/raw_roster` and `<provider>/roster`."""
    partitions = roster_partitions(provider.name, years)
    return [_raw_asset(provider, partitions), _roster_asset(provider, partitions)]


def _raw_asset(provider: type[Provider], partitions: dg.MultiPartitionsDefinition) -> dg.AssetsDefinition:
    key = raw_key(provider.name)

    @dg.asset(
        key=key,
        partitions_def=partitions,
        group_name=provider.name,
        description=f"The pages {provider.title} sent for one integration and school year, as they were sent, with the proof that nothing is missing. Immutable; only a complete snapshot may imply that somebody left.",
        owners=OWNERS,
        kinds={"parquet", "http"},
        metadata={"sis/provider": provider.title, "sis/requests_per_minute": provider.requests_per_minute},
        required_resource_keys={ROSTER, provider.name},
        retry_policy=RETRY,
        check_specs=[
            dg.AssetCheckSpec(
                "complete",
                asset=key,
                partitions_def=partitions,
                description="Every resource is proven complete. A partial snapshot and one of changes are merged too, but withdraw nobody.",
            )
        ],
    )
    def raw_roster(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        with explained(context):
            integration, year = read_roster_key(context.partition_key)
            loaded = load_raw(
                getattr(context.resources, provider.name),
                integration,
                year,
                context.run.run_id,
                context.log.info,
                retry=context.op_execution_context.retry_number,
                full=_is_full(context),
            )
        return _raw_result(key, loaded)

    return raw_roster


def _is_full(context: dg.AssetExecutionContext) -> bool:
    return context.run.tags.get(FULL_TAG, "false") != "false"


def _raw_result(key: dg.AssetKey, loaded: RawLoad) -> dg.MaterializeResult:
    snapshot, rows = loaded.snapshot, {reading.resource: reading.rows for reading in loaded.readings}
    changes = snapshot.completeness == "delta"
    complete = snapshot.completeness == "complete" or (changes and not loaded.reasons)
    metadata: dict[str, Any] = {
        "dagster/row_count": sum(rows.values()),
        "snapshot_id": snapshot.snapshot_id,
        "completeness": snapshot.completeness,
        "path": snapshot.path,
        "pages": sum(reading.pages for reading in loaded.readings),
        "api_calls": loaded.calls,
        "token_calls": loaded.token_calls,
        "planned_calls": loaded.plan.calls,
        "throttled": loaded.throttled,
        "seconds": round(snapshot.seconds or 0.0, 3),
        "planned_seconds": round(loaded.planned_seconds, 1),
        "waited_seconds": round(loaded.waited_seconds, 3),
        **(_door_metadata(loaded.door) if loaded.door else {}),
        "bytes": snapshot.bytes or 0,
        "duplicates": sum(reading.duplicates for reading in loaded.readings),
        "resumed": snapshot.resumed,
        **({"changes_since": snapshot.since.isoformat()} if snapshot.since else {}),
        "kept_pages": sum(reading.kept for reading in loaded.readings),
        "plan": sentences([f"known from: {loaded.plan.basis.replace('_', ' ')}", *loaded.plan.notes]),
        "resources": counts_table(
            "resource",
            {reading.resource: _evidence(reading) for reading in loaded.readings},
        ),
        "plot": bar_plot("rows per resource", rows),
        **numbers("rows", rows),
    }
    return dg.MaterializeResult(
        asset_key=key,
        metadata=metadata,
        data_version=dg.DataVersion(snapshot.content_hash or snapshot.snapshot_id),
        check_results=[
            dg.AssetCheckResult(
                passed=complete,
                asset_key=key,
                check_name="complete",
                severity=dg.AssetCheckSeverity.WARN,
                description=_proof(changes=changes, complete=complete),
                metadata={"reasons": sentences(loaded.reasons)},
            )
        ],
    )


def _proof(*, changes: bool, complete: bool) -> str:
    if not complete:
        return "Not proven complete; nobody is withdrawn because of it."
    return "All changes came, by proof; nobody is withdrawn because of changes only." if changes else "Proven complete."


def _evidence(reading: Reading) -> dict[str, object]:
    """One resource's line in the proof of a snapshot: what came, what the source counted, and how the end was known."""
    return {
        "pages": reading.pages,
        "rows": reading.rows,
        "distinct": reading.distinct,
        "duplicates": reading.duplicates,
        "counted before": "" if reading.total_before is None else reading.total_before,
        "counted after": "" if reading.total_after is None else reading.total_after,
        "end": reading.end.value.replace("_", " ") if reading.skipped is None else "",
        "kept from before": reading.kept,
        "attempts": reading.attempts,
        "complete": "yes" if reading.complete else "no",
        "why": "; ".join(
            filter(None, [reading.reason, reading.restarted and f"read anew, because {reading.restarted}"])
        ),
    }


def _door_metadata(door: Report) -> dict[str, Any]:
    """How the system answered, and what all processes share about it after this reading."""
    limit = door.limit
    paused = f"; the system asked everybody to wait for another {limit.pushed:.0f} s" if limit and limit.pushed else ""
    breakers = [f"{one.key}: {one.state}, {one.failures} failures in a row" for one in door.breakers]
    return {
        "calls_by_status": {str(status or "no answer"): count for status, count in door.by_status.items()},
        "repeated_calls": door.repeated,
        **({"p50_ms": round(door.p50_ms, 1)} if door.p50_ms is not None else {}),
        **({"p95_ms": round(door.p95_ms, 1)} if door.p95_ms is not None else {}),
        "rate_limit": f"{limit.per_minute:g} a minute ({limit.key}){paused}"
        if limit and limit.per_minute
        else "not used",
        "breakers": sentences(breakers) if breakers else "closed",
    }


def _roster_asset(provider: type[Provider], partitions: dg.MultiPartitionsDefinition) -> dg.AssetsDefinition:
    key = roster_asset_key(provider.name)

    @dg.asset(
        key=key,
        partitions_def=partitions,
        deps=[raw_key(provider.name)],
        group_name=provider.name,
        description=f"The standard entities of one {provider.title} integration and school year, validated: bad rows are set aside with their reasons, a snapshot that fails a check is rejected and never merged.",
        owners=OWNERS,
        kinds={"pandas", "parquet"},
        metadata={"dagster/column_schema": entities_schema(ENTITIES)},
        required_resource_keys={ROSTER},
        retry_policy=RETRY,
        check_specs=roster_check_specs(key, partitions),
    )
    def roster(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        with explained(context):
            integration, year = read_roster_key(context.partition_key)
            loaded = load_roster(
                context.resources.roster,
                integration,
                year,
                context.run.run_id,
                context.log.info,
                full=_is_full(context),
            )
        for problem in loaded.failed:
            context.log.error(f"{integration} {year}: the snapshot is rejected. {problem}.")
        return _roster_result(key, loaded)

    return roster


def _roster_result(key: dg.AssetKey, loaded: RosterLoad) -> dg.MaterializeResult:
    delivered = {name: one for name, one in loaded.entities.items() if one.delivered}
    good = {name: one.good for name, one in delivered.items()}
    quarantined = {name: loaded.snapshot.quarantined.get(name, 0) for name in delivered}
    metadata: dict[str, Any] = {
        "dagster/row_count": sum(good.values()),
        "snapshot_id": loaded.snapshot.snapshot_id,
        "verdict": loaded.snapshot.verdict,
        "quarantined": sum(quarantined.values()),
        "references_cleared": sum(loaded.references.cleared.values()),
        "rows_per_entity": dg.MetadataValue.json(good),
        "quarantined_per_entity": dg.MetadataValue.json(quarantined),
        "problems": sentences(loaded.failed),
        "unknown_codes": sum(sum(codes.values()) for codes in loaded.unknown_codes.values()),
        "unknown_codes_per_column": dg.MetadataValue.json(loaded.unknown_codes),
        "placeholders_left_out": sum(loaded.placeholders.values()),
        "entities": counts_table(
            "entity",
            {
                name: {
                    "delivered": one.rows,
                    "good": one.good,
                    "quarantined": quarantined[name],
                    "duplicates": one.duplicates,
                    "warnings": one.warnings,
                }
                for name, one in delivered.items()
            },
        ),
        "plot": bar_plot("good rows per entity", good),
        **numbers("rows", good),
        **numbers("quarantined", quarantined),
    }
    return dg.MaterializeResult(
        asset_key=key,
        metadata=metadata,
        data_version=dg.DataVersion(loaded.snapshot.roster_hash or loaded.snapshot.snapshot_id),
        check_results=[
            *(entity_result(key, finding) for finding in loaded.entities.values()),
            drift_result(key, loaded.snapshot.drift),
            reference_result(key, loaded.references),
        ],
    )


def merge_assets(providers: Sequence[str], years: dg.StaticPartitionsDefinition) -> list[dg.AssetsDefinition]:
    """The merged assets, computed together, and the published roster."""
    return [_merged_assets(providers, years), _published_asset(years)]


def _merged_assets(providers: Sequence[str], years: dg.StaticPartitionsDefinition) -> dg.AssetsDefinition:
    deps = [dg.AssetDep(roster_asset_key(name), partition_mapping=by_school_year()) for name in providers]
    specs = [
        dg.AssetSpec(
            name,
            deps=deps,
            partitions_def=years,
            group_name="merged",
            description=f"{MERGED[table].about} Merged per district from the latest good snapshot of every integration.",
            owners=OWNERS,
            kinds={"polars", "parquet", "postgres"},
            metadata=definition_metadata(MERGED[table], f"sis.{table}"),
        )
        for name, table in MERGED_ASSETS.items()
    ]
    first = next(iter(MERGED_ASSETS))

    @dg.multi_asset(
        name="merge",
        specs=specs,
        partitions_def=years,
        can_subset=False,
        required_resource_keys={ROSTER},
        check_specs=[
            dg.AssetCheckSpec(
                NOBODY_LOST,
                asset=first,
                partitions_def=years,
                description="Every district with new snapshots was merged, and every active student record is linked to a student.",
            ),
            dg.AssetCheckSpec(
                NOBODY_WAITS,
                asset=first,
                partitions_def=years,
                description="No record is set aside because its id seems to be given to somebody else, and no records are kept apart that would be joined. A warning: a person decides.",
            ),
            dg.AssetCheckSpec(
                ONE_PRIMARY,
                asset=first,
                partitions_def=years,
                description="No student's enrollments overlap at one school, and none has two that one system calls primary. A warning only: one of them is published as primary.",
            ),
        ],
    )
    def merge(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        with explained(context):
            districts = merging.merge_districts(
                context.resources.roster,
                context.partition_key,
                context.run.run_id,
                context.log.info,
                whole=_is_full(context),
            )
            inputs = merging.merge_inputs(context.resources.roster, context.partition_key)
        for name, table in MERGED_ASSETS.items():
            checks = _merge_checks(first, districts) if name == first else []
            metadata = _merged_metadata(table, districts) | _inputs_metadata(inputs)
            yield dg.MaterializeResult(asset_key=name, metadata=metadata, check_results=checks)

    return merge


def _merged_metadata(table: str, districts: Sequence[merging.DistrictMerge]) -> dict[str, Any]:
    rows = {one.district: one.rows.get(table, 0) for one in districts}
    metadata: dict[str, Any] = {
        "dagster/row_count": sum(rows.values()),
        "districts": len(districts),
        "districts_merged": sum(one.merged for one in districts),
        "districts_failed": sum(one.trouble is not None for one in districts),
        "by_district": counts_table(
            "district",
            {
                one.district: {
                    "rows": rows[one.district],
                    "in this run": "failed" if one.trouble else "merged" if one.merged else "unchanged",
                    "how": way_in_words(one.stats) or "",
                    "operation": one.operation.operation_id if one.operation else "",
                }
                for one in districts
            },
        ),
    }
    if table == "students":
        metadata |= numbers(
            "total", _total([one.stats for one in districts], "students", "matched", "conflicts", "held")
        )
        lost = {one.district: unsupplied_in_words(one.stats) for one in districts}
        waiting = {one.district: undecided_in_words(one.stats) for one in districts}
        metadata["waiting_for_a_person"] = sentences([f"{name}: {words}" for name, words in waiting.items() if words])
        metadata["no_longer_supplied"] = sentences(
            [f"{district}: {words}" for district, words in lost.items() if words]
        )
    if table == "enrollment_changes":
        changes = _summed([one.stats.get("changes", {}) for one in districts if one.merged])
        metadata |= numbers("changes", changes) | {"plot": bar_plot("changes by kind", changes)}
    return metadata


def _merge_checks(asset: str, districts: Sequence[merging.DistrictMerge]) -> list[dg.AssetCheckResult]:
    stats = {one.district: one.stats for one in districts}
    return [_merge_check(asset, districts), waiting_result(asset, stats), _primary_check(asset, districts)]


def _merge_check(asset: str, districts: Sequence[merging.DistrictMerge]) -> dg.AssetCheckResult:
    troubles = {one.district: one.trouble for one in districts if one.trouble}
    return _troubles_check(asset, NOBODY_LOST, troubles, len(districts))


def _primary_check(asset: str, districts: Sequence[merging.DistrictMerge]) -> dg.AssetCheckResult:
    found = {one.district: irregular_in_words(one.stats) for one in districts}
    told = [f"{district}: {words}" for district, words in found.items() if words]
    return dg.AssetCheckResult(
        passed=not told,
        asset_key=asset,
        check_name=ONE_PRIMARY,
        severity=dg.AssetCheckSeverity.WARN,
        description=" ".join(told) or "Every student has one.",
        metadata={"irregular": sentences(told)},
    )


def _troubles_check(asset: str, name: str, troubles: Mapping[str, Trouble], districts: int) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=not troubles,
        asset_key=asset,
        check_name=name,
        description=f"{len(troubles)} of {districts} districts failed: {', '.join(troubles)}"
        if troubles
        else "All districts.",
        metadata={"troubles": sentences([f"{district}: {one.message}" for district, one in troubles.items()])},
    )


def _published_asset(years: dg.StaticPartitionsDefinition) -> dg.AssetsDefinition:
    tables = {name: MERGED[name] for name in PUBLICATION}

    @dg.asset(
        name=PUBLISHED,
        partitions_def=years,
        deps=list(MERGED_ASSETS),
        group_name="published",
        description="The merged roster as the tables of schema sis hold it: per district one transaction that touches only rows that differ. Removals too large to believe are held for a person.",
        owners=OWNERS,
        kinds={"postgres"},
        metadata={"dagster/column_schema": entities_schema(tables), "dagster/relation_identifier": "sis"},
        required_resource_keys={ROSTER},
        check_specs=[
            dg.AssetCheckSpec(name, asset=PUBLISHED, partitions_def=years, description=about)
            for name, about in {
                EVERY_PUBLISHED: "Every district's newest merge is published.",
                ROWS_MATCH: "The tables hold exactly the rows that the merges decided, and the ledger the changes they found.",
                NO_HOLDS: "No removals wait for a person.",
                INPUTS_FRESH: "Every integration has a good snapshot of the current school year that is not older than SIS_FRESH_HOURS.",
            }.items()
        ],
    )
    def published_roster(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        with explained(context):
            districts = merging.publish_districts(
                context.resources.roster,
                context.partition_key,
                context.run.run_id,
                context.log.info,
                whole=_is_full(context),
            )
            inputs = merging.merge_inputs(context.resources.roster, context.partition_key)
        yield dg.MaterializeResult(
            asset_key=PUBLISHED,
            metadata=_published_metadata(districts) | _inputs_metadata(inputs),
            check_results=[*_published_checks(districts), _fresh_check(inputs)],
        )
        failed = {one.district: one.trouble for one in districts if one.trouble}
        if failed:
            # Only now: what could be published is published, and stays.
            first = next(iter(failed.values()))
            names = ", ".join(failed)
            raise failure(Trouble(first.code, f"Not published: {names}. {first.message}", first.advice))

    return published_roster


def _published_metadata(districts: Sequence[merging.DistrictPublication]) -> dict[str, Any]:
    summaries = {one.district: one.summary() for one in districts}
    applied: dict[str, Applied] = {}
    for one in districts:
        for table, counts in (one.published.applied if one.published else {}).items():
            applied[table] = applied.get(table, Applied()) + counts
    total = sum(applied.values(), Applied())
    changes = _summed([summary["changes"] for summary in summaries.values()])
    columns = ("students", "matched", "near_matches", "conflicts", "held", "published")
    return {
        "dagster/row_count": total.inserted + total.updated + total.unchanged,
        **numbers("rows", {"inserted": total.inserted, "updated": total.updated, "deleted": total.deleted}),
        **numbers("total", _total(list(summaries.values()), "students", "matched", "conflicts", "held", "open_holds")),
        **numbers("changes", changes),
        **numbers("accounts", _summed([summary["accounts"] for summary in summaries.values()])),
        "districts": dg.MetadataValue.json(summaries),
        "by_district": counts_table(
            "district", {name: {column: summary[column] for column in columns} for name, summary in summaries.items()}
        ),
        "by_table": counts_table(
            "table",
            {
                name: {
                    "inserted": counts.inserted,
                    "updated": counts.updated,
                    "deleted": counts.deleted,
                    "unchanged": counts.unchanged,
                }
                for name, counts in applied.items()
            },
        ),
        "plot": bar_plot("changes by kind", changes),
    }


def _published_checks(districts: Sequence[merging.DistrictPublication]) -> list[dg.AssetCheckResult]:
    miscounted = [line for one in districts for line in (*one.miscounted, *_ledger(one))]
    return [
        _troubles_check(
            PUBLISHED, EVERY_PUBLISHED, {one.district: one.trouble for one in districts if one.trouble}, len(districts)
        ),
        dg.AssetCheckResult(
            passed=not miscounted,
            asset_key=PUBLISHED,
            check_name=ROWS_MATCH,
            description="; ".join(miscounted) or "Tables and ledger are as merged.",
            metadata={"differences": len(miscounted)},
        ),
        holds_result(PUBLISHED, [hold for one in districts for hold in one.waiting]),
    ]


def _inputs_metadata(inputs: Sequence[Input]) -> dict[str, Any]:
    ages = [one.age_hours for one in inputs if one.age_hours is not None]
    return {
        "inputs": counts_table("integration", dict(islice(as_rows(inputs).items(), INPUTS_SHOWN))),
        "inputs_not_fresh": sum(not one.fresh for one in inputs),
        "oldest_input_hours": max(ages, default=0.0),
    }


def _fresh_check(inputs: Sequence[Input]) -> dg.AssetCheckResult:
    stale = [one for one in inputs if not one.fresh]
    named = "; ".join(one.in_words() for one in stale[:INPUTS_SHOWN])
    return dg.AssetCheckResult(
        passed=not stale,
        asset_key=PUBLISHED,
        check_name=INPUTS_FRESH,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{len(stale)} of {len(inputs)} are not fresh. {named}."
        if stale
        else "All integrations are fresh.",
        metadata={"not_fresh": counts_table("integration", dict(islice(as_rows(stale).items(), INPUTS_SHOWN)))},
    )


def _ledger(one: merging.DistrictPublication) -> list[str]:
    """What is wrong with the rows added to the ledger: their number by kind must be the number of rows added."""
    if one.published is None:
        return []
    added, told = one.published.applied["enrollment_changes"].inserted, sum(one.published.changes.values())
    return [] if added == told else [f"{one.district}: {added:,} ledger rows added, {told:,} counted by kind"]


def _total(counts: Sequence[Mapping[str, Any]], *names: str) -> dict[str, int]:
    return {name: sum(int(one.get(name, 0)) for one in counts) for name in names}


def _summed(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    kinds = sorted({kind for one in counts for kind in one})
    return {kind: sum(one.get(kind, 0) for one in counts) for kind in kinds}
