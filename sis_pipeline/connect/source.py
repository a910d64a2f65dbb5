"""One integration's source: authorised, in turn with all other processes, retried by class, every call on record.
The parts (door, token, limit, waiting) live in their own modules; what is read, and why, is decided by the provider."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Protocol, Self, TypeVar
from urllib.parse import urlsplit

import structlog
from requests.auth import AuthBase
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from sis_pipeline.connect.contract import Answer, OAuth, Request
from sis_pipeline.connect.errors import (
    AuthExpiredError,
    AuthRevokedError,
    Call,
    ConfigError,
    ContractError,
    RateLimitedError,
    SisError,
    classify,
)
from sis_pipeline.connect.http import Door, Reply, checked_headers, expect_json, origin
from sis_pipeline.connect.limits import RateLimit
from sis_pipeline.connect.oauth import TokenEndpoint, read_token
from sis_pipeline.connect.retry import Backoff, attempts
from sis_pipeline.connect.vault import Token, Vault
from sis_pipeline.connect.wire import Timeouts

log = structlog.get_logger(__name__)

T = TypeVar("T")

TOKEN_TIMEOUTS = Timeouts(connect=5.0, read=20.0, total=20.0)
"""At most these for a token call: other processes wait for it behind the lock on the token's row."""
TOKEN_TURN = 30.0
"""Seconds a token call waits for its turn while it holds that lock; for longer it lets go and tries again later."""
RECORDS_PER_WRITE = 50


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
) -> HttpSource:
    """The source of an integration, to be used as a context manager. Opens nothing yet.

    Raises ConfigError for addresses and headers that must not be used.
    """
    urls = [settings.base_url] + ([oauth.token_url] if oauth else [])
    timeouts = Timeouts(settings.connect_timeout, settings.read_timeout, settings.total_timeout)
    return HttpSource(
        integration,
        settings.base_url,
        door=Door(urls, timeouts=timeouts, private_addresses=settings.private_addresses),
        timeouts=timeouts,
        oauth=oauth,
        rate=RateLimit(engine),
        rate_key=rate_key(provider, settings, oauth),
        requests_per_minute=requests_per_minute,
        vault=vault,
        calls=CallLog(engine, integration, snapshot_id),
        headers=checked_headers(settings.extra_headers),
        on_call=on_call,
        backoff=backoff or Backoff(),
    )


def rate_key(provider: str, settings: HttpOptions, oauth: OAuth | None) -> str:
    """What shares one limit: the vendor's server and client, or the group the integration names."""
    if settings.rate_group:
        return f"group {settings.rate_group}"
    return f"{provider} {origin(settings.base_url)} {oauth.client_id if oauth else '-'}"


