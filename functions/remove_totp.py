"""Remove the authenticator app."""

from shared import profiles, second_factors, sessions
from shared.access_tokens import Caller
from shared.database import transaction
from shared.http_function import http_function
from shared.problems import NoSuchItem


@http_function(
    "DELETE",
    "/api/v1/users/me/totp",
    status=204,
    recent_login=True,
    problems=[NoSuchItem],
)
def remove_totp(caller: Caller) -> None:
    """Remove the authenticator app.

    From now on the password alone is enough to log in. The recovery codes go with it.
    """
    with transaction() as connection:
        sessions.lock(connection, caller)
        if not second_factors.remove(connection, caller.user_id):
            raise NoSuchItem
        profile = profiles.read(connection, caller.user_id)
    profiles.put(profile)
