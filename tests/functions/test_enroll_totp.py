"""Beginning to set up an authenticator app."""

import base64
from urllib.parse import parse_qs, unquote, urlsplit

from sqlalchemy import select

from shared.postgresql.tables import totp
from shared.postgresql.transactions import transaction
from tests.authenticator import App, with_totp
from tests.conftest import User, call, events_of, log_in, strong_session_of


def test_the_app_gets_a_secret_of_160_bits_and_a_uri_that_it_scans(active_user: User) -> None:
    response = call("enroll_totp", log_in(active_user))
    assert (response.status_code, response.json.keys()) == (201, {"secret", "uri"})
    assert len(base64.b32decode(response.json["secret"])) == 20
    uri = urlsplit(response.json["uri"])
    assert (uri.scheme, uri.netloc, unquote(uri.path)) == ("otpauth", "totp", f"/Aegis:{active_user.email}")
    assert parse_qs(uri.query) == {"secret": [response.json["secret"]], "issuer": ["Aegis"]}
    assert response.headers["Cache-Control"] == "no-store"


def test_the_secret_is_stored_sealed(active_user: User) -> None:
    secret = call("enroll_totp", log_in(active_user)).json["secret"]
    with transaction() as connection:
        stored = connection.scalar(select(totp.c.secret).where(totp.c.account_id == active_user.id))
    assert stored
    assert base64.b32decode(secret) not in stored


def test_nothing_asks_for_a_code_before_it_is_confirmed(active_user: User) -> None:
    tokens = log_in(active_user)
    call("enroll_totp", tokens)
    log_in(active_user)
    assert call("get_profile", tokens).json["second_factor"] is False
    assert "totp_enabled" not in events_of(active_user)


def test_a_second_enrolment_replaces_the_first(active_user: User) -> None:
    tokens = log_in(active_user)
    first, second = (App(call("enroll_totp", tokens).json["secret"]) for _ in range(2))
    assert first.secret != second.secret
    assert call("confirm_totp", tokens, {"code": first.code()}).status_code == 422
    assert call("confirm_totp", tokens, {"code": second.code()}).status_code == 200


def test_a_confirmed_app_is_not_replaced(active_user: User) -> None:
    with_totp(active_user)
    response = call("enroll_totp", strong_session_of(active_user))
    assert (response.status_code, response.json["type"]) == (409, "urn:aegis:problem:totp-already-enabled")
