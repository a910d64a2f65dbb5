"""The authorization-code flow (RFC 6749 4.1, PKCE as RFC 7636, `iss` as RFC 9207) between asking and the code.
How the person's browser gets there and back is the caller's business: loopback, a pasted address, a web page."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from authlib.oauth2.client import OAuth2Client

from sis_pipeline.connect.addresses import address_problem
from sis_pipeline.connect.contract import OAuth
from sis_pipeline.connect.errors import AuthRevokedError, ConfigError, ContractError, SisError, TransientError
from sis_pipeline.connect.log import mask
from sis_pipeline.connect.vault import advice_for

EXPIRY = 600.0
"""Seconds a person has: the lifetime that RFC 6749 4.1.2 recommends for a code at most."""


@dataclass(slots=True)
class Authorization:
    """One request for access, waiting for its answer: keep it where only the same person's answer reaches it.

    `url` is where the person goes. `state` ties the answer to this request, `verifier` the code to this client; `issuer`
    is who must have answered, None where the settings don't say. `begun` is on the clock given to `begin`.
    """

    integration: str
    url: str = field(repr=False)
    redirect_uri: str
    state: str = field(repr=False)
    verifier: str = field(repr=False)
    issuer: str | None
    iss_required: bool
    begun: float
    used: bool = False


def begin(
    oauth: OAuth,
    redirect_uri: str,
    integration: str,
    *,
    iss_required: bool = False,
    clock: Callable[[], float] = time.time,
) -> Authorization:
    """A new request: nothing is sent, the person's browser has to open its `url`.

    `redirect_uri` must be the one registered with the server. Raises ConfigError where no authorization endpoint is
    known, or the address must not be called.
    """
    if oauth.authorize_url is None:
        raise ConfigError(
            f"Integration {integration!r} has no authorization endpoint.",
            code="config.authorization",
            advice="Set authorize_url, or issuer where the server publishes its metadata.",
            integration=integration,
        )
    for url, name in ((oauth.authorize_url, "authorize_url"), (redirect_uri, "redirect URI")):
        if problem := address_problem(url):
            raise ConfigError(
                f"Integration {integration!r}: the {name} {problem}.", code="config.address", integration=integration
            )
    state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(64)
    mask(state)
    mask(verifier)
    client = OAuth2Client(
        None, oauth.client_id, scope=oauth.scope, redirect_uri=redirect_uri, code_challenge_method="S256"
    )
    url, _ = client.create_authorization_url(oauth.authorize_url, state=state, code_verifier=verifier)
    return Authorization(integration, url, redirect_uri, state, verifier, oauth.issuer, iss_required, begun=clock())


def finish(
    authorization: Authorization, response: str | Mapping[str, str], *, clock: Callable[[], float] = time.time
) -> str:
    """The code of the answer: the redirected address, its query, or its parameters.

    An answer whose state fits uses the request up, whatever else it says. Raises ContractError for an answer to another
    request or from another server, AuthRevokedError where access was not granted, ConfigError for a request that is
    used up, too old or wrong in itself, TransientError where the server could not answer.
    """
    about = f"The answer to the authorization of integration {authorization.integration!r}"
    answer = _parameters(about, authorization, response)
    if not is_answer(authorization, answer):
        raise _untrusted(authorization, f"{about} belongs to another request, or to none (state).")
    if authorization.used:
        raise _again(authorization, f"{about} was given before; each request has one answer.")
    authorization.used = True
    if not 0 <= clock() - authorization.begun <= EXPIRY:
        raise _again(authorization, f"{about} came after more than {EXPIRY / 60:g} minutes.")
    _check_issuer(about, authorization, answer)
    if "error" in answer:
        raise _refusal(about, authorization, answer["error"])
    code = answer.get("code")
    if not code:
        raise _untrusted(authorization, f"{about} holds no code.")
    mask(code)
    return code


def is_answer(authorization: Authorization, answer: Mapping[str, str]) -> bool:
    """Whether parameters carry this request's state (RFC 6749 10.12), compared in constant time."""
    given = answer.get("state", "").encode(errors="replace")  # a terminal may hand on bytes that are no text
    return secrets.compare_digest(given, authorization.state.encode())


def _parameters(about: str, authorization: Authorization, response: str | Mapping[str, str]) -> dict[str, str]:
    """The parameters, none of them more than once (RFC 6749 3.1)."""
    if not isinstance(response, str):
        return dict(response)
    text = response.strip().strip("'\"<>")
    try:
        query = urlsplit(text).query if "://" in text else text.removeprefix("?")
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=100)
    except ValueError:
        pairs = []
    if len(dict(pairs)) != len(pairs):
        raise _untrusted(authorization, f"{about} says the same thing twice.")
    if not {"code", "error"} & dict(pairs).keys():
        raise _untrusted(authorization, f"{about} holds neither a code nor an error.")
    return dict(pairs)


def _check_issuer(about: str, authorization: Authorization, answer: Mapping[str, str]) -> None:
    """RFC 9207 2.4: without it, a server could have a code of another one sent to itself (mix-up)."""
    if authorization.issuer is None:
        return
    iss = answer.get("iss")
    if iss is None and authorization.iss_required:
        raise _untrusted(authorization, f"{about} does not say who gave it (iss), although the server promises to.")
    if iss is not None and iss != authorization.issuer:
        raise _untrusted(authorization, f"{about} was given by another authorization server (iss).")


_ERRORS: dict[str, tuple[type[SisError], str]] = {
    "access_denied": (AuthRevokedError, "access was declined, by the person or by the district's rules."),
    "unauthorized_client": (AuthRevokedError, "this client may not ask for access in this way (unauthorized_client)."),
    "invalid_scope": (ConfigError, "the scope asked for is unknown or not allowed (invalid_scope)."),
    "invalid_request": (ConfigError, "the server found the request wrong (invalid_request)."),
    "unsupported_response_type": (ConfigError, "the server gives no codes (unsupported_response_type)."),
    "server_error": (TransientError, "the server failed (server_error)."),
    "temporarily_unavailable": (TransientError, "the server is overloaded or down (temporarily_unavailable)."),
}
"""RFC 6749 4.1.2.1. The server's own description is not repeated: it can hold anything."""


_CODES: dict[type[SisError], str] = {
    AuthRevokedError: "auth_revoked.declined",
    ConfigError: "config.authorization",
    TransientError: "transient.server_error",
}


def _refusal(about: str, authorization: Authorization, error: str) -> SisError:
    kind, words = _ERRORS.get(
        error, (ConfigError, "the server refused it with an error that RFC 6749 does not define.")
    )
    advice = {
        AuthRevokedError: advice_for(authorization.integration, person=True),
        TransientError: f"Try `sis oauth authorize {authorization.integration}` again in a while.",
    }.get(kind, "Check client_id, scope and authorize_url, and that the redirect address is registered there.")
    return kind(
        f"{about}: {words}",
        code=_CODES[kind],
        advice=advice,
        integration=authorization.integration,
        oauth_error=error if error in _ERRORS else None,
    )


def _untrusted(authorization: Authorization, message: str) -> ContractError:
    advice = f"Nothing of it was used. Run `sis oauth authorize {authorization.integration}` and use only its address."
    return ContractError(message, code="contract.authorization", advice=advice, integration=authorization.integration)


def _again(authorization: Authorization, message: str) -> ConfigError:
    advice = f"Run `sis oauth authorize {authorization.integration}` again."
    return ConfigError(message, code="config.authorization", advice=advice, integration=authorization.integration)
