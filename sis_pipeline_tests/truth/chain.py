"""The whole chain without Dagster: a sandbox over sockets, snapshots on disk, the merge, the tables of PostgreSQL.
What a day must bring is said by the sandbox's truth; here it is brought about, and read back from the tables."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL

from sis_pipeline.defs.loading import RawLoad, RosterLoad, load_raw, load_roster
from sis_pipeline.defs.merging import merge_districts, merge_one, publish_districts
from sis_pipeline.defs.planning import plan_districts
from sis_pipeline.defs.resources import ProviderResource, Roster, provider_resource
from sis_pipeline.providers.registry import load_providers
from sis_pipeline.roster.plan import Plan
from sis_pipeline.roster.school_year import SchoolYear
from sis_pipeline.sandbox.oneroster_csv import write_bundle
from sis_pipeline.sandbox.server import SandboxServer
from sis_pipeline.sandbox.truth import Truth
from sis_pipeline.sandbox.world import World
from sis_pipeline.store.integrations import Integration
from sis_pipeline.store.publish import Published, publish
from sis_pipeline_tests.truth.tables import Tables

YEAR = SchoolYear.on(datetime.now(UTC).date())
"""Providers ask this machine's clock which school year is the active one, so the worlds live in it."""


@contextmanager
def fresh_database(postgres: URL, template: str) -> Iterator[URL]:
    """A migrated, empty database for as long as the context lasts."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    admin = create_engine(postgres, isolation_level="AUTOCOMMIT", pool_pre_ping=True)  # it may be killed meanwhile
    with admin.connect() as connection:
        connection.execute(text(f"create database {name} template {template} strategy file_copy"))
    try:
        yield postgres.set(database=name)
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"drop database {name} with (force)"))
        admin.dispose()


@contextmanager
def installation(url: URL, home: Path, *, key: str | None = None) -> Iterator[Roster]:
    """An installation of its own on a database: nothing of this machine's settings counts. `key`: what seals its
    secrets; a new one where none is given."""
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("SIS_")]:
            environment.delenv(name)
        environment.setenv("SIS_HOME", str(home))
        environment.setenv("SIS_DATABASE_URL", url.render_as_string(hide_password=False))
        environment.setenv("SIS_ENCRYPTION_KEYS", key or Fernet.generate_key().decode())
        roster = Roster()
        try:
            yield roster
        finally:
            roster.close()


def connect(
    roster: Roster, server: SandboxServer, name: str, *, priority: int = 100, replace: bool = False, **settings: Any
) -> None:
    """Add a system of the sandbox as an integration, or `replace` it; its secret is sealed in the vault."""
    handle = server.system(name)
    given = {**handle.settings, **settings}
    added = Integration(name, handle.provider, server.world.district, {}, given, priority)
    roster.integrations.add(added, replace=replace)
    roster.vault.put(name, "client_secret", handle.client_secret)


def unheard(_line: str) -> None:
    """Progress is nobody's concern here."""


def read(roster: Roster, key: str, year: SchoolYear, run_id: str, say: Callable[[str], object] = unheard) -> RawLoad:
    """Read one system's school year into a raw snapshot."""
    return load_raw(_resource(roster.integrations.get(key).provider)(roster=roster), key, year, run_id, say)


@cache
def _resource(provider: str) -> type[ProviderResource]:
    return provider_resource(load_providers().providers[provider])


@dataclass(frozen=True)
class Lived:
    """A day and school year that was read, merged and published; `tables` is what PostgreSQL held right after.

    `plan` was made before it was merged, `published` is what publishing then did; `again` is what it did when the same
    day was read and merged once more.
    """

    truth: Truth
    loads: Mapping[str, tuple[RawLoad, RosterLoad]]
    tables: Tables
    plan: Plan
    published: Published
    again: Published


