"""One integration's source: authorised, in turn with all other processes, retried by class, every call on record.
The parts (door, token, limit, breaker, waiting) live in their own modules; what is read, and why, the provider decides."""

from __future__ import annotations

import math
import re
import time
import uuid
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from types import TracebackType
from typing import Protocol, Self, TypeVar
from urllib.parse import urlsplit

import structlog
from requests.auth import AuthBase
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError
from structlog.contextvars import bound_contextvars

from sis_pipeline.connect import breaker as breakers
from sis_pipeline.connect import limits
from sis_pipeline.connect.addresses import origin
from sis_pipeline.connect.breaker import Breaker, BreakerState, Permit, SourceLeftAloneError, breaker_key
from sis_pipeline.connect.contract import Answer, OAuth, Request, Token
from sis_pipeline.connect.discovery import Discovered, Get, discover
from sis_pipeline.connect.errors import (
    AuthExpiredError,
    AuthRevokedError,
    Call,
    ConfigError,
    ContractError,
    ErrorClass,
    Policy,
    RateLimitedError,
    SisError,
    classify,
)
from sis_pipeline.connect.http import Door, Reply, checked_headers, expect_json
from sis_pipeline.connect.limits import LimitState, RateLimit, limit_key
from sis_pipeline.connect.oauth import Hint, Post, TokenEndpoint
from sis_pipeline.connect.retry import Backoff, Patience, RetryBudget, attempts
from sis_pipeline.connect.tokens import Tokens
from sis_pipeline.connect.vault import Vault
from sis_pipeline.connect.wire import Timeouts
from sis_pipeline.db import audit

log = structlog.get_logger(__name__)

T = TypeVar("T")

TOKEN_TIMEOUTS = Timeouts(connect=5.0, read=20.0, total=20.0)
"""At most these for a token call: other processes wait for it."""
TOKEN_TURN = 30.0
"""Seconds a token call waits for its turn while others wait for it; for longer it lets go and tries again later."""
RECORDS_PER_WRITE = 50
REQUEST_ID = "X-Request-Id"
"""The header that carries a request's id: servers that know it write it to their logs, the others ignore it."""
PROBE_SPARE = 5.0
"""Seconds that a probe may take beside connecting and waiting for the answer."""


class HttpOptions(Protocol):
    """The settings of an integration that matter here; providers.base.HttpSettings has them all."""

    @property
    def base_url(self) -> str: ...
    @property
    def extra_headers(self) -> Mapping[str, str]: ...
    @property
    def rate_group(self) -> str | None: ...
    @property
    def private_addresses(self) -> bool: ...
    @property
    def connect_timeout(self) -> float: ...
    @property
    def read_timeout(self) -> float: ...
    @property
    def total_timeout(self) -> float: ...


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One attempt, as api_calls keeps it; `status` is None where no answer came, `error_class` None for success."""

    method: str
    template: str
    status: int | None
    error_class: str | None
    milliseconds: float
    bytes: int
    attempt: int
    request_id: str


@dataclass(slots=True)
class Seen:
    """What a source saw: how many calls had which HTTP status (None where no answer came), and the time each took."""

    by_status: Counter[int | None] = field(default_factory=Counter)
    milliseconds: array[float] = field(default_factory=lambda: array("d"))

    def add(self, record: CallRecord) -> None:
        self.by_status[record.status] += 1
        self.milliseconds.append(record.milliseconds)


@dataclass(frozen=True, slots=True)
class Report:
    """What sources to one system saw together, and what all processes share about it right now.

    `p50_ms` and `p95_ms` are None without a call; `limit` is None where it was never used; `breakers` are those that
    are not closed or remember failures.
    """

    by_status: Mapping[int | None, int]
    p50_ms: float | None
    p95_ms: float | None
    repeated: int
    limit: LimitState | None
    breakers: tuple[BreakerState, ...]


def report(sources: Sequence[HttpSource]) -> Report:
    """The report on the sources of one integration, at least one; it asks the database once."""
    ordered = sorted(chain.from_iterable(source.seen.milliseconds for source in sources))
    shared = sources[0].shared_state()
    return Report(
        by_status=dict(sum((source.seen.by_status for source in sources), Counter())),
        p50_ms=percentile(ordered, 0.5),
        p95_ms=percentile(ordered, 0.95),
        repeated=sum(budget.retries for budget in {id(one.budget): one.budget for one in sources}.values()),
        limit=shared[0],
        breakers=shared[1],
    )


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The value that `share` (0 … 1) of the ordered values do not exceed, by nearest rank; None where there are none."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else None


def open_source(
    integration: str,
    *,
    provider: str,
    settings: HttpOptions,
    oauth: OAuth | None,
    requests_per_minute: float,
    vault: Vault,
    engine: Engine,
    snapshot_id: str | None = None,
    on_call: Callable[[CallRecord], None] | None = None,
    backoff: Backoff | None = None,
    budget: RetryBudget | None = None,
    token_turn: float = TOKEN_TURN,
) -> HttpSource:
    """The source of an integration, to be used as a context manager. Opens nothing yet. Sources of one run share a
    `budget`. `token_turn`: the most seconds that a token call waits for its turn.

    Raises ConfigError for addresses and headers that must not be used.
    """
    urls = [settings.base_url, *(oauth.urls if oauth else ())]
    timeouts = Timeouts(settings.connect_timeout, settings.read_timeout, settings.total_timeout)
    lease = timeouts.connect + timeouts.total + PROBE_SPARE
    return HttpSource(
        integration,
        settings.base_url,
        door=Door(urls, timeouts=timeouts, private_addresses=settings.private_addresses),
        timeouts=timeouts,
        oauth=oauth,
        rate=RateLimit(engine),
        rate_key=rate_key(provider, settings, oauth),
        requests_per_minute=requests_per_minute,
        breaker_of=lambda url: Breaker(engine, breaker_key(provider, url), lease=lease),
        vault=vault,
        calls=CallLog(engine, integration, snapshot_id),
        headers=checked_headers(settings.extra_headers),
        on_call=on_call,
        backoff=backoff or Backoff(),
        budget=budget or RetryBudget(),
        token_turn=token_turn,
    )


def rate_key(provider: str, settings: HttpOptions, oauth: OAuth | None) -> str:
    """What shares one limit: the vendor's server and client, or the group the integration names."""
    return limit_key(provider, settings.base_url, oauth.client_id if oauth else None, settings.rate_group)


