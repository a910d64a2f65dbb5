"""The OAuth 2.0 protocol: asking for tokens, refreshing, exchanging and revoking them, and judging what is answered.
When to ask, and where a token is kept, is decided by its keeper (tokens); how a request travels is the caller's.

Authlib writes the requests. Nothing of its automatic refreshing is used, nor its reading of answers: it hands error
bodies on as tokens, and takes a 503 for a revocation.
"""

from __future__ import annotations

import base64
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, Protocol, TypeVar, cast
from urllib.parse import quote_plus

from authlib.integrations.requests_client.oauth2_session import OAuth2ClientAuth
from authlib.oauth2.client import OAuth2Client
from requests.auth import AuthBase

from sis_pipeline.connect.addresses import address_problem
from sis_pipeline.connect.contract import ClientAuth, OAuth, Token
from sis_pipeline.connect.errors import (
    AuthRevokedError,
    Call,
    ConfigError,
    ContractError,
    RateLimitedError,
    SisError,
    TransientError,
    classify,
    describe,
)
from sis_pipeline.connect.http import Reply
from sis_pipeline.connect.log import mask
from sis_pipeline.connect.vault import advice_for

T = TypeVar("T")
Hint = Literal["access_token", "refresh_token"]

UNSAID_LIFETIME = 3600.0
"""Seconds, where the server does not say how long the token lives; a refused token is replaced anyway."""
SPENT_LIFETIME = 60.0
"""Seconds, where the server says 0 or less: some mean "never ends", some "just ended"; use it, but not for long."""
LONGEST_LIFETIME = 90 * 86_400.0
REFRESH_LIFETIMES = ("refresh_expires_in", "refresh_token_expires_in")
"""What servers call the life of a refresh token; no RFC names it."""
LONGEST_GRANT = 10 * 365 * 86_400.0

GRANT_REFUSED = "invalid_grant"
SCOPE_REFUSED = "invalid_scope"
_REVOKED = frozenset({"invalid_client", "unauthorized_client", GRANT_REFUSED, "access_denied"})
_MISCONFIGURED = frozenset(
    {"invalid_request", "unsupported_grant_type", "unsupported_token_type", "invalid_target", SCOPE_REFUSED}
)
_PASSING = frozenset({"temporarily_unavailable", "server_error", "slow_down"})
"""Defined for other endpoints (RFC 6749 4.1.2.1, RFC 8628 3.5), but answered at the token endpoint, too."""

_AUTH_METHODS: dict[ClientAuth, str] = {"post": "client_secret_post", "none": "none"}


class Post(Protocol):
    """Sends one request to a token or revocation endpoint; returns what `accept` makes of the answer, or raises its
    error."""

    def __call__(
        self,
        url: str,
        *,
        accept: Callable[[Call, Reply], T],
        data: Mapping[str, str],
        headers: Mapping[str, str],
        auth: AuthBase,
    ) -> T: ...


