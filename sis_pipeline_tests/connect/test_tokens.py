"""The life of tokens: one call per expiry for all processes, dead grants, kills at every point, giving tokens back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from sis_pipeline.connect import tokens as module
from sis_pipeline.connect.contract import OAuth, Request, Token
from sis_pipeline.connect.errors import (
    AuthRevokedError,
    ConfigError,
    ContractError,
    RateLimitedError,
    SisError,
    TransientError,
)
from sis_pipeline.connect.keys import Keys
from sis_pipeline.connect.source import HttpSource
from sis_pipeline.connect.tokens import Tokens, share_for
from sis_pipeline.connect.upkeep import (
    cleanup,
    due_for_refresh,
    pending_revocations,
    token_health,
)
from sis_pipeline.connect.vault import Vault
from sis_pipeline.sandbox.server import Handle, SandboxServer
from sis_pipeline.sandbox.systems import System
from sis_pipeline.sandbox.world import World
from sis_pipeline_tests.connect.servers import Sis, serve
from sis_pipeline_tests.connect.test_vault import change, one
from sis_pipeline_tests.connect.workers import (
    KEY,
    SECRET,
    a_source,
    in_processes,
    killed_at,
    refresh_once,
    send_many,
    tokens_of,
    wear_out,
)

MODES = ("none", "grace", "strict")
HOLDER = "lincoln"


@pytest.fixture
def vault(database: Engine) -> Vault:
    return Vault.open(database, Keys([KEY]))


@dataclass
class Script:
    """tokens.Grants that answers as told: tokens, or errors to be raised; when it is out of answers, a token t1, t2 …"""

    refreshes: bool = False
    revocable: bool = True
    answers: list[Token | SisError] = field(default_factory=list)
    lifetime: float = 3600.0
    rotates: bool = False
    used: list[str | None] = field(default_factory=list)
    given_back: list[tuple[str, str]] = field(default_factory=list)
    refusals: list[SisError] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None

    @property
    def calls(self) -> int:
        return len(self.used)

    def fetch(self) -> Token:
        return self.refresh(None, None)

    def refresh(self, refresh_token: str | None, granted: str | None) -> Token:
        self.used.append(refresh_token)
        self.meanwhile()
        answer = self.answers.pop(0) if self.answers else self.another()
        if isinstance(answer, SisError):
            raise answer
        return answer

    def exchange(self, code: str, verifier: str, redirect_uri: str) -> Token:
        raise NotImplementedError

    def another(self) -> Token:
        return Token(f"t{self.calls}", self.lifetime, f"r{self.calls}" if self.rotates else None)

    def revoke(self, token: str, hint: str) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.given_back.append((token, hint))


def dead(code: str | None = "invalid_grant", status: int = 400) -> AuthRevokedError:
    return AuthRevokedError("The server refused.", code="auth_revoked.grant", status=status, oauth_error=code)


def tokens(vault: Vault, grants: Script, share: float = 1.0) -> Tokens:
    return Tokens(vault, HOLDER, grants, share_of_window=share)


def audited(engine: Engine, since: int) -> list[str]:
    query = "select action from sis.audit_log where entry > :since and action ~ '^token' order by entry"
    with engine.connect() as connection:
        return list(connection.scalars(text(query), {"since": since}))


@pytest.fixture
def mark(database: Engine, vault: Vault) -> int:
    """The last entry of the audit log before the test."""
    return int(str(one(database, "select coalesce(max(entry), 0) from sis.audit_log")))


def status(engine: Engine, kind: str = "access") -> object:
    return one(engine, f"select status from sis.oauth_tokens where kind = '{kind}'")


def expire(engine: Engine) -> None:
    change(engine, "update sis.oauth_tokens set expires_at = sis.clock() - interval '1 second' where kind = 'access'")


# When a token is replaced


def test_a_good_token_is_not_fetched_again(vault: Vault, database: Engine, mark: int) -> None:
    grants = Script()
    got = [tokens(vault, grants).bearer() for _ in range(3)]
    assert [(bearer.value, bearer.version) for bearer in got] == [("t1", 1)] * 3
    assert grants.calls == 1
    assert "t1" not in repr(got)
    assert audited(database, mark) == ["token.refresh"]


@pytest.mark.parametrize(
    ("lifetime", "passed", "share", "again"),
    [
        (3600, 2990, 1, False), (3600, 3010, 1, True), (3600, 3110, 0.8, False), (3600, 3130, 0.8, True),
        (100, 75, 1, False), (100, 85, 1, True), (100, 83, 0.8, False), (100, 200, 1, True), (0.3, 0, 1, False),
    ],
)  # fmt: skip
def test_the_window_is_ten_minutes_or_a_fifth(  # noqa: PLR0917  fixtures, and a table's columns
    vault: Vault, database: Engine, lifetime: float, passed: int, share: float, again: bool
) -> None:
    keeper = tokens(vault, Script(lifetime=lifetime), share)
    keeper.bearer()
    change(database, f"update sis.oauth_tokens set expires_at = expires_at - interval '{passed} seconds'")
    assert keeper.bearer().version == (2 if again else 1)


@given(st.text(max_size=30), st.text(max_size=30))
def test_every_process_has_its_own_fixed_part_of_the_window(holder: str, integration: str) -> None:
    share = share_for(holder, integration)
    assert 0.8 <= share <= 1.0
    assert share == share_for(holder, integration)


def test_processes_do_not_all_come_at_once() -> None:
    shares = sorted(share_for(f"host:{pid}:1.0", HOLDER) for pid in range(100))
    assert shares[0] < 0.82
    assert shares[-1] > 0.98
    assert max(after - before for before, after in pairwise(shares)) < 0.02


def test_the_databases_clock_decides(vault: Vault, database: Engine) -> None:
    grants = Script(lifetime=3600)
    tokens(vault, grants).bearer()
    name = database.url.database
    try:
        for offset, version in (("40 minutes", 1), ("-2 hours", 1), ("55 minutes", 2)):
            change_setting(database, f"alter database {name} set sis.clock_offset = '{offset}'")
            assert tokens(vault, grants).bearer().version == version
    finally:
        change_setting(database, f"alter database {name} reset sis.clock_offset")


def change_setting(database: Engine, statement: str) -> None:
    with database.begin() as connection:
        connection.execute(text(statement))
    database.dispose()  # a database's settings are taken when a connection begins


def test_a_refused_token_is_replaced_once(vault: Vault) -> None:
    grants = Script()
    keeper = tokens(vault, grants)
    assert keeper.bearer().value == "t1"
    assert keeper.bearer(refused="t1").value == "t2"
    assert keeper.bearer(refused="t1").value == "t2", "a sibling has fetched it meanwhile"
    assert grants.calls == 2


def test_a_forced_refresh_replaces_a_good_token(vault: Vault) -> None:
    grants = Script(refreshes=True, rotates=True)
    tokens(vault, grants).accept(Token("t0", 3600, "r0"))
    assert tokens(vault, grants).refresh_now().version == 2
    assert tokens(vault, grants).refresh_now().version == 3
    assert grants.used == ["r0", "r1"]


def test_a_server_that_gives_no_new_refresh_token_keeps_the_old_one(vault: Vault, database: Engine) -> None:
    grants = Script(refreshes=True, answers=[Token("t1", 60), Token("t2", 60, "r2", "read"), Token("t3", 60)])
    keeper = tokens(vault, grants)
    keeper.accept(Token("t0", 60, "r0", "read write"))
    for number in range(3):
        assert keeper.bearer(refused=f"t{number}").value == f"t{number + 1}"
    assert grants.used == ["r0", "r0", "r2"]
    assert one(database, "select scope from sis.oauth_tokens where kind = 'refresh'") == "read"
    assert one(database, "select count(*) from sis.oauth_tokens where last_refreshed_at is not null") == 2


def test_a_scope_that_grows_costs_nobody_the_connection(
    consent: Callable[[str], Grant], sandbox: SandboxServer, database: Engine, mark: int
) -> None:
    grant = consent("strict")
    scope = "select scope from sis.oauth_tokens where kind = '{}'"
    change(database, "update sis.oauth_tokens set scope = 'narrow' where kind = 'refresh'")
    wide = sandbox.faults.add("set_key", system="strict", path="oauth/token", key="scope", value="narrow wide wider")
    with grant.source() as source, capture_logs() as logs:
        source.refresh_token()
        source.refresh_token()
    assert wide.fired == 1
    assert one(database, scope.format("access")) != "narrow wide wider"
    assert next(line["scopes"] for line in logs if line["event"] == "token.scope_grew") == 2
    excess = "select details ->> 'scope_excess' from sis.audit_log where action = 'token.refresh' and entry > {} order by entry"
    assert one(database, excess.format(mark)) == "2"
    assert grant.handle.authorization.stats()["live_families"] == 1


def life(engine: Engine, kind: str = "refresh") -> float | None:
    """Seconds until the token ends, None where nobody knows."""
    query = f"select extract(epoch from expires_at - sis.clock())::float8 from sis.oauth_tokens where kind = '{kind}'"
    with engine.connect() as connection:
        return cast("float | None", connection.scalar(text(query)))


@pytest.mark.parametrize("mode", ["none", "strict"])
@pytest.mark.parametrize("name", ["refresh_expires_in", "refresh_token_expires_in"])
def test_a_refresh_token_ends_when_its_server_says(
    consent: Callable[[str], Grant], sandbox: SandboxServer, database: Engine, mode: str, name: str
) -> None:
    grant = consent(mode)
    with grant.source() as source:
        source.refresh_token()
        assert life(database) is None, "unsaid"
        sandbox.faults.add("set_key", system=mode, path="oauth/token", times=2, key=name, value="43200")
        for _ in range(2):
            source.refresh_token()
            assert life(database) == pytest.approx(43_200, abs=30)
            change(database, "update sis.oauth_tokens set expires_at = expires_at - interval '10 hours' where kind = 'refresh'")  # fmt: skip
        source.refresh_token()
    if mode == "none":
        assert life(database) == pytest.approx(43_200, abs=30), "the same token, and a use is what it needs to live on"
    else:
        assert life(database) is None, "another token, of which nothing is known"


def test_a_refresh_token_takes_its_end_along_when_it_is_replaced(vault: Vault, database: Engine) -> None:
    grants = Script(refreshes=True, refusals=[unconfirmed() for _ in range(4)])
    keeper = tokens(vault, grants)
    keeper.accept(Token("t0", 3600, "r0", refresh_lifetime=7200))
    keeper.accept(Token("t1", 3600, "r1"))
    assert life(database) is None
    assert life(database, "refresh 1") == pytest.approx(7200, abs=30)
    change(database, "update sis.oauth_tokens set expires_at = expires_at - interval '27 hours'")
    assert keeper.finish_revocations() == 2, "both are long over"


def test_a_refresh_token_that_is_gone_stays_gone_whatever_an_answer_says_of_it(vault: Vault) -> None:
    def forget() -> None:
        with vault.engine.begin() as connection:
            vault.empty(connection, HOLDER, "refresh")

    grants = Script(refreshes=True, answers=[Token("t1", 3600, refresh_lifetime=7200)], meanwhile=forget)
    keeper = tokens(vault, grants)
    keeper.accept(Token("t0", 3600, "r0"))
    keeper.bearer(refused="t0")
    assert vault.get(HOLDER, "refresh") is None


# Failures that may pass


def test_a_failed_call_leaves_the_stored_token_as_it_was(vault: Vault, database: Engine, mark: int) -> None:
    grants = Script(refreshes=True)
    keeper = tokens(vault, grants)
    keeper.accept(Token("t1", 3600, "r1"))
    sealed = "select string_agg(ciphertext::text, '') from (select * from sis.oauth_tokens order by kind) t"
    before = one(database, sealed)
    errors = [TransientError("down"), ContractError("no token"), RateLimitedError("slow"), ConfigError("scope")]
    for number, error in enumerate(errors):
        grants.answers = [error]
        with pytest.raises(SisError) as caught:
            keeper.bearer(refused="t1")
        assert caught.value is error
        assert one(database, "select failures from sis.oauth_tokens where kind = 'access'") == number + 1
        assert one(database, "select last_error from sis.oauth_tokens where kind = 'access'") == error.message
    assert one(database, sealed) == before
    assert status(database) == "active"
    assert keeper.bearer(refused="t1").value == "t5"
    assert one(database, "select max(failures) from sis.oauth_tokens") == 0
    assert one(database, "select max(last_error) from sis.oauth_tokens") is None
    assert audited(database, mark) == ["token.authorize", "token.refresh_failed", "token.refresh"], "one per outage"


def test_a_token_that_still_lives_bridges_a_token_endpoint_that_is_down(vault: Vault, database: Engine) -> None:
    grants = Script(lifetime=100)
    keeper = tokens(vault, grants)
    keeper.bearer()
    change(database, "update sis.oauth_tokens set expires_at = expires_at - interval '90 seconds'")
    grants.answers = [TransientError("down"), TransientError("still down")]
    assert [keeper.bearer().value for _ in range(5)] == ["t1"] * 5
    assert grants.calls == 2, "not once per request"
    change(database, "update sis.oauth_tokens set updated_at = updated_at - interval '31 seconds'")
    assert keeper.bearer().value == "t1"
    assert grants.calls == 3
    expire(database)
    assert keeper.bearer().value == "t4"


def test_a_call_that_was_never_sent_is_no_failure(vault: Vault, database: Engine) -> None:
    grants = Script(answers=[TransientError("left alone", code="transient.left_alone")])
    with pytest.raises(TransientError):
        tokens(vault, grants).bearer()
    assert one(database, "select failures from sis.oauth_tokens") == 0
    assert status(database) == "active"


def test_an_interrupted_call_is_taken_over_at_once(vault: Vault) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokens(vault, Script(meanwhile=interrupt)).bearer()
    assert tokens(vault, Script()).bearer().value == "t1"


def test_a_lock_held_too_long_is_a_passing_failure(
    vault: Vault, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_WAIT", "50ms")
    keeper = tokens(vault, Script())
    keeper.bearer()
    with database.begin() as other:
        other.execute(text("select * from sis.oauth_tokens for update"))
        with pytest.raises(TransientError, match="Another process"):
            keeper.bearer(refused="t1")
    assert keeper.bearer(refused="t1").value == "t2"


def test_new_tokens_are_stored_although_the_database_stumbles(
    vault: Vault, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They exist nowhere else: a refresh token that was replaced and lost costs a person's consent."""
    monkeypatch.setattr(module, "LOCK_WAIT", "50ms")
    locked, release = threading.Event(), threading.Event()

    def lock() -> None:
        with database.begin() as other:
            other.execute(text("select * from sis.oauth_tokens for update"))
            locked.set()
            release.wait(10)

    blocker = threading.Thread(target=lock)

    def meanwhile() -> None:
        blocker.start()
        locked.wait()
        threading.Timer(0.2, release.set).start()

    assert tokens(vault, Script(meanwhile=meanwhile)).bearer().value == "t1"
    blocker.join()


