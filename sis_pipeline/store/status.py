"""How an integration does: the states of its connection, and which one follows from what just happened. Pure.
Keeping the status, and noticing that something happened, is done by `integrations` and by those who sync."""

from __future__ import annotations

from typing import Literal, get_args

from sis_pipeline.connect.errors import ErrorClass

Status = Literal["healthy", "degraded", "failing", "needs_reauth", "paused"]
"""From the best to the worst; `paused` is a person's decision and not a judgement."""

FAILING_AFTER = 3
"""Syncs in a row that fail for a passing reason: a night can be bad luck, three are not."""

STATUS_OF: dict[ErrorClass, Status] = {
    ErrorClass.TRANSIENT: "degraded",
    ErrorClass.RATE_LIMITED: "degraded",
    ErrorClass.AUTH_EXPIRED: "degraded",
    ErrorClass.AUTH_REVOKED: "needs_reauth",
    ErrorClass.CONFIG: "failing",
    ErrorClass.CONTRACT: "failing",
    ErrorClass.DATA: "failing",
    ErrorClass.INTERNAL: "failing",
}
"""What one error of a class makes of a connection. A degraded one is expected to come back by itself."""


def next_status(current: Status, failures: int, outcome: ErrorClass | None) -> Status:
    """The status after a sync. `failures`: syncs that failed in a row, this one included; `outcome`: None for success.

    Success heals everything; only a person ends a pause. A passing failure never makes a status look better than it
    was: credentials that were refused are not tried every night because the server was also down once.
    """
    if current == "paused":
        return "paused"
    if outcome is None:
        return "healthy"
    found = STATUS_OF[outcome]
    if found == "degraded":
        found = "failing" if failures >= FAILING_AFTER else "degraded"
        return max(current, found, key=get_args(Status).index)
    return found


def status_after_test(current: Status, outcome: ErrorClass | None) -> Status:
    """The status after a test of the credentials: it proves that they work and the system answers, no more than that.

    So it heals what credentials and reachability cause, and not what is wrong with settings or data.
    """
    if outcome is None and current in {"degraded", "needs_reauth"}:
        return "healthy"
    return "needs_reauth" if outcome is ErrorClass.AUTH_REVOKED and current != "paused" else current
