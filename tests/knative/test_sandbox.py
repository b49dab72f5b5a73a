"""The providers of development, as the real ones answer."""

import base64
import json
import os
import re
import time
import urllib.error
import urllib.request
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Page

from tests.browser import PHONE, needs_chromium
from tests.conftest import inbox


def sid() -> str:
    """Of our account with the provider of texts."""
    return os.environ["SMS_API_KEY"].partition(":")[0]


def ask(
    url: str, data: bytes | None, headers: dict[str, str], method: str | None = None
) -> tuple[int, Any, dict[str, str]]:
    """The status, JSON and headers of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=10) as response:
            content = response.read()
            return response.status, json.loads(content) if content else None, dict(response.headers)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), dict(error.headers)


def request(url: str, data: bytes, headers: dict[str, str]) -> tuple[int, Any]:
    return ask(url, data, headers)[:2]


def twilio(path: str, form: dict[str, str] | None = None, *, key: str = "", method: str | None = None) -> Any:
    """What Twilio's API would answer."""
    credentials = base64.b64encode((key or os.environ["SMS_API_KEY"]).encode()).decode()
    return ask(
        os.environ["SMS_SERVICE_URL"] + path,
        None if form is None else urlencode(form).encode(),
        {"Authorization": f"Basic {credentials}"},
        method,
    )


def texts_path(account: str = "") -> str:
    return f"/2010-04-01/Accounts/{account or sid()}/Messages.json"


