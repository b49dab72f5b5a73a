"""Leave the service."""

from sqlalchemy import func, update

from shared import authentication, sessions
from shared.access_tokens import Caller
from shared.credentials import WrongPassword, require_password
from shared.database import transaction
from shared.events import UserWithdrawn, announce
from shared.fields import Password, RequestBody
from shared.http_function import http_function
from shared.tables import account


class Withdrawal(RequestBody):
    password: Password


@http_function(
    "POST",
    "/api/v1/users/me/withdrawal",
    status=204,
    recent_login=True,
    limits={"address": "60/minute", "account": "10/hour"},
    problems=[WrongPassword],
)
def withdraw(caller: Caller, body: Withdrawal) -> None:
    """Leave the service.

    Takes the current password. All sessions end at once. For 30 days, or as many as the service is set to, logging
    in restores the account as it was; after that, all personal data is deleted for good.
    """
    require_password(caller.user_id, body.password)
    leave = update(account).where(account.c.id == caller.user_id).values(status="withdrawn", withdrawn_at=func.now())
    with transaction() as connection:
        sessions.lock(connection, caller)
        connection.execute(leave)
        ended = sessions.end_all(connection, caller.user_id)
        announce(connection, UserWithdrawn(user_id=caller.user_id))
    authentication.refuse_tokens_of(caller.user_id, *ended)
