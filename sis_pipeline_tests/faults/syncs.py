"""A whole `sis sync` in a child process that can be killed anywhere, and what it left in PostgreSQL and on disk.
When it is killed, and what must be equal afterwards, is the row's business."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, text

from sis_pipeline import crashpoints
from sis_pipeline.cli.worker import JOBS
from sis_pipeline.db import audit
from sis_pipeline.db.engine import dagster_storage_url
from sis_pipeline.defs import runs
from sis_pipeline.defs.maintenance import run_all
from sis_pipeline.defs.resources import Roster
from sis_pipeline.roster.model import MERGED
from sis_pipeline.settings import Settings
from sis_pipeline.store.decoded import FOLDER as DECODED
from sis_pipeline.store.snapshots import FINDINGS
from sis_pipeline_tests.defs.children import Child
from sis_pipeline_tests.forking import FORKS

DONE = "done"
Place = tuple[str, float]
"""A phase of a sync, and seconds into it."""
LEFT_OUT = (
    "change_id",
    "changed_at",
    "detected_at",
    "first_seen",
    "last_seen",
    "snapshot_id",
    "operation_id",
    "opened_at",
    "hold_id",
)
"""Columns that differ between any two syncs of the same data: times, and ids that are drawn by chance."""


def sync_all(told: Connection, keys: Sequence[str], school_year: str, linger: bool) -> None:
    """What the child of `sis sync` does: close the runs of dead processes, read every system, merge, publish.

    Tells each phase as it begins, and what failed. `linger`: stay at the end until killed, so that every kill meets
    the process alive.
    """
    runs._definitions()  # the same for every process, whatever it does then
    jobs: list[tuple[str, str, dict[str, str]]] = [
        ("prepare", "prepare", {}),
        *((f"sync {key}", "sync", {"integration": key, "school_year": school_year}) for key in keys),
        ("merge", "merge", {"school_year": school_year}),
    ]
    for phase, kind, arguments in jobs:
        told.send((phase, None))
        result = JOBS[kind](_unheard, **arguments)
        if result and result["error"]:
            told.send((phase, result["error"]["message"]))
    told.send((DONE, None))
    if linger:
        signal.pause()


def _unheard(_event: Mapping[str, Any]) -> None:
    """Progress is nobody's concern here."""


@dataclass
class Sync:
    """A sync that ended or was killed: `phases` with the seconds at which they began, and what it said failed."""

    exit_code: int
    phases: dict[str, float] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)

    @property
    def last_phase(self) -> str:
        return list(self.phases)[-1] if self.phases else "start"

    @property
    def seconds(self) -> float:
        return self.phases[DONE]

    def place_of(self, moment: float) -> Place:
        """What was under way at a moment, and for how many seconds."""
        phase = [phase for phase, began in self.phases.items() if began <= moment][-1]
        return phase, moment - self.phases[phase]


def sync(keys: Sequence[str], school_year: str, *, kill_at: Place | None = None, crash_at: str | None = None) -> Sync:
    """Sync in a child of this process's environment; killed from here at a place of it, or by itself at a named point.

    A kill comes so many seconds after its phase began, whatever is under way by then.
    """
    ours, theirs = FORKS.Pipe(duplex=False)
    environment = {crashpoints.VARIABLE: crash_at} if crash_at else {}
    child: Child[None] = Child(sync_all, theirs, keys, school_year, kill_at is not None, **environment)
    theirs.close()
    done, began, until = Sync(0), 0.0, None
    try:
        while until is None or _waits(ours, until):
            phase, trouble = ours.recv()
            began = began or time.monotonic()
            if trouble:
                done.troubles.append(f"{phase}: {trouble}")
                continue
            done.phases[phase] = time.monotonic() - began
            if kill_at is not None and phase == kill_at[0]:
                until = time.monotonic() + kill_at[1]
    except EOFError:
        pass  # it ended
    else:
        child.kill()
    ended = child.ended()
    done.exit_code = ended.exit_code
    if ended.error:
        done.troubles.append(ended.error)
    return done


def _waits(told: Connection, until: float) -> bool:
    """Wait until there is something to hear; False once the time has come."""
    return told.poll(max(0.0, until - time.monotonic()))


