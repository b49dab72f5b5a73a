"""Restore a backup: `aegis restore`.

A restore is one transaction of PostgreSQL: if it fails half-way, the database is unchanged.
"""

import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO

from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError

from knative.operations.backup import authenticity, check, manifest
from knative.operations.backup.manifest import Manifest
from knative.operations.backup.postgresql import RESTORE_LOCK, ProgramFailed, connected, name_of, pipe, quoted, running
from knative.operations.backup.store import DUMP, PURGED, Missing, Vault
from knative.terminal import Progress, Refused
from shared.postgresql.migrate import MIGRATIONS
from shared.postgresql.transactions import sqlstate
from shared.runtime import database_url
from shared.runtime.settings import settings

LATEST = "latest"
ROOT = Path(__file__).parents[3]

_REFUSE_WHAT_IS_NOT_EMPTY = """
DO $$
DECLARE
    is_empty boolean := NOT EXISTS (
        SELECT FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm') AND relnamespace = 'public'::regnamespace);
BEGIN
    IF NOT is_empty AND to_regclass('public.account') IS NOT NULL THEN
        is_empty := NOT EXISTS (SELECT FROM public.account);
    END IF;
    IF NOT is_empty THEN
        RAISE EXCEPTION 'the database is not empty';
    END IF;
END $$;
"""
"""Tables of this service without any account, as after a migration, count as empty."""

_RAISED = "P0001"

_BEGIN = f"""
BEGIN;
DO $$ BEGIN
    IF NOT pg_try_advisory_xact_lock({RESTORE_LOCK}) THEN
        RAISE EXCEPTION 'another restore of this database is running: wait until it has ended';
    END IF;
END $$;
"""

_PURGED = """
CREATE TEMP TABLE purged_since (account_id uuid, purged_at timestamptz) ON COMMIT DROP;
CREATE TEMP TABLE backup_known (name text, taken_at timestamptz, size bigint) ON COMMIT DROP;
COPY pg_temp.purged_since FROM STDIN;
"""

_CLEAR = """\\.
DO $$
DECLARE
    relations text;
    routines text;
BEGIN
    -- First, as whoever locks more does.
    IF to_regclass('public.account') IS NOT NULL THEN
        LOCK TABLE public.account IN ACCESS EXCLUSIVE MODE;
    END IF;
    IF to_regclass('public.purged_account') IS NOT NULL THEN
        INSERT INTO pg_temp.purged_since SELECT account_id, purged_at FROM public.purged_account;
    END IF;
    IF to_regclass('public.backup') IS NOT NULL THEN
        INSERT INTO pg_temp.backup_known SELECT name, taken_at, size FROM public.backup;
    END IF;
    SELECT string_agg(oid::regclass::text, ', ') INTO relations FROM pg_class
    WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace;
    IF relations IS NOT NULL THEN
        EXECUTE 'DROP TABLE ' || relations || ' CASCADE';
    END IF;
    SELECT string_agg(oid::regclass::text, ', ') INTO relations FROM pg_class
    WHERE relkind = 'S' AND relnamespace = 'public'::regnamespace;
    IF relations IS NOT NULL THEN
        EXECUTE 'DROP SEQUENCE ' || relations;
    END IF;
    SELECT string_agg(oid::regprocedure::text, ', ') INTO routines FROM pg_proc
    WHERE pronamespace = 'public'::regnamespace
    AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_proc.oid AND deptype = 'e');
    IF routines IS NOT NULL THEN
        EXECUTE 'DROP ROUTINE ' || routines;
    END IF;
END $$;
"""

_FORGET = """
INSERT INTO public.purged_account (account_id, purged_at)
SELECT account_id, min(purged_at) FROM pg_temp.purged_since GROUP BY account_id ON CONFLICT DO NOTHING;
DELETE FROM public.account WHERE id IN (SELECT account_id FROM public.purged_account);
INSERT INTO public.backup (name, taken_at, size)
SELECT name, taken_at, size FROM pg_temp.backup_known ON CONFLICT DO NOTHING;
UPDATE public.session SET ended_at = now() WHERE ended_at IS NULL;
DELETE FROM public.verification;
DELETE FROM public.challenge;
DELETE FROM public.phone_verification;
COMMIT;
ANALYZE;
"""
"""Otherwise the backup would reactivate ended sessions, used links and codes, and newer backups would be unknown."""


def restore(
    vault: Vault, wanted: str, into: str, progress: Progress, *, force: bool = False, older: bool = False, of: str = ""
) -> Manifest:
    """Restore a backup.

    Args:
        wanted: its name, or `latest`.
        into: the URL of the database, not through PgBouncer.
        force: replace the contents of the database.
        older: accept a backup that is older than the newest known one.
        of: the URL of the service's database if `into` is another one: it has recorded its backups, too.

    Raises:
        Refused: the database is unchanged, unless the message says otherwise.
    """
    if not force:
        _refuse_what_is_not_empty(into)
    backup = find(vault, wanted)
    if not older:
        _refuse_what_is_older(vault, backup, {into, of} - {""}, progress)
    _refuse_a_newer_schema(backup)
    progress.say(f"{backup.name}: {sum(backup.rows.values()):,} rows, {backup.size:,} bytes, schema {backup.schema}")
    check.check(vault, backup, progress)
    progress.say("it is complete and decrypts with this key")
    purged = _newest_purged(vault, backup, progress)
    _bring_in(vault, backup, purged, into, progress, force=force)
    progress.say(f"restored into {name_of(into)}; each table has as many rows as in the backup")
    _migrate(into)
    progress.say("migrated to the schema of this program")
    return backup