class HttpSource:
    """Implements contract.Source. For one thread; processes share tokens and limits through the database.

    `calls` counts every attempt, token calls included; `throttled` the times the source said to slow down;
    `waited_seconds` what was spent waiting for turns, for a system left alone and before retries; `bytes` the decoded
    bytes of all answers. `token_version`: which access token was used last, None before there was one.
    """

    def __init__(
        self,
        integration: str,
        base_url: str,
        *,
        door: Door,
        timeouts: Timeouts,
        oauth: OAuth | None,
        rate: RateLimit,
        rate_key: str,
        requests_per_minute: float,
        breaker_of: Callable[[str], Breaker],
        vault: Vault,
        calls: CallLog,
        headers: Mapping[str, str],
        on_call: Callable[[CallRecord], None] | None,
        backoff: Backoff,
        budget: RetryBudget,
        token_turn: float,
    ) -> None:
        self.integration = integration
        self.calls = 0
        self.token_calls = 0
        self.throttled = 0
        self.waited_seconds = 0.0
        self.bytes = 0
        self.seen = Seen()
        self.budget = budget
        self._base_url = _checked_base(base_url)
        self._door = door
        self._token_timeouts = _at_most(timeouts, TOKEN_TIMEOUTS)
        self._oauth = oauth
        self.token_version: int | None = None
        self._attempt = 1
        grants = _Grants(oauth, integration, vault, self._get_metadata, self._post_token) if oauth else None
        self._tokens = Tokens(vault, integration, grants) if grants else None
        self._rate = rate
        self._rate_key = rate_key
        self._per_minute = requests_per_minute
        self._breaker = breaker_of(base_url)
        self._breaker_of = breaker_of
        self._endpoint_breakers = {oauth.token_url: breaker_of(oauth.token_url)} if oauth else {}
        self._request_id: str | None = None
        self._calls = calls
        self._headers = headers
        self._on_call = on_call
        self._backoff = backoff
        self._token_turn = token_turn

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except SQLAlchemyError:
            if error is None:
                raise
            log.warning("calls not recorded", integration=self.integration, calls=len(self._calls))

    def close(self) -> None:
        """Write the outstanding records and close the connections."""
        self._door.close()
        self._calls.flush()

    def shared_state(self) -> tuple[LimitState | None, tuple[BreakerState, ...]]:
        """The rate limit and the breakers of this source as they are now; see Report."""
        own = {one.key for one in (self._breaker, *self._endpoint_breakers.values())}
        with self._calls.engine.connect() as connection:
            limit = next(iter(limits.listed(connection, self._rate_key)), None)
            return limit, tuple(state for state in breakers.listed(connection) if state.key in own)

    def send(self, request: Request) -> Answer:
        """The answer to one request, below the base URL and nowhere else; see contract.Source.

        A token that is refused is replaced once per request: refused again, 401 means that the credentials are
        revoked, and any other status (403) that access is not granted.
        """
        call = Call(self.integration, request.method, request.template or _template(request.path))
        url = self._url(call, request.path)
        headers = {**self._headers, **checked_headers(request.headers)}
        refused: list[str] = []

        def once(attempt: int) -> Answer:
            self._breaker.check()  # before a token is fetched for nothing
            token = self._token(refused[-1] if refused else None, attempt)
            bearer = {"Authorization": f"Bearer {token}"} if token else {}
            try:
                return self._exchange(
                    call,
                    url,
                    breaker=self._breaker,
                    accept=_answer,
                    attempt=attempt,
                    params=request.params,
                    json=request.json,
                    headers=headers | bearer,
                )
            except SisError as error:
                raise self._after_refusal(call, error, token, refused) from None

        self._request_id = uuid.uuid4().hex
        try:
            with bound_contextvars(**call.context(), request_id=self._request_id):
                return replace(self._persist(once), token_version=self.token_version)
        finally:
            self._request_id = None

    def _persist(self, once: Callable[[int], T]) -> T:
        """Call `once` with the number of the attempt until it succeeds or its error is final."""
        failed_at = None
        patience = Patience.of(self._backoff)
        for attempt in attempts(self._backoff, self.budget, self._before_retry):
            if failed_at is not None:
                self.waited_seconds += time.monotonic() - failed_at
            with attempt:
                try:
                    return self._sit_out(once, attempt.num, patience)
                finally:
                    failed_at = time.monotonic()
        raise AssertionError("attempts end with an answer or an error")

    def _sit_out(self, once: Callable[[int], T], attempt: int, patience: Patience) -> T:
        """One attempt, waiting for a system that is left alone, or to ask for a token when its turn is near: nothing is
        sent meanwhile, so waiting is no attempt.

        An outage that outlasts the patience ends the run at once; a later run finds the system back. A turn is waited
        for as data calls wait for theirs, however far off, where the backoff says so.
        """
        while True:
            try:
                return once(attempt)
            except (SourceLeftAloneError, _TurnTooFarError) as error:
                seconds = error.retry_after or 0.0
                far_turn = isinstance(error, _TurnTooFarError)
                if not (self._backoff.waits_for_turn if far_turn else patience.take(seconds)):
                    raise
                log.info("waiting before anything is sent", seconds=round(seconds, 1), because=error.code)
                self.waited_seconds += seconds
                time.sleep(seconds)

    def _before_retry(self, error: SisError, seconds: float) -> float:
        """Seconds to sleep. A throttle is everybody's: the wait goes into the shared limit, where the next attempt
        meets it; a turn that was too far off is in there already."""
        if isinstance(error, RateLimitedError) and not isinstance(error, _TurnTooFarError):
            self._rate.push_back(self._rate_key, seconds)
            return 0.0
        return seconds

    def _after_refusal(self, call: Call, error: SisError, token: str | None, refused: list[str]) -> SisError:
        """What an error means for the token: expired at the first refusal, the error itself or revoked at the second."""
        status = error.context.get("status")
        refuses = self._oauth.refused_token_statuses if self._oauth else frozenset()
        if token is None or status not in refuses or isinstance(error, RateLimitedError):
            return error
        if not refused:
            refused.append(token)
            return AuthExpiredError(
                f"{call} answered {status}: the access token was refused.", code="auth_expired.refused", **error.context
            )
        if status != 401:
            return error
        return AuthRevokedError(
            f"{call} answered 401 to a newly fetched access token as well: access was withdrawn.",
            code="auth_revoked.refused",
            **error.context,
        )

    def _token(self, refused: str | None, attempt: int) -> str | None:
        if self._tokens is None:
            return None
        self._attempt = attempt
        bearer = self._tokens.bearer(refused)
        self.token_version = bearer.version
        return bearer.value

    def refresh_token(self) -> int:
        """Have a new access token, whatever the stored one is like; its version. Raises as tokens.Tokens.refresh_now."""
        tokens = self._own_tokens()

        def once(attempt: int) -> int:
            self._attempt = attempt
            return tokens.refresh_now().version

        return self._persist(once)

    def revoke_tokens(self, *, actor: str | None = None) -> int:
        """Give all tokens back to the server, asking it once; how many. Raises as tokens.Tokens.revoke."""
        return self._once(lambda: self._own_tokens().revoke(actor=actor))

    def finish_revocations(self, *, actor: str | None = None) -> int:
        """Give back the tokens that the server has not confirmed yet, asking it once; how many."""
        return self._once(lambda: self._own_tokens().finish_revocations(actor=actor))

    def _once(self, ask: Callable[[], T]) -> T:
        """Not tried again here; a throttle is everybody's all the same."""
        self._attempt = 1
        try:
            return ask()
        except RateLimitedError as error:
            self._before_retry(error, error.retry_after or 0.0)
            raise

    def authorize(self, code: str, verifier: str, redirect_uri: str, *, actor: str | None = None) -> int:
        """Exchange the code that a person's authorization gave (connect.authorize), and keep the tokens; their version.

        Asked once: a code is good for one exchange. Whatever else has to be asked is asked before: what was granted
        exists nowhere but here until it is kept.
        """
        tokens, self._attempt = self._own_tokens(), 1
        revocable = tokens.may_be_revocable()
        token = tokens.grants.exchange(code, verifier, redirect_uri)
        self.token_version = tokens.accept(token, revocable=revocable, actor=actor).version
        return self.token_version

    def discovered(self) -> Discovered:
        """The authorization with what its server publishes filled in, asked once; raises as discovery.discover."""
        if self._oauth is None:
            raise self._without_tokens()
        return discover(self._oauth, self.integration, self._get_metadata)

    def _own_tokens(self) -> Tokens:
        if self._tokens is None:
            raise self._without_tokens()
        return self._tokens

    def _without_tokens(self) -> ConfigError:
        return ConfigError(
            f"Integration {self.integration!r} is read without authorization; it has no tokens.",
            code="config.no_tokens",
            integration=self.integration,
        )

    def _get_metadata(self, url: str, *, accept: Callable[[Call, Reply], T]) -> T:
        """No more patient than a token call: what waits for it is about to make one."""
        return self._once(
            lambda: self._exchange(
                Call(self.integration, "GET", urlsplit(url).path),
                url,
                breaker=self._endpoint_breaker(url),
                accept=accept,
                attempt=1,
                longest_turn=self._token_turn,
                timeouts=self._token_timeouts,
            )
        )

    def _post_token(
        self,
        url: str,
        *,
        accept: Callable[[Call, Reply], T],
        data: Mapping[str, str],
        headers: Mapping[str, str],
        auth: AuthBase,
    ) -> T:
        before = self.calls
        try:
            return self._exchange(
                Call(self.integration, "POST", urlsplit(url).path or "/"),
                url,
                breaker=self._endpoint_breaker(url),
                accept=accept,
                attempt=self._attempt,
                longest_turn=self._token_turn,
                data=data,
                headers=headers,
                auth=auth,
                timeouts=self._token_timeouts,
            )
        finally:
            self.token_calls += self.calls - before

    def _exchange(
        self,
        call: Call,
        url: str,
        *,
        breaker: Breaker,
        accept: Callable[[Call, Reply], T],
        attempt: int,
        longest_turn: float | None = None,
        headers: Mapping[str, str] | None = None,
        **request: object,
    ) -> T:
        """One attempt, in turn, counted and recorded: what `accept` makes of the answer, or its error."""
        reply: Reply | None = None
        failure: BaseException | None = None
        request_id = self._request_id or uuid.uuid4().hex
        headers = {REQUEST_ID: request_id, **(headers or {})}
        permit = breaker.enter()
        started, waited = time.monotonic(), self.waited_seconds

        def turn() -> Iterator[float]:
            return self._turn(call, longest_turn, breaker, permit)

        with bound_contextvars(**call.context(), attempt=attempt, request_id=request_id):
            try:
                reply = self._door.send(call, url, turn=turn, headers=headers, **request)  # type: ignore[arg-type]
                return accept(call, reply)
            except BaseException as error:
                if isinstance(error, SisError):
                    error.context.setdefault("attempt", attempt)
                    error.context.setdefault("request_id", request_id)
                failure = error
                raise
            finally:
                seconds = reply.seconds if reply else time.monotonic() - started - (self.waited_seconds - waited)
                foreseen = failure if isinstance(failure, SisError) else None
                breaker.settle(permit, foreseen, answered=_status_of(reply, failure) is not None)
                if not isinstance(failure, _TurnTooFarError | SourceLeftAloneError):
                    self._record(call, reply, failure, seconds=seconds, attempt=attempt, request_id=request_id)

    def _endpoint_breaker(self, url: str) -> Breaker:
        """Each endpoint of an authorization server has its own: integrations may share it, and each fails by itself."""
        if url not in self._endpoint_breakers:
            self._endpoint_breakers[url] = self._breaker_of(url)
        return self._endpoint_breakers[url]

    def _turn(self, call: Call, longest: float | None, breaker: Breaker, permit: Permit) -> Iterator[float]:
        waited = False
        for wait in self._rate.waits(self._rate_key, self._per_minute):
            if longest is not None and wait > longest:
                raise _TurnTooFarError(
                    f"{call} has to wait {wait:.0f} s for its turn.",
                    code="rate_limited.turn_too_far",
                    retry_after=wait,
                    **call.context(),
                )
            began = time.monotonic()
            yield wait
            self.waited_seconds += time.monotonic() - began
            waited = True
            if not permit.probe:
                breaker.confirm(permit, waited=True)  # before the next slot is asked for: none is used up in vain
        breaker.confirm(permit, waited=waited)

    def _record(
        self,
        call: Call,
        reply: Reply | None,
        failure: BaseException | None,
        *,
        seconds: float,
        attempt: int,
        request_id: str,
    ) -> None:
        size = len(reply.body) if reply else 0
        status = _status_of(reply, failure)
        record = CallRecord(
            method=call.method,
            template=call.template,
            status=status,
            error_class=_class_of(failure),
            milliseconds=seconds * 1000,
            bytes=size,
            attempt=attempt,
            request_id=request_id,
        )
        log.debug(
            "called", status=status, milliseconds=round(seconds * 1000), bytes=size, error_class=record.error_class
        )
        self.seen.add(record)
        self.calls += 1
        self.bytes += size
        self.throttled += isinstance(failure, RateLimitedError) and status is not None
        self._calls.add(record)
        if self._on_call is not None:
            self._on_call(record)

    def _url(self, call: Call, path: str) -> str:
        """Where a request goes: below the base URL, or at an address of the same origin that starts as the base does.

        `students`, `/students` and `/base/path/students` are all below `https://host/base/path`.
        """
        if re.search(r"[\x00-\x20\x7f\\]", path):
            raise ContractError(
                f"{call} has a path with characters that no path has; it was not sent.",
                code="contract.bad_path",
                **call.context(),
            )
        parts = urlsplit(self._base_url)
        if re.match(r"([a-z][a-z0-9+.-]*:)?//", path, re.IGNORECASE):
            absolute = f"{parts.scheme}:{path}" if path.startswith("//") else path
            if origin(absolute) != origin(self._base_url):
                raise ContractError(
                    f"{call} leads to another host; it was not sent.", code="contract.other_host", **call.context()
                )
            return absolute
        base_path = parts.path.rstrip("/")
        below = path if base_path and path.startswith(f"{base_path}/") else f"{base_path}/{path.lstrip('/')}"
        return f"{parts.scheme}://{parts.netloc}{below}"


