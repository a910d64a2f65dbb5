"""The schema comes up whole, once, whoever starts first."""

from concurrent.futures import ThreadPoolExecutor

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.engine import URL

from sis_pipeline.db import migrate
from sis_pipeline.db.engine import engine_for
from sis_pipeline.db.tables import SCHEMA, metadata


def test_migrations_make_exactly_the_declared_tables(database_url: URL):
    # without our search path, under which reflection would call the schema None
    with create_engine(database_url).connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "include_name": lambda name, kind, _: kind != "schema" or name == SCHEMA,
                "version_table_schema": SCHEMA,
                "compare_type": True,
            },
        )
        assert compare_metadata(context, metadata) == []


def test_several_processes_may_upgrade_at_once(postgres: URL):
    admin = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("create database upgrade_race"))
    engines = [engine_for(postgres.set(database="upgrade_race")) for _ in range(4)]
    try:
        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(migrate.upgrade, engines))
        assert sorted(done) == [False, False, False, True]
        assert inspect(engines[0]).has_table("students", schema=SCHEMA)
    finally:
        for engine in engines:
            engine.dispose()
        with admin.connect() as connection:
            connection.execute(text("drop database upgrade_race with (force)"))


def test_a_second_upgrade_does_nothing(database):
    assert migrate.upgrade(database) is False


def test_every_table_leads_with_its_district_or_integration():
    own = {"integrations", "rate_limits", "encryption_keys", "circuit_breakers", "statewide_matching"}
    for table in metadata.sorted_tables:
        first = next(iter(table.columns)).name
        assert table.name in own or first in {"district", "integration"}, f"{table.name} leads with {first}"


def test_the_clock_moves_only_where_it_is_set(database):
    with database.begin() as connection:
        ahead = connection.scalar(text("select sis.clock() - clock_timestamp()"))
        connection.execute(text("set local sis.clock_offset = '2 days'"))
        moved = connection.scalar(text("select sis.clock() - clock_timestamp()"))
    assert abs(ahead.total_seconds()) < 5
    assert 172_795 < moved.total_seconds() < 172_805


def test_a_downgrade_leaves_nothing_behind(database_url: URL):
    engine = create_engine(database_url)
    with engine.begin() as connection:
        command.downgrade(migrate._config(connection), "base")
    with engine.connect() as connection:
        left = connection.scalars(text("select table_name from information_schema.tables where table_schema = 'sis'"))
        assert set(left) <= {"alembic_version"}
    engine.dispose()
