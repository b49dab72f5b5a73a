"""What the router answers by itself, without a function."""

import http.client
import json
import os
import socket
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from knative.local.router import SITE, router
from knative.local.servers import LOOPBACK, free_port
from knative.local.supervisor import Supervisor
from shared.framework import openapi
from shared.framework.registry import HTTP_FUNCTIONS, load_all
from shared.runtime import problems
from shared.runtime.manifests import functions
from tests.servers import supervisor

__all__ = ["supervisor"]

LOGIN = "/api/v1/users/login"
LONG = LOGIN + "?" + "a" * 9000
ORIGIN = "https://app.example.com"


@pytest.fixture
def lonely_port(supervisor: Supervisor, tmp_path: Path) -> int:
    """Of a router whose functions are all away, and which pages of ORIGIN may call."""
    port, away = free_port(), free_port()
    ports = dict.fromkeys((*functions(), SITE), away)
    process = router(tmp_path, LOOPBACK, port, free_port(), ports, key="k" * 32, origins=[ORIGIN])
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
    status, problem, headers = ask(lonely_port, path=LONG, Origin=ORIGIN)
    assert (status, problem["status"]) == (431, 431)
    assert headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize(("size", "path", "status"), [(2, LOGIN, 503), (70_000, LOGIN, 413), (2, LONG, 431)])
def test_what_the_router_answers_itself_is_as_the_document_has_errors(
    lonely_port: int, size: int, path: str, status: int
) -> None:
    load_all()
    document = openapi.document(HTTP_FUNCTIONS.values(), "http://localhost")
    schema = {"$ref": "#/components/schemas/ProblemDetails", "components": document["components"]}
    answered, problem, headers = ask(lonely_port, b" " * size, path)
    assert answered == status
    jsonschema_rs.Draft202012Validator(schema).validate(problem)
    # Of a request whose headers it could not read, the router knows no id.
    assert problem.get("request_id") == headers.get("X-Request-Id")


@pytest.mark.parametrize("origin", ["https://evil.example.com", "https://app.example.com.evil.org", "null"])
def test_a_page_of_another_origin_cannot_read_what_the_router_answers(lonely_port: int, origin: str) -> None:
    status, _, headers = ask(lonely_port, b" " * 70_000, Origin=origin)
    assert (status, headers["Vary"]) == (413, "Origin")
    assert "Access-Control-Allow-Origin" not in headers


def test_the_running_service_lets_its_own_pages_read_a_413() -> None:
    port = urlsplit(os.environ["PUBLIC_URL"]).port or 80
    _, _, headers = ask(port, b" " * 70_000, Origin=f"http://localhost:{port}")
    assert headers["Access-Control-Allow-Origin"] == f"http://localhost:{port}"


HOST = b"Host: localhost\r\n"
INVALID = "urn:aegis:problem:malformed-request"
NO_HTTP = {
    "a garbage request line": b"\x16\x03\x01 what is this\r\n\r\n",
    "no method": b"/api/v1/users HTTP/1.1\r\n" + HOST + b"\r\n",
    "no Host": b"GET /api/v1/users/me HTTP/1.1\r\n\r\n",
    "a space in a header's name": b"GET /api/v1/users/me HTTP/1.1\r\n" + HOST + b"X Y: z\r\n\r\n",
    "a NUL in a header": b"GET /api/v1/users/me HTTP/1.1\r\n" + HOST + b"X-Y: \x00\r\n\r\n",
    "a length and chunks": b"POST /api/v1/users HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "two lengths": b"POST /api/v1/users HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a negative length": b"POST /api/v1/users HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
    "no size of a chunk": b"POST /api/v1/users HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
}
"""What is no HTTP (RFC 9112), as clients, scanners and smugglers send it."""


def send(port: int, request: bytes) -> tuple[int, Any, http.client.HTTPMessage]:
    """The answer to what a client writes into a connection of its own."""
    with socket.create_connection((LOOPBACK, port), timeout=30) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, json.loads(response.read()), response.headers


def assert_is_problem(answer: tuple[int, Any, http.client.HTTPMessage], status: int, type_uri: str) -> None:
    answered, problem, headers = answer
    assert (answered, problem["status"], problem["type"]) == (status, status, type_uri)
    assert headers["Content-Type"] == "application/problem+json"
    assert headers["Cache-Control"] == "no-store"
    assert problem["title"]
    assert problem["detail"]
    assert None not in problem.values()
    assert problem.get("request_id") == headers["X-Request-Id"]


@pytest.mark.parametrize("request_", NO_HTTP.values(), ids=NO_HTTP.keys())
def test_what_is_no_http_is_a_problem(lonely_port: int, request_: bytes) -> None:
    assert_is_problem(send(lonely_port, request_), 400, INVALID)


