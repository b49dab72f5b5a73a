"""Record whether a passkey can be synced to other devices; its authenticator must not change that later."""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    # Null for existing passkeys, until their next login.
    op.execute("ALTER TABLE passkey ADD COLUMN backup_eligible boolean")
