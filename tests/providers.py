"""Servers of a test's own, which answer as they are told: providers, and functions that are sent events."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import pytest

from shared.runtime import settings as settings_module


@dataclass
class Asked:
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: str


@dataclass
class Answer:
    status: int = 200
    body: Any = b""
    """Sent as JSON; bytes as they are."""
    headers: dict[str, str] = field(default_factory=dict)
    trickles: Literal["", "head", "body"] = ""
    """Which part comes byte by byte, and never to its end."""
    drops: bool = False
    """Whether the connection is closed instead."""
    after: threading.Event | None = None
    """What must happen before it is sent."""


class Provider(ThreadingHTTPServer):
    """Answers with what stands in `answers`, then with what `answer` makes of a request; keeps what it was asked."""

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.answers: list[Answer] = []
        self.asked: list[Asked] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Provider

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        self.server.asked.append(asked)
        answer = self.server.answers.pop(0) if self.server.answers else self.server.answer(asked)
        if answer.after:
            answer.after.wait(30)
        if answer.drops:
            self.close_connection = True
            return
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        with contextlib.suppress(OSError):  # who asked may have given up
            if answer.trickles == "head":
                self._trickle(f"HTTP/1.1 {answer.status} OK\r\nX-Slow: ".encode())
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(10**6 if answer.trickles else len(content)))
            self.end_headers()
            if answer.trickles == "body":
                self._trickle(content)
            self.wfile.write(content)

    def _trickle(self, start: bytes) -> None:
        """Sends the start, then a byte at a time, until who asked gives up."""
        self.wfile.write(start)
        while True:
            self.wfile.write(b" ")
            time.sleep(0.02)

    do_GET = do_POST  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def listening(answer: Callable[[Asked], Answer]) -> Iterator[Provider]:
    """A server at a port of its own."""
    server = Provider(answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serving(setting: str, answer: Callable[[Asked], Answer], monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """A provider that the functions of this process use under the name of its setting."""
    with listening(answer) as server:
        monkeypatch.setenv(setting, server.url)
        settings_module.settings.cache_clear()
        try:
            yield server
        finally:
            monkeypatch.undo()
            settings_module.settings.cache_clear()
