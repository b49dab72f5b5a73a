"""Connection pools: one per process and PostgreSQL server."""

import logging
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import pg8000.dbapi
import sqlalchemy
from sqlalchemy import Connection, Engine, Executable, event
from sqlalchemy.exc import DisconnectionError, InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from shared.postgresql.driver import TIMEOUT_SECONDS, Cursor, connect
from shared.runtime import deadline, metrics
from shared.runtime.circuit_breaker import CircuitBreaker
from shared.runtime.once import once
from shared.runtime.problems import ServiceUnavailable
from shared.runtime.settings import settings

FAIR_SECONDS = 0.75
"""If the deadline leaves PostgreSQL less time than this, a timeout does not mean that it is unreachable."""


S = TypeVar("S", bound=Executable)

log = logging.getLogger(__name__)


opening: ContextVar[str] = ContextVar("opening", default="BEGIN")
"""How transactions begin; see `transactions.snapshot`."""


HOURS = 86_400.0
"""Timeout of each wait of an `unpooled` connection, in seconds: a new index on a large table takes long."""


def unpooled(url: str) -> Engine:
    """Return an engine for operator commands, which opens each connection on demand, bypassing the pool."""
    return sqlalchemy.create_engine(
        "postgresql+pg8000://", creator=lambda: connect(url, HOURS)[0], poolclass=NullPool, hide_parameters=True
    )


class Server:
    """A PostgreSQL server and its circuit breaker; this class is for the primary."""

    timeout = TIMEOUT_SECONDS
    """Timeout of connecting and of each statement, in seconds."""

    def __init__(self) -> None:
        self.breaker = CircuitBreaker()
        """Stops new connections only: a server at its connection limit still serves the existing ones."""

    def begin(self, connection: pg8000.dbapi.Connection) -> None:
        """Begin a transaction."""
        connection.execute_simple(self.beginning())

    def beginning(self) -> str:
        """Return the statements that begin a transaction, in one round trip. The limit also works behind PgBouncer."""
        limit = round(deadline.left(self.timeout) * 1000)
        return f"{opening.get()}; SET LOCAL statement_timeout = {limit}"

    def is_fair(self) -> bool:
        """Return whether the deadline leaves enough time for a timeout to mean that the server is unreachable."""
        return deadline.left(self.timeout) >= FAIR_SECONDS

    def fail(self, error: Exception) -> None:
        """Record that the server did not answer."""
        self.breaker.open()
        deadline.missed()
        log.warning(
            "PostgreSQL is unreachable; refusing requests that need a new connection",
            extra={"error": type(error).__name__},
        )


primary = Server()


@once
def engine() -> Engine:
    """Return the connection pool of the primary."""
    return new_pool(settings().database_url, primary)


def new_pool(url: str, server: Server) -> Engine:
    """Create a pool with one connection per thread of this process, so that no thread waits for another."""
    pool = sqlalchemy.create_engine(
        "postgresql+pg8000://",
        pool_size=settings().threads,
        max_overflow=0,
        pool_timeout=TIMEOUT_SECONDS,
        pool_use_lifo=True,
        hide_parameters=True,
    )
    metrics.POOL_MAX.set(settings().threads)
    event.listen(pool, "connect", lambda *_: metrics.POOL_OPEN.inc())
    event.listen(pool, "close", lambda *_: metrics.POOL_OPEN.inc(by=-1))

    @event.listens_for(pool, "do_connect")
    def open_connection(_dialect: object, record: ConnectionPoolEntry, *_: object) -> pg8000.dbapi.Connection:
        if not server.breaker.admits():
            raise ServiceUnavailable
        is_fair = server.is_fair()
        try:
            connection, record.info["socket"] = connect(url, server.timeout)
        except (OSError, pg8000.dbapi.Error) as error:
            if is_fair:
                server.fail(error)
            raise
        record.info["is_new"] = True
        return connection

    @event.listens_for(pool, "checkout")
    def begin(connection: pg8000.dbapi.Connection, record: ConnectionPoolEntry, _proxy: object) -> None:
        # If an idle connection has something to read, the server has closed it. Replace it without a round trip.
        poll = select.poll()
        poll.register(record.info["socket"], select.POLLIN)
        if poll.poll(0):
            raise DisconnectionError
        is_fair = server.is_fair()
        try:
            server.begin(connection)
        except pg8000.dbapi.Error as error:
            if not is_fair:
                raise ServiceUnavailable from error
            # BEGIN waits for no lock: a server that does not answer it answers on no connection.
            server.fail(error)
            raise InvalidatePoolError from error
        # Not before: PgBouncer accepts connections even while PostgreSQL is unreachable.
        if record.info.pop("is_new", False):
            server.breaker.close()

    return keeping_prepared(pool)


def keeping_prepared(pool: Engine) -> Engine:
    """The engine, whose connections keep the statements that are `prepared`."""

    @event.listens_for(pool, "before_cursor_execute")
    def choose(_: object, cursor: Cursor, __: str, ___: object, context: Any, ____: bool) -> None:
        cursor.is_prepared = context.execution_options.get(_IS_PREPARED, False)

    return pool


_IS_PREPARED = "is_prepared"


def prepared(statement: S) -> S:
    """Mark a statement to be prepared, that is planned once per connection. This halves the cost of a lookup by key.

    Do not use it if the best plan depends on the parameters, such as how many rows have a status or precede a time.
    Behind PgBouncer it requires version 1.21 or newer with max_prepared_statements.
    """
    return statement.execution_options(**{_IS_PREPARED: True})


@contextmanager
def begun(pool: Engine) -> Iterator[Connection]:
    """Run one transaction on a connection of the pool. It raises SQLAlchemy's errors."""
    started = time.monotonic()
    with pool.connect() as connection:
        metrics.POOL_WAITS.observe(time.monotonic() - started)
        metrics.POOL_IN_USE.inc()
        try:
            with connection.begin():
                yield connection
        finally:
            metrics.POOL_IN_USE.inc(by=-1)
