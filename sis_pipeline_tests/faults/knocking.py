"""What a process does that calls a system which may be down: it never waits for the breaker, and counts what it met.
When the system is down, and what must hold, is the row's business."""

from __future__ import annotations

import time
from collections import Counter

from sqlalchemy import create_engine

from sis_pipeline.connect import breaker
from sis_pipeline.connect.breaker import SourceLeftAloneError
from sis_pipeline.connect.contract import Request
from sis_pipeline.connect.errors import SisError, TransientError
from sis_pipeline.connect.retry import Backoff
from sis_pipeline_tests.connect.workers import Options, a_source


def knock(
    *, database: str, url: str, until: float, calls: int = 5, look_again: float = 1.0, poll: float = 0.02
) -> Counter[str]:
    """Call until `calls` answers that are no outage, or `until`; how often it met what.

    `look_again`: as breaker.LOOK_AGAIN. `poll`: seconds between two looks at a breaker that is not closed.
    """
    breaker.LOOK_AGAIN = look_again
    engine = create_engine(database, connect_args={"options": "-c search_path=sis"})
    met = Counter[str]()
    options = Options(url, total_timeout=100)
    with a_source(engine, url, authorised=False, options=options, backoff=Backoff(attempts=1, cap=0)) as source:
        while time.time() < until and met["good"] + met["refused"] < calls:
            try:
                source.send(Request("/open"))
                met["good"] += 1
            except SourceLeftAloneError:
                met["left alone"] += 1
                time.sleep(poll)
            except TransientError:
                met["down"] += 1
            except SisError:
                met["refused"] += 1
    engine.dispose()
    return met
