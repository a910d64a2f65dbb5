"""The audit log changed behind its back, by who owns the tables and switched its triggers off: each change is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from sis_pipeline.db import audit
from sis_pipeline_tests.db.test_audit import FORGERIES, Forgery, Log, fill, find
from sis_pipeline_tests.faults.rows import Count, Recorder, Row

ROW = Row(
    29,
    "rows and links of the audit log edited, deleted, moved, swapped, renumbered, slipped in, rehashed or cut off, as "
    "the owner of the tables",
    "verification names the first row or link that is wrong, and no chain but that one",
    200,
    "changes",
)
OPERATIONS = 24


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_changes(database: Engine, row: Recorder, count: Count, forge: Callable[[Log], Forgery]) -> None:
    fill(database, OPERATIONS)
    tries = -(-count(full=ROW.asked, part=2 * len(FORGERIES)) // len(FORGERIES))
    for seed in range(tries):
        find(database, forge, seed)
        row.happened()  # the statement changed rows, or `find` had failed
    row.ran(tries)
    with database.connect() as connection:
        chains = list(audit.verify(connection, heads=audit.heads(connection)))
    assert [chain.broken for chain in chains] == [None] * len(chains), "every change was rolled back"
