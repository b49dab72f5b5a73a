"""PostgreSQL: one pool a process for each server, and every statement inside an explicit transaction.

Explicit, because behind PgBouncer in transaction mode a statement outside one may be answered with another
client's rows.
"""

import logging
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import pg8000.dbapi
import sqlalchemy
from pg8000.converters import make_params
from pg8000.core import BIND, CLOSE, DESCRIBE, EXECUTE, PARSE, PORTAL, STATEMENT, SYNC, Context, _flush
from pg8000.dbapi import convert_paramstyle
from sqlalchemy import Connection, CursorResult, Engine, Executable, Insert, Update, event
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from shared import database_url, deadline, metrics
from shared.database_url import Address, DatabaseUrl
from shared.once import once
from shared.pauses import Pause
from shared.problems import ServiceUnavailable
from shared.settings import settings

TIMEOUT_SECONDS = 1.5
"""For a connection and for each statement, where the deadline of a request is not nearer: a 503 when it passes."""
LATE_SECONDS = 0.2
"""So much longer we wait: PostgreSQL ends a statement by itself, and the connection stays good."""
FAIR_SECONDS = 0.75
"""Who gives PostgreSQL less time than this, as the deadline is near, cannot say that it does not answer."""

_OTHER_COLUMNS = "0A000"
"""A prepared statement gives other columns than it did, since a migration."""
# Or it is there already, or is not there: PostgreSQL does not have what we remember.
_PREPARED_OTHERWISE = (_OTHER_COLUMNS, "42P05", "26000")
# SQLSTATE classes and codes that say "not now": connection lost, out of resources, shutting down, read-only, deadlock;
# a statement or a transaction that took too long, as what it needs is locked by another.
_NOT_NOW = ("08", "53", "57P", "25006", "40", "57014", "55P03", "25P03", "25P04", *_PREPARED_OTHERWISE)

_DESCRIBE = (DESCRIBE, PORTAL + b"\0")
_EXECUTE = ((EXECUTE, struct.pack("!xi", 0)), (SYNC, b""))

S = TypeVar("S", bound=Executable)

log = logging.getLogger(__name__)


class _Transport(socket.socket):
    """A socket that waits for PostgreSQL no longer than the request in hand may wait."""

    most: float

    def recv_into(self, *args: Any) -> int:
        self.settimeout(deadline.left(self.most) + LATE_SECONDS)
        try:
            return super().recv_into(*args)
        except OSError as error:
            # As pg8000 says it: SQLAlchemy knows by this that the connection is of no use any more.
            raise pg8000.dbapi.InterfaceError("network error") from error


@lru_cache(1000)
def _numbered(statement: str) -> str:
    """A statement with $1, $2 ... in place of %s. Kept, as pg8000 looks at each letter of it."""
    numbered: str = convert_paramstyle(pg8000.dbapi.paramstyle, statement, ())[0]
    return numbered


class _Cursor(pg8000.dbapi.Cursor):  # type: ignore[misc]
    is_prepared = False
    """Whether what it executes is; see `prepared`."""
    _input_oids: Any

    def execute(self, operation: str, args: Any = (), stream: Any = None) -> None:
        if stream or not args or not self._c._in_transaction:
            super().execute(operation, args, stream)
            return
        run = self._c.execute_prepared if self.is_prepared else self._c.execute_unnamed
        self._context = run(_numbered(operation), args, self._input_oids)
        self._row_iter = None if self._context.rows is None else iter(self._context.rows)
        self._input_oids = ()


class _Prepared(NamedTuple):
    """A statement that PostgreSQL keeps, and what pg8000 makes of the description of its rows."""

    name: bytes
    columns: Any
    readers: Any


class _Connection(pg8000.dbapi.Connection):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._prepared: dict[tuple[Any, ...], _Prepared] = {}
        self._keeps_prepared = True
        super().__init__(*args, **kwargs)

    def cursor(self) -> _Cursor:
        return _Cursor(self)

    def execute_unnamed(self, statement: str, vals: Any = (), oids: Any = (), stream: Any = None) -> Context:
        """A statement with parameters in one round trip (extended query, protocol 3.0); pg8000's own takes three."""
        if stream:
            return super().execute_unnamed(statement, vals, oids, stream)
        context = Context(statement)
        self._ask(context, self._parse(b"", statement, oids), self._bind(b"", vals), _DESCRIBE, *_EXECUTE)
        return context

    def execute_prepared(self, statement: str, vals: Any, oids: Any) -> Context:
        """As `execute_unnamed`, but parsed, described and planned with its first execution alone."""
        if not self._keeps_prepared:
            return self.execute_unnamed(statement, vals, oids)
        key = (statement, *oids)
        try:
            if known := self._prepared.get(key):
                context = Context(statement, columns=known.columns, input_funcs=known.readers)
                self._ask(context, self._bind(known.name, vals), *_EXECUTE)
                return context
            name = f"aegis{len(self._prepared)}".encode()
            context = Context(statement)
            # An execution that failed may have left a statement of this name.
            parse = (CLOSE, STATEMENT + name + b"\0"), self._parse(name, statement, oids)
            self._ask(context, *parse, self._bind(name, vals), _DESCRIBE, *_EXECUTE)
        except pg8000.dbapi.DatabaseError as error:
            if (code := _code(error)) in _PREPARED_OTHERWISE:
                self._prepared.clear()
                self._keeps_prepared = code == _OTHER_COLUMNS  # else a pooler between us does not know of them
            raise
        self._prepared[key] = _Prepared(name, context.columns, context.input_funcs)
        return context

    def _ask(self, context: Context, *messages: tuple[bytes, bytes]) -> None:
        for code, content in messages:
            self._send_message(code, content)
        _flush(self._sock)
        self.handle_messages(context)

    def _parse(self, name: bytes, statement: str, oids: Any) -> tuple[bytes, bytes]:
        types = struct.pack(f"!H{len(oids)}i", len(oids), *(max(oid, 0) for oid in oids))
        return PARSE, name + b"\0" + statement.encode(self._client_encoding) + b"\0" + types

    def _bind(self, name: bytes, vals: Any) -> tuple[bytes, bytes]:
        values = b"".join(self._value(value) for value in make_params(self.py_types, vals))
        return BIND, b"\0" + name + struct.pack("!xHH", 0, len(vals)) + values + b"\0\0"

    def _value(self, value: str | None) -> bytes:
        content = b"" if value is None else value.encode(self._client_encoding)
        return struct.pack("!i", -1 if value is None else len(content)) + content

    def commit(self) -> None:
        """By a simple query, which is less work than a statement with parameters; pg8000 makes one of it."""
        self.execute_simple("COMMIT")

    def rollback(self) -> None:
        """As `commit`."""
        if self._in_transaction:
            self.execute_simple("ROLLBACK")

    def close(self) -> None:
        """Also where the server is gone, of which SQLAlchemy would make an error in the log."""
        with suppress(pg8000.dbapi.InterfaceError):
            super().close()


