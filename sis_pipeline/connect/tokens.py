"""The life of an integration's tokens: fetched or refreshed once for all processes, used, refused, ended, given back.
How a token is asked for is the protocol's business (oauth), how it is sealed the vault's; what all integrations' tokens
need, seen from outside, is in upkeep.

One access row per integration is what everybody agrees by, and its `version` is raised by every new token:

    active ──claim──▶ refreshing ──store──▶ active (version + 1)
                          │  ├──failed, may pass──▶ active (failures + 1)
                          │  └──refused, and nobody stored a newer version──▶ needs_reauth
                          └──holder gone or lease over──▶ claimed by the next process, which tries once
    revoke ──▶ revocation_pending ──the server said 200, or it is long over──▶ revoked

Beside the access and the refresh row, `access …` and `refresh …` rows hold what is still to be given back and has been
replaced already.

The claim is committed before the call, so that a process which dies between the server's answer and its own commit
leaves a trace: whether the server has replaced the refresh token is then unknown, and can't be known (two generals).
The next process tries the stored one, which a server with a grace period accepts; refused, a person must grant anew.
No transaction is open and no row is locked while a call is under way.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import stamina
import structlog
from sqlalchemy import Connection, Integer, Row, Select, case, func, literal, select, text, update
from sqlalchemy.exc import OperationalError

from sis_pipeline.connect.contract import Token
from sis_pipeline.connect.errors import AuthRevokedError, ConfigError, ContractError, SisError, TransientError
from sis_pipeline.connect.log import mask
from sis_pipeline.connect.vault import NOTHING, TOKENS, Vault, advice_for, seconds
from sis_pipeline.crashpoints import crash_point
from sis_pipeline.db import audit
from sis_pipeline.db.process import is_gone, this_process
from sis_pipeline.db.tables import oauth_tokens

if TYPE_CHECKING:
    from sis_pipeline.connect.oauth import Hint  # loading authlib takes longer than `sis health` may

log = structlog.get_logger(__name__)

T = TypeVar("T")

WINDOW = 600.0
"""Seconds before its end from which on a token is replaced, at most a fifth of its life: a window as long as the life
would mean a token call for every request."""
OF_LIFE = 0.2
EARLIEST, LATEST = 1.0, 0.8
"""The part of the window at which a process begins: each its own, so that they do not all come at once."""
LEASE = 120.0
"""Seconds that a token call may take, two attempts and the wait for a turn included."""
LONGEST_WAIT = 90.0
"""Seconds to wait for another process's token call, after which the call in hand has failed for the time being."""
POLL = 0.05
LOCK_WAIT = "30s"
"""Rows are locked for milliseconds; longer means that something else is wrong with the database."""
NOT_SENT = frozenset({"transient.left_alone", "rate_limited.turn_too_far"})
"""Codes of errors that mean that no call was made; they are not the token's failures."""
TYPE_REFUSED = "unsupported_token_type"
"""What a server answers that takes tokens of this kind from nobody (RFC 7009 2.2.1): asking again is of no use."""
SURELY_OVER = 86_400.0
"""Seconds after its end from which a token counts as ended although its server does not confirm that it is revoked:
where servers do not say how long one lives, its end is a guess (oauth.UNSAID_LIFETIME)."""
COOL_DOWN = 30.0
"""Seconds after a failed token call during which a token that still lives is used rather than asking again."""

WITHDRAWN = frozenset({"revocation_pending", "revoked"})

TABLE = oauth_tokens.c


@dataclass(frozen=True, slots=True)
class Bearer:
    """An access token that is good for a while; `version` tells whether two requests were made with the same one."""

    value: str = field(repr=False)
    version: int


class Grants(Protocol):
    """How this integration asks its server. Every method makes its call in turn with all others, and raises as
    oauth.TokenEndpoint."""

    @property
    def refreshes(self) -> bool:
        """Whether new tokens come from a refresh token, because a person granted access; else the credentials do."""

    @property
    def revocable(self) -> bool:
        """Whether the server takes tokens back. May have to ask it; raises as discovery does."""

    def fetch(self) -> Token: ...
    def refresh(self, refresh_token: str, granted: str | None) -> Token:
        """`granted`: the scope that is not to grow, None where it is not known."""

    def exchange(self, code: str, verifier: str, redirect_uri: str) -> Token: ...
    def revoke(self, token: str, hint: Hint) -> None: ...


