"""Logging in with the second factor."""

import base64
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import jwt
import pyotp
import pytest
from sqlalchemy import func, select, update

from shared.identity import challenges
from shared.identity.second_factors import seal_secret, step_of
from shared.postgresql.tables import account, challenge
from shared.postgresql.transactions import transaction
from tests.authenticator import second_factor_challenge, with_totp
from tests.conftest import User, call, create_user, events_of, sessions_of


def answer(challenge: str, code: str) -> Any:
    return call("login_with_second_factor", body={"challenge": challenge, "code": code})


def try_(user: User, code: str) -> Any:
    """An answer to a challenge of its own."""
    with transaction() as connection:
        token = challenges.create(connection, challenges.SECOND_FACTOR, user.id)
    return answer(token, code)


def test_password_and_code_start_a_session_with_two_factors(active_user: User) -> None:
    app, _ = with_totp(active_user)
    response = answer(second_factor_challenge(active_user), app.code())
    assert response.status_code == 200
    assert response.json.keys() == {"access_token", "refresh_token", "token_type", "expires_in", "device_token"}
    claims = jwt.decode(response.json["access_token"], options={"verify_signature": False})
    assert claims["amr"] == ["pwd", "otp", "mfa"]
    assert call("get_profile", response.json).status_code == 200
    assert events_of(active_user) == ["logged_in"]


def test_a_recovery_code_takes_its_place_once(active_user: User) -> None:
    _, (code, other, *_) = with_totp(active_user)
    assert try_(active_user, code.lower().replace("-", "")).status_code == 200
    assert events_of(active_user) == ["recovery_code_used", "logged_in"]
    assert try_(active_user, code).status_code == 401
    assert try_(active_user, other).status_code == 200


@pytest.mark.parametrize("separator", [" ", "\N{EN DASH}", "\t", "\n", " - ", "\N{MINUS SIGN}", "\N{ZERO WIDTH SPACE}"])
def test_a_recovery_code_may_be_pasted_with_any_separators(active_user: User, separator: str) -> None:
    _, (code, *_) = with_totp(active_user)
    assert try_(active_user, f" {code.replace('-', separator)}\n").status_code == 200


def test_full_width_digits_are_digits(active_user: User) -> None:
    app, (code, *_) = with_totp(active_user)
    full_width = {ord(" "): 0x3000} | {number: number + 0xFEE0 for number in range(0x21, 0x7F)}
    assert try_(active_user, app.code().translate(full_width)).status_code == 200
    assert try_(active_user, code.translate(full_width)).status_code == 200


def test_a_recovery_code_of_another_user_is_refused(active_user: User, address: str) -> None:
    with_totp(active_user)
    _, (code, *_) = with_totp(create_user(f"other-{address}"))
    assert try_(active_user, code).status_code == 401


def test_a_code_is_good_once_and_none_before_it_after_that(active_user: User) -> None:
    app, _ = with_totp(active_user)
    code, next_code = app.code(), app.code(steps=1)
    assert try_(active_user, next_code).status_code == 200
    assert try_(active_user, next_code).status_code == 401
    assert try_(active_user, code).status_code == 401
    assert sessions_of(active_user) == 1


def test_fifty_uses_of_one_code_at_once_start_one_session(active_user: User) -> None:
    app, _ = with_totp(active_user)
    code = app.code()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: try_(active_user, code).status_code, range(50)))
    assert answers.count(200) == sessions_of(active_user) == 1
    assert set(answers) == {200, 401, 429}


def test_fifty_uses_of_one_recovery_code_at_once_start_one_session(active_user: User) -> None:
    _, (code, *_) = with_totp(active_user)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: try_(active_user, code).status_code, range(50)))
    assert answers.count(200) == sessions_of(active_user) == 1


def test_clocks_may_be_one_step_apart_and_no_more(active_user: User) -> None:
    secret = b"a secret of 20 bytes"
    sealed, app = seal_secret(active_user.id, secret), pyotp.TOTP(base64.b32encode(secret).decode())
    while True:
        now = app.timecode(time.time())
        found = [step_of(active_user.id, sealed, app.generate_otp(now + steps)) for steps in range(-2, 3)]
        if now == app.timecode(time.time()):  # else the next step began meanwhile
            break
    assert found == [None, now - 1, now, now + 1, None]


