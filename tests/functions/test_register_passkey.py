"""Registering a passkey, honest ones and what nobody's browser would send."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import cbor2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from shared.postgresql.tables import challenge, passkey
from shared.postgresql.transactions import transaction
from tests.authenticator import USER_PRESENT, Authenticator, encode, with_passkey, with_passkeys
from tests.conftest import (
    User,
    call,
    create_admin,
    create_user,
    events_of,
    first_factor_code_of,
    log_in,
    passkey_session_of,
    session_of,
)

GARBAGE = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
"""For one user of a test: fewer requests than an account may make in a minute."""


def options_for(tokens: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = call("request_passkey_registration", tokens).json
    return options


def register(tokens: dict[str, Any], credential: Any, name: str = "내 전화") -> Any:
    return call("register_passkey", tokens, {"name": name, "credential": credential})


def passkeys_of(user: User) -> Any:
    with transaction() as connection:
        return connection.execute(select(passkey).where(passkey.c.account_id == user.id)).all()


def test_a_passkey_is_registered_under_its_name(active_user: User) -> None:
    tokens, authenticator = log_in(active_user), Authenticator(active_user.id.bytes, sign_count=7)
    response = register(tokens, authenticator.register(options_for(tokens)))
    assert response.status_code == 201, response.text
    assert response.json.keys() == {"id", "name", "created_at"}
    assert response.json["name"] == "내 전화"
    (stored,) = passkeys_of(active_user)
    assert (str(stored.id), stored.credential_id) == (response.json["id"], authenticator.credential_id)
    assert (stored.sign_count, stored.last_used_at) == (7, None)
    assert events_of(active_user) == ["logged_in", "passkey_registered"]


KEY = Authenticator(b"", origin="").public_key()
WRONG: dict[str, Callable[[Authenticator], None]] = {
    "origin": lambda it: setattr(it, "origin", "https://evil.example.com"),
    "a frame of another site": lambda it: it.more_client_data.update(crossOrigin=True),
    "another top origin": lambda it: it.more_client_data.update(topOrigin="https://evil.example.com"),
    "rp id": lambda it: setattr(it, "rp_id", "evil.example.com"),
    "no user verification": lambda it: setattr(it, "flags", USER_PRESENT),
    "no user presence": lambda it: setattr(it, "flags", 0x04),
    "backed up but not to be backed up": lambda it: setattr(it, "flags", 0x15),
    "no credential id": lambda it: setattr(it, "credential_id", b""),
    "an algorithm that was not asked for": lambda it: setattr(it, "public_key", lambda: {**KEY, 3: -39}),
    "a point that is not on the curve": lambda it: setattr(it, "public_key", lambda: {**KEY, -2: bytes(31) + b"\1"}),
    "a key of no length": lambda it: setattr(it, "public_key", lambda: {**KEY, -3: b""}),
    "a key of no type": lambda it: setattr(it, "public_key", lambda: {3: -7}),
    "no key": lambda it: setattr(it, "public_key", lambda: 4),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_not_as_the_options_asked_is_refused(active_user: User, wrong: str) -> None:
    tokens, authenticator = log_in(active_user), Authenticator(active_user.id.bytes)
    WRONG[wrong](authenticator)
    response = register(tokens, authenticator.register(options_for(tokens)))
    assert response.status_code == 422
    assert response.json["type"] in ("urn:aegis:problem:passkey-not-verified", "urn:aegis:problem:invalid-request")
    assert passkeys_of(active_user) == []


def test_an_answer_to_a_log_in_registers_nothing(active_user: User) -> None:
    tokens, authenticator = log_in(active_user), Authenticator(active_user.id.bytes)
    options = options_for(tokens)
    credential = authenticator.register(options)
    credential["response"]["clientDataJSON"] = encode(authenticator.client_data("webauthn.get", options))
    assert register(tokens, credential).status_code == 422


def test_another_credential_than_the_browser_says_is_refused(active_user: User) -> None:
    tokens, authenticator = log_in(active_user), Authenticator(active_user.id.bytes)
    credential = authenticator.register(options_for(tokens)) | {"id": encode(b"other"), "rawId": encode(b"other")}
    assert register(tokens, credential).status_code == 422
    assert passkeys_of(active_user) == []


def test_a_challenge_is_good_once(active_user: User) -> None:
    tokens = passkey_session_of(active_user)
    options = options_for(tokens)
    credentials = [Authenticator(active_user.id.bytes).register(options) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda credential: register(tokens, credential).status_code, credentials))
    assert sorted(answers) == [201] + [422] * 7
    assert len(passkeys_of(active_user)) == 1


def test_a_challenge_that_we_did_not_give_is_refused(active_user: User) -> None:
    tokens = log_in(active_user)
    credential = Authenticator(active_user.id.bytes).register({"challenge": "A" * 43})
    assert register(tokens, credential).json["type"] == "urn:aegis:problem:passkey-not-verified"


def test_a_challenge_of_another_account_or_for_another_purpose_is_refused(active_user: User, address: str) -> None:
    tokens, authenticator = log_in(active_user), Authenticator(active_user.id.bytes)
    others = options_for(log_in(create_user(f"other-{address}")))
    assert register(tokens, authenticator.register(others)).status_code == 422
    assert register(tokens, authenticator.register(call("request_passkey_login").json)).status_code == 422
    assert passkeys_of(active_user) == []


def test_a_challenge_lives_five_minutes(active_user: User) -> None:
    tokens = log_in(active_user)
    options = options_for(tokens)
    with transaction() as connection:
        earlier = challenge.c.expires_at - timedelta(minutes=5)
        connection.execute(update(challenge).where(challenge.c.account_id == active_user.id).values(expires_at=earlier))
    assert register(tokens, Authenticator(active_user.id.bytes).register(options)).status_code == 422


def test_a_passkey_is_registered_once(active_user: User) -> None:
    authenticator, tokens = with_passkey(active_user), passkey_session_of(active_user)
    response = register(tokens, authenticator.register(options_for(tokens)))
    assert (response.status_code, response.json["type"]) == (409, "urn:aegis:problem:passkey-already-registered")
    assert len(passkeys_of(active_user)) == 1


def test_an_account_has_twenty_at_most_however_many_come_at_once(active_user: User) -> None:
    tokens = passkey_session_of(active_user)
    with_passkeys(active_user, 18)
    credentials = [Authenticator(active_user.id.bytes).register(options_for(tokens)) for _ in range(6)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda credential: register(tokens, credential).status_code, credentials))
    assert sorted(answers) == [201] * 2 + [409] * 4
    assert len(passkeys_of(active_user)) == 20


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"id": None}, "/credential/id"),
        ({"rawId": "not base64url!"}, "/credential/rawId"),
        ({"rawId": "AAAAA"}, "/credential/rawId"),
        ({"rawId": "A" * 1368}, "/credential/rawId"),
        ({"type": "password"}, "/credential/type"),
        ({"response": {}}, "/credential/response/clientDataJSON"),
        ({"clientExtensionResults": []}, "/credential/clientExtensionResults"),
    ],
)
def test_bad_input_names_its_field(active_user: User, change: dict[str, Any], pointer: str) -> None:
    tokens = log_in(active_user)
    credential = Authenticator(active_user.id.bytes).register({"challenge": "A" * 43}) | change
    response = register(tokens, credential)
    assert (response.status_code, response.json["errors"][0]["pointer"]) == (422, pointer)


def test_a_name_must_be_one_that_can_be_shown(active_user: User) -> None:
    tokens = log_in(active_user)
    credential = Authenticator(active_user.id.bytes).register({"challenge": "A" * 43})
    for name in ("", " ", "a\nb", "x" * 101):
        response = register(tokens, credential, name)
        assert (response.status_code, response.json["errors"][0]["pointer"]) == (422, "/name")


cbor = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.binary(max_size=80)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.integers(-9, 9) | st.text(max_size=9), inner),
    max_leaves=12,
)
LONG = (
    bytes.fromhex("9b7fffffffffffffff"),
    bytes.fromhex("5b7fffffffffffffff"),
    b"\x81" * 9000,
    b"\xd8\x1c\x81\xd8\x1d\x00",
)


@GARBAGE
@given(
    data=st.data(),
    place=st.sampled_from(["clientDataJSON", "attestationObject", "authData", "attStmt", "fmt", "key", "flipped"]),
)
def test_garbage_is_refused_wherever_it_stands(active_user: User, data: st.DataObject, place: str) -> None:
    tokens, authenticator = session_of(active_user), Authenticator(active_user.id.bytes)
    options = {"challenge": "A" * 43}
    honest = {"fmt": "none", "attStmt": {}, "authData": authenticator.attested()}
    credential = authenticator.register(options)
    match place:
        case "clientDataJSON" | "attestationObject":
            garbage = data.draw(st.binary(min_size=1, max_size=300) | cbor.map(cbor2.dumps) | st.sampled_from(LONG))
            credential["response"][place] = encode(garbage)
        case "authData":
            start = authenticator.data(data.draw(st.integers(0, 255)))
            credential = authenticator.register(options, honest | {place: start + data.draw(st.binary(max_size=120))})
        case "attStmt":
            formats = ["none", "packed", "tpm", "android-key", "android-safetynet", "fido-u2f", "apple"]
            statement: Any = {
                name: data.draw(cbor)
                for name in data.draw(st.sets(st.sampled_from(["alg", "sig", "x5c", "ver", "response"])))
            }
            changed: dict[str, Any] = {"fmt": data.draw(st.sampled_from(formats)), place: statement or data.draw(cbor)}
            credential = authenticator.register(options, honest | changed)
        case "fmt":
            credential = authenticator.register(options, honest | {place: data.draw(cbor)})
        case "key":
            key = data.draw(st.dictionaries(st.sampled_from([1, 3, -1, -2, -3]), cbor | st.sampled_from([-257, -8, 6])))
            authenticator.public_key = lambda: {**KEY, **key}  # type: ignore[method-assign]
            credential = authenticator.register(options)
        case "flipped":
            whole = bytearray(cbor2.dumps(honest))
            whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
            credential["response"]["attestationObject"] = encode(bytes(whole))
    response = register(tokens, credential)
    assert response.status_code == 422, (place, response.text)


def test_who_has_a_passkey_adds_another_only_in_a_session_that_passed_it(active_user: User) -> None:
    with_passkey(active_user)
    for function in ("request_passkey_registration", "enroll_totp"):
        response = call(function, log_in(active_user))
        assert (response.status_code, response.json["type"]) == (401, "urn:aegis:problem:reauthentication-required")


def test_members_and_values_that_browsers_may_add_are_ignored(active_user: User) -> None:
    tokens = log_in(active_user)
    credential = Authenticator(active_user.id.bytes).register(options_for(tokens))
    credential |= {"unknown": 1, "authenticatorAttachment": "wireless"}
    credential["response"]["unknown"] = [1]
    assert register(tokens, credential).status_code == 201


def test_a_role_takes_a_code_for_the_first_factor(address: str) -> None:
    admin, _ = create_admin(address)
    tokens = session_of(admin)
    credential = Authenticator(admin.id.bytes).register(options_for(tokens))
    refused = register(tokens, credential)
    assert (refused.status_code, refused.json["type"]) == (403, "urn:aegis:problem:first-factor-code-required")
    body = {"name": "Phone", "credential": credential, "first_factor_code": first_factor_code_of(admin)}
    assert call("register_passkey", tokens, body).status_code == 201
    assert len(passkeys_of(admin)) == 1


def test_a_role_adds_another_passkey_without_a_code(address: str) -> None:
    admin, _ = create_admin(address)
    with_passkey(admin)
    tokens = passkey_session_of(admin)
    assert register(tokens, Authenticator(admin.id.bytes).register(options_for(tokens))).status_code == 201
