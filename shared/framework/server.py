"""Serve one function under gunicorn: functions-framework's app, with health checks and metrics.

FUNCTION_TARGET=login HOST=127.0.0.1 PORT=8080 python -m shared.framework.server
"""

import contextlib
import os
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterable, Set
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import functions_framework
from flask import Flask, Request, Response
from gunicorn.app.base import BaseApplication
from gunicorn.http import get_parser
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import ThreadWorker

from shared.framework.registry import uses
from shared.http.request import SECURITY_HEADERS, ProblemResponse, json_response
from shared.redis import cache
from shared.runtime import database_url, deadline, logs, metrics
from shared.runtime.database_url import Address
from shared.runtime.problems import REQUEST_SECONDS, RequestTimeout, ServiceUnavailable
from shared.runtime.settings import Dependency, InvalidSettings, Settings, load

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_MAIN = Path(__file__).parents[2] / "main.py"

_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108

OWN_PATHS = frozenset({"/health/live", "/health/ready", "/metrics"})

READY_SECONDS = 1.0
"""How long a result of /health/ready is cached, so that probes do not load the dependencies."""


def database_is_up() -> bool:
    from shared.postgresql import transactions

    try:
        transactions.check()
    except ServiceUnavailable:
        return False
    return True


CHECKS: dict[Dependency, Callable[[], bool]] = {"database": database_is_up, "cache": cache.is_up}
DISPENSABLE: frozenset[Dependency] = frozenset({"cache"})


SEND_SECONDS = 30.0
"""How long a client may take to read a response before its connection is closed."""

OPEN_SECONDS = 5.0
"""How long a new process waits for PostgreSQL or Redis. NetworkPolicies admit a pod a moment after it has started."""


def wait_for_network(settings: Settings, needed: Set[Dependency]) -> None:
    """Wait until PostgreSQL, or Redis if the function needs no database, accepts connections.

    Stop waiting after OPEN_SECONDS: an immediate 503 is better than no response.
    """
    if "database" in needed:
        addresses = database_url.parse(settings.database_url).addresses
    else:
        redis = urlsplit(settings.redis_url)
        addresses = (Address(redis.hostname or "", redis.port or 6379),)
    until = time.monotonic() + OPEN_SECONDS
    while needed & CHECKS.keys() and time.monotonic() < until:
        for address in addresses:
            with contextlib.suppress(OSError):
                socket.create_connection(address, timeout=0.2).close()
                return
        time.sleep(0.02)


