"""Take a backup: `aegis backup`."""

import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import pyrage
from sqlalchemy import Connection, delete, select, text
from sqlalchemy.dialects.postgresql import insert

from knative.operations.backup import authenticity, check, manifest, retention
from knative.operations.backup.manifest import Manifest, Part
from knative.operations.backup.postgresql import BACKUP_LOCK, alone, connected, pipe, quoted, running
from knative.operations.backup.store import BEGUN, DUMP, PURGED, Vault
from knative.operations.backup.streams import Measured, Source, encrypt
from knative.terminal import Progress, Refused, Result
from shared.postgresql.tables import backup

_ADVICE = "Check BACKUP_STORE: free space, the network, the permissions of its key. Then repeat the command."

LOCK_MILLISECONDS = 60_000
"""How long pg_dump waits for a table that a migration has locked."""


def take(database: str, vault: Vault, keep: retention.Keep, progress: Progress) -> Result:
    """Take a backup and return its summary.

    Args:
        database: its URL, not through PgBouncer: the snapshot must outlive a transaction.

    Raises:
        Refused: there is no new backup; earlier ones are unchanged.
    """
    # The backup is read back with an identity that only this command has: the operators' are not here.
    own = pyrage.x25519.Identity.generate()
    vault = vault._replace(recipients=(*vault.recipients, str(own.to_public())), identities=(str(own),))
    with alone(database, BACKUP_LOCK, "Another backup of this database") as connection:
        _delete_what_died(vault, progress)
        name = manifest.new_name()
        if name in vault.store.names():
            raise Refused(f"A backup {name} was taken this second. Try again.")
        began = time.monotonic()
        try:
            manifest.begin(vault, name)
            taken = _write(database, vault, name, progress)
            check.check(vault, taken, progress)
            manifest.write(vault, taken)
        except BaseException as error:
            with suppress(Exception):
                vault.store.delete(name)
            if isinstance(error, Refused | OSError):
                raise Refused(f"There is no new backup; earlier ones are unchanged. {error}\n{_ADVICE}") from error
            raise
        vault.store.delete(name, BEGUN)
        kept = retention.apply(vault, taken, keep, progress)
        _remember(connection, taken, vault.store.names(), progress)
        rows, seconds = sum(taken.rows.values()), time.monotonic() - began
        return Result(
            f"{name}: {rows:,} rows in {taken.size:,} bytes, read back and found good, in {seconds:.0f} s. "
            f"{len(kept)} kept.",
            {"name": name, "rows": rows, "size": taken.size, "seconds": round(seconds, 1), "kept": len(kept)},
        )


def _write(database: str, vault: Vault, name: str, progress: Progress) -> Manifest:
    with _snapshot(database) as (connection, snapshot):
        progress.wait("counting rows")
        rows = {table: _count(connection, table) for table in _tables(connection)}
        facts = connection.execute(
            text(
                "SELECT current_setting('server_version') AS version, pg_current_wal_lsn()::text AS position, "
                "(SELECT version_num FROM public.alembic_version) AS schema"
            )
        ).one()

        def tell(size: int) -> None:
            progress.wait(f"{size // 2**20:,} MiB written")

        arguments = ("--format=custom", "--no-owner", "--no-privileges", f"--lock-wait-timeout={LOCK_MILLISECONDS}")
        with running(
            "pg_dump", *arguments, f"--snapshot={snapshot}", database=database, stdout=subprocess.PIPE
        ) as process:
            dump = _store(vault, name, DUMP, pipe(process.stdout), tell=tell)
        copy = (
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            f"SET TRANSACTION SNAPSHOT '{snapshot}'",
            "COPY public.purged_account (account_id, purged_at) TO STDOUT",
        )
        commands = [f"--command={statement}" for statement in copy]
        with running("psql", "--no-psqlrc", "--quiet", *commands, database=database, stdout=subprocess.PIPE) as process:
            purged = _store(vault, name, PURGED, pipe(process.stdout))
    return Manifest(
        format=manifest.FORMAT,
        name=name,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        schema=facts.schema,
        postgresql=facts.version,
        wal_position=facts.position,
        rows=rows,
        dump=dump,
        purged=purged,
    )


@contextmanager
def _snapshot(database: str) -> Iterator[tuple[Connection, str]]:
    """Yield a connection with a snapshot of the database, and the name of the snapshot for other connections."""
    with connected(database, isolation="REPEATABLE READ") as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}"))
        # Partitions of the outbox must not be dropped while they are counted and dumped.
        connection.execute(text(f"LOCK TABLE {', '.join(map(quoted, _tables(connection)))} IN ACCESS SHARE MODE"))
        yield connection, connection.scalar(text("SELECT pg_export_snapshot()")) or ""


def _tables(connection: Connection) -> Sequence[str]:
    """Return all tables with rows of their own."""
    held = "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"
    return connection.scalars(text(held)).all()


def _count(connection: Connection, table: str) -> int:
    return connection.scalar(text(f"SELECT count(*) FROM {quoted(table)}")) or 0  # noqa: S608


def _store(vault: Vault, name: str, part: str, source: Source, *, tell: Callable[[int], None] = lambda _: None) -> Part:
    with vault.store.write(name, part) as sink:
        measured = Measured(sink, tell)
        encrypt(source, measured, vault.recipients)
    return Part(measured.size, measured.sha256)


def _delete_what_died(vault: Vault, progress: Progress) -> None:
    for name in vault.store.names():
        if manifest.is_name(name) and manifest.was_begun(vault, name) and not authenticity.has_manifest(vault, name):
            progress.say(f"deleting {name}, which is incomplete")
            vault.store.delete(name)


def _remember(connection: Connection, taken: Manifest, there: Collection[str], progress: Progress) -> None:
    """Record the backup for the relay's metrics of age and size, and for restores, which ask for the newest one."""
    gone = connection.scalars(select(backup.c.name).where(backup.c.name.not_in(there))).all()
    if lost := sorted(set(gone)):
        progress.say(
            f"WARNING: {authenticity.few(lost)} missing from the store: {', '.join(lost[: authenticity.NAMED])}"
        )
    row = {"name": taken.name, "taken_at": taken.taken_at, "size": taken.size}
    # A backup into another store in the same second has the same name.
    connection.execute(insert(backup).values(row).on_conflict_do_update(index_elements=[backup.c.name], set_=row))
    connection.execute(delete(backup).where(backup.c.name.not_in(there)))
