"""An authorization server for any system: consent, codes with PKCE, refresh tokens in three modes, revocation, metadata.
Who else may have a token (client credentials) and how a vendor words it is the dialects' business.

Switched on by the system option `grant="authorization_code"`; then nothing but a code or a refresh token gets a token.
Options: `refresh_mode` (`none`: the refresh token stays, and its life begins anew with each use; `grace`: it is replaced,
and works for `refresh_grace` seconds more; `strict`: it is replaced, and using it again ends its whole family),
`refresh_token_lifetime` (90 days), `refresh_grace` (60), `consent` (`given`, `declined`), `response_iss` (true, false, or
what to say instead), `metadata` (`oauth`, `openid`, `none`), `code_lifetime` (60), `client_auth` (`none`: a public client).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal, cast
from urllib.parse import urlencode, urlsplit

from werkzeug.wrappers import Request, Response

from sis_pipeline.sandbox.oauth import TokenStore

AUTHORIZE, REVOKE = "/oauth/authorize", "/oauth/revoke"
OPENID = "/.well-known/openid-configuration"
OAUTH_METADATA = "/.well-known/oauth-authorization-server"
"""Stands before the issuer's path, hence outside of the system's own (RFC 8414 3.1)."""

Mode = Literal["none", "grace", "strict"]
Json = dict[str, Any]
ERRORS = {"invalid_client": 401}


class Refused(Exception):  # noqa: N818 - answered, not raised to anybody
    """A request that is refused with an error code of RFC 6749."""


@dataclass
class Code:
    """What an authorization code stands for."""

    redirect_uri: str
    challenge: str
    scopes: frozenset[str]
    expires_at: float
    family: Family | None = None
    """Set once it is exchanged: what falls when it is used again (RFC 6749 4.1.2)."""


@dataclass
class Family:
    """All tokens that come from one consent. `living`: refresh tokens that work; `retired`: when others were replaced."""

    scopes: frozenset[str]
    living: dict[str, float] = field(default_factory=dict)
    retired: dict[str, float] = field(default_factory=dict)
    access: list[str] = field(default_factory=list)
    ended: bool = False


class AuthorizationServer:
    """The authorization server of one system. `granted` turns the scopes asked for into those given, None if unknown;
    `authenticated` judges the client of a request to the token or revocation endpoint."""

    def __init__(
        self,
        options: Mapping[str, Any],
        root: str,
        token_url: str,
        client_id: str,
        tokens: TokenStore,
        *,
        granted: Callable[[frozenset[str]], frozenset[str] | None],
        authenticated: Callable[[Request], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.issuer = root
        self.authorize_url = root + AUTHORIZE
        self.revoke_url = root + REVOKE
        self.token_url = token_url
        self.mode = cast("Mode", options.get("refresh_mode", "none"))
        if self.mode not in {"none", "grace", "strict"}:
            raise ValueError(f"{self.mode!r} is no refresh_mode; choose none, grace or strict")
        self._options = options
        self._lifetime: float = options.get("refresh_token_lifetime", 90 * 86_400.0)
        self._grace: float = options.get("refresh_grace", 60.0)
        self._client_id = client_id
        self._tokens = tokens
        self._granted = granted
        self._authenticated = authenticated
        self._clock = clock
        self._lock = Lock()
        self._codes: dict[str, Code] = {}
        self._families: list[Family] = []
        self._counts: Counter[str] = Counter()
        self._grants: Counter[str] = Counter()

    # --- what tests look at and do -----------------------------------------------------------------------------------

    def settings(self) -> Json:
        """What an integration sets beside its usual settings."""
        return {
            "grant": "authorization_code", "authorize_url": self.authorize_url, "revoke_url": self.revoke_url,
            "issuer": self.issuer,
        }  # fmt: skip

    def stats(self) -> Json:
        """How often what happened; `live_families` are those whose refresh tokens still work."""
        with self._lock:
            names = (
                "authorizations", "declined", "invalid_grant", "codes_reused", "reuse_detected", "families_revoked",
                "revocations",
            )  # fmt: skip
            return {
                "grants": dict(self._grants),
                **{name: self._counts[name] for name in names},
                "families": len(self._families),
                "live_families": sum(self._lives(family) for family in self._families),
            }

    def grant(self, scopes: frozenset[str] = frozenset()) -> Json:
        """A new family without the way through a browser: the answer that a code would have been given."""
        with self._lock:
            return self._new_family(self._granted(scopes) or frozenset())[1]

    def revoke_grant(self) -> int:
        """Somebody withdraws the consent: every token ends. How many families there were."""
        with self._lock:
            living = [family for family in self._families if not family.ended]
            for family in living:
                self._end(family)
            return len(living)

    # --- endpoints ---------------------------------------------------------------------------------------------------

    def authorize(self, request: Request) -> Response:
        """Sends the browser back at once, with a code or an error (RFC 6749 4.1.2); no redirect to unknown addresses."""
        asked = request.args
        redirect_uri = asked.get("redirect_uri", "")
        if asked.get("client_id") != self._client_id or not _is_loopback(redirect_uri):
            return Response("Unknown client or redirect address", 400, content_type="text/plain")
        try:
            answer = {"code": self._code(asked, redirect_uri)}
        except Refused as refused:
            answer = {"error": str(refused), "error_description": "The sandbox says no."}
        iss = self._options.get("response_iss", True)
        if iss:
            answer["iss"] = iss if isinstance(iss, str) else self.issuer
        if "state" in asked:
            answer["state"] = asked["state"]
        return Response(
            "", 302, {"Location": f"{redirect_uri}{'&' if '?' in redirect_uri else '?'}{urlencode(answer)}"}
        )

    def token(self, request: Request) -> Response:
        """Codes and refresh tokens for access tokens (RFC 6749 4.1.3 and 6)."""
        with self._lock:
            try:
                return _answer(self._granted_by(request, request.form.get("grant_type", "")))
            except Refused as refused:
                error = str(refused)
                self._counts["invalid_grant"] += error == "invalid_grant"
                return _answer({"error": error}, ERRORS.get(error, 400))

    def revoke(self, request: Request) -> Response:
        """RFC 7009: 200 for every token, known or not; a refresh token takes its family with it."""
        if not self._authenticated(request):
            return _answer({"error": "invalid_client"}, 401)
        value = request.form.get("token", "")
        with self._lock:
            self._counts["revocations"] += 1
            self._tokens.expire(value)
            family = next((one for one in self._families if value in one.living or value in one.retired), None)
            if family is not None:
                self._end(family)
        return Response("", 200)

    def metadata(self, how: Literal["oauth", "openid"]) -> Response:
        """RFC 8414 2."""
        if self._options.get("metadata", "oauth") != how:
            return Response("Not found", 404, content_type="text/plain")
        return _answer({
            "issuer": self.issuer, "authorization_endpoint": self.authorize_url, "token_endpoint": self.token_url,
            "revocation_endpoint": self.revoke_url, "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", "refresh_token"], "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": bool(self._options.get("response_iss", True)),
        })  # fmt: skip

    # --- inside ------------------------------------------------------------------------------------------------------

    def _granted_by(self, request: Request, grant: str) -> Json:
        self._grants[grant] += 1
        if not self._authenticated(request):
            raise Refused("invalid_client")
        if grant == "authorization_code":
            return self._exchange(request.form)
        if grant == "refresh_token":
            return self._refresh(request.form)
        raise Refused("unauthorized_client" if grant == "client_credentials" else "unsupported_grant_type")

    def _code(self, asked: Mapping[str, str], redirect_uri: str) -> str:
        with self._lock:
            self._counts["authorizations"] += 1
            if asked.get("response_type") != "code":
                raise Refused("unsupported_response_type")
            if asked.get("code_challenge_method") != "S256" or not asked.get("code_challenge"):
                raise Refused("invalid_request")
            if self._options.get("consent", "given") != "given":
                self._counts["declined"] += 1
                raise Refused("access_denied")
            scopes = self._granted(frozenset(asked.get("scope", "").split()))
            if scopes is None:
                raise Refused("invalid_scope")
            code = secrets.token_urlsafe(24)
            expires_at = self._clock() + self._options.get("code_lifetime", 60.0)
            self._codes[code] = Code(redirect_uri, asked["code_challenge"], scopes, expires_at)
            return code

    def _exchange(self, form: Mapping[str, str]) -> Json:
        code = self._codes.get(form.get("code", ""))
        if code is not None and code.family is not None:
            self._counts["codes_reused"] += 1
            self._end(code.family)
            raise Refused("invalid_grant")
        if code is None or code.expires_at <= self._clock() or form.get("redirect_uri") != code.redirect_uri:
            raise Refused("invalid_grant")
        if not hmac.compare_digest(_s256(form.get("code_verifier", "")), code.challenge):
            del self._codes[form["code"]]
            raise Refused("invalid_grant")
        code.family, answer = self._new_family(code.scopes)
        return answer

    def _new_family(self, scopes: frozenset[str]) -> tuple[Family, Json]:
        family = Family(scopes)
        self._families.append(family)
        return family, self._issue(family, self._new_refresh_token(family))

    def _refresh(self, form: Mapping[str, str]) -> Json:
        value, now = form.get("refresh_token", ""), self._clock()
        family = next((one for one in self._families if value in one.living or value in one.retired), None)
        if family is None or family.ended:
            raise Refused("invalid_grant")
        if set(form.get("scope", "").split()) - family.scopes:
            raise Refused("invalid_scope")
        if value in family.retired and not self._within_grace(family.retired[value], now):
            self._counts["reuse_detected"] += 1
            self._end(family)
            raise Refused("invalid_grant")
        if value in family.living and family.living[value] <= now:
            raise Refused("invalid_grant")
        if self.mode == "none":
            family.living[value] = now + self._lifetime
            return self._issue(family, None)
        if family.living.pop(value, None) is not None:
            family.retired[value] = now
        return self._issue(family, self._new_refresh_token(family))

    def _within_grace(self, retired_at: float, now: float) -> bool:
        return self.mode == "grace" and now < retired_at + self._grace

    def _new_refresh_token(self, family: Family) -> str:
        value = secrets.token_urlsafe(32)
        family.living[value] = self._clock() + self._lifetime
        return value

    def _issue(self, family: Family, refresh_token: str | None) -> Json:
        token = self._tokens.issue(family.scopes)
        family.access.append(token.value)
        answer: Json = {
            "access_token": token.value, "token_type": "Bearer", "expires_in": self._tokens.seconds_left(token),
            "scope": " ".join(sorted(family.scopes)),
        }  # fmt: skip
        return answer if refresh_token is None else {**answer, "refresh_token": refresh_token}

    def _end(self, family: Family) -> None:
        self._counts["families_revoked"] += not family.ended
        family.ended = True
        for value in family.access:
            self._tokens.expire(value)

    def _lives(self, family: Family) -> bool:
        return not family.ended and any(expires_at > self._clock() for expires_at in family.living.values())


def _answer(content: Json, status: int = 200) -> Response:
    """RFC 6749 5.1: nothing on the way may keep it."""
    return Response(json.dumps(content), status, {"Cache-Control": "no-store"}, content_type="application/json")


def _s256(verifier: str) -> str:
    digest = hashlib.sha256(verifier.encode("ascii", "replace")).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _is_loopback(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname in {"127.0.0.1", "::1", "localhost"} and not parts.fragment
