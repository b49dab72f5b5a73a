"""Remove a passkey."""

from uuid import UUID

from sqlalchemy import delete

from shared.events.outbox import announce
from shared.events.types import PasskeyRemoved
from shared.framework.http_function import http_function
from shared.identity import factors
from shared.identity.access_tokens import Caller
from shared.identity.changes import change
from shared.identity.factors import LastFactor
from shared.postgresql.tables import passkey
from shared.runtime.problems import NoSuchItem


@http_function(
    "DELETE",
    "/api/v1/users/me/passkeys/{passkey_id}",
    status=204,
    recent_login=True,
    problems=[NoSuchItem, LastFactor],
)
def remove_passkey(passkey_id: UUID, caller: Caller) -> None:
    """Remove a passkey.

    It can no longer be used to log in. Sessions that it started continue. An account with a role must keep one factor.
    """
    with change(caller) as connection:
        removed = connection.execute(
            delete(passkey).where(passkey.c.id == passkey_id, passkey.c.account_id == caller.user_id)
        )
        if not removed.rowcount:
            raise NoSuchItem
        factors.require_one(connection, caller)
        announce(connection, PasskeyRemoved(user_id=caller.user_id, passkey_id=passkey_id))
