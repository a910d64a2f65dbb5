"""The rate limit that all processes share: one row per source in PostgreSQL, evenly spaced, on the database clock.
It says when the next call may start; sleeping until then, and what counts as a call, is the caller's business."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text

from sis_pipeline.connect.addresses import origin
from sis_pipeline.connect.errors import RETRY_AFTER_CAP

SPARE = 1.01
"""Slots lie 1 % further apart than the limit asks: vendors enforce a minimum interval between arrivals, and the way to
them is not always equally long. At 60 a minute it absorbs 10 ms, and never are there more than 60 in any minute."""

AHEAD = 0.010
"""Seconds before its start at which a slot may be taken: covers waking up and asking, so that no time is lost by it."""


def limit_key(provider: str, base_url: str, client_id: str | None, rate_group: str | None) -> str:
    """What shares one limit: the vendor's server and client, or the group the integration names."""
    return f"group {rate_group}" if rate_group else f"{provider} {origin(base_url)} {client_id or '-'}"


@dataclass(frozen=True, slots=True)
class Slot:
    """`granted`: the slot is ours and starts in `wait` seconds. Otherwise ask again after `wait` seconds."""

    granted: bool
    wait: float


@dataclass(frozen=True, slots=True)
class LimitState:
    """A row as people see it. `next_free` and `pushed` are seconds from now, never negative: until the next slot, and
    until the end of the longest wait that the source asked for."""

    key: str
    per_minute: float | None
    granted: int
    next_free: float
    pushed: float


class RateLimit:
    """A generic cell rate algorithm with a burst of one.

    A slot is taken just before it starts, never queued for: a push back reaches every waiting process, and one that
    dies while it waits takes nothing with it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")

    def reserve(self, key: str, per_minute: float) -> Slot:
        """Take the next slot of `key` if it starts within AHEAD. One statement, no transaction left open."""
        gap = 60.0 / per_minute * SPARE
        ahead = min(AHEAD, gap / 4)
        with self._engine.connect() as connection:
            row = connection.execute(
                _RESERVE, {"key": key, "gap": gap, "ahead": ahead, "per_minute": per_minute}
            ).one_or_none()
        if row is None:  # another process is just creating the row
            return Slot(granted=False, wait=ahead)
        if row.granted:
            return Slot(granted=True, wait=max(row.starts_in, 0.0))
        return Slot(granted=False, wait=max(row.starts_in - ahead / 2, 0.001))

    def waits(self, key: str, per_minute: float) -> Iterator[float]:
        """The seconds to sleep, one after the other, until a slot is ours and has begun."""
        granted = False
        while not granted:
            slot = self.reserve(key, per_minute)
            granted = slot.granted
            if slot.wait > 0:
                yield slot.wait

    def push_back(self, key: str, seconds: float) -> None:
        """No call of `key`, by any process, before `seconds` (clamped to 0 … 15 minutes) have passed."""
        with self._engine.connect() as connection:
            connection.execute(_PUSH_BACK, {"key": key, "seconds": min(max(seconds, 0.0), RETRY_AFTER_CAP)})


def listed(connection: Connection, key: str | None = None) -> list[LimitState]:
    """Every limit, or the one of that key, where it was ever used."""
    return [LimitState(*row) for row in connection.execute(_LISTED, {"key": key})]


def reset(connection: Connection, key: str) -> bool:
    """Let the next call go at once, whatever the source asked for; False where nobody waits. A person's action."""
    return bool(connection.execute(_RESET, {"key": key}).rowcount)


# A clock that was set back must not hold everybody for as long as it was set back by: a slot lies a gap ahead at most, and
# only what the source asked for lies further.
_SET_BACK = f"""
(r.next_free > greatest(r.pushed_until, sis.clock() + interval '1 second'
                        + make_interval(secs => 1.25 * greatest(:gap, coalesce({60 * SPARE} / r.per_minute, 0)))))
"""

# A grant need not survive a crash of the server, and must not wait for its disk: hence synchronous_commit.
_RESERVE = text(f"""
with slot as (
    insert into sis.rate_limits as r (limit_key, next_free, granted, per_minute)
    values (:key, sis.clock() + make_interval(secs => :gap), 1, :per_minute)
    on conflict (limit_key) do update
        set next_free = case when {_SET_BACK} then sis.clock() else greatest(r.next_free, sis.clock()) end
                        + make_interval(secs => :gap), granted = r.granted + 1, per_minute = excluded.per_minute
        where r.next_free <= sis.clock() + make_interval(secs => :ahead) or {_SET_BACK}
    returning next_free - make_interval(secs => :gap) as starts
)
select true as granted, extract(epoch from starts - sis.clock())::float8 as starts_in,
       set_config('synchronous_commit', 'off', true)
from slot
union all
select false, extract(epoch from next_free - sis.clock())::float8, null
from sis.rate_limits where limit_key = :key and not exists (select from slot)
""")

_PUSH_BACK = text("""
insert into sis.rate_limits as r (limit_key, next_free, pushed_until)
select :key, until, until from (select sis.clock() + make_interval(secs => :seconds) as until) asked
on conflict (limit_key) do update set next_free = greatest(r.next_free, excluded.next_free),
    pushed_until = greatest(r.pushed_until, excluded.pushed_until)
""")

_LISTED = text("""
select limit_key, per_minute, granted, greatest(extract(epoch from next_free - sis.clock()), 0)::float8,
       coalesce(greatest(extract(epoch from pushed_until - sis.clock()), 0), 0)::float8
from sis.rate_limits where cast(:key as text) is null or limit_key = :key order by limit_key
""")

_RESET = text("""
update sis.rate_limits set next_free = sis.clock(), pushed_until = null
where limit_key = :key and (next_free > sis.clock() or pushed_until > sis.clock())
""")
