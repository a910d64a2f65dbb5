"""Pending transfers are of children who are in no other district now, whether or not two of their enrollments are paired."""

from importlib import import_module

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

SOMEWHERE_SINCE = """o.school_year >= e.school_year and o.status <> 'no_show'
      and (o.status in ('pre_registered', 'active') or o.exit_date > e.exit_date)"""
PENDING_TRANSFERS = f"""
create or replace view sis.pending_transfers as
select e.district, e.student_id, e.school_id, e.school_year, e.exit_date, e.exit_code
from sis.enrollments e
join sis.students s on s.district = e.district and s.student_id = e.student_id
where (select m.enabled from sis.statewide_matching m order by m.version desc limit 1)
  and s.ssid is not null
  and e.status in ('withdrawn', 'transferred')
  and e.exit_date >= sis.clock()::date - 14
  and not exists (
    select from sis.enrollments o
    where o.district = e.district and o.student_id = e.student_id and {SOMEWHERE_SINCE})
  and not exists (
    select from (
      select l.district, l.student_id, l.other_district, l.other_student_id
      from sis.statewide_links l where l.decision = 'match'
      union all
      select l.other_district, l.other_student_id, l.district, l.student_id
      from sis.statewide_links l where l.decision = 'match'
    ) same
    join sis.enrollments o on o.district = same.other_district and o.student_id = same.other_student_id
    where same.district = e.district and same.student_id = e.student_id and {SOMEWHERE_SINCE})
"""
ABOUT = "Who left a district in the last 14 days and is at no school of the installation since, nor expected at one."


def upgrade() -> None:
    _describe(PENDING_TRANSFERS, ABOUT)


def downgrade() -> None:
    before = import_module("sis_pipeline.db.migrations.versions.0012_statewide")
    _describe(before.PENDING_TRANSFERS.replace("create view", "create or replace view"), before.ABOUT)


def _describe(view: str, about: str) -> None:
    op.execute(view)
    op.execute(f"comment on view sis.pending_transfers is '{about}'")
