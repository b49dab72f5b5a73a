"""Events enter the audit trail in the transaction that announces them; those not recorded yet are added."""

from alembic import op

revision = "0014"
down_revision = "0013"

# Anyone can ask for mails to addresses that have no account: such events must not fill the trail.
RECORD = """
    INSERT INTO public.audit (event_id, account_id, type, occurred_at, request_id, data)
    SELECT event.id, event.subject, event.type, event.occurred_at, event.request_id, event.data
    FROM {events} AS event
    WHERE (EXISTS (SELECT FROM public.account WHERE account.id = event.subject)
        OR EXISTS (SELECT FROM public.audit WHERE audit.account_id = event.subject))
"""

ADD_MISSING = (
    RECORD.format(events="public.outbox")
    + "AND event.occurred_at > now() - interval '{since}' ON CONFLICT (event_id) DO NOTHING"
)

STATEMENTS = (
    # Without a lock, so that writers do not wait for it.
    ADD_MISSING.format(since="1 day"),
    # As the owner of the tables, so that no function needs the right to write the audit trail.
    f"""
    CREATE FUNCTION record_audit() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
    $$ BEGIN {RECORD.format(events="announced")}; RETURN NULL; END $$
    """,
    """
    CREATE TRIGGER record_audit AFTER INSERT ON outbox REFERENCING NEW TABLE AS announced
    FOR EACH STATEMENT EXECUTE FUNCTION record_audit()
    """,
    # What was written in the meantime.
    ADD_MISSING.format(since="1 hour"),
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
