"""`sis keys`: making the encryption key, once and on purpose. Sealing and opening with it is the vault's business."""

from __future__ import annotations

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import AsJson, ExitCode, RefusalError, emit

app = typer.Typer(help="The encryption key of stored secrets.", no_args_is_help=True)


@app.callback()
def keys() -> None:
    """The encryption key of stored secrets."""


@app.command()
def create(*, as_json: AsJson = False) -> None:
    """Make the encryption key under SIS_HOME, readable by its owner only. Never overwrites one."""
    from sis_pipeline.connect.keys import create_key_file

    settings = Installation().settings
    if settings.encryption_keys is not None:
        raise RefusalError(
            "SIS_ENCRYPTION_KEYS is set, so a key file would not be used.",
            "Keep the keys where they are, or unset the variable first.",
            ExitCode.CONFIG,
            "config",
        )
    create_key_file(settings.key_file)
    advice = "Back it up: without it the stored secrets can't be opened and must be entered again."
    emit(
        as_json,
        {"key_file": str(settings.key_file)},
        lambda console: console.print(f"Key written to {settings.key_file} (mode 0600). {advice}", soft_wrap=True),
    )
