"""Indexes for the administrators' search."""

from alembic import op

revision = "0004"
down_revision = "0003"

STATEMENTS = (
    "CREATE INDEX account_canonical_email_prefix ON account (canonical_email text_pattern_ops)",
    "CREATE INDEX account_name_prefix ON account (lower(name) text_pattern_ops)",
    "CREATE INDEX account_phone ON account (phone) WHERE phone IS NOT NULL",
    "CREATE INDEX account_status ON account (status, id)",
    "CREATE INDEX account_with_roles ON account (id) WHERE roles <> '{}'",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
