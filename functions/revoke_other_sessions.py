"""End all of the caller's sessions except the current one."""

from shared.events.outbox import announce
from shared.events.types import LoggedOut
from shared.framework.http_function import http_function
from shared.identity import sessions
from shared.identity.access_tokens import Caller
from shared.identity.changes import change


@http_function("DELETE", "/api/v1/users/me/sessions", status=204, recent_login=True)
def revoke_other_sessions(caller: Caller) -> None:
    """End all other sessions.

    Ends all sessions of the account except the one of this request. Their refresh tokens and access tokens are rejected
    from the next request on, or within a minute if Redis is unavailable at that moment. Requires a recent log-in (ASVS
    5.0, 7.5.2).
    """
    with change(caller) as connection:
        ended = sessions.end_all(connection, caller.user_id, but=caller.session_id)
        announce(connection, *(LoggedOut(user_id=caller.user_id, session_id=session_id) for session_id in ended))
