"""The password that is asked for again."""

import uuid

import pytest
from pydantic import SecretStr
from sqlalchemy import delete

from shared.credentials import WrongPassword, require_password
from shared.database import transaction
from shared.tables import credential
from tests.conftest import PASSWORD, User


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
