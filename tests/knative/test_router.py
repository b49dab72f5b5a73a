"""What the router answers by itself, without a function."""

import http.client
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from knative.local.router import SITE, router
from knative.local.servers import LOOPBACK, free_port
from knative.local.supervisor import Supervisor
from shared.manifests import functions
from tests.servers import supervisor

__all__ = ["supervisor"]

LOGIN = "/api/v1/users/login"
ORIGIN = "https://app.example.com"


@pytest.fixture
def lonely_port(supervisor: Supervisor, tmp_path: Path) -> int:
    """Of a router whose functions are all away, and which pages of ORIGIN may call."""
    port, away = free_port(), free_port()
    ports = dict.fromkeys((*functions(), SITE), away)
    process = router(tmp_path, LOOPBACK, port, free_port(), ports, origins=[ORIGIN])
    supervisor.start(process)
    supervisor.wait_until_ready(process, seconds=30)
    return port


def ask(port: int, body: bytes = b"{}", path: str = LOGIN, **headers: str) -> tuple[int, dict[str, Any], Any]:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=30)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return response.status, json.loads(response.read()), response.headers
    finally:
        connection.close()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_health_check_is_answered_without_a_function(lonely_port: int, method: str) -> None:
    connection = http.client.HTTPConnection(LOOPBACK, lonely_port, timeout=30)
    connection.request(method, "/health")
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert (response.status, response.headers["Content-Type"]) == (200, "application/json")
    assert response.headers["Cache-Control"] == "no-store"
    assert body == (b"" if method == "HEAD" else b'{"status": "up"}')


@pytest.mark.parametrize(("size", "status"), [(2, 503), (70_000, 413)])
def test_a_page_of_an_allowed_origin_can_read_what_the_router_answers_itself(
    lonely_port: int, size: int, status: int
) -> None:
    answered, problem, headers = ask(lonely_port, b" " * size, Origin=ORIGIN)
    assert (answered, problem["status"]) == (status, status)
    assert headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "Retry-After" in headers["Access-Control-Expose-Headers"]
    assert headers["Vary"] == "Origin"


def test_a_page_of_an_allowed_origin_can_read_that_its_headers_are_too_large(lonely_port: int) -> None:
    """The router gives up before it knows the origin, and the answer is the same for everybody."""
    status, problem, headers = ask(lonely_port, path=LOGIN + "?" + "a" * 9000, Origin=ORIGIN)
    assert (status, problem["status"]) == (431, 431)
    assert headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize("origin", ["https://evil.example.com", "https://app.example.com.evil.org", "null"])
def test_a_page_of_another_origin_cannot_read_what_the_router_answers(lonely_port: int, origin: str) -> None:
    status, _, headers = ask(lonely_port, b" " * 70_000, Origin=origin)
    assert (status, headers["Vary"]) == (413, "Origin")
    assert "Access-Control-Allow-Origin" not in headers


def test_the_running_service_lets_its_own_pages_read_a_413() -> None:
    port = urlsplit(os.environ["PUBLIC_URL"]).port or 80
    _, _, headers = ask(port, b" " * 70_000, Origin=f"http://localhost:{port}")
    assert headers["Access-Control-Allow-Origin"] == f"http://localhost:{port}"
