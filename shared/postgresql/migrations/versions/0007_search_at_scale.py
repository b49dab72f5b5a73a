"""Search by prefix with index-only scans; a later release drops the indexes without ids."""

from alembic import op

revision = "0007"
down_revision = "0006"

STATEMENTS = (
    """
    CREATE INDEX account_canonical_email_prefix_with_id
    ON account (canonical_email text_pattern_ops) INCLUDE (id, status)
    """,
    # Includes the name, as PostgreSQL uses no index-only scan on the expression otherwise.
    """
    CREATE INDEX account_name_prefix_with_id
    ON account (lower(name) text_pattern_ops) INCLUDE (name, id, status)
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
