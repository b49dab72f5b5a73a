"""Attacks on second factors by who holds less: a mailbox, a password, or both."""

import uuid

from tests.attacks.attacker import USERS, Caller
from tests.authenticator import Authenticator
from tests.conftest import PASSWORD, mailed_token

NEW_PASSWORD = "a wholly new choice of words"


def add_passkey(owner: Caller) -> Authenticator:
    """A passkey of the owner, who is logged in."""
    options = owner.send("POST", f"{USERS}/me/passkeys/options").body
    user_id = uuid.UUID(owner.send("GET", f"{USERS}/me").body["id"])
    passkey = Authenticator(user_id.bytes, rp_id=options["rp"]["id"])
    body = {"name": "Phone", "credential": passkey.register(options)}
    assert owner.send("POST", f"{USERS}/me/passkeys", body).status == 201
    return passkey


def log_in_with(passkey: Authenticator, owner: Caller) -> int:
    options = owner.send("POST", f"{USERS}/login/passkey/options").body
    answer = owner.send("POST", f"{USERS}/login/passkey", {"credential": passkey.log_in(options)})
    if answer.status == 200:
        owner.access_token = answer.body["access_token"]
    return answer.status


def test_a_mailbox_alone_neither_removes_a_passkey_nor_binds_another_factor(address: str) -> None:
    owner, thief = Caller(), Caller()
    owner.register(address)
    owner.log_in(address)
    passkey = add_passkey(owner)
    assert thief.send("POST", f"{USERS}/password/forgot", {"email": address}).status == 202
    link = mailed_token(address, "비밀번호를 설정")
    assert thief.send("POST", f"{USERS}/password/reset", {"token": link, "password": NEW_PASSWORD}).status == 204
    assert thief.log_in(address, NEW_PASSWORD).status == 200
    for path in ("/me/totp", "/me/passkeys/options"):
        answer = thief.send("POST", USERS + path)
        assert (answer.status, answer.body["reason"]) == (401, "passkey-missing"), path
    assert log_in_with(passkey, owner) == 200


def test_a_password_alone_does_nothing_that_matters_to_an_account_with_a_passkey(address: str) -> None:
    owner, thief = Caller(), Caller()
    owner.register(address)
    owner.log_in(address)
    add_passkey(owner)
    assert thief.log_in(address).status == 200
    password = {"password": PASSWORD}
    requests = [
        ("GET", "/me/export", None),
        ("POST", "/me/email", {"email": f"thief-{address}", **password}),
        ("PUT", "/me/password", {"current_password": PASSWORD, "new_password": NEW_PASSWORD}),
        ("POST", "/me/withdrawal", password),
        ("DELETE", "/me/sessions", None),
    ]
    for method, path, body in requests:
        answer = thief.send(method, USERS + path, body)
        assert (answer.status, answer.problem) == (401, "reauthentication-required"), path
        assert answer.body["reason"] == "passkey-missing"
