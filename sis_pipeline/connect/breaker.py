"""The circuit breaker that all processes share: one row per system in PostgreSQL, changed by compare-and-set on its clock.
It says whether a call may be made and counts what came of it; sending, waiting and retrying are the source's business."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import structlog
from sqlalchemy import Connection, Engine, Row, text

from sis_pipeline.connect.addresses import origin
from sis_pipeline.connect.errors import Policy, SisError, TransientError
from sis_pipeline.db.process import is_gone, this_process

log = structlog.get_logger(__name__)

FAILURES = 5
"""So many failures in a row open it …"""
WINDOW_CALLS = 20
WINDOW_SHARE = 0.5
"""… or this share of so many calls, in the minute that begins with a failure."""
OPEN_FIRST, OPEN_LONGEST = 30.0, 900.0
"""Seconds it stays open: the first time, and at most. Every probe that fails doubles them."""
SHORTEST_SHARE = 0.8
"""The actual time is drawn between this share of it and the whole: systems that failed together return apart."""
LOOK_AGAIN = 1.0
"""Seconds for which a breaker that was seen closed is taken to be closed: a fast reading looks once a second."""
LONGEST_LEASE = 4_000.0
"""Seconds that no call takes, whatever the timeouts of an integration (see providers.base.HttpSettings)."""
PROBE_POLL = 1.0
"""Seconds after which to ask again while somebody else probes."""


class SourceLeftAloneError(TransientError):
    """Nothing was sent: the system failed too often and is left alone. Ask again after `retry_after` seconds.

    It counts for no breaker, and the door does not try again by itself: it has waited for as long as it would.
    """

    default_code = "transient.left_alone"

    def __init__(self, message: str, *, breaker: str, retry_after: float) -> None:
        super().__init__(message, breaker=breaker, retry_after=round(retry_after, 1))
        self.retry_after = retry_after

    @property
    def policy(self) -> Policy:
        return replace(super().policy, retry=False, breaker=False)


@dataclass(slots=True)
class Permit:
    """Leave to make one call. `epoch`: of the state that gave it; what comes of the call counts in that state only."""

    epoch: int
    probe: bool = False
    open_seconds: float = OPEN_FIRST


@dataclass(frozen=True, slots=True)
class BreakerState:
    """A row as people see it; seconds from now. `retry_after` is 0 where a call may be made or a probe is due."""

    key: str
    state: str
    failures: int
    open_since: float | None
    retry_after: float
    last_error: str | None


def breaker_key(provider: str, url: str) -> str:
    """What fails together: the vendor's server and, on a shared one, the tenant's path. Never a query."""
    return f"{provider} {origin(url)}{urlsplit(url).path.rstrip('/')}"


def trips(failures: int, window_calls: int, window_failures: int) -> bool:
    """Whether these counts open a closed breaker."""
    return failures >= FAILURES or (window_calls >= WINDOW_CALLS and window_failures >= WINDOW_SHARE * window_calls)


def next_open_seconds(open_seconds: float) -> float:
    """How long it stays open after a probe that failed as well."""
    return min(open_seconds * 2, OPEN_LONGEST)


class Breaker:
    """The breaker of one system. `lease`: the most seconds that a call takes once it may be sent.

    Closed, it costs a look a second, and one statement per success only while failures are remembered.
    """

    def __init__(self, engine: Engine, key: str, *, lease: float) -> None:
        self.key = key
        self._engine = engine
        self._lease = lease
        self._epoch = 0
        self._pending = False  # failures are remembered, which a success has to reset
        self._closed_until = 0.0

    def check(self) -> None:
        """Raise SourceLeftAloneError where a call could not be made now. Takes no probe."""
        if time.monotonic() >= self._closed_until:
            self._look()

    def enter(self) -> Permit:
        """Leave to make a call; once the system was left alone for long enough, to exactly one caller of all.

        Whoever has it must call `settle`. Raises SourceLeftAloneError.
        """
        due = None if time.monotonic() < self._closed_until else self._look()
        return Permit(self._epoch) if due is None else self._claim(due)

    def confirm(self, permit: Permit, *, waited: bool) -> None:
        """Just before sending: what was granted still holds, also after waiting. A probe's lease begins here.

        Raises SourceLeftAloneError where the breaker opened meanwhile or another process took the probe over.
        """
        if permit.probe:
            with self._engine.begin() as connection:
                if connection.execute(_RENEW, self._keyed(permit, lease=self._lease)).rowcount == 0:
                    raise self._left_alone(PROBE_POLL, "another process tries whether it is back")
        elif waited:
            self.check()
            permit.epoch = self._epoch

    def settle(self, permit: Permit, failure: SisError | None, *, answered: bool) -> None:
        """Tell what came of the call. Only classes whose policy says so are failures; any other answer is a sign of life.

        A call that was not sent (`answered` is False) says nothing: its probe is free for the next.
        """
        if failure is not None and failure.policy.breaker:
            self._failed(permit, failure)
        elif answered:
            self._passed(permit)
        elif permit.probe:
            self._change(_RELEASE, permit)

    def _look(self) -> Row[Any] | None:
        """None where it is closed, else the row whose probe is due. Raises SourceLeftAloneError."""
        with self._engine.connect() as connection:
            row = connection.execute(_LOOK, {"key": self.key}).one_or_none()
        if row is None or row.state == "closed":
            self._epoch, self._pending = (row.epoch, row.pending) if row else (0, False)
            self._closed_until = time.monotonic() + LOOK_AGAIN
            return None
        if row.state == "open" and row.open_for > 0:
            raise self._left_alone(row.open_for, row.last_error)
        if row.state == "half_open" and row.probe_for > 0 and not is_gone(row.probe_holder):
            raise self._left_alone(min(PROBE_POLL, row.probe_for), "another process tries whether it is back")
        return row

    def _claim(self, due: Row[Any]) -> Permit:
        """The one probe: of all who saw the same epoch, the row lets one through."""
        values = {"key": self.key, "epoch": due.epoch, "me": this_process(), "lease": self._lease}
        with self._engine.begin() as connection:
            epoch = connection.scalar(_CLAIM, values)
        if epoch is None:
            raise self._left_alone(PROBE_POLL, "another process tries whether it is back")
        log.info("breaker.probe", breaker=self.key)
        return Permit(epoch, probe=True, open_seconds=due.open_seconds or OPEN_FIRST)

    def _failed(self, permit: Permit, failure: SisError) -> None:
        if permit.probe:
            self._open(permit, next_open_seconds(permit.open_seconds), failure)
            return
        with self._engine.begin() as connection:
            counts = connection.execute(_COUNT, self._keyed(permit, error=failure.message)).one_or_none()
            tripped = counts is not None and trips(*counts)
            if tripped:
                self._open(permit, OPEN_FIRST, failure, connection)
        self._pending = True
        if counts is None or tripped:  # it has changed under us: look before the next call
            self._closed_until = 0.0

    def _open(self, permit: Permit, seconds: float, failure: SisError, connection: Connection | None = None) -> None:
        actual = seconds * random.uniform(SHORTEST_SHARE, 1)  # noqa: S311  spreads load, guards nothing
        values = {"seconds": seconds, "actual": actual, "error": failure.message}
        if self._change(_OPEN, permit, connection, **values):
            log.warning("breaker.open", breaker=self.key, seconds=round(actual), because=failure.message)

    def _passed(self, permit: Permit) -> None:
        if permit.probe:
            if self._change(_CLOSE, permit):
                log.info("breaker.closed", breaker=self.key)
        elif self._pending:
            with self._engine.begin() as connection:
                self._pending = bool(connection.scalar(_PASS, self._keyed(permit)))

    def _change(self, statement: Any, permit: Permit, connection: Connection | None = None, **values: Any) -> bool:
        """Change the state, unless somebody else has; either way the next call looks for itself."""
        self._closed_until = 0.0
        if connection is not None:
            return bool(connection.execute(statement, self._keyed(permit, **values)).rowcount)
        with self._engine.begin() as own:
            return bool(own.execute(statement, self._keyed(permit, **values)).rowcount)

    def _keyed(self, permit: Permit, **values: Any) -> dict[str, Any]:
        return {"key": self.key, "epoch": permit.epoch, **values}

    def _left_alone(self, seconds: float, reason: str | None) -> SourceLeftAloneError:
        return SourceLeftAloneError(
            f"{self.key} is left alone for another {seconds:.0f} s, because: {reason or 'it failed too often'}",
            retry_after=seconds,
            breaker=self.key,
        )


def listed(connection: Connection) -> list[BreakerState]:
    """Every breaker that is not closed or remembers failures."""
    return [
        BreakerState(row.breaker_key, row.state, row.failures, row.open_since, row.retry_after, row.last_error)
        for row in connection.execute(_LISTED)
    ]


def reset(connection: Connection, key: str) -> bool:
    """Close it and forget its failures, as a person's action; False where there is nothing to forget."""
    return bool(connection.execute(_RESET, {"key": key}).rowcount)


