"""Access tokens of one system: who may have one, how long it lives, which one is good.
The shape of the token endpoint's answers differs by vendor and lives in the dialects; grants by a person in
`authorization`."""

from __future__ import annotations

import base64
import binascii
import time
import urllib.parse
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from werkzeug.wrappers import Request


@dataclass(frozen=True, slots=True)
class Token:
    value: str
    expires_at: float
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Credentials:
    """Client id and secret as a token request gave them; `how` is basic or post."""

    client_id: str
    client_secret: str
    how: str


class TokenStore:
    """The tokens one system has handed out."""

    def __init__(self, lifetime: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.lifetime = lifetime
        self._clock = clock
        self._lock = Lock()
        self._tokens: dict[str, Token] = {}

    def issue(self, scopes: frozenset[str] = frozenset(), value: str | None = None) -> Token:
        with self._lock:
            token = Token(value or str(uuid.uuid4()), self._clock() + self.lifetime, scopes)
            self._tokens[token.value] = token
            return token

    def living(self) -> Token | None:
        """A token that is still good, if one was handed out: some vendors give the same one again."""
        with self._lock:
            now = self._clock()
            return next((token for token in self._tokens.values() if token.expires_at > now), None)

    def seconds_left(self, token: Token) -> int:
        return max(0, int(token.expires_at - self._clock()))

    def check(self, value: str | None) -> Token | None:
        """The token behind a bearer value, or None where it is unknown or has expired."""
        with self._lock:
            token = self._tokens.get(value or "")
            return token if token and token.expires_at > self._clock() else None

    def expire(self, value: str | None = None) -> None:
        """End one token, or all of them, as an impatient server does."""
        with self._lock:
            if value is None:
                self._tokens.clear()
            else:
                self._tokens.pop(value, None)


def bearer(request: Request) -> str | None:
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else None


def basic(request: Request) -> Credentials | None:
    """The Basic header's pair; url-decoded as RFC 6749 section 2.3.1 has it."""
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        pair = base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    client_id, _, secret = pair.partition(":")
    return Credentials(urllib.parse.unquote(client_id), urllib.parse.unquote(secret), "basic")


def posted(request: Request) -> Credentials | None:
    """The pair in the form body."""
    form = request.form
    if "client_id" not in form:
        return None
    return Credentials(form["client_id"], form.get("client_secret", ""), "post")


def public(request: Request) -> str | None:
    """The client id of a public client, which proves nothing and must not try to."""
    has_secret = "client_secret" in request.form or "Authorization" in request.headers
    return None if has_secret else request.form.get("client_id")
