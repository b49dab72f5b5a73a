"""The list of one's open sessions."""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import func, update

from shared.identity.live_sessions import IDLE_LIFETIME
from shared.postgresql.tables import session
from shared.postgresql.transactions import transaction
from tests.conftest import User, call, create_user, id_of, session_of


def change(tokens: dict[str, str], **values: object) -> None:
    with transaction() as connection:
        connection.execute(update(session).where(session.c.id == UUID(id_of(tokens))).values(**values))


def test_a_session_shows_where_it_came_from_and_how(active_user: User) -> None:
    tokens = session_of(active_user, amr=["pwd", "otp", "mfa"])
    response = call("list_sessions", tokens)
    assert response.status_code == 200
    (shown,) = response.json["sessions"]
    assert shown.pop("created_at").endswith("+00:00")
    assert shown.pop("last_used_at").endswith("+00:00")
    assert shown == {
        "id": id_of(tokens),
        "device": "tests",
        "address": "127.0.0.1",
        "methods": ["pwd", "otp", "mfa"],
        "current": True,
    }


def test_the_one_used_last_comes_first_and_the_callers_is_marked(active_user: User) -> None:
    first, second, third = (session_of(active_user) for _ in range(3))
    change(first, last_used_at=func.now() + timedelta(minutes=1))
    change(third, last_used_at=func.now() - timedelta(minutes=1))
    shown = call("list_sessions", third).json["sessions"]
    assert [each["id"] for each in shown] == [id_of(first), id_of(second), id_of(third)]
    assert [each["current"] for each in shown] == [False, False, True]


def test_what_has_ended_expired_or_idled_out_is_not_shown(active_user: User) -> None:
    ended, expired, idle, live = (session_of(active_user) for _ in range(4))
    change(ended, ended_at=func.now())
    change(expired, expires_at=func.now())
    change(idle, last_used_at=func.now() - IDLE_LIFETIME)
    assert [each["id"] for each in call("list_sessions", live).json["sessions"]] == [id_of(live)]


def test_sessions_of_others_are_not_shown(active_user: User) -> None:
    session_of(create_user("other-" + active_user.email))
    assert len(call("list_sessions", session_of(active_user)).json["sessions"]) == 1
