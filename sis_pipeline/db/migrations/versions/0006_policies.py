"""Survivorship policies by district, and a note of every edit that is made in `students` beside the pipeline."""

import json

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

BLOCKS = {
    "ssid": ["ssid", "ssid_issuer"],
    "local_id": ["local_id", "local_id_issuer"],
    "home_address": ["home_street", "home_city", "home_state", "home_postal_code"],
    "mailing_address": ["mailing_street", "mailing_city", "mailing_state", "mailing_postal_code"],
}
SINGLE = (
    "first_name", "middle_name", "last_name", "name_suffix",
    "preferred_first_name", "preferred_middle_name", "preferred_last_name",
    "pronouns", "birth_date", "sex", "username", "email", "phone", "mobile_phone",
    "hispanic_or_latino", "american_indian_or_alaska_native", "asian", "black_or_african_american",
    "native_hawaiian_or_other_pacific_islander", "white",
    "graduation_year", "district_entry_date", "directory_opt_out", "address_confidential",
)  # fmt: skip
ATTRIBUTES = {**BLOCKS, **{name: [name] for name in SINGLE}}

# The editor may have no rights beside those on students: the note is written with the owner's.
NOTE_EDIT = """
create function sis.note_student_edit() returns trigger language plpgsql security definer
set search_path = pg_catalog, pg_temp as $$
declare
  was jsonb := to_jsonb(old);
  now_is jsonb := to_jsonb(new);
begin
  insert into sis.student_edits (district, student_id, attribute, base, value, edited_by)
  select new.district, new.student_id, changed.name, changed.base, changed.value, session_user
  from (
    select attribute.key as name,
           (select jsonb_object_agg(name, was -> name) from jsonb_array_elements_text(attribute.value) name) as base,
           (select jsonb_object_agg(name, now_is -> name) from jsonb_array_elements_text(attribute.value) name) as value
    from jsonb_each(tg_argv[0]::jsonb) attribute
  ) changed
  where changed.base is distinct from changed.value;
  return null;
end
$$
"""
TRIGGER = f"""
create trigger students_note_edit after update on sis.students for each row
when (coalesce(current_setting('sis.publishing', true), '') <> 'on' and old.* is distinct from new.*)
execute function sis.note_student_edit('{json.dumps(ATTRIBUTES)}')
"""


def upgrade() -> None:
    op.create_table(
        "survivorship_policies",
        sa.Column("district", sa.Text(), nullable=False, comment="the district"),
        sa.Column("version", sa.Integer(), nullable=False, comment="rising from 1; the newest holds"),
        sa.Column(
            "policies",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="attribute, or default -> policy",
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
        sa.PrimaryKeyConstraint("district", "version", name=op.f("pk_survivorship_policies")),
        schema="sis",
        comment="Whose value of an attribute a district publishes; what is not set is as by default.",
    )
    op.create_table(
        "student_edits",
        sa.Column("district", sa.Text(), nullable=False, comment="the district"),
        sa.Column(
            "edit",
            sa.BigInteger(),
            sa.Identity(always=False),
            nullable=False,
            comment="running number; the newest of an attribute counts",
        ),
        sa.Column("student_id", sa.UUID(as_uuid=False), nullable=False, comment="the student, by the id it had then"),
        sa.Column("attribute", sa.Text(), nullable=False, comment="the attribute or block"),
        sa.Column(
            "base",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="column -> value before the edit",
        ),
        sa.Column(
            "value",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="column -> value that was written",
        ),
        sa.Column("edited_by", sa.Text(), nullable=False, comment="the database user who wrote it"),
        sa.Column(
            "edited_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when it was written",
        ),
        sa.Column(
            "settled_at",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="when the systems said the same; null while it counts",
        ),
        sa.PrimaryKeyConstraint("edit", name=op.f("pk_student_edits")),
        schema="sis",
        comment="What people wrote into students beside the pipeline; noted by a trigger, remembered whatever is published.",
    )
    op.create_index(
        "ix_student_edits_student_id",
        "student_edits",
        ["district", "student_id", "attribute"],
        unique=False,
        schema="sis",
    )
    op.create_table(
        "conflict_decisions",
        sa.Column("district", sa.Text(), nullable=False, comment="the district"),
        sa.Column(
            "decision",
            sa.BigInteger(),
            sa.Identity(always=False),
            nullable=False,
            comment="running number; the newest of an attribute counts",
        ),
        sa.Column("student_id", sa.UUID(as_uuid=False), nullable=False, comment="the student, by the id it had then"),
        sa.Column("attribute", sa.Text(), nullable=False, comment="the attribute or block"),
        sa.Column(
            "integration", sa.Text(), nullable=True, comment="whose value it is; null where a decision was taken back"
        ),
        sa.Column("sis_id", sa.Text(), nullable=True, comment="the record that holds it"),
        sa.Column(
            "seen",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="[integration, sis_id, value] of all; it holds until one changes",
        ),
        sa.Column("decided_by", sa.Text(), nullable=False, comment="who decided"),
        sa.Column("reason", sa.Text(), nullable=False, comment="why"),
        sa.Column(
            "decided_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("sis.clock()"),
            nullable=False,
            comment="when it was decided",
        ),
        sa.PrimaryKeyConstraint("decision", name=op.f("pk_conflict_decisions")),
        schema="sis",
        comment="Which of several values people chose, append-only.",
    )
    op.create_index(
        "ix_conflict_decisions_student_id",
        "conflict_decisions",
        ["district", "student_id", "attribute"],
        unique=False,
        schema="sis",
    )
    op.execute(NOTE_EDIT)
    op.execute(TRIGGER)


def downgrade() -> None:
    op.execute("drop trigger students_note_edit on sis.students")
    op.execute("drop function sis.note_student_edit()")
    op.drop_table("conflict_decisions", schema="sis")
    op.drop_table("student_edits", schema="sis")
    op.drop_table("survivorship_policies", schema="sis")
