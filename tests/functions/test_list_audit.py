"""Reading what happened to a user."""

import uuid
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import delete

from shared.postgresql.tables import account
from shared.postgresql.transactions import transaction
from tests.conftest import User, call, events_of, log_in, wait_for


def trail(admin: dict[str, Any], user_id: uuid.UUID, **query: Any) -> list[dict[str, Any]]:
    response = call("list_audit", admin, user_id=user_id, query=query)
    assert response.status_code == 200, response.text
    entries: list[dict[str, Any]] = response.json["entries"]
    return entries


def test_what_happened_is_there_newest_first(active_user: User, admin: dict[str, Any]) -> None:
    call("logout", log_in(active_user))
    response = call("update_user", admin, {"status": "suspended"}, user_id=active_user.id)
    entries = wait_for(lambda: len(found := trail(admin, active_user.id)) == 3 and found)
    assert entries
    types = [entry["type"].removeprefix("com.aegis.user.").removesuffix(".v1") for entry in reversed(entries)]
    assert types == events_of(active_user) == ["logged_in", "logged_out", "suspended"]
    assert entries[0]["request_id"] == response.headers["X-Request-Id"]
    assert entries[0]["data"].keys() == {"user_id", "actor_id"}
    assert entries[0]["occurred_at"].endswith("+00:00")
    assert [entry["occurred_at"] for entry in entries] == sorted((e["occurred_at"] for e in entries), reverse=True)


def test_each_page_leads_to_the_next(active_user: User, admin: dict[str, Any]) -> None:
    for _ in range(3):
        log_in(active_user)
    everything = wait_for(lambda: len(found := trail(admin, active_user.id)) == 3 and found)
    first = call("list_audit", admin, user_id=active_user.id, query={"limit": 2})
    target = urlsplit(first.headers["Link"].removesuffix('>; rel="next"')[1:])
    assert target.path == f"/api/v1/users/{active_user.id}/audit"
    query = {name: value for name, (value,) in parse_qs(target.query).items()}
    second = call("list_audit", admin, user_id=active_user.id, query=query)
    assert first.json["entries"] + second.json["entries"] == everything
    assert "Link" not in second.headers


def test_the_trail_outlives_the_account(active_user: User, admin: dict[str, Any]) -> None:
    log_in(active_user)
    wait_for(lambda: trail(admin, active_user.id))
    with transaction() as connection:
        connection.execute(delete(account).where(account.c.id == active_user.id))
    assert len(trail(admin, active_user.id)) == 1


def test_an_unknown_user_has_an_empty_trail(admin: dict[str, Any]) -> None:
    assert trail(admin, uuid.uuid4()) == []


@pytest.mark.parametrize(("name", "value"), [("cursor", "x"), ("limit", "0"), ("type", "x")])
def test_a_bad_parameter_is_named(active_user: User, admin: dict[str, Any], name: str, value: str) -> None:
    response = call("list_audit", admin, user_id=active_user.id, query={name: value})
    assert response.status_code == 422
    assert response.json["errors"][0]["pointer"] == f"/{name}"
