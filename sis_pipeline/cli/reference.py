"""The reference pages of the documentation, written from what the code declares: commands, settings, errors and the roster model.
`python -m sis_pipeline.cli.reference docs` writes them; a test compares, so that no page can drift."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sis_pipeline.cli.output import EXIT_CODES
from sis_pipeline.cli.providers import NO_REQUESTS, request_limit

GENERATED = "<!-- Written by `python -m sis_pipeline.cli.reference docs`. Don't edit by hand. -->"


def pages() -> dict[str, str]:
    """File name -> text of every generated page."""
    return {
        "cli.md": cli_page(),
        "configuration.md": configuration_page(),
        "errors.md": errors_page(),
        "roster-model.md": roster_model_page(),
    }


def cli_page() -> str:
    from typer.main import get_command

    from sis_pipeline.cli.main import app

    parts = [
        GENERATED,
        "# The `sis` command",
        (
            "Every command takes `--help`. Commands with `--json` print one JSON document on stdout and nothing else there; "
            "progress, notes and errors go to stderr. An error is one sentence and its advice; with `--json` it is also "
            'printed on stdout as `{"error": {"class", "code", "message", "advice"}}`. `sis --debug COMMAND` shows the traceback.'
        ),
        "Secrets are never arguments: they come from an environment variable that you name, or from a prompt.",
        "## Exit codes",
        _table(("Code", "Meaning"), ((f"{code.value}", meaning) for code, meaning in EXIT_CODES.items())),
        *_commands(get_command(app), "sis"),
    ]
    return "\n\n".join(parts) + "\n"


def _commands(command: Any, path: str) -> Iterator[str]:
    if command.hidden:
        return
    subcommands = getattr(command, "commands", {})
    if not subcommands or path == "sis" or command.invoke_without_command:
        yield _command(command, path)
    for name in sorted(subcommands):
        yield from _commands(subcommands[name], f"{path} {name}")


def _command(command: Any, path: str) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    usage = " ".join([path, "[OPTIONS]", *(_metavar(argument) for argument in arguments)])
    if path == "sis":
        usage = "sis [OPTIONS] COMMAND …"
    text = "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))
    options = [_parameter(parameter) for parameter in command.params if parameter.name != "help"]
    listed = _table(("Argument or option", "What", "Default"), options) if options else ""
    return "\n\n".join(part for part in (f"## `{path}`", text, f"```\n{usage}\n```", listed) if part)


def _metavar(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    name += "…" if argument.nargs == -1 else ""
    return name if argument.required else f"[{name}]"


def _parameter(parameter: Any) -> tuple[str, str, str]:
    help_text = " ".join((parameter.help or "").split())
    if parameter.param_type_name == "argument":
        return f"`{_metavar(parameter)}`", help_text, ""
    names = "/".join([*parameter.opts, *parameter.secondary_opts])
    value = "" if parameter.is_flag else f" {parameter.metavar or parameter.name.upper()}"
    default = (
        ""
        if parameter.is_flag or parameter.default in (None, ()) or callable(parameter.default)
        else f"`{parameter.default}`"
    )
    return f"`{names}{value}`", help_text + (" Required." if parameter.required else ""), default


def configuration_page() -> str:
    from sis_pipeline.providers.base import HttpSettings, ProviderSettings
    from sis_pipeline.providers.registry import load_providers
    from sis_pipeline.settings import Settings

    environment = ((f"`SIS_{name.upper()}`", *rest) for name, *rest in _fields(Settings.model_json_schema()))
    parts = [
        GENERATED,
        "# Configuration",
        "## The environment",
        "Read by `sis`, the webserver and the daemon alike.",
        _table(("Variable", "Values", "Default", "What"), environment),
        "## Integrations",
        (
            "An integration is one connection to one SIS. Its settings are rows in the database, validated when it is added; "
            "give them to `sis integration add` as options of their own (`--base-url`, `--token-url`, `--client-id`, "
            "`--client-auth`, `--scope`) or as `--option name=value`. Lists and mappings are written as JSON. "
            "The client secret is not a setting: it is encrypted in `oauth_tokens` with the keys of `SIS_ENCRYPTION_KEYS`."
        ),
        "### Every provider",
        _table(_SETTING_COLUMNS, _setting_rows(ProviderSettings)),
        "### Every provider that is reached over HTTP",
        _table(_SETTING_COLUMNS, _setting_rows(HttpSettings, ProviderSettings)),
    ]
    for name, provider in sorted(load_providers().providers.items()):
        base = HttpSettings if issubclass(provider.Settings, HttpSettings) else ProviderSettings
        rows = list(_setting_rows(provider.Settings, base))
        kind = "Reached over HTTP" if base is HttpSettings else "Reads files"
        parts.append(f"### `{name}`: {provider.title}")
        parts.append(f"{kind}. Requests a minute unless set otherwise: {request_limit(provider) or NO_REQUESTS}.")
        parts.append(_table(_SETTING_COLUMNS, rows) if rows else "It has no settings of its own.")
    return "\n\n".join(parts) + "\n"


_SETTING_COLUMNS = ("Setting", "Values", "Default", "What")


def _setting_rows(model: Any, base: Any = None) -> Iterator[tuple[str, str, str, str]]:
    """The model's settings, without those it has from `base` unchanged."""
    inherited = set(_fields(base.model_json_schema())) if base is not None else set()
    for name, values, default, about in _fields(model.model_json_schema()):
        if (name, values, default, about) not in inherited:
            yield f"`{name}`", values, default, about


