"""The providers of development, as the real ones answer."""

import base64
import json
import os
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page

from tests.browser import PHONE, needs_chromium
from tests.conftest import inbox


def sid() -> str:
    """Of our account with the provider of texts."""
    return os.environ["SMS_API_KEY"].partition(":")[0]


def request(url: str, data: bytes, headers: dict[str, str]) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=10) as response:
            content = response.read()
            return response.status, json.loads(content) if content else None
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def text(to: str, *, account: str = "", key: str = "", **changes: str) -> tuple[int, Any]:
    """What Twilio's API would answer."""
    credentials = base64.b64encode((key or os.environ["SMS_API_KEY"]).encode()).decode()
    form = {"To": to, "From": "+15005550006", "Body": "Your code is 123456.", "ValidityPeriod": "300", **changes}
    return request(
        f"{os.environ['SMS_SERVICE_URL']}/2010-04-01/Accounts/{account or sid()}/Messages.json",
        urlencode({name: value for name, value in form.items() if value}).encode(),
        {"Authorization": f"Basic {credentials}", "Content-Type": "application/x-www-form-urlencoded"},
    )


def registry(operation: str, question: Any, authorization: str | None = None) -> tuple[int, Any]:
    """What odcloud's API would answer."""
    if authorization is None:
        authorization = f"Infuser {os.environ['BUSINESS_REGISTRY_API_KEY']}"
    headers = {"Content-Type": "application/json"} | ({"Authorization": authorization} if authorization else {})
    data = question if isinstance(question, bytes) else json.dumps(question).encode()
    return request(f"{os.environ['BUSINESS_REGISTRY_API_URL']}/api/nts-businessman/v1/{operation}", data, headers)


def test_a_text_is_queued_and_stands_in_the_inbox(phone: str) -> None:
    status, message = text(phone)
    assert (status, message["status"], message["to"]) == (201, "queued", phone)
    assert message["sid"].startswith("SM")
    assert [sent["text"] for sent in inbox(phone)] == ["Your code is 123456."]


@pytest.mark.parametrize("key", ["{sid}:wrong", "AC0:wrong", "한:국"])
def test_wrong_credentials_send_no_text(phone: str, key: str) -> None:
    status, error = text(phone, key=key.format(sid=sid()))
    assert (status, error["code"], error["status"]) == (401, 20003, 401)
    assert inbox(phone) == []


def test_the_account_of_another_sends_no_text(phone: str) -> None:
    assert text(phone, account="AC00000000000000000000000000000000")[0] == 401
    assert inbox(phone) == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"To": ""}, 21604), ({"From": ""}, 21603), ({"Body": ""}, 21602), ({"ValidityPeriod": "soon"}, 21624)],
)
def test_a_malformed_text_is_refused(phone: str, changes: dict[str, str], code: int) -> None:
    status, error = text(phone, **changes)
    assert (status, error["code"]) == (400, code)
    assert inbox(phone) == []


@pytest.mark.parametrize(("to", "code"), [("+15005550001", 21211), ("+15005550004", 21610), ("+15005550009", 21614)])
def test_some_numbers_are_refused_as_by_the_provider(to: str, code: int) -> None:
    status, error = text(to)
    assert (status, error["code"]) == (400, code)


@pytest.mark.parametrize(("authorization", "code"), [("", -401), ("Infuser wrong", -4), ("Bearer wrong", -4)])
@pytest.mark.parametrize("operation", ["validate", "status"])
def test_a_wrong_key_gets_the_gateways_error(operation: str, authorization: str, code: int) -> None:
    status, error = registry(operation, {}, authorization)
    assert (status, error["code"]) == (401, code)


@pytest.mark.parametrize("operation", ["validate", "status"])
@pytest.mark.parametrize(
    ("question", "status", "code"),
    [
        (b"nonsense", 400, "BAD_JSON_REQUEST"),
        ([], 400, "BAD_JSON_REQUEST"),
        ({}, 411, "REQUEST_DATA_MALFORMED"),
        ({"businesses": [], "b_no": []}, 411, "REQUEST_DATA_MALFORMED"),
        ({"businesses": [{"b_no": "1"}], "b_no": [1]}, 411, "REQUEST_DATA_MALFORMED"),
        (
            {"businesses": [{"b_no": "1", "start_dt": "20200101", "p_nm": "김"}] * 101, "b_no": ["1"] * 101},
            413,
            "TOO_LARGE_REQUEST",
        ),
    ],
    ids=str,
)
def test_a_malformed_question_gets_the_registrys_error(operation: str, question: Any, status: int, code: str) -> None:
    assert registry(operation, question) == (status, {"status_code": code})