def text(to: str, *, account: str = "", key: str = "", **changes: str) -> tuple[int, Any]:
    """What Twilio's API would answer to a text; a change to nothing leaves a field out."""
    form = {"To": to, "From": "+15005550006", "Body": "Your code is 123456.", "ValidityPeriod": "300", **changes}
    form = {name: value for name, value in form.items() if value}
    status, answer, _ = twilio(texts_path(account), form, key=key)
    return status, answer


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
    [
        ({"To": ""}, 21604),
        ({"To": "010-1234-5678"}, 21211),
        ({"To": "kim@example.com"}, 21211),
        ({"From": ""}, 21603),
        ({"From": "+0123"}, 21212),
        ({"From": "A sender too long"}, 21212),
        ({"From": "", "MessagingServiceSid": "MG1"}, 21701),
        ({"Body": ""}, 21602),
        ({"Body": "a" * 1601}, 21617),
        ({"ValidityPeriod": "soon"}, 21624),
        ({"ValidityPeriod": "0"}, 21624),
        ({"ValidityPeriod": "-1"}, 21624),
        ({"ValidityPeriod": "36001"}, 21624),
        ({"ValidityPeriod": "9" * 5000}, 21624),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_malformed_text_is_refused(phone: str, changes: dict[str, str], code: int) -> None:
    status, error = text(phone, **changes)
    assert (status, error["code"], error["status"]) == (400, code, 400)
    assert error["more_info"] == f"https://www.twilio.com/docs/errors/{code}"
    assert inbox(phone) == []


@pytest.mark.parametrize("sender", ["+821012345678", "12345", "Aegis"])
def test_a_text_comes_from_a_number_a_short_code_or_a_name(phone: str, sender: str) -> None:
    status, message = text(phone, From=sender, Body="a" * 1600, ValidityPeriod="36000")
    assert (status, message["from"]) == (201, sender)


def test_a_messaging_service_sends_without_a_number(phone: str) -> None:
    service = f"MG{'0' * 32}"
    status, message = text(phone, From="", MessagingServiceSid=service)
    assert (status, message["status"], message["from"]) == (201, "accepted", None)
    assert message["messaging_service_sid"] == service


@pytest.mark.parametrize(
    ("to", "code"),
    [
        ("+15005550001", 21211),
        ("+15005550002", 21612),
        ("+15005550003", 21408),
        ("+15005550004", 21610),
        ("+15005550009", 21614),
    ],
)
def test_some_numbers_are_refused_as_by_the_provider(to: str, code: int) -> None:
    status, error = text(to)
    assert (status, error["code"]) == (400, code)


@pytest.mark.parametrize(
    ("sender", "code"), [("+15005550001", 21212), ("+15005550007", 21606), ("+15005550008", 21611)]
)
def test_some_senders_are_refused_as_by_the_provider(phone: str, sender: str, code: int) -> None:
    status, error = text(phone, From=sender)
    assert (status, error["code"]) == (400, code)


def test_a_number_sends_no_text_to_itself(phone: str) -> None:
    assert text(phone, From=phone)[1]["code"] == 21266


def test_a_queued_text_is_described_as_by_the_provider(phone: str) -> None:
    form = {"To": phone, "From": "+15005550006", "Body": "Your code is 123456."}
    status, message, headers = twilio(texts_path(), form)
    assert status == 201
    assert re.fullmatch("RQ[0-9a-f]{32}", headers["Twilio-Request-Id"])
    assert re.fullmatch("SM[0-9a-f]{32}", message["sid"])
    assert abs(parsedate_to_datetime(message["date_created"]).timestamp() - time.time()) < 60
    path = f"/2010-04-01/Accounts/{sid()}/Messages/{message['sid']}"
    assert message == {
        "account_sid": sid(),
        "api_version": "2010-04-01",
        "body": "Your code is 123456.",
        "date_created": message["date_created"],
        "date_sent": None,
        "date_updated": message["date_created"],
        "direction": "outbound-api",
        "error_code": None,
        "error_message": None,
        "from": "+15005550006",
        "messaging_service_sid": None,
        "num_media": "0",
        "num_segments": "1",
        "price": None,
        "price_unit": "USD",
        "sid": message["sid"],
        "status": "queued",
        "subresource_uris": {"media": f"{path}/Media.json"},
        "to": phone,
        "uri": f"{path}.json",
    }
    status, fetched, _ = twilio(message["uri"])
    sent = {"status": "delivered", "date_sent": message["date_created"]}
    assert (status, fetched) == (200, message | sent)


@pytest.mark.parametrize(
    ("body", "segments"),
    [
        ("a" * 160, "1"),
        ("a" * 161, "2"),
        ("a" * 306, "2"),
        ("a" * 307, "3"),
        ("€" * 80, "1"),
        ("€" * 81, "2"),
        ("€" * 153, "3"),  # an escaped character is not split, so 76 fit into a part
        ("가" * 70, "1"),
        ("가" * 71, "2"),
        ("가" * 134, "2"),
        ("가" * 135, "3"),
        ("😀" * 35, "1"),
        ("😀" * 36, "2"),
        ("a" * 70 + "`", "2"),  # the grave accent is not in GSM-7
    ],
    ids=lambda value: f"{len(value)} of {value[0]}",
)
def test_a_long_text_is_counted_in_segments(phone: str, body: str, segments: str) -> None:
    assert text(phone, Body=body)[1]["num_segments"] == segments


def test_texts_are_listed_page_by_page_newest_first(phone: str) -> None:
    for number in range(3):
        text(phone, Body=str(number))
    status, first, _ = twilio(f"{texts_path()}?{urlencode({'To': phone, 'PageSize': 2})}")
    assert (status, [message["body"] for message in first["messages"]]) == (200, ["2", "1"])
    assert (first["page"], first["page_size"], first["start"], first["end"]) == (0, 2, 0, 1)
    assert first["previous_page_uri"] is None
    text(phone, Body="sent since")
    _, second, _ = twilio(first["next_page_uri"])
    assert [message["body"] for message in second["messages"]] == ["0"]
    assert (second["page"], second["next_page_uri"]) == (1, None)
    _, again, _ = twilio(second["first_page_uri"])
    assert [message["body"] for message in again["messages"]] == ["sent since", "2"]


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"From": "+15005550006"}, 1),
        ({"From": "+15005550099"}, 0),
        ({"DateSent>": "2020-01-01"}, 1),
        ({"DateSent<": "2020-01-01"}, 0),
        ({"DateSent": "2020-01-01"}, 0),
        ({"DateSent<": "2999-01-01T00:00:00Z"}, 1),
    ],
    ids=str,
)
def test_texts_are_listed_by_sender_and_date(phone: str, filters: dict[str, str], count: int) -> None:
    text(phone)
    _, listed, _ = twilio(f"{texts_path()}?{urlencode({'To': phone, **filters})}")
    assert len(listed["messages"]) == count


def test_texts_of_a_day_are_listed_by_any_time_of_it(phone: str) -> None:
    day = parsedate_to_datetime(text(phone)[1]["date_created"]).date()
    for date in (f"{day}", f"{day}T00:00:00Z"):
        _, listed, _ = twilio(f"{texts_path()}?{urlencode({'To': phone, 'DateSent': date})}")
        assert len(listed["messages"]) == 1


@pytest.mark.parametrize(("query", "code"), [("PageSize=1001", 20007), ("PageSize=0", 20001), ("Page=-1", 20001)])
def test_a_malformed_page_of_texts_is_refused(query: str, code: int) -> None:
    status, error, _ = twilio(f"{texts_path()}?{query}")
    assert (status, error["code"]) == (400, code)


