"""Challenges: tokens of 256 bits that tie the second half of a log-in or of a registration to its first half.

Stored hashed, for five minutes, for one purpose; bound to an account where that is known.
"""

import base64
import hashlib
import secrets
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, update

from shared.tables import challenge

SECOND_FACTOR = "second_factor"
PASSKEY_REGISTRATION = "passkey_registration"
PASSKEY_LOGIN = "passkey_login"

LIFETIME = timedelta(minutes=5)


def create(connection: Connection, purpose: str, account_id: UUID | None = None) -> str:
    """A new challenge: base64url text, which is what WebAuthn's JSON forms have too."""
    token = base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()
    connection.execute(
        insert(challenge).values(
            token_hash=_hash(token), purpose=purpose, account_id=account_id, expires_at=func.now() + LIFETIME
        )
    )
    return token


def is_live(token: str, purpose: str) -> ColumnElement[bool]:
    """The condition that a row is this challenge, neither spent nor expired."""
    return and_(
        challenge.c.token_hash == _hash(token), challenge.c.purpose == purpose, challenge.c.expires_at > func.now()
    )


def spend(connection: Connection, token: str, purpose: str, account_id: UUID | None = None) -> bool:
    """Whether the challenge was live, and bound to this account or to none; it can then be spent no more."""
    spent = connection.execute(delete(challenge).where(is_live(token, purpose), challenge.c.account_id == account_id))
    return spent.rowcount > 0


def count_try(connection: Connection, token: str, purpose: str, *, most: int) -> bool:
    """Counts one try to answer a challenge, whatever comes of it; False for a challenge that has no try left."""
    tried = connection.execute(
        update(challenge).where(is_live(token, purpose), challenge.c.tries < most).values(tries=challenge.c.tries + 1)
    )
    return tried.rowcount > 0


def _hash(token: str) -> bytes:
    # 256 random bits need no slow hash.
    return hashlib.sha256(token.encode()).digest()
