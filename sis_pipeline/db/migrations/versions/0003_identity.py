"""Identity: near matches that wait for a person, decisions that are remembered, ids of merged students."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

STAMP = postgresql.TIMESTAMP(timezone=True)
NOW = sa.text("sis.clock()")


def upgrade() -> None:
    op.create_table(
        "near_matches",
        sa.Column("district", sa.Text(), nullable=False, comment="the district"),
        sa.Column(
            "near_match_id", sa.UUID(as_uuid=False), nullable=False, comment="the pair; the same two always have it"
        ),
        sa.Column("school_year", sa.Text(), nullable=False, comment="the latest school year whose merge found it"),
        *_pair(nullable_student=False),
        sa.Column("rule", sa.Text(), nullable=False, comment="the rule that made it a doubt"),
        sa.Column("evidence", sa.Text(), nullable=False, comment="names of what agrees or is alike; no values"),
        sa.Column("score", sa.Double(), nullable=False, comment="how alike they are, from 0 to 1"),
        sa.Column("status", sa.Text(), server_default=sa.text("'open'"), nullable=False, comment="open, decided, gone"),
        sa.Column("operation_id", sa.UUID(as_uuid=False), nullable=False, comment="the operation that found it"),
        sa.Column("opened_at", STAMP, server_default=NOW, nullable=False, comment="since when it waits"),
        sa.Column("closed_at", STAMP, nullable=True, comment="when it was decided, or no longer found"),
        sa.CheckConstraint("status in ('open','decided','gone')", name=op.f("ck_near_matches_status")),
        sa.PrimaryKeyConstraint("near_match_id", name=op.f("pk_near_matches")),
        schema="sis",
        comment="Pairs of students who may be one, waiting for a person.",
    )
    op.create_index(
        "ix_near_matches_queue",
        "near_matches",
        ["district", "score"],
        unique=False,
        schema="sis",
        postgresql_where=sa.text("status = 'open'"),
    )
    op.create_table(
        "identity_decisions",
        sa.Column("district", sa.Text(), nullable=False, comment="the district"),
        sa.Column("decision_id", sa.UUID(as_uuid=False), nullable=False, comment="the decision"),
        sa.Column("verdict", sa.Text(), nullable=False, comment="same or distinct"),
        *_pair(nullable_student=True),
        sa.Column(
            "near_match_id",
            sa.UUID(as_uuid=False),
            nullable=True,
            comment="the near match it answers; null for a split",
        ),
        sa.Column("decided_by", sa.Text(), nullable=False, comment="who decided"),
        sa.Column("reason", sa.Text(), nullable=False, comment="why"),
        sa.Column("decided_at", STAMP, server_default=NOW, nullable=False, comment="when it was decided"),
        sa.Column(
            "superseded_by",
            sa.UUID(as_uuid=False),
            nullable=True,
            comment="the later decision about the same two; null while it stands",
        ),
        sa.CheckConstraint("verdict in ('same','distinct')", name=op.f("ck_identity_decisions_verdict")),
        sa.PrimaryKeyConstraint("decision_id", name=op.f("pk_identity_decisions")),
        schema="sis",
        comment="What people decided about who is who; remembered for ever, inputs of every merge.",
    )
    op.create_index(
        "ix_identity_decisions_standing",
        "identity_decisions",
        ["district"],
        unique=False,
        schema="sis",
        postgresql_where=sa.text("superseded_by is null"),
    )
    op.create_table(
        "student_aliases",
        sa.Column("district", sa.Text(), nullable=False, comment="the district"),
        sa.Column("alias_id", sa.UUID(as_uuid=False), nullable=False, comment="the student id that was merged away"),
        sa.Column("student_id", sa.UUID(as_uuid=False), nullable=False, comment="the student it is now"),
        sa.Column(
            "records",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="[integration, sis_id] of the records it had",
        ),
        sa.Column("operation_id", sa.UUID(as_uuid=False), nullable=False, comment="the operation that merged it"),
        sa.Column("merged_at", STAMP, server_default=NOW, nullable=False, comment="when it was merged"),
        sa.Column(
            "restored_at", STAMP, nullable=True, comment="when a split brought it back; null while it is an alias"
        ),
        sa.PrimaryKeyConstraint("alias_id", name=op.f("pk_student_aliases")),
        schema="sis",
        comment="Ids of students that were found to be another one.",
    )
    op.create_index("ix_student_aliases_student_id", "student_aliases", ["student_id"], unique=False, schema="sis")


def _pair(*, nullable_student: bool) -> list[sa.Column[Any]]:
    return [
        sa.Column(f"{side}{name}", kind, nullable=nullable, comment=f"{words} {about}")
        for side, words in (("", "one side:"), ("other_", "the other side:"))
        for name, kind, nullable, about in (
            ("integration", sa.Text(), True, "the integration of its record"),
            (
                "sis_id",
                sa.Text(),
                True,
                "the id of its record; null for a student without a record in that school year",
            ),
            ("student_id", sa.UUID(as_uuid=False), nullable_student, "the student it was then"),
        )
    ]


def downgrade() -> None:
    for table in ("student_aliases", "identity_decisions", "near_matches"):
        op.drop_table(table, schema="sis")
