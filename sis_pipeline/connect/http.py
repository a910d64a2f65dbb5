"""The one HTTP door: everything the product sends to a SIS leaves here, and what comes back is bounded in time and size.
It knows no token, no retry and no vendor; which answer is which error is decided in errors."""

from __future__ import annotations

import http.client
import ipaddress
import json as jsonlib
import logging
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from typing import Any, cast

import requests
import urllib3
from requests.auth import AuthBase
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

from sis_pipeline import __version__
from sis_pipeline.connect.addresses import address_problem, header_problem, is_loopback_name, origin
from sis_pipeline.connect.errors import Call, ConfigError, ContractError, SisError, TransientError, describe, media_type
from sis_pipeline.connect.wire import EXCHANGE, Adapter, Exchange, Timeouts

USER_AGENT = f"sis_pipeline/{__version__}"
MAX_BODY = 256 * 1024 * 1024
"""Decoded bytes: the largest page known (50,000 OneRoster users) is a quarter of it."""
MAX_ERROR_BODY = 64 * 1024
CHUNK = 64 * 1024

# urllib3 writes whole URLs, queries included, into its log lines.
logging.getLogger("urllib3").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class Reply:
    """Any answer, whatever its status: lower-case header names, the decoded body (a prefix for errors), seconds taken."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    seconds: float


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers from settings or a provider. Raises ConfigError for names that are ours to set and for characters that
    HTTP can't carry."""
    for name, value in headers.items():
        if problem := header_problem(name, value):
            raise ConfigError(
                f"The extra headers {problem}.",
                code="config.header",
                advice="Leave Authorization, Host, Cookie and transfer headers out of extra_headers.",
            )
    return dict(headers)


def expect_json(call: Call, reply: Reply) -> None:
    """Raise ContractError unless a 2xx answer says it is JSON and is not empty."""
    came, context = describe(reply.headers, len(reply.body)), call.context(status=reply.status)
    if not reply.body.strip():
        raise ContractError(
            f"{call} answered {reply.status} with nothing in it ({came}).", code="contract.empty", **context
        )
    media = media_type(reply.headers)
    if "html" in media or re.match(rb"\s*<(!doctype|html)", reply.body[:200], re.IGNORECASE):
        advice = "It is usually a login or maintenance page: check base_url and whether the API is switched on."
        raise ContractError(
            f"{call} answered {reply.status} with an HTML page where JSON is due ({came}).",
            code="contract.html",
            advice=advice,
            **context,
        )
    if not (media in {"", "application/json", "text/json"} or media.endswith("+json")):
        raise ContractError(
            f"{call} answered {reply.status} with {came} where JSON is due.", code="contract.content_type", **context
        )


def _no_wait() -> Iterator[float]:
    return iter(())


class _Session(requests.Session):
    """Sees no redirect. Even where it follows none, the library's own reads the whole body of one, whatever its size,
    and works out where it leads, which fails on a Location that is no URL."""

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002
        return None


class Door:
    """A pooled session that reaches the given origins and nothing else.

    https only, or http where the host is loopback. Follows no redirect, keeps no cookie, and takes neither proxies nor
    credentials from the environment. Addresses that are not public are refused unless `private_addresses` (and never
    link-local ones, where clouds keep their credentials). Raises ConfigError for origins it would never reach.
    """

    def __init__(
        self,
        urls: Iterable[str],
        *,
        timeouts: Timeouts | None = None,
        private_addresses: bool = False,
        max_bytes: int = MAX_BODY,
    ) -> None:
        self._origins = frozenset(_checked_origin(url) for url in urls)
        self._timeouts = timeouts or Timeouts()
        self._private_addresses = private_addresses
        self._max_bytes = max_bytes
        self._session = _Session()
        self._session.trust_env = False
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._session.headers.update({"User-Agent": USER_AGENT, "Accept": "application/json"})
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, Adapter())

    def send(
        self,
        call: Call,
        url: str,
        *,
        params: Mapping[str, str | Sequence[str]] | None = None,
        json: Mapping[str, Any] | None = None,
        data: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        auth: AuthBase | None = None,
        turn: Callable[[], Iterator[float]] = _no_wait,
        timeouts: Timeouts | None = None,
    ) -> Reply:
        """Send one request and read the whole answer.

        `turn` gives the seconds to wait, one after the other, until it is our turn; it is asked once a connection
        stands, so that connecting does not make a request late. Raises ConfigError for an address out of bounds or a
        bad certificate, TransientError for what the network did, ContractError for an answer that is too large.
        """
        exchange = Exchange(turn, self._addresses, timeouts or self._timeouts)
        token = EXCHANGE.set(exchange)
        try:
            prepared = self._prepare(call, url, params=params, json=json, data=data, headers=headers, auth=auth)
            response = self._session.send(
                prepared,
                stream=True,
                allow_redirects=False,
                timeout=(exchange.timeouts.connect, exchange.timeouts.read),
            )
            return self._receive(call, response, exchange)
        except (requests.RequestException, HTTPError, OSError, http.client.HTTPException) as error:
            raise _transport_error(call, exchange, error) from None
        finally:
            EXCHANGE.reset(token)

    def close(self) -> None:
        self._session.close()

    def _prepare(self, call: Call, url: str, **parts: Any) -> requests.PreparedRequest:
        try:
            prepared = self._session.prepare_request(requests.Request(call.method, url, **parts))
        except (requests.RequestException, UnicodeError, ValueError):
            raise ConfigError(
                f"{call} could not be written as an HTTP request.", code="config.address", **call.context()
            ) from None
        target = parse_url(cast("str", prepared.url))
        # credentials in a link would take the place of ours
        if target.auth is not None or origin(target.url) not in self._origins:
            raise ContractError(
                f"{call} would leave the integration's own addresses; it was not sent.",
                code="contract.other_host",
                **call.context(),
            )
        return prepared

    def _addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host, all of them allowed. Connecting uses these, so a second lookup can't differ."""
        try:
            found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        except UnicodeError:  # what Python says of a name that none can be
            raise socket.gaierror from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        for address in addresses:
            if not _allowed(address, loopback=is_loopback_name(host), private=self._private_addresses):
                raise ConfigError(
                    f"The host {host} has the address {address}, which is not a public one; nothing was sent.",
                    code="config.private_address",
                    advice="If the system really is inside your network, set the integration's private_addresses.",
                )
        return addresses

    def _receive(self, call: Call, response: requests.Response, exchange: Exchange) -> Reply:
        raw = cast("urllib3.HTTPResponse", response.raw)
        good = 200 <= response.status_code < 300
        unframed = raw.length_remaining is None and not raw.chunked
        body, whole = _read(raw, self._max_bytes if good else MAX_ERROR_BODY, forgiving=not good)
        headers = {name.lower(): value for name, value in response.headers.items()}
        reply = Reply(response.status_code, headers, body, exchange.seconds)
        if good and not whole:
            limit = f"{self._max_bytes:,} bytes"
            raise ContractError(
                f"{call} answered more than {limit}; reading was stopped.",
                code="contract.too_large",
                advice="Set a smaller page_size for this integration.",
                **call.context(status=reply.status),
            )
        if good and unframed and not _is_whole_json(body):
            raise TransientError(
                f"{call} answered {reply.status} without a length and broke off ({describe(headers, len(body))}).",
                code="transient.truncated",
                **call.context(status=reply.status),
            )
        return reply