def create_app(function: str) -> Flask:
    """Return the WSGI application of a function, which gets all paths except /health/live, /health/ready and /metrics.

    Requests bypass functions-framework's dispatch: its contexts, routing and request id, which we do not use, take as
    long as the function does (docs/performance.md).
    """
    app: Flask = functions_framework.create_app(function, str(_MAIN))
    serve: Callable[[Request], Response] = getattr(import_module(f"functions.{function}"), function)
    framework = app.wsgi_app

    def call(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        request = Request(environ)
        if request.path in OWN_PATHS:
            return framework(environ, start_response)
        return serve(request)(environ, start_response)

    app.wsgi_app = call  # type: ignore[method-assign]
    checks = {use: CHECKS[use] for use in sorted(uses(function)) if use in CHECKS}
    last_check = -READY_SECONDS
    states: dict[Dependency, str] = {}

    @app.get("/health/live")
    def live() -> Response:
        metrics.is_ready()
        return json_response({"status": "up"}, 200)

    @app.get("/health/ready")
    def ready() -> Response:
        nonlocal last_check, states
        if time.monotonic() - last_check >= READY_SECONDS:
            states = {use: "up" if is_up() else "down" for use, is_up in checks.items()}
            last_check = time.monotonic()
        is_ready = all(state == "up" for use, state in states.items() if use not in DISPENSABLE)
        if is_ready:
            metrics.is_ready()
        return json_response({"status": "up" if is_ready else "down", "dependencies": states}, 200 if is_ready else 503)

    @app.get("/metrics")
    def show_metrics() -> Response:
        content, content_type = metrics.exposition()
        return Response(content, content_type=content_type)

    return app


class Threads(ThreadPoolExecutor):
    """The threads of a worker. They record how long a request has waited for a thread."""

    def submit(self, handle: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        submitted = time.monotonic()

        def work() -> Any:
            deadline.queued.set(time.monotonic() - submitted)
            return handle(*args, **kwargs)

        return super().submit(work)


class TimedUnreader(SocketUnreader):  # type: ignore[misc]
    """Reads a connection with one deadline for the whole request.

    gunicorn does not limit reads, and with a limit for each read a client could send a byte every two seconds forever.
    """

    def __init__(self, conn: Any) -> None:
        super().__init__(conn.sock)
        self.conn = conn
        self.until = 0.0

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Return the next bytes.

        Raises:
            RequestTimeout: the deadline has passed; the connection closes after the response (RFC 9110, 15.5.9).
        """
        prior = self.sock.gettimeout()
        try:
            self.sock.settimeout(max(self.until - time.monotonic(), 0.001))
            read: bytes = super().chunk(size_hint)
        except TimeoutError:
            if self.conn.parser.mesg:
                self.conn.parser.mesg.force_close()
            raise RequestTimeout from None
        finally:
            self.sock.settimeout(prior)
        return read


class Worker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's worker, but slow clients hold a thread for at most REQUEST_SECONDS to send, SEND_SECONDS to read."""

    def get_thread_pool(self) -> Threads:
        return Threads(self.cfg.threads)

    def enqueue_req(self, conn: Any) -> None:
        """Pass a connection to a thread only once it has data; gunicorn makes the thread wait for it."""
        if conn.initialized or conn.data_ready:
            super().enqueue_req(conn)
            return
        conn.sock.setblocking(False)
        conn.set_timeout()
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def handle(self, conn: Any) -> Any:
        if conn.parser is None:
            conn.parser = get_parser(self.cfg, conn.sock, conn.client)
            conn.parser.unreader = TimedUnreader(conn)
        conn.parser.unreader.until = time.monotonic() + REQUEST_SECONDS
        return super().handle(conn)

    def handle_request(self, req: Any, conn: Any) -> Any:
        conn.sock.settimeout(SEND_SECONDS)
        try:
            return super().handle_request(req, conn)
        except TimeoutError:  # gunicorn would log it as a server error
            return False

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """Answer an error before the function has the request: with a problem if the headers arrive too slowly."""
        if not isinstance(exc, RequestTimeout):
            super().handle_error(req, client, addr, exc)
            return
        response = ProblemResponse(exc)
        response.headers.extend(SECURITY_HEADERS)
        head = "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in response.headers.to_wsgi_list())
        with contextlib.suppress(OSError):
            client.settimeout(SEND_SECONDS)
            client.sendall(f"{head}\r\n".encode() + response.get_data())

    def init_process(self) -> None:
        if self.age > 1:  # it replaces a worker that has ended
            metrics.note_start()
        super().init_process()


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn with the settings for a function behind a proxy, in a pod with a read-only root file system."""

    def __init__(self, app: Flask, bind: str, settings: Settings) -> None:
        self.app = app
        self.options: dict[str, Any] = {
            "bind": bind,
            "workers": 1,
            "worker_class": Worker,
            "threads": settings.threads,
            # Longer than any proxy before us keeps an idle connection, so that it never uses one that we are closing.
            "keepalive": 120,
            # As much as the proxies before us allow, so that the function reports what is wrong with a long query.
            "limit_request_line": 8190,
            # Within the 30 s that a pod has left after Knative's queue-proxy has drained.
            "graceful_timeout": 25,
            "control_socket_disable": True,
            # The heartbeat file is in memory, because the root file system may be read-only.
            "worker_tmp_dir": _MEMORY,
            "logconfig_dict": logs.configuration(settings),
        }
        super().__init__()

    def load_config(self) -> None:
        for name, value in self.options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        return self.app


def main() -> None:
    function = os.environ["FUNCTION_TARGET"]
    metrics.note_start()
    app = create_app(function)
    try:
        settings = load(os.environ, uses(function))
    except InvalidSettings as error:
        sys.exit("\n".join([f"{function} cannot start with these settings:", *error.problems]))
    wait_for_network(settings, uses(function))
    Server(
        app,
        # On all interfaces, as a pod must; the local runner sets HOST.
        bind=f"{os.environ.get('HOST', '0.0.0.0')}:{os.environ.get('PORT', '8080')}",  # noqa: S104
        settings=settings,
    ).run()


if __name__ == "__main__":
    main()
