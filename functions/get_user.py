"""Read a user, for administrators."""

from uuid import UUID

from shared.framework.http_function import http_function
from shared.http.request import Reply
from shared.identity.access_tokens import Caller
from shared.postgresql.replica import read
from shared.runtime.problems import NoSuchItem
from shared.users import users
from shared.users.users import UserDetails


@http_function("GET", "/api/v1/users/{user_id}", role="admin", problems=[NoSuchItem], may_lag=True)
def get_user(user_id: UUID, caller: Caller) -> Reply[UserDetails]:
    """Read a user.

    `passkeys` and `sessions` are counts. Send the ETag in If-Match when you update the user. It does not depend on the
    number of sessions.
    """
    user = read(lambda connection: users.read(connection, user_id))
    if user is None:
        raise NoSuchItem
    return Reply(user, {"ETag": users.version(user)})
