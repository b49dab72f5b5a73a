"""Confirming an authenticator app, which puts it in force."""

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import jwt
import pytest
from sqlalchemy import delete, func, select, update

from shared.postgresql.tables import account, credential, recovery_code, totp, verification
from shared.postgresql.transactions import transaction
from tests.authenticator import App, Authenticator, second_factor_challenge, with_passkey, with_totp
from tests.conftest import (
    User,
    call,
    create_admin,
    events_of,
    first_factor_code_of,
    issue,
    log_in,
    passkey_session_of,
    session_of,
    somebody_waits_for,
    strong_session_of,
    wait_for,
)


def enroll(tokens: dict[str, Any]) -> App:
    return App(call("enroll_totp", tokens).json["secret"])


def test_the_answer_is_ten_recovery_codes(active_user: User) -> None:
    tokens = log_in(active_user)
    response = call("confirm_totp", tokens, {"code": enroll(tokens).code()})
    assert response.status_code == 200
    codes = response.json["recovery_codes"]
    assert len(set(codes)) == 10
    assert all(re.fullmatch("([0-9A-HJKMNP-TV-Z]{4}-){5}[0-9A-HJKMNP-TV-Z]{4}", code) for code in codes)
    assert events_of(active_user)[-1] == "totp_enabled"


@pytest.mark.parametrize("separator", [" ", "-", "\t", "\n", "\N{NO-BREAK SPACE}", "\N{EN DASH}"])
def test_a_code_may_be_typed_in_two_halves(active_user: User, separator: str) -> None:
    tokens = log_in(active_user)
    code = enroll(tokens).code()
    assert call("confirm_totp", tokens, {"code": f"{code[:3]}{separator}{code[3:]}"}).status_code == 200


def test_recovery_codes_are_stored_hashed(active_user: User) -> None:
    tokens = log_in(active_user)
    codes = call("confirm_totp", tokens, {"code": enroll(tokens).code()}).json["recovery_codes"]
    with transaction() as connection:
        stored = connection.scalars(
            select(recovery_code.c.code_hash).where(recovery_code.c.account_id == active_user.id)
        ).all()
    assert {len(each) for each in stored} == {32}
    assert not any(code.encode() in each for code in codes for each in stored)


def test_the_profile_shows_it_at_once(active_user: User) -> None:
    tokens = log_in(active_user)
    assert call("get_profile", tokens).json["second_factor"] is False
    call("confirm_totp", tokens, {"code": enroll(tokens).code()})
    assert call("get_profile", tokens).json["second_factor"] is True


def test_other_sessions_end_and_this_one_goes_on_without_having_passed_it(active_user: User) -> None:
    other, tokens = log_in(active_user), log_in(active_user)
    assert call("get_profile", other).status_code == 200
    call("confirm_totp", tokens, {"code": enroll(tokens).code()})
    assert call("get_profile", other).status_code == 401
    assert call("refresh_token", body={"refresh_token": other["refresh_token"]}).status_code == 401
    refreshed = call("refresh_token", body={"refresh_token": tokens["refresh_token"]})
    claims = jwt.decode(refreshed.json["access_token"], options={"verify_signature": False})
    assert claims["amr"] == ["pwd"]


def test_the_code_that_confirmed_does_not_log_in(active_user: User) -> None:
    tokens = log_in(active_user)
    code = enroll(tokens).code()
    assert call("confirm_totp", tokens, {"code": code}).status_code == 200
    body = {"challenge": second_factor_challenge(active_user), "code": code}
    assert call("login_with_second_factor", body=body).status_code == 401


def test_a_wrong_code_changes_nothing(active_user: User) -> None:
    other, tokens = log_in(active_user), log_in(active_user)
    app = enroll(tokens)
    for wrong in (app.code(steps=3), "abcdef", "١٢٣٤٥٦"):
        response = call("confirm_totp", tokens, {"code": wrong})
        assert (response.status_code, response.json["errors"][0]["pointer"]) == (422, "/code")
    assert call("get_profile", other).json["second_factor"] is False
    assert call("confirm_totp", tokens, {"code": f"{app.code()[:3]} {app.code()[3:]}"}).status_code == 200


@pytest.mark.parametrize("body", [{}, {"code": 123456}, {"code": "1"}, {"code": "1" * 33}])
def test_what_cannot_be_a_code_is_a_422(active_user: User, body: dict[str, Any]) -> None:
    response = call("confirm_totp", log_in(active_user), body)
    assert (response.status_code, response.json["errors"][0]["pointer"]) == (422, "/code")


def test_an_enrolment_waits_for_15_minutes(active_user: User) -> None:
    tokens = log_in(active_user)
    app = enroll(tokens)
    with transaction() as connection:
        earlier = totp.c.created_at - timedelta(minutes=16)
        connection.execute(update(totp).where(totp.c.account_id == active_user.id).values(created_at=earlier))
    response = call("confirm_totp", tokens, {"code": app.code()})
    assert (response.status_code, response.json["type"]) == (409, "urn:aegis:problem:no-totp-enrolment")


