"""What a database role other than the owner may do: run the pipeline without changing the audit log, or only read.
Making roles, and their passwords, is the business of whoever runs the server."""

from __future__ import annotations

from sqlalchemy import Connection, text

from sis_pipeline.db.engine import DAGSTER_SCHEMA
from sis_pipeline.db.tables import SCHEMA, audit_links, audit_log, encryption_keys, oauth_tokens

INSERT_ONLY = (audit_log, audit_links)
SECRET = (oauth_tokens, encryption_keys)


class RoleRefusedError(Exception):
    """The role is not there, no grant would bind it, or it is not ours to grant; message and advice are for a person."""

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.message, self.advice = message, advice


def grant(connection: Connection, role: str, *, read_only: bool = False) -> None:
    """Give a role exactly what the pipeline needs, or with `read_only` what a reader does, and take away the rest.

    The pipeline may read and write every table of ours, but only add to the audit log, and has a free hand in Dagster's
    schema. A reader sees our tables except secrets and keys. Tables that an upgrade adds need another grant. Raises
    RoleRefusedError.
    """
    _check(connection, role)
    name = connection.dialect.identifier_preparer.quote_identifier(role).replace(":", r"\:")  # a colon binds in text()
    for statement in [*_nothing(connection), *(_reader() if read_only else _pipeline(connection))]:
        connection.execute(text(statement.format(role=name)))


def _check(connection: Connection, role: str) -> None:
    if not _owns(connection, (me := str(connection.scalar(text("select current_user"))))):
        raise RoleRefusedError(
            f"{me!r} does not own the tables.", "Set SIS_DATABASE_URL to their owner's for this command."
        )
    if connection.scalar(text("select 1 from pg_roles where rolname = :role"), {"role": role}) is None:
        raise RoleRefusedError(
            f"There is no database role {role!r}.", "Make it first: create role NAME login password …"
        )
    if _owns(connection, role):
        raise RoleRefusedError(
            f"The role {role!r} owns the tables or is a superuser, whom no grant holds back.",
            "Make an ordinary role for the pipeline: create role NAME login password …",
        )


def _owns(connection: Connection, role: str) -> bool:
    """Whether a role is the tables' owner, may act as the owner, or is a superuser, who may act as anybody."""
    query = text("select pg_has_role(:role, relowner, 'member') from pg_class where oid = cast(:table as regclass)")
    return bool(connection.scalar(query, {"role": role, "table": str(audit_log)}))


def _nothing(connection: Connection) -> list[str]:
    schemas = [schema for schema in (SCHEMA, DAGSTER_SCHEMA) if _exists(connection, schema)]
    return [
        *(f"revoke all on all tables in schema {schema} from {{role}}" for schema in schemas),
        *(f"revoke all on all sequences in schema {schema} from {{role}}" for schema in schemas),
        *(f"revoke all on schema {schema} from {{role}}" for schema in schemas),
        *(f"alter default privileges in schema {schema} revoke all on tables from {{role}}" for schema in schemas),
        *(f"alter default privileges in schema {schema} revoke all on sequences from {{role}}" for schema in schemas),
    ]


def _reader() -> list[str]:
    return [
        f"grant usage on schema {SCHEMA} to {{role}}",
        f"grant select on all tables in schema {SCHEMA} to {{role}}",
        *(f"revoke all on {table} from {{role}}" for table in SECRET),
    ]


def _pipeline(connection: Connection) -> list[str]:
    created = [] if _exists(connection, DAGSTER_SCHEMA) else [f"create schema {DAGSTER_SCHEMA}"]
    return [
        *created,
        f"grant usage on schema {SCHEMA} to {{role}}",
        f"grant select, insert, update, delete on all tables in schema {SCHEMA} to {{role}}",
        f"revoke insert, update, delete on {SCHEMA}.alembic_version from {{role}}",
        *(f"revoke update, delete on {table} from {{role}}" for table in INSERT_ONLY),
        f"grant usage, create on schema {DAGSTER_SCHEMA} to {{role}}",
        f"grant all on all tables in schema {DAGSTER_SCHEMA} to {{role}}",
        f"grant all on all sequences in schema {DAGSTER_SCHEMA} to {{role}}",
        f"alter default privileges in schema {DAGSTER_SCHEMA} grant all on tables to {{role}}",
        f"alter default privileges in schema {DAGSTER_SCHEMA} grant all on sequences to {{role}}",
    ]


def _exists(connection: Connection, schema: str) -> bool:
    return connection.scalar(text("select to_regnamespace(:schema)"), {"schema": schema}) is not None
