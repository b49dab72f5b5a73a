"""Refreshing tokens: rotation, retries, and what a thief meets."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select, update

from shared.identity.live_sessions import IDLE_LIFETIME
from shared.identity.sessions import hash_refresh_token
from shared.postgresql.tables import account, session
from shared.postgresql.tables import refresh_token as tokens_table
from shared.postgresql.transactions import transaction
from tests.conftest import User, bearer, client, log_in, post

PATH = "/api/v1/users/token/refresh"
PROFILE = "/api/v1/users/me"


def refresh(token: str) -> Any:
    return post("refresh_token", PATH, {"refresh_token": token})


def age(token: str, by: timedelta) -> None:
    """Lets the first use of a token lie further back."""
    with transaction() as connection:
        connection.execute(
            update(tokens_table)
            .where(tokens_table.c.token_hash == hash_refresh_token(token))
            .values(used_at=tokens_table.c.used_at - by)
        )


def test_a_refresh_yields_a_new_pair_for_the_same_session(active_user: User) -> None:
    first = log_in(active_user)
    second = refresh(first["refresh_token"])
    assert second.status_code == 200
    assert second.json["refresh_token"] != first["refresh_token"]
    assert client("get_profile").get(PROFILE, headers=bearer(second.json)).status_code == 200


def test_a_retry_gets_the_same_successor(active_user: User) -> None:
    token = log_in(active_user)["refresh_token"]
    assert refresh(token).json["refresh_token"] == refresh(token).json["refresh_token"]


def test_many_at_once_get_one_successor(active_user: User) -> None:
    token = log_in(active_user)["refresh_token"]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: refresh(token), range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json["refresh_token"] for answer in answers}) == 1
    with transaction() as connection:
        stored = connection.scalar(
            select(func.count()).select_from(tokens_table.join(session)).where(session.c.account_id == active_user.id)
        )
    assert stored == 2


def test_a_second_use_of_a_refresh_token_ends_the_session(active_user: User) -> None:
    stolen = log_in(active_user)["refresh_token"]
    second = refresh(stolen).json
    third = refresh(second["refresh_token"]).json
    reuse = refresh(stolen)
    assert (reuse.status_code, reuse.json["type"]) == (401, "urn:aegis:problem:invalid-refresh-token")
    assert refresh(third["refresh_token"]).status_code == 401
    assert client("get_profile").get(PROFILE, headers=bearer(third)).status_code == 401


def test_a_late_second_use_ends_the_session_though_the_successor_is_unused(active_user: User) -> None:
    token = log_in(active_user)["refresh_token"]
    successor = refresh(token).json["refresh_token"]
    age(token, by=timedelta(seconds=11))
    assert refresh(token).status_code == 401
    assert refresh(successor).status_code == 401


def test_reuse_leaves_other_sessions_alone(active_user: User) -> None:
    stolen, other = log_in(active_user)["refresh_token"], log_in(active_user)["refresh_token"]
    refresh(refresh(stolen).json["refresh_token"])
    assert refresh(stolen).status_code == 401
    assert refresh(other).status_code == 200


def test_a_session_is_not_extended_beyond_its_end(active_user: User) -> None:
    token = log_in(active_user)["refresh_token"]
    with transaction() as connection:
        connection.execute(update(session).where(session.c.account_id == active_user.id).values(expires_at=func.now()))
    assert refresh(token).status_code == 401


def test_a_session_that_nobody_used_for_two_weeks_is_over(active_user: User) -> None:
    used, idle = log_in(active_user)["refresh_token"], log_in(active_user)["refresh_token"]
    for token, ago in ((used, IDLE_LIFETIME - timedelta(minutes=1)), (idle, IDLE_LIFETIME)):
        of_token = select(tokens_table.c.session_id).where(tokens_table.c.token_hash == hash_refresh_token(token))
        with transaction() as connection:
            connection.execute(update(session).where(session.c.id.in_(of_token)).values(last_used_at=func.now() - ago))
    assert refresh(used).status_code == 200
    assert refresh(idle).status_code == 401


def test_an_account_that_is_not_active_cannot_refresh(active_user: User) -> None:
    token = log_in(active_user)["refresh_token"]
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == active_user.id).values(status="suspended"))
    assert refresh(token).status_code == 401


def test_an_unknown_token_is_refused() -> None:
    assert refresh("A" * 43).status_code == 401


def test_an_access_token_is_not_a_refresh_token(active_user: User) -> None:
    assert refresh(log_in(active_user)["access_token"]).status_code == 422


def test_refresh_tokens_are_stored_hashed(active_user: User) -> None:
    token = log_in(active_user)["refresh_token"]
    with transaction() as connection:
        stored = connection.scalars(
            select(tokens_table.c.token_hash)
            .select_from(tokens_table.join(session))
            .where(session.c.account_id == active_user.id)
        ).all()
    assert stored == [hash_refresh_token(token)]
    assert token.encode() not in stored[0]
