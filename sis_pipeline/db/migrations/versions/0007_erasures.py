"""Erasures: which students were erased, and what of an erasure is still to be done in the data folder."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "erasures",
        sa.Column("district", sa.Text(), nullable=False, comment="the district"),
        sa.Column("erasure_id", sa.UUID(as_uuid=False), nullable=False, comment="the erasure"),
        sa.Column("student_id", sa.UUID(as_uuid=False), nullable=False, comment="the student that was erased"),
        sa.Column(
            "student_ids",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="every id the student had; emptied when the erasure is done",
        ),
        sa.Column(
            "records",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="[integration, sis_id] to be erased from files; emptied when the erasure is done",
        ),
        sa.Column("erased_by", sa.Text(), nullable=False, comment="who erased"),
        sa.Column("reason", sa.Text(), nullable=False, comment="why"),
        sa.Column(
            "begun_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when the tables were emptied of the student",
        ),
        sa.Column(
            "finished_at", postgresql.TIMESTAMP(timezone=True), nullable=True, comment="when the files were, too"
        ),
        sa.PrimaryKeyConstraint("erasure_id", name=op.f("pk_erasures")),
        schema="sis",
        comment="Students that were erased: who asked and when, and nothing of the student but the id we had given.",
    )
    op.create_index("ix_erasures_district", "erasures", ["district", "begun_at"], unique=False, schema="sis")


def downgrade() -> None:
    op.drop_table("erasures", schema="sis")
