"""Changing one's e-mail address, as the caller and the owners of both addresses see it."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select

from shared.postgresql.tables import account
from shared.postgresql.transactions import transaction
from tests.conftest import (
    PASSWORD,
    User,
    call,
    create_user,
    events_of,
    inbox,
    log_in,
    mailed_token,
    session_of,
    wait_for,
)


def change(tokens: dict[str, Any] | None, email: Any, password: Any = PASSWORD) -> Any:
    return call("change_email", tokens, {"email": email, "password": password})


def verify(token: str) -> int:
    status: int = call("verify_email", body={"token": token, "password": PASSWORD}).status_code
    return status


def subjects(address: str) -> list[str]:
    return [mail["subject"] for mail in inbox(address)]


def test_the_new_address_takes_over_when_it_is_verified(active_user: User) -> None:
    tokens, new = session_of(active_user), f"New-{active_user.email}"
    response = change(tokens, new)
    assert (response.status_code, response.data) == (202, b"")
    waiting = call("get_profile", tokens).json
    assert (waiting["email"], waiting["new_email"]) == (active_user.email, new)
    log_in(active_user)

    assert verify(mailed_token(new)) == 204
    changed = call("get_profile", tokens).json
    assert (changed["email"], changed["new_email"]) == (new, None)
    log_in(User(active_user.id, new))
    assert call("login", body={"email": active_user.email, "password": PASSWORD}).status_code == 401
    told = [event for event in events_of(active_user) if event != "logged_in"]
    assert told == ["email_change_requested", "email_verification_requested", "email_changed", "email_replaced"]


def test_both_addresses_are_told(active_user: User) -> None:
    new = f"new-{active_user.email}"
    change(session_of(active_user), new)
    verify(mailed_token(new))
    wait_for(lambda: len(inbox(new)) == len(inbox(active_user.email)) == 2)
    assert subjects(active_user.email) == [
        "이지스 계정의 이메일 주소가 다른 주소로 변경되었습니다",
        "이메일 주소 변경 요청을 받았습니다",
    ]
    assert subjects(new) == ["이메일 주소가 변경되었습니다", "새 이메일 주소를 확인해 주세요"]
    assert new not in inbox(active_user.email)[0]["text"]


def test_a_wrong_password_changes_nothing(active_user: User) -> None:
    tokens = session_of(active_user)
    response = change(tokens, f"new-{active_user.email}", "wrong horse battery staple")
    assert response.status_code == 403
    assert response.json["type"] == "urn:aegis:problem:wrong-password"
    assert call("get_profile", tokens).json["new_email"] is None
    assert events_of(active_user) == ["logged_in"]


def test_a_taken_address_looks_like_a_free_one_and_its_owner_is_told(active_user: User) -> None:
    owner, tokens = create_user(f"owner-{active_user.email}"), session_of(active_user)
    response = change(tokens, owner.email)
    assert (response.status_code, response.data) == (202, b"")
    assert call("get_profile", tokens).json["new_email"] == owner.email
    wait_for(lambda: inbox(owner.email))
    assert subjects(owner.email) == ["이미 이지스 계정이 있습니다"]
    assert "#token=" not in inbox(owner.email)[0]["text"]
    assert events_of(active_user) == ["logged_in", "email_change_requested"]


def test_an_address_that_was_registered_and_never_verified_can_be_taken(active_user: User) -> None:
    stranger = create_user(f"new-{active_user.email}", "pending")
    tokens = session_of(active_user)
    change(tokens, stranger.email)
    assert verify(mailed_token(stranger.email)) == 204
    assert call("get_profile", tokens).json["email"] == stranger.email
    assert events_of(stranger) == ["purged"]


def test_an_address_that_was_taken_meanwhile_is_refused(active_user: User) -> None:
    new, tokens = f"new-{active_user.email}", session_of(active_user)
    change(tokens, new)
    token = mailed_token(new)
    owner = create_user(new)
    assert verify(token) == 400
    assert call("get_profile", tokens).json["email"] == active_user.email
    log_in(owner)


def test_of_two_who_want_one_address_one_gets_it(active_user: User) -> None:
    rival = create_user(f"rival-{active_user.email}")
    new = f"new-{active_user.email}"
    change(session_of(active_user), new)
    first = mailed_token(new)
    change(session_of(rival), new)
    wait_for(lambda: len(inbox(new)) == 2)
    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(verify, [first, mailed_token(new)])) == [204, 400]
    with transaction() as connection:
        owners = connection.scalars(select(account.c.id).where(account.c.canonical_email == new)).all()
    assert len(owners) == 1


def test_another_new_address_voids_the_link_to_the_one_before(active_user: User) -> None:
    tokens, first, second = session_of(active_user), f"first-{active_user.email}", f"second-{active_user.email}"
    change(tokens, first)
    token = mailed_token(first)
    change(tokens, second)
    assert verify(token) == 400
    assert verify(mailed_token(second)) == 204
    assert call("get_profile", tokens).json["email"] == second


def test_the_present_address_cancels_the_change(active_user: User) -> None:
    tokens, new = session_of(active_user), f"new-{active_user.email}"
    change(tokens, new)
    token = mailed_token(new)
    assert change(tokens, active_user.email.upper()).status_code == 202
    assert call("get_profile", tokens).json["new_email"] is None
    assert verify(token) == 400
    assert events_of(active_user).count("email_change_requested") == 1


def test_the_present_address_without_a_waiting_change_is_a_409_that_changes_nothing(active_user: User) -> None:
    response = change(session_of(active_user), active_user.email.upper())
    assert (response.status_code, response.json["type"]) == (409, "urn:aegis:problem:same-address")
    assert "email_change_requested" not in events_of(active_user)


def test_a_link_to_set_a_password_does_not_stay_behind_in_the_old_mailbox(active_user: User) -> None:
    new = f"new-{active_user.email}"
    call("request_password_reset", body={"email": active_user.email})
    left_behind = mailed_token(active_user.email)
    change(session_of(active_user), new)
    verify(mailed_token(new))
    body = {"token": left_behind, "password": "a wholly new choice of words"}
    assert call("reset_password", body=body).status_code == 400


def test_the_password_cannot_be_guessed(active_user: User) -> None:
    tokens = session_of(active_user)
    statuses = [change(tokens, f"{n}{active_user.email}", "guess").status_code for n in range(10)]
    assert statuses == [403] * 10
    assert change(tokens, f"new-{active_user.email}").status_code == 429


def test_nobody_floods_a_mailbox(address: str) -> None:
    users = [create_user(f"{number}-{address}") for number in range(6)]
    statuses = [change(session_of(user), address).status_code for user in users]
    assert statuses == [202] * 5 + [429]


@pytest.mark.parametrize(
    ("email", "password", "pointer"), [("nothing", PASSWORD, "/email"), ("new@example.com", "", "/password")]
)
def test_an_invalid_field_is_named_and_changes_nothing(
    active_user: User, email: Any, password: Any, pointer: str
) -> None:
    tokens = session_of(active_user)
    response = change(tokens, email, password)
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == [pointer]
    assert call("get_profile", tokens).json["new_email"] is None
