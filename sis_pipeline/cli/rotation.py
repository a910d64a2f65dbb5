"""`sis tokens rotate-keys` and `retire-key`: sealing everything with a new key, and forgetting the old one.
How rows are sealed anew, and why it may be killed at any point, is in `connect.keys`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import AsJson, ExitCode, RefusalError, counted, emit

if TYPE_CHECKING:
    from rich.console import Console

    from sis_pipeline.connect.keys import Keys

VARIABLE = "SIS_ENCRYPTION_KEYS"
MAKE = 'python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'


def rotate_keys(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    retire: Annotated[
        bool, typer.Option("--retire", help="Then retire the older keys, and take them out of the key file.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Seal every stored secret with a new key, while everything goes on.

    With a key file, a key is added to it first, unless an earlier rotation has left its older key there: then that one
    is finished. With SIS_ENCRYPTION_KEYS, the first key given is the new one. May be interrupted or killed at any
    point; the same command goes on.
    """
    from sis_pipeline.connect import keys as encryption

    here = Installation()
    keys = _proven(here)
    adds = here.settings.encryption_keys is None and len(keys.ids) == 1
    if dry_run:
        _tell_plan(here, keys, adds=adds, as_json=as_json)
        return
    if adds:
        _confirm(f"A new key will be added to {here.settings.key_file}, and everything sealed with it.", yes=yes)
        encryption.add_key(here.settings.key_file)
        keys.refresh()
    with here.engine.connect() as connection:
        older = sum(rows for one, rows in encryption.rows_per_key(connection).items() if one != keys.newest)
    from sis_pipeline.cli.progress import Counting

    with Counting("Sealed", older) as told:
        rotated = encryption.rotate_keys(here.engine, keys, progress=told)
    whole = not (rotated.failed or rotated.left)
    retired = _older(here, keys) if retire and whole else []
    for key_id in retired:
        _retire(here, keys, key_id)
    document: dict[str, Any] = {
        "ok": whole, "newest": rotated.newest, "added": adds, "before": rotated.before, "resealed": rotated.resealed,
        "left": rotated.left, "retired": retired, "retirable": _older(here, keys) if whole else [],
        "failed": [{"integration": it.integration, "kind": it.kind, "message": it.error} for it in rotated.failed],
    }  # fmt: skip
    emit(as_json, document, lambda console: _tell(console, here, document))
    if not whole:
        raise typer.Exit(ExitCode.FAILED)


def retire_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `sis tokens status` shows it.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Forget an old key that seals nothing any more; one with rows left is refused."""
    here = Installation()
    _retire(here, _proven(here), key_id)
    document = {"retired": key_id, "key_file": _file_of(here)}
    emit(as_json, document, lambda console: console.print(_retired(here, key_id), soft_wrap=True, markup=False))


def _proven(here: Installation) -> Keys:
    """The keys, which open what is stored: otherwise nothing is begun."""
    from sis_pipeline.connect.keys import Keys, prove

    keys = Keys.from_settings(here.settings)
    with here.engine.begin() as connection:
        prove(connection, keys)
    return keys


def _retire(here: Installation, keys: Keys, key_id: str) -> None:
    """In the database first, then in the file: a key that was retired there and not yet dropped here is dropped now."""
    from sis_pipeline.connect import keys as encryption

    with here.engine.connect() as connection:
        known = key_id in encryption.rows_per_key(connection)
    forgotten = not known and key_id in keys.ids and key_id != keys.newest
    if not forgotten:
        encryption.retire(here.engine, keys, key_id)
    if here.settings.encryption_keys is None:
        encryption.drop_key(here.settings.key_file, key_id)


def _older(here: Installation, keys: Keys) -> list[str]:
    """Keys beside the newest that are still known: to the database, or given here."""
    from sis_pipeline.connect.keys import Keys, rows_per_key

    given = Keys.from_settings(here.settings).ids if here.settings.encryption_keys is None else ()
    with here.engine.connect() as connection:
        return [one for one in dict.fromkeys((*rows_per_key(connection), *given)) if one != keys.newest]


def _tell_plan(here: Installation, keys: Keys, *, adds: bool, as_json: bool) -> None:
    from sis_pipeline.connect.keys import rows_per_key

    with here.engine.connect() as connection:
        before = rows_per_key(connection)
    older = sum(rows for key_id, rows in before.items() if adds or key_id != keys.newest)
    document = {"dry_run": True, "adds_key": adds, "newest": keys.newest, "before": before, "to_reseal": older}
    first = f"A key would be added to {here.settings.key_file}. " if adds else ""
    words = f"{first}{counted(older, 'stored secret')} would be sealed with {'it' if adds else f'key {keys.newest}'}."
    emit(as_json, document, lambda console: console.print(words, soft_wrap=True, markup=False))


def _tell(console: Console, here: Installation, document: dict[str, Any]) -> None:
    lines = [f"{counted(document['resealed'], 'stored secret')} sealed with key {document['newest']}."]
    if document["added"]:
        lines.append(f"It is new in {here.settings.key_file}: back the file up again.")
    lines += [f"Left as it is: {one['kind']} of {one['integration']}; {one['message']}." for one in document["failed"]]
    if document["left"] and not document["failed"]:
        lines.append(f"{counted(document['left'], 'row')} was locked by others; give the command again.")
    lines += [_retired(here, key_id) for key_id in document["retired"]]
    lines += [f"Key {one} seals nothing any more: `sis tokens retire-key {one}`." for one in document["retirable"]]
    if document["ok"] and not any(document[what] for what in ("added", "resealed", "retired", "retirable")):
        lines.append(f"To change keys, put a new one first in {VARIABLE}, everywhere it is set: {MAKE}")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def _retired(here: Installation, key_id: str) -> str:
    where = f"is out of {here.settings.key_file}" if _file_of(here) else f"may be taken out of {VARIABLE} now"
    return f"Key {key_id} is retired and {where}. Backups of the database from before still need it."


def _file_of(here: Installation) -> str | None:
    return str(here.settings.key_file) if here.settings.encryption_keys is None else None


def _confirm(words: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise RefusalError(f"{words} That needs a confirmation.", "Add --yes.")
    typer.confirm(f"{words} Go on?", abort=True, err=True)
