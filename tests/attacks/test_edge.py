"""Attacks on the way in: foreign names, requests that never end, and events that nobody sent."""

import contextlib
import json
import os
import socket
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import pytest

from shared.runtime.manifests import schedules, triggers
from tests.attacks.attacker import USERS, Caller
from tests.conftest import DATA, create_admin, create_user, envelope, inbox


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


def forge(function: str, type_: str, data: Any, **headers: str) -> int:
    """The status that a function answers to an event, sent by somebody who reaches its port."""
    targets = json.loads((DATA / "targets.json").read_text())
    (address,) = (target["targets"][0] for target in targets if target["labels"]["process"] == function)
    sent = {"Content-Type": "application/json", **envelope(type_), **headers}
    request = urllib.request.Request(f"http://{address}/", json.dumps(data).encode(), sent, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_forged_event_does_not_show_in_the_audit_trail(address: str) -> None:
    user, admin = create_user(address), Caller()
    admin.access_token = create_admin(f"admin-{address}")[1]["access_token"]
    assert forge("verify_business", "com.aegis.user.suspended.v1", {"user_id": str(user.id)}) == 401
    assert admin.send("GET", f"{USERS}/{user.id}/audit").body["entries"] == []


def test_forged_events_send_no_mail(address: str) -> None:
    user = create_user(address)
    for _ in range(5):
        data = {"user_id": str(user.id), "locale": "ko"}
        assert forge("send_email", "com.aegis.user.password_reset_requested.v1", data) == 401
    assert inbox(address) == []


@pytest.mark.parametrize("function", sorted({schedule.service for schedule in schedules()}))
def test_nobody_but_a_schedule_starts_the_work_of_one(function: str) -> None:
    name = function.replace("-", "_")
    assert forge(name, "dev.knative.sources.ping", {}) == 401
    assert forge(name, "dev.knative.sources.ping", {}, Authorization="Bearer 9999999999." + "0" * 64) == 401


@pytest.mark.parametrize("function", sorted({"keep-dead-letter", *(trigger.service for trigger in triggers())}))
def test_an_access_token_of_a_user_delivers_no_event(function: str, address: str) -> None:
    create_user(address)
    user = Caller()
    user.log_in(address)
    bearer = f"Bearer {user.access_token}"
    assert forge(function.replace("-", "_"), "com.aegis.user.suspended.v1", {}, Authorization=bearer) == 401
