"""Verifying an address with the token from the mail."""

from datetime import timedelta

from sqlalchemy import select

from shared import verifications
from shared.database import transaction
from shared.tables import account, verification
from tests.conftest import User, create_user, events_of, log_in, post

PATH = "/api/v1/users/email/verify"


def issue(user: User, lifetime: timedelta = timedelta(hours=1), purpose: str = verifications.VERIFY_EMAIL) -> str:
    with transaction() as connection:
        return verifications.create(connection, user.id, purpose, lifetime)


def test_the_token_activates_the_account_and_is_announced(address: str) -> None:
    user = create_user(address, "pending")
    assert post("verify_email", PATH, {"token": issue(user)}).status_code == 204
    log_in(user)
    with transaction() as connection:
        verified_at = connection.scalar(select(account.c.email_verified_at).where(account.c.id == user.id))
    assert events_of(user) == ["email_verified", "logged_in"]
    assert verified_at


def test_a_token_works_once(address: str) -> None:
    token = issue(create_user(address, "pending"))
    post("verify_email", PATH, {"token": token})
    again = post("verify_email", PATH, {"token": token})
    assert again.status_code == 400
    assert again.json["type"] == "urn:aegis:problem:invalid-verification-token"


def test_an_expired_token_is_refused(address: str) -> None:
    token = issue(create_user(address, "pending"), lifetime=timedelta(seconds=-1))
    assert post("verify_email", PATH, {"token": token}).status_code == 400


def test_a_token_for_something_else_is_refused(address: str) -> None:
    token = issue(create_user(address, "pending"), purpose="something_else")
    assert post("verify_email", PATH, {"token": token}).status_code == 400


def test_an_unknown_token_is_refused() -> None:
    assert post("verify_email", PATH, {"token": "A" * 43}).status_code == 400


def test_what_cannot_be_a_token_is_a_422() -> None:
    assert post("verify_email", PATH, {"token": "short"}).status_code == 422


def test_only_a_hash_of_the_token_is_stored(address: str) -> None:
    user = create_user(address, "pending")
    token = issue(user)
    with transaction() as connection:
        stored = connection.scalar(select(verification.c.token_hash).where(verification.c.account_id == user.id))
    assert stored
    assert token.encode() not in stored
