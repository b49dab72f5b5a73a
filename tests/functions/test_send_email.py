"""Events that call for a mail, and providers that misbehave."""

import html
import json
import re
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from sqlalchemy import select, update

from functions.send_email import MAILS, Mail
from shared import mails
from shared import settings as settings_module
from shared.database import transaction
from shared.events import Event
from shared.tables import account, verification
from tests.conftest import User, client, create_user, inbox, post, somebody_waits_for, wait_for

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
@pytest.mark.parametrize("section", mails.texts())
def test_text_and_html_say_the_same(section: str, locale: str) -> None:
    link = "https://aegis.example.com/page#token=a&b" if "action" in mails.texts()[section][locale] else ""
    subject, text, html_text = mails.compose(section, locale, link)
    assert f'<html lang="{locale}">' in html_text
    assert html.escape(subject) in html_text
    for paragraph in text.removesuffix("\n").split("\n\n"):
        assert all(html.escape(line) in html_text for line in paragraph.split("\n"))
    assert html_text.count("<a ") == bool(link)
    assert "$" not in text + html_text
    assert bool(re.search("[가-힣]", subject + text)) == (locale == "ko")


def test_every_mail_is_there_in_both_languages_and_sent() -> None:
    for languages in mails.texts().values():
        assert languages.keys() == {"ko", "en"}
        assert languages["ko"].keys() == languages["en"].keys()
    assert {mail.section for mail in MAILS} == mails.texts().keys()


@pytest.mark.parametrize("mail", MAILS, ids=lambda mail: mail.section)
def test_a_mail_has_a_link_where_it_asks_for_something_and_says_how_long_it_works(mail: Mail) -> None:
    for words in mails.texts()[mail.section].values():
        assert ("action" in words) == (mail.link is not None)
        if mail.link:
            hours, minutes = mail.link.lifetime.seconds // 3600 or 24, mail.link.lifetime.seconds // 60
            assert re.search(rf"{hours}( hours|시간)|{minutes}( minutes|분)", words["text"])


def test_a_withdrawal_says_how_long_there_is_a_way_back() -> None:
    for locale in ("ko", "en"):
        assert str(settings_module.settings().withdrawal_days) in mails.compose("withdrawn", locale)[1]


DATA = {
    "locale": "ko",
    "session_id": str(uuid.uuid4()),
    "passkey_id": str(uuid.uuid4()),
    "actor_id": str(uuid.uuid4()),
    "roles": ["admin"],
    "reason": "<b>said by somebody</b>",
}


@pytest.mark.parametrize("status", ["pending", "active", "suspended", "withdrawn"])
@pytest.mark.parametrize("event", dict.fromkeys(mail.event for mail in MAILS), ids=lambda event: event.type)
def test_each_event_leads_to_its_mail_in_the_states_that_get_one(
    address: str, provider: Provider, event: type[Event], status: str
) -> None:
    user = create_user(address, status)
    new = f"new-{address}"
    with transaction() as connection:
        waiting = {"new_email": new, "new_canonical_email": new, "locale": "en"}
        connection.execute(update(account).where(account.c.id == user.id).values(waiting))
    delivered = post("send_email", "/", DATA | {"user_id": str(user.id)}, **envelope(user, event.type))
    assert delivered.status_code == 204
    expected = [mail for mail in MAILS if mail.event is event and status in mail.states]
    assert len(expected) <= 1
    sent = [(mail["personalizations"][0]["to"][0]["email"], mail["subject"]) for mail in provider.accepted]
    subjects = [mails.texts()[mail.section]["en"]["subject"] for mail in expected]
    assert sent == [
        (new if mail.to_new_address else address, subject) for mail, subject in zip(expected, subjects, strict=True)
    ]
    assert "said by somebody" not in json.dumps(provider.accepted)


def test_the_links_lead_to_their_pages(address: str, provider: Provider) -> None:
    user = create_user(address, "pending")
    deliver(user, envelope(user, "com.aegis.user.email_verification_requested.v1"))
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == user.id).values(status="active"))
    deliver(user, envelope(user, "com.aegis.user.password_reset_requested.v1"))
    texts = [mail["content"][0]["value"] for mail in provider.accepted]
    links = [re.search(r"http\S+/(\S+)#token=[\w-]{43}$", text.strip()) for text in texts]
    assert [link and link[1] for link in links] == ["verify-email", "reset-password"]


def test_a_change_of_address_that_was_cancelled_sends_no_link(active_user: User, provider: Provider) -> None:
    assert (
        deliver(active_user, envelope(active_user, "com.aegis.user.email_verification_requested.v1")).status_code == 204
    )
    assert provider.accepted == []


def test_a_link_that_meets_a_change_under_way_waits_for_it(active_user: User, provider: Provider) -> None:
    """Or it would go to the address before, and verify the later one."""
    request = envelope(active_user, "com.aegis.user.email_verification_requested.v1")
    with ThreadPoolExecutor(1) as pool:
        with transaction() as connection:
            new = {"new_email": "later-" + active_user.email, "new_canonical_email": "later-" + active_user.email}
            connection.execute(update(account).where(account.c.id == active_user.id).values(new))
            mailing = pool.submit(deliver, active_user, request)
            wait_for(lambda: somebody_waits_for(connection))
        assert mailing.result().status_code == 204
    assert [mail["personalizations"][0]["to"][0]["email"] for mail in provider.accepted] == [new["new_email"]]
