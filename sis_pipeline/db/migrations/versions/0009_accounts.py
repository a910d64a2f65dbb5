"""Accounts of students and staff with the rules they are made by, and bulk withdrawals."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

STAMP = postgresql.TIMESTAMP(timezone=True)
CLOCK = sa.text("sis.clock()")

ACCOUNT_RECORDS = """
create view sis.account_records as
select a.district, a.account_id, a.kind, l.integration, l.sis_id, l.active
from sis.accounts a join sis.student_links l on l.district = a.district and l.student_id = a.person_id
where a.kind = 'student'
union all
select a.district, a.account_id, a.kind, l.integration, l.sis_id, l.active
from sis.accounts a join sis.staff_links l on l.district = a.district and l.staff_id = a.person_id
where a.kind = 'staff'
"""

# Who teaches beside a teacher of record is a co-teacher; the other roles are the systems' own.
ACCOUNT_SECTIONS = """
create view sis.account_sections as
select a.district, a.account_id, e.school_year, e.section_id, s.school_id,
       case when e.role = 'teacher' and not coalesce(e.is_primary, false) and s.teacher_id <> e.person_id
            then 'co_teacher' else e.role end as role,
       e.begin_date, e.end_date
from sis.accounts a
join sis.section_enrollments e on e.district = a.district and e.person_id = a.person_id
join sis.sections s on s.district = e.district and s.section_id = e.section_id
where a.status = 'active' and (a.kind = 'student') = (e.role = 'student')
union all
select a.district, a.account_id, s.school_year, s.section_id, s.school_id, 'teacher', null, null
from sis.accounts a
join sis.sections s on s.district = a.district and s.teacher_id = a.person_id
where a.status = 'active' and a.kind = 'staff' and not exists (
  select from sis.section_enrollments e
  where e.district = s.district and e.section_id = s.section_id and e.person_id = a.person_id and e.role <> 'student')
