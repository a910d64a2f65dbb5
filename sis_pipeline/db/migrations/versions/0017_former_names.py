"""What students were called before: noted whoever changes a published name, with the time until when it was published."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

# Who changes both names, or the birth date with one of them, may be another child: nothing is noted of that, nor of mere
# letter case. Whoever edits students may have no rights beside those on it: the note is written with the owner's.
NOTE_NAME = """
create function sis.note_student_name() returns trigger language plpgsql security definer
set search_path = pg_catalog, pg_temp as $$
begin
  insert into sis.student_names (district, student_id, first_name, last_name, until, operation_id)
  values (old.district, old.student_id, old.first_name, old.last_name, sis.clock(),
          nullif(current_setting('sis.operation', true), '')::uuid);
  return null;
end
$$
"""
TRIGGER = """
create trigger students_note_name after update on sis.students for each row
when ((lower(old.first_name) <> lower(new.first_name)) <> (lower(old.last_name) <> lower(new.last_name))
      and old.birth_date is not distinct from new.birth_date)
execute function sis.note_student_name()
"""


def upgrade() -> None:
    op.create_table(
        "student_names",
        sa.Column("district", sa.Text(), nullable=False, comment="the district"),
        sa.Column("entry", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="running number"),
        sa.Column("student_id", sa.UUID(as_uuid=False), nullable=False, comment="the student, by the id it had then"),
        sa.Column("first_name", sa.Text(), nullable=False, comment="legal first name that was published"),
        sa.Column("last_name", sa.Text(), nullable=False, comment="legal last name that was published"),
        sa.Column(
            "until", sa.TIMESTAMP(timezone=True), nullable=False, comment="when another name was published instead"
        ),
        sa.Column(
            "operation_id",
            sa.UUID(as_uuid=False),
            nullable=True,
            comment="the operation that changed the name; null for an edit by SQL",
        ),
        sa.PrimaryKeyConstraint("entry", name=op.f("pk_student_names")),
        schema="sis",
        comment="What students were called before, noted by a trigger on students; by these names they are found again.",
    )
    op.create_index("ix_student_names_student_id", "student_names", ["district", "student_id"], schema="sis")
    op.execute(NOTE_NAME)
    op.execute(TRIGGER)


def downgrade() -> None:
    op.execute("drop trigger students_note_name on sis.students")
    op.execute("drop function sis.note_student_name()")
    op.drop_table("student_names", schema="sis")
