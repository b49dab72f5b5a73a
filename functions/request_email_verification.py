"""Request another link to verify an e-mail address."""

from sqlalchemy import or_, select
from uuid_utils.compat import uuid7

from shared.events.outbox import announce
from shared.events.types import EmailVerificationRequested
from shared.framework.http_function import http_function
from shared.postgresql.tables import account
from shared.postgresql.transactions import transaction
from shared.text.fields import EmailAddress, RequestBody, canonical_email


class UnverifiedAddress(RequestBody):
    email: EmailAddress


@http_function(
    "POST",
    "/api/v1/users/email/resend",
    status=202,
    limits={"address": "30/hour", "mailbox+address": "3/hour", "mailbox": "10/hour"},
)
def request_email_verification(body: UnverifiedAddress) -> None:
    """Request another link to verify an e-mail address.

    The address is a registered one, or the new address of a user who is changing theirs. The response is the same
    whether or not it is waiting to be verified. If it is, a mail with a new link follows, and the old link stops
    working.
    """
    address = canonical_email(body.email)
    is_its_own = account.c.canonical_email == address
    waiting = (
        select(account.c.id, account.c.status, is_its_own.label("is_its_own"))
        .where(or_(is_its_own, account.c.new_canonical_email == address))
        .order_by(is_its_own.desc(), account.c.id.desc())
        .limit(1)
    )
    with transaction() as connection:
        found = connection.execute(waiting).first()
        waits = found is not None and found.status == ("pending" if found.is_its_own else "active")
        # Any other address costs the same work, but its event has no recipient.
        user_id = found.id if found is not None and waits else uuid7()
        announce(connection, EmailVerificationRequested(user_id=user_id))
