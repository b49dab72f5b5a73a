"""Change the caller's e-mail address."""

from sqlalchemy import select, update
from uuid_utils.compat import uuid7

from shared.events.outbox import announce
from shared.events.types import EmailChangeRequested, EmailVerificationRequested, RegistrationRepeated
from shared.framework.http_function import http_function
from shared.framework.scaling import Scaling
from shared.identity import credentials, former_addresses
from shared.identity.access_tokens import Caller
from shared.identity.changes import change
from shared.identity.credentials import WrongPassword
from shared.identity.verifications import CHANGE_EMAIL, void
from shared.postgresql.tables import account
from shared.runtime.problems import Problem
from shared.text.fields import EmailAddress, Password, RequestBody, canonical_email
from shared.users import profiles


class EmailChange(RequestBody):
    email: EmailAddress
    password: Password


class SameAddress(Problem):
    status = 409
    title = "The account already has this address"
    detail = "Nothing was changed, and no mail was sent."


@http_function(
    "POST",
    "/api/v1/users/me/email",
    status=202,
    scaling=Scaling("hash"),  # at most two pods, so that log-ins get the cores
    recent_login=True,
    limits={"address": "60/minute", "account": "10/hour", "mailbox": "5/hour"},
    problems=[WrongPassword, SameAddress],
)
def change_email(body: EmailChange, caller: Caller) -> None:
    """Change the e-mail address.

    The new address replaces the current one once it is verified with the link in the mail sent to it. Until then the
    profile shows it as `new_email`. The current address is notified. Requesting another address invalidates the
    earlier link. Sending the current address cancels a pending change, or returns 409 if there is none. The response
    is the same if the new address is already taken, but then no link is sent. Limited to ten attempts an hour.
    """
    credentials.require_password(caller.user_id, body.password)
    address = canonical_email(body.email)
    # An unverified registration does not own its address.
    its_owner = select(account.c.id).where(account.c.canonical_email == address, account.c.status != "pending")
    with change(caller) as connection:
        owner = connection.scalar(its_owner)
        if owner is None and former_addresses.is_kept_for_another(connection, address, caller.user_id):
            owner = uuid7()  # treated as taken; its event has no recipient
        cancels = owner == caller.user_id
        waiting = select(account.c.new_email).where(account.c.id == caller.user_id)
        if cancels and connection.scalar(waiting) is None:
            raise SameAddress
        # Also stored for a taken address: otherwise the profile would reveal that it is taken.
        new = {"new_email": None if cancels else body.email, "new_canonical_email": None if cancels else address}
        connection.execute(update(account).where(account.c.id == caller.user_id).values(new))
        void(connection, caller.user_id, CHANGE_EMAIL)
        if not cancels:
            told = RegistrationRepeated(user_id=owner) if owner else EmailVerificationRequested(user_id=caller.user_id)
            announce(connection, EmailChangeRequested(user_id=caller.user_id), told)
        profiles.refresh(connection, caller.user_id)
