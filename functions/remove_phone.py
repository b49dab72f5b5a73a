"""Remove the caller's phone number."""

from sqlalchemy import delete, update

from shared.events.outbox import announce
from shared.events.types import PhoneRemoved
from shared.framework.http_function import http_function
from shared.identity.access_tokens import Caller
from shared.identity.changes import change
from shared.postgresql.tables import account, phone_verification
from shared.users import profiles


@http_function("DELETE", "/api/v1/users/me/phone", status=204, recent_login=True)
def remove_phone(caller: Caller) -> None:
    """Remove the phone number.

    A code that was already sent becomes invalid. Succeeds even if the account has no phone number.
    """
    remove = (
        update(account)
        .where(account.c.id == caller.user_id, account.c.phone.is_not(None))
        .values(phone=None, phone_verified_at=None)
    )
    with change(caller) as connection:
        connection.execute(delete(phone_verification).where(phone_verification.c.account_id == caller.user_id))
        if connection.execute(remove).rowcount:
            announce(connection, PhoneRemoved(user_id=caller.user_id))
        profiles.refresh(connection, caller.user_id)
