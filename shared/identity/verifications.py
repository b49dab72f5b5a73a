"""Single-use tokens that prove control of an address, or the right to set up a first factor.

They are stored hashed, one per account and purpose.
"""

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert

from shared.identity.tokens import hash_token, new_token
from shared.postgresql.tables import account, credential, verification
from shared.runtime.problems import Problem

VERIFY_EMAIL = "verify_email"
CHANGE_EMAIL = "change_email"
RESET_PASSWORD = "reset_password"  # noqa: S105
FIRST_FACTOR = "first_factor"


class InvalidLink(Problem):
    status = 400
    title = "The link is not valid"
    detail = "It was used already, has expired, or a newer one was sent. Request a new one."


def create(
    connection: Connection, account_id: UUID, purpose: str, lifetime: timedelta, *, token: str | None = None
) -> str:
    """Create a token, replacing an earlier one for the same purpose.

    Args:
        token: by default, a new one of 256 bits.
    """
    token = token or new_token()
    row = {"token_hash": hash_token(token), "created_at": func.now(), "expires_at": func.now() + lifetime}
    connection.execute(
        insert(verification)
        .values(account_id=account_id, purpose=purpose, **row)
        .on_conflict_do_update(index_elements=["account_id", "purpose"], set_=row)
    )
    return token


def find(connection: Connection, token: str, *purposes: str, lock: bool = False) -> Row[Any] | None:
    """Return the account id and purpose of a token for one of these purposes; None if it is not live. Do not spend it.

    Args:
        lock: lock the account until the transaction ends.
    """
    query = select(*verification.c["account_id", "purpose"]).join(account).where(_is_live(token, *purposes))
    return connection.execute(query.with_for_update(of=account, key_share=True) if lock else query).first()


def spend(connection: Connection, token: str, purpose: str) -> UUID | None:
    """Spend a token and return its account id; None if the token is not live.

    A token that is older than the account's password is not live, so an old link cannot replace a newer password.
    """
    # Lock the account first, so that a concurrent change of the password counts too.
    if find(connection, token, purpose, lock=True) is None:
        return None
    return connection.scalar(delete(verification).where(_is_live(token, purpose)).returning(verification.c.account_id))


def void(connection: Connection, account_id: UUID, *purposes: str) -> None:
    """Void the tokens of an account for these purposes; call this with the account locked."""
    connection.execute(
        delete(verification).where(verification.c.account_id == account_id, verification.c.purpose.in_(purposes))
    )


def _is_live(token: str, *purposes: str) -> ColumnElement[bool]:
    return and_(
        verification.c.token_hash == hash_token(token),
        verification.c.purpose.in_(purposes),
        verification.c.expires_at > func.now(),
        ~exists().where(
            credential.c.account_id == verification.c.account_id,
            credential.c.changed_at > verification.c.created_at,
        ),
    )
