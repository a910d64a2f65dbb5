"""What the tokens of all integrations are like and need: their health, who is due, what is to be given back, cleaning up.
Plain data read from rows, without opening a secret; the life of one integration's tokens is in tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, exists, func, or_, select, text

from sis_pipeline.connect.tokens import OF_LIFE, TABLE, WINDOW
from sis_pipeline.connect.vault import INSTALLATION, NOTHING, TOKENS, Vault, advice_for, seconds
from sis_pipeline.db import audit
from sis_pipeline.db.tables import integrations, oauth_tokens

DISUSE = 7 * 86_400.0
"""Seconds after which a refresh token that was not used is used: some servers end one after 14 days of disuse."""
LONGEST_PAUSE = 3600.0
"""Seconds between two attempts of the background job at a token that fails again and again."""
SETTLED = 3600.0
"""Seconds for which a row is left alone before it is cleaned up: its integration may be just being added."""


@dataclass(frozen=True, slots=True)
class TokenHealth:
    """One secret or token. `expires_in` in seconds, negative once over, None where it does not expire or is empty;
    `stored` whether there is anything in it; `advice` what a person should do, None where that is nothing."""

    integration: str
    kind: str
    status: str
    stored: bool
    expires_in: float | None
    last_refreshed_at: datetime | None
    failures: int
    last_error: str | None
    key_id: str
    scope: str | None
    advice: str | None

    @property
    def waits_for_a_person(self) -> bool:
        """Nobody else can mend it; what fails otherwise is tried again by itself."""
        return self.advice is not None and self.status in {"needs_reauth", "revoked"}


def token_health(connection: Connection) -> list[TokenHealth]:
    """Every stored secret and token, by integration and kind."""
    expires_in = func.extract("epoch", TABLE.expires_at - func.sis.clock()).label("expires_in")
    granted = select(TABLE.integration).where(TABLE.kind == "refresh")
    query = select(
        oauth_tokens,
        expires_in,
        func.coalesce(TABLE.expires_at == NOTHING, text("false")).label("empty"),
        TABLE.integration.in_(granted).label("person"),
        _has_integration().label("known"),
    ).order_by(TABLE.integration, TABLE.kind)
    return [_health(row) for row in connection.execute(query)]


def _health(row: Row[Any]) -> TokenHealth:
    return TokenHealth(
        integration=row.integration,
        kind=row.kind,
        status=row.status,
        stored=not row.empty,
        expires_in=None if row.expires_in is None or row.empty else float(row.expires_in),
        last_refreshed_at=row.last_refreshed_at,
        failures=row.failures,
        last_error=row.last_error,
        key_id=row.key_id,
        scope=row.scope,
        advice=_advice(row),
    )


def _advice(row: Row[Any]) -> str | None:
    if not row.known:
        return "It belongs to no integration: `sis tokens cleanup` deletes it."
    if row.status == "needs_reauth":
        return advice_for(row.integration, person=row.person)
    if row.status == "revocation_pending":
        return "The server has not confirmed that it is revoked. It is tried again; see the last error."
    if row.status == "revoked" and row.person:
        return advice_for(row.integration, person=True)
    if row.failures:
        return f"It is tried again when it is needed. If it lasts, run `sis integration test {row.integration}`."
    return None


def due_for_refresh(connection: Connection, ahead: float) -> list[str]:
    """The integrations whose token should be replaced now, to be warm when it is needed.

    Those whose access token comes within its refresh window, or ends, within `ahead` seconds; and those whose refresh
    token was not used for DISUSE, or has less than a fifth of a known life left: a person would have to grant access
    anew. Left out are integrations that are paused or wait for a person, dead grants, tokens that somebody is replacing,
    those that failed a moment ago (see `_rests`), and access tokens that live less than twice `ahead`, which would be
    replaced at every look.
    """
    now = func.sis.clock()
    window = func.least(seconds(WINDOW), seconds(1.0) * (TABLE.lifetime_seconds * OF_LIFE))
    ends = and_(
        TABLE.kind == "access",
        TABLE.expires_at != NOTHING,
        TABLE.expires_at - window < now + seconds(ahead),
        TABLE.lifetime_seconds > 2 * ahead,
    )
    forgotten = and_(
        TABLE.kind == "refresh",
        func.coalesce(TABLE.expires_at != NOTHING, text("true")),
        or_(
            func.coalesce(TABLE.last_refreshed_at, TABLE.updated_at) < now - seconds(DISUSE),
            TABLE.expires_at - seconds(1.0) * (TABLE.lifetime_seconds * OF_LIFE) < now,
        ),
    )
    # What was replaced, and rests until it is given back, says nothing of the tokens that are used.
    kept_from = select(TABLE.integration).where(TABLE.kind.in_(TOKENS), or_(_rests(), TABLE.lease_until > now))
    query = (
        select(TABLE.integration)
        .join(integrations, integrations.c.key == TABLE.integration)
        .where(
            or_(ends, forgotten),
            TABLE.status.in_(("active", "refreshing")),
            integrations.c.status.not_in(("paused", "needs_reauth")),
            TABLE.integration.not_in(kept_from),
        )
    )
    return list(connection.scalars(query.distinct().order_by(TABLE.integration)))


def pending_revocations(connection: Connection) -> list[str]:
    """The integrations with tokens to be given back again, because the server has not confirmed it, after a pause;
    `Tokens.finish_revocations` asks."""
    query = select(TABLE.integration).join(integrations, integrations.c.key == TABLE.integration)
    resting = select(TABLE.integration).where(TABLE.status == "revocation_pending", _rests())
    pending = query.where(TABLE.status == "revocation_pending", TABLE.integration.not_in(resting))
    return list(connection.scalars(pending.distinct().order_by(TABLE.integration)))


def _rests() -> ColumnElement[bool]:
    """After the first failure two minutes, doubled with each that follows, at most LONGEST_PAUSE."""
    pause = func.least(60 * func.power(2, func.least(TABLE.failures, 10)), LONGEST_PAUSE)
    return and_(TABLE.failures > 0, TABLE.updated_at + seconds(1.0) * pause > func.sis.clock())


@dataclass(frozen=True, slots=True)
class Cleaned:
    """`emptied`: access tokens that were over. `deleted`: rows of integrations that are gone, by integration."""

    emptied: int
    deleted: dict[str, int]


def cleanup(vault: Vault, *, dry_run: bool = False, actor: str | None = None) -> Cleaned:
    """Empty access tokens that ended over an hour ago, and delete rows whose integration is gone.

    An emptied row stays, because its version goes on counting: a reading that is resumed compares versions. Tokens
    that are to be given back are left alone while their integration is there to do it. `dry_run` undoes it all.
    """
    settled = func.sis.clock() - seconds(SETTLED)
    over = select(oauth_tokens).where(
        TABLE.kind == "access",
        TABLE.status.in_(("active", "needs_reauth")),
        TABLE.expires_at != NOTHING,
        TABLE.expires_at < settled,
        _has_integration(),
    )
    orphaned = delete(oauth_tokens).where(~_has_integration(), TABLE.updated_at < settled)
    with vault.engine.begin() as connection:
        rows = connection.execute(over.order_by(TABLE.integration).with_for_update(skip_locked=True)).all()
        for row in rows:
            kept = {"status": row.status, "failures": row.failures, "last_error": row.last_error}
            vault.empty(connection, row.integration, row.kind, **kept)
        deleted = Counter(connection.scalars(orphaned.returning(TABLE.integration)))
        if dry_run:
            connection.rollback()
        elif rows or deleted:
            counts = {"emptied": len(rows), "deleted": dict(deleted)}
            audit.append(connection, "token.delete", "cleanup", actor=actor, details=counts)
    return Cleaned(len(rows), dict(deleted))


def _has_integration() -> ColumnElement[bool]:
    return or_(TABLE.integration == INSTALLATION, exists().where(integrations.c.key == TABLE.integration))
