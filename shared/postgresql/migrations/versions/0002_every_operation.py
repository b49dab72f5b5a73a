"""Tables of the remaining operations: second factors, phones, businesses, stored answers, the audit trail."""

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS = (
    """
    ALTER TABLE account
        ADD COLUMN roles text[] NOT NULL DEFAULT '{}',
        ADD COLUMN new_email text,
        ADD COLUMN new_canonical_email text,
        ADD COLUMN phone text,
        ADD COLUMN phone_verified_at timestamptz,
        ADD COLUMN withdrawn_at timestamptz
    """,
    "CREATE INDEX account_new_canonical_email ON account (new_canonical_email) WHERE new_canonical_email IS NOT NULL",
    "CREATE INDEX account_withdrawn_at ON account (withdrawn_at) WHERE withdrawn_at IS NOT NULL",
    """
    ALTER TABLE session
        ADD COLUMN amr text[] NOT NULL DEFAULT '{pwd}',
        ADD COLUMN authenticated_at timestamptz NOT NULL DEFAULT now(),
        ADD COLUMN last_used_at timestamptz NOT NULL DEFAULT now(),
        ADD COLUMN device text NOT NULL DEFAULT '',
        ADD COLUMN address text NOT NULL DEFAULT ''
    """,
    """
    CREATE TABLE totp (
        account_id uuid PRIMARY KEY REFERENCES account ON DELETE CASCADE,
        secret bytea NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        confirmed_at timestamptz,
        last_step bigint NOT NULL DEFAULT 0
    )
    """,
    """
    CREATE TABLE recovery_code (
        account_id uuid NOT NULL REFERENCES account ON DELETE CASCADE,
        code_hash bytea NOT NULL,
        PRIMARY KEY (account_id, code_hash)
    )
    """,
    """
    CREATE TABLE passkey (
        id uuid PRIMARY KEY,
        account_id uuid NOT NULL REFERENCES account ON DELETE CASCADE,
        credential_id bytea NOT NULL UNIQUE,
        public_key bytea NOT NULL,
        sign_count bigint NOT NULL,
        name text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        last_used_at timestamptz
    )
    """,
    "CREATE INDEX passkey_account_id ON passkey (account_id)",
    """
    CREATE TABLE challenge (
        token_hash bytea PRIMARY KEY,
        purpose text NOT NULL,
        account_id uuid REFERENCES account ON DELETE CASCADE,
        tries integer NOT NULL DEFAULT 0,
        created_at timestamptz NOT NULL DEFAULT now(),
        expires_at timestamptz NOT NULL
    )
    """,
    "CREATE INDEX challenge_account_id ON challenge (account_id)",
    "CREATE INDEX challenge_expires_at ON challenge (expires_at)",
    """
    CREATE TABLE phone_verification (
        account_id uuid PRIMARY KEY REFERENCES account ON DELETE CASCADE,
        phone text NOT NULL,
        code_hash bytea,
        tries integer NOT NULL DEFAULT 0,
        requested_at timestamptz NOT NULL DEFAULT now(),
        expires_at timestamptz
    )
    """,
    """
    CREATE TABLE business (
        account_id uuid PRIMARY KEY REFERENCES account ON DELETE CASCADE,
        number text NOT NULL,
        opened_on date NOT NULL,
        representative text NOT NULL,
        status text NOT NULL,
        reason text,
        submitted_at timestamptz NOT NULL DEFAULT now(),
        checked_at timestamptz,
        check_announced_at timestamptz
    )
    """,
    "CREATE INDEX business_number ON business (number)",
    "CREATE INDEX business_checked_at ON business (checked_at)",
    """
    CREATE TABLE stored_answer (
        id bytea PRIMARY KEY,
        fingerprint bytea NOT NULL,
        answer bytea,
        claimed_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX stored_answer_claimed_at ON stored_answer (claimed_at)",
    """
    CREATE TABLE audit (
        event_id uuid PRIMARY KEY,
        account_id uuid NOT NULL,
        type text NOT NULL,
        occurred_at timestamptz NOT NULL,
        request_id text NOT NULL,
        data jsonb NOT NULL
    )
    """,
    "CREATE INDEX audit_account_id ON audit (account_id, event_id)",
    """
    CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'the audit trail is append-only'; END $$
    """,
    """
    CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