def functions_url(database: str) -> str:
    """Return the URL with which functions connect to a database: with their login, if they have one."""
    own = settings()
    return database_url.with_login_of(database, own.database_url) if own.owner_database_url else database


def find(vault: Vault, wanted: str) -> Manifest:
    """Return the backup with a name, or the latest good one. Raises Refused."""
    if wanted == LATEST:
        latest = next(authenticity.newest_first(vault), None)
        if not latest:
            raise Refused(
                "Nothing was changed. There is no good backup in BACKUP_STORE. See what it has: aegis backups"
            )
        return latest
    try:
        if not manifest.is_name(wanted):
            raise Missing
        return manifest.read(vault, wanted)
    except Missing:
        raise Refused(f"Nothing was changed. There is no backup {wanted}. {check.OTHER}") from None


def _refuse_what_is_older(vault: Vault, backup: Manifest, databases: Collection[str], progress: Progress) -> None:
    """Whoever can delete in the store can hide the newest backup there, but not in the databases' records."""
    remembered = max(map(authenticity.newest_known, databases), default="")
    if not remembered:
        progress.say(f"no database has a record of the newest backup: make sure that it is {backup.name}")
    latest = next(authenticity.newest_first(vault), backup)
    newest = max(latest.name, remembered)
    if newest > backup.name:
        raise Refused(
            f"Nothing was changed. {backup.name} is older than the newest known backup, {newest}"
            f"{'' if authenticity.has_manifest(vault, newest) else ', which is no longer in the store'}.\n"
            "Restoring it undoes every change since: suspended accounts can log in again, and removed roles, "
            "removed passkeys and old passwords work again.\nTo restore it anyway: --older"
        )


def _refuse_what_is_not_empty(into: str) -> None:
    with connected(into) as connection:
        try:
            connection.exec_driver_sql(_REFUSE_WHAT_IS_NOT_EMPTY)
        except DBAPIError as error:
            if sqlstate(error) != _RAISED:
                raise
            raise Refused(
                f"Nothing was changed. The database {name_of(into)} is not empty.\n"
                "To replace its contents: --force. To inspect the backup instead: --into another database."
            ) from None


def _refuse_a_newer_schema(backup: Manifest) -> None:
    known = {revision.revision for revision in ScriptDirectory(str(MIGRATIONS)).walk_revisions()}
    if backup.schema not in known:
        raise Refused(
            f"Nothing was changed. The backup {backup.name} has the schema {backup.schema}, which this program does not"
            " know: a newer release made it.\nUse the image of that release."
        )


def _newest_purged(vault: Vault, backup: Manifest, progress: Progress) -> Manifest:
    """Return the newest backup whose list of purged accounts can be read. That of `backup` was already read."""
    for found in authenticity.newest_first(vault):
        try:
            check.check_purged(vault, found)
        except Refused as error:
            progress.say(f"the accounts purged before {found.name} are unknown: {error}")
            continue
        return found
    return backup


def _bring_in(vault: Vault, backup: Manifest, purged: Manifest, into: str, progress: Progress, *, force: bool) -> None:
    def tell(size: int) -> None:
        progress.wait(f"{size * 100 // max(backup.dump.size, 1)} % restored")

    script = ("--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-")
    try:
        with running("psql", *script, database=into, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as psql:
            to = pipe(psql.stdin)
            _say(to, _BEGIN, "" if force else _REFUSE_WHAT_IS_NOT_EMPTY, _PURGED)
            check.read(vault, purged, PURGED, to)
            _say(to, _CLEAR)
            # Our end of the pipe stays open: if this process dies, psql never reads a COMMIT.
            script = ("--file=-", "--no-owner", "--no-privileges", "--exit-on-error")
            with running("pg_restore", *script, stdin=subprocess.PIPE, stdout=to) as pg_restore:
                check.read(vault, backup, DUMP, pipe(pg_restore.stdin), tell=tell)
            progress.say("all rows are loaded; PostgreSQL builds the indexes and counts them")
            _say(to, _counts(backup.rows), _FORGET)
    except ProgramFailed as error:
        raise Refused(f"Nothing was changed. {error}") from error


def _say(to: IO[bytes], *script: str) -> None:
    to.write("".join(script).encode())
    to.flush()


def _counts(rows: Mapping[str, int]) -> str:
    """Return SQL that raises if the rows of a table differ in number from the manifest."""
    checks = [
        f"""
    SELECT count(*) INTO found FROM {quoted(table)};
    IF found <> {count} THEN
        RAISE EXCEPTION 'the table % has % rows instead of {count}', '{table}', found;
    END IF;"""  # noqa: S608
        for table, count in rows.items()
    ]
    return f"DO $$ DECLARE found bigint; BEGIN{''.join(checks)} END $$;"


def _migrate(into: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shared.postgresql.migrate"],
        cwd=ROOT,
        env={
            **os.environ,
            "OWNER_DATABASE_URL": into,
            "DATABASE_URL": functions_url(into),
            "LOG_LEVEL": "WARNING",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Refused(
            f"The backup was restored, but the migration failed: {done.stderr.strip()}\n"
            "Do not start any function before this succeeds: python -m shared.postgresql.migrate, with "
            "OWNER_DATABASE_URL and DATABASE_URL of this database."
        )
