"""A note of every statement that writes to a school year's tables beside the pipeline."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

TABLES = (
    "academic_sessions", "courses", "sections", "student_years", "student_sources", "enrollments", "section_enrollments",
)  # fmt: skip

# The writer may have no rights beside those on the table: the note is written with the owner's.
NOTE_WRITE = """
create function sis.note_table_write() returns trigger language plpgsql security definer
set search_path = pg_catalog, pg_temp as $$
begin
  insert into sis.table_writes (table_name, written_by) values (tg_table_name, session_user);
  return null;
end
$$
"""


def upgrade() -> None:
    op.create_table(
        "table_writes",
        sa.Column("entry", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="running number"),
        sa.Column("table_name", sa.Text(), nullable=False, comment="the table"),
        sa.Column("written_by", sa.Text(), nullable=False, comment="the database user who wrote"),
        sa.Column(
            "written_at",
            sa.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when",
        ),
        sa.PrimaryKeyConstraint("entry", name=op.f("pk_table_writes")),
        schema="sis",
        comment="Statements that wrote to a school year's tables beside the pipeline, noted by triggers; after one, merges "
        "read the tables themselves.",
    )
    op.execute(NOTE_WRITE)
    for table in TABLES:
        op.execute(
            f"create trigger {table}_note_write after insert or update or delete or truncate on sis.{table} "
            "for each statement when (coalesce(current_setting('sis.publishing', true), '') <> 'on') "
            "execute function sis.note_table_write()"
        )


def downgrade() -> None:
    for table in TABLES:
        op.execute(f"drop trigger {table}_note_write on sis.{table}")
    op.execute("drop function sis.note_table_write()")
    op.drop_table("table_writes", schema="sis")