def _fields(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    required = set(schema.get("required", ()))
    definitions = schema.get("$defs", {})
    for name, field in schema["properties"].items():
        default = "required" if name in required else _default(field.get("default"))
        yield name, _values(field, definitions), default, " ".join(field.get("description", "").split())


def _default(value: object) -> str:
    return "" if value in (None, {}, []) else f"`{value}`"


def _values(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in field:
        return _values(definitions[field["$ref"].rsplit("/", 1)[-1]], definitions)
    if "anyOf" in field:
        return " or ".join(_values(option, definitions) for option in field["anyOf"] if option.get("type") != "null")
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    words = {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "true or false",
        "object": "mapping",
        "array": "list",
    }
    limits = [
        f"{sign} {field[name]}"
        for name, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if name in field
    ]
    return " ".join([words.get(field.get("type", ""), "any"), *limits])


def errors_page() -> str:
    from sis_pipeline.connect.codes import CATALOGUE
    from sis_pipeline.connect.errors import POLICIES, ErrorClass
    from sis_pipeline.store.status import FAILING_AFTER, STATUS_OF

    marks = {True: "yes", False: "no"}
    classes = [
        (f"`{kind}`", policy.severity, marks[policy.retry], marks[policy.breaker], STATUS_OF[kind], policy.advice)
        for kind, policy in POLICIES.items()
    ]
    parts = [
        GENERATED,
        "# Errors",
        (
            "Every error has a class, which decides what the pipeline does, and a code, which says what happened. Both stay "
            "the same from version to version: `--json` prints them as `error.class` and `error.code`, logs and the metadata "
            "of a failed Dagster step carry the code. No message, log line or metadata holds a secret or a student's value."
        ),
        "## Classes",
        (
            "*Retried*: single requests, a few times, and a nightly sync as a whole. *Breaker*: counts towards leaving the "
            "system alone for a while. *Status*: what the integration becomes; "
            f"`degraded` turns into `failing` after {FAILING_AFTER} syncs in a row, and the next good sync makes everything "
            "`healthy` again. `needs_reauth` is not synced at night, until new credentials are stored or a sync or "
            "`sis integration test` that a person starts succeeds. `paused` is a person's decision."
        ),
        _table(("Class", "Severity", "Retried", "Breaker", "Status", "What to do"), classes),
        "## Codes",
        "Where a code has no advice of its own, that of its class holds. A bare class name is what a plugin's error has that names no code.",
    ]
    for kind in ErrorClass:
        rows = [
            (f"`{code}`", entry.meaning, entry.advice or "")
            for code, entry in sorted(CATALOGUE.items())
            if code.startswith(f"{kind}.")
        ]
        parts += [f"### `{kind}`", _table(("Code", "What happened", "What to do"), rows)]
    return "\n\n".join(parts) + "\n"


def roster_model_page() -> str:
    from sis_pipeline.roster import model

    parts = [
        GENERATED,
        "# The roster model",
        (
            "Every table is declared once, in `sis_pipeline/roster/model.py`; the pandera schemas, the SQL tables, Dagster's "
            "column metadata and this page come from there. Ids are text. Dates that end something are the first day after "
            "it (exclusive)."
        ),
        "## What a SIS delivers",
        "The standard entities, one row per record of the SIS, validated and kept as Parquet per integration and school year.",
        *(_model_table(table) for table in model.ENTITIES.values()),
        "## What is published",
        "The tables of the schema `sis` in PostgreSQL, per district.",
        *(_model_table(table) for table in model.MERGED.values()),
        _model_table(model.ACCOUNTS),
        "Written by the district's account rules: [accounts](accounts.md), which also names the views beside it.",
        "### Where a value comes from",
        (
            "`sis.provenance(district, student_id)` gives for every published or cleared attribute whose value it is (`integration`, "
            "`sis_id`), when the system says it changed and when it was first read so, by which rule it was chosen, and the "
            "`runner_up_…`: whose value would be published if that one said nothing, whether it says the same or not. For "
            "many students: `select … from sis.students s cross join lateral sis.provenance(s.district, s.student_id)`."
        ),
        "### As of a day",
        (
            "`sis.enrolled_as_of(district, day)` gives who is enrolled where on a day, "
            "`sis.enrolled_as_of(district, day, known_at)` who was, as `enrollment_changes` knew it at that moment; a fourth "
            "argument asks about one student. `sis.stays_known_at(district, known_at)` gives every school enrollment as it was "
            "known, with `over_on`, the first day it no longer counts. [As of a day](as-of.md) says what they can't know."
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _model_table(table: Any) -> str:
    rows = [(f"`{column.name}`", column.kind, _marks(column), _about(column)) for column in table]
    return f"### `{table.name}`\n\n{table.about}\n\n{_table(('Column', 'Kind', 'Rules', 'What'), rows)}"


def _marks(column: Any) -> str:
    marks = {
        "key": column.key,
        "never null": column.required and not column.key,
        f"refers to {column.refers}": column.refers,
        "personal": column.personal,
    }
    return ", ".join(mark for mark, applies in marks.items() if applies)


def _about(column: Any) -> str:
    return str(column.about) + (f" ({', '.join(f'`{code}`' for code in column.codes)})" if column.codes else "")


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def write(folder: Path) -> list[Path]:
    """Write every page into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in pages()]


if __name__ == "__main__":
    for page in write(Path(sys.argv[1])):
        print(page)
