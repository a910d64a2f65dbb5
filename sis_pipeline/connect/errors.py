"""Every error the product raises on purpose: the eight classes, how grave each is, whether to retry, and advice.
Deciding which HTTP answer is which error belongs here too; acting on it (retrying, opening a breaker) does not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, ClassVar
from urllib.parse import urlsplit

from sis_pipeline.connect.codes import CATALOGUE


class Severity(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class ErrorClass(StrEnum):
    TRANSIENT = "transient"
    RATE_LIMITED = "rate_limited"
    AUTH_EXPIRED = "auth_expired"
    AUTH_REVOKED = "auth_revoked"
    CONFIG = "config"
    CONTRACT = "contract"
    DATA = "data"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Policy:
    """What follows from an error class. `breaker` says whether it counts towards opening the circuit breaker."""

    severity: Severity
    advice: str
    retry: bool = False
    breaker: bool = False


POLICIES: dict[ErrorClass, Policy] = {
    ErrorClass.TRANSIENT: Policy(
        Severity.LOW,
        "The system was unreachable or failed. It is retried; check the vendor's status page if it lasts.",
        retry=True,
        breaker=True,
    ),
    ErrorClass.RATE_LIMITED: Policy(
        Severity.LOW,
        "The system asked to slow down. Lower the integration's requests_per_minute if it repeats.",
        retry=True,
    ),
    ErrorClass.AUTH_EXPIRED: Policy(
        Severity.LOW, "The access token was refused; a new one is fetched once.", retry=True
    ),
    ErrorClass.AUTH_REVOKED: Policy(
        Severity.HIGH,
        "The credentials no longer work. Get new ones from the district and set them with "
        "`sis integration add KEY --replace`.",
    ),
    ErrorClass.CONFIG: Policy(
        Severity.HIGH,
        "A setting is wrong. Correct the integration's settings and run `sis integration test KEY`.",
    ),
    ErrorClass.CONTRACT: Policy(
        Severity.HIGH,
        "The system answered something its API does not allow. Nothing of that answer was used; run "
        "`sis integration test KEY` and ask the vendor.",
    ),
    ErrorClass.DATA: Policy(
        Severity.MEDIUM,
        "The data break a rule of the roster. See the quarantine and the failed checks of this snapshot.",
    ),
    ErrorClass.INTERNAL: Policy(Severity.CRITICAL, "This is a fault of the pipeline. Report it with the run id."),
}


class SisError(Exception):
    """A foreseeable failure, in words for a person.

    The message never carries a secret or a student's value: it says what was being done, for which integration and
    what was wrong, in counts, columns and row ids. `context` holds the same facts for logs. `code` is a name that
    stays, for scripts and for looking it up: one of connect.codes, or the class's own name where nothing closer fits.
    The advice is the raise's own, else the code's, else the class's.
    """

    error_class: ErrorClass = ErrorClass.INTERNAL
    default_code: ClassVar[str | None] = None

    def __init__(self, message: str, *, code: str | None = None, advice: str | None = None, **context: object) -> None:
        super().__init__(message)
        self.message = message
        named = code or self.default_code or self.error_class.value
        self.code = named if named.partition(".")[0] == self.error_class else f"{self.error_class}.{named}"
        listed = CATALOGUE.get(self.code)
        self.advice = advice or (listed and listed.advice) or self.policy.advice
        self.context: dict[str, Any] = context

    def at(self, entity: str, page: int) -> None:
        """Say where in a reading it happened, unless that is known: in the context, and in words."""
        if "entity" not in self.context:
            self.context |= {"entity": entity, "page": page}
            self.message = f"{self.message} It was page {page} of {entity}."

    @property
    def policy(self) -> Policy:
        return POLICIES[self.error_class]

    def __str__(self) -> str:
        return f"{self.message} {self.advice}"


def source_status(error: SisError) -> int | None:
    """The HTTP status with which a request itself was answered; None where nothing came, or where the token endpoint
    refused (its errors say `oauth_error`): that says nothing about what was asked for."""
    status = error.context.get("status")
    return status if isinstance(status, int) and "oauth_error" not in error.context else None


class TransientError(SisError):
    error_class = ErrorClass.TRANSIENT


class RateLimitedError(SisError):
    """The source said to slow down; `retry_after` is in seconds, None where it did not say for how long."""

    error_class = ErrorClass.RATE_LIMITED

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        code: str | None = None,
        advice: str | None = None,
        **context: object,
    ) -> None:
        super().__init__(message, code=code, advice=advice, **context)
        self.retry_after = retry_after


class AuthExpiredError(SisError):
    error_class = ErrorClass.AUTH_EXPIRED


class AuthRevokedError(SisError):
    error_class = ErrorClass.AUTH_REVOKED


class ConfigError(SisError):
    error_class = ErrorClass.CONFIG


class ContractError(SisError):
    error_class = ErrorClass.CONTRACT


class DataError(SisError):
    error_class = ErrorClass.DATA


class InternalError(SisError):
    error_class = ErrorClass.INTERNAL


RETRY_AFTER_CAP = 900.0
"""Seconds: no answer makes us wait longer than a quarter of an hour at a time."""

THROTTLE_WORDS = re.compile(rb"too[\s_-]*many[\s_-]*requests|rate[\s_-]*limit", re.IGNORECASE)
"""How a 4xx other than 429 says that it throttles (PowerSchool's minimum interval between requests)."""


NAMEABLE = frozenset(
    {"application/json", "application/octet-stream", "application/problem+json", "application/xml"}
    | {"text/csv", "text/html", "text/json", "text/plain", "text/xml"}
)
"""Media types that messages name; a server can write anything into that header."""


@dataclass(frozen=True, slots=True)
class Call:
    """What is being done, as messages and logs name it: never a parameter, an id or a query."""

    integration: str
    method: str
    template: str

    def __str__(self) -> str:
        return f"{self.method} {self.template} of integration {self.integration!r}"

    def context(self, **more: object) -> dict[str, Any]:
        return {"integration": self.integration, "method": self.method, "template": self.template, **more}


def classify(call: Call, status: int, headers: Mapping[str, str], body: bytes = b"") -> SisError:
    """The error that an answer other than 2xx stands for. `headers` are lower-case; `body` may be a prefix.

    The body is only searched for the words of a throttle, and never quoted. `context["status"]` is the HTTP status.
    """
    facts = f"{call} answered {status} ({describe(headers, len(body))})"
    context = call.context(status=status)
    if _throttled(status, headers, body):
        return RateLimitedError(
            f"{facts}: too many requests.", code="rate_limited.throttled", retry_after=retry_after(headers), **context
        )
    if status in {408, 425} or (status >= 500 and status != 501):
        return TransientError(f"{facts}.", code="transient.server_error", **context)
    if 300 <= status < 400:
        return _redirected(facts, status, headers, context)
    if status == 401:
        return AuthExpiredError(f"{facts}: the access token was refused.", code="auth_expired.refused", **context)
    meaning, code = _REFUSALS.get(status, ("the request was refused.", "config.refused"))
    return ConfigError(f"{facts}: {meaning}", code=code, **context)


def describe(headers: Mapping[str, str], size: int) -> str:
    """`text/html, 1,204 bytes`: what came back, without any of it."""
    media = media_type(headers)
    named = media if media in NAMEABLE else "an unusual content type" if media else "no content type"
    return f"{named}, {size:,} bytes"


def media_type(headers: Mapping[str, str]) -> str:
    """The lower-case media type without parameters; empty where there is none or it is not one."""
    named = headers.get("content-type", "").split(";")[0].strip().lower()
    return named if re.fullmatch(r"[\w.+-]{1,40}/[\w.+-]{1,60}", named, re.ASCII) else ""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that `Retry-After` asks for (RFC 9110 10.2.3: seconds or a date), at most RETRY_AFTER_CAP.

    A date is compared with the answer's own `Date` where there is one, so that a wrong clock does no harm. Past dates
    are 0; None for a missing, negative or unreadable value.
    """
    asked = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d*)?", asked, re.ASCII):
        seconds = float(asked)
        return RETRY_AFTER_CAP if math.isinf(seconds) else min(seconds, RETRY_AFTER_CAP)
    until = http_date(asked)
    if until is None:
        return None
    now = http_date(headers.get("date", "")) or datetime.now(UTC)
    return min(max((until - now).total_seconds(), 0.0), RETRY_AFTER_CAP)


def http_date(value: str) -> datetime | None:
    """The moment of a date as HTTP writes it (RFC 9110 5.6.7), read leniently, in UTC; None for anything else, also for
    a date beyond those that there are."""
    try:
        moment = parsedate_to_datetime(value)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


_REFUSALS: dict[int, tuple[str, str]] = {
    400: ("the request was refused as malformed.", "config.refused"),
    403: ("access is not granted.", "config.access_denied"),
    404: ("there is nothing at this address.", "config.not_found"),
    501: ("the system can't do that.", "config.refused"),
}


def _throttled(status: int, headers: Mapping[str, str], body: bytes) -> bool:
    if status == 429 or (status == 503 and "retry-after" in headers):
        return True
    return 400 <= status < 500 and status != 401 and THROTTLE_WORDS.search(body) is not None


def _redirected(facts: str, status: int, headers: Mapping[str, str], context: dict[str, Any]) -> SisError:
    """Vendors redirect to a maintenance or login page; following would send the token along."""
    target = _host(headers.get("location", ""))
    where = f"{facts}: a redirect to {target}, which is not followed"
    if status in {301, 308}:
        return ConfigError(f"{where}.", code="config.redirect", **context)
    return TransientError(
        f"{where}; it usually leads to a maintenance or login page.", code="transient.maintenance", **context
    )


def _host(location: str) -> str:
    """The host of a Location header, for a message; its path and query may say too much."""
    try:
        host = urlsplit(location).hostname or ""
    except ValueError:
        host = ""
    return f"host {host}" if re.fullmatch(r"[a-z0-9.:-]{1,253}", host) else "another page"
