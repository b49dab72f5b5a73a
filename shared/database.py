"""PostgreSQL: one pool a process, and every statement inside an explicit transaction.

Explicit, because behind PgBouncer in transaction mode a statement outside one may be answered with another
client's rows.
"""

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import pg8000.dbapi
import sqlalchemy
from sqlalchemy import Connection, CursorResult, Engine, Executable, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from shared.once import once
from shared.problems import ServiceUnavailable
from shared.settings import settings

TIMEOUT_SECONDS = 2.0
"""For a connection, an answer, and a free place in the pool: each is a 503 when it passes."""

# SQLSTATE classes and codes that say "not now": connection lost, out of resources, shutting down, read-only, deadlock.
_NOT_NOW = ("08", "53", "57P", "25006", "40")


def connect(url: URL, timeout: float | None) -> tuple[pg8000.dbapi.Connection, socket.socket]:
    """A connection and the socket under it; `timeout` bounds each wait for the server, in seconds."""
    transport = socket.create_connection((url.host or "localhost", url.port or 5432), timeout=TIMEOUT_SECONDS)
    transport.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport.settimeout(timeout)
    connection = pg8000.dbapi.connect(
        url.username or "", database=url.database, password=url.password, sock=transport, application_name="aegis"
    )
    return connection, transport


@once
def engine() -> Engine:
    """The pool of this process: as many connections as it has threads, so none waits for another."""
    url = make_url(settings().database_url).set(drivername="postgresql+pg8000")
    pool = sqlalchemy.create_engine(
        url,
        pool_size=settings().threads,
        max_overflow=0,
        pool_timeout=TIMEOUT_SECONDS,
        pool_use_lifo=True,
        hide_parameters=True,
    )

    @event.listens_for(pool, "do_connect")
    def open_connection(_dialect: object, record: ConnectionPoolEntry, *_: object) -> pg8000.dbapi.Connection:
        connection, record.info["socket"] = connect(url, TIMEOUT_SECONDS)
        return connection

    @event.listens_for(pool, "checkout")
    def refuse_closed(_connection: object, record: ConnectionPoolEntry, _proxy: object) -> None:
        # An idle connection with something to read was closed by the server: replaced here, without a round trip.
        poll = select.poll()
        poll.register(record.info["socket"], select.POLLIN)
        if poll.poll(0):
            raise DisconnectionError

    return pool


@contextmanager
def transaction() -> Iterator[Connection]:
    """One transaction: committed at the end of the block, rolled back when it raises.

    Within `last_transaction_open` the commit waits for the next transaction, or for the end of that block.

    Raises:
        ServiceUnavailable: the database is away, or has no connection free. Nothing was changed, unless the
            connection broke during the commit.
    """
    last = _last_transaction.get()
    with _errors_as_problems():
        if last is None:
            with engine().begin() as connection:
                yield connection
            return
        connection = last.begin()
        try:
            yield connection
        except BaseException as error:
            last.roll_back(error)
            raise


class LastTransaction:
    """The last transaction of a piece of work, not committed yet."""

    def __init__(self) -> None:
        self._begun = ExitStack()
        self._connection: Connection | None = None

    def execute(self, statement: Executable) -> CursorResult[Any]:
        """Executes a statement in the last transaction, or in a new one where none is open."""
        with _errors_as_problems():
            return (self._connection or self.begin()).execute(statement)

    def begin(self) -> Connection:
        """Commits the transaction before and begins another."""
        self.commit()
        self._connection = self._begun.enter_context(engine().begin())
        return self._connection

    def commit(self) -> None:
        self._connection = None
        self._begun.close()

    def roll_back(self, error: BaseException) -> None:
        self._connection = None
        self._begun.__exit__(type(error), error, error.__traceback__)


@contextmanager
def last_transaction_open() -> Iterator[LastTransaction]:
    """Leaves the last `transaction()` of the block open, so that what came of it can be written in it as well.

    It is committed at the end of the block, and rolled back when the block raises.

    Raises:
        ServiceUnavailable: as `transaction` does.
    """
    last = LastTransaction()
    token = _last_transaction.set(last)
    try:
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
        if is_unavailable(error):
            raise ServiceUnavailable from error
        raise


def is_unavailable(error: Exception) -> bool:
    """Whether the error says that the database is away or busy, rather than that a statement is wrong."""
    if not isinstance(error, DBAPIError):
        return True
    return isinstance(error, InterfaceError) or error.connection_invalidated or sqlstate(error).startswith(_NOT_NOW)


def is_duplicate(error: DBAPIError) -> bool:
    """Whether a unique constraint refused the row; pg8000 raises no IntegrityError."""
    return sqlstate(error) == "23505"


def sqlstate(error: DBAPIError) -> str:
    """PostgreSQL's code of an error; empty when it did not come from the server."""
    details = error.orig.args[0] if error.orig and error.orig.args else None
    return str(details.get("C")) if isinstance(details, dict) else ""


def check() -> None:
    """One round trip; raises ServiceUnavailable."""
    with transaction() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))
