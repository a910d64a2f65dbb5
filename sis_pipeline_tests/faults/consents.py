"""Systems with an authorization server in each of its three modes, and integrations that a person has granted access.
What is done to their tokens is the rows' business; what happens in processes of their own is in racers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from sqlalchemy import Engine, text

from sis_pipeline.connect.contract import OAuth
from sis_pipeline.connect.keys import Keys
from sis_pipeline.connect.source import HttpSource
from sis_pipeline.connect.vault import Vault
from sis_pipeline.defs.resources import Roster, provider_resource
from sis_pipeline.providers.registry import load_providers
from sis_pipeline.sandbox.server import Handle, SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.connect.test_tokens import as_token
from sis_pipeline_tests.connect.workers import KEY, Options, a_source, tokens_of
from sis_pipeline_tests.faults.racers import PATIENT

MODES = ("none", "grace", "strict")
OWN = "own"
"""The system whose tokens are had by the client's own credentials."""
SYSTEMS = (*MODES, OWN)
ORGS = "orgs"

_numbers = count()


@contextmanager
def systems(students: int = 20, **options: Any) -> Iterator[SandboxServer]:
    """A system per mode, named as it, and `own`."""
    granted = {"grant": "authorization_code"} | options
    served = [System(mode, "oneroster_1.2", students, granted | {"refresh_mode": mode}) for mode in MODES]
    world = World(seed=3, systems=[*served, System(OWN, "oneroster_1.2", students, options)])
    with SandboxServer(world, enforce_limits=False) as running:
        yield running


@dataclass(frozen=True)
class Connected:
    """An integration and the system it reads; `counted` begins at 0 with it."""

    key: str
    handle: Handle
    engine: Engine
    oauth: OAuth
    before: dict[str, int]

    def source(self, **more: Any) -> HttpSource:
        url = self.handle.base_url
        return a_source(self.engine, url, key=self.key, oauth=self.oauth, options=Options(url, **PATIENT), **more)

    def grant(self, *, keys: tuple[str, ...] = (KEY,)) -> None:
        """Somebody grants access (anew)."""
        with self.source(keys=keys) as source:
            tokens_of(source).accept(as_token(self.handle.authorization.grant()))

    def work(self, **more: Any) -> dict[str, Any]:
        """What a worker needs to open the same integration in a process of its own."""
        database = self.engine.url.render_as_string(hide_password=False)
        return {"database": database, "key": self.key, "url": self.handle.base_url, "oauth": self.oauth} | more

    def counted(self, name: str) -> int:
        """What the server has counted since this integration was made: `token_calls`, `refused` (answers 401), and
        what the authorization server tells of itself."""
        return _counts(self.handle).get(name, 0) - self.before.get(name, 0)

    def forget(self) -> None:
        """Begin to count at 0 again."""
        self.before.clear()
        self.before.update(_counts(self.handle))

    @property
    def living(self) -> int:
        """Families of tokens that still work, all consents at this system together."""
        return int(self.handle.authorization.stats()["live_families"])

    def row(self, kind: str, columns: str = "ciphertext, key_id, version, status") -> tuple[Any, ...] | None:
        query = text(f"select {columns} from sis.oauth_tokens where integration = :key and kind = :kind")
        with self.engine.connect() as connection:
            found = connection.execute(query, {"key": self.key, "kind": kind}).one_or_none()
        return None if found is None else tuple(found)

    def end_by_clock(self) -> None:
        """The access token's time is over, by the database's clock."""
        over = text("update sis.oauth_tokens set expires_at = sis.clock() - interval '1 second' "
                    "where integration = :key and kind = 'access'")  # fmt: skip
        with self.engine.begin() as connection:
            assert connection.execute(over, {"key": self.key}).rowcount == 1


def _counts(handle: Handle) -> dict[str, int]:
    stats = handle.stats()
    oauth = {name: value for name, value in stats.get("oauth", {}).items() if isinstance(value, int)}
    return oauth | {"token_calls": stats["token_calls"], "refused": stats["statuses"].get("401", 0)}


def connector(server: SandboxServer, engine: Engine, keys: tuple[str, ...] = (KEY,)) -> Callable[[str], Connected]:
    """`connect("strict")`: a new integration of that system, with a token that is good."""
    vault = Vault.open(engine, Keys(list(keys)))

    def connect(system: str) -> Connected:
        handle = server.system(system)
        oauth = OAuth(handle.token_url, handle.client_id)
        if system != OWN:
            authorization = handle.authorization
            oauth = OAuth(
                handle.token_url, handle.client_id, "authorization_code",
                authorize_url=authorization.authorize_url, revoke_url=authorization.revoke_url,
            )  # fmt: skip
        made = Connected(f"{system}-{next(_numbers)}", handle, engine, oauth, {})
        vault.put(made.key, "client_secret", handle.client_secret)
        if system != OWN:
            made.grant(keys=keys)
        else:
            with made.source(keys=keys) as source:
                tokens_of(source).bearer()
        made.forget()
        return made

    return connect


def grant(roster: Roster, handle: Handle, key: str) -> None:
    """Somebody grants an integration of an installation access."""
    integration = roster.integrations.get(key)
    resource = provider_resource(load_providers().providers[integration.provider])(roster=roster)
    with resource.connect(integration) as connection:
        assert isinstance(connection.source, HttpSource)
        tokens_of(connection.source).accept(as_token(handle.authorization.grant()))


def scalar(engine: Engine, query: str, **values: object) -> Any:
    with engine.connect() as connection:
        return connection.scalar(text(query), values)


def calm(engine: Engine) -> None:
    """What the case before has taught the limits and breakers about the one server is forgotten."""
    with engine.begin() as connection:
        connection.execute(text("delete from sis.circuit_breakers"))
        connection.execute(text("delete from sis.rate_limits"))


def audited(engine: Engine, key: str, action: str) -> int:
    query = "select count(*) from sis.audit_log where action = :action and subject = :key"
    return int(scalar(engine, query, action=action, key=key))
