"""Events enter the audit trail in the transaction that announces them; those not recorded yet are added."""

from alembic import op

revision = "0014"
down_revision = "0013"

# Anyone can ask for mails to addresses that have no account: such events must not fill the trail. An event that is
# announced again, because an operator retries a dead letter, has its entry already.
RECORD = """
    INSERT INTO public.audit (event_id, account_id, type, occurred_at, request_id, data)
    SELECT event.id, event.subject, event.type, event.occurred_at, event.request_id, event.data
    FROM {events} AS event
    WHERE (EXISTS (SELECT FROM public.account WHERE account.id = event.subject)
        OR EXISTS (SELECT FROM public.audit WHERE audit.account_id = event.subject)) {condition}
    ON CONFLICT (event_id) DO NOTHING
"""
RECENT = "AND event.occurred_at > now() - interval '{since}'"

STATEMENTS = (
    # Without a lock, so that writers do not wait for it.
    RECORD.format(events="public.outbox", condition=RECENT.format(since="1 day")),
    # As the owner of the tables, so that no function needs the right to write the audit trail.
    f"""
    CREATE FUNCTION record_audit() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
    $$ BEGIN {RECORD.format(events="announced", condition="")}; RETURN NULL; END $$
    """,
    """
    CREATE TRIGGER record_audit AFTER INSERT ON outbox REFERENCING NEW TABLE AS announced
    FOR EACH STATEMENT EXECUTE FUNCTION record_audit()
    """,
    # What was written in the meantime.
    RECORD.format(events="public.outbox", condition=RECENT.format(since="1 hour")),
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
