"""Undo: which operation an operation undoes, and the snapshots that are not merged because of it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


EVIDENCE = "what shows it: first_load, new_record, explicit_exit, absence, tombstone, field_change"


def upgrade() -> None:
    op.alter_column("enrollment_changes", "evidence", comment=f"{EVIDENCE}, undo:OPERATION", schema="sis")
    op.add_column(
        "sync_operations",
        sa.Column("undoes", sa.UUID(as_uuid=False), nullable=True, comment="the operation that this one undoes"),
        schema="sis",
    )
    op.add_column(
        "sync_operations",
        sa.Column(
            "withheld",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="integration -> fingerprints of snapshots that were undone and are not merged again as they are",
        ),
        schema="sis",
    )


def downgrade() -> None:
    op.alter_column("enrollment_changes", "evidence", comment=EVIDENCE, schema="sis")
    for column in ("withheld", "undoes"):
        op.drop_column("sync_operations", column, schema="sis")
