"""Asking for what a browser needs to log in with a passkey."""

import base64
import hashlib

from sqlalchemy import select

from shared.postgresql.tables import challenge
from shared.postgresql.transactions import transaction
from tests.conftest import call


def test_the_options_name_no_account(address: str) -> None:
    response = call("request_passkey_login", body={})
    assert response.status_code == 200
    options = response.json
    assert len(base64.urlsafe_b64decode(options.pop("challenge") + "=")) == 32
    assert options == {"timeout": 300_000, "rpId": "localhost", "allowCredentials": [], "userVerification": "required"}
    assert response.headers["Cache-Control"] == "no-store"


def test_each_gets_a_challenge_of_its_own_which_is_stored_hashed_for_five_minutes() -> None:
    first, second = (call("request_passkey_login").json["challenge"] for _ in range(2))
    assert first != second
    token_hash = hashlib.sha256(first.encode()).digest()
    with transaction() as connection:
        stored = connection.execute(select(challenge).where(challenge.c.token_hash == token_hash)).one()
    assert (stored.purpose, stored.account_id) == ("passkey_login", None)
    assert (stored.expires_at - stored.created_at).total_seconds() == 300


def test_an_address_gets_sixty_in_a_minute() -> None:
    codes = [call("request_passkey_login", address="198.51.100.78").status_code for _ in range(63)]
    assert codes[:60] == [200] * 60
    assert 429 in codes[60:]