def test_an_unknown_text_is_not_found() -> None:
    status, error, _ = twilio(f"/2010-04-01/Accounts/{sid()}/Messages/SM{'0' * 32}.json")
    assert (status, error["code"]) == (404, 20404)


def test_wrong_credentials_read_no_texts() -> None:
    status, error, headers = twilio(texts_path(), key=f"{sid()}:wrong")
    assert (status, error["code"]) == (401, 20003)
    assert headers["WWW-Authenticate"].startswith("Basic")


def test_a_list_of_texts_cannot_be_deleted() -> None:
    status, error, _ = twilio(texts_path(), method="DELETE")
    assert (status, error["code"]) == (405, 20004)


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


def test_the_providers_are_not_public(phone: str) -> None:
    for path in (f"/2010-04-01/Accounts/{sid()}/Messages.json", "/api/nts-businessman/v1/status"):
        assert request(os.environ["PUBLIC_URL"] + path, b"{}", {})[0] == 404


def sendgrid(
    data: bytes,
    *,
    authorization: str | None = None,
    content_type: str = "application/json",
    method: str | None = None,
) -> tuple[int, Any, dict[str, str]]:
    """What SendGrid's API would answer."""
    if authorization is None:
        authorization = f"Bearer {os.environ['EMAIL_API_KEY']}"
    headers = {"Content-Type": content_type} | ({"Authorization": authorization} if authorization else {})
    return ask(os.environ["EMAIL_SERVICE_URL"] + "/v3/mail/send", data, headers, method)


def mail(body: Any) -> tuple[int, Any]:
    return sendgrid(json.dumps(body).encode())[:2]


def a_mail(*to: str, **changes: Any) -> dict[str, Any]:
    """A mail that is taken, but for the changes; None leaves a member out."""
    members = {
        "personalizations": [{"to": [{"email": email} for email in to]}],
        "from": {"email": "no-reply@aegis.example.com"},
        "subject": "Hello",
        "content": [{"type": "text/plain", "value": "Hello, Kim."}],
        **changes,
    }
    return {name: value for name, value in members.items() if value is not None}


def test_a_mail_is_taken_with_an_id_and_no_body(address: str) -> None:
    status, body, headers = sendgrid(json.dumps(a_mail(address)).encode())
    assert (status, body) == (202, None)
    (message,) = inbox(address)
    assert message["id"] == headers["X-Message-Id"] != ""


def test_a_mail_reaches_to_cc_and_bcc(address: str) -> None:
    people = {kind: f"{kind}-{address}" for kind in ("to", "cc", "bcc")}
    personalization = {kind: [{"email": email, "name": kind}] for kind, email in people.items()}
    assert mail(a_mail(personalizations=[personalization]))[0] == 202
    for email in people.values():
        (message,) = inbox(email)
        assert (message["to"], message["cc"], message["bcc"]) == (email, [people["cc"]], [people["bcc"]])


def test_each_personalization_may_have_a_subject_and_sender(address: str) -> None:
    sender = "kim@aegis.example.com"
    personalization = {"to": [{"email": address}], "subject": "For you", "from": {"email": sender}}
    assert mail(a_mail(personalizations=[personalization], subject=None))[0] == 202
    (message,) = inbox(address)
    assert (message["subject"], message["from"]) == ("For you", sender)


@pytest.mark.parametrize(
    "changes",
    [
        {"reply_to": {"email": "help@aegis.example.com", "name": "Help"}},
        {"reply_to_list": [{"email": "help@aegis.example.com"}]},
        {"subject": None, "content": None, "template_id": f"d-{'0' * 32}"},
        {"template_id": "75a831b9-9d96-4501-ad3d-52a76381151c"},
        {"send_at": 0},
        {"send_at": int(time.time()) + 71 * 3600},
        {
            "content": [
                {"type": "text/plain", "value": "text"},
                {"type": "text/html", "value": "<p>text</p>"},
                {"type": "text/calendar", "value": "BEGIN:VCALENDAR"},
            ]
        },
    ],
    ids=",".join,
)
def test_a_mail_may_have_what_the_provider_knows(address: str, changes: dict[str, Any]) -> None:
    assert mail(a_mail(address, **changes)) == (202, None)
    assert len(inbox(address)) == 1


def test_a_template_shows_what_would_fill_it(address: str) -> None:
    template = f"d-{'0' * 32}"
    personalization = {"to": [{"email": address}], "dynamic_template_data": {"name": "김민준"}}
    mail(a_mail(personalizations=[personalization], subject=None, content=None, template_id=template))
    (message,) = inbox(address)
    assert template in message["subject"]
    assert "김민준" in message["text"]


