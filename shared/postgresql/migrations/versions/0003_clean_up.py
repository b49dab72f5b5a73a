"""Indexes that find expired rows, and the events of one user, without reading whole tables."""

from alembic import op

revision = "0003"
down_revision = "0002"

STATEMENTS = (
    "CREATE INDEX account_pending ON account (created_at) WHERE status = 'pending'",
    "CREATE INDEX verification_expires_at ON verification (expires_at)",
    "CREATE INDEX session_expires_at ON session (expires_at)",
    "CREATE INDEX session_ended_at ON session (ended_at) WHERE ended_at IS NOT NULL",
    "CREATE INDEX refresh_token_used_at ON refresh_token (used_at) WHERE used_at IS NOT NULL",
    "CREATE INDEX outbox_subject ON outbox (subject, position)",
    "CREATE INDEX processed_event_claimed_at ON processed_event (claimed_at)",
    "CREATE INDEX totp_unconfirmed ON totp (created_at) WHERE confirmed_at IS NULL",
    "CREATE INDEX phone_verification_requested_at ON phone_verification (requested_at)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
