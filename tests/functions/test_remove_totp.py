"""Removing the authenticator app."""

from sqlalchemy import select

from shared.postgresql.tables import recovery_code
from shared.postgresql.transactions import transaction
from tests.authenticator import second_factor_challenge, with_passkey, with_totp
from tests.conftest import (
    User,
    call,
    create_admin,
    events_of,
    log_in,
    passkey_session_of,
    session_of,
    strong_session_of,
)


def test_the_password_alone_is_enough_again(active_user: User) -> None:
    with_totp(active_user)
    tokens = strong_session_of(active_user)
    assert call("get_profile", tokens).json["second_factor"] is True
    response = call("remove_totp", tokens)
    assert (response.status_code, response.data) == (204, b"")
    assert call("get_profile", tokens).json["second_factor"] is False
    assert events_of(active_user)[-1] == "totp_removed"
    log_in(active_user)


def test_the_recovery_codes_go_with_it(active_user: User) -> None:
    with_totp(active_user)
    call("remove_totp", strong_session_of(active_user))
    with transaction() as connection:
        of_user = select(recovery_code.c.code_hash).where(recovery_code.c.account_id == active_user.id)
        assert connection.execute(of_user).all() == []


def test_a_log_in_that_waits_for_its_code_starts_again(active_user: User) -> None:
    app, _ = with_totp(active_user)
    challenge = second_factor_challenge(active_user)
    call("remove_totp", strong_session_of(active_user))
    response = call("login_with_second_factor", body={"challenge": challenge, "code": app.code()})
    assert response.status_code == 401
    assert "Log in with the password" in response.json["detail"]


def test_an_enrolment_that_waits_is_forgotten_without_news(active_user: User) -> None:
    tokens = log_in(active_user)
    call("enroll_totp", tokens)
    assert call("remove_totp", tokens).status_code == 204
    assert "totp_removed" not in events_of(active_user)


def test_a_role_keeps_its_last_factor(address: str) -> None:
    admin, tokens = create_admin(address)
    with_totp(admin)
    response = call("remove_totp", tokens)
    assert (response.status_code, response.json["type"]) == (409, "urn:aegis:problem:last-factor")
    assert call("get_profile", tokens).json["second_factor"] is True
    with_passkey(admin)
    assert call("remove_totp", passkey_session_of(admin)).status_code == 204


def test_a_role_forgets_an_enrolment_that_waits(address: str) -> None:
    tokens = session_of(create_admin(address)[0])
    call("enroll_totp", tokens)
    assert call("remove_totp", tokens).status_code == 204
