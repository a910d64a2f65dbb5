"""The sensor that keeps tokens warm: it replaces those that are about to end, and gives back what is still to be given back.
It looks at the database alone, so nothing can be missed; what a token call does is in connect.tokens."""

# No `from __future__ import annotations` here: Dagster reads the resources' annotations and wants the classes themselves.

import json
from collections.abc import Sequence
from operator import itemgetter

import dagster as dg
import structlog

from sis_pipeline.connect.errors import AuthRevokedError, SisError
from sis_pipeline.connect.retry import Backoff
from sis_pipeline.connect.source import HttpSource
from sis_pipeline.connect.upkeep import due_for_refresh, pending_revocations
from sis_pipeline.defs.failures import trouble
from sis_pipeline.defs.resources import Roster
from sis_pipeline.defs.sensors import UNREADABLE, why
from sis_pipeline.defs.token_work import Effort, Outcome, Work, on_each, refreshing

log = structlog.get_logger(__name__)

WARM_SECONDS = 60
AHEAD = 3.0 * WARM_SECONDS
"""Seconds before its window in which a token is replaced: two ticks may fail before a sync has to do it itself."""
MOST_PER_TICK = 100
REFRESHED, GIVEN_BACK = "refreshed", "given back"
EFFORT = Effort(backoff=Backoff(attempts=1, cap=0.0, waits_for_turn=False), token_turn=5.0, seconds=15.0)
"""Begun for 15 s, and a call takes at most 5 s for its turn and 25 s on the way: Dagster gives up a tick after 60 s.
Nothing is repeated in a tick: the next one is the repetition."""


def warm_sensor() -> dg.SensorDefinition:
    @dg.sensor(
        name="keep_tokens_warm",
        description="Replaces tokens before they end, uses refresh tokens that die of disuse, and gives back what is pending.",
        minimum_interval_seconds=WARM_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def keep_tokens_warm(context: dg.SensorEvaluationContext, roster: Roster) -> dg.SkipReason:
        last = _last_ones(context.cursor)
        try:
            with roster.engine.connect() as connection:
                due, pending = due_for_refresh(connection, AHEAD), pending_revocations(connection)
            due, pending = behind(due, last.get(REFRESHED)), behind(pending, last.get(GIVEN_BACK))
            refreshed = _each(roster, due, refreshing(roster.integrations))
            given_back = _each(roster, pending, HttpSource.finish_revocations)
        except UNREADABLE as error:
            return dg.SkipReason(f"Tokens can't be looked after. {why(error)}")
        reached = {REFRESHED: _last_of(due, refreshed), GIVEN_BACK: _last_of(pending, given_back)}
        context.update_cursor(json.dumps(last | {what: key for what, key in reached.items() if key is not None}))
        done = [_told(REFRESHED, due, refreshed), _told(GIVEN_BACK, pending, given_back)]
        return dg.SkipReason("; ".join(said for said in done if said) or "Every token is warm.")

    return keep_tokens_warm


def behind(keys: Sequence[str], last: str | None) -> list[str]:
    """The keys in order, beginning behind the last one of the tick before, and with those up to it at the end.

    Those that fail without resting, as behind a token endpoint that is left alone, are due at every tick: from the
    front they would take the place of all others for as long as it lasts.
    """
    return sorted(keys, key=lambda key: (last is not None and key <= last, key))


def _last_ones(cursor: str | None) -> dict[str, str]:
    """What is done -> the last integration that it was done for; empty where nobody knows, as after a person's reset."""
    try:
        last = json.loads(cursor or "{}")
    except ValueError:
        return {}
    return {what: key for what, key in last.items() if isinstance(key, str)} if isinstance(last, dict) else {}


def _last_of(order: Sequence[str], outcomes: Sequence[Outcome]) -> str | None:
    begun = {one.integration.key for one in outcomes}
    return next((key for key in reversed(order) if key in begun), None)


def _each(roster: Roster, keys: Sequence[str], work: Work) -> list[Outcome]:
    """Asks for no encryption key where nothing is to be done."""
    if not keys:
        return []
    registered = {one.key: one for one in roster.integrations.list()}
    chosen = [registered[key] for key in keys[:MOST_PER_TICK] if key in registered]
    return list(on_each(chosen, work, vault=roster.vault, engine=roster.engine, effort=EFFORT))


def _told(what: str, asked: Sequence[str], outcomes: Sequence[Outcome]) -> str:
    """`3 refreshed, 1 failed (lincoln: transient.server_error), 2 left for the next tick`; empty where nothing was due."""
    failed = sorted(((one.integration.key, one.error) for one in outcomes if one.error is not None), key=itemgetter(0))
    for key, error in failed:
        if isinstance(error, AuthRevokedError):
            continue  # whoever met it has told it: one alert
        said = trouble(error)
        log.warning("token.not_" + what.replace(" ", "_"), integration=key, code=said.code, error=said.message)
    parts = [f"{len(outcomes) - len(failed)} {what}"]
    if failed:
        parts.append(f"{len(failed)} failed ({', '.join(f'{key}: {_code(error)}' for key, error in failed[:5])})")
    if len(asked) > len(outcomes):
        parts.append(f"{len(asked) - len(outcomes)} left for the next tick")
    return ", ".join(parts) if asked else ""


def _code(error: Exception) -> str:
    return error.code if isinstance(error, SisError) else type(error).__name__
