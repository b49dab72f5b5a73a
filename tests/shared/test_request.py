"""What every function does with every request."""

import contextlib
import http.client
import io
import json
import logging
import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest

from functions import login
from shared.http.request import MAX_BODY_BYTES
from shared.identity.verifications import RESET_PASSWORD
from shared.runtime import logs
from tests.authenticator import second_factor_challenge, with_totp
from tests.conftest import PASSWORD, User, call, client, issue, log_in, post, session_of

LOGIN = "/api/v1/users/login"


@pytest.fixture
def log_lines() -> Iterator[list[dict[str, Any]]]:
    """The lines that are logged during the test, as an operator's tools read them."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter("staging"))
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    root.addHandler(handler)

    class Lines(list[dict[str, Any]]):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            return iter([json.loads(line) for line in stream.getvalue().splitlines()])

    yield Lines()
    root.removeHandler(handler)
    root.setLevel(level)


def test_a_given_request_id_comes_back_in_header_problem_and_log(log_lines: list[dict[str, Any]]) -> None:
    response = post("login", LOGIN, {}, **{"X-Request-Id": "from-the-caller.1"})
    assert response.headers["X-Request-Id"] == response.json["request_id"] == "from-the-caller.1"
    assert {line.get("request_id") for line in log_lines} == {"from-the-caller.1"}


def test_every_log_line_names_the_environment(log_lines: list[dict[str, Any]]) -> None:
    post("login", LOGIN, {})
    assert {line["environment"] for line in log_lines} == {"staging"}


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, '"}', "한국".encode().decode("latin-1")])
def test_a_request_id_that_could_harm_a_log_is_replaced(given: str) -> None:
    response = post("login", LOGIN, {}, **{"X-Request-Id": given})
    assert response.headers["X-Request-Id"] not in ("", given)


def test_a_request_is_one_log_line_without_personal_data_or_secrets(
    active_user: User, log_lines: list[dict[str, Any]]
) -> None:
    response = post("login", LOGIN, {"email": active_user.email, "password": PASSWORD})
    tokens = response.json
    (line,) = log_lines
    assert line["message"] == "answered"
    assert (line["function"], line["method"], line["endpoint"], line["status"]) == ("login", "POST", LOGIN, 200)
    assert line["duration_ms"] > 0
    for private in (active_user.email, PASSWORD, tokens["access_token"], tokens["refresh_token"]):
        assert private not in json.dumps(line)


def test_the_log_says_who_was_refused_what_and_why(
    active_user: User, address: str, log_lines: list[dict[str, Any]]
) -> None:
    """ASVS 5.0, 16.2.1 and 16.3.1 to 16.3.3; the account by its id, as an address is personal data."""
    tokens, old = session_of(active_user), session_of(active_user, ago=timedelta(minutes=11))
    wrong = {"email": active_user.email, "password": "wrong horse battery staple"}
    call("login", body=wrong)
    call("login", body={**wrong, "email": f"nobody-{address}"})
    call("login", body={})
    call("list_users", tokens)
    call("remove_phone", old)
    call("change_password", tokens, {"current_password": wrong["password"], "new_password": PASSWORD + address})
    call("reset_password", body={"token": issue(active_user, RESET_PASSWORD), "password": "a short one"})
    call("get_profile", tokens)
    call("get_profile")
    lines = [line for line in log_lines if line["message"] == "answered"]
    user = str(active_user.id)
    assert [(line["status"], line.get("problem"), line.get("user_id")) for line in lines] == [
        (401, "InvalidCredentials", user),
        (401, "InvalidCredentials", None),
        (422, "InvalidRequest", None),
        (403, "Forbidden", user),
        (401, "ReauthenticationRequired", user),
        (403, "WrongPassword", user),
        (422, "InvalidRequest", user),
        (200, None, user),
        (401, "Unauthenticated", None),
    ]
    assert all(datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0) for line in lines)
    assert all(line["request_id"] and line["function"] and line["endpoint"] for line in lines)
    assert address not in json.dumps(lines)


def test_too_many_tries_at_a_second_factor_are_logged_under_the_account(
    active_user: User, log_lines: list[dict[str, Any]]
) -> None:
    """ASVS 5.0, 16.3.1."""
    with_totp(active_user)
    challenge = second_factor_challenge(active_user)
    for _ in range(6):
        call("login_with_second_factor", body={"challenge": challenge, "code": "000000"})
    user = str(active_user.id)
    assert [(line["function"], line["problem"], line["user_id"]) for line in log_lines] == [
        ("login", "SecondFactorRequired", user),
        *[("login_with_second_factor", "InvalidSecondFactor", user)] * 5,
        ("login_with_second_factor", "ChallengeOver", user),
    ]


def test_an_unexpected_error_is_a_500_that_says_nothing_and_a_log_line_that_says_where(
    monkeypatch: pytest.MonkeyPatch, log_lines: list[dict[str, Any]]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(f"about {PASSWORD}")

    monkeypatch.setattr(login, "verify_password", fail)
    response = post("login", LOGIN, {"email": "kim@example.com", "password": PASSWORD})
    assert (response.status_code, response.content_type) == (500, "application/problem+json")
    assert "RuntimeError" not in response.text
    (line,) = [line for line in log_lines if line["level"] == "ERROR"]
    assert "RuntimeError" in line["exception"]
    assert "login" in line["exception"]
    assert PASSWORD not in json.dumps(line)


def test_a_wrong_path_is_a_404_and_a_wrong_method_a_405() -> None:
    assert client("login").post("/elsewhere", json={}).status_code == 404
    response = client("login").get(LOGIN)
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")
    assert client("get_profile").post("/api/v1/users/me").headers["Allow"] == "GET, HEAD"


def test_an_odd_method_is_a_405_and_one_series_in_the_metrics() -> None:
    for method in ("BREW", "PROPFIND", "X" * 30):
        client("login").open(LOGIN, method=method)
    metrics = client("login").get("/metrics").text
    assert 'method="OTHER"' in metrics
    assert "BREW" not in metrics


def test_a_body_over_64_kib_is_a_413() -> None:
    body = b'{"email": "' + b"x" * MAX_BODY_BYTES + b'"}'
    response = client("login").post(LOGIN, data=body, content_type="application/json")
    assert (response.status_code, response.content_type) == (413, "application/problem+json")
    assert response.json["type"] == "urn:aegis:problem:body-too-large"  # type: ignore[index]


def test_a_large_body_of_another_type_is_a_413_too() -> None:
    response = client("login").post(LOGIN, data=b"x" * (MAX_BODY_BYTES + 1), content_type="text/plain")
    assert response.status_code == 413


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 5_000_000])
def test_a_chunked_body_over_64_kib_is_a_413_over_the_network(size: int) -> None:
    address = urlsplit(os.environ["PUBLIC_URL"])
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
    chunks = (b"x" * 8192 for _ in range(size // 8192 + 1))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the answer may come before all is sent
        connection.request("POST", LOGIN, chunks, {"Content-Type": "application/json"}, encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 413
    connection.close()


def test_answers_are_not_to_be_stored_or_sniffed(active_user: User) -> None:
    headers = client("get_profile").get("/api/v1/users/me").headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_metrics_count_requests_by_function_method_route_and_status(active_user: User) -> None:
    labels = f'{{endpoint="{LOGIN}",function="login",method="POST",service="user-service",status="200"}}'

    def count() -> float:
        lines = client("login").get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"http_requests_total{labels}"))

    before = count()
    log_in(active_user)
    assert count() == before + 1


def test_unknown_addresses_are_one_series_in_the_metrics() -> None:
    for number in range(20):
        client("fallback").get(f"/nowhere/{number}")
    metrics = client("fallback").get("/metrics").text
    assert "/nowhere" not in metrics
    assert 'endpoint="/*",function="fallback",method="GET",service="user-service",status="404"' in metrics
