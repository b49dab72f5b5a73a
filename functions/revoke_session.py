"""End one of the caller's sessions."""

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

    This can be any session of the caller, including the one of this request. Its refresh token and access tokens are
    rejected from the next request on, or within a minute if Redis is unavailable at that moment. Returns 404 if the
    session has ended or belongs to someone else. Requires a recent log-in (ASVS 5.0, 7.5.2).
    """
    with change(caller) as connection:
        if not sessions.end(connection, caller.user_id, session_id):
            raise NoSuchItem
        announce(connection, LoggedOut(user_id=caller.user_id, session_id=session_id))
