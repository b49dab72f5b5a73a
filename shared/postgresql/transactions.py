"""PostgreSQL transactions. Every statement runs inside an explicit one.

Behind PgBouncer in transaction mode, a statement outside a transaction could return another client's rows.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, CursorResult, Executable, Insert, Update
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from shared.postgresql.driver import PREPARED_OTHERWISE, code_of
from shared.postgresql.pool import begun, engine, opening
from shared.redis import cache
from shared.runtime import deadline, metrics
from shared.runtime.problems import ServiceUnavailable

# SQLSTATE classes and codes of temporary errors: connection lost, out of resources, shutting down, read-only, deadlock,
# and a statement or transaction that took too long, for example because it waited for a lock.
_NOT_NOW = ("08", "53", "57P", "25006", "40", "57014", "55P03", "25P03", "25P04", *PREPARED_OTHERWISE)


@contextmanager
def transaction() -> Iterator[Connection]:
    """Run the block in one transaction: commit at its end, roll back if it raises.

    Cache writes in the block happen after the commit, and not at all after a rollback. Within `last_transaction_open`,
    the commit waits for the next transaction or the end of that block.

    Raises:
        ServiceUnavailable: the database is unreachable or has no free connection. Nothing was changed, unless the
            connection broke during the commit.
    """
    last = _last_transaction.get()
    with cache.puts_after_commit(), _errors_as_problems():
        if last is None:
            with begun(engine()) as connection:
                yield connection
            return
        connection = last.begin()
        try:
            yield connection
        except BaseException as error:
            last.roll_back(error)
            raise


@contextmanager
def snapshot() -> Iterator[None]:
    """Make transactions in the block read-only, each on one snapshot of the database."""
    token = opening.set("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    try:
        yield
    finally:
        opening.reset(token)


def together(*changes: Insert | Update) -> Insert | Update:
    """Combine changes into one statement that returns the result of the last. No change sees the others."""
    *others, last = changes
    return last.add_cte(*(change.cte(f"change_{number}") for number, change in enumerate(others)))


class LastTransaction:
    """The last transaction of a block, not yet committed."""

    def __init__(self) -> None:
        self._begun = ExitStack()
        self._connection: Connection | None = None

    def execute(self, statement: Executable) -> CursorResult[Any]:
        """Execute a statement in the last transaction, or in a new one if none is open."""
        with _errors_as_problems():
            return (self._connection or self.begin()).execute(statement)

    def begin(self) -> Connection:
        """Commit the previous transaction and begin another."""
        self.commit()
        self._connection = self._begun.enter_context(begun(engine()))
        return self._connection

    def commit(self) -> None:
        self._connection = None
        self._begun.close()

    def roll_back(self, error: BaseException) -> None:
        self._connection = None
        self._begun.__exit__(type(error), error, error.__traceback__)


@contextmanager
def last_transaction_open() -> Iterator[LastTransaction]:
    """Keep the last `transaction()` of the block open, so that the outcome can be written in it as well.

    It is committed at the end of the block, and rolled back if the block raises. Cache writes follow the commit, as in
    `transaction`.

    Raises:
        ServiceUnavailable: see `transaction`.
    """
    last = LastTransaction()
    token = _last_transaction.set(last)
    try:
        with cache.puts_after_commit():
            yield last
            with _errors_as_problems():
                last.commit()
    except BaseException as error:
        with _errors_as_problems():
            last.roll_back(error)
        raise
    finally:
        _last_transaction.reset(token)


_last_transaction: ContextVar[LastTransaction | None] = ContextVar("last_transaction", default=None)


@contextmanager
def _errors_as_problems() -> Iterator[None]:
    try:
        yield
    except (DBAPIError, PoolTimeout, OSError) as error:
        if isinstance(error, PoolTimeout):
            metrics.POOL_TIMEOUTS.inc()
        if is_unavailable(error):
            deadline.missed()
            raise ServiceUnavailable from error
        raise


def is_unavailable(error: Exception) -> bool:
    """Return whether the error means that the database is unreachable or busy, not that a statement is wrong."""
    if not isinstance(error, DBAPIError):
        return True
    return isinstance(error, InterfaceError) or error.connection_invalidated or sqlstate(error).startswith(_NOT_NOW)


def is_duplicate(error: DBAPIError) -> bool:
    """Return whether a unique constraint refused the row; pg8000 raises no IntegrityError."""
    return sqlstate(error) == "23505"


def sqlstate(error: DBAPIError) -> str:
    """Return the SQLSTATE of an error; empty if it did not come from the server."""
    return code_of(error.orig)


def check() -> None:
    """Make one round trip; raise ServiceUnavailable if it fails."""
    with transaction() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))
