"""Whether a passkey may be synced to other devices, which its authenticator may not say otherwise later."""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    # Null for passkeys of before: their next log-in says it.
    op.execute("ALTER TABLE passkey ADD COLUMN backup_eligible boolean")
