"""Attacks on the tokens of a session."""

import base64
import json

from tests.attacks.attacker import USERS, Caller
from tests.conftest import PASSWORD


def test_a_stolen_refresh_token_is_worth_nothing_once_its_owner_has_used_it(address: str) -> None:
    owner, thief = Caller(), Caller()
    owner.register(address)
    stolen = newest = owner.log_in(address).body["refresh_token"]
    for _ in range(2):  # the last but one is taken for a moment, for callers whose answer was lost
        newest = owner.send("POST", f"{USERS}/token/refresh", {"refresh_token": newest}).body["refresh_token"]
    assert thief.send("POST", f"{USERS}/token/refresh", {"refresh_token": stolen}).status == 401
    # RFC 9700, 4.14.2: nobody knows which of the two is the thief, so the session ends for both.
    assert owner.send("GET", f"{USERS}/me").status == 401
    assert owner.send("POST", f"{USERS}/token/refresh", {"refresh_token": newest}).status == 401


def test_nobody_becomes_an_administrator_by_changing_a_token(address: str) -> None:
    attacker = Caller()
    attacker.register(address)
    header, payload, signature = attacker.log_in(address, PASSWORD).body["access_token"].split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    claims |= {"roles": ["admin"], "amr": ["pwd", "otp", "mfa"]}
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    attacker.access_token = f"{header}.{payload}.{signature}"
    assert attacker.send("GET", USERS).status == 401
