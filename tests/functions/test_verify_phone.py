"""Verifying a phone number with the code from the text message."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, insert, select, update

from shared.postgresql.tables import account, phone_verification
from shared.postgresql.transactions import transaction
from shared.users.phone_numbers import hash_phone_code
from tests.conftest import User, call, create_user, events_of, inbox, log_in, session_of, wait_for

CODE = "031415"


def give_code(user: User, phone: str, *, expires_in: timedelta = timedelta(minutes=5)) -> None:
    """As if CODE had been texted."""
    row = {"phone": phone, "code_hash": hash_phone_code(user.id, CODE), "expires_at": func.now() + expires_in}
    with transaction() as connection:
        connection.execute(insert(phone_verification).values(account_id=user.id, **row))


def verify(tokens: dict[str, Any] | None, code: Any, **headers: str) -> Any:
    return call("verify_phone", tokens, {"code": code}, headers=headers)


def state(user: User) -> tuple[Any, Any]:
    with transaction() as connection:
        phone = connection.scalar(select(account.c.phone).where(account.c.id == user.id))
        tries = connection.scalar(select(phone_verification.c.tries).where(phone_verification.c.account_id == user.id))
    return phone, tries


def test_the_code_from_the_text_puts_the_number_in_the_profile(active_user: User, phone: str) -> None:
    tokens = log_in(active_user)
    assert call("get_profile", tokens).json["phone"] is None
    assert call("request_phone_code", tokens, {"phone": phone}).status_code == 202
    code = wait_for(lambda: inbox(phone))[0]["text"][-6:]
    response = verify(tokens, code)
    assert (response.status_code, response.data) == (204, b"")
    assert call("get_profile", tokens).json["phone"] == phone
    assert state(active_user) == (phone, None)
    assert events_of(active_user)[-2:] == ["phone_code_requested", "phone_verified"]


def test_a_code_is_good_once(active_user: User, phone: str) -> None:
    tokens = log_in(active_user)
    give_code(active_user, phone)
    assert [verify(tokens, CODE).status_code for _ in range(2)] == [204, 400]


def test_a_wrong_code_changes_nothing_and_is_counted(active_user: User, phone: str) -> None:
    tokens = log_in(active_user)
    give_code(active_user, phone)
    response = verify(tokens, "271828")
    assert (response.status_code, response.json["type"]) == (400, "urn:aegis:problem:invalid-phone-code")
    assert state(active_user) == (None, 1)
    assert "phone_verified" not in events_of(active_user)
    assert verify(tokens, CODE).status_code == 204


def test_a_try_counts_with_an_idempotency_key_too(active_user: User, phone: str) -> None:
    tokens = log_in(active_user)
    give_code(active_user, phone)
    key = {"Idempotency-Key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}
    assert [verify(tokens, "271828", **key).status_code for _ in range(2)] == [400, 400]
    assert state(active_user) == (None, 1)


def test_after_five_wrong_tries_the_code_is_void(active_user: User, phone: str) -> None:
    tokens = log_in(active_user)
    give_code(active_user, phone)
    assert [verify(tokens, f"00000{n}").status_code for n in range(5)] == [400] * 5
    assert verify(tokens, CODE).status_code == 400
    assert state(active_user) == (None, 5)


def test_many_wrong_tries_at_once_get_five_looks(active_user: User, phone: str) -> None:
    tokens = log_in(active_user)
    give_code(active_user, phone)
    codes = [f"{n:06}" for n in range(50)]
    with ThreadPoolExecutor(8) as pool:
        statuses = Counter(pool.map(lambda code: patiently(tokens, code), codes))
    assert statuses == {400: 50}
    assert state(active_user) == (None, 5)
    assert verify(tokens, CODE).status_code == 400


def test_of_many_right_tries_at_once_one_succeeds(active_user: User, phone: str) -> None:
    tokens = log_in(active_user)
    give_code(active_user, phone)
    with ThreadPoolExecutor(8) as pool:
        statuses = Counter(pool.map(lambda _: patiently(tokens, CODE), range(50)))
    assert statuses == {204: 1, 400: 49}
    assert events_of(active_user).count("phone_verified") == 1


def patiently(tokens: dict[str, Any], code: str) -> int:
    """The status of a try, repeated while the database has no connection free."""
    while (status := int(verify(tokens, code).status_code)) == 503:
        pass
    return status


def test_a_code_that_has_expired_is_void(active_user: User, phone: str) -> None:
    give_code(active_user, phone, expires_in=timedelta(seconds=-1))
    assert verify(log_in(active_user), CODE).status_code == 400
    assert state(active_user) == (None, 0)


def test_before_the_text_is_made_no_code_is_right(active_user: User, phone: str) -> None:
    with transaction() as connection:
        connection.execute(insert(phone_verification).values(account_id=active_user.id, phone=phone))
    assert verify(log_in(active_user), CODE).status_code == 400


def test_the_code_of_another_account_is_not_taken(active_user: User, address: str, phone: str) -> None:
    give_code(active_user, phone)
    other = create_user(f"other-{address}")
    assert verify(log_in(other), CODE).status_code == 400
    with transaction() as connection:
        row = {"code_hash": hash_phone_code(active_user.id, CODE), "expires_at": func.now() + timedelta(minutes=5)}
        connection.execute(insert(phone_verification).values(account_id=other.id, phone=phone, **row))
    assert verify(log_in(other), CODE).status_code == 400


def test_a_new_number_takes_the_place_of_the_old_one_when_it_is_verified(active_user: User, phone: str) -> None:
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == active_user.id).values(phone="+821000000000"))
    give_code(active_user, phone)
    tokens = session_of(active_user)
    verify(tokens, "271828")
    assert call("get_profile", tokens).json["phone"] == "+821000000000"
    verify(tokens, CODE)
    assert call("get_profile", tokens).json["phone"] == phone


@pytest.mark.parametrize(
    "code", ["031 415", "031-415", " 031415\n", "０３１４１５", "031\N{NO-BREAK SPACE}415", "031\N{EN DASH}415"]
)
def test_a_code_may_be_typed_as_people_read_it(active_user: User, phone: str, code: str) -> None:
    give_code(active_user, phone)
    assert verify(log_in(active_user), code).status_code == 204


@pytest.mark.parametrize("code", ["", "12345", "1234567", "12345x", "١٢٣٤٥٦", " 12345", 123456, None])
def test_what_is_no_code_is_a_422_and_no_try(active_user: User, phone: str, code: Any) -> None:
    give_code(active_user, phone)
    response = verify(log_in(active_user), code)
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == ["/code"]
    assert state(active_user) == (None, 0)
