"""Replaced addresses, which are reserved for their account for seven days so that the change can be undone."""

from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from uuid_utils.compat import uuid7

from shared.identity.tokens import hash_token, new_token
from shared.postgresql.tables import account, former_email

KEPT = timedelta(days=7)


class Undo(NamedTuple):
    """The recipient of the mail that offers to undo a change, and the token in its link."""

    address: str
    token: str


def is_kept_for_another(connection: Connection, address: str, user_id: UUID | None = None) -> bool:
    """Return whether a canonical address is kept for an account other than this one."""
    kept = select(former_email.c.account_id).where(
        former_email.c.canonical_email == address, former_email.c.expires_at > func.now()
    )
    owner = connection.scalar(kept)
    return owner is not None and owner != user_id


def keep(connection: Connection, user_id: UUID) -> UUID:
    """Keep the current address of a locked account that is about to get another; return its id."""
    present = connection.execute(select(*account.c["email", "canonical_email"]).where(account.c.id == user_id)).one()
    row = {
        "id": uuid7(),
        "account_id": user_id,
        "email": present.email,
        "token_hash": None,
        "replaced_at": func.now(),
        "expires_at": func.now() + KEPT,
    }
    kept = insert(former_email).values(canonical_email=present.canonical_email, **row)
    # A row that exists already has expired, because the address has since become this account's.
    kept = kept.on_conflict_do_update(index_elements=["canonical_email"], set_=row)
    id_: UUID = connection.execute(kept.returning(former_email.c.id)).scalar_one()
    return id_


def forget(connection: Connection, user_id: UUID, address: str) -> None:
    """Stop keeping an address for an account that uses it again."""
    connection.execute(
        delete(former_email).where(former_email.c.account_id == user_id, former_email.c.canonical_email == address)
    )


def offer_undo(connection: Connection, former_id: UUID) -> Undo | None:
    """Create a token to undo a change, replacing any earlier one; None if the change can no longer be undone."""
    token = new_token()
    offered = (
        update(former_email)
        .where(former_email.c.id == former_id, former_email.c.expires_at > func.now())
        .values(token_hash=hash_token(token))
    )
    address = connection.scalar(offered.returning(former_email.c.email))
    return Undo(address, token) if address else None
