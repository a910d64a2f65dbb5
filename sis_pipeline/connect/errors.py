"""Every error the product raises on purpose: the eight classes, how grave each is, whether to retry, and advice.
Deciding which HTTP answer is which error belongs here too; acting on it (retrying, opening a breaker) does not."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
    retry: bool
    breaker: bool
    advice: str


POLICIES: dict[ErrorClass, Policy] = {
    ErrorClass.TRANSIENT: Policy(
        Severity.LOW,
        True,
        True,
        "The system was unreachable or failed. It is retried; check the vendor's status page if it lasts.",
    ),
    ErrorClass.RATE_LIMITED: Policy(
        Severity.LOW,
        True,
        False,
        "The system asked to slow down. Lower the integration's requests_per_minute if it repeats.",
    ),
    ErrorClass.AUTH_EXPIRED: Policy(
        Severity.LOW, True, False, "The access token was refused; a new one is fetched once."
    ),
    ErrorClass.AUTH_REVOKED: Policy(
        Severity.HIGH,
        False,
        False,
        "The credentials no longer work. Get new ones from the district and set them with `sis integration add KEY --replace`.",
    ),
    ErrorClass.CONFIG: Policy(
        Severity.HIGH,
        False,
        False,
        "A setting is wrong. Correct the integration's settings and run `sis integration test KEY`.",
    ),
    ErrorClass.CONTRACT: Policy(
        Severity.HIGH,
        False,
        False,
        "The system answered something its API does not allow. Nothing of that answer was used; run `sis integration test KEY` and ask the vendor.",
    ),
    ErrorClass.DATA: Policy(
        Severity.MEDIUM,
        False,
        False,
        "The data break a rule of the roster. See the quarantine and the failed checks of this snapshot.",
    ),
    ErrorClass.INTERNAL: Policy(
        Severity.CRITICAL, False, False, "This is a fault of the pipeline. Report it with the run id."
    ),
}


class SisError(Exception):
    """A foreseeable failure, in words for a person.

    The message never carries a secret or a student's value: it says what was being done, for which integration and
    what was wrong, in counts, columns and row ids. `context` holds the same facts for logs.
    """

    error_class: ErrorClass = ErrorClass.INTERNAL

    def __init__(self, message: str, *, advice: str | None = None, **context: object) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice or self.policy.advice
        self.context = context

    @property
    def policy(self) -> Policy:
        return POLICIES[self.error_class]

    def __str__(self) -> str:
        return f"{self.message} {self.advice}"


class TransientError(SisError):
    error_class = ErrorClass.TRANSIENT


class RateLimitedError(SisError):
    """The source said to slow down; `retry_after` is in seconds, None where it did not say for how long."""

    error_class = ErrorClass.RATE_LIMITED

    def __init__(self, message: str, *, retry_after: float | None = None, **context: object) -> None:
        super().__init__(message, **context)  # type: ignore[arg-type]
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
