"""Asking for a link to set a new password."""

import os
import uuid
from typing import Any

import pytest
from sqlalchemy import select

from shared.postgresql.tables import account, outbox
from shared.postgresql.transactions import transaction
from tests.conftest import User, call, create_user, events_of, inbox, wait_for


def ask(email: str, **parameters: Any) -> Any:
    return call("request_password_reset", body={"email": email}, **parameters)


def test_the_owner_gets_a_link(active_user: User) -> None:
    response = ask(active_user.email.upper())
    assert (response.status_code, response.data) == (202, b"")
    (mail,) = wait_for(lambda: inbox(active_user.email))
    assert mail["subject"] == "새 비밀번호를 설정해 주세요"
    assert f"{os.environ['PUBLIC_URL']}/reset-password#token=" in mail["text"]
    assert events_of(active_user) == ["password_reset_requested"]


def test_a_withdrawn_user_gets_a_link_too(address: str) -> None:
    create_user(address, "withdrawn")
    ask(address)
    assert "#token=" in wait_for(lambda: inbox(address))[0]["text"]


@pytest.mark.parametrize("status", ["pending", "suspended"])
def test_other_accounts_get_the_same_answer(address: str, status: str) -> None:
    user = create_user(address, status)
    assert (ask(address).status_code, events_of(user)) == (202, ["password_reset_requested"])


def test_an_unknown_address_gets_the_same_answer_and_an_event_of_nobody(address: str) -> None:
    request_id = uuid.uuid4().hex
    response = ask(address, headers={"X-Request-Id": request_id})
    assert (response.status_code, response.data) == (202, b"")
    with transaction() as connection:
        (subject,) = connection.scalars(select(outbox.c.subject).where(outbox.c.request_id == request_id)).all()
        assert connection.scalar(select(account.c.id).where(account.c.id == subject)) is None


def test_only_a_few_links_an_hour_go_to_one_address(address: str) -> None:
    assert [ask(address).status_code for _ in range(10)] == [202] * 10
    spellings = [address, address.upper(), address.replace("example", "ｅxample")]
    assert [ask(spelling).status_code for spelling in spellings] == [429] * 3


def test_one_address_alone_does_not_use_up_the_links_of_a_mailbox(address: str) -> None:
    statuses = [ask(address, address="203.0.113.78").status_code for _ in range(4)]
    assert statuses == [202] * 3 + [429]
    assert ask(address, address="203.0.113.79").status_code == 202


def test_one_caller_asks_for_few_addresses_an_hour(address: str) -> None:
    statuses = [ask(f"{number}{address}", address="203.0.113.77").status_code for number in range(31)]
    assert statuses == [202] * 30 + [429]


@pytest.mark.parametrize("body", [{}, {"email": "nothing"}, {"email": 1}])
def test_what_is_no_address_is_a_422(body: dict[str, Any]) -> None:
    response = call("request_password_reset", body=body)
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == ["/email"]
