"""Named points at which a test can kill the process, as a power cut would: no handler runs, nothing is flushed.
Off unless the environment names one; what must hold after a kill is the business of whoever has the point."""

from __future__ import annotations

import os
import signal
from collections import Counter

VARIABLE = "SIS_CRASH_AT"
"""`name` or `name:n`: die at the n-th passing of that point."""

_passed: Counter[str] = Counter()


def crash_point(name: str) -> None:
    """Kill this process with SIGKILL where the environment asks for it here and now."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    chosen, _, count = wanted.partition(":")
    if chosen != name:
        return
    _passed[name] += 1
    if _passed[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