# Waiting for siblings, and taking over from them


def claim_as(engine: Engine, holder: str, seconds: float) -> None:
    change(
        engine,
        f"update sis.oauth_tokens set status = 'refreshing', lease_holder = '{holder}', "
        f"lease_until = sis.clock() + interval '{seconds} seconds' where kind = 'access'",
    )


def test_a_living_siblings_call_is_waited_for(vault: Vault, database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    grants = Script()
    keeper = tokens(vault, grants)
    keeper.bearer()
    claim_as(database, "another-machine:1:1.0", 60)
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.2)
    with pytest.raises(TransientError, match="Another process") as caught:
        keeper.bearer(refused="t1")
    assert caught.value.code == "transient.token_busy"
    assert keeper.bearer().value == "t1", "who can still use the old one need not wait"
    assert grants.calls == 1


@pytest.mark.parametrize(("holder", "seconds"), [("another-machine:1:1.0", -1), ("{host}:1:1.0", 60)])
def test_a_call_whose_holder_is_gone_or_late_is_taken_over(
    vault: Vault, database: Engine, holder: str, seconds: float
) -> None:
    grants = Script()
    keeper = tokens(vault, grants)
    keeper.bearer()
    claim_as(database, holder.format(host=keeper._holder.split(":")[0]), seconds)
    assert keeper.bearer(refused="t1").value == "t2"


