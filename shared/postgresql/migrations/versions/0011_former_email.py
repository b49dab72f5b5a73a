"""Keep the old address for seven days after a change, so that its owner can undo the change."""

from alembic import op

revision = "0011"
down_revision = "0010"

STATEMENTS = (
    """
    CREATE TABLE former_email (
        id uuid PRIMARY KEY,
        account_id uuid NOT NULL REFERENCES account (id) ON DELETE CASCADE,
        email text NOT NULL,
        canonical_email text NOT NULL UNIQUE,
        token_hash bytea UNIQUE,
        replaced_at timestamptz NOT NULL DEFAULT now(),
        expires_at timestamptz NOT NULL
    )
    """,
    "CREATE INDEX former_email_account_id ON former_email (account_id)",
    "CREATE INDEX former_email_expires_at ON former_email (expires_at)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
