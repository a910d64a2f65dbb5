"""`sis oauth`: a person grants access to a system, by a browser on this machine or by an address that is pasted.
The flow is connect.authorize's, keeping the tokens connect.tokens'; codes and tokens are neither arguments nor output."""

from __future__ import annotations

import sys
import webbrowser
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sis_pipeline.cli.installation import Installation
from sis_pipeline.cli.output import AsJson, ExitCode, RefusalError, emit

if TYPE_CHECKING:
    from rich.console import Console

    from sis_pipeline.connect.authorize import Authorization
    from sis_pipeline.connect.contract import OAuth
    from sis_pipeline.connect.discovery import Discovered
    from sis_pipeline.connect.source import HttpSource
    from sis_pipeline.providers.base import HttpSettings, Provider

app = typer.Typer(help="Access that a person grants (OAuth authorization code).", no_args_is_help=True)

PORT = 8722
"""Fixed, because most servers compare the whole redirect address with the one registered."""


@app.callback()
def oauth() -> None:
    """Access that a person grants (OAuth authorization code)."""


@app.command()
def authorize(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The integration's key.")],
    *,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page, or only print its address.")
    ] = True,
    port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65_535,
            help="Where the answer is received: register http://127.0.0.1:PORT/callback with the server. 0 takes a free one.",
        ),
    ] = PORT,
    paste: Annotated[
        bool,
        typer.Option("--paste", help="Ask for the address that the browser ends on, where it is on another machine."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Have a person grant access, and keep the tokens in the vault."""
    here = Installation()
    client = _client(here, key)
    authorization, response = _pasted(client, port) if paste else _received(client, port, browser=browser)
    _redeem(here, client, authorization, response)
    document = _granted(here, key)
    emit(as_json, document, lambda console: _tell(console, document))


@dataclass(frozen=True)
class _Client:
    """An integration that a person can grant access to."""

    key: str
    provider: Provider
    settings: HttpSettings
    found: Discovered

    @property
    def oauth(self) -> OAuth:
        return self.found.oauth


def _client(here: Installation, key: str) -> _Client:
    """Everything that could be wrong is looked at before a person is sent anywhere."""
    from sis_pipeline.providers.base import HttpSettings
    from sis_pipeline.providers.registry import make

    integration = here.integrations.get(key)
    provider = make(integration.provider, dict(integration.settings))
    shape = provider.authentication()
    if shape is None or not isinstance(provider.settings, HttpSettings) or shape.grant != "authorization_code":
        raise RefusalError(
            f"Integration {key} gets its tokens without a person; there is nothing to grant.",
            "If its system does want a person's grant, set its option grant to authorization_code.",
            ExitCode.CONFIG,
            "config",
        )
    if shape.client_auth != "none" and here.vault.get(key, "client_secret") is None:
        raise RefusalError(
            f"Integration {key} has no client secret.",
            "Set it with `sis integration add KEY --replace`, or client_auth to none for a public client.",
            ExitCode.CONFIG,
            "config",
        )
    with _source(here, key, provider, provider.settings, shape) as source:
        return _Client(key, provider, provider.settings, source.discovered())


def _source(here: Installation, key: str, provider: Provider, settings: HttpSettings, oauth: OAuth) -> HttpSource:
    from sis_pipeline.connect.source import open_source

    return open_source(
        key,
        provider=provider.name,
        settings=settings,
        oauth=oauth,
        requests_per_minute=provider.rate,
        vault=here.vault,
        engine=here.engine,
    )


def _received(client: _Client, port: int, *, browser: bool) -> tuple[Authorization, str]:
    """By a browser on this machine, which is redirected to a port that is listened on meanwhile."""
    from sis_pipeline.cli.redirect import Redirect
    from sis_pipeline.connect.authorize import EXPIRY, is_answer

    with Redirect(port) as redirect:
        authorization = _begun(client, redirect.uri)
        redirect.listen(lambda answer: is_answer(authorization, answer))
        _show(authorization, "Open this page, sign in and grant access")
        if browser and not webbrowser.open(authorization.url):
            typer.echo("No browser could be opened; open the page yourself.", err=True)
        return authorization, redirect.wait(EXPIRY)


def _pasted(client: _Client, port: int) -> tuple[Authorization, str]:
    """By a browser anywhere: it ends on a page that can't be shown, whose address holds the answer."""
    if port == 0:
        raise RefusalError(
            "--paste needs the port of the registered redirect address.", "Leave --port out, or name it."
        )
    from sis_pipeline.cli.redirect import redirect_uri

    authorization = _begun(client, redirect_uri(port))
    _show(authorization, "Open this page in a browser anywhere, sign in and grant access")
    typer.echo(f"It ends on an address that begins with {authorization.redirect_uri} and shows nothing.", err=True)
    if sys.stdin.isatty():
        return authorization, str(typer.prompt("Paste that address (it stays hidden)", hide_input=True, err=True))
    return authorization, sys.stdin.readline()


def _begun(client: _Client, uri: str) -> Authorization:
    from sis_pipeline.connect.authorize import begin

    return begin(client.oauth, uri, client.key, iss_required=client.found.iss_required)


def _show(authorization: Authorization, what: str) -> None:
    typer.echo(f"{what}:\n\n  {authorization.url}\n", err=True)


def _redeem(here: Installation, client: _Client, authorization: Authorization, response: str) -> None:
    """The answer judged, its code exchanged, the tokens kept."""
    from sis_pipeline.connect.authorize import finish

    code = finish(authorization, response)
    with _source(here, client.key, client.provider, client.settings, client.oauth) as source:
        source.authorize(code, authorization.verifier, authorization.redirect_uri)
    here.integrations.credentials_changed(client.key)


def _granted(here: Installation, key: str) -> dict[str, Any]:
    """What is kept, without any of it."""
    from sis_pipeline.connect.upkeep import token_health

    with here.engine.connect() as connection:
        kept = {one.kind: one for one in token_health(connection) if one.integration == key}
    access, refresh = kept["access"], kept.get("refresh")
    return {
        "integration": key,
        "granted": True,
        "scope": access.scope,
        "expires_in_seconds": round(access.expires_in or 0),
        "expires_at": datetime.now(UTC) + timedelta(seconds=access.expires_in or 0),
        "refresh_token": refresh is not None and refresh.stored,
    }


def _tell(console: Console, document: dict[str, Any]) -> None:
    key = document["integration"]
    scope = f"scope {document['scope']}" if document["scope"] else "the scope asked for"
    until = document["expires_at"].astimezone().strftime("%Y-%m-%d %H:%M %Z")
    then = (
        "It is renewed by itself from then on, until somebody withdraws the access."
        if document["refresh_token"]
        else "The server gave no refresh token, so access has to be granted again then. Some servers give one only for a "
        "certain scope, often offline_access; set it with the integration's scope."
    )
    for line in (
        f"Integration {key} is granted access: {scope}.",
        f"The access token is good until {until}. {then}",
        f"Next: sis integration test {key}",
    ):
        console.print(line, markup=False, soft_wrap=True)