@dataclass(frozen=True, slots=True)
class _Claim:
    """The right to make the next token call. `unsure`: the outcome of the call before is unknown, or it was refused."""

    version: int
    refresh_version: int | None
    until: Any
    refresh_token: str | None = field(repr=False)
    scope: str | None
    refused: str | None = field(repr=False)
    unsure: bool
    dead: bool


class Tokens:
    """The tokens of one integration. For one thread; any number of processes share them through the database."""

    def __init__(self, vault: Vault, integration: str, grants: Grants, *, share_of_window: float | None = None) -> None:
        self._vault = vault
        self._integration = integration
        self.grants = grants
        self._holder = this_process()
        self._query = _rows_of(integration, share_of_window or share_for(self._holder, integration))

    def bearer(self, refused: str | None = None) -> Bearer:
        """A token that is good for a while and is not `refused`, the one that the source just turned down.

        Raises AuthRevokedError, without a call, where the grant is known to be dead and the credentials are still the
        same; TransientError where another process takes too long; and what the call itself raises.
        """
        with self._vault.engine.connect() as connection:
            access, _ = self._rows(connection)
        return self._usable(access, refused) or self._renewed(refused)

    def refresh_now(self) -> Bearer:
        """A new token, whatever the stored one is like; a grant that is known to be dead is tried once more."""
        with self._vault.engine.connect() as connection:
            access, _ = self._rows(connection)
        held = None if access is None or access.empty else self._vault.unseal(access)
        return self._renewed(held, insist=True)

    def accept(self, token: Token, *, revocable: bool | None = None, actor: str | None = None) -> Bearer:
        """Keep what a person's authorization gave: everything the integration had before is replaced by it.

        Tokens that are replaced while they may still live are set aside, to be given back by `finish_revocations`
        where the server takes tokens back: RFC 7009 2.1 ends only what came from the same authorization.
        `revocable` is what `may_be_revocable` said before the code was exchanged. Without it the server may be asked
        now, and what was granted is lost where this process ends meanwhile.
        """
        if revocable is None:
            revocable = self.may_be_revocable()
        return _kept(lambda: self._accepted(token, actor, revocable=revocable))

    def _accepted(self, token: Token, actor: str | None, *, revocable: bool) -> Bearer:
        with self._vault.engine.begin() as connection:
            self._lock_soon(connection)
            before = self._replaced_by(token, self._rows(connection, lock=True))
            for row, secret in before if revocable else ():
                self._set_aside(connection, row, secret)
            version = self._save(connection, token, "active")
            if token.refresh is None:
                self._vault.empty(connection, self._integration, "refresh")
            details = {"version": version, "refresh_token": token.refresh is not None, "replaced": len(before)}
            self._audit(connection, "token.authorize", details, actor=actor)
        return Bearer(token.value, version)

    def may_be_revocable(self) -> bool:
        """Whether the server takes tokens back, as far as can be told; it may have to be asked."""
        try:
            return self.grants.revocable
        except SisError as error:  # the authorization in hand is good, whatever the server's metadata are like today
            log.warning("token.revocable_unknown", integration=self._integration, error=error.message)
            return True

    def _replaced_by(self, token: Token, rows: Iterable[Row[Any] | None]) -> list[tuple[Row[Any], str]]:
        """The rows that hold tokens of another grant, and which. A server may go on with the grant before, as the same
        refresh token shows; and a commit that succeeded without our hearing of it is repeated."""
        held = [(row, self._legible(row)) for row in rows if row is not None and not row.empty]
        if token.refresh in {secret for _, secret in held}:
            return []
        return [(row, secret) for row, secret in held if secret != token.value]

    def _legible(self, row: Row[Any]) -> str:
        """The secret, empty where it can't be opened: that must not stand in the way of what replaces it."""
        try:
            return self._vault.unseal(row)
        except ConfigError as error:
            log.warning("token.unreadable", integration=self._integration, error=error.message)
            return ""

    def _set_aside(self, connection: Connection, row: Row[Any], secret: str) -> None:
        """Keep a token that is being replaced in a row of its own, until it is given back."""
        kept: dict[str, Any] = {"expires_at": row.expires_at, "lifetime_seconds": row.lifetime_seconds}
        if row.status == "revocation_pending":  # it was tried before, and rests
            kept |= {"failures": row.failures, "last_error": row.last_error, "updated_at": row.updated_at}
        if secret:
            self._write_pending(connection, f"{row.kind} {row.version}", secret, **kept)

    def _write_pending(self, connection: Connection, kind: str, token: str, **columns: Any) -> None:
        self._vault.write(connection, self._integration, kind, token, status="revocation_pending", **columns)

    # Use: is the stored token good?

    def _rows(self, connection: Connection, *, lock: bool = False) -> tuple[Row[Any] | None, Row[Any] | None]:
        """The access and the refresh row, and what the database's clock says about them."""
        query = self._query.with_for_update() if lock else self._query
        found = {row.kind: row for row in connection.execute(query)}
        return found.get("access"), found.get("refresh")

    def _usable(self, row: Row[Any] | None, refused: str | None) -> Bearer | None:
        if row is None or row.status not in {"active", "refreshing"}:
            return None
        resting = row.failures > 0 and row.just_written
        if not row.lives or not (row.fresh or resting):
            return None
        return self._unrefused(row, refused)

    def _unrefused(self, row: Row[Any], refused: str | None) -> Bearer | None:
        token = self._vault.unseal(row)
        return None if token == refused else Bearer(token, row.version)

    # Renewal: claim, call, store

    def _renewed(self, refused: str | None, *, insist: bool = False) -> Bearer:
        until = time.monotonic() + LONGEST_WAIT
        try:
            while time.monotonic() < until:
                got = self._claimed(refused, insist=insist)
                if isinstance(got, _Claim):
                    got = self._called(got)
                if got is not None:
                    return got
                time.sleep(POLL * random.uniform(0.5, 1.5))  # noqa: S311  spreads load, guards nothing
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != "55P03":  # lock_not_available
                raise
        raise TransientError(
            f"Another process has been fetching a token for integration {self._integration!r} for too long.",
            code="transient.token_busy",
            integration=self._integration,
        )

    def _claimed(self, refused: str | None, *, insist: bool) -> Bearer | _Claim | None:
        """A sibling's token that has come meanwhile, the claim, or None while a sibling holds it."""
        with self._vault.engine.begin() as connection:
            self._lock_soon(connection)
            self._vault.ensure(connection, self._integration, "access")
            access, refresh = self._rows(connection, lock=True)
            if access is None:
                raise AssertionError("the row was made just now, and is locked")
            sibling = self._usable(access, refused)
            if sibling is not None:
                return sibling
            if access.status == "refreshing" and access.leased and not is_gone(access.lease_holder):
                return None
            if self.grants.refreshes and "revocation_pending" in {access.status, refresh and refresh.status}:
                raise self._withdrawn()
            if access.status == "revocation_pending":
                access = self._freed_for_another(connection, access)
            if access.status == "needs_reauth" and not insist:
                raise self._dead(access)
            lease = {"lease_holder": self._holder, "lease_until": func.sis.clock() + seconds(LEASE)}
            taken = self._set(connection, "access", status="refreshing", **lease)
            return _Claim(
                version=access.version,
                refresh_version=refresh and refresh.version,
                until=taken.lease_until,
                refresh_token=None if refresh is None or refresh.empty else self._vault.unseal(refresh),
                scope=refresh and refresh.scope,
                refused=refused,
                unsure=access.status in {"refreshing", "needs_reauth"},
                dead=access.status == "needs_reauth",
            )

    def _freed_for_another(self, connection: Connection, access: Row[Any]) -> Row[Any]:
        """The access row, empty. Credentials get a new token whenever one is needed, also while their server does not
        confirm that the one before is revoked; that one goes on waiting in a row of its own."""
        self._set_aside(connection, access, self._legible(access))
        self._vault.empty(connection, self._integration, "access")
        emptied, _ = self._rows(connection, lock=True)
        if emptied is None:
            raise AssertionError("the row was written just now, and is locked")
        return emptied

    def _called(self, claim: _Claim) -> Bearer | None:
        """The token that the call gave, or the one that a sibling stored meanwhile; None to look again."""
        crash_point("refresh.before_call")
        try:
            token = self._granted(claim)
        except AuthRevokedError as error:
            return self._refused(claim, error)
        except SisError as error:
            return self._failed(claim, error)
        except BaseException:
            self._let_go(claim)
            raise
        mask(token.value)
        mask(token.refresh or "")
        crash_point("refresh.after_response")
        bearer, surplus = _kept(lambda: self._stored(claim, token))
        if surplus and self.may_be_revocable():
            self._give_surplus_back(token)
        return bearer

    def _granted(self, claim: _Claim) -> Token:
        """The call. A refusal that names no reason may be a proxy's: it is believed the second time."""
        try:
            return self._asked(claim)
        except AuthRevokedError as refusal:
            if claim.unsure or refusal.context.get("oauth_error") is not None or refusal.context.get("status") is None:
                raise
        return self._asked(claim)

    def _asked(self, claim: _Claim) -> Token:
        if not self.grants.refreshes:
            return self.grants.fetch()
        if claim.refresh_token is None:
            raise AuthRevokedError(
                f"Integration {self._integration!r} has no refresh token: nobody has granted access yet, the grant was "
                "given back, or the server gave none.",
                code="auth_revoked.grant",
                advice=self._advice,
                integration=self._integration,
            )
        return self.grants.refresh(claim.refresh_token, claim.scope)

    def _stored(self, claim: _Claim, token: Token) -> tuple[Bearer | None, bool]:
        """Write the new tokens, both or neither, unless a sibling was quicker, whose token is used then; and whether
        they are of no use to anybody, and live.

        Whoever gave the tokens back, or is about to, while they were being replaced means the new ones, too.
        """
        with self._vault.engine.begin() as connection:
            self._lock_soon(connection)
            access, refresh = self._rows(connection, lock=True)
            if access is None:
                return None, False
            if access.version != claim.version:
                return self._overtaken(connection, claim, token, access, refresh)
            withdrawn = access.status in WITHDRAWN
            version = self._save(connection, token, "revocation_pending" if withdrawn else "active")
            details = {"version": version, "lifetime_seconds": round(token.lifetime), "after_failures": access.failures}
            details |= {"new_refresh_token": token.refresh is not None}
            if token.scope_excess:
                details["scope_excess"] = token.scope_excess
                log.warning("token.scope_grew", integration=self._integration, scopes=token.scope_excess)
            self._audit(connection, "token.refresh", details)
            crash_point("refresh.before_commit")
        crash_point("refresh.after_commit")
        return None if withdrawn else Bearer(token.value, version), False

    def _overtaken(
        self, connection: Connection, claim: _Claim, token: Token, access: Row[Any], refresh: Row[Any] | None
    ) -> tuple[Bearer | None, bool]:
        """As `_stored`, where the access row is not what was claimed. The refresh token that was used may be the stored
        one still: then the server knows only the new one from now on."""
        self._let_others(connection, claim, access)
        bearer = self._usable(access, claim.refused)
        if not self.grants.refreshes:
            return bearer, access.status in WITHDRAWN
        if refresh is not None and refresh.status in WITHDRAWN:
            return bearer, True
        if token.refresh is None or refresh is None or refresh.version != claim.refresh_version:
            return bearer, self._is_of_another_grant(connection, claim, token, refresh)
        scope: dict[str, Any] = {} if token.scope is None else {"scope": token.scope}
        refreshed: dict[str, Any] = {"last_refreshed_at": func.sis.clock(), "expires_in": token.refresh_expires_in}
        self._vault.write(connection, self._integration, "refresh", token.refresh, **refreshed, **scope)
        self._audit(connection, "token.refresh", {"new_refresh_token": True, "access_token_kept": False})
        return bearer, False

    def _let_others(self, connection: Connection, claim: _Claim, access: Row[Any]) -> None:
        """End a claim that outlasted what it was for: new credentials empty the row, and leave the claim."""
        if self._is_ours(access, claim) and access.version != claim.version:
            self._set(connection, "access", **_FREED, status="active")

    def _is_of_another_grant(
        self, connection: Connection, claim: _Claim, token: Token, refresh: Row[Any] | None
    ) -> bool:
        """Whether a person has granted access since the claim: what came of the grant before is of no use then. What a
        sibling has stored is of the same grant, which giving a surplus token back would end (RFC 7009 2.1); so is what
        goes on with the same refresh token."""
        if refresh is not None and not refresh.empty and self._legible(refresh) in {claim.refresh_token, token.refresh}:
            return False
        newest = audit.read(connection, subject=self._integration, action="token.authorize", limit=1)
        return any(entry["details"]["version"] > claim.version for entry in newest)

    def _give_surplus_back(self, token: Token) -> None:
        """Set new tokens aside that nobody uses, so that the server is asked to end them."""
        name = f"late {secrets.token_hex(4)}"

        def store() -> None:
            with self._vault.engine.begin() as connection:
                self._lock_soon(connection)
                self._write_pending(connection, f"access {name}", token.value, expires_in=token.expires_in)
                if token.refresh is not None:
                    lives = {"expires_in": token.refresh_expires_in}
                    self._write_pending(connection, f"refresh {name}", token.refresh, **lives)
                self._audit(connection, "token.revoke", {"token": "surplus", "done": False})

        _kept(store)

    def _save(self, connection: Connection, token: Token, status: str) -> int:
        """Where no new refresh token came, the old one stays (RFC 6749 5.1)."""
        now: dict[str, Any] = {"last_refreshed_at": func.sis.clock(), "status": status}
        scope: dict[str, Any] = {} if token.scope is None else {"scope": token.scope}
        version = self._vault.write(
            connection,
            self._integration,
            "access",
            token.value,
            expires_in=token.expires_in,
            lifetime_seconds=round(token.lifetime),
            **now,
            **scope,
        )
        if token.refresh is not None and self.grants.refreshes:
            lives = {"expires_in": token.refresh_expires_in}
            self._vault.write(connection, self._integration, "refresh", token.refresh, **lives, **now, **scope)
        elif self.grants.refreshes:
            self._set(connection, "refresh", failures=0, last_error=None, **_lives_anew(token), **now)
        return version

    def _failed(self, claim: _Claim, error: SisError) -> Bearer:
        """Note what may pass, and use the token that is still good for some minutes, if there is one."""
        left = None
        with self._vault.engine.begin() as connection:
            access = self._held(connection, claim)
            if access is not None:
                noted = {} if error.code in NOT_SENT else _failure(access, error)
                self._set(connection, "access", **_FREED, status="needs_reauth" if claim.dead else "active", **noted)
                left = self._unrefused(access, claim.refused) if access.lives and not claim.dead else None
                if noted and access.failures == 0:  # those that follow are counted, and told with the next success
                    details = {"error": error.code, "message": error.message}
                    self._audit(connection, "token.refresh_failed", details)
        if left is None:
            raise error
        log.warning("token.refresh_failed", integration=self._integration, error=error.message)
        return left

    def _refused(self, claim: _Claim, error: AuthRevokedError) -> Bearer | None:
        """Adopt what a sibling has stored meanwhile; else the grant is dead, which is said once, to a person."""
        with self._vault.engine.begin() as connection:
            self._lock_soon(connection)
            access, refresh = self._rows(connection, lock=True)
            if self._held(connection, claim) is None:
                # None where a sibling has taken over and is asking: it will know
                return self._usable(access, claim.refused) if access and access.version != claim.version else None
            for row in (access, refresh):
                if row is not None and row.status in {"active", "refreshing", "needs_reauth"}:
                    self._set(connection, row.kind, **_FREED, status="needs_reauth", **_failure(row, error))
            if not claim.dead:
                self._audit(connection, "token.needs_reauth", {"error": error.code, "message": error.message})
        if not claim.dead:
            log.error("token.needs_reauth", integration=self._integration, error=error.message, advice=self._advice)
        raise AuthRevokedError(error.message, code=error.code, advice=self._advice, **error.context) from None

    def _let_go(self, claim: _Claim) -> None:
        """The call was interrupted: its outcome is unknown, and others need not wait to find out."""
        with self._vault.engine.begin() as connection:
            self._lock_soon(connection)
            access, _ = self._rows(connection, lock=True)
            if access is not None and self._is_ours(access, claim):
                self._set(connection, "access", lease_until=func.sis.clock())

    def _held(self, connection: Connection, claim: _Claim) -> Row[Any] | None:
        """The access row, locked, where the claim is still ours and nothing was stored since."""
        self._lock_soon(connection)
        access, _ = self._rows(connection, lock=True)
        if access is None or not self._is_ours(access, claim):
            return None
        self._let_others(connection, claim, access)
        return access if access.version == claim.version else None

    def _is_ours(self, access: Row[Any], claim: _Claim) -> bool:
        return bool((access.lease_holder, access.lease_until) == (self._holder, claim.until))

    def _withdrawn(self) -> AuthRevokedError:
        return AuthRevokedError(
            f"The tokens of integration {self._integration!r} are being given back; the server has not confirmed it.",
            code="auth_revoked.revoking",
            advice=f"The server is asked again by itself; `sis tokens status` shows what it said. {self._advice}",
            integration=self._integration,
        )

    def _dead(self, row: Row[Any]) -> AuthRevokedError:
        return AuthRevokedError(
            f"The credentials of integration {self._integration!r} were refused, and are still the same: {row.last_error}",
            code="auth_revoked.grant" if self.grants.refreshes else "auth_revoked.client",
            advice=self._advice,
            integration=self._integration,
        )

    @property
    def _advice(self) -> str:
        return advice_for(self._integration, person=self.grants.refreshes)

    # The end: tokens are given back

    def revoke(self, *, actor: str | None = None) -> int:
        """Give all tokens back (RFC 7009), the refresh token first; how many. Done when this returns.

        Where the server does not confirm it, its error is raised, the rows stay `revocation_pending` and are not used
        any more; see `finish_revocations`. Where a person granted access, a person has to grant it anew afterwards;
        credentials fetch a new token when one is needed, confirmed or not. To be called before an integration is removed, as nobody
        could afterwards. Raises ConfigError, and changes nothing, where the server takes no tokens back.
        """
        if not self.grants.revocable:
            raise ConfigError(
                f"Integration {self._integration!r} has no revocation endpoint; its tokens were left as they are.",
                code="config.revocation",
                integration=self._integration,
            )
        until = time.monotonic() + LONGEST_WAIT
        while not self._marked_for_revocation():
            if time.monotonic() > until:
                raise TransientError(
                    f"Another process has been fetching a token for integration {self._integration!r} for too long.",
                    code="transient.token_busy",
                    integration=self._integration,
                )
            time.sleep(POLL)
        return self.finish_revocations(actor=actor)

    def _marked_for_revocation(self) -> bool:
        """False while another process is replacing what would be marked."""
        with self._vault.engine.begin() as connection:
            self._lock_soon(connection)
            rows = [row for row in self._rows(connection, lock=True) if row is not None]
            if any(row.status == "refreshing" and row.leased and not is_gone(row.lease_holder) for row in rows):
                return False
            for row in rows:
                if not row.empty:
                    self._set(connection, row.kind, **_FREED, status="revocation_pending")
        return True

    def finish_revocations(self, *, actor: str | None = None) -> int:
        """Give back what is still to be given back, also what was replaced; how many tokens.

        One that its server does not confirm counts as ended SURELY_OVER seconds after its end. What is wrong with one
        token keeps no other from being tried, and is raised at the end; where the server takes none now, the next call
        begins with those that failed least.
        """
        over = func.coalesce(TABLE.expires_at + seconds(SURELY_OVER) < func.sis.clock(), text("false")).label("over")
        query = select(oauth_tokens, over).where(
            TABLE.integration == self._integration, TABLE.status == "revocation_pending"
        )
        with self._vault.engine.connect() as connection:
            rows = connection.execute(query.order_by(TABLE.failures, TABLE.kind.desc())).all()  # refresh before access
        refused: list[SisError] = []
        for row in rows:
            try:
                self._give_back(row, actor)
            except (ConfigError, ContractError) as error:
                refused.append(error)
        if refused:
            raise refused[0]
        return len(rows)

    def _give_back(self, row: Row[Any], actor: str | None) -> None:
        hint: Hint = "refresh_token" if row.kind.startswith("refresh") else "access_token"
        details: dict[str, object] = {"token": hint, "done": True}
        try:
            self.grants.revoke(self._vault.unseal(row), hint)
        except SisError as error:
            details = {"token": hint, "done": False, "error": error.code, "message": error.message}
            never = error.context.get("oauth_error") == TYPE_REFUSED
            if not (row.over or never):
                self._note_unconfirmed(row, error, details, actor)
                raise
            if never:
                log.warning("token.never_taken_back", integration=self._integration, token=hint, error=error.message)
            details["ended"] = True
        with self._vault.engine.begin() as connection:
            locked = select(TABLE.version).where(TABLE.integration == self._integration, TABLE.kind == row.kind)
            if connection.scalar(locked.with_for_update()) != row.version:
                return  # replaced meanwhile by one that has to be given back as well
            if row.kind in TOKENS:
                self._vault.empty(connection, self._integration, row.kind, status="revoked")
            else:
                connection.execute(
                    oauth_tokens.delete().where(TABLE.integration == row.integration, TABLE.kind == row.kind)
                )
            self._audit(connection, "token.revoke", details, actor=actor)

    def _note_unconfirmed(
        self, row: Row[Any], error: SisError, details: Mapping[str, object], actor: str | None
    ) -> None:
        with self._vault.engine.begin() as connection:
            self._set(connection, row.kind, version=row.version, **_failure(row, error))
            if row.failures == 0:  # those that follow are counted
                self._audit(connection, "token.revoke", details, actor=actor)

    # Rows

    def _lock_soon(self, connection: Connection) -> None:
        connection.execute(text(f"set local lock_timeout = '{LOCK_WAIT}'"))

    def _set(self, connection: Connection, kind: str, *, version: int | None = None, **columns: object) -> Any:
        """Change columns beside the secret; the row, where there is one (of that version)."""
        change = update(oauth_tokens).where(TABLE.integration == self._integration, TABLE.kind == kind)
        if version is not None:
            change = change.where(TABLE.version == version)
        return connection.execute(change.values(columns).returning(oauth_tokens)).one_or_none()

    def _audit(
        self, connection: Connection, action: str, details: Mapping[str, object], *, actor: str | None = None
    ) -> None:
        """Last in its transaction: it takes the lock of the district's chain, for which all of its writers wait."""
        district = audit.district_of(connection, self._integration)
        audit.append(connection, action, self._integration, district=district, actor=actor, details=details)


