"""Errors on their way to Dagster: foreseen ones in their own words, unforeseen ones without any.
Dagster keeps what a step raises and shows it to every viewer, so no other exception may leave a step."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import structlog
from dagster._core.errors import DagsterExecutionInterruptedError
from sqlalchemy.exc import DBAPIError

from sis_pipeline.connect.errors import POLICIES, ErrorClass, SisError, TransientError

log = structlog.get_logger(__name__)

RETRY = dg.RetryPolicy(max_retries=2, delay=60, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""Of a whole reading, after the door's own retries of single requests are spent."""
LAUNCHED_BY = "sis/launched_by"
"""Tag of runs that a person waits for: they are not retried behind the person's back."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What went wrong, for a person: the error's code (see connect.codes), what happened, what to do."""

    code: str
    message: str
    advice: str

    @property
    def error_class(self) -> str:
        return self.code.partition(".")[0]

    def as_json(self) -> dict[str, str]:
        return {"class": self.error_class, "code": self.code, "message": self.message, "advice": self.advice}


INTERRUPTED = Trouble("transient.interrupted", "It was interrupted before it was done.", "Run it again.")


def trouble(error: BaseException) -> Trouble:
    """An error in words. Of an unforeseen one only its type and place: its text may hold a student's value."""
    known = foreseen(error)
    if known is not None:
        return Trouble(known.code, known.message, known.advice)
    policy = POLICIES[ErrorClass.INTERNAL]
    return Trouble("internal.unexpected", f"Unexpected {type(error).__name__} at {_place(error)}.", policy.advice)


def foreseen(error: BaseException) -> SisError | None:
    """The error in the product's own words: raised with them, or PostgreSQL's, where that is no fault of what it was
    asked: it was stopped, out of memory, or waited too long."""
    if isinstance(error, SisError):
        return error
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError):
        return None
    why = cause.sqlstate or type(cause).__name__
    return TransientError(f"PostgreSQL refused or broke off the work ({why}).", code="transient.database")


@contextmanager
def explained(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Whatever fails inside becomes a dagster.Failure without values; only what may pass by itself is retried."""
    try:
        yield
    except dg.Failure:
        raise
    except (KeyboardInterrupt, DagsterExecutionInterruptedError):
        # Dagster would take it for a failure to be retried, and wait a minute and more before it ends.
        raise failure(INTERRUPTED) from None
    except Exception as error:  # noqa: BLE001 nothing may reach the event log in its own words
        said = trouble(error)
        where = error.context if isinstance(error, SisError) else {}
        log.error("failed", code=said.code, why=said.message, **{**where, "run": context.run.run_id})  # noqa: TRY400
        retry = POLICIES[ErrorClass(said.error_class)].retry and LAUNCHED_BY not in context.run.tags
        # With redaction on, Dagster masks even a Failure's text in the list of events; the log line stays readable.
        context.log.error(f"{said.message} {said.advice}")  # noqa: TRY400 a traceback's text may hold values
        raise failure(said, allow_retries=retry, context=where) from None


def failure(said: Trouble, *, allow_retries: bool = False, context: Mapping[str, object] | None = None) -> dg.Failure:
    """`context`: what a SisError knows of where it happened; the entity, page, attempt and request id among it."""
    shown: dict[str, Any] = {name: dg.MetadataValue.text(value) for name, value in asdict(said).items()}
    if context:
        shown["context"] = dg.MetadataValue.json({name: _plain(value) for name, value in context.items()})
    return dg.Failure(description=f"{said.message} {said.advice}", metadata=shown, allow_retries=allow_retries)


def _plain(value: object) -> object:
    return value if isinstance(value, int | float | bool | None) else str(value)


def _place(error: BaseException) -> str:
    """The innermost line of ours, and the innermost line of all: files and numbers, no source text, no values."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "sis_pipeline" in Path(frame.filename).parts]
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in (ours[-1:] + frames[-1:])]
    return " > ".join(dict.fromkeys(places)) or "an unknown place"
