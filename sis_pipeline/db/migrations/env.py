"""Alembic's entry: runs the revisions on the connection that migrate.upgrade holds, with our own version table.
Whether and when they run is decided in db.migrate."""

from alembic import context
from alembic.config import Config

from sis_pipeline.db.tables import SCHEMA, metadata


def run(config: Config) -> None:
    context.configure(
        connection=config.attributes["connection"],
        target_metadata=metadata,
        version_table_schema=SCHEMA,
        include_schemas=True,
        include_name=lambda name, kind, _parents: kind != "schema" or name == SCHEMA,
    )
    with context.begin_transaction():
        context.run_migrations()


run(context.config)
