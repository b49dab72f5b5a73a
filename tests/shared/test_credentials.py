"""The password that is asked for again."""

import uuid

import pytest
from pydantic import SecretStr
from sqlalchemy import delete

from shared.identity.credentials import WrongPassword, require_password
from shared.identity.verifications import RESET_PASSWORD
from shared.postgresql.tables import credential
from shared.postgresql.transactions import transaction
from tests.conftest import PASSWORD, User, call, create_user, issue, session_of


def test_only_the_right_password_of_the_account_passes(active_user: User) -> None:
    require_password(active_user.id, SecretStr(PASSWORD))
    for user_id, password in [(active_user.id, PASSWORD + "!"), (uuid.uuid4(), PASSWORD)]:
        with pytest.raises(WrongPassword):
            require_password(user_id, SecretStr(password))


def test_an_account_without_a_password_has_none_that_is_right(active_user: User) -> None:
    with transaction() as connection:
        connection.execute(delete(credential).where(credential.c.account_id == active_user.id))
    with pytest.raises(WrongPassword):
        require_password(active_user.id, SecretStr(""))


@pytest.mark.parametrize(
    "password",
    ["rlaalswns-2026-rlaalswns", "KIM.minjun!KIM.minjun!1", "nujnim2026nujnim2026"],
    ids=["name as its keys read in Latin letters", "address", "address backwards"],
)
def test_wherever_a_password_is_set_it_is_not_made_of_its_user(address: str, password: str) -> None:
    """ASVS 5.0, 6.2.11: at a registration, a change and a reset."""
    user = create_user(f"kim.minjun@{address.partition('@')[0]}.example")
    change = {"current_password": PASSWORD, "new_password": password}
    answers = {
        "/password": [
            call("register", body={"email": user.email, "password": password, "name": "김민준"}),
            call("reset_password", body={"token": issue(user, RESET_PASSWORD), "password": password}),
        ],
        "/new_password": [call("change_password", session_of(user), change)],
    }
    for pointer, refused in answers.items():
        for answer in refused:
            assert answer.status_code == 422
            assert [(error["pointer"], error["code"]) for error in answer.json["errors"]] == [
                (pointer, "password_common")
            ]
