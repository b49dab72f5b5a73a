"""Making new recovery codes."""

from datetime import timedelta

from tests.authenticator import second_factor_challenge, with_totp
from tests.conftest import User, call, events_of, log_in, session_of, strong_session_of


def log_in_with(user: User, code: str) -> int:
    body = {"challenge": second_factor_challenge(user), "code": code}
    status: int = call("login_with_second_factor", body=body).status_code
    return status


def test_the_new_codes_work_and_those_from_before_do_not(active_user: User) -> None:
    _, before = with_totp(active_user)
    response = call("renew_recovery_codes", strong_session_of(active_user))
    assert response.status_code == 201
    codes = response.json["recovery_codes"]
    assert len(set(codes)) == 10
    assert log_in_with(active_user, before[0]) == 401
    assert log_in_with(active_user, codes[0]) == 200
    assert "recovery_codes_renewed" in events_of(active_user)


def test_without_an_authenticator_app_it_is_a_404(active_user: User) -> None:
    response = call("renew_recovery_codes", log_in(active_user))
    assert (response.status_code, response.json["type"]) == (404, "urn:aegis:problem:no-such-item")


def test_it_takes_a_recent_log_in_with_the_factor(active_user: User) -> None:
    with_totp(active_user)
    assert call("renew_recovery_codes", session_of(active_user)).status_code == 401
    earlier = session_of(active_user, amr=["pwd", "otp", "mfa"], ago=timedelta(minutes=11))
    assert call("renew_recovery_codes", earlier).status_code == 401
    assert events_of(active_user) == ["logged_in", "logged_in"]


def test_without_a_token_it_is_a_401() -> None:
    assert call("renew_recovery_codes").status_code == 401
