"""Dry runs: what the next publication of a school year would change, district by district. No Dagster in here.
Nothing is written: no operation is opened, no frame kept, and the database is read in transactions that can't write."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sis_pipeline.connect.errors import TransientError
from sis_pipeline.defs.failures import Trouble, trouble
from sis_pipeline.defs.merging import ATTEMPTS, prove_nobody_lost
from sis_pipeline.defs.resources import Roster
from sis_pipeline.roster.district import merge_district
from sis_pipeline.roster.plan import Plan, plan_publication
from sis_pipeline.store.holds import StoredHold
from sis_pipeline.store.merged import published_epochs, steady_view
from sis_pipeline.store.planning import standing


@dataclass(frozen=True)
class DistrictPlan:
    """One district's plan; None where it failed. `due` is False where nothing changed since the last publication: then
    there would be none, and the plan is empty. `waiting`: the holds that are open now."""

    district: str
    school_year: str
    plan: Plan | None
    due: bool = True
    waiting: tuple[StoredHold, ...] = ()
    trouble: Trouble | None = None


def plan_districts(
    roster: Roster, school_year: str, *, rows: int, districts: Collection[str] | None = None
) -> list[DistrictPlan]:
    """Plan the next publication of a school year for every district that has a good snapshot, or the named ones of them.

    One district's failure never stops another's plan.
    """
    stale = set(roster.merges.stale_districts(school_year))
    found = [one for one in roster.merges.districts_of(school_year) if districts is None or one in districts]
    return [_planned(roster, district, school_year, rows, due=district in stale) for district in found]


def _planned(roster: Roster, district: str, school_year: str, rows: int, *, due: bool) -> DistrictPlan:
    waiting = tuple(one for one in roster.holds.list(district, "open") if one.school_year == school_year)
    if not due:
        return DistrictPlan(district, school_year, Plan(district, school_year), due=False, waiting=waiting)
    try:
        plan = _plan(roster, district, school_year, rows)
    except Exception as error:  # noqa: BLE001 whatever fails is this district's trouble and nobody else's
        return DistrictPlan(district, school_year, None, waiting=waiting, trouble=trouble(error))
    return DistrictPlan(district, school_year, plan, waiting=waiting)


def _plan(roster: Roster, district: str, school_year: str, rows: int) -> Plan:
    """Where another publication comes in between, the plan is made again on top of it."""
    for _ in range(ATTEMPTS):
        preview = roster.merges.preview(district, school_year)
        merged = merge_district(preview.inputs)
        prove_nobody_lost(preview.inputs, merged)
        with steady_view(roster.engine) as connection:
            if published_epochs(connection, district) == preview.published_before:
                meets = standing(connection, preview.inputs, merged)
                return plan_publication(preview.inputs, merged, meets, rows=rows)
    raise TransientError(
        f"The roster of {district} was published anew each time that {school_year} was being planned.",
        advice="Plan again once the merges that are under way have ended.",
        code="transient.superseded",
    )
