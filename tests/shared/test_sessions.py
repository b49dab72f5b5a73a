"""What a session may do is decided when it is done: not when the request came in."""

import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import delete, insert, select

from functions.register_passkey import EXAMPLE
from shared.framework.registry import HTTP_FUNCTIONS, load_all
from shared.http.clients import Client
from shared.identity import sessions
from shared.postgresql.tables import account, passkey
from shared.postgresql.transactions import transaction
from tests.authenticator import Authenticator, keyless_passkey, with_passkey, with_passkeys, with_totp
from tests.conftest import (
    PASSWORD,
    User,
    call,
    create_admin,
    passkey_session_of,
    session_of,
    somebody_waits_for,
    wait_for,
)

NEW_PASSWORD = "a wholly new choice of words"
LEAVES_THE_WAYS_IN = {"get_profile", "update_profile", "submit_business", "list_passkeys", "list_sessions", "logout"}
"""All that a session may do however long ago it was logged in: it changes nothing about who can log in."""
SECOND_HALVES = {"confirm_totp", "verify_phone"}
"""These take what the recent log-in before them was given: the secret of the app, the code in a text."""


def test_what_matters_takes_a_recent_log_in(active_user: User, address: str) -> None:
    """ASVS 5.0, 7.5.1, 7.5.2: whatever is not on a list of what does not matter, so that a new operation does."""
    load_all()
    earlier = session_of(active_user, ago=timedelta(minutes=11))
    admin, _ = create_admin(f"admin-{address}")
    earlier_of_admin = session_of(admin, amr=["pwd", "otp", "mfa"], ago=timedelta(minutes=11))
    asked = 0
    for name, operation in HTTP_FUNCTIONS.items():
        only_reads = operation.role and operation.method == "GET"
        if not operation.authenticated or only_reads or name in LEAVES_THE_WAYS_IN | SECOND_HALVES:
            continue
        ids: dict[str, Any] = {part: uuid.uuid4() for part in re.findall(r"\{(\w+)\}", operation.path)}
        response = call(name, earlier_of_admin if operation.role else earlier, {} if operation.body else None, **ids)
        assert (response.status_code, response.json.get("reason")) == (401, "login-too-old"), name
        assert 'max_age="600"' in response.headers["WWW-Authenticate"]
        asked += 1
    assert asked >= 16


MATTERS: dict[str, Any] = {
    "export_data": None,
    "change_email": {"email": "thief@example.com", "password": PASSWORD},
    "change_password": {"current_password": PASSWORD, "new_password": NEW_PASSWORD},
    "withdraw": {"password": PASSWORD},
    "enroll_totp": None,
    "confirm_totp": {"code": "123456"},
    "remove_totp": None,
    "renew_recovery_codes": None,
    "request_passkey_registration": None,
    "register_passkey": {"name": "Phone", "credential": EXAMPLE},
    "request_phone_code": {"phone": "010-1234-5678"},
    "verify_phone": {"code": "123456"},
    "remove_phone": None,
    "revoke_other_sessions": None,
}
"""What could remove, replace or get around a factor, or matters as much (ASVS 5.0, 6.3.4, 7.5.1)."""


@pytest.mark.parametrize(
    ("factors", "amr", "reason"),
    [
        ([with_passkey], ["pwd"], "passkey-missing"),
        ([with_totp], ["pwd"], "second-factor-missing"),
        ([with_passkey, with_totp], ["pwd", "otp", "mfa"], "passkey-missing"),
    ],
    ids=["passkey by password", "app by password", "passkey by app"],
)
def test_what_matters_takes_the_strongest_factor_that_the_account_has(
    active_user: User, factors: Any, amr: list[str], reason: str
) -> None:
    for set_up in factors:
        set_up(active_user)
    tokens = session_of(active_user, amr=amr)
    some_id = uuid.uuid4()
    requests = {**MATTERS, "remove_passkey": {"passkey_id": some_id}, "revoke_session": {"session_id": some_id}}
    load_all()
    of_users = {name for name, operation in HTTP_FUNCTIONS.items() if operation.authenticated and not operation.role}
    assert of_users - LEAVES_THE_WAYS_IN == requests.keys()
    for name, given in requests.items():
        ids: dict[str, Any] = {} if name in MATTERS else given
        response = call(name, tokens, given if name in MATTERS else None, **ids)
        assert (response.status_code, response.json.get("reason")) == (401, reason), name
        assert "insufficient_user_authentication" in response.headers["WWW-Authenticate"]
    assert call("get_profile", tokens).status_code == 200


