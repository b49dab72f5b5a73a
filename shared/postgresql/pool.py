"""The pool of connections to a PostgreSQL: one in each process for each server."""

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
"""Who gives PostgreSQL less time than this, as the deadline is near, cannot say that it does not answer."""


S = TypeVar("S", bound=Executable)

log = logging.getLogger(__name__)


opening: ContextVar[str] = ContextVar("opening", default="BEGIN")
"""How transactions begin; see `transactions.snapshot`."""


HOURS = 86_400.0
"""For each wait of an `unpooled` connection, in seconds: a new index on a large table takes its time."""


def unpooled(url: str) -> Engine:
    """For commands of an operator: connections that are opened as they are asked for, past PgBouncer and the pool."""
    return sqlalchemy.create_engine(
        "postgresql+pg8000://", creator=lambda: connect(url, HOURS)[0], poolclass=NullPool, hide_parameters=True
    )


class Server:
    """How a process deals with one PostgreSQL: here the primary."""

    timeout = TIMEOUT_SECONDS
    """For a connection and for each statement, in seconds."""

    def __init__(self) -> None:
        self.breaker = CircuitBreaker()
        """Of connecting: those who have a connection go on, as at a limit of connections it is in good health."""

    def begin(self, connection: pg8000.dbapi.Connection) -> None:
        """Begins a transaction."""
        connection.execute_simple(self.beginning())

    def beginning(self) -> str:
        """Statements for one round trip. With the limit among them, as it then holds behind PgBouncer, too."""
        limit = round(deadline.left(self.timeout) * 1000)
        return f"{opening.get()}; SET LOCAL statement_timeout = {limit}"

    def is_fair(self) -> bool:
        """Whether it has so much time now that it does not answer at all if it does not answer in it."""
        return deadline.left(self.timeout) >= FAIR_SECONDS

    def fail(self, error: Exception) -> None:
        """It did not answer."""
        self.breaker.open()
        deadline.missed()
        log.warning("PostgreSQL is away; refusing what needs another connection", extra={"error": type(error).__name__})


primary = Server()


@once
def engine() -> Engine:
    """The pool of connections to the primary."""
    return new_pool(settings().database_url, primary)


def new_pool(url: str, server: Server) -> Engine:
    """A pool of as many connections as this process has threads, so none waits for another."""
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
        # An idle connection with something to read was closed by the server: replaced here, without a round trip.
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
            # BEGIN waits for no lock: who does not answer it answers nothing, on no connection.
            server.fail(error)
            raise InvalidatePoolError from error
        # Only now: PgBouncer takes connections also while PostgreSQL is away.
        if record.info.pop("is_new", False):
            server.breaker.close()

    @event.listens_for(pool, "before_cursor_execute")
    def choose(_: object, cursor: Cursor, __: str, ___: object, context: Any, ____: bool) -> None:
        cursor.is_prepared = context.execution_options.get(_IS_PREPARED, False)

    return pool


_IS_PREPARED = "is_prepared"


def prepared(statement: S) -> S:
    """The statement, for PostgreSQL to plan once on each connection: half of what it costs to find rows by their keys.

    Not for one whose best plan depends on its parameters, as on how many rows have a status or lie before a time.
    Behind PgBouncer it takes 1.21 or newer, and its max_prepared_statements.
    """
    return statement.execution_options(**{_IS_PREPARED: True})


@contextmanager
def begun(pool: Engine) -> Iterator[Connection]:
    """One transaction on a connection of a pool; its errors are SQLAlchemy's."""
    started = time.monotonic()
    with pool.connect() as connection:
        metrics.POOL_WAITS.observe(time.monotonic() - started)
        metrics.POOL_IN_USE.inc()
        try:
            with connection.begin():
                yield connection
        finally:
            metrics.POOL_IN_USE.inc(by=-1)