class _TurnTooFarError(RateLimitedError):
    """No request was made: a token call would have had to wait for too long. The door has waited where it does."""

    @property
    def policy(self) -> Policy:
        return replace(super().policy, retry=False)


class _Grants:
    """tokens.Grants of one source: the protocol's calls, with the stored client secret, through the source's door."""

    def __init__(self, oauth: OAuth, integration: str, vault: Vault, get: Get, post: Post) -> None:
        self._oauth = oauth
        self._endpoint = TokenEndpoint(oauth, integration)
        self._integration = integration
        self._vault = vault
        self._get = get
        self._post = post
        self.refreshes = oauth.grant == "authorization_code"

    @property
    def revocable(self) -> bool:
        return self._completed.revoke_url is not None

    @cached_property
    def _completed(self) -> OAuth:
        """With the revocation endpoint that the server publishes, where none is set; asked for when it is needed."""
        if self._oauth.revoke_url is not None:
            return self._oauth
        return discover(self._oauth, self._integration, self._get).oauth

    def fetch(self) -> Token:
        return self._endpoint.fetch(self._secret, self._post)

    def refresh(self, refresh_token: str, granted: str | None) -> Token:
        return self._endpoint.refresh(refresh_token, self._secret, self._post, granted=granted)

    def exchange(self, code: str, verifier: str, redirect_uri: str) -> Token:
        return self._endpoint.exchange(code, verifier, redirect_uri, self._secret, self._post)

    def revoke(self, token: str, hint: Hint) -> None:
        TokenEndpoint(self._completed, self._integration).revoke(token, hint, self._secret, self._post)

    @property
    def _secret(self) -> str | None:
        return self._vault.get(self._integration, "client_secret")


