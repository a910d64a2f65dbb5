"""The plain data that passes through the door: requests, answers, the authentication shape and the door's protocol.
No behaviour lives here; providers re-export these for plugin authors."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Grant = Literal["client_credentials", "authorization_code", "password"]
ClientAuth = Literal["basic", "post", "none"]
"""How the client authenticates (RFC 6749 2.3.1); `none` is a public client, which PKCE protects instead."""


@dataclass(frozen=True, slots=True)
class OAuth:
    """The authentication shape: which grant, where, and how the client identifies itself. Holds no secret."""

    token_url: str
    client_id: str
    grant: Grant = "client_credentials"
    client_auth: ClientAuth = "basic"
    authorize_url: str | None = None
    """Where a person grants access (RFC 6749 3.1); with `issuer` it may be discovered."""
    revoke_url: str | None = None
    """Where a token is given back (RFC 7009); with `issuer` it may be discovered."""
    issuer: str | None = None
    """The authorization server's identifier (RFC 8414 2), compared as it is written."""
    scope: str | None = None
    scope_fallbacks: tuple[str | None, ...] = ()
    """Scopes to try in turn when the server answers `invalid_scope`; None sends no scope."""
    refused_token_statuses: frozenset[int] = frozenset({401})
    """Statuses that may mean an expired token (403 too at some vendors): one forced refresh, one repeat."""

    @property
    def urls(self) -> tuple[str, ...]:
        """Every address that a person set: on their origins, and on no other, this authorization's endpoints are called.

        `authorize_url` is among them, although the browser opens it: whoever may see the person sign in there may be
        told the token that came of it.
        """
        set_by_hand = (self.token_url, self.revoke_url, self.issuer, self.authorize_url)
        return tuple(url for url in set_by_hand if url is not None)


@dataclass(frozen=True, slots=True)
class Token:
    """A fetched access token and the seconds it lives, counted from `asked_at` on this process's monotonic clock.

    `refresh`: the refresh token that came with it, None where none did. `scope`: what was granted, None where the
    server did not say (RFC 6749 5.1: then it is what was asked for). `scope_excess`: how many scopes more than granted
    before a refresh's answer named (RFC 6749 6 has none); `scope` is the one granted then. `refresh_lifetime`: the seconds
    that the refresh token lives, also one that stays, None where the server did not say.
    """

    value: str = field(repr=False)
    lifetime: float
    refresh: str | None = field(default=None, repr=False)
    scope: str | None = None
    scope_excess: int = 0
    refresh_lifetime: float | None = None
    asked_at: float = field(default_factory=time.monotonic)

    @property
    def expires_in(self) -> float:
        """Seconds from now."""
        return self.lifetime - (time.monotonic() - self.asked_at)

    @property
    def refresh_expires_in(self) -> float | None:
        if self.refresh_lifetime is None:
            return None
        return self.refresh_lifetime - (time.monotonic() - self.asked_at)


@dataclass(frozen=True, slots=True)
class Request:
    """One call, relative to the integration's base URL. `template` names the path in logs and api_calls, without ids."""

    path: str
    params: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    method: Literal["GET", "POST"] = "GET"
    json: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx answer: lower-case header names, and the whole decoded body.

    `token_version`: which version of the integration's access token it was given for, None where it is not known.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    token_version: int | None = None


class Source(Protocol):
    """The authorised, rate-limited door to one integration.

    `send` returns only 2xx answers with an accepted content type; everything else is raised as a SisError after the
    retries that its class allows. `SisError.context["status"]` holds the HTTP status where there was one,
    also that of a token call; `errors.source_status` only gives the request's own.
    """

    def send(self, request: Request) -> Answer: ...
