"""Migrate the database to the newest schema, in one transaction.

    OWNER_DATABASE_URL=postgresql://... DATABASE_URL=postgresql://... python -m shared.postgresql.migrate

It waits for a database that is starting, and for locked tables: only briefly each time, because later requests queue
behind it. Two migrations at once are harmless: the second waits and finds nothing to do.
"""

import logging
import logging.config
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from shared.postgresql import privileges
from shared.postgresql.partitions import keep_days
from shared.postgresql.pool import unpooled
from shared.postgresql.transactions import is_unavailable, sqlstate
from shared.runtime import database_url, logs
from shared.runtime.problems import ServiceUnavailable
from shared.runtime.settings import InvalidSettings, load, settings

MIGRATIONS = Path(__file__).parent / "migrations"
WAIT_SECONDS = 60
"""Limit for all waiting, except for another migration."""
PAUSE_SECONDS = 0.5
LOCK_SECONDS = 1.2
"""Longer than PostgreSQL takes to cancel a vacuum that blocks us (deadlock_timeout); shorter than a request waits."""
LOCK_PAUSE_SECONDS = 5.0
"""Lets the waiting requests catch up."""
_LOCK = 7_253_417_909
_LOCK_NOT_AVAILABLE = "55P03"

log = logging.getLogger("migrate")


def migrate() -> None:
    """Apply the missing migrations.

    Raises:
        DBAPIError, OSError, ServiceUnavailable: a statement failed, or the database is unreachable or busy.
        CommandError: a newer release has migrated the database.
        Overprivileged: the role of the functions has rights that it must not have.
        RoleMissing: the role of the functions does not exist yet, and we cannot create it.
    """
    url = settings().privileged_database_url
    engine = unpooled(url)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    try:
        with engine.begin() as connection:
            lock = {"lock": _LOCK}
            if not connection.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), lock):
                log.info("waiting for another migration to end")
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), lock)
            connection.execute(text(f"SET LOCAL lock_timeout = {round(LOCK_SECONDS * 1000)}"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            functions = database_url.parse(settings().database_url)
            if functions.user != database_url.parse(url).user:
                privileges.grant(connection, functions)
            else:
                log.warning("the functions connect as the owner of the tables: set DB_OWNER and DB_OWNER_PASSWORD")
    finally:
        engine.dispose()
    keep_days(datetime.now(UTC))


def main() -> None:
    try:
        logging.config.dictConfig(logs.configuration(load(os.environ, ["database"])))
    except InvalidSettings as error:
        sys.exit("\n".join(["the migration cannot start with these settings:", *error.problems]))
    # Regardless of LOG_LEVEL: the release command reads the last line.
    log.setLevel(logging.INFO)
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            migrate()
            break
        except privileges.Overprivileged as error:
            sys.exit(f"the migration refuses this database: {error}")
        except CommandError as error:
            sys.exit(
                f"the migration refuses this database: {error}\nA newer release has migrated it. "
                "A rollback needs no migration: the previous release runs on the new schema."
            )
        except (DBAPIError, OSError, ServiceUnavailable, privileges.RoleMissing) as error:
            reason = _reason(error)
            is_over = time.monotonic() > deadline
            if is_over or (isinstance(error, DBAPIError) and not is_unavailable(error)):
                print(
                    f"the migration {'gave up' if is_over else 'failed'}: {reason}\n"
                    "Nothing was migrated: a migration is one transaction. Fix the cause, then run it again.",
                    file=sys.stderr,
                )
                sys.exit(os.EX_TEMPFAIL if is_over else 1)
            log.warning("waiting", extra={"reason": reason})
            time.sleep(LOCK_PAUSE_SECONDS if _is_locked(error) else PAUSE_SECONDS)
    log.info("done", extra={"schema": ScriptDirectory(str(MIGRATIONS)).get_current_head()})


def _is_locked(error: Exception) -> bool:
    return isinstance(error, DBAPIError) and sqlstate(error) == _LOCK_NOT_AVAILABLE


def _reason(error: Exception) -> str:
    if isinstance(error, privileges.RoleMissing):
        return str(error)
    if not isinstance(error, DBAPIError) or not error.orig or not sqlstate(error):
        place = settings().privileged_database_url.rpartition("@")[2]
        return f"the database is unreachable ({place}: {error.orig if isinstance(error, DBAPIError) else error})"
    holders = _holders() if _is_locked(error) else []
    statement = [f"in: {error.statement.strip()}"] if error.statement else []
    return "\n".join([f"{error.orig.args[0]['M']} ({sqlstate(error)})", *holders, *statement])


def _holders() -> list[str]:
    """Describe the transactions that hold tables and may block the migration, oldest first."""
    query = """
        SELECT pid, application_name, coalesce(state, backend_type) AS state,
               round(extract(epoch FROM now() - xact_start)) AS seconds,
               string_agg(DISTINCT relation::regclass::text, ', ') AS tables
        FROM pg_locks JOIN pg_class ON pg_class.oid = relation JOIN pg_stat_activity USING (pid)
        WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace AND granted AND pid <> pg_backend_pid()
        GROUP BY pid, application_name, state, backend_type, xact_start ORDER BY xact_start
    """
    engine = unpooled(settings().privileged_database_url)
    try:
        with engine.connect() as connection:
            found = connection.execute(text(query)).all()
    except DBAPIError:
        return []
    finally:
        engine.dispose()
    return [
        f"process {row.pid} ({row.application_name}, {row.state}) has held {row.tables} for {row.seconds} s; "
        f"to end it: SELECT pg_terminate_backend({row.pid})"
        for row in found
    ]


if __name__ == "__main__":
    main()
