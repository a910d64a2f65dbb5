"""What the commands work on: settings, database, vault, stores and providers, each opened when first needed.
Heavy imports stay inside, so that `sis --help` answers at once."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from sis_pipeline.connect.vault import Vault
    from sis_pipeline.settings import Settings
    from sis_pipeline.store.integrations import Integrations
    from sis_pipeline.store.merged import MergeStore


class Installation:
    """This machine's installation, as the environment (`SIS_*`) describes it."""

    @cached_property
    def settings(self) -> Settings:
        """What the environment says; logs go to stderr as it wants from then on."""
        from sis_pipeline.connect import log
        from sis_pipeline.settings import Settings

        settings = Settings()
        log.configure(settings.log_format, level=settings.log_level)
        return settings

    @cached_property
    def unmigrated(self) -> Engine:
        """The database, reachable, its schema as it is. Raises DatabaseUnavailable."""
        from sis_pipeline.db.engine import check_reachable, open_database

        engine = open_database(self.settings)
        check_reachable(engine)
        return engine

    @cached_property
    def engine(self) -> Engine:
        """The database with its schema brought up to date."""
        from sis_pipeline.db import migrate

        migrate.upgrade(self.unmigrated)
        return self.unmigrated

    @cached_property
    def vault(self) -> Vault:
        """The stored secrets; the encryption keys are proven first. Raises ConfigError where there is no key."""
        from sis_pipeline.connect.keys import Keys
        from sis_pipeline.connect.vault import Vault

        return Vault.open(self.engine, Keys.from_settings(self.settings))

    @cached_property
    def integrations(self) -> Integrations:
        from sis_pipeline.store.integrations import Integrations

        return Integrations(self.engine)

    @cached_property
    def merges(self) -> MergeStore:
        from sis_pipeline.store.merged import MergeStore
        from sis_pipeline.store.snapshots import SnapshotStore

        return MergeStore(self.engine, SnapshotStore(self.engine, self.settings.data_url))