# A clock that was set back must not keep it open for as long as it was set back by: an end too far off is no end.
_LEFT = """
(case when {0} between sis.clock() and sis.clock() + make_interval(secs => {1})
      then extract(epoch from {0} - sis.clock()) else 0 end)::float8
"""

# Every change of state raises the epoch, and is made only by who knows the epoch that it ends.
_CLOSED = """
state = 'closed', epoch = epoch + 1, failures = 0, window_start = null, window_calls = 0, window_failures = 0,
opened_at = null, open_until = null, open_seconds = null, probe_holder = null, probe_until = null,
changed_at = sis.clock()
"""

_LOOK = text(f"""
select state, epoch, failures > 0 or window_failures > 0 as pending, last_error, open_seconds, probe_holder,
       {_LEFT.format("open_until", "open_seconds")} as open_for,
       {_LEFT.format("probe_until", LONGEST_LEASE)} as probe_for
from sis.circuit_breakers where breaker_key = :key
""")

_COUNT = text("""
insert into sis.circuit_breakers as b
       (breaker_key, failures, window_start, window_calls, window_failures, last_error)
values (:key, 1, sis.clock(), 1, 1, :error)
on conflict (breaker_key) do update set
    failures = b.failures + 1,
    window_start = case when b.window_start > sis.clock() - interval '1 minute' then b.window_start else sis.clock() end,
    window_calls = case when b.window_start > sis.clock() - interval '1 minute' then b.window_calls else 0 end + 1,
    window_failures = case when b.window_start > sis.clock() - interval '1 minute' then b.window_failures else 0 end + 1,
    last_error = excluded.last_error, changed_at = sis.clock()
    where b.state = 'closed' and b.epoch = :epoch
returning failures, window_calls, window_failures
""")

