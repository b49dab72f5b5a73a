"""Leaving the service, and coming back in time."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from sqlalchemy import select, update

from shared.postgresql.tables import account
from shared.postgresql.transactions import transaction
from shared.runtime.settings import settings
from tests.conftest import PASSWORD, User, call, events_of, log_in, session_of, withdrawn_since


def withdraw(tokens: dict[str, Any], password: str = PASSWORD) -> Any:
    return call("withdraw", tokens, {"password": password})


def credentials(user: User) -> dict[str, str]:
    return {"email": user.email, "password": user.password}


def status_of(user: User) -> tuple[str, bool]:
    """The account's status, and whether it has a time of withdrawal."""
    with transaction() as connection:
        row = connection.execute(select(account.c.status, account.c.withdrawn_at).where(account.c.id == user.id)).one()
    return row.status, row.withdrawn_at is not None


def test_all_sessions_end_at_once(active_user: User) -> None:
    phone, laptop = session_of(active_user), session_of(active_user)
    assert {call("get_profile", tokens).status_code for tokens in (phone, laptop)} == {200}
    response = withdraw(phone)
    assert (response.status_code, response.data) == (204, b"")
    assert {call("get_profile", tokens).status_code for tokens in (phone, laptop)} == {401}
    refreshed = call("refresh_token", body={"refresh_token": laptop["refresh_token"]})
    assert refreshed.status_code == 401
    assert status_of(active_user) == ("withdrawn", True)
    assert events_of(active_user)[-1] == "withdrawn"


def test_a_wrong_password_changes_nothing(active_user: User) -> None:
    tokens = session_of(active_user)
    response = withdraw(tokens, "wrong " + PASSWORD)
    assert (response.status_code, response.json["type"]) == (403, "urn:aegis:problem:wrong-password")
    assert call("get_profile", tokens).status_code == 200
    assert status_of(active_user) == ("active", False)
    assert "withdrawn" not in events_of(active_user)


def test_logging_in_restores_the_account_as_it_was(active_user: User) -> None:
    tokens = session_of(active_user)
    before = call("get_profile", tokens).json
    withdraw(tokens)
    assert call("get_profile", log_in(active_user)).json == before
    assert status_of(active_user) == ("active", False)
    assert events_of(active_user)[-2:] == ["restored", "logged_in"]


def test_the_day_before_the_last_it_is_restored(active_user: User) -> None:
    withdrawn_since(timedelta(days=settings().withdrawal_days - 1), active_user)
    assert call("login", body=credentials(active_user)).status_code == 200


def test_after_the_days_a_log_in_is_refused_though_the_account_is_not_purged_yet(active_user: User) -> None:
    withdrawn_since(timedelta(days=settings().withdrawal_days), active_user)
    response = call("login", body=credentials(active_user))
    assert (response.status_code, response.json["type"]) == (401, "urn:aegis:problem:invalid-credentials")
    assert "restored" not in events_of(active_user)


def test_a_suspension_is_not_escaped(active_user: User) -> None:
    tokens = session_of(active_user)
    assert call("get_profile", tokens).status_code == 200
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == active_user.id).values(status="suspended"))
    assert withdraw(tokens).status_code == 401
    assert status_of(active_user) == ("suspended", False)


def test_a_log_in_at_the_same_moment_is_shut_out_or_restores(active_user: User) -> None:
    tokens = session_of(active_user)
    with ThreadPoolExecutor(2) as pool:
        left = pool.submit(withdraw, tokens)
        came = pool.submit(call, "login", body=credentials(active_user))
    assert left.result().status_code == 204
    status, _ = status_of(active_user)
    assert call("get_profile", came.result().json).status_code == (200 if status == "active" else 401)
