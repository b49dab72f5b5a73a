"""A client of one Redis server, using hiredis only: importing redis-py takes a fifth of a cold start."""

import select
import socket
import threading
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import hiredis

from shared.redis import protocol
from shared.redis.protocol import Command

RECEIVED_BYTES = 65536


class SingleRedis:
    """Opens one connection per thread, on demand."""

    def __init__(self, url: str) -> None:
        """url: redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE], or rediss:// for TLS."""
        self._url = url
        self._of_thread = threading.local()

    def run(self, commands: Sequence[Command]) -> list[Any]:
        """See `protocol.Redis`."""
        connection: _Connection | None = getattr(self._of_thread, "connection", None)
        if connection is None or connection.is_stale():
            connection = _Connection(self._url)
        self._of_thread.connection = None  # if this fails, a late answer must not reach another command
        answers = connection.run(commands)
        self._of_thread.connection = connection
        return answers


class _Connection:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        address = (parts.hostname or "localhost", parts.port or 6379)
        self._socket = socket.create_connection(address, timeout=_left())
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if parts.scheme == "rediss":
            import ssl

            self._socket = ssl.create_default_context().wrap_socket(self._socket, server_hostname=parts.hostname)
        self._timeout = 0.0
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._reader = hiredis.Reader()
        greeting: list[Command] = []
        if parts.password:
            greeting.append(("AUTH", *filter(None, [unquote(parts.username or "")]), unquote(parts.password)))
        if database := parts.path.strip("/"):
            greeting.append(("SELECT", database))
        if greeting:
            self.run(greeting)

    def is_stale(self) -> bool:
        """Return whether Redis has closed the connection: while idle, there is nothing else to read."""
        return bool(self._poll.poll(0))

    def _wait_at_most(self, seconds: float) -> None:
        if seconds != self._timeout:  # saves a system call
            self._socket.settimeout(seconds)
            self._timeout = seconds

    def run(self, commands: Sequence[Command]) -> list[Any]:
        self._wait_at_most(_left())
        self._socket.sendall(b"".join(map(hiredis.pack_command, commands)))
        answers: list[Any] = []
        while len(answers) < len(commands):
            answer = self._reader.gets()
            if answer is not False:  # False: no complete answer yet
                answers.append(answer)
                continue
            self._wait_at_most(_left())
            if not (received := self._socket.recv(RECEIVED_BYTES)):
                raise ConnectionResetError("Redis has closed the connection.")
            self._reader.feed(received)
        for answer in answers:
            if isinstance(answer, hiredis.HiredisError):
                raise protocol.RedisRefused(str(answer))
        return answers


def _left() -> float:
    return max(protocol.LEAST_SECONDS, protocol.left())
