"""Retention: since when pages, frames, rejected rows and the details of operations are no longer kept."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0008"
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


def downgrade() -> None:
    for table, columns in EXPIRED.items():
        for column in columns:
            op.drop_column(table, column, schema="sis")
