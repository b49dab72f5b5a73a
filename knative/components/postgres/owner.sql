-- Gives the database to the role aegis, which owns its tables and is no superuser, with the password that the superuser
-- had. The superuser is postgres from then on and has no password: nobody logs in with it over the network.
-- For a new database and for one where aegis was the superuser; done twice it changes nothing.
DO $$
DECLARE
    object text;
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'aegis' AND NOT rolsuper) THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'aegis') THEN
        -- No session can rename its own role.
        CREATE ROLE renames_aegis SUPERUSER;
        SET LOCAL SESSION AUTHORIZATION renames_aegis;
        ALTER ROLE aegis RENAME TO postgres;
        SET LOCAL SESSION AUTHORIZATION postgres;
        DROP ROLE renames_aegis;
    END IF;
    EXECUTE (SELECT format('CREATE ROLE aegis LOGIN CREATEDB CREATEROLE REPLICATION PASSWORD %L', rolpassword)
        FROM pg_authid WHERE rolname = 'postgres');
    ALTER ROLE postgres PASSWORD NULL;
    GRANT pg_monitor, pg_signal_backend TO aegis;
    EXECUTE format('ALTER DATABASE %I OWNER TO aegis', current_database());
    FOR object IN
        SELECT format('TABLE %s', oid::regclass) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm')
        UNION ALL SELECT format('SEQUENCE %s', oid::regclass) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'S'
        AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND deptype IN ('a', 'i'))
        UNION ALL SELECT format('ROUTINE %s', oid::regprocedure) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace
        AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_proc.oid AND deptype = 'e')
    LOOP
        EXECUTE format('ALTER %s OWNER TO aegis', object);
    END LOOP;
END $$;

