"""The text with the code, and providers that misbehave."""

import base64
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

import pytest
from sqlalchemy import insert, update

from functions import send_sms
from shared.postgresql.tables import account, phone_verification
from shared.postgresql.transactions import transaction
from shared.runtime import settings as settings_module
from shared.users.phone_numbers import hash_phone_code
from tests.conftest import User, call, create_user, envelope, inbox, log_in, post, row_of
from tests.providers import Answer, Asked, Provider, serving

REQUESTED = "com.aegis.user.phone_code_requested.v1"


def queue(asked: Asked) -> Answer:
    return Answer(201, {"sid": "SM1", "status": "queued"})


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    with serving("SMS_SERVICE_URL", queue, monkeypatch) as server:
        yield server


def await_code(user: User, phone: str) -> None:
    """As if the user had asked for a code, and the event were still on its way."""
    with transaction() as connection:
        connection.execute(insert(phone_verification).values(account_id=user.id, phone=phone))


def deliver(user: User, headers: dict[str, str] | None = None) -> Any:
    return post("send_sms", "/", {"user_id": str(user.id)}, **(headers or envelope(REQUESTED)))


def form(asked: Asked) -> dict[str, str]:
    return {name: value for name, (value,) in parse_qs(asked.body, strict_parsing=True).items()}


def test_the_text_has_the_providers_shape(active_user: User, phone: str, provider: Provider) -> None:
    await_code(active_user, phone)
    assert deliver(active_user).status_code == 204
    (asked,) = provider.asked
    key = os.environ["SMS_API_KEY"]
    assert asked.path == f"/2010-04-01/Accounts/{key.partition(':')[0]}/Messages.json"
    assert asked.headers["authorization"] == f"Basic {base64.b64encode(key.encode()).decode()}"
    message = form(asked)
    assert message.keys() == {"To", "From", "Body", "ValidityPeriod"}
    assert (message["To"], message["From"]) == (phone, os.environ["SMS_FROM"])
    assert message["ValidityPeriod"] == "300"


def test_the_code_in_the_text_is_the_one_that_is_stored_and_verifies(
    active_user: User, phone: str, provider: Provider
) -> None:
    await_code(active_user, phone)
    deliver(active_user)
    code = form(provider.asked[0])["Body"][-6:]
    assert row_of(active_user, phone_verification).code_hash == hash_phone_code(active_user.id, code)
    assert call("verify_phone", log_in(active_user), {"code": code}).status_code == 204


def test_a_code_lives_for_minutes_and_not_longer(active_user: User, phone: str, provider: Provider) -> None:
    """ASVS 5.0, 6.5.5: ten minutes at the most."""
    await_code(active_user, phone)
    deliver(active_user)
    left = row_of(active_user, phone_verification).expires_at - datetime.now(UTC)
    assert timedelta(0) < left < timedelta(minutes=10)


def test_a_new_code_starts_with_all_its_tries(active_user: User, phone: str, provider: Provider) -> None:
    await_code(active_user, phone)
    with transaction() as connection:
        connection.execute(
            update(phone_verification).where(phone_verification.c.account_id == active_user.id).values(tries=5)
        )
    deliver(active_user)
    assert row_of(active_user, phone_verification).tries == 0


def test_an_event_delivered_twice_sends_one_text(active_user: User, phone: str, provider: Provider) -> None:
    await_code(active_user, phone)
    headers = envelope(REQUESTED)
    assert [deliver(active_user, headers).status_code for _ in range(2)] == [204, 204]
    assert len(provider.asked) == 1


def test_an_event_delivered_many_times_at_once_sends_one_text(
    active_user: User, phone: str, provider: Provider
) -> None:
    await_code(active_user, phone)
    headers = envelope(REQUESTED)
    with ThreadPoolExecutor(4) as pool:
        statuses = {answer.status_code for answer in pool.map(lambda _: deliver(active_user, headers), range(12))}
    assert 204 in statuses
    assert statuses <= {204, 409}
    assert len(provider.asked) == 1


def error(code: int, status: int) -> Answer:
    return Answer(status, {"code": code, "message": "no", "status": status})


@pytest.mark.parametrize(
    "answer",
    [
        error(20003, 401),
        error(20003, 403),
        error(20003, 400),
        error(20429, 429),
        error(20429, 400),
        error(20404, 404),
        error(20500, 500),
        Answer(503, b"<html>"),
        Answer(302, b""),
    ],
    ids=str,
)
def test_a_provider_that_is_busy_or_broken_is_tried_again_with_the_next_delivery(
    active_user: User, phone: str, provider: Provider, answer: Answer
) -> None:
    await_code(active_user, phone)
    headers = envelope(REQUESTED)
    provider.answers = [answer]
    failed = deliver(active_user, headers)
    assert (failed.status_code, failed.headers["Retry-After"]) == (503, "5")
    assert deliver(active_user, headers).status_code == 204
    code = form(provider.asked[-1])["Body"][-6:]
    assert row_of(active_user, phone_verification).code_hash == hash_phone_code(active_user.id, code)