def test_what_a_late_holder_brings_does_not_replace_what_was_stored_meanwhile(vault: Vault, database: Engine) -> None:
    """A process is suspended during its call; when it wakes, another has long taken over."""
    sibling = tokens(vault, Script(answers=[Token("of the sibling", 3600)]))

    def overtake() -> None:
        change(database, "update sis.oauth_tokens set lease_until = sis.clock() - interval '1 second'")
        assert sibling.bearer().value == "of the sibling"

    assert tokens(vault, Script(meanwhile=overtake)).bearer().value == "of the sibling"
    assert one(database, "select version from sis.oauth_tokens") == 1


def test_a_refusal_adopts_what_a_sibling_has_stored(vault: Vault, database: Engine, mark: int) -> None:
    sibling = tokens(vault, Script(refreshes=True, answers=[Token("of the sibling", 3600, "r2")]))
    sibling.accept(Token("t0", 3600, "r0"))

    def overtake() -> None:
        change(database, "update sis.oauth_tokens set lease_until = sis.clock() - interval '1 second'")
        assert sibling.bearer(refused="t0").value == "of the sibling"

    late = tokens(vault, Script(refreshes=True, answers=[dead()], meanwhile=overtake))
    assert late.bearer(refused="t0").value == "of the sibling"
    assert status(database) == "active"
    assert audited(database, mark) == ["token.authorize", "token.refresh"]


def test_credentials_that_change_during_a_call_are_not_joined_by_an_old_token(vault: Vault, database: Engine) -> None:
    grants = Script(answers=[Token("of the old secret", 3600), Token("of the new one", 3600)])
    once = iter([lambda: vault.put(HOLDER, "client_secret", "new"), lambda: None])

    def meanwhile() -> None:
        next(once)()

    grants.meanwhile = meanwhile
    assert tokens(vault, grants).bearer().value == "of the new one"


def once(work: Callable[[], object]) -> Callable[[], None]:
    """Do it during the first call."""
    works = iter([work])

    def meanwhile() -> None:
        for it in works:
            it()

    return meanwhile


def replace_secret(vault: Vault) -> None:
    vault.put(HOLDER, "client_secret", "new")


def test_a_new_client_secret_during_a_refresh_costs_no_refresh_token(vault: Vault, database: Engine, mark: int) -> None:
    """The server has replaced it already, and would take the old one for stolen."""
    grants = Script(refreshes=True, rotates=True, meanwhile=once(lambda: replace_secret(vault)))
    keeper = tokens(vault, grants)
    keeper.accept(Token("t0", 3600, "r0"))
    assert keeper.bearer(refused="t0").value == "t2", "t1 was got with the old secret"
    assert grants.used == ["r0", "r1"]
    assert vault.get(HOLDER, "refresh") == "r2"
    assert one(database, "select count(*) from sis.oauth_tokens where status <> 'active'") == 0
    assert audited(database, mark) == ["token.authorize", "token.set_secret", "token.refresh", "token.refresh"]


def test_nobody_uses_a_refresh_token_that_is_in_use_though_the_secret_is_new(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.1)
    hasty = Script(refreshes=True)

    def meanwhile() -> None:
        replace_secret(vault)
        with pytest.raises(TransientError, match="Another process"):
            tokens(vault, hasty).bearer()

    grants = Script(refreshes=True, rotates=True, meanwhile=once(meanwhile))
    keeper = tokens(vault, grants)
    keeper.accept(Token("t0", 3600, "r0"))
    with pytest.raises(TransientError, match="Another process"):
        keeper.bearer(refused="t0")  # the wait of the test's has used up its own
    assert keeper.bearer().value == "t2"
    assert (grants.used, hasty.used) == (["r0", "r1"], [])


