"""Log out."""

from shared.events.outbox import announce
from shared.events.types import LoggedOut
from shared.framework.http_function import http_function
from shared.identity import sessions
from shared.identity.access_tokens import Caller
from shared.identity.changes import change


@http_function("POST", "/api/v1/users/logout", status=204)
def logout(caller: Caller) -> None:
    """Log out.

    Ends the session. Its refresh token and access tokens are rejected from the next request on, or within a minute if
    Redis is unavailable at that moment.
    """
    with change(caller) as connection:
        sessions.end(connection, caller.user_id, caller.session_id)
        announce(connection, LoggedOut(user_id=caller.user_id, session_id=caller.session_id))
