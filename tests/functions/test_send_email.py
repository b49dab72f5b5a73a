"""Events that call for a mail, and providers that misbehave."""

import json
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from sqlalchemy import select

from shared import mails
from shared import settings as settings_module
from shared.database import transaction
from shared.tables import verification
from tests.conftest import User, client, create_user, inbox, post

REGISTERED = "com.aegis.user.registered.v1"
REPEATED = "com.aegis.user.registration_repeated.v1"


class Provider(ThreadingHTTPServer):
    """A mail provider that answers with the statuses it is told, then 202, and keeps what it accepted."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[int] = []
        self.hangs = threading.Event()
        self.accepted: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Provider

    def do_POST(self) -> None:
        mail = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.authorizations.append(self.headers["Authorization"])
        if self.server.hangs.is_set():
            self.close_connection = True
            return
        status = self.server.answers.pop(0) if self.server.answers else 202
        if status == 202:
            self.server.accepted.append(mail)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """A provider of this test's own, which send_email uses."""
    server = Provider()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("EMAIL_SERVICE_URL", server.url)
    settings_module.settings.cache_clear()
    yield server
    monkeypatch.undo()
    settings_module.settings.cache_clear()
    server.shutdown()
    thread.join()
    server.server_close()


def envelope(user: User, type_: str = REGISTERED, **changes: str) -> dict[str, str]:
    attributes = {"id": str(uuid.uuid4()), "source": "/aegis/user-service", "specversion": "1.0", "type": type_}
    return {f"ce-{name}": value for name, value in {**attributes, "subject": str(user.id), **changes}.items()}


def deliver(user: User, headers: dict[str, str]) -> Any:
    return post("send_email", "/", {"user_id": str(user.id), "locale": "ko"}, **headers)


def test_the_mail_has_the_providers_shape(address: str, provider: Provider) -> None:
    user = create_user(address, "pending")
    assert deliver(user, envelope(user)).status_code == 204
    (mail,) = provider.accepted
    assert mail["personalizations"] == [{"to": [{"email": address}]}]
    assert mail["from"]["email"] == "no-reply@aegis.example.com"
    assert [content["type"] for content in mail["content"]] == ["text/plain", "text/html"]
    assert mail["tracking_settings"]["click_tracking"]["enable"] is False
    assert provider.authorizations == [f"Bearer {settings_module.settings().email_api_key}"]


def test_an_event_delivered_twice_sends_one_mail(address: str, provider: Provider) -> None:
    user = create_user(address, "pending")
    headers = envelope(user)
    assert [deliver(user, headers).status_code for _ in range(2)] == [204, 204]
    assert len(provider.accepted) == 1


def test_an_event_delivered_many_times_at_once_sends_one_mail(address: str, provider: Provider) -> None:
    user = create_user(address, "pending")
    headers = envelope(user)
    with ThreadPoolExecutor(4) as pool:
        statuses = {answer.status_code for answer in pool.map(lambda _: deliver(user, headers), range(12))}
    assert 204 in statuses
    assert statuses <= {204, 503}
    assert len(provider.accepted) == 1


def test_the_same_id_from_another_source_is_another_event(address: str, provider: Provider) -> None:
    user = create_user(address, "pending")
    headers = envelope(user)
    deliver(user, headers)
    deliver(user, headers | {"ce-source": "/elsewhere"})
    assert len(provider.accepted) == 2


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_a_provider_that_is_busy_or_broken_is_tried_again_with_the_next_delivery(
    address: str, provider: Provider, status: int
) -> None:
    user = create_user(address, "pending")
    headers = envelope(user)
    provider.answers = [status]
    failed = deliver(user, headers)
    assert (failed.status_code, failed.headers["Retry-After"]) == (503, "5")
    assert deliver(user, headers).status_code == 204
    assert len(provider.accepted) == 1


def test_a_provider_that_drops_the_connection_is_tried_again(address: str, provider: Provider) -> None:
    user = create_user(address, "pending")
    headers = envelope(user)
    provider.hangs.set()
    assert deliver(user, headers).status_code == 503
    provider.hangs.clear()
    assert deliver(user, headers).status_code == 204


def test_a_mail_that_the_provider_refuses_is_not_tried_again(address: str, provider: Provider) -> None:
    user = create_user(address, "pending")
    provider.answers = [400]
    assert deliver(user, envelope(user)).status_code == 422


