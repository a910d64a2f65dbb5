"""What a publication would meet beside the published rows: holds and near matches that there are already, and accounts.
Read only; what follows from it for a plan is worked out in `roster.plan`."""

from __future__ import annotations

import polars as pl
from sqlalchemy import Connection, or_, select

from sis_pipeline.db.tables import holds, near_matches
from sis_pipeline.roster.contract import DistrictInputs, MergedRoster
from sis_pipeline.roster.plan import NEAR, Standing, StoredHold
from sis_pipeline.store import accounts
from sis_pipeline.store.guarding import WAITING


def standing(connection: Connection, inputs: DistrictInputs, merged: MergedRoster) -> Standing:
    """What publishing a merge would meet now. Raises ConfigError where the district's account rules are wrong."""
    return Standing(
        holds=_holds(connection, inputs.district, inputs.school_year),
        near_matches=_near_matches(connection, inputs.district),
        accounts=accounts.planned(connection, inputs, merged),
    )


def _holds(connection: Connection, district: str, school_year: str) -> dict[str, StoredHold]:
    query = select(holds.c.fingerprint, holds.c.hold_id, holds.c.status).where(
        holds.c.district == district,
        holds.c.school_year == school_year,
        or_(holds.c.status.in_(("open", "released")), WAITING),
    )
    return {row.fingerprint: StoredHold(row.hold_id, row.status) for row in connection.execute(query)}


def _near_matches(connection: Connection, district: str) -> pl.DataFrame:
    query = select(*(near_matches.c[name] for name in NEAR)).where(near_matches.c.district == district)
    return pl.DataFrame([tuple(row) for row in connection.execute(query)], schema=NEAR, orient="row")
