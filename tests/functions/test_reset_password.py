"""Setting a new password with the token from the mail."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update

from shared.identity.verifications import CHANGE_EMAIL, RESET_PASSWORD, VERIFY_EMAIL
from shared.postgresql.tables import account, challenge, credential
from shared.postgresql.transactions import transaction
from tests.authenticator import with_passkey, with_totp
from tests.conftest import (
    PASSWORD,
    User,
    call,
    create_user,
    events_of,
    inbox,
    issue,
    log_in,
    mailed_token,
    session_of,
    wait_for,
)

NEW_PASSWORD = "a wholly new choice of words"


def reset(token: str, password: str = NEW_PASSWORD, **parameters: Any) -> Any:
    return call("reset_password", body={"token": token, "password": password}, **parameters)


def set_account(user: User, **values: Any) -> None:
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == user.id).values(values))


def test_the_link_from_the_mail_sets_a_new_password(active_user: User) -> None:
    call("request_password_reset", body={"email": active_user.email})
    response = reset(mailed_token(active_user.email))
    assert (response.status_code, response.data) == (204, b"")
    log_in(User(active_user.id, active_user.email, NEW_PASSWORD))
    old = call("login", body={"email": active_user.email, "password": PASSWORD})
    assert old.status_code == 401
    assert events_of(active_user) == ["password_reset_requested", "password_changed", "logged_in"]


def test_the_owner_is_told(active_user: User) -> None:
    reset(issue(active_user, RESET_PASSWORD))
    (mail,) = wait_for(lambda: inbox(active_user.email))
    assert mail["subject"] == "비밀번호가 변경되었습니다"


def test_all_sessions_end_at_once(active_user: User) -> None:
    sessions = [session_of(active_user) for _ in range(2)]
    assert [call("get_profile", tokens).status_code for tokens in sessions] == [200, 200]
    reset(issue(active_user, RESET_PASSWORD))
    assert [call("get_profile", tokens).status_code for tokens in sessions] == [401, 401]
    refreshed = call("refresh_token", body={"refresh_token": sessions[0]["refresh_token"]})
    assert refreshed.status_code == 401


def test_a_log_in_that_waits_for_its_second_factor_starts_again(active_user: User) -> None:
    waiting = {"token_hash": uuid.uuid4().bytes, "purpose": "log_in", "account_id": active_user.id}
    with transaction() as connection:
        connection.execute(insert(challenge).values(**waiting, expires_at=datetime.now(UTC) + timedelta(hours=1)))
    reset(issue(active_user, RESET_PASSWORD))
    with transaction() as connection:
        assert not connection.execute(select(challenge).where(challenge.c.account_id == active_user.id)).all()


def test_a_token_works_once(active_user: User) -> None:
    token = issue(active_user, RESET_PASSWORD)
    assert reset(token).status_code == 204
    again = reset(token, "yet another choice of words")
    assert again.status_code == 400
    assert again.json["type"] == "urn:aegis:problem:invalid-link"
    log_in(User(active_user.id, active_user.email, NEW_PASSWORD))


def test_of_many_at_once_with_one_token_one_wins(active_user: User) -> None:
    token = issue(active_user, RESET_PASSWORD)
    passwords = [f"{NEW_PASSWORD} number {number}" for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(lambda password: reset(token, password).status_code, passwords))
    assert sorted(statuses) == [204, 400, 400, 400]
    log_in(User(active_user.id, active_user.email, passwords[statuses.index(204)]))


@pytest.mark.parametrize("weak", ["short", "passwordpassword", "김민준김민준김민준김민준김민준"])
def test_a_weak_password_is_refused_and_does_not_spend_the_token(active_user: User, weak: str) -> None:
    token = issue(active_user, RESET_PASSWORD)
    refused = reset(token, weak)
    assert refused.status_code == 422
    assert [error["pointer"] for error in refused.json["errors"]] == ["/password"]
    log_in(active_user)
    assert reset(token).status_code == 204


def test_the_address_is_no_password(active_user: User) -> None:
    assert reset(issue(active_user, RESET_PASSWORD), active_user.email).status_code == 422


@pytest.mark.parametrize(("purpose", "seconds"), [(RESET_PASSWORD, -1), (VERIFY_EMAIL, 60)], ids=["expired", "other"])
def test_a_token_that_is_expired_or_for_something_else_is_refused(
    active_user: User, purpose: str, seconds: int
) -> None:
    assert reset(issue(active_user, purpose, timedelta(seconds=seconds))).status_code == 400
    log_in(active_user)


def test_an_unknown_token_is_refused() -> None:
    assert reset("A" * 43).status_code == 400


def test_a_link_from_before_a_change_of_password_is_void(active_user: User) -> None:
    token = issue(active_user, RESET_PASSWORD)
    change = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    assert call("change_password", session_of(active_user), change).status_code == 204
    assert reset(token, "yet another choice of words").status_code == 400


def test_an_account_without_a_password_gets_its_first(active_user: User) -> None:
    with transaction() as connection:
        connection.execute(delete(credential).where(credential.c.account_id == active_user.id))
    call("request_password_reset", body={"email": active_user.email})
    assert reset(mailed_token(active_user.email)).status_code == 204
    log_in(User(active_user.id, active_user.email, NEW_PASSWORD))


def test_a_withdrawn_account_comes_back_by_logging_in(address: str) -> None:
    user = create_user(address, "withdrawn")
    assert reset(issue(user, RESET_PASSWORD)).status_code == 204
    log_in(User(user.id, address, NEW_PASSWORD))


@pytest.mark.parametrize("status", ["pending", "suspended"])
def test_other_accounts_are_refused(address: str, status: str) -> None:
    user = create_user(address)
    token = issue(user, RESET_PASSWORD)
    set_account(user, status=status)
    assert reset(token).status_code == 400


def test_a_change_of_address_that_a_thief_began_is_cancelled(active_user: User) -> None:
    session_of(active_user)
    thief = f"thief-{active_user.email}"
    set_account(active_user, new_email=thief, new_canonical_email=thief)
    link = issue(active_user, CHANGE_EMAIL)
    reset(issue(active_user, RESET_PASSWORD))
    assert call("verify_email", body={"token": link, "password": PASSWORD}).status_code == 400
    call("request_email_verification", body={"email": thief})
    profile = call("get_profile", session_of(active_user)).json
    assert (profile["email"], profile["new_email"]) == (active_user.email, None)
    assert "email_verification_requested" not in events_of(active_user)


def test_a_request_that_is_sent_again_gets_its_first_answer(active_user: User) -> None:
    token = issue(active_user, RESET_PASSWORD)
    key = {"Idempotency-Key": f'"{uuid.uuid4()}"'}
    assert [reset(token, headers=key).status_code for _ in range(2)] == [204, 204]
    assert events_of(active_user) == ["password_changed"]


def test_a_reset_does_not_get_around_the_second_factor(active_user: User) -> None:
    with_totp(active_user)
    assert reset(issue(active_user, RESET_PASSWORD)).status_code == 204
    response = call("login", body={"email": active_user.email, "password": NEW_PASSWORD})
    assert (response.status_code, response.json["type"]) == (401, "urn:aegis:problem:second-factor-required")


def test_a_reset_keeps_passkeys_and_the_new_password_binds_no_other_factor(active_user: User) -> None:
    authenticator = with_passkey(active_user)
    assert reset(issue(active_user, RESET_PASSWORD)).status_code == 204
    tokens = log_in(User(active_user.id, active_user.email, NEW_PASSWORD))
    for function in ("enroll_totp", "request_passkey_registration", "export_data"):
        response = call(function, tokens)
        assert (response.status_code, response.json["reason"]) == (401, "passkey-missing"), function
    answer = authenticator.log_in(call("request_passkey_login").json)
    assert call("login_with_passkey", body={"credential": answer}).status_code == 200
