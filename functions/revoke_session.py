"""End one of one's sessions."""

from uuid import UUID

from sqlalchemy import func, update

from shared import authentication, sessions
from shared.access_tokens import Caller
from shared.database import transaction
from shared.events import LoggedOut, announce
from shared.http_function import http_function
from shared.problems import NoSuchItem
from shared.tables import session


@http_function(
    "DELETE",
    "/api/v1/users/me/sessions/{session_id}",
    status=204,
    recent_login=True,
    problems=[NoSuchItem],
)
def revoke_session(caller: Caller, session_id: UUID) -> None:
    """End a session.

    Any of the caller's own, also the one of this request. Its refresh token and its access tokens are refused from
    the next request on (at the latest after a minute, should Redis just then not take the news). A session that has
    ended, or is somebody else's, is a 404. Takes a recent log-in (ASVS 5.0, 7.5.2).
    """
    this = (session.c.id == session_id, session.c.account_id == caller.user_id, sessions.is_live())
    with transaction() as connection:
        sessions.lock(connection, caller)
        if not connection.execute(update(session).where(*this).values(ended_at=func.now())).rowcount:
            raise NoSuchItem
        announce(connection, LoggedOut(user_id=caller.user_id, session_id=session_id))
    authentication.refuse_tokens_of(caller.user_id, session_id)
