"""The registry of integrations: which systems are connected, for which districts, with which settings and status.
Their secrets are the vault's; what is read from them, and how, is not known here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, get_args

from sqlalchemy import Connection, Engine, Row, select, text, update

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.db import audit
from sis_pipeline.db.tables import KEY_PATTERN, SCHEMA, integrations, oauth_tokens, snapshots
from sis_pipeline.store.locks import is_syncing

Status = Literal["healthy", "degraded", "needs_reauth", "failing", "paused"]
DISTRICT_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}"
"""Districts name folders, too: LEA ids and slugs, nothing that could traverse or separate."""
NOW = text(f"{SCHEMA}.clock()")


@dataclass(frozen=True, slots=True)
class Integration:
    """One connection to one SIS. `priority`: lower wins. `organisations`: organisation sis_id -> district."""

    key: str
    provider: str
    district: str
    organisations: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 100
    status: Status = "healthy"
    status_reason: str | None = None

    @property
    def paused(self) -> bool:
        return self.status == "paused"

    @property
    def districts(self) -> frozenset[str]:
        """Every district it may deliver for."""
        return frozenset({self.district, *self.organisations.values()})


def check_key(key: str) -> str:
    """The key itself. Raises ConfigError unless it is a slug: it becomes a partition key, a folder and a run tag."""
    if not re.fullmatch(KEY_PATTERN.strip("^$"), key):
        raise ConfigError(
            f"{key[:80]!r} can't be the key of an integration.",
            advice="Use 1 to 63 lower-case letters, digits and hyphens, a letter or digit first, as in lincoln-ps.",
        )
    return key


def check_district(district: str) -> str:
    """The district itself. Raises ConfigError unless it is usable as a folder name."""
    if not re.fullmatch(DISTRICT_PATTERN, district):
        raise ConfigError(
            f"{district[:80]!r} can't be the id of a district.",
            advice="Use 1 to 63 letters, digits, hyphens and underscores, a letter or digit first.",
        )
    return district


def district_of(integration: Integration, organisation: str | None) -> str:
    """The district of an organisation of an integration: as mapped, else the integration's own."""
    return integration.organisations.get(organisation or "", integration.district)


