"""How many requests may come, and what a caller who sends too many is told."""

import json
import os
import secrets
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask.testing import FlaskClient

from knative.local.supervisor import Process, Supervisor
from shared.framework.http_function import http_function
from shared.http import rate_limits
from shared.http.rate_limits import address_subject
from shared.identity.access_tokens import Caller
from shared.runtime.problems import NoSuchItem
from shared.runtime.settings import settings
from shared.text.fields import EmailAddress, RequestBody
from tests.conftest import PASSWORD, User, bearer, call, session_of, wait_for
from tests.servers import Serve, kill, redis_client, start_again


@pytest.fixture
def serve(any_redis: list[Process], serve: Serve) -> Serve:
    """What is counted in one Redis is counted in a cluster as well."""
    return serve


def an_address() -> str:
    """An IPv4 address that no other test has."""
    return f"10.{secrets.randbelow(256)}.{secrets.randbelow(256)}.{secrets.randbelow(256)}"


class Mailbox(RequestBody):
    email: EmailAddress


def limited(serve: Serve, **limits: str) -> FlaskClient:
    """An operation that anyone may call, with these limits."""
    named = {whose.replace("_and_", "+"): rate for whose, rate in limits.items()}

    @http_function("PUT", "/mailbox", status=204, limits=named)
    def put_mailbox(body: Mailbox) -> None:
        pass

    return serve(put_mailbox)


def put(client: FlaskClient, email: str, address: str, **headers: str) -> Any:
    forwarded = {"X-Forwarded-For": address} if address else {}
    return client.put("/mailbox", json={"email": email}, headers={**forwarded, **headers})


def test_the_answer_says_how_many_requests_are_left_and_429_when_there_are_none(serve: Serve, address: str) -> None:
    client, caller = limited(serve, address="3/hour"), an_address()
    for left in (2, 1, 0):
        answer = put(client, address, caller)
        assert answer.status_code == 204
        assert answer.headers["RateLimit-Policy"] == '"address";q=3;w=3600'
        assert answer.headers["RateLimit"].startswith(f'"address";r={left};t=')
    refused = put(client, address, caller)
    assert (refused.status_code, refused.content_type) == (429, "application/problem+json")
    assert refused.json["type"] == "urn:aegis:problem:too-many-requests"
    assert refused.headers["RateLimit-Policy"] == '"address";q=3;w=3600'
    assert refused.headers["RateLimit"] == f'"address";r=0;t={refused.headers["Retry-After"]}'
    assert 3590 <= int(refused.headers["Retry-After"]) <= 3600
    assert put(client, address, an_address()).status_code == 204


def test_who_waits_as_long_as_told_may_come_again(serve: Serve, address: str) -> None:
    client, caller = limited(serve, address="1/second"), an_address()
    refused = wait_for(lambda: next(iter(put(client, address, caller).headers.getlist("Retry-After")), None))
    assert refused == "1"
    wait_for(lambda: put(client, address, caller).status_code == 204)


def test_a_refused_request_counts_against_no_limit(serve: Serve, address: str) -> None:
    client = limited(serve, email="2/hour", email_and_address="1/hour")
    caller = an_address()
    assert [put(client, address, caller).status_code for _ in range(5)] == [204, 429, 429, 429, 429]
    assert put(client, address, an_address()).status_code == 204
    assert put(client, address, an_address()).status_code == 429


@pytest.fixture
def own_mailbox(serve: Serve) -> FlaskClient:
    """An operation that takes an access token and a body, twice an hour."""

    @http_function("PUT", "/own-mailbox", status=204, limits={"account": "2/hour"})
    def put_own_mailbox(body: Mailbox, caller: Caller) -> None:
        pass

    return serve(put_own_mailbox)


def put_own(client: FlaskClient, tokens: dict[str, Any], body: Any) -> int:
    return client.put("/own-mailbox", json=body, headers=bearer(tokens)).status_code


def test_a_body_that_is_refused_uses_up_nothing_of_the_account(
    own_mailbox: FlaskClient, active_user: User, address: str
) -> None:
    tokens = session_of(active_user)
    assert [put_own(own_mailbox, tokens, {"email": "no address"}) for _ in range(3)] == [422, 422, 422]
    assert [put_own(own_mailbox, tokens, {"email": address}) for _ in range(3)] == [204, 204, 429]


def test_the_token_of_a_session_that_has_ended_uses_up_nothing_of_the_account(
    own_mailbox: FlaskClient, active_user: User, address: str
) -> None:
    ended, tokens = session_of(active_user), session_of(active_user)
    assert call("logout", ended).status_code == 204
    assert [put_own(own_mailbox, ended, {"email": address}) for _ in range(3)] == [401, 401, 401]
    assert put_own(own_mailbox, ended, {"email": "no address"}) == 401
    assert [put_own(own_mailbox, tokens, {"email": address}) for _ in range(3)] == [204, 204, 429]


