"""Remove a user's authenticator app, for administrators."""

from uuid import UUID

from shared import authentication, profiles, second_factors, sessions
from shared.access_tokens import Caller
from shared.database import transaction
from shared.http_function import http_function
from shared.problems import NoSuchItem


@http_function(
    "DELETE",
    "/api/v1/users/{user_id}/totp",
    status=204,
    role="admin",
    recent_login=True,
    problems=[NoSuchItem],
)
def remove_user_totp(user_id: UUID, caller: Caller) -> None:
    """Remove a user's authenticator app.

    For administrators, who have made sure of the person by other means, when the app and all recovery codes are
    lost. The recovery codes go with it, all sessions end, and the owner is told by mail.
    """
    with transaction() as connection:
        sessions.lock(connection, caller, user_id)
        ended = sessions.end_all(connection, user_id)
        if not second_factors.remove(connection, user_id, actor_id=caller.user_id):
            raise NoSuchItem
        profile = profiles.read(connection, user_id)
    authentication.refuse_tokens_of(user_id, *ended)
    profiles.put(profile)
