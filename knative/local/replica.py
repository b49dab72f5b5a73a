"""Two PostgreSQL servers on one machine, a primary and a replica. A failover swaps their roles."""

import shutil
from pathlib import Path

from knative.local import servers
from knative.local.servers import LOOPBACK, STANDBY
from knative.local.supervisor import Process, StartFailed
from shared.runtime import database_url

NAMES = ("postgresql", "postgresql-2")
"""Names of their folders in the data folder."""
SLOT = "replica"
"""The replication slot in which a primary keeps what its replica has not read yet."""
MAKE_SLOT = f"""
    SELECT pg_create_physical_replication_slot('{SLOT}')
    WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{SLOT}')
"""  # noqa: S608 - all of it is ours


def primary(data: Path) -> str:
    """Return the folder of the server that accepts writes.

    Raises:
        StartFailed: neither accepts writes.
    """
    there = [name for name in NAMES if (data / name / "PG_VERSION").exists()]
    writable = [name for name in there if not (data / name / STANDBY).exists()]
    if there and not writable:
        raise StartFailed(
            f"Neither PostgreSQL in {data} accepts writes: a failover was begun but did not promote the replica.\n"
            f"To continue with the previous primary, delete {data / NAMES[0] / STANDBY}."
        )
    return writable[0] if writable else NAMES[0]


def replica(data: Path, primary_url: str) -> tuple[Process, str]:
    """Copy the running primary and return a PostgreSQL on the copy that follows it, with its URL."""
    (name,) = set(NAMES) - {primary(data)}
    shutil.rmtree(data / name, ignore_errors=True)
    servers.run_program("psql", "--dbname", primary_url, "--command", MAKE_SLOT)
    servers.make_folder(
        data / name,
        *("pg_basebackup", "--write-recovery-conf", "--slot", SLOT, "--checkpoint", "fast"),
        *("--dbname", f"{primary_url}?application_name={SLOT}"),
    )
    return servers.postgresql(data, database_url.parse(primary_url).password, name)


def urls(data: Path, primary_url: str, replica_url: str, functions_url: str = "") -> dict[str, str]:
    """Return the settings to use both servers. The addresses are in the order of `NAMES`, whichever is the primary."""
    both = [primary_url, replica_url] if primary(data) == NAMES[0] else [replica_url, primary_url]
    ports = [database_url.parse(url).addresses[0].port for url in both]
    owner, _, rest = primary_url.partition("@")
    start = functions_url.partition("@")[0] or owner
    addresses = ",".join(f"{LOOPBACK}:{port}" for port in ports)
    place = f"{addresses}/{rest.partition('/')[2]}?target_session_attrs="
    return {
        "DATABASE_URL": f"{start}@{place}read-write",
        "OWNER_DATABASE_URL": f"{owner}@{place}read-write",
        "REPLICA_DATABASE_URL": f"{start}@{place}standby",
    }
