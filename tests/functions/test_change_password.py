"""Changing one's password."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import update

from shared.postgresql.tables import account
from shared.postgresql.transactions import transaction
from tests.conftest import PASSWORD, User, call, events_of, inbox, log_in, session_of, wait_for

NEW_PASSWORD = "a wholly new choice of words"


def change(tokens: dict[str, Any] | None, new: Any = NEW_PASSWORD, current: Any = PASSWORD) -> Any:
    return call("change_password", tokens, {"current_password": current, "new_password": new})


def test_the_new_password_logs_in_and_the_old_one_does_not(active_user: User) -> None:
    response = change(session_of(active_user))
    assert (response.status_code, response.data) == (204, b"")
    log_in(User(active_user.id, active_user.email, NEW_PASSWORD))
    assert call("login", body={"email": active_user.email, "password": PASSWORD}).status_code == 401


def test_other_sessions_end_and_this_one_goes_on(active_user: User) -> None:
    this, other = session_of(active_user), session_of(active_user)
    assert call("get_profile", other).status_code == 200
    change(this)
    assert call("get_profile", other).status_code == 401
    assert call("refresh_token", body={"refresh_token": other["refresh_token"]}).status_code == 401
    assert call("get_profile", this).status_code == 200
    assert call("refresh_token", body={"refresh_token": this["refresh_token"]}).status_code == 200


def test_the_owner_is_told(active_user: User) -> None:
    change(session_of(active_user))
    (mail,) = wait_for(lambda: inbox(active_user.email))
    assert mail["subject"] == "비밀번호가 변경되었습니다"
    assert events_of(active_user) == ["logged_in", "password_changed"]


def test_a_wrong_current_password_changes_nothing(active_user: User) -> None:
    this, other = session_of(active_user), session_of(active_user)
    response = change(this, current="wrong horse battery staple")
    assert response.status_code == 403
    assert response.json["type"] == "urn:aegis:problem:wrong-password"
    assert call("get_profile", other).status_code == 200
    log_in(active_user)
    assert "password_changed" not in events_of(active_user)


def test_the_current_password_cannot_be_guessed(active_user: User) -> None:
    tokens = session_of(active_user)
    statuses = [change(tokens, current=f"guess {number}").status_code for number in range(10)]
    assert statuses == [403] * 10
    assert change(tokens).status_code == 429


@pytest.mark.parametrize("weak", ["short", "passwordpassword"])
def test_a_weak_password_is_refused_at_its_field(active_user: User, weak: str) -> None:
    response = change(session_of(active_user), new=weak)
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == ["/new_password"]
    log_in(active_user)


def test_the_address_is_no_password(active_user: User) -> None:
    assert change(session_of(active_user), new=active_user.email).status_code == 422


def test_a_waiting_change_of_address_is_cancelled(active_user: User) -> None:
    tokens = session_of(active_user)
    new = f"new-{active_user.email}"
    with transaction() as connection:
        waiting = {"new_email": new, "new_canonical_email": new}
        connection.execute(update(account).where(account.c.id == active_user.id).values(waiting))
    assert call("get_profile", tokens).json["new_email"] == new
    change(tokens)
    assert call("get_profile", tokens).json["new_email"] is None


def test_of_two_at_once_one_wins(active_user: User) -> None:
    sessions = [session_of(active_user) for _ in range(3)]
    passwords = [f"{NEW_PASSWORD} number {number}" for number in range(3)]
    with ThreadPoolExecutor(3) as pool:
        statuses = [answer.status_code for answer in pool.map(change, sessions, passwords)]
    assert statuses.count(204) == 1
    assert set(statuses) <= {204, 403, 401}
    log_in(User(active_user.id, active_user.email, passwords[statuses.index(204)]))
    assert events_of(active_user).count("password_changed") == 1


@pytest.mark.parametrize(
    ("new", "current", "pointer"),
    [(1, PASSWORD, "/new_password"), (NEW_PASSWORD, "", "/current_password"), ("p" * 257, PASSWORD, "/new_password")],
)
def test_an_invalid_field_is_named(active_user: User, new: Any, current: Any, pointer: str) -> None:
    response = change(session_of(active_user), new, current)
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == [pointer]
    log_in(active_user)
