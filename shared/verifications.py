"""Single-use tokens that prove control of an address: stored hashed, one live for each account and purpose."""

import base64
import hashlib
import secrets
from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection, delete, func
from sqlalchemy.dialects.postgresql import insert

from shared.tables import credential, verification

VERIFY_EMAIL = "verify_email"


def create(connection: Connection, account_id: UUID, purpose: str, lifetime: timedelta) -> str:
    """A new token of 256 bits; it replaces an earlier one for the same purpose."""
    token = base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()
    row = {"token_hash": _hash(token), "created_at": func.now(), "expires_at": func.now() + lifetime}
    connection.execute(
        insert(verification)
        .values(account_id=account_id, purpose=purpose, **row)
        .on_conflict_do_update(index_elements=["account_id", "purpose"], set_=row)
    )
    return token


def spend(connection: Connection, token: str, purpose: str) -> UUID | None:
    """The account that a token is for, which can then be spent no more; None for a token that is not live.

    Nor is one live that is older than the account's password: a link never brings a later password into force.
    """
    return connection.scalar(
        delete(verification)
        .where(
            verification.c.token_hash == _hash(token),
            verification.c.purpose == purpose,
            verification.c.expires_at > func.now(),
            verification.c.account_id == credential.c.account_id,
            verification.c.created_at >= credential.c.changed_at,
        )
        .returning(verification.c.account_id)
    )


def _hash(token: str) -> bytes:
    # 256 random bits need no slow hash.
    return hashlib.sha256(token.encode()).digest()
