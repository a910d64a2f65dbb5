"""How the whole installation does, from its own tables: what is wrong, since when, and the command that helps.
It looks and computes; what the states mean is decided by those who write them (status, tokens, breaker, limits, guard)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, Engine, text

from sis_pipeline.connect import breaker, limits
from sis_pipeline.connect.breaker import BreakerState, breaker_key
from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.connect.limits import LimitState, limit_key
from sis_pipeline.connect.upkeep import TokenHealth, token_health
from sis_pipeline.connect.vault import advice_for
from sis_pipeline.db import audit
from sis_pipeline.store import erased
from sis_pipeline.store.erased import Unfinished
from sis_pipeline.store.locks import is_syncing

CALLS_OF = timedelta(hours=24)
STALE = timedelta(hours=36)
"""A nightly sync was missed, and half a day went by."""
NEWEST = 1_000
"""Of an integration's calls at most so many are looked at: a busy installation is not to make the answer slow."""
ERROR_SHARE, FEW_CALLS = 0.2, 20
"""A share of failed calls from which on it is worth a look; with fewer calls a share says nothing."""
PUSHED = 60.0
"""Seconds of a pause that a source asked for, from which on it is worth telling."""

Kind = Literal["integration", "token", "hold", "data", "reading", "breaker", "limit", "calls", "erasure"]


@dataclass(frozen=True, slots=True)
class Problem:
    """`person`: it stays until somebody does what `advice` says; otherwise it is expected to pass by itself."""

    kind: Kind
    subject: str
    message: str
    advice: str
    person: bool


@dataclass(frozen=True, slots=True)
class ReadingHealth:
    """A reading that has not ended. `going`: its process is alive; otherwise it waits for the next sync to go on."""

    school_year: str
    going: bool
    since: datetime
    pages: int


@dataclass(frozen=True, slots=True)
class IntegrationHealth:
    """One connection. `calls` are the newest of the last 24 hours, at most NEWEST of them; `p50_ms`, `p95_ms` and
    `error_share` (0 … 1) are theirs. `by_person`: somebody has to grant access."""

    key: str
    provider: str
    district: str
    status: str
    reason: str | None
    since: datetime | None
    failures: int
    last_success_at: datetime | None
    verdict: str | None
    data_age: timedelta | None
    calls: int
    error_share: float | None
    p50_ms: float | None
    p95_ms: float | None
    by_person: bool = False
    readings: tuple[ReadingHealth, ...] = ()
    breakers: tuple[str, ...] = ()
    limit: str | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """Everything at one moment of the database clock; `problems` are those that need a person first."""

    at: datetime
    school_year: str
    integrations: list[IntegrationHealth]
    tokens: list[TokenHealth]
    breakers: list[BreakerState]
    limits: list[LimitState]
    open_holds: dict[str, int]
    unfinished_erasures: Sequence[Unfinished] = ()
    problems: list[Problem] = field(default_factory=list)

    @property
    def needs_a_person(self) -> bool:
        return any(problem.person for problem in self.problems)


def database_now(connection: Connection) -> datetime:
    now: datetime = connection.execute(text("select sis.clock()")).scalar_one()
    return now


def examine(connection: Connection, school_year: str) -> Health:
    """What is, and what is wrong with it. `school_year`: the one whose data should be fresh."""
    now = database_now(connection)
    unsettled = breaker.listed(connection)
    health = Health(
        at=now,
        school_year=school_year,
        integrations=_integrations(connection, school_year, now, unsettled),
        tokens=token_health(connection),
        breakers=unsettled,
        limits=[limit for limit in limits.listed(connection) if limit.pushed > 0],
        open_holds={row.district: row.holds for row in connection.execute(_OPEN_HOLDS)},
        unfinished_erasures=erased.unfinished(connection),
    )
    health.problems.extend(sorted(_problems(health), key=lambda problem: not problem.person))
    return health


def error_free(health: IntegrationHealth) -> bool:
    return health.calls < FEW_CALLS or (health.error_share or 0.0) < ERROR_SHARE


def _integrations(
    connection: Connection, school_year: str, now: datetime, unsettled: Sequence[BreakerState]
) -> list[IntegrationHealth]:
    readings: dict[str, list[ReadingHealth]] = {}
    for row in connection.execute(_READINGS):
        going = is_syncing(connection, row.integration, row.school_year)
        readings.setdefault(row.integration, []).append(
            ReadingHealth(row.school_year, going, row.started_at, row.pages)
        )
    asked = {"year": school_year, "since": now - CALLS_OF, "newest": NEWEST}
    found = connection.execute(_INTEGRATIONS, asked)
    return [_integration(row, now, readings.get(row.key, []), unsettled) for row in found]


