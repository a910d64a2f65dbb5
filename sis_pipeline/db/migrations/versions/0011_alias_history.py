"""Whom a student's id meant when, so that a later merge changes nothing of what was known before it."""

from importlib import import_module

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

NOTE_ALIAS = """
create function sis.note_student_alias() returns trigger language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
  at timestamptz := case when tg_op = 'INSERT' then new.merged_at else sis.clock() end;
begin
  if tg_op = 'UPDATE' and (old.student_id, old.restored_at) is not distinct from (new.student_id, new.restored_at) then
    return null;
  end if;
  update sis.student_alias_history set until = at where alias_id = new.alias_id and until is null;
  if new.restored_at is null then
    insert into sis.student_alias_history (district, alias_id, student_id, since)
    values (new.district, new.alias_id, new.student_id, at);
  end if;
  return null;
end
$$
"""
TRIGGER = """
create trigger student_aliases_note_alias after insert or update on sis.student_aliases for each row
execute function sis.note_student_alias()
"""
KNOWN_BEFORE = """
insert into sis.student_alias_history (district, alias_id, student_id, since, until)
select district, alias_id, student_id, merged_at, restored_at from sis.student_aliases
"""

# An operation counts if it was undone an even number of times: an undo may be undone, and so on.
STANDING_OPERATIONS = """
create function sis.standing_operations(of_district text, known_at timestamptz default 'infinity')
returns table (operation_id uuid, finished_at timestamptz) language sql stable as $$
with recursive known as (
  select o.operation_id, o.undoes, o.finished_at from sis.sync_operations o
  where o.district = of_district and o.status = 'published' and o.finished_at <= known_at
), reversal as (
  select k.undoes as operation_id, k.operation_id as by_operation from known k where k.undoes is not null
  union all
  select r.operation_id, k.operation_id from reversal r join known k on k.undoes = r.by_operation
)
select k.operation_id, k.finished_at from known k
where k.undoes is null
  and (select count(*) from reversal r where r.operation_id = k.operation_id) % 2 = 0
$$
"""

# The last operation that says anything of a stay (a student's at a school from a day) decides; what it puts there outlasts
# what it takes away there. One student's events are found by index: `whose` is empty where nobody is asked about.
STAYS_KNOWN_AT = """
create or replace function sis.stays_known_at(
  of_district text, known_at timestamptz default 'infinity', of_student uuid default null
)
returns table (
  student_id uuid, school_id uuid, school_year text, entry_date date, entry_code text,
  exit_date date, exit_code text, is_open boolean, over_on date
) language sql stable as $$
with alias as (
  select h.alias_id, h.student_id from sis.student_alias_history h
  where h.district = of_district and h.since <= known_at and (h.until is null or h.until > known_at)
), whose as (
  select of_student as student_id where of_student is not null
  union
  select a.alias_id from alias a where a.student_id = of_student
), told as (
  select c.* from sis.enrollment_changes c where of_student is null and c.district = of_district
  union all
  select c.* from whose w join sis.enrollment_changes c on c.student_id = w.student_id and c.district = of_district
), said as (
  select coalesce(a.student_id, c.student_id) as student_id, c.school_year, s.finished_at, shown.holds,
         (shown.stay ->> 'school_id')::uuid as school_id,
         (shown.stay ->> 'entry_date')::date as entry_date, shown.stay ->> 'entry_code' as entry_code,
         (shown.stay ->> 'exit_date')::date as exit_date, shown.stay ->> 'exit_code' as exit_code,
         shown.stay ->> 'status' as status, c.kind, c.effective_date
  from told c
  join sis.standing_operations(of_district, known_at) s using (operation_id)
  left join alias a on a.alias_id = c.student_id
  cross join lateral (values
    (c.before, false), (c.before -> 'other_stay', false), (c.after, true), (c.after -> 'other_stay', true)
  ) shown (stay, holds)
  where c.section_id is null and shown.stay ->> 'entry_date' is not null
), judged as (
  select said.*, status in ('pre_registered', 'active') as is_open,
         case when status in ('pre_registered', 'active') then exit_date
              when status = 'no_show' then entry_date
              when kind in ('withdraw', 'graduate') then coalesce(exit_date, effective_date)
              else coalesce(exit_date, entry_date) end as over_on
  from said
), latest as (
  select distinct on (j.student_id, j.school_id, j.school_year, j.entry_date) j.* from judged j
  order by j.student_id, j.school_id, j.school_year, j.entry_date, j.finished_at desc, j.holds desc, j.over_on desc
)
select l.student_id, l.school_id, l.school_year, l.entry_date, l.entry_code, l.exit_date, l.exit_code, l.is_open, l.over_on
from latest l where l.holds and (of_student is null or l.student_id = of_student)
$$
"""

ABOUT = "The operations of a district whose effect lasts, as known at a moment: those that were undone, and undos, are left out."


def upgrade() -> None:
    op.create_table(
        "student_alias_history",
        sa.Column("district", sa.Text(), nullable=False, comment="the district"),
        sa.Column("entry", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="running number"),
        sa.Column("alias_id", sa.UUID(as_uuid=False), nullable=False, comment="the student id that was merged away"),
        sa.Column("student_id", sa.UUID(as_uuid=False), nullable=False, comment="the student it was meanwhile"),
        sa.Column("since", sa.TIMESTAMP(timezone=True), nullable=False, comment="since when"),
        sa.Column(
            "until",
            sa.TIMESTAMP(timezone=True),
            nullable=True,
            comment="until it was another one, or split off; null while it is that student",
        ),
        sa.PrimaryKeyConstraint("entry", name=op.f("pk_student_alias_history")),
        schema="sis",
        comment="Which student an id meant when; kept by a trigger on student_aliases.",
    )
    for column in ("alias_id", "student_id"):
        op.create_index(
            f"ix_student_alias_history_{column}", "student_alias_history", [column], unique=False, schema="sis"
        )
    for statement in (NOTE_ALIAS, TRIGGER, KNOWN_BEFORE, STANDING_OPERATIONS, STAYS_KNOWN_AT):
        op.execute(statement)
    op.execute(f"comment on function sis.standing_operations(text, timestamptz) is '{ABOUT}'")


def downgrade() -> None:
    before: str = import_module("sis_pipeline.db.migrations.versions.0008_as_of").STAYS_KNOWN_AT
    op.execute(before.replace("create function", "create or replace function"))
    op.execute("drop function sis.standing_operations(text, timestamptz)")
    op.execute("drop trigger student_aliases_note_alias on sis.student_aliases")
    op.execute("drop function sis.note_student_alias()")
    op.drop_table("student_alias_history", schema="sis")