_FREED: dict[str, Any] = {"lease_holder": None, "lease_until": None}


def _lives_anew(token: Token) -> dict[str, Any]:
    """The life of a refresh token that stays: as long from now as the server says now, else as it said when it gave it.
    Servers that end one after a time of disuse begin it anew with each use; an end that can't be moved is met anyway."""
    said = token.refresh_expires_in
    life: Any = TABLE.lifetime_seconds if said is None else literal(round(said), Integer)
    ends = case((TABLE.expires_at == NOTHING, NOTHING), else_=func.sis.clock() + seconds(1.0) * life)
    return {"expires_at": ends, "lifetime_seconds": life}


def _failure(row: Row[Any], error: SisError) -> dict[str, Any]:
    return {"failures": row.failures + 1, "last_error": error.message, "updated_at": func.sis.clock()}


def _kept(store: Callable[[], T]) -> T:
    """Store what exists nowhere else, although the database stumbles: the only good refresh token may be among it."""
    for attempt in stamina.retry_context(on=OperationalError, attempts=5, timeout=30.0, wait_initial=0.2):
        with attempt:
            return store()
    raise AssertionError("the last attempt returns or raises")


def _rows_of(integration: str, share_of_window: float) -> Select[Any]:
    """`empty`: holds nothing; `lives`: has not ended; `fresh`: not yet in its window; `leased`: the claim still counts."""
    window = func.least(seconds(WINDOW), seconds(1.0) * (TABLE.lifetime_seconds * OF_LIFE)) * literal(share_of_window)
    now = func.sis.clock()
    return (
        select(
            oauth_tokens,
            func.coalesce(TABLE.expires_at == NOTHING, text("false")).label("empty"),
            func.coalesce(TABLE.expires_at > now, text("true")).label("lives"),
            func.coalesce(TABLE.expires_at - window > now, TABLE.expires_at.is_(None)).label("fresh"),
            (TABLE.updated_at + seconds(COOL_DOWN) > now).label("just_written"),
            func.coalesce(TABLE.lease_until > now, text("false")).label("leased"),
        )
        .where(TABLE.integration == integration, TABLE.kind.in_(TOKENS))
        .order_by(TABLE.kind)
    )


def share_for(holder: str, integration: str) -> float:
    """The part of the window at which a process begins to replace a token: between 1.0 and 0.8, always the same."""
    return random.Random(f"{holder} {integration}").uniform(LATEST, EARLIEST)  # noqa: S311  spreads load