def _integration(
    row: Any, now: datetime, readings: Iterable[ReadingHealth], unsettled: Sequence[BreakerState]
) -> IntegrationHealth:
    p50, p95 = row.percentiles or (None, None)
    return IntegrationHealth(
        key=row.key,
        provider=row.provider,
        district=row.district,
        status=row.status,
        reason=row.status_reason,
        since=row.status_since,
        failures=row.failures,
        last_success_at=row.last_success_at,
        verdict=row.verdict,
        data_age=now - row.finished_at if row.finished_at else None,
        calls=row.calls,
        error_share=row.errors / row.calls if row.calls else None,
        p50_ms=p50,
        p95_ms=p95,
        by_person=row.settings.get("grant") == "authorization_code",
        readings=tuple(readings),
        breakers=_breakers_of(row.provider, row.settings, [state.key for state in unsettled]),
        limit=_limit_of(row.provider, row.settings),
    )


def _breakers_of(provider: str, settings: dict[str, Any], keys: Iterable[str]) -> tuple[str, ...]:
    """Those of `keys` that an integration's calls go through. A token address that is not a setting is below the base,
    a revocation address that is not one may be below the issuer."""
    base_url, token_url = settings.get("base_url"), settings.get("token_url")
    if base_url is None:
        return ()
    own = {breaker_key(provider, url) for url in (base_url, token_url, settings.get("revoke_url")) if url}
    above = (base_url if token_url is None else None, settings.get("issuer"))
    below = tuple(f"{breaker_key(provider, url)}/" for url in above if url)
    return tuple(key for key in keys if key in own or key.startswith(below))


def _limit_of(provider: str, settings: dict[str, Any]) -> str | None:
    base_url = settings.get("base_url")
    if base_url is None:
        return None
    return limit_key(provider, base_url, settings.get("client_id"), settings.get("rate_group"))


def _problems(health: Health) -> Iterator[Problem]:
    for one in health.integrations:
        yield from _of_integration(one, health)
    yield from _of_tokens(health)
    for district, count in health.open_holds.items():
        words = f"{count} {'hold waits' if count == 1 else 'holds wait'} for a decision."
        yield Problem("hold", district, words, f"`sis holds list --district {district}`", person=True)
    for erasure in health.unfinished_erasures:
        words = f"The erasure of student {erasure.student_id}, begun {erasure.begun_at:%Y-%m-%d %H:%M} UTC, is not finished."
        advice = f"Unless it is still under way, finish it: `sis erase {erasure.student_id} --reason …`."
        yield Problem("erasure", erasure.district, words, advice, person=True)
    yield from _of_breakers(health)
    yield from _of_limits(health)


STATUS_ADVICE = {
    "needs_reauth": "{credentials} Then `sis integration test {key}`.",
    "failing": "`sis integration test {key}`, then `sis sync --integration {key}`",
    "degraded": "It is tried again by itself; `sis integration test {key}` asks now.",
}


def _of_integration(one: IntegrationHealth, health: Health) -> Iterator[Problem]:
    if one.status in STATUS_ADVICE:
        reason = (one.reason or "no reason was noted").rstrip(".")
        since = f" since {one.since:%Y-%m-%d %H:%M} UTC" if one.since else ""
        advice = STATUS_ADVICE[one.status].format(key=one.key, credentials=_credentials_advice(one, health.tokens))
        message = f"{one.status}{since}: {reason}."
        yield Problem("integration", one.key, message, advice, person=one.status != "degraded")
    if one.status == "paused":
        return
    if not any(reading.going for reading in one.readings):
        yield from _of_data(one, health.school_year)
    for reading in one.readings:
        if not reading.going:
            words = f"The reading of {reading.school_year} was interrupted after {reading.pages:,} pages."
            advice = f"The next sync goes on with it: `sis sync --integration {one.key}`."
            yield Problem("reading", one.key, words, advice, person=False)
    if not error_free(one):
        newest = "the newest " if one.calls >= NEWEST else ""
        words = f"{one.error_share:.0%} of {newest}{one.calls:,} calls failed in the last 24 hours."
        yield Problem("calls", one.key, words, f"`sis integration test {one.key}`", person=False)


def _credentials_advice(one: IntegrationHealth, tokens: Iterable[TokenHealth]) -> str:
    """A plugin's grant is not in the settings, but only one that a person gave has a refresh token."""
    granted = any(token.integration == one.key and token.kind == "refresh" for token in tokens)
    return advice_for(one.key, person=one.by_person or granted)


def _of_data(one: IntegrationHealth, school_year: str) -> Iterator[Problem]:
    advice = f"`sis sync --integration {one.key}`; is the daemon up (`sis up`)?"
    if one.data_age is None:
        yield Problem("data", one.key, f"There are no good data of {school_year} yet.", advice, person=True)
    elif one.data_age > STALE:
        hours = one.data_age.total_seconds() / 3600
        words = f"The data in use are {hours:,.0f} hours old."
        yield Problem("data", one.key, words, advice, person=True)


