"""Attacks on an administrator who has no second factor yet, by who holds the mailbox or the password."""

import re
import uuid
from typing import Any

from knative import aegis
from tests.attacks.attacker import USERS, Answer, Caller
from tests.authenticator import App, Authenticator
from tests.conftest import PASSWORD, mailed_token

GUESS = "7K3M-QP0X-2A9D-VW5T-H8RC-4NZE"


def appoint(email: str, capsys: Any) -> str:
    """Makes an administrator as an operator does; returns the code that the command prints."""
    capsys.readouterr()
    aegis.main(["admin", "create", email])
    (code,) = re.findall(r"(?:[0-9A-HJKMNP-TV-Z]{4}-){5}[0-9A-HJKMNP-TV-Z]{4}", capsys.readouterr().out)
    return str(code)


def set_password(caller: Caller, email: str) -> None:
    link = {"token": mailed_token(email, "비밀번호를 설정"), "password": PASSWORD}
    assert caller.send("POST", f"{USERS}/password/reset", link).status == 204
    assert caller.log_in(email).status == 200


def bind_app(caller: Caller, **first_factor_code: str) -> Answer:
    app = App(caller.send("POST", f"{USERS}/me/totp").body["secret"])
    return caller.send("POST", f"{USERS}/me/totp/confirm", {"code": app.code(), **first_factor_code})


def bind_passkey(caller: Caller, **first_factor_code: str) -> Answer:
    options = caller.send("POST", f"{USERS}/me/passkeys/options").body
    user_id = uuid.UUID(caller.send("GET", f"{USERS}/me").body["id"])
    credential = Authenticator(user_id.bytes, rp_id=options["rp"]["id"]).register(options)
    return caller.send("POST", f"{USERS}/me/passkeys", {"name": "Phone", "credential": credential, **first_factor_code})


def test_who_reads_the_mail_of_a_new_administrator_binds_no_factor(address: str, capsys: Any) -> None:
    code = appoint(address, capsys)
    thief = Caller()
    set_password(thief, address)
    for bind in (bind_app, bind_passkey):
        for given in ({}, {"first_factor_code": GUESS}, {"first_factor_code": code[:-1]}):
            answer = bind(thief, **given)
            assert (answer.status, answer.problem) == (403, "first-factor-code-required"), (bind, given)
    assert thief.send("GET", USERS).status == 401

    owner = Caller()
    owner.log_in(address)
    assert bind_app(owner, first_factor_code=code).status == 200


def test_the_code_of_one_administrator_binds_no_factor_of_another(address: str, capsys: Any) -> None:
    appoint(address, capsys)
    other = appoint(f"other-{address}", capsys)
    thief = Caller()
    set_password(thief, address)
    assert bind_app(thief, first_factor_code=other).status == 403
    assert bind_passkey(thief, first_factor_code=other).status == 403


def test_an_administrator_binds_a_passkey_first_with_the_code(address: str, capsys: Any) -> None:
    code = appoint(address, capsys)
    owner = Caller()
    set_password(owner, address)
    assert bind_passkey(owner, first_factor_code=code).status == 201


def test_who_has_no_role_needs_no_code(address: str) -> None:
    user = Caller()
    user.register(address)
    user.log_in(address)
    assert bind_app(user).status == 200
