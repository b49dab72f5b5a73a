"""Attacks on the way in: names that are not the service's, and requests that never end."""

import contextlib
import json
import os
import socket
import time
from urllib.parse import urlsplit

import pytest

from tests.attacks.attacker import USERS, Caller


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "x@localhost"]
)
@pytest.mark.parametrize("path", ["/inbox", f"{USERS}/me", "/health"])
def test_a_page_that_rebinds_its_name_to_this_machine_reads_nothing(host: str, path: str) -> None:
    answer = Caller().send("GET", path, Host=host)
    assert answer.status == 421
    assert answer.problem == "misdirected-request"


def test_a_body_that_trickles_in_is_given_up_after_ten_seconds() -> None:
    url = urlsplit(os.environ["PUBLIC_URL"])
    head = f"POST {USERS}/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer, until = b"", time.monotonic() + 30
    with socket.create_connection((url.hostname or "", url.port or 80), timeout=1) as connection:
        connection.sendall(f"{head}Content-Length: 5000\r\n\r\n".encode())
        while b"}" not in answer:
            assert time.monotonic() < until, "it goes on for ever"
            try:
                answer += connection.recv(65536)
            except TimeoutError:
                with contextlib.suppress(OSError):
                    connection.sendall(b" ")
    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == "urn:aegis:problem:request-timeout"
