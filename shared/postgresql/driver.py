"""The driver: pg8000 with one round trip for each statement, prepared statements, and time-outs.

The only place that knows names which pg8000 keeps to itself.
"""

import socket
import struct
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

import pg8000.dbapi
from pg8000.converters import make_params
from pg8000.core import BIND, CLOSE, DESCRIBE, EXECUTE, PARSE, PORTAL, STATEMENT, SYNC, Context, _flush
from pg8000.dbapi import convert_paramstyle

from shared.runtime import database_url, deadline
from shared.runtime.database_url import Address, DatabaseUrl

TIMEOUT_SECONDS = 1.5
"""For a connection and for each statement, where the deadline of a request is not nearer: a 503 when it passes."""
LATE_SECONDS = 0.2
"""So much longer we wait: PostgreSQL ends a statement by itself, and the connection stays good."""

_OTHER_COLUMNS = "0A000"
"""A prepared statement gives other columns than it did, since a migration."""
# Or it is there already, or is not there: PostgreSQL does not have what we remember.
PREPARED_OTHERWISE = (_OTHER_COLUMNS, "42P05", "26000")

_DESCRIBE = (DESCRIBE, PORTAL + b"\0")
_EXECUTE = ((EXECUTE, struct.pack("!xi", 0)), (SYNC, b""))


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


class Cursor(pg8000.dbapi.Cursor):  # type: ignore[misc]
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

    def cursor(self) -> Cursor:
        return Cursor(self)

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
            if (code := code_of(error)) in PREPARED_OTHERWISE:
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


def code_of(error: BaseException | None) -> str:
    """PostgreSQL's code of an error (SQLSTATE); empty when it did not come from the server."""
    details = error.args[0] if error and error.args else None
    return str(details.get("C")) if isinstance(details, dict) else ""
