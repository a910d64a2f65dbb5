"""`sis integration`: adding, showing, testing, pausing and removing connections to a SIS.
Secrets come from a named environment variable or a prompt, never from an argument."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import AsJson, ExitCode, RefusalError, counted, emit, table

if TYPE_CHECKING:
    from rich.console import Console

    from sis_pipeline.providers.base import Provider
    from sis_pipeline.store.integrations import Integration

app = typer.Typer(help="Connections to student information systems.", no_args_is_help=True)

Key = Annotated[str, typer.Argument(metavar="KEY", help="The integration's key.")]
SECRET_WORDS = ("secret", "password", "token", "key_value")


@app.command()
def add(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A slug of a-z, 0-9 and -, unique across providers.")],
    *,
    provider: Annotated[str, typer.Option(help="Which SIS it is; `sis providers` lists them.")],
    district: Annotated[str, typer.Option(help="The district (LEA) its students belong to.")],
    base_url: Annotated[str | None, typer.Option(help="Where the API lives.")] = None,
    token_url: Annotated[str | None, typer.Option(help="The OAuth token endpoint, where the vendor fixes none.")] = None,
    client_id: Annotated[str | None, typer.Option(help="OAuth client id or API key.")] = None,
    client_secret_env: Annotated[
        str | None, typer.Option(metavar="VAR", help="The environment variable that holds the client secret; prompted for where absent.")
    ] = None,
    client_auth: Annotated[
        Literal["basic", "post", "none"] | None,
        typer.Option(help="How the client authenticates at the token endpoint; none for a public client."),
    ] = None,
    scope: Annotated[str | None, typer.Option(help="OAuth scopes, space separated.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Another setting of the provider; lists and mappings as JSON. May be repeated.")
    ] = None,
    org: Annotated[
        list[str] | None,
        typer.Option(metavar="ORG=DISTRICT", help="An organisation (its sis_id) that belongs to another district. May be repeated."),
    ] = None,
    priority: Annotated[int, typer.Option(min=0, help="Whose values win where systems disagree: lower first.")] = 100,
    replace: Annotated[bool, typer.Option("--replace", help="Change an integration that exists already.")] = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Add a connection to a SIS, its settings validated by its provider."""
    from sis_pipeline.store.integrations import check_key

    check_key(key)
    flags = {
        "base_url": base_url,
        "token_url": token_url,
        "client_id": client_id,
        "client_auth": client_auth,
        "scope": scope,
    }
    given = {name: value for name, value in flags.items() if value is not None} | parse_options(option or [])
    settings, made = validated(provider, given)
    secret = _secret_from(client_secret_env)
    here = Installation()
    existing = {integration.key for integration in here.integrations.list()}
    if key in existing and not replace:
        raise RefusalError(f"There is an integration {key!r} already.", "Use --replace to change it.")
    shape = made.authentication()
    needs_secret = shape is not None and shape.client_auth != "none"
    if needs_secret and secret is None and not _has_secret(here, key):
        secret = _prompt_secret(key)
    save(
        here,
        key=key,
        provider=provider,
        district=district,
        settings=settings,
        organisations=_mapping(org or [], "--org"),
        priority=priority,
        secret=secret,
        replace=key in existing,
    )

    def render(console: Console) -> None:
        console.print(
            f"Integration {key} {'changed' if key in existing else 'added'}: {made.title}, district {district}.",
            markup=False,
        )
        by_person = shape is not None and shape.grant == "authorization_code"
        first = f"sis oauth authorize {key}" if by_person else f"sis integration test {key}"
        console.print(f"Next: {first}; then sis sync --integration {key}", markup=False)
        if key not in existing:  # registering it at once would mean loading Dagster, which takes seconds
            console.print("Dagster has its partitions after the daemon's next look at the registry, or the first sync.")

    emit(as_json, {"integration": here.integrations.get(key), "replaced": key in existing}, render)


def save(
    here: Installation,
    *,
    key: str,
    provider: str,
    district: str,
    settings: Mapping[str, Any],
    organisations: Mapping[str, str],
    priority: int,
    secret: str | None,
    replace: bool,
) -> None:
    """Write the integration and its secret; the vault is opened first, so that a missing key changes nothing."""
    from sis_pipeline.store.integrations import Integration

    vault = here.vault if secret is not None else None
    here.integrations.add(
        Integration(key, provider, district, dict(organisations), dict(settings), priority), replace=replace
    )
    if vault is not None and secret is not None:
        vault.put(key, "client_secret", secret)


@app.command("list")
def list_(*, as_json: AsJson = False) -> None:
    """List the integrations and how they are."""
    found = Installation().integrations.list()

    def render(console: Console) -> None:
        columns = ("key", "provider", "district", "priority", "status")
        rows = [(it.key, it.provider, it.district, it.priority, it.status) for it in found]
        console.print(table(counted(len(found), "integration"), columns, rows, right=("priority",)))

    emit(as_json, {"integrations": found}, render)


