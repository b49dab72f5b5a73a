"""Remove the authenticator app."""

from sqlalchemy import select

from shared.events.outbox import announce
from shared.events.types import TotpRemoved
from shared.framework.http_function import http_function
from shared.identity import factors, second_factors
from shared.identity.access_tokens import Caller
from shared.identity.changes import change
from shared.identity.factors import LastFactor
from shared.postgresql.tables import totp
from shared.runtime.problems import NoSuchItem
from shared.users import profiles


@http_function(
    "DELETE",
    "/api/v1/users/me/totp",
    status=204,
    recent_login=True,
    problems=[NoSuchItem, LastFactor],
)
def remove_totp(caller: Caller) -> None:
    """Remove the authenticator app.

    From now on, logging in with a password requires no code. The recovery codes are removed too. An account with a role
    must keep one factor.
    """
    with change(caller) as connection:
        was_confirmed = connection.scalar(select(totp.c.confirmed_at).where(totp.c.account_id == caller.user_id))
        if not second_factors.remove(connection, caller.user_id):
            raise NoSuchItem
        if was_confirmed:
            factors.require_one(connection, caller)
            announce(connection, TotpRemoved(user_id=caller.user_id))
        profiles.refresh(connection, caller.user_id)
