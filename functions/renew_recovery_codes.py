"""Make new recovery codes."""

from sqlalchemy import select

from shared.events.outbox import announce
from shared.events.types import RecoveryCodesRenewed
from shared.framework.http_function import http_function
from shared.identity.access_tokens import Caller
from shared.identity.changes import change
from shared.identity.factors import has_app
from shared.identity.second_factors import NewRecoveryCodes, replace_recovery_codes
from shared.runtime.problems import NoSuchItem


@http_function("POST", "/api/v1/users/me/totp/recovery-codes", status=201, recent_login=True, problems=[NoSuchItem])
def renew_recovery_codes(caller: Caller) -> NewRecoveryCodes:
    """Make new recovery codes.

    Returns ten codes, each valid for one log-in without the authenticator app. They are not shown again, and earlier
    codes become invalid. Returns 404 if no authenticator app is set up. The user is notified by mail.
    """
    with change(caller) as connection:
        if not connection.scalar(select(has_app(caller.user_id))):
            raise NoSuchItem
        codes = replace_recovery_codes(connection, caller.user_id)
        announce(connection, RecoveryCodesRenewed(user_id=caller.user_id))
    return codes
