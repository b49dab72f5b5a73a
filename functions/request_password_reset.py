"""Request a link to set a new password."""

from sqlalchemy import select
from uuid_utils.compat import uuid7

from shared.events.outbox import announce
from shared.events.types import PasswordResetRequested
from shared.framework.http_function import http_function
from shared.postgresql.tables import account
from shared.postgresql.transactions import transaction
from shared.text.fields import EmailAddress, RequestBody, canonical_email


class ForgottenPassword(RequestBody):
    email: EmailAddress


@http_function(
    "POST",
    "/api/v1/users/password/forgot",
    status=202,
    limits={"address": "30/hour", "mailbox+address": "3/hour", "mailbox": "10/hour", "device": "3/hour"},
)
def request_password_reset(body: ForgottenPassword) -> None:
    """Request a link to set a new password.

    The response is the same whether or not the address has an account. If it has one, even a withdrawn one that can
    still be restored, its owner gets a mail with a link that works once, within 30 minutes. An address that was never
    verified gets no link: register it again with another password. A device that has logged in before and sends its
    Device-Token can make three requests an hour, however many others have made.
    """
    by_email = select(account.c.id).where(account.c.canonical_email == canonical_email(body.email))
    with transaction() as connection:
        # An address without an account costs the same work, but its event has no recipient.
        user_id = connection.scalar(by_email) or uuid7()
        announce(connection, PasswordResetRequested(user_id=user_id))