class TokenEndpoint:
    """The token and revocation endpoints of one integration. Remembers which scope the server accepted.

    `secret` is None for a public client (`client_auth` none). Every method makes one call, and raises AuthRevokedError
    for credentials or a grant that do not work, ConfigError for a wrong endpoint, grant or scope, ContractError for an
    answer that is not what the RFC promises, TransientError or RateLimitedError for what may pass.
    `context["oauth_error"]` is the server's error code, None where it gave none that an RFC defines.
    """

    def __init__(self, oauth: OAuth, integration: str) -> None:
        self._oauth = oauth
        self._integration = integration
        self._scopes = [oauth.scope, *oauth.scope_fallbacks]

    def fetch(self, secret: str | None, post: Post) -> Token:
        """A new token by the client's own credentials (RFC 6749 4.4, 4.3): one call, or one more for each scope that
        the server turns down."""
        while True:
            try:
                return self._ask(secret, post)
            except ConfigError as error:
                if error.context.get("oauth_error") != SCOPE_REFUSED or len(self._scopes) == 1:
                    raise
                self._scopes.pop(0)

    def refresh(self, refresh_token: str, secret: str | None, post: Post, *, granted: str | None = None) -> Token:
        """A new access token for a refresh token (RFC 6749 6).

        `Token.refresh` is the new refresh token, or None where the old one stays. No scope is asked for, which means
        the one granted; where `granted` names it and the answer has more, that stays the scope on record, and
        `Token.scope_excess` counts the rest. Refusing the answer would lose a refresh token that was just replaced.
        """
        accept = partial(read_token, regrant=True, granted=granted)
        return self._token_call(secret, post, accept, grant_type="refresh_token", refresh_token=refresh_token)

    def exchange(self, code: str, verifier: str, redirect_uri: str, secret: str | None, post: Post) -> Token:
        """The token for an authorization code, proven by the verifier of its request (RFC 6749 4.1.3, RFC 7636 4.5)."""
        mask(code)
        mask(verifier)
        grant = {"code": code, "redirect_uri": redirect_uri, "code_verifier": verifier}
        accept = partial(read_token, regrant=True)
        return self._token_call(secret, post, accept, grant_type="authorization_code", **grant)

    def revoke(self, token: str, hint: Hint, secret: str | None, post: Post) -> None:
        """Give a token back (RFC 7009). Returns only where the server answered 200, which it also does for a token that
        it does not know any more; whatever is raised means that the token may still live."""
        url = self._oauth.revoke_url
        if url is None:
            raise ConfigError(
                f"Integration {self._integration!r} has no revocation endpoint.",
                code="config.revocation",
                advice="Set revoke_url, or issuer where the server publishes its metadata; else have the district withdraw "
                "the access in its system.",
                integration=self._integration,
            )
        if problem := address_problem(url):  # RFC 7009 2: the client must check that it is https
            raise ConfigError(
                f"The revocation endpoint of {self._integration!r} {problem}.",
                code="config.revocation",
                integration=self._integration,
            )
        client = self._client(secret, post, read_revocation)
        client.revoke_token(url, token=token, token_type_hint=hint)

    def _ask(self, secret: str | None, post: Post) -> Token:
        oauth = self._oauth
        grant: dict[str, str] = {"grant_type": oauth.grant}
        if self._scopes[0]:
            grant["scope"] = self._scopes[0]
        if oauth.grant == "password":
            grant |= {"username": oauth.client_id, "password": secret or ""}
        return self._token_call(secret, post, read_token, **grant)

    def _token_call(
        self, secret: str | None, post: Post, accept: Callable[[Call, Reply], Token], **grant: str
    ) -> Token:
        token = self._client(secret, post, accept).fetch_token(self._oauth.token_url, **grant)
        return cast("Token", token)

    def _client(self, secret: str | None, post: Post, accept: Callable[[Call, Reply], object]) -> _Client:
        oauth = self._oauth
        method = _AUTH_METHODS.get(oauth.client_auth, _basic)
        if secret is None and oauth.client_auth != "none":
            raise ConfigError(
                f"Integration {self._integration!r} has no client secret.",
                code="config.no_secret",
                integration=self._integration,
            )
        return _Client(
            _Session(post, accept),
            client_id=oauth.client_id,
            client_secret=secret,
            token_endpoint_auth_method=method,
            revocation_endpoint_auth_method=method,
        )


class _Session:
    """What Authlib takes for a session: it posts, by our own door."""

    def __init__(self, post: Post, accept: Callable[[Call, Reply], object]) -> None:
        self._post = post
        self._accept = accept

    def post(self, url: str, *, data: dict[str, str], headers: dict[str, str], auth: AuthBase) -> object:
        return self._post(url, accept=self._accept, data=data, headers=headers, auth=auth)


class _Client(OAuth2Client):  # type: ignore[misc]  # Authlib is untyped
    """Authlib's client with our reading of the answer: its own takes an error body for a token."""

    client_auth_class = OAuth2ClientAuth

    def parse_response_token(self, resp: Token) -> Token:
        return resp


def _basic(client: Any, _method: str, uri: str, headers: dict[str, str], body: str) -> tuple[str, dict[str, str], str]:
    """HTTP Basic as RFC 6749 2.3.1 writes it: id and secret are form-encoded first, which Authlib leaves out."""
    pair = f"{quote_plus(client.client_id)}:{quote_plus(client.client_secret)}"
    credential = base64.b64encode(pair.encode("ascii")).decode("ascii")
    mask(credential)
    headers["Authorization"] = f"Basic {credential}"
    return uri, headers, body


def read_token(call: Call, reply: Reply, *, regrant: bool = False, granted: str | None = None) -> Token:
    """The token of a token endpoint's answer, its shape checked before anything is kept (RFC 6749 5.1 and 5.2).

    `regrant`: where the grant is refused, a person has to grant access again. `granted`: the scope that is not to grow.
    Raises as `TokenEndpoint`. No part of the body is repeated, except an error code that an RFC defines.
    """
    answer = _json_object(reply.body)
    code = answer.get("error") if answer else None
    if code is not None or not 200 <= reply.status < 300:
        raise _refusal(call, reply, code, regrant=regrant)
    answer = answer or {}
    value = answer.get("access_token")
    kind = answer.get("token_type") or "bearer"
    if not isinstance(value, str) or not re.fullmatch(r"[\x21-\x7e]+", value):
        came = describe(reply.headers, len(reply.body))
        raise ContractError(
            f"{call} answered {reply.status} without an access token ({came}).",
            code="contract.token",
            **_context(call, reply),
        )
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise ContractError(
            f"{call} gave a token that is not a bearer token.", code="contract.token", **_context(call, reply)
        )
    mask(value)
    scope, excess = _scope(answer.get("scope"), granted)
    return Token(
        value,
        lifetime(answer.get("expires_in")),
        refresh=_refresh_token(call, reply, answer.get("refresh_token")),
        scope=scope,
        scope_excess=excess,
        refresh_lifetime=refresh_lifetime(answer),
        asked_at=time.monotonic() - reply.seconds,
    )


