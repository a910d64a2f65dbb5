"""The guard: a district's own thresholds, and schools declared closed or new."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "guard_settings",
        sa.Column("district", sa.Text(), nullable=False, comment="the district"),
        sa.Column("version", sa.Integer(), nullable=False, comment="rising from 1; the newest holds"),
        sa.Column(
            "settings",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="district: name -> value; schools: school_id -> name -> value",
        ),
        sa.Column("set_by", sa.Text(), nullable=False, comment="who set it"),
        sa.Column("reason", sa.Text(), nullable=False, comment="why"),
        sa.Column(
            "set_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when it was set",
        ),
        sa.PrimaryKeyConstraint("district", "version", name=op.f("pk_guard_settings")),
        schema="sis",
        comment="A district's own thresholds of the guard; what is not set is as by default.",
    )
    op.create_table(
        "school_declarations",
        sa.Column("district", sa.Text(), nullable=False, comment="the district"),
        sa.Column(
            "declaration",
            sa.BigInteger(),
            sa.Identity(always=False),
            nullable=False,
            comment="running number; a later one prevails",
        ),
        sa.Column("school_id", sa.UUID(as_uuid=False), nullable=False, comment="the school"),
        sa.Column("kind", sa.Text(), nullable=False, comment="close or open"),
        sa.Column("effective", sa.Date(), nullable=False, comment="from which day on"),
        sa.Column("declared_by", sa.Text(), nullable=False, comment="who declared it"),
        sa.Column("reason", sa.Text(), nullable=False, comment="why"),
        sa.Column(
            "declared_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when it was declared",
        ),
        sa.CheckConstraint("kind in ('close','open')", name=op.f("ck_school_declarations_kind")),
        sa.PrimaryKeyConstraint("declaration", name=op.f("pk_school_declarations")),
        schema="sis",
        comment="Schools that a person declared closed or new: their removals are expected.",
    )
    op.create_index("ix_school_declarations_district", "school_declarations", ["district"], unique=False, schema="sis")


def downgrade() -> None:
    op.drop_table("school_declarations", schema="sis")
    op.drop_table("guard_settings", schema="sis")
