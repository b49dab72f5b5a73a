"""Taking the phone number off an account."""

from datetime import timedelta

from sqlalchemy import func, insert, select, update

from shared.postgresql.tables import account, phone_verification
from shared.postgresql.transactions import transaction
from shared.users.phone_numbers import hash_phone_code
from tests.conftest import User, call, events_of, log_in

PHONE = "+821012345678"


def give_phone(user: User) -> None:
    with transaction() as connection:
        connection.execute(
            update(account).where(account.c.id == user.id).values(phone=PHONE, phone_verified_at=func.now())
        )


def test_the_number_is_gone_from_the_profile_at_once(active_user: User) -> None:
    give_phone(active_user)
    tokens = log_in(active_user)
    assert call("get_profile", tokens).json["phone"] == PHONE
    response = call("remove_phone", tokens)
    assert (response.status_code, response.data) == (204, b"")
    assert call("get_profile", tokens).json["phone"] is None
    assert events_of(active_user)[-1] == "phone_removed"
    with transaction() as connection:
        verified_at = connection.scalar(select(account.c.phone_verified_at).where(account.c.id == active_user.id))
    assert verified_at is None


def test_a_code_that_was_sent_is_void(active_user: User) -> None:
    row = {"code_hash": hash_phone_code(active_user.id, "123456"), "expires_at": func.now() + timedelta(minutes=5)}
    with transaction() as connection:
        connection.execute(insert(phone_verification).values(account_id=active_user.id, phone=PHONE, **row))
    tokens = log_in(active_user)
    call("remove_phone", tokens)
    assert call("verify_phone", tokens, {"code": "123456"}).status_code == 400


def test_without_a_number_nothing_happens(active_user: User) -> None:
    tokens = log_in(active_user)
    assert call("remove_phone", tokens).status_code == 204
    assert "phone_removed" not in events_of(active_user)
