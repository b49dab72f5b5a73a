"""Logging in."""

import time
import uuid

import jwt
import pytest

from tests.conftest import PASSWORD, User, create_user, log_in, post

PATH = "/api/v1/users/login"


def test_the_answer_is_an_access_token_response(active_user: User) -> None:
    tokens = log_in(active_user)
    assert tokens.keys() == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert (tokens["token_type"], tokens["expires_in"]) == ("Bearer", 600)
    assert len(tokens["refresh_token"]) == 43


def test_the_access_token_has_the_claims_of_rfc_9068(active_user: User) -> None:
    token = log_in(active_user)["access_token"]
    header = jwt.get_unverified_header(token)
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (header["alg"], header["typ"]) == ("ES256", "at+jwt")
    assert claims.keys() == {
        *("iss", "aud", "sub", "client_id", "sid", "roles", "amr", "auth_time", "iat", "exp", "jti")
    }
    assert claims["sub"] == str(active_user.id)
    assert (claims["roles"], claims["amr"], claims["auth_time"]) == ([], ["pwd"], claims["iat"])
    assert claims["exp"] - claims["iat"] == 600
    assert abs(claims["iat"] - time.time()) < 60
    uuid.UUID(claims["jti"])


def test_the_address_may_be_typed_in_any_case(active_user: User) -> None:
    log_in(User(active_user.id, active_user.email.upper()))


def test_an_unknown_address_and_a_wrong_password_get_the_same_answer(active_user: User) -> None:
    wrong = post("login", PATH, {"email": active_user.email, "password": "wrong horse battery staple"})
    unknown = post("login", PATH, {"email": "nobody-" + active_user.email, "password": PASSWORD})
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.headers["WWW-Authenticate"] == unknown.headers["WWW-Authenticate"] == "Bearer"
    assert {**wrong.json, "request_id": ""} == {**unknown.json, "request_id": ""}
    assert wrong.json["type"] == "urn:aegis:problem:invalid-credentials"


def test_a_pending_account_gets_the_same_answer_so_that_registering_reveals_nothing(address: str) -> None:
    user = create_user(address, "pending")
    right = post("login", PATH, {"email": user.email, "password": PASSWORD})
    wrong = post("login", PATH, {"email": user.email, "password": PASSWORD + "!"})
    assert right.status_code == wrong.status_code == 401
    assert {**right.json, "request_id": ""} == {**wrong.json, "request_id": ""}


@pytest.mark.parametrize("body", [{"email": "a@example.com"}, {"password": "x"}, {}])
def test_a_missing_field_is_a_422(body: dict[str, str]) -> None:
    assert post("login", PATH, body).status_code == 422


def test_tokens_are_not_to_be_stored_by_caches(active_user: User) -> None:
    response = post("login", PATH, {"email": active_user.email, "password": PASSWORD})
    assert response.headers["Cache-Control"] == "no-store"
