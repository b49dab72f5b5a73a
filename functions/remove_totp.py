"""Remove the authenticator app."""

from sqlalchemy import delete

from shared import profiles
from shared.access_tokens import Caller
from shared.database import transaction
from shared.events import TotpRemoved, announce
from shared.http_function import http_function
from shared.problems import NoSuchItem
from shared.tables import recovery_code, totp


@http_function(
    "DELETE",
    "/api/v1/users/me/totp",
    status=204,
    recent_login=True,
    uses=["database"],
    problems=[NoSuchItem],
)
def remove_totp(caller: Caller) -> None:
    """Remove the authenticator app.

    From now on the password alone is enough to log in. The recovery codes go with it.
    """
    with transaction() as connection:
        removed = connection.execute(
            delete(totp).where(totp.c.account_id == caller.user_id).returning(totp.c.confirmed_at)
        ).first()
        if removed is None:
            raise NoSuchItem
        connection.execute(delete(recovery_code).where(recovery_code.c.account_id == caller.user_id))
        if removed.confirmed_at:
            announce(connection, TotpRemoved(user_id=caller.user_id))
        profile = profiles.read(connection, caller.user_id)
    if profile:
        profiles.put(profile)
