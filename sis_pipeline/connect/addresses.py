"""Which addresses and headers an integration may have, as pure rules that settings and the door share.
They judge what is written; what a name resolves to is the door's business."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import parse_qsl

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from sis_pipeline.connect.errors import ConfigError

RESERVED_HEADERS = frozenset(
    {"authorization", "connection", "content-length", "cookie", "host", "proxy-authorization"}
    | {"te", "trailer", "transfer-encoding", "upgrade"}
)
"""Ours to set; the rest of the message's framing and credentials depend on them."""

_PARAMETER_WORDS = ("key", "token", "secret", "password")
_HEADER_WORDS = (*_PARAMETER_WORDS, "auth")


def is_loopback_name(host: str) -> bool:
    """True for `localhost` and loopback addresses written as such; a name that merely resolves there is not one."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def address_problem(url: str) -> str | None:
    """What keeps a URL from being called, as a clause without the URL; None where nothing does."""
    if re.search(r"[\s\\\x00-\x1f\x7f]", url):
        return "holds a space, a backslash or a control character"
    try:
        parts = parse_url(url)
    except LocationParseError:
        return "is not a URL"
    authority = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]
    plain = parts.scheme == "http"
    rules = (
        (parts.scheme not in {"http", "https"} or not parts.host, "is not an https URL"),
        (not _can_be_looked_up(parts.host or ""), "names a host that cannot be one; look at its dots and its length"),
        (parts.auth is not None or "@" in authority, "carries credentials; they belong in the vault"),
        (parts.fragment is not None, "has a fragment (#…)"),
        (plain and not is_loopback_name(parts.host or ""), "is http; only https is used outside this machine"),
    )
    return next((words for broken, words in rules if broken), None)


def _can_be_looked_up(host: str) -> bool:
    """Whether the parts of a host's name have lengths that one can have (RFC 1035 2.3.4); what has not fails unasked."""
    name = host.removesuffix(".")
    parts_fit = all(0 < len(part) <= 63 for part in name.split("."))
    return host.startswith("[") or (parts_fit and len(name) <= 253)


def origin(url: str) -> str:
    """`https://host:443` of a URL, read by the parser that also connects. Raises ConfigError for what is no http URL."""
    try:
        parts = parse_url(url)
    except LocationParseError:
        raise ConfigError("An address in the integration's settings is not a URL.", code="config.address") from None
    if parts.scheme not in {"http", "https"} or not parts.host:
        raise ConfigError("An address in the integration's settings is not an https URL.", code="config.address")
    return f"{parts.scheme}://{parts.host.lower()}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def query_problem(url: str, *, allowed: bool) -> str | None:
    """What is wrong with the query of a URL that has no other problem, as a clause without it; None where nothing is.

    Where a query is `allowed`, none of its parameters may be named like a credential.
    """
    query = parse_url(url).query
    if query is None:
        return None
    if not allowed:
        return "has a query (?…)"
    names = [name.lower() for part in query.split(";") for name, _ in parse_qsl(part, keep_blank_values=True)]
    if any(word in name for name in names for word in _PARAMETER_WORDS):
        return "has a query parameter named like a credential; credentials belong in the vault"
    return None


def header_problem(name: str, value: str) -> str | None:
    """What keeps a header from being sent beside our own, as a clause without it; None where nothing does."""
    if name.lower() in RESERVED_HEADERS or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
        return "name one that cannot be set there"
    if not re.fullmatch(r"[\x20-\x7e]*", value) or value != value.strip():
        return "have a value with characters that HTTP cannot carry"
    return None


def names_a_credential(header: str) -> bool:
    """Whether a header is named like one that carries a credential."""
    return any(word in header.lower() for word in _HEADER_WORDS)