def _checked_origin(url: str) -> str:
    if problem := address_problem(url):
        raise ConfigError(f"An address in the integration's settings {problem}.", code="config.address")
    return origin(url)


def _allowed(address: str, *, loopback: bool, private: bool) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = _within(ip)
    if any(ip in network for network in _NEVER):
        return False
    if loopback or ip.is_loopback:
        return loopback and ip.is_loopback
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip.is_reserved:
        return False
    return ip.is_global or (private and ip.is_private)


_NEVER = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "168.63.129.16/32", "fd00:ec2::254/128")))
"""The first is for protocols, not for hosts (RFC 6890); Python 3.11 calls most of it public. In all of them a cloud keeps
its credentials: Oracle, Azure, AWS over IPv6. The link-local ones are refused as such."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def _within(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that an IPv6 address leads to (mapped; 6to4, RFC 3056; NAT64, RFC 6052), or the address itself."""
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


def _read(raw: urllib3.HTTPResponse, limit: int, *, forgiving: bool) -> tuple[bytes, bool]:
    """The decoded body up to `limit`, and whether that is all. `forgiving`: keep what came before the network failed."""
    parts: list[bytes] = []
    size = 0
    try:
        while size <= limit and (part := raw.read1(CHUNK, decode_content=True)):
            parts.append(part)
            size += len(part)
    except (HTTPError, OSError):
        raw.close()
        if not forgiving:
            raise
    whole = size <= limit
    if not whole:
        raw.close()
    raw.release_conn()
    return b"".join(parts)[:limit], whole


def _is_whole_json(body: bytes) -> bool:
    try:
        jsonlib.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def _transport_error(call: Call, exchange: Exchange, error: BaseException) -> SisError:
    """What the network did, in words. The library's own text is dropped: it holds the URL with its query."""
    causes = list(_causes(error))
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return ConfigError(
            f"{call}: the server's certificate could not be verified; nothing was sent.",
            code="config.certificate",
            advice="Check base_url and token_url; the vendor's certificate may have expired.",
            **call.context(),
        )
    return TransientError(
        f"{call} failed: {_what_happened(exchange, causes)}.", code="transient.unreachable", **call.context()
    )


def _what_happened(exchange: Exchange, causes: list[BaseException]) -> str:
    kinds = {type(cause) for cause in causes}
    if exchange.expired:
        return f"the whole answer did not arrive within {exchange.timeouts.total:g} s"
    for kind, words in _HAPPENED:
        if any(issubclass(one, kind) for one in kinds):
            return words.format(exchange.timeouts)
    return "the connection failed"


_HAPPENED: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, "the host name could not be resolved"),
    (ConnectionRefusedError, "the connection was refused"),
    (urllib3.exceptions.NewConnectionError, "no connection could be made"),
    (urllib3.exceptions.ConnectTimeoutError, "no connection within {0.connect:g} s"),
    (urllib3.exceptions.ReadTimeoutError, "nothing was received for {0.read:g} s"),
    (urllib3.exceptions.IncompleteRead, "the answer broke off before its end"),
    (http.client.IncompleteRead, "the answer broke off before its end"),
    (http.client.RemoteDisconnected, "the server closed the connection without an answer"),
    (ConnectionResetError, "the connection was reset"),
    (ssl.SSLError, "no secure connection could be agreed on"),
    (urllib3.exceptions.DecodeError, "the answer's compression is broken"),
    (TimeoutError, "nothing was received for {0.read:g} s"),
    (http.client.HTTPException, "the answer is not HTTP"),
)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything it wraps: requests and urllib3 nest in arguments, reasons and causes alike."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            inner = [*one.args, getattr(one, "reason", None), one.__cause__, one.__context__]
            waiting.extend(cause for cause in inner if isinstance(cause, BaseException))