@app.command()
def show(key: Key, *, as_json: AsJson = False) -> None:
    """Show an integration: its settings, whether its secret is stored, its latest snapshots."""
    here = Installation()
    integration = here.integrations.get(key)
    about = describe(here, integration)

    def render(console: Console) -> None:
        facts = [
            ("provider", integration.provider),
            ("district", integration.district),
            ("priority", integration.priority),
        ]
        facts += [("status", about["status"]), ("since", integration.status_since)]
        facts += [("syncs failed in a row", integration.failures), ("last good sync", integration.last_success_at)]
        facts += [("its data are those of", _district(integration.source_identity))]
        facts += [("client secret", "stored" if about["secret_stored"] else "none stored")]
        facts += [(f"organisation {org}", district) for org, district in integration.organisations.items()]
        facts += list(integration.settings.items())
        console.print(table(f"Integration {key}", ("setting", "value"), facts))
        columns = ("school_year", "verdict", "api_calls", "seconds", "rows", "quarantined", "finished_at")
        rows = [[_told(snapshot[column]) for column in columns] for snapshot in about["snapshots"]]
        console.print(table("Latest snapshots", columns, rows))

    emit(as_json, {"integration": integration, **about}, render)


@app.command("test")
def check(key: Key, *, as_json: AsJson = False) -> None:
    """Prove settings and credentials with a few cheap calls to the SIS, and whose data they reach."""
    from sis_pipeline.defs.runs import check_integration

    here = Installation()
    here.integrations.get(key)
    sentence = check_integration(here.settings, key)
    emit(
        as_json,
        {"integration": key, "ok": True, "message": sentence},
        lambda console: console.print(sentence, markup=False),
    )


