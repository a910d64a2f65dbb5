"""Token requests as they look on the wire, and token answers of every shape."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, unquote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_httpserver import HTTPServer
from werkzeug import Request as ServerRequest
from werkzeug import Response as ServerResponse

from sis_pipeline.connect.contract import OAuth, Token
from sis_pipeline.connect.errors import (
    AuthRevokedError,
    Call,
    ConfigError,
    ContractError,
    RateLimitedError,
    SisError,
    TransientError,
    source_status,
)
from sis_pipeline.connect.http import Door, Reply
from sis_pipeline.connect.oauth import (
    LONGEST_GRANT,
    LONGEST_LIFETIME,
    SPENT_LIFETIME,
    UNSAID_LIFETIME,
    Post,
    TokenEndpoint,
    lifetime,
    read_token,
    refresh_lifetime,
)
from sis_pipeline_tests.connect.servers import http_answer, raw_server, writes

CALL = Call("lincoln", "POST", "/token")
NASTY = "p:ß %+&=\"\\'/?#é~*"
GOOD = {"access_token": "abc.def", "token_type": "Bearer", "expires_in": 3600}


class Endpoint:
    """A token endpoint that answers what it is told, and keeps the requests."""

    def __init__(self, server: HTTPServer) -> None:
        self.answers: list[tuple[int, object]] = []
        self.seen: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.url = server.url_for("/token?appName=roster")
        self.revoke_url = server.url_for("/revoke")
        server.expect_request("/token").respond_with_handler(self._answer)
        server.expect_request("/revoke").respond_with_handler(self._answer)

    def _answer(self, request: ServerRequest) -> ServerResponse:
        form = {name: values[0] for name, values in parse_qs(request.get_data(as_text=True)).items()}
        self.seen.append({"form": form, "query": dict(request.args), "auth": request.headers.get("Authorization")})
        status, body = self.answers.pop(0) if self.answers else (200, GOOD)
        return ServerResponse(json.dumps(body), status, self.headers, content_type="application/json")


@pytest.fixture
def endpoint(httpserver: HTTPServer) -> Endpoint:
    return Endpoint(httpserver)


def ask(oauth: OAuth, secret: str = "s3cret", door: Door | None = None) -> Token:
    return TokenEndpoint(oauth, "lincoln").fetch(secret, post_through(door or Door([oauth.token_url])))


def post_through(door: Door) -> Post:
    def post(url: str, *, accept: Any, data: Mapping[str, str], headers: Mapping[str, str], auth: Any) -> Any:
        return accept(CALL, door.send(CALL, url, data=data, headers=headers, auth=auth))

    return post


def test_client_credentials_with_basic(endpoint: Endpoint) -> None:
    token = ask(OAuth(endpoint.url, NASTY, scope="a b"), secret=NASTY)
    assert (token.value, token.lifetime) == ("abc.def", 3600)
    seen = endpoint.seen[0]
    assert seen["form"] == {"grant_type": "client_credentials", "scope": "a b"}
    assert seen["query"] == {"appName": "roster"}
    pair = base64.b64decode(str(seen["auth"]).removeprefix("Basic ")).decode("ascii")
    assert [unquote_plus(part) for part in pair.split(":")] == [NASTY, NASTY]


def test_client_credentials_with_post(endpoint: Endpoint) -> None:
    ask(OAuth(endpoint.url, NASTY, client_auth="post"), secret=NASTY)
    form = {"grant_type": "client_credentials", "client_id": NASTY, "client_secret": NASTY}
    assert endpoint.seen[0] | {"query": 0} == {"form": form, "query": 0, "auth": None}


@pytest.mark.parametrize("client_auth", ["basic", "post"])
def test_password_grant(endpoint: Endpoint, client_auth: str) -> None:
    ask(OAuth(endpoint.url, "key-1", grant="password", client_auth=client_auth), secret=NASTY)  # type: ignore[arg-type]
    form = endpoint.seen[0]["form"]
    assert isinstance(form, dict)
    assert (form["grant_type"], form["username"], form["password"]) == ("password", "key-1", NASTY)
    assert (endpoint.seen[0]["auth"] is not None) == (client_auth == "basic")


def test_scopes_are_tried_in_turn_and_remembered(endpoint: Endpoint) -> None:
    refusal = (400, {"error": "invalid_scope", "error_description": "no"})
    endpoint.answers = [refusal, refusal]
    oauth = OAuth(endpoint.url, "c", scope="all", scope_fallbacks=("core", None))
    tokens, post = TokenEndpoint(oauth, "lincoln"), post_through(Door([oauth.token_url]))
    tokens.fetch("s3cret", post)
    tokens.fetch("s3cret", post)
    assert [seen["form"].get("scope") for seen in endpoint.seen] == ["all", "core", None, None]  # type: ignore[attr-defined]
    endpoint.answers = [refusal]
    with pytest.raises(ConfigError, match="none of the scopes"):
        tokens.fetch("s3cret", post)


def test_a_redirect_does_not_carry_the_secret_away(endpoint: Endpoint) -> None:
    with raw_server(writes(http_answer(json.dumps(GOOD).encode()))) as other:
        redirect = writes(http_answer(b"", "307 Temporary Redirect", Location=f"{other.url}/token"))
        with raw_server(redirect) as server, pytest.raises(TransientError, match="a redirect to host"):
            ask(OAuth(f"{server.url}/token", "c"))
        with pytest.raises(ContractError, match="was not sent"):
            ask(OAuth(f"{other.url}/token", "c"), door=Door([server.url]))
    assert len(server.requests) == 1
    assert other.requests == []


PERSON: dict[str, Any] = {"grant": "authorization_code"}


def endpoint_of(oauth: OAuth) -> tuple[TokenEndpoint, Post]:
    return TokenEndpoint(oauth, "lincoln"), post_through(Door(oauth.urls))


@pytest.mark.parametrize("client_auth", ["basic", "post", "none"])
def test_a_refresh_asks_for_no_scope_and_keeps_the_old_token_where_none_comes(
    endpoint: Endpoint, client_auth: Any
) -> None:
    oauth = OAuth(endpoint.url, NASTY, client_auth=client_auth, scope="all", **PERSON)
    tokens, post = endpoint_of(oauth)
    token = tokens.refresh("R 1+&=", None if client_auth == "none" else NASTY, post)
    assert (token.value, token.refresh, token.scope) == ("abc.def", None, None)
    client = {"basic": {}, "none": {"client_id": NASTY}, "post": {"client_id": NASTY, "client_secret": NASTY}}
    form = {"grant_type": "refresh_token", "refresh_token": "R 1+&=", **client[client_auth]}
    assert endpoint.seen[0]["form"] == form
    assert (endpoint.seen[0]["auth"] is None) == (client_auth != "basic")


def test_a_refresh_gives_the_new_refresh_token_and_the_scope(endpoint: Endpoint) -> None:
    endpoint.answers = [(200, {**GOOD, "refresh_token": "R2", "scope": "b a"})] * 2
    tokens, post = endpoint_of(OAuth(endpoint.url, "c", **PERSON))
    token = tokens.refresh("R1", "s3cret", post, granted="a b c")
    assert (token.refresh, token.scope, token.scope_excess) == ("R2", "b a", 0)
    assert "R2" not in repr(token)


def test_a_scope_that_grew_is_counted_and_not_believed(endpoint: Endpoint) -> None:
    """Refusing the answer would lose R2, and R1 is spent by then."""
    endpoint.answers = [(200, {**GOOD, "refresh_token": "R2", "scope": "b a"})]
    tokens, post = endpoint_of(OAuth(endpoint.url, "c", **PERSON))
    token = tokens.refresh("R1", "s3cret", post, granted="a")
    assert (token.value, token.refresh, token.scope, token.scope_excess) == ("abc.def", "R2", "a", 1)


def test_a_refused_refresh_says_what_a_person_does(endpoint: Endpoint) -> None:
    endpoint.answers = [(400, {"error": "invalid_grant", "error_description": "Kwiatkowska"})]
    tokens, post = endpoint_of(OAuth(endpoint.url, "c", **PERSON))
    with pytest.raises(AuthRevokedError) as caught:
        tokens.refresh("R1", "s3cret", post)
    assert caught.value.context["oauth_error"] == "invalid_grant"
    assert (caught.value.code, caught.value.advice) == (
        "auth_revoked.grant",
        "Have a person grant access with `sis oauth authorize lincoln`.",
    )
    assert "Kwiatkowska" not in str(caught.value)


def test_a_code_is_exchanged_with_its_verifier(endpoint: Endpoint) -> None:
    tokens, post = endpoint_of(OAuth(endpoint.url, "c", client_auth="none", **PERSON))
    tokens.exchange("c0de/+", "v" * 43, "http://127.0.0.1:1/callback", None, post)
    form = {"grant_type": "authorization_code", "code": "c0de/+", "code_verifier": "v" * 43, "client_id": "c"}
    assert endpoint.seen[0]["form"] == form | {"redirect_uri": "http://127.0.0.1:1/callback"}
    assert endpoint.seen[0]["auth"] is None


def test_nothing_is_sent_without_a_secret(endpoint: Endpoint) -> None:
    tokens, post = endpoint_of(OAuth(endpoint.url, "c"))
    with pytest.raises(ConfigError, match="has no client secret"):
        tokens.fetch(None, post)
    assert endpoint.seen == []


def test_a_token_is_given_back(endpoint: Endpoint) -> None:
    oauth = OAuth(endpoint.url, NASTY, revoke_url=endpoint.revoke_url, **PERSON)
    tokens, post = endpoint_of(oauth)
    tokens.revoke("R 1+", "refresh_token", NASTY, post)
    assert endpoint.seen[0]["form"] == {"token": "R 1+", "token_type_hint": "refresh_token"}
    pair = base64.b64decode(endpoint.seen[0]["auth"].removeprefix("Basic ")).decode("ascii")
    assert [unquote_plus(part) for part in pair.split(":")] == [NASTY, NASTY]


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (204, {}, ContractError),
        (202, {}, ContractError),
        (500, {}, TransientError),
        (503, {}, RateLimitedError),
        (302, {}, TransientError),
        (307, {}, TransientError),
        (400, {"error": "unsupported_token_type"}, ConfigError),
        (400, {"error": "temporarily_unavailable"}, TransientError),
        (401, {"error": "invalid_client"}, AuthRevokedError),
        (404, {}, ConfigError),
    ],
)
def test_only_200_means_revoked(endpoint: Endpoint, status: int, body: object, expected: type[SisError]) -> None:
    endpoint.answers, endpoint.headers = [(status, body)], {"Retry-After": "7", "Location": "https://other.example/"}
    tokens, post = endpoint_of(OAuth(endpoint.url, "c", revoke_url=endpoint.revoke_url))
    with pytest.raises(SisError) as caught:
        tokens.revoke("R1", "refresh_token", "s3cret", post)
    assert type(caught.value) is expected
    if isinstance(caught.value, RateLimitedError):
        assert caught.value.retry_after == 7
    assert len(endpoint.seen) == 1


@pytest.mark.parametrize("url", [None, "http://sis.example/revoke", "https://u:p@sis.example/revoke"])
def test_a_token_is_given_back_by_https_or_not_at_all(endpoint: Endpoint, url: str | None) -> None:
    def post(*_args: object, **_more: object) -> Any:
        raise AssertionError("sent")

    with pytest.raises(ConfigError, match="revocation endpoint") as caught:
        TokenEndpoint(OAuth(endpoint.url, "c", revoke_url=url), "lincoln").revoke("R1", "access_token", "s", post)
    assert caught.value.code == "config.revocation"


@pytest.mark.parametrize("refresh", [7, True, ["R"], {"a": 1}, "a\nb", "a\x00", "é", 1.5])
def test_refresh_tokens_that_are_none_are_not_kept(refresh: object) -> None:
    with pytest.raises(ContractError, match="a refresh token that is none"):
        read_token(CALL, Reply(200, {}, json.dumps({**GOOD, "refresh_token": refresh}).encode(), 0.1))


@pytest.mark.parametrize(
    ("said", "kept"),
    [(None, None), ("", None), (" a b ", "a b"), (["a"], None), ('a"b', None), ("a\nb", None), (7, None)],
)
def test_scopes_that_cannot_be_read_are_unsaid(said: object, kept: str | None) -> None:
    assert read_token(CALL, Reply(200, {}, json.dumps({**GOOD, "scope": said}).encode(), 0.1)).scope == kept


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(["access_token", "token_type", "expires_in", "refresh_token", "scope", "error"])


@given(st.dictionaries(FIELDS, JSON | st.just("abc")), st.sampled_from([200, 201, 400, 401, 403, 429, 500, 503]))
def test_every_answer_is_a_whole_token_or_an_error_of_ours(answer: dict[str, object], status: int) -> None:
    try:
        token = read_token(CALL, Reply(status, {"content-type": "application/json"}, json.dumps(answer).encode(), 0.1))
    except SisError:
        return
    assert status in {200, 201}
    assert token.value == answer["access_token"]
    assert all(" " <= char <= "~" for text in (token.value, token.refresh or "", token.scope or "") for char in text)
    assert 0 < token.lifetime <= LONGEST_LIFETIME


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, b'{"error":"invalid_client"}', AuthRevokedError),
        (400, b'{"error":"invalid_client"}', AuthRevokedError),
        (200, b'{"error":"invalid_client"}', AuthRevokedError),
        (400, b'{"error":"unauthorized_client"}', AuthRevokedError),
        (400, b'{"error":"invalid_grant"}', AuthRevokedError),
        (401, b'{"message":"Unauthorized","refresh_token":"R1"}', AuthRevokedError),
        (401, b"<html>Login</html>", AuthRevokedError),
        (401, b'["a"]', AuthRevokedError),
        (401, b'{"error":{"code":7}}', AuthRevokedError),
        (403, b"", AuthRevokedError),
        (400, b'{"error":"unsupported_grant_type"}', ConfigError),
        (400, b'{"error":"invalid_request"}', ConfigError),
        (400, b"what?", ConfigError),
        (404, b"<html>", ConfigError),
        (400, b'{"error":"invalid_scope"}', ConfigError),
        (200, b'{"error":["Kwiatkowska"]}', ConfigError),
        (429, b'{"message":"slow"}', RateLimitedError),
        (400, b"Too many requests", RateLimitedError),
        (500, b'{"error":"server_error"}', TransientError),
        (400, b'{"error":"server_error"}', TransientError),
        (400, b'{"error":"temporarily_unavailable"}', TransientError),
        (200, b'{"error":"slow_down"}', TransientError),
        (503, b"", TransientError),
        (302, b"", TransientError),
        (200, b"{}", ContractError),
        (200, b"", ContractError),
        (200, b"<html>", ContractError),
        (200, b"null", ContractError),
        (200, b'{"access_token":""}', ContractError),
        (200, b'{"access_token":7}', ContractError),
        (200, b'{"access_token":"a\\r\\nX-Evil: 1"}', ContractError),
        (200, b'{"access_token":"a b"}', ContractError),
        (200, b'{"access_token":"a","token_type":"mac"}', ContractError),
        (200, b'{"access_token":"a","token_type":["bearer"]}', ContractError),
        (200, b"[" * 100_000, ContractError),
    ],
)
def test_answers_that_are_no_token(status: int, body: bytes, expected: type[SisError]) -> None:
    with pytest.raises(SisError) as caught:
        read_token(CALL, Reply(status, {"content-type": "application/json"}, body, 0.1))
    assert type(caught.value) is expected
    assert caught.value.context["status"] == status
    assert source_status(caught.value) is None, "nothing that a request for data was answered"
    for leak in ("R1", "Kwiatkowska", "X-Evil", "Login"):
        assert leak not in str(caught.value)


@pytest.mark.parametrize("kind", ["Bearer", "bearer", "BEARER", None, ""])
def test_answers_that_are_one(kind: str | None) -> None:
    body = {"access_token": "a-b.c~d+e/f=", "token_type": kind, "expires_in": "1814654", "extra": [1]}
    token = read_token(CALL, Reply(200, {}, json.dumps(body).encode(), 2.0))
    assert (token.value, token.lifetime) == ("a-b.c~d+e/f=", 1_814_654)
    assert time.monotonic() - token.asked_at >= 2.0
    assert "a-b.c" not in repr(token)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (3600, 3600),
        (0.5, 0.5),
        ("3600", 3600),
        (" 3600s ", 3600),
        ("3600 seconds", 3600),
        ("12.5", 12.5),
        (0, SPENT_LIFETIME),
        ("0", SPENT_LIFETIME),
        (-1, SPENT_LIFETIME),
        ("-5", SPENT_LIFETIME),
        (None, UNSAID_LIFETIME),
        ("", UNSAID_LIFETIME),
        ("soon", UNSAID_LIFETIME),
        (True, UNSAID_LIFETIME),
        ([3600], UNSAID_LIFETIME),
        (float("nan"), UNSAID_LIFETIME),
        (1e12, LONGEST_LIFETIME),
        (10**400, LONGEST_LIFETIME),
        ("9" * 400, LONGEST_LIFETIME),
        (float("inf"), LONGEST_LIFETIME),
    ],
)
def test_lifetimes(said: object, seconds: float) -> None:
    assert lifetime(said) == seconds


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.booleans(), st.lists(st.integers())))
def test_every_lifetime_is_sane(said: object) -> None:
    assert 0 < lifetime(said) <= LONGEST_LIFETIME
    assert 0 < (refresh_lifetime({"refresh_expires_in": said}) or 1) <= LONGEST_GRANT


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ({}, None),
        ({"refresh_expires_in": 43_200}, 43_200),
        ({"refresh_token_expires_in": "43200 s"}, 43_200),
        ({"refresh_expires_in": 1800, "refresh_token_expires_in": 43_200}, 1800),
        ({"refresh_expires_in": 0, "refresh_token_expires_in": 43_200}, 43_200),
        ({"refresh_expires_in": 0}, None),
        ({"refresh_expires_in": "-1"}, None),
        ({"refresh_expires_in": "never"}, None),
        ({"refresh_expires_in": 1e300}, LONGEST_GRANT),
        ({"refresh_token_expires_in": 10**400}, LONGEST_GRANT),
    ],
)
def test_the_lives_of_refresh_tokens(said: dict[str, object], seconds: float | None) -> None:
    reply = Reply(200, {}, json.dumps({**GOOD, "refresh_token": "R2", **said}).encode(), 0.1)
    assert read_token(CALL, reply).refresh_lifetime == seconds
