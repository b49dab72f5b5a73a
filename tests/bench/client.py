"""A client that costs little of the cores that it shares with the server: bytes over kept connections, and epoll."""

import contextlib
import re
import select
import socket
import sys
import time
from collections.abc import Sequence
from itertools import islice

from knative.local.servers import LOOPBACK

START_SECONDS = 60
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_SUCCESS = re.compile(rb"HTTP/1\.1 2\d\d ")


def rate(port: int, requests: Sequence[bytes], connections: int = 16) -> float:
    """Answers a second to these requests, each sent once; every connection sends its next when it has the answer."""
    waiting = iter(requests)
    poll = select.epoll()
    sockets: dict[int, socket.socket] = {}
    answers: dict[int, bytes] = {}
    began = time.perf_counter()
    for request in islice(waiting, connections):
        one = connect(port)
        sockets[one.fileno()], answers[one.fileno()] = one, b""
        poll.register(one, select.EPOLLIN)
        one.sendall(request)
    while sockets:
        for number, _ in poll.poll():
            answers[number] += _received(sockets[number])
            if not _is_whole(answers[number]):
                continue
            answers[number] = b""
            if request := next(waiting, b""):
                sockets[number].sendall(request)
            else:
                poll.unregister(number)
                sockets.pop(number).close()
    return len(requests) / (time.perf_counter() - began)


def connect(port: int) -> socket.socket:
    """A connection to a server, which may have just been started."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError):
            one = socket.create_connection((LOOPBACK, port))
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return one
        time.sleep(0.001)
    sys.exit(f"Nothing listens on port {port}.")


def _received(one: socket.socket) -> bytes:
    if not (received := one.recv(65536)):
        sys.exit("The server closed a connection before it had answered.")
    return received


def _is_whole(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    if not _SUCCESS.match(head):
        sys.exit(f"A request failed: {answer.decode()}")
    length = _LENGTH.search(head + b"\r\n")
    return not length or len(body) >= int(length[1])
