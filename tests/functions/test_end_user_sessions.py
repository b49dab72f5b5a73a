"""Ending a user's sessions as an administrator."""

from typing import Any

from tests.conftest import User, call, events_of, log_in, session_of


def test_all_sessions_of_the_user_end_from_the_next_request_on(active_user: User, admin: dict[str, Any]) -> None:
    sessions = [session_of(active_user) for _ in range(3)]
    assert [call("get_profile", tokens).status_code for tokens in sessions] == [200] * 3
    assert call("end_user_sessions", admin, user_id=active_user.id).status_code == 204
    assert [call("get_profile", tokens).status_code for tokens in sessions] == [401] * 3
    refreshed = call("refresh_token", body={"refresh_token": sessions[0]["refresh_token"]})
    assert refreshed.status_code == 401
    assert events_of(active_user)[-1] == "sessions_ended"


def test_the_user_may_log_in_again(active_user: User, admin: dict[str, Any]) -> None:
    call("end_user_sessions", admin, user_id=active_user.id)
    assert call("get_profile", log_in(active_user)).status_code == 200


def test_the_administrators_own_session_goes_on(active_user: User, admin: dict[str, Any]) -> None:
    call("end_user_sessions", admin, user_id=active_user.id)
    assert call("get_profile", admin).status_code == 200
