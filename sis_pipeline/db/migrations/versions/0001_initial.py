"""The first schema: clock, roster tables and the pipeline's own tables."""

from alembic import op

from sis_pipeline.db.tables import metadata

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

CLOCK = """
create function sis.clock() returns timestamptz language sql volatile parallel safe as $$
  select clock_timestamp() + coalesce(nullif(current_setting('sis.clock_offset', true), '')::interval, interval '0')
$$
"""


def upgrade() -> None:
    op.execute(CLOCK)
    metadata.create_all(op.get_bind())


def downgrade() -> None:
    metadata.drop_all(op.get_bind())
    op.execute("drop function sis.clock()")
