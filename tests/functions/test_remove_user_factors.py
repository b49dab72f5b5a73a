"""Removing all factors of a user as an administrator."""

import uuid
from datetime import timedelta
from typing import Any

from shared.postgresql.tables import verification
from tests.authenticator import App, with_passkey, with_totp
from tests.conftest import User, call, create_admin, events_of, log_in, row_of, session_of


def test_the_password_alone_is_enough_again_and_the_owner_is_told(active_user: User, admin: dict[str, Any]) -> None:
    with_totp(active_user)
    response = call("remove_user_factors", admin, user_id=active_user.id)
    assert (response.status_code, response.json) == (200, {"first_factor_code": None})
    assert events_of(active_user) == ["factors_removed"]
    log_in(active_user)


def test_passkeys_go_with_the_app_in_one_step(active_user: User, admin: dict[str, Any]) -> None:
    passkey = with_passkey(active_user)
    with_totp(active_user)
    assert call("remove_user_factors", admin, user_id=active_user.id).status_code == 200
    assert events_of(active_user)[-1] == "factors_removed"
    answer = passkey.log_in(call("request_passkey_login").json)
    assert call("login_with_passkey", body={"credential": answer}).status_code == 401
    assert call("enroll_totp", log_in(active_user)).status_code == 201


def test_an_administrator_binds_the_next_factor_with_the_code_of_the_answer_alone(
    address: str, admin: dict[str, Any]
) -> None:
    other, _ = create_admin(f"other-{address}")
    with_totp(other)
    # The second as when the answer to the first was lost.
    lost, code = (call("remove_user_factors", admin, user_id=other.id).json["first_factor_code"] for _ in range(2))
    tokens = log_in(other)
    body = {"code": App(call("enroll_totp", tokens).json["secret"]).code()}
    assert call("confirm_totp", tokens, body).status_code == 403
    assert call("confirm_totp", tokens, {**body, "first_factor_code": lost}).status_code == 403
    assert call("confirm_totp", tokens, {**body, "first_factor_code": code}).status_code == 200


def test_the_code_is_stored_hashed(address: str, admin: dict[str, Any]) -> None:
    other, _ = create_admin(f"other-{address}")
    code = call("remove_user_factors", admin, user_id=other.id).json["first_factor_code"]
    stored = row_of(other, verification)
    assert len(stored.token_hash) == 32
    assert timedelta(hours=23) < stored.expires_at - stored.created_at <= timedelta(hours=24)
    assert code.replace("-", "").encode() not in stored.token_hash


def test_administrators_keep_their_own(address: str) -> None:
    admin, tokens = create_admin(f"admin-{address}")
    with_totp(admin)
    response = call("remove_user_factors", tokens, user_id=admin.id)
    assert (response.status_code, response.json["type"]) == (409, "urn:aegis:problem:own-factors")


def test_all_sessions_of_the_user_end(active_user: User, admin: dict[str, Any]) -> None:
    with_totp(active_user)
    tokens = session_of(active_user)
    assert call("get_profile", tokens).json["second_factor"] is True
    assert call("remove_user_factors", admin, user_id=active_user.id).status_code == 200
    assert call("get_profile", tokens).status_code == 401
    assert call("get_profile", session_of(active_user)).json["second_factor"] is False


def test_a_user_without_one_is_a_404(active_user: User, admin: dict[str, Any]) -> None:
    for user_id in (active_user.id, uuid.uuid4()):
        response = call("remove_user_factors", admin, user_id=user_id)
        assert (response.status_code, response.json["type"]) == (404, "urn:aegis:problem:no-such-item")
    assert events_of(active_user) == []
