"""End one of one's sessions."""

from uuid import UUID

from shared.events.outbox import announce
from shared.events.types import LoggedOut
from shared.framework.http_function import http_function
from shared.identity import sessions
from shared.identity.access_tokens import Caller
from shared.identity.changes import change
from shared.runtime.problems import NoSuchItem


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
    with change(caller) as connection:
        if not sessions.end(connection, caller.user_id, session_id):
            raise NoSuchItem
        announce(connection, LoggedOut(user_id=caller.user_id, session_id=session_id))
