"""Change one's e-mail address."""

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
    title = "This is the address of the account already"
    detail = "Nothing was changed, and no mail was sent."


@http_function(
    "POST",
    "/api/v1/users/me/email",
    status=202,
    scaling=Scaling("hash"),  # two pods leave the cores to log-ins
    recent_login=True,
    limits={"address": "60/minute", "account": "10/hour", "mailbox": "5/hour"},
    problems=[WrongPassword, SameAddress],
)
def change_email(body: EmailChange, caller: Caller) -> None:
    """Change the e-mail address.

    The new address takes the place of the present one when it is verified, with the link in the mail that goes to
    it; until then it stands in the profile as `new_email`. The present address is told. Another new address voids the
    link to the one before. Giving the present address cancels the change; where none waits, the answer is a 409. The
    answer is the same whether or not the new address is taken; its link just never comes. Ten tries an hour.
    """
    credentials.require_password(caller.user_id, body.password)
    address = canonical_email(body.email)
    # Whoever registered an address and never verified it does not own it.
    its_owner = select(account.c.id).where(account.c.canonical_email == address, account.c.status != "pending")
    with change(caller) as connection:
        owner = connection.scalar(its_owner)
        if owner is None and former_addresses.is_kept_for_another(connection, address, caller.user_id):
            owner = uuid7()  # as good as taken; its event finds nobody to write to
        cancels = owner == caller.user_id
        waiting = select(account.c.new_email).where(account.c.id == caller.user_id)
        if cancels and connection.scalar(waiting) is None:
            raise SameAddress
        # Stored for a taken address too, or the profile would tell.
        new = {"new_email": None if cancels else body.email, "new_canonical_email": None if cancels else address}
        connection.execute(update(account).where(account.c.id == caller.user_id).values(new))
        void(connection, caller.user_id, CHANGE_EMAIL)
        if not cancels:
            told = RegistrationRepeated(user_id=owner) if owner else EmailVerificationRequested(user_id=caller.user_id)
            announce(connection, EmailChangeRequested(user_id=caller.user_id), told)
        profiles.refresh(connection, caller.user_id)
