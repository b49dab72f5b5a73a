"""A second PostgreSQL on one machine, which follows the first."""

import shutil
from pathlib import Path

from sqlalchemy.engine import make_url

from knative.local import servers
from knative.local.supervisor import Process

NAME = "postgresql-2"
SLOT = "replica"
"""Under this name a primary keeps what its replica has not read yet."""
_MAKE_SLOT = f"""
    SELECT pg_create_physical_replication_slot('{SLOT}')
    WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{SLOT}')
"""  # noqa: S608 - all of it is ours


def replica(data: Path, primary_url: str) -> tuple[Process, str]:
    """A PostgreSQL that follows one that runs, on a new copy of it, and its URL."""
    shutil.rmtree(data / NAME, ignore_errors=True)
    servers.run_program("psql", "--dbname", primary_url, "--command", _MAKE_SLOT)
    servers.make_folder(
        data / NAME,
        *("pg_basebackup", "--write-recovery-conf", "--slot", SLOT, "--checkpoint", "fast"),
        *("--dbname", f"{primary_url}?application_name={SLOT}"),
    )
    return servers.postgresql(data, make_url(primary_url).password or "", NAME)