def connect(url: str, timeout: float) -> tuple[pg8000.dbapi.Connection, socket.socket]:
    """A connection and the socket under it; `timeout` bounds each wait for the server, in seconds.

    Of several servers in the URL it is the one that is wanted, whichever that is now. Which it was the last time is
    asked first, so that one which hangs costs little.

    Raises:
        OSError, pg8000.dbapi.Error: none of them can be reached, lets us in, and is the one that is wanted.
    """
    named = database_url.parse(url)
    addresses = sorted(named.addresses, key=lambda address: address != _last_found.get(url))
    most = deadline.left(min(timeout, TIMEOUT_SECONDS)) / len(addresses)
    failure: Exception | None = None
    for address in addresses:
        try:
            connection, transport = _connect(named, address, most)
        except (OSError, pg8000.dbapi.Error) as error:
            failure = failure or error
            continue
        # Reported by PostgreSQL itself, from version 14 on.
        is_standby = connection.parameter_statuses.get("in_hot_standby") == "on"
        if named.wanted == "any" or is_standby == (named.wanted == "standby"):
            _last_found[url] = address
            transport.most = timeout
            return connection, transport
        connection.close()
    raise failure or pg8000.dbapi.InterfaceError(f"none of {len(addresses)} servers is {named.wanted}")


_last_found: dict[str, Address] = {}


def _connect(named: DatabaseUrl, address: Address, most: float) -> tuple[pg8000.dbapi.Connection, _Transport]:
    connected = socket.create_connection(address, timeout=most + LATE_SECONDS)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport = _Transport(fileno=connected.detach())
    transport.most = most
    transport.settimeout(most + LATE_SECONDS)
    connection = _Connection(
        named.user,
        database=named.database or None,
        password=named.password or None,
        sock=transport,
        application_name="aegis",
        # pg8000 would ask for TLS by itself, check no certificate, and take the socket away from us.
        ssl_context=False,
    )
    return connection, transport


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
        self.pause = Pause()
        """Of connecting: those who have a connection go on, as at a limit of connections it is in good health."""

    def begin(self, connection: pg8000.dbapi.Connection) -> None:
        """Begins a transaction."""
        connection.execute_simple(self.beginning())

    def beginning(self) -> str:
        """Statements for one round trip. With the limit among them, as it then holds behind PgBouncer, too."""
        limit = round(deadline.left(self.timeout) * 1000)
        return f"{_opening.get()}; SET LOCAL statement_timeout = {limit}"

    def is_fair(self) -> bool:
        """Whether it has so much time now that it does not answer at all if it does not answer in it."""
        return deadline.left(self.timeout) >= FAIR_SECONDS

    def fail(self, error: Exception) -> None:
        """It did not answer."""
        self.pause.begin()
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
        if not server.pause.admits():
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
            server.pause.end()

    @event.listens_for(pool, "before_cursor_execute")
    def choose(_: object, cursor: _Cursor, __: str, ___: object, context: Any, ____: bool) -> None:
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
    """In the block, transactions read only, each from one state of the database."""
    token = _opening.set("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    try:
        yield
    finally:
        _opening.reset(token)


_opening: ContextVar[str] = ContextVar("opening", default="BEGIN")


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


def together(*changes: Insert | Update) -> Insert | Update:
    """Changes as one statement, whose result is that of the last; none of them sees the others."""
    *others, last = changes
    return last.add_cte(*(change.cte(f"change_{number}") for number, change in enumerate(others)))


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
        if isinstance(error, PoolTimeout):
            metrics.POOL_TIMEOUTS.inc()
        if is_unavailable(error):
            deadline.missed()
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
    return _code(error.orig)


def _code(error: BaseException | None) -> str:
    details = error.args[0] if error and error.args else None
    return str(details.get("C")) if isinstance(details, dict) else ""


def check() -> None:
    """One round trip; raises ServiceUnavailable."""
    with transaction() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))
