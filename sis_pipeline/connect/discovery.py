"""What an authorization server publishes about itself (RFC 8414), believed only as far as the settings vouch for it.
How a request travels is the caller's business, and which endpoint is called when; nothing of a document is stored.

Three rules keep a document from sending a person or a token elsewhere: its `issuer` is the one that was set, letter by
letter (RFC 8414 3.3); an endpoint is taken from it only on an origin that the settings name (the issuer's, or that of an
endpoint set by hand); and the token endpoint, where the secret goes, is never taken from it but must be the one set.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

from authlib.oauth2.rfc8414 import get_well_known_url

from sis_pipeline.connect.addresses import address_problem, origin
from sis_pipeline.connect.contract import OAuth
from sis_pipeline.connect.errors import Call, ConfigError, ContractError, SisError, classify
from sis_pipeline.connect.http import Reply, expect_json

T = TypeVar("T")

BY_HAND = "Set authorize_url and revoke_url by hand, or correct the integration's issuer."
NOTHING_LASTS = 3600.0
"""Seconds for which an issuer that publishes nothing is not asked again: it may begin to, and a 404 may be a mistake."""


class Get(Protocol):
    """Sends one request for metadata; returns what `accept` makes of the answer, or raises its error."""

    def __call__(self, url: str, *, accept: Callable[[Call, Reply], T]) -> T: ...


@dataclass(frozen=True, slots=True)
class Discovered:
    """The authorization with what the server publishes filled in; `iss_required` where it promises to name itself in
    the answer to an authorization request (RFC 9207 3)."""

    oauth: OAuth
    iss_required: bool = False


_documents: dict[str, dict[str, Any]] = {}
"""Issuer -> its metadata, for the life of this process; only those that could be used."""
_nothing: dict[str, float] = {}
"""Issuer that publishes nothing -> when it is asked again, on this process's monotonic clock."""


def discover(oauth: OAuth, integration: str, get: Get) -> Discovered:
    """Fill in `authorize_url` and `revoke_url` where they are unset and the server publishes them.

    `oauth` comes back as it is where it names no issuer, or where the server publishes nothing and `authorize_url` is
    set. Raises ConfigError for metadata that are missing or contradict the settings, ContractError for a document that
    is none or another issuer's, TransientError or RateLimitedError for what may pass.
    """
    if oauth.issuer is None:
        return Discovered(oauth)
    document = _published(oauth.issuer, get)
    if document is None and oauth.authorize_url is not None:
        return Discovered(oauth)
    if document is None:
        raise ConfigError(
            f"Integration {integration!r}: the issuer publishes no metadata.",
            code="config.metadata",
            advice=BY_HAND,
            integration=integration,
        )
    found = _completed(oauth, integration, document)
    _documents[oauth.issuer] = document
    return found


def well_known_urls(issuer: str) -> list[str]:
    """Where metadata are looked for, in turn: RFC 8414 3.1 puts the well-known part between host and path; OpenID
    servers have it there, too, or behind the path (RFC 8414 5)."""
    base = issuer.rstrip("/")
    inserted = [
        get_well_known_url(base, external=True, suffix=name)
        for name in ("oauth-authorization-server", "openid-configuration")
    ]
    return list(dict.fromkeys([*inserted, f"{base}/.well-known/openid-configuration"]))


def _published(issuer: str, get: Get) -> dict[str, Any] | None:
    """The document of an issuer; None where there is none at any of its addresses."""
    if issuer in _documents:
        return _documents[issuer]
    if time.monotonic() < _nothing.get(issuer, 0.0):
        return None
    for url in well_known_urls(issuer):
        document = get(url, accept=partial(_read, issuer=issuer))
        if document is not None:
            return document
    _nothing[issuer] = time.monotonic() + NOTHING_LASTS
    return None


def _read(call: Call, reply: Reply, *, issuer: str) -> dict[str, Any] | None:
    """The document that an answer holds; None where it holds none. Raises where it says to come back later."""
    if reply.status == 429 or reply.status >= 500:
        raise classify(call, reply.status, reply.headers, reply.body)
    return _checked(call, reply, issuer) if reply.status == 200 and _is_json(call, reply) else None


def _is_json(call: Call, reply: Reply) -> bool:
    """Whether the answer is meant as JSON: single-page applications answer every address with a page."""
    try:
        expect_json(call, reply)
    except SisError:
        return False
    return True


def _checked(call: Call, reply: Reply, issuer: str) -> dict[str, Any]:
    try:
        document = json.loads(reply.body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ContractError(
            f"{call} answered with metadata that are no JSON object.",
            code="contract.metadata",
            advice=BY_HAND,
            **call.context(),
        )
    if document.get("issuer") != issuer:
        raise ContractError(
            f"{call} answered with the metadata of another issuer than the one that is set.",
            code="contract.metadata",
            advice="Set issuer exactly as the server writes it, the last slash included; a difference may also be an "
            "attack, so ask the vendor which is right.",
            **call.context(),
        )
    return document


def _completed(oauth: OAuth, integration: str, document: dict[str, Any]) -> Discovered:
    token_url = _endpoint(oauth, integration, document, "token_endpoint", used=False)
    if token_url is not None and _without_query(token_url) != _without_query(oauth.token_url):
        raise ConfigError(
            f"Integration {integration!r}: the issuer's metadata name another token endpoint than token_url.",
            code="config.metadata",
            advice="Correct token_url or issuer: both must belong to the same authorization server.",
            integration=integration,
        )
    methods = document.get("code_challenge_methods_supported")
    if oauth.grant == "authorization_code" and isinstance(methods, list) and "S256" not in methods:
        raise ConfigError(
            f"Integration {integration!r}: the authorization server does not take PKCE with S256.",
            code="config.metadata",
            advice="Ask the vendor to allow it; without it an intercepted code could be used by others.",
            integration=integration,
        )
    found = replace(
        oauth,
        authorize_url=oauth.authorize_url or _endpoint(oauth, integration, document, "authorization_endpoint"),
        revoke_url=oauth.revoke_url or _endpoint(oauth, integration, document, "revocation_endpoint"),
    )
    return Discovered(found, document.get("authorization_response_iss_parameter_supported") is True)


def _endpoint(oauth: OAuth, integration: str, document: dict[str, Any], name: str, *, used: bool = True) -> str | None:
    """An endpoint of a document; None where it names none. What is `used` must be on a known origin."""
    url = document.get(name)
    if url is None:
        return None
    if not isinstance(url, str) or address_problem(url):
        raise ContractError(
            f"Integration {integration!r}: the metadata's {name} is no address that may be called.",
            code="contract.metadata",
            advice=BY_HAND,
            integration=integration,
        )
    if used and origin(url) not in {origin(one) for one in oauth.urls}:
        setting = {"authorization_endpoint": "authorize_url", "revocation_endpoint": "revoke_url"}[name]
        raise ConfigError(
            f"Integration {integration!r}: the metadata's {name} is on another host than the issuer; it was not used.",
            code="config.metadata",
            advice=f"If the vendor confirms the address, set it as {setting}.",
            integration=integration,
        )
    return url


def _without_query(url: str) -> str:
    return url.partition("?")[0]