def test_requests_at_the_same_moment_are_each_counted(serve: Serve, address: str) -> None:
    client, caller = limited(serve, address="7/hour"), an_address()
    with ThreadPoolExecutor(20) as pool:
        statuses = list(
            pool.map(lambda _: put(client.application.test_client(), address, caller).status_code, range(20))
        )
    assert (statuses.count(204), statuses.count(429)) == (7, 13)


def test_the_headers_tell_of_the_limit_that_is_nearest(serve: Serve, address: str) -> None:
    client, caller = limited(serve, address="3/hour", email="100/hour"), an_address()
    for left in (2, 1, 0):
        assert put(client, address, caller).headers["RateLimit"].startswith(f'"address";r={left};')


def test_each_of_several_rates_counts(serve: Serve, address: str) -> None:
    client, caller = limited(serve, address="2/hour;3/day"), an_address()
    answers = [put(client, address, caller) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [204, 204, 429]
    assert answers[0].headers["RateLimit-Policy"] == '"address";q=2;w=3600'
    client = limited(serve, address="3/hour;2/day")
    answers = [put(client, address, caller) for _ in range(3)]
    assert answers[2].headers["RateLimit-Policy"] == '"address";q=2;w=86400'


def test_a_forged_x_forwarded_for_changes_nothing(serve: Serve, address: str) -> None:
    client, caller = limited(serve, address="2/hour"), an_address()
    statuses = [put(client, address, f"{an_address()}, {caller}").status_code for _ in range(4)]
    assert statuses == [204, 204, 429, 429]


def test_through_the_router_a_caller_is_who_the_router_sees(address: str) -> None:
    """Loopback, which shares no limit: a limit of the forged address would be told of."""
    body = json.dumps({"email": address, "password": PASSWORD}).encode()
    headers = {"Content-Type": "application/json", "X-Forwarded-For": "203.0.113.77"}
    for url in ("/api/v1/users/token/refresh", "/api/v1/users/email/verify"):
        with pytest.raises(urllib.error.HTTPError) as answer:
            urllib.request.urlopen(urllib.request.Request(os.environ["PUBLIC_URL"] + url, body, headers), timeout=20)
        assert answer.value.code == 422
        assert "RateLimit" not in answer.value.headers


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("{}@example.com", "{}@EXAMPLE.com"),
        ("kim{}@example.com", "KIM{}@example.com"),
        ("{}@bücher.example", "{}@xn--bcher-kva.example"),
        ("{}@example.com", "{}@ｅxample.com"),
        ("\u00fc{}@example.com", "u\u0308{}@example.com"),
    ],
)
def test_another_spelling_of_a_mailbox_has_no_limit_of_its_own(serve: Serve, first: str, second: str) -> None:
    client, name = limited(serve, email="1/hour"), secrets.token_hex(6)
    assert put(client, first.format(name), an_address()).status_code == 204
    assert put(client, second.format(name), an_address()).status_code == 429


def test_an_account_is_counted_whatever_its_address_and_session(serve: Serve, active_user: User) -> None:
    @http_function("PUT", "/mine", status=204, limits={"account": "2/hour"})
    def put_mine(caller: Caller) -> None:
        pass

    client = serve(put_mine)
    statuses = [
        client.put("/mine", headers={**bearer(session_of(active_user)), "X-Forwarded-For": an_address()}).status_code
        for _ in range(3)
    ]
    assert statuses == [204, 204, 429]


def test_who_has_no_valid_token_is_counted_by_address_before_the_token_is_looked_at() -> None:
    caller = an_address()
    answer = call("get_profile", {"access_token": "forged"}, address=caller)
    assert answer.status_code == 401
    assert answer.headers["RateLimit"].startswith('"address";r=1199;')


def test_a_problem_of_the_handler_tells_of_the_limit_too(serve: Serve) -> None:
    @http_function("PUT", "/missing", status=204, limits={"address": "9/hour"})
    def put_missing() -> None:
        raise NoSuchItem

    answer = serve(put_missing).put("/missing", headers={"X-Forwarded-For": an_address()})
    assert (answer.status_code, answer.headers["RateLimit"][:14]) == (404, '"address";r=8;')


def test_exempt_networks_share_no_limit_of_the_address_but_that_of_the_mailbox(serve: Serve, address: str) -> None:
    client = limited(serve, address="1/hour", email_and_address="1/hour", email="4/hour")
    statuses = [put(client, address, "127.0.0.1").status_code for _ in range(5)]
    assert statuses == [204, 204, 204, 204, 429]
    answer = put(limited(serve, address="1/hour"), address, "127.1.2.3")
    assert "RateLimit" not in answer.headers


@pytest.mark.parametrize(
    ("one", "other", "is_one"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("203.0.113.1", "203.0.113.2", False),
        ("203.0.113.1", "::ffff:203.0.113.1", True),
        ("::ffff:203.0.113.1", "::ffff:203.0.113.2", False),
    ],
)
def test_the_addresses_of_one_subscriber_are_one(one: str, other: str, is_one: bool) -> None:
    assert (address_subject(one) == address_subject(other)) == is_one


