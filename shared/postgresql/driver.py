"""The driver: pg8000 with one round trip per statement, prepared statements and timeouts.

Only this module uses private names of pg8000.
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
"""Timeout of connecting and of each statement, unless the request's deadline is nearer. Exceeding it means a 503."""
LATE_SECONDS = 0.2
"""Extra time for PostgreSQL to end the statement by itself, so that the connection stays usable."""

_OTHER_COLUMNS = "0A000"
"""A migration has changed the columns that a prepared statement returns."""
# The other two: the statement exists already, or does not exist.
PREPARED_OTHERWISE = (_OTHER_COLUMNS, "42P05", "26000")

_DESCRIBE = (DESCRIBE, PORTAL + b"\0")
_EXECUTE = ((EXECUTE, struct.pack("!xi", 0)), (SYNC, b""))


class _Transport(socket.socket):
    """A socket that waits for PostgreSQL no longer than the deadline of the current request."""

    most: float

    def recv_into(self, *args: Any) -> int:
        self.settimeout(deadline.left(self.most) + LATE_SECONDS)
        try:
            return super().recv_into(*args)
        except OSError as error:
            # The same message as pg8000's: SQLAlchemy recognises a broken connection by it.
            raise pg8000.dbapi.InterfaceError("network error") from error


@lru_cache(1000)
def _numbered(statement: str) -> str:
    """Replace %s by $1, $2 ... in a statement. Cached, because pg8000 scans every character."""
    numbered: str = convert_paramstyle(pg8000.dbapi.paramstyle, statement, ())[0]
    return numbered


class Cursor(pg8000.dbapi.Cursor):  # type: ignore[misc]
    is_prepared = False
    """Whether to use a prepared statement; see `pool.prepared`."""
    _input_oids: Any

    def execute(self, operation: str, args: Any = (), stream: Any = None) -> None:
        if stream or not args or not (self._c._in_transaction or self._c.autocommit):
            super().execute(operation, args, stream)
            return
        run = self._c.execute_prepared if self.is_prepared else self._c.execute_unnamed
        self._context = run(_numbered(operation), args, self._input_oids)
        self._row_iter = None if self._context.rows is None else iter(self._context.rows)
        self._input_oids = ()


class _Prepared(NamedTuple):
    """A prepared statement, and how pg8000 reads its rows."""

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
        """Execute a statement with parameters in one round trip (extended query, protocol 3.0); pg8000 takes three."""
        if stream:
            return super().execute_unnamed(statement, vals, oids, stream)
        context = Context(statement)
        self._ask(context, self._parse(b"", statement, oids), self._bind(b"", vals), _DESCRIBE, *_EXECUTE)
        return context

    def execute_prepared(self, statement: str, vals: Any, oids: Any) -> Context:
        """Like `execute_unnamed`, but parse, describe and plan the statement only at its first execution."""
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
            # A failed execution may have left a statement of this name.
            parse = (CLOSE, STATEMENT + name + b"\0"), self._parse(name, statement, oids)
            self._ask(context, *parse, self._bind(name, vals), _DESCRIBE, *_EXECUTE)
        except pg8000.dbapi.DatabaseError as error:
            if (code := code_of(error)) in PREPARED_OTHERWISE:
                self._prepared.clear()
                self._keeps_prepared = code == _OTHER_COLUMNS  # else a pooler in between does not support them
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
        """Commit with a simple query, which costs less than the extended query that pg8000 uses."""
        self.execute_simple("COMMIT")

    def rollback(self) -> None:
        """Roll back with a simple query."""
        if self._in_transaction:
            self.execute_simple("ROLLBACK")

    def close(self) -> None:
        """Close without an error if the server is gone; SQLAlchemy would log it."""
        with suppress(pg8000.dbapi.InterfaceError):
            super().close()


def connect(url: str, timeout: float) -> tuple[pg8000.dbapi.Connection, socket.socket]:
    """Return a connection and its socket; `timeout` limits each wait for the server, in seconds.

    If the URL names several servers, connect to one with the wanted role. Try the server found last time first, so that
    a hanging server costs little.

    Raises:
        OSError, pg8000.dbapi.Error: no server could be reached, accepted the login and has the wanted role.
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
        # PostgreSQL reports this from version 14 on.
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
        # By default pg8000 would use TLS without checking the certificate, and replace the socket.
        ssl_context=False,
    )
    return connection, transport


def code_of(error: BaseException | None) -> str:
    """Return the SQLSTATE of an error; empty if it did not come from the server."""
    details = error.args[0] if error and error.args else None
    return str(details.get("C")) if isinstance(details, dict) else ""
