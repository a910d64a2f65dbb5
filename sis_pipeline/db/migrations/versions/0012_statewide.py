"""One child in several districts: linked by ssid, with the way from one to another. And conflicts that went stale."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

UUID = sa.UUID(as_uuid=False)
STAMP = postgresql.TIMESTAMP(timezone=True)
CLOCK = sa.text("sis.clock()")

PENDING_TRANSFERS = """
create view sis.pending_transfers as
select e.district, e.student_id, e.school_id, e.school_year, e.exit_date, e.exit_code
from sis.enrollments e
join sis.students s on s.district = e.district and s.student_id = e.student_id
where (select m.enabled from sis.statewide_matching m order by m.version desc limit 1)
  and s.ssid is not null
  and e.status in ('withdrawn', 'transferred')
  and e.exit_date >= sis.clock()::date - 14
  and not exists (
    select from sis.enrollments o
    where o.district = e.district and o.student_id = e.student_id and o.school_year >= e.school_year
      and (o.status in ('pre_registered', 'active') or o.exit_date > e.exit_date))
  and not exists (
    select from sis.statewide_transfers t
    where t.kind = 'transfer' and t.district = e.district and t.student_id = e.student_id
      and t.school_id = e.school_id and t.exit_date = e.exit_date)
"""
ABOUT = "Who left a district in the last 14 days and has not entered another one yet."

COMMENTS = {
    "table sis.conflicts": (
        "Attributes on which the systems disagree, what was chosen and by which rule.",
        "Attributes on which the systems disagree, what was chosen and by which rule; and, stale, on which they did until `changed_at`.",
    ),
    "column sis.conflicts.status": (
        "open, auto, resolved or stale",
        "whether nobody has chosen, a rule, or a person; stale where nothing conflicts any more",
    ),
}
"""What is commented -> what was said before, and what is from now on."""


def upgrade() -> None:
    for what, (_, about) in COMMENTS.items():
        op.execute(f"comment on {what} is '{about}'")
    op.create_table(
        "statewide_matching",
        sa.Column("version", sa.Integer(), nullable=False, comment="rising from 1; the newest holds"),
        sa.Column(
            "enabled", sa.Boolean(), nullable=False, comment="whether students of several districts are compared"
        ),
        sa.Column("set_by", sa.Text(), nullable=False, comment="who set it"),
        sa.Column("reason", sa.Text(), nullable=False, comment="why"),
        sa.Column("set_at", STAMP, server_default=CLOCK, nullable=False, comment="when it was set"),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_statewide_matching")),
        schema="sis",
        comment="Whether this installation looks for one child in several districts; without a row it does not.",
    )
    _links()
    _transfers()
    op.execute(PENDING_TRANSFERS)
    op.execute(f"comment on view sis.pending_transfers is '{ABOUT}'")


def _links() -> None:
    op.create_table(
        "statewide_links",
        sa.Column("district", sa.Text(), nullable=False, comment="one district, the first of the two by name"),
        sa.Column("student_id", UUID, nullable=False, comment="the student there"),
        sa.Column("other_district", sa.Text(), nullable=False, comment="the other district"),
        sa.Column("other_student_id", UUID, nullable=False, comment="the student there"),
        sa.Column("decision", sa.Text(), nullable=False, comment="match, or near_match where only the ssid agrees"),
        sa.Column("evidence", sa.Text(), nullable=False, comment="names of what agrees; no values"),
        sa.Column("found_at", STAMP, server_default=CLOCK, nullable=False, comment="when it was found"),
        sa.CheckConstraint("decision in ('match','near_match')", name=op.f("ck_statewide_links_decision")),
        sa.PrimaryKeyConstraint(
            "district", "student_id", "other_district", "other_student_id", name=op.f("pk_statewide_links")
        ),
        schema="sis",
        comment="Students of two districts with one ssid; follows what both have published.",
    )
    op.create_index("ix_statewide_links_other_student_id", "statewide_links", ["other_student_id"], schema="sis")


def _transfers() -> None:
    op.create_table(
        "statewide_transfers",
        sa.Column("district", sa.Text(), nullable=False, comment="the district that was left, or entered first"),
        sa.Column("transfer_id", UUID, nullable=False, comment="the pair; the same two enrollments always have it"),
        sa.Column(
            "kind", sa.Text(), nullable=False, comment="transfer, or concurrent: the primary enrollment runs in both"
        ),
        sa.Column("student_id", UUID, nullable=False, comment="the student there"),
        sa.Column("school_id", UUID, nullable=False, comment="the school there"),
        sa.Column("school_year", sa.Text(), nullable=False, comment="school year of the enrollment there"),
        sa.Column("exit_date", sa.Date(), nullable=True, comment="first day no longer enrolled there"),
        sa.Column("other_district", sa.Text(), nullable=False, comment="the district that was entered"),
        sa.Column("other_student_id", UUID, nullable=False, comment="the student there"),
        sa.Column("other_school_id", UUID, nullable=False, comment="the school there"),
        sa.Column("other_school_year", sa.Text(), nullable=False, comment="school year of the enrollment there"),
        sa.Column("entry_date", sa.Date(), nullable=False, comment="first day there"),
        sa.Column("found_at", STAMP, server_default=CLOCK, nullable=False, comment="when it was found"),
        sa.CheckConstraint("kind in ('transfer','concurrent')", name=op.f("ck_statewide_transfers_kind")),
        sa.PrimaryKeyConstraint("transfer_id", name=op.f("pk_statewide_transfers")),
        schema="sis",
        comment="Who went from one district to another, and who is in two at once; follows what both have published.",
    )
    for column in ("student_id", "other_student_id"):
        op.create_index(f"ix_statewide_transfers_{column}", "statewide_transfers", [column], schema="sis")


def downgrade() -> None:
    for what, (before, _) in COMMENTS.items():
        op.execute(f"comment on {what} is '{before}'")
    op.execute("drop view sis.pending_transfers")
    for table in ("statewide_transfers", "statewide_links", "statewide_matching"):
        op.drop_table(table, schema="sis")
