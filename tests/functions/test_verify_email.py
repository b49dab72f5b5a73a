"""Verifying an address with the token from the mail."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from sqlalchemy import delete, func, select, update

from shared.identity.verifications import CHANGE_EMAIL, VERIFY_EMAIL
from shared.postgresql.tables import account, credential, verification
from shared.postgresql.transactions import transaction
from tests.conftest import PASSWORD, User, create_user, events_of, issue, log_in, post, somebody_waits_for, wait_for

PATH = "/api/v1/users/email/verify"


def test_the_token_activates_the_account_and_is_announced(address: str) -> None:
    user = create_user(address, "pending")
    assert post("verify_email", PATH, {"token": issue(user, VERIFY_EMAIL), "password": PASSWORD}).status_code == 204
    log_in(user)
    with transaction() as connection:
        verified_at = connection.scalar(select(account.c.email_verified_at).where(account.c.id == user.id))
    assert events_of(user) == ["email_verified", "logged_in"]
    assert verified_at


def test_a_suspended_account_does_not_become_active(address: str) -> None:
    user = create_user(address, "pending")
    token = issue(user, VERIFY_EMAIL)
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == user.id).values(status="suspended"))
    assert post("verify_email", PATH, {"token": token, "password": PASSWORD}).status_code == 400


def test_the_link_alone_is_not_enough(address: str) -> None:
    """Who registered the address after its owner did has a link sent there too, for a password of their own."""
    user = create_user(address, "pending")
    token = issue(user, VERIFY_EMAIL)
    wrong = post("verify_email", PATH, {"token": token, "password": "wrong horse battery staple"})
    assert (wrong.status_code, wrong.json["type"]) == (403, "urn:aegis:problem:wrong-password")
    assert events_of(user) == []
    assert post("verify_email", PATH, {"token": token, "password": PASSWORD}).status_code == 204


def test_an_account_without_a_password_cannot_be_verified(address: str) -> None:
    user = create_user(address, "pending")
    with transaction() as connection:
        connection.execute(delete(credential).where(credential.c.account_id == user.id))
    assert post("verify_email", PATH, {"token": issue(user, VERIFY_EMAIL), "password": PASSWORD}).status_code == 403


def test_a_change_of_address_that_nobody_waits_for_is_refused(active_user: User) -> None:
    token = issue(active_user, CHANGE_EMAIL)
    assert post("verify_email", PATH, {"token": token, "password": PASSWORD}).status_code == 400


def test_a_link_that_meets_a_registration_under_way_never_activates_its_password(address: str) -> None:
    user = create_user(address, "pending")
    token = issue(user, VERIFY_EMAIL)
    with ThreadPoolExecutor(1) as pool:
        with transaction() as connection:
            connection.execute(update(account).where(account.c.id == user.id).values(name="Somebody"))
            connection.execute(
                update(credential)
                .where(credential.c.account_id == user.id)
                .values(password_hash="the stranger's", changed_at=func.now())
            )
            verifying = pool.submit(post, "verify_email", PATH, {"token": token, "password": PASSWORD})
            wait_for(lambda: somebody_waits_for(connection))
        assert verifying.result().status_code == 400


def test_a_token_works_once(address: str) -> None:
    token = issue(create_user(address, "pending"), VERIFY_EMAIL)
    post("verify_email", PATH, {"token": token, "password": PASSWORD})
    again = post("verify_email", PATH, {"token": token, "password": PASSWORD})
    assert again.status_code == 400
    assert again.json["type"] == "urn:aegis:problem:invalid-link"


def test_an_expired_token_is_refused(address: str) -> None:
    token = issue(create_user(address, "pending"), VERIFY_EMAIL, timedelta(seconds=-1))
    assert post("verify_email", PATH, {"token": token, "password": PASSWORD}).status_code == 400


def test_a_token_for_something_else_is_refused(address: str) -> None:
    token = issue(create_user(address, "pending"), "something_else")
    assert post("verify_email", PATH, {"token": token, "password": PASSWORD}).status_code == 400


def test_an_unknown_token_is_refused() -> None:
    assert post("verify_email", PATH, {"token": "A" * 43, "password": PASSWORD}).status_code == 400


def test_only_a_hash_of_the_token_is_stored(address: str) -> None:
    user = create_user(address, "pending")
    token = issue(user, VERIFY_EMAIL)
    with transaction() as connection:
        stored = connection.scalar(select(verification.c.token_hash).where(verification.c.account_id == user.id))
    assert stored
    assert token.encode() not in stored