class Integrations:
    """The integrations of this installation."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, integration: Integration, *, actor: str | None = None, replace: bool = False) -> Integration:
        """Add an integration, or change it with `replace`; a paused one stays paused.

        Raises ConfigError for a bad key, district or settings, for a key that exists (without `replace`) and for
        another provider under an existing key, whose snapshots it could not read.
        """
        check_key(integration.key)
        for district in integration.districts:
            check_district(district)
        with self._engine.begin() as connection:
            before = _find(connection, integration.key, lock=True)
            if before and not replace:
                raise ConfigError(
                    f"There is an integration {integration.key} already ({before.provider}, {before.district}).",
                    advice="Choose another key, or add --replace to change it.",
                )
            if before and before.provider != integration.provider:
                raise ConfigError(
                    f"{integration.key} is a {before.provider} integration; it can't become {integration.provider}.",
                    advice="Choose another key for the new system, and pause and remove this one if it is gone.",
                )
            _check_settings(integration)
            self._save(connection, integration, before)
            audit.append(
                connection,
                "integration.replace" if before else "integration.add",
                integration.key,
                district=integration.district,
                actor=actor,
                details=_changes(integration, before),
            )
        return self.get(integration.key)

    def get(self, key: str) -> Integration:
        """Raises ConfigError, with the names that come near, where there is none."""
        with self._engine.connect() as connection:
            return _get(connection, key)

    def list(
        self, provider: str | None = None, district: str | None = None, *, include_paused: bool = True
    ) -> list[Integration]:
        """By key. `district`: those that may deliver for it."""
        with self._engine.connect() as connection:
            found = all_of(connection)
        return [
            one
            for one in found
            if (provider in (None, one.provider))
            and (district is None or district in one.districts)
            and (include_paused or not one.paused)
        ]

    def pause(self, key: str, actor: str | None = None, reason: str | None = None) -> Integration:
        """Stop syncing it. Its last good snapshot still takes part in merges: pausing withdraws nobody."""
        return self._mark(key, "paused", reason or "paused by a person", "integration.pause", actor)

    def resume(self, key: str, actor: str | None = None) -> Integration:
        """Sync it again. Raises ConfigError where it is not paused."""
        if not self.get(key).paused:
            raise ConfigError(f"{key} is not paused.", advice="Nothing needs to be done.")
        return self._mark(key, "healthy", None, "integration.resume", actor)

    def set_status(self, key: str, status: Status, reason: str | None = None) -> None:
        """Note how the connection does. A paused integration stays paused: only `resume` ends that."""
        if status not in get_args(Status) or status == "paused":
            raise ConfigError(f"{status!r} is no status of a connection; pause with `pause`.")
        with self._engine.begin() as connection:
            _get(connection, key)
            connection.execute(
                update(integrations)
                .where(integrations.c.key == key, integrations.c.status != "paused")
                .values(status=status, status_reason=reason)
            )

    def remove(self, key: str, actor: str | None = None, *, force: bool = False) -> None:
        """Forget a paused integration and delete its secrets and tokens, for good.

        Its snapshots, published rows, links and ledger stay. It takes no further part in merges, and what it
        published is left as it was: an integration that is gone proves nobody's absence. Raises ConfigError where it
        is not paused, or is being synced right now (unless `force`).
        """
        with self._engine.begin() as connection:
            found = _get(connection, key, lock=True)
            if not found.paused:
                raise ConfigError(f"{key} is not paused.", advice=f"Run `sis integration pause {key}` first.")
            if not force and (years := _syncing(connection, key)):
                raise ConfigError(
                    f"{key} is being synced for {', '.join(years)} right now.",
                    advice="Wait for the sync to end, then remove it again.",
                )
            tokens = connection.execute(oauth_tokens.delete().where(oauth_tokens.c.integration == key)).rowcount
            connection.execute(integrations.delete().where(integrations.c.key == key))
            audit.append(
                connection,
                "integration.remove",
                key,
                district=found.district,
                actor=actor,
                details={"provider": found.provider, "tokens_deleted": tokens, "forced": force},
            )

    def _mark(self, key: str, status: Status, reason: str | None, action: str, actor: str | None) -> Integration:
        with self._engine.begin() as connection:
            found = _get(connection, key, lock=True)
            connection.execute(
                update(integrations).where(integrations.c.key == key).values(status=status, status_reason=reason)
            )
            details = {"reason": reason} if reason else {}
            audit.append(connection, action, key, district=found.district, actor=actor, details=details)
        return self.get(key)

    @staticmethod
    def _save(connection: Connection, integration: Integration, before: Integration | None) -> None:
        values = {
            "district": integration.district,
            "organisations": dict(integration.organisations),
            "settings": dict(integration.settings),
            "priority": integration.priority,
        }
        if before is None:
            connection.execute(
                integrations.insert().values(key=integration.key, provider=integration.provider, **values)
            )
            return
        status = {} if before.paused else {"status": "healthy", "status_reason": None}
        connection.execute(
            update(integrations).where(integrations.c.key == integration.key).values(**values, **status, updated_at=NOW)
        )


def all_of(connection: Connection) -> list[Integration]:
    """Every integration, by key."""
    return [_integration(row) for row in connection.execute(select(integrations).order_by(integrations.c.key))]


def _check_settings(integration: Integration) -> None:
    from sis_pipeline.providers.registry import make  # loads every provider; only adding one needs them

    make(integration.provider, dict(integration.settings))


def _changes(integration: Integration, before: Integration | None) -> dict[str, object]:
    """What an audit row says: the names of changed settings, never their values."""
    old = before.settings if before else {}
    new = integration.settings
    return {
        "provider": integration.provider,
        "priority": integration.priority,
        "settings": sorted(name for name in {*old, *new} if old.get(name) != new.get(name)),
        "districts": sorted(integration.districts),
    }


def _find(connection: Connection, key: str, *, lock: bool = False) -> Integration | None:
    query = select(integrations).where(integrations.c.key == key)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    return _integration(row) if row else None


def _get(connection: Connection, key: str, *, lock: bool = False) -> Integration:
    found = _find(connection, check_key(key), lock=lock)
    if found is None:
        known = list(connection.scalars(select(integrations.c.key).order_by(integrations.c.key)))
        near = get_close_matches(key, known, n=3, cutoff=0.5)
        advice = f"Did you mean {' or '.join(near)}?" if near else "`sis integration list` shows those there are."
        raise ConfigError(f"There is no integration {key}.", advice=advice)
    return found


def _syncing(connection: Connection, key: str) -> list[str]:
    years = connection.scalars(
        select(snapshots.c.school_year)
        .where(snapshots.c.integration == key, snapshots.c.finished_at.is_(None))
        .distinct()
    ).all()
    return sorted(year for year in years if is_syncing(connection, key, year))


def _integration(row: Row[Any]) -> Integration:
    return Integration(
        key=row.key,
        provider=row.provider,
        district=row.district,
        organisations=row.organisations,
        settings=row.settings,
        priority=row.priority,
        status=row.status,
        status_reason=row.status_reason,
    )