class Town:
    """A world that is served, read day by day, and published to a database of its own."""

    def __init__(self, server: SandboxServer, roster: Roster, url: URL, files: Path) -> None:
        self.server, self.world, self.roster, self.url, self.files = server, server.world, roster, url, files
        self._lived: list[Truth] = []
        self._ledger: frozenset[str] = frozenset()
        self._today: date | None = None

    def connect(self, **settings: Mapping[str, Any]) -> None:
        """Add every system in the world's order of priority, with more settings by the system's name."""
        self.set_day(1)
        for place, system in enumerate(self.world.systems):
            more = settings.get(system.name, {})
            if system.dialect == "oneroster_csv":
                given = {"path": str(self.files / system.name), **more}
                self.roster.integrations.add(
                    Integration(system.name, "oneroster_csv", self.world.district, {}, given, place)
                )
            else:
                connect(self.roster, self.server, system.name, priority=place, **{"requests_per_minute": 6_000, **more})

    def set_day(self, number: int, on: int | None = None) -> None:
        """Let it be noon of a day in the systems and on the database's clock, which is what the pipeline goes by; `on`
        the clock it may be a later one."""
        self.server.set_day(number)
        for system in self.world.systems:
            if system.dialect == "oneroster_csv":
                write_bundle(
                    self.world.view(system.name, number), self.files / system.name, version=system.options["version"]
                )
        today = self.world.date(on or number)
        if today == self._today:
            return  # the clock goes on
        self._today = today
        noon = datetime.combine(today, time(12), tzinfo=UTC)
        offset = f"{(noon - datetime.now(UTC)).total_seconds()} seconds"
        with self.roster.engine.begin() as connection:
            connection.execute(text(f"alter database {self.url.database} set sis.clock_offset = '{offset}'"))
        self.roster.engine.dispose()  # a connection keeps the offset it was opened with

    def live(
        self, number: int, year: SchoolYear, *, on: int | None = None, partial: str | None = None, reread: bool = False
    ) -> Lived:
        """Read, judge, merge and publish a day of a school year, look at the tables, then merge and publish once more.

        `on`: the day on the clock, where the systems show an earlier one. `partial`: a system that counts more seats than
        it shows. `reread`: what is merged the second time is also read anew.
        """
        self.set_day(number, on)
        truth = self.world.truth(number, year.key)
        self._lived.append(truth)
        run = uuid.uuid4().hex
        if partial:
            self.server.faults.add("wrong_count", system=partial, path="enrollments", times=None, by=7)
        loads = self._load(truth, year, run)
        self.server.faults.clear()
        [planned] = plan_districts(self.roster, year.key, rows=1)
        assert planned.plan is not None, planned.trouble
        for merged in merge_districts(self.roster, year.key, run, unheard):
            assert merged.trouble is None, merged.trouble
        [done] = publish_districts(self.roster, year.key, run, unheard)
        assert done.trouble is None, done.trouble
        assert done.miscounted == ()
        assert done.published is not None
        with self.roster.engine.connect() as connection:
            tables = Tables(connection, self._lived, self._ledger)
        self._ledger |= tables.change_ids

        if reread:
            self._load(truth, year, uuid.uuid4().hex)
        # What is published needs no merge, so the district would be passed over: merged all the same.
        assert self.roster.merges.stale_districts(year.key) == []
        operation = merge_one(self.roster, self.world.district, year.key, uuid.uuid4().hex)
        again = publish(self.roster.engine, self.roster.merges, operation)
        return Lived(truth, loads, tables, planned.plan, done.published, again)

    def _load(self, truth: Truth, year: SchoolYear, run: str) -> dict[str, tuple[RawLoad, RosterLoad]]:
        return {
            name: (read(self.roster, name, year, run), load_roster(self.roster, name, year, run, unheard))
            for name in truth.rows
        }


@contextmanager
def town(world: World, postgres: URL, template: str, home: Path) -> Iterator[Town]:
    """A town that serves a world without limits, with an installation and a database of its own."""
    with (
        fresh_database(postgres, template) as url,
        installation(url, home) as roster,
        SandboxServer(world, enforce_limits=False) as server,
    ):
        yield Town(server, roster, url, home / "files")
