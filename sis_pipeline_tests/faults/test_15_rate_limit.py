"""Three systems at their true limits, eight processes in several time zones: what the servers see, minute by minute."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import URL

from sis_pipeline.connect.contract import Request
from sis_pipeline.sandbox.throttle import worst_window
from sis_pipeline_tests.connect.servers import Sis, serve
from sis_pipeline_tests.connect.workers import Options, a_source
from sis_pipeline_tests.faults.rows import Count, Recorder, Row
from sis_pipeline_tests.forking import ready_pool

ROW = Row(
    15,
    "8 processes in mixed time zones at the limits of three systems",
    "never more than 60/100/80 calls in any sliding minute as the servers see it, at least 95 % used",
    3,
    "limits",
    scaled="the three systems are read at the same time in one real run of 130 s, instead of 3 minutes each",
)

LIMITS = {"powerschool": 60, "infinite_campus": 100, "skyward": 80}
PROCESSES = 8
ZONES = ("UTC", "America/New_York", "Asia/Kathmandu", "Pacific/Chatham")


def call_all(database: str, urls: dict[str, str], zone: str, faster: int, until: float) -> int:
    """Call every system as often as its limit lets us, until a moment; how many calls that made."""
    engine = create_engine(database, connect_args={"options": f"-c TimeZone={zone} -c search_path=sis"})

    def call(name: str) -> int:
        options, calls = Options(urls[name], rate_group=name, read_timeout=20, total_timeout=30), 0
        with a_source(
            engine, urls[name], authorised=False, options=options, requests_per_minute=LIMITS[name] * faster
        ) as source:
            while time.time() < until:
                source.send(Request("/open"))
                calls += 1
        return calls

    with ThreadPoolExecutor(len(urls)) as pool:
        made = sum(pool.map(call, urls))
    engine.dispose()
    return made


@pytest.mark.alone(minutes=3)
def test_no_minute_has_too_many_calls(database_url: URL, count: Count, row: Recorder) -> None:
    """In `make test` ten times as fast and for seconds, where the machine's own delays need some room."""
    faster, seconds = count(full=1, part=10), count(full=130, part=8)
    room, used = (0, 0.95) if seconds > 60 else (3, 0.75)
    with ExitStack() as stack:
        systems = {name: stack.enter_context(serve(Sis())) for name in LIMITS}
        urls = {name: sis.url for name, sis in systems.items()}
        pool = stack.enter_context(ready_pool(PROCESSES))
        until = time.time() + seconds
        pending = [
            pool.apply_async(
                call_all, (database_url.render_as_string(hide_password=False), urls, ZONES[n % 4], faster, until)
            )
            for n in range(PROCESSES)
        ]
        made = [one.get(timeout=seconds + 120) for one in pending]
    assert sum(made) == sum(len(sis.arrivals) for sis in systems.values())
    for name, limit in LIMITS.items():
        arrivals = sorted(systems[name].arrivals)
        fullest = worst_window(arrivals, 60 / faster)
        share = (len(arrivals) - 1) / ((arrivals[-1] - arrivals[0]) * limit * faster / 60)
        assert fullest <= limit + room
        assert share >= used
        row.note(f"{name}: {len(arrivals)} calls, fullest minute {fullest} of {limit}, {share:.1%} of the limit used")
        row.happened(sum(late - early < 60 / limit / faster * 1.2 for early, late in itertools.pairwise(arrivals)))
    row.ran(len(LIMITS))
