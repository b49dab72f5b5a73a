"""Reading a user as an administrator."""

import uuid
from typing import Any

from sqlalchemy import insert

from shared.postgresql.tables import business, passkey, totp
from shared.postgresql.transactions import transaction
from tests.conftest import User, call, log_in


def test_a_user_is_shown_in_full(active_user: User, admin: dict[str, Any]) -> None:
    log_in(active_user)
    call("logout", log_in(active_user))
    key = {"id": uuid.uuid4(), "public_key": b"", "sign_count": 0, "name": "phone"}
    registration = {"number": "1234567890", "opened_on": "2020-01-02", "representative": "김민준", "status": "rejected"}
    with transaction() as connection:
        connection.execute(insert(totp).values(account_id=active_user.id, secret=b"sealed"))
        connection.execute(insert(passkey).values(account_id=active_user.id, credential_id=uuid.uuid4().bytes, **key))
        connection.execute(insert(business).values(account_id=active_user.id, reason="closed", **registration))
    response = call("get_user", admin, user_id=active_user.id)
    assert response.status_code == 200
    user = response.json
    assert user.pop("created_at").endswith("+00:00")
    assert user["business"].pop("submitted_at").endswith("+00:00")
    assert user == {
        "id": str(active_user.id),
        "email": active_user.email,
        "name": "김민준",
        "phone": None,
        "status": "active",
        "roles": [],
        "locale": "ko",
        "withdrawn_at": None,
        "email_verified_at": None,
        "second_factor": False,
        "passkeys": 1,
        "sessions": 1,
        "business": {**registration, "reason": "closed", "checked_at": None},
    }


def test_a_state_that_is_known_already_is_not_sent_again(active_user: User, admin: dict[str, Any]) -> None:
    known = call("get_user", admin, user_id=active_user.id).headers["ETag"]
    again = call("get_user", admin, user_id=active_user.id, headers={"If-None-Match": known})
    assert (again.status_code, again.data) == (304, b"")


def test_the_etag_stays_when_the_user_logs_in_and_changes_when_they_change_their_name(
    active_user: User, admin: dict[str, Any]
) -> None:
    before = call("get_user", admin, user_id=active_user.id)
    tokens = log_in(active_user)
    after = call("get_user", admin, user_id=active_user.id)
    assert after.json["sessions"] == before.json["sessions"] + 1
    assert after.headers["ETag"] == before.headers["ETag"]
    call("update_profile", tokens, {"name": "이서연"})
    assert call("get_user", admin, user_id=active_user.id).headers["ETag"] != before.headers["ETag"]