@app.command()
def trust(
    key: Key,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Accept the district whose data an integration's credentials reach now as the right one, instead of the earlier."""
    from sis_pipeline.defs.runs import districts_behind
    from sis_pipeline.store.integrations import in_words

    here = Installation()
    old = here.integrations.get(key).source_identity
    new = districts_behind(here.settings, key)
    said = f"Integration {key} gave the data of {_district(old)}; now it gives those of {_district(new)}."
    if old != new and not yes:
        if not sys.stdin.isatty():
            raise RefusalError(f"{said} Trusting that needs a confirmation.", "Add --yes.")
        typer.confirm(f"{said} Is that the right one?", abort=True, err=True)
    here.integrations.trust(key, new)
    emit(
        as_json,
        {"integration": key, "before": sorted(old), "now": sorted(new), "changed": old != new},
        lambda console: console.print(
            f"{said} That is trusted from now on."
            if old != new
            else f"Nothing changed: {in_words(new) or 'no district'}.",
            markup=False,
        ),
    )


def _district(districts: frozenset[str]) -> str:
    from sis_pipeline.store.integrations import in_words

    return f"district {in_words(districts)}" if districts else "no district that it names"


@app.command()
def pause(key: Key, *, as_json: AsJson = False) -> None:
    """Stop syncing an integration; its last good snapshot still takes part in merges."""
    here = Installation()
    here.integrations.pause(key)
    emit(
        as_json,
        {"integration": key, "status": "paused"},
        lambda console: console.print(f"Integration {key} is paused."),
    )


@app.command()
def resume(key: Key, *, as_json: AsJson = False) -> None:
    """Sync a paused integration again."""
    here = Installation()
    here.integrations.resume(key)
    emit(
        as_json,
        {"integration": key, "status": "healthy"},
        lambda console: console.print(f"Integration {key} is synced again."),
    )


@app.command()
def remove(
    key: Key,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even where its server does not confirm that its tokens are revoked.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a paused integration and its secrets for good. What it delivered stays published.

    Its tokens are given back first, where its server takes them.
    """
    here = Installation()
    here.integrations.get(key)
    if not yes:
        if not sys.stdin.isatty():
            raise RefusalError(f"Removing integration {key!r} needs a confirmation.", "Add --yes.")
        typer.confirm(f"Remove integration {key} and its stored secrets?", abort=True, err=True)
    tokens = _given_back(here, here.integrations.check_removable(key), force=force)
    here.integrations.remove(key)
    emit(
        as_json,
        {"integration": key, "removed": True, "tokens": tokens},
        lambda console: console.print(f"Integration {key} is removed. {FATE[tokens]}", markup=False, soft_wrap=True),
    )


Fate = Literal["none", "revoked", "not_taken_back", "not_confirmed"]
FATE: dict[Fate, str] = {
    "none": "It had no tokens.",
    "revoked": "Its tokens are revoked.",
    "not_taken_back": "Its server takes no tokens back: they live until they end, or until its district withdraws them.",
    "not_confirmed": "Its server did not confirm that its tokens are revoked: have the district withdraw the access.",
}
"""What became of the tokens of an integration that was removed."""


def _given_back(here: Installation, integration: Integration, *, force: bool) -> Fate:
    """Nobody can do it once the integration is gone. Raises, and nothing is removed, where the server does not confirm
    it, unless `force`."""
    from sis_pipeline.connect.errors import SisError
    from sis_pipeline.connect.upkeep import token_health
    from sis_pipeline.defs.token_work import Effort, door

    key = integration.key
    with here.engine.connect() as connection:
        held = [one for one in token_health(connection) if one.integration == key and one.kind != "client_secret"]
    if not any(one.stored for one in held):
        return "none"
    try:
        with door(integration, vault=here.vault, engine=here.engine, effort=Effort()) as source:
            source.revoke_tokens()
    except SisError as error:
        if error.code == "config.revocation":
            return "not_taken_back"
        if force:
            return "not_confirmed"
        raise RefusalError(
            f"Integration {key} was not removed, because its tokens could not be given back. {error.message}",
            "Run it again later, or add --force: its tokens then live until they end.",
            ExitCode.FAILED,
            error.code,
        ) from None
    return "revoked"


def validated(provider: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], Provider]:
    """The settings as the provider understands them, and the provider. Raises ConfigError naming every wrong field."""
    from sis_pipeline.providers.registry import make

    made = make(provider, given)
    return made.settings.model_dump(mode="json", exclude_unset=True), made


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """`k=v` pairs as settings: `a.b=v` sets one entry of a mapping, a value that begins as JSON is read as JSON."""
    settings: dict[str, Any] = {}
    for name, value in _mapping(options, "--option").items():
        if any(word in name for word in SECRET_WORDS) and name != "token_url":
            raise RefusalError(
                f"--option {name}=…: secrets are never arguments.",
                "Use --client-secret-env VAR, or let sis prompt for it.",
            )
        outer, dot, inner = name.partition(".")
        if dot:
            settings.setdefault(outer, {})[inner] = value
        else:
            settings[name] = _json_or_text(name, value)
    return settings


def _json_or_text(name: str, value: str) -> Any:
    if not value.startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise RefusalError(f"--option {name}=…: the value begins as JSON but is none.") from None


def _mapping(pairs: Sequence[str], option: str) -> dict[str, str]:
    """`K=V` pairs as a dict. The value is not repeated in an error."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (equals and name):
            raise RefusalError(f"{option} takes {'ORG=DISTRICT' if option == '--org' else 'K=V'}.")
        found[name] = value
    return found


def describe(here: Installation, integration: Integration) -> dict[str, Any]:
    """Status, whether the secret is stored, and the latest snapshot of every school year."""
    from sqlalchemy import select
    from sqlalchemy.dialects.postgresql import distinct_on

    from sis_pipeline.db.tables import integrations, snapshots

    newest = (
        select(snapshots)
        .ext(distinct_on(snapshots.c.school_year))
        .where(snapshots.c.integration == integration.key)
        .order_by(snapshots.c.school_year.desc(), snapshots.c.started_at.desc())
    )
    with here.engine.connect() as connection:
        reason = connection.scalar(select(integrations.c.status_reason).where(integrations.c.key == integration.key))
        rows = [dict(row) for row in connection.execute(newest).mappings()]
    left_out = {"evidence", "content_hash", "roster_hash", "settings_hash", "integration"}
    return {
        "status": integration.status + (f": {reason}" if reason else ""),
        "secret_stored": _has_secret(here, integration.key),
        "snapshots": [{name: value for name, value in row.items() if name not in left_out} for row in rows],
    }


def _told(value: Any) -> Any:
    """Counts without those that are zero."""
    return {name: count for name, count in value.items() if count} if isinstance(value, dict) else value


def _has_secret(here: Installation, key: str) -> bool:
    from sqlalchemy import select

    from sis_pipeline.db.tables import oauth_tokens

    stored = select(oauth_tokens.c.kind).where(
        oauth_tokens.c.integration == key, oauth_tokens.c.kind == "client_secret"
    )
    with here.engine.connect() as connection:
        return connection.scalar(stored) is not None


def _secret_from(variable: str | None) -> str | None:
    if variable is None:
        return None
    secret = os.environ.get(variable, "")
    if not secret:
        raise RefusalError(
            "The environment variable that --client-secret-env names is not set or empty.",
            "Give the variable's name; the secret itself is never an argument.",
            ExitCode.CONFIG,
            "config",
        )
    return secret


def _prompt_secret(key: str) -> str:
    if not sys.stdin.isatty():
        raise RefusalError(
            f"Integration {key!r} needs a client secret.", "Name its variable with --client-secret-env VAR."
        )
    return str(typer.prompt(f"Client secret of {key}", hide_input=True, err=True))