def read_revocation(call: Call, reply: Reply) -> None:
    """Nothing, where the answer says that the token is revoked: 200 (RFC 7009 2.2). Raises as `TokenEndpoint` else.

    A 503 keeps the token alive and may say for how long to wait (2.2.1); other 2xx prove nothing.
    """
    if reply.status == 200:
        return
    if 200 <= reply.status < 300:
        raise ContractError(
            f"{call} answered {reply.status}, where only 200 means that the token is revoked.",
            code="contract.revocation",
            **_context(call, reply),
        )
    answer = _json_object(reply.body)
    raise _refusal(call, reply, answer.get("error") if answer else None)


def _refresh_token(call: Call, reply: Reply, value: object) -> str | None:
    """A refresh token is printable text (RFC 6749 A.17); None or an empty text is none."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[\x20-\x7e]+", value):
        raise ContractError(
            f"{call} answered {reply.status} with a refresh token that is none.",
            code="contract.token",
            **_context(call, reply),
        )
    mask(value)
    return value


def _scope(value: object, granted: str | None) -> tuple[str | None, int]:
    """The scope where the server says it legibly (RFC 6749 3.3), never more than was granted; and how much more it said."""
    if not isinstance(value, str) or not re.fullmatch(r"[\x20\x21\x23-\x5b\x5d-\x7e]+", value):
        return None, 0
    excess = set(value.split()) - set(granted.split()) if granted else set()
    return (granted, len(excess)) if excess else (value.strip() or None, 0)


def lifetime(expires_in: object) -> float:
    """Seconds that an access token lives; a guess where the server does not say it."""
    said = _seconds(expires_in)
    if said is None:
        return UNSAID_LIFETIME
    return float(min(said, LONGEST_LIFETIME)) if said > 0 else SPENT_LIFETIME


def refresh_lifetime(answer: Mapping[str, object]) -> float | None:
    """Seconds that a refresh token lives, None where the answer does not say; 0 is how Keycloak writes "never ends"."""
    said = (_seconds(answer.get(name)) for name in REFRESH_LIFETIMES)
    return min((float(min(one, LONGEST_GRANT)) for one in said if one is not None and one > 0), default=None)


def _seconds(said: object) -> int | float | None:
    """Whatever a server writes: a number, digits, "3600s"; None for nothing and for nonsense."""
    if isinstance(said, str):
        found = re.fullmatch(r"\s*([+-]?\d+(?:\.\d+)?)\s*(?:s|sec|seconds)?\s*", said, re.ASCII | re.IGNORECASE)
        return float(found[1]) if found else None
    if isinstance(said, bool) or not isinstance(said, int | float):
        return None
    return None if isinstance(said, float) and math.isnan(said) else said


def _refusal(call: Call, reply: Reply, code: object, *, regrant: bool = False) -> SisError:
    known = code if isinstance(code, str) and code in _REVOKED | _MISCONFIGURED | _PASSING else None
    general = classify(call, reply.status, reply.headers, reply.body)
    if isinstance(general, TransientError | RateLimitedError) or 300 <= reply.status < 400:
        general.context |= _context(call, reply, known)
        return general
    said = f"{call} answered {reply.status}" + (
        f" {known}" if known else f" ({describe(reply.headers, len(reply.body))})"
    )
    context = _context(call, reply, known)
    if known in _PASSING:
        return TransientError(f"{said}: the server can't answer now.", code="transient.server_error", **context)
    if known == GRANT_REFUSED and regrant:
        advice = advice_for(call.integration, person=True)
        return AuthRevokedError(
            f"{said}: the grant has ended, or was used before.", code="auth_revoked.grant", advice=advice, **context
        )
    if known in _REVOKED or (known is None and reply.status in {401, 403}):
        return AuthRevokedError(
            f"{said}: the client id and secret are not accepted.", code="auth_revoked.client", **context
        )
    if known == SCOPE_REFUSED:
        advice = "Set the integration's scope to one that the district has granted."
        return ConfigError(
            f"{said}: the server grants none of the scopes asked for.", code="config.scope", advice=advice, **context
        )
    advice = "Check token_url, client_auth and the grant against what the district's system shows."
    return ConfigError(
        f"{said}: the token request is not accepted.", code="config.token_request", advice=advice, **context
    )


def _context(call: Call, reply: Reply, oauth_error: str | None = None) -> dict[str, Any]:
    return call.context(status=reply.status, oauth_error=oauth_error)


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None
