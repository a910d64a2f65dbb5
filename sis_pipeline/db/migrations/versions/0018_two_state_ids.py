"""A decision that two are one student although they have two state ids of one issuer."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

TABLE, CHECK = "identity_decisions", "ck_identity_decisions_verdict"
BEFORE = "same or distinct"
ABOUT = "same, same_with_two_state_ids (one student who has two of one issuer) or distinct"


def upgrade() -> None:
    _allow("'same','same_with_two_state_ids','distinct'", ABOUT)


def downgrade() -> None:
    """Such a decision becomes one that two state ids forbid."""
    op.execute("update sis.identity_decisions set verdict = 'same' where verdict = 'same_with_two_state_ids'")
    _allow("'same','distinct'", BEFORE)


def _allow(verdicts: str, about: str) -> None:
    op.drop_constraint(op.f(CHECK), TABLE, schema="sis", type_="check")
    op.create_check_constraint(op.f(CHECK), TABLE, f"verdict in ({verdicts})", schema="sis")
    op.alter_column(TABLE, "verdict", existing_type=sa.Text(), comment=about, schema="sis")
