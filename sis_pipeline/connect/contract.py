"""The plain data that passes through the door: requests, answers, the authentication shape and the door's protocol.
No behaviour lives here; providers re-export these for plugin authors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True)
class OAuth:
    """The authentication shape: which grant, where, and how the client identifies itself. Holds no secret."""

    token_url: str
    client_id: str
    grant: Literal["client_credentials", "password"] = "client_credentials"
    client_auth: Literal["basic", "post"] = "basic"
    scope: str | None = None
    scope_fallbacks: tuple[str | None, ...] = ()
    """Scopes to try in turn when the server answers `invalid_scope`; None sends no scope."""
    refused_token_statuses: frozenset[int] = frozenset({401})
    """Statuses that may mean an expired token (403 too at some vendors): one forced refresh, one repeat."""


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
    """A 2xx answer: lower-case header names, and the whole decoded body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Source(Protocol):
    """The authorised, rate-limited door to one integration.

    `send` returns only 2xx answers with an accepted content type; everything else is raised as a SisError after the
    retries that its class allows. `SisError.context["status"]` holds the HTTP status where there was one.
    """

    def send(self, request: Request) -> Answer: ...