def test_a_verified_account_gets_no_more_links(active_user: User, provider: Provider) -> None:
    assert deliver(active_user, envelope(active_user)).status_code == 204
    assert provider.accepted == []


def test_an_account_that_is_gone_gets_no_mail(provider: Provider) -> None:
    nobody = User(uuid.uuid4(), "nobody@example.com")
    assert deliver(nobody, envelope(nobody)).status_code == 204
    assert provider.accepted == []


def test_a_repeated_registration_makes_no_token(active_user: User, provider: Provider) -> None:
    deliver(active_user, envelope(active_user, REPEATED))
    (mail,) = provider.accepted
    assert "token" not in json.dumps(mail["content"])
    with transaction() as connection:
        assert not connection.execute(
            select(verification.c.purpose).where(verification.c.account_id == active_user.id)
        ).all()


def test_the_sandbox_takes_what_is_sent(address: str) -> None:
    user = create_user(address, "pending")
    assert deliver(user, envelope(user)).status_code == 204
    (mail,) = inbox(address)
    assert mail.keys() == {"channel", "to", "subject", "text", "html", "sent_at"}
    assert mail["channel"] == "email"


def test_a_structured_event_is_taken_too(address: str, provider: Provider) -> None:
    user = create_user(address, "pending")
    event = {name.removeprefix("ce-"): value for name, value in envelope(user).items()}
    event |= {"datacontenttype": "application/json", "data": {"user_id": str(user.id), "locale": "en"}}  # type: ignore[dict-item]
    response = client("send_email").post("/", data=json.dumps(event), content_type="application/cloudevents+json")
    assert response.status_code == 204
    assert len(provider.accepted) == 1


@pytest.mark.parametrize(
    ("change", "body"),
    [
        ({"ce-id": None}, b"{}"),
        ({"ce-id": ""}, b"{}"),
        ({"ce-id": "x" * 600}, b"{}"),
        ({"ce-source": None}, b"{}"),
        ({"ce-specversion": "9.9"}, b"{}"),
        ({}, b"{"),
        ({}, b""),
    ],
    ids=str,
)
def test_what_is_no_binary_cloud_event_is_a_400(change: dict[str, str | None], body: bytes) -> None:
    headers = envelope(User(uuid.uuid4(), "")) | {"Content-Type": "application/json"} | change
    present = {name: value for name, value in headers.items() if value is not None}
    response = client("send_email").post("/", data=body, headers=present)
    assert (response.status_code, response.content_type) == (400, "application/problem+json")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"nonsense",
        b'"text"',
        b'{"specversion": "1.0", "id": "\\u0000", "source": "/", "type": "com.aegis.user.registered.v1", "data": {}}',
        b'{"specversion": "1.0", "id": "1", "source": "/", "type": ["x"], "data": {}}',
        b"[" * 50_000,
        b'{"specversion": "1.0", "id": {}, "source": "/", "type": ["x"], "data": {}}',
    ],
)
def test_what_is_no_structured_cloud_event_is_a_400(body: bytes) -> None:
    response = client("send_email").post("/", data=body, content_type="application/cloudevents+json")
    assert (response.status_code, response.content_type) == (400, "application/problem+json")


@pytest.mark.parametrize("data", [[], "text", 1, None, {}, {"user_id": "no id", "locale": "ko"}, {"user_id": 1}])
def test_data_that_is_not_the_events_is_refused_for_good(data: Any) -> None:
    response = post("send_email", "/", data, **envelope(User(uuid.uuid4(), "")))
    assert response.status_code in (400, 422)


def test_an_event_of_another_type_is_refused_for_good() -> None:
    user = User(uuid.uuid4(), "")
    response = deliver(user, envelope(user, "com.aegis.user.registered.v2"))
    assert response.status_code == 422
    assert REGISTERED in response.json["detail"]


def test_get_is_a_405() -> None:
    response = client("send_email").get("/")
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize("locale", ["ko", "en"])
def test_text_and_html_say_the_same(locale: str) -> None:
    subject, text, html = mails.compose("registered", locale, "https://aegis.example.com/verify-email#token=a&b")
    assert "https://aegis.example.com/verify-email#token=a&b" in text
    assert 'href="https://aegis.example.com/verify-email#token=a&amp;b"' in html
    assert f'<html lang="{locale}">' in html
    assert subject in html
    assert "$" not in html


def test_every_mail_is_there_in_both_languages() -> None:
    for languages in mails.texts().values():
        assert languages.keys() == {"ko", "en"}
        assert languages["ko"].keys() == languages["en"].keys()