"""

EVIDENCE = "comment on column sis.enrollment_changes.evidence is '{}'"
BEFORE = "what shows it: first_load, new_record, explicit_exit, absence, tombstone, field_change, undo:OPERATION"
WITH_WITHDRAWALS = BEFORE.replace("undo:", "withdrawal:WITHDRAWAL, undo:")

VIEWS = {
    "account_records": (ACCOUNT_RECORDS, "Which SIS records an account stands for."),
    "account_sections": (
        ACCOUNT_SECTIONS,
        "The sections an active account may see, and as what: student, teacher (of record), co_teacher or another role.",
    ),
}


def upgrade() -> None:
    op.create_table(
        "account_rules",
        sa.Column("district", sa.Text(), nullable=False, comment="the district"),
        sa.Column("version", sa.Integer(), nullable=False, comment="rising from 1; the newest holds"),
        sa.Column(
            "rules",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="setting, as student.username -> value",
        ),
        sa.Column("set_by", sa.Text(), nullable=False, comment="who set it"),
        sa.Column("reason", sa.Text(), nullable=False, comment="why"),
        sa.Column("set_at", STAMP, server_default=CLOCK, nullable=False, comment="when it was set"),
        sa.Column(
            "followed_on",
            sa.Date(),
            nullable=True,
            comment="the last day on which the accounts were brought to what the roster says",
        ),
        sa.PrimaryKeyConstraint("district", "version", name=op.f("pk_account_rules")),
        schema="sis",
        comment="How a district makes accounts; a district without a row has none.",
    )
    op.create_table(
        "accounts",
        sa.Column("district", sa.Text(), nullable=False, comment="the district (LEA)"),
        sa.Column(
            "account_id",
            sa.UUID(as_uuid=False),
            nullable=False,
            comment="the account's permanent id, always the same for a person",
        ),
        sa.Column("kind", sa.Text(), nullable=False, comment="whose account it is"),
        sa.Column("person_id", sa.UUID(as_uuid=False), nullable=False, comment="the student or staff member"),
        sa.Column(
            "username",
            sa.Text(),
            nullable=False,
            comment="user name; given once, kept, and never given to another person",
        ),
        sa.Column(
            "email",
            sa.Text(),
            nullable=True,
            comment="the user name at the domain of now; null where the rules name none",
        ),
        sa.Column("status", sa.Text(), nullable=False, comment="active or suspended"),
        sa.Column(
            "missing_since",
            sa.Date(),
            nullable=True,
            comment="the day on which the roster was first found to have no place for the person; the grace period runs from it",
        ),
        sa.Column("note", sa.Text(), nullable=True, comment="why it is suspended"),
        sa.Column("role", sa.Text(), nullable=False, comment="student, or the role of the staff member"),
        sa.Column(
            "school_ids",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=True,
            comment="the schools: enrolled at, or working at; of someone missing, the last ones",
        ),
        sa.Column("created_at", STAMP, server_default=CLOCK, nullable=False, comment="when the account was made"),
        sa.Column("changed_at", STAMP, server_default=CLOCK, nullable=False, comment="when the row was last written"),
        sa.PrimaryKeyConstraint("district", "account_id", name=op.f("pk_accounts")),
        sa.UniqueConstraint("district", "username", name=op.f("uq_accounts_district_username")),
        schema="sis",
        comment="Accounts of students and staff, as the published roster and the district's account rules say. Never deleted.",
    )
    op.create_index("ix_accounts_person_id", "accounts", ["person_id"], unique=False, schema="sis")
    op.create_table(
        "spent_usernames",
        sa.Column("district", sa.Text(), nullable=False, comment="the district"),
        sa.Column("mark", sa.Integer(), nullable=False, comment="a number that one in 65,536 user names has"),
        sa.PrimaryKeyConstraint("district", "mark", name=op.f("pk_spent_usernames")),
        schema="sis",
        comment="Marks of the user names of people who were erased: nobody else gets such a name.",
    )
    op.create_table(
        "withdrawals",
        sa.Column("district", sa.Text(), nullable=False, comment="the district"),
        sa.Column("withdrawal_id", sa.UUID(as_uuid=False), nullable=False, comment="the withdrawal"),
        sa.Column("school_id", sa.UUID(as_uuid=False), nullable=False, comment="the school"),
        sa.Column("school_year", sa.Text(), nullable=False, comment="school year"),
        sa.Column("effective_date", sa.Date(), nullable=False, comment="first day no longer enrolled"),
        sa.Column("exit_code", sa.Text(), nullable=True, comment="exit code that the enrollments get"),
        sa.Column("withdrawn_by", sa.Text(), nullable=False, comment="who withdrew them"),
        sa.Column("reason", sa.Text(), nullable=False, comment="why"),
        sa.Column("withdrawn_at", STAMP, server_default=CLOCK, nullable=False, comment="when that was said"),
        sa.Column("taken_back_by", sa.Text(), nullable=True, comment="who took it back; null while it stands"),
        sa.Column("taken_back_at", STAMP, nullable=True, comment="when it was taken back"),
        sa.PrimaryKeyConstraint("withdrawal_id", name=op.f("pk_withdrawals")),
        schema="sis",
        comment="Bulk withdrawals: all who were enrolled at a school, ended by a person on a day.",
    )
    op.create_index(
        "ix_withdrawals_standing",
        "withdrawals",
        ["district", "school_year"],
        unique=False,
        schema="sis",
        postgresql_where=sa.text("taken_back_at is null"),
    )
    op.create_table(
        "withdrawn_enrollments",
        sa.Column("district", sa.Text(), nullable=False, comment="the district"),
        sa.Column("withdrawal_id", sa.UUID(as_uuid=False), nullable=False, comment="the withdrawal"),
        sa.Column("student_id", sa.UUID(as_uuid=False), nullable=False, comment="the student, by the id it had then"),
        sa.Column("entry_date", sa.Date(), nullable=False, comment="first day of the enrollment, as it was then"),
        sa.PrimaryKeyConstraint("withdrawal_id", "student_id", "entry_date", name=op.f("pk_withdrawn_enrollments")),
        schema="sis",
        comment="The enrollments of each withdrawal; inputs of every merge while it stands.",
    )
    op.create_index(
        "ix_withdrawn_enrollments_student_id", "withdrawn_enrollments", ["student_id"], unique=False, schema="sis"
    )
    op.execute(EVIDENCE.format(WITH_WITHDRAWALS))
    for view, (statement, about) in VIEWS.items():
        op.execute(statement)
        op.execute(f"comment on view sis.{view} is '{about}'")


def downgrade() -> None:
    for view in reversed(VIEWS):
        op.execute(f"drop view sis.{view}")
    op.execute(EVIDENCE.format(BEFORE))
    for table in ("withdrawn_enrollments", "withdrawals", "spent_usernames", "accounts", "account_rules"):
        op.drop_table(table, schema="sis")
