"""How the command speaks: one JSON document or tables on stdout, one sentence and its advice on stderr, exit codes.
What is said is decided by the commands."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import date, datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


class ExitCode(IntEnum):
    """What a script may rely on; `EXIT_CODES` says it in words."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIG = 3
    DATABASE = 4
    PERSON = 5
    FAULT = 70
    INTERRUPTED = 130


EXIT_CODES: dict[ExitCode, str] = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "something failed: an integration, a merge, a check; the rest was done",
    ExitCode.USAGE: "wrong usage: an unknown command or option, an id that nothing has",
    ExitCode.CONFIG: "configuration: a setting, an integration, an encryption key or credentials are missing or wrong; nothing was done",
    ExitCode.DATABASE: "the database can't be reached or is not as expected; nothing was done",
    ExitCode.PERSON: "done, but something waits for a person: removals are held, or `sis health` or `sis tokens status` found what nobody else can mend",
    ExitCode.FAULT: "a fault of sis itself; `sis --debug …` shows where",
    ExitCode.INTERRUPTED: "interrupted (Ctrl-C)",
}


class RefusalError(Exception):
    """A foreseeable reason to stop, in words for a person, with the exit code and the error code a script sees."""

    def __init__(
        self, message: str, advice: str = "", code: ExitCode = ExitCode.USAGE, error_code: str = "usage"
    ) -> None:
        super().__init__(message)
        self.message, self.advice, self.code, self.error_code = message, advice, code, error_code


@dataclass
class Mode:
    """What was asked for on this command line, kept as the context's object."""

    json: bool = False
    debug: bool = False


def _remember_json(context: typer.Context, value: bool) -> bool:
    mode = context.ensure_object(Mode)
    mode.json = mode.json or value
    return value


AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.", callback=_remember_json),
]


def emit(as_json: bool, document: Any, render: Callable[[Console], None]) -> None:
    """Print the document as JSON, or let `render` print it for people."""
    if as_json:
        sys.stdout.write(json.dumps(document, default=_plain, indent=2, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    else:
        render(console())


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, date):  # and datetime
        return value.isoformat()
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


def console(*, stderr: bool = False) -> Console:
    """A console on the stream as it is now. A pipe gets lines wide enough that no table is cut."""
    from rich.console import Console

    plain = Console(stderr=stderr, highlight=False, soft_wrap=False)
    return plain if plain.is_terminal else Console(stderr=stderr, highlight=False, width=200)


def table(
    title: str | None, columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()
) -> RenderableType:
    """A table for people; the columns named in `right` hold numbers. Cells are text, never markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    built = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    shown = [[cell if isinstance(cell, Text) else Text(as_text(cell)) for cell in row] for row in rows]
    for place, column in enumerate(columns):
        number = column in right
        ids = all(_UUID.fullmatch(row[place].plain) for row in shown if row[place].plain)  # to be copied in one piece
        whole = number or ids or column in {"year", "school_year"}
        built.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=whole)
    for row in shown:
        built.add_row(*row)
    return built


_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


NOTHING = "(cleared)"


def said(value: object) -> str:
    """What somebody says about an attribute, which may be that there is nothing."""
    return NOTHING if value is None else as_text(value)


def as_text(value: object) -> str:
    """A value as a person reads it: thousands separated, nothing for null, lists and mappings flat."""
    match value:
        case None:
            text = ""
        case bool():
            text = "yes" if value else "no"
        case int():
            text = f"{value:,}"
        case float():
            text = f"{value:,.1f}"
        case datetime():
            text = value.isoformat(sep=" ", timespec="seconds")
        case Mapping():
            text = ", ".join(f"{key} {as_text(item)}" for key, item in value.items() if item is not None)
        case list() | tuple() | set() | frozenset():
            text = ", ".join(as_text(item) for item in value)
        case _:
            text = str(value)
    return text


def counted(number: int, noun: str) -> str:
    """`1 hold`, `2 holds`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def complain(message: str, advice: str = "") -> None:
    """One sentence and its advice on stderr, as plain text: a message may quote what looks like markup."""
    sys.stderr.write(f"error: {message}\n" + (f"       {advice}\n" if advice else ""))
    sys.stderr.flush()
