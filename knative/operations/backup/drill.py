"""Test the latest backup: `aegis drill`."""

import os
import secrets
import subprocess
import sys
import time
from datetime import UTC, datetime
from urllib.parse import urlsplit

from sqlalchemy import Connection, text

from knative.keys import new_signing_keys
from knative.operations.backup import restore
from knative.operations.backup.postgresql import DRILL_LOCK, alone
from knative.operations.backup.store import Vault
from knative.terminal import Progress, Refused, Result

PREFIX = "aegis_drill_"
"""Prefix of scratch databases. Leftover ones can be dropped."""
NOBODY = "redis://127.0.0.1:1/0"
"""An unreachable Redis: data of a scratch database must not get into the cache of the service."""


def drill(vault: Vault, database: str, progress: Progress) -> Result:
    """Restore the latest backup into a scratch database and call functions on it. Return the result.

    Args:
        database: any database on a server where its user can create databases.

    Raises:
        Refused: with the problem of the backup.
    """
    with alone(database, DRILL_LOCK, "Another drill on this server") as server:
        _drop_what_was_left(server)
        name = f"{PREFIX}{secrets.token_hex(4)}"
        server.execute(text(f"CREATE DATABASE {name}"))
        try:
            scratch = urlsplit(database)._replace(path=f"/{name}").geturl()
            began = time.monotonic()
            restored = restore.restore(vault, restore.LATEST, scratch, progress, of=database)
            seconds = time.monotonic() - began
            progress.wait("calling functions on it")
            answer = _call_functions(scratch)
        finally:
            server.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    hours = (datetime.now(UTC) - restored.taken_at).total_seconds() / 3600
    rows, tables = sum(restored.rows.values()), len(restored.rows)
    return Result(
        f"The latest backup, {restored.name}, is {hours:.1f} hours old and good.\n"
        f"All {rows:,} rows of {tables} tables were restored, in {seconds:.0f} s.\n"
        f"{answer}",
        {
            "name": restored.name,
            "taken_at": restored.taken_at.isoformat(),
            "rows": rows,
            "tables": tables,
            "seconds": round(seconds, 1),
            "functions": answer,
        },
    )


def _drop_what_was_left(server: Connection) -> None:
    """Drop scratch databases of killed drills. The lock excludes running ones."""
    names = text("SELECT datname FROM pg_database WHERE starts_with(datname, :prefix)")
    for name in server.scalars(names, {"prefix": PREFIX}).all():
        server.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))


def _call_functions(database: str) -> str:
    settings = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": str(restore.ROOT),
        "LOG_LEVEL": "ERROR",
        "DATABASE_URL": restore.functions_url(database),
        "REDIS_URL": NOBODY,
        "PUBLIC_URL": "http://drill.invalid",
        # New keys: the drill logs users in, and its tokens must be valid nowhere else.
        "JWT_SECRET_KEY": new_signing_keys(),
        "JWT_REFRESH_SECRET_KEY": secrets.token_hex(32),
        "ENCRYPTION_KEY": secrets.token_hex(32),
    }
    done = subprocess.run(
        [sys.executable, "-m", "knative.operations.backup.calls"],
        cwd=restore.ROOT,
        env=settings,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Refused(f"The backup was restored, but functions fail on it: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()