class CallLog:
    """The rows of api_calls, written a batch at a time. A row's time is when its call ended, on the database clock."""

    def __init__(self, engine: Engine, integration: str, snapshot_id: str | None) -> None:
        self.engine = engine
        self._about = {"integration": integration, "snapshot_id": snapshot_id}
        self._pending: list[tuple[float, CallRecord]] = []

    def __len__(self) -> int:
        """How many are not yet written."""
        return len(self._pending)

    def add(self, record: CallRecord) -> None:
        self._pending.append((time.monotonic(), record))
        if len(self._pending) >= RECORDS_PER_WRITE:
            self.flush()

    def flush(self) -> None:
        if not self._pending:
            return
        now = time.monotonic()
        rows = [{**self._about, **asdict(record), "age": now - at} for at, record in self._pending]
        with self.engine.begin() as connection:
            connection.execute(_INSERT_CALLS, rows)
        self._pending.clear()


def purge_api_calls(engine: Engine, days: float, *, dry_run: bool = False) -> int:
    """Delete the records of calls that ended more than `days` ago; how many there were, or with `dry_run` are."""
    what = "select from" if dry_run else "delete from"
    with engine.begin() as connection:
        before = connection.scalar(text("select sis.clock() - make_interval(secs => :s)"), {"s": days * 86_400})
        old = connection.execute(text(f"{what} sis.api_calls where at < :before"), {"before": before}).rowcount
        if old and not dry_run:
            audit.append(connection, "retention.delete", "api_calls", details={"deleted": old})
    return old


