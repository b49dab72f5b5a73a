"""Asking for another link to verify an address."""

import uuid
from typing import Any

import pytest
from sqlalchemy import select, update

from shared.postgresql.tables import account, outbox
from shared.postgresql.transactions import transaction
from tests.conftest import PASSWORD, User, call, create_user, events_of, inbox, mailed_token, wait_for


def ask(email: str, **parameters: Any) -> Any:
    return call("request_email_verification", body={"email": email}, **parameters)


def wants(user: User, new_address: str) -> None:
    with transaction() as connection:
        new = {"new_email": new_address, "new_canonical_email": new_address}
        connection.execute(update(account).where(account.c.id == user.id).values(new))


def test_a_pending_account_gets_a_link_that_works(address: str) -> None:
    user = create_user(address, "pending")
    response = ask(address.upper())
    assert (response.status_code, response.data) == (202, b"")
    assert call("verify_email", body={"token": mailed_token(address), "password": PASSWORD}).status_code == 204
    assert events_of(user) == ["email_verification_requested", "email_verified"]


def test_a_new_address_gets_a_link_that_works(active_user: User) -> None:
    new = f"new-{active_user.email}"
    wants(active_user, new)
    assert ask(new).status_code == 202
    assert call("verify_email", body={"token": mailed_token(new), "password": PASSWORD}).status_code == 204
    assert events_of(active_user) == ["email_verification_requested", "email_changed", "email_replaced"]


@pytest.mark.parametrize("status", ["active", "suspended", "withdrawn"])
def test_an_address_that_does_not_wait_gets_the_same_answer_and_nothing_else(address: str, status: str) -> None:
    user = create_user(address, status)
    wants(user, f"new-{address}")
    response = ask(address)
    assert (response.status_code, response.data) == (202, b"")
    assert events_of(user) == []


def test_an_unknown_address_gets_the_same_answer_and_an_event_of_nobody(address: str) -> None:
    request_id = uuid.uuid4().hex
    response = ask(address, headers={"X-Request-Id": request_id})
    assert (response.status_code, response.data) == (202, b"")
    with transaction() as connection:
        (subject,) = connection.scalars(select(outbox.c.subject).where(outbox.c.request_id == request_id)).all()
        assert connection.scalar(select(account.c.id).where(account.c.id == subject)) is None


def test_nobody_is_sent_links_to_an_address_that_is_anothers(active_user: User) -> None:
    other = create_user(f"other-{active_user.email}")
    wants(active_user, other.email)
    ask(other.email)
    assert events_of(active_user) == events_of(other) == []


def test_only_a_few_links_an_hour_go_to_one_address(address: str) -> None:
    create_user(address, "pending")
    statuses = [ask(address).status_code for _ in range(11)]
    assert statuses == [202] * 10 + [429]
    assert len(wait_for(lambda: inbox(address))) <= 10


def test_what_is_no_address_is_a_422() -> None:
    response = call("request_email_verification", body={"email": "nothing"})
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == ["/email"]
