"""What a source cleared: kept with its records, and told by `sis.provenance`."""

from importlib import import_module

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

LISTS = {
    "emptied": "attributes of which it had a value, and has none in a reading that does not prove why",
    "cleared": "attributes of which it had a value, and which a complete reading shows taken away",
}
CANDIDATES = (
    "the values and the records that hold them: [{integration, sis_id, value, modified_at}]",
    "the values and the records that hold them, null where one cleared it: [{integration, sis_id, value, modified_at}]",
)
"""What was said of the column before, and what is from now on."""

EARLIER: str = import_module("sis_pipeline.db.migrations.versions.0012_statewide").PROVENANCE
HEARD = (
    """v.edited = p.name or v.edited is null and exists (
    select from jsonb_array_elements_text(p.lead) l where v.said ->> l is not null)""",
    """v.edited = p.name or v.edited is null and ((v.said -> 'cleared') ? p.name or exists (
    select from jsonb_array_elements_text(p.lead) l where v.said ->> l is not null))""",
)
"""Who has a say about an attribute: before, and from now on."""


def upgrade() -> None:
    for name, about in LISTS.items():
        op.add_column("student_sources", sa.Column(name, postgresql.JSONB(), comment=about), schema="sis")
    _redefine(EARLIER.replace(*HEARD))
    _comment(CANDIDATES[1])


def downgrade() -> None:
    _redefine(EARLIER)
    _comment(CANDIDATES[0])
    for name in LISTS:
        op.drop_column("student_sources", name, schema="sis")


def _redefine(function: str) -> None:
    op.execute(function.replace("create function", "create or replace function", 1))


def _comment(about: str) -> None:
    op.execute(f"comment on column sis.conflicts.candidates is '{about}'")
