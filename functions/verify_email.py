"""Verify an e-mail address with the token from the mail."""

from sqlalchemy import func, update

from shared.database import transaction
from shared.events import EmailVerified, announce
from shared.fields import OpaqueToken, RequestBody
from shared.http_function import http_function
from shared.problems import Problem
from shared.tables import account
from shared.verifications import VERIFY_EMAIL, spend


class Verification(RequestBody):
    token: OpaqueToken


class InvalidVerificationToken(Problem):
    status = 400
    title = "The link is not valid"
    detail = "It has been used, has expired, or a newer one was sent. Register again to get a new one."


@http_function("POST", "/api/v1/users/email/verify", status=204, uses=["database"], problems=[InvalidVerificationToken])
def verify_email(body: Verification) -> None:
    """Verify an e-mail address.

    Takes the token from the mail, once and within 24 hours; the account becomes active.
    """
    with transaction() as connection:
        user_id = spend(connection, body.token.get_secret_value(), VERIFY_EMAIL)
        if user_id is None:
            raise InvalidVerificationToken
        connection.execute(
            update(account).where(account.c.id == user_id).values(status="active", email_verified_at=func.now())
        )
        announce(connection, EmailVerified(user_id=user_id))
