"""Events that call for a mail, and providers that misbehave."""

import html
import json
import re
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import urllib3
from sqlalchemy import select, update

from functions.send_email import MAILS, Mail
from knative.local.supervisor import Supervisor
from shared.events.delivery_tokens import authorization
from shared.events.types import EmailReplaced, Event
from shared.framework.event_function import CLAIM_LIFETIME
from shared.identity import former_addresses
from shared.postgresql.tables import account, processed_event, verification
from shared.postgresql.transactions import transaction
from shared.providers import mail_provider, mail_texts
from shared.runtime import settings as settings_module
from tests.conftest import User, counted, create_user, envelope, inbox, post, somebody_waits_for, wait_for
from tests.providers import Answer, Provider, serving
from tests.servers import function_process, kill, post_event, start_again

REGISTERED = "com.aegis.user.registered.v1"
REPEATED = "com.aegis.user.registration_repeated.v1"


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    with serving("EMAIL_SERVICE_URL", lambda _: Answer(202), monkeypatch) as server:
        yield server


def deliver(user: User, type_: str = REGISTERED, headers: dict[str, str] | None = None) -> Any:
    return post("send_email", "/", {"user_id": str(user.id), "locale": "ko"}, **(headers or envelope(type_)))


def mails_to(provider: Provider) -> list[dict[str, Any]]:
    """What the provider was sent, accepted or not."""
    return [json.loads(asked.body) for asked in provider.asked]


def test_the_mail_has_the_providers_shape(address: str, provider: Provider) -> None:
    user = create_user(address, "pending")
    assert deliver(user).status_code == 204
    (mail,) = mails_to(provider)
    assert mail["personalizations"] == [{"to": [{"email": address}]}]
    assert mail["from"]["email"] == "no-reply@aegis.example.com"
    assert [content["type"] for content in mail["content"]] == ["text/plain", "text/html"]
    assert mail["tracking_settings"]["click_tracking"]["enable"] is False
    assert provider.asked[0].headers["authorization"] == f"Bearer {settings_module.settings().email_api_key}"


def test_a_mailbox_gets_ten_mails_an_hour_that_strangers_cause_and_its_owner_goes_on_getting_theirs(
    provider: Provider,
) -> None:
    name = uuid.uuid4().hex[:12]
    addresses = [f"{name[:split]}.{name[split:]}+{split}@gmail.com" for split in range(1, 12)]
    users = [create_user(address, "pending") for address in addresses]
    before = counted("messages_withheld_total", channel="mail", limit="mailbox")
    assert [deliver(user).status_code for user in users] == [204] * 11
    assert len(provider.asked) == 10
    assert counted("messages_withheld_total", channel="mail", limit="mailbox") == before + 1
    owner = create_user(f"{name}@googlemail.com")
    assert deliver(owner, "com.aegis.user.password_reset_requested.v1").status_code == 204
    assert len(provider.asked) == 11


