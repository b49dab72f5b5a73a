"""Challenges: 256-bit tokens that tie the second step of a login or passkey registration to the first.

They are stored hashed, for five minutes and one purpose, and bound to an account if it is known.
"""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, update

from shared.identity.tokens import hash_token, new_token
from shared.postgresql.tables import challenge

SECOND_FACTOR = "second_factor"
PASSKEY_REGISTRATION = "passkey_registration"
PASSKEY_LOGIN = "passkey_login"

LIFETIME = timedelta(minutes=5)


def create(connection: Connection, purpose: str, account_id: UUID | None = None) -> str:
    """Create a challenge. It is base64url text, as in WebAuthn's JSON."""
    token = new_token()
    connection.execute(
        insert(challenge).values(
            token_hash=hash_token(token), purpose=purpose, account_id=account_id, expires_at=func.now() + LIFETIME
        )
    )
    return token


def is_live(token: str, purpose: str) -> ColumnElement[bool]:
    """Return the condition that a row is this challenge, neither spent nor expired."""
    return and_(
        challenge.c.token_hash == hash_token(token), challenge.c.purpose == purpose, challenge.c.expires_at > func.now()
    )


def spend(connection: Connection, token: str, purpose: str, account_id: UUID | None = None) -> bool:
    """Spend a challenge. Return whether it was live and bound to exactly this account (None: to no account)."""
    spent = connection.execute(delete(challenge).where(is_live(token, purpose), challenge.c.account_id == account_id))
    return spent.rowcount > 0


def count_try(connection: Connection, token: str, purpose: str, *, most: int) -> bool:
    """Count an attempt to answer a challenge, successful or not; return False if no attempts are left."""
    tried = connection.execute(
        update(challenge).where(is_live(token, purpose), challenge.c.tries < most).values(tries=challenge.c.tries + 1)
    )
    return tried.rowcount > 0
