"""Work on the tokens of many integrations at once: each through its own door, and one that fails stops no other.
Which of them need it is said by connect.upkeep; when, by the sensor in `tokens` and by `sis tokens`. Loads no Dagster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from sqlalchemy import Engine

from sis_pipeline.connect.errors import ConfigError, SisError
from sis_pipeline.connect.retry import Backoff, RetryBudget
from sis_pipeline.connect.source import TOKEN_TURN, HttpSource, open_source
from sis_pipeline.connect.vault import Vault
from sis_pipeline.providers.base import HttpSettings
from sis_pipeline.providers.registry import make
from sis_pipeline.store.integrations import Integration, Integrations

Work = Callable[[HttpSource], object]

FEW = Backoff(attempts=3, cap=5.0, waits_for_turn=False)
"""What fails for longer is left to the next call, and a system that is left alone is not waited for: the others go on."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done at once, and how hard. `parallel` doors; `seconds` after which none is begun any more;
    `token_turn`: the most seconds that a call waits for its turn, before it lets go and perhaps asks again."""

    parallel: int = 4
    backoff: Backoff = FEW
    token_turn: float = TOKEN_TURN
    seconds: float = float("inf")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one integration: None where the work was done, else what kept it."""

    integration: Integration
    error: Exception | None = None


def on_each(
    integrations: Sequence[Integration], work: Work, *, vault: Vault, engine: Engine, effort: Effort
) -> Iterator[Outcome]:
    """Do the work, several at a time, within the limits that all processes share; outcomes as they come.

    Those that were not begun in time have no outcome. Leaving early, also by Ctrl-C, ends what is under way in order
    and begins no more. Together they repeat no more calls than one run may.
    """
    until = time.monotonic() + effort.seconds
    budget = RetryBudget()

    def one(integration: Integration) -> Outcome | None:
        if time.monotonic() > until:
            return None
        try:
            with door(integration, vault=vault, engine=engine, effort=effort, budget=budget) as source:
                work(source)
        except Exception as error:  # noqa: BLE001 it is this integration's outcome; the others go on
            return Outcome(integration, error)
        return Outcome(integration)

    pool = ThreadPoolExecutor(effort.parallel, thread_name_prefix="tokens")
    try:
        under_way: list[Future[Outcome | None]] = [pool.submit(one, integration) for integration in integrations]
        for future in as_completed(under_way):
            outcome = future.result()
            if outcome is not None:
                yield outcome
    finally:
        pool.shutdown(cancel_futures=True)


def refreshing(integrations: Integrations) -> Work:
    """The work of having a new token, and of keeping what its outcome says of the connection.

    Credentials that are refused are told before the night's sync meets them, and a client or a grant that works again
    ends `needs_reauth`. That it works says nothing of the system behind it, so nothing else is healed.
    """

    def work(source: HttpSource) -> None:
        try:
            source.refresh_token()
        except SisError as error:
            integrations.note_test(source.integration, error)
            raise
        integrations.credentials_changed(source.integration)

    return work


def door(
    integration: Integration, *, vault: Vault, engine: Engine, effort: Effort, budget: RetryBudget | None = None
) -> HttpSource:
    """The door of an integration, to be used as a context manager. Raises ConfigError where it has none, or where its
    settings are wrong."""
    provider = make(integration.provider, dict(integration.settings))
    if not isinstance(provider.settings, HttpSettings):
        raise ConfigError(
            f"Integration {integration.key!r} is read without authorization; it has no tokens.",
            code="config.no_tokens",
            integration=integration.key,
        )
    return open_source(
        integration.key,
        provider=provider.name,
        settings=provider.settings,
        oauth=provider.authentication(),
        requests_per_minute=provider.rate,
        vault=vault,
        engine=engine,
        backoff=effort.backoff,
        budget=budget,
        token_turn=effort.token_turn,
    )
