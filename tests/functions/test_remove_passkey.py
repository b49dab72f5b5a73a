"""Removing a passkey."""

import uuid
from typing import Any

from tests.authenticator import with_passkey, with_totp
from tests.conftest import (
    User,
    call,
    create_admin,
    create_user,
    events_of,
    passkey_session_of,
    session_of,
    strong_session_of,
)


def only_passkey(tokens: dict[str, Any]) -> str:
    (listed,) = call("list_passkeys", tokens).json["passkeys"]
    id_: str = listed["id"]
    return id_


def test_nobody_logs_in_with_it_any_more(active_user: User) -> None:
    authenticator, tokens = with_passkey(active_user), passkey_session_of(active_user)
    response = call("remove_passkey", tokens, passkey_id=only_passkey(tokens))
    assert (response.status_code, response.data) == (204, b"")
    assert events_of(active_user)[-1] == "passkey_removed"
    assert call("list_passkeys", tokens).json["passkeys"] == []
    credential = authenticator.log_in(call("request_passkey_login").json)
    assert call("login_with_passkey", body={"credential": credential}).status_code == 401


def test_a_passkey_of_another_user_is_not_found(active_user: User, address: str) -> None:
    other = create_user(f"other-{address}")
    with_passkey(other)
    theirs = only_passkey(session_of(other))
    response = call("remove_passkey", strong_session_of(active_user), passkey_id=theirs)
    assert (response.status_code, response.json["type"]) == (404, "urn:aegis:problem:no-such-item")
    assert only_passkey(session_of(other)) == theirs


def test_an_unknown_passkey_is_not_found(active_user: User) -> None:
    response = call("remove_passkey", strong_session_of(active_user), passkey_id=uuid.uuid4())
    assert (response.status_code, response.json["type"]) == (404, "urn:aegis:problem:no-such-item")
    assert "passkey_removed" not in events_of(active_user)


def test_a_role_keeps_its_last_factor(address: str) -> None:
    admin, _ = create_admin(address)
    with_passkey(admin)
    tokens = passkey_session_of(admin)
    id_ = only_passkey(tokens)
    response = call("remove_passkey", tokens, passkey_id=id_)
    assert (response.status_code, response.json["type"]) == (409, "urn:aegis:problem:last-factor")
    assert only_passkey(tokens) == id_
    with_totp(admin)
    assert call("remove_passkey", tokens, passkey_id=id_).status_code == 204
