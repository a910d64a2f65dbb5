"""What all dialects share: a request with its system and day, routes with templates, paging with faults, JSON answers.
No vendor's words here."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from sis_pipeline.sandbox.authorization import AUTHORIZE, OPENID, REVOKE, AuthorizationServer
from sis_pipeline.sandbox.faults import PAGING, Faults, page_with
from sis_pipeline.sandbox.oauth import Credentials, Token, TokenStore, basic, posted, public
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.views import View

Row = TypeVar("Row")
Json = dict[str, Any]


@dataclass
class Call:
    """One request on its way through a dialect."""

    request: Request
    view: View
    faults: Faults
    path: str
    """Path and query, as faults are asked for."""
    token: Token | None = None

    def page(self, rows: Sequence[Row], offset: int, limit: int) -> Sequence[Row]:
        """One page of a collection, with whatever fault this request is to suffer."""
        page = rows[offset : offset + limit]
        for fault in self.faults.due(self.view.system.name, self.path, PAGING - {"wrong_count"}):
            changed = page_with(fault, rows, offset, limit)
            if changed is not None:
                fault.fired += 1
                page = changed
        return page

    def total(self, rows: int) -> int:
        """What the source says a collection counts, faults included."""
        total = rows + self.faults.moved(self.view.system.name, self.path)
        for fault in self.faults.due(self.view.system.name, self.path, frozenset({"wrong_count"})):
            fault.fired += 1
            total += fault.with_.get("by", 1)
        return total

    def integer(self, name: str, default: int) -> int:
        """A query parameter as a number. Raises BadParameter."""
        text = self.request.args.get(name)
        if text is None:
            return default
        if not re.fullmatch(r"-?\d+", text):
            raise BadParameter(name)
        return int(text)


class BadParameter(Exception):  # noqa: N818 - answered, not raised to anybody
    """A query parameter that the API refuses; its name is the message."""


def json_answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return Response(body, status, dict(headers or {}), content_type="application/json;charset=UTF-8")


class Api(ABC):
    """One system's API. Subclasses list their routes and answer them with methods of the same endpoint name."""

    token_route: str
    client_auth: frozenset[str] = frozenset({"basic", "post"})
    default_client_auth = "basic"
    token_lifetime = 3600.0
    open_endpoints: frozenset[str] = frozenset()
    """Endpoints that need no token."""
    defaults: ClassVar[dict[str, Any]] = {}
    """Options that this dialect sets unless the system does."""

    def __init__(self, system: System, root: str, client_id: str, client_secret: str) -> None:
        self.system = system
        self.root = root
        self.client_id = client_id
        self.client_secret = client_secret
        self.tokens = TokenStore(self.option("token_lifetime", self.token_lifetime))
        self.authorization = self._authorization_server()
        rules = [Rule(self.token_route, endpoint="token", methods=["POST"]), *self._oauth_routes(), *self.routes()]
        self._map = Map(rules, strict_slashes=False, redirect_defaults=False)
        self._adapter = self._map.bind("sandbox")

    def option(self, name: str, default: Any) -> Any:
        return self.system.options.get(name, self.defaults.get(name, default))

    @abstractmethod
    def routes(self) -> list[Rule]: ...

    @property
    @abstractmethod
    def base_url(self) -> str: ...

    @property
    def token_url(self) -> str:
        return self.root + self.token_route

    def settings(self) -> Json:
        """The provider settings that reach this system."""
        how = self.option("client_auth", None) or self.default_client_auth
        grant = self.authorization.settings() if self.authorization else {}
        return {
            "base_url": self.base_url, "token_url": self.token_url, "client_id": self.client_id, "client_auth": how, **grant,
        }  # fmt: skip

    def granted(self, asked: frozenset[str]) -> frozenset[str] | None:
        """The scopes given where these are asked for; None where one of them is unknown."""
        return asked

    def _authorization_server(self) -> AuthorizationServer | None:
        """The server that a person's grant goes through, where the system is set up for it."""
        if self.option("grant", "client_credentials") != "authorization_code":
            return None
        return AuthorizationServer(
            self.system.options,
            self.root,
            self.token_url,
            self.client_id,
            self.tokens,
            granted=self.granted,
            authenticated=self.authenticated,
        )

    def _oauth_routes(self) -> list[Rule]:
        if self.authorization is None:
            return []
        return [
            Rule(AUTHORIZE, endpoint="oauth authorize", methods=["GET"]),
            Rule(REVOKE, endpoint="oauth revoke", methods=["POST"]),
            Rule(OPENID, endpoint="oauth openid", methods=["GET"]),
        ]

    def oauth(self, call: Call, endpoint: str) -> Response | None:
        """The answer of the token endpoint, or of another one of the authorization server; None for data endpoints."""
        server = self.authorization
        if server is None:
            return self.token(call) if endpoint == "token" else None
        answers: dict[str, Callable[[], Response]] = {
            "token": lambda: server.token(call.request),
            "oauth authorize": lambda: server.authorize(call.request),
            "oauth revoke": lambda: server.revoke(call.request),
            "oauth openid": lambda: server.metadata("openid"),
        }
        return answers[endpoint]() if endpoint in answers else None

    def match(self, method: str, path: str) -> tuple[str, Mapping[str, Any], str]:
        """Endpoint, path arguments and path template of a request. Raises werkzeug's NotFound, MethodNotAllowed."""
        rule, arguments = self._adapter.match(path, method=method, return_rule=True)
        return rule.endpoint, arguments, re.sub(r"<(?:[^:<>]+:)?([^<>]+)>", r"{\1}", rule.rule)

    def respond(self, call: Call, endpoint: str, arguments: Mapping[str, Any]) -> Response:
        answer: Callable[..., Response] = getattr(self, endpoint)
        try:
            return answer(call, **arguments)
        except BadParameter as refused:
            return self.bad_parameter(str(refused))

    # --- what every vendor words differently -------------------------------------------------------------------------

    @abstractmethod
    def token(self, call: Call) -> Response: ...

    @abstractmethod
    def unauthorized(self) -> Response: ...

    @abstractmethod
    def too_many(self, wait: float) -> Response: ...

    @abstractmethod
    def not_found(self) -> Response: ...

    @abstractmethod
    def bad_parameter(self, name: str) -> Response: ...

    # --- token requests ----------------------------------------------------------------------------------------------

    def authenticated(self, request: Request) -> bool:
        """Whether a token request proves to come from our client, in a way this vendor accepts."""
        ways = self.client_auth
        if "client_auth" in self.system.options:
            ways = frozenset({self.system.options["client_auth"]})
        if "none" in ways:
            return public(request) == self.client_id
        given: list[Credentials | None] = [basic(request) if "basic" in ways else None]
        given.append(posted(request) if "post" in ways else None)
        return any(
            pair and pair.client_id == self.client_id and pair.client_secret == self.client_secret for pair in given
        )
