"""Listing one's own passkeys."""

from datetime import datetime, timedelta

from tests.authenticator import with_passkey
from tests.conftest import User, call, create_user, log_in, session_of


def test_a_user_without_passkeys_has_none(active_user: User) -> None:
    response = call("list_passkeys", log_in(active_user))
    assert (response.status_code, response.json) == (200, {"passkeys": []})


def test_each_shows_its_name_and_when_it_was_used(active_user: User) -> None:
    authenticator = with_passkey(active_user)
    (unused,) = call("list_passkeys", session_of(active_user)).json["passkeys"]
    assert unused.keys() == {"id", "name", "created_at", "last_used_at"}
    assert (unused["name"], unused["last_used_at"]) == ("Phone", None)

    credential = authenticator.log_in(call("request_passkey_login").json)
    tokens = call("login_with_passkey", body={"credential": credential}).json
    (used,) = call("list_passkeys", tokens).json["passkeys"]
    assert datetime.fromisoformat(used["last_used_at"]) - datetime.fromisoformat(used["created_at"]) < timedelta(
        minutes=1
    )


def test_the_oldest_comes_first_and_those_of_others_not_at_all(active_user: User, address: str) -> None:
    with_passkey(create_user(f"other-{address}"))
    with_passkey(active_user)
    with_passkey(active_user)
    listed = call("list_passkeys", session_of(active_user)).json["passkeys"]
    assert len(listed) == 2
    assert listed == sorted(listed, key=lambda each: each["created_at"])