@pytest.mark.parametrize("answer", [dead("invalid_client", 401), TransientError("down"), KeyboardInterrupt()])
def test_a_call_that_fails_while_the_secret_is_replaced_keeps_nobody_waiting(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, answer: BaseException
) -> None:
    monkeypatch.setattr(module, "LONGEST_WAIT", 5.0)

    def meanwhile() -> None:
        replace_secret(vault)
        raise answer

    grants = Script(refreshes=True, meanwhile=once(meanwhile))
    keeper = tokens(vault, grants)
    keeper.accept(Token("t0", 3600, "r0"))
    if not isinstance(answer, AuthRevokedError):  # which is the old secret's: the new one is tried
        with pytest.raises(type(answer)):
            keeper.bearer(refused="t0")
    assert keeper.bearer(refused="t0").value == "t2"
    assert grants.used == ["r0", "r0"]


# Dead grants


def test_a_dead_grant_costs_one_call_and_one_alert(vault: Vault, database: Engine, mark: int) -> None:
    grants = Script(refreshes=True, answers=[dead()])
    keeper = tokens(vault, grants)
    keeper.accept(Token("t0", 3600, "r0"))
    with capture_logs() as logs:
        for _ in range(4):
            with pytest.raises(AuthRevokedError) as caught:
                keeper.bearer(refused="t0")
            assert "sis oauth authorize lincoln" in caught.value.advice
    assert grants.calls == 1
    assert (status(database), status(database, "refresh")) == ("needs_reauth", "needs_reauth")
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["token.needs_reauth"]
    assert audited(database, mark) == ["token.authorize", "token.needs_reauth"]
    keeper.accept(Token("t1", 3600, "r1"))
    assert keeper.bearer().value == "t1"
    assert keeper.bearer(refused="t1").value == "t2", "the new refresh token is tried"


@pytest.mark.parametrize(
    ("refusals", "calls"), [([dead("invalid_client", 401)], 1), ([dead(None, 403), dead(None, 403)], 2)]
)
def test_refused_credentials_are_asked_for_at_most_twice(
    vault: Vault, database: Engine, mark: int, refusals: list[Token | SisError], calls: int
) -> None:
    grants = Script(answers=list(refusals))
    keeper = tokens(vault, grants)
    for _ in range(3):
        with pytest.raises(AuthRevokedError) as caught:
            keeper.bearer()
        assert "sis integration add lincoln --replace" in caught.value.advice
    assert grants.calls == calls
    assert audited(database, mark) == ["token.needs_reauth"]
    vault.put(HOLDER, "client_secret", SECRET)
    assert keeper.bearer().version == 2, "the row that was emptied for the new secret had a version, too"


def test_a_refusal_without_a_reason_may_be_a_proxys(vault: Vault, database: Engine) -> None:
    grants = Script(answers=[dead(None, 403)])
    assert tokens(vault, grants).bearer().value == "t2"
    assert status(database) == "active"


def test_a_person_may_have_a_dead_grant_tried_again_without_a_second_alert(
    vault: Vault, database: Engine, mark: int
) -> None:
    grants = Script(answers=[dead(), dead(), TransientError("down")])
    keeper = tokens(vault, grants)
    with pytest.raises(AuthRevokedError):
        keeper.bearer()
    for error in (AuthRevokedError, TransientError):
        with pytest.raises(error):
            keeper.refresh_now()
        assert status(database) == "needs_reauth"
    assert audited(database, mark).count("token.needs_reauth") == 1
    assert keeper.refresh_now().value == "t4", "the district has switched the client on again"
    assert keeper.bearer().value == "t4"


def test_a_grant_that_nobody_gave_costs_no_call(vault: Vault, database: Engine) -> None:
    grants = Script(refreshes=True)
    with pytest.raises(AuthRevokedError, match="nobody has granted access yet") as caught:
        tokens(vault, grants).bearer()
    assert "sis oauth authorize lincoln" in caught.value.advice
    assert grants.calls == 0


# Against a real authorization server: three ways to rotate, many processes, kills


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxServer]:
    options: dict[str, Any] = {"grant": "authorization_code", "token_lifetime": 3600}
    systems = [System(mode, "oneroster_1.2", 20, options | {"refresh_mode": mode}) for mode in MODES]
    with SandboxServer(World(seed=3, systems=systems), enforce_limits=False) as running:
        yield running


@dataclass
class Grant:
    """One fresh consent at one of the sandbox's authorization servers, known to the vault as `key`."""

    handle: Handle
    engine: Engine
    key: str
    oauth: OAuth
    before: dict[str, Any]

    def source(self) -> HttpSource:
        return a_source(self.engine, self.handle.base_url, key=self.key, oauth=self.oauth)

    def work(self, **more: Any) -> dict[str, Any]:
        url = self.engine.url.render_as_string(hide_password=False)
        return {"database": url, "key": self.key, "url": self.handle.base_url, "oauth": self.oauth} | more

    def counted(self, name: str) -> int:
        now, before = self.handle.authorization.stats(), self.before
        if name == "refreshes":
            return int(now["grants"].get("refresh_token", 0) - before["grants"].get("refresh_token", 0))
        return int(now[name] - before[name])


def as_token(answer: dict[str, Any]) -> Token:
    return Token(answer["access_token"], answer["expires_in"], answer["refresh_token"], answer["scope"])


@pytest.fixture
def consent(sandbox: SandboxServer, database: Engine, vault: Vault) -> Callable[[str], Grant]:
    def give(mode: str) -> Grant:
        handle = sandbox.system(mode)
        handle.revoke_grant()
        server = handle.authorization
        oauth = OAuth(
            handle.token_url, handle.client_id, "authorization_code",
            authorize_url=server.authorize_url, revoke_url=server.revoke_url,
        )  # fmt: skip
        key = f"{mode}-rotation"
        vault.put(key, "client_secret", handle.client_secret)
        grant = Grant(handle, database, key, oauth, {})
        with grant.source() as source:
            tokens_of(source).accept(as_token(server.grant()))
        grant.before = server.stats()
        return grant

    return give


def test_a_source_with_a_persons_consent(consent: Callable[[str], Grant]) -> None:
    grant = consent("strict")
    with grant.source() as source:
        source.send(Request("orgs"))
        assert (source.token_version, source.token_calls) == (1, 0)
        grant.handle.expire_tokens()
        source.send(Request("orgs"))
        assert (source.token_version, source.token_calls) == (2, 1)
        assert source.refresh_token() == 3
    assert grant.counted("refreshes") == 2
    assert grant.counted("invalid_grant") == 0


