"""Which process holds something in the database, so that another can tell whether its holder is gone.
What is held, and for how long, is decided by whoever holds it."""

from __future__ import annotations

import socket
from functools import cache

import psutil

CLOCK_TOLERANCE = 2.0
"""Seconds by which a process start time may differ between readings: it is counted from a boot time that is rounded."""


def this_process() -> str:
    """`host:pid:start`: the same pid may go to another process later, with another start."""
    process = psutil.Process()
    return f"{_host()}:{process.pid}:{process.create_time():.2f}"


def is_gone(holder: str) -> bool:
    """Whether a process of this machine has ended. False for one of another machine, of which nothing is known."""
    host, pid, started = holder.rsplit(":", 2)
    if host != _host():
        return False
    try:
        process = psutil.Process(int(pid))
        same = abs(process.create_time() - float(started)) < CLOCK_TOLERANCE
        return not same or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@cache
def _host() -> str:
    return socket.gethostname()
