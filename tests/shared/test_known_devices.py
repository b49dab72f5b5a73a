"""What a device token is good for, and when it is good for nothing."""

import contextlib
import secrets
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.http import rate_limits
from shared.identity import known_devices
from shared.identity.credentials import GUESSES
from shared.identity.tokens import decode
from shared.identity.verifications import RESET_PASSWORD
from shared.runtime.problems import TooManyRequests
from tests.authenticator import with_totp
from tests.conftest import PASSWORD, User, call, create_user, issue, mailed_token, session_of

NEW = "another fine horse battery"


def is_known(token: str, address: str) -> bool:
    return known_devices.recognize(token, address) is not None


def from_anywhere() -> str:
    return f"10.{secrets.randbelow(256)}.{secrets.randbelow(256)}.{secrets.randbelow(256)}"


def log_in(user: User, password: str = PASSWORD, **headers: str) -> Any:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return call("login", body={"email": user.email, "password": password}, headers=sent, address=from_anywhere())


def spend_the_log_in(user: User) -> None:
    """Counts what many strangers guess, without the work of it."""
    with contextlib.suppress(TooManyRequests):
        while True:
            rate_limits.enforce("login", GUESSES, {"email": user.email})


def test_a_log_in_and_a_refresh_make_the_device_known(active_user: User) -> None:
    tokens = log_in(active_user).json
    refreshed = call("refresh_token", body={"refresh_token": tokens["refresh_token"]}).json
    for token in (tokens["device_token"], refreshed["device_token"]):
        assert is_known(token, active_user.email)
    assert tokens["device_token"] != refreshed["device_token"]


def test_a_device_token_is_of_one_account_and_tells_nothing_of_it(active_user: User) -> None:
    token = session_of(active_user)["device_token"]
    other = create_user(f"other-{active_user.email}")
    assert not is_known(token, other.email)
    for personal in (active_user.email.encode(), active_user.id.bytes, str(active_user.id).encode()):
        assert personal not in decode(token)


def test_a_device_token_in_place_of_a_password_logs_nobody_in(active_user: User) -> None:
    token = session_of(active_user)["device_token"]
    assert log_in(active_user, token[:256], Device_Token=token).status_code == 401
    assert call("get_profile", {"access_token": token}).status_code == 401


def test_a_new_password_makes_the_tokens_of_before_worthless(active_user: User) -> None:
    tokens = session_of(active_user)
    body = {"current_password": PASSWORD, "new_password": NEW}
    assert call("change_password", tokens, body).status_code == 204
    assert not is_known(tokens["device_token"], active_user.email)
    # The session that goes on gets another with its next refresh.
    refreshed = call("refresh_token", body={"refresh_token": tokens["refresh_token"]}).json
    assert is_known(refreshed["device_token"], active_user.email)


def test_a_reset_makes_the_tokens_of_before_worthless_and_lets_the_owner_in(active_user: User) -> None:
    token = session_of(active_user)["device_token"]
    spend_the_log_in(active_user)
    assert log_in(active_user).status_code == 429
    link = {"token": issue(active_user, RESET_PASSWORD), "password": NEW}
    assert call("reset_password", body=link).status_code == 204
    assert not is_known(token, active_user.email)
    assert log_in(active_user, NEW).status_code == 200


def test_another_address_makes_the_tokens_of_before_worthless(active_user: User) -> None:
    tokens, new = session_of(active_user), f"new-{active_user.email}"
    assert call("change_email", tokens, {"email": new, "password": PASSWORD}).status_code == 202
    link = {"token": mailed_token(new), "password": PASSWORD}
    assert call("verify_email", body=link).status_code == 204
    assert not is_known(tokens["device_token"], active_user.email)
    assert not is_known(tokens["device_token"], new)


def test_a_device_token_outlives_its_session_but_not_its_ninety_days(
    active_user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = session_of(active_user)
    assert call("logout", tokens).status_code == 204
    assert is_known(tokens["device_token"], active_user.email)
    monkeypatch.setattr(known_devices, "LIFETIME", timedelta(seconds=-1))
    assert not is_known(known_devices.new_token(active_user.email, None), active_user.email)
    assert not is_known(session_of(active_user)["device_token"], active_user.email)


@pytest.fixture(scope="module")
def known() -> tuple[User, str]:
    user = create_user(f"{secrets.token_hex(6)}@example.com")
    return user, session_of(user)["device_token"]


@given(data=st.data())
@settings(max_examples=40)
def test_no_changed_token_is_good(known: tuple[User, str], data: st.DataObject) -> None:
    user, token = known
    place = data.draw(st.integers(0, len(token) - 1))
    changed = token[:place] + data.draw(st.text(max_size=3)) + token[place + 1 :]
    assert is_known(changed, user.email) == (decoded(changed) == decode(token))


def decoded(text: str) -> bytes | None:
    try:
        return decode(text)
    except ValueError:
        return None


@pytest.mark.parametrize("token", ["", "A", "é" * 118, "A" * 118, "A" * 5000, "=" * 118])
def test_a_header_that_is_no_token_is_ignored(active_user: User, token: str) -> None:
    assert not is_known(token, active_user.email)
    if token.isascii():
        assert log_in(active_user, Device_Token=token).status_code == 200


def test_who_has_the_password_alone_does_not_spend_the_tries_of_a_known_device(active_user: User) -> None:
    app, _ = with_totp(active_user)
    device = {"Device-Token": session_of(active_user)["device_token"]}

    def challenge() -> str:
        answer: str = call("login", body={"email": active_user.email, "password": PASSWORD}).json["challenge"]
        return answer

    def answer(token: str, code: str, headers: dict[str, str] | None = None) -> int:
        status: int = call(
            "login_with_second_factor", body={"challenge": token, "code": code}, headers=headers
        ).status_code
        return status

    for _ in range(4):
        token = challenge()
        assert [answer(token, "000000") for _ in range(5)] == [401] * 5
    own = challenge()
    assert answer(own, app.code()) == 429
    assert answer(own, app.code(), device) == 200
