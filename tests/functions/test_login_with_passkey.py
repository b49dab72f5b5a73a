"""Logging in with a passkey, honest ones and what a thief would send."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from shared.postgresql.tables import account, challenge, passkey
from shared.postgresql.transactions import transaction
from tests.authenticator import (
    BACKED_UP,
    BACKUP_ELIGIBLE,
    USER_PRESENT,
    USER_VERIFIED,
    Authenticator,
    encode,
    with_passkey,
    with_totp,
)
from tests.conftest import User, call, events_of, passkey_session_of, sessions_of


def answer(credential: Any) -> Any:
    return call("login_with_passkey", body={"credential": credential})


def log_in_with(authenticator: Authenticator) -> Any:
    return answer(authenticator.log_in(call("request_passkey_login").json))


def test_a_passkey_starts_a_session_with_two_factors(active_user: User) -> None:
    response = log_in_with(with_passkey(active_user))
    assert response.status_code == 200, response.text
    assert response.json.keys() == {"access_token", "refresh_token", "token_type", "expires_in", "device_token"}
    claims = jwt.decode(response.json["access_token"], options={"verify_signature": False})
    assert (claims["sub"], claims["amr"]) == (str(active_user.id), ["pop", "user", "mfa"])
    assert call("get_profile", response.json).json["email"] == active_user.email
    assert events_of(active_user)[-1] == "logged_in"


def test_no_code_is_asked_for_beside_it(active_user: User) -> None:
    authenticator = with_passkey(active_user)
    with_totp(active_user)
    assert log_in_with(authenticator).status_code == 200


def test_it_may_be_used_again_and_again(active_user: User) -> None:
    without_counter = with_passkey(active_user)
    assert [log_in_with(without_counter).status_code for _ in range(3)] == [200] * 3


WRONG: dict[str, Callable[[Authenticator], None]] = {
    "origin": lambda it: setattr(it, "origin", "https://evil.example.com"),
    "a frame of another site": lambda it: it.more_client_data.update(crossOrigin=True),
    "another top origin": lambda it: it.more_client_data.update(topOrigin="https://evil.example.com"),
    "rp id": lambda it: setattr(it, "rp_id", "evil.example.com"),
    "no user verification": lambda it: setattr(it, "flags", USER_PRESENT),
    "no user presence": lambda it: setattr(it, "flags", 0x04),
    "a backup of what cannot be backed up": lambda it: setattr(it, "flags", it.flags | BACKED_UP),
    "now eligible for backup": lambda it: setattr(it, "flags", it.flags | BACKUP_ELIGIBLE),
    "key": lambda it: setattr(it, "key", ec.generate_private_key(ec.SECP256R1())),
    "credential": lambda it: setattr(it, "credential_id", b"unknown"),
    "user handle": lambda it: setattr(it, "user_handle", bytes(16)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_answer_is_refused_as_an_unknown_passkey_is(active_user: User, wrong: str) -> None:
    authenticator = with_passkey(active_user)
    before = sessions_of(active_user)
    WRONG[wrong](authenticator)
    response = log_in_with(authenticator)
    assert (response.status_code, response.json["type"]) == (401, "urn:aegis:problem:invalid-passkey")
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert sessions_of(active_user) == before


def test_a_passkey_that_was_synced_logs_in_and_must_stay_so(active_user: User) -> None:
    authenticator = with_passkey(active_user, USER_PRESENT | USER_VERIFIED | BACKUP_ELIGIBLE)
    authenticator.flags |= BACKED_UP
    assert log_in_with(authenticator).status_code == 200
    authenticator.flags = USER_PRESENT | USER_VERIFIED
    assert log_in_with(authenticator).status_code == 401


def test_a_passkey_of_before_the_flag_was_kept_logs_in_and_then_keeps_to_it(active_user: User) -> None:
    authenticator = with_passkey(active_user, USER_PRESENT | USER_VERIFIED | BACKUP_ELIGIBLE)
    with transaction() as connection:
        connection.execute(update(passkey).where(passkey.c.account_id == active_user.id).values(backup_eligible=None))
    assert log_in_with(authenticator).status_code == 200
    authenticator.flags = USER_PRESENT | USER_VERIFIED
    assert log_in_with(authenticator).status_code == 401


@pytest.mark.parametrize("member", ["signature", "authenticatorData", "clientDataJSON", "userHandle"])
def test_a_bit_that_was_changed_is_noticed(active_user: User, member: str) -> None:
    credential = with_passkey(active_user).log_in(call("request_passkey_login").json)
    text = credential["response"][member]
    middle = len(text) // 2
    credential["response"][member] = text[:middle] + ("A" if text[middle] != "A" else "B") + text[middle + 1 :]
    assert answer(credential).status_code == 401


def test_an_answer_is_good_once(active_user: User) -> None:
    credential = with_passkey(active_user).log_in(call("request_passkey_login").json)
    before = sessions_of(active_user)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: answer(credential).status_code, range(50)))
    assert sorted(answers) == [200] + [401] * 49
    assert sessions_of(active_user) == before + 1


def test_a_challenge_that_we_did_not_give_is_refused(active_user: User) -> None:
    authenticator = with_passkey(active_user)
    assert answer(authenticator.log_in({"challenge": "A" * 43})).status_code == 401


def test_a_challenge_for_a_registration_is_refused(active_user: User) -> None:
    authenticator = with_passkey(active_user)
    options = call("request_passkey_registration", passkey_session_of(active_user)).json
    assert answer(authenticator.log_in(options)).status_code == 401


def test_a_challenge_lives_five_minutes(active_user: User) -> None:
    authenticator = with_passkey(active_user)
    options = call("request_passkey_login").json
    token_hash = hashlib.sha256(options["challenge"].encode()).digest()
    with transaction() as connection:
        earlier = challenge.c.expires_at - timedelta(minutes=5)
        connection.execute(update(challenge).where(challenge.c.token_hash == token_hash).values(expires_at=earlier))
    assert answer(authenticator.log_in(options)).status_code == 401


def test_a_counter_that_does_not_go_up_is_a_copy(active_user: User) -> None:
    authenticator = with_passkey(active_user)
    authenticator.sign_count = 5
    assert log_in_with(authenticator).status_code == 200
    for count in (5, 4, 0):
        authenticator.sign_count = count
        assert log_in_with(authenticator).status_code == 401
    authenticator.sign_count = 6
    assert log_in_with(authenticator).status_code == 200
    with transaction() as connection:
        stored = connection.scalar(select(passkey.c.sign_count).where(passkey.c.account_id == active_user.id))
    assert stored == 6


@pytest.mark.parametrize("status", ["suspended", "pending"])
def test_an_account_that_may_not_log_in_gets_the_answer_of_an_unknown_passkey(active_user: User, status: str) -> None:
    authenticator = with_passkey(active_user)
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == active_user.id).values(status=status))
    refused = log_in_with(authenticator)
    unknown = log_in_with(Authenticator(active_user.id.bytes))
    assert refused.status_code == unknown.status_code == 401
    assert {**refused.json, "request_id": ""} == {**unknown.json, "request_id": ""}


def test_a_withdrawn_user_is_restored(active_user: User) -> None:
    authenticator = with_passkey(active_user)
    with transaction() as connection:
        withdrawn = update(account).where(account.c.id == active_user.id)
        connection.execute(withdrawn.values(status="withdrawn", withdrawn_at=func.now()))
    assert log_in_with(authenticator).status_code == 200
    assert events_of(active_user)[-2:] == ["restored", "logged_in"]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"rawId": "AAAAA"}, "/credential/rawId"),
        ({"type": "password"}, "/credential/type"),
        ({"response": {}}, "/credential/response/clientDataJSON"),
    ],
)
def test_bad_input_names_its_field(active_user: User, change: dict[str, Any], pointer: str) -> None:
    credential = Authenticator(active_user.id.bytes).log_in({"challenge": "A" * 43}) | change
    response = answer(credential)
    assert (response.status_code, response.json["errors"][0]["pointer"]) == (422, pointer)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    data=st.data(),
    member=st.sampled_from(["clientDataJSON", "authenticatorData", "signature", "userHandle", "id", "rawId"]),
)
def test_garbage_is_refused_wherever_it_stands(active_user: User, data: st.DataObject, member: str) -> None:
    if not _registered.get(active_user.email):
        _registered[active_user.email] = with_passkey(active_user)
    authenticator = _registered[active_user.email]
    credential = authenticator.log_in({"challenge": "A" * 43})
    start = data.draw(
        st.sampled_from([b"", authenticator.data(0x45), authenticator.data(0x85), authenticator.data(0xC5)])
    )
    garbage = encode(start + data.draw(st.binary(min_size=1, max_size=200)))
    if member in credential:
        credential[member] = garbage
    else:
        credential["response"][member] = garbage
    assert answer(credential).status_code == 401


_registered: dict[str, Authenticator] = {}
