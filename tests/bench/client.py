"""A cheap client, as it shares cores with the server: prepared bytes, persistent connections and epoll."""

import contextlib
import re
import select
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

START_SECONDS = 60
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_SUCCESS = re.compile(rb"HTTP/1\.1 2\d\d ")


@dataclass
class Load:
    """The result of sending requests."""

    rate: float = 0.0
    """Answers a second."""
    seconds: list[float] = field(default_factory=list)
    """The time to each answer."""
    failure: str = ""
    """An answer that was not a success, if any."""


def rate(port: int, requests: Sequence[bytes], connections: int = 16) -> float:
    """Return the answers a second to these requests, which must all succeed."""
    done = load(("127.0.0.1", port), requests, connections)
    if done.failure:
        sys.exit(f"A request failed: {done.failure}")
    return done.rate


def load(address: tuple[str, int], requests: Sequence[bytes], connections: int) -> Load:
    """Send each request once. A connection sends its next request when it has the answer."""
    waiting = iter(requests)
    poll = select.epoll()
    sockets: dict[int, socket.socket] = {}
    answers: dict[int, bytes] = {}
    sent: dict[int, float] = {}
    done = Load()
    began = time.perf_counter()
    for request in islice(waiting, connections):
        one = connect(address)
        sockets[one.fileno()], answers[one.fileno()] = one, b""
        poll.register(one, select.EPOLLIN)
        sent[one.fileno()] = time.perf_counter()
        one.sendall(request)
    while sockets:
        for number, _ in poll.poll():
            answers[number] += _received(sockets[number])
            if not _is_whole(answers[number]):
                continue
            now = time.perf_counter()
            done.seconds.append(now - sent[number])
            if not _SUCCESS.match(answers[number]):
                done.failure = answers[number].decode()
            answers[number] = b""
            if request := next(waiting, b""):
                sent[number] = now
                sockets[number].sendall(request)
            else:
                poll.unregister(number)
                sockets.pop(number).close()
    done.rate = len(requests) / (time.perf_counter() - began)
    return done


def connect(address: tuple[str, int]) -> socket.socket:
    """Connect to a server, which may have just been started."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError):
            one = socket.create_connection(address)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return one
        time.sleep(0.001)
    sys.exit(f"Nothing listens on port {address[1]}.")


def _received(one: socket.socket) -> bytes:
    if not (received := one.recv(65536)):
        sys.exit("The server closed a connection before it had answered.")
    return received


def _is_whole(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    length = _LENGTH.search(head + b"\r\n")
    return not length or len(body) >= int(length[1])
