"""Serves a world over real HTTP on loopback: every system at its own path, its token endpoint, limits and faults.
What the systems say is in `dialects`; this module only carries requests to them, and the sandbox's own controls."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime, time
from ipaddress import ip_address
from threading import Lock, Thread
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler
from werkzeug.wrappers import Request, Response

from sis_pipeline.sandbox.authorization import OAUTH_METADATA, AuthorizationServer
from sis_pipeline.sandbox.dialects import api_of
from sis_pipeline.sandbox.dialects.api import Api, Call, json_answer
from sis_pipeline.sandbox.faults import AFTER, INSTEAD, Fault, Faults, answer_instead, deliver_badly, reset, rewritten
from sis_pipeline.sandbox.oauth import bearer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.throttle import EvenPace, Limit, Meter, SlidingWindow
from sis_pipeline.sandbox.truth import Truth
from sis_pipeline.sandbox.world import World

CONTROL = "/_sandbox/"
NOON = time(12)
"""The time of day in every system: what changed on a day was entered in its morning."""


class Handle:
    """One system as a client sees it: where it is, how to get in, and what it has counted.

    `settings` is what the provider named by `provider` needs beside the secret; a dialect without HTTP (CSV files) has
    no handle.
    """

    def __init__(self, system: System, origin: str, rate_scale: float, *, enforce: bool) -> None:
        self.system = system
        self.name = system.name
        self.provider = system.speech.provider
        self.client_id = f"{system.name}-client"
        self.client_secret = f"sandbox-secret+{system.name}/%="
        self.api: Api = api_of(system)(system, f"{origin}/{system.name}", self.client_id, self.client_secret)
        base = system.options.get("requests_per_minute", system.speech.requests_per_minute)
        limit = _limit(system, base * rate_scale) if enforce and system.options.get("enforce", True) else None
        self.meter = Meter(limit, base * rate_scale)

    @property
    def base_url(self) -> str:
        return self.api.base_url

    @property
    def token_url(self) -> str:
        return self.api.token_url

    @property
    def settings(self) -> dict[str, Any]:
        return self.api.settings()

    def stats(self) -> dict[str, Any]:
        """Calls by path template, refusals, tokens issued, the worst sliding minute, and times of first and last call;
        `oauth`: what happened at the authorization server, where there is one."""
        server = self.api.authorization
        return {**self.meter.stats(), **({"oauth": server.stats()} if server else {})}

    def expire_tokens(self) -> None:
        """End every access token of this system."""
        self.api.tokens.expire()

    @property
    def authorization(self) -> AuthorizationServer:
        """The authorization server. Raises ValueError where the system has none."""
        if self.api.authorization is None:
            raise ValueError(f"{self.name} has no authorization server; set its option grant to authorization_code")
        return self.api.authorization

    def revoke_grant(self) -> int:
        """Withdraw the consent: every token of this system ends. How many families of tokens there were."""
        return self.authorization.revoke_grant()


def _limit(system: System, requests_per_minute: float) -> Limit:
    if system.dialect == "powerschool":
        return EvenPace(60 / requests_per_minute)
    return SlidingWindow(requests_per_minute)


class _Connection(WSGIRequestHandler):
    """HTTP/1.1, silent, and known to the application, which may have to break it."""

    protocol_version = "HTTP/1.1"
    now: datetime | None = None
    """What the answer's `Date` says; this machine's time where None."""

    def make_environ(self) -> dict[str, Any]:
        self.now = None
        return {**super().make_environ(), "sandbox.connection": self}

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(self.now.timestamp() if self.now else timestamp)

    def log(self, *_args: Any, **_more: Any) -> None:
        """Say nothing: requests are counted, and their paths may carry what tests look for in logs."""


class _BrokenOnPurposeError(ConnectionError):
    """The answer has been written to the raw connection; the server has nothing left to say."""


class SandboxServer:
    """A running sandbox: `with SandboxServer(world) as sandbox: sandbox.system("powerschool").base_url`.

    Binds `host` (loopback) at once; `port` 0 takes a free one, and one that is taken raises OSError. `rate_scale` multiplies every vendor limit;
    `enforce_limits=False` only counts. Closing stops the threads.
    """

    def __init__(
        self,
        world: World,
        *,
        rate_scale: float = 1.0,
        enforce_limits: bool = True,
        host: str = "127.0.0.1",
        port: int = 0,
        day: int = 1,
    ) -> None:
        if not ip_address(host).is_loopback:
            raise ValueError(
                "the sandbox serves on loopback only: its passwords and controls are open to whoever reaches it"
            )
        self.world = world
        self.faults = Faults()
        self.day = day
        self._lock = Lock()
        # Bound here, because werkzeug ends the process where a port is taken.
        with socket.create_server((host, port), family=_family(host)) as listening:
            self._server = ThreadedWSGIServer(host, port, self, handler=_Connection, fd=listening.fileno())
        self._server.daemon_threads = True
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._server.socket.getsockname()[1]}"
        self._handles = {
            system.name: Handle(system, self.url, rate_scale, enforce=enforce_limits)
            for system in world.systems
            if system.dialect != "oneroster_csv"
        }
        self._thread: Thread | None = None

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def serve_forever(self) -> None:
        """Serve in this thread until interrupted."""
        self._server.serve_forever()

    def close(self) -> None:
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- what a client of the sandbox asks ---------------------------------------------------------------------------

    def system(self, name: str) -> Handle:
        if name not in self._handles:
            raise KeyError(f"the sandbox serves no system {name!r}; it serves {', '.join(self._handles)}")
        return self._handles[name]

    @property
    def systems(self) -> list[Handle]:
        return list(self._handles.values())

    def set_day(self, day: int) -> None:
        """Let it be that day everywhere, from the next request on."""
        self.world.people(day)
        with self._lock:
            self.day = day

    def truth(self, day: int | None = None, school_year: str | None = None) -> Truth:
        """What must come out on a day, by default the present one."""
        return self.world.truth(day or self.day, school_year)

    # --- requests ----------------------------------------------------------------------------------------------------

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        request = Request(environ)
        response = self._control(request) if request.path.startswith(CONTROL) else self._answer(request)
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        if request.path.startswith(f"{OAUTH_METADATA}/"):
            return self._metadata(request.path.removeprefix(f"{OAUTH_METADATA}/"))
        name, _, rest = request.path.lstrip("/").partition("/")
        handle = self._handles.get(name)
        if handle is None:
            return Response("Not found", 404, content_type="text/plain")
        path = f"/{rest}"
        query = request.query_string.decode("latin-1")
        call = Call(request, self.world.view(name, self.day), self.faults, f"{path}?{query}" if query else path)
        response = self._route(handle, call, path)
        handle.meter.answer(response.status_code)
        return self._delivered(call, response)

    def _route(self, handle: Handle, call: Call, path: str) -> Response:
        try:
            endpoint, arguments, template = handle.api.match(call.request.method, path)
        except HTTPException as refused:
            endpoint, arguments, template = "", {}, "unknown path"
            missing = handle.api.not_found() if isinstance(refused, NotFound) else Response("", refused.code or 405)
        instead = self._instead(call)
        if endpoint == "token" or endpoint.startswith("oauth "):
            response = instead or handle.api.oauth(call, endpoint) or handle.api.not_found()
            if endpoint == "token":
                handle.meter.token_call(issued=response.status_code == 200)
            return response
        wait = handle.meter.arrive(template)
        if instead is not None:
            return instead
        if wait > 0:
            return handle.api.too_many(wait)
        if not endpoint:
            return missing
        if endpoint not in handle.api.open_endpoints and not self._authorised(handle, call):
            return handle.api.unauthorized()
        # A system's clock is that of its day, as the modified times of its records are.
        call.request.environ["sandbox.connection"].now = datetime.combine(call.view.date, NOON, tzinfo=UTC)
        return handle.api.respond(call, endpoint, arguments)

    def _metadata(self, name: str) -> Response:
        """Of the system whose issuer has that path (RFC 8414 3.1)."""
        handle = self._handles.get(name)
        if handle is None or handle.api.authorization is None:
            return Response("Not found", 404, content_type="text/plain")
        return handle.api.authorization.metadata("oauth")

    def _authorised(self, handle: Handle, call: Call) -> bool:
        value = bearer(call.request)
        for fault in self.faults.due(handle.name, call.path, frozenset({"expired_token"})):
            fault.fired += 1
            handle.api.tokens.expire(value)
        call.token = handle.api.tokens.check(value)
        return call.token is not None

    # --- faults ------------------------------------------------------------------------------------------------------

    def _instead(self, call: Call) -> Response | None:
        for fault in self.faults.due(call.view.system.name, call.path, INSTEAD):
            fault.fired += 1
            answer = answer_instead(fault)
            if answer is None:
                self._break(call.request, fault, None)
            return answer
        return None

    def _delivered(self, call: Call, response: Response) -> Response:
        for fault in self.faults.due(call.view.system.name, call.path, AFTER):
            fault.fired += 1
            changed = rewritten(fault, response)
            if changed is None:
                self._break(call.request, fault, response)
            else:
                response = changed
        return response

    def _break(self, request: Request, fault: Fault, response: Response | None) -> None:
        """Deal with the raw connection and leave it unusable. Always raises."""
        connection = request.environ["sandbox.connection"]
        connection.close_connection = True
        if response is None:
            reset(request.environ["werkzeug.socket"])
        else:
            response.headers.setdefault("Content-Type", "application/json")
            deliver_badly(fault, response, request.environ["werkzeug.socket"])
        raise _BrokenOnPurposeError

    # --- controls ----------------------------------------------------------------------------------------------------

    def _control(self, request: Request) -> Response:
        if not _from_loopback(request):
            return Response("Not found", 404, content_type="text/plain")
        controls = {
            "day": self._control_day, "faults": self._control_faults, "stats": self._control_stats,
            "truth": self._control_truth, "systems": self._control_systems, "grants": self._control_grants,
        }  # fmt: skip
        control = controls.get(request.path.removeprefix(CONTROL))
        if control is None:
            return json_answer({"error": f"the sandbox's controls are {', '.join(controls)}"}, 404)
        try:
            return json_answer(control(request))
        except (ValueError, KeyError, TypeError) as wrong:
            return json_answer({"error": str(wrong)}, 400)

    def _control_day(self, request: Request) -> Any:
        if request.method == "POST":
            self.set_day(int(_body(request)["day"]))
        return {"day": self.day, "date": self.world.date(self.day).isoformat()}

    def _control_faults(self, request: Request) -> Any:
        if request.method == "DELETE":
            self.faults.clear()
        elif request.method == "POST":
            asked = _body(request)
            self.faults.add(asked.pop("kind"), **asked)
        return {"faults": self.faults.listed()}

    def _control_stats(self, _request: Request) -> Any:
        return {handle.name: handle.stats() for handle in self.systems}

    def _control_grants(self, request: Request) -> Any:
        """DELETE with `system`: withdraw the consent."""
        if request.method != "DELETE":
            return {one.name: one.stats()["oauth"] for one in self.systems if one.api.authorization}
        return {"families_revoked": self.system(_body(request)["system"]).revoke_grant()}

    def _control_truth(self, request: Request) -> Any:
        return self.truth(request.args.get("day", type=int), request.args.get("school_year")).as_json()

    def _control_systems(self, _request: Request) -> Any:
        return [
            {
                "name": handle.name, "provider": handle.provider, "settings": handle.settings,
                "client_secret": handle.client_secret, "requests_per_minute": handle.meter.requests_per_minute,
            }
            for handle in self.systems
        ]  # fmt: skip


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _from_loopback(request: Request) -> bool:
    """From this machine, and asked for by a loopback name: a web page elsewhere can't reach the controls."""
    host = urlsplit(f"//{request.host}").hostname or ""
    return ip_address(request.remote_addr or "0.0.0.0").is_loopback and host in {"127.0.0.1", "localhost", "::1"}


def _body(request: Request) -> dict[str, Any]:
    content = json.loads(request.get_data() or b"{}")
    if not isinstance(content, dict):
        raise TypeError("the body must be a JSON object")
    return content
