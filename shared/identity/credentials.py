"""A user's password: asked for again before what a stolen session must not do, and replaced."""

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
"""Wrong passwords for one account, wherever it is asked for.

A stranger at the log-in is stopped soon from one address, and from many before NIST's 100 (SP 800-63B-4, 3.2.2) in an
hour. Each known device has an allowance of its own, and so have all who hold a session or a link of the account: what
strangers spend does not keep out its owner.
"""


class WrongPassword(Problem):
    """Whoever asks is known by a token, but may not do this without the password (RFC 9110, 15.5.4)."""

    status = 403
    title = "The password is wrong"
    detail = "Nothing was changed. This takes the account's current password."


def require_password(user_id: UUID, password: SecretStr) -> Row[Any]:
    """Checks a user's current password, outside of any transaction, as it takes some 35 ms.

    Wrong ones count, until a right one comes.

    Returns password_hash, which it was checked against, for `replace_password`; email and name, which the next
    password must not be made of.

    Raises:
        WrongPassword: also for an account that has no password yet.
        TooManyRequests: too many were wrong; this one was not looked at.
        ServiceUnavailable: too many passwords are being checked or hashed already.
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
        rate_limits.take_back(*counted)  # nobody looked at it
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
    """Puts a new password in force, and shuts out whoever came in by the old one.

    Sessions end, a log-in that waits for its second factor starts again, and a waiting change of address, which
    may be a thief's, is cancelled. The account may have had no password.

    Args:
        password_hash: from `hash_password`, made before the transaction.
        instead_of: the hash that must still be the stored one; any when it is not given.
        but: a session that goes on.

    Raises:
        WrongPassword: another password has come into force since.
    """
    # Locks the account, as everybody does first who changes what belongs to it.
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
