"""The whole way through the router, as a client on the network and a person in a browser go it."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page
from sqlalchemy import select, update

from shared.postgresql.tables import account, dead_letter
from shared.postgresql.transactions import transaction
from tests.browser import PHONE, needs_chromium
from tests.conftest import DATA, PASSWORD, ROOT, inbox, mailed_token, wait_for


def call(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
    """The answer; where the service is too busy, that of a later try, as it asks for."""
    for _ in range(10):
        status, content, received = send(method, path, body, **headers)
        if status != 503:
            break
        time.sleep(float(received["Retry-After"]))
    return status, content, received


def send(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
    request = urllib.request.Request(
        os.environ["PUBLIC_URL"] + path,
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json", **headers},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            content = response.read()
            return response.status, json.loads(content) if content else None, response.headers
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), error.headers


def registered(address: str) -> None:
    assert call("POST", "/api/v1/users", {"email": address, "password": PASSWORD})[0] == 202


def test_register_verify_log_in_read_refresh_log_out(address: str) -> None:
    users = "/api/v1/users"
    assert call("POST", users, {"email": address, "password": PASSWORD, "name": "김민준"})[0] == 202
    assert call("POST", f"{users}/email/verify", {"token": mailed_token(address), "password": PASSWORD})[0] == 204
    status, tokens, _ = call("POST", f"{users}/login", {"email": address, "password": PASSWORD})
    assert status == 200
    status, tokens, _ = call("POST", f"{users}/token/refresh", {"refresh_token": tokens["refresh_token"]})
    assert status == 200
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    status, profile, _ = call("GET", f"{users}/me", **bearer)
    assert (status, profile["email"], profile["name"]) == (200, address, "김민준")
    assert call("POST", f"{users}/logout", **bearer)[0] == 204
    status, problem, headers = call("GET", f"{users}/me", **bearer)
    assert (status, headers["Content-Type"]) == (401, "application/problem+json")
    assert problem["request_id"] == headers["X-Request-Id"]


def test_a_mail_that_was_refused_waits_for_an_operator_and_arrives_once_when_it_is_retried(address: str) -> None:
    """The sandbox takes no mail to refused.example.com, until the account has an address that it takes."""
    users, refused = "/api/v1/users", address.replace("@", "@refused.")
    assert call("POST", users, {"email": refused, "password": PASSWORD})[0] == 202
    with transaction() as connection:
        query = select(account.c.id).where(account.c.canonical_email == refused)
        user_id = str(connection.execute(query).scalar_one())

    def letter() -> Any:
        with transaction() as connection:
            return connection.execute(select(dead_letter).where(dead_letter.c.subject == user_id)).one_or_none()

    number = str(wait_for(letter).number)
    reason = "422 The mail provider answered 400 and rejected personalizations.0.to.0.email."
    (line,) = [line for line in aegis("list", "--function", "send_email").splitlines() if line.split()[0] == number]
    assert line.endswith(reason)
    assert user_id in aegis("show", number)

    with transaction() as connection:
        here = {"email": address, "canonical_email": address}
        connection.execute(update(account).where(account.c.canonical_email == refused).values(here))
    for _ in range(2):
        assert aegis("retry", number).startswith("1 put back")
    wait_for(lambda: inbox(address))
    # A user's events are delivered in order: with this one's mail, all that were retried are settled.
    assert call("POST", f"{users}/email/resend", {"email": address})[0] == 202
    wait_for(lambda: len(inbox(address)) > 1)
    subjects = [mail["subject"] for mail in inbox(address)]
    assert len(subjects) == 2, subjects
    assert inbox(refused) == []
    assert letter().retried_at is not None


def aegis(*arguments: str) -> str:
    """What the command prints next to the running service."""
    command = [sys.executable, "-m", "knative.aegis", "events", "dead", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_an_unknown_address_and_a_wrong_method_are_problems() -> None:
    assert call("GET", "/nowhere")[0] == 404
    status, problem, headers = call("DELETE", "/api/v1/users/me")
    assert (status, problem["status"], headers["Allow"]) == (405, 405, "GET, HEAD, PATCH")


def test_what_is_too_long_is_a_problem_too() -> None:
    status, problem, headers = call("GET", "/api/v1/users?email=" + "a" * 9000)
    assert (status, headers["Content-Type"]) == (431, "application/problem+json")
    assert problem["type"] == "urn:aegis:problem:headers-too-large"
    assert call("GET", "/api/v1/users?email=" + "a" * 6000)[0] == 401


def test_health_and_metrics_of_functions_are_not_public() -> None:
    for path in ("/health/live", "/health/ready", "/metrics", "/v3/mail/send"):
        assert call("GET", path)[0] == 404


def test_callers_who_never_finish_their_request_do_not_keep_others_out() -> None:
    address = urlsplit(os.environ["PUBLIC_URL"])
    head = b"POST /api/v1/users/login HTTP/1.1\r\nHost: x\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    with contextlib.ExitStack() as stalled:
        for _ in range(8):
            connection = stalled.enter_context(socket.create_connection((address.hostname, address.port), timeout=20))
            connection.sendall(head)
        wait_for(lambda: call("POST", "/api/v1/users/login", {"email": "a@example.com", "password": "x"})[0] == 401, 30)


def test_change_the_address_and_the_password(address: str) -> None:
    users, new, new_password = "/api/v1/users", f"new-{address}", "a wholly new choice of words"
    registered(address)
    assert call("POST", f"{users}/email/verify", {"token": mailed_token(address), "password": PASSWORD})[0] == 204
    _, tokens, _ = call("POST", f"{users}/login", {"email": address, "password": PASSWORD})
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    assert call("POST", f"{users}/me/email", {"email": new, "password": PASSWORD}, **bearer)[0] == 202
    assert call("POST", f"{users}/email/resend", {"email": new})[0] == 202
    wait_for(lambda: len(inbox(new)) == 2)
    assert call("POST", f"{users}/email/verify", {"token": mailed_token(new), "password": PASSWORD})[0] == 204
    change = {"current_password": PASSWORD, "new_password": new_password}
    assert call("PUT", f"{users}/me/password", change, **bearer)[0] == 204
    assert call("GET", f"{users}/me", **bearer)[1]["email"] == new
    assert call("POST", f"{users}/login", {"email": new, "password": new_password})[0] == 200


@pytest.fixture
def errors(page: Page) -> Iterator[list[str]]:
    """What the browser complains about, and each address outside the service that a page asks for."""
    found: list[str] = []

    def complain(message: Any) -> None:
        # A mail that tries to run a script is blocked, and another test sends one.
        if message.type == "error" and "about:srcdoc" not in message.text:
            found.append(message.text)

    def look(request: Any) -> None:
        if not request.url.startswith((os.environ["PUBLIC_URL"], "data:", "blob:")):
            found.append(request.url)

    page.on("console", complain)
    page.on("request", look)
    yield found
    page.remove_listener("console", complain)
    page.remove_listener("request", look)


@needs_chromium
def test_a_person_follows_the_link_in_the_inbox(page: Page, errors: list[str], address: str) -> None:
    registered(address)
    mailed_token(address)
    page.goto(f"{os.environ['PUBLIC_URL']}/inbox")
    mail = page.locator("article", has_text=address)
    assert mail.get_by_role("heading").inner_text() == "이메일 주소를 확인해 주세요"
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    mail.get_by_text("As HTML").click()
    framed = mail.frame_locator("iframe").get_by_role("link", name="이메일 주소 확인")
    assert "#token=" in (framed.get_attribute("href") or "")

    with page.context.expect_page() as opened:
        mail.get_by_role("link", name=re.compile("verify-email")).click()
    verified = opened.value
    verified.wait_for_url(f"{os.environ['PUBLIC_URL']}/verify-email")
    verified.locator("#password").fill("wrong horse battery staple")
    verified.get_by_role("button", name="이메일 주소 확인").click()
    verified.get_by_text("계정의 비밀번호가 아닙니다").wait_for()
    verified.locator("#password").fill(PASSWORD)
    verified.get_by_role("button", name="이메일 주소 확인").click()
    verified.get_by_text("이메일 주소가 확인되었습니다. 이제 이 페이지를 닫고 이지스에 로그인해 주세요.").wait_for()
    assert verified.get_by_text("이지스", exact=True).is_visible()
    verified.close()
    assert errors == []
    assert call("POST", "/api/v1/users/login", {"email": address, "password": PASSWORD})[0] == 200


@needs_chromium
def test_a_used_link_says_so(page: Page) -> None:
    page.goto(f"{os.environ['PUBLIC_URL']}/verify-email#token={'A' * 43}")
    page.locator("#password").fill(PASSWORD)
    page.get_by_role("button", name="이메일 주소 확인").click()
    page.get_by_text("이미 사용했거나 만료되었거나").wait_for()


@needs_chromium
@pytest.mark.parametrize("path", ["/verify-email", "/reset-password"])
def test_a_link_without_its_token_says_that_it_is_incomplete(page: Page, errors: list[str], path: str) -> None:
    page.goto(f"{os.environ['PUBLIC_URL']}{path}")
    page.get_by_text("링크가 완전하지 않습니다.").wait_for()
    assert not page.locator("#password").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert errors == []


@needs_chromium
@pytest.mark.parametrize(
    ("path", "button"), [("/verify-email", "이메일 주소 확인"), ("/reset-password", "비밀번호 설정")]
)
def test_a_link_that_was_cut_off_says_that_it_is_incomplete(page: Page, path: str, button: str) -> None:
    page.goto(f"{os.environ['PUBLIC_URL']}{path}#token={'A' * 20}")
    page.locator("#password").fill(PASSWORD)
    page.get_by_role("button", name=button).click()
    page.get_by_text("링크가 완전하지 않습니다.").wait_for()
    assert not page.locator("#password").is_visible()


@needs_chromium
def test_a_link_that_cannot_reach_the_service_offers_to_try_again(page: Page, address: str) -> None:
    registered(address)
    page.route("**/email/verify", lambda route: route.abort())
    page.goto(f"{os.environ['PUBLIC_URL']}/inbox")
    page.goto(f"{os.environ['PUBLIC_URL']}/verify-email#token={mailed_token(address)}")
    page.locator("#password").fill(PASSWORD)
    again = page.get_by_role("button", name="이메일 주소 확인")
    again.click()
    page.get_by_text("지금은 서비스에 연결할 수 없습니다").wait_for()
    page.unroute("**/email/verify")
    again.click()
    page.get_by_text("이메일 주소가 확인되었습니다").wait_for()


@needs_chromium
def test_a_person_sets_a_new_password_with_the_link_in_the_mail(page: Page, errors: list[str], address: str) -> None:
    users, new_password = "/api/v1/users", "a wholly new choice of words"
    registered(address)
    assert call("POST", f"{users}/email/verify", {"token": mailed_token(address), "password": PASSWORD})[0] == 204
    assert call("POST", f"{users}/password/forgot", {"email": address})[0] == 202
    wait_for(lambda: len(inbox(address)) == 2)
    page.goto(f"{os.environ['PUBLIC_URL']}/reset-password#token={mailed_token(address)}")
    assert page.url == f"{os.environ['PUBLIC_URL']}/reset-password"
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    field, button = page.locator("#password"), page.get_by_role("button", name="비밀번호 설정")
    field.fill("short")
    button.click()
    page.get_by_text("다른 비밀번호를 입력해 주세요: 15자보다 짧습니다.").wait_for()
    field.fill(new_password)
    page.get_by_label("비밀번호 표시").check()
    assert field.get_attribute("type") == "text"
    button.click()
    page.get_by_text("새 비밀번호가 설정되었으며").wait_for()
    assert not field.is_visible()
    assert [error for error in errors if "422" not in error] == []
    assert call("POST", f"{users}/login", {"email": address, "password": PASSWORD})[0] == 401
    assert call("POST", f"{users}/login", {"email": address, "password": new_password})[0] == 200


@needs_chromium
def test_a_link_to_set_a_password_that_was_used_says_so(page: Page) -> None:
    page.goto(f"{os.environ['PUBLIC_URL']}/reset-password#token={'A' * 43}")
    page.locator("#password").fill(PASSWORD)
    page.get_by_role("button", name="비밀번호 설정").click()
    page.get_by_text("이미 사용했거나 만료되었거나").wait_for()
    assert not page.locator("#password").is_visible()


@needs_chromium
def test_a_new_password_that_cannot_reach_the_service_can_be_sent_again(page: Page) -> None:
    page.route("**/password/reset", lambda route: route.abort())
    page.goto(f"{os.environ['PUBLIC_URL']}/reset-password#token={'A' * 43}")
    page.locator("#password").fill(PASSWORD)
    button = page.get_by_role("button", name="비밀번호 설정")
    button.click()
    page.get_by_text("지금은 서비스에 연결할 수 없습니다").wait_for()
    page.unroute("**/password/reset")
    button.click()
    page.get_by_text("이미 사용했거나 만료되었거나").wait_for()


@needs_chromium
def test_the_documentation_shows_every_operation_and_asks_nobody_else(page: Page, errors: list[str]) -> None:
    page.goto(f"{os.environ['PUBLIC_URL']}/docs/")
    page.get_by_text("Aegis user service").first.wait_for()
    paths = call("GET", "/openapi.json")[1]["paths"]
    for path in paths:
        page.locator(f'[data-path="{path}"]').first.wait_for()
    page.locator('[data-path="/api/v1/users/login"]').first.click()
    page.get_by_text("The e-mail address or the password is wrong").first.wait_for()
    events = page.get_by_role("link", name="The events that the service announces")
    assert events.get_attribute("href") == f"{os.environ['PUBLIC_URL']}/asyncapi.json"
    assert errors == []


@needs_chromium
def test_the_start_page_leads_to_the_documentation(page: Page) -> None:
    page.goto(os.environ["PUBLIC_URL"])
    page.get_by_role("link", name="API docs").first.click()
    wait_for(lambda: page.url.endswith("/docs/"))


def test_every_log_line_has_time_level_and_environment() -> None:
    lines = [
        (log.name, json.loads(line))
        for log in (DATA / "logs").glob("*.log")
        for line in log.read_text("utf-8", "replace").splitlines()[:100]
        if line.startswith("{")
    ]
    assert {name for name, _ in lines} >= {"migrate.log", "register.log", "relay.log"}
    expected = {"time", "level", "environment", "message"}
    assert [(name, line) for name, line in lines if not expected <= line.keys()] == []