def test_at_the_limit_of_the_service_only_verified_addresses_get_mail(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    strangers = [create_user(f"{uuid.uuid4().hex[:12]}@example.com", "pending") for _ in range(2)]
    owner = create_user(f"{uuid.uuid4().hex[:12]}@example.com")
    monkeypatch.setenv("UNVERIFIED_MAILS_PER_HOUR", "1")
    settings_module.settings.cache_clear()
    before = counted("messages_withheld_total", channel="mail", limit="service")
    for user in strangers:
        deliver(user)
    deliver(owner, "com.aegis.user.password_reset_requested.v1")
    assert mails_to(provider)[-1]["personalizations"] == [{"to": [{"email": owner.email}]}]
    assert len(provider.asked) <= 2
    assert counted("messages_withheld_total", channel="mail", limit="service") > before


def test_a_mail_that_the_provider_did_not_take_counts_once_it_does(address: str, provider: Provider) -> None:
    user = create_user(address, "pending")
    provider.answers = [Answer(503) for _ in range(12)] + [Answer(202)]
    event = envelope(REGISTERED)
    assert [deliver(user, headers=event).status_code for _ in range(13)] == [503] * 12 + [204]


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_a_provider_that_is_busy_or_broken_is_tried_again_with_the_next_delivery(
    address: str, provider: Provider, status: int
) -> None:
    user = create_user(address, "pending")
    headers = envelope(REGISTERED)
    provider.answers = [Answer(status)]
    failed = deliver(user, headers=headers)
    assert (failed.status_code, failed.headers["Retry-After"]) == (503, "5")
    assert deliver(user, headers=headers).status_code == 204
    assert len(provider.asked) == 2


def test_a_provider_that_drops_the_connection_is_tried_again(address: str, provider: Provider) -> None:
    user = create_user(address, "pending")
    headers = envelope(REGISTERED)
    provider.answers = [Answer(drops=True)]
    assert deliver(user, headers=headers).status_code == 503
    assert deliver(user, headers=headers).status_code == 204
    assert len(provider.asked) == 2


@pytest.mark.parametrize("status", [429, 503])
def test_a_provider_that_says_when_to_come_again_is_heard(address: str, provider: Provider, status: int) -> None:
    provider.answers = [Answer(status, headers={"Retry-After": "17"})]
    failed = deliver(create_user(address, "pending"))
    assert (failed.status_code, failed.headers["Retry-After"]) == (503, "17")
    assert failed.json["detail"] == f"The mail provider answered {status}."


@pytest.mark.parametrize(
    "answer", [Answer(after=threading.Event()), Answer(202, trickles="head")], ids=["hangs", "trickles"]
)
def test_a_provider_that_hangs_or_trickles_is_given_up_and_tried_again(
    address: str, provider: Provider, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, headers = create_user(address, "pending"), envelope(REGISTERED)
    provider.answers = [answer]
    with monkeypatch.context() as patched:
        patched.setattr(mail_provider, "ANSWER_SECONDS", 0.3)
        failed = deliver(user, headers=headers)
    assert (failed.status_code, failed.json["detail"]) == (503, "The mail provider does not answer in time.")
    assert deliver(user, headers=headers).status_code == 204
    assert len(provider.asked) == 2


@pytest.mark.parametrize(
    ("body", "faults"),
    [
        (
            {"errors": [{"message": "no kim@example.com", "field": "personalizations.0.to.0.email"}]},
            "personalizations.0.to.0.email",
        ),
        ({"errors": [{"message": "no", "field": None}, {"message": "no", "field": "kim@example.com"}]}, "None"),
        ({"errors": [{"field": "a@b"}]}, "an unnamed field"),
        ({"errors": "many"}, "an unnamed field"),
        (b"\xff", "an unnamed field"),
    ],
    ids=str,
)
def test_a_mail_that_the_provider_refuses_is_not_tried_again(
    address: str, provider: Provider, body: Any, faults: str
) -> None:
    provider.answers = [Answer(400, body)]
    refused = deliver(create_user(address, "pending"))
    assert refused.status_code == 422
    assert refused.json["detail"] == f"The mail provider answered 400 and rejected {faults}."


def test_a_process_that_dies_between_the_mail_and_the_mark_sends_it_twice(
    address: str, provider: Provider, supervisor: Supervisor
) -> None:
    """The one case of it, as shared/framework/event_function.py says: by kill -9 while the provider has the mail."""
    user, headers = create_user(address, "pending"), {**envelope(REGISTERED), **authorization("send-email")}
    server, url = function_process("send_email", EMAIL_SERVICE_URL=provider.url)
    supervisor.start(server)
    supervisor.wait_until_ready(server, seconds=30)
    data = {"user_id": str(user.id), "locale": "ko"}
    provider.answers = [Answer(202, after=threading.Event())]
    with ThreadPoolExecutor(1) as pool:
        delivery = pool.submit(post_event, url, data, headers)
        wait_for(lambda: provider.asked)
        kill(server)
        assert isinstance(delivery.exception(), urllib3.exceptions.HTTPError)

    start_again(supervisor, server)
    assert post_event(url, data, headers) == 409
    assert len(provider.asked) == 1
    with transaction() as connection:  # as if it had been so long ago
        connection.execute(
            update(processed_event)
            .where(processed_event.c.event_id == f"{headers['ce-source']} {headers['ce-id']}")
            .values(claimed_at=processed_event.c.claimed_at - CLAIM_LIFETIME)
        )
    assert [post_event(url, data, headers) for _ in range(2)] == [204, 204]
    assert len(provider.asked) == 2


def test_a_verified_account_gets_no_more_links(active_user: User, provider: Provider) -> None:
    assert deliver(active_user).status_code == 204
    assert provider.asked == []


def test_an_account_that_is_gone_gets_no_mail(provider: Provider) -> None:
    nobody = User(uuid.uuid4(), "nobody@example.com")
    assert deliver(nobody).status_code == 204
    assert provider.asked == []


def test_a_repeated_registration_makes_no_token(active_user: User, provider: Provider) -> None:
    deliver(active_user, REPEATED)
    (mail,) = mails_to(provider)
    assert "token" not in json.dumps(mail["content"])
    with transaction() as connection:
        assert not connection.execute(
            select(verification.c.purpose).where(verification.c.account_id == active_user.id)
        ).all()


def test_the_sandbox_takes_what_is_sent(address: str) -> None:
    user = create_user(address, "pending")
    assert deliver(user).status_code == 204
    (mail,) = inbox(address)
    assert mail.keys() == {"id", "channel", "from", "to", "cc", "bcc", "subject", "text", "html", "sent_at"}
    assert mail["channel"] == "email"


@pytest.mark.parametrize("locale", ["ko", "en"])
@pytest.mark.parametrize("section", mail_texts.texts())
def test_text_and_html_say_the_same(section: str, locale: str) -> None:
    link = "https://aegis.example.com/page#token=a&b" if "action" in mail_texts.texts()[section][locale] else ""
    subject, text, html_text = mail_texts.compose(section, locale, link)
    assert f'<html lang="{locale}">' in html_text
    assert html.escape(subject) in html_text
    for paragraph in text.removesuffix("\n").split("\n\n"):
        assert all(html.escape(line) in html_text for line in paragraph.split("\n"))
    assert html_text.count("<a ") == bool(link)
    assert "$" not in text + html_text
    assert bool(re.search("[가-힣]", subject + text)) == (locale == "ko")


def test_every_mail_is_there_in_both_languages_and_sent() -> None:
    for languages in mail_texts.texts().values():
        assert languages.keys() == {"ko", "en"}
        assert languages["ko"].keys() == languages["en"].keys()
    assert {mail.section for mail in MAILS} == mail_texts.texts().keys()


@pytest.mark.parametrize("mail", MAILS, ids=lambda mail: mail.section)
def test_a_mail_has_a_link_where_it_asks_for_something_and_says_how_long_it_works(mail: Mail) -> None:
    for words in mail_texts.texts()[mail.section].values():
        assert ("action" in words) == (mail.link is not None or mail.event is EmailReplaced)
        if mail.event is EmailReplaced:
            assert re.search("7 days|7일", words["text"])
        if mail.link:
            hours, minutes = mail.link.lifetime.seconds // 3600 or 24, mail.link.lifetime.seconds // 60
            assert re.search(rf"{hours}( hours|시간)|{minutes}( minutes|분)", words["text"])


def test_a_withdrawal_says_how_long_there_is_a_way_back() -> None:
    for locale in ("ko", "en"):
        assert str(settings_module.settings().withdrawal_days) in mail_texts.compose("withdrawn", locale)[1]


DATA = {
    "locale": "ko",
    "session_id": str(uuid.uuid4()),
    "passkey_id": str(uuid.uuid4()),
    "actor_id": str(uuid.uuid4()),
    "former_email_id": str(uuid.uuid4()),
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
        former_id = former_addresses.keep(connection, user.id)
    about = {"user_id": str(user.id), "former_email_id": str(former_id)}
    delivered = post("send_email", "/", DATA | about, **envelope(event.type))
    assert delivered.status_code == 204
    expected = [mail for mail in MAILS if mail.event is event and status in mail.states]
    assert len(expected) <= 1
    sent = [(mail["personalizations"][0]["to"][0]["email"], mail["subject"]) for mail in mails_to(provider)]
    subjects = [mail_texts.texts()[mail.section]["en"]["subject"] for mail in expected]
    assert sent == [
        (new if mail.to_new_address else address, subject) for mail, subject in zip(expected, subjects, strict=True)
    ]
    assert "said by somebody" not in json.dumps(mails_to(provider))


def test_the_links_lead_to_their_pages(address: str, provider: Provider) -> None:
    user = create_user(address, "pending")
    deliver(user, "com.aegis.user.email_verification_requested.v1")
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == user.id).values(status="active"))
    deliver(user, "com.aegis.user.password_reset_requested.v1")
    texts = [mail["content"][0]["value"] for mail in mails_to(provider)]
    links = [re.search(r"http\S+/(\S+)#token=[\w-]{43}$", text.strip()) for text in texts]
    assert [link and link[1] for link in links] == ["verify-email", "reset-password"]


def test_a_change_of_address_that_was_cancelled_sends_no_link(active_user: User, provider: Provider) -> None:
    assert deliver(active_user, "com.aegis.user.email_verification_requested.v1").status_code == 204
    assert provider.asked == []


def test_a_link_that_meets_a_change_under_way_waits_for_it(active_user: User, provider: Provider) -> None:
    """Or it would go to the address before, and verify the later one."""
    with ThreadPoolExecutor(1) as pool:
        with transaction() as connection:
            new = {"new_email": "later-" + active_user.email, "new_canonical_email": "later-" + active_user.email}
            connection.execute(update(account).where(account.c.id == active_user.id).values(new))
            mailing = pool.submit(deliver, active_user, "com.aegis.user.email_verification_requested.v1")
            wait_for(lambda: somebody_waits_for(connection))
        assert mailing.result().status_code == 204
    assert [mail["personalizations"][0]["to"][0]["email"] for mail in mails_to(provider)] == [new["new_email"]]
