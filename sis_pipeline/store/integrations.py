"""The registry of integrations: which systems are connected, for which districts, with which settings and status.
Their secrets are the vault's; what is read from them, and how, is not known here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from sqlalchemy import Connection, Engine, Row, Update, select, text, update

from sis_pipeline.connect.errors import ConfigError, SisError
from sis_pipeline.db import audit
from sis_pipeline.db.tables import KEY_PATTERN, SCHEMA, integrations, oauth_tokens, snapshots
from sis_pipeline.store.locks import is_syncing, lock_key
from sis_pipeline.store.status import STATUS_OF, Status, next_status, status_after_test

DISTRICT_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}"
"""Districts name folders, too: LEA ids and slugs, nothing that could traverse or separate."""
NOW = text(f"{SCHEMA}.clock()")


@dataclass(frozen=True, slots=True)
class Integration:
    """One connection to one SIS. `priority`: lower wins. `organisations`: organisation sis_id -> district.

    What is below `priority` is noted by the pipeline, and not saved from here: `failures` are the syncs that failed since
    the last good one, `source_identity` the ids of the districts whose data the system gives, as it names them itself.
    """

    key: str
    provider: str
    district: str
    organisations: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 100
    status: Status = "healthy"
    status_reason: str | None = None
    status_since: datetime | None = None
    failures: int = 0
    last_success_at: datetime | None = None
    source_identity: frozenset[str] = frozenset()

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
            code="config.bad_name",
            advice="Use 1 to 63 lower-case letters, digits and hyphens, a letter or digit first, as in lincoln-ps.",
        )
    return key


def check_district(district: str) -> str:
    """The district itself. Raises ConfigError unless it is usable as a folder name."""
    if not re.fullmatch(DISTRICT_PATTERN, district):
        raise ConfigError(
            f"{district[:80]!r} can't be the id of a district.",
            code="config.bad_name",
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
                    code="config.integration_exists",
                    advice="Choose another key, or add --replace to change it.",
                )
            if before and before.provider != integration.provider:
                raise ConfigError(
                    f"{integration.key} is a {before.provider} integration; it can't become {integration.provider}.",
                    code="config.other_provider",
                    advice="Choose another key for the new system, and pause and remove this one if it is gone.",
                )
            _check_settings(integration)
            healed = self._save(connection, integration, before)
            done = audit.Entry(
                "integration.replace" if before else "integration.add",
                integration.key,
                integration.district,
                _changes(integration, before),
            )
            audit.append_all(connection, [*healed, done], actor=actor)
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
            raise ConfigError(f"{key} is not paused.", code="config.not_paused", advice="Nothing needs to be done.")
        return self._mark(key, "healthy", None, "integration.resume", actor)

    def note_sync(self, key: str, error: SisError | None, *, counts: bool = True) -> Integration:
        """Keep what a sync that came to its end (`error` None), or failed, says of the connection; see store.status.

        `counts` is false for a sync that failed before and was tried again: it counts as one failure.
        """
        with self._engine.begin() as connection:
            found = _get(connection, key, lock=True)
            failures = 0 if error is None else found.failures + counts
            counted: dict[str, Any] = {"failures": failures}
            if error is None:
                counted["last_success_at"] = NOW
            connection.execute(update(integrations).where(integrations.c.key == key).values(**counted))
            status = next_status(found.status, failures, error.error_class if error else None)
            _change_status(connection, found, status, _reason(found, status, error))
        return self.get(key)

    def note_test(self, key: str, error: SisError | None) -> Integration:
        """Keep what a test of the credentials says of the connection; it heals what only credentials can cause."""
        with self._engine.begin() as connection:
            found = _get(connection, key, lock=True)
            status = status_after_test(found.status, error.error_class if error else None)
            if status != found.status:
                _change_status(connection, found, status, _reason(found, status, error))
        return self.get(key)

    def credentials_changed(self, key: str) -> Integration:
        """New credentials were stored: what was refused before is tried again. What else is wrong stays as it is."""
        with self._engine.begin() as connection:
            found = _get(connection, key, lock=True)
            if found.status == "needs_reauth":
                _change_status(connection, found, "healthy", None)
        return self.get(key)

    def recognise(self, key: str, districts: frozenset[str]) -> None:
        """Compare whose data a system gives (see Provider.whose) with whose it gave first; keep it the first time.

        Raises ConfigError `config.wrong_district` where another district's students could be taken for this
        integration's: for a district that was not there before, for none at all where there were some, and, the first
        time, for one whose data an integration of other districts of ours gives. One of several that is missing is no
        harm, and a system that never said whose its data are can't be compared. `trust` overrides all of that.
        """
        with self._engine.begin() as connection:
            found = _get(connection, key, lock=True)
            if found.source_identity:
                _check_same(found, districts)
            elif districts:
                _check_unclaimed(connection, found, districts)
                _keep_identity(connection, found, districts, "integration.identity")

    def trust(self, key: str, districts: frozenset[str], actor: str | None = None) -> Integration:
        """A person says that these districts are the right ones; earlier ones that are not among them no longer are."""
        with self._engine.begin() as connection:
            found = _get(connection, key, lock=True)
            if districts != found.source_identity:
                _keep_identity(connection, found, districts, "integration.trust", actor)
        return self.get(key)

    def check_removable(self, key: str) -> Integration:
        """Raises ConfigError as `remove`: for whoever has something to do before, which could not be undone."""
        with self._engine.begin() as connection:
            return _removable(connection, key, force=False)

    def remove(self, key: str, actor: str | None = None, *, force: bool = False) -> None:
        """Forget a paused integration and delete its secrets and tokens, for good.

        Its snapshots, published rows, links and ledger stay. It takes no further part in merges, and what it
        published is left as it was: an integration that is gone proves nobody's absence. Raises ConfigError where it
        is not paused, or is being synced right now (unless `force`).
        """
        with self._engine.begin() as connection:
            found = _removable(connection, key, force=force)
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
            connection.execute(_status_values(found, status, reason).values(failures=0))
            details = {"reason": reason} if reason else {}
            audit.append(connection, action, key, district=found.district, actor=actor, details=details)
        return self.get(key)

    @staticmethod
    def _save(connection: Connection, integration: Integration, before: Integration | None) -> Sequence[audit.Entry]:
        """What the audit log is to say of its status: in the chain of the district it had before."""
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
            return []
        connection.execute(
            update(integrations).where(integrations.c.key == integration.key).values(**values, updated_at=NOW)
        )
        if before.paused:
            return []
        connection.execute(update(integrations).where(integrations.c.key == integration.key).values(failures=0))
        return _write_status(connection, before, "healthy", None)


def all_of(connection: Connection) -> list[Integration]:
    """Every integration, by key."""
    return [_integration(row) for row in connection.execute(select(integrations).order_by(integrations.c.key))]


def in_words(districts: frozenset[str]) -> str:
    """The ids of districts as a person reads them; a state-wide system has hundreds."""
    shown = ", ".join(sorted(districts)[:5])
    return f"{shown} and {len(districts) - 5} more" if len(districts) > 5 else shown


def _reason(found: Integration, status: Status, error: SisError | None) -> str | None:
    """Why the status is what it is: the newest error, unless an older and graver one or a person still decides."""
    stays = status == found.status
    if status == "paused" or (stays and error is not None and STATUS_OF[error.error_class] != status):
        return found.status_reason
    return error.message if error else None


def _change_status(connection: Connection, found: Integration, status: Status, reason: str | None) -> None:
    audit.append_all(connection, _write_status(connection, found, status, reason))


def _write_status(connection: Connection, found: Integration, status: Status, reason: str | None) -> list[audit.Entry]:
    """Write a status and its reason; what the audit log is to say of it, which is nothing but a change of status."""
    if (status, reason) == (found.status, found.status_reason):
        return []
    connection.execute(_status_values(found, status, reason))
    if status == found.status:
        return []
    details = {"from": found.status, "to": status} | ({"reason": reason} if reason else {})
    return [audit.Entry("integration.status", found.key, found.district, details)]


def _status_values(found: Integration, status: Status, reason: str | None) -> Update:
    since = {"status_since": NOW} if status != found.status else {}
    values = {"status": status, "status_reason": reason, **since}
    return update(integrations).where(integrations.c.key == found.key).values(**values)


def _check_same(found: Integration, districts: frozenset[str]) -> None:
    known = in_words(found.source_identity)
    if not districts:
        raise ConfigError(
            f"Integration {found.key!r} no longer says whose data it gives; until now it was district {known}. "
            "Nothing was read.",
            code="config.wrong_district",
            advice="Check the credentials and the address. If the system is the right one and names no district any more, "
            f"run `sis integration trust {found.key}`.",
            integration=found.key,
        )
    if new := districts - found.source_identity:
        raise ConfigError(
            f"Integration {found.key!r} answers with the data of district {in_words(new)}; until now it was {known}. "
            "Nothing was read.",
            code="config.wrong_district",
            integration=found.key,
        )


def _check_unclaimed(connection: Connection, found: Integration, districts: frozenset[str]) -> None:
    """Integrations that have a district of ours in common may name the same one: its second system, or a consortium's
    whose organisations are mapped. Until the transaction ends nobody else keeps a first answer."""
    connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": lock_key("identity")})
    for other in all_of(connection):
        shared = districts & other.source_identity
        if shared and not other.districts & found.districts:
            raise ConfigError(
                f"Integration {found.key!r} of {found.district} answers with the data of district {in_words(shared)}, "
                f"which integration {other.key!r} of {other.district} gives already. Nothing was read.",
                code="config.wrong_district",
                advice="One of the two probably has the other's credentials or address: check both. Where one system "
                f"rightly serves both districts, as at a consortium, run `sis integration trust {found.key}` once.",
                integration=found.key,
            )


def _keep_identity(
    connection: Connection, found: Integration, districts: frozenset[str], action: str, actor: str | None = None
) -> None:
    kept = " ".join(sorted(districts)) or None
    connection.execute(update(integrations).where(integrations.c.key == found.key).values(source_identity=kept))
    old = in_words(found.source_identity) or None
    audit.append(
        connection,
        action,
        found.key,
        district=found.district,
        actor=actor,
        details={"from": old, "to": in_words(districts) or None},
    )


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
        raise ConfigError(f"There is no integration {key}.", code="config.no_integration", advice=advice)
    return found


def _removable(connection: Connection, key: str, *, force: bool) -> Integration:
    found = _get(connection, key, lock=True)
    if not found.paused:
        raise ConfigError(
            f"{key} is not paused.",
            code="config.not_paused",
            advice=f"Run `sis integration pause {key}` first.",
        )
    if not force and (years := _syncing(connection, key)):
        raise ConfigError(
            f"{key} is being synced for {', '.join(years)} right now.",
            code="config.syncing",
            advice="Wait for the sync to end, then remove it again.",
        )
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
        status_since=row.status_since,
        failures=row.failures,
        last_success_at=row.last_success_at,
        source_identity=frozenset((row.source_identity or "").split()),
    )
