"""Ending all sessions but the one in use."""

from sqlalchemy import select

from shared.identity import access_tokens
from shared.postgresql.tables import outbox
from shared.postgresql.transactions import transaction
from tests.conftest import User, call, create_user, events_of, session_of


def test_all_others_are_refused_from_the_next_request_on(active_user: User) -> None:
    others = [session_of(active_user) for _ in range(3)]
    mine = session_of(active_user)
    assert {call("get_profile", other).status_code for other in others} == {200}
    assert call("revoke_other_sessions", mine).status_code == 204
    assert {call("get_profile", other).status_code for other in others} == {401}
    assert {call("refresh_token", body=only_refresh(other)).status_code for other in others} == {401}
    assert call("get_profile", mine).status_code == 200
    assert call("refresh_token", body=only_refresh(mine)).status_code == 200


def only_refresh(tokens: dict[str, str]) -> dict[str, str]:
    return {"refresh_token": tokens["refresh_token"]}


def test_each_session_that_ended_is_announced(active_user: User) -> None:
    others = {str(access_tokens.verify(session_of(active_user)["access_token"]).session_id) for _ in range(3)}
    call("revoke_other_sessions", session_of(active_user))
    with transaction() as connection:
        announced = connection.scalars(
            select(outbox.c.data["session_id"].astext).where(
                outbox.c.subject == active_user.id, outbox.c.type == "com.aegis.user.logged_out.v1"
            )
        ).all()
    assert sorted(announced) == sorted(others)


def test_where_there_is_no_other_nothing_is_announced(active_user: User) -> None:
    assert call("revoke_other_sessions", session_of(active_user)).status_code == 204
    assert "logged_out" not in events_of(active_user)


def test_sessions_of_other_users_go_on(active_user: User) -> None:
    theirs = session_of(create_user("other-" + active_user.email))
    call("revoke_other_sessions", session_of(active_user))
    assert call("get_profile", theirs).status_code == 200