def test_a_challenge_has_five_tries(active_user: User) -> None:
    app, _ = with_totp(active_user)
    token = second_factor_challenge(active_user)
    wrong = [answer(token, app.code(steps=5)) for _ in range(5)]
    assert {response.status_code for response in wrong} == {401}
    assert {response.json["type"] for response in wrong} == {"urn:aegis:problem:invalid-second-factor"}
    right = answer(token, app.code())
    assert (right.status_code, right.json["type"]) == (401, "urn:aegis:problem:challenge-over")
    assert answer(second_factor_challenge(active_user), app.code()).status_code == 200


def test_many_tries_at_once_are_all_counted(active_user: User) -> None:
    app, _ = with_totp(active_user)
    token = second_factor_challenge(active_user)
    with ThreadPoolExecutor(8) as pool:
        details = list(pool.map(lambda _: answer(token, app.code(steps=5)).json["detail"], range(15)))
    assert sum("The code is wrong" in detail for detail in details) == 5


def test_an_account_has_twenty_tries_in_an_hour_over_all_challenges(active_user: User) -> None:
    app, _ = with_totp(active_user)
    assert {try_(active_user, app.code(steps=5)).status_code for _ in range(20)} == {401}
    response = try_(active_user, app.code())
    assert (response.status_code, response.json["type"]) == (429, "urn:aegis:problem:too-many-requests")
    assert int(response.headers["Retry-After"]) >= 1


def test_an_address_has_thirty_tries_in_a_minute() -> None:
    body = {"challenge": "A" * 43, "code": "123456"}
    codes = [call("login_with_second_factor", body=body, address="198.51.100.77").status_code for _ in range(33)]
    assert codes[:30] == [401] * 30
    assert 429 in codes[30:]


def test_a_challenge_is_spent_by_the_log_in(active_user: User) -> None:
    app, (code, *_) = with_totp(active_user)
    token = second_factor_challenge(active_user)
    assert answer(token, app.code()).status_code == 200
    assert answer(token, code).status_code == 401
    assert sessions_of(active_user) == 1


def test_a_challenge_lives_five_minutes(active_user: User) -> None:
    app, _ = with_totp(active_user)
    token = second_factor_challenge(active_user)
    with transaction() as connection:
        earlier = challenge.c.expires_at - timedelta(minutes=5)
        connection.execute(update(challenge).where(challenge.c.account_id == active_user.id).values(expires_at=earlier))
    assert answer(token, app.code()).status_code == 401


def test_a_challenge_for_something_else_is_refused(active_user: User) -> None:
    app, _ = with_totp(active_user)
    with transaction() as connection:
        token = challenges.create(connection, challenges.PASSKEY_REGISTRATION, active_user.id)
    assert answer(token, app.code()).status_code == 401


def test_a_challenge_is_stored_hashed(active_user: User) -> None:
    with_totp(active_user)
    token = second_factor_challenge(active_user)
    with transaction() as connection:
        stored = connection.scalars(
            select(challenge.c.token_hash).where(challenge.c.account_id == active_user.id)
        ).all()
    assert len(stored) == 1
    assert token.encode() not in stored[0]


def test_a_suspended_user_does_not_log_in_by_an_earlier_challenge(active_user: User) -> None:
    app, _ = with_totp(active_user)
    token = second_factor_challenge(active_user)
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == active_user.id).values(status="suspended"))
    assert answer(token, app.code()).status_code == 401
    assert sessions_of(active_user) == 0


def test_a_withdrawn_user_is_restored(active_user: User) -> None:
    app, _ = with_totp(active_user)
    with transaction() as connection:
        withdrawn = update(account).where(account.c.id == active_user.id)
        connection.execute(withdrawn.values(status="withdrawn", withdrawn_at=func.now()))
    assert answer(second_factor_challenge(active_user), app.code()).status_code == 200
    assert events_of(active_user) == ["restored", "logged_in"]


def test_a_retry_with_an_idempotency_key_gets_the_same_tokens(active_user: User) -> None:
    app, _ = with_totp(active_user)
    body = {"challenge": second_factor_challenge(active_user), "code": app.code()}
    headers = {"Idempotency-Key": f'"{active_user.id}"'}
    first, second = (call("login_with_second_factor", body=body, headers=headers) for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert first.data == second.data
