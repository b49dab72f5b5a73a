"""Attacks from inside the cluster: a request that reaches a function past the gateway, and says where it comes from."""

import http.client
import os
import secrets
import threading
from collections.abc import Iterator

import pytest

from knative.local.supervisor import Supervisor
from shared.http.clients import GATEWAY_KEY_HEADER
from tests.attacks.attacker import USERS, Caller, loopback_address
from tests.servers import function_process

NEW, OLD = secrets.token_hex(32), secrets.token_hex(32)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of a function that takes two keys, and by which callers over loopback are counted, too."""
    process, url = function_process("get_profile", GATEWAY_KEY=f"{NEW},{OLD}", RATE_LIMIT_EXEMPT_NETWORKS="")
    supervisor = Supervisor(tmp_path_factory.mktemp("gateway_key"), print, threading.Event())
    supervisor.start(process)
    try:
        supervisor.wait_until_ready(process, seconds=60)
        yield int(url.rsplit(":", 1)[1].strip("/"))
    finally:
        supervisor.stop()


def left(port: int, peer: str, *headers: tuple[str, str]) -> int:
    """How many more requests may come from the address that this one, sent by a peer, counts for."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30, source_address=(peer, 0))
    connection.putrequest("GET", f"{USERS}/me")
    for header in headers:
        connection.putheader(*header)
    connection.endheaders()
    try:
        response = connection.getresponse()
        response.read()
        return int(response.headers["RateLimit"].split(";")[1].removeprefix("r="))
    finally:
        connection.close()


def forwarded_for() -> tuple[str, str]:
    """An address that nobody else has, as a proxy or a forger names it."""
    return "X-Forwarded-For", f"2001:db8:{secrets.token_hex(2)}:{secrets.token_hex(2)}::1"


def test_who_comes_past_the_gateway_counts_as_the_peer_whatever_the_request_says(port: int) -> None:
    peer, victim = loopback_address(), forwarded_for()
    first = left(port, peer, victim)
    assert left(port, peer, victim) == first - 1
    assert left(port, peer, forwarded_for()) == first - 2
    assert left(port, loopback_address(), victim, (GATEWAY_KEY_HEADER, NEW)) == first


@pytest.mark.parametrize("key", [NEW, OLD], ids=["new", "old"])
def test_what_the_gateway_sends_counts_for_the_client_under_each_key(port: int, key: str) -> None:
    peer, client = loopback_address(), forwarded_for()
    first = left(port, peer, client, (GATEWAY_KEY_HEADER, key))
    assert left(port, loopback_address(), client, (GATEWAY_KEY_HEADER, key)) == first - 1
    assert left(port, peer, forwarded_for(), (GATEWAY_KEY_HEADER, key)) == first


@pytest.mark.parametrize(
    "forged",
    [
        [(GATEWAY_KEY_HEADER, "")],
        [(GATEWAY_KEY_HEADER, "0" * 64)],
        [(GATEWAY_KEY_HEADER, NEW[:-1])],
        [(GATEWAY_KEY_HEADER, NEW + "0")],
        [(GATEWAY_KEY_HEADER, NEW.upper())],
        [(GATEWAY_KEY_HEADER, f"{NEW},{OLD}")],
        [(GATEWAY_KEY_HEADER, "\u00fc" * 64)],
        # Twice: a guess beside the key, and the key beside a guess.
        [(GATEWAY_KEY_HEADER, "0" * 64), (GATEWAY_KEY_HEADER, NEW)],
        [(GATEWAY_KEY_HEADER, NEW), (GATEWAY_KEY_HEADER, NEW)],
        # Another header, which CGI would give the same name (RFC 3875, 4.1.18).
        [("X_Gateway_Key", NEW)],
    ],
    ids=["empty", "wrong", "short", "long", "upper", "all", "not ascii", "second", "twice", "underscores"],
)
def test_a_key_that_is_not_exactly_the_gateways_is_none(port: int, forged: list[tuple[str, str]]) -> None:
    peer = loopback_address()
    first = left(port, peer)
    assert left(port, peer, forwarded_for(), *forged) == first - 1
    assert left(port, peer, forwarded_for(), *forged) == first - 2


def test_the_router_overwrites_a_key_that_a_client_sends(address: str) -> None:
    """Its client is a loopback address, which shares no limit: another would be told how many requests are left."""
    for key in ("0" * 64, os.environ["GATEWAY_KEY"]):
        answer = Caller().send("GET", f"{USERS}/me", **{GATEWAY_KEY_HEADER: key, "X-Forwarded-For": "203.0.113.9"})
        assert answer.status == 401
        assert "RateLimit" not in answer.headers


def test_no_answer_or_document_names_the_key() -> None:
    answer = Caller().send("GET", f"{USERS}/me", **{GATEWAY_KEY_HEADER: "x"})
    assert GATEWAY_KEY_HEADER.lower() not in str(answer).lower()
    for document in ("/openapi.json", "/asyncapi.json"):
        text = str(Caller().send("GET", document)).lower()
        assert "gateway-key" not in text
        assert os.environ["GATEWAY_KEY"] not in text