@dataclass(frozen=True)
class Left:
    """What syncs left: the same wherever the same data was synced, however often it was interrupted.

    `tables`: the published tables with ledger and conflicts, the holds and the quarantine, row by row but for LEFT_OUT.
    `snapshots`: by integration, what the newest reading proved and held. `events`: of the ledger, without their ids.
    """

    tables: Mapping[str, Sequence[str]]
    snapshots: Mapping[str, Mapping[str, Any]]
    events: Counter[str]
    integrations: Sequence[tuple[Any, ...]]


def left(engine: Engine) -> Left:
    with engine.connect() as connection:

        def rows(query: str, **bound: object) -> list[Any]:
            return list(connection.execute(text(query), {"left_out": list(LEFT_OUT), **bound}))

        tables = {
            name: [row.line for row in rows(f"select (to_jsonb(t) - cast(:left_out as text[]))::text as line from sis.{name} t order by 1")]
            for name in [*MERGED, "holds"]
        }  # fmt: skip
        newest = rows("""
            select distinct on (integration) integration, snapshot_id::text, verdict, completeness, content_hash,
                   roster_hash, rows, quarantined
            from sis.snapshots where verdict in ('complete', 'partial', 'delta')
            order by integration, started_at desc, snapshot_id
        """)
        ids = [row.snapshot_id for row in newest]
        tables["quarantine"] = [
            row.line
            for row in rows(
                "select (to_jsonb(t) - cast(:left_out as text[]))::text as line from sis.quarantine t"
                " where snapshot_id = any(cast(:ids as uuid[])) order by 1",
                ids=ids,
            )
        ]
        return Left(
            tables=tables,
            snapshots={row.integration: {**row._mapping, "snapshot_id": None} for row in newest},
            events=Counter(tables["enrollment_changes"]),
            integrations=[
                tuple(row)
                for row in rows("select key, status, status_reason, failures from sis.integrations order by 1")
            ],
        )


def prove_tidy(roster: Roster, *, killed: int) -> None:
    """Nothing is left of the syncs that were killed but what says that there were any."""
    prove_roster_tidy(roster)
    _prove_runs_closed(killed)


def prove_roster_tidy(roster: Roster) -> None:
    """The same, for what is not Dagster's."""
    data = Path(roster.settings.data_url)
    _prove_half_written_files_go(roster, data)
    with roster.engine.connect() as connection:

        def found(query: str) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in connection.execute(text(query))]

        assert found("select 1 from sis.snapshot_pages") == []
        assert found("select snapshot_id from sis.snapshots where finished_at is null") == []
        assert found("select status, count(*) from sis.oauth_tokens where status <> 'active' group by 1") == []
        assert found("select status, epoch from sis.sync_operations where status in ('merging', 'merged')") == []
        newest = "select status from sis.sync_operations order by epoch desc limit 1"
        assert found(newest) == [("published",)]
        published = """
            select operation_id from sis.sync_operations o where status = 'published' and 1 <> (
                select count(*) from sis.audit_log a where a.action = 'roster.publish' and a.subject = o.operation_id::text)
        """
        assert found(published) == [], "every publication is in the audit log, once"
        chains = list(audit.verify(connection))
        assert chains
        assert [chain.broken for chain in chains] == [None] * len(chains)
        folders = dict(found("select path, content_hash from sis.snapshots"))
    for path, content_hash in folders.items():
        if content_hash is not None:
            _prove_only_what_is_listed(data / path)


def _prove_half_written_files_go(roster: Roster, data: Path) -> None:
    """The chores delete them a day later."""
    parts = list(data.rglob("*.part"))
    yesterday = time.time() - 86_401
    for part in parts:
        os.utime(part, (yesterday, yesterday))
    done = {one.chore: one for one in run_all(roster)}
    assert done["files"].facts == {"deleted": len(parts)}
    assert {one.trouble for one in done.values()} == {None}
    assert list(data.rglob("*.part")) == []


def _prove_only_what_is_listed(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    listed = {page["file"] for resource in manifest["resources"].values() for page in resource["pages"]}
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    there = {str(path) for path in files if DECODED not in path.parts}
    assert there - {FINDINGS} == listed | {"manifest.json"}


def _prove_runs_closed(killed: int) -> None:
    engine = create_engine(dagster_storage_url(Settings()))
    try:
        with engine.connect() as connection:
            statuses = Counter(connection.scalars(text("select status from runs")))
    finally:
        engine.dispose()
    assert set(statuses) <= {"SUCCESS", "FAILURE"}, "none that its process left open"
    assert statuses["FAILURE"] <= killed, "only killed runs failed"
