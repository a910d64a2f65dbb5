"""Retention: since when pages, frames, rejected rows and the details of operations are no longer kept. Disclosures: what
left the installation, and who was in it. Erased records: by marks, what is kept out."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

EXPIRED = {
    "snapshots": {
        "raw_expired_at": "when its pages were given up as too old",
        "roster_expired_at": "when its standard frames were given up",
        "quarantine_expired_at": "when its rejected rows were given up",
    },
    "sync_operations": {
        "frames_expired_at": "when its frames were given up as too old",
        "details_expired_at": "when inputs and most of the summary were",
    },
}


def upgrade() -> None:
    for table, columns in EXPIRED.items():
        for column, about in columns.items():
            kind = postgresql.TIMESTAMP(timezone=True)
            op.add_column(table, sa.Column(column, kind, nullable=True, comment=about), schema="sis")
    _disclosures()
    _disclosed_students()
    _erased_records()


def _disclosures() -> None:
    op.create_table(
        "disclosures",
        sa.Column("district", sa.Text(), nullable=False, comment="the district"),
        sa.Column("disclosure", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="running number"),
        sa.Column(
            "disclosed_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when it left",
        ),
        sa.Column("school_year", sa.Text(), nullable=False, comment="of which school year the roster is"),
        sa.Column("epoch", sa.Integer(), nullable=False, comment="the published epoch it was taken from"),
        sa.Column("form", sa.Text(), nullable=False, comment="format and version"),
        sa.Column("destination", sa.Text(), nullable=False, comment="where it was written to"),
        sa.Column("recipient", sa.Text(), nullable=True, comment="who receives it, as was said"),
        sa.Column("reason", sa.Text(), nullable=True, comment="why, as was said"),
        sa.Column("actor", sa.Text(), nullable=False, comment="who did it"),
        sa.Column("series", sa.UUID(as_uuid=False), nullable=False, comment="the same for every time it goes there"),
        sa.Column("fields", postgresql.JSONB(), nullable=False, comment="file -> columns that hold anything"),
        sa.Column("rows", postgresql.JSONB(), nullable=False, comment="rows by file"),
        sa.Column("students", sa.Integer(), nullable=False, comment="how many students are in it"),
        sa.PrimaryKeyConstraint("disclosure", name=op.f("pk_disclosures")),
        schema="sis",
        comment="What left this installation: who received which kinds of fields when and why. No values.",
    )
    op.create_index("ix_disclosures_district", "disclosures", ["district", "disclosed_at"], schema="sis")
    op.create_index("ix_disclosures_series", "disclosures", ["series"], schema="sis")


def _disclosed_students() -> None:
    op.create_table(
        "disclosed_students",
        sa.Column("district", sa.Text(), nullable=False, comment="the district"),
        sa.Column("series", sa.UUID(as_uuid=False), nullable=False, comment="the series of disclosures"),
        sa.Column("student_id", sa.UUID(as_uuid=False), nullable=False, comment="the student, by the id it had then"),
        sa.Column(
            "since",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="the first disclosure the student is in",
        ),
        sa.Column(
            "until",
            sa.BigInteger(),
            nullable=True,
            comment="the first one after that without; null while there is none",
        ),
        sa.PrimaryKeyConstraint("series", "student_id", "since", name=op.f("pk_disclosed_students")),
        schema="sis",
        comment="Who was in which disclosures: all of the series from `since` on and before `until`.",
    )
    op.create_index("ix_disclosed_students_student_id", "disclosed_students", ["student_id"], schema="sis")


def _erased_records() -> None:
    op.create_table(
        "erased_records",
        sa.Column("integration", sa.Text(), nullable=False, comment="the integration that may deliver it"),
        sa.Column("mark", sa.Text(), nullable=False, comment="keyed hash of the record's id; the key is in the vault"),
        sa.Column("erasure_id", sa.UUID(as_uuid=False), nullable=False, comment="the erasure"),
        sa.Column(
            "kept_out_since",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="since when it is kept out",
        ),
        sa.PrimaryKeyConstraint("integration", "mark", name=op.f("pk_erased_records")),
        schema="sis",
        comment="Records of erased students: what a system delivers of them is set aside, until a person lifts it.",
    )
    op.create_index("ix_erased_records_erasure_id", "erased_records", ["erasure_id"], schema="sis")


def downgrade() -> None:
    op.drop_table("erased_records", schema="sis")
    op.drop_table("disclosed_students", schema="sis")
    op.drop_table("disclosures", schema="sis")
    for table, columns in EXPIRED.items():
        for column in columns:
            op.drop_column(table, column, schema="sis")