def test_a_refresh_race(consent: Callable[[str], Grant]) -> None:
    """16 processes, 6 tokens that all of them see refused: 6 token calls, whatever the server makes of old tokens."""
    grants = [consent(mode) for mode in MODES]
    seen = in_processes(16, wear_out, lambda _: {"jobs": [grant.work(upto=7) for grant in grants]})
    for number, grant in enumerate(grants):
        assert grant.counted("refreshes") == 6
        assert [grant.counted(name) for name in ("invalid_grant", "reuse_detected", "families_revoked")] == [0, 0, 0]
        assert set().union(*(of_process[number] for of_process in seen)) == {1, 2, 3, 4, 5, 6}
        assert grant.handle.authorization.stats()["live_families"] == 1


POINTS = ("refresh.before_call", "refresh.after_response", "refresh.before_commit", "refresh.after_commit")


@pytest.mark.parametrize("mode", MODES)
def test_a_process_killed_at_any_point_of_a_refresh(
    consent: Callable[[str], Grant], mode: str, database: Engine
) -> None:
    for point in POINTS:
        grant = consent(mode)
        assert killed_at(point, refresh_once, **grant.work()) == -9
        reached = point != "refresh.before_call"
        assert grant.counted("refreshes") == reached
        own = f"integration = '{grant.key}'"
        committed = point == "refresh.after_commit"
        assert one(database, f"select status from sis.oauth_tokens where kind = 'access' and {own}") == (
            "active" if committed else "refreshing"
        )
        lost = mode == "strict" and point in {"refresh.after_response", "refresh.before_commit"}
        old = vault_version(database, grant)
        with grant.source() as source:
            held = tokens_of(source)._vault.get(grant.key, "access")
            if lost:  # the server has replaced the refresh token, and nobody has the new one
                with pytest.raises(AuthRevokedError, match="invalid_grant"):
                    tokens_of(source).bearer(refused=held)
            else:
                tokens_of(source).bearer(refused=None if committed else held)
                assert vault_version(database, grant) == old + (not committed)
        assert grant.handle.authorization.stats()["live_families"] == (0 if lost else 1)
        assert grant.counted("refreshes") <= 2
        found = one(database, f"select status from sis.oauth_tokens where kind = 'refresh' and {own}")
        assert found == ("needs_reauth" if lost else "active")
        assert in_plain_text(database, grant.handle) == []


def vault_version(database: Engine, grant: Grant) -> int:
    query = f"select version from sis.oauth_tokens where kind = 'access' and integration = '{grant.key}'"
    return int(str(one(database, query)))


def in_plain_text(database: Engine, handle: Handle) -> list[str]:
    """Which of the server's tokens stand legibly in any table that a refresh writes to."""
    families = handle.authorization._families
    issued = [value for it in families for value in (*it.access, *it.living, *it.retired)]
    with database.connect() as connection:
        tables = "sis.oauth_tokens", "sis.audit_log", "sis.api_calls"
        dump = "".join(str(connection.scalar(text(f"select string_agg(t::text, '') from {name} t"))) for name in tables)
        dump += "".join(
            bytes(row).decode() for row in connection.scalars(text("select ciphertext from sis.oauth_tokens"))
        )
    assert len(issued) >= 2
    assert len(dump) > 100
    return [value for value in issued if value in dump]


def test_a_withdrawn_consent_among_many_processes(consent: Callable[[str], Grant], database: Engine, mark: int) -> None:
    grant, well = consent("grace"), consent("none")
    grant.handle.revoke_grant()
    results = in_processes(8, refresh_once, lambda _: grant.work())
    assert results == ["auth_revoked"] * 8
    assert 1 <= grant.counted("refreshes") <= 2
    assert audited(database, mark).count("token.needs_reauth") == 1
    assert in_processes(1, refresh_once, lambda _: well.work()) == ["2"], "the others go on"


def test_processes_fetch_one_token_per_expiry(database_url: URL, vault: Vault) -> None:
    """8 processes through some lifetimes: no token is asked for before the one before is in its last fifth."""
    vault.put(HOLDER, "client_secret", SECRET)
    with serve(Sis(lifetime=0.8, delay=0.05)) as sis:
        work = {"database": database_url.render_as_string(hide_password=False), "url": sis.url, "path": "/data"}
        results = in_processes(8, send_many, lambda _: {**work, "calls": 1, "seconds": 4, "per_minute": 30_000})
    assert sum(result["token_calls"] for result in results) == len(sis.issued)
    assert len(sis.issued) >= 3
    took = sis.issued[-1] - sis.issued[0]
    assert (len(sis.issued) - 1) * 0.8 * 0.8 <= took + 0.3, "one token more would be 0.64 s too many"


def test_processes_whose_token_is_turned_down_fetch_one_together(database_url: URL, vault: Vault) -> None:
    vault.put(HOLDER, "client_secret", SECRET)
    with serve(Sis(calls_per_token=100, delay=0.02)) as sis:
        work = {"database": database_url.render_as_string(hide_password=False), "url": sis.url, "path": "/data"}
        results = in_processes(8, send_many, lambda _: {**work, "calls": 50})
    assert sum(result["sent"] for result in results) == 400
    assert len(sis.issued) == 4, "400 answers at 100 a token"
    assert sis.refusals >= 3


# Giving tokens back


def test_tokens_are_given_back_and_a_person_must_grant_anew(
    consent: Callable[[str], Grant], database: Engine, mark: int
) -> None:
    grant = consent("grace")
    with grant.source() as source:
        assert source.revoke_tokens() == 2
        assert grant.counted("revocations") == 2
        assert grant.handle.authorization.stats()["live_families"] == 0
        with pytest.raises(AuthRevokedError, match="given back"):
            source.send(Request("orgs"))
        assert source.revoke_tokens() == 0
    assert grant.counted("refreshes") == 0
    assert one(database, "select count(*) from sis.oauth_tokens where status = 'revoked' and kind = 'refresh'") == 1
    assert audited(database, mark).count("token.revoke") == 2


def test_a_revocation_is_done_only_when_the_server_says_so(
    consent: Callable[[str], Grant], sandbox: SandboxServer, database: Engine
) -> None:
    grant = consent("strict")
    fault = sandbox.faults.add("status", system="strict", path="oauth/revoke", times=None, status=503)
    with grant.source() as source, pytest.raises(TransientError):
        source.revoke_tokens()
    assert fault.fired >= 1
    sandbox.faults.clear()
    assert pending(database) == 2
    with grant.source() as source:
        with pytest.raises(AuthRevokedError, match="are being given back"):
            source.send(Request("orgs"))
        change(database, f"insert into sis.integrations (key, provider, district, settings) values ('{grant.key}', 'oneroster', 'd', '{{}}')")  # fmt: skip
        try:
            with database.connect() as connection:
                assert pending_revocations(connection) == [], "not at once"
            change(database, "update sis.oauth_tokens set updated_at = updated_at - interval '121 seconds'")
            with database.connect() as connection:
                assert pending_revocations(connection) == [grant.key]
        finally:
            change(database, "delete from sis.integrations")
        assert source.finish_revocations() == 2
    assert pending(database) == 0
    assert grant.handle.authorization.stats()["live_families"] == 0