def test_a_passkey_added_while_a_request_is_under_way_is_asked_for(active_user: User, address: str) -> None:
    load_all()
    admin, admin_tokens = create_admin(f"admin-{address}")
    tokens = session_of(active_user)
    options = call("request_passkey_registration", tokens).json
    credential = Authenticator(active_user.id.bytes).register(options)
    bodies = {
        **MATTERS,
        "register_passkey": {"name": "Phone", "credential": credential},
        "update_user": {"status": "suspended"},
    }
    guarded = [each for each in HTTP_FUNCTIONS.values() if each.strongest_factor and each.method != "GET"]
    assert len(guarded) > len(MATTERS)
    for operation in guarded:
        owner, of_owner = (admin, admin_tokens) if operation.role else (active_user, tokens)
        ids: dict[str, Any] = {"user_id": active_user.id, "passkey_id": uuid.uuid4(), "session_id": uuid.uuid4()}
        with ThreadPoolExecutor(1) as pool:
            with transaction() as connection:
                connection.execute(select(account.c.id).where(account.c.id == owner.id).with_for_update(key_share=True))
                connection.execute(insert(passkey).values(keyless_passkey(owner)))
                answer = pool.submit(call, operation.name, of_owner, bodies.get(operation.name), **ids)
                wait_for(partial(somebody_waits_for, connection))
            response = answer.result()
        assert (response.status_code, response.json.get("reason")) == (401, "passkey-missing"), operation.name
        with transaction() as connection:
            connection.execute(delete(passkey).where(passkey.c.account_id == owner.id))


def test_an_answer_that_comes_again_takes_the_strongest_factor_as_well(active_user: User) -> None:
    tokens, key = session_of(active_user), {"Idempotency-Key": f'"{uuid.uuid4()}"'}
    assert call("enroll_totp", tokens, headers=key).status_code == 201
    assert call("enroll_totp", tokens, headers=key).headers["Idempotency-Replayed"] == "true"
    with_passkeys(active_user, 1)
    response = call("enroll_totp", tokens, headers=key)
    assert (response.status_code, response.json.get("reason")) == (401, "passkey-missing")


def test_every_operation_of_administrators_takes_their_strongest_factor(address: str) -> None:
    load_all()
    admin, tokens = create_admin(address)
    with_passkey(admin)
    of_administrators = [operation for operation in HTTP_FUNCTIONS.values() if operation.role]
    assert of_administrators
    for operation in of_administrators:
        body: Any = {} if operation.body else None
        ids: dict[str, Any] = {"user_id": uuid.uuid4()} if "{user_id}" in operation.path else {}
        response = call(operation.name, tokens, body, **ids)
        assert (response.status_code, response.json.get("reason")) == (401, "passkey-missing"), operation.name
    assert call("list_users", passkey_session_of(admin)).status_code == 200


def test_the_session_that_ends_for_the_fifty_first_is_refused_at_once(active_user: User) -> None:
    first = session_of(active_user)
    assert call("get_profile", first).status_code == 200
    for _ in range(50):
        session_of(active_user)
    assert call("get_profile", first).status_code == 401


def test_ending_all_sessions_waits_for_a_log_in_under_way_and_ends_it_too(active_user: User) -> None:
    tokens = session_of(active_user)
    with ThreadPoolExecutor(1) as pool:
        with transaction() as connection:
            started = sessions.log_in(connection, active_user.id, ["pwd"], Client("127.0.0.1", "tests"))
            ending = pool.submit(call, "withdraw", tokens, {"password": PASSWORD})
            wait_for(lambda: somebody_waits_for(connection))
        assert ending.result().status_code == 204
    assert started
    assert call("get_profile", dict(started)).status_code == 401
