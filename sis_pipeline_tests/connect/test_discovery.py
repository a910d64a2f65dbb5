"""Metadata as servers publish them, and as somebody would who wants our tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography.fernet import Fernet
from pytest_httpserver import HTTPServer
from sqlalchemy import Engine, text
from werkzeug import Request as ServerRequest
from werkzeug import Response as ServerResponse

from sis_pipeline.connect import discovery
from sis_pipeline.connect.authorize import begin, finish
from sis_pipeline.connect.breaker import FAILURES, SourceLeftAloneError
from sis_pipeline.connect.contract import OAuth, Token
from sis_pipeline.connect.discovery import NOTHING_LASTS, Discovered, Get, discover, well_known_urls
from sis_pipeline.connect.errors import (
    Call,
    ConfigError,
    ContractError,
    RateLimitedError,
    SisError,
    TransientError,
)
from sis_pipeline.connect.http import Door
from sis_pipeline.connect.keys import Keys
from sis_pipeline.connect.source import HttpSource, open_source
from sis_pipeline.connect.vault import Vault
from sis_pipeline.providers.registry import make
from sis_pipeline.sandbox.browser import open_page
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.connect.workers import KEY, SECRET, a_source, tokens_of

OAUTH_PATH, OPENID_INSERTED = "/.well-known/oauth-authorization-server/t", "/.well-known/openid-configuration/t"
OPENID_PATH = "/t/.well-known/openid-configuration"
PATHS = [OAUTH_PATH, OPENID_INSERTED, OPENID_PATH]


class Server:
    """An authorization server's metadata at one path; everything else answers `missing`, and a POST what is asked for."""

    def __init__(self, server: HTTPServer) -> None:
        self.root = server.url_for("").rstrip("/")
        self.issuer = f"{self.root}/t"
        self.path = OAUTH_PATH
        self.missing: tuple[int, str] = (404, "no")
        self.seen: list[str] = []
        self.document: Any = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.root}/authorize",
            "token_endpoint": f"{self.root}/token",
            "revocation_endpoint": f"{self.root}/revoke",
        }
        server.expect_request(re.compile("/.*")).respond_with_handler(self._answer)

    def _answer(self, request: ServerRequest) -> ServerResponse:
        self.seen.append(request.path)
        if request.method == "POST":
            answer = {"access_token": f"a{len(self.seen)}", "refresh_token": f"r{len(self.seen)}", "expires_in": 3600}
            return ServerResponse(json.dumps(answer), content_type="application/json")
        if request.path != self.path:
            return ServerResponse(self.missing[1], self.missing[0], content_type="text/html")
        return ServerResponse(json.dumps(self.document), content_type="application/json")

    def oauth(self, **changed: Any) -> OAuth:
        settings: dict[str, Any] = {"grant": "authorization_code", "issuer": self.issuer} | changed
        return OAuth(f"{self.root}/token", "c", **settings)

    def discover(self, **changed: Any) -> Discovered:
        oauth = self.oauth(**changed)
        return discover(oauth, "lincoln", get_through(Door(oauth.urls)))


def get_through(door: Door) -> Get:
    def get(url: str, *, accept: Any) -> Any:
        call = Call("lincoln", "GET", urlsplit(url).path)
        return accept(call, door.send(call, url))

    return get


