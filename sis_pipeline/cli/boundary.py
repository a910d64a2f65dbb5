"""The one place where errors become a sentence, its advice and an exit code, so that no command prints a traceback.
Raising them well is the business of the code that fails."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from traceback import extract_tb
from typing import Any

import typer
from typer.core import TyperGroup

from sis_pipeline.cli.output import ExitCode, Mode, RefusalError, complain


@dataclass(frozen=True)
class Trouble:
    """An error as it is told: its code for scripts, a sentence and advice for people, the exit code."""

    code: ExitCode
    error_code: str
    message: str
    advice: str

    @property
    def facts(self) -> dict[str, str]:
        """As `--json` prints it."""
        error_class = self.error_code.partition(".")[0]
        return {"class": error_class, "code": self.error_code, "message": self.message, "advice": self.advice}


class SisGroup(TyperGroup):
    """The root command: runs the subcommand and tells what went wrong in words."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        wants_json = "--json" in takewhile(lambda argument: argument != "--", args)  # what is wrong may keep it unread
        try:
            context = super().make_context(info_name, args, parent, **extra)
        except typer.TyperException as error:
            if wants_json and _is_wrong_usage(error):
                _print_facts(_wrong_usage(error))
            raise
        context.ensure_object(Mode).json = wants_json
        return context

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            complain("interrupted; what was begun has been ended, what was finished is kept")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:
            raise typer.Exit(ExitCode.OK) from None  # the reader (head, less) has seen enough
        except Exception as error:
            mode = ctx.ensure_object(Mode)
            if _is_wrong_usage(error) and mode.json:
                _print_facts(_wrong_usage(error))
            if mode.debug or isinstance(error, typer.TyperException):
                raise  # typer tells its own on stderr
            trouble = explain(error)
            if mode.json:
                _print_facts(trouble)
            complain(trouble.message, trouble.advice)
            raise typer.Exit(trouble.code) from None


def _is_wrong_usage(error: Exception) -> bool:
    return isinstance(error, typer.TyperException) and getattr(error, "exit_code", None) == ExitCode.USAGE


def _wrong_usage(error: Any) -> Trouble:
    """What typer says of a command line, which has no values but those just typed."""
    command = error.ctx.command_path if error.ctx is not None else "sis"
    return Trouble(ExitCode.USAGE, "usage", error.format_message(), f"`{command} --help` lists what it takes.")


def _print_facts(trouble: Trouble) -> None:
    sys.stdout.write(json.dumps({"error": trouble.facts}, indent=2, ensure_ascii=False) + "\n")


def explain(error: Exception) -> Trouble:
    """The error in words. A message is repeated only where the product wrote it: others may quote values."""
    from pydantic import ValidationError

    if isinstance(error, RefusalError):
        return Trouble(error.code, error.error_code, error.message, error.advice)
    if isinstance(error, ValidationError):
        return Trouble(
            ExitCode.CONFIG,
            "config.environment",
            f"Settings are wrong: {field_messages(error)}",
            "See docs/configuration.md.",
        )
    return _of_the_pipeline(error) or _of_the_database(error) or _unforeseen(error)


def field_messages(error: Any) -> str:
    """`field: what is wrong; …` of a pydantic error, without the values that were given."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'settings'}: {problem['msg']}" for problem in problems
    )


def _of_the_pipeline(error: Exception) -> Trouble | None:
    from sis_pipeline.connect.errors import ErrorClass, SisError

    if not isinstance(error, SisError):
        return None
    refused = {ErrorClass.CONFIG, ErrorClass.AUTH_REVOKED}
    code = ExitCode.CONFIG if error.error_class in refused else ExitCode.FAILED
    return Trouble(code, error.code, error.message, error.advice)


_NO_SUCH_THING = frozenset({"3F000", "42703", "42883", "42P01"})
"""SQLSTATEs of a schema, column, function or table that is not there: `sis health` looks without migrating."""


def _of_the_database(error: Exception) -> Trouble | None:
    from sqlalchemy.exc import DBAPIError

    from sis_pipeline.db.engine import DatabaseUnavailable

    if isinstance(error, DatabaseUnavailable):
        return Trouble(ExitCode.DATABASE, "database", str(error), "`sis doctor` checks the connection.")
    if not isinstance(error, DBAPIError):
        return None
    state = getattr(error.orig, "sqlstate", None) or type(error.orig).__name__
    if state in _NO_SUCH_THING:
        words = "The database has no schema yet, or an older one than this version works with."
        return Trouble(ExitCode.DATABASE, "database", words, "Run `sis db upgrade`.")
    return Trouble(
        ExitCode.DATABASE,
        "database",
        f"PostgreSQL refused or broke off the work ({state}).",
        "Check the server, then `sis db upgrade` and `sis doctor`; `sis --debug …` shows where it happened.",
    )


def _unforeseen(error: Exception) -> Trouble:
    frames = extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return Trouble(
        ExitCode.FAULT,
        "internal.unexpected",
        f"sis met a fault of its own: {type(error).__name__}{where}.",
        "Repeat it as `sis --debug …` and report what that shows.",
    )
