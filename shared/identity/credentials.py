"""A user's password: checking it before actions that a stolen session must not perform, and replacing it."""

from typing import Any
from uuid import UUID

from pydantic import SecretStr
from sqlalchemy import Connection, Row, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from shared.events.outbox import announce
from shared.events.types import PasswordChanged
from shared.http import rate_limits
from shared.identity import sessions, verifications
from shared.identity.passwords import verify_password
from shared.postgresql.tables import account, challenge, credential
from shared.postgresql.transactions import transaction
from shared.runtime import logs
from shared.runtime.problems import Problem, ServiceUnavailable

GUESSES = {
    "email+address": "10/minute;20/hour",
    "email": "100/hour",
    "device": "10/minute;20/hour",
    "account": "10/minute;20/hour",
}
"""Limits on wrong passwords for one account, in all operations together.

At login, a stranger is stopped early if they use one address, and before NIST's 100 attempts (SP 800-63B-4, 3.2.2) in
an hour if they use many. Each known device has a separate limit, and so do the holders of a session or link of the
account, so that strangers cannot lock out the owner.
"""


class WrongPassword(Problem):
    """The token identifies the caller, but this also requires the password (RFC 9110, 15.5.4)."""

    status = 403
    title = "The password is wrong"
    detail = "Nothing was changed. This requires the account's current password."


def require_password(user_id: UUID, password: SecretStr) -> Row[Any]:
    """Check a user's current password, outside of any transaction because it takes about 35 ms.

    Wrong passwords count towards the limit until a correct one resets it.

    Returns password_hash, the hash it was checked against, for `replace_password`, and email and name, which the next
    password must not contain.

    Raises:
        WrongPassword: also if the account has no password yet.
        TooManyRequests: too many were wrong; this one was not checked.
        ServiceUnavailable: too many passwords are being checked or hashed.
    """
    logs.user_id.set(str(user_id))
    counted = ("password", GUESSES, {"account": str(user_id)})
    rate_limits.enforce(*counted)
    try:
        with transaction() as connection:
            found = connection.execute(
                select(credential.c.password_hash, *account.c["email", "name"])
                .join(account)
                .where(credential.c.account_id == user_id)
            ).first()
        is_right = verify_password(found.password_hash if found else None, password.get_secret_value())
    except ServiceUnavailable:
        rate_limits.take_back(*counted)  # it was not checked
        raise
    if not is_right or found is None:
        raise WrongPassword
    rate_limits.forgive(*counted)
    return found


def replace_password(
    connection: Connection,
    user_id: UUID,
    password_hash: str,
    *,
    instead_of: str | None = None,
    but: UUID | None = None,
) -> None:
    """Set a new password, and revoke all access gained with the old one.

    This ends sessions, cancels logins that wait for a second factor, and cancels a pending change of address, because a
    thief may have requested it. The account need not have had a password.

    Args:
        password_hash: from `hash_password`, made before the transaction.
        instead_of: the hash that must still be stored; by default any.
        but: a session that stays active.

    Raises:
        WrongPassword: the password was changed in the meantime.
    """
    # Locks the account, as every change to its data does first.
    connection.execute(update(account).where(account.c.id == user_id).values(new_email=None, new_canonical_email=None))
    row = {"password_hash": password_hash, "changed_at": func.now()}
    stored = connection.execute(
        insert(credential)
        .values(account_id=user_id, **row)
        .on_conflict_do_update(
            index_elements=["account_id"],
            set_=row,
            where=credential.c.password_hash == instead_of if instead_of else None,
        )
    )
    if not stored.rowcount:
        raise WrongPassword
    verifications.void(connection, user_id, verifications.CHANGE_EMAIL, verifications.RESET_PASSWORD)
    connection.execute(delete(challenge).where(challenge.c.account_id == user_id))
    sessions.end_all(connection, user_id, but=but)
    announce(connection, PasswordChanged(user_id=user_id))
