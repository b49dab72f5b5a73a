"""Record purged accounts, so that restoring a backup does not bring them back, and backups, for the metrics."""

from alembic import op

revision = "0008"
down_revision = "0007"

STATEMENTS = (
    "CREATE TABLE purged_account (account_id uuid PRIMARY KEY, purged_at timestamptz NOT NULL DEFAULT now())",
    # A trigger also covers deletions by the previous release or by hand.
    """
    CREATE FUNCTION remember_purged() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO public.purged_account (account_id) SELECT id FROM purged ON CONFLICT DO NOTHING;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER remember_purged AFTER DELETE ON account
    REFERENCING OLD TABLE AS purged FOR EACH STATEMENT EXECUTE FUNCTION remember_purged()
    """,
    "CREATE TABLE backup (name text PRIMARY KEY, taken_at timestamptz NOT NULL, size bigint NOT NULL)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