@pytest.mark.parametrize("last", range(10))
def test_the_last_digit_decides_what_the_registry_knows(last: int) -> None:
    number = f"101010001{last}"
    status, answer = registry("status", {"b_no": [number]})
    (state,) = answer["data"]
    assert (status, answer["status_code"]) == (200, "OK")
    assert state["b_no"] == number
    assert state["b_stt_cd"] == {5: "03", 7: "02", 8: "03", 9: ""}.get(last, "01")
    assert ("match_cnt" in answer) == (last != 9)

    business = {"b_no": number, "start_dt": "20190304", "p_nm": "김민준"}
    status, answer = registry("validate", {"businesses": [business]})
    (found,) = answer["data"]
    assert (status, found["request_param"]) == (200, business)
    assert found["valid"] == ("02" if last in (6, 9) else "01")
    assert ("status" in found) == (found["valid"] == "01")
    if found["valid"] == "01":
        assert found["status"]["b_stt_cd"] == {7: "02", 8: "03"}.get(last, "01")


def test_a_mail_to_some_addresses_is_refused_as_by_the_provider() -> None:
    to = "kim@refused.example.com"
    mail = {
        "personalizations": [{"to": [{"email": to}]}],
        "from": {"email": "no-reply@aegis.example.com"},
        "subject": "s",
        "content": [{"type": "text/plain", "value": "t"}],
    }
    headers = {"Authorization": f"Bearer {os.environ['EMAIL_API_KEY']}", "Content-Type": "application/json"}
    status, answer = request(f"{os.environ['EMAIL_SERVICE_URL']}/v3/mail/send", json.dumps(mail).encode(), headers)
    assert (status, answer["errors"][0]["field"]) == (400, "personalizations.0.to.0.email")
    assert inbox(to) == []


def test_the_providers_are_not_public(phone: str) -> None:
    for path in (f"/2010-04-01/Accounts/{sid()}/Messages.json", "/api/nts-businessman/v1/status"):
        assert request(os.environ["PUBLIC_URL"] + path, b"{}", {})[0] == 404


def mail(body: Any, authorization: str | None = None) -> tuple[int, Any]:
    """What SendGrid's API would answer."""
    headers = {"Authorization": authorization or f"Bearer {os.environ['EMAIL_API_KEY']}"}
    return request(
        os.environ["EMAIL_SERVICE_URL"] + "/v3/mail/send",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", **headers},
    )


def test_a_mail_cannot_run_a_script_in_the_inbox(address: str) -> None:
    script = "<script>alert(1)</script>"
    message = {
        "personalizations": [{"to": [{"email": address}]}],
        "from": {"email": "a@example.com"},
        "subject": script,
        "content": [{"type": "text/html", "value": script}],
    }
    assert mail(message)[0] == 202
    with urllib.request.urlopen(f"{os.environ['PUBLIC_URL']}/inbox", timeout=10) as response:
        html = response.read().decode()
    assert address in html
    assert "<script>alert" not in html
    assert "script-src 'self';" in response.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("body", "authorization", "status"), [({}, None, 400), ([], None, 400), ({}, "Bearer wrong", 401)]
)
def test_a_malformed_or_unauthorized_mail_gets_the_providers_error(
    body: Any, authorization: str | None, status: int
) -> None:
    refused, error = mail(body, authorization)
    assert refused == status
    assert error["errors"][0]["message"]


@needs_chromium
def test_a_text_reads_in_the_inbox_as_on_a_phone(page: Page, phone: str) -> None:
    body = "[이지스] 인증번호 031415 (5분). 남에게 알리지 마세요.\n\n@aegis.example.com #031415"
    text(phone, Body=body)
    page.goto(f"{os.environ['PUBLIC_URL']}/inbox")
    shown = page.locator("article", has_text=phone)
    assert shown.get_by_role("heading").inner_text() == "Text message"
    assert shown.locator(".bubble").inner_text() == body
    assert shown.get_by_role("link").count() == 0
    assert shown.get_by_text("As HTML").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
