"""Reading one's own profile."""

from typing import Any

from sqlalchemy import delete, update

from shared.identity import access_tokens
from shared.postgresql.tables import account
from shared.postgresql.transactions import transaction
from shared.redis import cache
from tests.conftest import User, bearer, client, log_in
from tests.servers import redis_client

PATH = "/api/v1/users/me"


def test_the_profile_is_the_callers(active_user: User) -> None:
    response = client("get_profile").get(PATH, headers=bearer(log_in(active_user)))
    assert response.status_code == 200
    profile: Any = response.json
    assert profile.pop("created_at").endswith("+00:00")
    assert profile == {
        "id": str(active_user.id),
        "email": active_user.email,
        "new_email": None,
        "name": "김민준",
        "locale": "ko",
        "phone": None,
        "roles": [],
        "second_factor": False,
        "business": None,
    }


def test_a_second_read_comes_from_the_cache_and_is_the_same(active_user: User) -> None:
    tokens = log_in(active_user)
    first = client("get_profile").get(PATH, headers=bearer(tokens))
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == active_user.id).values(name="changed behind its back"))
    second = client("get_profile").get(PATH, headers=bearer(tokens))
    assert second.json == first.json


def test_a_flushed_cache_logs_nobody_out(active_user: User) -> None:
    tokens = log_in(active_user)
    client("get_profile").get(PATH, headers=bearer(tokens))
    caller = access_tokens.verify(tokens["access_token"])
    redis_client().delete(
        cache.key(caller.user_id, "profile"), cache.key(caller.user_id, f"session:{caller.session_id}")
    )
    assert client("get_profile").get(PATH, headers=bearer(tokens)).status_code == 200


def test_head_answers_as_get_without_a_body(active_user: User) -> None:
    response = client("get_profile").head(PATH, headers=bearer(log_in(active_user)))
    assert (response.status_code, response.data) == (200, b"")


def test_a_deleted_account_is_a_401(active_user: User) -> None:
    tokens = log_in(active_user)
    with transaction() as connection:
        connection.execute(delete(account).where(account.c.id == active_user.id))
    assert client("get_profile").get(PATH, headers=bearer(tokens)).status_code == 401


def test_a_suspended_account_is_a_401(active_user: User) -> None:
    tokens = log_in(active_user)
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == active_user.id).values(status="suspended"))
    assert client("get_profile").get(PATH, headers=bearer(tokens)).status_code == 401
