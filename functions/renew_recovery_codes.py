"""Make new recovery codes."""

from sqlalchemy import delete, insert, select
from typing_extensions import TypedDict

from shared import second_factors, sessions
from shared.access_tokens import Caller
from shared.database import transaction
from shared.events import RecoveryCodesRenewed, announce
from shared.http_function import http_function
from shared.problems import NoSuchItem
from shared.second_factors import new_recovery_codes, recovery_code_hash
from shared.tables import recovery_code, totp


class NewRecoveryCodes(TypedDict):
    recovery_codes: list[str]


@http_function("POST", "/api/v1/users/me/totp/recovery-codes", status=201, recent_login=True, problems=[NoSuchItem])
def renew_recovery_codes(caller: Caller) -> NewRecoveryCodes:
    """Make new recovery codes.

    Ten, each good for one log-in without the authenticator app; they are shown this once, and those from before are
    void. A 404 where no authenticator app is set up. The owner is told by mail.
    """
    codes = new_recovery_codes()
    rows = [{"account_id": caller.user_id, "code_hash": recovery_code_hash(caller.user_id, code)} for code in codes]
    has_app = select(totp.c.account_id).where(totp.c.account_id == caller.user_id, totp.c.confirmed_at.is_not(None))
    with transaction() as connection:
        sessions.lock(connection, caller)
        second_factors.require(connection, caller)
        if connection.scalar(has_app) is None:
            raise NoSuchItem
        connection.execute(delete(recovery_code).where(recovery_code.c.account_id == caller.user_id))
        connection.execute(insert(recovery_code).values(rows))
        announce(connection, RecoveryCodesRenewed(user_id=caller.user_id))
    return NewRecoveryCodes(recovery_codes=codes)
