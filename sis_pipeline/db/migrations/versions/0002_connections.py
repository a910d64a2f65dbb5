"""Connections: token leases and health, breakers, resumable readings, deltas, and the audit log's chain."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TOKEN_STATUS = "status in ('active','refreshing','needs_reauth','revocation_pending','revoked')"  # noqa: S105

INSERT_ONLY = """
create function sis.insert_only() returns trigger language plpgsql as $$
begin
  raise exception '% is insert-only: what was written there is never changed', tg_table_name
    using errcode = 'insufficient_privilege';
end
$$
"""

CHAIN_UP = """
with digests as (
  select district, entry, encode(sha256(convert_to(json_build_array(
    entry, district, to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), actor, action, subject, details::text
  )::text, 'UTF8')), 'hex') as digest
  from sis.audit_log
), links as (
  select district, jsonb_agg(jsonb_build_array(entry, digest) order by entry) as entries from digests group by district
)
insert into sis.audit_links (district, link, entries, previous, hash)
select district, 1, entries, '',
  encode(sha256(convert_to(json_build_array(district, 1, '', entries::text)::text, 'UTF8')), 'hex')
from links
"""
"""The rows that were there before the chains become the first link of each, hashed as db.audit does it."""


def upgrade() -> None:
    op.create_check_constraint(op.f("ck_oauth_tokens_status"), "oauth_tokens", TOKEN_STATUS, schema="sis")
    op.create_table(
        "audit_links",
        sa.Column("district", sa.Text(), nullable=False, comment="the district whose chain it is"),
        sa.Column("link", sa.BigInteger(), nullable=False, comment="position in the chain, from 1"),
        sa.Column(
            "entries",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="[entry, SHA-256 of the entry] of every row of the operation",
        ),
        sa.Column("previous", sa.Text(), nullable=False, comment="hash of the link before, empty for the first"),
        sa.Column("hash", sa.Text(), nullable=False, comment="SHA-256 over district, link, previous hash and entries"),
        sa.PrimaryKeyConstraint("district", "link", name=op.f("pk_audit_links")),
        schema="sis",
        comment="The audit log's hash chains, one per district, with one link per operation.",
    )
    op.create_index("ix_api_calls_at", "api_calls", ["at"], unique=False, schema="sis", postgresql_using="brin")
    op.create_index(
        "ix_snapshots_under_way",
        "snapshots",
        ["integration"],
        unique=False,
        schema="sis",
        postgresql_where=sa.text("finished_at is null"),
    )
    op.drop_index("ix_audit_log_district", table_name="audit_log", schema="sis")
    op.create_index("ix_audit_log_chain", "audit_log", ["district", "entry"], unique=False, schema="sis")
    op.execute(INSERT_ONLY)
    for table in ("audit_log", "audit_links"):
        op.execute(
            f"create trigger {table}_insert_only before update or delete or truncate on sis.{table} "
            "for each statement execute function sis.insert_only()"
        )
    op.execute(CHAIN_UP)
    op.create_table(
        "circuit_breakers",
        sa.Column("breaker_key", sa.Text(), nullable=False, comment="provider, origin and tenant path"),
        sa.Column(
            "state", sa.Text(), server_default=sa.text("'closed'"), nullable=False, comment="closed, open, half_open"
        ),
        sa.Column(
            "epoch",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="raised by every change of state",
        ),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False, comment="failures in a row"),
        sa.Column(
            "window_start",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="when the counting of the last minute began",
        ),
        sa.Column(
            "window_calls", sa.Integer(), server_default=sa.text("0"), nullable=False, comment="calls in that minute"
        ),
        sa.Column(
            "window_failures",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="failures in that minute",
        ),
        sa.Column("opened_at", postgresql.TIMESTAMP(timezone=True), nullable=True, comment="when it opened"),
        sa.Column(
            "open_until", postgresql.TIMESTAMP(timezone=True), nullable=True, comment="when one probe may be made"
        ),
        sa.Column("open_seconds", sa.Double(), nullable=True, comment="how long it stays open this time"),
        sa.Column("probe_holder", sa.Text(), nullable=True, comment="host, process and start of who probes"),
        sa.Column(
            "probe_until", postgresql.TIMESTAMP(timezone=True), nullable=True, comment="until when the probe may take"
        ),
        sa.Column("last_error", sa.Text(), nullable=True, comment="the failure that counted last, without values"),
        sa.Column(
            "changed_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when it was last written",
        ),
        sa.CheckConstraint("state in ('closed','open','half_open')", name=op.f("ck_circuit_breakers_state")),
        sa.PrimaryKeyConstraint("breaker_key", name=op.f("pk_circuit_breakers")),
        schema="sis",
        comment="Which sources are left alone for a while, shared by all processes.",
    )
    op.create_table(
        "snapshot_pages",
        sa.Column("integration", sa.Text(), nullable=False, comment="the integration"),
        sa.Column("snapshot_id", sa.UUID(as_uuid=False), nullable=False, comment="the snapshot that is being read"),
        sa.Column("resource", sa.Text(), nullable=False, comment="the collection"),
        sa.Column("number", sa.Integer(), nullable=False, comment="page number, from 1"),
        sa.Column("file", sa.Text(), nullable=False, comment="its file below the snapshot's folder"),
        sa.Column("records", sa.Integer(), nullable=False, comment="records on it"),
        sa.Column("bytes", sa.BigInteger(), nullable=False, comment="size of the body as it was sent"),
        sa.Column("sha256", sa.Text(), nullable=False, comment="hash of the body as it was sent"),
        sa.Column(
            "about",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="what the mapping needs beside the records",
        ),
        sa.Column("request", sa.Text(), nullable=False, comment="hash of the request it answers"),
        sa.Column(
            "headers", postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment="the answer's paging headers"
        ),
        sa.Column("total", sa.Integer(), nullable=True, comment="the source's own count when it was read"),
        sa.Column("token_version", sa.Integer(), nullable=True, comment="version of the access token it was read with"),
        sa.Column(
            "read_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when it was kept",
        ),
        sa.PrimaryKeyConstraint("snapshot_id", "resource", "number", name=op.f("pk_snapshot_pages")),
        schema="sis",
        comment="Pages of readings under way: where a killed reading goes on. Emptied when the reading ends.",
    )
    op.add_column(
        "api_calls",
        sa.Column("request_id", sa.Text(), nullable=True, comment="the id the request carried, as in the logs"),
        schema="sis",
    )
    op.add_column(
        "integrations",
        sa.Column(
            "status_since", postgresql.TIMESTAMP(timezone=True), nullable=True, comment="when it got that status"
        ),
        schema="sis",
    )
    op.add_column(
        "integrations",
        sa.Column(
            "failures",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="syncs that failed since the last good one",
        ),
        schema="sis",
    )
    op.add_column(
        "integrations",
        sa.Column(
            "last_success_at",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="when a sync last came to its end",
        ),
        schema="sis",
    )
    op.add_column(
        "integrations",
        sa.Column(
            "source_identity",
            sa.Text(),
            nullable=True,
            comment="whose data answered first, as the system names it; others are refused",
        ),
        schema="sis",
    )
    op.add_column(
        "oauth_tokens",
        sa.Column("lease_holder", sa.Text(), nullable=True, comment="host, process and start of who is refreshing it"),
        schema="sis",
    )
    op.add_column(
        "oauth_tokens",
        sa.Column(
            "lease_until",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="until when the refreshing may take",
        ),
        schema="sis",
    )
    op.add_column(
        "oauth_tokens",
        sa.Column(
            "failures", sa.Integer(), server_default=sa.text("0"), nullable=False, comment="failed token calls in a row"
        ),
        schema="sis",
    )
    op.add_column(
        "oauth_tokens",
        sa.Column("last_error", sa.Text(), nullable=True, comment="why the last one failed, without values"),
        schema="sis",
    )
    op.add_column(
        "oauth_tokens",
        sa.Column(
            "last_refreshed_at",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="when the source last gave a token",
        ),
        schema="sis",
    )
    op.add_column(
        "oauth_tokens",
        sa.Column("scope", sa.Text(), nullable=True, comment="what the source granted, where it says so"),
        schema="sis",
    )
    op.add_column(
        "rate_limits",
        sa.Column("per_minute", sa.Double(), nullable=True, comment="the rate last asked for"),
        schema="sis",
    )
    op.add_column(
        "rate_limits",
        sa.Column(
            "pushed_until",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="until when the source asked everybody to wait",
        ),
        schema="sis",
    )
    op.add_column(
        "snapshots",
        sa.Column(
            "base_snapshot_id",
            sa.UUID(as_uuid=False),
            nullable=True,
            comment="of a delta: the snapshot whose records it changes",
        ),
        schema="sis",
    )
    op.add_column(
        "snapshots",
        sa.Column(
            "since",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="of a delta: from when on changes were asked for",
        ),
        schema="sis",
    )
    op.add_column(
        "snapshots",
        sa.Column(
            "watermark",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="the source's own time when the reading began",
        ),
        schema="sis",
    )
    op.add_column(
        "snapshots",
        sa.Column(
            "drift",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=True,
            comment="of a full reading after deltas: per entity, what the deltas had missed",
        ),
        schema="sis",
    )
    op.add_column(
        "snapshots",
        sa.Column(
            "settings_hash",
            sa.Text(),
            nullable=True,
            comment="hash of the settings it is read with; others start a new reading",
        ),
        schema="sis",
    )
    op.add_column(
        "snapshots",
        sa.Column(
            "resumed",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="times the reading went on after a kill",
        ),
        schema="sis",
    )


def downgrade() -> None:
    op.drop_column("snapshots", "resumed", schema="sis")
    op.drop_column("snapshots", "settings_hash", schema="sis")
    op.drop_column("snapshots", "drift", schema="sis")
    op.drop_column("snapshots", "watermark", schema="sis")
    op.drop_column("snapshots", "since", schema="sis")
    op.drop_column("snapshots", "base_snapshot_id", schema="sis")
    op.drop_column("rate_limits", "pushed_until", schema="sis")
    op.drop_column("rate_limits", "per_minute", schema="sis")
    op.drop_column("oauth_tokens", "scope", schema="sis")
    op.drop_column("oauth_tokens", "last_refreshed_at", schema="sis")
    op.drop_column("oauth_tokens", "last_error", schema="sis")
    op.drop_column("oauth_tokens", "failures", schema="sis")
    op.drop_column("oauth_tokens", "lease_until", schema="sis")
    op.drop_column("oauth_tokens", "lease_holder", schema="sis")
    op.drop_column("integrations", "source_identity", schema="sis")
    op.drop_column("integrations", "last_success_at", schema="sis")
    op.drop_column("integrations", "failures", schema="sis")
    op.drop_column("integrations", "status_since", schema="sis")
    op.drop_column("api_calls", "request_id", schema="sis")
    op.drop_table("snapshot_pages", schema="sis")
    op.drop_table("circuit_breakers", schema="sis")
    op.execute("drop trigger audit_log_insert_only on sis.audit_log")
    op.drop_table("audit_links", schema="sis")
    op.execute("drop function sis.insert_only()")
    op.drop_index("ix_snapshots_under_way", table_name="snapshots", schema="sis")
    op.drop_index("ix_api_calls_at", table_name="api_calls", schema="sis")
    op.drop_index("ix_audit_log_chain", table_name="audit_log", schema="sis")
    op.create_index("ix_audit_log_district", "audit_log", ["district", "at"], unique=False, schema="sis")
    op.drop_constraint(op.f("ck_oauth_tokens_status"), "oauth_tokens", schema="sis")
