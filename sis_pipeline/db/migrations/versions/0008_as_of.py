"""Who was enrolled where on a day, as the ledger knew it at a moment."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# An operation counts if it was undone an even number of times: an undo may be undone, and so on. The last one that says
# anything of a stay (a student's at a school from a day) decides; what it puts there outlasts what it takes away there.
STAYS_KNOWN_AT = """
create function sis.stays_known_at(of_district text, known_at timestamptz default 'infinity', of_student uuid default null)
returns table (
  student_id uuid, school_id uuid, school_year text, entry_date date, entry_code text,
  exit_date date, exit_code text, is_open boolean, over_on date
) language sql stable as $$
with recursive known as (
  select o.operation_id, o.undoes, o.finished_at from sis.sync_operations o
  where o.district = of_district and o.status = 'published' and o.finished_at <= known_at
), reversal as (
  select k.undoes as operation_id, k.operation_id as by_operation from known k where k.undoes is not null
  union all
  select r.operation_id, k.operation_id from reversal r join known k on k.undoes = r.by_operation
), standing as (
  select k.operation_id, k.finished_at from known k
  where k.undoes is null
    and (select count(*) from reversal r where r.operation_id = k.operation_id) % 2 = 0
), alias as (
  select a.alias_id, a.student_id from sis.student_aliases a
  where a.district = of_district and a.merged_at <= known_at
    and (a.restored_at is null or a.restored_at > known_at)
), said as (
  select coalesce(a.student_id, c.student_id) as student_id, c.school_year, s.finished_at, shown.holds,
         (shown.stay ->> 'school_id')::uuid as school_id,
         (shown.stay ->> 'entry_date')::date as entry_date, shown.stay ->> 'entry_code' as entry_code,
         (shown.stay ->> 'exit_date')::date as exit_date, shown.stay ->> 'exit_code' as exit_code,
         shown.stay ->> 'status' as status, c.kind, c.effective_date
  from sis.enrollment_changes c
  join standing s using (operation_id)
  left join alias a on a.alias_id = c.student_id
  cross join lateral (values
    (c.before, false), (c.before -> 'other_stay', false), (c.after, true), (c.after -> 'other_stay', true)
  ) shown (stay, holds)
  where c.district = of_district and c.section_id is null and shown.stay ->> 'entry_date' is not null
    and (of_student is null or c.student_id = of_student
         or c.student_id in (select one.alias_id from alias one where one.student_id = of_student))
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

ENROLLED_AS_OF = """
create function sis.enrolled_as_of(
  of_district text, as_of date, known_at timestamptz default 'infinity', of_student uuid default null
)
returns table (
  student_id uuid, school_id uuid, school_year text, entry_date date, entry_code text, exit_date date, exit_code text
) language sql stable as $$
select s.student_id, s.school_id, s.school_year, s.entry_date, s.entry_code, s.exit_date, s.exit_code
from sis.stays_known_at(of_district, known_at, of_student) s
where s.school_year = sis.school_year_of(as_of)
  and s.entry_date <= as_of and (s.over_on is null or as_of < s.over_on)
$$
"""

# School years turn on July 1.
SCHOOL_YEAR_OF = """
create function sis.school_year_of(of_day date) returns text language sql immutable parallel safe as $$
select to_char(of_day - interval '6 months', 'YYYY') || '-' || to_char(of_day + interval '6 months', 'YYYY')
$$
"""

ABOUT = {
    "school_year_of(date)": "The school year that is current on a day.",
    "stays_known_at(text, timestamptz, uuid)": "Every school enrollment of a district as the ledger knew it at a moment.",
    "enrolled_as_of(text, date, timestamptz, uuid)": (
        "Who was enrolled where on a day (the exit date excluded), as the ledger knew it at a moment."
    ),
}

CHANGE_ID = "comment on column sis.enrollment_changes.change_id is '{}'"
ONE_PER_DAY = "the event''s id; the same event seen on the same day always has the same one"
ONE_PER_OPERATION = "the event''s id; publishing an operation again gives the same one"


def upgrade() -> None:
    op.execute(CHANGE_ID.format(ONE_PER_OPERATION))
    for statement in (SCHOOL_YEAR_OF, STAYS_KNOWN_AT, ENROLLED_AS_OF):
        op.execute(statement)
    for function, about in ABOUT.items():
        op.execute(f"comment on function sis.{function} is '{about}'")


def downgrade() -> None:
    op.execute(CHANGE_ID.format(ONE_PER_DAY))
    for function in reversed(ABOUT):
        op.execute(f"drop function sis.{function}")
