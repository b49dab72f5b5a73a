"""Brings the database to the newest schema.

    DATABASE_URL=postgresql://... python -m shared.migrate

Waits for a database that is starting. Two at once do no harm: the second waits and finds nothing to do.
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
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from shared import logs
from shared.database import is_unavailable
from shared.outbox import keep_days
from shared.settings import InvalidSettings, load, settings

MIGRATIONS = Path(__file__).parent / "migrations"
WAIT_SECONDS = 60
_LOCK = 7_253_417_909


def migrate() -> None:
    engine = create_engine(make_url(settings().database_url).set(drivername="postgresql+pg8000"), hide_parameters=True)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    engine.dispose()
    keep_days(datetime.now(UTC))


def main() -> None:
    try:
        logging.config.dictConfig(logs.configuration(load(os.environ, ["database"]).log_level))
    except InvalidSettings as error:
        sys.exit("\n".join(["the migration cannot start with these settings:", *error.problems]))
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return migrate()
        except (DBAPIError, OSError) as error:
            if not is_unavailable(error) or time.monotonic() > deadline:
                raise
            logging.getLogger("migrate").info("waiting for the database")
            time.sleep(0.5)


if __name__ == "__main__":
    main()