def _of_tokens(health: Health) -> Iterator[Problem]:
    """One problem for each integration: what is wrong with one of its tokens is wrong with all."""
    told = {one.key for one in health.integrations if one.status in {"needs_reauth", "paused"}}
    for token in health.tokens:
        if token.advice is None or token.integration in told:
            continue
        told.add(token.integration)
        because = f": {token.last_error}" if token.last_error else "."
        failed = f" after {token.failures} failed token calls" if token.failures else ""
        words = f"The {token.kind} token is {token.status}{failed}{because}"
        yield Problem("token", token.integration, words, token.advice, person=token.waits_for_a_person)


def _of_breakers(health: Health) -> Iterator[Problem]:
    for state in health.breakers:
        if state.state == "closed":
            continue
        whose = [one.key for one in health.integrations if state.key in one.breakers]
        until = f"for another {state.retry_after:.0f} s" if state.state == "open" else "while one process tries it"
        words = f"Left alone {until} ({state.key}): {state.last_error or 'it failed too often'}"
        advice = (
            f"It is tried again by itself; `sis health reset-breaker {whose[0] if whose else '--all'}` tries at once."
        )
        yield Problem("breaker", ", ".join(whose) or state.key, words, advice, person=False)


def _of_limits(health: Health) -> Iterator[Problem]:
    for limit in health.limits:
        if limit.pushed < PUSHED:
            continue
        whose = [one.key for one in health.integrations if limit.key == one.limit]
        words = f"The system asked everybody to wait for another {limit.pushed:.0f} s ({limit.key})."
        advice = f"Lower requests_per_minute if it repeats; `sis health reset-limit {whose[0] if whose else '--all'}` calls at once."
        yield Problem("limit", ", ".join(whose) or limit.key, words, advice, person=False)


def reset_breakers(engine: Engine, integration: str | None, actor: str | None = None) -> list[str]:
    """Close the breakers of an integration, or all; the keys of those that were not closed, or remembered failures.

    A person's action, in the audit log. Raises ConfigError where there is no such integration.
    """
    with engine.begin() as connection:
        chosen = [state.key for state in breaker.listed(connection)]
        district = "*"
        if integration is not None:
            row = _settings(connection, integration)
            chosen, district = list(_breakers_of(row.provider, row.settings, chosen)), row.district
        done = [key for key in chosen if breaker.reset(connection, key)]
        if done:
            subject = integration or "all"
            audit.append(
                connection, "breaker.reset", subject, district=district, actor=actor, details={"breakers": done}
            )
    return done


def reset_limits(engine: Engine, integration: str | None, actor: str | None = None) -> list[str]:
    """End the pause that a system asked for, of an integration or all; the keys of those where somebody had to wait.

    A person's action, in the audit log. Raises ConfigError where there is no such integration.
    """
    with engine.begin() as connection:
        chosen = [limit.key for limit in limits.listed(connection)]
        district = "*"
        if integration is not None:
            row = _settings(connection, integration)
            own, district = _limit_of(row.provider, row.settings), row.district
            chosen = [key for key in chosen if key == own]
        done = [key for key in chosen if limits.reset(connection, key)]
        if done:
            subject = integration or "all"
            audit.append(connection, "limit.reset", subject, district=district, actor=actor, details={"limits": done})
    return done


def _settings(connection: Connection, integration: str) -> Any:
    query = text("select provider, district, settings from sis.integrations where key = :key")
    row = connection.execute(query, {"key": integration}).one_or_none()
    if row is None:
        raise ConfigError(f"There is no integration {integration[:80]}.", code="config.no_integration")
    return row


# A parameter, unlike sis.clock(), lets PostgreSQL use the index on (integration, at). Without the limit every integration
# would read nearly every page of a day, because the calls of all of them lie among each other.
_INTEGRATIONS = text("""
select i.key, i.provider, i.district, i.settings, i.status, i.status_reason, i.status_since, i.failures,
       i.last_success_at, good.verdict, good.finished_at, calls.calls, calls.errors, calls.percentiles
from sis.integrations i
left join lateral (
    select verdict, finished_at from sis.snapshots
    where integration = i.key and school_year = :year and verdict in ('complete', 'partial', 'delta')
    order by started_at desc limit 1
) good on true
cross join lateral (
    select count(*) as calls, count(error_class) as errors,
           percentile_cont(array[0.5, 0.95]) within group (order by milliseconds) as percentiles
    from (
        select error_class, milliseconds from sis.api_calls where integration = i.key and at > :since
        order by at desc limit :newest
    ) newest
) calls
order by i.key
""")

_READINGS = text("""
select integration, school_year, started_at,
       (select count(*) from sis.snapshot_pages pages where pages.snapshot_id = snapshots.snapshot_id) as pages
from sis.snapshots where finished_at is null order by integration, started_at
""")

_OPEN_HOLDS = text(
    "select district, count(*) as holds from sis.holds where status = 'open' group by district order by 1"
)