def test_an_authorization_replaces_the_one_before_which_is_given_back(
    consent: Callable[[str], Grant], database: Engine
) -> None:
    grant = consent("grace")
    with grant.source() as source:
        tokens_of(source).accept(as_token(grant.handle.authorization.grant()))
        assert grant.handle.authorization.stats()["live_families"] == 2
        assert source.finish_revocations() == 2
        assert grant.handle.authorization.stats()["live_families"] == 1
        source.send(Request("orgs"))
        assert source.token_version == 2
    assert one(database, f"select count(*) from sis.oauth_tokens where integration = '{grant.key}'") == 3


def test_a_server_without_revocation_is_not_asked(vault: Vault, database: Engine) -> None:
    grants = Script(refreshes=True, revocable=False)
    keeper = tokens(vault, grants)
    keeper.accept(Token("t0", 3600, "r0"))
    with pytest.raises(ConfigError, match="left as they are"):
        keeper.revoke()
    assert keeper.bearer().value == "t0"
    keeper.accept(Token("t1", 3600, "r1"))
    assert one(database, "select count(*) from sis.oauth_tokens") == 2, "nothing is set aside that could never be ended"


def test_tokens_that_come_while_they_are_given_back_are_given_back_too(vault: Vault, database: Engine) -> None:
    grants = Script(refreshes=True, rotates=True)
    keeper = tokens(vault, grants)
    keeper.accept(Token("t0", 3600, "r0"))

    def withdraw() -> None:
        change(database, "update sis.oauth_tokens set status = 'revocation_pending'")

    grants.meanwhile = withdraw
    with pytest.raises(AuthRevokedError, match="given back"):
        keeper.bearer(refused="t0")
    assert keeper.finish_revocations() == 2
    assert grants.given_back == [("r1", "refresh_token"), ("t1", "access_token")]
    assert one(database, "select string_agg(distinct status, '') from sis.oauth_tokens") == "revoked"


def pending(engine: Engine) -> object:
    return one(engine, "select count(*) from sis.oauth_tokens where status = 'revocation_pending'")


@pytest.mark.parametrize("rotates", [True, False])
def test_what_comes_of_a_grant_that_was_replaced_meanwhile_is_given_back(
    vault: Vault, database: Engine, rotates: bool
) -> None:
    """Else the old grant's tokens would live on, and nobody would know them."""
    person = tokens(vault, Script(refreshes=True))
    grants = Script(refreshes=True, rotates=rotates, meanwhile=once(lambda: person.accept(Token("new", 3600, "rn"))))
    keeper = tokens(vault, grants)
    keeper.accept(Token("t0", 3600, "r0"))
    assert keeper.bearer(refused="t0").value == "new"
    assert (vault.get(HOLDER, "access"), vault.get(HOLDER, "refresh")) == ("new", "rn")
    keeper.finish_revocations()
    late = {("t1", "access_token"), ("r1", "refresh_token")} if rotates else {("t1", "access_token")}
    assert set(grants.given_back) == {("t0", "access_token"), ("r0", "refresh_token")} | late
    assert pending(database) == 0


@pytest.mark.parametrize("again", [Token("new", 3600, "r0"), Token("new", 3600, "r1")])
def test_what_comes_late_of_the_same_grant_is_not_given_back(vault: Vault, database: Engine, again: Token) -> None:
    """Giving back one token of a grant may end them all: a sibling's, or those that the server has given once more."""
    sibling = tokens(vault, Script(refreshes=True, revocable=True))
    grants = Script(refreshes=True, rotates=True, meanwhile=once(lambda: sibling.accept(again)))
    keeper = tokens(vault, grants)
    keeper.accept(Token("t0", 3600, "r0"))
    assert keeper.bearer(refused="t0").value == "new"
    assert "r1" not in dict(grants.given_back)
    keeper.finish_revocations()
    assert again.refresh not in dict(grants.given_back)
    assert "t1" not in dict(grants.given_back)


