"""Structured logs for every process: console or JSON, on one handler, with redaction as the very last step.
Secrets are masked by their exact value once the vault has opened them; what to log is decided where things happen."""

from __future__ import annotations

import base64
import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO
from urllib.parse import quote, quote_plus

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from sis_pipeline.connect.errors import SisError

MASK = "•••"
HANDLER = "sis_pipeline"

_CREDENTIALS = re.compile(r"\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE)
_secrets: dict[str, None] = {}


def mask(secret: str) -> None:
    """Never write `secret` to a log again, in any of the spellings it takes in headers, forms, JSON and tracebacks.

    Values of fewer than 4 characters are left out: masking them would hide ordinary text.
    """
    if len(secret) < 4 or secret in _secrets:
        return
    plain = {secret, repr(secret)[1:-1], quote(secret, safe=""), quote_plus(secret)}
    spellings = plain | {json.dumps(text)[1:-1] for text in plain} | {base64.b64encode(secret.encode()).decode()}
    known = sorted({*_secrets, *spellings}, key=len, reverse=True)
    _secrets.clear()
    _secrets.update(dict.fromkeys(known))


def redacted(line: str) -> str:
    """The line without any known secret, longest first so that none is half masked, and without credentials headers."""
    for secret in tuple(_secrets):
        line = line.replace(secret, MASK)
    return _CREDENTIALS.sub(rf"\1\2{MASK}", line)


@contextmanager
def about(**facts: object) -> Iterator[None]:
    """What is being done inside: on every log line, and in the context of every SisError that comes out of it.

    Names and numbers only; what an error or an inner block already says of itself stays.
    """
    with structlog.contextvars.bound_contextvars(**facts):
        try:
            yield
        except SisError as error:
            error.context = {**facts, **error.context}
            raise


def configure(log_format: str = "console", *, level: int | str = logging.INFO, stream: TextIO | None = None) -> None:
    """Send structlog and standard logging to `stream` (stderr) as `console` lines or one `json` object each.

    Calling it again replaces what it set up before. Handlers that others set up stay, and what they write is left to
    them. Tracebacks are written without local variables.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = _StderrHandler() if stream is None else logging.StreamHandler(stream)
    handler.name = HANDLER
    handler.addFilter(_is_unwritten)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderer(log_format), _redact],
        )
    )
    root = logging.getLogger()
    root.handlers = [*(one for one in root.handlers if one.name != HANDLER), handler]
    logging.getLogger("sis_pipeline").setLevel(level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at that moment: it is exchanged where output is captured."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _is_unwritten(record: logging.LogRecord) -> bool:
    """False for what a logger below the root has a handler for, as Dagster's: it would be written twice."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger is not None and logger.parent is not None:
        if any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers):
            return False
        logger = logger.parent
    return True


def _renderer(log_format: str) -> list[Processor]:
    if log_format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)]


def _redact(_logger: WrappedLogger, _method: str, rendered: EventDict | str) -> str:
    return redacted(str(rendered))
