"""Writes to a school year's tables are noted whatever the writer's replication role: a logical replication, and several
migration tools, write as `replica`, which skips ordinary triggers."""

from alembic import op

revision = "0015"
down_revision = "0013"
branch_labels = None
depends_on = None

TABLES = (
    "academic_sessions", "courses", "sections", "student_years", "student_sources", "enrollments", "section_enrollments",
)  # fmt: skip


def upgrade() -> None:
    for table in TABLES:
        op.execute(f"alter table sis.{table} enable always trigger {table}_note_write")


def downgrade() -> None:
    for table in TABLES:
        op.execute(f"alter table sis.{table} enable trigger {table}_note_write")
