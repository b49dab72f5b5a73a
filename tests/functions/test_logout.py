"""Logging out."""

from tests.conftest import User, bearer, client, log_in, post

LOGOUT = "/api/v1/users/logout"
PROFILE = "/api/v1/users/me"


def test_both_tokens_are_refused_from_the_next_request_on(active_user: User) -> None:
    tokens = log_in(active_user)
    assert client("get_profile").get(PROFILE, headers=bearer(tokens)).status_code == 200
    assert client("logout").post(LOGOUT, headers=bearer(tokens)).status_code == 204
    assert client("get_profile").get(PROFILE, headers=bearer(tokens)).status_code == 401
    refreshed = post("refresh_token", "/api/v1/users/token/refresh", {"refresh_token": tokens["refresh_token"]})
    assert refreshed.status_code == 401


def test_other_sessions_go_on(active_user: User) -> None:
    phone, laptop = log_in(active_user), log_in(active_user)
    client("logout").post(LOGOUT, headers=bearer(phone))
    assert client("get_profile").get(PROFILE, headers=bearer(laptop)).status_code == 200


def test_a_second_logout_is_a_401(active_user: User) -> None:
    tokens = log_in(active_user)
    client("logout").post(LOGOUT, headers=bearer(tokens))
    assert client("logout").post(LOGOUT, headers=bearer(tokens)).status_code == 401
