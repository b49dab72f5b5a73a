"""The first tables: accounts, credentials, verifications, sessions, outbox, processed events."""

from alembic import op

revision = "0001"
down_revision = None

STATEMENTS = (
    """
    CREATE TABLE account (
        id uuid PRIMARY KEY,
        email text NOT NULL,
        canonical_email text NOT NULL UNIQUE,
        name text,
        locale text NOT NULL,
        status text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        email_verified_at timestamptz
    )
    """,
    """
    CREATE TABLE credential (
        account_id uuid PRIMARY KEY REFERENCES account ON DELETE CASCADE,
        password_hash text NOT NULL,
        changed_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE TABLE verification (
        account_id uuid NOT NULL REFERENCES account ON DELETE CASCADE,
        purpose text NOT NULL,
        token_hash bytea NOT NULL UNIQUE,
        created_at timestamptz NOT NULL DEFAULT now(),
        expires_at timestamptz NOT NULL,
        PRIMARY KEY (account_id, purpose)
    )
    """,
    """
    CREATE TABLE session (
        id uuid PRIMARY KEY,
        account_id uuid NOT NULL REFERENCES account ON DELETE CASCADE,
        created_at timestamptz NOT NULL DEFAULT now(),
        expires_at timestamptz NOT NULL,
        ended_at timestamptz
    )
    """,
    "CREATE INDEX ix_session_account_id ON session (account_id)",
    """
    CREATE TABLE refresh_token (
        token_hash bytea PRIMARY KEY,
        session_id uuid NOT NULL REFERENCES session ON DELETE CASCADE,
        used_at timestamptz
    )
    """,
    "CREATE INDEX ix_refresh_token_session_id ON refresh_token (session_id)",
    """
    CREATE TABLE outbox (
        position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        id uuid NOT NULL UNIQUE,
        type text NOT NULL,
        subject uuid NOT NULL,
        data jsonb NOT NULL,
        request_id text NOT NULL,
        occurred_at timestamptz NOT NULL DEFAULT now(),
        sent_at timestamptz
    )
    """,
    "CREATE INDEX outbox_occurred_at ON outbox USING brin (occurred_at)",
    "CREATE INDEX outbox_unsent ON outbox (position) WHERE sent_at IS NULL",
    # Wakes the relay; a trigger, because a separate NOTIFY would cost the writer a round trip.
    """
    CREATE FUNCTION notify_outbox() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_notify('outbox', ''); RETURN NULL; END $$
    """,
    "CREATE TRIGGER notify_outbox AFTER INSERT ON outbox FOR EACH STATEMENT EXECUTE FUNCTION notify_outbox()",
    "CREATE TABLE relayed_topic (name text PRIMARY KEY, topic_id text NOT NULL)",
    """
    CREATE TABLE processed_event (
        function text NOT NULL,
        event_id text NOT NULL,
        claimed_at timestamptz NOT NULL DEFAULT now(),
        done_at timestamptz,
        PRIMARY KEY (function, event_id)
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
