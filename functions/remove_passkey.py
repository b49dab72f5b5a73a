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

    Nobody can log in with it any more. Sessions that it started go on. An account with a role keeps its last factor.
    """
    with change(caller) as connection:
        removed = connection.execute(
            delete(passkey).where(passkey.c.id == passkey_id, passkey.c.account_id == caller.user_id)
        )
        if not removed.rowcount:
            raise NoSuchItem
        factors.require_one(connection, caller)
        announce(connection, PasskeyRemoved(user_id=caller.user_id, passkey_id=passkey_id))
