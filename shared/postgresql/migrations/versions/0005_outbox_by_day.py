"""Partition the outbox by day, so that dropping a table removes old events, and record the end offsets of the topic.

Unsent events and those of the last day are moved, which blocks writers meanwhile.
"""

from alembic import op

revision = "0005"
down_revision = "0004"

STATEMENTS = (
    "DROP TRIGGER notify_outbox ON outbox",
    "ALTER TABLE outbox RENAME TO former_outbox",
    "DROP INDEX outbox_occurred_at, outbox_unsent, outbox_subject",
    "ALTER TABLE former_outbox RENAME CONSTRAINT outbox_pkey TO former_outbox_pkey",
    "CREATE SEQUENCE outbox_positions",
    "SELECT setval('outbox_positions', coalesce(max(position), 0) + 1, false) FROM former_outbox",
    """
    CREATE TABLE outbox (
        position bigint NOT NULL DEFAULT nextval('outbox_positions'),
        id uuid NOT NULL,
        type text NOT NULL,
        subject uuid NOT NULL,
        data jsonb NOT NULL,
        request_id text NOT NULL,
        occurred_at timestamptz NOT NULL DEFAULT now(),
        sent_at timestamptz,
        PRIMARY KEY (id, occurred_at)
    ) PARTITION BY RANGE (occurred_at)
    """,
    # An insert never fails because a day's partition is missing.
    "CREATE TABLE outbox_other PARTITION OF outbox DEFAULT",
    "CREATE INDEX outbox_unsent ON outbox (position) WHERE sent_at IS NULL",
    "CREATE INDEX outbox_subject ON outbox (subject, position)",
    """
    INSERT INTO outbox SELECT position, id, type, subject, data, request_id, occurred_at, sent_at
    FROM former_outbox WHERE sent_at IS NULL OR occurred_at > now() - interval '1 day'
    """,
    "DROP TABLE former_outbox",
    "CREATE TRIGGER notify_outbox AFTER INSERT ON outbox FOR EACH STATEMENT EXECUTE FUNCTION notify_outbox()",
    "ALTER TABLE relayed_topic ADD ends bigint[] NOT NULL DEFAULT '{}'",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