_INSERT_CALLS = text("""
insert into sis.api_calls (integration, at, snapshot_id, method, template, status, error_class, milliseconds, bytes, attempt,
                           request_id)
values (:integration, sis.clock() - make_interval(secs => :age), cast(:snapshot_id as uuid), :method, :template, :status,
        :error_class, :milliseconds, :bytes, :attempt, :request_id)
""")


def _answer(call: Call, reply: Reply) -> Answer:
    if not 200 <= reply.status < 300:
        raise classify(call, reply.status, reply.headers, reply.body)
    expect_json(call, reply)
    return Answer(reply.status, reply.headers, reply.body)


def _status_of(reply: Reply | None, failure: BaseException | None) -> int | None:
    """The HTTP status of an answer, also of one that broke off or was too large; None where none came."""
    status = reply.status if reply else failure.context.get("status") if isinstance(failure, SisError) else None
    return status if isinstance(status, int) else None


def _class_of(failure: BaseException | None) -> str | None:
    """The class that api_calls names: None, a success, only where nothing at all went wrong. A fault of ours is internal;
    what was interrupted (Ctrl-C, the end of a run) can simply be done again."""
    if failure is None:
        return None
    if isinstance(failure, SisError):
        return failure.error_class.value
    return (ErrorClass.INTERNAL if isinstance(failure, Exception) else ErrorClass.TRANSIENT).value


def _checked_base(url: str) -> str:
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise ConfigError("base_url must not have a query or a fragment.", code="config.address")
    return url


def _at_most(timeouts: Timeouts, cap: Timeouts) -> Timeouts:
    return Timeouts(min(timeouts.connect, cap.connect), min(timeouts.read, cap.read), min(timeouts.total, cap.total))


def _template(path: str) -> str:
    """A path whose segments that look like ids are replaced, for requests that name no template."""
    segments = urlsplit(path).path.split("/")
    return "/".join("{id}" if re.search(r"\d{2}|^-?\d+$|^.{25,}$", part) else part for part in segments)
