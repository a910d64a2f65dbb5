"""Structured logs for every process: console or JSON, on one handler, with redaction as the very last step.
Secrets are masked by their exact value once the vault has opened them; what to log is decided where things happen."""

from __future__ import annotations

import base64
import json
import logging
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO
from urllib.parse import quote, quote_plus

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from sis_pipeline.connect.errors import SisError

MASK = "•••"
HANDLER = "sis_pipeline"

SHORTEST = 4
"""Characters; masking shorter values would hide ordinary text."""
REMEMBERED = 10_000
"""Secrets that stay masked after their last use, beside the lasting ones. A code server runs for months and opens new
tokens all the time: with 1,000 integrations whose tokens live an hour, these are all of the last four hours, so what is
forgotten has ended."""

_CREDENTIALS = re.compile(r"\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE)


class _Secrets:
    """Known secrets in all their spellings. A line costs as much as it is long, however many there are: a spelling is
    looked up where its first characters stand. Any thread may add while others read: readers take no lock, as every
    spelling is there before its length is, and a length is exchanged in one step.
    """

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._lock = threading.RLock()  # a signal's handler may come in between, in the same thread
        self._lasting: set[str] = set()
        self._recent: dict[str, None] = {}  # the one used last stands last
        self._spellings = Counter[str]()  # how many secrets have it
        self._lengths: dict[str, tuple[int, ...]] = {}  # first characters -> lengths of spellings, longest first
        self._counted: dict[str, Counter[int]] = {}

    def add(self, secret: str, *, lasting: bool) -> None:
        with self._lock:
            if secret in self._lasting:
                return
            known = secret in self._recent
            self._recent.pop(secret, None)
            if lasting:
                self._lasting.add(secret)
            else:
                self._recent[secret] = None
            if not known:
                self._enter(secret)
            while len(self._recent) > self._remembered:
                oldest = next(iter(self._recent))
                del self._recent[oldest]
                self._leave(oldest)

    def _enter(self, secret: str) -> None:
        for spelling in _spellings(secret):
            self._spellings[spelling] += 1
            if self._spellings[spelling] == 1:
                self._count(spelling, 1)

    def _leave(self, secret: str) -> None:
        for spelling in _spellings(secret):
            self._spellings[spelling] -= 1
            if self._spellings[spelling] == 0:
                del self._spellings[spelling]
                self._count(spelling, -1)

    def _count(self, spelling: str, change: int) -> None:
        start = spelling[:SHORTEST]
        lengths = self._counted.setdefault(start, Counter())
        lengths[len(spelling)] += change
        left = +lengths  # without those that came to 0
        if left:
            self._counted[start] = left
            self._lengths[start] = tuple(sorted(left, reverse=True))
        else:
            del self._counted[start], self._lengths[start]

    def redact(self, line: str) -> str:
        parts, told = [], 0
        for begin, end in self._found(line):
            parts += [line[told:begin], MASK]
            told = end
        return "".join([*parts, line[told:]])

    def _found(self, line: str) -> Iterator[tuple[int, int]]:
        """The stretches of the line that secrets cover; those that overlap are one, so that none is half masked."""
        known, width = self._lengths, SHORTEST
        begin = end = 0
        for here in [at for at in range(len(line) - width + 1) if line[at : at + width] in known]:
            lengths = known.get(line[here : here + width], ())
            length = next((one for one in lengths if line[here : here + one] in self._spellings), 0)
            if length and here >= end:
                if end:
                    yield begin, end
                begin = here
            end = max(end, here + length) if length else end
        if end:
            yield begin, end


def _spellings(secret: str) -> set[str]:
    """In headers, forms, JSON and tracebacks."""
    plain = {secret, repr(secret)[1:-1], quote(secret, safe=""), quote_plus(secret)}
    return plain | {json.dumps(text)[1:-1] for text in plain} | {base64.b64encode(secret.encode()).decode()}


_secrets = _Secrets()


def mask(secret: str, *, lasting: bool = False) -> None:
    """Never write `secret` to a log again, in any of its spellings; one that is not `lasting` is forgotten once
    REMEMBERED others have been used since.

    Values of fewer than 4 characters are left out: masking them would hide ordinary text.
    """
    if len(secret) >= SHORTEST:
        _secrets.add(secret, lasting=lasting)


def redacted(line: str) -> str:
    """The line without any known secret, and without credentials headers."""
    return _CREDENTIALS.sub(rf"\1\2{MASK}", _secrets.redact(line))


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

    `level` is that of our own lines; what others log is left at theirs. Calling it again replaces what it set up before.
    Handlers that others set up stay, and what they write is left to them. Tracebacks are written without local
    variables.
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
    logging.getLogger("sis_pipeline").setLevel(level.upper() if isinstance(level, str) else level)
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
