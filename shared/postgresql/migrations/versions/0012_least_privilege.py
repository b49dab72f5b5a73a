"""SQL functions that run with the rights of the owner, because the service's functions connect with a limited role."""

from alembic import op

revision = "0012"
down_revision = "0011"

STATEMENTS = (
    """
    CREATE FUNCTION add_outbox_day(day date) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$ BEGIN
        EXECUTE format(
            'CREATE TABLE IF NOT EXISTS public.%I PARTITION OF public.outbox FOR VALUES FROM (%L) TO (%L)',
            'outbox_' || to_char(day, 'YYYYMMDD'),
            day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
    END $$
    """,
    # Never drops unsent events.
    """
    CREATE FUNCTION drop_outbox_day(day date) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DECLARE
        name text := 'outbox_' || to_char(day, 'YYYYMMDD');
        waits boolean;
    BEGIN
        IF to_regclass(format('public.%I', name)) IS NULL THEN
            RETURN;
        END IF;
        EXECUTE format('SELECT EXISTS (SELECT FROM public.%I WHERE sent_at IS NULL)', name) INTO waits;
        IF NOT waits THEN
            EXECUTE format('DROP TABLE public.%I', name);
        END IF;
    END $$
    """,
    # Needs pg_monitor, which the owner has and the functions' role must not get.
    """
    CREATE FUNCTION replication_lag() RETURNS TABLE (name text, seconds double precision)
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        SELECT application_name, coalesce(max(extract(epoch FROM replay_lag)), 0)::double precision
        FROM pg_stat_replication WHERE state IS NOT NULL AND state <> 'backup' GROUP BY application_name
    $$
    """,
    # Otherwise a role that deletes accounts would need to insert into purged_account.
    "ALTER FUNCTION remember_purged() SECURITY DEFINER SET search_path = pg_catalog, pg_temp",
    "REVOKE EXECUTE ON FUNCTION add_outbox_day(date), drop_outbox_day(date), replication_lag() FROM PUBLIC",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