@pytest.fixture
def impatient_port(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    """Of a router that waits for a request no longer than a second."""
    monkeypatch.setattr(problems, "REQUEST_SECONDS", 1)
    port: int = request.getfixturevalue("lonely_port")
    return port


@hypothesis_settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(line=st.binary(min_size=1, max_size=60), header=st.binary(max_size=60))
def test_whatever_bytes_come_in_place_of_a_request_the_answer_is_a_problem(
    impatient_port: int, line: bytes, header: bytes
) -> None:
    status, problem, headers = send(impatient_port, line + b"\r\n" + HOST + header + b"\r\n\r\n")
    assert_is_problem((status, problem, headers), status, problem["type"])
    assert status >= 400


def test_a_path_that_names_nothing_is_a_problem(lonely_port: int) -> None:
    request = b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n"
    assert_is_problem(send(lonely_port, request), 404, "urn:aegis:problem:not-found")


def test_a_transfer_coding_that_nobody_supports_is_a_problem(lonely_port: int) -> None:
    request = b"POST /api/v1/users HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
    assert_is_problem(send(lonely_port, request), 501, "urn:aegis:problem:unsupported-transfer-coding")


def test_headers_that_are_too_large_are_a_problem_without_an_id(lonely_port: int) -> None:
    request = b"GET / HTTP/1.1\r\n" + HOST + b"X-Request-Id: mine\r\nX-Y: " + b"z" * 9000 + b"\r\n\r\n"
    assert_is_problem(send(lonely_port, request), 431, "urn:aegis:problem:headers-too-large")


@pytest.mark.parametrize("rest", [b"", b"Content-Length: 100\r\n\r\n{"], ids=["headers", "a body"])
def test_a_request_that_stops_midway_is_a_problem(impatient_port: int, rest: bytes) -> None:
    request = b"POST /api/v1/users/login HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n" + rest
    assert_is_problem(send(impatient_port, request), 408, "urn:aegis:problem:request-timeout")


def test_a_page_of_an_allowed_origin_can_read_that_its_body_did_not_arrive(impatient_port: int) -> None:
    request = b"POST /api/v1/users/login HTTP/1.1\r\n" + HOST + f"Origin: {ORIGIN}\r\n".encode()
    status, _, headers = send(impatient_port, request + b"Content-Length: 100\r\n\r\n{")
    assert (status, headers["Access-Control-Allow-Origin"]) == (408, ORIGIN)


def service_port() -> int:
    return urlsplit(os.environ["PUBLIC_URL"]).port or 80


@pytest.mark.parametrize("host", [b"", HOST], ids=["without a host", "with a host"])
def test_a_client_of_http_1_0_is_served(host: bytes) -> None:
    """As nginx is, which speaks it to the servers behind it unless it is told otherwise."""
    status, keys, headers = send(service_port(), b"GET /.well-known/jwks.json HTTP/1.0\r\n" + host + b"\r\n")
    assert (status, headers["Transfer-Encoding"]) == (200, None)
    assert keys["keys"]


def test_a_client_that_asks_for_another_protocol_is_served_in_this_one() -> None:
    """Java's client asks for HTTP/2 over plain HTTP; others ask for WebSocket or TLS (RFC 9110, 7.8)."""
    for protocol in (b"h2c", b"websocket", b"TLS/1.2"):
        request = b"GET /api/v1/users/me HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: " + protocol
        assert_is_problem(send(service_port(), request + b"\r\n\r\n"), 401, "urn:aegis:problem:unauthenticated")


def test_an_expectation_that_nobody_knows_is_ignored() -> None:
    """RFC 9110, 10.1.1."""
    request = b"GET /api/v1/users/me HTTP/1.1\r\n" + HOST + b"Expect: the-unexpected\r\n\r\n"
    assert_is_problem(send(service_port(), request), 401, "urn:aegis:problem:unauthenticated")


def test_a_client_that_waits_for_100_continue_before_it_sends_its_body_is_told_to_go_on() -> None:
    head = b"POST /api/v1/users/login HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
    with socket.create_connection((LOOPBACK, service_port()), timeout=30) as connection:
        connection.sendall(head + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 Continue\r\n")
        connection.sendall(b"{}")
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 422


def test_an_id_in_upper_case_reaches_its_function() -> None:
    """RFC 9562, 4. The fallback would answer 404."""
    user, session = str(uuid.uuid4()).upper(), str(uuid.uuid4()).upper()
    for request in (f"GET /api/v1/users/{user}", f"DELETE /api/v1/users/me/sessions/{session}"):
        status, _, _ = send(service_port(), f"{request} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert status == 401


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:8080", "[::1]:8080", "192.168.0.7"])
def test_the_names_that_make_up_prints_and_addresses_are_served(host: str) -> None:
    assert status_under(host, "/inbox?to=nobody@example.com") == 200


def status_under(host: str, path: str) -> int:
    connection = http.client.HTTPConnection(LOOPBACK, service_port(), timeout=30)
    try:
        connection.request("GET", path, headers={"Host": host})
        return connection.getresponse().status
    finally:
        connection.close()