def test_a_mail_in_the_providers_sandbox_mode_is_checked_and_not_sent(address: str) -> None:
    assert mail(a_mail(address, mail_settings={"sandbox_mode": {"enable": True}})) == (200, None)
    assert inbox(address) == []


def content(*parts: tuple[str, str]) -> dict[str, Any]:
    return {"content": [{"type": kind, "value": value} for kind, value in parts]}


KIM = {"email": "kim@example.com"}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"personalizations": None}, "personalizations"),
        ({"personalizations": []}, "personalizations"),
        ({"personalizations": [{}]}, "personalizations.0.to"),
        ({"personalizations": [{"to": []}]}, "personalizations.0.to"),
        ({"personalizations": [{"cc": [KIM]}]}, "personalizations.0.to"),
        ({"personalizations": [{"to": [{}]}]}, "personalizations.0.to.0.email"),
        ({"personalizations": [{"to": [KIM, {"email": "kim"}]}]}, "personalizations.0.to.1.email"),
        ({"personalizations": [{"to": [{"email": "kim lee@example.com"}]}]}, "personalizations.0.to.0.email"),
        ({"personalizations": [{"to": [{"email": "kim@refused.example.com"}]}]}, "personalizations.0.to.0.email"),
        ({"personalizations": [{"to": [KIM], "cc": [{"email": "@example.com"}]}]}, "personalizations.0.cc.0.email"),
        ({"personalizations": [{"to": [KIM], "bcc": [{"email": "lee@"}]}]}, "personalizations.0.bcc.0.email"),
        ({"personalizations": [{"to": [KIM, KIM]}]}, "personalizations.0"),
        ({"personalizations": [{"to": [KIM], "cc": [{"email": "KIM@example.com"}]}]}, "personalizations.0"),
        ({"personalizations": [{"to": [KIM], "bcc": [KIM]}]}, "personalizations.0"),
        (
            {"personalizations": [{"to": [{"email": f"{number}@example.com"} for number in range(1001)]}]},
            "personalizations",
        ),
        ({"personalizations": [{"to": [KIM], "send_at": 2**40}]}, "personalizations.0.send_at"),
        ({"personalizations": [{"to": [KIM], "from": {"email": "lee"}}]}, "personalizations.0.from.email"),
        ({"from": None}, "from.email"),
        ({"from": {"name": "Aegis"}}, "from.email"),
        ({"from": {"email": "aegis"}}, "from.email"),
        ({"reply_to": {"name": "Help"}}, "reply_to.email"),
        ({"reply_to": {"email": "help"}}, "reply_to.email"),
        ({"reply_to": KIM, "reply_to_list": [KIM]}, "reply_to_list"),
        ({"reply_to_list": [KIM, {"email": "help"}]}, "reply_to_list.1.email"),
        ({"subject": None}, "subject"),
        ({"subject": ""}, "subject"),
        ({"content": None}, "content"),
        ({"content": []}, "content"),
        (content(("text/plain", "")), "content.0.value"),
        (content(("", "text")), "content.0.type"),
        (content(("text/plain; charset=utf-8", "text")), "content.0.type"),
        (content(("text/html", "<p>text</p>"), ("text/plain", "text")), "content"),
        (content(("text/calendar", "BEGIN:VCALENDAR"), ("text/html", "<p>text</p>")), "content"),
        (content(("text/plain", "text"), ("text/plain", "text")), "content"),
        ({"template_id": "welcome"}, "template_id"),
        ({"send_at": int(time.time()) + 73 * 3600}, "send_at"),
        ({"subject": 1}, "subject"),
        ({"subject": None, "from": "no-reply@aegis.example.com"}, "from"),
        ({"personalizations": {"to": [KIM]}}, "personalizations"),
        ({"personalizations": [{"to": KIM}]}, "personalizations.0.to"),
        ({"personalizations": [{"to": ["kim@example.com"]}]}, "personalizations.0.to.0"),
        ({"personalizations": [{"to": [{"email": 1}]}]}, "personalizations.0.to.0.email"),
        ({"content": "text"}, "content"),
        ({"send_at": "tomorrow"}, "send_at"),
        ({"send_at": True}, "send_at"),
        (
            {
                "personalizations": [{"to": [KIM], "substitutions": {"-name-": "Kim"}}],
                "template_id": f"d-{'0' * 32}",
            },
            "personalizations.0.substitutions",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_a_mail_that_the_provider_refuses_names_the_field(address: str, changes: dict[str, Any], field: str) -> None:
    status, answer = mail(a_mail(address, **changes))
    assert (status, [error["field"] for error in answer["errors"]]) == (400, [field])
    assert all(error.keys() == {"message", "field", "help"} and error["message"] for error in answer["errors"])
    assert inbox(address) == []


def test_all_faults_of_a_mail_are_named_at_once() -> None:
    _, answer = mail({})
    fields = [error["field"] for error in answer["errors"]]
    assert fields == ["personalizations", "from.email", "subject", "content"]


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b'{"subject": "\\ud800"}', b"\xff"], ids=range(5))
def test_a_mail_that_is_not_json_is_refused(body: bytes) -> None:
    status, answer, _ = sendgrid(body)
    assert (status, answer) == (400, {"errors": [{"message": "Bad Request", "field": None, "help": None}]})


