"""Health, metrics, and the stock functions-framework."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from knative.local.servers import LOOPBACK, free_port, is_listening
from shared.framework import server
from shared.runtime.manifests import functions
from shared.runtime.settings import load
from tests.conftest import ROOT, client, wait_for

BIN = Path(sys.executable).parent


@pytest.mark.parametrize("function", functions())
def test_each_function_is_alive_ready_and_measured(function: str) -> None:
    assert client(function).get("/health/live").json == {"status": "up"}
    ready = client(function).get("/health/ready")
    assert ready.status_code == 200
    assert set(ready.json["dependencies"].values()) <= {"up"}  # type: ignore[index]
    assert "# TYPE http_request_duration_seconds histogram" in client(function).get("/metrics").text


def test_ready_names_what_a_function_depends_on() -> None:
    assert client("get_profile").get("/health/ready").json == {
        "status": "up",
        "dependencies": {"cache": "up", "database": "up"},
    }


@pytest.mark.parametrize("function", ["get_profile", "login", "send_email"])
def test_the_stock_functions_framework_starts_each_function(function: str, tmp_path: Path) -> None:
    port = free_port()
    command: list[str | Path] = [
        BIN / "functions-framework",
        "--target",
        function,
        "--host",
        LOOPBACK,
        "--port",
        str(port),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "FUNCTION_TARGET"}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment | {"HOME": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            url = f"http://{LOOPBACK}:{port}/nowhere"
            assert wait_for(lambda: status(url), seconds=30) in (404, 405)
        finally:
            process.terminate()


def test_the_first_requests_may_come_all_at_once() -> None:
    port = free_port()
    environment = {**os.environ, "FUNCTION_TARGET": "fallback", "HOST": LOOPBACK, "PORT": str(port), "THREADS": "16"}
    command = [sys.executable, "-m", "shared.framework.server"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: is_listening(port), seconds=30)
            with ThreadPoolExecutor(16) as pool:
                assert list(pool.map(lambda _: statuses_on_one_connection(port), range(16))) == [[404, 404]] * 16
        finally:
            process.terminate()


def test_a_body_that_is_too_large_and_never_ends_holds_no_thread() -> None:
    port = free_port()
    environment = {**os.environ, "FUNCTION_TARGET": "fallback", "HOST": LOOPBACK, "PORT": str(port), "THREADS": "1"}
    command = [sys.executable, "-m", "shared.framework.server"]
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: is_listening(port), seconds=30)
            with socket.create_connection((LOOPBACK, port), timeout=20) as stalled:
                stalled.sendall(head + b"x" * 70_000)
                assert statuses_on_one_connection(port) == [404, 404]
                assert stalled.recv(100).startswith(b"HTTP/1.1 413")
        finally:
            process.terminate()


TRICKLING_REQUESTS = {
    "headers": b"POST / HTTP/1.1\r\nHost: x\r\nX-Padding: ",
    "body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n",
    "chunked body": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n",
}


def test_requests_that_trickle_in_are_ended_after_ten_seconds_and_free_their_threads() -> None:
    with server_of("fallback", THREADS="3") as port, ThreadPoolExecutor() as pool:
        trickling = list(pool.map(partial(trickle, port), TRICKLING_REQUESTS.values()))
        for answer in trickling:
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 408")
            assert b"connection: close" in head.lower()
            assert json.loads(body)["type"] == "urn:aegis:problem:request-timeout"
        assert statuses_on_one_connection(port) == [404, 404]


def test_connections_that_send_nothing_hold_no_thread() -> None:
    with server_of("fallback", THREADS="1") as port, contextlib.ExitStack() as silent:
        for _ in range(20):
            silent.enter_context(socket.create_connection((LOOPBACK, port)))
        assert statuses_on_one_connection(port) == [
            404,
            404,
        ]  # within its time-out of 20 s: a thread for each would take 100 s


def trickle(port: int, start: bytes) -> bytes:
    """All that the server answers to a request of which a byte comes every half second, until it closes."""
    answer = b""
    with socket.create_connection((LOOPBACK, port), timeout=0.5) as connection:
        connection.sendall(start)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                if not (part := connection.recv(65536)):
                    return answer
                answer += part
            except TimeoutError:
                with contextlib.suppress(OSError):
                    connection.sendall(b"x")
    raise AssertionError("the connection stays open")


@contextlib.contextmanager
def server_of(function: str, **variables: str) -> Iterator[int]:
    """The port on which a server of a function answers for the block."""
    port = free_port()
    environment = {**os.environ, "FUNCTION_TARGET": function, "HOST": LOOPBACK, "PORT": str(port), **variables}
    command = [sys.executable, "-m", "shared.framework.server"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: is_listening(port), seconds=30)
            yield port
        finally:
            process.terminate()


def statuses_on_one_connection(port: int) -> list[int]:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=20)
    statuses = []
    for _ in range(2):
        connection.request("GET", "/unrouted/nowhere")
        response = connection.getresponse()
        response.read()
        statuses.append(response.status)
    connection.close()
    return statuses


@pytest.mark.parametrize("path", ["/health/live", "//health/live", "//health/ready", "//metrics"])
def test_a_slash_too_many_of_a_proxy_leads_nowhere_else(path: str) -> None:
    assert client("login").get(environ_overrides={"PATH_INFO": path}).status_code == 200


def status(url: str) -> int:
    """The status of a GET; 0 as long as nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_a_server_with_wrong_settings_lists_them_and_ends() -> None:
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-m", "shared.framework.server"],
        cwd=ROOT,
        env=environment | {"FUNCTION_TARGET": "login", "THREADS": "many"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert "login cannot start with these settings:" in done.stderr
    assert "DATABASE_URL is not set" in done.stderr
    assert "THREADS is not a number from 1 to 64" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_new_process_waits_until_the_network_lets_it_reach_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """NetworkPolicies refuse the first connections of a new pod, which would be its first callers' 503."""
    monkeypatch.setattr(server, "OPEN_SECONDS", 60.0)
    port = free_port()
    settings = load({"DATABASE_URL": f"postgresql://any@{LOOPBACK}:{port}/any"})
    with ThreadPoolExecutor() as pool, socket.socket() as listening:
        waiting = pool.submit(server.wait_for_network, settings, {"database"})
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((LOOPBACK, port))
        listening.listen()
        waiting.result(timeout=30)


def test_a_server_that_stays_away_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "OPEN_SECONDS", 0.1)
    server.wait_for_network(load({"REDIS_URL": f"redis://{LOOPBACK}:{free_port()}/0"}), {"cache"})