def test_a_provider_that_drops_the_connection_is_tried_again(active_user: User, phone: str, provider: Provider) -> None:
    await_code(active_user, phone)
    headers = envelope(REQUESTED)
    provider.answers = [Answer(drops=True)]
    assert deliver(active_user, headers).status_code == 503
    assert deliver(active_user, headers).status_code == 204


def test_a_provider_that_says_when_to_come_again_is_heard(active_user: User, phone: str, provider: Provider) -> None:
    await_code(active_user, phone)
    provider.answers = [Answer(429, {"code": 20429}, headers={"Retry-After": "17"})]
    failed = deliver(active_user)
    assert (failed.status_code, failed.headers["Retry-After"]) == (503, "17")
    assert failed.json["detail"] == "The provider of text messages answered 429."


@pytest.mark.parametrize(
    "answer", [Answer(after=threading.Event()), Answer(201, trickles="body")], ids=["hangs", "trickles"]
)
def test_a_provider_that_hangs_or_trickles_is_given_up_and_tried_again(
    active_user: User, phone: str, provider: Provider, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await_code(active_user, phone)
    headers = envelope(REQUESTED)
    provider.answers = [answer]
    with monkeypatch.context() as patched:
        patched.setattr(send_sms, "ANSWER_SECONDS", 0.3)
        failed = deliver(active_user, headers)
    assert (failed.status_code, failed.json["detail"]) == (
        503,
        "The provider of text messages does not answer in time.",
    )
    assert deliver(active_user, headers).status_code == 204


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (error(21211, 400), 21211),
        (error(21610, 400), 21610),
        (error(21614, 400), 21614),
        (Answer(400, b"[]"), None),
        (Answer(400, b"\xff"), None),
    ],
    ids=str,
)
def test_a_text_that_the_provider_refuses_is_not_tried_again(
    active_user: User, phone: str, provider: Provider, answer: Answer, code: int | None
) -> None:
    await_code(active_user, phone)
    provider.answers = [answer]
    refused = deliver(active_user)
    assert refused.status_code == 422
    assert refused.json["detail"] == f"The provider of text messages answered 400 with the error {code}."


def test_a_number_that_was_verified_or_removed_meanwhile_gets_no_text(active_user: User, provider: Provider) -> None:
    assert deliver(active_user).status_code == 204
    assert provider.asked == []


def test_an_account_that_is_not_active_gets_no_text(active_user: User, phone: str, provider: Provider) -> None:
    await_code(active_user, phone)
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == active_user.id).values(status="suspended"))
    assert deliver(active_user).status_code == 204
    assert provider.asked == []


def test_a_key_without_an_account_stands_in_no_url(
    active_user: User, phone: str, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    await_code(active_user, phone)
    monkeypatch.setenv("SMS_API_KEY", "only-a-token")
    settings_module.settings.cache_clear()
    deliver(active_user)
    assert "only-a-token" not in provider.asked[0].path


def test_the_sandbox_takes_what_is_sent(active_user: User, phone: str) -> None:
    await_code(active_user, phone)
    assert deliver(active_user).status_code == 204
    (text,) = inbox(phone)
    assert (text["channel"], text["subject"], text["html"]) == ("sms", "", "")


@pytest.mark.parametrize("refused", ["+15005550001", "+15005550004", "+15005550009"])
def test_the_sandbox_refuses_some_numbers(address: str, refused: str) -> None:
    user = create_user(address)
    await_code(user, refused)
    assert deliver(user).status_code == 422
    assert inbox(refused) == []


@pytest.mark.parametrize("locale", ["ko", "en"])
def test_phones_offer_the_code_to_our_pages_alone(monkeypatch: pytest.MonkeyPatch, locale: str) -> None:
    monkeypatch.setenv("PASSKEY_DOMAIN", "aegis.example.com")
    settings_module.settings.cache_clear()
    text = send_sms.compose(locale, "031415")
    monkeypatch.undo()
    settings_module.settings.cache_clear()
    first, empty, last = text.split("\n")
    assert (empty, last) == ("", "@aegis.example.com #031415")
    assert "031415" in first
    assert len(text) <= (70 if locale == "ko" else 160), "it would be charged as two"
    assert locale == "ko" or text.isascii()


def test_every_text_is_there_in_both_languages() -> None:
    assert all(languages.keys() == {"ko", "en"} for languages in send_sms._texts().values())
