"""Finds who has a beginning in common without a look at their rows; the indexes without ids go a release later."""

from alembic import op

revision = "0007"
down_revision = "0006"

STATEMENTS = (
    """
    CREATE INDEX account_canonical_email_prefix_with_id
    ON account (canonical_email text_pattern_ops) INCLUDE (id, status)
    """,
    # With the name itself: only then does PostgreSQL know that it need not look at the row.
    """
    CREATE INDEX account_name_prefix_with_id
    ON account (lower(name) text_pattern_ops) INCLUDE (name, id, status)
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
