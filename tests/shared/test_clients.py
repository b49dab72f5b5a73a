"""Where a request comes from, whatever it says itself."""

import json
import os
import urllib.request

import pytest
from flask import Flask, request
from sqlalchemy import select

from shared.http.clients import MAX_DEVICE_LENGTH, Client, client_of
from shared.postgresql.tables import session
from shared.postgresql.transactions import transaction
from shared.runtime.settings import settings
from tests.conftest import User


def client_with(monkeypatch: pytest.MonkeyPatch, hops: int, forwarded: str | None, device: str = "") -> Client:
    monkeypatch.setenv("TRUSTED_PROXY_HOPS", str(hops))
    monkeypatch.delenv("GATEWAY_KEY")
    settings.cache_clear()
    try:
        headers = {"User-Agent": device} | ({"X-Forwarded-For": forwarded} if forwarded is not None else {})
        with Flask("test").test_request_context(headers=headers, environ_base={"REMOTE_ADDR": "10.0.0.9"}):
            return client_of(request)
    finally:
        monkeypatch.undo()
        settings.cache_clear()


@pytest.mark.parametrize(
    ("hops", "forwarded", "address"),
    [
        (0, None, "10.0.0.9"),
        (0, "203.0.113.1", "10.0.0.9"),
        (1, "203.0.113.1", "203.0.113.1"),
        (1, "198.51.100.7, 203.0.113.1", "203.0.113.1"),
        (1, "127.0.0.1,198.51.100.7 ,203.0.113.1", "203.0.113.1"),
        (2, "198.51.100.7, 203.0.113.1, 10.0.0.2", "203.0.113.1"),
        (2, "203.0.113.1", "10.0.0.9"),
        (1, None, "10.0.0.9"),
        (1, "", "10.0.0.9"),
        (1, "203.0.113.1, unknown", "10.0.0.9"),
        (1, "203.0.113.1, 203.0.113.01", "10.0.0.9"),
        (1, "2001:DB8:0:0::1", "2001:db8::1"),
        (1, "::ffff:203.0.113.1", "203.0.113.1"),
    ],
)
def test_the_entry_that_the_outermost_proxy_of_ours_wrote_counts(
    monkeypatch: pytest.MonkeyPatch, hops: int, forwarded: str | None, address: str
) -> None:
    assert client_with(monkeypatch, hops, forwarded).address == address


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("aegis-cli/1.0 (Linux)", "aegis-cli/1.0 (Linux)"),
        ("a\tb\x1b[31mc", "ab[31mc"),
        ("x" * 1000, "x" * MAX_DEVICE_LENGTH),
    ],
)
def test_a_device_is_short_and_can_be_shown(monkeypatch: pytest.MonkeyPatch, given: str, kept: str) -> None:
    assert client_with(monkeypatch, 1, None, given).device == kept


def test_a_caller_cannot_forge_an_address_through_the_router(active_user: User) -> None:
    body = json.dumps({"email": active_user.email, "password": active_user.password}).encode()
    headers = {"Content-Type": "application/json", "X-Forwarded-For": "203.0.113.5", "User-Agent": "forger"}
    login = urllib.request.Request(os.environ["PUBLIC_URL"] + "/api/v1/users/login", body, headers)
    with urllib.request.urlopen(login, timeout=20) as response:
        assert response.status == 200
    with transaction() as connection:
        query = select(session.c.address, session.c.device).where(session.c.account_id == active_user.id)
        assert connection.execute(query).one() == ("127.0.0.1", "forger")
