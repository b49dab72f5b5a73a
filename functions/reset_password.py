"""Set a new password with the token from the mail."""

from sqlalchemy import select

from shared.framework.http_function import http_function
from shared.framework.scaling import Scaling
from shared.http import rate_limits
from shared.identity import credentials
from shared.identity.passwords import check_acceptable, hash_password
from shared.identity.verifications import RESET_PASSWORD, InvalidLink, find, spend
from shared.postgresql.tables import account
from shared.postgresql.transactions import transaction
from shared.runtime import logs
from shared.text.fields import NewPassword, OpaqueToken, RequestBody, canonical_email
from shared.users import profiles


class PasswordReset(RequestBody):
    token: OpaqueToken
    password: NewPassword


@http_function(
    "POST",
    "/api/v1/users/password/reset",
    status=204,
    scaling=Scaling("hash"),  # at most two pods, so that log-ins get the cores
    problems=[InvalidLink],
)
def reset_password(body: PasswordReset) -> None:
    """Set a new password.

    The token from the mail works once, within 30 minutes; a rejected password does not use it up. All sessions end, a
    pending change of the e-mail address is cancelled, and the user is notified by mail. The authenticator app and
    passkeys stay, so access to the mailbox is not enough to take over an account that has them. A user who has lost all
    of them needs an administrator.
    """
    token, password = body.token.get_secret_value(), body.password.get_secret_value()
    with transaction() as connection:
        found = find(connection, token, RESET_PASSWORD)
        owner = (
            found
            and connection.execute(
                select(account.c.email, account.c.name).where(
                    account.c.id == found.account_id, account.c.status.in_(("active", "withdrawn"))
                )
            ).first()
        )
    if found is None or owner is None:
        raise InvalidLink
    logs.user_id.set(str(found.account_id))
    check_acceptable(password, owner.email, owner.name)
    password_hash = hash_password(password)

    with transaction() as connection:
        user_id = spend(connection, token, RESET_PASSWORD)
        if user_id is None:
            raise InvalidLink
        credentials.replace_password(connection, user_id, password_hash)
        profiles.refresh(connection, user_id)
    # The counted attempts were made with the old password and would lock out the owner.
    rate_limits.forgive("login", credentials.GUESSES, {"email": canonical_email(owner.email)})
