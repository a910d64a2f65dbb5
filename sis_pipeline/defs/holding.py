"""Holds in Dagster: what the failed check says of them, and the job that releases one with actor and reason.
What a release does is store.holds'; nothing here shows more than counts and the ids of holds and schools."""

# No `from __future__ import annotations` here: Dagster reads the op's annotations and wants the classes themselves.

from collections.abc import Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from sis_pipeline.defs.failures import failure, trouble
from sis_pipeline.defs.metadata import counts_table
from sis_pipeline.defs.resources import Roster
from sis_pipeline.store.holds import StoredHold

NO_HOLDS = "no_removals_held"
RELEASE_JOB = "release_holds"
RELEASE_SECONDS = 900
"""A release waits for the row of its hold while a publication has it."""
HOLDS_SHOWN = 20


class Release(dg.Config):
    """Which hold is released, in whole or in part, by whom and why."""

    hold: str = Field(description="the hold's id, as the check no_removals_held names it")
    school: str | None = Field(None, description="only what is held of this school: its id, number or name")
    kind: str | None = Field(None, description="only what is held of this kind, as the check names it")
    actor: str = Field(description="who decides; it goes into the audit log")
    reason: str = Field(description="why; it goes into the audit log. No student is named here.")


@dg.op(description="Let the removals of a hold through, all or those of one school or kind.", out=dg.Out(dg.Nothing))
def release_hold(context: dg.OpExecutionContext, config: Release, roster: Roster) -> None:
    try:
        done = roster.holds.release(config.hold, config.actor, config.reason, school=config.school, change=config.kind)
    except Exception as error:  # noqa: BLE001 Dagster keeps what a step raises, so it leaves in words without values
        raise failure(trouble(error)) from None
    context.log.info(f"Hold {done.hold_id} is released: {len(done.rows):,} removals. The next merge applies them.")
    context.add_output_metadata({"hold": done.hold_id, "district": done.district, "removals": len(done.rows)})


def release_job() -> dg.JobDefinition:
    @dg.job(
        name=RELEASE_JOB,
        description="Release a hold, or one school or kind of it, by name and with a reason; as `sis holds release`.",
        executor_def=dg.in_process_executor,
        run_tags={"dagster/max_runtime": str(RELEASE_SECONDS)},
    )
    def release() -> None:
        release_hold()

    return release


def holds_result(asset: str, waiting: Sequence[StoredHold]) -> dg.AssetCheckResult:
    """The check that nothing is held: it says what is, and how to let it through."""
    shown = waiting[:HOLDS_SHOWN]
    districts = sorted({hold.district for hold in waiting})
    return dg.AssetCheckResult(
        passed=not waiting,
        asset_key=asset,
        check_name=NO_HOLDS,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"Removals wait for a person in {', '.join(districts)}: {'; '.join(map(_in_words, shown))}. "
        f"See one with `sis holds show HOLD`. Let it through with `sis holds release HOLD --reason …`, or the job "
        f"{RELEASE_JOB}; `--school` and `--kind` release a part."
        if waiting
        else "Nothing is held.",
        metadata={
            "open_holds": len(waiting),
            "removals_held": sum(len(hold.rows) for hold in waiting),
            "holds": counts_table("hold", {hold.hold_id: _row(hold) for hold in shown}),
        },
    )


def _in_words(hold: StoredHold) -> str:
    return f"{hold.hold_id} ({len(hold.rows):,} of {hold.removals.get('entity')}, {hold.reason})"


def _row(hold: StoredHold) -> dict[str, Any]:
    kinds: dict[str, int] = {}
    for part in hold.parts:
        kinds[part.change] = kinds.get(part.change, 0) + part.removals
    return {
        "district": hold.district,
        "of": str(hold.removals.get("entity")),
        "why": hold.reason,
        "removals": len(hold.rows),
        "kinds": ", ".join(f"{kind} {count:,}" for kind, count in sorted(kinds.items())),
        "schools": len({part.school_id for part in hold.parts}),
        "limit": hold.removals.get("limit", 0),
        "active before": hold.removals.get("active_before", 0),
    }
