"""End all sessions of a user, for administrators."""

from uuid import UUID

from sqlalchemy import select

from shared.events.outbox import announce
from shared.events.types import SessionsEnded
from shared.framework.http_function import http_function
from shared.identity import sessions
from shared.identity.access_tokens import Caller
from shared.identity.changes import change
from shared.postgresql.tables import account
from shared.runtime.problems import NoSuchItem


@http_function(
    "DELETE",
    "/api/v1/users/{user_id}/sessions",
    status=204,
    role="admin",
    recent_login=True,
    problems=[NoSuchItem],
)
def end_user_sessions(user_id: UUID, caller: Caller) -> None:
    """End all sessions of a user.

    The user's refresh tokens and access tokens are rejected from the next request on, or within a minute if Redis is
    unavailable at that moment. The user can log in again.
    """
    with change(caller, user_id) as connection:
        sessions.end_all(connection, user_id)
        if connection.execute(select(account.c.id).where(account.c.id == user_id)).first() is None:
            raise NoSuchItem
        announce(connection, SessionsEnded(user_id=user_id, actor_id=caller.user_id))
