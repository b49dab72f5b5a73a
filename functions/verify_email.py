"""Verify an e-mail address with the token from the mail."""

from uuid import UUID

from sqlalchemy import Connection, delete, func, select, update
from sqlalchemy.exc import DBAPIError

from shared.events.outbox import announce
from shared.events.types import EmailChanged, EmailReplaced, EmailVerified, UserPurged
from shared.framework.http_function import http_function
from shared.framework.scaling import Scaling
from shared.identity import former_addresses, verifications
from shared.identity.credentials import WrongPassword, require_password
from shared.identity.verifications import CHANGE_EMAIL, RESET_PASSWORD, VERIFY_EMAIL, InvalidLink, find, spend
from shared.postgresql.tables import account
from shared.postgresql.transactions import is_duplicate, transaction
from shared.text.fields import OpaqueToken, Password, RequestBody
from shared.users import profiles


class Verification(RequestBody):
    token: OpaqueToken
    password: Password


@http_function(
    "POST",
    "/api/v1/users/email/verify",
    status=204,
    scaling=Scaling("hash", max_pods=3),  # register has 5, and not everyone who registers follows the link
    problems=[InvalidLink, WrongPassword],
)
def verify_email(body: Verification) -> None:
    """Verify an e-mail address.

    Send the account's password and the token from the mail, which works once, within 24 hours. The token proves access
    to the mailbox; the password proves that the account belongs to the same person. A new account becomes active. If a
    user is changing their address, the new one replaces the old one, which is notified and can undo it for seven days.
    """
    token = body.token.get_secret_value()
    with transaction() as connection:
        found = find(connection, token, VERIFY_EMAIL, CHANGE_EMAIL)
    if found is None:
        raise InvalidLink
    require_password(found.account_id, body.password)
    try:
        with transaction() as connection:
            if spend(connection, token, found.purpose) is None:
                raise InvalidLink
            if found.purpose == VERIFY_EMAIL:
                _activate(connection, found.account_id)
            else:
                _replace_address(connection, found.account_id)
    except DBAPIError as error:
        if is_duplicate(error):  # another account has taken the new address since
            raise InvalidLink from None
        raise


def _activate(connection: Connection, user_id: UUID) -> None:
    activated = connection.execute(
        update(account)
        .where(account.c.id == user_id, account.c.status == "pending")
        .values(status="active", email_verified_at=func.now())
    )
    if not activated.rowcount:
        raise InvalidLink
    announce(connection, EmailVerified(user_id=user_id))


def _replace_address(connection: Connection, user_id: UUID) -> None:
    """Replace the old address with the new one.

    Raises:
        InvalidLink: no change of address is pending.
        DBAPIError: a duplicate, if the address belongs to another account.
    """
    new_address = connection.scalar(select(account.c.new_canonical_email).where(account.c.id == user_id))
    if new_address is None or former_addresses.is_kept_for_another(connection, new_address, user_id):
        raise InvalidLink
    _give_way(connection, user_id)
    former_id = former_addresses.keep(connection, user_id)
    replaced = connection.execute(
        update(account)
        .where(account.c.id == user_id, account.c.status == "active", account.c.new_email.is_not(None))
        .values(
            email=account.c.new_email,
            canonical_email=account.c.new_canonical_email,
            new_email=None,
            new_canonical_email=None,
            email_verified_at=func.now(),
        )
    )
    if not replaced.rowcount:
        raise InvalidLink
    # Such links are in the old mailbox.
    verifications.void(connection, user_id, RESET_PASSWORD)
    former_addresses.forget(connection, user_id, new_address)
    announce(connection, EmailChanged(user_id=user_id), EmailReplaced(user_id=user_id, former_email_id=former_id))
    profiles.refresh(connection, user_id)


def _give_way(connection: Connection, user_id: UUID) -> None:
    """Remove an account that was registered for the new address but never verified."""
    new_address = select(account.c.new_canonical_email).where(account.c.id == user_id).scalar_subquery()
    pending = delete(account).where(account.c.canonical_email == new_address, account.c.status == "pending")
    if removed := connection.scalar(pending.returning(account.c.id)):
        announce(connection, UserPurged(user_id=removed))