@pytest.fixture
def server(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(discovery, "_documents", {})
    monkeypatch.setattr(discovery, "_nothing", {})
    return Server(httpserver)


@pytest.mark.parametrize(
    ("issuer", "first"),
    [
        ("https://h", "https://h/.well-known/oauth-authorization-server"),
        ("https://h/", "https://h/.well-known/oauth-authorization-server"),
        ("https://h:8443/a/b", "https://h:8443/.well-known/oauth-authorization-server/a/b"),
        ("https://h/a/", "https://h/.well-known/oauth-authorization-server/a"),
    ],
)
def test_the_well_known_part_stands_between_host_and_path(issuer: str, first: str) -> None:
    assert well_known_urls(issuer)[0] == first


@pytest.mark.parametrize("path", PATHS)
def test_endpoints_are_found_and_the_document_is_read_once(server: Server, path: str) -> None:
    server.path = path
    for _ in range(2):
        found = server.discover()
        assert (found.oauth.authorize_url, found.oauth.revoke_url) == (
            f"{server.root}/authorize",
            f"{server.root}/revoke",
        )
        assert not found.iss_required
    assert server.seen == PATHS[: PATHS.index(path) + 1]


def test_what_is_set_by_hand_stays_and_the_promise_of_iss_is_kept(server: Server) -> None:
    server.document["authorization_response_iss_parameter_supported"] = True
    found = server.discover(authorize_url="https://other.example/a", revoke_url="https://other.example/r")
    assert (found.oauth.authorize_url, found.oauth.revoke_url) == ("https://other.example/a", "https://other.example/r")
    assert found.iss_required


def test_without_an_issuer_nothing_is_asked(server: Server) -> None:
    assert server.discover(issuer=None).oauth.authorize_url is None
    assert server.seen == []


@pytest.mark.parametrize("missing", [(404, "no"), (403, "no"), (302, ""), (200, "<!doctype html><title>App</title>")])
def test_a_server_without_metadata(server: Server, missing: tuple[int, str]) -> None:
    server.path, server.missing = "/nowhere", missing
    with pytest.raises(ConfigError, match="publishes no metadata"):
        server.discover()
    assert server.seen == PATHS
    by_hand = server.discover(authorize_url="https://other.example/a")
    assert by_hand.oauth == server.oauth(authorize_url="https://other.example/a")
    assert server.seen == PATHS, "not asked again"
    discovery._nothing[server.issuer] -= NOTHING_LASTS
    server.path = OAUTH_PATH
    assert server.discover().oauth.revoke_url == f"{server.root}/revoke", "it may begin to"


@pytest.mark.parametrize(
    ("status", "expected"), [(500, TransientError), (503, TransientError), (429, RateLimitedError)]
)
def test_a_server_that_is_down_is_not_taken_for_one_without(
    server: Server, status: int, expected: type[SisError]
) -> None:
    server.path, server.missing = "/nowhere", (status, "")
    with pytest.raises(expected):
        server.discover(authorize_url="https://other.example/a")
    assert server.seen == PATHS[:1]


@pytest.mark.parametrize(
    "issuer", [lambda own: own + "/", str.upper, lambda _: "https://evil.example", lambda _: None, lambda own: [own]]
)
def test_the_issuer_must_be_the_one_asked_for(server: Server, issuer: Callable[[str], object]) -> None:
    server.document["issuer"] = issuer(server.issuer)
    for _ in range(2):
        with pytest.raises(ContractError, match="another issuer"):
            server.discover()
    assert len(server.seen) == 2, "a wrong document is not kept"


@pytest.mark.parametrize("document", [[], "text", 7, None])
def test_a_document_that_is_none(server: Server, document: object) -> None:
    server.document = document
    with pytest.raises(ContractError, match="no JSON object"):
        server.discover()


@pytest.mark.parametrize("name", ["authorization_endpoint", "revocation_endpoint"])
@pytest.mark.parametrize("host", ["https://evil.example", "https://127.0.0.1.evil.example", "https://127.0.0.1:1"])
def test_endpoints_on_another_origin_are_not_used(server: Server, name: str, host: str) -> None:
    server.document[name] = f"{host}/x"
    with pytest.raises(ConfigError, match=f"{name} is on another host") as caught:
        server.discover()
    assert {"authorization_endpoint": "authorize_url", "revocation_endpoint": "revoke_url"}[name] in caught.value.advice
    assert "evil" not in str(caught.value)


def test_an_origin_that_the_settings_name_is_used(server: Server) -> None:
    server.document["revocation_endpoint"] = "https://login.example/revoke"
    assert server.discover(authorize_url="https://login.example/a").oauth.revoke_url == "https://login.example/revoke"


@pytest.mark.parametrize("url", ["http://sis.example/x", "javascript:alert(1)", "/relative", 7, "https://u:p@h/"])
def test_addresses_that_must_not_be_called(server: Server, url: object) -> None:
    server.document["authorization_endpoint"] = url
    with pytest.raises(ContractError, match="no address that may be called"):
        server.discover()


def test_the_token_endpoint_is_never_learned(server: Server) -> None:
    server.document["token_endpoint"] = f"{server.root}/other"
    with pytest.raises(ConfigError, match="another token endpoint"):
        server.discover()
    server.document["token_endpoint"] = f"{server.root}/token?appName=x"
    assert server.discover().oauth.token_url == f"{server.root}/token"


def test_a_server_without_s256_is_refused(server: Server) -> None:
    server.document["code_challenge_methods_supported"] = ["plain"]
    with pytest.raises(ConfigError, match="PKCE with S256"):
        server.discover()


def test_tokens_are_given_back_at_a_discovered_endpoint(database: Engine) -> None:
    options = {"grant": "authorization_code", "refresh_mode": "strict"}
    world = World(seed=7, systems=(System("or12", "oneroster_1.2", 10, options),))
    with SandboxServer(world, enforce_limits=False) as sandbox:
        handle = sandbox.system("or12")
        settings = {
            name: value for name, value in handle.settings.items() if name not in {"authorize_url", "revoke_url"}
        }
        provider = make("oneroster", settings)
        vault = Vault.open(database, Keys([Fernet.generate_key().decode()]))
        vault.put("lincoln", "client_secret", handle.client_secret)
        found = discover(provider.authentication(), "lincoln", get_through(Door([handle.token_url])))
        authorization = begin(found.oauth, "http://127.0.0.1:1/callback", "lincoln", iss_required=found.iss_required)
        code = finish(authorization, open_page(authorization.url))
        with open_source(
            "lincoln",
            provider="oneroster",
            settings=provider.settings,  # type: ignore[arg-type]
            oauth=provider.authentication(),
            requests_per_minute=6_000,
            vault=vault,
            engine=database,
        ) as source:
            source.authorize(code, authorization.verifier, authorization.redirect_uri)
            assert handle.stats()["oauth"]["live_families"] == 1
            source.revoke_tokens()
        assert handle.stats()["oauth"]["live_families"] == 0
        assert handle.stats()["oauth"]["revocations"] >= 1


# Through the source: in turn, on record, and never between a grant and its keeping


@pytest.fixture
def source_of(server: Server, database: Engine) -> Callable[..., HttpSource]:
    Vault.open(database, Keys([KEY])).put("lincoln", "client_secret", SECRET)
    return lambda **changed: a_source(database, server.root, oauth=server.oauth(**changed))


def rows(database: Engine, query: str) -> list[tuple[object, ...]]:
    with database.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def test_discovery_takes_its_turns_and_is_on_record(
    server: Server, source_of: Callable[..., HttpSource], database: Engine
) -> None:
    server.path = OPENID_INSERTED
    with source_of() as source:
        assert source.discovered().oauth.revoke_url == f"{server.root}/revoke"
        assert (source.calls, source.token_calls) == (2, 0)
    recorded = rows(database, "select method, template, status, error_class from sis.api_calls order by call_id")
    assert recorded == [("GET", OAUTH_PATH, 404, None), ("GET", OPENID_INSERTED, 200, None)]
    assert rows(database, "select granted from sis.rate_limits") == [(2,)]


def test_an_issuer_that_keeps_failing_is_left_alone(
    server: Server, source_of: Callable[..., HttpSource], database: Engine
) -> None:
    server.path, server.missing = "/nowhere", (500, "")
    with source_of() as source:
        for _ in range(FAILURES):
            with pytest.raises(TransientError, match="answered 500"):
                source.discovered()
        with pytest.raises(SourceLeftAloneError):
            source.discovered()
    assert server.seen == [OAUTH_PATH] * FAILURES
    assert rows(database, "select distinct error_class from sis.api_calls") == [("transient",)]


def test_an_issuers_throttle_is_everybodys(
    server: Server, source_of: Callable[..., HttpSource], database: Engine
) -> None:
    server.path, server.missing = "/nowhere", (429, "")
    with source_of() as source, pytest.raises(RateLimitedError):
        source.discovered()
    assert rows(database, "select pushed_until is not null from sis.rate_limits") == [(True,)]


def test_nothing_is_asked_between_a_grant_and_its_keeping(
    server: Server, source_of: Callable[..., HttpSource], database: Engine
) -> None:
    server.path = "/nowhere"
    with source_of(authorize_url=f"{server.root}/authorize") as source:
        source.authorize("code", "v" * 43, "http://127.0.0.1:1/callback")
        assert server.seen == [*PATHS, "/token"]
        source.authorize("code", "v" * 43, "http://127.0.0.1:1/callback")
    assert server.seen == [*PATHS, "/token", "/token"], "that there is nothing is remembered"
    assert rows(database, "select version from sis.oauth_tokens where kind = 'refresh'") == [(2,)]


def test_a_discovered_endpoint_beside_the_sign_in_can_be_called(
    server: Server, source_of: Callable[..., HttpSource], database: Engine
) -> None:
    """The sign-in has a host of its own, which a person set: tokens are given back there, as the server asks."""
    login = server.root.replace("localhost", "127.0.0.1")
    assert login != server.root
    server.document["revocation_endpoint"] = f"{login}/revoke"
    with source_of(authorize_url=f"{login}/authorize") as source:
        tokens_of(source).accept(Token("a0", 3600, "r0"), revocable=True)
        assert source.revoke_tokens() == 2
    assert server.seen == [OAUTH_PATH, "/revoke", "/revoke"]
    assert set(rows(database, "select status from sis.oauth_tokens where kind <> 'client_secret'")) == {("revoked",)}
