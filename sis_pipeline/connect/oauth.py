"""Asking a token endpoint for a token, with Authlib as the protocol library and nothing of its automatic refreshing.
When to ask, and where the token is kept, is the vault's business; how the request travels is the caller's."""

from __future__ import annotations

import base64
import json
import math
import re
import time
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote_plus

from authlib.integrations.requests_client.oauth2_session import OAuth2ClientAuth
from authlib.oauth2.client import OAuth2Client
from requests.auth import AuthBase

from sis_pipeline.connect.contract import OAuth
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
from sis_pipeline.connect.vault import Token

UNSAID_LIFETIME = 3600.0
"""Seconds, where the server does not say how long the token lives; a refused token is replaced anyway."""
SPENT_LIFETIME = 60.0
"""Seconds, where the server says 0 or less: some mean "never ends", some "just ended"; use it, but not for long."""
LONGEST_LIFETIME = 90 * 86_400.0

SCOPE_REFUSED = "invalid_scope"
_REVOKED = frozenset({"invalid_client", "unauthorized_client", "invalid_grant", "access_denied"})
_MISCONFIGURED = frozenset({"invalid_request", "unsupported_grant_type", SCOPE_REFUSED})


class Post(Protocol):
    """Sends the token request, and returns what `read_token` makes of the answer."""

    def __call__(self, url: str, *, data: Mapping[str, str], headers: Mapping[str, str], auth: AuthBase) -> Token: ...


class TokenEndpoint:
    """The token endpoint of one integration. Remembers which scope the server accepted."""

    def __init__(self, oauth: OAuth, integration: str) -> None:
        self._oauth = oauth
        self._integration = integration
        self._scopes = [oauth.scope, *oauth.scope_fallbacks]

    def fetch(self, secret: str, post: Post) -> Token:
        """A new token: one call, or one more for each scope the server turns down.

        Raises AuthRevokedError for credentials that do not work, ConfigError for a wrong endpoint, grant or scope,
        ContractError for an answer that is no token, TransientError or RateLimitedError for what may pass.
        """
        while True:
            try:
                return self._ask(secret, post)
            except ConfigError as error:
                if error.context.get("oauth_error") != SCOPE_REFUSED or len(self._scopes) == 1:
                    raise
                self._scopes.pop(0)

    def _ask(self, secret: str, post: Post) -> Token:
        oauth = self._oauth
        client = _Client(
            _Session(post),
            client_id=oauth.client_id,
            client_secret=secret,
            token_endpoint_auth_method="client_secret_post" if oauth.client_auth == "post" else _basic,
            scope=self._scopes[0],
        )
        grant: dict[str, str] = {"grant_type": oauth.grant}
        if oauth.grant == "password":
            grant |= {"username": oauth.client_id, "password": secret}
        token: Token = client.fetch_token(oauth.token_url, **grant)
        return token


class _Session:
    """What Authlib takes for a session: it posts, by our own door."""

    def __init__(self, post: Post) -> None:
        self._post = post

    def post(self, url: str, *, data: dict[str, str], headers: dict[str, str], auth: AuthBase) -> Token:
        return self._post(url, data=data, headers=headers, auth=auth)


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


def read_token(call: Call, reply: Reply) -> Token:
    """The token of a token endpoint's answer, its shape checked before anything is kept (RFC 6749 5.1 and 5.2).

    Raises as `TokenEndpoint.fetch`. No part of the body is repeated, except an error code that RFC 6749 defines.
    """
    answer = _json_object(reply.body)
    code = answer.get("error") if answer else None
    if code is not None or not 200 <= reply.status < 300:
        raise _refusal(call, reply, code)
    value = (answer or {}).get("access_token")
    kind = (answer or {}).get("token_type") or "bearer"
    if not isinstance(value, str) or not re.fullmatch(r"[\x21-\x7e]+", value):
        came = describe(reply.headers, len(reply.body))
        raise ContractError(
            f"{call} answered {reply.status} without an access token ({came}).", **_context(call, reply)
        )
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise ContractError(f"{call} gave a token that is not a bearer token.", **_context(call, reply))
    mask(value)
    return Token(value, lifetime((answer or {}).get("expires_in")), asked_at=time.monotonic() - reply.seconds)


def lifetime(expires_in: object) -> float:
    """Seconds that a token lives, from whatever a server writes: a number, digits, "3600s", nothing, nonsense."""
    if isinstance(expires_in, str):
        found = re.fullmatch(r"\s*([+-]?\d+(?:\.\d+)?)\s*(?:s|sec|seconds)?\s*", expires_in, re.ASCII | re.IGNORECASE)
        expires_in = float(found[1]) if found else None
    if isinstance(expires_in, bool) or not isinstance(expires_in, int | float):
        return UNSAID_LIFETIME
    if isinstance(expires_in, float) and math.isnan(expires_in):
        return UNSAID_LIFETIME
    if expires_in <= 0:
        return SPENT_LIFETIME
    return float(min(expires_in, LONGEST_LIFETIME))


def _refusal(call: Call, reply: Reply, code: object) -> SisError:
    known = code if isinstance(code, str) and code in _REVOKED | _MISCONFIGURED else None
    general = classify(call, reply.status, reply.headers, reply.body)
    if isinstance(general, TransientError | RateLimitedError) or 300 <= reply.status < 400:
        return general
    said = f"{call} answered {reply.status}" + (
        f" {known}" if known else f" ({describe(reply.headers, len(reply.body))})"
    )
    context = _context(call, reply) | {"oauth_error": known}
    if known in _REVOKED or (known is None and reply.status in {401, 403}):
        return AuthRevokedError(f"{said}: the client id and secret are not accepted.", **context)
    if known == SCOPE_REFUSED:
        advice = "Set the integration's scope to one that the district has granted."
        return ConfigError(f"{said}: the server grants none of the scopes asked for.", advice=advice, **context)
    advice = "Check token_url, client_auth and the grant against what the district's system shows."
    return ConfigError(f"{said}: the token request is not accepted.", advice=advice, **context)


def _context(call: Call, reply: Reply) -> dict[str, Any]:
    return call.context(status=reply.status)


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None