class HttpSource:
    """Implements contract.Source. For one thread; processes share tokens and limits through the database.

    `calls` counts every attempt, token calls included; `throttled` the times the source said to slow down;
    `waited_seconds` what was spent waiting for turns and before retries; `bytes` the decoded bytes of all answers.
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
        vault: Vault,
        calls: CallLog,
        headers: Mapping[str, str],
        on_call: Callable[[CallRecord], None] | None,
        backoff: Backoff,
    ) -> None:
        self.integration = integration
        self.calls = 0
        self.token_calls = 0
        self.throttled = 0
        self.waited_seconds = 0.0
        self.bytes = 0
        self._base_url = _checked_base(base_url)
        self._door = door
        self._token_timeouts = _at_most(timeouts, TOKEN_TIMEOUTS)
        self._oauth = oauth
        self._endpoint = TokenEndpoint(oauth, integration) if oauth else None
        self._rate = rate
        self._rate_key = rate_key
        self._per_minute = requests_per_minute
        self._vault = vault
        self._calls = calls
        self._headers = headers
        self._on_call = on_call
        self._backoff = backoff

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
            token = self._token(call, refused[-1] if refused else None, attempt)
            bearer = {"Authorization": f"Bearer {token}"} if token else {}
            try:
                return self._exchange(
                    call,
                    url,
                    accept=_answer,
                    attempt=attempt,
                    params=request.params,
                    json=request.json,
                    headers=headers | bearer,
                )
            except SisError as error:
                raise self._after_refusal(call, error, token, refused) from None

        return self._persist(once)

    def _persist(self, once: Callable[[int], T]) -> T:
        """Call `once` with the number of the attempt until it succeeds or its error is final."""
        failed_at = None
        for attempt in attempts(self._backoff, self._before_retry):
            if failed_at is not None:
                self.waited_seconds += time.monotonic() - failed_at
            with attempt:
                try:
                    return once(attempt.num)
                finally:
                    failed_at = time.monotonic()
        raise AssertionError("attempts end with an answer or an error")

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
            return AuthExpiredError(f"{call} answered {status}: the access token was refused.", **error.context)
        if status != 401:
            return error
        return AuthRevokedError(
            f"{call} answered 401 to a newly fetched access token as well: access was withdrawn.", **error.context
        )

    def _token(self, call: Call, refused: str | None, attempt: int) -> str | None:
        if self._oauth is None or self._endpoint is None:
            return None
        endpoint = self._endpoint
        token_call = Call(self.integration, "POST", urlsplit(self._oauth.token_url).path or "/")

        def post(url: str, *, data: Mapping[str, str], headers: Mapping[str, str], auth: AuthBase) -> Token:
            before = self.calls
            try:
                return self._exchange(
                    token_call,
                    url,
                    accept=read_token,
                    attempt=attempt,
                    longest_turn=TOKEN_TURN,
                    data=data,
                    headers=headers,
                    auth=auth,
                    timeouts=self._token_timeouts,
                )
            finally:
                self.token_calls += self.calls - before

        def fetch() -> Token:
            secret = self._vault.get(self.integration, "client_secret")
            if secret is None:
                raise ConfigError(
                    f"Integration {self.integration!r} has no client secret.",
                    advice="Set it with `sis integration add KEY --replace`.",
                    **call.context(),
                )
            return endpoint.fetch(secret, post)

        return self._vault.access_token(self.integration, fetch, refused=refused)

    def _exchange(
        self,
        call: Call,
        url: str,
        *,
        accept: Callable[[Call, Reply], T],
        attempt: int,
        longest_turn: float | None = None,
        **request: object,
    ) -> T:
        """One attempt, in turn, counted and recorded: what `accept` makes of the answer, or its error."""
        reply: Reply | None = None
        failure: SisError | None = None
        started, waited = time.monotonic(), self.waited_seconds
        try:
            reply = self._door.send(call, url, turn=lambda: self._turn(call, longest_turn), **request)  # type: ignore[arg-type]
            return accept(call, reply)
        except SisError as error:
            error.context.setdefault("attempt", attempt)
            failure = error
            raise
        finally:
            seconds = reply.seconds if reply else time.monotonic() - started - (self.waited_seconds - waited)
            if not isinstance(failure, _TurnTooFarError):
                self._record(call, attempt, reply, failure, seconds)

    def _turn(self, call: Call, longest: float | None) -> Iterator[float]:
        for wait in self._rate.waits(self._rate_key, self._per_minute):
            if longest is not None and wait > longest:
                raise _TurnTooFarError(
                    f"{call} has to wait {wait:.0f} s for its turn.", retry_after=wait, **call.context()
                )
            began = time.monotonic()
            yield wait
            self.waited_seconds += time.monotonic() - began

    def _record(self, call: Call, attempt: int, reply: Reply | None, failure: SisError | None, seconds: float) -> None:
        size = len(reply.body) if reply else 0
        status = reply.status if reply else None
        if failure is not None and status is None:
            status = _status_of(failure)
        record = CallRecord(
            method=call.method,
            template=call.template,
            status=status,
            error_class=failure.error_class.value if failure else None,
            milliseconds=seconds * 1000,
            bytes=size,
            attempt=attempt,
        )
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
                f"{call} has a path with characters that no path has; it was not sent.", **call.context()
            )
        parts = urlsplit(self._base_url)
        if re.match(r"([a-z][a-z0-9+.-]*:)?//", path, re.IGNORECASE):
            absolute = f"{parts.scheme}:{path}" if path.startswith("//") else path
            if origin(absolute) != origin(self._base_url):
                raise ContractError(f"{call} leads to another host; it was not sent.", **call.context())
            return absolute
        base_path = parts.path.rstrip("/")
        below = path if base_path and path.startswith(f"{base_path}/") else f"{base_path}/{path.lstrip('/')}"
        return f"{parts.scheme}://{parts.netloc}{below}"


class _TurnTooFarError(RateLimitedError):
    """No request was made: a token call would have had to wait for too long."""


class CallLog:
    """The rows of api_calls, written a batch at a time. A row's time is when its call ended, on the database clock."""

    def __init__(self, engine: Engine, integration: str, snapshot_id: str | None) -> None:
        self._engine = engine
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
        with self._engine.begin() as connection:
            connection.execute(_INSERT_CALLS, rows)
        self._pending.clear()


_INSERT_CALLS = text("""
insert into sis.api_calls (integration, at, snapshot_id, method, template, status, error_class, milliseconds, bytes, attempt)
values (:integration, sis.clock() - make_interval(secs => :age), cast(:snapshot_id as uuid), :method, :template, :status,
        :error_class, :milliseconds, :bytes, :attempt)
""")


def _answer(call: Call, reply: Reply) -> Answer:
    if not 200 <= reply.status < 300:
        raise classify(call, reply.status, reply.headers, reply.body)
    expect_json(call, reply)
    return Answer(reply.status, reply.headers, reply.body)


def _status_of(error: SisError) -> int | None:
    status = error.context.get("status")
    return status if isinstance(status, int) else None


def _checked_base(url: str) -> str:
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise ConfigError("base_url must not have a query or a fragment.")
    return url


def _at_most(timeouts: Timeouts, cap: Timeouts) -> Timeouts:
    return Timeouts(min(timeouts.connect, cap.connect), min(timeouts.read, cap.read), min(timeouts.total, cap.total))


def _template(path: str) -> str:
    """A path whose segments that look like ids are replaced, for requests that name no template."""
    segments = urlsplit(path).path.split("/")
    return "/".join("{id}" if re.search(r"\d{2}|^-?\d+$|^.{25,}$", part) else part for part in segments)
