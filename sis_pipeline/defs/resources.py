"""What a run works with: the installation (database, vault, stores) and one resource per registered provider.
Nothing is configured in Dagster: settings come from the environment, an integration's own from its row, secrets from the vault."""

# No `from __future__ import annotations` here: Dagster reads the resources' annotations and wants the classes themselves.

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import dagster as dg
from sqlalchemy import Engine

from sis_pipeline.connect import log
from sis_pipeline.connect.contract import Answer, Request, Source
from sis_pipeline.connect.errors import ConfigError, InternalError
from sis_pipeline.connect.keys import Keys
from sis_pipeline.connect.retry import RetryBudget
from sis_pipeline.connect.source import HttpSource, Report, open_source, report
from sis_pipeline.connect.vault import Vault
from sis_pipeline.db import migrate
from sis_pipeline.db.engine import open_database
from sis_pipeline.providers import registry
from sis_pipeline.providers.base import HttpSettings, Provider
from sis_pipeline.settings import Settings
from sis_pipeline.store.holds import Holds
from sis_pipeline.store.integrations import Integration, Integrations
from sis_pipeline.store.merged import MergeStore
from sis_pipeline.store.snapshots import SnapshotStore

ROSTER = "roster"
"""The key of the installation's resource; a provider's resource has the provider's name."""


class Roster(dg.ConfigurableResource):
    """This installation, as `SIS_*` describes it at run time; every part is opened when first needed."""

    @cached_property
    def settings(self) -> Settings:
        """What the environment says; logs are written as it wants from then on."""
        settings = Settings()
        log.configure(settings.log_format, level=settings.log_level)
        return settings

    @cached_property
    def engine(self) -> Engine:
        """The database, its schema up to date."""
        engine = open_database(self.settings)
        migrate.upgrade(engine)
        return engine

    @cached_property
    def vault(self) -> Vault:
        return Vault.open(self.engine, Keys.from_settings(self.settings))

    @cached_property
    def integrations(self) -> Integrations:
        return Integrations(self.engine)

    @cached_property
    def snapshots(self) -> SnapshotStore:
        return SnapshotStore(self.engine, self.settings.data_url)

    @cached_property
    def merges(self) -> MergeStore:
        return MergeStore(self.engine, self.snapshots)

    @cached_property
    def holds(self) -> Holds:
        return Holds(self.engine)

    def close(self) -> None:
        engine = self.__dict__.pop("engine", None)
        if engine is not None:
            engine.dispose()

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002 dagster's signature
        self.close()


@dataclass(frozen=True, slots=True)
class Traffic:
    """What went through an integration's doors so far; see HttpSource. Seconds are summed over all doors."""

    calls: int
    token_calls: int
    throttled: int
    waited_seconds: float


@dataclass(frozen=True)
class Connection:
    """An integration that is open: who it is, its provider with its settings, and the door to its system.

    `others` are further doors to it, one for each collection that is read at the same time: a door serves one thread,
    and doors share tokens and limits through the database, as processes do.
    """

    integration: Integration
    provider: Provider
    source: Source
    others: tuple[Source, ...] = ()

    @property
    def traffic(self) -> Traffic | None:
        """None for a source that is read without HTTP (files)."""
        doors = self._doors
        if not doors:
            return None
        return Traffic(
            calls=sum(door.calls for door in doors),
            token_calls=sum(door.token_calls for door in doors),
            throttled=sum(door.throttled for door in doors),
            waited_seconds=sum(door.waited_seconds for door in doors),
        )

    def report(self) -> Report | None:
        """What the doors saw, and the shared limit and breakers; None for a source that is read without HTTP."""
        return report(self._doors) if self._doors else None

    @property
    def _doors(self) -> list[HttpSource]:
        return [door for door in (self.source, *self.others) if isinstance(door, HttpSource)]


class NoDoor:
    """The door of a provider that reads no network."""

    def __init__(self, integration: str) -> None:
        self._integration = integration

    def send(self, request: Request) -> Answer:  # noqa: ARG002 the contract's signature
        raise InternalError(
            f"The provider of {self._integration} has no HTTP settings, yet made an HTTP request.",
            code="internal.plugin",
        )


class ProviderResource(dg.ConfigurableResource):
    """One registered provider: opens its integrations by key. Subclassed per provider by `provider_resource`."""

    provider: ClassVar[type[Provider]]
    roster: dg.ResourceDependency[Roster]

    def find(self, key: str) -> Integration:
        """The integration to be synced. Raises ConfigError where it is another provider's, or paused."""
        integration = self.roster.integrations.get(key)
        if integration.provider != self.provider.name:
            raise ConfigError(
                f"{key} is a {integration.provider} integration, not {self.provider.name}.",
                code="config.other_provider",
                advice=f"Run sync_{integration.provider} for it.",
            )
        if integration.paused:
            raise ConfigError(
                f"{key} is paused.", code="config.paused", advice=f"Run `sis integration resume {key}` first."
            )
        return integration

    @contextmanager
    def connect(self, integration: Integration, snapshot_id: str | None = None) -> Iterator[Connection]:
        """Open an integration; calls are recorded for the snapshot. Raises ConfigError for settings that are wrong."""
        provider = registry.make(integration.provider, dict(integration.settings))
        settings = provider.settings
        if not isinstance(settings, HttpSettings):
            yield Connection(integration, provider, NoDoor(integration.key))
            return
        with ExitStack() as doors:
            budget = RetryBudget()
            source, *others = [
                doors.enter_context(
                    open_source(
                        integration.key,
                        provider=provider.name,
                        settings=settings,
                        oauth=provider.authentication(),
                        requests_per_minute=provider.rate,
                        vault=self.roster.vault,
                        engine=self.roster.engine,
                        snapshot_id=snapshot_id,
                        budget=budget,
                    )
                )
                for _ in range(settings.concurrency)
            ]
            yield Connection(integration, provider, source, tuple(others))


def provider_resource(provider: type[Provider]) -> type[ProviderResource]:
    """The resource class of a provider."""
    about = f"{provider.title}: opens its integrations by partition key, with settings and credentials looked up then."
    return type(
        f"{provider.__name__}Resource",
        (ProviderResource,),
        {"provider": provider, "__doc__": about, "__module__": __name__},
    )
