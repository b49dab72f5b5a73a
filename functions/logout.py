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

    Ends the session: its refresh token and its access tokens are refused from the next request on (at the latest
    after a minute, should Redis just then not take the news).
    """
    with change(caller) as connection:
        sessions.end(connection, caller.user_id, caller.session_id)
        announce(connection, LoggedOut(user_id=caller.user_id, session_id=caller.session_id))
