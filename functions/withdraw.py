"""Leave the service."""

from sqlalchemy import func, update

from shared.events.outbox import announce
from shared.events.types import UserWithdrawn
from shared.framework.http_function import http_function
from shared.framework.scaling import Scaling
from shared.identity import administrators, sessions
from shared.identity.access_tokens import Caller
from shared.identity.administrators import ADMIN, LastAdministrator
from shared.identity.changes import change
from shared.identity.credentials import WrongPassword, require_password
from shared.postgresql.tables import account, business
from shared.text.fields import Password, RequestBody
from shared.users import profiles


class Withdrawal(RequestBody):
    password: Password


@http_function(
    "POST",
    "/api/v1/users/me/withdrawal",
    status=204,
    scaling=Scaling("hash"),  # at most two pods, so that log-ins get the cores
    recent_login=True,
    limits={"address": "60/minute", "account": "10/hour"},
    problems=[WrongPassword, LastAdministrator],
)
def withdraw(caller: Caller, body: Withdrawal) -> None:
    """Leave the service.

    Requires the current password. All sessions end at once. For 30 days, or as configured, logging in restores the
    account as it was. After that, all personal data is permanently deleted. A verified business releases its number and
    is checked again on return. The last administrator with a second factor cannot leave.
    """
    require_password(caller.user_id, body.password)
    leave = update(account).where(account.c.id == caller.user_id).values(status="withdrawn", withdrawn_at=func.now())
    # Another account can verify the number now; a user who returns is checked again.
    give_number_back = (
        update(business)
        .where(business.c.account_id == caller.user_id, business.c.status == "verified")
        .values(status="pending", holds_number=False)
    )
    with change(caller) as connection:
        # The roles in the token are current: a change of roles ends all sessions.
        if ADMIN in caller.roles:
            administrators.require_another(connection, caller.user_id)
        connection.execute(leave)
        connection.execute(give_number_back)
        sessions.end_all(connection, caller.user_id)
        announce(connection, UserWithdrawn(user_id=caller.user_id))
        profiles.refresh(connection, caller.user_id)
