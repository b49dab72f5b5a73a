"""Making new recovery codes."""

from tests.authenticator import second_factor_challenge, with_totp
from tests.conftest import User, call, events_of, strong_session_of


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
