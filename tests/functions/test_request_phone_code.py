"""Asking for a code by text message."""

import secrets
import uuid
from datetime import timedelta
from typing import Any

import pytest

from functions import request_phone_code
from shared.http.rate_limits import enforce
from shared.postgresql.tables import phone_verification
from shared.runtime.problems import TooManyRequests
from shared.runtime.settings import settings
from tests.conftest import User, call, counted, create_user, events_of, inbox, log_in, row_of, session_of, wait_for


def ask(tokens: dict[str, Any] | None, phone: Any, **headers: str) -> Any:
    return call("request_phone_code", tokens, {"phone": phone}, headers=headers)


def test_the_number_may_be_written_as_in_korea(active_user: User, phone: str) -> None:
    written = f"0{phone[3:5]}-{phone[5:9]}-{phone[9:]}"
    response = ask(log_in(active_user), written)
    assert (response.status_code, response.data) == (202, b"")
    assert row_of(active_user, phone_verification).phone == phone
    assert "phone_code_requested" in events_of(active_user)


def test_a_text_with_a_code_arrives(active_user: User, phone: str) -> None:
    ask(log_in(active_user), phone)
    (text,) = wait_for(lambda: inbox(phone))
    assert text["channel"] == "sms"
    code = text["text"][-6:]
    assert code.isdigit()
    assert f"인증번호 {code} " in text["text"]
    row = row_of(active_user, phone_verification)
    assert row.expires_at - row.requested_at < timedelta(minutes=6)
    assert code not in repr(row.code_hash)


def test_a_new_request_replaces_the_one_before(active_user: User, phone: str) -> None:
    tokens = log_in(active_user)
    ask(tokens, phone)
    wait_for(lambda: row_of(active_user, phone_verification).code_hash)
    other = f"+82103{phone[6:]}"
    ask(tokens, other)
    assert row_of(active_user, phone_verification).phone == other
    assert len(wait_for(lambda: inbox(other))) == 1


@pytest.mark.parametrize("given", ["", "02-123-4567", "060-700-1234", "010-1234", "0" * 33, 1, None, ["01012345678"]])
def test_a_number_that_gets_no_texts_is_a_422_that_names_the_field(active_user: User, given: Any) -> None:
    response = ask(log_in(active_user), given)
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == ["/phone"]
    assert row_of(active_user, phone_verification) is None


@pytest.mark.parametrize(
    "given", ["+1 201 555 0123", "+81 90-1234-5678", "+8816 2345 6789", "+870 773 111 632", "+882 16 1234567"]
)
def test_a_number_of_another_region_or_of_a_satellite_is_a_422_and_no_text(active_user: User, given: str) -> None:
    response = ask(log_in(active_user), given)
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == ["/phone"]
    assert row_of(active_user, phone_verification) is None


def test_an_operator_may_name_other_regions(active_user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMS_REGIONS", "KR, JP")
    settings.cache_clear()
    try:
        answers = [ask(log_in(active_user), given).status_code for given in ("+819012345678", "+12015550123")]
    finally:
        monkeypatch.undo()
        settings.cache_clear()
    assert answers == [202, 422]


def test_the_texts_of_an_hour_are_bounded_for_the_whole_service(
    active_user: User, phone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, before = log_in(active_user), counted("messages_withheld_total", channel="text", limit="service")
    monkeypatch.setenv("TEXTS_PER_HOUR", "1")
    settings.cache_clear()
    try:
        answers = [ask(tokens, phone) for _ in range(2)]
    finally:
        monkeypatch.undo()
        settings.cache_clear()
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["Retry-After"]) > 0
    assert counted("messages_withheld_total", channel="text", limit="service") > before


def test_an_account_asks_five_times_an_hour(active_user: User, phone: str) -> None:
    tokens = log_in(active_user)
    assert [ask(tokens, phone).status_code for _ in range(6)] == [202] * 5 + [429]


def test_of_two_rates_the_one_that_is_reached_counts() -> None:
    limits, subjects = {"account": "9/minute;2/hour"}, {"account": secrets.token_hex(8)}
    for _ in range(2):
        enforce("tested", limits, subjects)
    with pytest.raises(TooManyRequests) as refused:
        enforce("tested", limits, subjects)
    assert refused.value.headers["RateLimit-Policy"] == '"account";q=2;w=3600'


def test_a_request_that_is_sent_again_with_its_key_sends_one_text(active_user: User, phone: str) -> None:
    tokens = log_in(active_user)
    key = {"Idempotency-Key": f'"{uuid.uuid4()}"'}
    assert [ask(tokens, phone, **key).status_code for _ in range(2)] == [202, 202]
    assert events_of(active_user).count("phone_code_requested") == 1


def spend(phone: str) -> None:
    """Ten texts to a number, by two accounts."""
    for _ in range(2):
        tokens = session_of(create_user(f"{uuid.uuid4().hex[:12]}@example.com"))
        assert [ask(tokens, phone).status_code for _ in range(5)] == [202] * 5


def test_a_number_is_texted_ten_times_a_day_over_all_accounts(phone: str) -> None:
    spend(phone)
    another = create_user(f"{uuid.uuid4().hex[:12]}@example.com")
    tokens = session_of(another)
    assert [ask(tokens, phone).status_code for _ in range(3)] == [202, 429, 429]
    assert events_of(another).count("phone_code_requested") == 1
    assert ask(tokens, f"+82103{phone[6:]}").status_code == 202


def test_who_spends_the_limit_of_a_number_does_not_lock_its_owner_out(active_user: User, phone: str) -> None:
    spend(phone)
    assert ask(session_of(active_user), phone).status_code == 202
    assert inbox_count(phone, 11)


def inbox_count(phone: str, count: int) -> bool:
    return wait_for(lambda: len(inbox(phone)) == count)


def test_a_limit_that_was_reached_is_no_stored_answer(
    active_user: User, phone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = session_of(active_user)
    monkeypatch.setattr(request_phone_code, "PER_NUMBER", "1/day")
    assert [ask(tokens, phone).status_code for _ in range(2)] == [202, 202]
    key = {"Idempotency-Key": f'"{uuid.uuid4()}"'}
    refused = ask(tokens, phone, **key)
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) > 0
    assert refused.headers["RateLimit-Policy"].endswith(";w=86400")
    monkeypatch.undo()
    assert ask(tokens, phone, **key).status_code == 202
