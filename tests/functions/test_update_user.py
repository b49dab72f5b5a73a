"""Suspending and reinstating users, and changing their roles."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select, update

from shared.identity import access_tokens
from shared.postgresql.tables import account, outbox
from shared.postgresql.transactions import transaction
from tests.authenticator import with_passkey, with_totp
from tests.conftest import User, call, create_admin, create_user, events_of, log_in, session_of, strong_session_of


def status_of(user: User) -> str:
    with transaction() as connection:
        return str(connection.scalar(select(account.c.status).where(account.c.id == user.id)))


def me(tokens: dict[str, Any]) -> str:
    return str(access_tokens.verify(tokens["access_token"]).user_id)


def last_event(user: User) -> dict[str, Any]:
    newest = select(outbox.c.data).where(outbox.c.subject == user.id).order_by(outbox.c.position.desc()).limit(1)
    with transaction() as connection:
        data: dict[str, Any] = connection.scalars(newest).one()
    return data


def test_suspending_a_user_ends_their_sessions_at_once(active_user: User, admin: dict[str, Any]) -> None:
    theirs = log_in(active_user)
    assert call("get_profile", theirs).status_code == 200
    response = call("update_user", admin, {"status": "suspended"}, user_id=active_user.id)
    assert response.status_code == 200
    assert (response.json["status"], response.json["sessions"]) == ("suspended", 0)
    assert call("get_profile", theirs).status_code == 401
    assert call("refresh_token", body={"refresh_token": theirs["refresh_token"]}).status_code == 401
    assert call("login", body={"email": active_user.email, "password": active_user.password}).status_code == 401
    assert events_of(active_user)[-1] == "suspended"
    assert last_event(active_user) == {"user_id": str(active_user.id), "actor_id": me(admin)}


def test_a_reinstated_user_can_log_in_again(active_user: User, admin: dict[str, Any]) -> None:
    call("update_user", admin, {"status": "suspended"}, user_id=active_user.id)
    response = call("update_user", admin, {"status": "active"}, user_id=active_user.id)
    assert (response.status_code, response.json["status"]) == (200, "active")
    assert events_of(active_user) == ["suspended", "reinstated"]
    assert last_event(active_user)["actor_id"] == me(admin)
    log_in(active_user)


def test_lifting_a_suspension_leaves_a_withdrawal_in_force(address: str, admin: dict[str, Any]) -> None:
    user = create_user(address, "suspended")
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == user.id).values(withdrawn_at=account.c.created_at))
    lifted = call("update_user", admin, {"status": "active"}, user_id=user.id).json
    assert lifted["status"] == "withdrawn"
    assert lifted["withdrawn_at"]


def test_reinstating_ends_a_withdrawal(address: str, admin: dict[str, Any]) -> None:
    user = create_user(address, "withdrawn")
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == user.id).values(withdrawn_at=account.c.created_at))
    response = call("update_user", admin, {"status": "active"}, user_id=user.id)
    assert (response.json["status"], response.json["withdrawn_at"]) == ("active", None)
    assert events_of(user) == ["reinstated"]


@pytest.mark.parametrize("status", ["active", "suspended"])
def test_an_unverified_account_keeps_its_status(address: str, admin: dict[str, Any], status: str) -> None:
    user = create_user(address, "pending")
    response = call("update_user", admin, {"status": status}, user_id=user.id)
    assert response.status_code == 422
    assert response.json["errors"][0]["pointer"] == "/status"
    assert (status_of(user), events_of(user)) == ("pending", [])


def test_changing_roles_ends_the_sessions_whose_tokens_carry_the_old_ones(
    active_user: User, admin: dict[str, Any]
) -> None:
    with_totp(active_user)
    theirs = strong_session_of(active_user)
    response = call("update_user", admin, {"roles": ["admin", "admin"]}, user_id=active_user.id)
    assert (response.status_code, response.json["roles"]) == (200, ["admin"])
    assert call("get_profile", theirs).status_code == 401
    theirs = strong_session_of(active_user)
    assert call("list_users", theirs).status_code == 200
    assert call("get_profile", theirs).json["roles"] == ["admin"]
    assert call("update_user", admin, {"roles": []}, user_id=active_user.id).json["roles"] == []
    assert call("list_users", theirs).status_code == 401
    assert [name for name in events_of(active_user) if name != "logged_in"] == ["roles_changed", "roles_changed"]
    assert last_event(active_user) == {"user_id": str(active_user.id), "roles": [], "actor_id": me(admin)}


@pytest.mark.parametrize("body", [{}, {"status": "active"}, {"roles": []}, {"status": "active", "roles": []}])
def test_what_changes_nothing_ends_no_session(active_user: User, admin: dict[str, Any], body: Any) -> None:
    theirs = log_in(active_user)
    assert call("update_user", admin, body, user_id=active_user.id).status_code == 200
    assert call("get_profile", theirs).status_code == 200
    assert events_of(active_user) == ["logged_in"]


@pytest.mark.parametrize("body", [{"status": "suspended"}, {"roles": []}])
def test_administrators_cannot_lock_themselves_out(admin: dict[str, Any], body: Any) -> None:
    response = call("update_user", admin, body, user_id=me(admin))
    assert (response.status_code, response.json["type"]) == (409, "urn:aegis:problem:own-account")
    assert call("list_users", admin).status_code == 200


def test_of_two_administrators_who_disarm_each_other_one_stays(address: str) -> None:
    for number in range(5):
        admins = [create_admin(f"{side}{number}-{address}") for side in "ab"]

        def disarm(pair: tuple[dict[str, Any], User]) -> Any:
            return call("update_user", pair[0], {"roles": []}, user_id=pair[1].id)

        pairs = [(admins[0][1], admins[1][0]), (admins[1][1], admins[0][0])]
        with ThreadPoolExecutor(2) as pool:
            statuses = sorted(response.status_code for response in pool.map(disarm, pairs))
        assert statuses == [200, 401]


def test_of_two_changes_to_one_state_one_is_made(active_user: User, admin: dict[str, Any]) -> None:
    with_totp(active_user)
    known = call("get_user", admin, user_id=active_user.id).headers["ETag"]

    def change(body: Any) -> Any:
        return call("update_user", admin, body, user_id=active_user.id, headers={"If-Match": known})

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(change, [{"status": "suspended"}, {"roles": ["admin"]}] * 2))
    assert sorted(answer.status_code for answer in answers) == [200, 412, 412, 412]
    assert len(events_of(active_user)) == 1
    (winner,) = (answer for answer in answers if answer.status_code == 200)
    assert call("get_user", admin, user_id=active_user.id).headers["ETag"] == winner.headers["ETag"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"status": "withdrawn"}, "/status"),
        ({"status": None}, "/status"),
        ({"roles": None}, "/roles"),
        ({"roles": ["root"]}, "/roles/0"),
        ({"roles": "admin"}, "/roles"),
        ({"roles": ["admin"] * 11}, "/roles"),
        ({"email": "new@example.com"}, "/email"),
    ],
)
def test_a_bad_field_is_named_and_nothing_changes(
    active_user: User, admin: dict[str, Any], body: Any, pointer: str
) -> None:
    response = call("update_user", admin, body, user_id=active_user.id)
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == [pointer]
    assert events_of(active_user) == []


def test_nobody_gets_a_role_before_their_address_is_verified(address: str, admin: dict[str, Any]) -> None:
    user = create_user(address, "pending")
    response = call("update_user", admin, {"roles": ["admin"]}, user_id=user.id)
    assert (response.status_code, response.json["errors"][0]["pointer"]) == (422, "/roles")
    assert events_of(user) == []


def test_a_role_takes_an_account_with_a_second_factor(active_user: User, admin: dict[str, Any]) -> None:
    response = call("update_user", admin, {"roles": ["admin"]}, user_id=active_user.id)
    assert (response.status_code, response.json["type"]) == (409, "urn:aegis:problem:no-factor")
    assert events_of(active_user) == []
    call("enroll_totp", session_of(active_user))
    assert call("update_user", admin, {"roles": ["admin"]}, user_id=active_user.id).status_code == 409
    with_passkey(active_user)
    assert call("update_user", admin, {"roles": ["admin"]}, user_id=active_user.id).status_code == 200