_PASS = text("""
update sis.circuit_breakers set
    failures = 0, changed_at = sis.clock(),
    window_calls = case when window_start > sis.clock() - interval '1 minute' then window_calls + 1 else 0 end,
    window_failures = case when window_start > sis.clock() - interval '1 minute' then window_failures else 0 end
where breaker_key = :key and state = 'closed' and epoch = :epoch
returning window_failures > 0
""")

_OPEN = text("""
update sis.circuit_breakers set
    state = 'open', epoch = epoch + 1, opened_at = coalesce(opened_at, sis.clock()), open_seconds = :seconds,
    open_until = sis.clock() + make_interval(secs => :actual), probe_holder = null, probe_until = null,
    last_error = :error, changed_at = sis.clock()
where breaker_key = :key and epoch = :epoch
""")

_CLAIM = text("""
update sis.circuit_breakers set
    state = 'half_open', epoch = epoch + 1, probe_holder = :me,
    probe_until = sis.clock() + make_interval(secs => :lease), changed_at = sis.clock()
where breaker_key = :key and epoch = :epoch
returning epoch
""")

_RENEW = text("""
update sis.circuit_breakers set probe_until = sis.clock() + make_interval(secs => :lease)
where breaker_key = :key and epoch = :epoch
""")

_RELEASE = text("""
update sis.circuit_breakers set
    state = 'open', epoch = epoch + 1, open_until = sis.clock(), probe_holder = null, probe_until = null,
    changed_at = sis.clock()
where breaker_key = :key and epoch = :epoch
""")

_CLOSE = text(f"update sis.circuit_breakers set {_CLOSED} where breaker_key = :key and epoch = :epoch")

_RESET = text(f"""
update sis.circuit_breakers set {_CLOSED}
where breaker_key = :key and (state <> 'closed' or failures > 0 or window_failures > 0)
""")

_LISTED = text(f"""
select breaker_key, state, failures, last_error,
       greatest(extract(epoch from sis.clock() - opened_at), 0)::float8 as open_since,
       coalesce(case state when 'open' then {_LEFT.format("open_until", "open_seconds")}
                           when 'half_open' then {_LEFT.format("probe_until", LONGEST_LEASE)} end, 0) as retry_after
from sis.circuit_breakers where state <> 'closed' or failures > 0 order by breaker_key
""")