def subscribers(site: str, count: int) -> list[str]:
    """An address in each of so many /64 of a site's network, spread over its /56."""
    return [f"{site}:{number * 0x0101:x}::1" for number in range(1, count + 1)]


def test_a_site_with_many_ipv6_networks_has_a_few_times_the_limit_and_no_more(serve: Serve, address: str) -> None:
    client, site = limited(serve, address="3/hour"), f"2001:db8:{secrets.randbelow(65536):x}"
    statuses = [put(client, address, one).status_code for one in subscribers(site, 40)]
    assert statuses == [204] * 12 + [429] * 28
    assert put(client, address, f"2001:db9:{secrets.randbelow(65536):x}::1").status_code == 204


def test_a_household_with_many_ipv6_networks_has_twice_the_limit(serve: Serve, address: str) -> None:
    client, site = limited(serve, address="3/hour"), f"2001:db8:{secrets.randbelow(65536):x}"
    household = [f"{site}:12{number:02x}::1" for number in range(10)]
    assert [put(client, address, one).status_code for one in household] == [204] * 6 + [429] * 4
    assert put(client, address, f"{site}:1300::1").status_code == 204


def test_guesses_from_many_ipv6_networks_of_one_site_are_those_of_one_guesser(serve: Serve, address: str) -> None:
    client, site = limited(serve, email_and_address="3/hour"), f"2001:db8:{secrets.randbelow(65536):x}"
    statuses = [put(client, address, one).status_code for one in subscribers(site, 20)]
    assert statuses == [204] * 12 + [429] * 8


def test_exempt_networks_are_those_that_the_settings_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATE_LIMIT_EXEMPT_NETWORKS", "10.1.0.0/16, 2001:db8:7::/48")
    settings.cache_clear()
    subjects = [address_subject(each) for each in ("10.1.2.3", "::ffff:10.1.2.3", "2001:db8:7:1::1", "10.2.0.1")]
    monkeypatch.undo()
    settings.cache_clear()
    assert subjects == ["", "", "", "10.2.0.1"]


def test_without_redis_each_process_still_limits_and_later_redis_does_again(
    any_redis: list[Process], supervisor: Supervisor, serve: Serve, address: str
) -> None:
    client, caller = limited(serve, address="3/hour"), an_address()
    kill(*any_redis)
    assert [put(client, address, caller).status_code for _ in range(5)] == [204, 204, 204, 429, 429]
    start_again(supervisor, *any_redis)
    caller = an_address()
    wait_for(
        lambda: put(client, address, caller).status_code == 204 and list(redis_client().scan_iter("aegis:limit:*"))
    )


def test_redis_that_has_forgotten_its_scripts_still_counts(serve: Serve, address: str) -> None:
    client, caller = limited(serve, address="2/hour"), an_address()
    put(client, address, caller)
    redis_client().script_flush()
    assert [put(client, address, caller).status_code for _ in range(2)] == [204, 429]


def test_when_redis_forgets_everything_a_window_begins_anew_and_its_limit_holds(serve: Serve, address: str) -> None:
    client, caller = limited(serve, address="3/hour", email="3/hour"), an_address()
    assert [put(client, address, caller).status_code for _ in range(4)] == [204, 204, 204, 429]
    redis_client().flushall()
    assert [put(client, address, caller).status_code for _ in range(4)] == [204, 204, 204, 429]


def test_redis_keeps_no_count_for_longer_than_its_window(serve: Serve, address: str) -> None:
    put(limited(serve, address="2/hour", email="2/day"), address, an_address())
    lifetimes = sorted(redis_client().ttl(key) for key in redis_client().scan_iter("aegis:limit:*"))
    assert len(lifetimes) == 2
    assert all(0 < lifetime <= most for lifetime, most in zip(lifetimes, (3600, 86400), strict=True))


def test_no_personal_data_stands_in_a_key_of_redis(any_redis: list[Process], active_user: User) -> None:
    caller = an_address()
    call("login", body={"email": active_user.email, "password": "wrong horse battery staple"}, address=caller)
    keys = str(list(redis_client().scan_iter()))
    assert keys.count("aegis:limit:{login}:") == 4
    assert caller not in keys
    assert active_user.email.partition("@")[0] not in keys


def test_counts_without_redis_do_not_fill_the_memory(
    any_redis: list[Process], serve: Serve, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limits, "MAX_LOCAL_KEYS", 10)
    kill(*any_redis)
    client = limited(serve, address="3/hour")
    for _ in range(40):
        put(client, address, an_address())
    assert 0 < len(rate_limits._here) <= 11


@pytest.mark.parametrize(
    "limits",
    [{"adress": "1/hour"}, {"email+phone": "1/hour"}, {"email": "1"}, {"email": "0/hour"}, {"email": "1/year"}],
)
def test_limits_that_nobody_would_count_are_refused_at_import(limits: dict[str, str]) -> None:
    with pytest.raises(TypeError):

        @http_function("PUT", "/never", status=204, limits=limits)
        def put_never() -> None:
            pass
