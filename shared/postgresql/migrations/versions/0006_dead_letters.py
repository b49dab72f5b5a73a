"""Store events that could not be delivered until an operator decides on them."""

from alembic import op

revision = "0006"
down_revision = "0005"

STATEMENTS = (
    """
    CREATE TABLE dead_letter (
        number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        function text NOT NULL,
        source text NOT NULL,
        event_id text NOT NULL,
        type text NOT NULL,
        subject text,
        attributes jsonb NOT NULL,
        data bytea NOT NULL,
        content_type text,
        error text NOT NULL,
        count integer NOT NULL DEFAULT 1,
        first_at timestamptz NOT NULL DEFAULT now(),
        last_at timestamptz NOT NULL DEFAULT now(),
        retried_at timestamptz,
        CONSTRAINT dead_letter_event UNIQUE (function, source, event_id)
    )
    """,
    "CREATE INDEX dead_letter_open ON dead_letter (function) WHERE retried_at IS NULL",
    "CREATE INDEX dead_letter_retried_at ON dead_letter (retried_at)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