@pytest.mark.parametrize("body", [[], "mail", 1, None])
def test_a_mail_is_an_object(body: Any) -> None:
    assert mail(body)[0] == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["email", "to", "type"]), inner),
    max_leaves=6,
)
PEOPLE = st.lists(
    st.fixed_dictionaries({}, optional={"to": JSON, "cc": JSON, "from": JSON, "send_at": JSON}), max_size=2
)


@settings(max_examples=60)
@given(
    st.fixed_dictionaries(
        {"personalizations": PEOPLE | JSON},
        optional=dict.fromkeys(("from", "reply_to", "subject", "content", "template_id", "mail_settings"), JSON),
    )
)
def test_no_mail_is_too_odd_for_a_clear_refusal(changes: dict[str, Any]) -> None:
    status, answer = mail(a_mail(**changes))
    assert status == 400
    assert all(error["message"] for error in answer["errors"])


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(["To", "From", "Body", "MessagingServiceSid", "ValidityPeriod"]),
        st.text("+0123MGa²\0", max_size=7),
    )
)
def test_no_text_is_too_odd_for_a_clear_refusal(form: dict[str, str]) -> None:
    status, answer, _ = twilio(texts_path(), {"From": "Aegis", "Body": "text", "To": "kim", **form})
    assert (status, 21200 < answer["code"] < 21800) == (400, True)


@pytest.mark.parametrize(
    ("authorization", "message"),
    [
        ("", "Permission denied, wrong credentials"),
        ("Bearer wrong", "The provided authorization grant is invalid, expired, or revoked"),
        ("Basic d3Jvbmc6d3Jvbmc=", "The provided authorization grant is invalid, expired, or revoked"),
    ],
)
def test_a_wrong_key_sends_no_mail(address: str, authorization: str, message: str) -> None:
    status, answer, _ = sendgrid(json.dumps(a_mail(address)).encode(), authorization=authorization)
    assert (status, answer) == (401, {"errors": [{"message": message, "field": None, "help": None}]})
    assert inbox(address) == []


def test_a_form_is_no_mail(address: str) -> None:
    form = "application/x-www-form-urlencoded"
    assert sendgrid(json.dumps(a_mail(address)).encode(), content_type=form)[0] == 415


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_a_mail_is_sent_by_post_alone(method: str) -> None:
    status, answer, headers = sendgrid(b"{}", method=method)
    assert (status, answer["errors"][0]["message"], headers["Allow"]) == (405, "method not allowed", "POST")


def test_a_mail_cannot_run_a_script_in_the_inbox(address: str) -> None:
    script = "<script>alert(1)</script>"
    message = a_mail(address, subject=script, content=[{"type": "text/html", "value": script}])
    assert mail(message)[0] == 202
    with urllib.request.urlopen(f"{os.environ['PUBLIC_URL']}/inbox", timeout=10) as response:
        html = response.read().decode()
    assert address in html
    assert "<script>alert" not in html
    assert "script-src 'self';" in response.headers["Content-Security-Policy"]


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


@needs_chromium
def test_the_inbox_shows_who_got_copies(page: Page, address: str) -> None:
    personalization = {
        "to": [{"email": address}],
        "cc": [{"email": f"cc-{address}"}],
        "bcc": [{"email": f"bcc-{address}"}],
    }
    mail(a_mail(personalizations=[personalization]))
    page.goto(f"{os.environ['PUBLIC_URL']}/inbox?{urlencode({'to': address})}")
    assert f"email to {address}, cc cc-{address}, bcc bcc-{address}, " in page.locator("article .meta").inner_text()


@needs_chromium
def test_an_inbox_without_messages_for_an_address_says_so(page: Page, address: str) -> None:
    page.goto(f"{os.environ['PUBLIC_URL']}/inbox?{urlencode({'to': address})}")
    assert page.locator(".empty").inner_text().startswith(f"There are no messages for this address: {address}.")
    assert page.get_by_role("link", name="Show all messages").get_attribute("href") == "/inbox"