def test_it_is_confirmed_once(active_user: User) -> None:
    tokens = strong_session_of(active_user)
    body = {"code": enroll(tokens).code()}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: call("confirm_totp", tokens, body).status_code, range(8)))
    assert sorted(answers) == [200] + [409] * 7
    with transaction() as connection:
        codes = select(func.count()).select_from(recovery_code).where(recovery_code.c.account_id == active_user.id)
        assert connection.scalar(codes) == 10


@pytest.mark.parametrize("change", ["second factor", "password"])
def test_a_log_in_under_way_does_not_slip_through_by_the_password_alone(active_user: User, change: str) -> None:
    password = {"email": active_user.email, "password": active_user.password}
    with ThreadPoolExecutor(1) as pool:
        with transaction() as connection:
            connection.execute(
                select(account.c.id).where(account.c.id == active_user.id).with_for_update(key_share=True)
            )
            log_in_under_way = pool.submit(call, "login", body=password)
            wait_for(lambda: somebody_waits_for(connection))
            if change == "second factor":
                with_totp(active_user)
            else:
                new = update(credential).where(credential.c.account_id == active_user.id)
                connection.execute(new.values(password_hash="another"))
        assert log_in_under_way.result().status_code == 401
    assert events_of(active_user) == []


def test_who_has_a_passkey_by_now_confirms_in_a_session_with_it(active_user: User) -> None:
    tokens = log_in(active_user)
    app = enroll(tokens)
    with_passkey(active_user)
    weak = session_of(active_user)
    response = call("confirm_totp", weak, {"code": app.code()})
    assert (response.status_code, response.json["reason"]) == (401, "passkey-missing")
    assert call("confirm_totp", passkey_session_of(active_user), {"code": app.code()}).status_code == 200


def test_without_an_enrolment_there_is_nothing_to_confirm(active_user: User) -> None:
    assert call("confirm_totp", session_of(active_user), {"code": "123456"}).status_code == 409


def test_a_role_takes_a_code_for_the_first_factor(address: str) -> None:
    admin, _ = create_admin(address)
    tokens, code = session_of(admin), first_factor_code_of(admin)
    app = enroll(tokens)
    refused = call("confirm_totp", tokens, {"code": app.code()})
    assert (refused.status_code, refused.json["type"]) == (403, "urn:aegis:problem:first-factor-code-required")
    assert call("get_profile", tokens).json["second_factor"] is False
    as_typed = code.lower().replace("-", " ").replace("0", "o")
    assert call("confirm_totp", tokens, {"code": app.code(), "first_factor_code": as_typed}).status_code == 200
    assert call("get_profile", tokens).json["second_factor"] is True


def test_a_code_for_the_first_factor_is_good_once(address: str) -> None:
    admin, _ = create_admin(address)
    code = first_factor_code_of(admin)
    for status in (200, 403):
        tokens = session_of(admin)
        body = {"code": enroll(tokens).code(), "first_factor_code": code}
        assert call("confirm_totp", tokens, body).status_code == status
        with transaction() as connection:
            connection.execute(delete(totp).where(totp.c.account_id == admin.id))


def test_a_new_password_leaves_the_code_for_the_first_factor_good(address: str) -> None:
    """A new administrator gets the code before there is a password at all."""
    admin, _ = create_admin(address)
    code = first_factor_code_of(admin)
    reset = {"token": issue(admin, "reset_password"), "password": "a wholly new choice of words"}
    assert call("reset_password", body=reset).status_code == 204
    tokens = session_of(admin)
    body = {"code": enroll(tokens).code(), "first_factor_code": code}
    assert call("confirm_totp", tokens, body).status_code == 200


def test_an_expired_code_for_the_first_factor_is_refused(address: str) -> None:
    admin, _ = create_admin(address)
    code = first_factor_code_of(admin)
    with transaction() as connection:
        past = func.now() - timedelta(seconds=1)
        connection.execute(update(verification).where(verification.c.account_id == admin.id).values(expires_at=past))
    tokens = session_of(admin)
    assert call("confirm_totp", tokens, {"code": enroll(tokens).code(), "first_factor_code": code}).status_code == 403


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}], ids=str)
def test_a_wrong_code_of_the_app_leaves_the_code_for_the_first_factor_good(
    address: str, headers: dict[str, str]
) -> None:
    admin, _ = create_admin(address)
    code, tokens = first_factor_code_of(admin), session_of(admin)
    app = enroll(tokens)
    wrong = {"code": app.code(steps=9), "first_factor_code": code}
    assert call("confirm_totp", tokens, wrong, headers=headers).status_code == 422
    assert call("confirm_totp", tokens, {"code": app.code(), "first_factor_code": code}).status_code == 200


def test_of_two_factors_bound_with_one_code_at_once_one_is(address: str) -> None:
    admin, _ = create_admin(address)
    code, tokens = first_factor_code_of(admin), session_of(admin)
    app = enroll(tokens)
    options = call("request_passkey_registration", tokens).json
    credential = Authenticator(admin.id.bytes).register(options)
    requests: list[tuple[str, Any]] = [
        ("confirm_totp", {"code": app.code(), "first_factor_code": code}),
        ("register_passkey", {"name": "Phone", "credential": credential, "first_factor_code": code}),
    ]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda request: call(request[0], tokens, request[1]).status_code, requests))
    assert sorted(answers) in ([200, 401], [201, 401])
