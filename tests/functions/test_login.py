"""Logging in."""

import time
import uuid

import jwt
import pytest

from tests.authenticator import with_totp
from tests.conftest import PASSWORD, User, call, create_user, events_of, log_in, post, session_of

PATH = "/api/v1/users/login"


def test_the_answer_is_an_access_token_response(active_user: User) -> None:
    tokens = log_in(active_user)
    assert tokens.keys() == {"access_token", "refresh_token", "token_type", "expires_in", "device_token"}
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


def test_tokens_are_not_to_be_stored_by_caches(active_user: User) -> None:
    response = post("login", PATH, {"email": active_user.email, "password": PASSWORD})
    assert response.headers["Cache-Control"] == "no-store"


def test_an_account_with_a_second_factor_gets_a_challenge_and_no_tokens(active_user: User) -> None:
    with_totp(active_user)
    response = call("login", body={"email": active_user.email, "password": PASSWORD})
    assert response.status_code == 401
    assert response.json.keys() == {"type", "title", "status", "detail", "request_id", "challenge", "methods"}
    assert response.json["type"] == "urn:aegis:problem:second-factor-required"
    assert response.json["methods"] == ["totp", "recovery_code"]
    assert len(response.json["challenge"]) == 43
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert events_of(active_user) == []


def test_a_wrong_password_says_nothing_of_the_second_factor(active_user: User) -> None:
    with_totp(active_user)
    response = call("login", body={"email": active_user.email, "password": PASSWORD + "!"})
    assert (response.status_code, response.json["type"]) == (401, "urn:aegis:problem:invalid-credentials")


@pytest.mark.parametrize("second_factor", [False, True])
def test_a_suspended_user_gets_the_same_answer_as_a_wrong_password(address: str, second_factor: bool) -> None:
    user = create_user(address, "suspended")
    if second_factor:
        with_totp(user)
    response = call("login", body={"email": address, "password": PASSWORD})
    assert (response.status_code, response.json["type"]) == (401, "urn:aegis:problem:invalid-credentials")


def test_a_withdrawn_user_is_restored_by_logging_in(address: str) -> None:
    user = create_user(address, "withdrawn")
    tokens = log_in(user)
    assert call("get_profile", tokens).status_code == 200
    assert events_of(user) == ["restored", "logged_in"]


def test_of_more_than_fifty_sessions_the_one_used_least_lately_ends(active_user: User) -> None:
    first, *_, last = [session_of(active_user) for _ in range(51)]
    assert call("refresh_token", body={"refresh_token": first["refresh_token"]}).status_code == 401
    assert call("refresh_token", body={"refresh_token": last["refresh_token"]}).status_code == 200


def test_guesses_at_one_account_are_stopped_from_one_address_and_not_from_others(active_user: User) -> None:
    wrong = {"email": active_user.email, "password": "wrong horse battery staple"}
    answers = [call("login", body=wrong, address="203.0.113.7").status_code for _ in range(11)]
    assert answers == [401] * 10 + [429]
    assert call("login", body=wrong, address="203.0.113.8").status_code == 401


def test_who_logs_in_often_is_no_guesser(active_user: User) -> None:
    right = {"email": active_user.email, "password": active_user.password}
    answers = [call("login", body=right, address="203.0.113.9").status_code for _ in range(12)]
    assert answers == [200] * 12
