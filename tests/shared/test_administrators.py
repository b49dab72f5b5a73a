"""There is always an administrator who can log in with a second factor."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import update

from shared.postgresql.tables import account
from shared.postgresql.transactions import transaction
from tests.authenticator import with_passkey, with_totp
from tests.conftest import PASSWORD, call, create_admin, passkey_session_of, strong_session_of

pytestmark = pytest.mark.usefixtures("own_database")


def withdraw(tokens: dict[str, Any]) -> Any:
    return call("withdraw", tokens, {"password": PASSWORD})


def test_the_last_administrator_with_a_second_factor_cannot_leave(address: str) -> None:
    last, tokens = create_admin(address)
    with_totp(last)
    other, _ = create_admin(f"other-{address}")  # who has no second factor yet
    response = withdraw(tokens)
    assert (response.status_code, response.json["type"]) == (409, "urn:aegis:problem:last-administrator")
    assert call("get_profile", tokens).status_code == 200
    with_passkey(other)
    assert withdraw(tokens).status_code == 204
    assert withdraw(passkey_session_of(other)).status_code == 409


def test_of_two_last_administrators_who_leave_at_once_one_stays(address: str) -> None:
    for number in range(3):
        both = [create_admin(f"{number}{side}-{address}")[0] for side in "ab"]
        for one in both:
            with_totp(one)
        with ThreadPoolExecutor(2) as pool:
            statuses = pool.map(withdraw, [strong_session_of(one) for one in both])
        assert sorted(answer.status_code for answer in statuses) == [204, 409]
        with transaction() as connection:  # the next two have nobody else, either
            connection.execute(update(account).values(status="suspended"))


def test_who_suspends_the_other_administrator_cannot_leave_at_the_same_moment(address: str) -> None:
    (first, first_tokens), (second, _) = (create_admin(f"{side}-{address}") for side in "ab")
    for one in (first, second):
        with_totp(one)
    with ThreadPoolExecutor(2) as pool:
        suspended = pool.submit(call, "update_user", first_tokens, {"status": "suspended"}, user_id=second.id)
        left = pool.submit(withdraw, first_tokens)
    # One of the two comes first, and the other is then refused.
    assert sorted([suspended.result().status_code, left.result().status_code]) in ([200, 409], [204, 401])