def test_what_a_sibling_has_stored_meanwhile_is_of_the_same_grant(
    vault: Vault, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sibling = tokens(vault, Script(refreshes=True, answers=[Token("of the sibling", 3600, "rs")]))

    def overtake() -> None:
        change(database, "update sis.oauth_tokens set lease_until = sis.clock() - interval '1 second'")
        assert sibling.bearer(refused="t0").value == "of the sibling"

    keeper = tokens(vault, Script(refreshes=True, rotates=True, meanwhile=once(overtake)))
    keeper.accept(Token("t0", 3600, "r0"))
    assert keeper.bearer(refused="t0").value == "of the sibling"
    assert vault.get(HOLDER, "refresh") == "rs"
    assert pending(database) == 0


def test_what_comes_after_all_was_given_back_is_given_back_too(vault: Vault, database: Engine) -> None:
    person = tokens(vault, Script(refreshes=True))

    def withdraw() -> None:
        change(database, "update sis.oauth_tokens set lease_until = sis.clock() - interval '1 second'")
        assert person.revoke() == 2

    grants = Script(refreshes=True, rotates=True, meanwhile=once(withdraw))
    keeper = tokens(vault, grants)
    keeper.accept(Token("t0", 3600, "r0"))
    with pytest.raises(AuthRevokedError, match="given back"):
        keeper.bearer(refused="t0")
    assert keeper.finish_revocations() == 2
    assert set(grants.given_back) == {("r1", "refresh_token"), ("t1", "access_token")}


def test_an_authorization_that_is_stored_twice_does_not_give_itself_back(
    vault: Vault, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is lost when the server has committed, before it could say so."""
    grants = Script(refreshes=True)
    keeper = tokens(vault, grants)
    keeper.accept(Token("t0", 3600, "r0"))
    store, lost = Tokens._accepted, [OperationalError("commit", None, OSError("lost"))]

    def unheard(*arguments: Any, **named: Any) -> Any:
        bearer = store(*arguments, **named)
        if lost:
            raise lost.pop()
        return bearer

    monkeypatch.setattr(Tokens, "_accepted", unheard)
    assert keeper.accept(Token("t1", 3600, "r1")).value == "t1"
    assert lost == []
    keeper.finish_revocations()
    assert set(grants.given_back) == {("r0", "refresh_token"), ("t0", "access_token")}
    assert (vault.get(HOLDER, "access"), vault.get(HOLDER, "refresh")) == ("t1", "r1")


def test_a_server_that_goes_on_with_the_grant_before_keeps_it(vault: Vault, database: Engine) -> None:
    grants = Script(refreshes=True)
    keeper = tokens(vault, grants)
    keeper.accept(Token("t0", 3600, "r0"))
    keeper.accept(Token("t1", 3600, "r0"))
    assert keeper.finish_revocations() == 0
    assert keeper.bearer(refused="t1").value == "t1"
    assert grants.used == ["r0"]


def test_credentials_fetch_a_new_token_after_the_old_one_was_given_back(vault: Vault) -> None:
    grants = Script()
    keeper = tokens(vault, grants)
    keeper.bearer()
    assert keeper.revoke() == 1
    assert grants.given_back == [("t1", "access_token")]
    assert keeper.bearer().value == "t2"


def unconfirmed() -> ContractError:
    return ContractError("It answered 204.", code="contract.revocation")


def test_credentials_fetch_a_new_token_though_the_server_does_not_confirm_that_the_old_one_is_revoked(
    vault: Vault, database: Engine, mark: int
) -> None:
    grants = Script(refusals=[unconfirmed(), unconfirmed()])
    keeper = tokens(vault, grants)
    keeper.bearer()
    with pytest.raises(ContractError):
        keeper.revoke()
    assert (grants.calls, status(database)) == (1, "revocation_pending"), "nothing is fetched that nobody needs"
    grants.answers = [TransientError("down")]
    with pytest.raises(TransientError):
        keeper.bearer()
    assert vault.get(HOLDER, "access") is None, "the old one is not used any more"
    assert keeper.bearer().value == "t3"
    waiting = (
        "select kind || ' ' || failures || ' ' || last_error from sis.oauth_tokens where status = 'revocation_pending'"
    )
    assert one(database, waiting) == "access 1 1 It answered 204."
    with pytest.raises(ContractError):
        keeper.finish_revocations()
    assert keeper.finish_revocations() == 1
    assert grants.given_back == [("t1", "access_token")]
    assert (keeper.bearer().value, pending(database)) == ("t3", 0)
    assert audited(database, mark).count("token.revoke") == 2, "the first refusal and the end"


def test_a_forced_refresh_and_a_grant_of_before_are_no_hindrance_to_credentials(vault: Vault, database: Engine) -> None:
    """Once a person granted access; now the credentials do. The old refresh token is still to be given back."""
    grants = Script(refusals=[unconfirmed(), unconfirmed()])
    tokens(vault, Script(refreshes=True)).accept(Token("t0", 3600, "r0"))
    keeper = tokens(vault, grants)
    with pytest.raises(ContractError):
        keeper.revoke()
    assert keeper.refresh_now().value == "t1"
    assert keeper.bearer().value == "t1"
    assert status(database, "refresh") == "revocation_pending"


@pytest.mark.parametrize("refreshes", [True, False])
def test_a_token_that_is_long_over_need_not_be_confirmed(
    vault: Vault, database: Engine, mark: int, refreshes: bool
) -> None:
    grants = Script(refreshes=refreshes, refusals=[unconfirmed() for _ in range(3)])
    keeper = tokens(vault, grants)
    keeper.accept(Token("t0", 3600))
    with pytest.raises(ContractError):
        keeper.revoke()
    for hours, over in ((24, False), (2, True)):
        change(database, f"update sis.oauth_tokens set expires_at = expires_at - interval '{hours} hours' where kind = 'access'")  # fmt: skip
        if over:
            assert keeper.finish_revocations() == 1
        else:  # its end may be a guess
            with pytest.raises(ContractError):
                keeper.finish_revocations()
    assert (status(database), vault.get(HOLDER, "access")) == ("revoked", None)
    assert grants.refusals == [], "the server was asked all the same"
    last = "select details ->> 'done' || (details ->> 'ended') from sis.audit_log order by entry desc limit 1"
    assert one(database, last) == "falsetrue"


def test_a_server_that_takes_only_access_tokens_back_ends_the_revocation(
    consent: Callable[[str], Grant], sandbox: SandboxServer, database: Engine, vault: Vault, mark: int
) -> None:
    grant = consent("grace")
    answer = {"body": '{"error": "unsupported_token_type"}', "content_type": "application/json"}
    refusal = sandbox.faults.add("status", system="grace", path="oauth/revoke", times=1, status=400, **answer)
    with grant.source() as source, capture_logs() as logs:
        assert source.revoke_tokens() == 2
        assert source.finish_revocations() == 0, "it is not asked again"
    assert (refusal.fired, grant.counted("revocations")) == (1, 1)
    assert (vault.get(grant.key, "access"), vault.get(grant.key, "refresh")) == (None, None)
    assert [line["token"] for line in logs if line["event"] == "token.never_taken_back"] == ["refresh_token"]
    assert given_back(database, mark) == ["refresh_token: false, ended true", "access_token: true"]


def given_back(engine: Engine, since: int) -> list[str]:
    """What the audit log says of every token: whether it is done, and whether it counts as ended all the same."""
    words = "details ->> 'token' || ': ' || (details ->> 'done') || coalesce(', ended ' || (details ->> 'ended'), '')"
    query = f"select {words} from sis.audit_log where action = 'token.revoke' and entry > {since} order by entry"
    with engine.connect() as connection:
        return list(connection.scalars(text(query)))


def test_a_token_that_cannot_be_given_back_keeps_no_other_from_it(vault: Vault, database: Engine, mark: int) -> None:
    grants = Script(refreshes=True, refusals=[unconfirmed()])
    keeper = tokens(vault, grants)
    keeper.accept(Token("t0", 3600, "r0"))
    keeper.accept(Token("t1", 3600, "r1"))
    change(database, "update sis.oauth_tokens set ciphertext = '\\x00' where kind = 'refresh'")
    with pytest.raises(ContractError):
        keeper.revoke()
    assert grants.given_back == [("t0", "access_token"), ("t1", "access_token")]
    with pytest.raises(ConfigError, match="was altered"):
        keeper.finish_revocations()
    assert grants.given_back[2:] == [("r0", "refresh_token")], "the first one's error was of the server's making"
    assert (pending(database), status(database)) == (1, "revoked")
    assert sorted(given_back(database, mark)) == ["access_token: true"] * 2 + ["refresh_token: false"] * 2 + ["refresh_token: true"]  # fmt: skip


def test_a_server_that_fails_for_one_token_again_and_again_is_asked_about_the_others_in_turn(
    vault: Vault, database: Engine
) -> None:
    """It may be down, so nothing more is asked of it now."""
    grants = Script(refreshes=True, refusals=[TransientError("down")])
    keeper = tokens(vault, grants)
    keeper.accept(Token("t0", 3600, "r0"))
    with pytest.raises(TransientError):
        keeper.revoke()
    assert grants.given_back == []
    grants.refusals = []
    assert keeper.finish_revocations() == 2
    assert [value for value, _ in grants.given_back] == ["t0", "r0"]


def test_a_grant_that_is_being_given_back_waits_for_a_person(vault: Vault) -> None:
    keeper = tokens(vault, Script(refreshes=True, refusals=[unconfirmed()]))
    keeper.accept(Token("t0", 3600, "r0"))
    with pytest.raises(ContractError):
        keeper.revoke()
    with pytest.raises(AuthRevokedError, match="has not confirmed") as caught:
        keeper.bearer()
    assert "sis oauth authorize lincoln" in caught.value.advice
    assert keeper.accept(Token("t1", 3600, "r1")).value == keeper.bearer().value == "t1"


# All integrations, seen from outside


@pytest.fixture
def registry(database: Engine) -> Iterator[Callable[..., None]]:
    def add(*keys: str, state: str = "healthy") -> None:
        for key in keys:
            values = f"('{key}', 'oneroster', 'd', '{{}}', '{state}')"
            change(
                database, f"insert into sis.integrations (key, provider, district, settings, status) values {values}"
            )

    yield add
    with database.begin() as connection:
        connection.execute(text("delete from sis.integrations"))


def stored(vault: Vault, key: str, kind: str, expires_in: float | None, **columns: object) -> None:
    with vault.engine.begin() as connection:
        vault.write(connection, key, kind, f"{kind} of {key}", expires_in=expires_in, **columns)


def test_health_says_what_is_wrong_and_what_to_do(
    vault: Vault, database: Engine, registry: Callable[..., None]
) -> None:
    registry("good", "dead", "person")
    vault.put("good", "client_secret", "s")
    stored(vault, "good", "access", 300)
    stored(vault, "dead", "access", -5, status="needs_reauth", failures=2, last_error="The client was refused.")
    stored(vault, "gone", "access", 300)
    stored(vault, "person", "refresh", None, status="needs_reauth")
    stored(vault, "person", "access", 10, failures=3, last_error="It was down.")
    with database.connect() as connection:
        health = {(it.integration, it.kind): it for it in token_health(connection)}
    assert health["good", "client_secret"].advice is None
    assert 290 < (health["good", "access"].expires_in or 0) <= 300
    sick = health["dead", "access"]
    assert (sick.status, sick.failures, sick.last_error) == ("needs_reauth", 2, "The client was refused.")
    assert sick.expires_in is not None
    assert sick.expires_in < 0
    assert "sis integration add dead --replace" in str(sick.advice)
    assert "sis oauth authorize person" in str(health["person", "refresh"].advice)
    assert "sis integration test person" in str(health["person", "access"].advice)
    assert "sis tokens cleanup" in str(health["gone", "access"].advice)
    assert "of good" not in repr(health)


def test_who_is_due(vault: Vault, database: Engine, registry: Callable[..., None]) -> None:
    registry("soon", "later", "over", "dead", "unused", "used", "ending", "empty", "brief", "failed", "rested", "busy")
    registry("paused", "paused-unused", state="paused")
    registry("refused", state="needs_reauth")
    stored(vault, "soon", "access", 1000, lifetime_seconds=3600)
    stored(vault, "later", "access", 1300, lifetime_seconds=3600)
    stored(vault, "over", "access", -1000, lifetime_seconds=3600)
    stored(vault, "dead", "access", 10, status="needs_reauth")
    for key in ("paused", "refused"):
        stored(vault, key, "access", 10, lifetime_seconds=3600)
    stored(vault, "brief", "access", 200, lifetime_seconds=900)
    for key, ago in (("failed", 230), ("rested", 250)):
        failed = {"failures": 2, "updated_at": text(f"sis.clock() - interval '{ago} seconds'")}
        stored(vault, key, "access", -1000, lifetime_seconds=3600, **failed)
    lease = {"lease_holder": "somebody", "lease_until": text("sis.clock() + interval '1 minute'")}
    stored(vault, "busy", "access", -1000, lifetime_seconds=3600, status="refreshing", **lease)
    week, day = text("sis.clock() - interval '8 days'"), text("sis.clock() - interval '1 day'")
    stored(vault, "unused", "refresh", None, last_refreshed_at=week)
    stored(vault, "paused-unused", "refresh", None, last_refreshed_at=week)
    stored(vault, "used", "refresh", None, last_refreshed_at=day)
    stored(vault, "ending", "refresh", 190, lifetime_seconds=1000, last_refreshed_at=day)
    with database.begin() as connection:
        vault.empty(connection, "empty", "access")
    with database.connect() as connection:
        assert due_for_refresh(connection, 500) == ["ending", "over", "rested", "soon", "unused"]
        assert due_for_refresh(connection, 0) == ["ending", "over", "rested", "unused"]


def test_a_revocation_that_is_stuck_keeps_no_token_from_being_replaced(
    vault: Vault, database: Engine, registry: Callable[..., None]
) -> None:
    registry(HOLDER)
    keeper = tokens(vault, Script(refreshes=True, refusals=[unconfirmed() for _ in range(4)]))
    keeper.accept(Token("t0", 3600, "r0"))
    keeper.accept(Token("t1", 3600, "r1"))
    for _ in range(2):
        with pytest.raises(ContractError):
            keeper.finish_revocations()
    with database.connect() as connection:
        assert pending_revocations(connection) == [], "they rest"
    expire(database)
    with database.connect() as connection:
        assert due_for_refresh(connection, 0) == [HOLDER]
    change(database, "update sis.oauth_tokens set failures = 1 where kind = 'access'")
    with database.connect() as connection:
        assert due_for_refresh(connection, 0) == [], "its own failure is another matter"


def test_cleaning_up(vault: Vault, database: Engine, registry: Callable[..., None], mark: int) -> None:
    registry("fresh", "over", "dead", "pending")
    stored(vault, "fresh", "access", 60)
    stored(vault, "over", "access", -7200)
    stored(vault, "dead", "access", -7200, status="needs_reauth", failures=1, last_error="refused")
    stored(vault, "pending", "access", -7200, status="revocation_pending")
    stored(vault, "dead", "refresh", None)
    for kind in ("client_secret", "access"):
        stored(vault, "gone", kind, 60, updated_at=text("sis.clock() - interval '2 hours'"))
    stored(vault, "just-added", "client_secret", None)
    for dry_run in (True, False):
        done = cleanup(vault, dry_run=dry_run)
        assert (done.emptied, done.deleted) == (2, {"gone": 2}), "a dry run says the same and does nothing"
    assert vault.get("over", "access") is None
    assert vault.get("dead", "access") is None
    assert vault.get("pending", "access") == "access of pending"
    assert vault.get("just-added", "client_secret") == "client_secret of just-added"
    assert one(database, "select status || failures from sis.oauth_tokens where integration = 'dead' and kind = 'access'") == "needs_reauth1"  # fmt: skip
    assert one(database, "select version from sis.oauth_tokens where integration = 'over'") == 2, "it goes on counting"
    again = cleanup(vault)
    assert (again.emptied, again.deleted) == (0, {})
    assert audited(database, mark) == ["token.delete"]
