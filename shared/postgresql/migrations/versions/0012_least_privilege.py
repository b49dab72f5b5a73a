"""What functions may do only through the owner of the tables, as they connect with a role of fewer rights."""

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
    # Events that wait to be sent stay, whoever calls it.
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
    # With the owner's right to see them (pg_monitor), and nothing else of that right.
    """
    CREATE FUNCTION replication_lag() RETURNS TABLE (name text, seconds double precision)
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        SELECT application_name, coalesce(max(extract(epoch FROM replay_lag)), 0)::double precision
        FROM pg_stat_replication WHERE state IS NOT NULL AND state <> 'backup' GROUP BY application_name
    $$
    """,
    # Else whoever deletes accounts would need the right to say that any account was purged.
    "ALTER FUNCTION remember_purged() SECURITY DEFINER SET search_path = pg_catalog, pg_temp",
    "REVOKE EXECUTE ON FUNCTION add_outbox_day(date), drop_outbox_day(date), replication_lag() FROM PUBLIC",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
