"""Asking for what a browser needs to make a passkey."""

import base64

from sqlalchemy import select

from shared.postgresql.tables import challenge
from shared.postgresql.transactions import transaction
from tests.authenticator import encode, with_passkey, with_passkeys
from tests.conftest import User, call, log_in, passkey_session_of


def test_the_options_ask_for_a_discoverable_credential_that_verifies_its_user(active_user: User) -> None:
    response = call("request_passkey_registration", log_in(active_user))
    assert response.status_code == 200
    options = response.json
    assert len(base64.urlsafe_b64decode(options.pop("challenge") + "=")) == 32
    assert options == {
        "rp": {"id": "localhost", "name": "Aegis"},
        "user": {"id": encode(active_user.id.bytes), "name": active_user.email, "displayName": "김민준"},
        "pubKeyCredParams": [{"type": "public-key", "alg": number} for number in (-7, -8, -257)],
        "timeout": 300_000,
        "excludeCredentials": [],
        "authenticatorSelection": {
            "residentKey": "required",
            "requireResidentKey": True,
            "userVerification": "required",
        },
        "attestation": "none",
    }


def test_passkeys_that_the_account_has_are_excluded(active_user: User) -> None:
    authenticator = with_passkey(active_user)
    options = call("request_passkey_registration", passkey_session_of(active_user)).json
    assert options["excludeCredentials"] == [{"type": "public-key", "id": encode(authenticator.credential_id)}]


def test_the_challenge_is_stored_hashed(active_user: User) -> None:
    options = call("request_passkey_registration", log_in(active_user)).json
    with transaction() as connection:
        stored = connection.scalars(
            select(challenge.c.token_hash).where(challenge.c.account_id == active_user.id)
        ).all()
    assert len(stored) == 1
    assert options["challenge"].encode() not in stored[0]


def test_an_account_with_twenty_gets_no_more(active_user: User) -> None:
    with_passkeys(active_user, 20)
    response = call("request_passkey_registration", passkey_session_of(active_user))
    assert (response.status_code, response.json["type"]) == (409, "urn:aegis:problem:too-many-passkeys")
